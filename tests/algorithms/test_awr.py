"""Advantage-weighted regression: closed forms of a bandit, one update worked by hand, and the safe form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_networks import LogitTable, StateTable, Table, one_hot

from safejax.algorithms import awr
from safejax.algorithms.safety import SafetyConfig, SafetyNetworks
from safejax.constraints import cost_value_limit
from safejax.multipliers import MultiplierConfig
from safejax.types import Transition

STATES, ACTIONS = np.array([[0, 1, 0], [2, 2, 1]]), np.array([[0, 1, 1], [1, 0, 0]])
FOLLOWING = np.array([[1, 2, 2], [2, 0, 2]])
REWARDS, COSTS = np.array([[1.0, -2.0, 0.5], [3.0, 0.0, 1.0]]), np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]])
DISCOUNTS, LASTS = np.array([[1, 1, 1], [1, 0, 1]]), np.array([[0, 1, 0], [0, 1, 0]])  # truncated; terminated


def windows():
    """[2, 3] windows over three states: one row truncates in mid-window, one terminates."""
    columns = [jnp.asarray(part, jnp.float32) for part in (REWARDS, COSTS, DISCOUNTS, LASTS)]
    return Transition(one_hot(STATES, 3), jnp.asarray(ACTIONS, jnp.int32), *columns, one_hot(FOLLOWING, 3), {})


def algorithm(**numbers):
    safe = SafetyNetworks(Table(1, 3, 2), StateTable(3))
    return awr.make(awr.Config(**numbers), awr.Networks(LogitTable(3, 2), StateTable(3), safe))


def start(method, batch, multiplier=0.0):
    """A state with values and logits that differ everywhere, and the multiplier given."""
    state = method.init(jax.random.key(0), jax.tree.map(lambda leaf: leaf[0, 0], batch))
    state = state._replace(
        value=state.value._replace(params=jnp.array([0.5, -1.0, 2.0])),
        actor=state.actor._replace(params=jnp.array([[0.0, 1.0], [-1.0, 0.5], [0.3, 0.0]])),
    )
    if state.safety:
        moved = state.safety.multiplier._replace(value=jnp.asarray(multiplier, jnp.float32))
        target = jnp.array([[[1.0, 4.0], [0.5, 2.0], [3.0, 0.0]]])
        state = state._replace(safety=state.safety._replace(multiplier=moved, target_critic=target))
    return state


def returns_by_hand(value, trace_decay, discount_factor=0.9):
    """TD(lambda) returns by the paper's recursion, r + gamma ((1 - lambda) V' + lambda R'), window by window."""
    returns = np.zeros((2, 3))
    for row in range(2):
        for time in reversed(range(3)):
            next_value = value[FOLLOWING[row, time]]
            ends = LASTS[row, time] or time == 2
            onward = next_value if ends else (1 - trace_decay) * next_value + trace_decay * returns[row, time + 1]
            returns[row, time] = REWARDS[row, time] + discount_factor * DISCOUNTS[row, time] * onward
    return returns


def log_probs(state):
    logits = np.asarray(state.actor.params, np.float64)
    return (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[STATES, ACTIONS]


@pytest.mark.parametrize("trace_decay", [0.0, 0.95, 1.0])
def test_one_update_by_hand(trace_decay):
    batch = windows()
    method = algorithm(discount_factor=0.9, trace_decay=trace_decay, temperature=0.4)
    state = start(method, batch)
    after, metrics = jax.jit(method.update)(state, batch, jax.random.key(1))

    value = np.array([0.5, -1.0, 2.0])
    advantage = returns_by_hand(value, trace_decay) - value[STATES]
    score = (advantage - advantage.mean()) / (advantage.std() + 1e-5)
    weight = np.minimum(np.exp(score / 0.4), 20.0)
    assert weight.max() == 20.0
    assert np.sum(weight < 20.0) == 5
    np.testing.assert_allclose(metrics["value/loss"], np.mean(advantage**2), rtol=1e-5)
    np.testing.assert_allclose(metrics["value/advantage_std"], advantage.std(), rtol=1e-5)
    np.testing.assert_allclose(metrics["actor/weight"], weight.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["actor/loss"], -np.mean(weight * log_probs(state)), rtol=1e-5)
    assert after.safety == ()


def test_without_standardising_the_weight_is_the_exponential_of_the_advantage():
    batch = windows()
    method = algorithm(discount_factor=0.9, standardize=False, temperature=2.0)
    _, metrics = method.update(start(method, batch), batch, None)
    value = np.array([0.5, -1.0, 2.0])
    advantage = returns_by_hand(value, 0.95) - value[STATES]
    np.testing.assert_allclose(metrics["actor/weight"], np.exp(advantage / 2.0).mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("temperature", "weights"),
    [
        (1.0, np.exp([0.0, 1.0, 2.0])),  # V drops out: the golden (.179000, .291944, .529056)
        (0.25, [np.exp(-2.8), np.exp(1.2), 20.0]),  # V = .7, and exp(1.3 / .25) is clipped
    ],
)
def test_the_policy_of_a_bandit_is_the_weighted_data(temperature, weights):
    """Rewards (0, 1, 2) seen with shares (.5, .3, .2), every row an episode: V is their mean, pi = mu w / Z."""
    actions = np.repeat([0, 1, 2], [5, 3, 2])[:, None]
    ones, nothing = jnp.ones((10, 1)), jnp.zeros((10, 1))
    state_zero = one_hot(np.zeros((10, 1), int), 1)
    batch = Transition(
        state_zero,
        jnp.asarray(actions, jnp.int32),
        jnp.asarray(actions, jnp.float32),
        nothing,
        nothing,
        ones,
        state_zero,
    )
    networks = awr.Networks(LogitTable(1, 3), StateTable(1))
    state = None
    for rate in (3e-2, 1e-3, 1e-4):
        config = awr.Config(
            sequence_length=1, standardize=False, temperature=temperature, learning_rate=rate, actor_learning_rate=rate
        )
        method = awr.make(config, networks)
        if state is None:
            state = method.init(jax.random.key(0), jax.tree.map(lambda leaf: leaf[0, 0], batch))
        step = jax.jit(
            lambda state, method=method: jax.lax.scan(lambda s, _: method.update(s, batch, None), state, None, 1500)
        )
        state, _ = step(state)
    np.testing.assert_allclose(state.value.params, [0.7], atol=1e-3)
    expected = np.array([0.5, 0.3, 0.2]) * weights
    expected /= expected.sum()
    if temperature == 1.0:
        np.testing.assert_allclose(expected, [0.179000, 0.291944, 0.529056], atol=1e-6)
    np.testing.assert_allclose(jax.nn.softmax(state.actor.params[0]), expected, atol=1e-3)


def test_standardised_weights_know_neither_the_unit_nor_the_origin_of_rewards():
    advantage = jnp.array([-1.0, 0.3, 0.2, 2.0, -0.7])
    config = awr.Config()
    weight = awr.weigh(advantage, config=config)
    np.testing.assert_allclose(awr.weigh(7.0 + 30.0 * advantage, config=config), weight, rtol=1e-4)
    np.testing.assert_allclose(awr.weigh(jnp.array([0.0, 1.0]), config=config), np.exp([-1.0, 1.0]), rtol=1e-4)
    np.testing.assert_array_equal(awr.weigh(jnp.full(4, 3.0), config=config), np.ones(4))


def test_the_authors_actor_has_a_fixed_width():
    networks = awr.default_networks(2, (4,))
    observation = jnp.ones((1, 3))
    policy = networks.actor.apply(networks.actor.init(jax.random.key(0), observation), observation)
    np.testing.assert_allclose(np.exp(policy.log_std), np.full((1, 2), 0.2), rtol=1e-6)


def test_the_safe_form_with_a_multiplier_of_zero_is_the_plain_method():
    batch = windows()
    plain, safe = algorithm(), algorithm(safety=SafetyConfig())
    expected, _ = plain.update(start(plain, batch), batch, None)
    after, _ = safe.update(start(safe, batch), batch, None)
    np.testing.assert_array_equal(after.actor.params, expected.actor.params)
    np.testing.assert_array_equal(after.value.params, expected.value.params)


@pytest.mark.parametrize("standardize", [False, True])
def test_the_safe_form_weighs_the_penalised_advantage(standardize):
    """(A - lambda Ac) / (1 + lambda), then its scores; Ac = Qc_target - Vc. The cost value is mean Vc and Ac by w."""
    batch = windows()
    method = algorithm(discount_factor=0.9, standardize=standardize, safety=SafetyConfig())
    state = start(method, batch, multiplier=1.5)
    _, metrics = method.update(state, batch, None)
    value = np.array([0.5, -1.0, 2.0])
    cost_q = np.asarray(state.safety.target_critic)[0][STATES, ACTIONS]
    cost_value = np.asarray(state.safety.value.params)[STATES]
    cost_advantage = cost_q - cost_value
    penalised = (returns_by_hand(value, 0.95) - value[STATES] - 1.5 * cost_advantage) / 2.5
    if standardize:
        penalised = (penalised - penalised.mean()) / (penalised.std() + 1e-5)
    weight = np.minimum(np.exp(penalised), 20.0)
    np.testing.assert_allclose(metrics["actor/loss"], -np.mean(weight * log_probs(state)), rtol=1e-5)
    expected = cost_value.mean() + np.sum(weight * cost_advantage) / weight.sum()
    np.testing.assert_allclose(metrics["cost_value/policy"], expected, rtol=1e-5)


@pytest.mark.parametrize(("cost_limit", "rises"), [(0.5, True), (50.0, False)])
def test_the_multiplier_rises_while_the_weighted_cost_value_exceeds_the_limit(cost_limit, rises):
    batch = windows()
    dual = MultiplierConfig(learning_rate=0.1, adam=False)
    safety = SafetyConfig(cost_limit=cost_limit, episode_length=5, discount_factor=0.9, multiplier=dual)
    method = algorithm(safety=safety)
    after, metrics = method.update(start(method, batch, multiplier=1.0), batch, None)
    excess = metrics["cost_value/policy"] - cost_value_limit(cost_limit, 0.9, 5)
    assert bool(excess > 0) == rises
    np.testing.assert_allclose(after.safety.multiplier.value, max(0.0, 1.0 + 0.1 * float(excess)), rtol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.0},
        {"maximum_weight": 0.0},
        {"trace_decay": 1.5},
        {"sequence_length": 0},
        {"actor_learning_rate": 0.0},
        {"discount_factor": -0.1},
        {"actor_decay_steps": -1},
    ],
)
def test_numbers_out_of_range_are_refused_in_one_line(change):
    with pytest.raises(ValueError, match=next(iter(change))) as caught:
        awr.make(awr.Config(**change), action_size=2)
    assert "\n" not in str(caught.value)


def test_an_unknown_actor_is_refused_in_one_line():
    with pytest.raises(ValueError, match="actor is 'beta', expected one of") as caught:
        awr.default_networks(2, actor="beta")
    assert "\n" not in str(caught.value)
