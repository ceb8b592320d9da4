"""Proximal policy optimisation with a Lagrange multiplier: the on-policy safe baseline, and our data collector.

Schulman et al. 2017, https://arxiv.org/abs/1707.06347; the constrained form is Ray et al. 2019's. The advantage is
(A - lambda Ac) / (1 + lambda). Differences from OmniSafe's PPOLag: time limits bootstrap, the whole update is one
scan, and no observation normaliser is kept (none of the tasks here needs one).

Shapes: B environments, T rollout length, O observation, A action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from safejax.gradients import gradient_step, train_state
from safejax.losses.policy import clipped_surrogate, lagrangian
from safejax.losses.value import generalized_advantage, squared_error
from safejax.multipliers import MultiplierConfig, MultiplierState, adapt_multiplier, make_multiplier
from safejax.networks import GaussianActor, Value, with_encoder
from safejax.types import (
    Algorithm,
    Array,
    ArrayTree,
    BatchSpec,
    Carry,
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
    """Numbers of PPO-Lagrangian."""

    discount_factor: float = 0.99
    trace_decay: float = 0.95  # lambda of generalised advantage estimation
    cost_limit: float = 20.0  # cost units per episode
    clip_range: float = 0.2
    epoch_count: int = 8  # passes over each rollout
    minibatch_count: int = 8  # minibatches of each pass
    learning_rate: float = 1e-3
    entropy_coefficient: float = 0.0
    maximum_gradient_norm: float = 0.5
    reward_scale: float = 0.1
    multiplier: MultiplierConfig = MultiplierConfig(learning_rate=0.05)


class Networks(NamedTuple):
    """actor: [B, O] -> distribution; value and cost_value: [B, O] -> [B]."""

    actor: Network
    value: Network
    cost_value: Network


class State(NamedTuple):
    """What learning carries."""

    step: Array  # [] int32, updates (one per rollout)
    actor: TrainState
    value: TrainState
    cost_value: TrainState
    multiplier: MultiplierState


class _Sample(NamedTuple):
    """One row of a rollout, ready for the epochs."""

    observation: ArrayTree
    raw_action: Array
    log_prob: Array
    advantage: Array
    value_target: Array
    cost_value_target: Array


def default_networks(
    action_size: int, hidden_sizes: Sequence[int] = (64, 64), *, encoder: Network | None = None
) -> Networks:
    """A plain Gaussian actor with one log-std per action, starting at -0.5, and two values."""
    hidden_sizes = tuple(hidden_sizes)
    actor = GaussianActor(
        action_size,
        hidden_sizes,
        activation="tanh",
        squash=False,
        state_dependent_std=False,
        initial_log_std=-0.5,
    )
    networks = Networks(actor, Value(hidden_sizes, "tanh"), Value(hidden_sizes, "tanh"))
    return with_encoder(networks, encoder)


def _optimizer(config: Config) -> optax.GradientTransformation:
    clip = optax.clip_by_global_norm(config.maximum_gradient_norm)
    return optax.chain(clip, optax.adam(config.learning_rate))


def init(key: Key, example: Transition, *, config: Config, networks: Networks) -> State:
    """A fresh state; `example` is one transition without leading axes."""
    actor_key, value_key, cost_key = jax.random.split(key, 3)
    optimizer = _optimizer(config)
    return State(
        step=jnp.zeros((), jnp.int32),
        actor=train_state(networks.actor.init(actor_key, example.observation), optimizer),
        value=train_state(networks.value.init(value_key, example.observation), optimizer),
        cost_value=train_state(networks.cost_value.init(cost_key, example.observation), optimizer),
        multiplier=make_multiplier(config.multiplier).init(),
    )


def update(state: State, batch: Transition, key: Key, *, config: Config, networks: Networks) -> tuple[State, Metrics]:
    """All epochs over one rollout [B, T], whose `extras` hold "log_prob" and "raw_action"."""
    samples = _prepare(state, batch, config, networks)
    samples = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), samples)
    rows = samples.advantage.shape[0]
    minibatch_size = rows // config.minibatch_count
    if not minibatch_size:
        raise ValueError(f"minibatch_count is {config.minibatch_count}, expected at most the rollout's {rows} rows")

    def epoch(state: State, epoch_key: Key) -> tuple[State, Metrics]:
        order = jax.random.permutation(epoch_key, rows)[: minibatch_size * config.minibatch_count]
        order = order.reshape(config.minibatch_count, minibatch_size)
        return jax.lax.scan(lambda state, index: _minibatch(state, samples, index, config, networks), state, order)

    state, metrics = jax.lax.scan(epoch, state, jax.random.split(key, config.epoch_count))
    metrics = jax.tree.map(jnp.mean, metrics)
    return state._replace(step=state.step + 1), metrics | {"multiplier": state.multiplier.value}


def _prepare(state: State, batch: Transition, config: Config, networks: Networks) -> _Sample:
    """Advantages and lambda-returns of a rollout [B, T] under the collecting parameters."""

    def estimate(network: Network, params: Params, signal: Array) -> tuple[Array, Array]:
        value = network.apply(params, batch.observation)
        advantage = generalized_advantage(
            signal,
            value,
            network.apply(params, batch.next_observation),
            batch.discount,
            batch.last,
            discount_factor=config.discount_factor,
            trace_decay=config.trace_decay,
        )
        return advantage, advantage + value

    reward = config.reward_scale * batch.reward
    reward_advantage, value_target = estimate(networks.value, state.value.params, reward)
    cost_advantage, cost_target = estimate(networks.cost_value, state.cost_value.params, batch.cost)
    # Centred apart, divided together: lambda keeps its meaning as a price of cost in scaled reward.
    reward_advantage, cost_advantage = (part - jnp.mean(part) for part in (reward_advantage, cost_advantage))
    advantage = lagrangian(reward_advantage, cost_advantage, state.multiplier.value, rescale=True)
    advantage = advantage / (jnp.std(advantage) + 1e-6)
    extras = batch.extras
    return _Sample(batch.observation, extras["raw_action"], extras["log_prob"], advantage, value_target, cost_target)


def _minibatch(
    state: State, samples: _Sample, index: Array, config: Config, networks: Networks
) -> tuple[State, Metrics]:
    batch = jax.tree.map(lambda leaf: leaf[index], samples)

    def actor_loss(params: Params) -> tuple[Array, Metrics]:
        policy = networks.actor.apply(params, batch.observation)
        log_prob = policy.log_prob(batch.raw_action)
        entropy = jnp.mean(policy.entropy())
        surrogate = jnp.mean(clipped_surrogate(log_prob, batch.log_prob, batch.advantage, config.clip_range))
        loss = surrogate - config.entropy_coefficient * entropy
        kl = jnp.mean(batch.log_prob - log_prob)
        return loss, {"actor/loss": loss, "actor/entropy": entropy, "actor/kl": kl}

    def value_loss(network: Network, target: Array, name: str):
        def loss(params: Params) -> tuple[Array, Metrics]:
            error = jnp.mean(squared_error(network.apply(params, batch.observation), target))
            return error, {f"{name}/loss": error}

        return loss

    optimizer = _optimizer(config)
    actor, metrics = gradient_step(actor_loss, state.actor, optimizer)
    value, value_metrics = gradient_step(
        value_loss(networks.value, batch.value_target, "value"), state.value, optimizer
    )
    cost_value, cost_metrics = gradient_step(
        value_loss(networks.cost_value, batch.cost_value_target, "cost_value"), state.cost_value, optimizer
    )
    state = state._replace(actor=actor, value=value, cost_value=cost_value)
    return state, metrics | value_metrics | cost_metrics


def act(
    state: State,
    observation: ArrayTree,
    key: Key,
    carry: Carry = (),
    *,
    explore: bool = False,
    config: Config,
    networks: Networks,
) -> tuple[Array, Carry, dict[str, Array]]:
    """Actions [B, A] clipped to [-1, 1]; exploring adds the unclipped draw and its log-density as extras."""
    del config
    policy = networks.actor.apply(state.actor.params, observation)
    if not explore:
        return jnp.clip(policy.mode(), -1.0, 1.0), carry, {}
    raw_action, log_prob = policy.sample_and_log_prob(key)
    return jnp.clip(raw_action, -1.0, 1.0), carry, {"raw_action": raw_action, "log_prob": log_prob}


def adapt(state: State, episodes: EpisodeStats, *, config: Config, networks: Networks) -> State:
    """Move the multiplier by the mean cost of the finished `episodes`; nothing moves if none finished."""
    del networks
    return state._replace(multiplier=adapt_multiplier(config.multiplier, state.multiplier, episodes, config.cost_limit))


def make(config: Config = Config(), networks: Networks | None = None, *, action_size: int | None = None) -> Algorithm:
    """Check the numbers and bind them; networks default to `default_networks(action_size)`."""
    check_range("discount_factor", config.discount_factor, 0.0, 1.0)
    check_range("trace_decay", config.trace_decay, 0.0, 1.0)
    check_range("cost_limit", config.cost_limit, 0.0)
    check_range("clip_range", config.clip_range, 0.0, open_low=True)
    check_range("epoch_count", config.epoch_count, 1)
    check_range("minibatch_count", config.minibatch_count, 1)
    check_range("learning_rate", config.learning_rate, 0.0, open_low=True)
    return bind(
        config=config,
        networks=choose_networks(networks, default_networks, action_size),
        batch=BatchSpec.fresh(),
        init=init,
        update=update,
        act=act,
        adapt=adapt,
    )
