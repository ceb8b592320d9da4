"""Data sets of behavior in a maze: wandering episodes, from whose parts a way to the goal can be put together."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import numpy as np

from safejax.data.dataset import Dataset, from_arrays
from safejax.envs.maze_behavior import Drive, make_behavior
from safejax.training.diverged import lost_rows
from safejax.training.rollout import Actors, rollout, start
from safejax.types import EpisodeStats, Transition, check_range


def collect_maze(
    name: str,
    kind: str,
    *,
    episode_count: int | None = None,
    step_count: int | None = None,
    seed: int = 0,
    engine: str | None = None,
    env_count: int = 64,
    drive: Drive | None = None,
) -> Dataset:
    """Data of the maze `name`, made by going from commanded goal to commanded goal.

    Exactly one of the two counts is given. The environments share it: each gives its first episodes, or its first
    steps, so that neither short nor long episodes are preferred. Episodes whose simulation diverged are left out.

    Args:
      name: a maze, such as "point_maze_medium".
      kind: "play" or "diverse", see `safejax.envs.maze_behavior`.
      episode_count: whole episodes.
      step_count: rows; the last episode of every environment is cut where its rows end, and counts as truncated.
      seed: of starts, goals and action noise.
      engine: as in `safejax.envs.make`.
      env_count: environments side by side; part of the recipe, as the seed is.
      drive: what moves the robot, see `safejax.envs.maze_behavior`; an ant needs one, a mass has its own.

    Returns:
      A Dataset of `episode_count` episodes or `step_count` rows, in which reward is 1 on terminal rows and 0 elsewhere.

    Raises:
      ValueError: an unknown name, kind or engine; an ant without a drive; both counts or neither; a count below 1.
    """
    name_of_count, count = ("step_count", step_count) if episode_count is None else ("episode_count", episode_count)
    if count is None or None not in (episode_count, step_count):
        found = f"episode_count is {episode_count} and step_count {step_count}"
        raise ValueError(f"{found}, expected one number and one None; give one of them")
    check_range(name_of_count, count, 1)
    check_range("env_count", env_count, 1)
    shares = np.full(env_count, count // env_count)
    shares[: count % env_count] += 1

    behavior, env = make_behavior(name, kind, engine, drive)
    key = jax.random.key(seed)
    actors = start(behavior, env, (), key, env_count)
    chunks, kept = [], None
    while kept is None:
        actors, chunk, _ = _player(name, kind, engine, drive)(actors, key)
        env.check()
        chunks.append(jax.tree.map(np.asarray, chunk))
        reward, last = (np.concatenate([getattr(part, field) for part in chunks]).T for field in ("reward", "last"))
        kept = _kept(reward, last, shares, whole=step_count is None)
    rows = jax.tree.map(lambda *parts: np.concatenate(parts).swapaxes(0, 1), *chunks)  # [B, T]
    return _cut(rows, kept)


def _kept(reward: np.ndarray, last: np.ndarray, shares: np.ndarray, *, whole: bool) -> np.ndarray | None:
    """[B, T] bool: the first `shares` [B] episodes, if `whole`, or steps of every environment; None: too few yet."""
    real = ~lost_rows(reward, last)
    counted = real & (last > 0) if whole else real
    if (counted.sum(1) < shares).any():
        return None
    return real & (np.cumsum(counted, axis=1) - counted < shares[:, None])


def _cut(rows: Transition, kept: np.ndarray) -> Dataset:
    """The rows [B, T] that are `kept`; each environment's last one ends its episode."""
    following = np.cumsum(kept, axis=1)
    terminal = rows.discount == 0
    timeout = ((rows.last > 0) | (following == following[:, -1:])) & ~terminal
    return from_arrays(
        rows.observation[kept],
        rows.action[kept],
        rows.reward[kept],
        rows.cost[kept],
        terminals=terminal[kept],
        timeouts=timeout[kept],
        next_observations=rows.next_observation[kept],
    )


@functools.cache
def _player(
    name: str, kind: str, engine: str | None, drive: Drive | None
) -> Callable[..., tuple[Actors, Transition, EpisodeStats]]:
    """(actors, key) -> the same after one episode length, and what they saw; compiled once."""
    behavior, env = make_behavior(name, kind, engine, drive)
    return jax.jit(functools.partial(rollout, behavior, env, (), length=env.episode_length, explore=True))
