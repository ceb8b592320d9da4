"""One HDF5 file with a key for each column and episodes one after another: DSRL's layout, and D4RL's without costs.

The keys are observations, next_observations, actions, rewards, costs, terminals and timeouts; D4RL's files may lack
next_observations and hold more, such as infos/qpos, which is not read. Observations with parts, such as pixels and
state, are ours: a group with one data set a part, "observations/pixels".

Sources: Liu et al. 2023, https://arxiv.org/abs/2306.09303; Fu et al. 2020, https://arxiv.org/abs/2004.07219.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import jax
import numpy as np

from safejax.data.checks import KEYS, part_name_fault, refuse
from safejax.data.dataset import Dataset
from safejax.data.formats import hdf5
from safejax.data.formats.storage import Contents, Limit, needed


def contents(file: h5py.File, limit: Limit) -> Contents:
    """The columns of an open file, as far as they are there and may be read."""
    present, faults = tuple(map(str, file)), []  # names that are no text come as bytes
    found = {key: hdf5.find(file, key, faults, parts="observations" in key) for key in KEYS if key in present}
    excess = needed(hdf5.byte_count(found.values()), limit)
    columns = {key: hdf5.values(item) for key, item in found.items() if item and not excess}
    attributes = hdf5.attributes(file)
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        attributes |= json.loads(attributes.pop("safejax", "{}"))
    name = "DSRL HDF5" if "costs" in present else "D4RL HDF5"
    return Contents(name, columns, present, attributes, faults + excess, [])


def write_dsrl(path: str | os.PathLike, dataset: Dataset, attributes: Mapping[str, Any] | None = None) -> None:
    """Write `dataset` in DSRL's layout, compressed and with checksums; a killed write leaves the old file.

    Args:
      path: where the file goes; its directory must exist.
      dataset: observations must be arrays [N, O], or dictionaries of arrays; extras are not stored.
      attributes: provenance that JSON can hold (task, seeds, versions, renderer, ...), up to 60 kB.

    Raises:
      DatasetError: observations of another kind or with parts that cannot be called so, attributes JSON cannot hold,
        or a failed write.
    """
    path, rows = Path(path), jax.tree.map(np.asarray, dataset.transitions)
    parts = rows.observation.values() if isinstance(rows.observation, dict) else [rows.observation]
    if not all(isinstance(part, np.ndarray) for part in parts):
        kind = type(rows.observation).__name__
        refuse(path, [f"observations are a nested {kind}, expected an array [N, O] or a dictionary of arrays."])
    if fault := part_name_fault(rows.observation):
        refuse(path, [fault])
    try:
        text = json.dumps(dict(attributes or {}))
    except (TypeError, ValueError) as error:
        refuse(path, [f"attributes cannot be stored: {error}. Use numbers and strings."])
    if len(text) > 60_000:
        refuse(path, [f"attributes take {len(text):,} bytes, expected up to 60,000. Store less."])
    terminal = rows.discount == 0
    timeout = (rows.last != 0) & ~terminal
    columns = (rows.observation, rows.next_observation, rows.action, rows.reward, rows.cost, terminal, timeout)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with h5py.File(temporary, "w") as file:
            for key, values in zip(KEYS, columns, strict=True):
                for name, part in values.items() if isinstance(values, dict) else [(None, values)]:
                    place = f"{key}/{name}" if name else key
                    file.create_dataset(place, data=part, compression="gzip", shuffle=True, fletcher32=True)
            file.attrs["safejax"] = text
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        found = str(error).strip().splitlines()[0][:200]
        refuse(path, [f"the write failed ({found}). Check free space and that the directory exists."])
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
