"""Implicit Q-learning against the closed forms of a bandit and one update worked by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_networks import LogitTable, StateTable, Table, one_hot

from safejax.algorithms import iql
from safejax.types import Transition


def transitions(states, actions, rewards, discounts, lasts, following, count):
    actions = np.asarray(actions, np.int32)
    columns = [jnp.asarray(part, jnp.float32) for part in (rewards, np.zeros(len(actions)), discounts, lasts)]
    return Transition(one_hot(states, count), jnp.asarray(actions), *columns, one_hot(following, count), {})


def algorithm(states, actions, **numbers):
    networks = iql.Networks(LogitTable(states, actions), Table(2, states, actions), StateTable(states))
    return iql.make(iql.Config(**numbers), networks)


def train(batch, rates, steps, states, actions, **numbers):
    """Full-batch updates at falling learning rates; nothing is random."""
    state = None
    for rate in rates:
        method = algorithm(states, actions, learning_rate=rate, target_update_rate=0.5, **numbers)
        if state is None:
            state = method.init(jax.random.key(0), jax.tree.map(lambda leaf: leaf[0], batch))
        step = functools.partial(lambda method, state, _: method.update(state, batch, None), method)
        state, _ = jax.jit(lambda state, step=step: jax.lax.scan(step, state, None, steps))(state)
    return state


@pytest.fixture(scope="module")
def bandit():
    """Rewards (0, 1, 2) seen with shares (.5, .3, .2); every row terminates."""
    actions = [0] * 5 + [1] * 3 + [2] * 2
    nothing = np.zeros(10)
    batch = transitions([0] * 10, actions, np.float32(actions), nothing, np.ones(10), [0] * 10, 1)
    return train(batch, (3e-2, 1e-3, 1e-4), 1500, 1, 3, expectile=0.7, inverse_temperature=1.0)


def test_the_value_of_a_bandit_is_its_expectile(bandit):
    np.testing.assert_allclose(bandit.critic.params[:, 0], [[0.0, 1.0, 2.0]] * 2, atol=1e-3)
    np.testing.assert_allclose(bandit.value.params, [0.98], atol=1e-3)


def test_the_policy_of_a_bandit_is_the_weighted_data(bandit):
    """pi = mu exp(beta A) / Z, and Z does not depend on V."""
    policy = jax.nn.softmax(bandit.actor.params[0])
    np.testing.assert_allclose(policy, [0.179000, 0.291944, 0.529056], atol=1e-3)


@pytest.mark.parametrize(("discount", "value"), [(1.0, 2.0), (0.0, 1.0)])
def test_a_timeout_bootstraps_and_a_termination_does_not(discount, value):
    """One state that pays 1 and ends after every row: 1 / (1 - .5) if time ended it, 1 if the task did."""
    batch = transitions([0], [0], [1.0], [discount], [1.0], [0], 1)
    state = train(batch, (3e-2, 1e-3), 800, 1, 1, expectile=0.5, discount_factor=0.5)
    np.testing.assert_allclose(state.critic.params, np.full((2, 1, 1), value), atol=2e-3)
    np.testing.assert_allclose(state.value.params, [value], atol=2e-3)


def test_one_update_by_hand():
    """The TARGET critics' minimum feeds the value, the NEW value weights and bootstraps; row 1 terminates."""
    method = algorithm(
        2,
        2,
        discount_factor=0.9,
        expectile=0.8,
        inverse_temperature=2.0,
        maximum_weight=3.0,
        reward_scale=0.5,
    )
    batch = transitions([0, 1, 0], [0, 1, 1], [1.0, 2.0, -1.0], [1, 0, 1], [0, 1, 1], [1, 0, 1], 2)
    state = method.init(jax.random.key(0), jax.tree.map(lambda leaf: leaf[0], batch))
    target = np.array([[[1.0, 2.0], [3.0, 0.5]], [[2.0, 0.2], [0.1, 4.0]]])
    state = state._replace(target_critic=jnp.asarray(target, jnp.float32))
    after, metrics = jax.jit(method.update)(state, batch, jax.random.key(1))

    rows = (np.array([0, 1, 0]), np.array([0, 1, 1]))
    target_q = target.min(0)[rows]
    value = np.asarray(state.value.params)[rows[0]]
    difference = target_q - value
    loss = np.mean(np.where(difference < 0, 0.2, 0.8) * difference**2)
    np.testing.assert_allclose(metrics["value/loss"], loss, rtol=1e-5)

    new_value = np.asarray(after.value.params)
    weight = np.minimum(np.exp(2.0 * (target_q - new_value[rows[0]])), 3.0)
    assert (weight == 3.0).any()
    assert (weight < 3.0).any()
    np.testing.assert_allclose(metrics["actor/weight"], weight.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["actor/loss"], np.mean(weight * np.log(2.0)), rtol=1e-5)

    backup = 0.5 * np.array([1.0, 2.0, -1.0]) + 0.9 * np.array([1, 0, 1]) * new_value[[1, 0, 1]]
    q = np.asarray(state.critic.params)[:, rows[0], rows[1]]
    np.testing.assert_allclose(metrics["critic/loss"], ((q - backup) ** 2).mean(-1).sum(), rtol=1e-5)
    moved = 0.995 * target + 0.005 * np.asarray(after.critic.params)
    np.testing.assert_allclose(after.target_critic, moved, rtol=1e-5)
