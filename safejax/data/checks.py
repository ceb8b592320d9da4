"""What logged data must satisfy, and the words for each fault."""

from __future__ import annotations

from typing import Any

import numpy as np

SCALAR_KEYS = ("rewards", "costs", "terminals", "timeouts")
KEYS = ("observations", "next_observations", "actions", *SCALAR_KEYS)
ACTION_TOLERANCE = 1e-5


class DatasetError(ValueError):
    """Data that cannot be trusted: one line with the file, what was found, what was expected, what to do."""


def to_stored(array: Any) -> np.ndarray:
    """As a data set keeps it: pixels stay uint8, everything else becomes float32."""
    array = np.asarray(array)
    with np.errstate(over="ignore"):  # what overflows becomes inf, which the checks report by row
        return array if array.dtype == np.uint8 else array.astype(np.float32)


def check_arrays(named: dict[str, np.ndarray], source: str) -> None:
    """Refuse arrays that do not make up a data set.

    Args:
      named: arrays under the names in KEYS; leaves of structured observations under names that begin so.
      source: what the message calls the data.

    Raises:
      DatasetError: naming every fault; values are looked at once the shapes are right.
    """
    faults = _shape_faults(named) or _value_faults(named)
    if faults:
        raise DatasetError(f"{source}: {'; '.join(faults)}")


def _shape_faults(named: dict[str, np.ndarray]) -> list[str]:
    faults = []
    first = next(name for name in named if name.startswith("observations"))
    count = len(named[first]) if named[first].ndim else 0
    for name, array in named.items():
        expected = _expected(name, array, named)
        if expected:
            faults.append(f"{name} are {array.dtype}{list(array.shape)}, expected {expected}")
        elif len(array) != count:
            faults.append(f"{name} has {len(array)} rows, {first} {count}; give every key one row a step")
    if not faults and count == 0:
        faults.append("no rows, expected at least one transition; collect or download the data again")
    return faults


def _expected(name: str, array: np.ndarray, named: dict[str, np.ndarray]) -> str:
    """'' or what `array` should be."""
    if array.dtype.kind not in "fiub":
        return "real numbers"
    if name in SCALAR_KEYS:
        return "" if array.ndim == 1 else "[N] or [N, 1]"
    if name == "actions":
        right = ("iu", "f")[array.ndim - 1] if array.ndim in (1, 2) else ""
        return "" if array.dtype.kind in tuple(right) else "float [N, A] or integer [N]"
    twin = named.get(name.removeprefix("next_"), array)
    if twin.shape[1:] != array.shape[1:]:
        return f"{list(twin.shape[1:])} a row, as observations"
    return "" if array.ndim >= 2 else "[N, O]"


def _value_faults(named: dict[str, np.ndarray]) -> list[str]:
    faults = []
    terminals, timeouts, actions, costs = (named[n] for n in ("terminals", "timeouts", "actions", "costs"))
    last = (terminals != 0) | (timeouts != 0)

    def refuse(bad: np.ndarray, *, found: str, advice: str) -> None:
        if not bad.any():
            return
        row = int(np.argmax(bad.any(axis=tuple(range(1, bad.ndim)))))
        ends = np.flatnonzero(last[:row])
        step = row - (ends[-1] + 1 if len(ends) else 0)
        faults.append(f"{found.format(bad.sum())}, first at row {row} (episode {len(ends)}, step {step}); {advice}")

    for name, array in named.items():
        bad = ~np.isfinite(to_stored(array))
        refuse(bad, found=name + ": {} non-finite values", advice="drop those episodes")
    for name in ("terminals", "timeouts"):
        bad = (named[name] != 0) & (named[name] != 1)
        refuse(bad, found=name + ": {} values neither 0 nor 1", advice="store 0 or 1")
    if actions.ndim == 2:
        magnitude = np.max(np.abs(np.nan_to_num(actions)), axis=1, initial=0)
        found = f"actions: {{}} rows outside [-1, 1], by up to {magnitude.max():g}"
        refuse(magnitude > 1 + ACTION_TOLERANCE, found=found, advice="rescale them")
    else:
        refuse(actions < 0, found="actions: {} negative action numbers", advice="count actions from 0")
    found = f"costs: {{}} values below 0, least {np.nan_to_num(costs).min():g}"
    refuse(costs < 0, found=found, advice="rewards may have been stored with the sign turned")
    both = (terminals != 0) & (timeouts != 0)
    refuse(both, found="{} rows are both terminal and timeout", advice="clear the timeouts there")
    return faults
