"""A folder of arrays, written and read by Orbax, and the checksums of its files."""

from __future__ import annotations

import contextlib
import urllib.parse
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from safejax.checkpoint.quiet import quiet


def write_arrays(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays by name into a new folder."""
    # Orbax refuses empty arrays and empty trees; metadata.json says all there is to know of those.
    tree = {_orbax_name(path): array for path, array in arrays.items() if array.size}
    if not tree:
        folder.mkdir()
        return
    with _checkpointer() as checkpointer:
        checkpointer.save(folder, args=ocp.args.StandardSave(tree))


def read_arrays(folder: Path, leaves: dict[str, Any]) -> dict[str, np.ndarray]:
    """Arrays by name; `leaves` holds their shapes and dtypes as metadata.json has them."""
    arrays = {}
    for path, entry in leaves.items():
        shape, dtype = entry.get("data", (entry["shape"], entry["dtype"]))
        arrays[path] = np.broadcast_to(np.zeros((), jnp.dtype(dtype)), shape)  # a NumPy target without memory
    tree = {_orbax_name(path): array for path, array in arrays.items() if array.size}
    if tree:
        with _checkpointer() as checkpointer:
            tree = checkpointer.restore(folder, args=ocp.args.StandardRestore(tree))
    return {path: np.asarray(tree.get(_orbax_name(path), array)) for path, array in arrays.items()}


def file_sums(folder: Path) -> dict[str, list[int]]:
    """Size and crc32 of every file, so that nothing altered ever reaches Orbax's parsers."""
    sums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            sums[path.relative_to(folder).as_posix()] = [len(content), zlib.crc32(content)]
    return sums


def _orbax_name(path: str) -> str:
    return urllib.parse.quote(path, safe="")


@contextlib.contextmanager
def _checkpointer() -> Iterator[ocp.Checkpointer]:
    """Orbax for this process alone."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(me, active_processes={me}, barrier_sync_key_prefix=f"process{me}")
    with quiet():
        handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            yield checkpointer
