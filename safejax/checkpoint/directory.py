"""One checkpoint in one directory: `save` replaces it in one step, `restore` checks every byte of it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from safejax.checkpoint import arrays as files
from safejax.checkpoint import description, leaves
from safejax.checkpoint.errors import CheckpointError, DamagedCheckpointError, first_line
from safejax.checkpoint.processes import on_the_first

Tree = TypeVar("Tree")


def save(
    directory: str | os.PathLike,
    state: Any,
    config: Any = None,
    *,
    extra: Any = None,
    metric: float | None = None,
    allow_non_finite: bool = False,
) -> None:
    """Write `state` to `directory`, replacing the checkpoint that is there in one step.

    Where `jax.distributed` runs, every process calls it with the same arguments; arrays may be spread over all of
    them, what each holds for itself must be equal, and process 0 writes.

    Args:
      directory: made if missing.
      state: pytree of JAX or NumPy arrays of any shape; typed PRNG keys are fine.
      config: dataclass, mapping of names to values, or None; stored as JSON and compared by `restore`.
      extra: anything JSON can hold, such as the environment's name; read back through `metadata`.
      metric: a finite number, how good the state is, more is better; `Checkpoints` keeps the best by it.
      allow_non_finite: save NaN and infinity too.

    Raises:
      CheckpointError: a leaf is no array of numbers, JSON cannot hold the config, the metric is none, another process
        is saving here, or the write failed (full disk); the checkpoint that was there before is intact.
      NonFiniteStateError: NaN or infinity in the state; the same holds.
    """
    path = Path(os.path.abspath(directory))
    content = gather(path, state, config, extra, metric, allow_non_finite)
    on_the_first(lambda: write(path, content))


class Content(NamedTuple):
    """What goes to disk, on the host."""

    arrays: dict[str, np.ndarray]
    about: dict[str, Any]


def gather(
    directory: Path, state: Any, config: Any, extra: Any, metric: float | None, allow_non_finite: bool = False
) -> Content:
    """The content of a checkpoint; every process takes part. `directory` is for messages."""
    if metric is not None and not _is_number(metric):
        raise CheckpointError(f"{directory}: metric is {str(metric)[:80]!r}, expected a finite number or None")
    arrays, entries = leaves.to_host(directory, state)
    if not allow_non_finite:
        leaves.refuse_non_finite(directory, arrays)
    return Content(arrays, description.describe(directory, entries, config, extra, metric))


def _is_number(metric: Any) -> bool:
    value = np.asarray(metric)
    return value.shape == () and value.dtype.kind in "fiub" and bool(np.isfinite(value))


def write(directory: Path, content: Content) -> None:
    """Write and commit, or leave what was there."""
    folder = directory / f"arrays-{uuid.uuid4().hex}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with exclusive(directory):
            try:
                _remove_leftovers(directory)
                files.write_arrays(folder, content.arrays)
                sums = files.file_sums(folder)
                if not sums and any(array.size for array in content.arrays.values()):
                    raise CheckpointError(f"{directory}: no files were written; what was saved before is intact")
                about = {**content.about, "arrays": folder.name, "files": sums}
                description.commit(directory, about)
            finally:
                _remove_leftovers(directory)
    except CheckpointError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        reason = "disk full" if os.strerror(errno.ENOSPC) in str(error) else first_line(error)
        raise CheckpointError(
            f"{directory}: the write failed ({reason}); check free space and permissions. "
            "What was saved before is intact"
        ) from error


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
    about = description.metadata(directory)
    if config is not None:
        description.check_config(directory, about["config"], config)
    wanted, stored = leaves.by_path(like, directory), about["leaves"]
    differences = leaves.differences(stored, leaves.signatures(like, directory))
    if differences:
        raise CheckpointError(f"{directory}: {differences}; restore with the networks and optimizers it had")
    try:
        arrays = _verified(directory / about["arrays"], about)
    except DamagedCheckpointError:
        if description.metadata(directory)["arrays"] == about["arrays"]:
            raise
        return restore(directory, like, config=config)  # another process replaced it meanwhile
    values = [leaves.from_host(leaf, arrays[path], stored[path].get("key")) for path, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), values)


def _verified(folder: Path, about: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a folder whose files and values are those that `about` describes."""
    found, written = files.file_sums(folder), about["files"]
    for name in sorted({*found, *written}):
        if found.get(name) != written.get(name):
            raise DamagedCheckpointError(folder / name, "not what was written: missing, cut short or altered")
    try:
        arrays = files.read_arrays(folder, about["leaves"])
    except Exception as error:  # whatever Orbax and TensorStore raise
        raise DamagedCheckpointError(folder, f"unreadable ({first_line(error)})") from error
    for path, entry in about["leaves"].items():
        if leaves.crc32(arrays[path]) != entry["crc32"]:
            raise DamagedCheckpointError(folder, f"the values of {path} fail their checksum")
    return arrays


@contextlib.contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold the lock of an existing directory, which leaves no file and goes with its process.

    Raises:
      CheckpointError: another process holds it.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(f"{directory}: another process is saving here; use another directory") from None
        except OSError:  # a network disk that locks no directories; a Run locks a file besides
            pass
        yield
    finally:
        os.close(descriptor)


def _remove_leftovers(directory: Path) -> None:
    """Delete array folders that metadata.json does not name: replaced ones, and those of a killed save."""
    try:
        current = json.loads((directory / "metadata.json").read_bytes())["arrays"]
    except FileNotFoundError:
        current = None  # no save was ever finished here
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return  # what cannot be read now may name a folder that is whole; the next commit tells
    for path in directory.glob("arrays-*"):
        if path.name != current:
            shutil.rmtree(path, ignore_errors=True)
