"""SfBC: the plan's inequalities, dynamic programming on a chain, best of N in closed form, and the safe form.

The behaviour models here are chains of one step whose denoiser is solved for the action wanted, so that their samples
are known functions of the noise.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_networks import ONE_STEP, Sampler, StateTable, coin, one_hot, uniform

from safejax.algorithms import diffusion_bc, sfbc
from safejax.algorithms.safety import SafetyConfig, SafetyNetworks
from safejax.constraints import cost_value_limit
from safejax.diffusion import DiffusionConfig
from safejax.multipliers import MultiplierConfig
from safejax.types import Transition

KEY = jax.random.key(0)


def alternate(observation, noise):
    """The second action in state 1, the first elsewhere."""
    return (observation[..., 1] - 0.5)[..., None]


@dataclass(frozen=True)
class SignTable:
    """Critics [E, S, 2]: one-hot state, and an action whose sign is the column."""

    critics: int = 1
    states: int = 3

    def init(self, key, *inputs):
        return 0.1 * jax.random.normal(key, (self.critics, self.states, 2))

    def apply(self, params, observation, action):
        columns = jnp.einsum("esa,...s->e...a", params, observation)
        return jnp.where(action[..., 0] > 0, columns[..., 1], columns[..., 0])


@dataclass(frozen=True)
class Rising:
    """Q = (1 + a) / 2 for every state: uniform on (0, 1) for uniform actions."""

    def init(self, key, *inputs):
        return jnp.ones((1,))

    def apply(self, params, observation, action):
        return jnp.tensordot(params, 0.5 + 0.5 * action[..., 0], axes=0)


def algorithm(law, critic=SignTable(), **numbers):
    config = sfbc.Config(**{"diffusion": ONE_STEP, "discount_factor": 0.9, **numbers})
    safe = SafetyNetworks(SignTable(), StateTable(3))
    return sfbc.make(config, sfbc.Networks(Sampler(law), critic, safe))


def windows(states, actions, rewards, discounts, lasts, following, costs=None):
    columns = [rewards, np.zeros_like(rewards) if costs is None else costs, discounts, lasts]
    columns = [jnp.asarray(column, jnp.float32) for column in columns]
    action = jnp.asarray(actions, jnp.float32)[..., None] - 0.5
    return Transition(one_hot(states, 3), action, *columns, one_hot(following, 3), {})


def start(method, batch, target=None, cost_target=None, multiplier=0.0):
    state = method.init(KEY, jax.tree.map(lambda leaf: leaf[0, 0], batch))
    if target is not None:
        state = state._replace(target_critic=jnp.asarray(target, jnp.float32)[None])
    if state.safety:
        moved = state.safety.multiplier._replace(value=jnp.asarray(multiplier, jnp.float32))
        safe = state.safety._replace(multiplier=moved)
        if cost_target is not None:
            safe = safe._replace(target_critic=jnp.asarray(cost_target, jnp.float32)[None])
        state = state._replace(safety=safe)
    return state


# --- the soft value and the plan


def test_the_soft_value_runs_from_the_mean_to_the_maximum():
    q = jnp.array([[1.0, -2.0], [4.0, 0.0], [1.0, -1.0]])
    np.testing.assert_allclose(sfbc.soft_value(q, 0.0), [2.0, -1.0], rtol=1e-6)
    np.testing.assert_allclose(sfbc.soft_value(q, 1e4), [4.0, 0.0], rtol=1e-6)
    share = np.exp([0.5, 2.0, 0.5]) / np.exp([0.5, 2.0, 0.5]).sum()
    np.testing.assert_allclose(sfbc.soft_value(q, 0.5)[0], share @ [1.0, 4.0, 1.0], rtol=1e-6)
    between = np.array([float(sfbc.soft_value(q, alpha)[0]) for alpha in np.linspace(0.0, 5.0, 20)])
    assert np.all(np.diff(between) > 0)


def random_rows(seed, shape=(6, 9)):
    random = np.random.default_rng(seed)
    terminated = random.random(shape) < 0.15
    last = terminated | (random.random(shape) < 0.15)
    return random.normal(size=shape), 2.0 * random.normal(size=shape), 1.0 - terminated, 1.0 * last


def test_the_plan_is_never_below_the_data_nor_below_the_value():
    reward, next_value, discount, last = random_rows(0)
    returns = np.asarray(sfbc.plan(*map(jnp.asarray, (reward, next_value, discount, last)), discount_factor=0.9))
    inside = last[:, :-1] == 0
    followed = (reward + 0.9 * discount * np.roll(returns, -1, axis=1))[:, :-1]
    bootstrapped = reward + 0.9 * discount * next_value
    assert np.all(returns[:, :-1][inside] >= followed[inside] - 1e-6)
    assert np.all(returns >= bootstrapped - 1e-6)
    higher = np.where(inside, np.maximum(followed, bootstrapped[:, :-1]), bootstrapped[:, :-1])
    np.testing.assert_allclose(returns[:, :-1], higher, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(returns[:, -1], bootstrapped[:, -1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(returns[discount == 0], reward[discount == 0], rtol=1e-6)


def test_the_released_target_is_the_codes_recursion():
    """max(r + gamma R', V(s)) along a trajectory, whose R is at least V(s) and at least what follows."""
    random = np.random.default_rng(3)
    reward, value = random.normal(size=8), 2.0 * random.normal(size=9)
    expected, following = np.zeros(8), value[8]
    for row in reversed(range(8)):
        following = expected[row] = max(reward[row] + 0.9 * following, value[row])
    ones, zeros = jnp.ones(8), jnp.zeros(8)
    planned = sfbc.plan(jnp.asarray(reward), jnp.asarray(value[1:]), ones, zeros, discount_factor=0.9)
    np.testing.assert_allclose(np.maximum(planned, value[:8]), expected, rtol=1e-5, atol=1e-6)


# --- a chain: state 1 is left badly in one trajectory and well in another; (2, 1) is cut by time at state 0

CHAIN = windows(
    states=[[0, 1, 0], [1, 2, 2], [0, 1, 2]],
    actions=[[0, 1, 1], [0, 1, 0], [0, 0, 1]],
    rewards=[[0.0, 0.5, 1.0], [-1.0, 0.0, 4.0], [0.0, -1.0, 0.0]],
    discounts=[[1, 0, 0], [1, 1, 0], [1, 1, 1]],
    lasts=[[0, 1, 1], [0, 1, 1], [0, 0, 1]],
    following=[[1, 0, 0], [2, 0, 0], [1, 2, 0]],
)
# by hand at gamma .9: Q(2, 0) = 4; Q(1, 0) = -1 + .9 * 4; Q(0, 0) = .9 * 2.6; Q(2, 1) = .9 * 2.34
CHAIN_Q = np.array([[2.34, 1.0], [2.6, 0.5], [4.0, 2.106]])


@pytest.mark.parametrize(
    ("planning", "expected"), [("paper", CHAIN_Q), ("released", np.repeat(CHAIN_Q.max(1, keepdims=True), 2, axis=1))]
)
def test_planning_to_convergence_is_dynamic_programming_and_the_codes_rule_forgets_what_is_best(planning, expected):
    rows, columns = np.asarray(CHAIN.observation.argmax(-1)), np.asarray(CHAIN.action[..., 0] > 0).astype(int)
    following = np.asarray(CHAIN.next_observation.argmax(-1))
    plan = jax.jit(functools.partial(sfbc.plan, discount_factor=0.9))
    q = np.zeros((3, 2))
    for _ in range(60):
        value = q.max(1)
        next_value = jnp.asarray(value[following], jnp.float32)
        target = np.asarray(plan(CHAIN.reward, next_value, CHAIN.discount, CHAIN.last))
        target = np.maximum(target, value[rows]) if planning == "released" else target
        total, count = np.zeros((3, 2)), np.zeros((3, 2))
        np.add.at(total, (rows, columns), target)
        np.add.at(count, (rows, columns), 1.0)
        q = total / count
    np.testing.assert_allclose(q, expected, rtol=1e-5)


def test_training_on_the_chain_reaches_dynamic_programming():
    """32 coins a state leave an action out once in 2e9 draws, and a steep alpha makes V their maximum."""
    state = None
    for rate in (3e-2, 3e-3, 3e-4):
        method = algorithm(
            coin, candidate_count=32, inverse_temperature=1e5, learning_rate=rate, target_update_rate=0.2
        )
        state = start(method, CHAIN) if state is None else state
        step = functools.partial(lambda method, state, key: method.update(state, CHAIN, key), method)
        keys = jax.random.split(KEY, 500)
        state, _ = jax.jit(lambda state, keys, step=step: jax.lax.scan(step, state, keys))(state, keys)
    np.testing.assert_allclose(state.critic.params[0], CHAIN_Q, atol=5e-3)


# --- one update by hand

BATCH = windows(
    states=[[0, 1, 0], [2, 2, 1]],
    actions=[[0, 1, 1], [1, 0, 0]],
    rewards=[[1.0, -2.0, 0.5], [3.0, 0.0, 1.0]],
    discounts=[[1, 1, 1], [1, 0, 1]],
    lasts=[[0, 1, 0], [0, 1, 0]],  # truncated; terminated
    following=[[1, 2, 2], [2, 0, 2]],
    costs=[[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]],
)
TARGET = np.array([[1.0, 2.0], [0.3, -1.0], [4.0, 0.0]])
COST_TARGET = np.array([[1.0, 4.0], [0.5, 2.0], [3.0, 0.2]])
REACHED = np.array([1, 2, 2, 2, 2, 2])  # the terminated row stays where it was, in state 2
# with V(s) = TARGET[s, a(s)] = (1, -1, 4), a(s) the action of `alternate`; window by window, from the back
RETURNS = np.array([[1.0 + 0.9 * 1.6, -2.0 + 0.9 * 4.0, 0.5 + 0.9 * 4.0], [3.0 + 0.9 * 4.0, 0.0, 1.0 + 0.9 * 4.0]])


@pytest.mark.parametrize(
    ("planning", "returns"),
    [("paper", RETURNS), ("released", np.maximum(RETURNS, [[1.0, -1.0, 1.0], [4.0, 4.0, -1.0]]))],
)
def test_one_update_by_hand(planning, returns):
    method = algorithm(alternate, planning=planning, candidate_count=3)
    state = start(method, BATCH, TARGET)
    after, metrics = jax.jit(method.update)(state, BATCH, KEY)
    q = np.asarray(state.critic.params)[0][[[0, 1, 0], [2, 2, 1]], [[0, 1, 1], [1, 0, 0]]]
    np.testing.assert_allclose(metrics["value/mean"], np.mean([-1.0, 4.0, 4.0, 4.0, 4.0, 4.0]), rtol=1e-5)
    np.testing.assert_allclose(metrics["plan/return"], returns.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["critic/loss"], np.mean((q - returns) ** 2), rtol=1e-5)
    np.testing.assert_allclose(after.return_scale, returns.std(), rtol=1e-5)
    moved = 0.995 * TARGET + 0.005 * np.asarray(after.critic.params)[0]
    np.testing.assert_allclose(after.target_critic[0], moved, rtol=1e-5)


def test_the_scale_of_returns_is_their_running_deviation_and_divides_alpha():
    method = algorithm(coin, candidate_count=5, inverse_temperature=3.0)
    update = jax.jit(method.update)
    first, metrics = update(start(method, BATCH, TARGET), BATCH, KEY)
    second, metrics = update(first, BATCH._replace(reward=10.0 * BATCH.reward), KEY)
    actions = diffusion_bc.propose(
        jnp.zeros(()),
        one_hot(REACHED, 3),
        jax.random.split(KEY, 3)[1],
        5,
        explore=True,
        config=sfbc.Config(diffusion=ONE_STEP),
        networks=diffusion_bc.Networks(Sampler(coin)),
    )
    q = np.asarray(first.target_critic)[0][REACHED, np.asarray(actions[..., 0] > 0).astype(int)]
    share = np.exp(3.0 / float(first.return_scale) * q)
    value = (share * q).sum(0) / share.sum(0)
    np.testing.assert_allclose(metrics["value/mean"], value.mean(), rtol=1e-5)
    planned = sfbc.plan(
        10.0 * BATCH.reward,
        jnp.asarray(value.reshape(2, 3), "float32"),
        BATCH.discount,
        BATCH.last,
        discount_factor=0.9,
    )
    np.testing.assert_allclose(second.return_scale, (first.return_scale + jnp.std(planned)) / 2.0, rtol=1e-5)


# --- best of N


@pytest.mark.parametrize(("count", "best"), [(16, 0.941176), (64, 0.984615)])
def test_the_value_is_the_best_of_n_uniform_values(count, best):
    """N / (N + 1) over 4,096 rows: within five standard errors, and at alpha 0 the mean 1/2."""
    batch = jax.tree.map(lambda leaf: jnp.ones((1024, 4, *leaf.shape[2:])), BATCH)
    deviation = np.sqrt(count / (count + 1) ** 2 / (count + 2))
    for alpha, mean, spread in ((1e6, best, deviation), (0.0, 0.5, np.sqrt(1.0 / 12.0 / count))):
        method = algorithm(uniform, Rising(), candidate_count=count, inverse_temperature=alpha)
        _, metrics = jax.jit(method.update)(start(method, batch), batch, KEY)
        assert abs(float(metrics["value/mean"]) - mean) < 5.0 * spread / 64.0


@pytest.mark.parametrize(("count", "mean_of_best"), [(1, 1), (16, 1), (64, 1), (32, 4)])
def test_acting_takes_the_best_of_n(count, mean_of_best):
    """E of the mean of the k best of N uniform values is (N - (k - 1) / 2) / (N + 1); 20,000 rows, five errors."""
    method = algorithm(
        uniform,
        Rising(),
        act_candidate_count=count,
        mean_of_best=mean_of_best,
        explore_inverse_temperature=1e8,  # exploring for fresh candidates, choosing without chance
    )
    state = start(method, BATCH)
    action, _, _ = jax.jit(functools.partial(method.act, explore=True))(state, jnp.ones((20_000, 3)), KEY)
    value = 0.5 + 0.5 * np.asarray(action[:, 0])
    expected = (count - (mean_of_best - 1) / 2) / (count + 1)
    assert abs(value.mean() - expected) < 5.0 * value.std() / np.sqrt(20_000)


def test_without_exploring_it_acts_by_the_mean_of_the_best_fixed_candidates():
    config = dict(act_candidate_count=9, mean_of_best=3)
    method = algorithm(uniform, Rising(), **config)
    action, _, _ = method.act(start(method, BATCH), jnp.ones((2, 3)), KEY)
    candidates = diffusion_bc.propose(
        jnp.zeros(()),
        jnp.ones((2, 3)),
        KEY,
        9,
        explore=False,
        config=sfbc.Config(diffusion=ONE_STEP),
        networks=diffusion_bc.Networks(Sampler(uniform)),
    )
    np.testing.assert_allclose(action, np.sort(candidates, axis=0)[-3:].mean(0), rtol=1e-6)


def test_exploring_draws_by_the_softmax_of_scaled_values():
    """Two coins, odds of 9 to 1 where they differ: the better action in 1/4 + 1/2 * .9 of 20,000 rows."""
    method = algorithm(coin, act_candidate_count=2, explore_inverse_temperature=1.0)
    table = jnp.array([[[0.0, 2.0 * np.log(9.0)]] * 3])
    state = start(method, BATCH)
    state = state._replace(critic=state.critic._replace(params=table), return_scale=jnp.asarray(2.0))
    observation = one_hot(np.zeros(20_000, int), 3)
    action, _, _ = jax.jit(functools.partial(method.act, explore=True))(state, observation, KEY)
    share = np.mean(np.asarray(action[:, 0]) > 0)
    assert abs(share - 0.7) < 5.0 * np.sqrt(0.7 * 0.3 / 20_000)


def test_exploring_does_not_overflow():
    method = algorithm(coin)
    state = start(method, BATCH)
    state = state._replace(critic=state.critic._replace(params=jnp.array([[[-1e30, 1e30]] * 3])))
    action, _, _ = method.act(state, one_hot(np.zeros(50, int), 3), KEY, explore=True)
    np.testing.assert_allclose(action, np.full((50, 1), 0.5), rtol=1e-4)


# --- the safe form


def test_the_safe_form_with_a_multiplier_of_zero_is_the_plain_method():
    plain, safe = algorithm(coin), algorithm(coin, safety=SafetyConfig())
    expected, _ = jax.jit(plain.update)(start(plain, BATCH, TARGET), BATCH, KEY)
    after, _ = jax.jit(safe.update)(start(safe, BATCH, TARGET), BATCH, KEY)
    np.testing.assert_allclose(after.critic.params, expected.critic.params, rtol=1e-6)
    np.testing.assert_allclose(after.return_scale, expected.return_scale, rtol=1e-6)
    observation = one_hot([0, 1, 2], 3)
    np.testing.assert_array_equal(safe.act(after, observation, KEY)[0], plain.act(expected, observation, KEY)[0])


@pytest.mark.parametrize(("multiplier", "choice"), [(0.0, [1, 0, 0]), (1.5, [0, 0, 1])])
def test_the_penalised_score_decides_the_action_and_the_cost_estimate(multiplier, choice):
    """Q - 1.5 Qc is (-.5, -4), (-.45, -4), (-.5, -.3) where Q is `TARGET` and Qc `COST_TARGET`."""
    method = algorithm(coin, candidate_count=32, inverse_temperature=1e5, safety=SafetyConfig(target_update_rate=0.0))
    state = start(method, BATCH, TARGET, COST_TARGET, multiplier)
    _, metrics = jax.jit(method.update)(state, BATCH, KEY)
    # the cost critic evaluates these choices
    config = method.update.keywords["config"].safety
    next_cost = COST_TARGET[REACHED, np.array(choice)[REACHED]]
    rows = jax.tree.map(lambda leaf: leaf.reshape(6, *leaf.shape[2:]), BATCH)
    backup = np.asarray(rows.cost) + config.discount_factor * np.asarray(rows.discount) * next_cost
    cost_q = SignTable().apply(state.safety.critic.params, rows.observation, rows.action)[0]
    np.testing.assert_allclose(metrics["cost_critic/loss"], np.mean((cost_q - backup) ** 2), rtol=1e-5)
    cost_value = COST_TARGET[REACHED, np.array(choice)[REACHED]].mean()
    np.testing.assert_allclose(metrics["cost_value/policy"], cost_value, rtol=1e-5)

    state = state._replace(critic=state.critic._replace(params=jnp.asarray(TARGET, jnp.float32)[None]))
    action, _, _ = method.act(state, one_hot([0, 1, 2], 3), KEY)
    np.testing.assert_array_equal(action[:, 0] > 0, np.array(choice) > 0)


@pytest.mark.parametrize(("cost_limit", "rises"), [(0.5, True), (50.0, False)])
def test_the_multiplier_rises_while_the_policys_cost_value_exceeds_the_limit(cost_limit, rises):
    dual = MultiplierConfig(learning_rate=0.1, adam=False)
    safety = SafetyConfig(cost_limit=cost_limit, episode_length=5, discount_factor=0.9, multiplier=dual)
    method = algorithm(coin, safety=safety)
    after, metrics = jax.jit(method.update)(start(method, BATCH, TARGET, COST_TARGET, 1.0), BATCH, KEY)
    excess = metrics["cost_value/policy"] - cost_value_limit(cost_limit, 0.9, 5)
    assert bool(excess > 0) == rises
    np.testing.assert_allclose(after.safety.multiplier.value, max(0.0, 1.0 + 0.1 * float(excess)), rtol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"planning": "dream"},
        {"inverse_temperature": -1.0},
        {"explore_inverse_temperature": -1.0},
        {"candidate_count": 0},
        {"act_candidate_count": 0},
        {"mean_of_best": 33},
        {"sequence_length": 0},
        {"discount_factor": 1.1},
        {"learning_rate": 0.0},
        {"diffusion": DiffusionConfig(clip="none")},
    ],
)
def test_numbers_out_of_range_are_refused_in_one_line(change):
    with pytest.raises(ValueError, match=next(iter(change))) as caught:
        sfbc.make(sfbc.Config(**change), action_size=2)
    assert "\n" not in str(caught.value)
