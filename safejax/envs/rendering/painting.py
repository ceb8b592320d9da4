"""The colours of what a camera's rays meet."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from safejax.envs.rendering import shading
from safejax.envs.rendering.batching import Way
from safejax.envs.rendering.geometry import Rays
from safejax.envs.rendering.shading import Shining, Surface, Vector, dot, take, unit
from safejax.envs.rendering.solids import Solids
from safejax.envs.rendering.tracing import FAR, Hit, Met, shadowed
from safejax.types import Array

BEHIND = 0.3  # factor of a plane's alpha seen from behind


class Stage(NamedTuple):
    """A scene in the frame of one camera."""

    scene: Solids
    rotation: Array  # [N, 3, 3]
    center: Array  # [N, 3]
    normals: Array  # [9, pieces] see geometry.Normals.table
    lights: Sequence[Shining]
    up: Array  # [3] the world's z axis
    sky: np.ndarray | None  # see shading.read_sky
    pitch: Any  # [] size of a pixel at distance 1
    shadows: bool
    extent: float  # the model's, m
    way: Way


def paint(stage: Stage, rays: Rays, met: Met) -> Vector:
    """Red, green and blue [P] in [0, 1]."""
    away = jax.lax.rsqrt(rays.x * rays.x + rays.y * rays.y + 1.0)
    view = (-rays.x * away, -rays.y * away, away)  # to the camera
    below = dot(tuple(stage.up), view)  # pyright: ignore[reportArgumentType]
    color = shading.sky_color(stage.sky, -below)
    for hit, seen, translucent in (
        (met.opaque, met.opaque.distance < jnp.inf, False),
        *((layer, layer.distance < met.opaque.distance, True) for layer in reversed(met.translucent)),
    ):
        over = functools.partial(_over, stage, rays, hit, view, seen, color, translucent)
        unless = stage.way.unless_idle if translucent else stage.way.unless_absent
        color = unless(jnp.any(seen), over, lambda color=color: color)
    return color


def _over(stage: Stage, rays: Rays, hit: Hit, view: Vector, seen: Array, color: Vector, translucent: bool) -> Vector:
    """`color` behind the surfaces that are hit, where these are seen."""
    shaded, alpha = _color(stage, rays, hit, view, translucent=translucent)
    if not translucent:
        return _mix(color, shaded, seen.astype(jnp.float32))
    # MuJoCo draws what is translucent twice, front to back and back to front
    return _mix(color, shaded, jnp.where(seen, 1.0 - jnp.square(1.0 - alpha), 0.0))


def _color(stage: Stage, rays: Rays, hit: Hit, view: Vector, *, translucent: bool) -> tuple[Vector, Any]:
    """The lit colour of surfaces and their alpha; `translucent` ones, or opaque ones."""
    distance = jnp.where(hit.distance < jnp.inf, hit.distance, 1.0)
    point = (distance * rays.x, distance * rays.y, -distance)
    xx, xy, xz, yy, yz, zz, *offset = (take(row, hit.piece) for row in stage.normals)
    rows = [
        dot(row, point) + shift for row, shift in zip(((xx, xy, xz), (xy, yy, yz), (xz, yz, zz)), offset, strict=True)
    ]
    normal = unit((rows[0], rows[1], rows[2]))
    pieces, looks = stage.scene.pieces, stage.scene.looks
    column = functools.partial(_column, piece=hit.piece, among=looks != ("opaque" if translucent else "translucent"))
    red, green, blue, alpha = (column(values) for values in stage.scene.rgba[pieces].T)
    emission, specular, shininess = (column(values) for values in stage.scene.material[pieces].T)
    surface = Surface(point, normal, (red, green, blue), (emission, specular, shininess))
    color = shading.shade(surface, view, stage.lights, [_lit(stage, light, point) for light in stage.lights])
    two_sided = column((looks == "two_sided").astype(np.float32))
    alpha = alpha * jnp.where((two_sided > 0.0) & (dot(normal, view) < 0.0), BEHIND, 1.0)
    return _textured(stage, hit.piece, point, normal, view, color), alpha


def _lit(stage: Stage, light: Shining, point: Vector) -> Array | None:
    if not (stage.shadows and light.light.casts_shadow):
        return None
    position = -FAR * stage.extent * light.direction if light.light.directional else light.position
    return ~shadowed(stage.scene, stage.rotation, stage.center, position, point, stage.extent, stage.way)


def _textured(stage: Stage, piece: Array, point: Vector, normal: Vector, view: Vector, color: Vector) -> Vector:
    for checker in stage.scene.checkers:
        axes = stage.rotation[checker.solid, :, :2] * checker.scale
        shift = checker.shift - jnp.sum(axes * stage.center[checker.solid][:, None], axis=0)
        u, v = (dot((axes[0, k], axes[1, k], axes[2, k]), point) + shift[k] for k in range(2))
        # mipmaps blur by the longer side of a pixel on the plane
        length = -point[2] * (stage.pitch * float(np.abs(checker.scale).max()))
        even = shading.checkered(u, v, length / jnp.maximum(jnp.abs(dot(normal, view)), 1e-3))
        mine = piece == int(np.flatnonzero(stage.scene.pieces == checker.solid)[0])
        first, second = checker.colors.tolist()
        factors = [b + (a - b) * even for a, b in zip(first, second, strict=True)]
        red, green, blue = (jnp.where(mine, part * factor, part) for part, factor in zip(color, factors, strict=True))
        color = (red, green, blue)
    return color


def _mix(below: Vector, above: Vector, weight: Array) -> Vector:
    red, green, blue = (under + weight * (over - under) for under, over in zip(below, above, strict=True))
    return red, green, blue


def _column(values: np.ndarray, piece: Array, among: np.ndarray) -> Any:
    """`values` [pieces] at `piece` [P], all of them `among` [pieces] bool; a Python number where these are the same."""
    possible = values[among]
    if np.all(possible == possible[:1]):
        return float(possible[0]) if possible.size else 0.0
    return take(jnp.asarray(values), piece)
