"""The safe half: its cost values, its arithmetic, its multiplier, and what it does to IQL on bandits solved by hand."""

from __future__ import annotations

import functools
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_networks import ActionTable, LogitTable, StateTable, Table, one_hot, random_state

from safejax.algorithms import iql, safety
from safejax.algorithms.safety import SafetyConfig, SafetyNetworks
from safejax.losses.policy import advantage_weight
from safejax.multipliers import MultiplierConfig
from safejax.types import EpisodeStats, Transition

KEY = jax.random.key(0)
COSTLY = SafetyNetworks(Table(1, 2, 2), StateTable(2))  # two states, two actions


def rows(states, actions, rewards, costs, discounts, following, count):
    columns = (jnp.asarray(part, jnp.float32) for part in (rewards, costs, discounts, np.ones(len(actions))))
    return Transition(one_hot(states, count), jnp.asarray(actions, jnp.int32), *columns, one_hot(following, count))


def first_of(batch):
    return jax.tree.map(lambda leaf: leaf[0], batch)


def episodes(costs, finished):
    costs = jnp.asarray(costs, jnp.float32)
    return EpisodeStats(0.0 * costs, costs, jnp.ones(costs.shape, jnp.int32), jnp.asarray(finished))


def made(config, *, critic=None, value=None, multiplier=None, networks=COSTLY):
    """A `SafetyState` of two states and two actions with the given numbers."""
    state = safety.init(KEY, first_of(BATCH), config=config, networks=networks)
    if critic is not None:
        state = state._replace(target_critic=jnp.asarray(critic, jnp.float32))
    if value is not None:
        state = state._replace(value=state.value._replace(params=jnp.asarray(value, jnp.float32)))
    if multiplier is not None:
        state = state._replace(multiplier=state.multiplier._replace(value=jnp.float32(multiplier)))
    return state


# (s, a): two rows of the first state, one of the second, which terminates
BATCH = rows([0, 0, 1], [0, 1, 1], [1.0, 2.0, -1.0], [0.0, 3.0, 1.0], [1, 1, 0], [1, 0, 0], 2)


def iql_method(config=None, count=2, actions=2, **numbers):
    safe = SafetyNetworks(Table(1, count, actions), StateTable(count))
    networks = iql.Networks(LogitTable(count, actions), Table(2, count, actions), StateTable(count), safe)
    return iql.make(iql.Config(safety=config, **numbers), networks)


def test_a_multiplier_of_zero_leaves_iql_as_it_is():
    """Critics, value and actor of the plain method, whatever the cost values are; the limit is never reached."""
    plain = iql_method()
    safe = iql_method(SafetyConfig(cost_limit=1e6, episode_length=10))
    states = [random_state(method, first_of(BATCH), 3) for method in (plain, safe)]
    updates = [jax.jit(method.update) for method in (plain, safe)]
    for _ in range(4):
        (states[0], plain_metrics), (states[1], safe_metrics) = (
            update(state, BATCH, KEY) for update, state in zip(updates, states, strict=True)
        )
        for name in ("actor", "critic", "value", "target_critic"):
            chex.assert_trees_all_close(getattr(states[1], name), getattr(states[0], name), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(safe_metrics["actor/loss"], plain_metrics["actor/loss"], rtol=1e-6)
    assert states[0].safety == ()
    assert float(states[1].safety.multiplier.value) == 0.0
    # and a positive one does not
    pushed = states[1].safety._replace(multiplier=states[1].safety.multiplier._replace(value=jnp.float32(2.0)))
    pushed = states[1]._replace(safety=pushed)
    after, metrics = updates[1](pushed, BATCH, KEY)
    expected, plain_metrics = updates[0](states[0], BATCH, KEY)
    chex.assert_trees_all_close(after.critic, expected.critic, rtol=1e-6, atol=1e-7)
    assert abs(float(metrics["actor/loss"]) - float(plain_metrics["actor/loss"])) > 1e-2


@pytest.mark.parametrize(("expectile", "value"), [(0.3, 0.42), (0.5, 0.7), (0.1, 0.14)])
def test_the_cost_value_of_a_bandit_is_the_lower_expectile(expectile, value):
    """Costs (0, 1, 2) with shares (.5, .3, .2): tau (.7 - .5 v) = (1 - tau) .5 v for v up to 1."""
    actions = [0] * 5 + [1] * 3 + [2] * 2
    batch = rows([0] * 10, actions, np.zeros(10), actions, np.zeros(10), [0] * 10, 1)
    networks = SafetyNetworks(Table(1, 1, 3), StateTable(1))

    def train(state, rate):
        config = SafetyConfig(evaluation="expectile", expectile=expectile, learning_rate=rate, target_update_rate=0.5)
        step = functools.partial(safety.update, config=config, networks=networks)
        return jax.lax.scan(lambda state, _: (step(state, batch, 2 - batch.action)[0], None), state, None, 1500)[0]

    state = safety.init(KEY, first_of(batch), config=SafetyConfig(), networks=networks)
    for rate in (3e-2, 1e-3, 1e-4):
        state = jax.jit(train)(state, rate)
    np.testing.assert_allclose(state.critic.params[0, 0], [0.0, 1.0, 2.0], atol=1e-3)
    np.testing.assert_allclose(state.value.params, [value], atol=1e-3)
    assert float(state.multiplier.value) == 0.0  # only `tick`, `weigh` and `adapt` move it


@pytest.mark.parametrize("evaluation", ["policy", "expectile"])
@pytest.mark.parametrize(("cost_limit", "direction"), [(0.5, 1.0), (2.2, -1.0)])
def test_weights_and_cost_estimate_by_hand(cost_limit, direction, evaluation):
    """Target critic, value and multiplier before the step weigh; then all three move."""
    config = SafetyConfig(
        evaluation=evaluation,
        cost_limit=cost_limit,
        episode_length=3,
        discount_factor=0.9,
        expectile=0.2,
        target_update_rate=0.5,
        multiplier=MultiplierConfig(initial=0.5, learning_rate=0.01),
    )
    critic = [[[0.5, 3.0], [7.0, 1.5]]]
    state = made(config, critic=critic, value=[1.0, 1.0])
    advantage = jnp.array([0.4, 1.0, -0.2])

    @jax.jit
    def weigh(state, advantage):
        return safety.weigh(state, BATCH, advantage, lambda a: advantage_weight(a, 2.0), config=config, networks=COSTLY)

    after, weight, metrics = weigh(state, advantage)

    cost_q = np.array([0.5, 3.0, 1.5])  # of the rows' actions
    value = np.asarray(after.value.params)
    penalized = (np.asarray(advantage) - 0.5 * (cost_q - 1.0)) / 1.5
    expected = np.exp(2.0 * penalized)
    np.testing.assert_allclose(weight, expected, rtol=1e-5)
    estimate = np.sum(expected * cost_q) / np.sum(expected)  # Vc is 1 in both states
    np.testing.assert_allclose(metrics["cost_value/policy"], estimate, rtol=1e-5)
    limit = cost_limit * (1.0 + 0.9 + 0.81) / 3.0
    np.testing.assert_allclose(metrics["cost_value/limit"], limit, rtol=1e-5)
    assert np.sign(estimate - limit) == direction
    np.testing.assert_allclose(after.multiplier.value, 0.5 + 0.01 * direction, rtol=1e-4)
    assert float(metrics["multiplier"]) == float(after.multiplier.value)

    # the critic's own step: costs and the new value, no bootstrap where the episode terminated
    backup = np.array([0.0, 3.0, 1.0]) + 0.9 * np.array([1, 1, 0]) * value[[1, 0, 0]]
    predicted = np.asarray(state.critic.params)[0, [0, 0, 1], [0, 1, 1]]
    np.testing.assert_allclose(metrics["cost_critic/loss"], np.mean((predicted - backup) ** 2), rtol=1e-5)
    share = expected / expected.mean() if evaluation == "policy" else np.where(cost_q - 1.0 < 0, 0.8, 0.2)
    np.testing.assert_allclose(metrics["cost_value/loss"], np.mean(share * (cost_q - 1.0) ** 2), rtol=1e-5)


# Two states; action 0 stays at a cost of (1, 2), action 1 goes to the other state for nothing; every pair in the data.
CHAIN_COSTS, CHAIN_NEXT, CHAIN_DISCOUNT = np.array([[1.0, 0.0], [2.0, 0.0]]), np.array([[0, 1], [1, 0]]), 0.9
CHAIN_ROWS = np.array([[0, 0], [0, 0], [0, 0], [0, 1], [1, 0], [1, 1], [1, 1], [1, 1]])  # (s, a)


def chain_batch():
    state, action = CHAIN_ROWS.T
    zeros, ones = np.zeros(len(state)), np.ones(len(state))
    return rows(state, action, zeros, CHAIN_COSTS[state, action], ones, CHAIN_NEXT[state, action], 2)


def chain_values(policy):
    """Qc [S, A] and Vc [S] of a policy [S, A], by the linear equations."""
    moves = np.einsum("sa,sat->st", policy, np.eye(2)[CHAIN_NEXT])
    value = np.linalg.solve(np.eye(2) - CHAIN_DISCOUNT * moves, np.sum(policy * CHAIN_COSTS, axis=1))
    return CHAIN_COSTS + CHAIN_DISCOUNT * value[CHAIN_NEXT], value


def settle(step, batch):
    """A SafetyState of the chain after learning at falling rates by `step`: (config, state) -> (state, metrics)."""
    state, metrics = made(SafetyConfig()), {}
    for rate in (3e-2, 1e-3, 1e-4):
        config = SafetyConfig(
            discount_factor=CHAIN_DISCOUNT,
            learning_rate=rate,
            target_update_rate=0.1,
            multiplier=MultiplierConfig(learning_rate=0.0),
        )
        learn = jax.jit(lambda state, config=config: jax.lax.scan(lambda s, _: step(config, s), state, None, 3000))
        state, metrics = learn(state)
    return state, metrics


def test_weighted_values_are_those_of_the_weighted_policy():
    """pi(a|s) ~ mu(a|s) w(s, a) with weights that are 2.75 on average in one state and 25.75 in the other."""
    batch, weights = chain_batch(), np.array([[0.25, 10.25], [10.0, 31.0]])
    state_of, action_of = CHAIN_ROWS.T
    of_row = jnp.asarray(weights[state_of, action_of])

    def step(config, state):
        state, _, metrics = safety.weigh(state, batch, jnp.log(of_row), jnp.exp, config=config, networks=COSTLY)
        return state, metrics["cost_value/policy"]

    state, estimates = settle(step, batch)
    policy = weights * np.array([[3, 1], [1, 3]])
    cost_q, value = chain_values(policy / policy.sum(1, keepdims=True))
    np.testing.assert_allclose(state.value.params, value, rtol=2e-3)
    np.testing.assert_allclose(state.critic.params[0], cost_q, rtol=2e-3)
    np.testing.assert_allclose(estimates[-1], value[state_of].mean(), rtol=2e-3)


def test_values_of_drawn_actions_are_those_of_the_policy_that_draws_them():
    """Both actions as candidates with their shares, whatever the data do; Vc rests."""
    batch, policy = chain_batch(), np.array([[0.2, 0.8], [0.9, 0.1]])
    batch = batch._replace(action=batch.action[:, None])
    networks = SafetyNetworks(ActionTable(1, 2, 2), StateTable(2))
    candidates = jnp.tile(jnp.array([0, 1], jnp.int32)[:, None, None], (1, len(CHAIN_ROWS), 1))
    shares = jnp.asarray(policy[CHAIN_NEXT[tuple(CHAIN_ROWS.T)]].T)

    def step(config, state):
        return safety.update(state, batch, candidates, shares, config=config, networks=networks)

    state, _ = settle(step, batch)
    np.testing.assert_allclose(state.critic.params[0], chain_values(policy)[0], rtol=2e-3)
    np.testing.assert_array_equal(state.value.params, made(SafetyConfig()).value.params)

    def one(config, state):
        return safety.update_values(state, batch, 1 - batch.action, config=config, networks=networks)

    state, _ = settle(one, batch)
    np.testing.assert_allclose(state.value.params, chain_values(np.array([[0.25, 0.75], [0.75, 0.25]]))[1], rtol=2e-3)


def test_penalized_values_by_hand():
    """Rows of observations of states (0, 1), lambda 1.5: (Q - 1.5 Qc) / 2.5, alone or for each of two candidates."""
    config = SafetyConfig()
    networks = SafetyNetworks(Table(2, 2, 2), StateTable(2))
    critic = [[[1.0, 3.0], [7.0, 0.2]], [[2.0, 0.0], [5.0, 0.4]]]  # the larger: ((2, 3), (7, .4))
    state = made(config, critic=critic, value=[0.5, 0.25], multiplier=1.5, networks=networks)
    observation, action = one_hot([0, 1], 2), jnp.array([1, 1], jnp.int32)
    q, value = jnp.array([10.0, 20.0]), jnp.array([1.0, -1.0])
    found = safety.penalize(state, q, value, observation, action, networks=networks)
    np.testing.assert_allclose(found[0], [(10 - 1.5 * 3) / 2.5, (20 - 1.5 * 0.4) / 2.5], rtol=1e-6)
    np.testing.assert_allclose(found[1], [(1 - 1.5 * 0.5) / 2.5, (-1 - 1.5 * 0.25) / 2.5], rtol=1e-6)
    np.testing.assert_allclose(safety.cost_values(state, observation, action, networks=networks), [3.0, 0.4], rtol=1e-6)
    unchanged = safety.penalize((), q, value, observation, action, networks=())
    assert unchanged[0] is q
    assert unchanged[1] is value


def test_costs_of_candidates_have_their_axis():
    """[K, B, A] continuous candidates of observations [B, O], the maximum over two critics."""

    class Linear:
        def init(self, key, *inputs):
            return jnp.zeros(2)

        def apply(self, params, observation, action):
            return params[:, None] * action[..., 0] + observation[..., 0]

    networks = SafetyNetworks(Linear(), StateTable(1))
    state = safety.init(KEY, first_of(BATCH)._replace(action=jnp.zeros(1)), config=SafetyConfig(), networks=COSTLY)
    state = state._replace(target_critic=jnp.array([1.0, -2.0]), value=state.value._replace(params=jnp.array([1.0])))
    state = state._replace(multiplier=state.multiplier._replace(value=jnp.float32(1.0)))
    observation, action = jnp.array([[10.0], [20.0]]), jnp.array([[[0.5], [-0.5]], [[1.0], [0.0]], [[-1.0], [0.2]]])
    found = safety.cost_values(state, observation, action, networks=networks)
    np.testing.assert_allclose(found, [[10.5, 21.0], [11.0, 20.0], [12.0, 20.2]], rtol=1e-6)
    q, _ = safety.penalize(state, jnp.zeros((3, 2)), jnp.zeros(2), observation, action, networks=networks)
    np.testing.assert_allclose(q, -0.5 * np.asarray(found), rtol=1e-6)


BANDIT = rows([0, 0], [0, 1], [0.0, 1.0], [0.0, 1.0], [0, 0], [0, 0], 1)
"""The second action pays 1 more and costs 1 more; one step an episode, so limits are costs of the policy."""


def test_a_safe_policy_keeps_to_the_limit_and_is_greedy_where_that_is_slack():
    """pi(costly) = sigmoid(beta (1 - lambda) / (1 + lambda)), as V cancels in the normalised weights.

    So lambda settles where pi(costly) is the limit: 1.787 at .3, 1 at .5. At a limit of 1 it falls to 0 and leaves
    IQL's policy, at 0 it rises to its maximum, here 20.
    """
    limits, beta, maximum = jnp.array([0.0, 0.3, 0.5, 1.0]), 3.0, 20.0

    def learn(limit):
        state = random_state(method_of(limit, 1e-2), first_of(BANDIT), 0)
        for rate in (3e-2, 1e-3):
            method = method_of(limit, rate)
            state, metrics = jax.lax.scan(
                lambda state, _, method=method: method.update(state, BANDIT, KEY), state, None, 3000
            )
        return state, metrics["cost_value/policy"][-1]

    def method_of(limit, rate):
        config = SafetyConfig(
            cost_limit=limit,
            episode_length=1,
            learning_rate=rate,
            target_update_rate=0.5,
            multiplier=MultiplierConfig(learning_rate=0.2, maximum=maximum, adam=False),
        )
        return iql_method(config, 1, 2, inverse_temperature=beta, learning_rate=rate, target_update_rate=0.5)

    state, estimate = jax.jit(jax.vmap(learn))(limits)
    multiplier = np.asarray(state.safety.multiplier.value)
    costly = jax.nn.softmax(state.actor.params[:, 0])[:, 1]
    np.testing.assert_allclose(costly, jax.nn.sigmoid(beta * (1 - multiplier) / (1 + multiplier)), atol=3e-3)
    np.testing.assert_allclose(estimate, costly, atol=3e-3)
    share = np.log(0.3 / 0.7) / beta
    np.testing.assert_allclose(multiplier[1:3], [(1 - share) / (1 + share), 1.0], atol=5e-3)
    np.testing.assert_allclose(costly[1:3], [0.3, 0.5], atol=3e-3)
    assert multiplier[3] == 0.0
    assert costly[3] > 0.95
    assert costly[0] < 0.07


@pytest.mark.parametrize(("evaluation", "costly", "estimate"), [("policy", 0.3, 3.0), ("expectile", 0.9526, 1.8526)])
def test_the_policys_own_cost_meets_a_limit_that_the_lower_expectile_overlooks(evaluation, costly, estimate):
    """The bandit for ever, at .9: a policy that takes the costly action with probability p costs 10 p; the limit is 3.

    The expectile .1 of Qc is .1 above its least: Vc = .9 Vc + .1 = 1, so the plain policy, p = sigmoid(3), seems to
    cost .9 + p, the multiplier rests at 0, and the policy costs 9.5.
    """
    endless = BANDIT._replace(discount=jnp.ones(2))

    def learn(state, rate):
        config = SafetyConfig(
            evaluation=evaluation,
            cost_limit=3.0,
            episode_length=1,
            discount_factor=0.9,
            expectile=0.1,
            learning_rate=rate,
            target_update_rate=0.5,
            multiplier=MultiplierConfig(learning_rate=3.0 * rate, adam=False),
        )
        method = iql_method(config, 1, 2, discount_factor=0.9, learning_rate=rate, target_update_rate=0.5)
        if state is None:
            state = random_state(method, first_of(endless), 0)
        return jax.lax.scan(lambda state, _: method.update(state, endless, KEY), state, None, 4000)

    state, metrics = None, {}
    for rate in (3e-2, 3e-3, 1e-3):
        state, metrics = learn(state, rate)
    np.testing.assert_allclose(jax.nn.softmax(state.actor.params[0])[1], costly, atol=5e-3)
    np.testing.assert_allclose(metrics["cost_value/policy"][-1], estimate, atol=3e-2)
    assert (float(state.safety.multiplier.value) == 0.0) == (evaluation == "expectile")


def test_finished_episodes_move_the_multiplier():
    """By their mean cost, 7 here, against the limit in episode units, without discounts; none finished, none moves."""
    config = SafetyConfig(cost_limit=5.0, multiplier=MultiplierConfig(initial=1.0, learning_rate=0.1, adam=False))
    state = made(config)
    after = safety.adapt(state, episodes([4.0, 10.0, 99.0], [True, True, False]), config=config)
    np.testing.assert_allclose(after.multiplier.value, 1.0 + 0.1 * (7.0 - 5.0), rtol=1e-6)
    down = safety.adapt(state, episodes([[1.0], [3.0]], [[True], [True]]), config=config)
    np.testing.assert_allclose(down.multiplier.value, 1.0 - 0.1 * 3.0, rtol=1e-6)
    still = safety.adapt(state, episodes([99.0, 99.0], [False, False]), config=config)
    chex.assert_trees_all_equal(still, state)
    chex.assert_trees_all_equal(after._replace(multiplier=()), state._replace(multiplier=()))


def test_a_tick_compares_discounted_units():
    """A limit of 6 over three steps at .9 is 6 (1 + .9 + .81) / 3 = 5.42 of discounted cost."""
    config = SafetyConfig(
        cost_limit=6.0,
        episode_length=3,
        discount_factor=0.9,
        multiplier=MultiplierConfig(initial=1.0, learning_rate=0.1, adam=False),
    )
    state = made(config)
    after, metrics = safety.tick(state, jnp.float32(5.5), config=config)
    np.testing.assert_allclose(metrics["cost_value/limit"], 5.42, rtol=1e-6)
    np.testing.assert_allclose(after.multiplier.value, 1.0 + 0.1 * 0.08, rtol=1e-5)


def test_without_a_config_nothing_happens():
    assert safety.init(KEY, first_of(BATCH), config=None, networks=()) == ()
    for update in (safety.update, safety.update_values):
        assert update((), BATCH, BATCH.action, config=None, networks=()) == ((), {})
    assert safety.of_policy(None) is None
    assert safety.tick((), jnp.float32(9.0), config=None) == ((), {})
    assert safety.adapt((), episodes([9.0], [True]), config=None) == ()
    state, weight, metrics = safety.weigh((), BATCH, jnp.array([1.0, 2.0, 3.0]), jnp.square, config=None, networks=())
    np.testing.assert_array_equal(weight, [1.0, 4.0, 9.0])
    assert (state, metrics) == ((), {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cost_limit", -1.0),
        ("episode_length", 0),
        ("discount_factor", 1.5),
        ("expectile", 0.0),
        ("expectile", 1.0),
        ("learning_rate", 0.0),
    ],
)
def test_numbers_out_of_range_are_refused_in_one_line(name, value):
    with pytest.raises(ValueError, match=rf"safety\.{name} is {value}") as caught:
        iql.make(iql.Config(safety=replace(SafetyConfig(), **{name: value})), action_size=2)
    assert "\n" not in str(caught.value)


def test_an_unknown_multiplier_is_refused():
    with pytest.raises(ValueError, match="bang_bang"):
        iql.make(iql.Config(safety=SafetyConfig(multiplier=MultiplierConfig(kind="bang_bang"))), action_size=2)
