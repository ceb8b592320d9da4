"""Minari's directories: data/main_data.hdf5 with a group "episode_k" each, and metadata.json beside it.

An episode of T steps holds T actions, rewards, terminations and truncations, and T + 1 observations: the first is the
reset's. So observations[t + 1] is the next observation of step t, also at the last step, and nothing is dropped.
Infos are recorded at the reset too: of T + 1 entries of infos/cost the first belongs to the reset, and cost[t + 1] is
that of step t; of T entries cost[t] is. An episode whose last step is neither terminated nor truncated was cut off.

Source: Farama Foundation, Minari 0.5.4, data_collector.py and episode_buffer.py, where `reset` starts the buffer of
observations and infos and every `step` appends to it. The environment that the metadata names is never imported.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import h5py
import jax
import numpy as np

from safejax.data.checks import Columns
from safejax.data.formats import hdf5
from safejax.data.formats.storage import Contents, Limit, needed

MAIN_FILE, METADATA_FILE = "main_data.hdf5", "metadata.json"
METADATA_BYTES = 16 * 2**20
EPISODE = re.compile(r"episode_[0-9]+")
STEP_KEYS = {"actions": "actions", "rewards": "rewards", "terminations": "terminals", "truncations": "timeouts"}
SHOWN_FAULTS = 6
JPEG = [0xFF, 0xD8, 0xFF]  # how such a file begins


def main_file(directory: Path) -> Path | None:
    """Where the values are, given the data set's directory or its data/."""
    candidates = (directory / "data" / MAIN_FILE, directory / MAIN_FILE)
    return next((path for path in candidates if path.is_file()), None)


def is_minari(file: h5py.File) -> bool:
    """Whether the file is laid out as Minari's."""
    return any(EPISODE.fullmatch(str(name)) for name in file)


def contents(file: h5py.File, path: Path, limit: Limit) -> Contents:
    """The columns of all episodes in order, as far as they are there and may be read."""
    names = sorted(filter(EPISODE.fullmatch, map(str, file)), key=lambda name: int(name.removeprefix("episode_")))
    faults: list[str] = []
    metadata = _metadata(path.parent / METADATA_FILE, faults)
    episodes = {name: _find(file, name, faults) for name in names}
    if metadata.get("jpeg_encoding") and any("dtype object" in fault for fault in faults):
        faults.append("Pictures are stored as JPEG, which is not read; record with jpeg_encoding=False.")
    faults += [] if faults else _incomplete(metadata, episodes)
    faults[:0] = needed(sum(hdf5.byte_count(items.values()) for items in episodes.values()), limit)
    parts = [] if faults else [_columns(name, items, faults) for name, items in episodes.items()]
    parts = [part for part in parts if len(part["rewards"])]
    faults += _unlike(parts)
    cut = sum(map(_mark_end, [] if faults else parts))
    notes = [f"{cut} of {len(parts)} episodes have no end and are kept as truncated."] if cut else []
    columns = {} if faults or not parts else jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    notes += _scale_note(metadata)
    keys = tuple(sorted({key for items in episodes.values() for key in ("observations", *STEP_KEYS.values(), *items)}))
    if len(faults) > SHOWN_FAULTS:
        faults = [*faults[:SHOWN_FAULTS], f"And {len(faults) - SHOWN_FAULTS} more."]
    return Contents("Minari HDF5", columns, keys, metadata, faults, notes)


def _find(file: h5py.File, name: str, faults: list[str]) -> dict[str, hdf5.Item]:
    """Of one episode, what is stored under names of ours."""
    group = hdf5.group(file, name, faults)
    if group is None:
        return {}
    wanted = {"observations": "observations", **STEP_KEYS}
    missing = [key for key in wanted if key not in group]
    if missing:
        faults.append(f"{name}: no {', '.join(map(repr, missing))}.")
    present = {ours: key for key, ours in wanted.items() if key not in missing}
    found = {ours: hdf5.find(group, key, faults, parts=key == "observations") for ours, key in present.items()}
    infos = hdf5.group(group, "infos", faults) if "infos" in group else None
    if infos is not None and "cost" in infos:
        found["costs"] = hdf5.find(infos, "cost", faults)
    return found


def _incomplete(metadata: dict[str, Any], episodes: dict[str, dict[str, hdf5.Item]]) -> list[str]:
    """The fault of a file that was cut off between episodes, or that is not the one its metadata belong to."""
    held = {"episodes": len(episodes), "steps": sum(len(items["rewards"]) for items in episodes.values())}
    for what, count in held.items():
        said = metadata.get(f"total_{what}")
        if isinstance(said, int | float) and said != count:
            return [f"{count} {what}, expected {said} as {METADATA_FILE} says. Copy or download it again."]
    return []


def _columns(name: str, items: dict[str, hdf5.Item], faults: list[str]) -> Columns:
    """One episode with a row a step; the alignment is that of the module's docstring."""
    arrays = {key: hdf5.values(item) for key, item in items.items()}
    count = len(arrays["rewards"])
    if len(arrays.get("costs", ())) == count + 1:
        arrays["costs"] = arrays["costs"][1:]
    observations = arrays.pop("observations")
    lengths = {key: len(array) for key, array in arrays.items()}
    faults += [f"{name}: {key} has {n} rows, rewards {count}." for key, n in lengths.items() if n != count]
    for leaf in jax.tree.leaves(observations):
        if len(leaf) != count + 1:
            faults.append(f"{name}: observations has {len(leaf)} rows, expected {count + 1} for {count} steps.")
        if leaf.dtype == np.uint8 and leaf.ndim == 2 and leaf[:1, :3].tolist() == [JPEG]:
            faults.append(f"{name}: pictures are stored as JPEG, which is not read; record with jpeg_encoding=False.")
    before, after = (jax.tree.map(lambda leaf, rows=rows: leaf[rows], observations) for rows in (np.s_[:-1], np.s_[1:]))
    return {**arrays, "observations": before, "next_observations": after}


def _unlike(parts: list[Columns]) -> list[str]:
    """Episodes whose columns do not fit together with those of the first."""
    shapes = [jax.tree.map(lambda leaf: leaf.shape[1:], part) for part in parts]
    unlike = [index for index, shape in enumerate(shapes) if shape != shapes[0]]
    return [f"{len(unlike)} of {len(parts)} episodes hold other columns or widths than the first."] if unlike else []


def _mark_end(part: Columns) -> bool:
    """Make the last step an end, and say whether it was none."""
    open_ended = not (part["terminals"][-1] or part["timeouts"][-1])
    if open_ended:
        part["timeouts"][-1] = True
    return open_ended


def _metadata(path: Path, faults: list[str]) -> dict[str, Any]:
    """What metadata.json says, {} where there is none."""
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > METADATA_BYTES:
            raise ValueError(f"over {METADATA_BYTES:,} bytes")
        metadata = json.loads(path.read_text("utf-8"))
        return dict(metadata)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        faults.append(f"{path.name} cannot be read ({str(error)[:80]}).")
        return {}


def _scale_note(metadata: dict[str, Any]) -> list[str]:
    """A note where the actions' bounds are not -1 and 1: they are taken as they are."""
    try:
        space = json.loads(metadata.get("action_space", "{}"))
        bounds = np.array([space["low"], space["high"]], np.float64)
    except (ValueError, TypeError, KeyError, RecursionError):
        return []
    if bounds.size == 0 or (np.allclose(bounds[0], -1) and np.allclose(bounds[1], 1)):
        return []
    return [f"actions: the file's bounds are [{bounds[0].min():g}, {bounds[1].max():g}]; values are not rescaled."]
