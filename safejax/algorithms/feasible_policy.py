"""FOSP's actor: likelihood weighed by feasibility, under an augmented Lagrangian of imagined costs; see `fosp.py`.

Shapes: N imagined rollouts, H horizon, K steps of them that the actor learns from, A action.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from safejax.algorithms import feasibility, imagination
from safejax.algorithms.imagination import Dream
from safejax.constraints import augmented_penalty
from safejax.losses.policy import advantage_weight, feasibility_weight
from safejax.types import Array, Metrics, Params


class Judged(NamedTuple):
    """A dream and its worth, under the values before the step."""

    dream: Dream
    weight: Array  # [N, H] of its steps
    reward_value: Array  # [N, H + 1]
    cost_value: Array  # [N, H + 1]
    violation: Array  # [N, H + 1] probability p, without gradients; 0 without the gate
    reward_return: Array  # [N, H]
    cost_return: Array  # [N, H]
    constrained: Array  # [] what the Lagrangian limits


def judge(state: Any, dream: Dream, *, config: Any, networks: Any) -> Judged:
    """Values, returns and feasibility along a dream."""
    reward_value = state.reward.v(dream.features, networks=networks)
    cost_value = state.cost.v(dream.features, networks=networks)
    violation = jnp.zeros_like(cost_value)
    if config.gate == "reachability":
        estimate = feasibility.probability(networks.violation, state.violation.params, dream.features)
        violation = jax.lax.stop_gradient(estimate)
    cost_return = imagination.returns(dream.cost, dream.going_on, cost_value, config=config)
    return Judged(
        dream,
        dream.weight(config.discount_factor),
        reward_value,
        cost_value,
        violation,
        imagination.returns(dream.reward, dream.going_on, reward_value, config=config),
        cost_return,
        imagination.constrained_cost(cost_return, 1.0 - violation[:, :-1], config=config),
    )


def loss(
    params: Params, state: Any, judged: Judged, drawn: Array, *, config: Any, networks: Any
) -> tuple[Array, Metrics]:
    """The actor's loss.

    Args:
      params: of the actor, of which `judged` is a function, too.
      state: with values, scales and multiplier.
      judged: of N dreams.
      drawn: [N, K, A] in the first K states of the dreams: the dreams' draws, or an action of the data each. Their
        likelihood counts, not that of the bounded actions: the Gaussian is not squashed, and cloning its own draws
        cut to [-1, 1] would narrow it and push it inwards.
    """
    backprop = config.actor_gradient == "backprop"
    count = judged.weight.shape[1] if backprop else drawn.shape[1]
    features, weight = judged.dream.features[:, :count], judged.weight[:, :count]
    policy = networks.actor.apply(params, jax.lax.stop_gradient(features))
    if backprop:
        q = state.reward.q(features, judged.dream.action, networks=networks)
        gain = (q - judged.reward_value[:, :count]) / state.reward_scale.spread
        metrics = {"actor/gain": jnp.mean(gain)}
    else:
        share = weights(state, judged, imagination.bounded(drawn), config=config, networks=networks)
        gain = share * policy.log_prob(jax.lax.stop_gradient(drawn))
        metrics = {"actor/weight": jnp.mean(share)}
    entropy = policy.entropy()
    penalty = augmented_penalty(state.multiplier, judged.constrained - config.cost_limit)
    error = penalty - jnp.mean(weight * (gain + config.entropy_coefficient * entropy))
    metrics |= {
        "actor/loss": error,
        "actor/entropy": jnp.mean(entropy),
        "actor/cost": judged.constrained,
        "actor/violation": jnp.mean(judged.violation),
    }
    return error, metrics


def weights(state: Any, judged: Judged, action: Array, *, config: Any, networks: Any) -> Array:
    """w [N, K] of actions [N, K, A] made in the first K states of the dreams; without gradients."""
    count = action.shape[1]
    features = judged.dream.features[:, :count]
    advantage = state.reward.q(features, action, networks=networks) - judged.reward_value[:, :count]
    cost_advantage = state.cost.q(features, action, networks=networks) - judged.cost_value[:, :count]
    weight = feasibility_weight(
        advantage_weight(advantage / state.reward_scale.spread, config.inverse_temperature, config.maximum_weight),
        advantage_weight(
            -cost_advantage / state.cost_scale.spread, config.cost_inverse_temperature, config.maximum_cost_weight
        ),
        judged.violation[:, :count],
    )
    return jax.lax.stop_gradient(weight)
