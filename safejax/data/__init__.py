"""Data: logged data sets and their files, replay, and mixing the two."""

from safejax.data.checks import DatasetError
from safejax.data.dataset import (
    Dataset,
    best_safe_return,
    check_open_actions,
    check_widths,
    clip_actions,
    episode_returns,
    from_arrays,
    sample,
    sample_sequences,
    select_episodes,
)
from safejax.data.formats.flat import write_dsrl
from safejax.data.grid import grid_filter
from safejax.data.reading import read, read_dsrl
from safejax.data.replay import Replay, make_replay, mix

__all__ = [
    "Dataset",
    "DatasetError",
    "Replay",
    "best_safe_return",
    "check_open_actions",
    "check_widths",
    "clip_actions",
    "episode_returns",
    "from_arrays",
    "grid_filter",
    "make_replay",
    "mix",
    "read",
    "read_dsrl",
    "sample",
    "sample_sequences",
    "select_episodes",
    "write_dsrl",
]
