"""Tasks, one per file: each module here binds one `Task` to the name TASK."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from safejax.envs.tasks.base import Reference, Task, View, normalized_cost, normalized_return

__all__ = ["Reference", "Task", "View", "load", "names", "normalized_cost", "normalized_return"]


@functools.cache
def names() -> tuple[str, ...]:
    """Names of the tasks, sorted: this package's modules, less `base` and those with a leading underscore."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in modules if name != "base" and not name.startswith("_")))


def load(name: str) -> Task:
    """The task of the module `name`, which must be one of `names()`."""
    return importlib.import_module(f"{__name__}.{name}").TASK
