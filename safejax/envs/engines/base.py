"""What an engine is: four functions that move one task's physics. Unbatched; loops vmap them."""

# pyright: reportAttributeAccessIssue=false
# (the names of the compiled mujoco module are not declared)

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from typing import Any, NamedTuple

import mujoco

from safejax.envs.tasks.base import Task, View
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


def load_model(model: str, task: str = "a task") -> Any:
    """The `mujoco.MjModel` of a task's `model`: MJCF text, an absolute path, or a file that ships with the package.

    Raises:
      ValueError: if MuJoCo cannot read it: one line with the name of the `task`.
    """
    try:
        if model.lstrip().startswith("<"):
            return mujoco.MjModel.from_xml_string(model)
        return mujoco.MjModel.from_xml_path(str(resources.files("safejax.envs") / "assets" / model))
    except ValueError as error:
        found = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
        raise ValueError(f"{task}: MuJoCo cannot read its model: {found}") from error


def check_reads(task: Task) -> None:
    """Refuse names in `task.reads` that mjData does not have.

    Raises:
      ValueError: one line with the first such name.
    """
    for name in task.reads:
        if not hasattr(mujoco.MjData, name):
            raise ValueError(f"{task.name}: reads has {name!r}, expected names of mjData's fields, such as 'cvel'")
