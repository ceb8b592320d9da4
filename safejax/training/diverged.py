"""Rows of simulations that diverged, which no batch and no data set may hold; their reward is NaN.

The replay leaves them out by itself. Shapes: B environments, T time.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from safejax.types import Transition


def real_rows(transitions: Transition) -> Transition:
    """A rollout [B, T] with a real row in every place.

    A row of a simulation that diverged becomes a copy of the real row before it. Both end their trajectory (`last` is
    1), so that each is learned from by itself: nothing leads across the gap, and one row counts twice. At a rollout's
    start the row before it is another environment's. Without any real row all rewards stay NaN, and so does the loss.
    """
    axes = transitions.reward.shape
    real = ~jnp.isnan(transitions.reward)
    gap_follows = jnp.concatenate([~real[:, 1:], jnp.zeros((axes[0], 1), bool)], axis=1)
    transitions = transitions._replace(last=jnp.where(gap_follows | ~real, 1.0, transitions.last))
    flat = real.ravel()
    latest = jax.lax.cummax(jnp.where(flat, jnp.arange(flat.size), -1))
    source = jnp.where(latest < 0, jnp.argmax(flat), latest)
    filled = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[source].reshape(leaf.shape), transitions)
    return filled._replace(last=transitions.last)


def lost_rows(reward: np.ndarray, last: np.ndarray) -> np.ndarray:
    """[B, T] bool: the rows of episodes whose simulation diverged, from reward and last [B, T]."""
    steps = np.arange(last.shape[1])
    ends = np.where(np.asarray(last) > 0, steps, steps[-1])
    ends = np.flip(np.minimum.accumulate(np.flip(ends, 1), 1), 1)  # of each row's episode, or the last row
    return np.isnan(np.take_along_axis(np.asarray(reward), ends, 1))
