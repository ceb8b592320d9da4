"""Behaviour data, the way DSRL's was made: a safe policy learns under a moving cost limit and every episode is kept.

Liu et al. 2023, https://arxiv.org/abs/2306.09303 and its scripts/train_trpol_expert.py anneal the limit of one
TRPO-Lagrangian learner, so that the data holds timid, safe and reckless episodes; then episodes are thinned on a grid
of return and cost. Here any on-policy method with a limit will do (the benchmark takes PPO-Lagrangian).

Shapes: I iterations, B environments, T rollout length, N rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from safejax.data.dataset import Dataset, episode_returns, from_arrays, select_episodes
from safejax.data.grid import grid_filter
from safejax.training.diverged import lost_rows
from safejax.training.online import OnlineState, train_iteration
from safejax.types import Algorithm, Array, Env, EpisodeStats, Key, Metrics, Transition


def limit_schedule(
    iteration_count: int, start: float, end: float, hold: tuple[float, float] = (0.1, 0.9)
) -> np.ndarray:
    """Cost limits [I] float32: `start`, then linear between the two shares `hold` of the iterations, then `end`."""
    progress = np.arange(iteration_count) / max(iteration_count - 1, 1)
    return np.interp(progress, hold, (start, end)).astype(np.float32)


def collect(
    make_algorithm: Callable[[Array], Algorithm],
    env: Env,
    state: OnlineState,
    key: Key,
    limits: Array,
    *,
    rollout_length: int,
) -> tuple[OnlineState, tuple[Metrics, EpisodeStats, Transition]]:
    """Learn on-policy, one iteration under each cost limit, and keep all that was seen.

    Args:
      make_algorithm: cost limit [] (traced) -> an on-policy `Algorithm`.
      env: unbatched; B comes from `state`.
      state: from `init_online`.
      key: one for the whole run.
      limits: [I] cost units per episode.
      rollout_length: T.

    Returns:
      The state; metrics [I, 1], episode statistics [I, T, B] and transitions [I, B, T].
    """

    def iteration(state: OnlineState, limit: Array):
        state, metrics, episodes, transitions = train_iteration(
            make_algorithm(limit),
            env,
            state,
            key,
            rollout_length=rollout_length,
            updates_per_iteration=1,
            batch_size=0,
            replay=None,
        )
        return state, (metrics, episodes, transitions._replace(extras={}))

    return jax.lax.scan(iteration, state, jnp.asarray(limits))


def gather(
    parts: Sequence[Transition],
    *,
    cost_maximum: float,
    per_bin: int,
    minimum: int = 1,
    cost_bins: int = 60,
    return_bins: int = 50,
    seed: int = 0,
) -> Dataset:
    """One data set from the transitions of consecutive `collect` calls, thinned on a return x cost grid.

    Args:
      parts: transitions [..., I, B, T], in the order they were collected; leading axes (seeds) are separate learners.
      cost_maximum: episodes above this cost are dropped, cost units.
      per_bin: episodes kept in each cell of the grid.
      minimum: cells with fewer episodes are dropped as outliers (DSRL: 2).
      cost_bins, return_bins: cells of the grid.
      seed: of the random choice within a cell.

    Returns:
      A Dataset of whole episodes; the unfinished ones at the end of each environment's stream are dropped, and those
      whose simulation diverged.
    """
    everything = whole_episodes(parts)
    returns, costs, _ = episode_returns(everything)
    kept = grid_filter(
        np.asarray(returns),
        np.asarray(costs),
        return_bins=return_bins,
        cost_bins=cost_bins,
        per_bin=per_bin,
        minimum=minimum,
        cost_maximum=cost_maximum,
        seed=seed,
    )
    return select_episodes(everything, kept)


def whole_episodes(parts: Sequence[Transition]) -> Dataset:
    """One data set of every finished episode in consecutive rollouts, environment by environment.

    Args:
      parts: transitions [..., I, B, T], in the order they were collected; leading axes (seeds) are separate learners.

    Returns:
      A Dataset; the unfinished episodes at the end of each environment's stream are dropped, and those whose
      simulation diverged.
    """
    iterations = parts[0].reward.ndim - 3
    streams = jax.tree.map(lambda *leaves: _streams(leaves, iterations), *(part._replace(extras={}) for part in parts))
    whole = np.flip(np.maximum.accumulate(np.flip(streams.last, 1), 1), 1) > 0
    whole &= ~lost_rows(streams.reward, streams.last)
    rows = jax.tree.map(lambda leaf: leaf[whole], streams)
    return from_arrays(
        rows.observation,
        rows.action,
        rows.reward,
        rows.cost,
        terminals=rows.discount == 0,
        timeouts=(rows.last > 0) & (rows.discount > 0),
        next_observations=rows.next_observation,
    )


def _streams(parts: Sequence[Array], axis: int) -> np.ndarray:
    """[..., I, B, T, features], I at `axis` -> [streams, time, features]: each environment's steps in order."""
    joined = np.moveaxis(np.concatenate([np.asarray(part) for part in parts], axis=axis), axis, axis + 1)
    return joined.reshape(-1, joined.shape[axis + 1] * joined.shape[axis + 2], *joined.shape[axis + 3 :])
