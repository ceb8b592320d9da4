"""Simulations that diverge: nothing learns from the step, the rest goes on as it would have."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from counting_world import counting
from test_rollout import still
from toy_algorithms import State

from safejax.data import make_replay
from safejax.training import evaluate, gather, init_online, replay_for, rollout, start, train_iteration, train_online
from safejax.training.diverged import lost_rows, real_rows
from safejax.types import BatchSpec, Transition

KEY = jax.random.key(0)
ENVS, STEPS = 6, 24
BAD = 32.0  # the second step of an episode from 30


@functools.cache
def played(diverging):
    algorithm, env = still(0.1), counting(diverging=diverging)

    @jax.jit
    def play():
        first = start(algorithm, env, (), jax.random.key(4), ENVS)
        return rollout(algorithm, env, (), first, KEY, STEPS, explore=True)

    return jax.tree.map(np.asarray, play())


def test_only_the_environment_concerned_starts_anew():
    (_, rows, episodes), (_, calm, _) = played((BAD,)), played(())
    wrong = rows.observation[..., 0] + 1 == BAD
    assert wrong.any()
    assert not wrong.all(axis=0).any()
    np.testing.assert_array_equal(np.isnan(rows.reward), wrong)
    np.testing.assert_array_equal(episodes.diverged, wrong)
    np.testing.assert_array_equal(rows.last[wrong], 1)
    before = np.cumsum(wrong, axis=0) - wrong == 0  # an environment's rows up to its first fault
    assert before.all(axis=0).any()
    chex.assert_trees_all_equal(*(jax.tree.map(lambda leaf: leaf[before & ~wrong], part) for part in (rows, calm)))
    following = rows.observation[1:][wrong[:-1]]
    assert following.size
    np.testing.assert_array_equal(following % 10, 0)


def test_episodes_that_diverge_are_no_statistics():
    _, rows, episodes = played((BAD,))
    np.testing.assert_array_equal(episodes.finished, (rows.last > 0) & ~np.isnan(rows.reward))
    lengths = np.where(rows.next_observation[..., 0] // 10 % 2 == 0, 2, 3)
    np.testing.assert_array_equal(episodes.length[episodes.finished], lengths[episodes.finished])
    begins = rows.next_observation[..., 0] // 10 * 10
    sums = lengths * begins + np.where(lengths == 2, 3, 6)
    np.testing.assert_array_equal(episodes.episode_return[episodes.finished], sums[episodes.finished])
    assert not (begins[episodes.finished] == 30).any()


def test_the_replay_never_holds_nor_draws_them():
    algorithm, env = still(0.1), counting(diverging=(BAD,))
    replay = replay_for(algorithm.batch, 7 * ENVS, ENVS)
    state = jax.jit(lambda key: init_online(algorithm, env, (), key, env_count=ENVS, replay=replay))(jax.random.key(4))
    collect = functools.partial(
        train_iteration, algorithm, env, rollout_length=2, updates_per_iteration=0, batch_size=0, replay=replay
    )
    step = jax.jit(lambda state: collect(state, KEY))
    streams = [[] for _ in range(ENVS)]
    for _ in range(12):
        state, _, _, rows = step(state)
        for stream, row in zip(streams, jax.tree.map(np.asarray, rows).reward, strict=True):
            stream += row[~np.isnan(row)].tolist()
    assert len({len(stream) for stream in streams}) > 1
    assert int(replay.size(state.replay)) == 7 * ENVS
    held = np.asarray(state.replay.experience.reward)
    for ring, stream in zip(held, streams, strict=True):
        assert sorted(ring) == sorted(stream[-7:])
    drawn = jax.jit(replay.sample, static_argnums=2)(state.replay, KEY, 2000)
    assert set(np.asarray(drawn.reward)) == set(held.ravel())
    np.testing.assert_array_equal(drawn.next_observation[:, 0], drawn.reward)
    assert not (drawn.reward == BAD).any()


def rows_of(reward, last=0.0):
    """Transitions whose fields tell their reward [B, T], except where it is NaN."""
    reward = jnp.asarray(reward, jnp.float32)
    label = jnp.where(jnp.isnan(reward), -1.0, reward)
    last = jnp.broadcast_to(jnp.asarray(last, jnp.float32), reward.shape)
    return Transition(label[..., None], label[..., None], reward, label, label * 0 + 1, last, label[..., None])


NAN = np.nan


def test_a_gap_cuts_the_sequence_before_it_across_calls():
    """Windows of two: 2 ends its trajectory, though the gap came with the next call; so does 4."""
    replay = make_replay(16, 2, sequence_length=2)
    calls = [[[1, 2], [NAN, 11]], [[NAN, NAN], [12, 13]], [[3, 4], [14, 15]], [[NAN, 5], [16, 17]]]

    @jax.jit
    def run(calls):
        state, _ = jax.lax.scan(lambda state, rows: (replay.add(state, rows), None), replay.init(rows_of(0.0)), calls)
        return state.stored, replay.sample(state, KEY, 300)

    stored, drawn = run(rows_of(calls))
    np.testing.assert_array_equal(stored, [5, 7])
    pairs = {tuple(pair) for pair in np.asarray(drawn.reward, int)}
    assert pairs == {(n, n + 1) for n in (1, 2, 3, 4, *range(11, 17))}
    np.testing.assert_array_equal(drawn.last, np.isin(drawn.reward, [2, 4]))


def test_an_environment_without_rows_is_never_drawn():
    replay = make_replay(12, 3)

    @jax.jit
    def run():
        state = replay.add(replay.init(rows_of(0.0)), rows_of([[NAN], [NAN], [7]]))
        return replay.size(state), replay.sample(state, KEY, 50).reward

    size, drawn = run()
    assert int(size) == 1
    np.testing.assert_array_equal(drawn, np.full(50, 7.0))


def test_a_rollout_to_learn_from_holds_real_rows_alone():
    fill = jax.jit(real_rows)
    batch = fill(rows_of([[1, 2, NAN, 4], [NAN, NAN, 7, 8], [9, 10, 11, NAN]]))
    np.testing.assert_array_equal(batch.reward, [[1, 2, 2, 4], [4, 4, 7, 8], [9, 10, 11, 11]])
    np.testing.assert_array_equal(batch.last, [[0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1]])
    np.testing.assert_array_equal(batch.next_observation[..., 0], batch.reward)
    first = fill(rows_of([[NAN, 2], [3, 4]]))
    np.testing.assert_array_equal(first.reward, [[2, 2], [3, 4]])
    np.testing.assert_array_equal(first.last, [[1, 0], [0, 0]])
    whole = rows_of([[1, 2], [3, 4]], [[0, 1], [0, 0]])
    chex.assert_trees_all_equal(fill(whole), whole)
    assert np.isnan(fill(rows_of([[NAN, NAN], [NAN, NAN]])).reward).all()


def test_an_on_policy_learner_gets_real_rows():
    def update(state, batch, key):
        return State(state.step + 1, ()), {"finite": jnp.isfinite(batch.reward).all(), "least": batch.reward.min()}

    algorithm, env = still(0.1)._replace(batch=BatchSpec.fresh(), update=update), counting(diverging=(BAD,))
    learner = State(jnp.zeros((), jnp.int32), ())
    train = functools.partial(
        train_online, algorithm, env, rollout_length=4, updates_per_iteration=1, batch_size=0, replay=None
    )

    @jax.jit
    def run():
        state = init_online(algorithm, env, learner, jax.random.key(4), env_count=ENVS, replay=None)
        return train(state, KEY, iteration_count=6)[1]

    metrics, episodes = run()
    assert episodes.diverged.sum() > 0
    assert metrics["finite"].all()
    assert metrics["least"].min() >= 11


def test_data_sets_hold_whole_episodes_of_sound_simulations():
    _, rows, episodes = played((BAD,))
    part = jax.tree.map(lambda leaf: np.swapaxes(leaf, 0, 1)[None], rows)  # [I = 1, B, T]
    dataset = gather([part], cost_maximum=9.0, per_bin=1000, cost_bins=1, return_bins=1)
    assert len(dataset.episode_start) == episodes.finished.sum()
    assert np.isfinite(dataset.transitions.reward).all()
    begins = np.asarray(dataset.transitions.observation)[:, 0] // 10
    assert not (begins == 3).any()
    lost = lost_rows(np.array([[1, NAN, 3, 4, 5, NAN]]), np.array([[0, 1, 1, 0, 0, 1]]))
    np.testing.assert_array_equal(lost, [[True, True, False, True, True, True]])


def test_evaluation_tells_first_episodes_that_diverged():
    algorithm = still()

    @functools.partial(jax.jit, static_argnums=0)
    def score(diverging):
        return evaluate(algorithm, counting(diverging=diverging), (), KEY, 32)

    found, calm = (jax.tree.map(np.asarray, score(diverging)) for diverging in ((BAD,), ()))
    lost = found.diverged
    assert 0 < lost.sum() < 32
    assert np.isnan(found.episode_return[lost]).all()
    assert np.isnan(found.episode_cost[lost]).all()
    np.testing.assert_array_equal(found.finished, ~lost)
    chex.assert_trees_all_equal(*(jax.tree.map(lambda leaf: leaf[~lost], stats) for stats in (found, calm)))
