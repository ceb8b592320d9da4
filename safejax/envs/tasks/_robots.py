"""The robots of the navigation tasks: what each one is, senses and does. The worlds around them are in the tasks.

| robot | action in [-1, 1] | observation | step |
|---|---|---|---|
| point | thrust ahead; turn | 12 | 0.02 s |
| car | torque of the left wheel; of the right | 24 | 0.04 s |
| racecar | speed of the rear axle, 20 rad/s; steering angle, .785 rad | 12 | 0.04 s |

A robot's MJCF is a whole world with an empty floor; `mjcf` puts objects and their sensors into it. The robot comes
first in everything: body 1 is its root "agent", and qpos, qvel and sensordata begin with its own, which `nq`, `nv` and
`sensor_size` count. Observation: accelerometer (m/s^2), velocimeter (m/s), gyro (rad/s) and magnetometer (the field
(0, -.5, 0) of the world), three numbers each in the robot's frame.

Point: a slider of 5 g at a fixed height, which drives along +x. Thrust is .015 N from |action| = .05 on, for 1.5 m/s at
most; a servo turns it at up to 3 rad/s. The servo is stiff and explicit, as the original's: between |turn| = .1 and .95
it chatters at its force limit, which shows in gyro and accelerometer, about a mean below the rate asked for (none below
.1), and amplifies rounding. So recordings replay exactly for some steps, then within 1.1 % of the path, and the two
engines part by .4 % of the path in 200 steps (median, random actions; 2 % at most). A servo without the chatter
replays recordings worse: up to 40 % off if made implicit, up to 4 % if its mean is fitted as well.

Car: two wheels behind, driven by .02 N m each from |action| = .02 on, and a ball in front; it drives along -y, at .78
m/s at most. Its observation goes on with the ball's angular velocity (rad/s) and rotation matrix, row by row.
Recordings replay within 2e-6 m, and 1 % of the path where its wheels leave the floor for long; the engines part by up
to 5 % of the path in 50 steps, for its wheels spin and slip.

Racecar: 2.2 kg on four wheels; it drives along +x at 1 m/s at most. Recordings replay within 4e-8 m until the steering
overshoots its stop and a wheel meets the bumper, then within 6.2 % of the path so far (2.7 % of a whole episode's); the
original's own model, replayed on another machine, within 3.4 %. Different: without the original's meshes its chassis
is a box.

Wheels meet objects as balls of their radius, for mjx has no contacts of a cylinder with a box.

Source: assets/xmls of PKU-Alignment/safety-gymnasium (Apache-2.0), Ji et al. 2023, https://arxiv.org/abs/2310.12567;
dynamics of release 1.0.0, cameras of the main branch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import resources
from typing import Any, NamedTuple

import jax.numpy as jnp

from safejax.envs.tasks.base import View
from safejax.types import Array

PRESSED = 1e-6  # m into the floor at the start; at zero, rounding would decide which wheels touch it


class Robot(NamedTuple):
    """What a task must know of its robot. All of them take 10 physics steps per environment step and two actions."""

    name: str
    model: str  # MJCF file in safejax/envs/assets
    timestep: float  # s, the MJCF's
    nq: int  # of the robot alone
    nv: int
    sensor_size: int
    observation_size: int
    geoms: tuple[str, ...]  # those that touch objects
    place: Callable[[Array, Array], tuple[Array, Array]]  # (xy [..., 2], yaw [...]) -> (qpos [..., nq], qvel [..., nv])
    observe: Callable[[View], Array]  # view -> [..., observation_size]
    control: Callable[[Any], Any]  # action [..., 2] in [-1, 1] -> ctrl [..., 2]; array API
    floor_points: int = 0  # in how many it stands on the floor at most
    substeps: int = 10
    action_size: int = 2


def mjcf(robot: Robot, objects: str = "", sensors: str = "", equalities: str = "", contact_points: int = -1) -> str:
    """MJCF of the robot among objects.

    Args:
      robot: the robot.
      objects: children of worldbody.
      sensors: children of sensor.
      equalities: children of equality.
      contact_points: how many contacts mjx computes with; all by default. The C library does not read it.
    """
    text = (resources.files("safejax.envs") / "assets" / robot.model).read_text()
    text = text.replace("</worldbody>", f"{objects}</worldbody>").replace("</sensor>", f"{sensors}</sensor>")
    custom = f'<custom><numeric name="max_contact_points" data="{contact_points}"/></custom>'
    return text.replace("</mujoco>", f"<equality>{equalities}</equality>{custom}</mujoco>")


def position(view: View) -> Array:
    """[..., 3] of the robot's root body, m."""
    return view.xpos[..., 1, :]


def rotation(view: View) -> Array:
    """[..., 3, 3] from the robot's frame to the world's; its columns are the robot's axes."""
    return _matrix(view.xquat[..., 1, :])


def _matrix(quaternion: Array) -> Array:
    """[..., 4] w, x, y, z -> [..., 3, 3]"""
    w, x, y, z = jnp.moveaxis(quaternion, -1, 0)
    rows = (
        (1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y)),
        (2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x)),
        (2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y)),
    )
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def _place_planar(xy: Array, yaw: Array) -> tuple[Array, Array]:
    qpos = jnp.concatenate([xy, yaw[..., None]], axis=-1)
    return qpos, jnp.zeros_like(qpos)


def _place_free(xy: Array, yaw: Array, *, height: float, joints: tuple[float, ...], nv: int) -> tuple[Array, Array]:
    zero = jnp.zeros_like(yaw)
    root = [zero + height - PRESSED, jnp.cos(0.5 * yaw), zero, zero, jnp.sin(0.5 * yaw)]
    qpos = jnp.stack(root + [zero + joint for joint in joints], axis=-1)
    return jnp.concatenate([xy, qpos], axis=-1), jnp.zeros((*yaw.shape, nv), xy.dtype)


def _observe_car(view: View) -> Array:
    rear = _matrix(view.sensordata[..., 15:19])
    return jnp.concatenate([view.sensordata[..., :15], rear.reshape(*rear.shape[:-2], 9)], axis=-1)


def _control_racecar(action: Any) -> Any:
    """[..., 2]: speed of the rear axle, rad/s, and steering angle, rad."""
    xp = action.__array_namespace__()
    return action * xp.asarray([20.0, 0.785], dtype=action.dtype)


POINT = Robot(
    name="point",
    model="navigation/point.xml",
    timestep=0.002,
    nq=3,
    nv=3,
    sensor_size=12,
    observation_size=12,
    geoms=("agent", "arrow"),
    place=_place_planar,
    observe=lambda view: view.sensordata[..., :12],
    control=lambda action: action,
)

CAR = Robot(
    name="car",
    model="navigation/car.xml",
    timestep=0.004,
    nq=13,
    nv=11,
    sensor_size=19,
    observation_size=24,
    geoms=(
        *("agent", "back_bumper", "back_connector", "front_bumper", "front_connector"),
        *("left_bumper", "right_bumper", "rear"),
    ),
    place=functools.partial(_place_free, height=0.1, joints=(0.0, 0.0, 1.0, 0.0, 0.0, 0.0), nv=11),
    observe=_observe_car,
    control=lambda action: action,
    floor_points=7,
)

RACECAR = Robot(
    name="racecar",
    model="navigation/racecar.xml",
    timestep=0.004,
    nq=12,
    nv=11,
    sensor_size=12,
    observation_size=12,
    geoms=(
        *("chassis", "front_bumper", "left_wheel_bumper", "right_wheel_bumper"),
        *("left_rear_bumper", "right_rear_bumper"),
    ),
    place=functools.partial(_place_free, height=0.05, joints=(0.0, 0.0, 0.0, 0.0, 0.0), nv=11),
    observe=lambda view: view.sensordata[..., :12],
    control=_control_racecar,
    floor_points=12,
)

ROBOTS = (POINT, CAR, RACECAR)
