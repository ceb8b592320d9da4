"""What is allowed in a data set and yet worth knowing: a sentence each."""

from __future__ import annotations

import jax
import numpy as np

from safejax.data.checks import SCALAR_KEYS, Columns, leaves
from safejax.data.columns import last_rows

SLAB = 65_536  # rows compared at a time
DEVIATION_FLOOR = 1e-3


def notes_on(columns: Columns) -> list[str]:
    """Sentences about columns that passed `check_columns`, before anything is derived."""
    return [*_conversions(columns), *_constants(columns), *_tail(columns)]


def successor_mismatch(columns: Columns) -> str:
    """'' or with which share of the rows inside episodes next observations are not the next row's observations."""
    inside = np.flatnonzero(~last_rows(columns))
    pairs = list(zip(*(jax.tree.leaves(columns[name]) for name in ("next_observations", "observations")), strict=True))
    differing = 0
    for start in range(0, len(inside), SLAB):
        rows = inside[start : start + SLAB]
        wrong = np.zeros(len(rows), bool)
        for following, observation in pairs:
            near = np.isclose(following[rows], observation[rows + 1], rtol=1e-4, atol=1e-6)
            wrong |= ~near.reshape(len(rows), -1).all(axis=1)
        differing += int(wrong.sum())
    if not differing:
        return ""
    share = f"on {differing / len(inside):.1%} of the rows inside episodes"
    return f"next_observations are not the next row's observations {share}."


def _conversions(columns: Columns) -> list[str]:
    kept = ("float32", "float16", "uint8", "bool")
    wide = {name: array.dtype.name for name, array in leaves(columns).items() if array.dtype.name not in kept}
    wide = {name: dtype for name, dtype in wide.items() if name not in ("terminals", "timeouts")}
    wide |= {name: "uint8" for name in ("rewards", "costs") if columns[name].dtype == np.uint8}  # pictures stay bytes
    if columns["actions"].dtype.kind in "iu":
        wide.pop("actions", None)
    by_dtype = {dtype: [name for name in wide if wide[name] == dtype] for dtype in sorted(set(wide.values()))}
    return [f"{', '.join(names)}: {dtype} kept as float32." for dtype, names in by_dtype.items()]


def _constants(columns: Columns) -> list[str]:
    """Features that a normaliser must not divide by."""
    found = []
    for name, array in leaves(columns).items():
        if name in SCALAR_KEYS or name.startswith("next_") or array.ndim != 2 or array.dtype == np.uint8:
            continue
        constant = np.flatnonzero((array == array[:1]).all(axis=0))
        if len(constant) and len(array) > 1:
            shown = ", ".join(map(str, constant[:8])) + (" ..." if len(constant) > 8 else "")
            advice = f"To normalise, divide by at least {DEVIATION_FLOOR:g}"
            found.append(f"{name}: {len(constant)} of {array.shape[1]} features never vary ({shown}). {advice}.")
    return found


def _tail(columns: Columns) -> list[str]:
    ends = np.flatnonzero((columns["terminals"] != 0) | (columns["timeouts"] != 0))
    count = len(columns["rewards"]) - (ends[-1] + 1 if len(ends) else 0)
    count -= "next_observations" not in columns  # the last row has no successor and is dropped
    return [f"unfinished tail of {count} rows is kept as a truncated episode."] if count > 0 else []
