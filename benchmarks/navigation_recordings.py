"""Recorded episodes of Safety-Gymnasium's navigation tasks, as the Views that ours read.

Beside what `recordings.py` says: `layout_pos` and `layout_yaw` hold every object of `object_names` as it was placed,
`goal_pos`, `goal_button` and `button_timer` are as after the step. A Point's own coordinates are relative to where it
began, ours are the world's. Contacts and sensors are those that our model finds in the recorded states.
"""

# pyright: reportAttributeAccessIssue=false
# (the names of the compiled mujoco module are not declared)

from __future__ import annotations

import re
from typing import Any

import jax
import mujoco
import numpy as np

from safejax import envs
from safejax.envs.engines.base import VIEW_FIELDS, load_model
from safejax.envs.tasks import Task, View

_MOVING = ("qpos", "qvel", "agent_pos", "agent_yaw", "agent_vel", "goal_pos", "goal_button", "button_timer", "time")


def is_navigation(name: str) -> bool:
    """Whether the task `name` is one of these."""
    return re.fullmatch(r"(point|car|racecar)_[a-z]+\d", name) is not None


def views(name: str, rows: dict[str, np.ndarray]) -> tuple[View, View, View]:
    """Views before and after every step, and after every reset: float64, of the task `name`."""
    task = envs.task(name)
    index = np.searchsorted(rows["episode_id"], rows["episode"])
    begins = rows["step"] == 1
    moving = [part for part in _MOVING if part in rows]
    after = {part: np.asarray(rows[part], np.float64) for part in moving}
    start = {part: np.asarray(rows[f"reset_{part}"], np.float64) for part in moving}
    before = {part: np.roll(after[part], 1, axis=0) for part in moving}
    for part, value in before.items():
        value[begins] = start[part][index[begins]]
    places = {part: np.asarray(rows[part], np.float64) for part in ("layout_pos", "layout_yaw")}
    here = {part: value[index] for part, value in places.items()}
    names = rows["object_names"].tolist()
    made = ((before, here), (after, here), (start, places))
    return tuple(_view(task, parts, placed, names) for parts, placed in made)  # type: ignore[return-value]


def _view(task: Task, parts: dict[str, np.ndarray], placed: dict[str, np.ndarray], names: list[str]) -> View:
    qpos, qvel = parts["qpos"].copy(), parts["qvel"].copy()
    if task.name.startswith("point"):
        qpos[:, :3] = np.concatenate([parts["agent_pos"][:, :2], parts["agent_yaw"][:, None]], axis=-1)
        qvel[:, :2] = parts["agent_vel"][:, :2]
    layout = _layout(parts, placed, names)
    return _forward(task, qpos, qvel, layout, parts["time"])


def _layout(parts: dict[str, np.ndarray], placed: dict[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
    """By group, places [rows, count, 2], and what else `Task.rearrange` of these tasks keeps."""
    groups = {"hazard": "hazards", "pillar": "pillars", "button": "buttons", "gremlin": "gremlins", "circle": "circle"}
    layout: dict[str, np.ndarray] = {}
    for stem, group in groups.items():
        found = [number for number, name in enumerate(names) if name.rstrip("0123456789") == stem]
        if found:
            layout[group] = placed["layout_pos"][:, found, :2]
        if found and group == "gremlins":
            layout["gremlins_yaw"] = placed["layout_yaw"][:, found]
    if "goal_pos" in parts:
        layout["goal"] = parts["goal_pos"][:, None, :2]
    if "goal_button" in parts:
        layout |= {"button": parts["goal_button"].astype(int), "pause": parts["button_timer"].astype(int)}
    return layout


def _forward(task: Task, qpos: np.ndarray, qvel: np.ndarray, layout: Any, time: np.ndarray) -> View:
    """What our model makes of the recorded states."""
    model = load_model(task.model)
    data = mujoco.MjData(model)
    poses = None if task.mocap is None else task.mocap(layout, time)
    found: dict[str, list[np.ndarray]] = {name: [] for name in VIEW_FIELDS}
    for row in range(len(qpos)):
        mujoco.mj_resetData(model, data)
        data.qpos, data.qvel = qpos[row], qvel[row]
        if poses is not None:
            data.mocap_pos, data.mocap_quat = poses[row][:, :3], poses[row][:, 3:]
        mujoco.mj_forward(model, data)
        for name, values in found.items():
            values.append(np.array(getattr(data, name)))
    arrays = jax.tree.map(np.asarray, layout)
    return View(*(np.stack(found[name]) for name in VIEW_FIELDS), layout=arrays)  # type: ignore[arg-type]
