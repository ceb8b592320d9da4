"""What can be wrong with a checkpoint, one line each."""

from __future__ import annotations

from pathlib import Path


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read: one line with the path, what was found and what to do."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose files are missing, cut short or altered; an older one may still be whole."""

    def __init__(self, path: Path, found: str):
        super().__init__(f"{path}: {found}; restore an older checkpoint or a copy")


class NonFiniteStateError(CheckpointError, FloatingPointError):
    """A state with NaN or infinity in it, which was not saved."""


def first_line(error: BaseException) -> str:
    """The first line of what `error` says, or its kind if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
