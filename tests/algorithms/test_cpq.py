"""Constraints-penalised Q-learning: its operator on a world with known values, and updates by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_networks import FixedNoiseActor, random_state

from safejax.algorithms import cpq
from safejax.constraints import cost_value_limit
from safejax.envs import probes
from safejax.networks import ConditionalVAE, Critic, ensemble
from safejax.types import Transition

POLICY = np.array([[0.6, 0.4], [0.3, 0.7]])
KEY = jax.random.key(0)


def test_the_penalised_backup_of_a_known_world():
    """Cost values fixed at the policy's; 6.45 masks only the last pair, worth 6.491284."""
    mdp = probes.golden_cmdp()
    _, cost_value = probes.evaluate(mdp, POLICY, 0.9)
    chance = mdp.transition[..., None] * POLICY  # [s, a, s', a']
    shape = chance.shape
    reward, discount = np.broadcast_to(mdp.reward[..., None, None], shape), np.ones(shape)
    onward = np.broadcast_to(cost_value, shape)

    @jax.jit
    def backup(values):
        target = cpq.penalized_target(reward, discount, jnp.broadcast_to(values, shape), onward, 6.45, 0.9)
        return jnp.sum(chance * target, axis=(2, 3))

    values = jnp.zeros((2, 2))
    for _ in range(200):
        values = backup(values)
    np.testing.assert_allclose(values.ravel(), [2.476637, 0.696422, 1.753718, 2.473504], atol=2e-5)


def test_a_huge_limit_gives_the_plain_values():
    mdp = probes.golden_cmdp()
    plain, cost_value = probes.evaluate(mdp, POLICY, 0.9)
    chance = mdp.transition[..., None] * POLICY
    reward = np.broadcast_to(mdp.reward[..., None, None], chance.shape)
    onward = [np.broadcast_to(part, chance.shape) for part in (plain, cost_value)]
    target = cpq.penalized_target(reward, np.ones(chance.shape), *onward, 1e9, 0.9)
    np.testing.assert_allclose((chance * target).sum((2, 3)), plain, rtol=1e-5)


def test_the_limit_itself_is_safe_and_a_termination_ends_everything():
    rows = cpq.penalized_target(
        jnp.ones(3), jnp.array([1.0, 1.0, 0.0]), jnp.full(3, 10.0), jnp.array([5.0, 5.1, 0.0]), 5.0, 0.5
    )
    np.testing.assert_allclose(rows, [6.0, 1.0, 1.0])


def prepared(batch_size=32, **numbers):
    """(algorithm, networks, state with targets of their own, batch with ends of both kinds)."""
    config = cpq.Config(discount_factor=0.9, episode_length=10, reward_scale=0.5, **numbers)
    networks = cpq.Networks(
        actor=FixedNoiseActor(2),
        critic=ensemble(Critic((8,)), 2),
        cost_critic=ensemble(Critic((8,)), 2),
        vae=ConditionalVAE(2, (8,)),
    )
    algorithm = cpq.make(config, networks)
    random = np.random.default_rng(0)
    terminated = np.arange(batch_size) % 4 == 0
    last = np.arange(batch_size) % 2 == 0  # the other ends are truncations
    columns = [jnp.asarray(part, jnp.float32) for part in (1.0 - terminated, last)]
    reward, cost = jnp.asarray(random.random((2, batch_size)), jnp.float32)
    observation, following = jnp.asarray(random.normal(size=(2, batch_size, 3)), jnp.float32)
    action = jnp.tanh(jnp.asarray(random.normal(size=(batch_size, 2)), jnp.float32))
    batch = Transition(observation, action, reward, cost, *columns, following, {})
    example = jax.tree.map(lambda leaf: leaf[0], batch)
    state, other = (random_state(algorithm, example, seed) for seed in (0, 7))
    grown = jax.tree.map(lambda leaf: 20.0 * leaf, (other.target_critic, other.target_cost_critic))
    state = state._replace(target_critic=grown[0], target_cost_critic=grown[1])
    return algorithm, networks, state, batch


def next_values(networks, state, batch):
    action = networks.actor.apply(state.actor.params, batch.next_observation).sample(None)
    pair = (batch.next_observation, action)
    q = networks.critic.apply(state.target_critic, *pair).min(0)
    return np.asarray(q), np.asarray(networks.cost_critic.apply(state.target_cost_critic, *pair).max(0))


def loss_of(critic, params, batch, target):
    q = np.asarray(critic.apply(params, batch.observation, batch.action))
    return ((q - target) ** 2).mean(-1).sum()


def test_critic_losses_by_hand():
    """Masked by the largest target cost value; both critics stop at terminations and go on at truncations."""
    kappa = float(cost_value_limit(1.0, 0.9, 10))
    algorithm, networks, state, batch = prepared(cost_limit=0.3 / kappa)
    next_q, next_cost = next_values(networks, state, batch)
    _, metrics = jax.jit(algorithm.update)(state, batch, KEY)
    safe = next_cost <= 0.3
    assert 0 < safe.sum() < safe.size
    reward, discount = 0.5 * np.asarray(batch.reward), np.asarray(batch.discount)
    target = reward + 0.9 * discount * safe * next_q
    expected = loss_of(networks.critic, state.critic.params, batch, target)
    np.testing.assert_allclose(metrics["critic/loss"], expected, rtol=1e-4)
    cost_target = np.asarray(batch.cost) + 0.9 * discount * next_cost
    expected = loss_of(networks.cost_critic, state.cost_critic.params, batch, cost_target)
    np.testing.assert_allclose(metrics["cost_critic/loss"], expected, rtol=1e-4)
    through = np.asarray(batch.cost) + 0.9 * next_cost  # the released code bootstraps costs through terminations
    wrong = loss_of(networks.cost_critic, state.cost_critic.params, batch, through)
    assert abs(wrong - expected) > 1e-2 * expected


def test_a_huge_limit_is_plain_actor_critic():
    algorithm, networks, state, batch = prepared(cost_limit=1e9)
    after, metrics = jax.jit(algorithm.update)(state, batch, KEY)
    next_q, _ = next_values(networks, state, batch)
    target = 0.5 * np.asarray(batch.reward) + 0.9 * np.asarray(batch.discount) * next_q
    expected = loss_of(networks.critic, state.critic.params, batch, target)
    np.testing.assert_allclose(metrics["critic/loss"], expected, rtol=1e-4)
    assert metrics["actor/safe_share"] == 1.0

    def plain(params):
        action = networks.actor.apply(params, batch.observation).sample(None)
        return -jnp.mean(networks.critic.apply(after.critic.params, batch.observation, action).min(0))

    chex.assert_trees_all_close(
        after.actor.opt_state[0].mu,
        jax.tree.map(lambda gradient: 0.1 * gradient, jax.grad(plain)(state.actor.params)),
        rtol=1e-3,
        atol=1e-7,
    )


def test_the_actor_gets_no_gradient_where_no_action_is_safe():
    """Limit 0 and cost values above it: every term is masked."""
    algorithm, _, state, batch = prepared(cost_limit=0.0)
    params = jax.tree.map(jnp.zeros_like, state.cost_critic.params)
    params["params"]["MLP_0"]["Dense_1"]["bias"] += 5.0
    after, metrics = jax.jit(algorithm.update)(
        state._replace(cost_critic=state.cost_critic._replace(params=params)), batch, KEY
    )
    assert metrics["actor/safe_share"] == 0.0
    assert metrics["actor/loss"] == 0.0
    chex.assert_trees_all_equal(after.actor.params, state.actor.params)


def test_the_push_up_reaches_the_cost_critic():
    """In the released code it is computed without gradient and moves only its own weight."""
    numbers = dict(candidate_count=4, push_up_learning_rate=0.01, cost_limit=1.0)
    algorithm, _, state, batch = prepared(push_up=False, **numbers)
    idle, _ = jax.jit(algorithm.update)(state, batch, KEY)
    algorithm, _, state, batch = prepared(push_up=True, **numbers)
    pushed, metrics = jax.jit(algorithm.update)(state, batch, KEY)
    chex.assert_trees_all_equal(idle.vae, state.vae)
    assert float(idle.push_up_log_weight) == 0.0
    bias = [part.cost_critic.opt_state[0].mu["params"]["MLP_0"]["Dense_1"]["bias"] for part in (idle, pushed)]
    assert (bias[1] < bias[0]).any()  # minus its gradient: raising the value lowers the loss
    assert (bias[1] <= bias[0]).all()
    kappa = float(cost_value_limit(1.0, 0.9, 10))
    expected = 0.01 * (1.5 * kappa - float(metrics["cost_critic/outside"]))
    np.testing.assert_allclose(pushed.push_up_log_weight, expected, rtol=1e-4)


@pytest.mark.parametrize("share", [0.5, 0.75])
def test_the_quantile_decides_the_share_outside(share):
    """With a constant cost value v, the outside term is v times the share of candidates outside."""
    algorithm, _, state, batch = prepared(push_up=True, candidate_count=4, candidate_quantile=share)
    params = jax.tree.map(jnp.zeros_like, state.cost_critic.params)
    params["params"]["MLP_0"]["Dense_1"]["bias"] += 5.0
    state = state._replace(cost_critic=state.cost_critic._replace(params=params))
    # draws of FixedNoise are equal for all K, so ties may add a few
    _, metrics = jax.jit(algorithm.update)(state, batch, KEY)
    assert float(metrics["cost_critic/outside"]) == pytest.approx(5.0 * (1.0 - share), abs=0.2)
