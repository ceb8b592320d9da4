"""Logged data: what is derived, what the files hold, and the words for every fault."""

import json

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safejax.data import (
    DatasetError,
    best_safe_return,
    check_open_actions,
    check_widths,
    clip_actions,
    episode_returns,
    from_arrays,
    read_dsrl,
    sample,
    sample_sequences,
    select_episodes,
    write_dsrl,
)


def arrays(count=7, terminals=(2,), timeouts=(5,), seed=0):
    """Episodes of 3 rows (terminated), 3 rows (timeout) and an unfinished tail of 1."""
    random = np.random.default_rng(seed)
    flags = np.arange(count)
    return {
        "observations": random.normal(size=(count, 3)),
        "next_observations": random.normal(size=(count, 3)),
        "actions": random.uniform(-1, 1, size=(count, 2)),
        "rewards": np.arange(count, dtype=np.float64),
        "costs": (flags % 2).astype(np.float64),
        "terminals": np.isin(flags, terminals),
        "timeouts": np.isin(flags, timeouts),
    }


def write_raw(path, **changes):
    """A file as a stranger would write it, with plain h5py."""
    with h5py.File(path, "w") as file:
        for key, value in {**arrays(), **changes}.items():
            if value is not None:
                file[key] = value
    return path


def equal(left, right):
    return jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype and bool((a == b).all()), left, right))


def test_ends_discounts_and_boundaries():
    dataset = from_arrays(**arrays())
    assert dataset.transitions.discount.tolist() == [1, 1, 0, 1, 1, 1, 1]
    assert dataset.transitions.last.tolist() == [0, 0, 1, 0, 0, 1, 1]
    assert dataset.episode_start.tolist() == [0, 3, 6]
    assert dataset.episode_length.tolist() == [3, 3, 1]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(dataset.transitions)} == {"float32"}
    assert dataset.episode_start.dtype == dataset.episode_length.dtype == jnp.int32
    assert dataset.transitions.extras == {}


def test_next_observations_are_derived_within_episodes():
    observations = np.arange(21.0).reshape(7, 3)
    dataset = from_arrays(**{**arrays(), "observations": observations, "next_observations": None})
    following = [1, 2, 2, 4, 5, 5, 6]  # rows 2, 5 and 6 end an episode
    np.testing.assert_array_equal(dataset.transitions.next_observation, observations[following])


def test_pixels_stay_bytes_and_discrete_actions_integers():
    observations = {"pixels": np.zeros((7, 4, 4, 3), np.uint8), "state": np.zeros((7, 2))}
    changes = {"observations": observations, "next_observations": None, "actions": np.arange(7)}
    rows = from_arrays(**{**arrays(), **changes}).transitions
    assert rows.observation["pixels"].dtype == rows.next_observation["pixels"].dtype == jnp.uint8
    assert rows.observation["state"].dtype == jnp.float32
    assert rows.action.dtype == jnp.int32


def test_episode_sums_and_best_safe_return():
    dataset = from_arrays(**arrays())
    for function in (episode_returns, jax.jit(episode_returns)):
        returns, costs, lengths = function(dataset)
        assert returns.tolist() == [3, 12, 6]
        assert costs.tolist() == [1, 2, 0]
        assert lengths.tolist() == [3, 3, 1]
    assert best_safe_return(dataset, 2) == 12
    assert best_safe_return(dataset, 1) == 6
    assert best_safe_return(dataset, -1) == -np.inf


def test_select_episodes():
    dataset = select_episodes(from_arrays(**arrays()), [2, 0])
    assert dataset.transitions.reward.tolist() == [6, 0, 1, 2]
    assert dataset.transitions.last.tolist() == [1, 0, 0, 1]
    assert dataset.episode_start.tolist() == [0, 1]
    assert dataset.episode_length.tolist() == [1, 3]
    for wrong in ([], [3], [-1]):
        with pytest.raises(DatasetError, match=r"expected some numbers in \[0, 3\)"):
            select_episodes(dataset._replace(episode_start=jnp.arange(3)), wrong)


def test_sample_is_uniform_over_rows_that_belong_together():
    dataset = from_arrays(**arrays())
    batch = jax.jit(sample, static_argnums=2)(dataset, jax.random.key(0), 7000)
    rows = np.asarray(batch.reward, int)
    for values, stored in zip(jax.tree.leaves(batch), jax.tree.leaves(dataset.transitions), strict=True):
        np.testing.assert_array_equal(values, stored[rows])
    counts = np.bincount(rows, minlength=7)
    assert ((counts - 1000.0) ** 2 / 1000).sum() < 22.5  # chi-square with 6 degrees, p = 0.001


def test_sample_works_with_vmapped_keys():
    keys = jax.random.split(jax.random.key(0), 3)
    batches = jax.vmap(sample, in_axes=(None, 0, None))(from_arrays(**arrays()), keys, 64)
    assert batches.observation.shape == (3, 64, 3)
    assert not np.array_equal(batches.reward[0], batches.reward[1])


def test_sequences_are_consecutive_and_reach_the_first_and_last_row():
    dataset = from_arrays(**arrays())
    windows = jax.jit(sample_sequences, static_argnums=(2, 3))(dataset, jax.random.key(0), 400, 3)
    assert windows.observation.shape == (400, 3, 3)
    rows = np.asarray(windows.reward, int)
    assert (np.diff(rows, axis=1) == 1).all()
    assert set(rows[:, 0]) == {0, 1, 2, 3, 4}
    np.testing.assert_array_equal(windows.last, np.asarray(dataset.transitions.last)[rows])
    with pytest.raises(ValueError, match=r"sequences of 8 rows, expected a length in \[1, 7\]"):
        sample_sequences(dataset, jax.random.key(0), 4, 8)


@settings(max_examples=12, deadline=None)
@given(count=st.sampled_from([1, 2, 23]), seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_write_then_read_gives_the_same(tmp_path_factory, count, seed, share):
    random = np.random.default_rng(seed)
    ends = random.uniform(size=count) < share
    dataset = from_arrays(**arrays(count, np.flatnonzero(ends)[::2], np.flatnonzero(ends)[1::2], seed))
    attributes = {"task": "point", "seeds": [1, 2], "versions": {"mujoco": "3"}, "rate": 0.5}
    path = tmp_path_factory.mktemp("data") / "set.hdf5"
    write_dsrl(path, dataset, attributes)
    again, found = read_dsrl(path)
    assert found == attributes
    assert equal(again, dataset)
    assert [entry.name for entry in path.parent.iterdir()] == ["set.hdf5"]


def test_a_file_written_by_h5py_is_read(tmp_path):
    columns = {key: arrays()[key][:, None] for key in ("rewards", "costs", "terminals", "timeouts")}
    path = write_raw(tmp_path / "raw.hdf5", **columns)
    with h5py.File(path, "a") as file:
        file.attrs["total"] = np.int64(3)
    dataset, attributes = read_dsrl(path)
    assert attributes == {"total": 3}
    assert equal(dataset, from_arrays(**arrays()))


def test_written_files_have_the_layout_that_others_read(tmp_path):
    dataset = from_arrays(**arrays())
    write_dsrl(tmp_path / "set.hdf5", dataset, {"task": "point"})
    with h5py.File(tmp_path / "set.hdf5") as file:
        assert set(file) == set(arrays())
        assert all(file[key].compression == "gzip" for key in file)
        assert all(file[key].fletcher32 for key in file)
        for key, value in arrays().items():
            assert file[key].shape == value.shape
            if key != "timeouts":
                np.testing.assert_allclose(file[key][()], value, rtol=1e-6)
        assert file["timeouts"][()].tolist() == [0, 0, 0, 0, 0, 1, 1]
        assert json.loads(file.attrs["safejax"]) == {"task": "point"}


def with_pixels():
    random = np.random.default_rng(0)
    pair = [
        {"pixels": random.integers(0, 256, (7, 4, 4, 3), np.uint8), "state": random.normal(size=(7, 2))}
        for _ in range(2)
    ]
    return {**arrays(), "observations": pair[0], "next_observations": pair[1]}


def test_observations_with_parts_are_written_as_groups_and_read_again(tmp_path):
    dataset = from_arrays(**with_pixels())
    path = tmp_path / "set.hdf5"
    write_dsrl(path, dataset, {"renderer": "raycast"})
    again, found = read_dsrl(path)
    assert found == {"renderer": "raycast"}
    assert jax.tree.structure(again) == jax.tree.structure(dataset)
    assert equal(again, dataset)
    assert again.transitions.observation["pixels"].dtype == jnp.uint8
    with h5py.File(path) as file:
        assert set(file["observations"]) == set(file["next_observations"]) == {"pixels", "state"}
        assert file["observations/pixels"].dtype == np.uint8
        assert file["observations/pixels"].fletcher32


@pytest.mark.parametrize("kind", ["link", "group"])
def test_parts_are_held_to_what_the_whole_is(tmp_path, kind):
    path = tmp_path / "set.hdf5"
    write_dsrl(path, from_arrays(**with_pixels()))
    with h5py.File(path, "a") as file:
        del file["observations/state"]
        if kind == "link":
            file["observations/state"] = h5py.SoftLink("/actions")
        else:
            file.create_group("observations/state")
    words = {
        "link": "refused: 'observations/state' is a link or stored outside this file",
        "group": "'observations/state' is a Group, expected a data set",
    }
    with pytest.raises(DatasetError, match=words[kind]):
        read_dsrl(path)


def test_both_observations_have_the_same_parts():
    columns = with_pixels()
    del columns["next_observations"]["state"]
    with pytest.raises(DatasetError, match="give both the same parts") as caught:
        from_arrays(**columns)
    assert "\n" not in str(caught.value)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "set.hdf5"
    write_dsrl(path, from_arrays(**arrays()))
    before = path.read_bytes()

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safejax.data.dataset.os.fsync", fail)
    with pytest.raises(DatasetError, match=r"the write failed \(\[Errno 28\] No space left on device\)"):
        write_dsrl(path, from_arrays(**arrays(seed=1)))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["set.hdf5"]


def changed(key, row, value):
    column = arrays()[key].astype(float)
    column[row] = value
    return {key: column}


FAULTS = {
    "missing costs": (
        {"costs": None},
        "no 'costs'. A safe algorithm needs a cost per step; keys found: actions, ",
    ),
    "missing actions": ({"actions": None}, "no 'actions'; keys found: costs, "),
    "rows": (
        {"actions": np.zeros((6, 2))},
        "actions has 6 rows, observations 7; give every key one row a step",
    ),
    "empty": (
        {key: value[:0] for key, value in arrays().items()} | {"timeouts": np.zeros(0, bool)},
        "no terminals and no timeouts",
    ),
    "nan": (
        changed("rewards", 4, np.nan),
        "rewards: 1 non-finite values, first at row 4 (episode 1, step 1)",
    ),
    "inf": (
        changed("observations", 6, np.inf),
        "observations: 3 non-finite values, first at row 6 (episode 2, step 0)",
    ),
    "overflow": (
        changed("next_observations", 0, 1e300),
        "next_observations: 3 non-finite values, first at row 0",
    ),
    "negative cost": (changed("costs", 1, -0.2), "costs: 1 values below 0, least -0.2, first at row 1"),
    "action": (changed("actions", 5, 1.31), "actions: 1 rows outside [-1, 1], by up to 1.31, first at row 5"),
    "both": ({"timeouts": arrays()["terminals"]}, "1 rows are both terminal and timeout, first at row 2"),
    "flags": (changed("terminals", 3, 0.5), "terminals: 1 values neither 0 nor 1, first at row 3"),
    "dtype": ({"rewards": np.full(7, b"a")}, "rewards are |S1[7], expected real numbers"),
    "axes": ({"rewards": np.zeros((7, 2))}, "rewards are float64[7, 2], expected [N] or [N, 1]"),
    "flat": ({"actions": np.zeros(7)}, "actions are float64[7], expected float [N, A] or integer [N]"),
    "twin": ({"next_observations": np.zeros((7, 4))}, "expected [3] a row, as observations"),
    "no ends": (
        {"terminals": np.zeros(7), "timeouts": np.zeros(7)},
        "no terminals and no timeouts, expected episode ends",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_named_with_its_file(tmp_path, name):
    changes, words = FAULTS[name]
    path = write_raw(tmp_path / "car.hdf5", **changes)
    with pytest.raises(DatasetError) as caught:
        read_dsrl(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert words in message
    assert "\n" not in message


def test_all_faults_come_in_one_message():
    with pytest.raises(DatasetError) as caught:
        from_arrays(**{**arrays(), **changed("costs", 1, -1), **changed("rewards", 2, np.inf)}, source="mine")
    assert str(caught.value).startswith("mine: ")
    assert "costs: 1 values" in str(caught.value)
    assert "rewards: 1 non-finite" in str(caught.value)


def test_no_rows():
    with pytest.raises(DatasetError, match="from_arrays: no rows, expected at least one transition"):
        from_arrays(**{key: value[:0] for key, value in arrays().items()})


def test_actions_within_the_tolerance_are_clipped():
    dataset = from_arrays(**{**arrays(), **changed("actions", 5, 1 + 5e-6)})
    assert dataset.transitions.action.max() == 1


def test_files_that_are_not_there_or_not_whole(tmp_path):
    with pytest.raises(DatasetError, match=r"gone\.hdf5: no such file"):
        read_dsrl(tmp_path / "gone.hdf5")
    page = tmp_path / "page.hdf5"
    page.write_text("<html>Not found</html>")
    with pytest.raises(DatasetError, match=r"page\.hdf5: not a complete HDF5 file \(22 bytes; .*delete it"):
        read_dsrl(page)
    whole = tmp_path / "whole.hdf5"
    write_dsrl(whole, from_arrays(**arrays(500)))
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match=r"whole\.hdf5: not a complete HDF5 file"):
        read_dsrl(whole)


def test_a_flipped_bit_in_the_values_is_found(tmp_path):
    path = tmp_path / "set.hdf5"
    write_dsrl(path, from_arrays(**arrays(500)))
    with h5py.File(path) as file:
        chunk = file["observations"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"set\.hdf5: not a complete HDF5 file"):
        read_dsrl(path)


@pytest.mark.parametrize("kind", ["soft", "external link", "external storage", "virtual"])
def test_values_from_elsewhere_are_refused(tmp_path, kind):
    other = write_raw(tmp_path / "other.hdf5", hidden=np.zeros((7, 3)))
    (tmp_path / "secret.txt").write_bytes(bytes(7 * 3 * 8))
    path = write_raw(tmp_path / "set.hdf5", observations=None, hidden=np.zeros((7, 3)))
    with h5py.File(path, "a") as file:
        if kind == "soft":
            file["observations"] = h5py.SoftLink("/hidden")
        elif kind == "external link":
            file["observations"] = h5py.ExternalLink(str(other), "/hidden")
        elif kind == "external storage":
            storage = [(str(tmp_path / "secret.txt"), 0, 7 * 3 * 8)]
            file.create_dataset("observations", (7, 3), "f8", external=storage)
        else:
            layout = h5py.VirtualLayout((7, 3), "f8")
            layout[:] = h5py.VirtualSource(str(other), "hidden", (7, 3))
            file.create_virtual_dataset("observations", layout)
    with pytest.raises(DatasetError, match="refused: 'observations' is a link or stored outside this file"):
        read_dsrl(path)


def test_a_group_is_no_data_set(tmp_path):
    path = write_raw(tmp_path / "set.hdf5", observations=None)
    with h5py.File(path, "a") as file:
        file.create_group("observations")
    with pytest.raises(DatasetError, match="'observations' is a Group, expected a data set"):
        read_dsrl(path)


def test_widths():
    dataset = from_arrays(**arrays())
    check_widths(dataset, 3, 2, "hopper")
    with pytest.raises(DatasetError) as caught:
        check_widths(dataset, 12, 1, "hopper")
    assert "observations are [3] a row, 'hopper' has [12]" in str(caught.value)
    assert "actions are [2] a row, 'hopper' has [1]" in str(caught.value)


def test_what_cannot_be_written(tmp_path):
    dataset = from_arrays(**arrays())
    with pytest.raises(DatasetError, match="attributes cannot be stored"):
        write_dsrl(tmp_path / "set.hdf5", dataset, {"function": print})
    with pytest.raises(DatasetError, match="attributes take"):
        write_dsrl(tmp_path / "set.hdf5", dataset, {"note": "x" * 70_000})
    with pytest.raises(DatasetError, match="check free space and that the directory exists"):
        write_dsrl(tmp_path / "none" / "set.hdf5", dataset)
    structured = {"observations": {"robot": {"state": np.zeros((7, 3))}}, "next_observations": None}
    with pytest.raises(
        DatasetError, match=r"observations are a nested dict, expected an array \[N, O\] or a dictionary"
    ):
        write_dsrl(tmp_path / "set.hdf5", from_arrays(**{**arrays(), **structured}))


def test_actions_at_the_bounds_are_refused_for_a_squashed_policy():
    actions = np.tile([[0.5, -0.5]], (7, 1))
    inside = from_arrays(**{**arrays(), "actions": actions})
    check_open_actions(inside, "inside.hdf5")
    actions[2, 1], actions[5] = -1.0, (1.0, 1.0 - 1e-7)
    touching = from_arrays(**{**arrays(), "actions": actions})
    with pytest.raises(DatasetError, match=r"bound\.hdf5: 28\.6% of the rows have an action at -1 or 1") as raised:
        check_open_actions(touching, "bound.hdf5")
    assert "\n" not in str(raised.value)
    clipped = clip_actions(touching, 0.9)
    check_open_actions(clipped, "clipped")
    np.testing.assert_allclose(clipped.transitions.action, np.clip(actions, -0.9, 0.9), rtol=1e-6)
    with pytest.raises(ValueError, match=r"bound is 1\.5"):
        clip_actions(touching, 1.5)
