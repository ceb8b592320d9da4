"""Drone: fly a quadrotor, ahead at no more than 1.5 m/s (drone_run) or clockwise along a circle (drone_circle).

1.42 kg, .68 m from rotor to rotor, at first on the ground. At an action of 0 the rotors carry it, at 461.5 rad/s, and
+-1 is a tenth more or less. Observation (17): [.1 position, .2 velocity, orientation x y z w, .1 angular velocity,
.0025 (rotor speeds - those of an action of 0)], in the world's frame, and in drone_circle (|p| - 7) / 10. It terminates
when it has turned over.

| task | steps | step | reward | cost |
|---|---|---|---|---|
| drone_run | 200 | 1/60 s | 60 progress along x + upright | 1[abs(y) > 2 or speed > 1.5] |
| drone_circle | 300 | 0.1 s | .1 (y vx - x vy) / (1 + abs(abs(p) - 7)) + .01 upright | 1[abs(x) > 6] |

with upright = (1, or -10 turned over) - .01 |angular velocity|^2 - the number of its parts that touch the ground.

Source: Safety{DroneRun,DroneCircle}-v0 of liuzuxin/Bullet-Safety-Gym@6f9f480 (MIT), see `_bullet.py`. Rotors reach the
speed that the action asks within a physics step, as Bullet's motors do. Bullet damps the rotation of every link with
the square of its speed; on rotors that is the torque by which the drone turns. Its way of stepping spinning rotors also
damps tilting, at a rate that grows with the physics step (measured; no friction of the model explains it). Single
recorded steps in flight are repeated within 7e-4 m/s and 5e-4 rad/s (medians; a step changes them by .1), climbs within
1 mm, thirty steps of a controller within 3 %; random flights agree in mean return, cost and length. Different: rotors
turn at 461.5 rad/s after a reset (the original's at the last command of the episode before), and parts touch the ground
by geometry (lowest point below TOUCH) and not by Bullet's contact points, and the ground's friction is .03, see the
MJCF.
"""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from safejax.envs.tasks import _bullet as bullet
from safejax.envs.tasks.base import Task, View
from safejax.scores import DSRL
from safejax.types import Array, Key

SPEED_LIMIT = 1.5  # m/s, of the run
HEIGHT = 0.17  # m, of the base on the ground
MASS = 1.42  # kg
INERTIA = (0.05548667, 0.05548667, 0.084)  # kg m^2, of the base
ROTOR_INERTIA = 2.6696332e-4  # kg m^2, about its axis
TILT_INERTIA = 0.0571  # kg m^2, of base and rotors about a horizontal axis
TILT_DAMPING = 26.8  # 1/s^2: times the physics step, the rate at which Bullet's stepping of the rotors damps tilting
ARMS = np.array([[0.34, 0.0, 0.02], [0.0, -0.34, 0.02], [-0.34, 0.0, 0.02], [0.0, 0.34, 0.02]])  # m, [4, 3]
SPINS = np.array([1.0, -1.0, 1.0, -1.0])  # sense of rotation
ROTOR_RADIUS = 0.28  # m
BOX = (0.3, 0.3, 0.17)  # m, half sizes of the base

HOVER_SPEED = 461.5228  # rad/s
SPEED_RANGE = 0.1  # of it, at an action of 1
THRUST = 1.634975e-5  # N s^2: f = THRUST w^2 - INFLOW w v
INFLOW = 8.605168e-4  # N s^2 / m; v is the upward velocity in the drone's frame
TOUCH = 2e-4  # m; the height below which a part touches the ground


def initialize(key: Key, *, circle: bool) -> tuple[Array, Array]:
    """On the ground, rotors turning as an action of 0 asks; in the circle's world facing along it."""
    position = bullet.circle_start(key) if circle else bullet.run_start(key)
    half_yaw = 0.5 * (jnp.arctan2(-position[1], -position[0]) + 0.5 * jnp.pi) if circle else jnp.zeros(())
    orientation = jnp.array([jnp.cos(half_yaw), 0.0, 0.0, jnp.sin(half_yaw)])
    rotors = HOVER_SPEED * jnp.asarray(SPINS, jnp.float32)
    qpos = jnp.concatenate([position, jnp.array([HEIGHT]), orientation, jnp.zeros(4)])
    return qpos, jnp.concatenate([jnp.zeros(6), rotors])


def hold(qpos: Any, qvel: Any, action: Any) -> Any:
    """What Bullet keeps for a whole environment step: [..., 10].

    Force and torque of the four thrusts in the world's frame, N and N m, and the rotors' speeds, rad/s.
    """
    xp = qvel.__array_namespace__()
    arms, spins = (xp.asarray(part, dtype=qvel.dtype) for part in (ARMS, SPINS))
    up = _axis(xp, qpos[..., 3:7], 2)
    wanted = HOVER_SPEED * (1.0 + SPEED_RANGE * action)  # [..., 4]
    climb = xp.sum(up * qvel[..., :3], axis=-1, keepdims=True)
    thrust = THRUST * wanted**2 - INFLOW * wanted * climb
    roll, pitch = (xp.sum(arms[:, axis] * thrust, axis=-1, keepdims=True) for axis in (1, 0))
    torque = roll * _axis(xp, qpos[..., 3:7], 0) - pitch * _axis(xp, qpos[..., 3:7], 1)
    return xp.concat([up * xp.sum(thrust, axis=-1, keepdims=True), torque, spins * wanted], axis=-1)


def applied_force(qpos: Any, qvel: Any, held: Any, *, timestep: float) -> Any:
    """Thrust, damping, and what spins the rotors: [..., 10], N and N m.

    Six of the free joint, its angular part in the drone's frame, and four of the rotors.
    """
    xp = qvel.__array_namespace__()
    inertia = xp.asarray(INERTIA, dtype=qvel.dtype)
    velocity, rate, rotor = qvel[..., :3], qvel[..., 3:6], qvel[..., 6:]
    thrust_torque = [xp.sum(held[..., 3:6] * _axis(xp, qpos[..., 3:7], axis), axis=-1) for axis in range(3)]
    turning = rotor + rate[..., 2:]  # of each rotor about its axis, in space
    drag = -ROTOR_INERTIA * bullet.DAMPING * xp.sum(turning * (1.0 + xp.abs(turning)), axis=-1, keepdims=True)
    tilting = -TILT_DAMPING * timestep * TILT_INERTIA * rate[..., :2]
    resistance = bullet.damping(inertia, rate) + xp.concat([tilting, drag], axis=-1)
    torque = xp.stack(thrust_torque, axis=-1) + resistance
    # the motor also makes up for the drag on its rotor, whose whole is in `torque`
    spin = ROTOR_INERTIA / timestep * (held[..., 6:] - rotor)
    return xp.concat([held[..., :3] + bullet.damping(MASS, velocity), torque, spin], axis=-1)


def _axis(xp: Any, quaternion: Any, index: int) -> Any:
    """An axis of the drone's frame in the world's [..., 3]; 2 is its vertical."""
    w, x, y, z = (quaternion[..., part] for part in range(4))
    if index == 0:
        parts = (1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + w * z), 2.0 * (x * z - w * y))
    elif index == 1:
        parts = (2.0 * (x * y - w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z + w * x))
    else:
        parts = (2.0 * (x * z + w * y), 2.0 * (y * z - w * x), 1.0 - 2.0 * (x * x + y * y))
    return xp.stack(parts, axis=-1)


def observe(view: View, *, circle: bool) -> Array:
    """[..., 17 or 18], see the module's first lines."""
    qpos, qvel = view.qpos, view.qvel
    turn = bullet.rotate(qpos[..., 3:7], qvel[..., 3:6])
    orientation = jnp.concatenate([qpos[..., 4:7], qpos[..., 3:4]], axis=-1)
    rotors = 2.5e-3 * (qvel[..., 6:] - HOVER_SPEED * jnp.asarray(SPINS, jnp.float32))
    parts = [0.1 * qpos[..., :3], 0.2 * qvel[..., :3], orientation, 0.1 * turn, rotors]
    return jnp.concatenate(parts + ([bullet.circle_observation(qpos)] if circle else []), axis=-1)


def fallen(view: View) -> Array:
    """[...] bool: turned over, its vertical axis below the horizon."""
    return _axis(jnp, view.qpos[..., 3:7], 2)[..., 2] < 0.0


def touching(view: View) -> Array:
    """[...] how many of the base and the four rotors touch the ground, by their lowest points."""
    height, quaternion = view.qpos[..., 2], view.qpos[..., 3:7]
    axes = jnp.stack([_axis(jnp, quaternion, index)[..., 2] for index in range(3)], axis=-1)  # their heights
    base = height - jnp.sum(jnp.abs(axes) * jnp.array(BOX), axis=-1)
    tilt = jnp.sqrt(jnp.maximum(0.0, 1.0 - axes[..., 2] ** 2))
    rotors = height[..., None] + axes @ jnp.asarray(ARMS.T, jnp.float32) - ROTOR_RADIUS * tilt[..., None]
    return jnp.sum(jnp.concatenate([base[..., None], rotors], axis=-1) < TOUCH, axis=-1).astype(jnp.float32)


def upright(view: View) -> Array:
    """[...] what every step pays for the way it flies."""
    spin = jnp.sum(jnp.square(view.qvel[..., 3:6]), axis=-1)
    return jnp.where(fallen(view), -10.0, 1.0) - 0.01 * spin - touching(view)


def run_reward(before: View, after: View, action: Array) -> Array:
    """[...]"""
    del action
    return bullet.run_reward(before.qpos, after.qpos) + upright(after)


def circle_reward(before: View, after: View, action: Array) -> Array:
    """[...]"""
    del before, action
    return bullet.circle_reward(after.qpos, after.qvel) + 0.01 * upright(after)


RUN = Task(
    name="drone_run",
    model="drone_run.xml",
    substeps=2,
    episode_length=200,
    observation_size=17,
    action_size=4,
    initialize=functools.partial(initialize, circle=False),
    observe=functools.partial(observe, circle=False),
    reward=run_reward,
    cost=lambda view: bullet.run_cost(view.qpos, view.qvel, SPEED_LIMIT),
    terminated=fallen,
    hold=hold,
    applied_force=functools.partial(applied_force, timestep=1 / 120),
    reference=DSRL["DroneRun"],
)

CIRCLE = Task(
    name="drone_circle",
    model="drone_circle.xml",
    substeps=6,
    episode_length=300,
    observation_size=18,
    action_size=4,
    initialize=functools.partial(initialize, circle=True),
    observe=functools.partial(observe, circle=True),
    reward=circle_reward,
    cost=lambda view: bullet.circle_cost(view.qpos),
    terminated=fallen,
    hold=hold,
    applied_force=functools.partial(applied_force, timestep=1 / 60),
    reference=DSRL["DroneCircle"],
)

TASKS = (RUN, CIRCLE)
