"""Checkpoints: `save`, `restore`, `warm_start` (the bridge from offline to online) and their rotation.

A checkpoint is a directory. `arrays-<id>/` holds the arrays of a state, written by Orbax under their dotted
paths; `metadata.json` names that folder and holds shapes, dtypes, checksums, configuration and versions.
Replacing `metadata.json` is the one act that commits: a process killed at any time leaves the old checkpoint
or the new one. Orbax by itself restores flipped bits and casts dtypes without a word, hence the checks here.
Nothing is pickled, and one process at a time writes to a directory.
"""

from safejax.checkpoint.bridge import warm_start
from safejax.checkpoint.description import metadata
from safejax.checkpoint.directory import restore, save
from safejax.checkpoint.errors import CheckpointError, DamagedCheckpointError, NonFiniteStateError
from safejax.checkpoint.rotation import Checkpoints

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "DamagedCheckpointError",
    "NonFiniteStateError",
    "metadata",
    "restore",
    "save",
    "warm_start",
]
