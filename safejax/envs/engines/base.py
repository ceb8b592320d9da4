"""What an engine is: four functions that move one task's physics. Unbatched; loops vmap them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from typing import Any, NamedTuple

import mujoco

from safejax.envs.tasks.base import View
from safejax.types import ArrayTree

VIEW_FIELDS = ("qpos", "qvel", "sensordata", "xpos", "xquat")
"""What every View holds, in order; all are names of mjData."""


class Engine(NamedTuple):
    """Physics of one task."""

    start: Callable[..., ArrayTree]  # (needed bool [], qpos [nq], qvel [nv], layout=()) -> physics
    step: Callable[..., ArrayTree]  # (physics, action [A], clipped inside, layout=()) -> physics one step later
    view: Callable[[ArrayTree], View]  # what a task may read, current at the new state, without the layout
    check: Callable[[], None] = lambda: None  # raises what went wrong since the last call
    model: Any = None  # mujoco.MjModel


def load_model(model: str) -> Any:
    """The `mujoco.MjModel` of a task's `model`: MJCF text, an absolute path, or a file that ships with the package.

    Raises:
      ValueError: if MuJoCo cannot read it.
    """
    if model.lstrip().startswith("<"):
        return mujoco.MjModel.from_xml_string(model)  # pyright: ignore[reportAttributeAccessIssue]
    path = str(resources.files("safejax.envs") / "assets" / model)
    return mujoco.MjModel.from_xml_path(path)  # pyright: ignore[reportAttributeAccessIssue]
