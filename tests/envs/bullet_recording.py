"""Recorded episodes of Bullet-Safety-Gym as the Views that a task reads."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from safejax.envs.tasks import View

_FILE = np.load(Path(__file__).parents[1] / "data" / "bullet_recording.npz")


def recorded(task):
    """The arrays of one task, see tests/data/README.md."""
    return {name.removeprefix(f"{task}/"): _FILE[name] for name in _FILE.files if name.startswith(f"{task}/")}


def view_of(recording, moment):
    """The View after each row, "after"; at its beginning, "before"; or after each episode's reset, "reset".

    The potential of a run begins at the spawn, so "before" has that position in an episode's first row.
    """
    if moment == "reset":
        return _view(*(recording.get(f"reset_{name}") for name in _NAMES))
    after = [recording.get(name) for name in _NAMES]
    if moment == "after":
        return _view(*after)
    first = np.searchsorted(recording["episode_id"], recording["episode"])
    begins = np.diff(recording["episode"], prepend=-1) != 0
    before = [None if part is None else np.concatenate([part[:1], part[:-1]]) for part in after]
    for index, name in enumerate(_NAMES):
        start = "spawn_base_pos" if name == "base_pos" else f"reset_{name}"
        if before[index] is not None:
            before[index] = np.where(begins[:, None], recording[start][first], before[index])
    return _view(*before)


_NAMES = ("base_pos", "base_quat", "base_linvel", "base_angvel", "joint_vel", "joint_pos")


def _view(position, quaternion, velocity, angular_velocity, joint_velocity, joint_position):
    """World-frame quantities, a quaternion x, y, z, w; joints' angles are 0 where they were not kept."""
    scalar, axis = quaternion[..., 3:], -quaternion[..., :3]
    twice = 2 * np.cross(axis, angular_velocity)
    in_body = angular_velocity + scalar * twice + np.cross(axis, twice)
    rates = [] if joint_velocity is None else [joint_velocity]
    angles = [0 * part for part in rates] if joint_position is None else [joint_position]
    qpos = np.concatenate([position, scalar, quaternion[..., :3], *angles], axis=-1)
    qvel = np.concatenate([velocity, in_body, *rates], axis=-1)
    none = np.zeros((*position.shape[:-1], 0))
    return View(*(jnp.asarray(part, jnp.float32) for part in (qpos, qvel, none, none, none)))
