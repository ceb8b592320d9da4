"""`make_caster`: pictures of a MuJoCo model's primitives and of shapes beside them, from the poses of its bodies.

On a GPU every ray meets every solid. A CPU draws large pictures in strips of rows, and in each leaves out the kinds of
solids of which none is there, and layers that are nowhere.

One program on a CPU is no faster on two cores than on one. To use them all make a device of each
(`jax.config.update("jax_num_cpu_devices", cores)`) and draw a batch under `jax.shard_map`.
"""

# pyright: reportAttributeAccessIssue=false
# (the names of the compiled mujoco module are not declared)

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from safejax.envs.rendering import cameras as optics
from safejax.envs.rendering import shading, solids
from safejax.envs.rendering.batching import Way, by_platform, way_elsewhere, way_on_cpu
from safejax.envs.rendering.cameras import Bodies
from safejax.envs.rendering.geometry import Rays
from safejax.envs.rendering.painting import Stage, paint
from safejax.envs.rendering.shading import Light, Shining
from safejax.envs.rendering.tracing import groups_within, meet, normals
from safejax.envs.tasks.base import Shape
from safejax.types import Array, check_count

VISIBLE_GROUPS = (0, 1, 2)
"""The geom groups that mujoco.Renderer shows."""
ALL_GROUPS = tuple(range(mujoco.mjNGROUP))


class Image(NamedTuple):
    """Pictures of one scene, one for each camera."""

    rgb: Array  # [cameras, height, width, 3] uint8
    depth: Array  # [cameras, height, width] m along the optical axis; zfar where nothing is hit
    segmentation: Array  # [cameras, height, width] int32: see `make_caster`


class Caster(NamedTuple):
    """Pure functions (xpos [nbody, 3], xquat [nbody, 4], positions [n, 3]) -> pictures; vmap them.

    `positions` are those of the n shapes, and may be left out where there are none; one far away hides its shape.
    Each function computes only what it returns.
    """

    render: Callable[..., Image]
    rgb: Callable[..., Array]  # as Image.rgb, and so on
    depth: Callable[..., Array]
    segmentation: Callable[..., Array]
    rgb_where: Callable[..., Array]  # (needed [] bool, otherwise, and as above): `otherwise` where not needed
    cameras: tuple[str, ...]
    height: int
    width: int


def make_caster(
    model: mujoco.MjModel,
    cameras: Sequence[str] = ("track",),
    *,
    height: int = 64,
    width: int = 64,
    shapes: Sequence[Shape] = (),
    shadows: bool = False,
    groups: Sequence[int] = VISIBLE_GROUPS,
    layers: int = 3,
) -> Caster:
    """Functions that draw `model` as mujoco.Renderer does, without its multisampling, reflections and haze.

    Segmentation shows geom ids, -1 for the sky, the number of geoms + i for shape i, and -2 - i for site i.
    Geoms are planes, spheres, capsules, ellipsoids, cylinders and boxes. Of textures, the builtin checker of planes
    and the sky are drawn, others as their mean colour. As in MuJoCo's pictures, what is translucent is blended twice
    and a plane is less visible from behind; but a floor (a plane of the world that faces up) is not.

    Args:
      model: the model; later changes of it are not seen.
      cameras: names of its cameras; any mode and intrinsics, perspective only.
      height: rows of a picture.
      width: columns of a picture.
      shapes: drawn beside the model, at positions given with each picture.
      shadows: hard shadows of lights that cast them, thrown by what is opaque, planes excepted.
      groups: the groups of geoms and sites that are seen.
      layers: how many translucent surfaces are seen behind one another, the nearest ones.

    Raises:
      ValueError: no, an unknown or an orthographic camera; a size below 1; a group that MuJoCo does not have; a kind of
        geom or shape that is not drawn.
    """
    if isinstance(cameras, str):
        raise ValueError(f"cameras is {cameras!r}, expected several names: ({cameras!r},)")
    for name, size in (("height", height), ("width", width), ("number of cameras", len(cameras))):
        check_count(name, size)
    check_count("layers", layers, 0)
    if not set(groups) <= set(ALL_GROUPS):
        raise ValueError(f"groups is {tuple(groups)}, expected some of {ALL_GROUPS}")
    ids = [_camera_id(model, name) for name in cameras]
    views = [optics.pixels(model, camera, height, width) for camera in ids]
    scene = solids.read(model, shapes, groups)
    lights, sky, extent = shading.read_lights(model), shading.read_sky(model), float(model.stat.extent)
    near, far = model.vis.map.znear * extent, model.vis.map.zfar * extent
    labels = np.append(scene.label[scene.pieces], np.int32(-1))

    def strip(stage: Stage, kinds: tuple[str, ...], x: Array, y: Array, within: Array) -> tuple[Array, ...]:
        rays = Rays(x, y, np.float32(-1.0), near, far)
        met = meet(scene, stage.rotation, stage.center, rays, layers, tuple(within), stage.way)
        picture = {}
        if "rgb" in kinds:
            red, green, blue = ((255.0 * color + 0.5).astype(jnp.int32) for color in paint(stage, rays, met))
            # one number a pixel, for one loop: a loop over colours would paint each pixel three times
            packed = stage.way.apart(red | green << 8 | blue << 16)
            picture["rgb"] = jax.lax.bitcast_convert_type(packed, jnp.uint8)[:, :3].reshape(-1, width, 3)
        distance, piece = met.opaque
        for layer in met.translucent[:1]:
            before = layer.distance < distance
            distance, piece = jnp.where(before, layer.distance, distance), jnp.where(before, layer.piece, piece)
        if "depth" in kinds:
            picture["depth"] = jnp.minimum(distance, far).reshape(-1, width)
        if "segmentation" in kinds:
            piece = jnp.where(distance < jnp.inf, piece, len(labels) - 1)
            picture["segmentation"] = shading.take(jnp.asarray(labels), piece).reshape(-1, width)
        return tuple(picture[kind] for kind in kinds)

    def draw(
        xpos: Array,
        xquat: Array,
        positions: Array,
        *,
        kinds: tuple[str, ...],
        platform: Callable[[Array, int, int], Way],
    ) -> tuple[Array, ...]:
        way = platform(xpos[0, 0], height, width)
        bodies = Bodies(xpos, optics.rotation_matrix(xquat))
        position, rotation = scene.poses(bodies, positions)
        shining = [_place(model, light, bodies) for light in lights]

        def one(eye: Array, turn: Array, x: Any, y: Any, pitch: Any) -> tuple[Array, ...]:
            turned, center = optics.compose(turn.T, rotation), optics.rotate(turn.T, position - eye)
            stage = Stage(
                scene,
                turned,
                center,
                way.apart(normals(scene, turned, center)),
                [light.seen(eye, turn) for light in shining],
                turn[2],
                sky,
                pitch,
                shadows,
                extent,
                way,
            )
            if way.strips == 1:
                return strip(stage, kinds, x, y, groups_within(scene, center, x, y))
            x, y = (jnp.reshape(part, (way.strips, -1)) for part in (x, y))
            drawn = way.each(functools.partial(strip, stage, kinds), (x, y, groups_within(scene, center, x, y)))
            return tuple(part.reshape(height, *part.shape[2:]) for part in drawn)

        eyes = [optics.camera_pose(model, camera, bodies) for camera in ids]
        if len(ids) == 1:
            return tuple(part[None] for part in one(*eyes[0], *views[0]))
        stacked = jax.tree.map(
            lambda *parts: jnp.stack(parts), *[(*eye, *view) for eye, view in zip(eyes, views, strict=True)]
        )
        return way.each(one, stacked)

    def function(*kinds: str) -> Callable[..., tuple[Array, ...]]:
        drawn = by_platform(
            *(functools.partial(draw, kinds=kinds, platform=platform) for platform in (way_on_cpu, way_elsewhere))
        )

        def call(xpos: Any, xquat: Any, positions: Any = None, needed: Any = None, otherwise: Any = None) -> Any:
            given = jnp.zeros((0, 3)) if positions is None else jnp.asarray(positions, jnp.float32)
            if given.shape != (len(shapes), 3):
                raise ValueError(
                    f"positions has shape {given.shape}, expected ({len(shapes)}, 3), a row for each shape"
                )
            poses = jnp.asarray(xpos, jnp.float32), jnp.asarray(xquat, jnp.float32), given
            return drawn(poses, needed, None if needed is None else (otherwise,))

        return call

    def single(kind: str) -> Callable[..., Array]:
        drawn = function(kind)
        return lambda *arguments, **named: drawn(*arguments, **named)[0]

    everything, rgb = function(*Image._fields), single("rgb")
    return Caster(
        render=lambda xpos, xquat, positions=None: Image(*everything(xpos, xquat, positions)),
        rgb=rgb,
        depth=single("depth"),
        segmentation=single("segmentation"),
        rgb_where=lambda needed, otherwise, xpos, xquat, positions=None: rgb(xpos, xquat, positions, needed, otherwise),
        cameras=tuple(cameras),
        height=height,
        width=width,
    )


def _camera_id(model: mujoco.MjModel, name: str) -> int:
    camera = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name) if isinstance(name, str) else -1
    if camera < 0:
        known = ", ".join(repr(model.camera(index).name) for index in range(model.ncam)) or "none"
        raise ValueError(f"unknown camera {name!r}; the model has {known}")
    if model.cam_projection[camera] == mujoco.mjtProjection.mjPROJ_ORTHOGRAPHIC:
        raise ValueError(f"camera {name!r} is orthographic, expected a perspective camera")
    return camera


def _place(model: mujoco.MjModel, light: Light, bodies: Bodies) -> Shining:
    if light.index < 0:
        return Shining(light, None, None)
    return Shining(light, *optics.light_pose(model, light.index, bodies))
