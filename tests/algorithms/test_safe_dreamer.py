"""SafeDreamer finds the exact optimum of a bandit in imagination, with and without a limit on costs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safejax.algorithms import safe_dreamer
from safejax.data.dataset import from_arrays
from safejax.envs import probes
from safejax.training import train_offline
from safejax.types import BatchSpec, example_transition


def test_one_config_serves_offline_and_online():
    networks = safe_dreamer.default_networks(2, (8,), size="tiny")
    assert safe_dreamer.make(networks=networks).batch == BatchSpec.sequence(64, successors=False)
    config = safe_dreamer.Config(length=5, offline_fraction=0.5)
    assert safe_dreamer.make(config, networks).batch == BatchSpec.sequence(5, 0.5, successors=False)


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "best"), [(1.0, 0.5), (0.2, 0.2)])
def test_it_finds_the_best_action_and_the_best_one_within_the_limit(limit, best):
    """One step pays -(a - .5)^2 and costs max(0, a); actions of the data are uniform. Measured: .518 and .192."""
    env, random, count = probes.quadratic_bandit(), np.random.default_rng(0), 2000
    action = random.uniform(-1, 1, (count, 1)).astype(np.float32)
    reward, cost, ends = -np.square(action - 0.5)[:, 0], np.maximum(action, 0)[:, 0], np.ones(count, bool)
    nothing = np.zeros((count, 1), np.float32)
    data = from_arrays(nothing, action, reward, cost, terminals=ends, timeouts=~ends, next_observations=nothing)
    config = safe_dreamer.Config(
        length=4,
        horizon=1,
        learning_rate=1e-3,
        model_learning_rate=1e-3,
        target_update_rate=0.1,
        cost_limit=limit,
        multiplier=0.0,
        penalty=0.05,
    )
    algorithm = safe_dreamer.make(config, safe_dreamer.default_networks(1, (32,), size=(2, 8, 4, 4, 32)))
    state = jax.jit(algorithm.init)(jax.random.key(0), example_transition(env))
    train = jax.jit(functools.partial(train_offline, algorithm, step_count=1200, batch_size=32))
    state, _ = train(state, data, jax.random.key(1))
    found = float(algorithm.act(state, jnp.zeros((1, 1)), jax.random.key(0))[0][0, 0])
    assert abs(found - best) < 0.08
