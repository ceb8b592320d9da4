"""Logged data: a `Dataset` of transitions, its file format and its samplers.

Files use DSRL's layout: HDF5 with the flat keys observations, next_observations, actions, rewards, costs,
terminals and timeouts, episodes one after another. Observations with parts, such as pixels and state, are ours: each
key of theirs is a group with one data set a part, "observations/pixels". Whatever enters is checked, and all faults
found are named in one `DatasetError`. Shape letters: N rows, M episodes, B batch, T time, O observation, A action.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import jax
import jax.numpy as jnp
import numpy as np

from safejax.data.checks import KEYS, DatasetError, check_arrays, to_stored
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
    raw = {"rewards": rewards, "costs": costs, "terminals": terminals, "timeouts": timeouts}
    raw = {name: np.asarray(value) for name, value in raw.items()}
    raw = {name: value[:, 0] if value.shape[1:] == (1,) else value for name, value in raw.items()}
    named = {**_named("observations", observations), "actions": np.asarray(actions), **raw}
    if next_observations is not None:
        named |= _named("next_observations", next_observations)
        _check_same_parts(observations, next_observations, source)
    check_arrays(named, source)

    terminal = raw["terminals"] != 0
    last = terminal | (raw["timeouts"] != 0)
    last[-1] = True
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    observation = jax.tree.map(to_stored, observations)
    if next_observations is None:
        following = np.arange(len(last)) + ~last
        next_observation = jax.tree.map(lambda leaf: leaf[following], observation)
    else:
        next_observation = jax.tree.map(to_stored, next_observations)
    discrete = named["actions"].dtype.kind in "iu"
    action = named["actions"].astype(np.int32) if discrete else np.clip(to_stored(actions), -1, 1)
    scalars = (to_stored(array) for array in (raw["rewards"], raw["costs"], ~terminal, last))
    columns = (observation, action, *scalars, next_observation)
    transitions = Transition(*jax.tree.map(jnp.array, columns), extras={})
    return Dataset(transitions, jnp.array(starts, jnp.int32), jnp.array(ends - starts + 1, jnp.int32))


def read_dsrl(path: str | os.PathLike) -> tuple[Dataset, dict[str, Any]]:
    """Read an HDF5 file in DSRL's layout; scalars may be [N] or [N, 1].

    Returns:
      The checked data set and the file's attributes.

    Raises:
      DatasetError: the file is missing, cut short, damaged or not HDF5; a key is missing or stored outside
        the file; there is no episode end at all; or as `from_arrays`.
    """
    path = Path(path)
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; check the path or download it first")
    try:
        with h5py.File(path, "r") as file:
            _check_layout(file, path)
            arrays = {key: _read(file[key]) for key in KEYS}
            attributes = _read_attributes(file)
    except OSError as error:  # h5py's word for truncation, another format and failed checksums
        found = f"not a complete HDF5 file ({path.stat().st_size:,} bytes; {_first_line(error)})"
        raise DatasetError(f"{path}: {found}; delete it and get it again") from error
    if not (arrays["terminals"].any() or arrays["timeouts"].any()):
        raise DatasetError(f"{path}: no terminals and no timeouts, expected episode ends; mark the timeouts")
    return from_arrays(**arrays, source=str(path)), attributes


def write_dsrl(path: str | os.PathLike, dataset: Dataset, attributes: Mapping[str, Any] | None = None) -> None:
    """Write `dataset` in DSRL's layout, compressed and with checksums; a killed write leaves the old file.

    Args:
      path: where the file goes; its directory must exist.
      dataset: observations must be arrays [N, O], or dictionaries of arrays; extras are not stored.
      attributes: provenance that JSON can hold (task, seeds, versions, renderer, ...), up to 60 kB.

    Raises:
      DatasetError: observations of another kind, attributes JSON cannot hold, or a failed write.
    """
    path, rows = Path(path), jax.tree.map(np.asarray, dataset.transitions)
    parts = rows.observation.values() if isinstance(rows.observation, dict) else [rows.observation]
    if not all(isinstance(part, np.ndarray) for part in parts):
        kind = type(rows.observation).__name__
        raise DatasetError(
            f"{path}: observations are a nested {kind}, expected an array [N, O] or a dictionary of arrays"
        )
    try:
        text = json.dumps(dict(attributes or {}))
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{path}: attributes cannot be stored: {error}; use numbers and strings") from None
    if len(text) > 60_000:
        raise DatasetError(f"{path}: attributes take {len(text):,} bytes, expected up to 60,000; store less")
    terminal = rows.discount == 0
    timeout = (rows.last != 0) & ~terminal
    columns = (
        rows.observation,
        rows.next_observation,
        rows.action,
        rows.reward,
        rows.cost,
        terminal,
        timeout,
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with h5py.File(temporary, "w") as file:
            for key, values in zip(KEYS, columns, strict=True):
                for name, part in values.items() if isinstance(values, dict) else [(None, values)]:
                    place = f"{key}/{name}" if name else key
                    file.create_dataset(place, data=part, compression="gzip", shuffle=True, fletcher32=True)
            file.attrs["safejax"] = text
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        found = f"the write failed ({_first_line(error)})"
        raise DatasetError(f"{path}: {found}; check free space and that the directory exists") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def check_widths(dataset: Dataset, observation_size: int, action_size: int, source: str) -> None:
    """Refuse a data set whose widths are not those of the world it is to be used with.

    Args:
      dataset: continuous actions and plain observations.
      observation_size: O that the world gives.
      action_size: A that the world takes.
      source: what the message calls the world, such as its name.

    Raises:
      DatasetError: naming both widths.
    """
    rows = dataset.transitions
    pairs = {"observations": (rows.observation, observation_size), "actions": (rows.action, action_size)}
    faults = [
        f"{name} are {list(np.shape(array)[1:])} a row, {source!r} has [{size}]"
        for name, (array, size) in pairs.items()
        if np.shape(array)[1:] != (size,)
    ]
    if faults:
        raise DatasetError(f"data set: {'; '.join(faults)}; use data that was collected in {source!r}")


def check_open_actions(dataset: Dataset, source: str) -> None:
    """Refuse actions at -1 or 1 for a tanh-squashed policy that learns by their likelihood.

    Such a density has no maximum there: its mean runs away before the tanh. Within 1e-6 counts as at the bound.

    Raises:
      DatasetError: with the share of such rows.
    """
    touching = np.any(np.abs(np.asarray(dataset.transitions.action)) >= 1.0 - 1e-6, axis=-1)
    if touching.any():
        raise DatasetError(
            f"{source}: {touching.mean():.1%} of the rows have an action at -1 or 1, expected inside for a squashed "
            "Gaussian; clip them, such as clip_actions(dataset, 0.999), or choose an actor without squashing"
        )


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
    """The largest return of episodes with cost <= `cost_limit` (cost units); -inf where there are none."""
    returns, costs, _ = episode_returns(dataset)
    return float(jnp.max(jnp.where(costs <= cost_limit, returns, -jnp.inf)))


def select_episodes(dataset: Dataset, episodes: Any) -> Dataset:
    """The data set of the given episodes, in the given order, as after `grid_filter`.

    Args:
      dataset: with M episodes.
      episodes: [K] integers in [0, M).

    Raises:
      DatasetError: no episodes, or numbers out of range.
    """
    episodes, count = np.asarray(episodes), len(dataset.episode_start)
    if episodes.size == 0 or episodes.min() < 0 or episodes.max() >= count:
        raise DatasetError(f"select_episodes: got {episodes.tolist()[:6]}, expected some numbers in [0, {count})")
    starts = np.asarray(dataset.episode_start)[episodes]
    lengths = np.asarray(dataset.episode_length)[episodes]
    rows = np.concatenate([start + np.arange(length) for start, length in zip(starts, lengths, strict=True)])
    new_starts = jnp.array(np.cumsum(lengths) - lengths, jnp.int32)
    return Dataset(_take(dataset.transitions, rows), new_starts, jnp.array(lengths))


def sample(dataset: Dataset, key: Key, batch_size: int) -> Transition:
    """Transitions [B], uniform over rows with replacement."""
    count = dataset.transitions.reward.shape[0]
    return _take(dataset.transitions, jax.random.randint(key, (batch_size,), 0, count))


def sample_sequences(dataset: Dataset, key: Key, batch_size: int, length: int) -> Transition:
    """Windows [B, T = length] of consecutive rows; they may span an episode's end, which `last` marks.

    Raises:
      ValueError: while tracing, if the data set has fewer than `length` rows.
    """
    count = dataset.transitions.reward.shape[0]
    if not 1 <= length <= count:
        raise ValueError(f"sequences of {length} rows, expected a length in [1, {count}], the data set's rows")
    starts = jax.random.randint(key, (batch_size, 1), 0, count - length + 1)
    return _take(dataset.transitions, starts + jnp.arange(length))


def _take(transitions: Transition, rows: Any) -> Transition:
    return jax.tree.map(lambda leaf: leaf[rows], transitions)


def _named(name: str, observations: Any) -> dict[str, np.ndarray]:
    """Leaves of a plain or structured observation under names for messages."""
    leaves = jax.tree_util.tree_leaves_with_path(observations)
    return {name + jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def _check_same_parts(observations: Any, next_observations: Any, source: str) -> None:
    first, second = jax.tree.structure(observations), jax.tree.structure(next_observations)
    if first != second:
        raise DatasetError(f"{source}: next_observations are {second}, observations {first}; give both the same parts")


def _read(item: Any) -> Any:
    """The values of a data set, or of the parts of a group by name."""
    return {name: np.asarray(item[name]) for name in item} if isinstance(item, h5py.Group) else np.asarray(item)


def _check_layout(file: h5py.File, path: Path) -> None:
    """Refuse what is missing and what leads outside the file: links, external storage, virtual data sets."""
    present = list(file.keys())
    faults = [f"no {key!r}" for key in KEYS if key not in present]
    if "costs" not in present:
        faults[faults.index("no 'costs'")] += ". A safe algorithm needs a cost per step"
    if faults:
        faults.append(f"keys found: {', '.join(present) or 'none'}; expected DSRL's flat layout")
    for key in (key for key in KEYS if key in present):
        faults += _storage_faults(file, key, in_parts=key.endswith("observations"))
    if faults:
        raise DatasetError(f"{path}: {'; '.join(faults)}")


def _storage_faults(parent: h5py.Group, key: str, *, in_parts: bool = False) -> list[str]:
    item = parent[key] if isinstance(parent.get(key, getlink=True), h5py.HardLink) else None
    name = f"{parent.name}/{key}".strip("/")
    if isinstance(item, h5py.Group) and in_parts and len(item):
        return [fault for part in item for fault in _storage_faults(item, str(part))]
    if item is None or (isinstance(item, h5py.Dataset) and (item.external or item.is_virtual)):
        return [f"refused: {name!r} is a link or stored outside this file; store the values in it"]
    if not isinstance(item, h5py.Dataset):
        return [f"{name!r} is a {type(item).__name__}, expected a data set; see DSRL's flat layout"]
    return []


def _read_attributes(file: h5py.File) -> dict[str, Any]:
    """What `write_dsrl` was given, and beside it whatever others attached."""
    attributes = dict(file.attrs)
    attributes = {name: v.tolist() if hasattr(v, "tolist") else v for name, v in attributes.items()}
    with contextlib.suppress(ValueError, TypeError):
        attributes |= json.loads(attributes.pop("safejax", "{}"))
    return attributes


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
