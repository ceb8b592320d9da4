"""Checkpoints: `save`, `restore`, `warm_start` (the bridge from offline to online) and their rotation.

A checkpoint is a directory. `arrays-<id>/` holds the arrays of a state, written by Orbax under their dotted
paths; `metadata.json` names that folder and holds shapes, dtypes, checksums, configuration and versions.
Replacing `metadata.json` is the one act that commits: a process killed at any time leaves the old checkpoint
or the new one. Orbax by itself restores flipped bits and casts dtypes without a word, hence the checks here.
Nothing is pickled. One process at a time writes to a directory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import logging
import os
import platform
import re
import shutil
import urllib.parse
import uuid
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

FORMAT_VERSION = 1
LIBRARIES = ("safejax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")

Tree = TypeVar("Tree")


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read: one line with the path, what was found and what to do."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose files are missing, cut short or altered; an older one may still be whole."""

    def __init__(self, path: Path, found: str):
        super().__init__(f"{path}: {found}; restore an older checkpoint or a copy")


def save(directory: str | os.PathLike, state: Any, config: Any = None, *, extra: Any = None) -> None:
    """Write `state` to `directory`, replacing the checkpoint that is there in one step.

    Args:
      directory: made if missing.
      state: pytree of JAX or NumPy arrays of any shape; typed PRNG keys are fine.
      config: dataclass, mapping of names to values, or None; stored as JSON and compared by `restore`.
      extra: anything JSON can hold, such as the environment's name; read back through `metadata`.

    Raises:
      CheckpointError: a leaf is no array, JSON cannot hold the config, or the write failed (full disk); the
        checkpoint that was there before is intact.
    """
    directory = Path(os.path.abspath(directory))
    arrays, leaves = {}, {}
    for path, leaf in _leaves(state).items():
        if not hasattr(leaf, "dtype"):
            raise CheckpointError(f"{directory}: {path} is {leaf!r}, expected an array; put settings into config")
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = arrays[path] = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        leaves[path] = {**_signature(leaf), "crc32": _crc32(array)}
        if is_key:
            leaves[path] |= {"key": str(jax.random.key_impl(leaf)), "data": [array.shape, str(array.dtype)]}
    about = {
        "format_version": FORMAT_VERSION,
        "config_class": f"{type(config).__module__}.{type(config).__qualname__}",
        "config": _plain(directory, "config", config),
        "extra": _plain(directory, "extra", extra),
        "versions": _versions(),
        "leaves": leaves,
    }
    folder = directory / f"arrays-{uuid.uuid4().hex}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(directory)
        _write_arrays(folder, arrays)
        _commit(directory, {**about, "arrays": folder.name, "files": _file_sums(folder)})
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{directory}: the write failed ({_first_line(error)}); check free space and permissions. "
            "The checkpoint that was there before is intact"
        ) from error
    finally:
        _remove_leftovers(directory)


def restore(directory: str | os.PathLike, like: Tree, *, config: Any = None) -> Tree:
    """Read the state that `save` wrote, in the types of `like`, after checking every byte.

    Args:
      directory: a checkpoint directory.
      like: pytree of arrays or `jax.ShapeDtypeStruct`, as `jax.eval_shape(algorithm.init, key, example)`.
        NumPy leaves come back as NumPy; a sharding in `like` is honored.
      config: if given, every field must equal the stored one.

    Returns:
      The stored values in the structure of `like`.

    Raises:
      CheckpointError: no checkpoint; or config, paths, shapes or dtypes differ (nothing is cast).
      DamagedCheckpointError: the files are not those that were written.
    """
    directory = Path(os.path.abspath(directory))
    about = metadata(directory)
    if config is not None:
        _check_config(directory, about["config"], _plain(directory, "config", config))
    wanted, stored = _leaves(like), about["leaves"]
    differences = _differences(stored, {path: _signature(leaf) for path, leaf in wanted.items()})
    if differences:
        raise CheckpointError(f"{directory}: {differences}; restore with the networks and optimizers it had")
    folder = directory / about["arrays"]
    found, written = _file_sums(folder), about["files"]
    for name in sorted({*found, *written}):
        if found.get(name) != written.get(name):
            raise DamagedCheckpointError(folder / name, "not what was written: missing, cut short or altered")
    try:
        arrays = _read_arrays(folder, stored)
    except Exception as error:  # whatever Orbax and TensorStore raise
        raise DamagedCheckpointError(folder, f"unreadable ({_first_line(error)})") from error
    for path, entry in stored.items():
        if _crc32(arrays[path]) != entry["crc32"]:
            raise DamagedCheckpointError(folder, f"the values of {path} fail their checksum")
    values = [_like(leaf, arrays[path], stored[path].get("key")) for path, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), values)


def metadata(directory: str | os.PathLike) -> dict[str, Any]:
    """What stands beside the arrays: config, config_class, extra, versions, and leaves by path.

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
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        whole = False
    if not whole or not re.fullmatch(r"arrays-[0-9a-f]{32}", about["arrays"]):
        raise DamagedCheckpointError(path, "not what was written: cut short or altered")
    if about["format_version"] > FORMAT_VERSION:
        raise CheckpointError(f"{path}: format {about['format_version']} is newer than this safejax; update it")
    return about


def warm_start(state: Tree, pretrained: Any, fields: Mapping[str, str]) -> Tree:
    """`state` with some of its parts replaced by copies of parts of `pretrained`.

    `{"actor": "actor"}` moves a whole TrainState, parameters and optimizer moments; `{"critic.params":
    "critic.params"}` moves parameters alone and leaves the optimizer fresh; `{"target_critic":
    "critic.params"}` renames. Dots walk named tuples and dictionaries. Leading seed axes need no care.

    Args:
      state: the state that a new phase begins with.
      pretrained: the state of the phase before.
      fields: target name in `state` -> source name in `pretrained`.

    Returns:
      A new state; what moved is copied, so either state may be donated afterwards.

    Raises:
      ValueError: an unknown name, overlapping targets, or parts whose structure, shapes or dtypes differ.
    """
    for target in fields:
        for other in fields:
            if other.startswith(target + "."):
                raise ValueError(f"warm_start: {target!r} already holds {other!r}; name only one of them")
    for target, source in fields.items():
        old, new = _walk(state, target, "state"), _walk(pretrained, source, "pretrained")
        differences = _differences(
            *({path: _signature(leaf) for path, leaf in _leaves(part).items()} for part in (new, old))
        )
        if not differences and jax.tree.structure(old) != jax.tree.structure(new):
            differences = f"structure {jax.tree.structure(new)}, expected {jax.tree.structure(old)}"
        if differences:
            raise ValueError(f"warm_start: {source!r} of pretrained does not fit {target!r} of state: {differences}")
        state = _put(state, target.split("."), jax.tree.map(functools.partial(jnp.array, copy=True), new))
    return state


class Checkpoints:
    """The last few checkpoints of one run, one directory a step.

    Args:
      directory: made by the first `save`.
      config: stored with every checkpoint and compared by `latest`.
      keep: how many steps stay on disk.
      log: told in one line about each damaged step that `latest` passes over.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        config: Any = None,
        *,
        keep: int = 2,
        log: Callable[[str], Any] = warnings.warn,
    ):
        if keep < 1:
            raise ValueError(f"keep is {keep}, expected at least 1")
        self.directory = Path(os.path.abspath(directory))
        self.config, self.keep, self.log = config, keep, log
        self._damaged: set[int] = set()

    def path(self, step: int) -> Path:
        """The directory of one step, for `restore` and `metadata`."""
        return self.directory / f"{step:012d}"

    def steps(self) -> list[int]:
        """Steps whose save was finished, oldest first."""
        return sorted(int(path.name) for path in self._directories() if (path / "metadata.json").exists())

    def _directories(self) -> list[Path]:
        return list(self.directory.glob("[0-9]" * 12))

    def save(self, step: int, state: Any, *, extra: Any = None) -> None:
        """Save `state` as `step`, then delete all but the newest steps.

        Raises:
          CheckpointError: as `save`; or a whole checkpoint newer than `step` is here, from a run not resumed.
        """
        newer = [other for other in self.steps() if other > step and other not in self._damaged]
        if newer:
            raise CheckpointError(
                f"{self.directory}: holds step {newer[-1]}, newer than {step}; resume, or use another one"
            )
        save(self.path(step), state, self.config, extra=extra)
        self._damaged.discard(step)
        kept = {self.path(other) for other in [s for s in self.steps() if s <= step][-self.keep :]}
        trash = self.directory / ".trash"
        trash.mkdir(exist_ok=True)
        for path in self._directories():
            if path not in kept:  # a rename is atomic, so no half-deleted step is ever listed
                os.rename(path, trash / f"{path.name}-{uuid.uuid4().hex}")
        shutil.rmtree(trash, ignore_errors=True)

    def latest(self, like: Tree) -> tuple[int, Tree] | None:
        """The newest step that verifies, and its state; None where nothing was ever saved.

        Raises:
          CheckpointError: the newest whole checkpoint does not fit `like` or the config, or none is whole.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return step, restore(self.path(step), like, config=self.config)
            except DamagedCheckpointError as error:
                self._damaged.add(step)
                self.log(f"skipped checkpoint {step}: {error}")
        if steps:
            raise CheckpointError(
                f"{self.directory}: none of steps {steps} is whole; restore a copy or use another directory"
            )
        return None


def _leaves(tree: Any) -> dict[str, Any]:
    """Leaves by dotted path, in the order of `jax.tree.leaves`."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "value"
        if name in leaves:
            raise CheckpointError(f"two leaves are called {name!r}; rename a dictionary key that holds a dot")
        leaves[name] = leaf
    return leaves


def _signature(leaf: Any) -> dict[str, Any]:
    return {"shape": list(np.shape(leaf)), "dtype": str(getattr(leaf, "dtype", type(leaf).__name__))}


def _differences(found: dict[str, dict], expected: dict[str, dict]) -> str:
    """'' or every path that is missing, unexpected or of another shape or dtype; the first six in full."""
    lines = []
    for path in dict.fromkeys([*expected, *found]):
        pair = (entries.get(path) for entries in (found, expected))
        has, wants = (f"{entry['dtype']}{entry['shape']}" if entry else "absent" for entry in pair)
        if has != wants:
            lines.append(f"{path} is {has}, expected {wants}")
    return "; ".join(lines[:6]) + (f" and {len(lines) - 6} more" if len(lines) > 6 else "")


def _check_config(directory: Path, stored: Any, given: Any) -> None:
    stored, given = _flat(stored), _flat(given)
    differing = [
        f"{name}={stored.get(name, 'absent')}, expected {given.get(name, 'absent')}"
        for name in dict.fromkeys([*given, *stored])
        if stored.get(name) != given.get(name)
    ]
    if differing:
        raise CheckpointError(f"{directory}: checkpoint has {'; '.join(differing)}; use the config it was saved with")


def _flat(config: Any, prefix: str = "") -> dict[str, str]:
    """Fields by dotted name, as text: nan equals nan there, and 1 differs from true."""
    if not isinstance(config, dict):
        return {prefix: json.dumps(config)}
    parts = ((f"{prefix}.{name}" if prefix else name, part) for name, part in config.items())
    return {name: text for full, part in parts for name, text in _flat(part, full).items()}


def _plain(directory: Path, name: str, value: Any) -> Any:
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


@functools.cache
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _like(like: Any, value: np.ndarray, key_implementation: str | None) -> Any:
    if key_implementation is not None:
        array = jax.random.wrap_key_data(jnp.array(value), impl=key_implementation)
    elif isinstance(like, np.ndarray) or jax.dtypes.canonicalize_dtype(value.dtype) != value.dtype:
        return value  # a 64-bit leaf stays NumPy where JAX would narrow it
    else:
        array = jnp.array(value)
    sharding = getattr(like, "sharding", None)
    placed = sharding is not None and getattr(like, "committed", True)
    return jax.device_put(array, sharding) if placed else array


def _crc32(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data) if array.size else 0


def _write_arrays(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    # Orbax refuses empty arrays and empty trees; metadata.json says all there is to know of those.
    tree = {_orbax_name(path): array for path, array in arrays.items() if array.size}
    if not tree:
        folder.mkdir()
        return
    with _quiet(), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        checkpointer.save(folder, args=ocp.args.StandardSave(tree))


def _read_arrays(folder: Path, leaves: dict[str, Any]) -> dict[str, np.ndarray]:
    arrays = {}
    for path, entry in leaves.items():
        shape, dtype = entry.get("data", (entry["shape"], entry["dtype"]))
        arrays[path] = np.broadcast_to(np.zeros((), jnp.dtype(dtype)), shape)  # a NumPy target without memory
    tree = {_orbax_name(path): array for path, array in arrays.items() if array.size}
    if tree:
        with _quiet(), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            tree = checkpointer.restore(folder, args=ocp.args.StandardRestore(tree))
    return {path: np.asarray(tree.get(_orbax_name(path), array)) for path, array in arrays.items()}


def _orbax_name(path: str) -> str:
    return urllib.parse.quote(path, safe="")


def _file_sums(folder: Path) -> dict[str, list[int]]:
    """Size and crc32 of every file, so that nothing altered ever reaches Orbax's parsers."""
    sums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            sums[path.relative_to(folder).as_posix()] = [len(content), zlib.crc32(content)]
    return sums


def _json(about: dict[str, Any]) -> bytes:
    return json.dumps(about, indent=1).encode()


def _commit(directory: Path, about: dict[str, Any]) -> None:
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


def _remove_leftovers(directory: Path) -> None:
    """Delete array folders that metadata.json does not name: replaced ones, and those of a killed save."""
    try:
        current = json.loads((directory / "metadata.json").read_bytes())["arrays"]
    except (OSError, ValueError, KeyError, TypeError):
        current = None
    for path in directory.glob("arrays-*"):
        if path.name != current:
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax narrates every step and every retry through absl; what matters comes back as an exception."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _walk(tree: Any, name: str, what: str) -> Any:
    for part in name.split("."):
        names = tree if isinstance(tree, Mapping) else getattr(tree, "_fields", ())
        if part not in names:
            raise ValueError(f"warm_start: {what} has no {name!r}: {part!r} is not among {', '.join(map(str, names))}")
        tree = tree[part] if isinstance(tree, Mapping) else getattr(tree, part)
    return tree


def _put(tree: Any, parts: list[str], value: Any) -> Any:
    if not parts:
        return value
    first, rest = parts[0], parts[1:]
    if isinstance(tree, Mapping):
        return {**tree, first: _put(tree[first], rest, value)}
    return tree._replace(**{first: _put(getattr(tree, first), rest, value)})


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
