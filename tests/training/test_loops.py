"""Offline and online training: chunks, samplers, warm-up, adaptation; toy learners show what they were given."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_algorithms

from safejax.algorithms import bc, ppo_lag, sac_lag
from safejax.data.dataset import from_arrays
from safejax.envs import probes
from safejax.multipliers import MultiplierConfig
from safejax.networks import PixelEncoder
from safejax.training import init_online, replay_for, train_offline, train_online
from safejax.types import Algorithm, BatchSpec, bind, example_transition

KEY = jax.random.key(0)
LIMIT = MultiplierConfig(learning_rate=0.1)


def methods():
    sac = sac_lag.Config(cost_limit=1.0, multiplier=LIMIT)
    ppo = ppo_lag.Config(cost_limit=1.0, multiplier=LIMIT, epoch_count=1, minibatch_count=2)
    return {
        "sac_lag": sac_lag.make(sac, sac_lag.default_networks(1, (8,))),
        "ppo_lag": ppo_lag.make(ppo, ppo_lag.default_networks(1, (8,))),
    }


def learner_of(algorithm, env):
    """A state of the right shapes without compiling `init`: parameters in waves, all else zero."""
    shapes = jax.eval_shape(algorithm.init, KEY, example_transition(env))

    def fill(path, spec):
        waves = "params" in jax.tree_util.keystr(path) and "opt_state" not in jax.tree_util.keystr(path)
        values = jnp.sin(1.0 + jnp.arange(math.prod(spec.shape))).reshape(spec.shape)
        return (values if waves and spec.ndim else jnp.zeros(spec.shape)).astype(spec.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def offline_rows(count=20, action_size=1):
    """Rows of zeros marked by the reward 777."""
    last = np.arange(count) % 5 == 4
    zeros = np.zeros((count, 1), np.float32)
    return from_arrays(zeros, np.zeros((count, action_size)), np.full(count, 777.0), np.zeros(count), last * 0, last)


class Witness:
    """A learner that only reports: the offline share of its batch, where those rows stand, its adaptations."""

    def __new__(cls, spec: BatchSpec) -> Algorithm:
        def init(key, example, *, config, networks):
            return toy_algorithms.State(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

        def update(state, batch, key, *, config, networks):
            offline = batch.reward.ravel() == 777.0
            metrics = {
                "share": jnp.mean(offline.astype(jnp.float32)),
                "first": jnp.all(jnp.sort(offline)[::-1] == offline).astype(jnp.float32),
                "size": jnp.asarray(batch.reward.size, jnp.float32),
                "adapted": state.actor.astype(jnp.float32),
                "mean": jnp.mean(batch.reward),
            }
            return state._replace(step=state.step + 1), metrics

        def act(state, observation, key, carry=(), *, explore=False, config, networks):
            return jnp.zeros((observation.shape[0], 1)), carry, {}

        def adapt(state, episodes, *, config, networks):
            return state._replace(actor=state.actor + 1)

        return bind(config=None, networks=None, batch=spec, init=init, update=update, act=act, adapt=adapt)


def online(algorithm, *, iterations, dataset=None, updates=3, batch_size=8, rollout_length=4):
    """(final OnlineState, metrics, episodes) of a short run in two truncating worlds."""
    env = probes.truncating(episode_length=3)
    replay = replay_for(algorithm.batch, 64, 2)

    @jax.jit
    def run(key, dataset):
        fresh = learner_of(algorithm, env)
        state = init_online(algorithm, env, fresh, key, env_count=2, replay=replay)
        return state, train_online(
            algorithm,
            env,
            state,
            key,
            iteration_count=iterations,
            rollout_length=rollout_length,
            updates_per_iteration=updates,
            batch_size=batch_size,
            replay=replay,
            dataset=dataset,
        )

    before, (after, (metrics, episodes)) = run(KEY, dataset)
    return before, after, metrics, episodes


@pytest.mark.parametrize(("fraction", "share"), [(0.25, 0.25), (0.5, 0.5), (0.3, 0.25), (1.0, 1.0)])
def test_mixed_batches_hold_the_stated_share_offline_rows_first(fraction, share):
    """8 rows: round(8 * .3) = 2 of them offline."""
    _, _, metrics, _ = online(Witness(BatchSpec.mixed(fraction)), iterations=3, dataset=offline_rows())
    np.testing.assert_array_equal(metrics["share"], np.full((3, 3), share))
    np.testing.assert_array_equal(metrics["first"], np.ones((3, 3)))
    np.testing.assert_array_equal(metrics["size"], np.full((3, 3), 8))


def test_windows_mix_offline_data_in_too():
    spec = BatchSpec.sequence(2, offline_fraction=0.25)
    _, _, metrics, _ = online(Witness(spec), iterations=2, dataset=offline_rows())
    np.testing.assert_array_equal(metrics["share"], np.full((2, 3), 0.25))
    np.testing.assert_array_equal(metrics["first"], np.ones((2, 3)))
    np.testing.assert_array_equal(metrics["size"], np.full((2, 3), 8 * 2))


def test_uniform_batches_hold_what_was_collected():
    """Every step pays 1, so nothing else, and no empty row of the replay, may show."""
    _, _, metrics, _ = online(Witness(BatchSpec.uniform()), iterations=3, dataset=offline_rows())
    np.testing.assert_array_equal(metrics["mean"], np.ones((3, 3)))


def test_fresh_batches_are_the_rollout_once():
    _, after, metrics, _ = online(Witness(BatchSpec.fresh()), iterations=3)
    np.testing.assert_array_equal(metrics["size"], np.full((3, 1), 8))
    assert after.replay == ()
    assert int(after.learner.step) == 3


def test_adapt_is_called_once_an_iteration_before_its_updates():
    _, _, metrics, _ = online(Witness(BatchSpec.uniform()), iterations=3)
    np.testing.assert_array_equal(metrics["adapted"], [[1.0] * 3, [2.0] * 3, [3.0] * 3])


def test_a_warm_up_fills_the_replay_and_leaves_the_learner_alone():
    """Episodes finish in it, at a cost above the limit; no multiplier ticks and no step counts."""
    algorithm = methods()["sac_lag"]
    before, after, metrics, episodes = online(algorithm, iterations=2, updates=0, rollout_length=6)
    assert int(episodes.finished.sum()) == 8
    assert float(episodes.episode_cost[episodes.finished].min()) > 1.0
    chex.assert_trees_all_equal(after.learner, before.learner)
    assert metrics == {}
    assert int(after.actors.env_step) == 24
    assert int(replay_for(algorithm.batch, 64, 2).size(after.replay)) == 24


@pytest.mark.parametrize("name", ["sac_lag", "ppo_lag"])
def test_one_long_call_equals_two_short_ones(name):
    algorithm = methods()[name]
    env = probes.truncating(episode_length=3)
    replay = replay_for(algorithm.batch, 64, 2)
    fresh = learner_of(algorithm, env)
    state = init_online(algorithm, env, fresh, KEY, env_count=2, replay=replay)
    train = jax.jit(
        functools.partial(
            train_online,
            algorithm,
            env,
            rollout_length=4,
            updates_per_iteration=2,
            batch_size=8,
            replay=replay,
        ),
        static_argnames="iteration_count",
    )
    whole, (metrics, episodes) = train(state, KEY, iteration_count=4)
    half, early = train(state, KEY, iteration_count=2)
    half, late = train(half, KEY, iteration_count=2)
    chex.assert_trees_all_equal(half, whole)
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), early, late)
    chex.assert_trees_all_equal(joined, (metrics, episodes))
    assert episodes.finished.shape == (4, 4, 2)
    # and it did learn: episodes cost 1.5 under a limit of 1, and every update moved the actor
    assert (np.diff(np.asarray(metrics["multiplier"])[1:, 0]) > 0).all()
    assert not np.array_equal(*(jax.tree.leaves(part.learner.actor.params)[0] for part in (half, state)))


def test_an_on_policy_method_cannot_learn_from_a_data_set():
    algorithm = methods()["ppo_lag"]
    with pytest.raises(ValueError, match="'fresh': an on-policy method cannot learn from a data set"):
        train_offline(algorithm, None, offline_rows(), KEY, step_count=1, batch_size=4)


@pytest.mark.parametrize("spec", [BatchSpec.mixed(0.5), BatchSpec.sequence(2, 0.5)])
def test_mixed_batches_need_a_data_set(spec):
    with pytest.raises(ValueError, match=r"offline_fraction is 0\.5, expected a dataset="):
        online(Witness(spec), iterations=1)


def test_offline_batches_are_placed_and_sized():
    """`place` sees every batch; metrics are stacked over the steps."""
    algorithm = Witness(BatchSpec.uniform())
    state = algorithm.init(KEY, None)
    state, metrics = train_offline(
        algorithm,
        state,
        offline_rows(),
        KEY,
        step_count=3,
        batch_size=5,
        place=lambda batch: batch._replace(reward=batch.reward - 700.0),
    )
    np.testing.assert_array_equal(metrics["mean"], [77.0] * 3)
    np.testing.assert_array_equal(metrics["size"], [5.0] * 3)
    assert int(state.step) == 3


def test_offline_sequences_are_windows():
    algorithm = Witness(BatchSpec.sequence(3))

    def update(state, batch, key):
        steps = batch.observation[..., 0]
        return state._replace(step=state.step + 1), {"rises": jnp.all(jnp.diff(steps, axis=1) == 1)}

    count = np.arange(20, dtype=np.float32)
    dataset = from_arrays(count[:, None], np.zeros((20, 1)), count, 0 * count, 0 * count, count % 5 == 4)
    state, metrics = train_offline(
        algorithm._replace(update=update), algorithm.init(KEY, None), dataset, KEY, step_count=4, batch_size=6
    )
    assert bool(metrics["rises"].all())
    assert int(state.step) == 4


def test_a_state_made_without_jit_can_be_donated():
    env = probes.truncating()
    algorithm = ppo_lag.make(networks=ppo_lag.default_networks(1, (8,)))
    learner = algorithm.init(jax.random.key(0), example_transition(env))
    state = init_online(algorithm, env, learner, jax.random.key(1), env_count=2, replay=None)
    jax.jit(lambda state: state, donate_argnums=0)(state)
    jax.block_until_ready(learner.actor.params)  # the caller's learner was not donated with it


def seen(env):
    """`env` with its observation beside a picture of it."""

    def picture(observation):
        pixels = jnp.broadcast_to(100.0 * observation[..., :1, None, None], (2, 2, 1)).astype(jnp.uint8)
        return {"pixels": pixels, "state": observation}

    def show(state):
        parts = (state.observation, state.final_observation)
        return state._replace(**dict(zip(("observation", "final_observation"), map(picture, parts), strict=True)))

    def step(state, action, key):
        plain = state._replace(
            observation=state.observation["state"], final_observation=state.final_observation["state"]
        )
        return show(env.step(plain, action, key))

    return env._replace(
        reset=lambda key: show(env.reset(key)),
        step=step,
        observation_spec=jax.eval_shape(picture, env.observation_spec),
    )


def test_pixels_run_through_both_loops_as_bytes():
    env = seen(probes.truncating(episode_length=3))
    networks = bc.default_networks(1, (4,), encoder=PixelEncoder(channels=(2,), feature_size=3))
    algorithm = bc.make(networks=networks)._replace(batch=BatchSpec.mixed(0.5))
    rows = offline_rows()
    count = len(rows.transitions.reward)
    observation = {"pixels": jnp.full((count, 2, 2, 1), 200, jnp.uint8), "state": rows.transitions.observation}
    transitions = rows.transitions._replace(observation=observation, next_observation=observation)
    dataset = rows._replace(transitions=transitions)
    learner = learner_of(algorithm, env)
    uniform = algorithm._replace(batch=BatchSpec.uniform())
    offline, metrics = jax.jit(functools.partial(train_offline, uniform, step_count=2, batch_size=4))(
        learner, dataset, KEY
    )
    replay = replay_for(algorithm.batch, 64, 2)
    state = init_online(algorithm, env, offline, KEY, env_count=2, replay=replay)
    assert state.replay.experience.observation["pixels"].dtype == jnp.uint8
    run = functools.partial(
        train_online, algorithm, env, replay=replay, iteration_count=2, rollout_length=4, updates_per_iteration=1
    )
    after, (online_metrics, _) = jax.jit(functools.partial(run, batch_size=4))(state, KEY, dataset=dataset)
    chex.assert_tree_all_finite((metrics, online_metrics, after.learner))
    assert int(after.learner.step) == 4
    stored = after.replay.experience.observation
    assert stored["pixels"].dtype == jnp.uint8
    # what was stored is the picture of what was stored beside it
    np.testing.assert_array_equal(stored["pixels"][..., 0, 0, 0], (100.0 * stored["state"][..., 0]).astype(jnp.uint8))
