"""Imagination against hand arithmetic, and where its gradients may go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_networks import StateTable

from safejax.algorithms import imagination, world_models
from safejax.algorithms.imagination import Dream, Scale, Targets
from safejax.gradients import train_state
from safejax.losses.model import BINS, two_hot_mean
from safejax.networks.world_model import world_model

CONFIG = world_models.Config(discount_factor=0.9, trace_decay=0.95, learning_rate=1e-2)
MODEL = world_model((2, 4, 3, 4, 8), bins=BINS)
N, H = 6, 3


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 5)), jnp.zeros((1, 2)))


def dream_of(params, weights, key=0):
    policy = lambda features, key: features @ weights + 0.1 * jax.random.normal(key, (N, 2))  # noqa: E731
    start = MODEL.initial(params, (N,))
    return imagination.imagine(MODEL, params, start, policy, jax.random.key(key), H)


def test_a_dream_is_the_models_own_steps(params):
    weights = jnp.full((16, 2), 0.1)
    dream = jax.jit(dream_of)(params, weights)
    assert dream.features.shape == (N, H + 1, 16)
    assert dream.action.shape == (N, H, 2)
    np.testing.assert_array_equal(dream.features[:, 0], MODEL.initial(params, (N,)).features)
    np.testing.assert_array_equal(dream.going_on[:, 0], 1.0)
    expected = jax.nn.sigmoid(MODEL.read(params, "going_on", dream.features)[:, 1:, 0])
    np.testing.assert_allclose(dream.going_on[:, 1:], expected, rtol=1e-5)
    np.testing.assert_allclose(dream.cost, two_hot_mean(MODEL.read(params, "cost", dream.features)), rtol=1e-4)
    # the memory of a state is what the state before it and the action make
    code = dream.features[:, 0, 4:].reshape(N, 3, 4)
    before = MODEL.initial(params, (N,))._replace(memory=dream.features[:, 0, :4], code=code)
    after = MODEL.remember(params, before, dream.action[:, 0])
    np.testing.assert_allclose(dream.features[:, 1, :4], after, rtol=1e-5, atol=1e-6)


def test_draws_are_kept_and_their_bounded_form_is_played(params):
    dream = jax.jit(dream_of)(params, jnp.full((16, 2), 3.0))
    assert float(jnp.abs(dream.drawn).max()) > 1.0
    np.testing.assert_allclose(dream.action, jnp.clip(dream.drawn, -1.0, 1.0), rtol=1e-6)
    before = MODEL.initial(params, (N,))._replace(
        memory=dream.features[:, 0, :4], code=dream.features[:, 0, 4:].reshape(N, 3, 4)
    )
    np.testing.assert_allclose(
        dream.features[:, 1, :4], MODEL.remember(params, before, dream.action[:, 0]), rtol=1e-5, atol=1e-6
    )


def test_costs_reach_the_policy_through_the_dynamics_and_weights_do_not(params):
    def total(weights, what):
        dream = dream_of(params, weights)
        return {"cost": dream.cost[:, 1:].sum(), "weight": dream.weight(0.9).sum()}[what]

    gradient = jax.jit(jax.grad(total), static_argnums=1)
    assert jnp.abs(gradient(jnp.full((16, 2), 0.1), "cost")).max() > 0.0
    np.testing.assert_array_equal(gradient(jnp.full((16, 2), 0.1), "weight"), 0.0)


def test_steps_weigh_by_the_discounts_of_the_states_before():
    going_on = jnp.array([[1.0, 0.5, 1.0, 0.3]])
    dream = Dream(jnp.zeros((1, 4, 1)), jnp.zeros((1, 3, 1)), jnp.zeros((1, 3, 1)), going_on, going_on, going_on)
    np.testing.assert_allclose(dream.weight(0.9), [[1.0, 0.45, 0.405]], rtol=1e-6)


def test_returns_count_what_is_predicted_on_arrival():
    """Rewards (-, 1, 1, 1), gamma .99, lambda .95, no values: 1, 1.9405 and 2.82504 from the end; then an end at 2."""
    config = world_models.Config(discount_factor=0.99)
    signal, ones, zeros = jnp.array([[50.0, 1.0, 1.0, 1.0]]), jnp.ones((1, 4)), jnp.zeros((1, 4))
    found = imagination.returns(signal, ones, zeros, config=config)
    np.testing.assert_allclose(found, [[2.82504, 1.9405, 1.0]], rtol=1e-5)
    ending = imagination.returns(signal, ones.at[0, 2].set(0.0), 7.0 * ones, config=config)
    np.testing.assert_allclose(ending[0, 1], 1.0)
    np.testing.assert_allclose(ending[0, 2], 1.0 + 0.99 * 7.0, rtol=1e-6)


def test_actions_are_bounded_and_keep_a_gradient():
    actions = jnp.array([0.5, -3.0, 1.0])
    np.testing.assert_allclose(imagination.bounded(actions), [0.5, -1.0, 1.0])
    slopes = jax.grad(lambda action: imagination.bounded(action).sum())(actions)
    np.testing.assert_allclose(slopes, [1.0, 1 / 3, 1.0], rtol=1e-6)


def test_the_scale_follows_slowly_and_is_never_below_one():
    scale = imagination.no_scale()
    for _ in range(4):
        scale = imagination.follow(scale, jnp.full((3, 5), 7.0), 0.99)
    np.testing.assert_allclose([scale.low, scale.high], 7.0 * (1 - 0.99**4), rtol=1e-5)
    assert scale.spread == 1.0
    np.testing.assert_allclose(imagination.follow(scale, jnp.linspace(0.0, 100.0, 101), 0.0), [5.0, 95.0], rtol=1e-5)
    assert Scale(jnp.float32(-2.0), jnp.float32(3.0)).spread == 5.0


def test_of_each_source_the_mean_counts():
    one = Targets((jnp.ones((2, 3, 4)),), jnp.arange(6.0).reshape(2, 3), jnp.full((2, 3), 0.5))
    other = Targets((jnp.zeros((1, 2, 4)),), jnp.array([[10.0, 20.0]]), jnp.ones((1, 2)))
    joined = imagination.join(one, other)
    assert joined.inputs[0].shape == (8, 4)
    np.testing.assert_allclose(jnp.sum(joined.weight * joined.value), 0.5 * 2.5 + 15.0, rtol=1e-6)


def test_values_regress_on_their_targets_and_on_their_slow_copy():
    """A table of logits a state: the head's value goes to the target, and stays where the slow copy holds it."""

    class Logits(StateTable):
        def apply(self, params, observation):
            return observation @ params

    network, states = Logits(2), jnp.eye(2)
    targets = imagination.join(Targets((states,), jnp.array([3.0, -1.0]), jnp.ones(2)))
    zeros = jnp.zeros((2, BINS))

    def settled(slow_coefficient):
        config = world_models.Config(learning_rate=0.1, slow_coefficient=slow_coefficient, target_update_rate=0.0)

        def step(state, _):
            state, slow, _ = imagination.regress(state, zeros, targets, network=network, config=config, name="critic")
            return state, slow

        start = train_state(zeros, world_models.optimizer(config))
        state, slow = jax.jit(lambda state: jax.lax.scan(step, state, None, 300))(start)
        np.testing.assert_array_equal(slow[-1], zeros)
        return imagination.value(network, state.params, states)

    np.testing.assert_allclose(settled(0.0), [3.0, -1.0], atol=0.05)
    held = settled(1.0)  # half way in symlog space
    np.testing.assert_allclose(held, [np.expm1(np.log(4) / 2), -np.expm1(np.log(2) / 2)], atol=0.05)


def test_the_constraint_counts_the_share_of_every_state():
    cost = jnp.array([[1.0, 2.0], [3.0, 6.0]])
    share = jnp.array([[1.0, 0.0], [0.5, 0.5]])
    summed = world_models.Config()
    averaged = world_models.Config(pessimistic=False)
    assert imagination.constrained_cost(cost, share, config=summed) == (1.0 + 4.5) / 2
    assert imagination.constrained_cost(cost, share, config=averaged) == (1.0 + 4.5) / 4
    assert imagination.constrained_cost(100 * cost, jnp.zeros((2, 2)), config=summed) == 0.0
