"""PPO-Lagrangian: its first minibatch, its advantages and its value targets against plain calculations."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_networks import random_state

from safejax.algorithms import ppo_lag
from safejax.envs import probes
from safejax.training import rollout, start
from safejax.types import Transition, example_transition

KEY = jax.random.key(0)
ENVS, STEPS = 4, 8
NETWORKS = ppo_lag.default_networks(1, (8,))


def prepared(multiplier=0.0, **numbers):
    """(algorithm, state, batch [B, T] with ends of both kinds, its actions drawn by the state's own policy)."""
    config = ppo_lag.Config(
        **(dict(discount_factor=0.9, trace_decay=0.8, maximum_gradient_norm=1e6, reward_scale=0.5) | numbers)
    )
    algorithm = ppo_lag.make(config, NETWORKS)
    env = probes.two_step_delayed()
    state = random_state(algorithm, example_transition(env), 0)
    state = state._replace(multiplier=state.multiplier._replace(value=jnp.array(multiplier, jnp.float32)))
    random = np.random.default_rng(0)
    observation, following = jnp.asarray(random.normal(size=(2, ENVS, STEPS, 2)), jnp.float32)
    terminated, last = random.random((2, ENVS, STEPS)) < 0.2
    rewards = [jnp.asarray(part, jnp.float32) for part in random.normal(size=(2, ENVS, STEPS))]
    ends = [jnp.asarray(part, jnp.float32) for part in (1.0 - terminated, last | terminated)]
    assert (last & ~terminated).any()
    draw = jax.jit(lambda key: algorithm.act(state, observation.reshape(-1, 2), key, explore=True))
    action, _, extras = draw(jax.random.key(5))
    action, extras = jax.tree.map(lambda leaf: leaf.reshape(ENVS, STEPS, *leaf.shape[1:]), (action, extras))
    return algorithm, state, Transition(observation, action, *rewards, *ends, following, extras)


def advantages_by_hand(signal, value, next_value, batch):
    discount, last = np.asarray(batch.discount), np.asarray(batch.last)
    found = np.zeros((ENVS, STEPS))
    for env in range(ENVS):
        following = 0.0
        for t in reversed(range(STEPS)):
            error = signal[env, t] + 0.9 * discount[env, t] * next_value[env, t] - value[env, t]
            following = error + (0.0 if last[env, t] else 0.9 * 0.8 * following)
            found[env, t] = following
    return found


def estimates(state, batch):
    """Reward and cost advantages [B, T], and the values they start from."""
    found = []
    for part, signal in (("value", 0.5 * batch.reward), ("cost_value", batch.cost)):
        network, params = getattr(NETWORKS, part), getattr(state, part).params
        value = np.asarray(network.apply(params, batch.observation))
        next_value = np.asarray(network.apply(params, batch.next_observation))
        found.append((advantages_by_hand(np.asarray(signal), value, next_value, batch), value))
    return found


def test_value_targets_are_lambda_returns_that_bootstrap_through_time_limits():
    algorithm, state, batch = prepared(epoch_count=1, minibatch_count=1)
    _, metrics = jax.jit(algorithm.update)(state, batch, KEY)
    for name, (advantage, _) in zip(("value", "cost_value"), estimates(state, batch), strict=True):
        np.testing.assert_allclose(metrics[f"{name}/loss"], np.mean(advantage**2), rtol=1e-4)
    truncation_terminates = estimates(state, batch._replace(discount=1.0 - batch.last))
    wrong = np.mean(truncation_terminates[0][0] ** 2)
    assert abs(wrong / float(metrics["value/loss"]) - 1) > 1e-3


@pytest.mark.parametrize("multiplier", [0.0, 0.8])
def test_the_first_gradient_is_that_of_the_weighed_advantage(multiplier):
    """At ratio 1: -mean(A grad log pi), A = (A_r - lambda A_c) / (1 + lambda), each centred, then over its std."""
    algorithm, state, batch = prepared(multiplier, epoch_count=1, minibatch_count=1)
    after, metrics = jax.jit(algorithm.update)(state, batch, KEY)
    np.testing.assert_allclose(metrics["actor/kl"], 0.0, atol=1e-6)
    (reward, _), (cost, _) = estimates(state, batch)
    advantage = (reward - reward.mean() - multiplier * (cost - cost.mean())) / (1.0 + multiplier)
    advantage = jnp.asarray(advantage / advantage.std(), jnp.float32)

    def loss(params):
        log_prob = NETWORKS.actor.apply(params, batch.observation).log_prob(batch.extras["raw_action"])
        return -jnp.mean(advantage * log_prob)

    found = jax.tree.map(lambda mean: mean / 0.1, after.actor.opt_state[1][0].mu)
    chex.assert_trees_all_close(found, jax.grad(loss)(state.actor.params), rtol=1e-3, atol=1e-5)


def test_later_epochs_leave_ratio_one():
    algorithm, state, batch = prepared(epoch_count=4, minibatch_count=2)
    _, metrics = jax.jit(algorithm.update)(state, batch, KEY)
    assert abs(float(metrics["actor/kl"])) > 1e-6


@pytest.mark.parametrize("coefficient", [0.0, 0.1])
def test_no_advantage_moves_nothing_but_the_entropy(coefficient):
    algorithm, state, batch = prepared(epoch_count=2, minibatch_count=2, entropy_coefficient=coefficient)
    flat = jax.tree.map(jnp.zeros_like, (state.value, state.cost_value))
    state = state._replace(value=flat[0], cost_value=flat[1])
    zero = jnp.zeros_like(batch.reward)
    after, _ = jax.jit(algorithm.update)(state, batch._replace(reward=zero, cost=zero), KEY)
    before, moved = (dict(part.actor.params["params"]) for part in (state, after))
    spread = np.asarray(moved.pop("log_std") - before.pop("log_std"))
    chex.assert_trees_all_equal(moved, before)
    if coefficient:
        np.testing.assert_allclose(spread, 4e-3, rtol=1e-3)  # four Adam steps of 1e-3 upwards
    else:
        np.testing.assert_array_equal(spread, 0.0)


def test_every_row_is_used_once_an_epoch():
    """With a gradient norm clipped to nothing the losses of all minibatches average to the whole batch's."""
    numbers = dict(maximum_gradient_norm=1e-30, learning_rate=1e-12)
    algorithm, state, batch = prepared(epoch_count=3, minibatch_count=4, **numbers)
    _, parts = jax.jit(algorithm.update)(state, batch, KEY)
    algorithm, state, batch = prepared(epoch_count=1, minibatch_count=1, **numbers)
    _, whole = jax.jit(algorithm.update)(state, batch, KEY)
    np.testing.assert_allclose(parts["value/loss"], whole["value/loss"], rtol=1e-4)


def test_the_rollout_keeps_the_unclipped_draw_and_its_density():
    env = probes.quadratic_bandit()
    algorithm = ppo_lag.make(ppo_lag.Config(), NETWORKS)
    state = random_state(algorithm, example_transition(env), 0)
    wide = jax.tree.map(lambda leaf: leaf, state.actor.params)
    wide["params"]["log_std"] = jnp.array([1.0])
    state = state._replace(actor=state.actor._replace(params=wide))

    @jax.jit
    def collect(state):
        return rollout(algorithm, env, state, start(algorithm, env, state, KEY, 16), KEY, 4, explore=True)[1]

    transitions = collect(state)
    raw = transitions.extras["raw_action"]
    assert (jnp.abs(raw) > 1.0).any()
    np.testing.assert_array_equal(transitions.action, jnp.clip(raw, -1.0, 1.0))
    policy = NETWORKS.actor.apply(state.actor.params, transitions.observation)
    np.testing.assert_allclose(transitions.extras["log_prob"], policy.log_prob(raw), rtol=1e-5)


def test_a_rollout_with_fewer_rows_than_minibatches_is_refused():
    algorithm = ppo_lag.make(ppo_lag.Config(minibatch_count=64), ppo_lag.default_networks(1, (4,)))
    scalar, wide = jnp.zeros((2, 3)), jnp.zeros((2, 3, 1))
    extras = {"raw_action": wide, "log_prob": scalar}
    rollout = Transition(wide, wide, scalar, scalar, scalar, scalar, wide, extras)
    state = algorithm.init(jax.random.key(0), jax.tree.map(lambda leaf: leaf[0, 0], rollout._replace(extras={})))
    with pytest.raises(ValueError, match="minibatch_count is 64, expected at most the rollout's 6 rows"):
        algorithm.update(state, rollout, jax.random.key(1))
