"""Logged data: a `Dataset` of transitions, made from arrays, and its samplers.

Whatever enters is checked, and all faults found are named in one `DatasetError`. Shape letters: N rows, M episodes,
B batch, T time, O observation, A action.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from safejax.data.checks import Columns, check_columns, refuse, to_stored
from safejax.data.columns import flat_scalars, last_rows, with_successors
from safejax.types import Array, Key, Transition, check_range


class Dataset(NamedTuple):
    """Transitions of consecutive episodes, and where each begins. A pytree: give it to jit as an argument."""

    transitions: Transition  # [N]; `last` is 1 on the last row of every episode
    episode_start: Array  # [M] int32, row of each episode's first transition
    episode_length: Array  # [M] int32, environment steps


def from_arrays(
    observations: Any,
    actions: Any,
    rewards: Any,
    costs: Any,
    terminals: Any,
    timeouts: Any,
    next_observations: Any = None,
    *,
    source: str = "from_arrays",
) -> Dataset:
    """A checked `Dataset` from arrays of consecutive episodes.

    Rows after the last episode's end become an episode that was truncated.

    Args:
      observations: [N, O], kept as float32; or a pytree of [N, ...] whose uint8 leaves (pixels) stay uint8.
      actions: [N, A] in [-1, 1]; up to 1e-5 outside is clipped off. Integers [N] in discrete worlds.
      rewards: [N] or [N, 1], task units.
      costs: [N] or [N, 1], >= 0, cost units.
      terminals: [N] or [N, 1], 1 where the task ended the episode.
      timeouts: [N] or [N, 1], 1 where time ended the episode; never together with terminals.
      next_observations: as observations. If None, the next row's observation; at an episode's end, where
        there is none, the row's own: harmless at terminals and an approximation at timeouts.
      source: what messages call the data, such as a file's name.

    Raises:
      DatasetError: naming every fault: lengths that differ, no rows, values that are not finite, actions
        outside [-1, 1], negative costs, rows both terminal and timeout.
    """
    columns = {"observations": observations, "next_observations": next_observations, "actions": actions}
    columns |= {"rewards": rewards, "costs": costs, "terminals": terminals, "timeouts": timeouts}
    columns = {name: value for name, value in columns.items() if value is not None}
    # only observations have parts: elsewhere a list is an array
    columns = {name: value if "observations" in name else np.asarray(value) for name, value in columns.items()}
    columns = flat_scalars(columns)
    check_columns(columns, source)
    return assemble(columns if next_observations is not None else with_successors(columns, drop_cut=False))


def assemble(columns: Columns) -> Dataset:
    """The data set of columns that passed `check_columns`, next observations among them."""
    terminal = np.asarray(columns["terminals"]) != 0
    last = last_rows(columns)
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    observation, next_observation = (
        jax.tree.map(to_stored, columns[name]) for name in ("observations", "next_observations")
    )
    actions = np.asarray(columns["actions"])
    action = actions.astype(np.int32) if actions.dtype.kind in "iu" else np.clip(to_stored(actions), -1, 1)
    scalars = (np.asarray(array, np.float32) for array in (columns["rewards"], columns["costs"], ~terminal, last))
    rows = (observation, action, *scalars, next_observation)
    transitions = Transition(*jax.tree.map(jnp.array, rows), extras={})
    return Dataset(transitions, jnp.array(starts, jnp.int32), jnp.array(ends - starts + 1, jnp.int32))


def check_widths(
    dataset: Dataset, observation_size: int, action_size: int, environment: str, *, source: str = "data set"
) -> None:
    """Refuse a data set whose widths are not those of the world it is to be used with.

    Args:
      dataset: continuous actions and plain observations.
      observation_size: O that the world gives.
      action_size: A that the world takes.
      environment: the world's name.
      source: what the message calls the data, such as a file's name.

    Raises:
      DatasetError: naming both widths.
    """
    rows, faults = dataset.transitions, []
    pairs = (("observations", rows.observation, observation_size), ("actions", rows.action, action_size))
    for name, array, size in pairs:
        shape = np.shape(array)[1:]
        if shape != (size,):
            found = f"{shape[0]} features" if len(shape) == 1 else f"{list(shape)} a row"
            verb = "gives" if name == "observations" else "takes"
            faults.append(f"{name} have {found}; environment {environment!r} {verb} {size}.")
    if faults:
        refuse(source, faults)


def check_open_actions(dataset: Dataset, source: str) -> None:
    """Refuse actions at -1 or 1 for a tanh-squashed policy that learns by their likelihood.

    Such a density has no maximum there: its mean runs away before the tanh. Within 1e-6 counts as at the bound.

    Raises:
      DatasetError: with the share of such rows.
    """
    touching = np.any(np.abs(np.asarray(dataset.transitions.action)) >= 1.0 - 1e-6, axis=-1)
    if touching.any():
        advice = "Clip them, such as clip_actions(dataset, 0.999), or choose an actor without squashing."
        found = f"{touching.mean():.1%} of the rows have an action at -1 or 1, expected inside for a squashed Gaussian."
        refuse(source, [found, advice])


def clip_actions(dataset: Dataset, bound: float) -> Dataset:
    """The data set with its actions clipped to [-bound, bound], 0 < bound <= 1; the rest is shared."""
    check_range("bound", bound, 0.0, 1.0, open_low=True)
    rows = dataset.transitions
    return dataset._replace(transitions=rows._replace(action=jnp.clip(rows.action, -bound, bound)))


def episode_returns(dataset: Dataset) -> tuple[Array, Array, Array]:
    """Undiscounted episode sums: returns [M], costs [M] (cost units); and lengths [M] (environment steps)."""
    count = dataset.episode_start.shape[0]
    rows = jnp.arange(dataset.transitions.reward.shape[0])
    episode = jnp.searchsorted(dataset.episode_start, rows, side="right") - 1
    returns = jax.ops.segment_sum(dataset.transitions.reward, episode, count, indices_are_sorted=True)
    costs = jax.ops.segment_sum(dataset.transitions.cost, episode, count, indices_are_sorted=True)
    return returns, costs, dataset.episode_length


def best_safe_return(dataset: Dataset, cost_limit: float) -> float:
    """The largest return of episodes with cost <= `cost_limit` (>= 0, cost units); -inf where there are none."""
    check_range("cost_limit", cost_limit, 0.0)
    returns, costs, _ = episode_returns(dataset)
    return float(jnp.max(jnp.where(costs <= cost_limit, returns, -jnp.inf)))


def select_episodes(dataset: Dataset, episodes: Any) -> Dataset:
    """The data set of the given episodes, in the given order, as after `grid_filter`.

    Args:
      dataset: with M episodes.
      episodes: [K] integers in [0, M).

    Raises:
      DatasetError: no episodes, or numbers that are not whole or out of range.
    """
    episodes, count = np.asarray(episodes), len(dataset.episode_start)
    whole = episodes.ndim == 1 and episodes.dtype.kind in "iu"
    if not whole or episodes.size == 0 or episodes.min() < 0 or episodes.max() >= count:
        refuse("select_episodes", [f"got {episodes.tolist()[:6]}, expected some whole numbers in [0, {count})."])
    starts = np.asarray(dataset.episode_start)[episodes]
    lengths = np.asarray(dataset.episode_length)[episodes]
    rows = np.concatenate([start + np.arange(length) for start, length in zip(starts, lengths, strict=True)])
    new_starts = jnp.array(np.cumsum(lengths) - lengths, jnp.int32)
    return Dataset(_take(dataset.transitions, rows), new_starts, jnp.array(lengths))


def sample(dataset: Dataset, key: Key, batch_size: int) -> Transition:
    """Transitions [B], uniform over rows with replacement."""
    count = dataset.transitions.reward.shape[0]
    return _take(dataset.transitions, jax.random.randint(key, (batch_size,), 0, count))


def sample_sequences(
    dataset: Dataset, key: Key, batch_size: int, length: int, *, successors: bool = True
) -> Transition:
    """Windows [B, T = length] of consecutive rows; they may span an episode's end, which `last` marks.

    Without `successors` their next_observation is ().

    Raises:
      ValueError: while tracing, if the data set has fewer than `length` rows.
    """
    count = dataset.transitions.reward.shape[0]
    if not 1 <= length <= count:
        raise ValueError(f"sequences of {length} rows, expected a length in [1, {count}], the data set's rows")
    starts = jax.random.randint(key, (batch_size, 1), 0, count - length + 1)
    rows = dataset.transitions if successors else dataset.transitions._replace(next_observation=())
    return _take(rows, starts + jnp.arange(length))


def _take(transitions: Transition, rows: Any) -> Transition:
    return jax.tree.map(lambda leaf: leaf[rows], transitions)
