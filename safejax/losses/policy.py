"""Elementwise pieces of policy losses. Any leading shape, no reduction."""

from __future__ import annotations

import chex
import jax.numpy as jnp

from safejax.types import Array


def advantage_weight(advantage: Array, inverse_temperature: float | Array, maximum: float | Array = 100.0) -> Array:
    """Weight min(exp(beta * A), maximum) of advantage-weighted regression.

    Args:
      advantage: [...] A(s, a), reward units.
      inverse_temperature: beta >= 0; 0 is behaviour cloning.
      maximum: upper clip of the weight.

    Returns:
      [...] weights in (0, maximum].

    Source: Kostrikov et al. 2021, eq. 7, https://arxiv.org/abs/2110.06169; the clip is the authors' code's.
    """
    # Clipping the exponent keeps the overflowing branch, and its NaN gradient, out of the graph.
    return jnp.exp(jnp.minimum(inverse_temperature * advantage, jnp.log(maximum)))


def feasibility_weight(reward_weight: Array, cost_weight: Array, violation_probability: Array) -> Array:
    """(1 - p) w_r + p w_c: where a violation lies ahead, actions weigh by how much cost they save.

    Args:
      reward_weight: [...] exp(beta_1 A_r), clipped.
      cost_weight: [...] exp(-beta_2 A_c), clipped.
      violation_probability: [...] p in [0, 1].

    Source: Cao et al. 2024, FOSP, https://arxiv.org/abs/2407.04942, whose u is 1 - p.
    """
    chex.assert_equal_shape([reward_weight, cost_weight, violation_probability])
    return (1.0 - violation_probability) * reward_weight + violation_probability * cost_weight


def clipped_surrogate(log_prob: Array, old_log_prob: Array, advantage: Array, clip_range: float | Array) -> Array:
    """Negative clipped surrogate of proximal policy optimisation, to be minimised.

    Args:
      log_prob, old_log_prob: [...] of the same actions under the new and the collecting policy.
      advantage: [...] estimates, usually normalised.
      clip_range: epsilon > 0.

    Returns:
      [...] losses.

    Source: Schulman et al. 2017, eq. 7, https://arxiv.org/abs/1707.06347.
    """
    chex.assert_equal_shape([log_prob, old_log_prob, advantage])
    ratio = jnp.exp(log_prob - old_log_prob)
    clipped = jnp.clip(ratio, 1.0 - clip_range, 1.0 + clip_range)
    return -jnp.minimum(ratio * advantage, clipped * advantage)


def lagrangian(reward_term: Array, cost_term: Array, multiplier: Array, *, rescale: bool) -> Array:
    """Objective reward - multiplier * cost, to be maximised.

    Args:
      reward_term, cost_term: [...] values or advantages.
      multiplier: [] lambda >= 0.
      rescale: divide by 1 + lambda, so that the step size does not grow with lambda.

    Source: the rescaling is Stooke et al. 2020, eq. 9, https://arxiv.org/abs/2007.03964.
    """
    chex.assert_equal_shape([reward_term, cost_term])
    objective = reward_term - multiplier * cost_term
    return objective / (1.0 + multiplier) if rescale else objective


def gaussian_kl(mean: Array, log_std: Array) -> Array:
    """KL(N(mean, std^2) || N(0, 1)), elementwise; [...] -> [...] nats."""
    return 0.5 * (jnp.square(mean) + jnp.exp(2.0 * log_std) - 1.0) - log_std
