"""Data sets larger than memory: columns on disk, mapped and not read, handed out in slabs of one shape.

    write_slabs(parts, "runs.slabs")                      # data sets that fit one at a time, in any number
    slabs = open_slabs("runs.slabs", slab_rows=500_000)
    dataset = read_slab(slabs, key, index)                # a Dataset of the same shapes for every index

A slab is put together from blocks of consecutive rows that lie anywhere on disk. In each epoch every block is in
exactly one slab, in an order that the key draws anew, so a slab mixes early with late behavior however the file is
sorted. `safejax.training.train_offline_slabs` trains on them. What differs from drawing rows from all of the data:

- Batches are uniform with replacement over the rows of the slab at hand. Each batch alone is uniform over all rows,
  as it would be from the whole; batches from one slab are not independent of one another, and an epoch visits all
  blocks equally often.
- Blocks have one length, so they overlap where the rows do not divide: of the rows, fewer than there are blocks are
  in two blocks and drawn twice as often (of data with fewer rows than blocks, all rows in several).
- A block's last row has `last` 1, as at a truncation: sequences that run over it join what does not belong together,
  and say so, as they do at an episode's end. Nothing is bootstrapped otherwise: `discount` stays.
- A slab knows no episodes, since blocks cut them: `episode_start` and `episode_length` are [0].
"""

from __future__ import annotations

import json
import math
import os
import shutil
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from safejax.data.checks import DatasetError, column_fault, length_faults, part_name_fault, printable, refuse
from safejax.data.dataset import Dataset
from safejax.data.memory import check_fits
from safejax.types import Key, Transition, check_range

_FORMAT = "safejax slabs 1"
_INDEX = "slabs.json"
_SCALARS = ("reward", "cost", "discount", "last")
_FIELDS = ("observation", "action", *_SCALARS, "next_observation")


class Slabs(NamedTuple):
    """An open directory of `write_slabs`; nothing of the rows is in memory."""

    columns: Transition  # [N] memory maps
    attributes: dict[str, Any]  # as they were written
    block_start: np.ndarray  # [slab_count * blocks_per_slab] int64, row of each block's first transition
    block_rows: int
    blocks_per_slab: int
    slab_count: int  # slabs of an epoch


def write_slabs(
    parts: Iterable[Dataset], directory: str | os.PathLike, attributes: Mapping[str, Any] | None = None
) -> None:
    """Write data sets one after another as columns, of which only one at a time needs to fit into memory.

    The directory appears when everything is written. Memory maps do not look at checksums: `verify_slabs` does.

    Args:
      parts: of the same widths and types; observations are arrays, or dictionaries of arrays; extras are not stored.
      directory: must not exist.
      attributes: provenance that JSON can hold.

    Raises:
      DatasetError: the directory exists, parts differ or there are none, observations have a part whose name no file
        can have, or a failed write.
    """
    directory = Path(os.path.abspath(directory))
    if directory.exists():
        raise DatasetError(f"{directory}: exists; delete it or choose another name")
    partial = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    columns: dict[str, _Column] = {}
    try:
        partial.mkdir(parents=True)
        for number, part in enumerate(parts):
            if fault := part_name_fault(part.transitions.observation):
                refuse(directory, [fault])
            arrays = _named(part.transitions)
            if not columns:
                columns = {name: _Column(partial / f"{name}.npy", array) for name, array in arrays.items()}
            _check_alike(arrays, columns, f"{directory}: part {number}")
            for name, array in arrays.items():
                columns[name].append(array)
        if not columns:
            raise DatasetError(f"{directory}: no parts to write; give at least one data set")
        sums = {name: column.close() for name, column in columns.items()}
        text = json.dumps({"format": _FORMAT, "crc32": sums, "attributes": dict(attributes or {})}, indent=1)
        (partial / _INDEX).write_text(text + "\n")
        os.replace(partial, directory)
    except OSError as error:
        raise DatasetError(f"{directory}: the write failed ({error.strerror}); check free space") from error
    finally:
        for column in columns.values():
            column.file.close()
        shutil.rmtree(partial, ignore_errors=True)


def open_slabs(directory: str | os.PathLike, *, slab_rows: int, blocks_per_slab: int = 16) -> Slabs:
    """Map the columns and cut them into slabs.

    Args:
      directory: of `write_slabs`.
      slab_rows: at most so many rows a slab; two slabs are in memory of the first device at a time.
      blocks_per_slab: places on disk that each slab is read from; more mix better, and cut more sequences.

    Raises:
      DatasetError: no directory of `write_slabs`, a damaged one, or slabs too large for the memory.
    """
    check_range("blocks_per_slab", blocks_per_slab, 1)
    check_range("slab_rows", slab_rows, 2 * blocks_per_slab)
    index, arrays = _open(Path(directory))
    rows = len(arrays["reward"])
    slab_count = math.ceil(rows / (slab_rows - blocks_per_slab + 1))  # a block's rows are rounded up
    block_count = slab_count * blocks_per_slab
    block_rows = math.ceil(rows / block_count)
    starts = np.arange(block_count) * (rows - block_rows) // max(block_count - 1, 1)
    row_bytes = sum(array.dtype.itemsize * math.prod(array.shape[1:]) for array in arrays.values())
    size = block_rows * blocks_per_slab
    check_fits(2 * size * row_bytes, f"{directory}: two slabs of {size:,} rows", "lower slab_rows")
    return Slabs(_transition(arrays), index["attributes"], starts, block_rows, blocks_per_slab, slab_count)


def read_slab(slabs: Slabs, key: Key, index: int) -> Dataset:
    """The slab `index` of the order that `key` draws; it may be any number >= 0, epochs follow one another.

    Raises:
      ValueError: `index` is below 0.
    """
    check_range("index", index, 0)
    epoch, position = divmod(index, slabs.slab_count)
    entropy = np.asarray(jax.random.key_data(jax.random.fold_in(key, epoch)))
    order = np.random.default_rng(entropy).permutation(len(slabs.block_start))
    chosen = order[position * slabs.blocks_per_slab :][: slabs.blocks_per_slab]
    places = [slice(start, start + slabs.block_rows) for start in slabs.block_start[chosen]]
    rows = jax.tree.map(lambda column: np.concatenate([column[place] for place in places]), slabs.columns)
    rows.last[slabs.block_rows - 1 :: slabs.block_rows] = 1
    return Dataset(jax.device_put(rows), jnp.zeros(0, jnp.int32), jnp.zeros(0, jnp.int32))


def verify_slabs(directory: str | os.PathLike) -> None:
    """Read everything once and compare it with the checksums.

    Raises:
      DatasetError: naming the damaged columns.
    """
    index, arrays = _open(Path(directory))
    step = 1 << 14
    bad = []
    for name, array in arrays.items():
        found = 0
        for row in range(0, len(array), step):
            found = zlib.crc32(array[row : row + step].tobytes(), found)
        bad += [name] if found != index["crc32"][name] else []
    if bad:
        raise DatasetError(f"{directory}: {', '.join(bad)} changed since written; delete it and write it again")


class _Column:
    """A .npy file that grows; its header has room for the final number of rows."""

    def __init__(self, path: Path, like: np.ndarray) -> None:
        self.dtype, self.shape, self.rows, self.crc = like.dtype, like.shape[1:], 0, 0
        self.file: BinaryIO = path.open("wb")
        self._write_header()

    def append(self, rows: np.ndarray) -> None:
        rows = np.ascontiguousarray(rows)
        self.file.write(rows.data)
        self.crc = zlib.crc32(rows.data, self.crc)
        self.rows += len(rows)

    def close(self) -> int:
        """The checksum of what was written."""
        self.file.seek(0)
        self._write_header()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return self.crc

    def _write_header(self) -> None:
        descr = np.lib.format.dtype_to_descr(self.dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self.rows, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, header)


def _named(rows: Transition) -> dict[str, np.ndarray]:
    """Columns by name; those of a dictionary as observation.pixels."""
    arrays = {}
    for field in _FIELDS:
        value = getattr(rows, field)
        parts = {f"{field}.{part}": leaf for part, leaf in value.items()} if isinstance(value, dict) else {field: value}
        arrays |= {name: np.asarray(leaf) for name, leaf in parts.items()}
    return arrays


def _transition(arrays: Mapping[str, np.ndarray]) -> Transition:
    """What `_named` took apart."""

    def field(name: str) -> Any:
        parts = {key.partition(".")[2]: array for key, array in arrays.items() if key.startswith(f"{name}.")}
        return parts or arrays[name]

    return Transition(*map(field, _FIELDS))


def _check_alike(arrays: Mapping[str, np.ndarray], columns: Mapping[str, _Column], source: str) -> None:
    found = {name: (array.dtype.name, array.shape[1:]) for name, array in arrays.items()}
    expected = {name: (column.dtype.name, column.shape) for name, column in columns.items()}
    for name in found.keys() | expected.keys():
        if found.get(name) != expected.get(name):
            raise DatasetError(
                f"{source}: {name} is {found.get(name)} a row, expected {expected.get(name)} as in the first part"
            )


def _open(directory: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The index and the mapped columns, which fit together; no values are read."""
    try:
        index = json.loads((directory / _INDEX).read_text())
        if index.get("format") != _FORMAT:
            raise DatasetError(f"{directory}: format {index.get('format')!r}, expected {_FORMAT!r}; write it again")
        wrong = [key for key in ("crc32", "attributes") if not isinstance(index.get(key), dict)]
        if wrong:
            raise ValueError(f"{_INDEX} has no {' and no '.join(wrong)}")
        files = {name: directory / f"{name}.npy" for name in index["crc32"]}
        if outside := [name for name, file in files.items() if "/" in name or file.is_symlink()]:
            raise ValueError(f"{outside[0]!r} is stored outside this directory")
        arrays = {name: np.load(file, mmap_mode="r", allow_pickle=False) for name, file in files.items()}
        if fault := _fault(arrays):
            raise ValueError(fault)
    except FileNotFoundError as error:
        raise DatasetError(f"{error.filename}: no such file; expected a directory of write_slabs") from None
    except (OSError, EOFError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(printable(f"{directory}: damaged ({error}); write it again")) from None
    return index, arrays


def _fault(arrays: Mapping[str, np.ndarray]) -> str:
    """'' or how the columns' names, types, widths or lengths fail to make up rows."""
    observations = {name: array for name, array in arrays.items() if name.partition(".")[0] == "observation"}
    following = {name for name in arrays if name.partition(".")[0] == "next_observation"}
    others = arrays.keys() - observations.keys() - following
    if not observations or others != {"action", *_SCALARS}:
        return f"columns are {', '.join(sorted(arrays)) or 'none'}"
    if following != {f"next_{name}" for name in observations}:
        return f"columns are {', '.join(sorted(following))} beside {', '.join(sorted(observations))}"
    for name, array in arrays.items():
        if fault := column_fault(name, array.dtype, array.shape):
            return fault
        if name in _SCALARS:
            fits = array.ndim == 1 and array.dtype.kind == "f"  # bytes would wrap
        else:
            fits = array.ndim >= (1 if name == "action" else 2)
        if not fits:
            return f"{name} is {array.dtype}{list(array.shape)}"
    for name, array in observations.items():
        twin = arrays[f"next_{name}"]
        if (twin.dtype, twin.shape[1:]) != (array.dtype, array.shape[1:]):
            return f"next_{name} is {twin.dtype}{list(twin.shape)}, {name} {array.dtype}{list(array.shape)}"
    return " ".join(length_faults(arrays))
