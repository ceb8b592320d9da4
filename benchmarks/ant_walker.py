"""A policy that walks: python benchmarks/ant_walker.py trains one; `behavior.py` makes data of the ant's mazes with it.

PPO without costs, on a floor without walls, learns to move the ant of `ant_maze` straight to a place; when it is there,
or now and then, to another. The policy sees nothing of the maze: it is the `Drive` of `safejax.envs.maze_behavior`.
Walkers go to the cache, beside the data sets, named by a digest of their recipe; the same command continues one that
was stopped. Data are made with the walker of the default numbers.
Shapes: B environments.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from data_sum import recipe_digest
from offline_to_online import OneLineParser, at_least, choose_engine

import safejax
from safejax import envs, training
from safejax.algorithms import ppo_lag
from safejax.envs.maze_behavior import Drive
from safejax.envs.tasks import Start, Task, View
from safejax.envs.tasks.ant_maze import NOISE, stance
from safejax.multipliers import MultiplierConfig
from safejax.runs import Run
from safejax.types import Array, Key, example_transition

STEP = 0.1  # s
NEAR = 0.5  # m, of a place that is reached
TURN = 0.02  # probability of another place, a step
DISTANCE = (2.0, 6.0)  # m, of the next place
EFFORT = 0.2  # price of the mean squared action; without it more of the data lies on the bounds
RATES = 0.1  # scale of velocities in what the walker sees


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a walker is trained."""

    steps: int = 4_000_000  # of the environments
    env_count: int = 64
    rollout_length: int = 128
    chunk: int = 25  # updates between checkpoints
    hidden_sizes: tuple[int, ...] = (128, 128)
    seed: int = 0

    @property
    def chunk_steps(self) -> int:
        """Environment steps between checkpoints."""
        return self.chunk * self.env_count * self.rollout_length


PPO = ppo_lag.Config(
    learning_rate=3e-4, epoch_count=5, minibatch_count=8, cost_limit=1e9, multiplier=MultiplierConfig(maximum=0.0)
)


def seen(qpos: Array, qvel: Array, target: Array) -> Array:
    """What the walker sees, [..., 28]; nothing of where it is, but the direction of its target.

    Height, the world's up in the body's frame, angles of the joints; velocity, turned with the ant's heading; rates of
    the body and the joints; direction of the target, turned likewise.

    Args:
      qpos: [..., 15] m, rad.
      qvel: [..., 14] m/s, rad/s.
      target: [..., 2] m.
    """
    w, x, y, z = jnp.moveaxis(qpos[..., 3:7], -1, 0)
    up = jnp.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], axis=-1)
    heading = jnp.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    cosine, sine = jnp.cos(heading), jnp.sin(heading)

    def turned(vector: Array) -> Array:
        ahead, left = vector[..., 0], vector[..., 1]
        return jnp.stack([cosine * ahead + sine * left, cosine * left - sine * ahead], axis=-1)

    away = target - qpos[..., :2]
    direction = away / jnp.maximum(jnp.linalg.norm(away, axis=-1, keepdims=True), 1e-6)
    rates = RATES * jnp.concatenate([turned(qvel[..., :2]), qvel[..., 2:]], axis=-1)
    return jnp.concatenate([qpos[..., 2:3], up, qpos[..., 7:], rates, turned(direction)], axis=-1)


def walk() -> Task:
    """Walk to a place: reward is the speed towards it (m/s), at most 2, and a little for standing, less the effort.

    An episode has 200 steps; a fall, or an orientation far from upright, terminates it.
    """

    def place(key: Key, around: Array) -> Array:
        angle_key, distance_key = jax.random.split(key)
        angle = jax.random.uniform(angle_key, (), maxval=2 * jnp.pi)
        distance = jax.random.uniform(distance_key, (), minval=DISTANCE[0], maxval=DISTANCE[1])
        return around + distance * jnp.stack([jnp.cos(angle), jnp.sin(angle)])

    def initialize(key: Key) -> Start:
        heading_key, noise_key, velocity_key, place_key = jax.random.split(key, 4)
        heading = jax.random.uniform(heading_key, (), maxval=2 * jnp.pi)
        qpos = jnp.concatenate([jnp.zeros(2), stance(noise_key, heading)])
        return Start(qpos, NOISE * jax.random.normal(velocity_key, (14,)), place(place_key, jnp.zeros(2)))

    def rearrange(view: View, key: Key) -> Array:
        turn_key, place_key = jax.random.split(key)
        reached = jnp.linalg.norm(view.layout - view.qpos[:2]) < NEAR
        turns = reached | (jax.random.uniform(turn_key) < TURN)
        return jnp.where(turns, place(place_key, view.qpos[:2]), view.layout)

    def reward(before: View, after: View, action: Array) -> Array:
        left, still = (jnp.linalg.norm(view.qpos[..., :2] - before.layout, axis=-1) for view in (before, after))
        return jnp.clip((left - still) / STEP, -2.0, 2.0) + 0.2 - EFFORT * jnp.mean(jnp.square(action), axis=-1)

    def terminated(view: View) -> Array:
        up = 1 - 2 * jnp.sum(jnp.square(view.qpos[..., 4:6]), axis=-1)
        height = view.qpos[..., 2]
        return ~((up > 0.3) & (height > 0.3) & (height < 1.2) & jnp.all(jnp.isfinite(view.qpos), axis=-1))

    return Task(
        name="ant_walk",
        model="ant.xml",
        substeps=10,
        episode_length=200,
        observation_size=28,
        action_size=8,
        initialize=initialize,
        observe=lambda view: seen(view.qpos, view.qvel, view.layout),
        reward=reward,
        cost=lambda view: jnp.zeros(view.qpos.shape[:-1], jnp.float32),
        terminated=terminated,
        control=lambda action: action,
        rearrange=rearrange,
    )


def walker(cache: Path, recipe: Recipe = Recipe(), engine: str | None = None) -> Drive:
    """The walker of this recipe, trained now unless `cache` holds it."""
    return _drive(_trained(cache, recipe, engine), recipe)


def about(recipe: Recipe, engine: str | None) -> dict[str, Any]:
    """Everything that a walker depends on."""
    return {"engine": engine, "safejax": safejax.__version__, **asdict(recipe), "ppo": asdict(PPO)}


def _trained(cache: Path, recipe: Recipe, engine: str | None) -> Any:
    """The learner's last state."""
    env = envs.make(walk(), engine)
    algorithm = _algorithm(env.action_size, recipe)
    key = jax.random.key(recipe.seed)
    made_by = about(recipe, engine)
    digest = recipe_digest(made_by)
    # limits change nothing: the multiplier stays 0
    limits = jnp.full((recipe.chunk,), PPO.cost_limit)

    def initial() -> training.OnlineState:
        learner = algorithm.init(key, example_transition(env))
        return training.init_online(algorithm, env, learner, key, env_count=recipe.env_count, replay=None)

    @functools.partial(jax.jit, donate_argnums=0)
    def learn(state: Any) -> Any:
        state, (_, episodes, _) = training.collect(
            lambda limit: algorithm, env, state, key, limits, rollout_length=recipe.rollout_length
        )
        count = jnp.maximum(jnp.sum(episodes.finished), 1)
        total = jnp.sum(jnp.where(episodes.finished, episodes.episode_return, 0.0))
        return state, (total / count, episodes.finished.size / count)

    def advance(state: Any, index: int) -> tuple[Any, dict[str, Any]]:
        state, (returns, length) = learn(state)
        return state, {"env_steps": (index + 1) * recipe.chunk_steps, "return": float(returns), "length": float(length)}

    with Run.open(cache / f"ant-walker-{digest}", {"benchmark": "ant_walker", **made_by}) as run:
        return run.stage("walker", initial, advance, recipe.steps // recipe.chunk_steps, check=env.check).learner


def _algorithm(action_size: int, recipe: Recipe) -> Any:
    return ppo_lag.make(PPO, ppo_lag.default_networks(action_size, recipe.hidden_sizes))


def _drive(state: Any, recipe: Recipe) -> Drive:
    act = _algorithm(8, recipe).act

    def drive(observation: Array, target: Array) -> Array:
        """(observations [B, 29] of `ant_maze`, targets [B, 2] in m) -> actions [B, 8]."""
        features = seen(observation[:, :15], observation[:, 15:], target)
        action, *_ = act(state, features, jax.random.key(0), (), explore=False)
        return action

    return drive


def main(arguments: list[str] | None = None) -> None:
    """Train a walker, or say that it is there."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--steps", type=int, default=Recipe.steps, help="of the environments (default: %(default)s)")
    add("--seed", type=int, default=0, help="(default: %(default)s)")
    add("--engine", default=None, help="mujoco, mjx or warp (default: mujoco on CPU, mjx elsewhere)")
    add("--cache", type=Path, default=Path(os.environ.get("SAFEJAX_CACHE", "~/.cache/safejax")).expanduser())
    options = parser.parse_args(arguments)
    recipe = Recipe(steps=options.steps, seed=options.seed)
    at_least("steps", recipe.steps, recipe.chunk_steps)
    choose_engine(options.engine)
    walker(options.cache / "datasets", recipe, options.engine)


if __name__ == "__main__":
    sys.exit(main())
