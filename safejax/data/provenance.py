"""Where collected data come from: what a file notes, and the refusal of data that belong to something else."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any

import safejax
from safejax.data.checks import DatasetError

_PACKAGES = ("jax", "mujoco", "mujoco-mjx", "numpy")


def provenance(
    *, task: str, engine: str, renderer: str | None, seed: int, collector: Mapping[str, Any]
) -> dict[str, Any]:
    """Attributes for a file of collected data, which `check_provenance` understands.

    Args:
      task: as in `safejax.envs.make`.
      engine: of the physics, such as "mujoco".
      renderer: of the pixels, see `safejax.envs.pixels.renderer`; None if the observations hold none.
      seed: of the collection.
      collector: configuration of what acted, as JSON can hold it.
    """
    return {
        "task": task,
        "engine": engine,
        "renderer": renderer,
        "seed": seed,
        "collector": dict(collector),
        "safejax": safejax.__version__,
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def check_provenance(attributes: Mapping[str, Any], *, task: str, renderer: str | None, source: str) -> str:
    """Refuse data that were collected in another task or drawn by another renderer.

    What a cost counts and what a picture shows differ between them, and nothing in the numbers tells. Files that
    safejax did not write, such as DSRL's, say nothing of the kind and pass.

    Args:
      attributes: of the file.
      task: that the data are to be used for.
      renderer: of the pixels that the policy will see; None without pixels.
      source: what messages call the data, such as the file's name.

    Returns:
      "", or a note in one line that nothing is known.

    Raises:
      DatasetError: with what was found and expected.
    """
    if not ("safejax" in attributes and "task" in attributes):
        return f"note: {source} says neither task nor renderer; that it is of {task} is taken on trust"
    faults = []
    if attributes["task"] != task:
        faults.append(f"collected in {attributes['task']!r}, expected {task!r}; use data of that task")
    drawn = attributes.get("renderer")  # files from before this note hold no pixels
    if drawn != renderer:
        faults.append(f"{_drawn(drawn)}, expected {_drawn(renderer)}; do not mix them, collect data of that kind")
    if faults:
        raise DatasetError(f"{source}: {'; '.join(faults)}")
    return ""


def _drawn(renderer: str | None) -> str:
    return "no pixels" if renderer is None else f"pixels drawn by {renderer!r}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
