"""Pieces of policy losses against hand arithmetic and the numbers of their papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safejax.losses.policy import advantage_weight, clipped_surrogate, feasibility_weight, gaussian_kl, lagrangian


def test_no_inverse_temperature_is_behaviour_cloning():
    np.testing.assert_array_equal(advantage_weight(jnp.array([-5.0, 0.0, 1e6]), 0.0), [1.0, 1.0, 1.0])


@pytest.mark.parametrize(("inverse_temperature", "edge"), [(3.0, 1.535057), (10.0, 0.460517)])
def test_weights_are_constant_above_the_clip(inverse_temperature, edge):
    """min(exp(beta A), 100) saturates at A = ln(100) / beta."""
    advantage = jnp.array([edge - 1e-2, edge + 1e-5, edge + 1.0, 1e4])
    weight = advantage_weight(advantage, inverse_temperature)
    np.testing.assert_allclose(weight[1:], 100.0, rtol=1e-5)
    np.testing.assert_allclose(weight[0], 100.0 * np.exp(-1e-2 * inverse_temperature), rtol=1e-4)


def test_the_weighted_policy_of_a_bandit():
    """Q = (0, 1, 2) under data (.5, .3, .2), expectile .7, beta 1: numbers of the closed form."""
    weight = advantage_weight(jnp.array([0.0, 1.0, 2.0]) - 0.98, 1.0)
    policy = weight * jnp.array([0.5, 0.3, 0.2])
    np.testing.assert_allclose(policy / policy.sum(), [0.179000, 0.291944, 0.529056], atol=1e-6)


def test_an_overflowing_advantage_has_no_nan_gradient():
    gradient = jax.grad(lambda a: advantage_weight(a, 10.0))(1e6)
    assert gradient == 0.0


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.5, 2.0, -2.4, 0.0),  # clipped from above
        (1.5, -2.0, 3.0, 3.0),  # the worse of both: not clipped
        (0.5, 2.0, -1.0, -1.0),
        (0.5, -2.0, 1.6, 0.0),  # clipped from below
    ],
)
def test_clipped_surrogate_by_hand(ratio, advantage, loss, slope):
    """Clip range 0.2; the slope is along the log-probability."""
    old = jnp.array(-0.7)
    new = old + jnp.log(ratio)
    np.testing.assert_allclose(clipped_surrogate(new, old, jnp.array(advantage), 0.2), loss, rtol=1e-5)
    gradient = jax.grad(clipped_surrogate)(new, old, jnp.array(advantage), 0.2)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5)


def test_the_surrogate_refuses_broadcasting():
    with pytest.raises(AssertionError):
        clipped_surrogate(jnp.ones((4, 1)), jnp.ones(4), jnp.ones(4), 0.2)


def test_lagrangian_with_and_without_rescaling():
    reward, cost = jnp.array([4.0, 1.0]), jnp.array([1.0, 2.0])
    np.testing.assert_allclose(lagrangian(reward, cost, jnp.array(3.0), rescale=False), [1.0, -5.0])
    np.testing.assert_allclose(lagrangian(reward, cost, jnp.array(3.0), rescale=True), [0.25, -1.25])
    np.testing.assert_array_equal(lagrangian(reward, cost, jnp.array(0.0), rescale=True), reward)


def test_gaussian_kl_against_its_integral():
    mean, std = 0.7, 0.4
    grid = np.linspace(-6, 6, 20001)
    density = np.exp(-0.5 * ((grid - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
    standard = np.exp(-0.5 * grid**2) / np.sqrt(2 * np.pi)
    integral = np.sum(density * (np.log(density + 1e-300) - np.log(standard))) * (grid[1] - grid[0])
    np.testing.assert_allclose(gaussian_kl(jnp.array(mean), jnp.log(std)), integral, rtol=1e-4)
    assert gaussian_kl(jnp.array(0.0), jnp.array(0.0)) == 0.0


def test_feasibility_blends_the_weights_of_reward_and_cost():
    reward, cost = jnp.array([0.5, 2.0, 7.0]), jnp.array([3.0, 0.1, 9.0])
    np.testing.assert_array_equal(feasibility_weight(reward, cost, jnp.zeros(3)), reward)
    np.testing.assert_array_equal(feasibility_weight(reward, cost, jnp.ones(3)), cost)
    np.testing.assert_allclose(feasibility_weight(jnp.ones(3), jnp.ones(3), jnp.array([0.0, 0.3, 1.0])), 1.0)
    third = feasibility_weight(reward, cost, jnp.full(3, 0.25))  # affine in p
    np.testing.assert_allclose(third, 0.75 * reward + 0.25 * cost, rtol=1e-6)
