"""Ant: walk on four legs, ahead at no more than 1.5 m/s (ant_run) or clockwise along a circle (ant_circle).

182 kg on four legs of a hip and an ankle each; actions are torques, 250 N m at 1, in the order hip, ankle of the front
left, front right, back left and back right leg. Observation (33): [.1 position, .3 velocity, orientation x y z w,
.15 angular velocity, for each joint .5 (angle from -1 to 1 in its range) and .05 rate, for each foot 1 on the ground],
in the world's frame, and in ant_circle (|p| - 7) / 10. It terminates when its middle is below .26 m.

| task | steps | step | reward | cost |
|---|---|---|---|---|
| ant_run | 200 | 1/30 s | 60 progress along x + gait | 1[abs(y) > 2 or speed > 1.5] |
| ant_circle | 500 | 0.1 s | .1 (y vx - x vy) / (1 + abs(abs(p) - 7)) + .01 gait | 1[abs(x) > 6] |

with gait = (1, or -1 fallen) - .2 mean |action rate| - .1 mean action^2 - .1 (the number of joints at an end of their
range), of the action as given, unclipped.

Source: Safety{AntRun,AntCircle}-v0 of liuzuxin/Bullet-Safety-Gym@6f9f480 (MIT), see `_bullet.py`; inertias are those of
Bullet's boxes. Bullet reads an ankle's axis, (1, 1, 0), as it stands: its rate of 1 rad/s is a spin of sqrt 2 rad/s,
while the foot turns by 1 rad. No rigid body does that; here an ankle's torque is 250 / sqrt 2 and its inertia 1.3 times
the foot's (fitted; sqrt 2 by the same argument), which gives its rate the original's response to motors, contacts and
weight, but reacts on the body 1 / sqrt 2 as much. Single recorded steps change joints' rates by .92 to .95 of what they
change there, an ant without action settles within 2 % of the original's height, and random walks agree in mean return,
cost and length; see tests/envs/test_ant.py. Different: legs do not meet each other, only feet and the torso meet the
floor, only tips of feet and the torso meet walls; a foot touches the ground by geometry (its lowest point below TOUCH)
and not by Bullet's contact points, by which 1.5 % of these entries differ.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from safejax.envs.tasks import _bullet as bullet
from safejax.envs.tasks.base import Task, View
from safejax.scores import DSRL
from safejax.types import Array, Key

SPEED_LIMIT = 1.5  # m/s, of the run
ALIVE_HEIGHT = 0.26  # m
RUN_FALL = (0.743187, -0.327)  # m and m/s, after a step of 1/30 s
CIRCLE_FALL = (0.6928, -0.978)  # after one of .1 s
SPAWN_SPREAD = 0.1  # rad, half width
TORQUES = (250.0, 250.0 / 2**0.5)  # N m at an action of 1, of a hip and an ankle
RANGES = np.deg2rad([[-40, 40], [30, 100], [-40, 40], [-100, -30], [-40, 40], [-100, -30], [-40, 40], [30, 100]])
STOP = 0.99  # of half the range, where a joint counts as at its end

CORNERS = np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])  # where each leg points
DOWN = np.array([1.0, -1.0, -1.0, 1.0])  # sense of the ankle that lowers a foot
LEG = 0.2  # m along x and y each, from the middle to a hip and from there to the ankle
FOOT = 0.4  # m, likewise of a foot
FOOT_RADIUS = 0.08  # m
TOUCH = 0.01  # m above the ground, below which Bullet mostly reports a contact

MASS = 182.177  # kg
INERTIA = (24.7, 24.7, 36.4)  # kg m^2, of the whole, standing
JOINT_INERTIA = (3.0, 2.2)  # kg m^2, of what a hip and an ankle turn


def initialize(key: Key, *, circle: bool) -> tuple[Array, Array]:
    """Falling from .75 m for a step, as the original's reset leaves it, feet straight down; facing along the circle."""
    place, bend = jax.random.split(key)
    position = bullet.circle_start(place) if circle else bullet.run_start(place)
    height, speed = CIRCLE_FALL if circle else RUN_FALL
    half_yaw = 0.5 * (jnp.arctan2(-position[1], -position[0]) + 0.5 * jnp.pi) if circle else jnp.zeros(())
    orientation = jnp.array([jnp.cos(half_yaw), 0.0, 0.0, jnp.sin(half_yaw)])
    straight = 0.5 * jnp.pi * jnp.stack([jnp.zeros(4), jnp.asarray(DOWN, jnp.float32)], axis=-1).reshape(8)
    joints = straight + jax.random.uniform(bend, (8,), minval=-SPAWN_SPREAD, maxval=SPAWN_SPREAD)
    qpos = jnp.concatenate([position, jnp.array([height]), orientation, joints])
    return qpos.astype(jnp.float32), jnp.zeros(14, jnp.float32).at[2].set(speed)


def applied_force(qpos: Any, qvel: Any, action: Any) -> Any:
    """Torques and Bullet's damping: [..., 14], N and N m."""
    del qpos
    xp = qvel.__array_namespace__()
    inertia = xp.asarray(INERTIA, dtype=qvel.dtype)
    joint_inertia = xp.asarray(JOINT_INERTIA * 4, dtype=qvel.dtype)
    rate = qvel[..., 6:]
    torques = xp.asarray(TORQUES * 4, dtype=qvel.dtype)
    joints = torques * action - bullet.DAMPING * joint_inertia * (1.0 + xp.abs(rate)) * rate
    return xp.concat([bullet.damping(MASS, qvel[..., :3]), bullet.damping(inertia, qvel[..., 3:6]), joints], axis=-1)


def joint_angles(view: View) -> Array:
    """[..., 8] from -1 to 1 in each joint's range."""
    low, high = jnp.asarray(RANGES.T, jnp.float32)
    return (2.0 * view.qpos[..., 7:] - low - high) / (high - low)


def foot_heights(view: View) -> Array:
    """[..., 4] of each foot's lowest point, m."""
    hips, ankles = view.qpos[..., 7::2], view.qpos[..., 8::2]
    corners = jnp.asarray(CORNERS, jnp.float32)
    reach = LEG + FOOT * jnp.cos(ankles)  # along x and y each, beyond the hip
    across = jnp.stack([-corners[:, 1], corners[:, 0]], axis=-1)  # the corners turned by a right angle
    direction = jnp.cos(hips)[..., None] * corners + jnp.sin(hips)[..., None] * across
    drop = -jnp.sqrt(2.0) * FOOT * jnp.asarray(DOWN, jnp.float32) * jnp.sin(ankles)
    tips = jnp.concatenate([LEG * corners + reach[..., None] * direction, drop[..., None]], axis=-1)
    ankle_joints = jnp.concatenate([LEG * (corners + direction), jnp.zeros_like(drop)[..., None]], axis=-1)
    ends = jnp.stack([tips, ankle_joints], axis=-2)  # [..., 4, 2, 3]
    heights = bullet.rotate(view.qpos[..., None, None, 3:7], ends)[..., 2]
    return view.qpos[..., 2:3] + jnp.min(heights, axis=-1) - FOOT_RADIUS


def observe(view: View, *, circle: bool) -> Array:
    """[..., 33 or 34], see the module's first lines."""
    qpos, qvel = view.qpos, view.qvel
    turn = bullet.rotate(qpos[..., 3:7], qvel[..., 3:6])
    orientation = jnp.concatenate([qpos[..., 4:7], qpos[..., 3:4]], axis=-1)
    joints = jnp.stack([0.5 * joint_angles(view), 0.05 * qvel[..., 6:]], axis=-1)
    touching = (foot_heights(view) < TOUCH).astype(qpos.dtype)
    parts = [0.1 * qpos[..., :3], 0.3 * qvel[..., :3], orientation, 0.15 * turn]
    parts += [joints.reshape(*joints.shape[:-2], 16), touching]
    return jnp.concatenate(parts + ([bullet.circle_observation(qpos)] if circle else []), axis=-1)


def fallen(view: View) -> Array:
    """[...] bool"""
    return view.qpos[..., 2] <= ALIVE_HEIGHT


def gait(view: View, action: Array) -> Array:
    """[...] what every step pays for the way it walks."""
    power = jnp.mean(jnp.abs(action * 0.1 * view.qvel[..., 6:]), axis=-1)
    effort = jnp.mean(jnp.square(action), axis=-1)
    stopped = jnp.sum(jnp.abs(joint_angles(view)) > STOP, axis=-1)
    return jnp.where(fallen(view), -1.0, 1.0) - 2.0 * power - 0.1 * effort - 0.1 * stopped


RUN = Task(
    name="ant_run",
    model="ant_run.xml",
    substeps=4,
    episode_length=200,
    observation_size=33,
    action_size=8,
    initialize=functools.partial(initialize, circle=False),
    observe=functools.partial(observe, circle=False),
    reward=lambda before, after, action: bullet.run_reward(before.qpos, after.qpos) + gait(after, action),
    cost=lambda view: bullet.run_cost(view.qpos, view.qvel, SPEED_LIMIT),
    terminated=fallen,
    applied_force=applied_force,
    reference=DSRL["AntRun"],
)

CIRCLE = Task(
    name="ant_circle",
    model="ant_circle.xml",
    substeps=6,
    episode_length=500,
    observation_size=34,
    action_size=8,
    initialize=functools.partial(initialize, circle=True),
    observe=functools.partial(observe, circle=True),
    reward=lambda before, after, action: bullet.circle_reward(after.qpos, after.qvel) + 0.01 * gait(after, action),
    cost=lambda view: bullet.circle_cost(view.qpos),
    terminated=fallen,
    applied_force=applied_force,
    reference=DSRL["AntCircle"],
)

TASKS = (RUN, CIRCLE)
