"""Whether a violation lies ahead: targets for an estimate of its probability, or of the worst one."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp

from safejax.types import Array


def violation_probability(
    violation: Array, goes_on: Array, estimate: Array, open_end: Array, discount_factor: Any
) -> Array:
    """Targets of the probability of ever violating, along trajectories: p_t = max(1[violation_t], g d_t p_{t+1}).

    A violation is 0 or 1, so max(v, x) = v + (1 - v) x is linear in x, and targets along a sampled trajectory are
    unbiased. In a safe absorbing state the fixed point is 0, k steps before a certain violation it is g^k.

    Args:
      violation: [..., T] 1 in states that violate, else 0.
      goes_on: [..., T] d_t, 0 where the episode terminates in that state.
      estimate: [..., T] p of these states, used at open ends alone.
      open_end: [..., T] 1 where the trajectory is cut: what follows is not known, and the row's estimate stands for it.
      discount_factor: [] g in [0, 1).

    Returns:
      [..., T] in [0, 1].

    Source: Ganai et al. 2023, RESPO, section 5.3, https://arxiv.org/abs/2309.13528.
    """
    chex.assert_equal_shape([violation, goes_on, estimate, open_end])

    def backward(following: Array, row: tuple[Array, ...]) -> tuple[Array, Array]:
        violation, goes_on, estimate, open_end = row
        ahead = jnp.where(open_end > 0, estimate, discount_factor * goes_on * following)
        target = jnp.maximum(violation, ahead)
        return target, target

    rows = tuple(jnp.moveaxis(each, -1, 0) for each in (violation, goes_on, estimate, open_end))
    _, targets = jax.lax.scan(backward, jnp.zeros_like(rows[0][0]), rows, reverse=True)
    return jnp.moveaxis(targets, 0, -1)


def reachability_target(violation: Array, next_value: Array, discount: Array, discount_factor: Any) -> Array:
    """Discounted target of the worst violation ahead: (1 - g) h + g max(h, V(s')), or h at a termination.

    Elementwise; any shape, no reduction. As g -> 1 its fixed point is the largest h along the trajectory.

    Args:
      violation: [...] h(s), positive where unsafe.
      next_value: [...] reachability value V(s').
      discount: [...] 0 where the episode terminated, else 1.
      discount_factor: [] g in [0, 1].

    Returns:
      [...] in units of h.

    Raises:
      AssertionError: if the shapes differ.

    Source: Zheng et al. 2024, FISOR, https://arxiv.org/abs/2401.10700; their loader also cuts at truncations.
    """
    chex.assert_equal_shape([violation, next_value, discount])
    return violation + discount * discount_factor * jnp.maximum(next_value - violation, 0.0)
