"""Behaviour data: the annealed limit, what is kept, and in which order."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from safejax.data.dataset import episode_returns
from safejax.envs import probes
from safejax.training import collect, gather, init_online, limit_schedule
from safejax.types import BatchSpec, Transition, bind

SEEDS, ITERATIONS, ENVS, STEPS = 2, 2, 2, 3


def test_the_limit_is_held_then_linear_then_held():
    limits = limit_schedule(11, 10.0, 50.0, (0.2, 0.6))
    np.testing.assert_allclose(limits, [10, 10, 10, 20, 30, 40, 50, 50, 50, 50, 50], rtol=1e-6)
    assert limits.dtype == np.float32
    np.testing.assert_array_equal(limit_schedule(1, 10.0, 50.0), [10.0])


def part(index):
    """Transitions [S, I, B, T] of one call; each number says seed, environment and time.

    reward = 1000 seed + 100 environment + time, where time counts over both calls and their iterations.
    """
    seed, iteration, env, step = np.indices((SEEDS, ITERATIONS, ENVS, STEPS))
    time = (index * ITERATIONS + iteration) * STEPS + step
    label = (1000 * seed + 100 * env + time).astype(np.float32)
    # lengths differ by stream: (seed, env) -> times of its ends; odd ones terminate
    ends = {(0, 0): (3, 8, 11), (0, 1): (4, 7), (1, 0): (5, 6, 9), (1, 1): (10,)}
    last = np.zeros(label.shape)
    for (s, b), times in ends.items():
        last[s, :, b] = np.isin(time[s, :, b], times)
    terminated = last * (time % 2)
    return Transition(
        observation=label[..., None],
        action=np.stack([0 * label, time / 100.0], axis=-1).astype(np.float32),
        reward=label,
        cost=np.ones_like(label),
        discount=1.0 - terminated,
        last=last,
        next_observation=label[..., None] + 0.5,
    )


@functools.cache
def gathered():
    return gather([part(0), part(1)], cost_maximum=100.0, per_bin=100, cost_bins=1, return_bins=1)


EPISODES = [  # first and last label of every finished episode, stream by stream
    (0, 3), (4, 8), (9, 11),
    (100, 104), (105, 107),
    (1000, 1005), (1006, 1006), (1007, 1009),
    (1100, 1110),
]  # fmt: skip


def test_rows_are_whole_episodes_in_order_and_tails_are_dropped():
    rows = gathered().transitions
    expected = np.concatenate([np.arange(first, last + 1) for first, last in EPISODES])
    np.testing.assert_array_equal(rows.reward, expected)
    np.testing.assert_array_equal(rows.observation[:, 0], expected)
    np.testing.assert_array_equal(rows.next_observation[:, 0], expected + 0.5)
    np.testing.assert_allclose(rows.action[:, 1], expected % 100 / 100.0, rtol=1e-6)
    np.testing.assert_array_equal(rows.cost, np.ones(len(expected)))
    ends = np.isin(expected, [last for _, last in EPISODES])
    np.testing.assert_array_equal(rows.last, ends)
    np.testing.assert_array_equal(rows.discount, 1.0 - ends * (expected % 100 % 2))


def test_episodes_are_indexed():
    dataset = gathered()
    lengths = [last - first + 1 for first, last in EPISODES]
    np.testing.assert_array_equal(dataset.episode_length, lengths)
    np.testing.assert_array_equal(dataset.episode_start, np.cumsum(lengths) - lengths)


def test_costly_episodes_are_dropped_and_cells_are_thinned():
    cheap = gather([part(0), part(1)], cost_maximum=4.0, per_bin=100, cost_bins=1, return_bins=1)
    np.testing.assert_array_equal(cheap.episode_length, [4, 3, 3, 1, 3])
    thin = gather([part(0), part(1)], cost_maximum=100.0, per_bin=2, cost_bins=1, return_bins=1, seed=3)
    assert len(thin.episode_start) == 2
    all_returns = set(np.asarray(episode_returns(gathered())[0]).tolist())
    assert set(np.asarray(episode_returns(thin)[0]).tolist()) <= all_returns


def test_one_learner_without_a_seed_axis():
    alone = [jax.tree.map(lambda leaf: leaf[1], part(index)) for index in (0, 1)]
    dataset = gather(alone, cost_maximum=100.0, per_bin=100, cost_bins=1, return_bins=1)
    np.testing.assert_array_equal(dataset.transitions.reward[:6], np.arange(1000, 1006))
    np.testing.assert_array_equal(dataset.episode_length, [6, 1, 3, 11])


def test_pixels_stay_bytes_beside_the_row_they_belong_to():
    def see(rows):
        pixels = np.broadcast_to((rows.observation % 100)[..., None, None], (*rows.reward.shape, 2, 2, 1)).astype(
            np.uint8
        )
        return rows._replace(observation={"pixels": pixels, "state": rows.observation})

    parts = [part(index)._replace(next_observation=()) for index in (0, 1)]
    parts = [see(rows)._replace(next_observation=see(rows).observation) for rows in parts]
    rows = gather(parts, cost_maximum=100.0, per_bin=100, cost_bins=1, return_bins=1).transitions
    assert rows.observation["pixels"].dtype == rows.next_observation["pixels"].dtype == jnp.uint8
    np.testing.assert_array_equal(rows.observation["state"][:, 0], rows.reward)
    np.testing.assert_array_equal(rows.observation["pixels"][:, 1, 0, 0], np.asarray(rows.reward) % 100)


class Count(NamedTuple):
    """A learner's state that only counts."""

    step: jax.Array


def test_collect_learns_once_under_each_limit_and_keeps_everything():
    """A learner that reports the limit it was made with; its rows come back without extras."""

    def make(limit):
        def act(state, observation, key, carry=(), *, explore=False, config, networks):
            return jnp.zeros((observation.shape[0], 1)), carry, {"weight": jnp.ones(observation.shape[0])}

        def update(state, batch, key, *, config, networks):
            return Count(state.step + 1), {"limit": limit, "size": jnp.float32(batch.reward.size)}

        batch = BatchSpec.fresh()
        return bind(config=None, networks=None, batch=batch, init=Count, update=update, act=act)

    env = probes.truncating(episode_length=3)
    start = init_online(make(0.0), env, Count(jnp.int32(0)), jax.random.key(0), env_count=2, replay=None)
    limits = jnp.array([5.0, 7.0, 9.0])
    state, (metrics, episodes, rows) = jax.jit(functools.partial(collect, make, env, rollout_length=4))(
        start, jax.random.key(0), limits
    )
    np.testing.assert_array_equal(metrics["limit"][:, 0], limits)
    np.testing.assert_array_equal(metrics["size"], np.full((3, 1), 8.0))
    assert int(state.learner.step) == 3
    assert rows.reward.shape == (3, 2, 4)
    assert rows.extras == {}
    assert episodes.finished.shape == (3, 4, 2)
    # 12 steps of each world, iteration after iteration: every third ends
    ends = np.moveaxis(np.asarray(rows.last), 0, 1).reshape(2, 12)
    np.testing.assert_array_equal(ends, np.tile([0, 0, 1], (2, 4)))
    dataset = gather([rows], cost_maximum=100.0, per_bin=100, cost_bins=1, return_bins=1)
    np.testing.assert_array_equal(dataset.episode_length, [3] * 8)
