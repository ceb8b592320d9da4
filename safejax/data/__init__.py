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
from safejax.data.loading import load, locate
from safejax.data.parts import read_parts
from safejax.data.provenance import check_provenance
from safejax.data.reading import read, read_dsrl
from safejax.data.replay import Replay, make_replay, mix
from safejax.data.slabs import Slabs, open_slabs, read_slab, verify_slabs, write_slabs

__all__ = [
    "Dataset",
    "DatasetError",
    "Replay",
    "Slabs",
    "best_safe_return",
    "check_open_actions",
    "check_provenance",
    "check_widths",
    "clip_actions",
    "episode_returns",
    "from_arrays",
    "grid_filter",
    "load",
    "locate",
    "make_replay",
    "mix",
    "open_slabs",
    "read",
    "read_dsrl",
    "read_parts",
    "read_slab",
    "sample",
    "sample_sequences",
    "select_episodes",
    "verify_slabs",
    "write_dsrl",
    "write_slabs",
]
