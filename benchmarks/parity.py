"""Are the tasks those of the original simulators? python benchmarks/parity.py DIRECTORY

Searches DIRECTORY for recordings (see `recordings.py`), skips all else, and prints one JSON object a task (of several
recordings the sums of episodes and rows, and of all else the largest):

- from the recorded states alone, in float64: errors of observation and reward, shares of wrong costs and ends;
- single steps from every recorded state, in float64: the largest errors of the next position and velocity, and
  `response`, how much velocities change here for every unit that they change there (ball and drone, in free motion:
  speed, climb and yaw, and by itself the drone's tilt; ant: the rates of hips and of ankles, and by itself its body's
  velocity);
- replays of the recorded actions from the recorded starts, until a wall is near: root mean square error and range of
  the position, and the largest error relative to the distance travelled so far; of the car also speed, slip and yaw
  rate here for every unit there; of the ant how much higher or lower it stands without action;
- of navigation tasks replays until an object is near, and the accelerometer after single steps.

`broken` lists the bounds of `BOUNDS` that do not hold; if there are any, the exit code is 1.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import navigation_parity
import numpy as np
from navigation_recordings import is_navigation
from offline_to_online import OneLineParser, stop
from recordings import Recording, find, read

from safejax import envs
from safejax.envs.engines.base import Engine
from safejax.envs.engines.mujoco import Host, make_engine

REWARD_ERROR = 1e-2  # beyond it a reward counts as wrong
NEAR_WALL = {"ball": 11.3, "drone": 11.3, "car": 10.9, "ant": 10.6}  # m from the middle of the octagon
FLIGHT = 0.9  # m, the height from which on a drone's motion is free: a rotor's tip is .62 m from its middle
FEET = slice(29, 33)  # where an ant's observation says which feet touch the ground
SETTLED = 10  # steps after which an ant without action stands
SLOWEST = 0.2  # m; replays are compared with at least this distance travelled

_FORMULAS = {
    "observation_max_abs_error": 1e-4,
    "reward_max_abs_error": 1e-4,
    "cost_mismatch_share": 0.0,
    "end_mismatch_share": 0.0,
}
_RUNNER = _FORMULAS | {"next_position_max_abs_error": 1e-3, "next_velocity_max_abs_error": 1e-3}
_BALL = _FORMULAS | {"replay_relative_error": 0.02, "response_error": 0.1}
# Bullet's contacts with the ground are points that it found, ours are geometry: up to two parts more or fewer touch
# and a recorded tumble at 9 rad/s, five steps of the circle's, decides the response of the tilt
_DRONE = _FORMULAS | {"reward_mismatch_share": 0.05, "response_error": 0.1, "tilt_response_error": 0.12}
# the original hops on its wheels, which scatters single steps, so speeds are those of replays
_CAR = _FORMULAS | {"speed_error": 0.02, "slip_error": 0.05, "yaw_rate_error": 0.05}
# contacts are points that Bullet found; ankles push the body 1 / sqrt 2 as much as in Bullet, see ant.py
_ANT = _FORMULAS | {
    "contact_mismatch_share": 0.02,
    "response_error": 0.1,
    "body_response_error": 0.25,
    "stand_error": 0.02,
}
_NAVIGATION = _FORMULAS | {"replay_relative_error": 0.02, "accelerometer_median_error": 1e-3}
# exact until its steering overshoots a stop and a wheel meets the bumper, which amplifies rounding; see _robots.py
_RACECAR = _NAVIGATION | {"replay_relative_error": 0.07}
BOUNDS: Mapping[str, Mapping[str, float]] = {
    **dict.fromkeys(envs.names(), _FORMULAS),  # what is not below has no recording's dynamics to be compared with
    **{name: _RACECAR if name.startswith("racecar") else _NAVIGATION for name in filter(is_navigation, envs.names())},
    "ball_run": _BALL,
    "ball_circle": _BALL,
    "drone_run": _DRONE | {"reward_max_abs_error": 2.01},
    "drone_circle": _DRONE | {"reward_max_abs_error": 0.0201},
    "car_run": _CAR,
    "car_circle": _CAR,
    "ant_run": _ANT,
    "ant_circle": _ANT,
    **{f"{robot}_velocity": _RUNNER for robot in ("hopper", "walker2d", "half_cheetah", "swimmer")},
    # the original's speed lags behind by a stage of its integrator
    "ant_velocity": _RUNNER | {"reward_max_abs_error": 0.06},
    "humanoid_velocity": _RUNNER | {"observation_max_abs_error": 0.02},  # with contact forces of 3000 N
}
"""Task -> measurement -> the most that it may be."""


def main(arguments: list[str] | None = None) -> None:
    """Check the options, measure, print; exit with 1 where a bound is broken."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="where recordings are")
    options = parser.parse_args(arguments)
    if not options.directory.is_dir():
        stop(f"{options.directory} is no directory, expected one that holds recordings")
    recordings = [recording for path in find(options.directory) if (recording := read(path)) is not None]
    if not recordings:
        stop(f"{options.directory} holds no recording of {', '.join(BOUNDS)}; see recordings.py for the layout")
    failed = False
    for task in sorted({recording.task for recording in recordings}):
        result = together([measure(recording) for recording in recordings if recording.task == task])
        failed |= bool(result["broken"])
        known = {name: value if _finite(value) else None for name, value in result.items()}  # JSON has no NaN
        print(json.dumps(known, allow_nan=False), flush=True)
    if failed:
        sys.exit(1)


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def measure(recording: Recording) -> dict[str, Any]:
    """Everything about one recording."""
    engine = make_engine(envs.task(recording.task))
    result = {
        "task": recording.task,
        "episodes": len(recording.rows["episode_id"]),
        "rows": len(recording.rows["step"]),
        **formulas(recording),
    }
    if is_navigation(recording.task):
        result |= navigation_parity.measure(recording, engine)
    else:
        result |= single_steps(recording) | replays(recording, engine)
    engine.check()
    return judged(result)


def together(results: list[dict[str, Any]]) -> dict[str, Any]:
    """What several recordings of one task say: episodes and rows add up, of all else the largest counts."""
    numbers = {
        name: np.array([each[name] for each in results]) for name in results[0] if name not in ("task", "broken")
    }
    largest = {name: float(values.max()) for name, values in numbers.items()}  # NaN, if there is one
    sums = {name: int(numbers[name].sum()) for name in ("episodes", "rows")}
    return judged({"task": results[0]["task"]} | largest | sums)


def judged(result: dict[str, Any]) -> dict[str, Any]:
    """`result` and the bounds of its task that it breaks."""
    bounds = BOUNDS[result["task"]]
    broken = [f"{name} {result[name]:.3g} > {most:g}" for name, most in bounds.items() if not result[name] <= most]
    return result | {"broken": broken}


def formulas(recording: Recording) -> dict[str, float]:
    """Observation, reward, cost and end, from the recorded states alone."""
    task, rows = envs.task(recording.task), recording.rows
    with jax.enable_x64(True):
        before, after = (jax.tree.map(jnp.asarray, view) for view in (recording.before, recording.after))
        action = jnp.asarray(rows["action"], jnp.float64)
        paid = after._replace(layout=before.layout)  # a step is paid by the layout that it was made in
        reward = np.asarray(task.reward(before, paid, action))
        cost = np.asarray(jnp.minimum(task.cost(paid) + task.step_cost(before, paid, action), 1.0))
        observation, ends = np.array(task.observe(after)), np.asarray(task.terminated(paid))
    error = np.abs(observation - rows["observation"])
    if is_navigation(recording.task):  # states alone do not tell what the accelerometer reads
        error[:, navigation_parity.ACCELEROMETER] = 0
    robot = recording.task.split("_")[0]
    bullet = "base_pos" in rows
    if bullet and robot in ("drone", "ant"):  # a quaternion and its negative are one orientation
        turned = np.abs(observation[:, 6:10] + rows["observation"][:, 6:10])
        error[:, 6:10] = np.minimum(error[:, 6:10], turned.max(-1, keepdims=True))
    contacts = {}
    if bullet and robot == "ant":
        contacts = {"contact_mismatch_share": float(error[:, FEET].mean())}
        error[:, FEET] = 0
    wrong = np.abs(reward - rows["reward"])
    return contacts | {
        "observation_max_abs_error": float(error.max()),
        "reward_max_abs_error": float(wrong.max()),
        "reward_mismatch_share": float((wrong > REWARD_ERROR).mean()),
        "cost_mismatch_share": float((cost != rows["cost"]).mean()),
        "end_mismatch_share": float((ends != rows["terminated"]).mean()),
    }


def single_steps(recording: Recording) -> dict[str, float]:
    """One step from the state before every row but an episode's first, whose state before is the spawn.

    From float64, as recorded: rounded to float32, a walker's foot would begin some nanometers off the floor.
    """
    inside = np.flatnonzero(recording.rows["step"] > 1)
    before, after = (jax.tree.map(lambda leaf: leaf[inside], v) for v in (recording.before, recording.after))
    host = Host(envs.task(recording.task), thread_count=1)
    state, _ = host.start(np.ones(len(inside), bool), before.qpos, before.qvel)
    _, seen = host.step(state, recording.rows["action"][inside])
    host.check()
    qpos, qvel, _ = np.split(seen, np.cumsum([host.model.nq, host.model.nv]), axis=-1)
    body = slice(0, 3) if "base_pos" in recording.rows else slice(None)  # joints and signs of quaternions differ
    body = slice(0, 2) if recording.task.startswith("car") else body
    result = {
        "next_position_max_abs_error": float(np.abs(qpos - after.qpos)[:, body].max()),
        "next_velocity_max_abs_error": float(np.abs(qvel - after.qvel).max()),
    }
    if "base_pos" not in recording.rows:
        return result
    free = _free(recording)[inside]
    return result | responses(
        recording.task.split("_")[0], *(each[free] - before.qvel[free] for each in (qvel, after.qvel))
    )


def responses(robot: str, ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Errors of the response, from the changes of velocities [rows, nv]."""

    def off(*columns: Any) -> float:
        return max(_slope_error(ours[:, each], theirs[:, each]) for each in columns)

    if robot == "ball":
        return {"response_error": off(0, 1)}
    if robot == "drone":
        return {"response_error": off(0, 1, 2, 5), "tilt_response_error": off(3, 4)}
    if robot == "ant":
        return {"response_error": off(slice(6, None, 2), slice(7, None, 2)), "body_response_error": off(*range(6))}
    return {}


def _slope_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """How far the slope of ours on theirs, a line through the origin, is from 1."""
    return float(np.abs(np.sum(ours * theirs) / np.sum(theirs * theirs) - 1.0))


def replays(recording: Recording, engine: Engine) -> dict[str, float]:
    """Positions under the recorded actions from the recorded starts, as long as a wall is far."""
    rows, index = recording.rows, recording.index()
    count, length = len(rows["episode_id"]), int(rows["step"].max())
    actions = np.zeros((count, length, rows["action"].shape[1]), np.float32)
    actions[index, rows["step"] - 1] = rows["action"]

    @functools.partial(jax.vmap, in_axes=(0, 0, 0))
    def replay(qpos: Any, qvel: Any, actions: Any) -> Any:
        def step(physics: Any, action: Any) -> Any:
            physics = engine.step(physics, action)
            view = engine.view(physics)
            return physics, (view.qpos, view.qvel)

        return jax.lax.scan(step, engine.start(jnp.bool_(True), qpos, qvel), actions)[1]

    start = (jnp.asarray(part, jnp.float32) for part in (recording.start.qpos, recording.start.qvel))
    found, speeds = (np.asarray(part)[index, rows["step"] - 1] for part in jax.jit(replay)(*start, actions))
    where = slice(0, 2) if not recording.task.startswith("drone") else slice(0, 3)
    theirs, begun = recording.after.qpos[:, where], recording.start.qpos[index, where]
    error = np.linalg.norm(found[:, where] - theirs, axis=-1)
    moved = np.linalg.norm(np.diff(theirs, axis=0, prepend=theirs[:1]), axis=-1)
    moved = np.where(rows["step"] == 1, np.linalg.norm(theirs - begun, axis=-1), moved)
    travelled = np.concatenate([np.cumsum(moved[index == each]) for each in range(count)])
    far = _before_walls(recording)
    robot = {}
    if recording.task.startswith("car"):
        ours, there = ((qpos[far], qvel[far]) for qpos, qvel in ((found, speeds), recording.after[:2]))
        robot = drives(car_speeds(*ours), car_speeds(*there))
    elif "base_pos" in rows and recording.task.startswith("ant"):
        still = [np.abs(rows["action"][index == each]).max() == 0 for each in range(count)]
        standing = np.isin(index, np.flatnonzero(still)) & (rows["step"] > SETTLED)
        robot = {"stand_error": float(np.abs(found[standing, 2] / recording.after.qpos[standing, 2] - 1.0).max())}
    return robot | {
        "position_rmse": float(np.sqrt(np.mean(error[far] ** 2))),
        "position_range": float(np.max(np.ptp(theirs[far], axis=0))),
        "replay_relative_error": float(np.max(error[far] / np.maximum(travelled[far], SLOWEST))),
    }


def car_speeds(qpos: Any, qvel: Any) -> np.ndarray:
    """[rows, 3]: forward and to the left, m/s, and the yaw rate, rad/s."""
    cosine, sine = np.cos(qpos[:, 2]), np.sin(qpos[:, 2])
    x, y = qvel[:, 0], qvel[:, 1]
    return np.stack([cosine * x + sine * y, cosine * y - sine * x, qvel[:, 2]], axis=-1)


def drives(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Errors of replayed speeds [rows, 3]."""
    names = ("speed_error", "slip_error", "yaw_rate_error")
    return {name: _slope_error(ours[:, axis], theirs[:, axis]) for axis, name in enumerate(names)}


def _free(recording: Recording) -> np.ndarray:
    """[rows] bool: neither end of the step touches what gets in the way."""
    rows = recording.rows
    touched = rows["other_contacts"] > 0 if "other_contacts" in rows else np.zeros(len(rows["step"]), bool)
    if recording.task.startswith("drone"):
        low = np.minimum(recording.before.qpos[:, 2], recording.after.qpos[:, 2]) < FLIGHT
        touched = touched | low | (rows["link_ground_contact"].sum(-1) > 0)
    return ~(touched | np.concatenate([touched[:1], touched[:-1]])) & _before_walls(recording)


def _before_walls(recording: Recording) -> np.ndarray:
    """[rows] bool: no wall has been near in the episode so far. Only the circles have walls."""
    rows, index = recording.rows, recording.index()
    if not recording.task.endswith("_circle"):
        return np.ones(len(index), bool)
    angles = np.arange(8) * np.pi / 4
    normals = np.stack([np.cos(angles), np.sin(angles)])
    ahead = recording.before.qpos[:, :2] + 0.1 * recording.before.qvel[:, :2]
    reach = np.maximum(recording.before.qpos[:, :2] @ normals, ahead @ normals).max(-1)
    near = (reach > NEAR_WALL[recording.task.split("_")[0]]) | (rows["other_contacts"] > 0)
    return np.concatenate([np.logical_or.accumulate(near[index == each]) for each in range(index.max() + 1)]) == 0


if __name__ == "__main__":
    main()
