"""Rollouts and evaluation in a world whose every number is known."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_algorithms
from counting_world import counting

from safejax.envs import probes
from safejax.training import evaluate, rollout, start
from safejax.types import BatchSpec, bind, example_transition

KEY = jax.random.key(0)


def still(explore_noise=0.0):
    """Acts with 0.5, or with noise about it when exploring; learns nothing."""

    def act(state, observation, key, carry=(), *, explore=False, config, networks):
        noise = explore_noise * jax.random.normal(key, (observation.shape[0], 1))
        return 0.5 + (noise if explore else 0.0 * noise), carry, {}

    def nothing(*arguments, config, networks):
        return arguments[0]

    return bind(config=None, networks=None, batch=BatchSpec.uniform(), init=nothing, update=nothing, act=act)


@functools.cache
def played(length=12, env_count=6):
    algorithm, env = still(0.1), counting()
    play = jax.jit(
        lambda actors, length: rollout(algorithm, env, (), actors, KEY, length, explore=True),
        static_argnums=1,
    )
    first = jax.jit(lambda: start(algorithm, env, (), jax.random.key(4), env_count))()
    return play, first, play(first, length)


def test_every_field_of_every_transition():
    _, _, (_, rows, _) = played()
    rows = jax.tree.map(np.asarray, rows)
    count, after = rows.observation[..., 0], rows.next_observation[..., 0]
    np.testing.assert_array_equal(after, count + 1)  # the final observation, never the reset's
    np.testing.assert_array_equal(rows.reward, after)
    np.testing.assert_array_equal(rows.cost, after % 2)
    terminated = (after // 10 % 2 == 0) & (after % 10 == 2)
    truncated = after % 10 == 3
    np.testing.assert_array_equal(rows.discount, 1.0 - terminated)  # 1 at a truncation
    np.testing.assert_array_equal(rows.last, terminated | truncated)
    assert terminated.any()
    assert truncated.any()
    ended = rows.last[:-1] > 0
    np.testing.assert_array_equal(count[1:][~ended], after[:-1][~ended])
    np.testing.assert_array_equal(count[1:][ended] % 10, 0.0)  # the next row starts afresh
    assert rows.action.shape == (12, 6, 1)
    assert len(np.unique(rows.action)) == 72  # another key for every step and environment


def test_episode_sums_are_exact():
    _, _, (actors, rows, episodes) = played()
    rows, episodes = jax.tree.map(np.asarray, (rows, episodes))
    np.testing.assert_array_equal(episodes.finished, rows.last > 0)
    for env in range(6):
        begin = 0
        for t in range(12):
            span = slice(begin, t + 1)
            assert episodes.episode_return[t, env] == rows.reward[span, env].sum()
            assert episodes.episode_cost[t, env] == rows.cost[span, env].sum()
            assert episodes.length[t, env] == t + 1 - begin
            begin = t + 1 if rows.last[t, env] else begin
        assert actors.episode.length[env] == 12 - begin
        assert actors.episode.episode_return[env] == rows.reward[begin:, env].sum()
    assert int(actors.env_step) == 72


def test_two_halves_equal_one_whole():
    play, first, (whole_actors, whole, _) = played()
    middle, early, _ = play(first, 6)
    end, late, _ = play(middle, 6)
    chex.assert_trees_all_equal(end, whole_actors)
    chex.assert_trees_all_equal(jax.tree.map(lambda *parts: jnp.concatenate(parts), early, late), whole)


def test_evaluation_counts_the_first_episode_of_every_world():
    """From 10 k: 2 steps if k is even, else 3; the return is the sum of the counts."""
    algorithm, env = still(), counting()
    stats = jax.jit(lambda key: evaluate(algorithm, env, (), key, 32))(KEY)
    begins = np.asarray(jax.jit(lambda: start(algorithm, env, (), KEY, 32))().env.physics)
    lengths = np.where(begins // 10 % 2 == 0, 2, 3)
    assert set(lengths) == {2, 3}
    assert bool(stats.finished.all())
    np.testing.assert_array_equal(stats.length, lengths)
    np.testing.assert_array_equal(stats.episode_return, lengths * begins + np.where(lengths == 2, 3, 6))
    np.testing.assert_array_equal(stats.episode_cost, np.where(lengths == 2, 1, 2))


def test_evaluation_is_deterministic_unless_exploring():
    """Reward -(a - .5)^2 of the action .5 is exactly 0; noise shows at once."""
    algorithm, env = still(0.3), probes.quadratic_bandit(0.5)

    @functools.partial(jax.jit, static_argnums=1)
    def score(key, explore):
        return evaluate(algorithm, env, (), key, 8, explore=explore).episode_return

    np.testing.assert_array_equal(score(KEY, False), np.zeros(8))
    np.testing.assert_array_equal(score(jax.random.key(1), False), np.zeros(8))
    noisy = score(KEY, True)
    assert (noisy < 0).all()
    np.testing.assert_array_equal(noisy, score(KEY, True))


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7])
def test_a_carry_advances_with_every_step_and_resets_with_the_episode(length):
    """Asked for a return of 10, paid 1 a step, cut after 3: the return still to go is 10 - (steps mod 3)."""
    algorithm = toy_algorithms.return_conditioned(1, target=10.0)
    env = probes.truncating(episode_length=3)
    state = algorithm.init(KEY, example_transition(env))

    @jax.jit
    def play(state):
        first = start(algorithm, env, state, KEY, 2)
        return rollout(algorithm, env, state, first, KEY, length, explore=True)[0].carry

    np.testing.assert_array_equal(play(state), np.full(2, 10.0 - length % 3))


def test_an_extra_outside_the_closed_list_is_refused():
    env = probes.truncating()
    algorithm = toy_algorithms.on_policy(1)

    def act(*arguments, **keywords):
        action, carry, _ = algorithm.act(*arguments, **keywords)
        return action, carry, {"logprob": action}

    odd = algorithm._replace(act=act)
    state = odd.init(jax.random.key(0), example_transition(env))
    actors = start(odd, env, state, jax.random.key(1), 2)
    with pytest.raises(ValueError, match="logprob"):
        rollout(odd, env, state, actors, jax.random.key(1), 1, explore=True)
