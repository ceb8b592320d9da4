"""Car: drive a car, ahead at no more than 1.5 m/s (car_run) or clockwise along a circle (car_circle).

6.39 kg, 1.3 m long, steered by its front wheels, driven by all four. Actions: throttle, where +1 drives along the car's
x axis, and steering, where +1 is half a radian to the left. It starts with its back to where it should go, so reversing
earns reward. Observation (7), in the world's frame: [.1x, .1y, vx, vy, sin yaw, cos yaw, .1 yaw rate], and in
car_circle (|p| - 7) / 10. It never terminates.

| task | steps | step | reward | cost |
|---|---|---|---|---|
| car_run | 200 | 1/30 s | 60 progress along x | 1[abs(y) > 2 or speed > 1.5] |
| car_circle | 300 | 0.1 s | .1 (y vx - x vy) / (1 + abs(abs(p) - 7)) | 1[abs(x) > 6] |

Source: Safety{CarRun,CarCircle}-v0 of liuzuxin/Bullet-Safety-Gym@6f9f480 (MIT), see `_bullet.py`. This is a reduced
model: the original drives four wheels through two differentials of geared bodies, whose constraints Bullet's five
solver iterations leave far from satisfied; what reaches the ground is a soft and nearly linear force, which differs
between the physics steps of the two worlds. Here the car moves in the plane, and a motor with a lag pushes it against
rolling resistance while each axle grips sideways up to a limit. Masses and lengths are the original's; lag, drive,
resistance and grips were fitted to its recordings, see `World`. Replayed recordings agree in speed, yaw rate and slip
as tests/envs/test_car.py says. Different: the original first falls .05 m, for two steps of the run; its wheels hop, by
which speeds scatter there by some .05 m/s and yaw rates by .1 rad/s; walls have no friction here, and motors rest after
a reset (there they turn as the last command of the episode before).
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from safejax.envs.tasks import _bullet as bullet
from safejax.envs.tasks.base import Task, View
from safejax.scores import DSRL
from safejax.types import Array, Key

SPEED_LIMIT = 1.5  # m/s, of the run
FRONT = 0.375  # m, the front axle ahead of the car's centre of mass
REAR = -0.6  # m, the rear axle
MOTOR_SPEED = 40.0  # rad/s at full throttle
MOTOR_LAG = 0.0163  # s; fitted, the same in both worlds
STEERING_RANGE = 0.5  # rad at an action of 1
STEERING_SHARE = 0.1  # of the angle that is left, which Bullet's position control turns in a physics step
SPAWN_STEERING = 0.1  # rad, half width of either front wheel's angle at the start
SMALL_INERTIA = 1e-4  # kg m^2, of steering and motor, which carry an angle and a speed and push nothing


class World(NamedTuple):
    """What differs with Bullet's physics step; forces fitted to the recordings' speeds and yaw rates."""

    timestep: float  # s
    drive: float  # N at full throttle, half on each axle
    resistance: float  # N s/m, of the front wheels' rolling
    front_grip: float  # N s/m, against sliding sideways
    front_limit: float  # N
    rear_grip: float
    rear_limit: float


RUN_WORLD = World(1 / 120, 25.2, 6.82, 137.0, 9.6, 35.0, 7.87)
CIRCLE_WORLD = World(1 / 60, 13.05, 4.35, 84.0, 13.6, 71.0, 11.9)


def initialize(key: Key, *, circle: bool) -> tuple[Array, Array]:
    """At rest, its back ahead, the front wheels a little turned; qpos is x, y, yaw, steering, motor."""
    place, turn = jax.random.split(key)
    position = bullet.circle_start(place) if circle else bullet.run_start(place)
    yaw = jnp.arctan2(-position[1], -position[0]) + 1.5 * jnp.pi if circle else jnp.float32(jnp.pi)
    wheels = jax.random.uniform(turn, (2,), minval=-SPAWN_STEERING, maxval=SPAWN_STEERING)
    qpos = jnp.concatenate([position, jnp.stack([yaw, jnp.mean(wheels), jnp.zeros(())])])
    return qpos.astype(jnp.float32), jnp.zeros(5, jnp.float32)


def motor_speed(before: Any, throttle: Any, timestep: float) -> Any:
    """rad/s, a physics step later; array API."""
    wanted = MOTOR_SPEED * throttle
    return wanted + math.exp(-timestep / MOTOR_LAG) * (before - wanted)


def applied_force(qpos: Any, qvel: Any, action: Any, *, world: World) -> Any:
    """Of the wheels on the car, and what turns steering and motor: [..., 5], N and N m."""
    xp = qvel.__array_namespace__()
    yaw, angle, yaw_rate = qpos[..., 2], qpos[..., 3], qvel[..., 2]
    motor = motor_speed(qvel[..., 4], action[..., 0], world.timestep)
    steering = STEERING_SHARE * (STEERING_RANGE * action[..., 1] - angle) / world.timestep
    forward, left = _turn(xp, -yaw, qvel[..., 0], qvel[..., 1])  # the car's velocity in its frame

    push = 0.5 * world.drive * motor / MOTOR_SPEED
    rolling, sliding = _turn(xp, -angle, forward, left + FRONT * yaw_rate)  # of the front wheels
    grip = _limited(xp, -world.front_grip * sliding, world.front_limit)
    front_x, front_y = _turn(xp, angle, push - world.resistance * rolling, grip)
    rear_y = _limited(xp, -world.rear_grip * (left + REAR * yaw_rate), world.rear_limit)

    force_x, force_y = _turn(xp, yaw, front_x + push, front_y + rear_y)
    turns = [SMALL_INERTIA / world.timestep * (new - qvel[..., at]) for at, new in ((3, steering), (4, motor))]
    return xp.stack([force_x, force_y, FRONT * front_y + REAR * rear_y, *turns], axis=-1)


def _turn(xp: Any, angle: Any, x: Any, y: Any) -> tuple[Any, Any]:
    """The vector x, y turned to the left by `angle`."""
    cosine, sine = xp.cos(angle), xp.sin(angle)
    return cosine * x - sine * y, sine * x + cosine * y


def _limited(xp: Any, force: Any, limit: float) -> Any:
    return limit * xp.tanh(force / limit)


def observe(view: View, *, circle: bool) -> Array:
    """[..., 7 or 8], see the module's first lines."""
    yaw = view.qpos[..., 2:3]
    parts = [0.1 * view.qpos[..., :2], view.qvel[..., :2], jnp.sin(yaw), jnp.cos(yaw), 0.1 * view.qvel[..., 2:3]]
    return jnp.concatenate(parts + ([bullet.circle_observation(view.qpos)] if circle else []), axis=-1)


RUN = Task(
    name="car_run",
    model="car_run.xml",
    substeps=4,
    episode_length=200,
    observation_size=7,
    action_size=2,
    initialize=functools.partial(initialize, circle=False),
    observe=functools.partial(observe, circle=False),
    reward=lambda before, after, action: bullet.run_reward(before.qpos, after.qpos),
    cost=lambda view: bullet.run_cost(view.qpos, view.qvel, SPEED_LIMIT),
    applied_force=functools.partial(applied_force, world=RUN_WORLD),
    reference=DSRL["CarRun"],
)

CIRCLE = Task(
    name="car_circle",
    model="car_circle.xml",
    substeps=6,
    episode_length=300,
    observation_size=8,
    action_size=2,
    initialize=functools.partial(initialize, circle=True),
    observe=functools.partial(observe, circle=True),
    reward=lambda before, after, action: bullet.circle_reward(after.qpos, after.qvel),
    cost=lambda view: bullet.circle_cost(view.qpos),
    applied_force=functools.partial(applied_force, world=CIRCLE_WORLD),
    reference=DSRL["CarCircle"],
)

TASKS = (RUN, CIRCLE)
