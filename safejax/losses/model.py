"""What a world model learns from, and the returns along what it imagines. Any leading shape, no reduction.

Source: Hafner et al. 2023, DreamerV3, https://arxiv.org/abs/2301.04104, in the form that SafeDreamer (Huang et al.
2023, https://arxiv.org/abs/2307.07176) and FOSP (Cao et al. 2024, https://arxiv.org/abs/2407.04942) use: bins uniform
in symlog space, KL scales of their own for the two directions, each clipped at one nat per element.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from safejax.losses.value import generalized_advantage
from safejax.types import Array

BINS = 255
RANGE = 20.0
"""Two-hot heads have BINS logits for values evenly spaced in symlog space on [-RANGE, RANGE]."""


def symlog(value: Array) -> Array:
    """sign(x) log(1 + |x|)."""
    return jnp.sign(value) * jnp.log1p(jnp.abs(value))


def symexp(value: Array) -> Array:
    """The inverse of `symlog`."""
    return jnp.sign(value) * jnp.expm1(jnp.abs(value))


def two_hot(value: Array) -> Array:
    """[...] values -> [..., BINS] weights on the two nearest bins, whose mean in symlog space is the value's.

    Values beyond the outermost bins, symexp(20) = 4.85e8, count as these.
    """
    place = (jnp.clip(symlog(value), -RANGE, RANGE) + RANGE) * (BINS - 1) / (2 * RANGE)
    return jnp.maximum(0.0, 1.0 - jnp.abs(place[..., None] - jnp.arange(BINS)))


def two_hot_loss(logits: Array, target: Array) -> Array:
    """Cross-entropy [...] of a head's logits [..., BINS] and the two-hot weights of `target` [...], in nats."""
    return -jnp.sum(two_hot(target) * jax.nn.log_softmax(logits), axis=-1)


def two_hot_mean(logits: Array) -> Array:
    """The value [...] that a head's logits [..., BINS] stand for: symexp of the mean bin.

    Bins are summed in pairs about the middle one, so that equal logits give exactly 0. The released code of SafeDreamer
    and FOSP sums them in order and starts at -2e-7.
    """
    probability = jax.nn.softmax(logits)
    half = BINS // 2
    upper = jnp.arange(1, half + 1) * (2 * RANGE / (BINS - 1))
    mean = jnp.sum((probability[..., half + 1 :] - probability[..., half - 1 :: -1]) * upper, axis=-1)
    return symexp(mean)


def two_hot_expectile_loss(logits: Array, target: Array, expectile: float | Array) -> Array:
    """`two_hot_loss` [...], weighed by the expectile where the target is above the head's value, else by 1 - expectile.

    For targets on two bins the minimiser is their expectile in symlog space; an expectile above one half is the upper
    side. Source: Cao et al. 2024, FOSP, https://arxiv.org/abs/2407.04942; its released code has the weights exchanged.
    """
    above = target > jax.lax.stop_gradient(two_hot_mean(logits))
    return jnp.where(above, expectile, 1.0 - expectile) * two_hot_loss(logits, target)


def picture_error(prediction: Array, picture: Array) -> Array:
    """Sum of squares over a picture.

    Args:
      prediction: [..., H, W, C], nominally in [0, 1].
      picture: [..., H, W, C], uint8.

    Returns:
      [...], in squared units of the full range.
    """
    chex.assert_equal_shape([prediction, picture])
    return jnp.sum(jnp.square(prediction - picture.astype(jnp.float32) / 255.0), axis=(-3, -2, -1))


def vector_error(prediction: Array, vector: Array) -> Array:
    """Sum of squares [...] between a prediction [..., O] and the symlog of what was observed [..., O]."""
    chex.assert_equal_shape([prediction, vector])
    return jnp.sum(jnp.square(prediction - symlog(vector)), axis=-1)


def categorical_kl(logits: Array, other: Array) -> Array:
    """KL(p || q) [...] in nats of independent categoricals with logits [..., groups, classes], summed over groups."""
    chex.assert_equal_shape([logits, other])
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(other)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=(-2, -1))


def kl_balance(posterior: Array, prior: Array, free_nats: float = 1.0) -> tuple[Array, Array]:
    """The two directions in which posterior and prior approach each other.

    Args:
      posterior: logits [..., groups, classes], given the observation.
      prior: logits [..., groups, classes], from the past alone.
      free_nats: below which an element's loss is constant, and has no gradient.

    Returns:
      The dynamics' loss [...], whose gradient reaches the prior alone, and the representation's [...], whose gradient
      reaches the posterior alone; DreamerV3 of 2023 weighs them by .5 and .1.
    """
    stop = jax.lax.stop_gradient
    dynamics, representation = categorical_kl(stop(posterior), prior), categorical_kl(posterior, stop(prior))
    return jnp.maximum(dynamics, free_nats), jnp.maximum(representation, free_nats)


def cost_weight(cost: Array, weight: float, threshold: float = 1.0) -> Array:
    """[...] `weight` where a step costs `threshold` or more, else 1: costs are rare, and missing one is dear."""
    return jnp.where(cost >= threshold, weight, 1.0)


def lambda_return(
    reward: Array,
    discount: Array,
    next_value: Array,
    *,
    discount_factor: float | Array,
    trace_decay: float | Array,
) -> Array:
    """Returns R_t = r_t + gamma d_t ((1 - lambda) V_{t+1} + lambda R_{t+1}), bootstrapped by the last next value.

    Args:
      reward: [..., T] of the steps, or their costs.
      discount: [..., T] probability that the episode goes on after the step.
      next_value: [..., T] value of the state after the step.
      discount_factor: gamma.
      trace_decay: lambda in [0, 1].

    Returns:
      [..., T].
    """
    blended = (1.0 - trace_decay) * next_value
    blended = blended.at[..., -1].set(next_value[..., -1])
    nothing = jnp.zeros_like(reward)
    return generalized_advantage(
        reward, nothing, blended, discount, nothing, discount_factor=discount_factor, trace_decay=trace_decay
    )
