"""metadata.json: what stands beside the arrays, and the one rename that commits a checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
import re
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from safejax.checkpoint.errors import CheckpointError, DamagedCheckpointError

FORMAT_VERSION = 1
LIBRARIES = ("safejax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_LEAF = {"shape", "dtype", "crc32"}  # of every leaf
_ALTERED = "not what was written: cut short or altered"


def metadata(directory: str | os.PathLike) -> dict[str, Any]:
    """What stands beside the arrays: config, config_class, extra, metric, versions, leaves by path, and a run's step.

    Raises:
      CheckpointError: no checkpoint there, or one of a newer format.
      DamagedCheckpointError: the file is not what was written.
    """
    path = Path(os.path.abspath(directory)) / "metadata.json"
    if not path.exists():
        found = "no metadata.json, so no save was finished here" if path.parent.is_dir() else "no such directory"
        raise CheckpointError(f"{path.parent}: {found}; check the path")
    try:
        about = json.loads(path.read_bytes())
        whole = about.pop("checksum") == zlib.crc32(_json(about))
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        raise DamagedCheckpointError(path, _ALTERED) from None
    version = about.get("format_version")
    if whole and isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(f"{path}: format {version} is newer than this safejax; update it")
    if not whole or not _is_complete(about):
        raise DamagedCheckpointError(path, _ALTERED)
    return about


def _is_complete(about: dict[str, Any]) -> bool:
    """Whether all is there that a reader needs, in the types that were written; the oldest hold no metric."""
    types = {"format_version": int, "arrays": str, "files": dict, "leaves": dict, "metric": int | float | None}
    about = {"metric": None, **about}
    return (
        {"config", "extra", *types} <= about.keys()
        and all(isinstance(about[name], kind) for name, kind in types.items())
        and re.fullmatch(r"arrays-[0-9a-f]{32}", about["arrays"]) is not None
        and all(isinstance(leaf, dict) and leaf.keys() >= _LEAF for leaf in about["leaves"].values())
    )


def describe(directory: Path, leaves: dict[str, dict], config: Any, extra: Any, metric: float | None) -> dict[str, Any]:
    """All of metadata.json but the names and sums of files."""
    return {
        "format_version": FORMAT_VERSION,
        "config_class": f"{type(config).__module__}.{type(config).__qualname__}",
        "config": plain(directory, "config", config),
        "extra": plain(directory, "extra", extra),
        "metric": plain(directory, "metric", metric),
        "versions": _versions(),
        "leaves": leaves,
    }


def commit(directory: Path, about: dict[str, Any]) -> None:
    """Replace metadata.json: from here on the checkpoint is the new one."""
    temporary = directory / "metadata.json.tmp"
    with temporary.open("wb") as file:
        file.write(_json({**about, "checksum": zlib.crc32(_json(about))}))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, directory / "metadata.json")
    # TensorStore syncs its files; without the next lines a power cut could still undo the rename.
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_config(directory: Path, stored: Any, given: Any) -> None:
    """Raise CheckpointError with every field of the config in which both differ."""
    stored, given = _flat(stored), _flat(plain(directory, "config", given))
    differing = [
        f"{name}={stored.get(name, 'absent')}, expected {given.get(name, 'absent')}"
        for name in dict.fromkeys([*given, *stored])
        if stored.get(name) != given.get(name)
    ]
    if differing:
        raise CheckpointError(f"{directory}: checkpoint has {'; '.join(differing)}; use the config it was saved with")


def plain(directory: Path, name: str, value: Any) -> Any:
    """`value` as JSON gives it back: dataclasses become dictionaries, tuples lists, NumPy scalars numbers."""

    def default(item: Any) -> Any:
        if isinstance(item, np.generic | np.ndarray | jax.Array):
            return np.asarray(item).tolist()
        if dataclasses.is_dataclass(item) and not isinstance(item, type):
            return {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
        raise TypeError(f"a {type(item).__name__} is no JSON value")

    try:
        return json.loads(json.dumps(value, default=default))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{directory}: {name} cannot be stored: {error}; use numbers and strings") from None


def _flat(config: Any, prefix: str = "") -> dict[str, str]:
    """Fields by dotted name, as text: nan equals nan there, and 1 differs from true."""
    if not isinstance(config, dict):
        return {prefix: json.dumps(config)}
    parts = ((f"{prefix}.{name}" if prefix else name, part) for name, part in config.items())
    return {name: text for full, part in parts for name, text in _flat(part, full).items()}


def _json(about: dict[str, Any]) -> bytes:
    return json.dumps(about, indent=1).encode()


@functools.cache
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
