"""The two worlds of Bullet-Safety-Gym, for any robot: run ahead without haste, or circle without leaving the strip.

Positions are of the robot's base, in the world's frame. Run pays 60 a metre towards a point 1 km away along x; a step
costs 1 above a speed or beyond |y| = 2 m. Circle pays for going round clockwise at 7 m from the origin; a step costs 1
beyond |x| = 6 m. What a robot adds of its own, its file says.

Source: envs/tasks.py of liuzuxin/Bullet-Safety-Gym@6f9f480 (MIT), the version that DSRL's data sets were logged with;
recomputed from recorded float32 states, rewards agree within 1e-4 (run) and 1e-6 (circle). Left out: the one simulation
step that the original makes at reset, and motor targets that survive a reset there.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from safejax.types import Array, Key

RUN_GOAL = 1000.0  # m along x
RUN_PAY = 60.0  # per m
RUN_SPREAD = 0.01  # m, half width of the start
RUN_Y_LIMIT = 2.0  # m

CIRCLE_RADIUS = 7.0  # m
CIRCLE_X_LIMIT = 6.0  # m
SPAWN_RADII = (2.0, 4.0)  # m

DAMPING = 0.04  # Bullet's default on every link: -m v (.04 + .04 |v|), and -I w (.04 + .04 |w|)


def run_start(key: Key) -> Array:
    """[2] a position near the origin."""
    return jax.random.uniform(key, (2,), minval=-RUN_SPREAD, maxval=RUN_SPREAD)


def run_reward(before: Array, after: Array) -> Array:
    """60 times how much nearer the goal came; positions [..., 2 or 3] -> [...].

    The difference of two distances of 1000 m, written so that float32 keeps it: (b^2 - a^2) / (b + a).
    """
    goal = jnp.array([RUN_GOAL, 0.0])
    before, after = before[..., :2], after[..., :2]
    distances = jnp.linalg.norm(before - goal, axis=-1) + jnp.linalg.norm(after - goal, axis=-1)
    return -RUN_PAY * jnp.sum((after - before) * (after + before - 2.0 * goal), axis=-1) / distances


def run_cost(position: Array, velocity: Array, speed_limit: float) -> Array:
    """1 beyond the lines or above the speed in the plane; [..., 2 or 3] -> [...]."""
    fast = jnp.linalg.norm(velocity[..., :2], axis=-1) > speed_limit
    return (fast | (jnp.abs(position[..., 1]) > RUN_Y_LIMIT)).astype(jnp.float32)


def circle_start(key: Key) -> Array:
    """[2] a position uniform over the ring 2 m <= |p| <= 4 m.

    The original draws uniformly in [-4, 4]^2 until it lies in the ring; the ring lies in the square, so this is the
    same distribution with a fixed amount of work.
    """
    low, high = SPAWN_RADII
    area, angle = jax.random.uniform(key, (2,))
    radius, angle = jnp.sqrt(low**2 + (high**2 - low**2) * area), 2.0 * jnp.pi * angle
    return jnp.stack([radius * jnp.cos(angle), radius * jnp.sin(angle)])


def circle_reward(position: Array, velocity: Array) -> Array:
    """Clockwise progress, less far from the circle; [..., 2 or 3] -> [...]."""
    (x, y), (vx, vy) = (jnp.moveaxis(part[..., :2], -1, 0) for part in (position, velocity))
    return 0.1 * (y * vx - x * vy) / (1.0 + jnp.abs(jnp.sqrt(x * x + y * y) - CIRCLE_RADIUS))


def circle_cost(position: Array) -> Array:
    """1 outside |x| <= 6 m; [..., 2 or 3] -> [...]."""
    return (jnp.abs(position[..., 0]) > CIRCLE_X_LIMIT).astype(jnp.float32)


def circle_observation(position: Array) -> Array:
    """What Circle adds to a robot's observation: the distance from the circle / 10; [..., 2 or 3] -> [..., 1]."""
    return (jnp.linalg.norm(position[..., :2], axis=-1, keepdims=True) - CIRCLE_RADIUS) / 10.0


def damping(weight: Any, velocity: Any) -> Any:
    """Bullet's damping of one link, [..., 3]: a force of its mass, or, about each axis, a torque of its inertias.

    Array API: NumPy or JAX. The frame is that of `velocity`.
    """
    xp = velocity.__array_namespace__()
    speed = xp.sqrt(xp.sum(velocity * velocity, axis=-1, keepdims=True))
    return -weight * DAMPING * (1.0 + speed) * velocity


def rotate(quaternion: Array, vector: Array) -> Array:
    """`vector` [..., 3] from a body's frame to the world's; quaternion [..., 4] w, x, y, z."""
    scalar, axis = quaternion[..., :1], quaternion[..., 1:]
    twice = 2.0 * jnp.cross(axis, vector)
    return vector + scalar * twice + jnp.cross(axis, twice)
