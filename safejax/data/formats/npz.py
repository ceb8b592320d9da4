"""NumPy's npz that nobody vouches for. Object arrays are pickles, which run code, and a few bytes of zip can expand to
fill the memory: both are refused from the headers, before anything is expanded.
"""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from safejax.data.checks import column_fault
from safejax.data.formats.storage import Limit, needed, reading, size

RATIO, FREE_BYTES = 200, 16 * 2**20  # so many times may values expand; small ones as far as they like


@contextlib.contextmanager
def open_npz(path: Path) -> Iterator[Npz]:
    """An npz file; members that are no arrays are ignored and nothing is ever unpacked to the disk."""
    with reading(path, "npz"), zipfile.ZipFile(path) as archive:
        names = tuple(name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy"))
        yield Npz(archive, names)


class Npz(NamedTuple):
    """An open npz file and the headers of its arrays."""

    archive: zipfile.ZipFile
    names: tuple[str, ...]

    def find(self, wanted: Iterable[str], limit: Limit, faults: list[str]) -> list[str]:
        """Which of `wanted` are there and fit to be read; sentences about the others go into `faults`."""
        members = {name: self.archive.getinfo(f"{name}.npy") for name in wanted if name in self.names}
        declared, packed = (sum(getattr(m, n) for m in members.values()) for n in ("file_size", "compress_size"))
        if excess := needed(declared, limit):
            faults += excess
            return []
        if declared > max(FREE_BYTES, RATIO * packed):
            ratio = f"{size(packed)} expand to {size(declared)}, {declared / max(packed, 1):,.0f} times"
            faults.append(f"refused: {ratio}; expected at most {RATIO}. Store it without compression.")
            return []
        return [name for name, member in members.items() if not self._refused(name, member, faults)]

    def read(self, name: str) -> np.ndarray:
        """The array of that name."""
        with self.archive.open(f"{name}.npy") as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)

    def _refused(self, name: str, member: zipfile.ZipInfo, faults: list[str]) -> bool:
        with self.archive.open(member) as stream:
            header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, dtype = header[np.lib.format.read_magic(stream)](stream)
            expected = stream.tell() + math.prod(shape) * dtype.itemsize
        if dtype.hasobject:
            faults.append(f"refused: {name!r} is an object array, a pickle that could run code. Store numbers.")
        elif fault := column_fault(name, dtype, shape):
            faults.append(fault)
        elif not shape:
            faults.append(f"{name} is a single number, expected one row a step.")
        elif expected != member.file_size:
            faults.append(f"{name}: {member.file_size:,} bytes stored, {expected:,} declared.")
        else:
            return False
        return True
