"""One call that reads a file of any known format into a checked `Dataset`.

The format is told by what the file holds, never by its name, and nothing in it is run: no pickle, no environment that
a file names, no value from outside the file. Formats and their rules: `safejax.data.formats`; what is derived:
`safejax.data.columns`; what is refused: `safejax.data.checks`; what is allowed but noted: `safejax.data.notes`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import h5py
import jax
import numpy as np

from safejax.data.checks import Columns, check_columns, refuse
from safejax.data.columns import flat_scalars, with_successors, with_timeouts
from safejax.data.dataset import Dataset, assemble
from safejax.data.formats import flat, minari, ogbench
from safejax.data.formats.hdf5 import open_hdf5
from safejax.data.formats.storage import HDF5_SIGNATURE, MAX_BYTES, ZIP_SIGNATURE, Contents, Limit, incomplete
from safejax.data.memory import available_bytes, host_bytes
from safejax.data.notes import notes_on, successor_mismatch
from safejax.types import check_choice, check_range

REPAIRS = ("terminal_wins",)
REQUIRED = ("observations", "actions", "rewards", "costs", "terminals", "timeouts")
SHOWN_KEYS = 12
WHILE_READING = 6
"""Bytes of memory that reading may take for each that a file declares: copies, float32, next observations."""
NO_SUCCESSORS = "no row has a successor: every episode is one step long and was cut off."
ADVICE = {
    "rewards": 'For data without rewards, to be relabelled, pass rewards="zero".',
    "costs": 'A safe algorithm needs a cost per step. For plain offline RL pass costs="zero".',
    "timeouts": "Pass episode_length=, the steps after which the world stops.",
}


def read(
    path: str | os.PathLike,
    *,
    costs: Literal["zero"] | None = None,
    rewards: Literal["zero"] | None = None,
    clip_actions: bool = False,
    repair: Collection[str] = (),
    episode_length: int | None = None,
    max_bytes: int | None = None,
) -> tuple[Dataset, dict[str, Any]]:
    """Read a DSRL or D4RL HDF5 file, a Minari directory or an OGBench npz file.

    Args:
      path: a file, or Minari's directory of one data set.
      costs: "zero" stands in for costs that the file has not; otherwise a file without is refused.
      rewards: the same for rewards, which OGBench's files have not.
      clip_actions: clip actions to [-1, 1]; otherwise more than 1e-5 outside is refused.
      repair: "terminal_wins" keeps rows that are both terminal and timeout as terminal; otherwise refused.
      episode_length: environment steps after which an episode that the file does not end counts as timed out; for
        files without timeouts.
      max_bytes: a file that declares more is refused before anything is read; by default a sixth of what the device
        and the host have left, and at most 32 GiB.

    Returns:
      The checked data set; and what the file says of itself, with "format" and "notes" added: a list of sentences on
      what was converted, derived, repaired or dropped. Notes of an earlier reading, which a file kept, come first.

    Raises:
      DatasetError: one line with the file and every fault found in it.
      ValueError: an option that is none.

    Warns:
      UserWarning: next observations that are not the next row's observations; also in the notes.
    """
    for name, value in {"costs": costs, "rewards": rewards}.items():
        if value is not None:
            check_choice(name, value, ("zero",))
    repair = (repair,) if isinstance(repair, str) else tuple(repair)
    for name in repair:
        check_choice("repair", name, REPAIRS)
    if episode_length is not None:
        if isinstance(episode_length, bool) or not isinstance(episode_length, int | np.integer):
            raise ValueError(f"episode_length is {episode_length!r}, expected a whole number of steps")
        check_range("episode_length", episode_length, 1)
    limit = _limit(max_bytes)

    path = Path(path)
    try:
        held = _open(path, limit)
    except OSError as error:
        refuse(
            path, [f"cannot be opened ({error.strerror or type(error).__name__}). Check the path and its permissions."]
        )
    columns, faults, notes = flat_scalars(held.columns), list(held.faults), list(held.notes)
    given = {"costs": costs, "rewards": rewards, "timeouts": episode_length}
    absent = [name for name in REQUIRED if name not in (*held.keys, *held.implied)]
    faults += _missing([name for name in absent if given.get(name) is None], held.keys)
    _fill(columns, [name for name in absent if given.get(name) is not None], notes)
    faults += endless(columns, episode_length)
    if "terminal_wins" in repair:
        _let_terminals_win(columns, notes)
    if clip_actions:
        _clip(columns, notes)
    check_columns(columns, path, faults)

    if episode_length is not None:
        columns, count = with_timeouts(columns, episode_length)
        notes.append(f"episode_length={episode_length}: {count} timeouts set.")
    notes += notes_on(columns)
    columns = _with_successors(columns, path, notes)
    earlier = held.attributes.get("notes")
    earlier = earlier if isinstance(earlier, list) else []
    notes = [*earlier, *(note for note in notes if note not in earlier)]
    return assemble(columns), {**held.attributes, "format": held.format, "notes": notes}


def read_dsrl(path: str | os.PathLike) -> tuple[Dataset, dict[str, Any]]:
    """`read` without options, the counterpart of `write_dsrl`."""
    return read(path)


def _limit(max_bytes: int | None) -> Limit:
    """The caller's, or what the memory has room for."""
    if max_bytes is not None:
        check_range("max_bytes", max_bytes, 0)
        return Limit(max_bytes)
    left = min((count for count in (available_bytes(), host_bytes()) if count is not None), default=None)
    return Limit(MAX_BYTES) if left is None else Limit(min(left // WHILE_READING, MAX_BYTES), left)


def _open(path: Path, limit: Limit) -> Contents:
    """What the file holds, by the reader that its first bytes and its layout call for."""
    if path.is_dir():
        main = minari.main_file(path)
        if main is None:
            words = "Of Minari's data only that in HDF5 is read, data/main_data.hdf5."
            refuse(path, ["a directory without Minari's data.", words])
        path = main
    if not path.is_file():
        refuse(path, ["no such file. Check the path or download it first."])
    with path.open("rb") as file:
        head = file.read(len(HDF5_SIGNATURE))
    if head == HDF5_SIGNATURE or h5py.is_hdf5(path):
        with open_hdf5(path) as file:
            return minari.contents(file, path, limit) if minari.is_minari(file) else flat.contents(file, limit)
    if head.startswith(ZIP_SIGNATURE):
        return ogbench.contents(path, limit)
    incomplete(path, "HDF5 or npz")


def _fill(columns: Columns, names: list[str], notes: list[str]) -> None:
    """Zeros for what the file has not and the caller stands in for."""
    for name in names if "observations" in columns else ():
        columns[name] = np.zeros(len(jax.tree.leaves(columns["observations"])[0]), np.float32)
        if name != "timeouts":
            notes.append(f"{name}: none in the file, all set to 0.")


def _missing(names: list[str], keys: tuple[str, ...]) -> list[str]:
    if not names:
        return []
    advice = [ADVICE[name] for name in names if name in ADVICE]
    shown = ", ".join(keys[:SHOWN_KEYS]) + (" ..." if len(keys) > SHOWN_KEYS else "")
    return [f"no {', '.join(map(repr, names))}.", *advice, f"Keys found: {shown or 'none'}."]


def endless(columns: Columns, episode_length: int | None = None) -> list[str]:
    """The fault of a file that ends no episode, where nothing says how long they are."""
    flags = [columns[name] for name in ("terminals", "timeouts") if name in columns]
    if episode_length is not None or len(flags) < 2 or not len(flags[0]) or any(np.any(flag) for flag in flags):
        return []
    return ["no terminals and no timeouts: pass episode_length=."]


def _let_terminals_win(columns: Columns, notes: list[str]) -> None:
    flags = [columns.get(name) for name in ("terminals", "timeouts")]
    if flags[0] is not None and flags[1] is not None and flags[0].shape == flags[1].shape:
        both = (flags[0] != 0) & (flags[1] != 0)
        columns["timeouts"] = np.where(both, np.zeros_like(flags[1]), flags[1])
        notes.append(f"{both.sum()} rows both terminal and timeout are kept as terminal.")


def _clip(columns: Columns, notes: list[str]) -> None:
    actions = columns.get("actions")
    if actions is not None and actions.dtype.kind == "f":
        # what is not finite stays so and is refused
        columns["actions"] = np.where(np.isfinite(actions), np.clip(actions, -1, 1), actions)
        notes.append(f"actions: {(np.abs(actions) > 1).sum()} values clipped to [-1, 1].")


def _with_successors(columns: Columns, path: Path, notes: list[str]) -> Columns:
    """The columns with next observations, held or derived."""
    if "next_observations" in columns:
        if mismatch := successor_mismatch(columns):
            notes.append(mismatch)
            warnings.warn(f"{path}: {mismatch}", stacklevel=3)
        return columns
    derived, count = with_successors(columns), len(columns["rewards"])
    dropped = count - len(derived["rewards"])
    if dropped:
        notes.append(f"{dropped} rows that were cut off have no next observation and are dropped.")
    if dropped == count:
        refuse(path, [NO_SUCCESSORS])
    return derived
