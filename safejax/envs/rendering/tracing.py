"""Which of the solids the rays of an eye meet, and where: the nearest opaque one and translucent ones before it.

A hit is one float32 key: the distance, with the index of the piece of surface in its last bits. Keys order as the
distances do, and the nearest is a plain minimum, which XLA makes a vectorised loop of (and a slow one of argmin).
With 64 pieces a distance keeps 17 bits of its mantissa, 8e-6 of itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from safejax.envs.rendering.geometry import KINDS, Normals, Rays
from safejax.envs.rendering.solids import Group, Solids
from safejax.types import Array

BIAS = 1e-3  # extents of the model by which a surface stands off its own shadow
FAR = 200.0  # extents of the model at which a directional light stands
NOTHING = np.float32(2.0**127)  # the distance of a miss; finite, for an infinity with an index would be no number


class Hit(NamedTuple):
    """The nearest of some surfaces."""

    distance: Array  # [P] in lengths of the ray's direction; inf where there is none
    piece: Array  # [P] int32 index of the piece of surface, see Solids.pieces


class Met(NamedTuple):
    """What the rays of a camera meet."""

    opaque: Hit
    translucent: tuple[Hit, ...]  # nearest first; whether or not behind what is opaque
    normals: Array  # [12, pieces] slope, row by row, and offset of geometry.Normals


def meet(scene: Solids, rotation: Array, center: Array, rays: Rays, layers: int, apart: Callable[[Any], Any]) -> Met:
    """The nearest opaque surface and the `layers` nearest translucent ones.

    Args:
      scene: the solids.
      rotation: [N, 3, 3] in the eye's frame.
      center: [N, 3].
      rays: from the eye.
      layers: at most this many translucent surfaces in a pixel.
      apart: the identity; what is before it and what is behind is compiled as separate loops.
    """
    pieces = len(scene.pieces)
    mask = np.int32((1 << max(pieces - 1, 0).bit_length()) - 1)
    opaque, translucent, tables, index = [], [], [], 0
    for group in scene.groups:
        blocks, normals, behind = _group(scene, group, rotation, center, rays)
        tables += [jnp.concatenate([each.slope.reshape(-1, 9), each.offset], axis=1) for each in normals]
        for block in blocks:
            indices = mask - index - np.arange(len(block), dtype=np.int32)[:, None]  # in a tie the last wins
            bits = jax.lax.bitcast_convert_type(jnp.minimum(block, NOTHING), jnp.int32) & ~mask | indices
            keys = jax.lax.bitcast_convert_type(bits, jnp.float32)
            if group.look != "translucent":
                opaque.append(keys if behind is None else jnp.where(behind, NOTHING, keys))
            if group.look != "opaque":
                translucent.append(keys if behind is None else jnp.where(behind, keys, NOTHING))
            index += len(block)
    found = [_nearest(opaque, rays)]
    layers = min(layers, sum(map(len, translucent)))
    translucent = apart(translucent) if layers > 1 else translucent
    for _ in range(layers):
        found.append(_nearest(translucent, rays))
        translucent = [jnp.where(keys > found[-1], keys, NOTHING) for keys in translucent]
    first, *others, normals = apart([*found, jnp.concatenate([jnp.zeros((0, 12)), *tables]).T])
    return Met(_hit(first, mask, pieces), tuple(_hit(key, mask, pieces) for key in others), normals)


def shadowed(
    scene: Solids, rotation: Array, center: Array, light: Array, point: Sequence[Array], extent: float
) -> Array:
    """Whether something opaque, planes excepted, stands between `light` [3] and each `point` [P], [P] bool."""
    x, y, z = (part - light[axis] for axis, part in enumerate(point))
    rays = Rays(x, y, z, far=1.0 - BIAS * extent * jax.lax.rsqrt(x * x + y * y + z * z))
    nearest = jnp.full(x.shape, jnp.inf)
    for group in scene.groups:
        if group.look == "opaque" and group.kind != "plane":
            for block in _group(scene, group, rotation, center - light, rays)[0]:
                nearest = jnp.minimum(nearest, jnp.min(block, axis=0))
    return nearest < jnp.inf


def _group(
    scene: Solids, group: Group, rotation: Array, center: Array, rays: Rays
) -> tuple[tuple[Array, ...], tuple[Normals, ...], Array | None]:
    """Distances and normals of a group, and which of its planes [n, 1] are seen from behind, if it is two-sided."""
    part = slice(group.first, group.last)
    distances, normals = KINDS[group.kind](rotation[part], center[part], scene.size[part], rays)
    behind = None
    if group.look == "two_sided":
        behind = jnp.sum(rotation[part, :, 2] * center[part], axis=-1, keepdims=True) > 0.0
    return distances, normals, behind


def _nearest(blocks: list[Array], rays: Rays) -> Array:
    nearest = jnp.full(jnp.shape(rays.x), NOTHING)
    for block in blocks:
        nearest = jnp.minimum(nearest, jnp.min(block, axis=0))
    return nearest


def _hit(key: Array, mask: np.int32, pieces: int) -> Hit:
    bits = jax.lax.bitcast_convert_type(key, jnp.int32)
    distance = jax.lax.bitcast_convert_type(bits & ~mask, jnp.float32)
    return Hit(jnp.where(distance < NOTHING, distance, jnp.inf), jnp.minimum(mask - (bits & mask), pieces - 1))
