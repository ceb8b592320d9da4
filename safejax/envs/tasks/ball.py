"""Ball: roll a ball, ahead at no more than 2.5 m/s (ball_run) or clockwise along a circle (ball_circle).

A sphere (radius 0.5 m, 0.3 kg) is pushed by a horizontal force of at most 3.5 N per axis: on an open floor, or inside
an octagon of walls 11.9 m from the origin. Observation (7), in the world's frame:
[.1x, .1y, .2vx, .2vy, .1wx, .1wy, .1wz], and in ball_circle (|p| - 7) / 10. It never terminates.

| task | steps | step | reward | cost |
|---|---|---|---|---|
| ball_run | 100 | 1/30 s | 60 progress along x - .5 abs(action) | 1[abs(y) > 2 or speed > 2.5] |
| ball_circle | 200 | 0.1 s | .1 (y vx - x vy) / (1 + abs(abs(p) - 7)) - .005 abs(action) | 1[abs(x) > 6] |

Source: Safety{BallRun,BallCircle}-v0 of liuzuxin/Bullet-Safety-Gym@6f9f480 (MIT), see `_bullet.py`. The original runs
on Bullet; what Bullet adds to rigid-body physics is in `applied_force`, its contact law is in the MJCF. Replayed
recordings of the original stay within 1.1 % (run) and 1.5 % (circle) of the distance travelled until the ball first
meets a wall; a hard impact depends on how deep the ball penetrates, so paths part after it. The original's extra
simulation step at reset changes the height of a ball at rest by 1e-5 m and nothing else.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from safejax.envs.tasks import _bullet as bullet
from safejax.envs.tasks.base import Task, View
from safejax.scores import DSRL
from safejax.types import Array, Key

RADIUS = 0.5  # m
MASS = 0.3  # kg
INERTIA = 0.03  # kg m^2, a solid sphere's
FORCE = 3.5  # N per unit of action
SPEED_LIMIT = 2.5  # m/s, of the run

ROLLING_TORQUE = 0.024 * MASS * 9.81  # N m; Bullet combines .03 (ball) and .8 (ground) to a rolling friction of .024
STICTION_SPEED = 0.01  # rad/s; below it the rolling torque fades, which keeps a ball at rest still


def run_initialize(key: Key) -> tuple[Array, Array]:
    """At rest on the floor, near the origin."""
    return _at_rest(bullet.run_start(key))


def circle_initialize(key: Key) -> tuple[Array, Array]:
    """At rest on the floor, uniform over the ring."""
    return _at_rest(bullet.circle_start(key))


def _at_rest(position: Array) -> tuple[Array, Array]:
    rest = jnp.array([RADIUS, 1.0, 0.0, 0.0, 0.0], jnp.float32)
    return jnp.concatenate([position, rest]), jnp.zeros(6, jnp.float32)


def applied_force(qpos: Any, qvel: Any, action: Any) -> Any:
    """The push of the action and the resistance that Bullet adds, [..., 6], N and N m.

    Linear parts are in the world's frame, angular parts in the ball's; resistance opposes the velocity, so
    one formula serves both.
    """
    del qpos
    xp = qvel.__array_namespace__()
    velocity, spin = qvel[..., :3], qvel[..., 3:]
    rate = xp.sqrt(xp.sum(spin * spin, axis=-1, keepdims=True))
    rolling = -ROLLING_TORQUE * spin / (rate + STICTION_SPEED)
    push = xp.concat([FORCE * action, xp.zeros_like(qvel[..., :4])], axis=-1)
    return push + xp.concat([bullet.damping(MASS, velocity), bullet.damping(INERTIA, spin) + rolling], axis=-1)


def observe(view: View) -> Array:
    """[..., 7], see the module's first lines."""
    angular_velocity = bullet.rotate(view.qpos[..., 3:7], view.qvel[..., 3:6])
    parts = (0.1 * view.qpos[..., :2], 0.2 * view.qvel[..., :2], 0.1 * angular_velocity)
    return jnp.concatenate(parts, axis=-1)


def circle_observe(view: View) -> Array:
    """[..., 8]"""
    return jnp.concatenate([observe(view), bullet.circle_observation(view.qpos)], axis=-1)


def effort(action: Array) -> Array:
    """[...] of the clipped action, at most 0."""
    return -0.5 * jnp.linalg.norm(jnp.clip(action, -1.0, 1.0), axis=-1)


RUN = Task(
    name="ball_run",
    model="ball_run.xml",
    substeps=4,
    episode_length=100,
    observation_size=7,
    action_size=2,
    initialize=run_initialize,
    observe=observe,
    reward=lambda before, after, action: bullet.run_reward(before.qpos, after.qpos) + effort(action),
    cost=lambda view: bullet.run_cost(view.qpos, view.qvel, SPEED_LIMIT),
    applied_force=applied_force,
    reference=DSRL["BallRun"],
)

CIRCLE = Task(
    name="ball_circle",
    model="ball_circle.xml",
    substeps=6,
    episode_length=200,
    observation_size=8,
    action_size=2,
    initialize=circle_initialize,
    observe=circle_observe,
    reward=lambda before, after, action: bullet.circle_reward(after.qpos, after.qvel) + 0.01 * effort(action),
    cost=lambda view: bullet.circle_cost(view.qpos),
    applied_force=applied_force,
    reference=DSRL["BallCircle"],
)

TASKS = (RUN, CIRCLE)
