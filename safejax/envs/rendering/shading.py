"""What a point looks like: lights, checkered planes and the sky, as OpenGL's fixed pipeline has them.

Vectors are tuples of arrays [P], one for each component, in the camera's frame.

Source: render_gl3.c and mjv_makeLights of google-deepmind/mujoco 3.17. Here every pixel is lit, there every vertex;
reflections and haze are left out.
"""

# pyright: reportAttributeAccessIssue=false
# (the names of the compiled mujoco module are not declared)

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from safejax.envs.rendering.cameras import rotate
from safejax.envs.rendering.solids import texture
from safejax.types import Array

Vector = tuple[Any, Any, Any]
SKY_LEVELS = 64


class Light(NamedTuple):
    """What a light is like; its pose comes with it where it shines."""

    ambient: np.ndarray  # [3]
    diffuse: np.ndarray  # [3]
    specular: np.ndarray  # [3]
    index: int = -1  # in the model; -1 is the headlight, at the camera
    directional: bool = True
    casts_shadow: bool = False
    attenuation: tuple[float, float, float] = (1.0, 0.0, 0.0)  # constant, linear, quadratic
    exponent: float = 0.0
    cutoff: float = 180.0  # degrees


class Shining(NamedTuple):
    """A light where it is; the headlight is nowhere until it is seen."""

    light: Light
    position: Any  # [3]
    direction: Any  # [3] of the rays, length 1

    def seen(self, eye: Array, turn: Array) -> Shining:
        """The light in the frame of a camera at `eye` [3], turned by `turn` [3, 3]."""
        if self.position is None:
            return Shining(self.light, np.zeros(3, np.float32), np.array([0.0, 0.0, -1.0], np.float32))
        return Shining(self.light, rotate(turn.T, self.position - eye), rotate(turn.T, self.direction))


class Surface(NamedTuple):
    """What is lit, [P] each."""

    point: Vector
    normal: Vector  # length 1
    color: Vector
    material: Vector  # emission, specular, exponent of the highlight: arrays [P] or numbers


def read_lights(model: mujoco.MjModel) -> tuple[Light, ...]:
    """The active directional lights and spots, headlight first; others do not shine in MuJoCo's pictures either."""
    head = model.vis.headlight
    lights = [Light(head.ambient.copy(), head.diffuse.copy(), head.specular.copy())] if head.active else []
    spots, suns = (int(getattr(mujoco.mjtLightType, f"mjLIGHT_{name}")) for name in ("SPOT", "DIRECTIONAL"))
    for index in range(model.nlight):
        directional = int(model.light_type[index]) == suns
        spot = int(model.light_type[index]) == spots
        if model.light_active[index] and (directional or spot):
            light = Light(
                model.light_ambient[index].copy(),
                model.light_diffuse[index].copy(),
                model.light_specular[index].copy(),
                index,
                directional,
                bool(model.light_castshadow[index]),
            )
            if spot:
                light = light._replace(
                    attenuation=tuple(model.light_attenuation[index].tolist()),
                    exponent=float(model.light_exponent[index]),
                    cutoff=float(model.light_cutoff[index]),
                )
            lights.append(light)
    return tuple(lights)


def shade(surface: Surface, view: Vector, lights: Sequence[Shining], lit: Sequence[Array | None]) -> Vector:
    """Light [P] of each colour that leaves the surface, in [0, 1].

    Args:
      surface: what is lit.
      view: directions to the camera, length 1.
      lights: what shines; without any, a little light comes from everywhere.
      lit: for each light [P] bool, False in its shadow; or None.
    """
    emission, specular, shininess = surface.material
    ambient = 0.0 if lights else 0.3
    matte: list[Any] = [emission + ambient] * 3
    gloss: list[Any] = [0.0] * 3
    for (light, position, direction), reached in zip(lights, lit, strict=True):
        if light.directional:
            toward, strength = (-direction[0], -direction[1], -direction[2]), 1.0
        else:
            toward, strength = _spot(light, position, direction, surface.point)
        facing = dot(surface.normal, toward)
        direct = strength if reached is None else jnp.where(reached, strength, 0.0)
        diffuse = jnp.maximum(facing, 0.0) * direct
        for channel in range(3):
            matte[channel] += light.ambient[channel] * strength + light.diffuse[channel] * diffuse
        if light.specular.any() and (not isinstance(specular, float) or specular > 0.0):
            halfway = (toward[0] + view[0], toward[1] + view[1], toward[2] + view[2])
            cosine = jnp.maximum(dot(surface.normal, halfway), 0.0)  # times a length: its square needs no root
            shine = _power(cosine * cosine / (dot(halfway, halfway) + 1e-30), 0.5 * shininess)
            shine = jnp.where(facing > 0.0, shine * specular, 0.0) * direct
            for channel in range(3):
                gloss[channel] += light.specular[channel] * shine
    red, green, blue = (
        jnp.clip(color * matte + gloss, 0.0, 1.0)
        for color, matte, gloss in zip(surface.color, matte, gloss, strict=True)
    )
    return red, green, blue


def _spot(light: Light, position: Vector, direction: Vector, point: Vector) -> tuple[Vector, Array]:
    path = (position[0] - point[0], position[1] - point[1], position[2] - point[2])
    distance = jnp.sqrt(dot(path, path)) + 1e-12
    toward = (path[0] / distance, path[1] / distance, path[2] / distance)
    cosine = -dot(toward, direction)
    constant, linear, quadratic = light.attenuation
    strength = 1.0 / (constant + distance * (linear + distance * quadratic))
    if light.exponent:
        strength = strength * _power(jnp.maximum(cosine, 0.0), light.exponent)
    if light.cutoff < 180.0:
        strength = jnp.where(cosine >= math.cos(math.radians(light.cutoff)), strength, 0.0)
    return toward, strength


def _power(base: Array, exponent: Any) -> Array:
    if isinstance(exponent, float) and exponent == int(exponent):
        return jax.lax.integer_pow(base, int(exponent))
    return jnp.exp(exponent * jnp.log(jnp.maximum(base, 1e-30)))


def checkered(u: Array, v: Array, footprint: Array) -> Array:
    """The share [P] of even squares of a checkerboard within `footprint` around (u, v), in squares."""
    return 0.5 + 0.5 * _stripes(u, footprint) * _stripes(v, footprint)


def _stripes(at: Array, width: Array) -> Array:
    """A square wave of period 2, first +1, averaged over `width`."""

    def integral(position: Array) -> Array:
        return 1.0 - jnp.abs(position - 2.0 * jnp.floor(0.5 * position) - 1.0)

    width = jnp.maximum(width, 1e-3)
    return (integral(at + 0.5 * width) - integral(at - 0.5 * width)) / width


def read_sky(model: mujoco.MjModel) -> np.ndarray | None:
    """[SKY_LEVELS, 3] the sky's colour from straight down to straight up, equal steps of the height; None if black.

    It is the mean over the four sides of the model's first sky box, and of its floor and ceiling.
    """
    boxes = np.flatnonzero(np.asarray(model.tex_type) == mujoco.mjtTexture.mjTEXTURE_SKYBOX)
    if not boxes.size:
        return None
    image = texture(model, int(boxes[0]))
    size = image.shape[1]
    # MuJoCo repeats a square texture on all faces; order: right, left, up, down, front, back
    faces = image.reshape(-1, size, size, 3)
    faces = np.broadcast_to(faces, (6, size, size, 3)) if len(faces) == 1 else faces
    x, y = np.meshgrid(*(np.linspace(-1.0, 1.0, size),) * 2)
    length = np.sqrt(1.0 + x * x + y * y)
    heights = np.stack([-y / length, -y / length, 1 / length, -1 / length, -y / length, -y / length])
    levels = np.linspace(-1.0, 1.0, SKY_LEVELS)
    bins = np.clip(np.round((heights + 1.0) / 2.0 * (SKY_LEVELS - 1)).astype(int), 0, SKY_LEVELS - 1).ravel()
    counts = np.bincount(bins, minlength=SKY_LEVELS)
    sums = np.stack([np.bincount(bins, faces[..., c].ravel(), SKY_LEVELS) for c in range(3)], axis=-1)
    filled = counts > 0
    means = sums[filled] / counts[filled, None]
    return np.stack([np.interp(levels, levels[filled], means[:, c]) for c in range(3)], axis=-1).astype(np.float32)


def sky_color(levels: np.ndarray | None, height: Array) -> Vector:
    """Colours of the sky in directions whose unit vectors rise `height` [P]."""
    if levels is None:
        black = jnp.zeros_like(height)
        return black, black, black
    at = (height + 1.0) * (0.5 * (SKY_LEVELS - 1))
    low = jnp.clip(at.astype(jnp.int32), 0, SKY_LEVELS - 2)
    part = at - low
    columns = [(jnp.asarray(levels[:-1, c]), jnp.asarray(np.diff(levels[:, c]))) for c in range(3)]
    first, second, third = (take(base, low) + part * take(rise, low) for base, rise in columns)
    return first, second, third


def take(column: Array, index: Array) -> Array:
    """`column[index]` for indices known to be in range."""
    return column.at[index].get(mode="promise_in_bounds")


def dot(left: Vector, right: Vector) -> Any:
    """Inner products."""
    return left[0] * right[0] + left[1] * right[1] + left[2] * right[2]


def unit(vector: Vector) -> Vector:
    """Vectors of length 1."""
    scale = jax.lax.rsqrt(dot(vector, vector) + 1e-30)
    return vector[0] * scale, vector[1] * scale, vector[2] * scale
