"""SHA-256 of downloaded files: the published one, or the one that a file had when it arrived.

The latter stands beside the file, hidden, as a line of `sha256sum`: `sha256sum -c .NAME.sha256` checks it by hand.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from safejax.data.checks import DatasetError


def sha256_of(path: Path) -> str:
    """In hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def note_sum(path: Path) -> None:
    """Keep the sum of a file beside it; it is there whole or not at all."""
    partial = _sum_file(path).with_suffix(".partial")
    with partial.open("w") as file:
        file.write(f"{sha256_of(path)}  {path.name}\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, _sum_file(path))


def check_file(path: Path, size: int | None, sha256: str | None) -> None:
    """Compare a file with what was published of it, else with its own sum, if one was kept.

    Raises:
      DatasetError: it has another length or sum.
    """
    expected = sha256 or _noted_sum(path)
    fault = ""
    if size not in (None, path.stat().st_size):
        fault = f"{path.stat().st_size:,} bytes, expected {size:,}"
    elif expected and (found := sha256_of(path)) != expected:
        origin = "" if sha256 else " as it was downloaded"
        fault = f"SHA-256 {found[:12]}..., expected {expected[:12]}...{origin}"
    if fault:
        raise DatasetError(f"{path}: {fault}; delete the file, and it is downloaded again, or give path= of a copy")


def _noted_sum(path: Path) -> str | None:
    try:
        found = re.match(r"[0-9a-f]{64}\b", _sum_file(path).read_text("ascii"))
    except (OSError, ValueError):
        return None
    return found and found[0]


def _sum_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")
