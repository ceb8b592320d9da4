"""Every format, laid out as its makers do: what ends an episode, what follows a row, what the last row is."""

import json
import subprocess
import sys
import warnings

import h5py
import jax
import numpy as np
import pytest
from data_files import columns, minari, minari_episodes, npz, ogbench_columns, write
from hypothesis import given, settings
from hypothesis import strategies as st

from safejax.data import DatasetError, from_arrays, read, read_dsrl


def same(left, right):
    """Whether both data sets hold the same."""
    return jax.tree.all(jax.tree.map(np.array_equal, left, right))


def test_dsrl(tmp_path):
    held = {key: array[:, None] if array.ndim == 1 else array for key, array in columns().items()}
    dataset, attributes = read(write(tmp_path / "any name", held))
    assert attributes["format"] == "DSRL HDF5"
    rows = dataset.transitions
    assert rows.discount.tolist() == [1, 1, 0, 1, 1, 1, 1]
    assert rows.last.tolist() == [0, 0, 1, 0, 0, 1, 1]
    assert dataset.episode_start.tolist() == [0, 3, 6]
    assert dataset.episode_length.tolist() == [3, 3, 1]
    np.testing.assert_array_equal(rows.next_observation, columns()["next_observations"])
    assert same(dataset, from_arrays(**columns()))


def test_read_dsrl_is_read(tmp_path):
    path = write(tmp_path / "set.hdf5", columns())
    with h5py.File(path, "a") as file:
        file.attrs["total"] = np.int64(3)
    dataset, attributes = read_dsrl(path)
    assert attributes["total"] == 3
    assert same(dataset, read(path)[0])


def d4rl(**changes):
    """D4RL's keys: no costs, and infos and metadata beside the columns."""
    others = {"infos/qpos": np.zeros((7, 2)), "infos/action_log_probs": np.zeros(7), "metadata/algorithm": b"SAC"}
    return {**columns(), "costs": None, **others, **changes}


def test_d4rl_with_next_observations(tmp_path):
    dataset, attributes = read(write(tmp_path / "hopper.hdf5", d4rl()), costs="zero")
    assert attributes["format"] == "D4RL HDF5"
    assert same(dataset, from_arrays(**{**columns(), "costs": np.zeros(7)}))


def test_d4rl_without_next_observations(tmp_path):
    held = columns()
    dataset, attributes = read(write(tmp_path / "hopper.hdf5", d4rl(next_observations=None)), costs="zero")
    rows = dataset.transitions
    # row 5 timed out and row 6 is where the file ends: nobody wrote down what followed
    assert rows.reward.tolist() == [0, 1, 2, 3, 4]
    assert rows.discount.tolist() == [1, 1, 0, 1, 1]
    assert rows.last.tolist() == [0, 0, 1, 0, 1]
    np.testing.assert_array_equal(rows.next_observation, held["observations"][[1, 2, 2, 4, 5]])
    assert dataset.episode_start.tolist() == [0, 3]
    assert "2 rows that were cut off have no next observation and are dropped." in attributes["notes"]
    assert "tail" not in " ".join(attributes["notes"])  # its one row is dropped


def test_the_tail_is_counted_without_the_row_that_is_dropped(tmp_path):
    held = d4rl(next_observations=None, timeouts=np.zeros(7))  # rows 3 to 6 follow the terminal row 2
    dataset, attributes = read(write(tmp_path / "hopper.hdf5", held), costs="zero")
    assert dataset.episode_length.tolist() == [3, 3]
    assert "unfinished tail of 3 rows is kept as a truncated episode." in attributes["notes"]


def test_d4rl_whose_last_row_is_terminal_keeps_it(tmp_path):
    held = {"next_observations": None, "terminals": np.arange(7) == 6, "timeouts": np.arange(7) == 2}
    dataset, _ = read(write(tmp_path / "hopper.hdf5", d4rl(**held)), costs="zero")
    assert dataset.transitions.reward.tolist() == [0, 1, 3, 4, 5, 6]
    assert dataset.transitions.last.tolist() == [0, 1, 0, 0, 0, 1]
    assert dataset.transitions.discount.tolist() == [1, 1, 1, 1, 1, 0]


def test_an_episode_length_stands_in_for_timeouts(tmp_path):
    held = {"timeouts": None, "next_observations": None}
    dataset, attributes = read(write(tmp_path / "old.hdf5", d4rl(**held)), costs="zero", episode_length=2)
    # ends at rows 1 (2 steps), 2 (terminal), 4 (2 steps) and 6 (2 steps); all but row 2 have no successor
    assert "episode_length=2: 3 timeouts set." in attributes["notes"]
    assert dataset.transitions.reward.tolist() == [0, 2, 3, 5]
    assert dataset.transitions.last.tolist() == [1, 1, 1, 1]
    assert dataset.transitions.discount.tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize("part", ["", "data", "data/main_data.hdf5"])
def test_minari(tmp_path, part):
    dataset, attributes = read(minari()(tmp_path) / part)
    rows, (first, second) = dataset.transitions, minari_episodes()
    assert attributes["format"] == "Minari HDF5"
    assert attributes["dataset_id"] == "car/test-v0"
    assert rows.discount.tolist() == [1, 1, 0, 1, 1]
    assert rows.last.tolist() == [0, 0, 1, 0, 1]
    assert rows.cost.tolist() == [10, 20, 30, 10, 20]  # of 0, 10, 20, 30 and 0, 10, 20 the 0 is the reset's
    assert dataset.episode_length.tolist() == [3, 2]
    seen, following = ([e["observations"][cut] for e in (first, second)] for cut in (np.s_[:-1], np.s_[1:]))
    np.testing.assert_array_equal(rows.observation, np.concatenate(seen))
    np.testing.assert_array_equal(rows.next_observation, np.concatenate(following))
    assert attributes["notes"] == []


def test_minari_costs_of_t_entries_and_dictionaries(tmp_path):
    seen = np.arange(8, dtype=np.float32).reshape(4, 2)
    parts = {"observations": None, "observations/goal": seen, "observations/state": -seen, "infos/cost": np.arange(3.0)}
    path = minari(first=parts)(tmp_path)
    with h5py.File(path / "data" / "main_data.hdf5", "a") as file:
        del file["episode_1"]
    rows = read(path)[0].transitions
    assert rows.cost.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(rows.next_observation["goal"], seen[1:])
    np.testing.assert_array_equal(rows.observation["state"], -seen[:-1])


def test_minari_episodes_come_in_the_order_of_their_numbers(tmp_path):
    path = minari()(tmp_path)
    with h5py.File(path / "data" / "main_data.hdf5", "a") as file:
        file.move("episode_0", "episode_10")
        file.move("episode_1", "episode_9")
    assert read(path)[0].episode_length.tolist() == [2, 3]


@pytest.mark.parametrize("name", ["total_episodes", "total_steps"])
def test_minari_with_fewer_episodes_than_its_metadata_say_is_refused(tmp_path, name):
    totals = {"total_episodes": 2, "total_steps": 5}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(minari(metadata=json.dumps(totals))(tmp_path / "whole"))
    path = minari(metadata=json.dumps({name: totals[name]}))(tmp_path)
    with h5py.File(path / "data" / "main_data.hdf5", "a") as file:
        del file["episode_1"]
    found = {"total_episodes": "1 episodes, expected 2", "total_steps": "3 steps, expected 5"}[name]
    with pytest.raises(DatasetError, match=rf"{found} as metadata\.json says\. Copy or download it again\."):
        read(path)


def test_ogbench(tmp_path):
    dataset, attributes = read(npz()(tmp_path), costs="zero", rewards="zero")
    rows, states = dataset.transitions, ogbench_columns()["observations"]
    assert attributes["format"] == "OGBench npz"
    np.testing.assert_array_equal(rows.observation, states[[0, 1, 2, 4, 5]])
    np.testing.assert_array_equal(rows.next_observation, states[[1, 2, 3, 5, 6]])
    assert rows.discount.tolist() == [1, 1, 1, 1, 1]  # the end of a trajectory is not the end of a task
    assert rows.last.tolist() == [0, 0, 1, 0, 1]
    assert dataset.episode_length.tolist() == [3, 2]


def test_ogbench_with_next_observations_and_masks(tmp_path):
    changes = {
        "next_observations": ogbench_columns()["observations"] + 1,
        "rewards": np.arange(7.0),
        "costs": np.ones(7),
        "masks": np.array([1, 0, 1, 1, 1, 1, 0]),
    }
    with pytest.warns(UserWarning, match="next_observations are not"):
        dataset, _ = read(npz(**changes)(tmp_path))
    assert dataset.transitions.discount.tolist() == [1, 0, 1, 1, 1, 1, 0]
    assert dataset.transitions.last.tolist() == [0, 1, 0, 1, 0, 0, 1]
    assert dataset.transitions.reward.tolist() == [0, 1, 2, 3, 4, 5, 6]


EPISODES = st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=4)


@settings(max_examples=20, deadline=None)
@given(drawn=EPISODES, seed=st.integers(0, 10**6))
def test_the_same_episodes_are_the_same_in_every_format(tmp_path_factory, drawn, seed):
    """Of episodes of T steps, T + 1 observations and whether the task ended them."""
    random, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("formats")
    episodes = [
        {
            "observations": random.normal(size=(length + 1, 3)).astype(np.float32),
            "actions": random.uniform(-1, 1, (length + 1, 2)).astype(np.float32),
            "rewards": random.normal(size=length + 1).astype(np.float32),
            "costs": random.uniform(size=length + 1).astype(np.float32),
        }
        for length, _ in drawn
    ]

    def rows(counts):
        """The columns with so many rows of each episode, the last of them an end."""
        parts = [
            {name: array[:count] for name, array in episode.items()}
            | {"terminals": (np.arange(count) == count - 1) & over, "timeouts": (np.arange(count) == count - 1) & ~over}
            for episode, count, (_, over) in zip(episodes, counts, drawn, strict=True)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    held = rows([length for length, _ in drawn])
    following = np.concatenate([episode["observations"][1:] for episode in episodes])
    expected = from_arrays(**held, next_observations=following)
    assert same(read(write(folder / "dsrl.hdf5", {**held, "next_observations": following}))[0], expected)

    (folder / "data").mkdir()
    stored = {}
    for k, (episode, (length, over)) in enumerate(zip(episodes, drawn, strict=True)):
        end = np.arange(length) == length - 1
        stored |= {f"episode_{k}/observations": episode["observations"], f"episode_{k}/terminations": end & over}
        stored |= {f"episode_{k}/{name}": episode[name][:-1] for name in ("actions", "rewards")}
        stored |= {f"episode_{k}/truncations": end & (not over)}
        stored |= {f"episode_{k}/infos/cost": np.append(np.float32(0), episode["costs"][:-1])}
    write(folder / "data" / "main_data.hdf5", stored)
    assert same(read(folder)[0], expected)

    own = np.where(held["terminals"][:, None], held["observations"], following)
    d4rl_rows = rows([length if over else length + 1 for length, over in drawn])
    assert same(read(write(folder / "d4rl.hdf5", d4rl_rows))[0], from_arrays(**held, next_observations=own))

    states = rows([length + 1 for length, _ in drawn])
    states["terminals"] = states["terminals"] | states.pop("timeouts")
    np.savez(folder / "og.npz", **states)
    endless = {**held, "terminals": 0 * held["terminals"], "timeouts": held["terminals"] | held["timeouts"]}
    assert same(read(folder / "og.npz")[0], from_arrays(**endless, next_observations=following))


MINARI_SCRIPT = """
import json, sys
import gymnasium as gym, minari, numpy as np

class World(gym.Env):
    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def observe(self):
        return np.array([self.episode, self.steps], np.float32)

    def reset(self, *, seed=None, options=None):
        self.episode, self.steps = getattr(self, "episode", -1) + 1, 0
        return self.observe(), {"cost": 0.0}

    def step(self, action):
        self.steps += 1
        terminated, truncated = (self.episode, self.steps) == (0, 3), (self.episode, self.steps) == (1, 2)
        return self.observe(), float(self.steps), terminated, truncated, {"cost": 10.0 * self.steps}

env = minari.DataCollector(World(), record_infos=True, data_format="hdf5")
for _ in range(3):
    env.reset()
    for _ in range(4):
        _, _, terminated, truncated, _ = env.step(np.array([0.5], np.float32))
        if terminated or truncated:
            break
env.create_dataset("world/test-v0", eval_env=None, algorithm_name="constant")
"""


def test_minari_by_its_own_package(tmp_path, monkeypatch):
    pytest.importorskip("minari")
    pytest.importorskip("PIL")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    subprocess.run([sys.executable, "-c", MINARI_SCRIPT], check=True)
    check_recorded(tmp_path / "world" / "test-v0")


def check_recorded(path):
    """What MINARI_SCRIPT recorded: 3 steps to a termination, 2 to a truncation, and 4 that nothing ended."""
    dataset, attributes = read(path)
    rows = dataset.transitions
    assert attributes["dataset_id"] == "world/test-v0"
    assert dataset.episode_length.tolist() == [3, 2, 4]
    assert rows.discount.tolist() == [1, 1, 0, 1, 1, 1, 1, 1, 1]
    assert rows.last.tolist() == [0, 0, 1, 0, 1, 0, 0, 0, 1]
    assert rows.observation[:, 1].tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3]
    assert rows.next_observation[:, 1].tolist() == [1, 2, 3, 1, 2, 1, 2, 3, 4]
    assert rows.reward.tolist() == [1, 2, 3, 1, 2, 1, 2, 3, 4]
    assert rows.cost.tolist() == [10, 20, 30, 10, 20, 10, 20, 30, 40]
