"""Tasks, one file a family: a module here binds one `Task` to the name TASK, or several to TASKS, a tuple."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from safejax.envs.tasks.base import Start, Task, View

__all__ = ["Start", "Task", "View", "load", "names"]


def names() -> tuple[str, ...]:
    """Names of the tasks, sorted."""
    return tuple(_tasks())


def load(name: str) -> Task:
    """The task `name`, which must be one of `names()`."""
    return _tasks()[name]


@functools.cache
def _tasks() -> dict[str, Task]:
    """By name, what this package's modules bind, less `base` and those with a leading underscore.

    The modules are imported at the first call; none of them imports an engine.

    Raises:
      ValueError: a module binds no task, or two tasks bear one name.
    """
    tasks: dict[str, Task] = {}
    for info in pkgutil.iter_modules(__path__):
        if info.name == "base" or info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{__name__}.{info.name}")
        family = (*getattr(module, "TASKS", ()), *([module.TASK] if hasattr(module, "TASK") else []))
        if not family:
            raise ValueError(f"tasks/{info.name}.py binds neither TASK nor TASKS; bind a Task, or a tuple of Tasks")
        for task in family:
            if task.name in tasks:
                raise ValueError(f"tasks/{info.name}.py: a task {task.name!r} exists already; name it otherwise")
            tasks[task.name] = task
    return dict(sorted(tasks.items()))
