"""What `write_dsrl` stores: others can read it, reading gives the same again, and a failure leaves the old file."""

import json

import h5py
import jax
import numpy as np
import pytest
from data_files import columns, write
from hypothesis import given, settings
from hypothesis import strategies as st

from safejax.data import DatasetError, from_arrays, read, read_dsrl, write_dsrl


def equal(left, right):
    """Whether both trees hold the same, dtypes included."""
    same = jax.tree.map(lambda a, b: a.dtype == b.dtype and np.array_equal(a, b), left, right)
    return jax.tree.structure(left) == jax.tree.structure(right) and jax.tree.all(same)


def observations(kind, random, count):
    """Of a kind [count + 1, ...]."""
    if kind == "array":
        return random.normal(size=(count + 1, 3)).astype(np.float32)
    parts = {"state": random.normal(size=(count + 1, 2)).astype(np.float32)}
    if kind == "pixels":
        parts["pixels"] = random.integers(0, 256, (count + 1, 4, 5, 3), np.uint8)
    return parts


@settings(max_examples=20, deadline=None)
@given(
    count=st.sampled_from([1, 2, 23]),
    seed=st.integers(0, 10**6),
    share=st.floats(0.1, 1),
    kind=st.sampled_from(["array", "dictionary", "pixels"]),
    discrete=st.booleans(),
)
def test_write_then_read_gives_the_same(tmp_path_factory, count, seed, share, kind, discrete):
    random = np.random.default_rng(seed)
    ends = np.flatnonzero(random.uniform(size=count) < share)
    held = columns(count, ends[::2], [*ends[1::2], count - 1] if (count - 1) not in ends[::2] else ends[1::2], seed)
    seen = observations(kind, random, count)
    held |= {"observations": jax.tree.map(lambda leaf: leaf[:-1], seen)}
    held |= {"next_observations": jax.tree.map(lambda leaf: leaf[1:], seen)}
    if discrete:
        held["actions"] = random.integers(0, 5, count)
    dataset = from_arrays(**held)
    attributes = {"task": "point", "seeds": [1, 2], "versions": {"mujoco": "3"}, "rate": 0.5}
    path = tmp_path_factory.mktemp("data") / "set.hdf5"
    write_dsrl(path, dataset, attributes)
    again, found = read(path)
    assert equal(again, dataset)
    assert found.pop("format") == "DSRL HDF5"
    found.pop("notes")
    assert found == attributes
    assert [entry.name for entry in path.parent.iterdir()] == ["set.hdf5"]


def test_notes_stay_with_what_was_read_from_a_file(tmp_path):
    path = write(tmp_path / "tail.hdf5", {**columns(), "next_observations": None, "rewards": np.arange(7.0)})
    dataset, attributes = read(path)
    write_dsrl(tmp_path / "set.hdf5", dataset, attributes)
    assert read_dsrl(tmp_path / "set.hdf5")[1] == attributes


def test_written_files_have_the_layout_that_others_read(tmp_path):
    write_dsrl(tmp_path / "set.hdf5", from_arrays(**columns()), {"task": "point"})
    with h5py.File(tmp_path / "set.hdf5") as file:
        assert set(file) == set(columns())
        assert all(file[key].compression == "gzip" for key in file)
        assert all(file[key].fletcher32 for key in file)
        for key, value in columns().items():
            assert file[key].shape == value.shape
            if key != "timeouts":
                np.testing.assert_array_equal(file[key][()], value)
        assert file["timeouts"][()].tolist() == [0, 0, 0, 0, 0, 1, 1]
        assert json.loads(file.attrs["safejax"]) == {"task": "point"}


def test_parts_are_written_as_groups(tmp_path):
    seen = observations("pixels", np.random.default_rng(0), 7)
    parts = {"observations": jax.tree.map(lambda leaf: leaf[:-1], seen), "next_observations": None}
    write_dsrl(tmp_path / "set.hdf5", from_arrays(**{**columns(), **parts}))
    with h5py.File(tmp_path / "set.hdf5") as file:
        assert set(file["observations"]) == set(file["next_observations"]) == {"pixels", "state"}
        assert file["observations/pixels"].dtype == np.uint8
        assert file["observations/pixels"].fletcher32


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "set.hdf5"
    write_dsrl(path, from_arrays(**columns()))
    before = path.read_bytes()

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safejax.data.formats.flat.os.fsync", fail)
    with pytest.raises(DatasetError, match=r"the write failed \(\[Errno 28\] No space left on device\)"):
        write_dsrl(path, from_arrays(**columns(seed=1)))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["set.hdf5"]


def test_what_cannot_be_written(tmp_path):
    dataset = from_arrays(**columns())
    with pytest.raises(DatasetError, match="attributes cannot be stored"):
        write_dsrl(tmp_path / "set.hdf5", dataset, {"function": print})
    with pytest.raises(DatasetError, match="attributes take"):
        write_dsrl(tmp_path / "set.hdf5", dataset, {"note": "x" * 70_000})
    with pytest.raises(DatasetError, match="Check free space and that the directory exists"):
        write_dsrl(tmp_path / "none" / "set.hdf5", dataset)
    for name in ("a/b", "", "..", "a\0", 1):
        parts = {"observations": {name: np.zeros((7, 3))}, "next_observations": None}
        with pytest.raises(DatasetError, match=r"have a part called .*, expected printable text without /"):
            write_dsrl(tmp_path / "set.hdf5", from_arrays(**{**columns(), **parts}))
    structured = {"observations": {"robot": {"state": np.zeros((7, 3))}}, "next_observations": None}
    with pytest.raises(DatasetError, match=r"observations are a nested dict, expected an array \[N, O\] or a dict"):
        write_dsrl(tmp_path / "set.hdf5", from_arrays(**{**columns(), **structured}))
