"""benchmarks/bandits2d.py: moments and bounds of the data, scores of points placed by hand, the exact denoiser."""

from __future__ import annotations

import bandits2d
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bandits2d import PROBLEMS

from safejax.diffusion import make_schedule

FOUR = np.array([(-0.8, 0.8), (-0.8, -0.8), (0.8, 0.8), (0.8, -0.8)])


def generator(seed=0):
    return np.random.default_rng(seed)


def test_shared_noise_is_one_uniform_number_for_both_coordinates():
    noise = bandits2d.shared(generator(), 20_000)
    np.testing.assert_array_equal(noise[:, 0], noise[:, 1])
    assert noise.min() >= 0.0
    assert noise.max() < 0.05
    np.testing.assert_allclose(noise[:, 0].mean(), 0.025, atol=3e-4)
    np.testing.assert_allclose(noise[:, 0].std(), 0.05 / np.sqrt(12), atol=2e-4)


def test_gaussian_noise_is_independent_with_a_deviation_of_005():
    noise = bandits2d.gaussian(generator(), 20_000)
    np.testing.assert_allclose(np.cov(noise.T), np.diag([0.0025, 0.0025]), atol=1e-4)
    np.testing.assert_allclose(noise.mean(axis=0), 0.0, atol=1e-3)


def test_the_ring_of_shared_noise_is_thick_along_the_diagonal_alone():
    """Across it, at angle -45 degrees, noise moves along the circle: the radius stays 1 to second order."""
    actions, _ = bandits2d.draw(PROBLEMS["circle_shared"], generator(), 40_000)
    radius, angle = np.hypot(*actions.T), np.arctan2(*actions.T[::-1])
    along = radius[np.abs(angle - np.pi / 4) < 0.02]
    across = radius[np.abs(angle + np.pi / 4) < 0.02]
    assert along.min() > 0.999
    np.testing.assert_allclose(along.max(), 1.0 + 0.05 * np.sqrt(2), atol=2e-3)
    assert np.abs(across - 1.0).max() < 4e-3


@pytest.mark.parametrize(("name", "center"), [("circle_shared", 0.025), ("circle_gaussian", 0.0)])
def test_the_circle_before_clipping(name, center):
    problem = PROBLEMS[name]
    random, count = generator(), 20_000
    mode = np.arange(count) % 4
    clean = problem.support(random.uniform(size=count), mode)
    np.testing.assert_allclose(np.hypot(*clean.T), 1.0, rtol=1e-12)
    np.testing.assert_array_equal(np.floor(np.arctan2(*clean.T[::-1]) % (2 * np.pi) / (np.pi / 2)), mode)
    np.testing.assert_allclose((clean + problem.noise(random, count)).mean(axis=0), center, atol=0.012)
    np.testing.assert_allclose(clean.var(axis=0), 0.5, atol=0.01)


def test_moons_are_each_others_half_turn():
    position = np.linspace(0.0, 1.0, 101)
    upper = bandits2d.moons(position, np.zeros(101, int))
    np.testing.assert_allclose(bandits2d.moons(position, np.ones(101, int)), -upper)
    np.testing.assert_allclose(np.hypot(*(upper - [-0.3, -0.15]).T), 0.6)
    assert upper[:, 1].min() == pytest.approx(-0.15)
    np.testing.assert_allclose(upper[[0, 50, 100]], [(0.3, -0.15), (-0.3, 0.45), (-0.9, -0.15)], atol=1e-12)


def test_eight_gaussians_lie_on_a_circle_and_pay_by_turns():
    problem = PROBLEMS["eight_gaussians"]
    actions, mode = bandits2d.draw(problem, generator(), 8000)
    angle = np.arange(8) * np.pi / 4
    centers = np.array([actions[mode == each].mean(axis=0) for each in range(8)])
    np.testing.assert_allclose(centers, 0.8 * np.stack([np.cos(angle), np.sin(angle)], axis=1), atol=0.006)
    assert problem.rewards == (1, 0, 1, 0, 1, 0, 1, 0)


def test_four_modes_have_the_published_numbers():
    rows = bandits2d.make_dataset(PROBLEMS["four_modes"], 3).transitions
    action, reward = np.asarray(rows.action), np.asarray(rows.reward)
    assert action.shape == (10_000, 2)
    nearest = np.argmin(np.linalg.norm(action[:, None] - FOUR, axis=-1), axis=1)
    np.testing.assert_array_equal(np.bincount(nearest), 2500)
    for mode, mean in enumerate((3.0, 0.0, 1.5, 5.0)):
        np.testing.assert_allclose(reward[nearest == mode].mean(), mean, atol=0.03)
        np.testing.assert_allclose(reward[nearest == mode].std(), 0.5, atol=0.02)
        np.testing.assert_allclose(action[nearest == mode].std(axis=0), 0.05, atol=0.002)


@pytest.mark.parametrize("name", PROBLEMS)
def test_data_are_episodes_of_one_action_in_one_state(name):
    problem, dataset = PROBLEMS[name], bandits2d.make_dataset(PROBLEMS[name], 1)
    rows = dataset.transitions
    assert rows.observation.shape == (bandits2d.ROWS, 1)
    for column, value in ((rows.observation, 0), (rows.discount, 0), (rows.last, 1), (rows.cost, 0)):
        np.testing.assert_array_equal(column, value)
    np.testing.assert_array_equal(dataset.episode_length, 1)
    assert float(jnp.max(jnp.abs(rows.action))) <= 1.0
    assert len(np.unique(rows.action, axis=0)) == problem.size  # the rest repeats
    np.testing.assert_array_equal(rows.action[-problem.size :], rows.action[: problem.size])
    np.testing.assert_array_equal(rows.reward[-problem.size :], rows.reward[: problem.size])
    again = bandits2d.make_dataset(problem, 1).transitions.action
    np.testing.assert_array_equal(again, rows.action)
    assert not np.array_equal(bandits2d.make_dataset(problem, 2).transitions.action, rows.action)
    if name.startswith("circle"):
        np.testing.assert_array_equal(rows.reward, 1.0)


@pytest.mark.parametrize("name", PROBLEMS)
def test_what_is_drawn_belongs_to_its_mode(name):
    actions, mode = bandits2d.draw(PROBLEMS[name], generator(), 4000)
    assigned, outside = bandits2d.assign(PROBLEMS[name], actions)
    # quarters of the circle and the two moons touch their neighbors
    assert np.mean(assigned == mode) > 0.95
    assert outside.mean() < 2e-3


def test_hit_rates_by_hand():
    data = np.array([(0.0, 0.0), (1.0, 1.0)])
    actions = np.array([(0.0009, 0.0), (1.0, 0.996), (0.018, 0.024), (0.88, 0.91), (0.5, 0.5)])  # .0009 .004 .03 .15 .7
    expected = {"0.001": 0.2, "0.005": 0.4, "0.01": 0.4, "0.02": 0.4, "0.05": 0.6, "0.1": 0.6, "0.2": 0.8}
    assert bandits2d.hit_rates(data, actions) == pytest.approx(expected)


def test_score_by_hand():
    actions = np.array([*FOUR, (0.8, -0.62), (0.8, -0.58), (0.0, 0.0), (1.0, 1.0)])
    found = bandits2d.score(PROBLEMS["four_modes"], FOUR, actions)
    # .18 and .22 from the best mode; the corner is .28 from its own
    assert found["modes"] == pytest.approx([1 / 8, 1 / 8, 1 / 8, 2 / 8])
    assert found["outside"] == pytest.approx(3 / 8)
    assert found["reward"] == pytest.approx((3 + 0 + 1.5 + 2 * 5) / 8)
    assert found["hit_rate"]["0.2"] == pytest.approx(5 / 8)


def test_the_exact_denoiser_of_two_points_is_a_hyperbolic_tangent():
    point = jnp.array([0.6, -0.3])
    denoise = bandits2d.exact_denoiser(jnp.stack([point, -point]), 5)
    noisy = jax.random.normal(jax.random.key(0), (7, 2))
    for index, alpha_bar in enumerate(make_schedule("vp", 5).alpha_bar):
        mean = point * jnp.tanh(np.sqrt(alpha_bar) * noisy @ point / (1 - alpha_bar))[:, None]
        expected = (noisy - np.sqrt(alpha_bar) * mean) / np.sqrt(1 - alpha_bar)
        np.testing.assert_allclose(denoise(noisy, jnp.int32(index)), expected, rtol=1e-4, atol=1e-5)
        rows = jnp.full(7, index)
        np.testing.assert_allclose(denoise(noisy, rows), expected, rtol=1e-4, atol=1e-5)


def test_a_single_point_is_denoised_to_itself():
    data = jnp.array([[0.3, -0.7]])
    np.testing.assert_allclose(
        bandits2d.exact_actions(data, 5, jax.random.key(1), 16), np.tile(data, (16, 1)), atol=1e-5
    )
    assert float(bandits2d.least_loss(jnp.tile(data, (100, 1)), 5)) < 1e-8


def test_least_loss_of_a_gaussian():
    """mean_i abar_i s^2 / (abar_i s^2 + 1 - abar_i) for N(m, s^2); s^2 = .01 and T = 5 give .009886."""
    data = 0.1 * jax.random.normal(jax.random.key(2), (6000, 2)) + jnp.array([0.2, -0.1])
    np.testing.assert_allclose(bandits2d.least_loss(data, 5), 0.009886, rtol=0.15)
