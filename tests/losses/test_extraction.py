"""Extraction rules, alignment's dual and the values beneath them, against closed forms, quadrature and known limits.

The bandit: Q = (0, 1, 2) under the data's shares mu = (.5, .3, .2). Its numbers were solved to six digits elsewhere.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from safejax.losses.extraction import (
    alignment_alpha,
    alignment_dual,
    alignment_dual_logsumexp,
    expectile_log_weight,
    exponential_log_weight,
    hard_alignment_log_weight,
    quantile_log_weight,
    soft_alignment_log_weight,
)
from safejax.losses.policy import advantage_weight
from safejax.losses.value import expectile_loss, exponential_loss, quantile_loss

Q = np.array([0.0, 1.0, 2.0])
MU = np.array([0.5, 0.3, 0.2])
ROWS = np.repeat(Q, [5, 3, 2]).astype(np.float32)  # the data, each share exact: means over rows are means under mu

TABLE = pytest.mark.parametrize(
    ("expectile", "value", "beta", "alpha", "hard", "hard_kl", "idql", "idql_kl"),
    [
        (0.5, 0.7, 0.0, -1.0, (0.5, 0.3, 0.2), 0.0, (0.5, 0.3, 0.2), 0.0),
        (0.6, 0.84, -0.219949, -0.830836, (0.422185, 0.315629, 0.262185), 0.015594, (0.4, 0.36, 0.24), 0.020136),
        (0.7, 0.98, -0.428654, -0.640985, (0.349182, 0.321636, 0.329182), 0.061066, (0.3, 0.42, 0.28), 0.082283),
        (0.8, 1.1875, -0.738312, -0.305180, (0.249582, 0.313336, 0.437082), 0.181926, (0.3125, 0.1875, 0.5), 0.223144),
        (
            0.9,
            1.5,
            -1.278,
            0.423993,
            (0.120375, 0.259249, 0.620375),
            0.493007,
            (0.192308, 0.115385, 0.692308),
            0.565644,
        ),
    ],
)


def policy_of(log_weight, behavior=MU):
    """pi ~ mu w."""
    return np.asarray(jax.nn.softmax(jnp.log(jnp.asarray(behavior)) + log_weight), np.float64)


def kl(policy, behavior=MU):
    return np.sum(policy * np.log(policy / behavior))


@TABLE
def test_the_expectile_of_the_bandit(expectile, value, beta, alpha, hard, hard_kl, idql, idql_kl):
    slope = jax.grad(lambda v: jnp.mean(expectile_loss(jnp.full(10, v), ROWS, expectile)))
    np.testing.assert_allclose(slope(value), 0.0, atol=1e-6)
    assert slope(value - 0.01) < -1e-3 < 1e-3 < slope(value + 0.01)


@TABLE
def test_idql_is_aligned_for_the_exact_value_and_no_other(expectile, value, beta, alpha, hard, hard_kl, idql, idql_kl):
    policy = policy_of(expectile_log_weight(Q - value, expectile))
    np.testing.assert_allclose(policy, idql, atol=1e-6)
    np.testing.assert_allclose(kl(policy), idql_kl, atol=2e-6)
    np.testing.assert_allclose(policy @ Q, value, atol=1e-6)
    elsewhere = policy_of(expectile_log_weight(Q - (value + 0.1), expectile))
    assert abs(elsewhere @ Q - (value + 0.1)) > 0.04


@TABLE
def test_hard_alignment_of_the_bandit(expectile, value, beta, alpha, hard, hard_kl, idql, idql_kl):
    """The multipliers are stationary, the policy is aligned, the nearest such one, and -KL is the dual's value."""
    beta = jnp.float32(beta)
    policy = policy_of(hard_alignment_log_weight(Q, beta))
    np.testing.assert_allclose(policy, hard, atol=1e-6)
    np.testing.assert_allclose(policy @ Q, value, atol=2e-6)
    np.testing.assert_allclose(kl(policy), hard_kl, atol=2e-6)
    assert kl(policy) <= idql_kl + 2e-6
    np.testing.assert_allclose(alignment_alpha(beta, ROWS), alpha, atol=2e-6)

    def sample_dual(alpha, beta):
        ones = jnp.ones(10)
        return jnp.mean(alignment_dual(alpha * ones, beta * ones, ROWS, value * ones))

    def logsumexp_dual(beta):
        return alignment_dual_logsumexp(beta, ROWS, jnp.float32(value))

    np.testing.assert_allclose(sample_dual(alpha, beta), -hard_kl, atol=2e-6)
    np.testing.assert_allclose(logsumexp_dual(beta), -hard_kl, atol=2e-6)
    np.testing.assert_allclose(jax.grad(sample_dual, argnums=(0, 1))(alpha, beta), 0.0, atol=3e-6)
    np.testing.assert_allclose(jax.grad(logsumexp_dual)(beta), 0.0, atol=3e-6)


def test_hard_alignment_holds_for_a_value_that_no_regression_has():
    """V = 1.08, a tenth above the expectile: the dual's stationary point, found by bisection, is aligned with it."""
    slope = jax.jit(jax.grad(lambda beta: alignment_dual_logsumexp(beta, ROWS, jnp.float32(1.08))))
    low, high = -5.0, 5.0
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    np.testing.assert_allclose(policy_of(hard_alignment_log_weight(Q, middle)) @ Q, 1.08, atol=1e-5)


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (-0.7, 0.4), (1.3, -2.0)])
def test_gradients_of_the_duals(alpha, beta):
    """dD/dalpha = 1 - E w and dD/dbeta = V - E[w Q], w = exp(-1 - alpha - beta Q); without alpha, w normalised."""
    value = 0.98
    weight = np.exp(-1.0 - alpha - beta * Q)
    found = jax.grad(
        lambda alpha, beta: jnp.mean(
            alignment_dual(jnp.full(10, alpha), jnp.full(10, beta), ROWS, jnp.full(10, value))
        ),
        argnums=(0, 1),
    )(alpha, beta)
    np.testing.assert_allclose(found, [1.0 - MU @ weight, value - MU @ (weight * Q)], rtol=1e-5, atol=1e-6)
    found = jax.grad(lambda beta: alignment_dual_logsumexp(beta, ROWS, jnp.float32(value)))(beta)
    np.testing.assert_allclose(found, value - MU @ (weight * Q) / (MU @ weight), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("beta", [-1.5, 0.0, 0.8])
def test_eliminating_alpha_leaves_the_log_sum_exp(beta):
    """At the normalising alpha both duals agree, in value and in slope."""
    beta, value = jnp.float32(beta), jnp.float32(0.98)

    def eliminated(beta):
        alpha = alignment_alpha(beta, ROWS)
        return jnp.mean(alignment_dual(jnp.full(10, alpha), jnp.full(10, beta), ROWS, jnp.full(10, value)))

    def logsumexp(beta):
        return alignment_dual_logsumexp(beta, ROWS, value)

    np.testing.assert_allclose(eliminated(beta), logsumexp(beta), atol=1e-6)
    np.testing.assert_allclose(jax.grad(eliminated)(beta), jax.grad(logsumexp)(beta), atol=1e-6)


def test_one_sample_has_no_floor_and_the_log_sum_exp_has_one_between_its_values():
    """With one action of value 1 and V = 1.2, alpha = -1 - beta Q gives beta (V - Q), down without end."""
    beta = -jnp.array([1.0, 10.0, 100.0])
    one = jnp.ones(3)
    np.testing.assert_allclose(alignment_dual(-1.0 - beta, beta, one, 1.2 * one), 1.0 - 1.0 + 0.2 * beta, rtol=1e-5)
    np.testing.assert_allclose(alignment_dual_logsumexp(beta, one[None], 1.2 * one), 0.2 * beta, rtol=1e-5)

    far = jnp.array([-1e4, -1e2, 1e2, 1e4])
    between = alignment_dual_logsumexp(far, jnp.tile(ROWS[:, None], 4), jnp.full(4, 1.2))
    assert np.all(between > 10.0)
    beyond = alignment_dual_logsumexp(far, jnp.tile(ROWS[:, None], 4), jnp.full(4, 2.1))
    assert beyond[0] < -900.0


def test_two_actions_in_closed_form():
    """Q = (0, 1), mu even: pi(1) = V, beta = -log(V / (1 - V)), alpha = -1 - log(2 (1 - V))."""
    value, even = 0.7, np.array([0.5, 0.5])
    beta, alpha = -np.log(value / (1.0 - value)), -1.0 - np.log(2.0 * (1.0 - value))
    np.testing.assert_allclose((beta, alpha), (-0.847298, -0.489174), atol=1e-6)
    np.testing.assert_allclose(policy_of(hard_alignment_log_weight(Q[:2], beta), even), [0.3, 0.7], atol=1e-6)
    rows = jnp.array([0.0, 1.0])
    np.testing.assert_allclose(alignment_alpha(jnp.float32(beta), rows), alpha, atol=1e-6)
    slope = jax.grad(lambda beta: alignment_dual_logsumexp(beta, rows, jnp.float32(value)))(beta)
    np.testing.assert_allclose(slope, 0.0, atol=1e-6)


def test_the_aligned_value_falls_with_beta_by_its_variance():
    """d E_pi Q / d beta = -Var_pi Q; E_pi Q runs from max Q to min Q."""

    def mean(beta):
        return jax.nn.softmax(jnp.log(jnp.asarray(MU)) + hard_alignment_log_weight(jnp.asarray(Q), beta)) @ Q

    for beta in (-2.0, -0.4, 0.0, 1.5):
        policy = policy_of(hard_alignment_log_weight(Q, beta))
        variance = policy @ Q**2 - (policy @ Q) ** 2
        np.testing.assert_allclose(jax.grad(mean)(beta), -variance, rtol=1e-4)
    np.testing.assert_allclose([mean(-50.0), mean(50.0)], [2.0, 0.0], atol=1e-6)


def test_a_linear_q_under_gaussian_data():
    """mu = N(0, 1), Q = a, V = .8: hard N(V, 1), soft (eta .5) N(.4, .5), AWR (b .7) N(.7, 1); by quadrature."""
    grid = np.linspace(-9.0, 9.0, 4001)
    data, value = stats.norm.pdf(grid), 0.8
    data /= data.sum()

    def moments(weight):
        density = data * np.asarray(weight, np.float64)
        density /= density.sum()
        mean = density @ grid
        return mean, density @ (grid - mean) ** 2

    np.testing.assert_allclose(moments(jnp.exp(hard_alignment_log_weight(grid, -value))), (0.8, 1.0), atol=1e-4)
    np.testing.assert_allclose(moments(jnp.exp(soft_alignment_log_weight(grid - value, 0.5))), (0.4, 0.5), atol=1e-4)
    np.testing.assert_allclose(moments(advantage_weight(grid - value, 0.7, 1e9)), (0.7, 1.0), atol=1e-4)

    # alpha = -beta m + beta^2 s^2 / 2 - 1, over equal quantiles of mu
    rows = jnp.asarray(stats.norm.ppf((np.arange(20000) + 0.5) / 20000), jnp.float32)
    np.testing.assert_allclose(alignment_alpha(jnp.float32(-value), rows), 0.5 * value**2 - 1.0, atol=1e-3)
    slope = jax.grad(lambda beta: alignment_dual_logsumexp(beta, rows, jnp.float32(value)))(-value)
    np.testing.assert_allclose(slope, 0.0, atol=1e-3)


def test_shifts_and_scales_of_the_values():
    """(Q + c, V + c): beta same, alpha - beta c; (kQ, kV): beta / k, eta / k^2; policies same."""
    beta, alpha, value, shift, factor, penalty = -0.428654, -0.640985, 0.98, 3.0, 2.0, 0.8
    np.testing.assert_allclose(alignment_alpha(jnp.float32(beta), ROWS + shift), alpha - beta * shift, atol=1e-5)
    slope = jax.grad(lambda beta: alignment_dual_logsumexp(beta, factor * ROWS, jnp.float32(factor * value)))
    np.testing.assert_allclose(slope(beta / factor), 0.0, atol=1e-5)
    hard = policy_of(hard_alignment_log_weight(Q, beta))
    soft = policy_of(soft_alignment_log_weight(Q - value, penalty))
    np.testing.assert_allclose(policy_of(hard_alignment_log_weight(Q + shift, beta)), hard, atol=1e-6)
    np.testing.assert_allclose(policy_of(hard_alignment_log_weight(factor * Q, beta / factor)), hard, atol=1e-6)
    moved = soft_alignment_log_weight(factor * (Q - value), penalty / factor**2)
    np.testing.assert_allclose(policy_of(moved), soft, atol=1e-6)


def test_soft_alignment_of_equal_candidates():
    """V = .98, eta 1: what softmax gives, and what the released code's -(Q - V)^2 / sum gives in its place."""
    weight = soft_alignment_log_weight(jnp.asarray(Q) - 0.98, 1.0)
    right = jax.nn.softmax(weight)
    np.testing.assert_allclose(right, [0.220516, 0.575922, 0.203562], atol=1e-6)
    released = weight / weight.sum()
    np.testing.assert_allclose(released, [0.479912, 0.000200, 0.519888], atol=1e-6)
    assert int(jnp.argmax(right)) == int(jnp.argmin(released)) == 1
    hard = jax.nn.softmax(hard_alignment_log_weight(jnp.asarray(Q), -0.428654))
    np.testing.assert_allclose(hard, [0.204415, 0.313817, 0.481768], atol=1e-6)


def test_limits_of_soft_alignment():
    np.testing.assert_allclose(policy_of(soft_alignment_log_weight(Q - 0.98, 0.0)), MU, atol=1e-6)  # the data
    np.testing.assert_allclose(policy_of(soft_alignment_log_weight(Q - 0.98, 1e4)), [0.0, 1.0, 0.0], atol=1e-6)
    spread = jnp.linspace(-3.0, 3.0, 13)
    weight = jnp.exp(soft_alignment_log_weight(spread, 2.0))
    np.testing.assert_allclose(weight, weight[::-1], rtol=1e-6)  # blind to the sign of the advantage
    assert float(weight[6]) == 1.0
    assert np.all((weight > 0.0) & (weight <= 1.0))


@pytest.mark.parametrize(("penalty", "beta", "mean"), [(1.0, -0.245816, 0.857092), (10.0, -0.399196, 0.960040)])
def test_penalising_the_gap_of_the_means_bends_towards_hard_alignment(penalty, beta, mean):
    """eta (E_pi Q - V)^2 gives the hard form with beta = 2 eta (E_pi Q - V), a fixed point; V = .98."""
    found = policy_of(hard_alignment_log_weight(Q, beta)) @ Q
    np.testing.assert_allclose(found, mean, atol=2e-6)
    np.testing.assert_allclose(2.0 * penalty * (found - 0.98), beta, atol=3e-5)


def test_quantile_weights_align_with_a_quantile():
    """P(Q < V) = tau: E[mu w (Q - V)] = 0 for every V in the gap; by the signed advantage it would be negative."""
    behavior = np.array([0.5, 0.1, 0.4])
    for value in (1.2, 1.7):
        weight = jnp.exp(quantile_log_weight(jnp.asarray(Q) - value, 0.6))
        expected = np.where(value > Q, 0.4, 0.6) / np.abs(Q - value)
        np.testing.assert_allclose(weight, expected, rtol=1e-5)
        policy = policy_of(quantile_log_weight(Q - value, 0.6), behavior)
        np.testing.assert_allclose(policy @ Q, value, atol=1e-5)
    at_the_atom = quantile_log_weight(jnp.zeros(()), 0.6)
    np.testing.assert_allclose(at_the_atom, np.log(0.6e6), rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_exponential_weights_align_with_the_soft_maximum(temperature):
    value = np.log(MU @ np.exp(temperature * Q)) / temperature
    advantage = Q - value
    weight = temperature * np.abs(np.exp(temperature * advantage) - 1.0) / np.abs(advantage)
    np.testing.assert_allclose(exponential_log_weight(advantage, temperature), np.log(weight), atol=1e-5)
    np.testing.assert_allclose(policy_of(exponential_log_weight(advantage, temperature)) @ Q, value, atol=1e-5)


def test_exponential_weights_far_out_and_at_zero():
    """No overflow; log alpha^2 at A = 0, slope alpha / 2 there; about alpha / |A| far below."""
    weight = jax.vmap(lambda advantage: exponential_log_weight(advantage, 2.0))
    far = weight(jnp.array([-1e4, 1e4]))
    np.testing.assert_allclose(far, [np.log(2.0 / 1e4), 2e4 + np.log(2.0 / 1e4)], rtol=1e-6)
    near = jnp.array([-6e-5, -4e-5, 0.0, 4e-5, 6e-5])  # on both sides of the switch to the series, 5e-5
    np.testing.assert_allclose(weight(near), np.log(4.0) + near, atol=1e-6)
    slopes = jax.vmap(jax.grad(lambda advantage: exponential_log_weight(advantage, 2.0)))
    np.testing.assert_allclose(slopes(jnp.array([0.0, 4e-5])), 1.0, atol=1e-3)
    assert np.all(np.isfinite(slopes(jnp.array([-1e4, -1.0, 1.0, 1e4]))))


def test_duals_refuse_broadcasting():
    with pytest.raises(AssertionError):
        alignment_dual(jnp.zeros((4, 1)), jnp.zeros(4), jnp.zeros(4), jnp.zeros(4))
    with pytest.raises(AssertionError):
        alignment_dual_logsumexp(jnp.zeros((4, 1)), jnp.zeros((8, 4)), jnp.zeros(4))
    chosen = alignment_dual_logsumexp(jnp.zeros((2, 4)), jnp.zeros((8, 2, 4)), jnp.zeros((2, 4)))
    np.testing.assert_allclose(chosen, np.zeros((2, 4)), atol=1e-6)


@pytest.mark.parametrize(
    ("expectile", "uniform", "normal"),
    [(0.7, 0.604356, 0.33712), (0.8, 2 / 3, 0.54916), (0.9, 0.75, 0.86159), (0.95, 0.813395, 1.14017)],
)
def test_expectiles_of_known_laws(expectile, uniform, normal):
    """Uniform(0, 1) has sqrt(t) / (sqrt(t) + sqrt(1 - t)); both by their quantiles as data."""
    levels = (np.arange(20000) + 0.5) / 20000
    closed = np.sqrt(expectile) / (np.sqrt(expectile) + np.sqrt(1.0 - expectile))
    np.testing.assert_allclose(uniform, closed, atol=1e-6)
    for value, rows in ((uniform, levels), (normal, stats.norm.ppf(levels))):
        rows = jnp.asarray(rows, jnp.float32)
        slope = jax.grad(lambda v, rows=rows: jnp.mean(expectile_loss(jnp.full(rows.shape, v), rows, expectile)))
        np.testing.assert_allclose(slope(value), 0.0, atol=1e-4)
        assert slope(value - 0.01) < -1e-3 < 1e-3 < slope(value + 0.01)


def test_quantile_loss_by_hand_and_at_its_minimum():
    np.testing.assert_allclose(
        quantile_loss(jnp.zeros(3), jnp.array([2.0, -2.0, 0.0]), 0.9), [1.8, 0.2, 0.0], rtol=1e-5
    )
    slope = jax.grad(lambda v: jnp.mean(quantile_loss(jnp.full(10, v), ROWS, 0.6)))
    # P(Q < V) (1 - tau) - P(Q > V) tau: it changes its sign at the atom 1, the .6 quantile
    np.testing.assert_allclose([slope(0.5), slope(1.5)], [0.5 * 0.4 - 0.5 * 0.6, 0.8 * 0.4 - 0.2 * 0.6], atol=1e-6)
    with pytest.raises(AssertionError):
        quantile_loss(jnp.zeros((4, 1)), jnp.zeros(4), 0.6)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_exponential_loss_is_least_at_the_soft_maximum(temperature):
    value = np.log(MU @ np.exp(temperature * Q)) / temperature
    slope = jax.grad(lambda v: jnp.mean(exponential_loss(jnp.full(10, v), ROWS, temperature)))
    np.testing.assert_allclose(slope(value), 0.0, atol=1e-6)
    assert slope(value - 0.01) < -1e-3 < 1e-3 < slope(value + 0.01)


def test_exponential_loss_goes_on_as_its_tangent():
    """exp(u) - u up to 5; from there its slope e^5 - 1 stays, so 1e6 neither overflows nor loses its gradient."""
    targets = jnp.array([-3.0, 0.0, 2.0, 5.0])
    np.testing.assert_allclose(exponential_loss(jnp.zeros(4), targets, 1.0), np.exp(targets) - targets, rtol=1e-5)
    far = exponential_loss(jnp.zeros(()), jnp.float32(1e6), 1.0)
    np.testing.assert_allclose(far, np.exp(5.0) * (1e6 - 4.0) - 1e6, rtol=1e-5)
    slope = jax.vmap(jax.grad(lambda target: exponential_loss(jnp.zeros(()), target, 1.0)))
    np.testing.assert_allclose(slope(jnp.array([5.001, 9.0, 1e6])), np.exp(5.0) - 1.0, rtol=1e-5)
    np.testing.assert_allclose(slope(jnp.array([4.0])), np.exp(4.0) - 1.0, rtol=1e-5)


def test_the_one_sample_dual_pushes_alpha_up_however_low_it_is():
    """Beyond the largest exponent the tangent goes on: a clip would turn the gradient round."""
    slope = jax.grad(lambda alpha: alignment_dual(alpha, *map(jnp.asarray, (0.0, 1.0, 0.98))))
    assert float(slope(-12.0)) == pytest.approx(1.0 - np.exp(10.0), rel=1e-5)
    assert float(slope(-10.0)) == pytest.approx(1.0 - np.exp(9.0), rel=1e-5)
