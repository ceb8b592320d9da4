"""The safe half of an offline method: a cost critic, a cost value and a multiplier. This construction is ours.

Any offline method becomes safe by giving its Config a `SafetyConfig`: it then extracts its policy from Q - lambda Qc
in place of Q. The multiplier rises while the policy's mean cost value over the data's states is above the limit in
discounted units (`cost_value_limit`). Both come with the checkpoint, so the method can be the offline half of Marvel.
Qc is, by `evaluation`,
- "policy": the extracted policy's own cost. Methods that weigh the data's actions regress Vc on Qc with these very
  weights, so that no action outside the data is asked (`weigh`); methods that draw actions give Qc their own next
  ones (`update`).
- "expectile": IQL's in-sample critic with an expectile below one half, the least cost that the data's own actions
  reach. It is hopeful: a policy that costs more leaves the multiplier at 0 while it breaks the limit. AlignIQL takes
  this one always: to be aligned with one's own cost asks for nothing.

The policy evaluated is the one that IQL, AWR, IDQL and PEX draw from. It acts otherwise without `explore` (the mode of
a Gaussian, the best of many candidates), and Diffusion-QL, DiffCPS and SfBC act one improvement beyond it. A
checkpoint's cost critic serves Marvel as it is where both discounts are equal; else align it.

Without a SafetyConfig every function here is the identity, the State's field is empty, and so may the networks be.
Shapes: B batch, E critics, O observation, A action.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax.numpy as jnp

from safejax.algorithms import critics, in_sample
from safejax.constraints import cost_value_limit
from safejax.gradients import adam, polyak
from safejax.losses.policy import lagrangian
from safejax.losses.value import expectile_loss, squared_error, td_target
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
    check_choice,
    check_range,
)


@dataclass(frozen=True, kw_only=True)
class SafetyConfig:
    """Numbers of the safe half."""

    cost_limit: float = 20.0  # cost units per episode
    episode_length: int = 200  # environment steps, for the limit in discounted units
    discount_factor: float = 0.97  # of costs alone; nearer to 1 Vc lags behind the policy and the multiplier overshoots
    evaluation: str = "policy"  # or "expectile": whose cost Qc is
    expectile: float = 0.3  # of the second; below 1/2: the lower side
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
    check_choice("safety.evaluation", config.evaluation, ("policy", "expectile"))
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


def of_data(config: SafetyConfig | None) -> SafetyConfig | None:
    """`config` with the cost critic of the lower expectile, for policies that are aligned with it."""
    return config and replace(config, evaluation="expectile")


def of_policy(config: SafetyConfig | None) -> SafetyConfig | None:
    """`config` with the cost critic being the policy's own, as in value pre-alignment and online."""
    return config and replace(config, evaluation="policy")


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

    Weights, and the cost value that moves the multiplier, are of the state before this step. A weighted regression
    makes Vc(s) the mean of Qc under pi(a|s) ~ mu(a|s) w(s, a), whatever the weights sum to in each state. The policy's
    cost value is mean Vc + sum w (Qc - Vc) / sum w: the second part vanishes once Vc is that mean, and answers at once
    where weights have changed.

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
    cost_value = networks.value.apply(state.value.params, batch.observation)
    cost_advantage = cost_values(state, batch.observation, batch.action, networks=networks) - cost_value
    weights = weight(lagrangian(advantage, cost_advantage, state.multiplier.value, rescale=True))
    share = weights / jnp.maximum(jnp.sum(weights), 1e-8)
    policy_value = jnp.mean(cost_value) + jnp.sum(share * cost_advantage)
    value_loss = _expectile_loss(config)
    if config.evaluation == "policy":
        value_loss = lambda value, q: len(share) * share * squared_error(value, q)  # noqa: E731
    state, metrics = _regress(state, batch, value_loss, config=config, networks=networks)
    state, tick_metrics = tick(state, policy_value, config=config)
    return state, weights, metrics | tick_metrics


def update(
    state: Any,
    batch: Transition,
    next_action: Array,
    share: Array | None = None,
    *,
    config: SafetyConfig | None,
    networks: Any,
) -> tuple[Any, Metrics]:
    """One step of the cost critic, for methods that draw their policy's actions; they `tick` by themselves.

    Evaluating the policy is a TD step towards its next actions, and Vc rests; else both learn in-sample.

    Args:
      state: SafetyState, or ().
      batch: [B].
      next_action: of the policy, [B, A] or [K, B, A].
      share: [K, B], sums to one over K: how likely each of K candidates is. None for one action.
    """
    if config is None:
        return state, {}
    if config.evaluation == "expectile":
        return _regress(state, batch, _expectile_loss(config), config=config, networks=networks)
    next_value = cost_values(state, batch.next_observation, next_action, networks=networks)
    if share is not None:
        next_value = jnp.sum(share * next_value, axis=0)
    target = td_target(batch.cost, batch.discount, next_value, config.discount_factor)
    optimizer = adam(config.learning_rate)
    critic, metrics = critics.fit(state.critic, batch, target, optimizer, network=networks.critic, name="cost_critic")
    target_critic = polyak(state.target_critic, critic.params, config.target_update_rate)
    return state._replace(critic=critic, target_critic=target_critic), metrics


def update_values(
    state: Any, batch: Transition, action: Array, *, config: SafetyConfig | None, networks: Any
) -> tuple[Any, Metrics]:
    """One step of cost critic and cost value, for methods that keep V beside drawn actions [B, A] at `batch` [B]."""
    if config is None:
        return state, {}
    if config.evaluation == "expectile":
        return _regress(state, batch, _expectile_loss(config), config=config, networks=networks)
    return _regress(state, batch, squared_error, value_action=action, config=config, networks=networks)


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
    return critics.candidate_values(networks.critic, state.target_critic, observation, action, reduce=jnp.max)


def tick(state: Any, cost_value: Array, *, config: SafetyConfig | None) -> tuple[Any, Metrics]:
    """Move the multiplier by the policy's mean cost value [], in discounted units."""
    if config is None:
        return state, {}
    limit = cost_value_limit(config.cost_limit, config.discount_factor, config.episode_length)
    multiplier = make_multiplier(config.multiplier).update(state.multiplier, cost_value, limit)
    metrics = {"multiplier": multiplier.value, "cost_value/policy": cost_value, "cost_value/limit": limit}
    return state._replace(multiplier=multiplier), metrics


def adapt(state: Any, episodes: EpisodeStats, *, config: SafetyConfig | None) -> Any:
    """Online, where episodes finish: move the multiplier by their cost and not by an estimate."""
    if config is None:
        return state
    return state._replace(multiplier=adapt_multiplier(config.multiplier, state.multiplier, episodes, config.cost_limit))


def _expectile_loss(config: SafetyConfig) -> Callable[[Array, Array], Array]:
    return functools.partial(expectile_loss, expectile=config.expectile)


def _regress(
    state: SafetyState, batch: Transition, value_loss: Callable[[Array, Array], Array], **options: Any
) -> tuple[SafetyState, Metrics]:
    """One step of Vc on Qc of the data's actions, or of `value_action`, and of Qc towards Vc."""
    state, _, _, metrics = in_sample.update(
        state, batch, batch.cost, value_loss, reduce=jnp.max, name="cost_", **options
    )
    return state, metrics
