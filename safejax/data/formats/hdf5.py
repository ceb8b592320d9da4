"""HDF5 that nobody vouches for. It can show other files of the user as its own values: by soft and external links, by
external storage and as virtual data sets, which read as zeros where their source is missing. All of these are refused,
and so are values that were declared and never written, which read as zeros too.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from safejax.data.checks import column_fault
from safejax.data.formats.storage import DAMAGE, reading

ATTRIBUTE_BYTES = 2**20

Item = h5py.Dataset | dict[str, h5py.Dataset]


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file, for reading."""
    with reading(path, "HDF5"), h5py.File(path, "r") as file:
        yield file


def find(parent: h5py.Group, key: str, faults: list[str], *, parts: bool = False) -> Item:
    """The values stored under `key`, unread; {} where they are refused, with a sentence in `faults`.

    Args:
      parent: holds `key`.
      key: one name, no path.
      faults: grows.
      parts: whether a group of data sets may stand there, such as pixels and state; given by name.
    """
    item, name = _own(parent, key, faults), _name(parent, key)
    if isinstance(item, h5py.Group) and parts and len(item):
        found = {str(part): find(item, str(part), faults) for part in item}
        sound = {part: value for part, value in found.items() if isinstance(value, h5py.Dataset)}
        return sound if len(sound) == len(found) else {}
    if item is None:
        return {}
    if not isinstance(item, h5py.Dataset):
        faults.append(f"{name!r} is a {type(item).__name__}, expected a data set.")
    elif fault := _unfit(name, item):
        faults.append(fault)
    else:
        return item
    return {}


def group(parent: h5py.Group, key: str, faults: list[str]) -> h5py.Group | None:
    """The group `key`; None where it is refused, with a sentence in `faults`."""
    item = _own(parent, key, faults)
    if item is None or isinstance(item, h5py.Group):
        return item
    faults.append(f"{_name(parent, key)!r} is a {type(item).__name__}, expected a group.")
    return None


def _own(parent: h5py.Group, key: str, faults: list[str]) -> Any:
    """What stands under `key` in the file itself; None, and a fault, where that is a link."""
    link, name = parent.get(key, getlink=True), _name(parent, key)
    if isinstance(link, h5py.HardLink):
        return parent[key]
    if isinstance(link, h5py.SoftLink):
        faults.append(f"refused: {name!r} is a link to {link.path!r}. Store the values themselves.")
    else:
        faults.append(f"refused: {name!r} is stored outside this file.")
    return None


def _name(parent: h5py.Group, key: str) -> str:
    return f"{parent.name}/{key}".strip("/")


def _unfit(name: str, item: h5py.Dataset) -> str:
    """'' or why the values are not to be read."""
    if item.external or item.is_virtual:
        return f"refused: {name!r} is stored outside this file."
    if fault := column_fault(name, item.dtype, item.shape or ()):
        return fault
    if not item.shape:
        return f"{name} has no rows, expected one a step."
    if not _is_written(item):
        return f"{name!r} was never fully written; what is missing would read as zeros. Collect or download it again."
    filters = item.id.get_create_plist()
    for code, _, _, kind in map(filters.get_filter, range(filters.get_nfilters())):
        if not h5py.h5z.filter_avail(code):
            called = f"filter {code} {kind.decode(errors='replace')}".strip()
            return f"{name!r} is compressed by {called}, which HDF5 lacks here. Install and import hdf5plugin."
    return ""


def _is_written(item: h5py.Dataset) -> bool:
    """Whether every chunk has its place in the file, or all values together have theirs."""
    if item.chunks is None:
        return not item.size or item.id.get_storage_size() > 0
    expected = math.prod(-(-length // chunk) for length, chunk in zip(item.shape, item.chunks, strict=True))
    return item.id.get_num_chunks() >= expected


def byte_count(items: Iterable[Item]) -> int:
    """What `items` take when read: as declared, and no less than one chunk, which is read whole."""
    total = 0
    for item in items:
        if isinstance(item, dict):
            total += byte_count(item.values())
        else:
            total += max(math.prod(item.shape), math.prod(item.chunks or ())) * item.dtype.itemsize
    return total


def values(item: Item) -> Any:
    """The arrays of what `find` gave."""
    return {name: values(part) for name, part in item.items()} if isinstance(item, dict) else np.asarray(item)


def attributes(item: h5py.Group) -> dict[str, Any]:
    """What is attached to `item` and JSON can hold; large values are left out."""
    found = {}
    for name in item.attrs:
        with contextlib.suppress(*DAMAGE, MemoryError):  # a stranger's attribute may be of any kind
            about = item.attrs.get_id(name)
            if math.prod(about.shape or ()) * about.dtype.itemsize > ATTRIBUTE_BYTES:
                continue
            value = item.attrs[name]
            value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
            value = value.decode(errors="replace") if isinstance(value, bytes) else value
            json.dumps(value)
            found[str(name)] = value
    return found
