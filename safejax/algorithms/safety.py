"""The safe half of an offline method: a cost critic, a cost value and a multiplier. This construction is ours.

Any offline method becomes safe by giving its Config a `SafetyConfig`: it then extracts its policy from Q - lambda Qc
in place of Q. Qc and Vc are IQL's in-sample critics of the cost with an expectile below one half, so Vc tends to the
lowest cost value that the data's own actions reach and no action outside the data is asked. The multiplier rises
while the extracted policy's estimated cost value is above the limit in discounted units (`cost_value_limit`). Both
come with the checkpoint, so the method can be the offline half of Marvel without a new cost critic.

What it does not do: an expectile below one half is hopeful about costs, and what acts (the best of many candidates)
is not the weighted policy whose cost is estimated. Safe IDQL on ball_circle ends with a multiplier of 0, an estimate
of 2.5 under a limit of 3.3, and episodes that cost 93 where 20 are allowed. Fine-tuning online is what meets the limit.

Without a SafetyConfig every function here is the identity, the State's field is empty, and so may the networks be.
Shapes: B batch, E critics, O observation, A action.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp

from safejax.algorithms import in_sample
from safejax.constraints import cost_value_limit
from safejax.losses.policy import lagrangian
from safejax.losses.value import expectile_loss
from safejax.multipliers import MultiplierConfig, MultiplierState, adapt_multiplier, make_multiplier
from safejax.networks import Critic, Value, ensemble
from safejax.types import (
    Array,
    ArrayTree,
    EpisodeStats,
    Key,
    Metrics,
    Network,
    Params,
    TrainState,
    Transition,
    check_range,
)


@dataclass(frozen=True, kw_only=True)
class SafetyConfig:
    """Numbers of the safe half."""

    cost_limit: float = 20.0  # cost units per episode
    episode_length: int = 200  # environment steps, for the limit in discounted units
    discount_factor: float = 0.99
    expectile: float = 0.3  # below 1/2: the lower side
    target_update_rate: float = 0.005
    learning_rate: float = 3e-4
    multiplier: MultiplierConfig = MultiplierConfig(learning_rate=1e-3)  # one tick an update


class SafetyNetworks(NamedTuple):
    """critic: [B, O], [B, A] -> [E, B]; value: [B, O] -> [B]; both of the cost."""

    critic: Network
    value: Network


class SafetyState(NamedTuple):
    """What the safe half carries."""

    critic: TrainState
    value: TrainState
    target_critic: Params
    multiplier: MultiplierState


def default_networks(hidden_sizes: Sequence[int], activation: str = "relu") -> SafetyNetworks:
    """One cost critic, as Marvel's fine-tuning has, and a cost value."""
    hidden_sizes = tuple(hidden_sizes)
    return SafetyNetworks(ensemble(Critic(hidden_sizes, activation), 1), Value(hidden_sizes, activation))


def check(config: SafetyConfig | None) -> None:
    """Refuse numbers out of range."""
    if config is None:
        return
    check_range("safety.cost_limit", config.cost_limit, 0.0)
    check_range("safety.episode_length", config.episode_length, 1)
    check_range("safety.discount_factor", config.discount_factor, 0.0, 1.0)
    check_range("safety.expectile", config.expectile, 0.0, 1.0, open_low=True, open_high=True)
    check_range("safety.learning_rate", config.learning_rate, 0.0, open_low=True)
    make_multiplier(config.multiplier)


def init(key: Key, example: Transition, *, config: SafetyConfig | None, networks: Any) -> Any:
    """A fresh `SafetyState`, or () without a config."""
    if config is None:
        return ()
    values = in_sample.init(key, example, learning_rate=config.learning_rate, networks=networks)
    return SafetyState(*values, multiplier=make_multiplier(config.multiplier).init())


def weigh(
    state: Any,
    batch: Transition,
    advantage: Array,
    weight: Callable[[Array], Array],
    *,
    config: SafetyConfig | None,
    networks: Any,
) -> tuple[Any, Array, Metrics]:
    """The weights of `batch` [B] in a weighted policy, from the penalised advantage; one step of the safe half.

    The policy's cost value is estimated in-sample, sum(w Qc) / sum(w), before the multiplier moves.

    Args:
      state: SafetyState, or ().
      batch: [B].
      advantage: [B] of the reward.
      weight: advantage [B] -> weights [B] >= 0, the method's own.

    Returns:
      The state, weights [B], metrics.
    """
    if config is None:
        return state, weight(advantage), {}
    state, cost_advantage, cost_q, metrics = _update_values(state, batch, config, networks)
    penalized = lagrangian(advantage, cost_advantage, state.multiplier.value, rescale=True)
    weights = weight(penalized)
    cost_value = jnp.sum(weights * cost_q) / jnp.maximum(jnp.sum(weights), 1e-8)
    state, tick_metrics = tick(state, cost_value, config=config)
    return state, weights, metrics | tick_metrics


def update(
    state: Any,
    batch: Transition,
    *,
    value_action: Array | None = None,
    config: SafetyConfig | None,
    networks: Any,
) -> tuple[Any, Metrics]:
    """One step of the cost values alone, for methods that estimate their policy's cost otherwise; see `tick`.

    `value_action` [B, A]: as in `in_sample.update`.
    """
    if config is None:
        return state, {}
    state, _, _, metrics = _update_values(state, batch, config, networks, value_action)
    return state, metrics


def penalize(
    state: Any, q: Array, value: Array, observation: ArrayTree, action: Array, *, networks: Any
) -> tuple[Array, Array]:
    """(Q - lambda Qc) / (1 + lambda) and the same of V, or both unchanged for ().

    Args:
      state: SafetyState, or ().
      q: [B] or [K, B] reward values of `action` [..., A].
      value: [B] reward values of the states.
      observation: [B, O].
    """
    if not state:
        return q, value
    multiplier = state.multiplier.value
    cost_value = networks.value.apply(state.value.params, observation)
    cost_q = cost_values(state, observation, action, networks=networks)
    return lagrangian(q, cost_q, multiplier, rescale=True), lagrangian(value, cost_value, multiplier, rescale=True)


def cost_values(state: SafetyState, observation: ArrayTree, action: Array, *, networks: Any) -> Array:
    """Cost values [B] or [K, B] of actions [..., A] under the target critic, the maximum of the ensemble."""
    return in_sample.candidate_values(networks.critic, state.target_critic, observation, action, reduce=jnp.max)


def tick(state: Any, cost_value: Array, *, config: SafetyConfig | None) -> tuple[Any, Metrics]:
    """Move the multiplier by the policy's mean cost value [], in discounted units."""
    if config is None:
        return state, {}
    limit = cost_value_limit(config.cost_limit, config.discount_factor, config.episode_length)
    multiplier = make_multiplier(config.multiplier).update(state.multiplier, cost_value, limit)
    metrics = {"multiplier": multiplier.value, "cost_value/policy": cost_value, "cost_value/limit": limit}
    return state._replace(multiplier=multiplier), metrics


def _update_values(
    state: SafetyState,
    batch: Transition,
    config: SafetyConfig,
    networks: Any,
    value_action: Array | None = None,
) -> tuple[SafetyState, Array, Array, Metrics]:
    loss = functools.partial(expectile_loss, expectile=config.expectile)
    return in_sample.update(
        state,
        batch,
        batch.cost,
        loss,
        value_action=value_action,
        reduce=jnp.max,
        name="cost_",
        config=config,
        networks=networks,
    )


def adapt(state: Any, episodes: EpisodeStats, *, config: SafetyConfig | None) -> Any:
    """Online, where episodes finish: move the multiplier by their cost and not by an estimate."""
    if config is None:
        return state
    return state._replace(multiplier=adapt_multiplier(config.multiplier, state.multiplier, episodes, config.cost_limit))
