"""Small worlds with known optima, learned from scratch through the loops that users call."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safejax.algorithms import ppo_lag, sac_lag
from safejax.envs import probes
from safejax.multipliers import MultiplierConfig
from safejax.training import init_online, replay_for, train_online
from safejax.types import example_transition

KEY = jax.random.key(0)


def learn(algorithm, env, *, env_count, **numbers):
    """(learner, metrics) after `train_online` from scratch; to be jitted."""
    replay = replay_for(algorithm.batch, 4096, env_count)
    learner = algorithm.init(KEY, example_transition(env))
    state = init_online(algorithm, env, learner, KEY, env_count=env_count, replay=replay)
    state, (metrics, _) = train_online(algorithm, env, state, KEY, replay=replay, **numbers)
    return state.learner, metrics


METHODS = {
    "sac_lag": (
        lambda rule: sac_lag.make(
            sac_lag.Config(
                cost_limit=0.2,
                reward_scale=1.0,
                actor_learning_rate=5e-3,
                critic_learning_rate=1e-2,
                initial_temperature=1e-3,
                learn_temperature=False,
                multiplier=rule,
            ),
            sac_lag.default_networks(1, (16,)),
        ),
        dict(env_count=16, rollout_length=1, updates_per_iteration=2, batch_size=64, iteration_count=1000),
    ),
    "ppo_lag": (
        lambda rule: ppo_lag.make(
            ppo_lag.Config(
                cost_limit=0.2,
                reward_scale=1.0,
                epoch_count=4,
                minibatch_count=2,
                learning_rate=3e-3,
                multiplier=rule,
            ),
            ppo_lag.default_networks(1, (8,)),
        ),
        dict(env_count=64, rollout_length=1, updates_per_iteration=1, batch_size=0, iteration_count=450),
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_quadratic_bandit_with_and_without_its_limit(name):
    """Reward -(a - .5)^2, cost max(0, a): at limit .2 the best action is .2 and lambda .6; free, .5 and 0.

    Both are one sweep: the multiplier's rate, 0 where the limit is not to bind, is vmapped over.
    """
    make, numbers = METHODS[name]

    def run(rate):
        algorithm = make(MultiplierConfig(learning_rate=rate, adam=False))
        learner, _ = learn(algorithm, probes.quadratic_bandit(0.5), **numbers)
        return algorithm.act(learner, jnp.zeros((1, 1)), KEY)[0][0, 0], learner.multiplier.value

    actions, multipliers = jax.jit(jax.vmap(run))(jnp.array([0.02, 0.0]))
    np.testing.assert_allclose(actions, [0.2, 0.5], atol=0.03)
    np.testing.assert_allclose(multipliers, [0.6, 0.0], atol=0.06)


def test_values_bootstrap_through_truncations():
    """1 a step and cost .5 a step for ever, cut every 4 steps: Q = 1 / (1 - .8) = 5 and Qc = 2.5.

    An agent that takes truncation for termination finds 1 / (1 - .8 * .75) = 2.5 and 1.25.
    """
    config = sac_lag.Config(
        discount_factor=0.8,
        reward_scale=1.0,
        critic_learning_rate=1e-2,
        target_update_rate=0.1,
        initial_temperature=1e-6,
        learn_temperature=False,
        multiplier=MultiplierConfig(learning_rate=0.0),
    )
    algorithm = sac_lag.make(config, sac_lag.default_networks(1, (8,)))
    numbers = dict(rollout_length=1, updates_per_iteration=1, batch_size=32, iteration_count=600)
    env = probes.truncating(episode_length=4)
    learner, metrics = jax.jit(lambda: learn(algorithm, env, env_count=4, **numbers))()
    assert float(metrics["critic/mean"][-1, 0]) == pytest.approx(5.0, rel=0.03)
    assert float(metrics["cost_critic/mean"][-1, 0]) == pytest.approx(2.5, rel=0.03)
    assert int(learner.step) == 600


def test_ppo_values_bootstrap_through_truncations():
    """The same world, on-policy."""
    config = ppo_lag.Config(discount_factor=0.8, reward_scale=1.0, learning_rate=1e-2, epoch_count=4, minibatch_count=1)
    networks = ppo_lag.default_networks(1, (8,))
    algorithm, env = ppo_lag.make(config, networks), probes.truncating(episode_length=4)
    numbers = dict(rollout_length=8, updates_per_iteration=1, batch_size=0, iteration_count=250)
    learner, _ = jax.jit(lambda: learn(algorithm, env, env_count=4, **numbers))()
    observation = jnp.zeros((1, 1))
    value = functools.partial(networks.value.apply, learner.value.params)
    np.testing.assert_allclose(value(observation), [5.0], rtol=0.03)
    np.testing.assert_allclose(networks.cost_value.apply(learner.cost_value.params, observation), [2.5], rtol=0.03)
