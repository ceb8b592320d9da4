"""What an engine is: four functions that move one task's physics. Unbatched; loops vmap them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from typing import NamedTuple

from safejax.envs.tasks.base import View
from safejax.types import Array, ArrayTree


class Engine(NamedTuple):
    """Physics of one task."""

    start: Callable[[Array, Array, Array], ArrayTree]  # (needed bool [], qpos [nq], qvel [nv]) -> physics
    step: Callable[[ArrayTree, Array], ArrayTree]  # (physics, action [A], clipped inside) -> physics one step later
    view: Callable[[ArrayTree], View]  # what a task may read, current at the new state
    check: Callable[[], None] = lambda: None  # raises what went wrong since the last call


def asset_path(model: str) -> str:
    """Path of an MJCF file that ships with the package; an absolute path stays as it is."""
    return str(resources.files("safejax.envs") / "assets" / model)
