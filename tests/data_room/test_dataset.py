"""Data sets from arrays: what is derived, sampled and refused. Files are the matter of test_reading.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_files import columns, with_value

from safejax.data import (
    DatasetError,
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


def test_ends_discounts_and_boundaries():
    dataset = from_arrays(**columns())
    assert dataset.transitions.discount.tolist() == [1, 1, 0, 1, 1, 1, 1]
    assert dataset.transitions.last.tolist() == [0, 0, 1, 0, 0, 1, 1]
    assert dataset.episode_start.tolist() == [0, 3, 6]
    assert dataset.episode_length.tolist() == [3, 3, 1]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(dataset.transitions)} == {"float32"}
    assert dataset.episode_start.dtype == dataset.episode_length.dtype == jnp.int32
    assert dataset.transitions.extras == {}


def test_lists_are_taken_for_arrays():
    lists = {name: array if "observations" in name else array.tolist() for name, array in columns().items()}
    for found, expected in zip(*map(jax.tree.leaves, (from_arrays(**lists), from_arrays(**columns()))), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_next_observations_are_derived_within_episodes():
    observations = np.arange(21.0).reshape(7, 3)
    dataset = from_arrays(**{**columns(), "observations": observations, "next_observations": None})
    following = [1, 2, 2, 4, 5, 5, 6]  # rows 2, 5 and 6 end an episode
    np.testing.assert_array_equal(dataset.transitions.next_observation, observations[following])


def test_pixels_stay_bytes_and_discrete_actions_integers():
    observations = {"pixels": np.zeros((7, 4, 4, 3), np.uint8), "state": np.zeros((7, 2))}
    changes = {"observations": observations, "next_observations": None, "actions": np.arange(7)}
    rows = from_arrays(**{**columns(), **changes}).transitions
    assert rows.observation["pixels"].dtype == rows.next_observation["pixels"].dtype == jnp.uint8
    assert rows.observation["state"].dtype == jnp.float32
    assert rows.action.dtype == jnp.int32


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64, bool])
def test_rewards_and_costs_do_not_wrap_whatever_held_them(dtype):
    ones = {key: np.ones(300, dtype) for key in ("rewards", "costs")}
    dataset = from_arrays(**{**columns(300, (), (299,)), **ones})
    returns, costs, _ = episode_returns(dataset)
    assert (returns.tolist(), costs.tolist()) == ([300], [300])  # 44 in 8 bits
    assert {leaf.dtype.name for leaf in jax.tree.leaves(dataset.transitions)} == {"float32"}


def test_episode_sums_and_best_safe_return():
    dataset = from_arrays(**columns())
    for function in (episode_returns, jax.jit(episode_returns)):
        returns, costs, lengths = function(dataset)
        assert returns.tolist() == [3, 12, 6]
        assert costs.tolist() == [1, 2, 0]
        assert lengths.tolist() == [3, 3, 1]
    assert best_safe_return(dataset, 2) == 12
    assert best_safe_return(dataset, 1) == 6
    assert best_safe_return(from_arrays(**{**columns(), "costs": np.ones(7)}), 0) == -np.inf
    with pytest.raises(ValueError, match="cost_limit is -1"):
        best_safe_return(dataset, -1)


def test_select_episodes():
    dataset = select_episodes(from_arrays(**columns()), [2, 0])
    assert dataset.transitions.reward.tolist() == [6, 0, 1, 2]
    assert dataset.transitions.last.tolist() == [1, 0, 0, 1]
    assert dataset.episode_start.tolist() == [0, 1]
    assert dataset.episode_length.tolist() == [1, 3]
    for wrong in ([], [3], [-1], [0.5], [True, False, True], [[0]]):
        with pytest.raises(DatasetError, match=r"expected some whole numbers in \[0, 3\)"):
            select_episodes(dataset._replace(episode_start=jnp.arange(3)), wrong)


def test_sample_is_uniform_over_rows_that_belong_together():
    dataset = from_arrays(**columns())
    batch = jax.jit(sample, static_argnums=2)(dataset, jax.random.key(0), 7000)
    rows = np.asarray(batch.reward, int)
    for values, stored in zip(jax.tree.leaves(batch), jax.tree.leaves(dataset.transitions), strict=True):
        np.testing.assert_array_equal(values, stored[rows])
    counts = np.bincount(rows, minlength=7)
    assert ((counts - 1000.0) ** 2 / 1000).sum() < 22.5  # chi-square with 6 degrees, p = 0.001


def test_sample_works_with_vmapped_keys():
    keys = jax.random.split(jax.random.key(0), 3)
    batches = jax.vmap(sample, in_axes=(None, 0, None))(from_arrays(**columns()), keys, 64)
    assert batches.observation.shape == (3, 64, 3)
    assert not np.array_equal(batches.reward[0], batches.reward[1])


def test_sequences_are_consecutive_and_reach_the_first_and_last_row():
    dataset = from_arrays(**columns())
    windows = jax.jit(sample_sequences, static_argnums=(2, 3))(dataset, jax.random.key(0), 400, 3)
    assert windows.observation.shape == (400, 3, 3)
    rows = np.asarray(windows.reward, int)
    assert (np.diff(rows, axis=1) == 1).all()
    assert set(rows[:, 0]) == {0, 1, 2, 3, 4}
    np.testing.assert_array_equal(windows.last, np.asarray(dataset.transitions.last)[rows])
    with pytest.raises(ValueError, match=r"sequences of 8 rows, expected a length in \[1, 7\]"):
        sample_sequences(dataset, jax.random.key(0), 4, 8)


def test_all_faults_come_in_one_message():
    faulty = {
        **columns(),
        **with_value("costs", 1, -1),
        **with_value("rewards", 2, np.inf),
        "actions": np.zeros((6, 2)),
    }
    with pytest.raises(DatasetError) as caught:
        from_arrays(**faulty, source="mine")
    assert str(caught.value) == (
        "mine: actions has 6 rows, observations 7. rewards: 1 non-finite values, first at row 2 (episode 0, step 2). "
        "costs: minimum -1, 1 below 0, first at row 1 (episode 0, step 1). Costs must be >= 0; rewards may have been "
        "stored with the sign turned."
    )


def test_a_message_is_one_line_whatever_the_names_hold():
    named = {**columns(), "observations": {"a\nb\x1b[31m": np.zeros(7)}, "next_observations": None}
    with pytest.raises(DatasetError) as caught:
        from_arrays(**named)
    assert str(caught.value).isprintable()


def test_both_observations_have_the_same_parts():
    parts = {"pixels": np.zeros((7, 4, 4, 3), np.uint8), "state": np.zeros((7, 2))}
    with pytest.raises(DatasetError, match="Give both the same"):
        from_arrays(**{**columns(), "observations": parts, "next_observations": {"pixels": parts["pixels"]}})


def test_pictures_are_bytes_in_both_observations_or_in_neither():
    pictures = np.zeros((7, 4, 4, 3), np.uint8)
    for held in ((pictures, pictures / 255), (pictures / 255, pictures)):
        changes = dict(zip(("observations", "next_observations"), held, strict=True))
        with pytest.raises(DatasetError, match=rf"next_observations are .*, expected {held[0].dtype}, as observations"):
            from_arrays(**{**columns(), **changes})


@pytest.mark.parametrize("name", ["observations", "actions"])
def test_no_width(name):
    with pytest.raises(DatasetError, match=rf"{name} are float64\[7, 0\], expected at least one number a row"):
        from_arrays(**{**columns(), "next_observations": None, name: np.zeros((7, 0))})


def test_no_rows():
    with pytest.raises(DatasetError, match="from_arrays: no rows, expected at least one transition"):
        from_arrays(**{key: value[:0] for key, value in columns().items()})


def test_actions_within_the_tolerance_are_clipped():
    dataset = from_arrays(**{**columns(), **with_value("actions", 5, 1 + 5e-6)})
    assert dataset.transitions.action.max() == 1


def test_widths():
    dataset = from_arrays(**columns())
    check_widths(dataset, 3, 2, "hopper")
    with pytest.raises(DatasetError) as caught:
        check_widths(dataset, 12, 1, "hopper", source="car.hdf5")
    assert str(caught.value) == (
        "car.hdf5: observations have 3 features; environment 'hopper' gives 12. "
        "actions have 2 features; environment 'hopper' takes 1."
    )


def test_actions_at_the_bounds_are_refused_for_a_squashed_policy():
    actions = np.tile([[0.5, -0.5]], (7, 1))
    inside = from_arrays(**{**columns(), "actions": actions})
    check_open_actions(inside, "inside.hdf5")
    actions[2, 1], actions[5] = -1.0, (1.0, 1.0 - 1e-7)
    touching = from_arrays(**{**columns(), "actions": actions})
    with pytest.raises(DatasetError, match=r"bound\.hdf5: 28\.6% of the rows have an action at -1 or 1") as raised:
        check_open_actions(touching, "bound.hdf5")
    assert "\n" not in str(raised.value)
    clipped = clip_actions(touching, 0.9)
    check_open_actions(clipped, "clipped")
    np.testing.assert_allclose(clipped.transitions.action, np.clip(actions, -0.9, 0.9), rtol=1e-6)
    with pytest.raises(ValueError, match=r"bound is 1\.5"):
        clip_actions(touching, 1.5)


def test_action_numbers_beyond_int32_are_refused():
    actions = np.array([0, 2**40 + 3])
    with pytest.raises(DatasetError, match=r"actions: 1 action numbers beyond int32, first at row 1"):
        from_arrays(np.ones((2, 1)), actions, np.zeros(2), np.zeros(2), np.zeros(2), np.array([0, 1]))
