"""Diffusion Q-learning: a diffusion policy that stays near the data and climbs the critic through its own chain.

Wang et al. 2023, https://arxiv.org/abs/2208.06193. One update: twin critics by TD towards the averaged policy's
actions, the actor by L_bc + eta L_q, whose gradient passes through all reverse steps, the averages. L_q divides the
value by its own size, so that eta means the same for every reward scale.

As in the authors' code (Zhendong-Wang/Diffusion-Policies-for-Offline-RL) and not in the paper: L_bc is a mean over
action dimensions; L_q climbs one online critic, drawn at random, and the other gives the size; the averaged actor
gives the targets, the online one acts. Differences from the code: its learning-rate decay is left out (its cosine is
stepped once per fifty epochs and ends at .999 of the start: the rate is constant in effect); initial weights, see
`MLPDenoiser`; without `explore` the candidates come from fixed noise and the best one acts. The safe form
(`Config.safety`) is ours, see `safety.py` and `value_loss`. Shapes: B batch, K candidate actions, E = 2 critics, O
observation, A action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from safejax.algorithms import critics, diffusion_bc, safety
from safejax.algorithms.safety import SafetyConfig
from safejax.diffusion import DiffusionConfig, check_diffusion, denoising_error
from safejax.gradients import adam, copy, gradient_step, polyak, train_state
from safejax.losses.policy import lagrangian
from safejax.losses.value import td_target
from safejax.networks import Critic, MLPDenoiser, ensemble, member, with_encoder
from safejax.types import (
    Algorithm,
    Array,
    ArrayTree,
    BatchSpec,
    Carry,
    Key,
    Metrics,
    Network,
    Params,
    TrainState,
    Transition,
    bind,
    check_choice,
    check_range,
    choose_networks,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Numbers of Diffusion-QL; the defaults are the authors' for locomotion."""

    discount_factor: float = 0.99
    value_weight: float = 1.0  # eta; .5 to 4.5 for antmaze, .1 for Adroit, .005 for kitchen
    backup_count: int = 1  # actions drawn at each next state; 10 is the max-Q backup of antmaze
    candidate_count: int = 50
    target_update_rate: float = 0.005
    learning_rate: float = 3e-4  # critics
    actor_learning_rate: float = 3e-4
    clip_norm: float = 9.0  # bound on a gradient's global norm, 1 to 10 in the paper's tables; 0 leaves it out
    ema_rate: float = 0.005  # of the averaged actor, at every `ema_period`-th update once `ema_start` were made
    ema_start: int = 1000
    ema_period: int = 5
    diffusion: DiffusionConfig = DiffusionConfig()
    reward_scale: float = 1.0
    safety: SafetyConfig | None = None


class Networks(NamedTuple):
    """actor: a denoiser, see `diffusion_bc`; critic: [B, O], [B, A] -> [E, B], E leads in its parameters too."""

    actor: Any
    critic: Network
    safety: Any = ()  # SafetyNetworks, needed by the safe form alone


class State(NamedTuple):
    """What learning carries."""

    step: Array  # [] int32, gradient steps
    actor: TrainState
    ema_actor: Params  # exponential average of the actor's parameters; it gives the critics' targets
    critic: TrainState
    target_critic: Params
    safety: Any  # SafetyState, or ()


def default_networks(
    action_size: int, hidden_sizes: Sequence[int] = (256, 256, 256), *, encoder: Network | None = None
) -> Networks:
    """The paper's plain denoiser and twin critics, of the same sizes, with mish."""
    hidden_sizes = tuple(hidden_sizes)
    networks = Networks(
        actor=MLPDenoiser(action_size, hidden_sizes),
        critic=ensemble(Critic(hidden_sizes, "mish"), 2),
        safety=safety.default_networks(hidden_sizes, "mish"),
    )
    return with_encoder(networks, encoder)


def init(key: Key, example: Transition, *, config: Any, networks: Any) -> State:
    """A fresh state; `example` is one transition without leading axes."""
    actor_key, critic_key, safety_key = jax.random.split(key, 3)
    actor = networks.actor.init(actor_key, example.observation, example.action, jnp.zeros((), jnp.int32))
    critic = networks.critic.init(critic_key, example.observation, example.action)
    return State(
        step=jnp.zeros((), jnp.int32),
        actor=train_state(actor, adam(config.actor_learning_rate, clip_norm=config.clip_norm)),
        ema_actor=copy(actor),
        critic=train_state(critic, adam(config.learning_rate, clip_norm=config.clip_norm)),
        target_critic=copy(critic),
        safety=safety.init(safety_key, example, config=config.safety, networks=networks.safety),
    )


def update(state: State, batch: Transition, key: Key, *, config: Config, networks: Networks) -> tuple[State, Metrics]:
    """One step of every part on `batch` [B]."""
    critic_key, actor_key = jax.random.split(key)
    next_action = draw_next_actions(state, batch, critic_key, config=config, networks=networks)
    state, critic_metrics = update_critic(state, batch, next_action, config=config, networks=networks)
    safe, safety_metrics = safety.update(
        state.safety, batch, next_action[0], config=config.safety, networks=networks.safety
    )
    state = state._replace(safety=safe)
    actor, actor_metrics = update_actor(
        state, batch, actor_key, (1.0, config.value_weight), config=config, networks=networks
    )
    cost_value = actor_metrics.get("cost_value/policy", jnp.zeros(()))
    safe, tick_metrics = safety.tick(safe, cost_value, config=config.safety)
    ema_actor = average_actor(state, actor.params, config=config)
    state = state._replace(step=state.step + 1, actor=actor, ema_actor=ema_actor, safety=safe)
    return state, critic_metrics | safety_metrics | actor_metrics | tick_metrics


def draw_next_actions(state: Any, batch: Transition, key: Key, *, config: Any, networks: Any) -> Array:
    """`backup_count` actions [K, B, A] of the averaged actor at the next observations."""
    return diffusion_bc.propose(
        state.ema_actor,
        batch.next_observation,
        key,
        config.backup_count,
        explore=True,
        config=config,
        networks=networks,
    )


def update_critic(
    state: Any, batch: Transition, next_action: Array, *, config: Any, networks: Any
) -> tuple[Any, Metrics]:
    """One TD step of the critics and their targets; y = r + gamma d min_E max_K Q_target(s', a').

    Args:
      state: any State with `critic` and `target_critic`.
      batch: [B].
      next_action: [K, B, A]; with K > 1 this is the max-Q backup, the best action for each critic, then the minimum.
    """
    evaluate = jax.vmap(lambda action: networks.critic.apply(state.target_critic, batch.next_observation, action))
    next_value = jnp.min(jnp.max(evaluate(next_action), axis=0), axis=0)
    target = td_target(config.reward_scale * batch.reward, batch.discount, next_value, config.discount_factor)
    optimizer = adam(config.learning_rate, clip_norm=config.clip_norm)
    critic, metrics = critics.fit(state.critic, batch, target, optimizer, network=networks.critic)
    target_critic = polyak(state.target_critic, critic.params, config.target_update_rate)
    return state._replace(critic=critic, target_critic=target_critic), metrics


def update_actor(
    state: Any, batch: Transition, key: Key, weights: tuple[Any, Any], *, config: Any, networks: Any
) -> tuple[TrainState, Metrics]:
    """One gradient step of the actor on `actor_loss`."""

    def loss(params: Params) -> tuple[Array, Metrics]:
        return actor_loss(params, state, batch, key, weights, config=config, networks=networks)

    return gradient_step(loss, state.actor, adam(config.actor_learning_rate, clip_norm=config.clip_norm))


def actor_loss(
    params: Params, state: Any, batch: Transition, key: Key, weights: tuple[Any, Any], *, config: Any, networks: Any
) -> tuple[Array, Metrics]:
    """behavior_weight L_bc + value_weight L_q [] and metrics.

    Args:
      params: of the actor; everything else is a constant.
      state: any State with `critic` and `safety`.
      batch: [B].
      key: used up by the noise of L_bc, the chain, and the choice of critic.
      weights: (behavior_weight, value_weight): (1, eta) in Diffusion-QL, (lambda, 1) in DiffCPS.
    """
    noise_key, sample_key, value_key = jax.random.split(key, 3)
    behavior_weight, value_weight = weights
    denoise = diffusion_bc.denoiser(networks, params, batch.observation)
    behavior = jnp.mean(denoising_error(config.diffusion, denoise, batch.action, noise_key))
    action = diffusion_bc.propose(
        params, batch.observation, sample_key, 1, explore=True, config=config, networks=networks
    )[0]
    value, metrics = value_loss(state, batch.observation, action, value_key, networks=networks)
    loss = behavior_weight * behavior + value_weight * value
    return loss, metrics | {"actor/loss": loss, "actor/behavior_loss": behavior, "actor/value_loss": value}


def value_loss(state: Any, observation: ArrayTree, action: Array, key: Key, *, networks: Any) -> tuple[Array, Metrics]:
    """L_q = -mean Q_a(s, a) / mean |Q_b(s, a)| [] and metrics; the gradient reaches the actions [B, A] through Q_a.

    (a, b) is (0, 1) or (1, 0), drawn by `key`. In the safe form Q_a becomes (Q_a - lambda Qc) / (1 + lambda) and the
    size mean (|Q_b| + lambda |Qc|) / (1 + lambda): |Q_b - lambda Qc| would vanish where reward and cost balance.
    """
    # one member is differentiated, the other only evaluated: an ensemble of one each
    first = jax.random.bernoulli(key).astype(jnp.int32)

    def value(index: Array, action: Array) -> Array:
        params = member(networks.critic, state.critic.params, index)
        return networks.critic.apply(params, observation, action)[0]

    q = value(first, action)
    size = jnp.abs(value(1 - first, jax.lax.stop_gradient(action)))
    metrics = {"actor/value": jnp.mean(q)}
    if state.safety:
        cost_q = safety.cost_values(state.safety, observation, action, networks=networks.safety)
        multiplier = state.safety.multiplier.value
        q = lagrangian(q, cost_q, multiplier, rescale=True)
        size = lagrangian(size, -jnp.abs(jax.lax.stop_gradient(cost_q)), multiplier, rescale=True)
        metrics["cost_value/policy"] = jnp.mean(cost_q)
    return -jnp.mean(q) / jnp.maximum(jnp.mean(size), 1e-8), metrics


def average_actor(state: Any, params: Params, *, config: Any) -> Params:
    """The averaged actor after the update that made `params`; it rests before `ema_start` and between periods."""
    due = (state.step >= config.ema_start) & (state.step % config.ema_period == 0)
    return polyak(state.ema_actor, params, jnp.where(due, config.ema_rate, 0.0))


def act(
    state: Any,
    observation: ArrayTree,
    key: Key,
    carry: Carry = (),
    *,
    explore: bool = False,
    config: Any,
    networks: Any,
) -> tuple[Array, Carry, dict[str, Array]]:
    """Actions [B, A] for observations [B, O]: one of K candidates of the online actor, by min target Q.

    With `explore` drawn by softmax(Q) at temperature 1, as the authors also evaluate; without, the best of fixed
    candidates. In the safe form by (Q - lambda Qc) / (1 + lambda). Needs `actor`, `target_critic` and `safety`.
    """
    propose_key, choose_key = jax.random.split(key)
    count = config.candidate_count
    actions = diffusion_bc.propose(
        state.actor.params, observation, propose_key, count, explore=explore, config=config, networks=networks
    )
    q = critics.candidate_values(networks.critic, state.target_critic, observation, actions)
    if state.safety:
        cost_q = safety.cost_values(state.safety, observation, actions, networks=networks.safety)
        q = lagrangian(q, cost_q, state.safety.multiplier.value, rescale=True)
    return diffusion_bc.choose(actions, q, choose_key if explore else None), carry, {}


def check(config: Any) -> None:
    """Refuse numbers out of range; DiffCPS shares it."""
    check_diffusion(config.diffusion)
    check_choice("diffusion.clip", config.diffusion.clip, ("clean", "noisy"))  # actions stay in [-1, 1]
    check_range("discount_factor", config.discount_factor, 0.0, 1.0)
    check_range("target_update_rate", config.target_update_rate, 0.0, 1.0)
    check_range("ema_rate", config.ema_rate, 0.0, 1.0)
    check_range("learning_rate", config.learning_rate, 0.0, open_low=True)
    check_range("actor_learning_rate", config.actor_learning_rate, 0.0, open_low=True)
    check_range("clip_norm", config.clip_norm, 0.0)
    check_range("ema_start", config.ema_start, 0)
    for name in ("backup_count", "candidate_count", "ema_period"):
        check_range(name, getattr(config, name), 1)
    safety.check(config.safety)


def make(config: Config = Config(), networks: Networks | None = None, *, action_size: int | None = None) -> Algorithm:
    """Check the numbers and bind them; networks default to `default_networks(action_size)`."""
    check(config)
    check_range("value_weight", config.value_weight, 0.0)
    networks = choose_networks(networks, default_networks, action_size)
    return bind(config=config, networks=networks, batch=BatchSpec.uniform(), init=init, update=update, act=act)
