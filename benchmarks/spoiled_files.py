"""Data files that are damaged, or that try to show other files, to run code or to fill the memory.

Every function builds one in a folder; those of (file, folder) put something bad in the place that `edited` left empty.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from data_files import ROWS, columns, flat, minari, npz, write


def edited(edit: Callable[[h5py.File, Path], None], without: str = "observations") -> Callable[[Path], Path]:
    """Builds DSRL's layout without one key, and lets `edit` put something else there."""

    def build(folder: Path) -> Path:
        path = write(folder / "car.hdf5", {**columns(), without: None, "hidden": columns()[without]})
        with h5py.File(path, "a") as file:
            edit(file, folder)
        return path

    return build


def bytes_as_a_name(folder: Path) -> Path:
    path = flat(costs=None)(folder)
    with h5py.File(path, "a") as file:
        file[b"\xff\x1b"] = np.zeros(ROWS)
    return path


def external_link(file: h5py.File, folder: Path) -> None:
    file["observations"] = h5py.ExternalLink(str(write(folder / "other.hdf5", columns())), "/observations")


def external_storage(file: h5py.File, folder: Path) -> None:
    secret = folder / "secret.txt"
    secret.write_bytes(b"not for others " * 12)
    file.create_dataset("observations", (ROWS, 3), "f4", external=[(str(secret), 0, ROWS * 12)])


def virtual(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout((ROWS, 3), "f4")
    layout[:] = h5py.VirtualSource(str(folder / "missing.hdf5"), "observations", (ROWS, 3))
    file.create_virtual_dataset("observations", layout)


def linked_part(file: h5py.File, folder: Path) -> None:
    file["observations/pixels"] = np.zeros((ROWS, 4, 4, 3), np.uint8)
    file["observations/state"] = h5py.SoftLink("/hidden")


def empty_group(file: h5py.File, folder: Path) -> None:
    file.create_group("observations")


def declared(file: h5py.File, folder: Path) -> None:
    chunk, zeros = 5 * 10**8, zlib.compress(b"")
    item = file.create_dataset("observations", (10**12,), "f8", chunks=(chunk,), compression="gzip")
    for first in range(0, 10**12, chunk):
        item.id.write_direct_chunk((first,), zeros)


def large_chunk(file: h5py.File, folder: Path) -> None:
    shapes = {"chunks": (2**20, 2**8), "maxshape": (None, None)}
    item = file.create_dataset("observations", (ROWS, 3), "f4", compression="gzip", **shapes)
    item.id.write_direct_chunk((0, 0), zlib.compress(b""))


def never_written(file: h5py.File, folder: Path) -> None:
    file.create_dataset("rewards", (ROWS,), "f4")


def half_written(file: h5py.File, folder: Path) -> None:
    rewards = file.create_dataset("rewards", (ROWS,), "f4", chunks=(2,))
    rewards[:4] = 1


def no_width(file: h5py.File, folder: Path) -> None:
    file.create_dataset("observations", (2**50, 0), "f4")


def strings(file: h5py.File, folder: Path) -> None:
    file.create_dataset("rewards", data=["a"] * ROWS, dtype=h5py.string_dtype())


def web_page(folder: Path) -> Path:
    (folder / "car.hdf5").write_text("<!DOCTYPE html><title>404</title>")
    return folder / "car.hdf5"


def empty(folder: Path) -> Path:
    (folder / "car.hdf5").touch()
    return folder / "car.hdf5"


def half_hdf5(folder: Path) -> Path:
    path = flat()(folder)
    path.write_bytes(path.read_bytes()[:5000])
    return path


def flipped_bit(folder: Path) -> Path:
    path = flat(rewards=None)(folder)
    with h5py.File(path, "a") as file:
        rewards = file.create_dataset("rewards", data=columns()["rewards"], fletcher32=True, chunks=(ROWS,))
        place = rewards.id.get_chunk_info(0).byte_offset
    held = bytearray(path.read_bytes())
    held[place] ^= 1
    path.write_bytes(held)
    return path


def foreign_filter(folder: Path) -> Path:
    """Compressed by what h5py knows, under a number that it does not."""
    path = flat(rewards=None)(folder)
    with h5py.File(path, "a") as file:
        file.create_dataset("rewards", data=columns()["rewards"], compression="lzf", chunks=(ROWS,))
    held = bytearray(path.read_bytes())
    place = held.index(b"lzf\0") - 8  # the number begins the filter's entry, and its name ends it
    held[place : place + 2] = (32015).to_bytes(2, "little")
    path.write_bytes(held)
    return path


def linked_episode(folder: Path) -> Path:
    path = minari()(folder)
    other = write(folder / "other.hdf5", columns())
    with h5py.File(path / "data" / "main_data.hdf5", "a") as file:
        file["episode_2"] = h5py.ExternalLink(str(other), "/")
    return path


def arrow(folder: Path) -> Path:
    (folder / "car" / "data" / "0").mkdir(parents=True)
    (folder / "car" / "data" / "metadata.json").write_text(json.dumps({"data_format": "arrow"}))
    return folder / "car"


class Trap:
    """Unpickling this touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def pickled(folder: Path) -> Path:
    """An npz whose observations, once unpickled, touch the file `executed`."""
    return npz(observations=np.array([Trap(folder / "executed")], object))(folder)


def half_npz(folder: Path) -> Path:
    path = npz()(folder)
    path.write_bytes(path.read_bytes()[:300])
    return path


def boastful_npz(folder: Path) -> Path:
    """The header of an array declares more than the zip holds."""
    path, plain = folder / "maze.npz", npz(observations=None)(folder)
    header = str({"descr": "<f4", "fortran_order": False, "shape": (10**9, 3)}).ljust(117) + "\n"
    with zipfile.ZipFile(plain, "a") as archive:
        archive.writestr("observations.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
    return path
