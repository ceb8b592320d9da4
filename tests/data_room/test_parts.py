"""A file read in parts is the file read whole."""

from __future__ import annotations

import h5py
import jax
import numpy as np
import pytest

from safejax.data import DatasetError, from_arrays, open_slabs, read, write_dsrl, write_slabs
from safejax.data.parts import read_parts

ENDS = (3, 4, 11, 19, 20)  # after rows


def write(path, *, successors=True, costs=True):
    numbers = np.arange(20.0)
    ends = np.isin(numbers + 1, ENDS)
    terminals = ends & (numbers % 2 == 1)
    columns = (numbers[:, None], 0.01 * numbers[:, None], numbers, numbers, terminals, ends & ~terminals)
    write_dsrl(path, from_arrays(*columns))
    with h5py.File(path, "r+") as file:
        for name, kept in {"next_observations": successors, "costs": costs}.items():
            if not kept:
                del file[name]
    return path


def joined(parts):
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *(part.transitions for part in parts))


@pytest.mark.parametrize(("part_rows", "lengths"), [(1, [3, 1, 7, 8, 1]), (8, [4, 7, 8, 1]), (12, [11, 9]), (99, [20])])
def test_parts_are_whole_episodes_and_together_the_file(tmp_path, part_rows, lengths):
    path = write(tmp_path / "a.hdf5")
    parts = list(read_parts(path, part_rows=part_rows))
    assert [len(part.transitions.reward) for part in parts] == lengths
    for left, right in zip(jax.tree.leaves(joined(parts)), jax.tree.leaves(read(path)[0].transitions), strict=True):
        np.testing.assert_array_equal(left, right)


def test_next_observations_are_derived_as_when_read_whole(tmp_path):
    path = write(tmp_path / "a.hdf5", successors=False, costs=False)
    whole = read(path, costs="zero")[0].transitions
    parts = joined(read_parts(path, part_rows=8, costs="zero"))
    assert len(parts.reward) < 20  # rows that were cut off have no successor
    for left, right in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_file_becomes_slabs(tmp_path):
    write_slabs(read_parts(write(tmp_path / "a.hdf5"), part_rows=8), tmp_path / "a.slabs")
    found = open_slabs(tmp_path / "a.slabs", slab_rows=40, blocks_per_slab=1)
    np.testing.assert_array_equal(found.columns.reward, np.arange(20.0))


def test_faults_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(DatasetError, match=r"a.hdf5: no 'costs'\."):
        list(read_parts(write(tmp_path / "a.hdf5", costs=False), part_rows=8))
    with pytest.raises(DatasetError, match=r"gone.hdf5: no such file"):
        list(read_parts(tmp_path / "gone.hdf5", part_rows=8))
    with pytest.raises(DatasetError, match="yyy: no such file"):
        list(read_parts("y" * 300, part_rows=8))
    path = write(tmp_path / "b.hdf5")
    with h5py.File(path, "r+") as file:
        file["rewards"][13] = np.nan
    parts = read_parts(path, part_rows=8)
    assert len([next(parts), next(parts)]) == 2
    with pytest.raises(DatasetError, match=r"b.hdf5, rows from 11 on: rewards: 1 non-finite"):
        next(parts)
    monkeypatch.setattr("safejax.data.memory.available_bytes", lambda device: 100)
    with pytest.raises(DatasetError, match=r"b.hdf5: 4 rows: needs \d+ bytes, 100 are available; lower part_rows"):
        list(read_parts(path, part_rows=4))


def test_flags_of_another_length_or_none_at_all_are_refused(tmp_path):
    for name, values, fault in (
        ("terminals", np.zeros(10), "terminals has 10 rows, observations 20"),
        ("timeouts", np.zeros(20), "no terminals and no timeouts: pass episode_length="),
    ):
        path = write(tmp_path / f"{name}.hdf5")
        with h5py.File(path, "r+") as file:
            file["terminals"][...] = 0
            del file[name]
            file[name] = values
        with pytest.raises(DatasetError, match=fault):
            list(read_parts(path, part_rows=8))


def test_a_file_of_which_no_row_has_a_successor_is_refused(tmp_path):
    path = write(tmp_path / "a.hdf5", successors=False)
    with h5py.File(path, "r+") as file:
        file["terminals"][...], file["timeouts"][...] = 0, 1
    with pytest.raises(DatasetError, match=r"a.hdf5: no row has a successor: every episode is one step long"):
        list(read_parts(path, part_rows=8))


def test_next_observations_of_other_rows_are_told(tmp_path):
    path = write(tmp_path / "a.hdf5")
    with h5py.File(path, "r+") as file:
        file["next_observations"][1] = 7.0
    with pytest.warns(UserWarning, match="rows from 0 on: "):
        list(read_parts(path, part_rows=99))
