"""Recorded episodes of the original simulators, as the Views that a task of ours reads.

A recording is an npz file with a json file beside it that names its environment (`env_id`) and suite. Row-wise arrays
have one row per environment step: `episode`, `step` from 1, `action` as passed to the simulator, all else after the
step; `reset_*` and `spawn_*` have one row per episode. Bullet's quaternions are x, y, z, w.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from safejax import envs
from safejax.envs.tasks import View

_BODY = ("base_pos", "base_quat", "base_linvel", "base_angvel", "joint_vel")


class Recording(NamedTuple):
    """Episodes of one task; Views are float64 NumPy, [rows, ...] or, of `start`, [episodes, ...]."""

    task: str
    rows: dict[str, np.ndarray]
    before: View  # each step's beginning; of a Bullet run's first step, the spawn
    after: View
    start: View  # after each episode's reset

    def index(self) -> np.ndarray:
        """Which episode each row belongs to [rows]."""
        return np.searchsorted(self.rows["episode_id"], self.rows["episode"])


def find(directory: Path) -> list[Path]:
    """The npz files below `directory` that have a sidecar, sorted."""
    return sorted(path for path in directory.rglob("*.npz") if path.with_suffix(".json").is_file())


def read(path: Path) -> Recording | None:
    """The recording at `path`, or None if it is none, or of a task that is not here."""
    try:
        about = json.loads(path.with_suffix(".json").read_text())
    except ValueError:
        return None
    task = task_of(about) if isinstance(about, dict) else None
    if task is None:
        return None
    with np.load(path) as file:
        rows = {name: file[name] for name in file.files}
    if not {"episode", "step", "action", "observation", "reward", "cost"} <= set(rows):
        return None
    view = _body_view if about["suite"] == "bullet" else _joint_view
    begins = rows["step"] == 1
    index = np.searchsorted(rows["episode_id"], rows["episode"])

    def before(name: str) -> np.ndarray:
        first = "spawn_base_pos" if name == "base_pos" else f"reset_{name}"
        shifted = np.concatenate([rows[name][:1], rows[name][:-1]])
        return np.where(begins[:, None], rows[first][index], shifted)

    names = [name for name in (*_BODY, "qpos", "qvel") if name in rows]
    return Recording(
        task,
        rows,
        view({name: before(name) for name in names}),
        view({name: rows[name] for name in names}),
        view({name: rows[f"reset_{name}"] for name in names}),
    )


def task_of(about: dict[str, Any]) -> str | None:
    """Our name of the sidecar's environment: SafetyBallRun-v0 of Bullet is ball_run. None if we have no such task."""
    found = re.fullmatch(r"Safety(\w+?)-v\d", str(about.get("env_id")))
    if found is None or about.get("suite") not in ("bullet", "safety_gymnasium"):
        return None
    name = re.sub(r"(?<=[a-z\d])(?=[A-Z])", "_", found[1]).lower()
    return name if name in envs.names() else None


def _joint_view(parts: dict[str, np.ndarray]) -> View:
    return _view(parts["qpos"], parts["qvel"])


def _body_view(parts: dict[str, np.ndarray]) -> View:
    position, quaternion, velocity, turn = (np.asarray(parts[name], np.float64) for name in _BODY[:4])
    scalar, axis = quaternion[..., 3:], -quaternion[..., :3]
    twice = 2 * np.cross(axis, turn)
    in_body = turn + scalar * twice + np.cross(axis, twice)
    joints = [np.asarray(parts["joint_vel"], np.float64)] if "joint_vel" in parts else []
    qpos = np.concatenate([position, scalar, quaternion[..., :3], *(0 * joint for joint in joints)], axis=-1)
    return _view(qpos, np.concatenate([velocity, in_body, *joints], axis=-1))


def _view(qpos: np.ndarray, qvel: np.ndarray) -> View:
    none = np.zeros((len(qpos), 0))
    return View(np.asarray(qpos, np.float64), np.asarray(qvel, np.float64), none, none, none)  # type: ignore[arg-type]
