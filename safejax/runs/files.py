"""The small files of a run directory: written so that a power cut leaves them whole, read so that damage is named."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safejax.runs.errors import RunError

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def room_needed(directory: Path) -> Iterator[None]:
    """A disk that is full while files of the run `directory` are written is a `RunError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise RunError(
            f"{directory}: a write failed ({error.strerror}); make room and run it again, it goes on after the last "
            "chunk that was saved"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON in one rename."""
    _write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is no such file.

    Raises:
      ValueError: what is there is no JSON object; says what it is.
    """
    try:
        return _object(path.read_bytes())
    except FileNotFoundError:
        return None


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line of JSON; it is on the disk when this returns."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def write_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Replace all lines in one rename."""
    _write_text(path, "".join(json.dumps(record) + "\n" for record in records))


def read_records(path: Path) -> list[dict[str, Any]]:
    """The JSON object of every line; a last line that a kill cut short is left out.

    Raises:
      RunError: naming the first other line that is none.
    """
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(_object(line))
        except ValueError as error:
            if number == len(lines):  # no newline follows
                break
            raise RunError(
                f"{path}: line {number} is damaged ({error}), expected a JSON object; put a copy of the file back, or "
                "choose another --output"
            ) from None
    return records


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__}")
    return value


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(f".partial-{path.name}")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # else a power cut after the rename may leave the new name without content
    os.replace(partial, path)
