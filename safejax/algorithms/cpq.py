"""Constraints-penalised Q-learning: an offline actor-critic that trusts only values it believes safe.

Xu et al. 2021, https://arxiv.org/abs/2107.09003. The reward backup and the actor see only actions whose cost value is
at most kappa, the limit in discounted units; a variational auto-encoder of the data finds actions outside it, and the
cost critic is pushed up there.

Differences from the released code (OSRL cpq.py), which is the usual reference:
- its push-up term is evaluated on the target cost critic under no_grad, so it moves nothing but its own multiplier.
  `push_up=True` is the paper's: the gradient reaches the cost critic. It has no ceiling, and on ball_circle it ran
  away until every action was unsafe and the actor got no gradient; so the default is what the released code amounts
  to, without the auto-encoder's idle work;
- its out-of-distribution candidates are actions before the tanh; here they are actions;
- its cost value bootstraps through termination; here `discount` masks rewards and costs alike, and a truncation
  bootstraps;
- of an ensemble of cost critics it takes the minimum; here the maximum.

Shapes: B batch, E critics, K candidate actions, O observation, A action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from safejax.algorithms import critics
from safejax.algorithms.bc import act
from safejax.constraints import cost_value_limit
from safejax.gradients import copy, gradient_step, polyak, train_state
from safejax.losses.policy import gaussian_kl
from safejax.losses.value import squared_error, td_target
from safejax.networks import ConditionalVAE, Critic, GaussianActor, ensemble, with_encoder
from safejax.types import (
    Algorithm,
    Array,
    BatchSpec,
    Key,
    Metrics,
    Network,
    Params,
    TrainState,
    Transition,
    bind,
    check_range,
    choose_networks,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Numbers of CPQ; the defaults are OSRL's."""

    discount_factor: float = 0.99
    cost_limit: float = 20.0  # cost units per episode
    episode_length: int = 200  # environment steps, for kappa
    target_update_rate: float = 0.005
    actor_learning_rate: float = 1e-4
    critic_learning_rate: float = 1e-3
    vae_learning_rate: float = 1e-3
    vae_kl_weight: float = 0.5  # beta of the auto-encoder
    push_up: bool = False  # see the module's first difference
    push_up_level: float = 1.5  # aim of the cost critic outside the data, in units of kappa
    push_up_learning_rate: float = 1e-4  # of the log multiplier
    candidate_count: int = 10  # K
    candidate_quantile: float = 0.75  # candidates above this KL count as outside the data
    reward_scale: float = 0.1


class Networks(NamedTuple):
    """actor: [B, O] -> distribution; critics: [B, O], [B, A] -> [E, B]; vae: [B, O], [B, A], key -> Reconstruction."""

    actor: Network
    critic: Network
    cost_critic: Network
    vae: Any  # ConditionalVAE, or a linen module with its `encode`


class State(NamedTuple):
    """What learning carries."""

    step: Array  # [] int32, gradient steps
    actor: TrainState
    critic: TrainState
    cost_critic: TrainState
    target_critic: Params
    target_cost_critic: Params
    vae: TrainState
    push_up_log_weight: Array  # [] logarithm of the push-up multiplier, in [-5, 5]


def default_networks(
    action_size: int,
    hidden_sizes: Sequence[int] = (256, 256),
    vae_hidden_sizes: Sequence[int] = (400, 400),
    *,
    encoder: Network | None = None,
) -> Networks:
    """Tanh-normal actor, twin reward critics, one cost critic, conditional auto-encoder."""
    hidden_sizes = tuple(hidden_sizes)
    networks = Networks(
        actor=GaussianActor(action_size, hidden_sizes),
        critic=ensemble(Critic(hidden_sizes), 2),
        cost_critic=ensemble(Critic(hidden_sizes), 1),
        vae=ConditionalVAE(action_size, tuple(vae_hidden_sizes)),
    )
    return with_encoder(networks, encoder)


def init(key: Key, example: Transition, *, config: Config, networks: Networks) -> State:
    """A fresh state; `example` is one transition without leading axes."""
    actor_key, critic_key, cost_key, vae_key = jax.random.split(key, 4)
    pair = (example.observation, example.action)
    critic = networks.critic.init(critic_key, *pair)
    cost_critic = networks.cost_critic.init(cost_key, *pair)
    actor = networks.actor.init(actor_key, example.observation)
    return State(
        step=jnp.zeros((), jnp.int32),
        actor=train_state(actor, optax.adam(config.actor_learning_rate)),
        critic=train_state(critic, optax.adam(config.critic_learning_rate)),
        cost_critic=train_state(cost_critic, optax.adam(config.critic_learning_rate)),
        target_critic=copy(critic),
        target_cost_critic=copy(cost_critic),
        vae=train_state(networks.vae.init(vae_key, *pair, vae_key), optax.adam(config.vae_learning_rate)),
        push_up_log_weight=jnp.zeros((), jnp.float32),
    )


def update(state: State, batch: Transition, key: Key, *, config: Config, networks: Networks) -> tuple[State, Metrics]:
    """One step of critics and actor on `batch` [B], and of the auto-encoder if it is used."""
    next_key, actor_key, push_key = jax.random.split(key, 3)
    kappa = cost_value_limit(config.cost_limit, config.discount_factor, config.episode_length)
    next_action = networks.actor.apply(state.actor.params, batch.next_observation).sample(next_key)
    next_pair = (batch.next_observation, next_action)
    next_cost = jnp.max(networks.cost_critic.apply(state.target_cost_critic, *next_pair), axis=0)
    next_q = jnp.min(networks.critic.apply(state.target_critic, *next_pair), axis=0)
    target = penalized_target(
        config.reward_scale * batch.reward, batch.discount, next_q, next_cost, kappa, config.discount_factor
    )
    cost_target = td_target(batch.cost, batch.discount, next_cost, config.discount_factor)

    def cost_critic_loss(params: Params) -> tuple[Array, Metrics]:
        q = networks.cost_critic.apply(params, batch.observation, batch.action)
        fit = jnp.sum(jnp.mean(squared_error(q, cost_target), axis=-1))
        metrics = {"cost_critic/loss": fit, "cost_critic/mean": jnp.mean(q)}
        if not config.push_up:
            return fit, metrics
        outside_value = _outside_value(params, candidates, batch, networks)
        return fit - push_up_weight * outside_value, metrics | {"cost_critic/outside": outside_value}

    vae, push_up_log_weight, metrics = state.vae, state.push_up_log_weight, {}
    candidates: Any = ()
    push_up_weight = jnp.exp(push_up_log_weight)
    if config.push_up:
        vae_key, candidate_key = jax.random.split(push_key)
        vae, metrics = _update_vae(state, batch, vae_key, config, networks)
        candidates = _candidates(state, vae.params, batch, candidate_key, config, networks)
    critic_optimizer = optax.adam(config.critic_learning_rate)
    critic, critic_metrics = critics.fit(state.critic, batch, target, critic_optimizer, network=networks.critic)
    cost_critic, cost_metrics = gradient_step(cost_critic_loss, state.cost_critic, critic_optimizer)
    if config.push_up:
        shortfall = config.push_up_level * kappa - cost_metrics["cost_critic/outside"]
        step = config.push_up_learning_rate * push_up_weight * shortfall
        push_up_log_weight = jnp.clip(push_up_log_weight + step, -5.0, 5.0)

    def actor_loss(params: Params) -> tuple[Array, Metrics]:
        action = networks.actor.apply(params, batch.observation).sample(actor_key)
        pair = (batch.observation, action)
        q = jnp.min(networks.critic.apply(critic.params, *pair), axis=0)
        safe = jnp.max(networks.cost_critic.apply(cost_critic.params, *pair), axis=0) <= kappa
        loss = -jnp.mean(jnp.where(safe, q, 0.0))
        return loss, {"actor/loss": loss, "actor/safe_share": jnp.mean(safe)}

    actor, actor_metrics = gradient_step(actor_loss, state.actor, optax.adam(config.actor_learning_rate))

    rate = config.target_update_rate
    new_state = State(
        step=state.step + 1,
        actor=actor,
        critic=critic,
        cost_critic=cost_critic,
        target_critic=polyak(state.target_critic, critic.params, rate),
        target_cost_critic=polyak(state.target_cost_critic, cost_critic.params, rate),
        vae=vae,
        push_up_log_weight=push_up_log_weight,
    )
    return new_state, metrics | critic_metrics | cost_metrics | actor_metrics


def penalized_target(
    reward: Array,
    discount: Array,
    next_value: Array,
    next_cost_value: Array,
    cost_value_limit: float | Array,
    discount_factor: float | Array,
) -> Array:
    """CPQ's backup r + gamma * discount * 1[Qc(s', a') <= kappa] * Q(s', a'); all [...]. Source: paper eq. 8."""
    safe = next_cost_value <= cost_value_limit
    return td_target(reward, discount, jnp.where(safe, next_value, 0.0), discount_factor)


def _update_vae(
    state: State, batch: Transition, key: Key, config: Config, networks: Networks
) -> tuple[TrainState, Metrics]:
    def loss(params: Params) -> tuple[Array, Metrics]:
        output = networks.vae.apply(params, batch.observation, batch.action, key)
        error = jnp.mean(squared_error(output.action, batch.action))
        kl = jnp.mean(gaussian_kl(output.latent_mean, output.latent_log_std))
        return error + config.vae_kl_weight * kl, {"vae/error": error, "vae/kl": kl}

    return gradient_step(loss, state.vae, optax.adam(config.vae_learning_rate))


def _candidates(
    state: State, vae: Params, batch: Transition, key: Key, config: Config, networks: Networks
) -> tuple[Array, Array]:
    """K policy actions for each observation [K, B, A], and 1 where they lie outside the data [K, B]."""
    policy = networks.actor.apply(state.actor.params, batch.observation)
    candidates = jax.vmap(policy.sample)(jax.random.split(key, config.candidate_count))

    def divergence(action: Array) -> Array:
        mean, log_std = networks.vae.apply(vae, batch.observation, action, method="encode")
        return jnp.mean(gaussian_kl(mean, log_std), axis=-1)

    kl = jax.vmap(divergence)(candidates)
    return candidates, (kl >= jnp.quantile(kl, config.candidate_quantile)).astype(jnp.float32)


def _outside_value(params: Params, candidates: tuple[Array, Array], batch: Transition, networks: Networks) -> Array:
    """Mean over the batch of the cost value of candidates outside the data (0 for those inside): []."""
    actions, outside = candidates
    value = critics.candidate_values(networks.cost_critic, params, batch.observation, actions, reduce=jnp.max)
    return jnp.mean(outside * value)


def make(config: Config = Config(), networks: Networks | None = None, *, action_size: int | None = None) -> Algorithm:
    """Check the numbers and bind them; networks default to `default_networks(action_size)`."""
    check_range("discount_factor", config.discount_factor, 0.0, 1.0)
    check_range("cost_limit", config.cost_limit, 0.0)
    check_range("episode_length", config.episode_length, 1)
    check_range("candidate_count", config.candidate_count, 1)
    check_range("candidate_quantile", config.candidate_quantile, 0.0, 1.0)
    check_range("target_update_rate", config.target_update_rate, 0.0, 1.0)
    for name in ("actor_learning_rate", "critic_learning_rate", "vae_learning_rate"):
        check_range(name, getattr(config, name), 0.0, open_low=True)
    networks = choose_networks(networks, default_networks, action_size)
    return bind(config=config, networks=networks, batch=BatchSpec.uniform(), init=init, update=update, act=act)
