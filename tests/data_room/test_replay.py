"""Replay: a ring against a list kept by hand, under jit, scan, vmap and donation; mixing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flashbax.buffers import trajectory_buffer
from hypothesis import given, settings
from hypothesis import strategies as st

from safejax.data import make_replay, mix
from safejax.types import Transition


def numbered(numbers, extras=()):
    """Transitions whose every field tells the same number; numbers [...]."""
    numbers = jnp.asarray(numbers, jnp.float32)
    wide = jnp.stack([numbers, -numbers], axis=-1)
    return Transition(wide, wide, numbers, numbers, numbers, numbers, wide, {name: numbers for name in extras})


@settings(max_examples=10, deadline=None)
@given(
    env_count=st.sampled_from([1, 3]),
    ring=st.sampled_from([2, 5]),
    spare=st.integers(0, 2),
    lengths=st.lists(st.integers(1, 3), min_size=1, max_size=6),
    sequence_length=st.integers(1, 2),
)
def test_against_a_list(env_count, ring, spare, lengths, sequence_length):
    lengths = [min(length, ring) for length in lengths]
    lengths[0] = max(lengths[0], sequence_length)
    replay = make_replay(env_count * ring + spare % env_count, env_count, sequence_length=sequence_length)
    state = replay.init(numbered(0.0))
    assert replay.size(state) == 0
    time = 0
    for length in lengths:
        steps = np.arange(time, time + length) + 100 * np.arange(env_count)[:, None]
        state, time = replay.add(state, numbered(steps)), time + length
        held = range(max(0, time - ring), time)
        assert replay.size(state) == len(held) * env_count
    batch = replay.sample(state, jax.random.key(0), 300)
    numbers = np.asarray(batch.reward, int).reshape(300, sequence_length)
    assert (np.diff(numbers, axis=1) == 1).all()
    starts = {100 * env + step for env in range(env_count) for step in held[: len(held) - sequence_length + 1]}
    assert set(numbers[:, 0]) == starts
    assert batch.reward.shape == ((300,) if sequence_length == 1 else (300, sequence_length))
    for leaf, wide in ((batch.cost, batch.observation), (batch.last, batch.next_observation)):
        np.testing.assert_array_equal(np.stack([leaf, -leaf], axis=-1), wide)


@pytest.mark.parametrize("sequence_length", [1, 2])
def test_where_nothing_diverged_batches_are_flashbaxs(sequence_length):
    """Bit for bit, before the rings are full and after."""
    replay = make_replay(15, 3, sequence_length=sequence_length)
    steps = jnp.arange(4)[:, None, None] * 2 + jnp.arange(2) + 100 * jnp.arange(3)[:, None]  # [calls, B, T]

    def run(init, add, sample):
        def call(state, rows):
            state = add(state, rows)
            return state, sample(state, jax.random.fold_in(jax.random.key(0), rows.reward[0, 0].astype(int)))

        return jax.jit(lambda rows: jax.lax.scan(call, init(numbered(0.0)), rows)[1])(numbered(steps))

    theirs = run(
        lambda example: trajectory_buffer.init(example, 3, 5),
        trajectory_buffer.add,
        lambda state, key: trajectory_buffer.sample(state, key, 40, sequence_length, period=1).experience,
    )
    ours = run(replay.init, replay.add, lambda state, key: replay.sample(state, key, 40))
    jax.tree.map(lambda ours, theirs: np.testing.assert_array_equal(ours, theirs.reshape(ours.shape)), ours, theirs)


@pytest.mark.parametrize("extras", [(), ("log_prob",)])
def test_jit_scan_vmap_and_donation(extras):
    replay = make_replay(40, 2)

    def step(state, key):
        state = replay.add(state, numbered(jnp.ones((2, 1)) * replay.size(state), extras))
        return state, replay.sample(state, key, 5)

    @jax.jit
    def start():
        return replay.init(numbered(0.0, extras))

    def run(state, keys):
        return jax.lax.scan(step, state, keys)

    keys = jax.vmap(lambda key: jax.random.split(key, 30))(jax.random.split(jax.random.key(0), 3))
    states = jax.vmap(lambda _: start())(jnp.arange(3))
    lowered = jax.jit(jax.vmap(run), donate_argnums=0)
    donated, batches = lowered(states, keys)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(states))
    assert batches.observation.shape == (3, 30, 5, 2)
    assert batches.extras.keys() == set(extras)
    donated, _ = lowered(donated, keys)  # same types in and out: no second trace
    assert lowered._cache_size() == 1
    alone, single = jax.jit(run)(start(), keys[1])
    np.testing.assert_array_equal(single.reward, batches.reward[1])
    assert jax.vmap(replay.size)(donated).tolist() == [40, 40, 40]
    assert replay.size(alone) == 40


def test_pixels_and_empty_next_observations():
    frame = jnp.zeros((4, 4, 3), jnp.uint8)
    example = numbered(0.0)._replace(observation={"pixels": frame}, next_observation=())
    replay = make_replay(6, 2, sequence_length=3)
    rows = jax.tree.map(lambda leaf: jnp.ones((2, 3, *leaf.shape), leaf.dtype), example)
    batch = replay.sample(replay.add(replay.init(example), rows), jax.random.key(0), 4)
    assert batch.observation["pixels"].shape == (4, 3, 4, 4, 3)
    assert batch.observation["pixels"].dtype == jnp.uint8
    assert batch.next_observation == ()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((3, 4), "capacity is 3, expected a number in [4, inf]"),
        ((4, 0), "env_count is 0, expected a number in [1, inf]"),
    ],
)
def test_sizes_are_checked(arguments, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are compared below
        make_replay(*arguments)
    assert words in str(caught.value)


def test_a_ring_must_hold_a_window():
    with pytest.raises(ValueError, match=r"capacity is 9, expected a number in \[10, inf\]"):
        make_replay(9, 2, sequence_length=5)


def test_wrong_transitions_are_named():
    replay = make_replay(8, 2)
    state = replay.init(numbered(0.0))
    for axes in ((3, 1), (2, 5), (2,)):
        with pytest.raises(ValueError, match=r"expected \[2, T <= 4\]"):
            replay.add(state, numbered(jnp.zeros(axes)))
    with pytest.raises(ValueError, match="log_prob"):
        replay.add(state, numbered(jnp.zeros((2, 1)), ["log_prob"]))


def test_mix_puts_offline_rows_first():
    batch = mix(numbered([1, 2, 3]), numbered([4, 5]))
    assert batch.reward.tolist() == [1, 2, 3, 4, 5]
    assert batch.observation.shape == (5, 2)
    with pytest.raises(ValueError, match=r"mix: offline .* online .* give both the same"):
        mix(numbered([1]), numbered([2])._replace(observation={"state": jnp.zeros((1, 2))}))


def test_mix_keeps_the_extras_that_both_carry():
    assert mix(numbered([1]), numbered([2], ["log_prob"])).extras == {}
    batch = mix(numbered([1], ["weight"]), numbered([2], ["log_prob", "weight"]))
    assert batch.extras.keys() == {"weight"}
    assert batch.extras["weight"].tolist() == [1, 2]
