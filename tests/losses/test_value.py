"""Targets and losses of values against hand arithmetic, closed forms and a plain loop."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safejax.losses.value import expectile_loss, generalized_advantage, squared_error, td_target


def test_td_target_by_hand():
    reward, discount = jnp.array([1.0, 1.0, -2.0]), jnp.array([1.0, 0.0, 1.0])
    target = td_target(reward, discount, jnp.array([10.0, 10.0, 4.0]), 0.9)
    np.testing.assert_allclose(target, [10.0, 1.0, 1.6], rtol=1e-6)


def test_td_target_broadcasts_an_ensemble_and_refuses_other_shapes():
    target = td_target(jnp.ones(3), jnp.ones(3), jnp.arange(6.0).reshape(2, 3), 0.5)
    np.testing.assert_allclose(target, [[1.0, 1.5, 2.0], [2.5, 3.0, 3.5]])
    with pytest.raises(AssertionError):
        td_target(jnp.ones(3), jnp.ones((3, 1)), jnp.ones(3), 0.5)


def test_squared_error_over_an_ensemble():
    error = squared_error(jnp.array([[1.0, 2.0], [3.0, 5.0]]), jnp.array([0.0, 2.0]))
    np.testing.assert_allclose(error, [[1.0, 0.0], [9.0, 9.0]])


def test_the_middle_expectile_is_half_the_squared_error():
    predictions, targets = jnp.array([0.0, 3.0, -1.0]), jnp.array([2.0, 1.0, -1.0])
    np.testing.assert_allclose(expectile_loss(predictions, targets, 0.5), [2.0, 2.0, 0.0])


def test_a_large_expectile_punishes_underestimates():
    zero = jnp.zeros(2)
    np.testing.assert_allclose(expectile_loss(zero, jnp.array([2.0, -2.0]), 0.9), [3.6, 0.4], rtol=1e-6)


@given(st.floats(-10, 10), st.floats(0.01, 0.99))
@settings(max_examples=30, deadline=None)
def test_the_expectile_mirrors(difference, expectile):
    """L(u; tau) = L(-u; 1 - tau)."""
    zero = np.zeros((), np.float32)
    up = expectile_loss(zero, np.float32(difference), expectile)
    down = expectile_loss(zero, np.float32(-difference), 1.0 - expectile)
    np.testing.assert_allclose(up, down, rtol=1e-5)


@pytest.mark.parametrize("expectile", [0.1, 0.5, 0.7, 0.9])
def test_the_expectile_of_a_coin_is_its_number(expectile):
    """For targets {0, 1} the loss is stationary at tau, and nowhere near it."""
    coin = jnp.array([0.0, 1.0])

    def slope(value):
        return jax.grad(lambda v: jnp.mean(expectile_loss(jnp.full(2, v), coin, expectile)))(value)

    np.testing.assert_allclose(slope(expectile), 0.0, atol=1e-6)
    assert slope(expectile - 0.05) < -1e-3
    assert slope(expectile + 0.05) > 1e-3


def test_expectile_loss_refuses_broadcasting():
    with pytest.raises(AssertionError):
        expectile_loss(jnp.ones((4, 1)), jnp.ones(4), 0.7)


def advantages_by_hand(reward, value, next_value, discount, last, factor, decay):
    """The definition, backwards, one number at a time."""
    found, following = np.zeros(len(reward)), 0.0
    for t in reversed(range(len(reward))):
        error = reward[t] + (factor * next_value[t] if discount[t] else 0.0) - value[t]
        following = error if last[t] else error + factor * decay * following
        found[t] = following
    return found


def test_advantages_cut_at_a_truncation_and_stop_at_a_termination():
    random = np.random.default_rng(0)
    reward, value, next_value = random.normal(size=(3, 8)).astype(np.float32)
    discount = np.array([1, 1, 1, 1, 1, 0, 1, 1], np.float32)  # step 5 terminates
    last = np.array([0, 0, 1, 0, 0, 1, 0, 0], np.float32)  # step 2 is truncated; step 7 ends the rollout only
    columns = (reward, value, next_value, discount, last)
    found = generalized_advantage(*columns, discount_factor=0.9, trace_decay=0.8)
    np.testing.assert_allclose(found, advantages_by_hand(*columns, 0.9, 0.8), rtol=1e-5)
    # the truncated step bootstraps, and nothing of the next episode reaches it
    np.testing.assert_allclose(found[2], reward[2] + 0.9 * next_value[2] - value[2], rtol=1e-5)
    np.testing.assert_allclose(found[5], reward[5] - value[5], rtol=1e-5)
    as_terminal = advantages_by_hand(reward, value, next_value, 1.0 - last, last, 0.9, 0.8)
    assert abs(found[2] - as_terminal[2]) > 0.1


def test_advantages_know_their_two_limits():
    """Trace decay 0 gives one-step errors; 1 in one episode gives the discounted return minus the value."""
    random = np.random.default_rng(1)
    reward, value = random.normal(size=(2, 5)).astype(np.float32)
    next_value = np.append(value[1:], np.float32(3.0))
    one, none = np.ones(5, np.float32), np.zeros(5, np.float32)
    step = generalized_advantage(reward, value, next_value, one, none, discount_factor=0.9, trace_decay=0.0)
    np.testing.assert_allclose(step, reward + 0.9 * next_value - value, rtol=1e-5)
    whole = generalized_advantage(reward, value, next_value, one, none, discount_factor=0.9, trace_decay=1.0)
    returns = [sum(0.9 ** (k - t) * reward[k] for k in range(t, 5)) + 0.9 ** (5 - t) * 3.0 for t in range(5)]
    np.testing.assert_allclose(whole + value, returns, rtol=1e-5)


def test_advantages_keep_leading_axes():
    random = np.random.default_rng(2)
    columns = [jnp.asarray(random.random((2, 3, 4)) > 0.3, jnp.float32) for _ in range(5)]
    together = generalized_advantage(*columns, discount_factor=0.9, trace_decay=0.8)
    alone = generalized_advantage(*(part[1, 2] for part in columns), discount_factor=0.9, trace_decay=0.8)
    chex.assert_shape(together, (2, 3, 4))
    np.testing.assert_allclose(together[1, 2], alone, rtol=1e-6)
