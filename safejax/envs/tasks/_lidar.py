"""Pseudo-lidar: how near the objects of one kind are, all around the robot, in 16 directions."""

from __future__ import annotations

import jax.numpy as jnp

from safejax.types import Array

BINS = 16


def lidar(places: Array, position: Array, rotation: Array, reach: float) -> Array:
    """Nearness in [0, 1] of the nearest object in every sixteenth of the circle, from the robot's x axis to its y.

    An object at distance d shows as s = max(0, 1 - d / reach) in its own bin, and, at a share a of the way through
    it, as a s in the next and (1 - a) s in the one before.

    Args:
      places: [..., n, 2] m, on the floor.
      position: [..., 3] m, the robot's.
      rotation: [..., 3, 3] from the robot's frame to the world's; the whole of it counts, tilt and height too.
      reach: m.

    Returns:
      [..., 16]; zeros where there is no object.

    Source: Ji et al. 2023, Safety-Gymnasium, https://arxiv.org/abs/2310.12567; `_obs_lidar_pseudo` of its code.
    """
    offset = jnp.concatenate([places, jnp.zeros_like(places[..., :1])], axis=-1) - position[..., None, :]
    ahead, aside = jnp.moveaxis(offset @ rotation[..., :2], -1, 0)  # [..., n] each
    nearness = jnp.maximum(0.0, 1.0 - jnp.hypot(ahead, aside) / reach)
    bins = (jnp.arctan2(aside, ahead) % (2.0 * jnp.pi)) * (BINS / (2.0 * jnp.pi))
    own = jnp.floor(bins)
    share = bins - own
    seen = [_in_bin(own, nearness), _in_bin(own + 1, share * nearness), _in_bin(own - 1, (1.0 - share) * nearness)]
    return jnp.max(jnp.concatenate(seen, axis=-2), axis=-2, initial=0.0)


def _in_bin(number: Array, value: Array) -> Array:
    """[..., n] -> [..., n, 16], zeros but in the bin of that number."""
    return jnp.where(number[..., None] % BINS == jnp.arange(BINS), value[..., None], 0.0)
