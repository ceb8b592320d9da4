"""Action distributions against integrals and closed forms."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from safejax.networks.distributions import Categorical, Normal, TanhNormal

MEANS, LOG_STDS = (-0.4, 1.3), (-0.5, 0.2)
MEAN, LOG_STD = jnp.array(MEANS), jnp.array(LOG_STDS)


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.8, -1.0), (-1.5, 0.3)])
def test_the_squashed_density_integrates_to_one(mean, log_std):
    edges = np.tanh(np.linspace(-6.0, 6.0, 20001))  # fine where the density piles up
    grid, width = 0.5 * (edges[1:] + edges[:-1]), np.diff(edges)
    policy = TanhNormal(jnp.full((grid.size, 1), mean), jnp.full((grid.size, 1), log_std))
    density = np.exp(np.asarray(policy.log_prob(jnp.asarray(grid[:, None], jnp.float32)), np.float64))
    np.testing.assert_allclose(np.sum(density * width), 1.0, rtol=2e-3)


def test_the_squashed_density_by_change_of_variables():
    action = np.array([0.3, -0.6])
    raw = np.arctanh(action)
    expected = stats.norm(MEANS, np.exp(LOG_STDS)).logpdf(raw) - np.log(1.0 - action**2)
    found = TanhNormal(MEAN, LOG_STD).log_prob(jnp.asarray(action, jnp.float32))
    np.testing.assert_allclose(found, expected.sum(), rtol=1e-5)


def test_the_log_prob_of_a_squashed_draw():
    policy = TanhNormal(jnp.tile(MEAN, (200, 1)), jnp.tile(LOG_STD - 0.5, (200, 1)))
    action, log_prob = policy.sample_and_log_prob(jax.random.key(0))
    chex.assert_shape([action, log_prob], [(200, 2), (200,)])
    np.testing.assert_array_equal(action, policy.sample(jax.random.key(0)))
    np.testing.assert_allclose(policy.log_prob(action), log_prob, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mean", [-20.0, 0.0, 20.0])
def test_the_squashed_density_is_finite_at_the_edges(mean):
    policy = TanhNormal(jnp.array([mean]), jnp.array([0.0]))
    for action in (-1.0, 1.0):
        value, gradient = jax.value_and_grad(
            lambda m, a=action: TanhNormal(m, policy.log_std).log_prob(jnp.array([a]))
        )(policy.mean)
        chex.assert_tree_all_finite((value, gradient))
    drawn = policy.sample_and_log_prob(jax.random.key(1))
    slope = jax.grad(lambda m: TanhNormal(m, policy.log_std).sample_and_log_prob(jax.random.key(1))[1])
    chex.assert_tree_all_finite((drawn, slope(policy.mean)))
    assert abs(float(drawn[0][0])) <= 1.0


def test_a_saturated_draw_keeps_its_exact_density():
    """At raw = 20 the naive log(1 - tanh^2) is log 0; the exact correction is 2 (log 2 - 20)."""
    policy = TanhNormal(jnp.array([20.0]), jnp.array([0.0]))
    _, log_prob = policy.sample_and_log_prob(jax.random.key(0))
    raw = Normal(policy.mean, policy.log_std).sample(jax.random.key(0))[0]
    expected = stats.norm(20.0, 1.0).logpdf(raw) - 2 * (np.log(2) - raw)
    assert float(jnp.tanh(raw)) == 1.0
    np.testing.assert_allclose(log_prob, expected, rtol=1e-5)


def test_squashed_modes_and_the_entropy_estimate():
    policy = TanhNormal(jnp.tile(MEAN, (20_000, 1)), jnp.tile(LOG_STD, (20_000, 1)))
    np.testing.assert_array_equal(policy.mode()[0], jnp.tanh(MEAN))
    raw = np.linspace(-8.0, 8.0, 4001)
    exact = 0.0
    for mean, log_std in zip(MEANS, LOG_STDS, strict=True):
        law = stats.norm(mean, np.exp(log_std))
        correction = 2.0 * (np.log(2.0) - raw - np.logaddexp(0.0, -2.0 * raw))
        exact += law.entropy() + np.sum(law.pdf(raw) * correction) * (raw[1] - raw[0])
    np.testing.assert_allclose(jnp.mean(policy.entropy(jax.random.key(3))), exact, atol=0.03)


def test_normal_against_scipy():
    action = jnp.array([[0.0, 3.0], [-2.0, 1.0]])
    policy = Normal(jnp.tile(MEAN, (2, 1)), jnp.tile(LOG_STD, (2, 1)))
    law = stats.norm(MEANS, np.exp(LOG_STDS))
    np.testing.assert_allclose(policy.log_prob(action), law.logpdf(action).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(policy.entropy(), [law.entropy().sum()] * 2, rtol=1e-5)
    np.testing.assert_array_equal(policy.mode(), policy.mean)
    drawn, log_prob = policy.sample_and_log_prob(jax.random.key(0))
    np.testing.assert_array_equal(drawn, policy.sample(jax.random.key(0)))
    np.testing.assert_allclose(log_prob, policy.log_prob(drawn))


def test_normal_draws_have_their_moments():
    policy = Normal(jnp.tile(MEAN, (20_000, 1)), jnp.tile(LOG_STD, (20_000, 1)))
    drawn = np.asarray(policy.sample(jax.random.key(0)))
    np.testing.assert_allclose(drawn.mean(0), MEANS, atol=0.04)
    np.testing.assert_allclose(drawn.std(0), np.exp(LOG_STDS), atol=0.03)


def test_categorical_against_its_probabilities():
    probabilities = np.array([0.5, 0.3, 0.2])
    policy = Categorical(jnp.log(jnp.tile(jnp.asarray(probabilities, jnp.float32), (20_000, 1))) + 7.0)
    every = jnp.arange(20_000, dtype=jnp.int32) % 3
    np.testing.assert_allclose(jnp.exp(policy.log_prob(every))[:3], probabilities, rtol=1e-5)
    np.testing.assert_allclose(policy.entropy()[0], -(probabilities * np.log(probabilities)).sum(), rtol=1e-5)
    assert set(np.asarray(policy.mode())) == {0}
    drawn, log_prob = policy.sample_and_log_prob(jax.random.key(0))
    assert drawn.dtype == jnp.int32
    np.testing.assert_allclose(np.bincount(np.asarray(drawn)) / 20_000, probabilities, atol=0.015)
    np.testing.assert_array_equal(log_prob, policy.log_prob(drawn))


def test_a_distribution_is_a_pytree():
    """vmap and scan carry it; this fails if one becomes a plain class."""
    policy = jax.vmap(lambda mean: TanhNormal(mean, LOG_STD))(jnp.zeros((3, 2)))
    chex.assert_shape(policy.mode(), (3, 2))
    assert len(jax.tree.leaves(policy)) == 2
