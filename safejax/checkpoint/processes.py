"""Saving when several processes share the devices: all gather, process 0 writes, all leave together.

Every host holds the whole state for a moment, which suits networks and replay of this size; what is on disk, and its
checksums, are those of one process. The directory must be one that process 0 can write and all can read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from safejax.checkpoint.errors import CheckpointError


def whole(leaf: Any) -> np.ndarray:
    """All values of an array; those of an array spread over processes come from each of them."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


def on_the_first(write: Callable[[], None]) -> None:
    """Run `write` on process 0; no process returns before it is done.

    Raises:
      CheckpointError: on every process, where `write` failed.
    """
    if jax.process_count() == 1:
        return write()
    error = None
    if jax.process_index() == 0:
        try:
            write()
        except Exception as caught:
            error = caught
    failed = multihost_utils.broadcast_one_to_all(np.array(error is not None))
    if error is not None:
        raise error
    if failed:
        raise CheckpointError("process 0 could not save; its message says why")
