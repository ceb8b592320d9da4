"""SAC-Lagrangian: targets and gradients of one update against an independent calculation.

Several of these would fail for the released code of Marvel (arXiv 2412.04426): it adds the batch mean of the
entropy to the critic targets, sends the actor's gradient through target critics and takes a time limit for a
termination.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_networks import FixedNoiseActor, random_state

from safejax.algorithms import sac_lag
from safejax.multipliers import MultiplierConfig
from safejax.networks import Critic, ensemble
from safejax.types import BatchSpec, EpisodeStats, Transition

KEY = jax.random.key(0)
ROWS = 32


def prepared(multiplier=0.0, log_std=-1.0, **numbers):
    """(algorithm, networks, state with targets of their own, batch with ends of both kinds)."""
    config = sac_lag.Config(discount_factor=0.9, reward_scale=0.5, initial_temperature=0.3, **numbers)
    networks = sac_lag.Networks(
        actor=FixedNoiseActor(2),
        critic=ensemble(Critic((8,)), 2),
        cost_critic=ensemble(Critic((8,)), 2),
    )
    algorithm = sac_lag.make(config, networks)
    random = np.random.default_rng(0)
    terminated = np.arange(ROWS) % 4 == 0
    last = np.arange(ROWS) % 2 == 0  # the other ends are truncations
    columns = [jnp.asarray(part, jnp.float32) for part in (1.0 - terminated, last)]
    reward, cost = jnp.asarray(random.random((2, ROWS)), jnp.float32)
    observation, following = jnp.asarray(random.normal(size=(2, ROWS, 3)), jnp.float32)
    action = jnp.tanh(jnp.asarray(random.normal(size=(ROWS, 2)), jnp.float32))
    batch = Transition(observation, action, reward, cost, *columns, following, {})
    example = jax.tree.map(lambda leaf: leaf[0], batch)

    state, other = (random_state(algorithm, example, seed) for seed in (0, 7))
    actor = state.actor.params | {"log_std": jnp.full(2, log_std)}
    temperature = state.log_temperature._replace(params=jnp.log(jnp.array(0.3, jnp.float32)))
    state = state._replace(
        actor=state.actor._replace(params=actor),
        log_temperature=temperature,
        target_critic=other.target_critic,
        target_cost_critic=other.target_cost_critic,
        multiplier=state.multiplier._replace(value=jnp.array(multiplier, jnp.float32)),
    )
    return algorithm, networks, state, batch


def loss_of(critic, params, batch, target):
    q = np.asarray(critic.apply(params, batch.observation, batch.action))
    return ((q - target) ** 2).mean(-1).sum()


@pytest.mark.parametrize("cost_coefficient", [0.0, 0.2])
def test_critic_losses_by_hand(cost_coefficient):
    algorithm, networks, state, batch = prepared(cost_entropy_coefficient=cost_coefficient)
    _, metrics = jax.jit(algorithm.update)(state, batch, KEY)
    policy = networks.actor.apply(state.actor.params, batch.next_observation)
    action, log_prob = (np.asarray(part) for part in policy.sample_and_log_prob(None))
    pair = (batch.next_observation, action)
    next_q = np.asarray(networks.critic.apply(state.target_critic, *pair)).min(0)
    next_cost = np.asarray(networks.cost_critic.apply(state.target_cost_critic, *pair)).max(0)
    reward, cost, discount = (
        0.5 * np.asarray(batch.reward),
        np.asarray(batch.cost),
        np.asarray(batch.discount),
    )

    def losses(log_prob, discount):
        target = reward + 0.9 * discount * (next_q - 0.3 * log_prob)
        cost_target = cost + 0.9 * discount * (next_cost - cost_coefficient * log_prob)
        return np.array(
            [
                loss_of(networks.critic, state.critic.params, batch, target),
                loss_of(networks.cost_critic, state.cost_critic.params, batch, cost_target),
            ]
        )

    expected = losses(log_prob, discount)
    np.testing.assert_allclose([metrics["critic/loss"], metrics["cost_critic/loss"]], expected, rtol=1e-4)
    # the data tells these apart
    batch_mean = losses(log_prob.mean(), discount)
    assert abs(batch_mean[0] / expected[0] - 1) > 1e-3
    truncation_terminates = losses(log_prob, 1.0 - np.asarray(batch.last))
    assert (abs(truncation_terminates / expected - 1) > 1e-2).all()


@pytest.mark.parametrize(("multiplier", "rescale"), [(0.0, True), (0.7, True), (0.7, False)])
def test_the_actor_gradient_is_that_of_its_objective(multiplier, rescale):
    """Of [-(min Q - lambda max Qc) / (1 + lambda) + alpha log pi] at the online critics; 0 is SAC's."""
    algorithm, networks, state, batch = prepared(multiplier=multiplier, rescale=rescale)
    after, metrics = jax.jit(algorithm.update)(state, batch, KEY)

    def gradient(critic, cost_critic):
        def loss(params):
            action, log_prob = networks.actor.apply(params, batch.observation).sample_and_log_prob(None)
            q = networks.critic.apply(critic, batch.observation, action).min(0)
            cost_q = networks.cost_critic.apply(cost_critic, batch.observation, action).max(0)
            scale = 1.0 + multiplier if rescale else 1.0
            return jnp.mean(0.3 * log_prob - (q - multiplier * cost_q) / scale)

        return jax.value_and_grad(loss)(state.actor.params)

    value, expected = gradient(after.critic.params, after.cost_critic.params)
    np.testing.assert_allclose(metrics["actor/loss"], value, rtol=1e-4)
    found = jax.tree.map(lambda mean: mean / 0.1, after.actor.opt_state[0].mu)  # Adam's first average
    chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=1e-6)
    _, through_targets = gradient(state.target_critic, state.target_cost_critic)
    assert not np.allclose(found["weights"], through_targets["weights"], rtol=0.1)


@pytest.mark.parametrize(("log_std", "sign"), [(-0.5, -1), (-6.0, 1)])
def test_the_temperature_moves_towards_the_target_entropy(log_std, sign):
    """Target -2 nats: a wide policy lowers the temperature, a narrow one raises it."""
    algorithm, _, state, batch = prepared(log_std=log_std)
    after, metrics = jax.jit(algorithm.update)(state, batch, KEY)
    assert np.sign(float(metrics["actor/entropy"]) + 2.0) == -sign
    assert np.sign(float(after.log_temperature.params - state.log_temperature.params)) == sign
    np.testing.assert_allclose(metrics["temperature"], 0.3, rtol=1e-5)


def test_a_fixed_temperature_stays():
    algorithm, _, state, batch = prepared(learn_temperature=False)
    after, _ = jax.jit(algorithm.update)(state, batch, KEY)
    chex.assert_trees_all_equal(after.log_temperature, state.log_temperature)


def test_targets_follow_and_the_multiplier_waits_for_episodes():
    algorithm, _, state, batch = prepared(multiplier=0.7, target_update_rate=0.25)
    after, metrics = jax.jit(algorithm.update)(state, batch, KEY)
    for target, online in (("target_critic", "critic"), ("target_cost_critic", "cost_critic")):
        expected = jax.tree.map(
            lambda slow, fast: 0.75 * slow + 0.25 * fast,
            getattr(state, target),
            getattr(after, online).params,
        )
        chex.assert_trees_all_close(getattr(after, target), expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(after.multiplier, state.multiplier)
    assert float(metrics["multiplier"]) == np.float32(0.7)


def test_the_multiplier_is_driven_by_the_limit_of_the_config():
    """Plain ascent: lambda = rate * (mean cost - limit), over finished episodes."""
    rule = MultiplierConfig(learning_rate=0.01, adam=False)
    algorithm = sac_lag.make(sac_lag.Config(cost_limit=12.0, multiplier=rule), action_size=2)
    _, _, state, _ = prepared()
    cost = jnp.array([30.0, 50.0, 1e6])
    episodes = EpisodeStats(cost, cost, jnp.ones(3, jnp.int32), jnp.array([True, True, False]))
    adapted = algorithm.adapt(state, episodes)
    np.testing.assert_allclose(adapted.multiplier.value, 0.01 * (40.0 - 12.0), rtol=1e-5)
    chex.assert_trees_all_equal(adapted._replace(multiplier=state.multiplier), state)


def test_the_batch_kind_follows_the_offline_share():
    assert sac_lag.make(action_size=2).batch == BatchSpec.uniform()
    assert sac_lag.make(sac_lag.Config(offline_fraction=0.5), action_size=2).batch == BatchSpec.mixed(0.5)
    with pytest.raises(ValueError, match="offline_fraction"):
        sac_lag.make(sac_lag.Config(offline_fraction=1.5), action_size=2)
