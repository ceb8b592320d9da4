"""Probe worlds and tabular solutions against published numbers, brute force and simulation."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safejax.envs import probes
from safejax.types import example_transition

POLICY = np.array([[0.6, 0.4], [0.3, 0.7]])
WORLDS = {
    "tabular": lambda: probes.tabular(probes.golden_cmdp(), episode_length=5),
    "constant_reward": probes.constant_reward,
    "quadratic_bandit": lambda: probes.quadratic_bandit(action_size=3),
    "two_step_delayed": probes.two_step_delayed,
    "truncating": lambda: probes.truncating(episode_length=4),
}


def random_cmdp(seed, states=3, actions=3):
    generator = np.random.default_rng(seed)
    return probes.TabularCMDP(
        transition=generator.dirichlet(np.full(states, 0.5), (states, actions)),
        reward=generator.normal(size=(states, actions)),
        cost=generator.uniform(0, 1, (states, actions)),
        initial=generator.dirichlet(np.ones(states)),
        termination=generator.uniform(0, 0.2, (states, actions)),
    )


def start_values(mdp, policy, discount_factor):
    """Expected discounted reward and cost from the start."""
    return [mdp.initial @ (policy * q).sum(1) for q in probes.evaluate(mdp, policy, discount_factor)]


def deterministic_policies(mdp):
    states, actions = mdp.reward.shape
    return [np.eye(actions)[list(choice)] for choice in itertools.product(range(actions), repeat=states)]


def rollout(env, env_count, length, act, seed=0):
    """Every EnvState of `env_count` worlds for `length` steps [T, B, ...], and the actions."""

    @jax.jit
    def collect(key):
        reset_key, scan_key = jax.random.split(key)
        first = jax.vmap(env.reset)(jax.random.split(reset_key, env_count))

        def body(state, key):
            act_key, step_key = jax.random.split(key)
            action = act(state.observation, act_key)
            state = jax.vmap(env.step)(state, action, jax.random.split(step_key, env_count))
            return state, (state, action)

        return first, jax.lax.scan(body, first, jax.random.split(scan_key, length))[1]

    first, (states, actions) = collect(jax.random.key(seed))
    return jax.tree.map(np.asarray, (first, states, actions))


def random_actions(env):
    def act(observation, key):
        count = observation.shape[0]
        if env.discrete:
            return jax.random.randint(key, (count,), 0, env.action_size, "int32")
        return jax.random.uniform(key, (count, env.action_size), minval=-1.0)

    return act


def test_plain_values_of_the_golden_world():
    q, qc = probes.evaluate(probes.golden_cmdp(), POLICY, 0.9)
    np.testing.assert_allclose(q.ravel(), [11.169572, 11.118067, 10.940571, 13.389065], atol=1e-6)
    np.testing.assert_allclose(qc.ravel(), [5.106181, 6.405705, 5.191759, 6.491284], atol=1e-6)


def test_soft_values_of_the_golden_world():
    q, qc = probes.soft_evaluate(probes.golden_cmdp(), POLICY, 0.9, 0.2, 0.05)
    np.testing.assert_allclose(q.ravel(), [12.318590, 12.254674, 12.086042, 14.522127], atol=1e-6)
    np.testing.assert_allclose(qc.ravel(), [5.393435, 6.689857, 5.478127, 6.774549], atol=1e-6)


def test_soft_values_are_plain_values_plus_discounted_future_entropy():
    mdp = probes.golden_cmdp()
    q, qc = probes.evaluate(mdp, POLICY, 0.9)
    unit_q, unit_qc = probes.soft_evaluate(mdp, POLICY, 0.9, 1.0, 1.0)
    entropy = np.array([5.745088, 5.683039, 5.727360, 5.665311])
    np.testing.assert_allclose((unit_q - q).ravel(), entropy, atol=1e-6)
    np.testing.assert_allclose((unit_qc - qc).ravel(), entropy, atol=1e-6)
    for reward_temperature, cost_temperature in ((0.2, 0.05), (0.0, 0.3), (0.4, 0.0)):
        soft_q, soft_qc = probes.soft_evaluate(mdp, POLICY, 0.9, reward_temperature, cost_temperature)
        np.testing.assert_allclose(soft_q, q + reward_temperature * (unit_q - q), rtol=1e-12)
        np.testing.assert_allclose(soft_qc, qc + cost_temperature * (unit_qc - qc), rtol=1e-12)


def test_termination_cuts_the_values():
    mdp = probes.golden_cmdp()._replace(termination=1.0)
    q, qc = probes.soft_evaluate(mdp, POLICY, 0.9, 0.2, 0.05)
    np.testing.assert_allclose(q, mdp.reward)
    np.testing.assert_allclose(qc, mdp.cost)
    # A constant chance to end is a smaller discount factor.
    halved = probes.evaluate(mdp._replace(termination=0.5), POLICY, 0.9)
    np.testing.assert_allclose(halved, probes.evaluate(probes.golden_cmdp(), POLICY, 0.45), rtol=1e-12)


def test_deterministic_policies_have_no_entropy():
    policy = np.eye(2)
    plain = probes.evaluate(probes.golden_cmdp(), policy, 0.9)
    np.testing.assert_allclose(probes.soft_evaluate(probes.golden_cmdp(), policy, 0.9, 1.0, 1.0), plain)


@pytest.mark.parametrize("mdp", [probes.golden_cmdp(), random_cmdp(0)], ids=["golden", "random"])
@pytest.mark.parametrize("multiplier", [0.0, 1.5])
def test_value_iteration_equals_the_best_deterministic_policy(mdp, multiplier):
    q, policy = probes.solve(mdp, 0.9, multiplier)
    values = []
    for candidate in deterministic_policies(mdp):
        reward_q, cost_q = probes.evaluate(mdp, candidate, 0.9)
        values.append((candidate * (reward_q - multiplier * cost_q)).sum(1))
    np.testing.assert_allclose(q.max(axis=1), np.max(values, axis=0), atol=1e-9)
    reward_q, cost_q = probes.evaluate(mdp, policy, 0.9)
    np.testing.assert_allclose(reward_q - multiplier * cost_q, q, atol=1e-9)


def best_mixture(mdp, discount_factor, limit):
    """The best point under `limit` on the segments between the (value, cost) of deterministic policies.

    Occupancies mix linearly and the corners of their polytope are deterministic: this is the optimum.
    """
    points = [start_values(mdp, policy, discount_factor) for policy in deterministic_policies(mdp)]
    best = -np.inf
    for (value, cost), (other_value, other_cost) in itertools.product(points, points):
        if cost <= limit:
            share = 1.0 if other_cost <= limit else (limit - cost) / (other_cost - cost)
            best = max(best, value, value + share * (other_value - value))
    return best


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_linear_program_equals_brute_force(seed):
    mdp, discount_factor = probes.golden_cmdp() if seed is None else random_cmdp(seed), 0.9
    costs = [start_values(mdp, policy, discount_factor)[1] for policy in deterministic_policies(mdp)]
    unconstrained = start_values(mdp, probes.solve(mdp, discount_factor)[1], discount_factor)
    binding = 0
    for limit in np.linspace(min(costs) + 1e-3, max(costs) + 0.1, 7):
        policy, multiplier, value, cost = probes.solve_constrained(mdp, discount_factor, limit)
        assert value == pytest.approx(best_mixture(mdp, discount_factor, limit), abs=1e-8)
        np.testing.assert_allclose(policy.sum(axis=1), 1.0)
        np.testing.assert_allclose(start_values(mdp, policy, discount_factor), [value, cost], atol=1e-8)
        assert cost <= limit + 1e-9
        assert multiplier >= 0
        # Strong duality: the multiplier turns the constrained problem into a free one of the same value.
        free_q, _ = probes.solve(mdp, discount_factor, multiplier)
        assert mdp.initial @ free_q.max(axis=1) + multiplier * limit == pytest.approx(value, abs=1e-7)
        if cost < unconstrained[1] - 1e-6:
            binding += 1
            assert multiplier > 0
            assert cost == pytest.approx(limit, abs=1e-8)
        else:
            assert multiplier == pytest.approx(0.0, abs=1e-9)
    assert binding >= 1


def test_the_multiplier_is_the_price_of_the_limit():
    mdp = random_cmdp(3)
    costs = [start_values(mdp, policy, 0.9)[1] for policy in deterministic_policies(mdp)]
    # The optimum is piecewise linear in the limit: a limit well between the corner costs.
    free = start_values(mdp, probes.solve(mdp, 0.9)[1], 0.9)[1]
    limit = 0.3 * min(costs) + 0.7 * free
    _, multiplier, value, _ = probes.solve_constrained(mdp, 0.9, limit)
    _, _, more, _ = probes.solve_constrained(mdp, 0.9, limit + 1e-4)
    assert (more - value) / 1e-4 == pytest.approx(multiplier, rel=1e-4)
    assert multiplier > 0.01


def test_an_impossible_limit_is_refused():
    mdp = probes.golden_cmdp()._replace(cost=np.ones((2, 2)))
    assert probes.solve_constrained(mdp, 0.9, 10.0)[3] == pytest.approx(10.0)
    with pytest.raises(ValueError, match=r"no policy keeps a discounted cost of 9\.9"):
        probes.solve_constrained(mdp, 0.9, 9.9)


@pytest.mark.parametrize("name", WORLDS)
def test_worlds_keep_the_contract_under_jit_vmap_and_scan(name):
    env = WORLDS[name]()
    first, states, _ = rollout(env, 6, 23, random_actions(env))
    example = example_transition(env)
    state = env.reset(jax.random.key(0))
    action = jnp.zeros_like(example.action)
    after = jax.eval_shape(env.step, state, action, jax.random.key(1))
    assert jax.tree.leaves(jax.eval_shape(env.reset, jax.random.key(0))) == jax.tree.leaves(after)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))
    assert state.observation.shape == env.observation_spec.shape
    assert state.observation.dtype == env.observation_spec.dtype
    expected = dict(reward="float32", cost="float32", terminated="bool", truncated="bool", steps="int32")
    assert {field: getattr(state, field).dtype.name for field in expected} == expected
    chex.assert_trees_all_equal(first.observation, first.final_observation)

    ended = states.terminated | states.truncated
    assert ended.any()
    assert not (states.terminated & states.truncated).any()
    np.testing.assert_array_equal(states.steps == 0, ended)
    # Where nothing ended the final observation is the current one, and the count goes on.
    np.testing.assert_array_equal(states.observation[~ended], states.final_observation[~ended])
    before = np.concatenate([first.steps[None], states.steps[:-1]])
    np.testing.assert_array_equal(states.steps[~ended], before[~ended] + 1)
    np.testing.assert_array_equal(states.truncated, (before + 1 >= env.episode_length) & ~states.terminated)
    assert (states.cost >= 0).all()

    single = env.step(jax.tree.map(lambda a: a[0], first), action, jax.random.key(1))
    batched = jax.jit(jax.vmap(env.step, in_axes=(0, None, None)))(first, action, jax.random.key(1))
    chex.assert_trees_all_close(single, jax.tree.map(lambda a: a[0], batched))


def test_tabular_steps_follow_the_table():
    mdp = random_cmdp(5)
    env = probes.tabular(mdp, episode_length=7)
    first, states, actions = rollout(env, 512, 100, random_actions(env))
    observations = np.concatenate([first.observation[None], states.observation[:-1]])
    now, following = observations.argmax(-1), states.final_observation.argmax(-1)
    np.testing.assert_allclose(observations.sum(-1), 1.0)
    np.testing.assert_allclose(states.reward, mdp.reward[now, actions], rtol=1e-6)
    np.testing.assert_allclose(states.cost, mdp.cost[now, actions], rtol=1e-6)
    for s, a in itertools.product(range(3), range(3)):
        rows = (now == s) & (actions == a)
        count = rows.sum()
        assert count > 1000
        frequency = np.bincount(following[rows], minlength=3) / count
        error = np.sqrt(mdp.transition[s, a] * (1 - mdp.transition[s, a]) / count)
        assert (np.abs(frequency - mdp.transition[s, a]) <= 5 * error + 1e-9).all()
        termination = mdp.termination[s, a]
        error = np.sqrt(termination * (1 - termination) / count)
        assert states.terminated[rows].mean() == pytest.approx(termination, abs=5 * error)
    ended = states.terminated | states.truncated
    starts = np.bincount(states.observation[ended].argmax(-1), minlength=3) / ended.sum()
    np.testing.assert_allclose(starts, mdp.initial, atol=5 * 0.5 / np.sqrt(ended.sum()))
    assert (states.observation[ended] != states.final_observation[ended]).any()


def test_tabular_rollouts_earn_the_evaluated_values():
    mdp, discount_factor, length = probes.golden_cmdp(), 0.8, 60
    env = probes.tabular(mdp, episode_length=length)
    logits = jnp.log(jnp.asarray(POLICY, "float32"))

    def act(observation, key):
        return jax.random.categorical(key, observation @ logits).astype("int32")

    _, states, _ = rollout(env, 4096, length, act)
    weights = discount_factor ** np.arange(length)
    for rewards, expected in zip((states.reward, states.cost), start_values(mdp, POLICY, discount_factor), strict=True):
        returns = weights @ rewards
        assert returns.mean() == pytest.approx(expected, abs=4 * returns.std() / np.sqrt(4096))
        assert 4 * returns.std() / np.sqrt(4096) < 0.2


def test_impossible_states_are_never_drawn():
    mdp = probes.golden_cmdp()  # starts in state 0 always; action 1 in state 1 stays there always
    first, states, actions = rollout(probes.tabular(mdp, 50), 64, 40, random_actions(probes.tabular(mdp, 50)))
    assert (first.physics == 0).all()
    now = np.concatenate([first.physics[None], states.physics[:-1]])
    stays = (now == 1) & (actions == 1)
    assert stays.sum() > 100
    assert (states.physics[stays] == 1).all()


def fitted_value(rewards, discounts, episode_length, discount_factor):
    """V at the start of an episode that repeats; `discounts` says where the bootstrap is cut."""
    value = np.zeros(episode_length + 1)
    for _ in range(2000):
        following = np.append(value[1:episode_length], value[0])
        value[:episode_length] = rewards + discount_factor * discounts * following
    return value[0]


def test_constant_reward_pays_one_and_terminates():
    env = probes.constant_reward()
    _, states, _ = rollout(env, 4, 5, random_actions(env))
    np.testing.assert_array_equal(states.reward, 1.0)
    np.testing.assert_array_equal(states.cost, 0.0)
    assert states.terminated.all()


def test_quadratic_bandit_has_the_stated_constrained_optimum():
    env = probes.quadratic_bandit(target=0.6, action_size=2)
    _, states, actions = rollout(env, 32, 20, random_actions(env))
    np.testing.assert_allclose(states.reward, -((actions - 0.6) ** 2).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(states.cost, np.maximum(actions, 0).sum(-1), rtol=1e-5, atol=1e-7)
    assert states.terminated.all()
    line = np.linspace(-1, 1, 201)
    grid = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    outcome = jax.vmap(lambda action: env.step(env.reset(jax.random.key(0)), action, jax.random.key(0)))(
        jnp.asarray(grid, "float32")
    )
    reward, cost = np.asarray(outcome.reward), np.asarray(outcome.cost)
    limit = 0.4
    feasible = cost <= limit + 1e-5
    best = np.argmax(np.where(feasible, reward, -np.inf))
    np.testing.assert_allclose(grid[best], 0.2, atol=1e-6)
    assert reward[best] == pytest.approx(-2 * 0.4**2, abs=1e-5)
    multiplier = 2 * (0.6 - 0.2)
    np.testing.assert_allclose(grid[np.argmax(reward - multiplier * cost)], 0.2, atol=1e-6)
    np.testing.assert_allclose(grid[np.argmax(reward)], 0.6, atol=1e-6)


def test_two_step_delayed_pays_on_the_second_step_only():
    env = probes.two_step_delayed(reward=2.0, cost=3.0)
    first, states, _ = rollout(env, 4, 6, random_actions(env))
    np.testing.assert_array_equal(first.observation[0], [1.0, 0.0])
    np.testing.assert_array_equal(states.reward[:, 0], [0, 2, 0, 2, 0, 2])
    np.testing.assert_array_equal(states.cost[:, 0], [0, 3, 0, 3, 0, 3])
    np.testing.assert_array_equal(states.terminated[:, 0], [False, True] * 3)
    np.testing.assert_array_equal(states.observation[:2, 0], [[0.0, 1.0], [1.0, 0.0]])
    assert not states.truncated.any()
    discounts = 1.0 - states.terminated[:2, 0]
    assert fitted_value(states.reward[:2, 0], discounts, 2, 0.9) == pytest.approx(0.9 * 2)
    assert fitted_value(states.cost[:2, 0], discounts, 2, 0.9) == pytest.approx(0.9 * 3)


def test_truncating_tells_truncation_from_termination():
    env = probes.truncating(episode_length=5, cost=0.5)
    _, states, _ = rollout(env, 3, 15, random_actions(env))
    assert not states.terminated.any()
    np.testing.assert_array_equal(states.truncated[:, 0], [False, False, False, False, True] * 3)
    np.testing.assert_array_equal(states.observation, states.final_observation)
    reward, cost = states.reward[:5, 0], states.cost[:5, 0]
    assert fitted_value(reward, np.ones(5), 5, 0.9) == pytest.approx(1 / (1 - 0.9))
    assert fitted_value(cost, np.ones(5), 5, 0.9) == pytest.approx(0.5 / (1 - 0.9))
    wrong = 1.0 - states.truncated[:5, 0]
    assert fitted_value(reward, wrong, 5, 0.9) == pytest.approx((1 - 0.9**5) / (1 - 0.9))
    assert np.mean(reward) / (1 - 0.9 * wrong.mean()) == pytest.approx(1 / (1 - 0.9 * (1 - 1 / 5)))
