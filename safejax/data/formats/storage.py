"""What every reader holds to: sizes are added up before anything is read, and a damaged file is named as such."""

from __future__ import annotations

import contextlib
import math
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from safejax.data.checks import Columns, DatasetError, refuse

MAX_BYTES = 32 * 2**30
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
ZIP_SIGNATURE = b"PK"

# what h5py, zipfile and NumPy raise about bytes that make no sense; TypeError: of types that NumPy has not
DAMAGE = (
    OSError,
    RuntimeError,
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
)


class Contents(NamedTuple):
    """What a reader found, before anything is checked or derived."""

    format: str
    columns: Columns  # what there is and was not refused, with one row a step
    keys: tuple[str, ...]  # everything there, for messages
    attributes: dict[str, Any]  # what the file says of itself; JSON can hold it
    faults: list[str]
    notes: list[str]
    implied: tuple[str, ...] = ()  # columns that the reader makes of others


class Limit(NamedTuple):
    """How much may be read."""

    byte_count: int
    available: int | None = None  # bytes of memory, where the limit was derived from them


def needed(byte_count: int, limit: Limit) -> list[str]:
    """The fault of values that take more than `limit` once they are read."""
    if byte_count <= limit.byte_count:
        return []
    left = "" if limit.available is None else f" of {size(limit.available)} available"
    return [f"would need {size(byte_count)}; limit {size(limit.byte_count)}{left} (max_bytes=)."]


def size(byte_count: float) -> str:
    """Such as '7.3 TiB'."""
    units = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
    index = min(int(math.log2(max(byte_count, 1))) // 10, len(units) - 1)
    return f"{byte_count / 1024**index:.1f}".removesuffix(".0") + f" {units[index]}"


@contextlib.contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """What goes wrong inside while a file is opened and read means that the file is not whole, but for two reasons."""
    try:
        yield
    except DatasetError:
        raise
    except MemoryError as error:
        refuse(path, [f"does not fit into memory ({_words(error)}). Free memory, or take fewer rows with read_parts."])
    except DAMAGE as error:
        if re.search("unable to lock file|already open for write", str(error)):
            refuse(path, [f"open for writing elsewhere ({_words(error)}). Wait for the writer, or close it."])
        incomplete(path, kind, error)


def incomplete(path: Path, kind: str, error: BaseException | str = "") -> NoReturn:
    """Refuse a file that is cut short, damaged or of another kind than `kind`."""
    count = path.stat().st_size
    if stored := re.search(r"stored_eof = (\d+)", str(error)):
        found = f"{count:,} of {int(stored[1]):,} bytes"
    else:
        with path.open("rb") as file:
            head = file.read(16)
        begins = f"begins with {head!r}" if not head.startswith((HDF5_SIGNATURE, ZIP_SIGNATURE)) else _words(error)
        found = f"{count:,} bytes; {begins}" if count else "0 bytes"
    refuse(path, [f"not a complete {kind} file ({found}). Delete it and download it again, or pass path=."])


def _words(error: BaseException | str) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:160]
