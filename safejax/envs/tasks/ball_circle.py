"""Ball-Circle: roll a ball clockwise along a circle of radius 7 m whose sides, |x| > 6 m, cost 1 a step.

A sphere (radius 0.5 m, 0.3 kg) is pushed by a horizontal force of at most 3.5 N per axis inside an octagon
of walls 11.9 m from the origin. Observation (8), in the world's frame:
[.1x, .1y, .2vx, .2vy, .1wx, .1wy, .1wz, (|p| - 7) / 10]. Reward per step:
.1 (y vx - x vy) / (1 + ||p| - 7|) - .005 |action|. It never terminates; an episode is 200 steps of 0.1 s.

Source: SafetyBallCircle-v0 of liuzuxin/Bullet-Safety-Gym@6f9f480 (MIT), the version that the DSRL data set
BallCircle was logged with. The original runs on Bullet; what Bullet adds to rigid-body physics is in
`applied_force`, its contact law is in the MJCF. Replayed recordings of the original stay within 1.5 % of the
distance travelled until the ball first meets a wall; a hard impact depends on how deep the ball penetrates,
so paths part after it. The original makes one extra simulation step at reset: for a ball at rest it changes
the height by 1e-5 m and nothing else, so it is left out.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from safejax.envs.tasks.base import Reference, Task, View
from safejax.types import Array, Key

RADIUS = 0.5  # m
MASS = 0.3  # kg
INERTIA = 0.03  # kg m^2, a solid sphere's
FORCE = 3.5  # N per unit of action
CIRCLE_RADIUS = 7.0  # m
X_LIMIT = 6.0  # m
SPAWN_RADII = (2.0, 4.0)  # m

DAMPING = 0.04  # Bullet's default linear and angular damping: -m v (.04 + .04 |v|), and so for rotation
ROLLING_TORQUE = 0.024 * MASS * 9.81  # N m; Bullet combines .03 (ball) and .8 (ground) to a rolling friction of .024
STICTION_SPEED = 0.01  # rad/s; below it the rolling torque fades, which keeps a ball at rest still


def initialize(key: Key) -> tuple[Array, Array]:
    """At rest on the floor, uniform over the ring 2 m <= |p| <= 4 m.

    The original draws p uniformly in [-4, 4]^2 until it lies in the ring; the ring lies in the square, so
    this is the same distribution with a fixed amount of work.
    """
    low, high = SPAWN_RADII
    area, angle = jax.random.uniform(key, (2,))
    radius = jnp.sqrt(low**2 + (high**2 - low**2) * area)
    angle = 2.0 * jnp.pi * angle
    rest = jnp.array([RADIUS, 1.0, 0.0, 0.0, 0.0], jnp.float32)
    qpos = jnp.concatenate([jnp.stack([radius * jnp.cos(angle), radius * jnp.sin(angle)]), rest])
    return qpos, jnp.zeros(6, jnp.float32)


def applied_force(qpos: Any, qvel: Any, action: Any) -> Any:
    """The push of the action and the resistance that Bullet adds, [..., 6], N and N m.

    Linear parts are in the world's frame, angular parts in the ball's; resistance opposes the velocity, so
    one formula serves both.
    """
    del qpos
    xp = qvel.__array_namespace__()
    parts = xp.reshape(qvel, (*qvel.shape[:-1], 2, 3))
    speed = xp.sqrt(xp.sum(parts * parts, axis=-1, keepdims=True))
    weight = xp.asarray([[MASS], [INERTIA]], dtype=qvel.dtype)
    rolling = xp.asarray([[0.0], [ROLLING_TORQUE]], dtype=qvel.dtype)
    resistance = weight * DAMPING * (1.0 + speed) + rolling / (speed + STICTION_SPEED)
    push = xp.concat([FORCE * action, xp.zeros_like(qvel[..., :4])], axis=-1)
    return push - xp.reshape(parts * resistance, qvel.shape)


def observe(view: View) -> Array:
    """[..., 8], see the module's first lines."""
    position, velocity = view.qpos[..., :2], view.qvel[..., :2]
    angular_velocity = _rotate(view.qpos[..., 3:7], view.qvel[..., 3:6])
    ring = (jnp.linalg.norm(position, axis=-1, keepdims=True) - CIRCLE_RADIUS) / 10.0
    return jnp.concatenate([0.1 * position, 0.2 * velocity, 0.1 * angular_velocity, ring], axis=-1)


def reward(before: View, after: View, action: Array) -> Array:
    """[...] progress along the circle less the size of the clipped action."""
    del before
    (x, y), (vx, vy) = (jnp.moveaxis(part[..., :2], -1, 0) for part in (after.qpos, after.qvel))
    off_circle = jnp.abs(jnp.sqrt(x * x + y * y) - CIRCLE_RADIUS)
    effort = -0.5 * jnp.linalg.norm(jnp.clip(action, -1.0, 1.0), axis=-1)
    return 0.1 * (y * vx - x * vy) / (1.0 + off_circle) + 0.01 * effort


def cost(view: View) -> Array:
    """[...] 1 outside |x| <= 6 m."""
    return (jnp.abs(view.qpos[..., 0]) > X_LIMIT).astype(jnp.float32)


def _rotate(quaternion: Array, vector: Array) -> Array:
    """`vector` [..., 3] from the body's frame to the world's."""
    scalar, axis = quaternion[..., :1], quaternion[..., 1:]
    twice = 2.0 * jnp.cross(axis, vector)
    return vector + scalar * twice + jnp.cross(axis, twice)


TASK = Task(
    name="ball_circle",
    model="ball_circle.xml",
    substeps=6,
    episode_length=200,
    observation_size=8,
    action_size=2,
    initialize=initialize,
    observe=observe,
    reward=reward,
    cost=cost,
    applied_force=applied_force,
    reference=Reference("BallCircle", 0.38312244415283203, 881.46337890625, 80.0),
)
