"""A flat HDF5 file that is larger than memory, read a few episodes at a time, as `write_slabs` takes it:
`write_slabs(read_parts("large.hdf5", part_rows=500_000), "large.slabs")`.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import h5py
import jax
import numpy as np

from safejax.data.checks import KEYS, check_columns, length_faults, refuse
from safejax.data.columns import flat_scalars, last_rows, with_successors
from safejax.data.dataset import Dataset, assemble
from safejax.data.formats import hdf5
from safejax.data.memory import check_fits
from safejax.data.notes import successor_mismatch
from safejax.data.reading import NO_SUCCESSORS, endless
from safejax.types import check_range

FLAGS = ("terminals", "timeouts")
REQUIRED = frozenset(KEYS) - {"next_observations"}


def read_parts(path: str | os.PathLike, *, part_rows: int, costs: Literal["zero"] | None = None) -> Iterator[Dataset]:
    """The data set that `read` gives of a file in DSRL's or D4RL's layout, in parts of whole episodes.

    Args:
      path: of the file.
      part_rows: at most so many rows a part, but at least an episode.
      costs: "zero" stands in for costs that the file has not.

    Raises:
      DatasetError: as `read`, when the part with the fault is reached; or a part does not fit into memory.

    Warns:
      UserWarning: as `read`.
    """
    check_range("part_rows", part_rows, 1)
    path = Path(path)
    if not os.path.isfile(path):  # Path.is_file fails on names that no file can have
        refuse(path, ["no such file. Check the path or download it first."])
    with hdf5.open_hdf5(path) as file:
        found = _find(file, path, REQUIRED - {"costs"} if costs == "zero" else REQUIRED)
        check_fits(hdf5.byte_count(found[key] for key in FLAGS), f"{path}: terminals and timeouts", "mend the file")
        flags = flat_scalars({key: hdf5.values(found[key]) for key in FLAGS})
        unread = {
            key + jax.tree_util.keystr(path): leaf
            for key, column in found.items()
            for path, leaf in jax.tree_util.tree_leaves_with_path(column)
        }
        if faults := [*length_faults(unread), *endless(flags)]:
            refuse(path, faults)
        ends = np.flatnonzero(last_rows(flags)) + 1
        row_bytes = hdf5.byte_count(found.values()) // max(len(flags["terminals"]), 1)
        found_any = False
        for start, stop in _cuts(ends, part_rows):
            # the part, its float32 and its successors
            check_fits(3 * (stop - start) * row_bytes, f"{path}: {stop - start:,} rows", "lower part_rows")
            columns = {"costs": np.zeros(stop - start, np.float32), **_rows(found, start, stop)}
            columns = flat_scalars(columns)
            check_columns(columns, f"{path}, rows from {start:,} on")
            if "next_observations" not in columns:
                columns = with_successors(columns)
            elif mismatch := successor_mismatch(columns):
                warnings.warn(f"{path}, rows from {start:,} on: {mismatch}", stacklevel=2)
            if len(columns["rewards"]):
                found_any = True
                yield assemble(columns)
        if not found_any:
            refuse(path, [NO_SUCCESSORS])


def _find(file: h5py.File, path: Path, required: frozenset[str]) -> dict[str, Any]:
    """The columns of an open file, unread."""
    faults: list[str] = []
    found = {key: hdf5.find(file, key, faults, parts="observations" in key) for key in KEYS if key in file}
    if missing := sorted(required - found.keys()):
        faults.append(f"no {', '.join(map(repr, missing))}.")
    if faults:
        refuse(path, faults)
    return found


def _cuts(ends: np.ndarray, part_rows: int) -> Iterator[tuple[int, int]]:
    """First row and the row after the last of parts that end where episodes end, `ends`, ascending."""
    start = 0
    for end, following in zip(ends, [*ends[1:], math.inf], strict=True):
        if following - start > part_rows:
            yield start, int(end)
            start = int(end)


def _rows(found: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    return jax.tree.map(lambda column: np.asarray(column[start:stop]), found)
