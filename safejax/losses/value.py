"""Targets and elementwise losses for values and critics. Any leading shape, no reduction, no stopped gradients."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from safejax.types import Array


def td_target(reward: Array, discount: Array, next_value: Array, discount_factor: float | Array) -> Array:
    """One-step target r + gamma * discount * V(s').

    Args:
      reward: [...] reward or cost of the step.
      discount: [...] 0 where the episode terminated, else 1: a truncated step bootstraps.
      next_value: [...] value at the next observation (before any reset); leading ensemble axes may broadcast.
      discount_factor: gamma in [0, 1].

    Returns:
      [...] targets in the units of `reward`.
    """
    chex.assert_equal_shape([reward, discount])
    return reward + discount_factor * discount * next_value


def squared_error(predictions: Array, targets: Array) -> Array:
    """Squared difference, elementwise; an ensemble axis [E, ...] of predictions broadcasts over targets [...]."""
    return jnp.square(predictions - targets)


def expectile_loss(predictions: Array, targets: Array, expectile: float | Array) -> Array:
    """Asymmetric squared error whose minimiser is the targets' expectile.

    Args:
      predictions: [...] estimates v.
      targets: [...] samples q, same shape.
      expectile: in (0, 1); 0.5 gives half the squared error, larger values track the upper tail.

    Returns:
      [...] non-negative losses, in squared units of the targets.

    Raises:
      AssertionError: if the shapes differ.

    Source: Kostrikov et al. 2021, Implicit Q-Learning, eq. 5, https://arxiv.org/abs/2110.06169.
    """
    chex.assert_equal_shape([predictions, targets])
    difference = targets - predictions
    weight = jnp.where(difference < 0, 1.0 - expectile, expectile)
    return weight * jnp.square(difference)


def quantile_loss(predictions: Array, targets: Array, quantile: float | Array) -> Array:
    """Asymmetric absolute error whose minimiser is the targets' quantile; shapes as `expectile_loss`.

    Source: the quantile critic of Hansen-Estruch et al. 2023, https://arxiv.org/abs/2304.10573.
    """
    chex.assert_equal_shape([predictions, targets])
    difference = targets - predictions
    weight = jnp.where(difference < 0, 1.0 - quantile, quantile)
    return weight * jnp.abs(difference)


def exponential_loss(predictions: Array, targets: Array, temperature: float | Array) -> Array:
    """exp(alpha u) - alpha u, u = targets - predictions; its minimiser is the soft maximum log E[exp(alpha q)] / alpha.

    Beyond alpha u = 5 the exponential goes on as its tangent, so that one outlier cannot overflow it; the authors'
    code does so beyond log 6, where the tangent already bends the minimiser.

    Args:
      predictions, targets: [...].
      temperature: alpha > 0; larger values track the upper tail.

    Source: the exponential critic of Hansen-Estruch et al. 2023, https://arxiv.org/abs/2304.10573.
    """
    chex.assert_equal_shape([predictions, targets])
    scaled = temperature * (targets - predictions)
    bounded = jnp.minimum(scaled, 5.0)
    return jnp.exp(bounded) * (1.0 + scaled - bounded) - scaled


def generalized_advantage(
    reward: Array,
    value: Array,
    next_value: Array,
    discount: Array,
    last: Array,
    *,
    discount_factor: float | Array,
    trace_decay: float | Array,
) -> Array:
    """Generalised advantage estimates along the last axis.

    A truncated step bootstraps from `next_value` (discount 1) but its trace is cut (last 1); the released code of
    most libraries treats it as terminal.

    Args:
      reward, value, next_value, discount, last: [..., T]; fields as in `Transition`.
      discount_factor: gamma.
      trace_decay: lambda in [0, 1].

    Returns:
      [..., T] advantages; adding `value` gives the lambda-returns.

    Source: Schulman et al. 2015, eq. 16, https://arxiv.org/abs/1506.02438.
    """
    chex.assert_equal_shape([reward, value, next_value, discount, last])
    error = td_target(reward, discount, next_value, discount_factor) - value
    decay = discount_factor * trace_decay * discount * (1.0 - last)

    def backward(following: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        step_error, step_decay = step
        advantage = step_error + step_decay * following
        return advantage, advantage

    time_first = (jnp.moveaxis(error, -1, 0), jnp.moveaxis(decay, -1, 0))
    _, advantages = jax.lax.scan(backward, jnp.zeros_like(time_first[0][0]), time_first, reverse=True)
    return jnp.moveaxis(advantages, 0, -1)
