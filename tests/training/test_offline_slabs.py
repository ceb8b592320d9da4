"""Training slab by slab: the same loop, one compilation, and a run in two halves equals a whole one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_algorithms

from safejax.data import from_arrays, open_slabs, read_slab, write_slabs
from safejax.training import train_offline_slabs
from safejax.types import BatchSpec, bind

KEY = jax.random.key(0)
TRACES = []


def update(state, batch, key, *, config, networks):
    """Sums what it is shown, in an order that matters."""
    TRACES.append(batch.reward.shape)
    total = 0.5 * state.actor + jnp.mean(batch.reward) + jax.random.uniform(key)
    return state._replace(step=state.step + 1, actor=total), {"mean": jnp.mean(batch.reward), "low": batch.reward.min()}


def fresh(*seeds):
    return toy_algorithms.State(jnp.zeros(seeds, jnp.int32), jnp.zeros(seeds))


ALGORITHM = bind(config=None, networks=None, batch=BatchSpec.uniform(), init=fresh, update=update, act=fresh)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data") / "rows.slabs"
    numbers = np.arange(40.0)
    ends = numbers % 8 == 7
    write_slabs([from_arrays(numbers[:, None], numbers[:, None] * 0, numbers, numbers * 0, 0 * ends, ends)], directory)
    return open_slabs(directory, slab_rows=13, blocks_per_slab=4)


def train(state, slabs, count, key=KEY, updates=3):
    return train_offline_slabs(ALGORITHM, state, slabs, key, slab_count=count, updates_per_slab=updates, batch_size=64)


def test_two_halves_equal_the_whole_and_compile_once(opened):
    TRACES.clear()
    whole, metrics = train(fresh(), opened, 8)  # two epochs of four slabs
    half, first = train(fresh(), opened, 4)
    half, second = train(half, opened, 4)
    assert TRACES == [(64,)]
    assert metrics["mean"].shape == (24,)
    assert (int(half.step), float(half.actor)) == (int(whole.step), float(whole.actor))
    np.testing.assert_array_equal(np.concatenate([first["mean"], second["mean"]]), metrics["mean"])


def test_batches_come_from_the_slab_whose_turn_it_is(opened):
    _, metrics = train(fresh(), opened, 8)
    lows = np.asarray(metrics["low"]).reshape(8, 3)
    for index, low in enumerate(lows):
        held = np.asarray(read_slab(opened, KEY, index).transitions.reward)
        assert set(low) <= set(held)
    assert len(set(lows[:, 0])) > 2


def test_seeds_share_the_slabs_and_nothing_else(opened):
    keys = jnp.stack([KEY, jax.random.key(1)])
    state, metrics = train(fresh(2), opened, 2, keys)
    alone, _ = train(fresh(), opened, 2)
    assert metrics["mean"].shape == (2, 6)
    assert float(state.actor[0]) == pytest.approx(float(alone.actor), rel=1e-6)
    assert float(state.actor[0]) != float(state.actor[1])


def test_a_state_within_a_slab_is_refused(opened):
    state, _ = train(fresh(), opened, 1)
    with pytest.raises(ValueError, match=r"state.step is 3, expected a multiple of updates_per_slab, which is 2"):
        train(state, opened, 1, updates=2)
