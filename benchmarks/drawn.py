"""The world that a state shows, as a model for mujoco.Renderer: what the ray caster draws, and nothing else."""

# pyright: reportAttributeAccessIssue=false
# (the names of the compiled mujoco module are not declared)

from __future__ import annotations

from importlib import resources

import mujoco
import numpy as np

from safejax.envs.rendering import Scene
from safejax.envs.tasks import Task, View


def world(task: Task, scene: Scene, view: View) -> mujoco.MjSpec:
    """The task's MJCF with mocap bodies where `view` has them, and the scene's shapes as bodies behind all others.

    So the geom of shape i has the id that is its label in the caster's segmentation: number of geoms + i.
    """
    if task.model.lstrip().startswith("<"):
        spec = mujoco.MjSpec.from_string(task.model)
    else:
        spec = mujoco.MjSpec.from_file(str(resources.files("safejax.envs") / "assets" / task.model))
    model = scene.model
    for index in np.flatnonzero(model.body_mocapid >= 0):
        spec.bodies[index].pos, spec.bodies[index].quat = np.asarray(view.xpos[index]), np.asarray(view.xquat[index])
    for shape, position in zip(scene.shapes, np.asarray(scene.place(view)), strict=True):
        kind = getattr(mujoco.mjtGeom, f"mjGEOM_{shape.kind.upper()}")
        body = spec.worldbody.add_body(pos=position)
        body.add_geom(type=kind, size=shape.size, rgba=shape.rgba, contype=0, conaffinity=0)
    # shapes must not move the planes between which OpenGL draws
    spec.stat.extent, spec.stat.center = model.stat.extent, model.stat.center
    return spec
