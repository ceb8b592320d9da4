"""World-model losses against hand arithmetic, closed forms and the golden numbers of the papers' equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safejax.losses import model


def test_symlog_and_symexp_are_inverse():
    values = jnp.array([-1e6, -3.0, -1e-3, 0.0, 0.5, 1e6])
    np.testing.assert_allclose(model.symexp(model.symlog(values)), values, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(model.symexp(jnp.float32(20.0)), 4.8516e8, rtol=1e-4)


def test_a_value_on_a_bin_is_one_hot_and_the_bins_are_evenly_spaced():
    spacing = 40 / 254
    np.testing.assert_allclose(spacing, 0.157480, atol=1e-6)
    weights = model.two_hot(model.symexp(jnp.array([0.0, spacing, -20.0])))
    np.testing.assert_allclose(weights[0], np.eye(255)[127], atol=1e-6)
    np.testing.assert_allclose(weights[1], np.eye(255)[128], atol=1e-4)
    np.testing.assert_allclose(weights[2], np.eye(255)[0], atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.floats(-1e8, 1e8, width=32))
def test_two_hot_weights_bring_the_value_back(value):
    weights = model.two_hot(jnp.float32(value))
    assert (weights > 1e-6).sum() <= 2
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-5)
    np.testing.assert_allclose(model.two_hot_mean(jnp.log(weights)), value, rtol=2e-4, atol=1e-4)


def test_values_out_of_range_count_as_the_outermost_bin():
    np.testing.assert_array_equal(model.two_hot(jnp.array([1e9, -1e12])), np.eye(255)[[254, 0]])


@pytest.mark.parametrize("logit", [0.0, 1.7, -30.0])
def test_equal_logits_stand_for_exactly_zero(logit):
    assert model.two_hot_mean(jnp.full(255, logit)) == 0.0
    assert jax.jit(model.two_hot_mean)(jnp.full(255, logit)) == 0.0


def test_the_two_hot_loss_of_a_certain_and_of_an_ignorant_head():
    certain = 50.0 * model.two_hot(jnp.float32(0.0))
    np.testing.assert_allclose(model.two_hot_loss(certain, jnp.float32(0.0)), 0.0, atol=1e-6)
    np.testing.assert_allclose(model.two_hot_loss(jnp.zeros(255), jnp.array([3.0, -9.0])), np.log(255), rtol=1e-6)


@pytest.mark.parametrize("expectile", [0.2, 0.5, 0.8])
def test_the_expectile_of_targets_on_two_bins(expectile):
    """Targets one bin apart, equally often: the least loss is where the upper one has the share `expectile`."""
    spacing = 40 / 254
    targets = jnp.array([0.0, model.symexp(jnp.float32(spacing))])

    def loss(share):
        bins = (1 - share) * jnp.eye(255)[127] + share * jnp.eye(255)[128]
        return jnp.mean(model.two_hot_expectile_loss(jnp.log(bins + 1e-12), targets, expectile))

    shares = np.linspace(0.02, 0.98, 97)
    losses = jax.vmap(loss)(jnp.asarray(shares))
    np.testing.assert_allclose(shares[losses.argmin()], expectile, atol=0.011)
    if expectile == 0.5:
        plain = jnp.mean(model.two_hot_loss(jnp.zeros(255), targets))
        np.testing.assert_allclose(
            jnp.mean(model.two_hot_expectile_loss(jnp.zeros(255), targets, 0.5)), 0.5 * plain, rtol=1e-6
        )


def test_pictures_by_hand():
    picture = jnp.array([[[0], [255]], [[51], [0]]], jnp.uint8)
    prediction = jnp.array([[[0.5], [1.0]], [[0.0], [0.0]]])
    np.testing.assert_allclose(model.picture_error(prediction, picture), 0.25 + 0.04, rtol=1e-6)
    with pytest.raises(AssertionError):
        model.picture_error(prediction[0], picture)


def test_vectors_are_compared_in_symlog_space():
    np.testing.assert_allclose(model.vector_error(jnp.array([0.0, 1.0]), jnp.array([np.e - 1, 0.0])), 2.0, rtol=1e-6)


POSTERIOR, PRIOR = jnp.array([[3.0, 0.0, 0.0]]), jnp.zeros((1, 3))


def test_kl_of_two_categoricals():
    np.testing.assert_allclose(model.categorical_kl(POSTERIOR, PRIOR), 0.7320184, rtol=1e-6)
    two = jnp.concatenate([POSTERIOR, POSTERIOR])
    np.testing.assert_allclose(model.categorical_kl(two, jnp.zeros((2, 3))), 2 * 0.7320184, rtol=1e-6)


def balanced(posterior, prior, free_nats):
    dynamics, representation = model.kl_balance(posterior, prior, free_nats)
    return 0.5 * dynamics + 0.1 * representation


def test_below_the_free_nats_nothing_moves():
    assert model.kl_balance(POSTERIOR, PRIOR) == (1.0, 1.0)
    for gradient in jax.grad(balanced, argnums=(0, 1))(POSTERIOR, PRIOR, 1.0):
        np.testing.assert_array_equal(gradient, 0.0)


def test_above_them_each_side_moves_by_its_own_loss():
    of_posterior, of_prior = jax.grad(balanced, argnums=(0, 1))(POSTERIOR, PRIOR, 0.0)
    np.testing.assert_allclose(of_posterior[0], [0.0247069, -0.01235345, -0.01235345], atol=1e-6)
    np.testing.assert_allclose(of_prior[0], [-0.2880548, 0.1440274, 0.1440274], atol=1e-6)
    dynamics = jax.grad(lambda p: model.kl_balance(p, PRIOR, 0.0)[0])(POSTERIOR)
    representation = jax.grad(lambda q: model.kl_balance(POSTERIOR, q, 0.0)[1])(PRIOR)
    np.testing.assert_array_equal(dynamics, 0.0)
    np.testing.assert_array_equal(representation, 0.0)


def test_costly_steps_weigh_more():
    np.testing.assert_array_equal(model.cost_weight(jnp.array([0.0, 0.9, 1.0, 3.0]), 10.0), [1.0, 1.0, 10.0, 10.0])


def returns(reward, discount, next_value, discount_factor=0.99, trace_decay=0.95):
    arrays = (jnp.asarray(each, jnp.float32) for each in (reward, discount, next_value))
    return model.lambda_return(*arrays, discount_factor=discount_factor, trace_decay=trace_decay)


def test_lambda_returns_by_hand():
    ones, zeros = np.ones(3), np.zeros(3)
    np.testing.assert_allclose(returns(ones, ones, zeros), [2.82504, 1.9405, 1.0], rtol=1e-5)
    # lambda 1: discounted sums and the last value; lambda 0: one step
    np.testing.assert_allclose(returns(ones, ones, [7.0, 8.0, 4.0], 0.5, 1.0), [2.25, 2.5, 3.0])
    np.testing.assert_allclose(returns(ones, ones, [7.0, 8.0, 4.0], 0.5, 0.0), [4.5, 5.0, 3.0])


def test_an_end_cuts_everything_behind_it():
    first = returns([1.0, 1.0, 5.0], [0.0, 1.0, 1.0], [9.0, 9.0, 9.0])
    np.testing.assert_allclose(first[0], 1.0)


def test_lambda_returns_are_batched_over_the_leading_axes():
    rng = np.random.default_rng(0)
    reward, discount, value = rng.normal(size=(3, 2, 5)).astype(np.float32)
    batched = returns(reward, discount, value)
    for row in range(2):
        expected = value[row, -1]
        for t in reversed(range(5)):
            ahead = 0.05 * value[row, t] + 0.95 * expected
            expected = reward[row, t] + 0.99 * discount[row, t] * ahead
            np.testing.assert_allclose(batched[row, t], expected, rtol=1e-4, atol=1e-5)
