"""The colours of what a camera's rays meet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from safejax.envs.rendering import shading
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
    lights: Sequence[Shining]
    up: Array  # [3] the world's z axis
    sky: np.ndarray | None  # see shading.read_sky
    pitch: Any  # [] size of a pixel at distance 1
    shadows: bool
    extent: float  # the model's, m


def paint(stage: Stage, rays: Rays, met: Met) -> Vector:
    """Red, green and blue [P] in [0, 1]."""
    away = jax.lax.rsqrt(rays.x * rays.x + rays.y * rays.y + 1.0)
    view = (-rays.x * away, -rays.y * away, away)  # to the camera
    below = dot(tuple(stage.up), view)  # pyright: ignore[reportArgumentType]
    color = shading.sky_color(stage.sky, -below)
    shaded, _ = _color(stage, rays, met, met.opaque, view)
    hit = met.opaque.distance < jnp.inf
    color = _mix(color, shaded, hit.astype(jnp.float32))
    for layer in reversed(met.translucent):
        shaded, alpha = _color(stage, rays, met, layer, view)
        # MuJoCo draws what is translucent twice, front to back and back to front
        before = layer.distance < met.opaque.distance
        color = _mix(color, shaded, jnp.where(before, 1.0 - jnp.square(1.0 - alpha), 0.0))
    return color


def _color(stage: Stage, rays: Rays, met: Met, hit: Hit, view: Vector) -> tuple[Vector, Any]:
    """The lit colour of a surface and its alpha."""
    distance = jnp.where(hit.distance < jnp.inf, hit.distance, 1.0)
    point = (distance * rays.x, distance * rays.y, -distance)
    slope = [take(row, hit.piece) for row in met.normals]
    rows = [dot((slope[3 * k], slope[3 * k + 1], slope[3 * k + 2]), point) + slope[9 + k] for k in range(3)]
    normal = unit((rows[0], rows[1], rows[2]))
    pieces = stage.scene.pieces
    rgba = [_column(column, hit.piece) for column in stage.scene.rgba[pieces].T]
    material = [_column(column, hit.piece) for column in stage.scene.material[pieces].T]
    surface = Surface(point, normal, (rgba[0], rgba[1], rgba[2]), (material[0], material[1], material[2]))
    color = shading.shade(surface, view, stage.lights, [_lit(stage, light, point) for light in stage.lights])
    alpha = rgba[3]
    if stage.scene.two_sided.any():
        flat = _column(stage.scene.two_sided[pieces].astype(np.float32), hit.piece)
        alpha = alpha * jnp.where((flat > 0.0) & (dot(normal, view) < 0.0), BEHIND, 1.0)
    return _textured(stage, hit.piece, point, normal, view, color), alpha


def _lit(stage: Stage, light: Shining, point: Vector) -> Array | None:
    if not (stage.shadows and light.light.casts_shadow):
        return None
    position = -FAR * stage.extent * light.direction if light.light.directional else light.position
    return ~shadowed(stage.scene, stage.rotation, stage.center, position, point, stage.extent)


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


def _column(values: np.ndarray, piece: Array) -> Any:
    """`values` [pieces] at `piece` [P]; a Python number where all are the same."""
    if np.all(values == values[:1]):
        return float(values[0]) if values.size else 0.0
    return take(jnp.asarray(values), piece)
