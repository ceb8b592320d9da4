"""From what a file holds to what a transition needs: the one place where ends and next observations are derived.

- `discount` is 0 where the task ended the episode (terminals) and 1 elsewhere; `last` is 1 there, at timeouts and on
  the last row of all.
- `next_observation` is what the file holds under that name. Where it holds none, it is the next row's observation:
  at a terminal, where nothing follows, the row's own; it is multiplied by the discount 0. A row that was cut off has a
  successor that nobody wrote down, so a reader drops it and the row before ends the episode, as d4rl's
  qlearning_dataset and ogbench's load_dataset do. (d4rl drops the very last row even if it is terminal; we keep it.)
"""

from __future__ import annotations

import jax
import numpy as np

from safejax.data.checks import SCALAR_KEYS, Columns


def flat_scalars(columns: Columns) -> Columns:
    """Scalars [N, 1] as [N]."""
    squeezed = {
        name: array[:, 0]
        for name in SCALAR_KEYS
        if name in columns and (array := np.asarray(columns[name])).shape[1:] == (1,)
    }
    return {**columns, **squeezed}


def last_rows(columns: Columns) -> np.ndarray:
    """[N] bool, where an episode ends for whatever reason."""
    last = (np.asarray(columns["terminals"]) != 0) | (np.asarray(columns["timeouts"]) != 0)
    last[-1:] = True
    return last


def with_timeouts(columns: Columns, episode_length: int) -> tuple[Columns, int]:
    """Timeouts also where `episode_length` steps passed since an episode began, and how many were added."""
    last = last_rows(columns)
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    step = np.arange(len(last)) - np.repeat(starts, np.diff(np.append(starts, len(last))))
    added = ((step + 1) % episode_length == 0) & (np.asarray(columns["terminals"]) == 0)
    added &= np.asarray(columns["timeouts"]) == 0
    return {**columns, "timeouts": (np.asarray(columns["timeouts"]) != 0) | added}, int(added.sum())


def with_successors(columns: Columns, *, drop_cut: bool = True) -> Columns:
    """Next observations where none are held, by the rule above.

    Args:
      columns: without next observations.
      drop_cut: drop the rows that were cut off. If False they stay, with their own observation as the next: an
        approximation that keeps every reward.
    """
    last = last_rows(columns)
    terminal = np.asarray(columns["terminals"]) != 0
    following = np.arange(len(last)) + ~last
    following_observations = jax.tree.map(lambda leaf: np.asarray(leaf)[following], columns["observations"])
    columns = {**columns, "next_observations": following_observations}
    if not drop_cut:
        return columns
    cut = last & ~terminal
    ends = last.copy()
    ends[:-1] |= cut[1:]  # the row before takes over the end
    columns["timeouts"] = ends & ~terminal
    return jax.tree.map(lambda leaf: np.asarray(leaf)[~cut], columns)
