"""In-sample values on worlds solved exactly: expectile value iteration, policy evaluation, and one step by hand.

The batches list every (s, a, s') as often as its probability asks, so an update is an exact sweep.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_networks import StateTable, Table, one_hot

from safejax.algorithms import critics, in_sample
from safejax.envs import probes
from safejax.losses.value import expectile_loss
from safejax.types import Transition

MDP = probes.golden_cmdp()
POLICY = ((0.6, 0.4), (0.3, 0.7))
PLAIN = ((11.169572, 11.118067, 10.940571, 13.389065), (5.106181, 6.405705, 5.191759, 6.491284))
KEY = jax.random.key(0)


class Config(NamedTuple):
    discount_factor: Any = 0.9
    learning_rate: Any = 1e-3
    target_update_rate: Any = 0.5


class Networks(NamedTuple):
    critic: Any = Table(2, 2, 2)
    value: Any = StateTable(2)


class State(NamedTuple):
    critic: Any
    value: Any
    target_critic: Any


def transitions(state, action, following, discount):
    state, action = np.asarray(state), np.asarray(action)
    reward, cost = (jnp.asarray(table[state, action], jnp.float32) for table in (MDP.reward, MDP.cost))
    discount = jnp.broadcast_to(jnp.float32(discount), reward.shape)
    action = jnp.asarray(action, jnp.int32)
    return Transition(one_hot(state, 2), action, reward, cost, discount, jnp.ones_like(reward), one_hot(following, 2))


@functools.cache
def sweep(discount=1.0):
    """200 rows: (s, a, s') in proportion to POLICY, as behaviour, times the transition's probability."""
    rows = []
    for (s, a), _ in np.ndenumerate(MDP.reward):
        for following in range(2):
            rows += [(s, a, following)] * round(100 * POLICY[s][a] * MDP.transition[s, a, following])
    assert len(rows) == 200
    return transitions(*np.array(rows).T, discount)


@functools.cache
def planned_sweep():
    """400 rows and actions of POLICY for them, independent of the rows' own; these are uniform."""
    rows = []
    for (s, a), _ in np.ndenumerate(MDP.reward):
        for following in range(2):
            for planned in range(2):
                count = round(100 * MDP.transition[s, a, following] * POLICY[s][planned])
                rows += [(s, a, following, planned)] * count
    state, action, following, planned = np.array(rows).T
    return transitions(state, action, following, 1.0), jnp.asarray(planned, jnp.int32)


def solved(batch, signal, expectile, value_action=None, **options):
    """The state after sweeps at falling learning rates."""
    loss = functools.partial(expectile_loss, expectile=expectile)
    example = jax.tree.map(lambda leaf: leaf[0], batch)
    state = State(*in_sample.init(KEY, example, learning_rate=1e-3, networks=Networks()))

    def train(state, rate):
        def step(state, _):
            return in_sample.update(
                state,
                batch,
                signal,
                loss,
                value_action=value_action,
                config=Config(learning_rate=rate),
                networks=Networks(),
                **options,
            )[0], None

        return jax.lax.scan(step, state, None, 1500)[0]

    train = jax.jit(train)
    for rate in (0.1, 0.01, 0.001):
        state = train(state, rate)
    return state


def expectile_of(values, shares, expectile):
    """By bisection of tau E (q - v)_+ = (1 - tau) E (v - q)_+."""
    low, high = values.min(), values.max()
    for _ in range(80):
        middle = 0.5 * (low + high)
        slope = expectile * shares @ np.maximum(values - middle, 0) - (1 - expectile) * shares @ np.maximum(
            middle - values, 0
        )
        low, high = (middle, high) if slope > 0 else (low, middle)
    return middle


def value_iteration(signal, expectile, discount=1.0):
    """(Q [2, 2], V [2]) where V is the expectile over the behaviour of Q = signal + .9 P V."""
    value = np.zeros(2)
    for _ in range(400):
        q = signal + 0.9 * discount * MDP.transition @ value
        value = np.array([expectile_of(q[s], np.array(POLICY[s]), expectile) for s in range(2)])
    return q, value


@pytest.mark.parametrize(("name", "expectile"), [("reward", 0.8), ("cost", 0.3)])
def test_the_fixed_point_is_expectile_value_iteration(name, expectile):
    """Upper expectiles of rewards under the smaller critic, lower ones of costs under the larger."""
    batch = sweep()
    reduce = jnp.min if name == "reward" else jnp.max
    state = solved(batch, getattr(batch, name), expectile, reduce=reduce)
    q, value = value_iteration(getattr(MDP, name), expectile)
    np.testing.assert_allclose(state.critic.params, [q, q], atol=2e-3)
    np.testing.assert_allclose(state.target_critic, [q, q], atol=2e-3)
    np.testing.assert_allclose(state.value.params, value, atol=2e-3)
    if name == "reward":  # better than the behaviour, whose values PLAIN holds
        assert np.all(q > np.reshape(PLAIN[0], (2, 2)) + 0.1)
    else:
        assert np.all(q < np.reshape(PLAIN[1], (2, 2)) - 0.1)


def test_an_expectile_of_one_half_evaluates_the_behaviour():
    batch = sweep()
    state = solved(batch, batch.reward, 0.5)
    np.testing.assert_allclose(state.critic.params.reshape(2, 4), [PLAIN[0]] * 2, atol=2e-3)


@pytest.mark.parametrize("name", ["reward", "cost"])
def test_value_actions_evaluate_their_policy(name):
    """Another policy than the data's: to its Q, exactly, though the rows' own actions are uniform."""
    batch, planned = planned_sweep()
    state = solved(batch, getattr(batch, name), 0.5, planned)
    golden = np.reshape(PLAIN[("reward", "cost").index(name)], (2, 2))
    np.testing.assert_allclose(state.critic.params, [golden, golden], atol=1e-3)
    np.testing.assert_allclose(state.value.params, np.sum(golden * np.array(POLICY), axis=1), atol=1e-3)


def test_terminations_everywhere_give_the_signals_themselves():
    batch = sweep(0.0)
    state = solved(batch, batch.cost, 0.3)
    np.testing.assert_allclose(state.critic.params, [MDP.cost, MDP.cost], atol=1e-3)


@pytest.mark.parametrize("reduce", [jnp.min, jnp.max])
@pytest.mark.parametrize("other", [False, True])
def test_one_step_by_hand(reduce, other):
    """Value, critic, target, in this order; advantages and values are those of the actions that V regressed on."""
    batch = transitions([0, 1, 1], [0, 1, 0], [1, 0, 1], jnp.array([1.0, 0.0, 1.0]))
    planned = jnp.array([1, 0, 0], jnp.int32) if other else None
    target = np.array([[[1.0, 2.0], [3.0, 0.5]], [[2.0, 0.2], [0.1, 4.0]]])
    state = State(
        *in_sample.init(KEY, jax.tree.map(lambda leaf: leaf[0], batch), learning_rate=0.1, networks=Networks())
    )
    state = state._replace(target_critic=jnp.asarray(target, jnp.float32))
    config = Config(learning_rate=0.1, target_update_rate=0.25)
    signal = jnp.array([1.0, -2.0, 3.0])

    @jax.jit
    def update(state):
        loss = functools.partial(expectile_loss, expectile=0.8)
        return in_sample.update(
            state,
            batch,
            signal,
            loss,
            value_action=planned,
            reduce=reduce,
            name="cost_",
            config=config,
            networks=Networks(),
        )

    after, advantage, values, metrics = update(state)
    numpy_reduce = np.min if reduce is jnp.min else np.max
    observed = np.array([0, 1, 1])
    q = numpy_reduce(target, axis=0)[observed, np.array([1, 0, 0]) if other else np.array([0, 1, 0])]
    np.testing.assert_allclose(values, q, rtol=1e-6)
    old = np.asarray(state.value.params)[observed]
    loss = np.mean(np.where(q < old, 0.2, 0.8) * (q - old) ** 2)
    np.testing.assert_allclose(metrics["cost_value/loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["cost_value/mean"], old.mean(), rtol=1e-5)
    new = np.asarray(after.value.params)
    assert np.all(np.abs(new - np.asarray(state.value.params)) > 0.09)  # Adam's first step
    np.testing.assert_allclose(advantage, q - new[observed], rtol=1e-5)

    backup = np.array([1.0, -2.0, 3.0]) + 0.9 * np.array([1, 0, 1]) * new[[1, 0, 1]]
    predicted = np.asarray(state.critic.params)[:, observed, [0, 1, 0]]  # always the data's actions
    np.testing.assert_allclose(metrics["cost_critic/loss"], ((predicted - backup) ** 2).mean(-1).sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["cost_critic/mean"], predicted.mean(), rtol=1e-5)
    moved = 0.75 * target + 0.25 * np.asarray(after.critic.params)
    np.testing.assert_allclose(after.target_critic, moved, rtol=1e-5)


class Sum(NamedTuple):
    """Two critics of continuous actions: observation + 1 or 2 actions."""

    def apply(self, params: Any, observation: Any, action: Any) -> Any:
        return observation[..., 0] + params[:, None] * action[..., 0]


@pytest.mark.parametrize("reduce", ["min", "max"])
def test_values_of_candidates(reduce):
    observation = jnp.array([[10.0], [20.0]])
    candidates = jnp.array([[[1.0], [-1.0]], [[0.0], [0.5]], [[-0.5], [-0.25]]])
    params = jnp.array([1.0, 2.0])
    found = critics.candidate_values(Sum(), params, observation, candidates, reduce=getattr(jnp, reduce))
    each = np.asarray(candidates)[..., 0] * np.array([1.0, 2.0])[:, None, None] + np.array([10.0, 20.0])
    np.testing.assert_allclose(found, getattr(each, reduce)(axis=0), rtol=1e-6)
    alone = critics.candidate_values(Sum(), params, observation, candidates[2], reduce=getattr(jnp, reduce))
    np.testing.assert_allclose(alone, found[2], rtol=1e-6)


def test_a_target_is_no_alias():
    """It would be donated twice."""
    example = jax.tree.map(lambda leaf: leaf[0], sweep())
    critic, _, target = in_sample.init(KEY, example, learning_rate=1e-3, networks=Networks())
    np.testing.assert_array_equal(critic.params, target)
    assert critic.params.unsafe_buffer_pointer() != target.unsafe_buffer_pointer()
