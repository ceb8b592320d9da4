"""What logged data must satisfy, and the words for each fault: a sentence each, all of them in one error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jax
import numpy as np

SCALAR_KEYS = ("rewards", "costs", "terminals", "timeouts")
KEYS = ("observations", "next_observations", "actions", *SCALAR_KEYS)
ACTION_TOLERANCE = 1e-5
NO_ROWS = "no rows, expected at least one transition. Collect or download the data again."

Columns = dict[str, Any]
"""Under names of KEYS, arrays with one row a step; observations may be pytrees of such arrays."""


class DatasetError(ValueError):
    """Data that cannot be trusted: one line with the file, what was found, what was expected, what to do."""


def refuse(source: Any, faults: Sequence[str]) -> NoReturn:
    """Raise the one `DatasetError` that names every fault, in one line fit for a terminal."""
    raise DatasetError(printable(f"{source}: {' '.join(faults)}"))


def printable(text: str) -> str:
    """`text` in one line, control characters escaped: what a file says of itself may hold anything."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def to_stored(array: Any) -> np.ndarray:
    """Observations and actions as a data set keeps them: pixels stay uint8, everything else becomes float32."""
    array = np.asarray(array)
    with np.errstate(over="ignore"):  # what overflows becomes inf, which the checks report by row
        return array if array.dtype == np.uint8 else array.astype(np.float32)


def leaves(columns: Columns) -> dict[str, np.ndarray]:
    """Every array in the order of KEYS; parts of structured observations as observations['pixels']."""
    return {
        name + jax.tree_util.keystr(path): np.asarray(leaf)
        for name in KEYS
        if name in columns
        for path, leaf in jax.tree_util.tree_leaves_with_path(columns[name])
    }


def check_columns(columns: Columns, source: Any, faults: Sequence[str] = ()) -> None:
    """Refuse columns that do not make up a data set.

    Args:
      columns: what there is; a fault for what is missing is the caller's.
      source: what the message calls the data.
      faults: what was found before.

    Raises:
      DatasetError: naming every fault; values are looked at wherever dtype and shape are right.
    """
    named = leaves(columns)
    wrong = {name: fault for name, array in named.items() if (fault := _shape_fault(name, array, named))}
    sound = {name: array for name, array in named.items() if name not in wrong}
    found = [*faults, *wrong.values(), *length_faults(sound), *_part_faults(columns), *_value_faults(sound)]
    if found or not named:
        refuse(source, found or [NO_ROWS])


def column_fault(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> str:
    """'' or the fault of a column whose rows hold no real numbers, or nothing."""
    if dtype.kind not in "fiub":
        return f"{name}: dtype {str(dtype).lstrip('<>|=')}, expected a real number."
    return f"{name} are {dtype}{list(shape)}, expected at least one number a row." if 0 in shape[1:] else ""


def _shape_fault(name: str, array: np.ndarray, named: dict[str, np.ndarray]) -> str:
    expected, kind, shape = "", array.dtype.kind, list(array.shape)
    if fault := column_fault(name, array.dtype, array.shape):
        return fault
    if name in SCALAR_KEYS:
        expected = "" if array.ndim == 1 else "[N] or [N, 1]"
    elif name == "actions":
        right = {1: "iu", 2: "f"}.get(array.ndim, "")
        expected = "" if kind in tuple(right) else "float [N, A] or integer [N]"
    else:
        twin = named.get(name.removeprefix("next_"), array)
        same = twin.shape[1:] == array.shape[1:]
        expected = ("" if array.ndim >= 2 else "[N, O]") if same else f"{list(twin.shape[1:])} a row, as observations"
        if same and (twin.dtype == np.uint8) != (array.dtype == np.uint8):  # pictures, and 0 to 1 would pass as black
            expected = f"{twin.dtype}, as observations"
    return expected and f"{name} are {array.dtype}{shape}, expected {expected}."


def length_faults(sound: Mapping[str, Any]) -> list[str]:
    """Of columns, arrays or unread ones, that have no rows or not as many as the first."""
    first = next(iter(sound), "")
    count = len(sound[first]) if sound else 0
    if sound and not any(map(len, sound.values())):
        return [NO_ROWS]
    return [f"{name} has {len(array)} rows, {first} {count}." for name, array in sound.items() if len(array) != count]


def flag_faults(name: str, flags: np.ndarray, first: Callable[[np.ndarray], str]) -> list[str]:
    """Of flags that are no flags; `first` names the first row where its argument is true."""
    bad = (flags != 0) & (flags != 1)
    return [f"{name}: {bad.sum()} values neither 0 nor 1, first at {first(bad)}. Store 0 or 1."] if bad.any() else []


def _part_faults(columns: Columns) -> list[str]:
    """Of structured observations whose parts are not those of the next observations."""
    if not {"observations", "next_observations"} <= columns.keys():
        return []
    first, second = (jax.tree.structure(columns[name]) for name in ("observations", "next_observations"))
    return [] if first == second else [f"next_observations are {second}, observations {first}. Give both the same."]


def part_name_fault(observation: Any) -> str:
    """'' or the fault of structured observations with a part whose name no file can hold as it is."""
    for name in observation if isinstance(observation, dict) else ():
        if not (isinstance(name, str) and name.isprintable() and "/" not in name and name.strip(".")):
            return f"observations have a part called {name!r}, expected printable text without / that is not dots."
    return ""


def _value_faults(sound: dict[str, np.ndarray]) -> list[str]:
    faults = []
    terminals, timeouts, actions, costs = (sound.get(n) for n in ("terminals", "timeouts", "actions", "costs"))
    flags_fit = terminals is not None and timeouts is not None and len(terminals) == len(timeouts)
    last = (terminals != 0) | (timeouts != 0) if flags_fit else np.zeros(0, bool)

    def place(row: int) -> str:
        if row >= len(last):
            return f"row {row}"
        ends = np.flatnonzero(last[:row])
        return f"row {row} (episode {len(ends)}, step {row - (ends[-1] + 1 if len(ends) else 0)})"

    def first(bad: np.ndarray) -> str:
        return place(int(np.argmax(bad.any(axis=tuple(range(1, bad.ndim))))))

    for name, array in sound.items():
        if array.dtype.kind == "f" and (bad := ~np.isfinite(to_stored(array))).any():
            words = "values too large for float32" if np.isfinite(array).all() else "non-finite values"
            faults.append(f"{name}: {bad.sum()} {words}, first at {first(bad)}.")
    for name, flags in (("terminals", terminals), ("timeouts", timeouts)):
        faults += [] if flags is None else flag_faults(name, flags, first)
    if actions is not None and actions.ndim == 2 and actions.size:
        magnitude = np.where(np.isfinite(actions), np.abs(actions), 0)
        if (bad := magnitude > 1 + ACTION_TOLERANCE).any():
            row, column = np.unravel_index(np.argmax(magnitude), magnitude.shape)
            worst = f"worst {actions[row, column]:g} at row {row}"
            advice = "Rescale them, or pass clip_actions=True to read to clip."
            faults.append(f"actions: {bad.sum()} values outside [-1, 1], {worst}. {advice}")
    elif actions is not None and (bad := actions < 0).any():
        faults.append(f"actions: {bad.sum()} negative action numbers, first at {first(bad)}. Count actions from 0.")
    elif actions is not None and (bad := actions > np.iinfo(np.int32).max).any():
        faults.append(f"actions: {bad.sum()} action numbers beyond int32, first at {first(bad)}. Number them from 0.")
    if costs is not None and (bad := costs < 0).any():
        found = f"costs: minimum {np.nan_to_num(costs).min():g}, {bad.sum()} below 0, first at {first(bad)}."
        faults.append(f"{found} Costs must be >= 0; rewards may have been stored with the sign turned.")
    if flags_fit and (bad := (terminals != 0) & (timeouts != 0)).any():
        advice = 'Clear the timeouts there; read does with repair="terminal_wins".'
        faults.append(f"{bad.sum()} rows are both terminal and timeout, first at {first(bad)}. {advice}")
    return faults
