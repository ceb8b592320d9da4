"""Recorded episodes of the original simulators, as the Views that a task of ours reads.

A recording is an npz file with a json file beside it that names its environment (`env_id`) and suite. Row-wise arrays
have one row per environment step: `episode`, `step` from 1, `action` as passed to the simulator, all else after the
step; `reset_*` and `spawn_*` have one row per episode. Bullet's quaternions are x, y, z, w. What a task reads beyond
positions and velocities is no part of a recording: MuJoCo's C library makes it of the state before each step, as far
behind the state after it as the original read it (the last stage of the integrator).
"""

# pyright: reportAttributeAccessIssue=false
# (the names of the compiled mujoco module are not declared)

from __future__ import annotations

import json
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import mujoco
import numpy as np
from navigation_recordings import is_navigation
from navigation_recordings import views as navigation_views
from offline_to_online import stop

from safejax import envs
from safejax.envs.engines.base import load_model
from safejax.envs.tasks import Task, View, car

ACTION_BOUNDS = {"humanoid_velocity": 0.4, **dict.fromkeys(("racecar_goal1", "racecar_goal2"), (20.0, 0.785))}
"""Task -> the largest action of the original, where it is not 1; ours is."""

_BODY = ("base_pos", "base_quat", "base_linvel", "base_angvel", "joint_vel", "joint_pos", "motor")
_CAR_STEERING = [0, 2]  # the joints of the two front wheels
_CAR_TIMESTEP = {"car_run": car.RUN_WORLD.timestep, "car_circle": car.CIRCLE_WORLD.timestep}


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
    """The recording at `path`, or None if it is none, or of a task that is not here.

    Stops the program, with one line, where the sidecar names a task and the file is damaged or lacks an array.
    """
    try:
        about = json.loads(path.with_suffix(".json").read_text())
    except ValueError:
        return None
    task = task_of(about) if isinstance(about, dict) else None
    if task is None:
        return None
    try:
        with path.open("rb") as file, np.load(file) as arrays:  # np.load would leave a damaged file open
            rows = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        stop(
            f"{path} is no npz file or damaged, though its sidecar names {about['env_id']}; record it again or move it"
        )
    if not {"episode", "step", "action", "observation", "reward", "cost"} <= set(rows):
        return None
    try:
        return recording_of(task, about["suite"], rows)
    except KeyError as missing:
        stop(f"{path} has no array {missing}, which a recording of {about['env_id']} needs; see recordings.py")


def recording_of(task: str, suite: str, rows: dict[str, np.ndarray]) -> Recording:
    """The recording that `rows`, the arrays of a file, are.

    Raises:
      KeyError: one of them is missing.
    """
    needed = ["episode_id", "terminated"]
    needed += ["link_ground_contact"] if task.startswith("drone") else []
    needed += ["other_contacts"] if task.endswith("_circle") else []
    for name in needed:
        if name not in rows:
            raise KeyError(name)
    rows["action"] = rows["action"] / ACTION_BOUNDS.get(task, 1.0)
    if is_navigation(task):
        return Recording(task, rows, *navigation_views(task, rows))
    if task.startswith("car"):
        rows |= _motors(rows, task)
    view = _joint_view if suite != "bullet" else _car_view if task.startswith("car") else _body_view
    if task.startswith("drone"):  # angles of rotors do not matter
        rows |= {name: 0 * rows[name] for name in ("joint_pos", "reset_joint_pos") if name in rows}
    begins = rows["step"] == 1
    index = np.searchsorted(rows["episode_id"], rows["episode"])

    def before(name: str) -> np.ndarray:
        first = "spawn_base_pos" if name == "base_pos" else f"reset_{name}"
        shifted = np.concatenate([rows[name][:1], rows[name][:-1]])
        return np.where(begins[:, None], rows[first][index], shifted)

    names = [name for name in (*_BODY, "qpos", "qvel") if name in rows]
    recording = Recording(
        task,
        rows,
        view({name: before(name) for name in names}),
        view({name: rows[name] for name in names}),
        view({name: rows[f"reset_{name}"] for name in names}),
    )
    return with_extras(recording) if envs.task(task).reads else recording


def with_extras(recording: Recording) -> Recording:
    """`recording` of a MuJoCo task, with the fields of mjData that the task reads."""
    task, rows = envs.task(recording.task), recording.rows
    start = _stepped(task, recording.start, None)
    after = _stepped(task, recording.before, rows["action"])
    before = {name: np.roll(value, 1, axis=0) for name, value in after.items()}
    begins = rows["step"] == 1
    for name, value in before.items():
        value[begins] = start[name][recording.index()[begins]]
    return recording._replace(
        before=recording.before._replace(extras=before),
        after=recording.after._replace(extras=after),
        start=recording.start._replace(extras=start),
    )


def _stepped(task: Task, views: View, actions: np.ndarray | None) -> dict[str, np.ndarray]:
    """What `task` reads [rows, ...], one step from `views`, or, without actions, at them."""
    model = load_model(task.model)
    data = mujoco.MjData(model)
    found: dict[str, list[np.ndarray]] = {name: [] for name in task.reads}
    for row in range(len(views.qpos)):
        mujoco.mj_resetData(model, data)
        data.qpos, data.qvel = views.qpos[row], views.qvel[row]
        if actions is None:
            mujoco.mj_forward(model, data)
        else:
            data.ctrl = task.control(actions[row]) if task.control else 0.0
            mujoco.mj_step(model, data, task.substeps)
        mujoco.mj_rnePostConstraint(model, data)
        for name, values in found.items():
            values.append(np.array(getattr(data, name)))
    return {name: np.stack(values) for name, values in found.items()}


def task_of(about: dict[str, Any]) -> str | None:
    """Our name of the sidecar's environment: SafetyBallRun-v0 of Bullet is ball_run. None if we have no such task."""
    found = re.fullmatch(r"Safety(\w+?)-v\d", str(about.get("env_id")))
    if found is None or about.get("suite") not in ("bullet", "safety_gymnasium"):
        return None
    return task_name(found[1])


def task_name(title: str) -> str | None:
    """BallRun is ball_run. None if we have no such task."""
    name = re.sub(r"(?<=[a-z\d])(?=[A-Z])", "_", title).lower()
    return name if name in envs.names() else None


def _joint_view(parts: dict[str, np.ndarray]) -> View:
    return _view(parts["qpos"], parts["qvel"])


def _body_view(parts: dict[str, np.ndarray]) -> View:
    position, quaternion, velocity, turn = (np.asarray(parts[name], np.float64) for name in _BODY[:4])
    scalar, axis = quaternion[..., 3:], -quaternion[..., :3]
    twice = 2 * np.cross(axis, turn)
    in_body = turn + scalar * twice + np.cross(axis, twice)
    rates, angles = ([parts[name]] if name in parts else [] for name in ("joint_vel", "joint_pos"))
    qpos = np.concatenate([position, scalar, quaternion[..., :3], *angles], axis=-1)
    return _view(qpos, np.concatenate([velocity, in_body, *rates], axis=-1))


def _car_view(parts: dict[str, np.ndarray]) -> View:
    """In the plane: x, y, yaw, steering and motor."""
    x, y, z, w = np.moveaxis(np.asarray(parts["base_quat"], np.float64), -1, 0)
    yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))[..., None]
    angle, rate = (parts[name][..., _CAR_STEERING].mean(-1, keepdims=True) for name in ("joint_pos", "joint_vel"))
    qpos = np.concatenate([parts["base_pos"][..., :2], yaw, angle, 0 * yaw], axis=-1)
    velocity, turn = parts["base_linvel"][..., :2], parts["base_angvel"][..., 2:]
    return _view(qpos, np.concatenate([velocity, turn, rate, parts["motor"]], axis=-1))


def _motors(rows: dict[str, np.ndarray], task: str) -> dict[str, np.ndarray]:
    """The speed of our car's motor after each row, which follows from the actions alone; at rest at a reset."""
    speed, speeds = 0.0, np.zeros((len(rows["step"]), 1))
    for row, (step, action) in enumerate(zip(rows["step"], np.clip(rows["action"], -1, 1), strict=True)):
        speed = 0.0 if step == 1 else speed
        for _ in range(envs.task(task).substeps):
            speed = car.motor_speed(speed, action[0], _CAR_TIMESTEP[task])
        speeds[row] = speed
    return {"motor": speeds, "reset_motor": np.zeros((len(rows["episode_id"]), 1))}


def _view(qpos: np.ndarray, qvel: np.ndarray) -> View:
    none = np.zeros((len(qpos), 0))
    return View(np.asarray(qpos, np.float64), np.asarray(qvel, np.float64), none, none, none)  # type: ignore[arg-type]
