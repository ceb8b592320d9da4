"""By what data are known again: a file by its content, for tomorrow the same path may hold others; or by its recipe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safejax.data.checksums import sha256_of
from safejax.data.formats import minari


def data_sum(path: Path) -> str:
    """SHA-256 of a data set's file; of a folder of Minari's, that of the file with its values."""
    return sha256_of(minari.main_file(path) or path if path.is_dir() else path)


def recipe_digest(recipe: Mapping[str, Any]) -> str:
    """12 hexadecimal digits for the name of a file that is made by `recipe`, whose values are JSON's."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
