"""An ant that walks in a given direction: what moves it from waypoint to waypoint when maze data are made.

The plane looks the same in all directions, so an ant that runs along x whichever way it faces runs anywhere: turn what
it sees until the target lies along x. SAC without costs learns that on open ground, facing and drifting any way.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import safejax
from safejax import envs, training
from safejax.algorithms import sac_lag
from safejax.envs.tasks import Task, View
from safejax.envs.tasks.ant_maze import HEIGHT, NOISE
from safejax.multipliers import MultiplierConfig
from safejax.runs import Run
from safejax.types import Array, Key, example_transition

SPEED = 2.0  # m/s beyond which nothing is paid
STEP = 0.1  # s, the mazes'
SIDEWAYS, EFFORT, UPRIGHT = 0.5, 0.05, 0.5  # weights of the speed aside, of |action|^2, and pay of every step
LEAST_UPRIGHT = 0.2  # cosine of the torso's tilt
VELOCITY_CLIP = 10.0  # on what is observed

SAC = sac_lag.Config(
    reward_scale=1.0,
    discount_factor=0.97,
    critic_learning_rate=1e-3,
    initial_temperature=0.2,
    multiplier=MultiplierConfig(maximum=0.0),
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the walker is made; steps are environment steps."""

    steps: int = 400_000
    env_count: int = 16
    updates_per_iteration: int = 4  # of one step in every environment
    chunk_steps: int = 20_000
    hidden_sizes: tuple[int, ...] = (128, 128)
    batch_size: int = 256
    seed: int = 0


def _initialize(key: Key) -> tuple[Array, Array]:
    """Standing, turned any way, at up to 1 m/s along each axis."""
    yaw_key, joint_key, drift_key, velocity_key = jax.random.split(key, 4)
    half = jax.random.uniform(yaw_key, maxval=jnp.pi)
    pose = jnp.array([0.0, 0.0, HEIGHT, jnp.cos(half), 0.0, 0.0, jnp.sin(half)])
    joints = jax.random.uniform(joint_key, (8,), minval=-NOISE, maxval=NOISE)
    drift = jax.random.uniform(drift_key, (2,), minval=-1.0, maxval=1.0)
    qvel = NOISE * jax.random.normal(velocity_key, (14,))
    return jnp.concatenate([pose, joints]), qvel.at[:2].set(drift)


def _observe(view: View) -> Array:
    return _seen(jnp.concatenate([view.qpos, view.qvel], axis=-1))


def _seen(state: Array) -> Array:
    """[..., 27] of a maze's observation [..., 29]: without x and y, velocities clipped."""
    return jnp.concatenate([state[..., 2:15], jnp.clip(state[..., 15:], -VELOCITY_CLIP, VELOCITY_CLIP)], axis=-1)


def _reward(before: View, after: View, action: Array) -> Array:
    along, aside = jnp.moveaxis((after.qpos[..., :2] - before.qpos[..., :2]) / STEP, -1, 0)
    effort = jnp.sum(jnp.square(action), axis=-1)
    return jnp.minimum(along, SPEED) - SIDEWAYS * jnp.abs(aside) + UPRIGHT - EFFORT * effort


def _fallen(view: View) -> Array:
    height, tilt = view.qpos[..., 2], view.qpos[..., 4:6]
    cosine = 1.0 - 2.0 * jnp.sum(jnp.square(tilt), axis=-1)
    return (cosine < LEAST_UPRIGHT) | (height < 0.2) | (height > 1.2)


TASK = Task(
    name="ant_walk",
    model="ant.xml",
    substeps=10,
    episode_length=200,
    observation_size=27,
    action_size=8,
    initialize=_initialize,
    observe=_observe,
    reward=_reward,
    cost=lambda view: jnp.zeros(view.qpos.shape[:-1]),
    terminated=_fallen,
    control=lambda action: action,
)


def train(cache: Path, recipe: Recipe = Recipe(), engine: str | None = None) -> Any:
    """The actor's parameters; learned now, or continued, unless they are in `cache`."""
    about = {"benchmark": "ant_walker", "engine": engine, "safejax": safejax.__version__}
    about |= asdict(recipe) | {"sac": asdict(SAC)}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
    env = envs.make(TASK, engine)
    algorithm = sac_lag.make(SAC, sac_lag.default_networks(env.action_size, recipe.hidden_sizes))
    key = jax.random.key(recipe.seed)
    replay = training.replay_for(algorithm.batch, recipe.steps, recipe.env_count)

    def chunk(updates: int, state: Any) -> tuple[Any, Any]:
        state, (_, episodes) = training.train_online(
            algorithm,
            env,
            state,
            key,
            iteration_count=recipe.chunk_steps // recipe.env_count,
            rollout_length=1,
            updates_per_iteration=updates,
            batch_size=recipe.batch_size,
            replay=replay,
        )
        finished = jnp.maximum(episodes.finished.sum(), 1)
        return state, jnp.where(episodes.finished, episodes.episode_return, 0.0).sum() / finished

    warm_up, learn = (
        jax.jit(functools.partial(chunk, updates), donate_argnums=0) for updates in (0, recipe.updates_per_iteration)
    )

    def initial() -> Any:
        learner = algorithm.init(key, example_transition(env))
        return training.init_online(algorithm, env, learner, key, env_count=recipe.env_count, replay=replay)

    def advance(state: Any, index: int) -> tuple[Any, dict[str, Any]]:
        state, episode_return = (warm_up if index == 0 else learn)(state)
        return state, {"env_steps": (index + 1) * recipe.chunk_steps, "return": float(episode_return)}

    cache.mkdir(parents=True, exist_ok=True)
    with Run.open(cache / f"ant_walker-{digest}", about) as run:
        count = recipe.steps // recipe.chunk_steps
        state = run.stage("sac", initial, advance, count, check=env.check)
    return jax.tree.map(np.asarray, state.learner.actor.params)


def drive(params: Any, recipe: Recipe = Recipe()) -> Callable[[Array, Array], Array]:
    """(observations of a maze [B, 29], targets [B, 2]) -> actions [B, 8] that walk there."""
    actor = sac_lag.default_networks(8, recipe.hidden_sizes).actor

    def act(observation: Array, target: Array) -> Array:
        return actor.apply(params, _seen(towards_x(observation, target))).mode()

    return act


def towards_x(observation: Array, target: Array) -> Array:
    """`observation` [..., 29] with the world turned about z until `target` [..., 2] lies along x from the torso.

    The place stays as it is; angular velocities are in the torso's frame and joints know no world.
    """
    way = target - observation[..., :2]
    angle = -jnp.arctan2(way[..., 1], way[..., 0])
    c, s = jnp.cos(angle / 2), jnp.sin(angle / 2)
    w, x, y, z = jnp.moveaxis(observation[..., 3:7], -1, 0)
    orientation = jnp.stack([c * w - s * z, c * x - s * y, c * y + s * x, c * z + s * w], axis=-1)
    c, s = jnp.cos(angle), jnp.sin(angle)
    vx, vy = observation[..., 15], observation[..., 16]
    velocity = jnp.stack([c * vx - s * vy, s * vx + c * vy], axis=-1)
    parts = [observation[..., :3], orientation, observation[..., 7:15], velocity, observation[..., 17:]]
    return jnp.concatenate(parts, axis=-1)
