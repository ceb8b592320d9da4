"""Soft actor-critic with a Lagrange multiplier: the online base of the offline-to-online methods.

Haarnoja et al. 2018, https://arxiv.org/abs/1812.05905, with the constrained objective of Ray et al. 2019; the actor
maximises (min Q - lambda Qc) / (1 + lambda) + temperature * entropy. The multiplier is driven by the mean cost of
finished episodes (`adapt`), not by the cost critic.

Differences from common code: the entropy term is per sample (Marvel's released code takes the batch mean, and Gaussian
entropy in place of log pi); the actor's gradient goes through the online critics (Marvel's: targets); a truncation
bootstraps. OmniSafe and FSRL rescale by 1 / (1 + lambda); OSRL and Marvel do not (`rescale`).

Shapes: B batch, E critics, O observation, A action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from safejax.algorithms import critics
from safejax.algorithms.bc import act
from safejax.gradients import copy, gradient_step, polyak, train_state
from safejax.losses.policy import lagrangian
from safejax.losses.value import td_target
from safejax.multipliers import MultiplierConfig, MultiplierState, adapt_multiplier, make_multiplier
from safejax.networks import Critic, GaussianActor, ensemble, with_encoder
from safejax.types import (
    Algorithm,
    Array,
    BatchSpec,
    EpisodeStats,
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
    """Numbers of SAC-Lagrangian."""

    discount_factor: float = 0.99
    cost_limit: float = 20.0  # cost units per episode
    target_update_rate: float = 0.005
    actor_learning_rate: float = 3e-4
    critic_learning_rate: float = 1e-3
    temperature_learning_rate: float = 3e-4
    initial_temperature: float = 0.1
    learn_temperature: bool = True
    target_entropy_per_action: float = -1.0  # nats per action dimension
    cost_entropy_coefficient: float = 0.0  # entropy added to the cost target (FSRL: the temperature)
    rescale: bool = True
    reward_scale: float = 0.1
    offline_fraction: float = 0.0  # share of each batch from the offline data set
    multiplier: MultiplierConfig = MultiplierConfig()


class Networks(NamedTuple):
    """actor: [B, O] -> distribution; critic and cost_critic: [B, O], [B, A] -> [E, B]."""

    actor: Network
    critic: Network
    cost_critic: Network


class State(NamedTuple):
    """What learning carries."""

    step: Array  # [] int32, gradient steps
    actor: TrainState
    critic: TrainState
    cost_critic: TrainState
    target_critic: Params
    target_cost_critic: Params
    log_temperature: TrainState  # params: [] logarithm of the entropy coefficient
    multiplier: MultiplierState


def default_networks(
    action_size: int, hidden_sizes: Sequence[int] = (256, 256), *, encoder: Network | None = None
) -> Networks:
    """Tanh-normal actor, twin reward critics, one cost critic."""
    hidden_sizes = tuple(hidden_sizes)
    networks = Networks(
        actor=GaussianActor(action_size, hidden_sizes),
        critic=ensemble(Critic(hidden_sizes), 2),
        cost_critic=ensemble(Critic(hidden_sizes), 1),
    )
    return with_encoder(networks, encoder)


def init(key: Key, example: Transition, *, config: Config, networks: Networks) -> State:
    """A fresh state; `example` is one transition without leading axes."""
    actor_key, critic_key, cost_key = jax.random.split(key, 3)
    pair = (example.observation, example.action)
    actor = networks.actor.init(actor_key, example.observation)
    critic = networks.critic.init(critic_key, *pair)
    cost_critic = networks.cost_critic.init(cost_key, *pair)
    log_temperature = jnp.log(jnp.asarray(config.initial_temperature, jnp.float32))
    return State(
        step=jnp.zeros((), jnp.int32),
        actor=train_state(actor, optax.adam(config.actor_learning_rate)),
        critic=train_state(critic, optax.adam(config.critic_learning_rate)),
        cost_critic=train_state(cost_critic, optax.adam(config.critic_learning_rate)),
        target_critic=copy(critic),
        target_cost_critic=copy(cost_critic),
        log_temperature=train_state(log_temperature, optax.adam(config.temperature_learning_rate)),
        multiplier=make_multiplier(config.multiplier).init(),
    )


def update(state: State, batch: Transition, key: Key, *, config: Config, networks: Networks) -> tuple[State, Metrics]:
    """One step of critics, actor and temperature on `batch` [B]; the multiplier moves in `adapt`."""
    critic_key, actor_key = jax.random.split(key)
    temperature = jnp.exp(state.log_temperature.params)
    state, metrics = update_critics(
        state,
        batch,
        critic_key,
        entropy_coefficients=(temperature, config.cost_entropy_coefficient),
        config=config,
        networks=networks,
    )
    multiplier = state.multiplier.value

    def actor_loss(params: Params) -> tuple[Array, Metrics]:
        action, log_prob = networks.actor.apply(params, batch.observation).sample_and_log_prob(actor_key)
        pair = (batch.observation, action)
        q = jnp.min(networks.critic.apply(state.critic.params, *pair), axis=0)
        cost_q = jnp.max(networks.cost_critic.apply(state.cost_critic.params, *pair), axis=0)
        objective = lagrangian(q, cost_q, multiplier, rescale=config.rescale)
        entropy = -jnp.mean(log_prob)
        loss = -jnp.mean(objective) - temperature * entropy
        return loss, {
            "actor/loss": loss,
            "actor/entropy": entropy,
            "actor/value": jnp.mean(q),
            "actor/cost_value": jnp.mean(cost_q),
        }

    actor, actor_metrics = gradient_step(actor_loss, state.actor, optax.adam(config.actor_learning_rate))
    excess_entropy = actor_metrics["actor/entropy"] - config.target_entropy_per_action * batch.action.shape[-1]

    def temperature_loss(log_temperature: Params) -> tuple[Array, Metrics]:
        return jnp.exp(log_temperature) * excess_entropy, {"temperature": jnp.exp(log_temperature)}

    log_temperature, temperature_metrics = state.log_temperature, {"temperature": temperature}
    if config.learn_temperature:
        optimizer = optax.adam(config.temperature_learning_rate)
        log_temperature, temperature_metrics = gradient_step(temperature_loss, log_temperature, optimizer)

    state = state._replace(actor=actor, log_temperature=log_temperature)
    return state, metrics | actor_metrics | temperature_metrics | {"multiplier": multiplier}


def update_critics(
    state: State,
    batch: Transition,
    key: Key,
    *,
    entropy_coefficients: tuple[float | Array, float | Array],
    config: Config,
    networks: Networks,
) -> tuple[State, Metrics]:
    """Policy evaluation: one step of both critics and their targets towards the actor's own values.

    Args:
      state, batch, key: as in `update`; the actor is only evaluated.
      entropy_coefficients: of the reward and of the cost target: each adds -coefficient * log pi(a'|s') to the
        next value. SAC is (temperature, 0).
      config, networks: as everywhere.

    Returns:
      The state with new critics and `step` one larger, and metrics.
    """
    policy = networks.actor.apply(state.actor.params, batch.next_observation)
    next_action, next_log_prob = policy.sample_and_log_prob(key)
    next_pair = (batch.next_observation, next_action)
    next_q = jnp.min(networks.critic.apply(state.target_critic, *next_pair), axis=0)
    next_cost_q = jnp.max(networks.cost_critic.apply(state.target_cost_critic, *next_pair), axis=0)
    reward_coefficient, cost_coefficient = entropy_coefficients

    def step(
        name: str, network: Network, critic: TrainState, signal: Array, next_value: Array
    ) -> tuple[TrainState, Metrics]:
        target = td_target(signal, batch.discount, next_value, config.discount_factor)
        optimizer = optax.adam(config.critic_learning_rate)
        return critics.fit(critic, batch, target, optimizer, network=network, name=name)

    reward = config.reward_scale * batch.reward
    critic, critic_metrics = step(
        "critic", networks.critic, state.critic, reward, next_q - reward_coefficient * next_log_prob
    )
    cost_critic, cost_metrics = step(
        "cost_critic",
        networks.cost_critic,
        state.cost_critic,
        batch.cost,
        next_cost_q - cost_coefficient * next_log_prob,
    )
    rate = config.target_update_rate
    state = state._replace(
        step=state.step + 1,
        critic=critic,
        cost_critic=cost_critic,
        target_critic=polyak(state.target_critic, critic.params, rate),
        target_cost_critic=polyak(state.target_cost_critic, cost_critic.params, rate),
    )
    return state, critic_metrics | cost_metrics


def adapt(state: State, episodes: EpisodeStats, *, config: Config, networks: Networks) -> State:
    """Move the multiplier by the mean cost of the finished `episodes`; nothing moves if none finished."""
    del networks
    return state._replace(multiplier=adapt_multiplier(config.multiplier, state.multiplier, episodes, config.cost_limit))


def check(config: Config) -> None:
    """Refuse numbers out of range; `marvel` shares it."""
    check_range("discount_factor", config.discount_factor, 0.0, 1.0)
    check_range("cost_limit", config.cost_limit, 0.0)
    check_range("target_update_rate", config.target_update_rate, 0.0, 1.0)
    check_range("initial_temperature", config.initial_temperature, 0.0, open_low=True)
    for name in ("actor_learning_rate", "critic_learning_rate", "temperature_learning_rate"):
        check_range(name, getattr(config, name), 0.0, open_low=True)


def make(config: Config = Config(), networks: Networks | None = None, *, action_size: int | None = None) -> Algorithm:
    """Check the numbers and bind them; networks default to `default_networks(action_size)`."""
    check(config)
    return bind(
        config=config,
        networks=choose_networks(networks, default_networks, action_size),
        batch=BatchSpec.mixed(config.offline_fraction) if config.offline_fraction else BatchSpec.uniform(),
        init=init,
        update=update,
        act=act,
        adapt=adapt,
    )
