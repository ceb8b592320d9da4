"""By what a run knows its data again: tomorrow the same path may hold others."""

from __future__ import annotations

from pathlib import Path

from safejax.data.checksums import sha256_of
from safejax.data.formats import minari


def data_sum(path: Path) -> str:
    """SHA-256 of a data set's file; of a folder of Minari's, that of the file with its values."""
    return sha256_of(minari.main_file(path) or path if path.is_dir() else path)
