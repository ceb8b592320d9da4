"""Which of the solids the rays of an eye meet, and where: the nearest opaque one and translucent ones before it.

A hit is one int32 key: the bits of its distance, the last of them replaced by the index of the piece of surface. Keys
order as the distances do, and the nearest is a plain minimum, which XLA makes a vectorised loop of (and a slow one of
argmin; minima of floats it leaves to a library that takes twice as long on two cores, jaxlib 0.10.2). With 64 pieces a
distance keeps 17 bits of its mantissa, 8e-6 of itself.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from safejax.envs.rendering.batching import Way
from safejax.envs.rendering.geometry import KINDS, PIECES, Hits, Rays
from safejax.envs.rendering.solids import Group, Solids
from safejax.types import Array

BIAS = 1e-3  # extents of the model by which a surface stands off its own shadow
FAR = 200.0  # extents of the model at which a directional light stands
NOTHING = np.float32(np.inf).view(np.int32)  # the least key of a miss


class Hit(NamedTuple):
    """The nearest of some surfaces."""

    distance: Array  # [P] in lengths of the ray's direction; inf where there is none
    piece: Array  # [P] int32 index of the piece of surface, see Solids.pieces


class Met(NamedTuple):
    """What the rays of a camera meet."""

    opaque: Hit
    translucent: tuple[Hit, ...]  # nearest first; whether or not behind what is opaque


def meet(
    scene: Solids, rotation: Array, center: Array, rays: Rays, layers: int, within: Sequence[Array], way: Way
) -> Met:
    """The nearest opaque surface and the `layers` nearest translucent ones.

    Args:
      scene: the solids.
      rotation: [N, 3, 3] in the eye's frame.
      center: [N, 3].
      rays: from the eye.
      layers: at most this many translucent surfaces in a pixel.
      within: for each group whether any ray may meet it, [] bool, see `groups_within`.
      way: what the platform wants done differently.
    """
    pieces = len(scene.pieces)
    mask = np.int32((1 << max(pieces - 1, 0).bit_length()) - 1)
    opaque, translucent, index = [], [], 0
    for group, some in zip(scene.groups, within, strict=True):
        count = group.last - group.first
        hits = functools.partial(_keys, scene, group, rotation, center, rays, mask, index)
        none = functools.partial(jnp.full, (count, *jnp.shape(rays.x)), NOTHING)
        keys = hits() if group.kind == "plane" else way.unless_absent(some, hits, none)
        index += count * PIECES[group.kind]
        behind = _behind(group, rotation, center)
        if group.look != "translucent":
            opaque.append(keys if behind is None else jnp.where(behind, NOTHING, keys))
        if group.look != "opaque":
            translucent.append(keys if behind is None else jnp.where(behind, keys, NOTHING))
    layers = min(layers, sum(map(len, translucent)))
    opaque, translucent = way.apart((opaque, translucent if layers else []))  # else CPUs reduce pixel by pixel
    found = [_nearest(opaque, rays)]
    for _ in range(layers):
        found.append(_next(found[1:], translucent, rays, way))
    first, *others = way.apart(found)
    return Met(_hit(first, mask, pieces), tuple(_hit(key, mask, pieces) for key in others))


def normals(scene: Solids, rotation: Array, center: Array) -> Array:
    """[9, pieces] see geometry.Normals.table."""
    none = Rays(np.float32(0.0), np.float32(0.0), np.float32(-1.0))
    tables = [each.table() for group in scene.groups for each in _group(scene, group, rotation, center, none)[1]]
    return jnp.concatenate([jnp.zeros((0, 9)), *tables]).T


def groups_within(scene: Solids, center: Array, x: Array, y: Array) -> Array:
    """Whether rays may meet a group: whether the ball around any of its solids reaches into their pyramid.

    Args:
      scene: the solids.
      center: [N, 3] in the eye's frame.
      x, y: [..., P] directions of rays, whose z is -1.

    Returns:
      [..., groups] bool; planes are everywhere.
    """
    radius = scene.radius
    right, up, ahead = (center[:, axis] for axis in range(3))
    inside = ahead <= radius
    for least, most, across in ((x.min(-1), x.max(-1), right), (y.min(-1), y.max(-1), up)):
        for edge, sign in ((most, 1.0), (least, -1.0)):
            edge = edge[..., None]
            inside &= sign * (across + edge * ahead) <= radius * jnp.sqrt(1.0 + edge * edge)
    found = [inside[..., group.first : group.last].any(-1, keepdims=True) for group in scene.groups]
    return jnp.concatenate([jnp.zeros((*inside.shape[:-1], 0), bool), *found], axis=-1)


def shadowed(
    scene: Solids, rotation: Array, center: Array, light: Array, point: Sequence[Array], extent: float, way: Way
) -> Array:
    """Whether something opaque, planes excepted, stands between `light` [3] and each `point` [P], [P] bool."""
    x, y, z = (part - light[axis] for axis, part in enumerate(point))
    rays = Rays(x, y, z, far=1.0 - BIAS * extent * jax.lax.rsqrt(x * x + y * y + z * z))
    hidden = jnp.zeros(x.shape, bool)
    for group in scene.groups:
        if group.look == "opaque" and group.kind != "plane":
            blocks, _ = _group(scene, group, rotation, center - light, rays)
            met = functools.reduce(jnp.logical_or, (block < jnp.inf for block in blocks))
            hidden |= jnp.any(way.apart(met), axis=0)
    return hidden


def _group(scene: Solids, group: Group, rotation: Array, center: Array, rays: Rays) -> Hits:
    part = slice(group.first, group.last)
    return KINDS[group.kind](rotation[part], center[part], scene.size[part], rays)


def _keys(scene: Solids, group: Group, rotation: Array, center: Array, rays: Rays, mask: np.int32, index: int) -> Array:
    """The hits [n, P] of a group's solids, whose first piece is number `index`."""
    blocks, _ = _group(scene, group, rotation, center, rays)
    keys = jnp.full(blocks[0].shape, NOTHING)
    for block in blocks:  # a ray enters by one of them
        indices = mask - index - np.arange(len(block), dtype=np.int32)[:, None]  # in a tie the last wins
        keys = jnp.minimum(keys, jax.lax.bitcast_convert_type(block, jnp.int32) & ~mask | indices)
        index += len(block)
    return keys


def _behind(group: Group, rotation: Array, center: Array) -> Array | None:
    """Which planes [n, 1] of a group are seen from behind, if it is two-sided."""
    if group.look != "two_sided":
        return None
    part = slice(group.first, group.last)
    return jnp.sum(rotation[part, :, 2] * center[part], axis=-1, keepdims=True) > 0.0


def _nearest(blocks: list[Array], rays: Rays) -> Array:
    nearest = jnp.full(jnp.shape(rays.x), NOTHING)
    for block in blocks:
        nearest = jnp.minimum(nearest, jnp.min(block, axis=0))
    return nearest


def _next(found: list[Array], blocks: list[Array], rays: Rays, way: Way) -> Array:
    """The nearest behind those `found`."""
    if not found:
        return _nearest(blocks, rays)
    last = found[-1]
    return way.unless_idle(
        jnp.any(last < NOTHING),
        lambda: _nearest([jnp.where(keys > last, keys, NOTHING) for keys in blocks], rays),
        lambda: jnp.full_like(last, NOTHING),
    )


def _hit(key: Array, mask: np.int32, pieces: int) -> Hit:
    distance = jax.lax.bitcast_convert_type(key & ~mask, jnp.float32)
    return Hit(distance, jnp.minimum(mask - (key & mask), pieces - 1))
