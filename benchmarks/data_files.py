"""Small data files in the layouts of DSRL, D4RL, Minari and OGBench, built with h5py and NumPy alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

ROWS = 7


def columns(count: int = ROWS, terminals: Any = (2,), timeouts: Any = (5,), seed: int = 0) -> dict[str, np.ndarray]:
    """Good columns: of 7 rows an episode of 3 (terminated), one of 3 (timeout) and an unfinished tail of 1."""
    random, row = np.random.default_rng(seed), np.arange(count)
    ends = np.isin(row, terminals) | np.isin(row, timeouts)
    observations, beyond = random.normal(size=(2, count, 3)).astype(np.float32)
    return {
        "observations": observations,
        "next_observations": np.where(ends[:, None], beyond, np.vstack([observations[1:], beyond[-1:]])),
        "actions": random.uniform(-1, 1, size=(count, 2)).astype(np.float32),
        "rewards": row.astype(np.float32),
        "costs": (row % 2).astype(np.float32),
        "terminals": np.isin(row, terminals),
        "timeouts": np.isin(row, timeouts),
    }


def with_value(key: str, row: int, value: float) -> dict[str, np.ndarray]:
    """The column `key` with `value` in one row, float64."""
    column = columns()[key].astype(np.float64)
    column[row] = value
    return {key: column}


def write(path: Path, held: Mapping[str, Any]) -> Path:
    """A flat HDF5 file as a stranger would write it; None leaves a key out."""
    with h5py.File(path, "w") as file:
        for key, value in held.items():
            if value is not None:
                file[key] = value
    return path


def flat(**changes: Any) -> Callable[[Path], Path]:
    """Builds DSRL's layout with some columns changed, or left out by None."""
    return lambda folder: write(folder / "car.hdf5", {**columns(), **changes})


def minari_episodes() -> list[dict[str, Any]]:
    """Two episodes as Minari stores them: 3 steps to a termination and 2 to a truncation, costs from the reset on."""
    random, episodes = np.random.default_rng(0), []
    for terminated, count in ((True, 3), (False, 2)):
        ends = np.arange(count) == count - 1
        episodes.append(
            {
                "observations": random.normal(size=(count + 1, 3)).astype(np.float32),
                "actions": random.uniform(-1, 1, (count, 2)).astype(np.float32),
                "rewards": np.arange(count, dtype=np.float32),
                "terminations": ends & terminated,
                "truncations": ends & (not terminated),
                "infos/cost": 10.0 * np.arange(count + 1, dtype=np.float32),
            }
        )
    return episodes


def minari(
    metadata: Any = None, first: Mapping[str, Any] | None = None, every: Mapping[str, Any] | None = None
) -> Callable[[Path], Path]:
    """Builds Minari's directory with some columns of the first or every episode changed, or left out by None."""

    def build(folder: Path) -> Path:
        data = folder / "car" / "data"
        data.mkdir(parents=True)
        episodes = minari_episodes()
        episodes = [episode | dict(every or {}) for episode in episodes]
        episodes[0] |= dict(first or {})
        held = {f"episode_{k}/{name}": values for k, part in enumerate(episodes) for name, values in part.items()}
        write(data / "main_data.hdf5", held)
        (data / "metadata.json").write_text(
            metadata or json.dumps({"dataset_id": "car/test-v0", "data_format": "hdf5"})
        )
        return folder / "car"

    return build


def ogbench_columns() -> dict[str, np.ndarray]:
    """Two trajectories as OGBench stores them, of 4 and 3 states; a 1 marks the last state."""
    states = np.arange(7, dtype=np.float32)
    observations = np.stack([states, states**2, -states], axis=1)
    actions = np.tile(np.array([[0.5, -0.5]], np.float32), (7, 1))
    return {"observations": observations, "actions": actions, "terminals": np.isin(states, (3, 6))}


def npz(**changes: Any) -> Callable[[Path], Path]:
    """Builds OGBench's layout with some arrays changed, or left out by None."""

    def build(folder: Path) -> Path:
        held = {name: array for name, array in {**ogbench_columns(), **changes}.items() if array is not None}
        np.savez_compressed(folder / "maze.npz", **held)
        return folder / "maze.npz"

    return build
