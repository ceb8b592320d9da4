"""OGBench's npz: observations, actions and terminals, one trajectory after another.

A 1 in `terminals` marks the last *state* of a trajectory, whose action leads nowhere; it does not say that the task
ended. So that state is only the next observation of the row before, which is a truncation. Files saved after
ogbench.load_dataset hold `next_observations` themselves; there `terminals` marks the last transition and `masks`, if
any, is 0 where the task was done. The files hold no rewards and no costs.

Source: Park et al. 2025, https://arxiv.org/abs/2410.20092, and ogbench/utils.py, load_dataset. There a task that is
done does not end the trajectory; here, where `discount` 0 implies `last`, an episode ends and the next begins.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from safejax.data.checks import flag_faults
from safejax.data.formats.npz import open_npz
from safejax.data.formats.storage import Contents, Limit

COLUMNS = ("observations", "next_observations", "actions", "rewards", "costs")
FOREIGN = {
    "valids": "is a compact data set of ogbench. Save it with compact_dataset=False.",
    "timeouts": "tells trajectories apart as OGBench does not. Save it as HDF5 in DSRL's layout.",
}


def contents(path: Path, limit: Limit) -> Contents:
    """The columns of the file, as far as they are there and may be read."""
    faults: list[str] = []
    with open_npz(path) as npz:
        faults += [f"{key!r} found: this {words}" for key, words in FOREIGN.items() if key in npz.names]
        fit = npz.find((*COLUMNS, "terminals", "masks"), limit, faults)
        arrays = {name: npz.read(name) for name in fit}
    columns = {name: arrays[name] for name in COLUMNS if name in arrays}
    if "terminals" in arrays:
        ends = arrays["terminals"]
        masks = arrays.get("masks", np.ones_like(ends))
        faults += flag_faults("masks", masks, lambda bad: f"row {np.argmax(bad)}")
        done = masks == 0
        if done.shape == ends.shape:
            columns |= {"terminals": done, "timeouts": np.where(done, np.zeros_like(ends), ends)}
        else:
            faults.append(f"masks are {list(done.shape)}, terminals {list(ends.shape)}.")
    return Contents("OGBench npz", columns, npz.names, {}, faults, [], implied=("timeouts",))
