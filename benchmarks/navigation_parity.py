"""What `parity.py` measures of navigation tasks: replays until an object is near, and the accelerometer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from recordings import Recording

from safejax import envs
from safejax.envs.engines.base import Engine
from safejax.envs.engines.mujoco import Host

NEAR = {"vases": 0.5, "gremlins": 0.5, "buttons": 0.5, "pillars": 0.6, "push_box": 0.75}  # m between middles
SLOWEST = 0.2  # m; replays are compared with at least this distance travelled
FREE = 7  # coordinates of a free joint
ACCELEROMETER = slice(0, 3)  # of an observation

_PLANAR, _FREE_ROBOTS = 3, {"car": 13, "racecar": 12}  # coordinates of the robots


def measure(recording: Recording, engine: Engine) -> dict[str, float]:
    """Errors of positions under the recorded actions, and of the accelerometer after single steps."""
    rows, index = recording.rows, recording.index()
    far = ~near(recording)
    found = replay(recording)[index, rows["step"] - 1]
    theirs, begun = recording.after.qpos[:, :2], recording.start.qpos[index, :2]
    error = np.linalg.norm(found - theirs, axis=-1)
    earlier = np.where((rows["step"] == 1)[:, None], begun, np.roll(theirs, 1, axis=0))
    moved = np.linalg.norm(theirs - earlier, axis=-1)
    travelled = np.concatenate([np.cumsum(moved[index == each]) for each in range(index.max() + 1)])
    felt = np.abs(accelerations(recording, engine) - rows["observation"][:, ACCELEROMETER]).max(-1)
    return {
        "rows_before_objects": float(far.mean()),
        "position_rmse": float(np.sqrt(np.mean(error[far] ** 2))),
        "position_range": float(np.max(np.ptp(theirs[far], axis=0))),
        "replay_relative_error": float(np.max(error[far] / np.maximum(travelled[far], SLOWEST))),
        "accelerometer_median_error": float(np.median(felt[rows["step"] > 1])),
    }


def near(recording: Recording) -> np.ndarray:
    """[rows] bool: something solid has been near in the episode so far."""
    rows, index, after = recording.rows, recording.index(), recording.after
    robot = recording.task.split("_")[0]
    loose = after.qpos[:, _FREE_ROBOTS.get(robot, _PLANAR) :].reshape(len(index), -1, FREE)[..., :2]
    stems = " ".join(rows["object_names"])
    solid = {name: loose for name in ("vases", "gremlins", "push_box") if name[:4] in stems}
    solid |= {name: np.asarray(after.layout[name]) for name in ("buttons", "pillars") if name in after.layout}
    close = np.zeros(len(index), bool)
    for name, places in solid.items():
        apart = np.linalg.norm(places - after.qpos[:, None, :2], axis=-1)
        close |= (apart < NEAR[name]).any(-1)
    return np.concatenate([np.logical_or.accumulate(close[index == each]) for each in range(index.max() + 1)])


def replay(recording: Recording) -> np.ndarray:
    """Positions [episodes, steps, 2] under the recorded actions from the recorded starts, in float64 throughout.

    In float32 a car would begin some nanometers above the floor, and rounding decide which wheel is first to touch it.
    """
    rows, index, start = recording.rows, recording.index(), recording.start
    count, length = index.max() + 1, int(rows["step"].max())
    actions = np.zeros((length, count, rows["action"].shape[1]))
    actions[rows["step"] - 1, index] = rows["action"]
    host = Host(envs.task(recording.task), thread_count=1)
    state, _ = host.start(np.ones(count, bool), start.qpos, start.qvel, start.layout)
    positions = []
    for action in actions:
        state, seen = host.step(state, action, start.layout)
        positions.append(seen[:, :2])
    host.check()
    return np.stack(positions, axis=1)


def accelerations(recording: Recording, engine: Engine) -> np.ndarray:
    """What the accelerometer reads [rows, 3] one step after the recorded state before."""
    task = envs.task(recording.task)

    @jax.jit
    @jax.vmap
    def step(qpos: Any, qvel: Any, layout: Any, action: Any) -> Any:
        physics = engine.step(engine.start(jnp.bool_(True), qpos, qvel, layout), action, layout)
        return task.observe(engine.view(physics)._replace(layout=layout))[ACCELEROMETER]

    before = recording.before
    arrays = _single((before.qpos, before.qvel, before.layout, recording.rows["action"]))
    return np.asarray(step(*arrays))


def _single(tree: Any) -> Any:
    """Numbers as the engines take them."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32 if leaf.dtype.kind == "f" else jnp.int32), tree)
