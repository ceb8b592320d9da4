"""Pseudo-lidar against hand arithmetic."""

import jax.numpy as jnp
import numpy as np
import pytest

from safejax.envs.tasks._lidar import lidar

HERE, LEVEL = jnp.zeros(3), jnp.eye(3)


def expect(values):
    full = np.zeros(16)
    for index, value in values.items():
        full[index] = value
    return full


@pytest.mark.parametrize(
    ("place", "values"),
    [
        ((1.0, 0.0), {0: 2 / 3, 15: 2 / 3}),  # at a bin's beginning the one before is as near
        ((0.0, 1.5), {4: 0.5, 3: 0.5}),
        ((1.0, 1.0), {2: 1 - np.sqrt(2) / 3, 1: 1 - np.sqrt(2) / 3}),
        ((3.0, 0.0), {}),
        ((5.0, 5.0), {}),
    ],
)
def test_one_object(place, values):
    np.testing.assert_allclose(lidar(jnp.array([place]), HERE, LEVEL, 3.0), expect(values), atol=1e-6)


def test_an_object_a_quarter_through_its_bin():
    angle = 2 * np.pi / 16 * 5.25
    seen = lidar(jnp.array([[np.cos(angle), np.sin(angle)]]), HERE, LEVEL, 2.0)
    np.testing.assert_allclose(seen, expect({5: 0.5, 6: 0.125, 4: 0.375}), atol=1e-6)


def test_the_last_bin_runs_over_into_the_first():
    angle = 2 * np.pi / 16 * 15.5
    seen = lidar(jnp.array([[np.cos(angle), np.sin(angle)]]), HERE, LEVEL, 2.0)
    np.testing.assert_allclose(seen, expect({15: 0.5, 0: 0.25, 14: 0.25}), atol=1e-6)


def test_the_nearest_object_counts():
    seen = lidar(jnp.array([[2.0, 0.0], [1.0, 0.0]]), HERE, LEVEL, 4.0)
    np.testing.assert_allclose(seen, expect({0: 0.75, 15: 0.75}), atol=1e-6)


def test_directions_are_the_robots_and_its_tilt_and_height_count():
    quarter = jnp.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # x axis along the world's y
    seen = lidar(jnp.array([[0.0, 1.0]]), HERE, quarter, 2.0)
    np.testing.assert_allclose(seen, expect({0: 0.5, 15: 0.5}), atol=1e-6)
    nose_up = jnp.array([[0.0, 0.0, -1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])  # x axis up: the floor is behind
    seen = lidar(jnp.array([[1.0, 0.0]]), jnp.array([0.0, 0.0, 0.5]), nose_up, 2.0)
    np.testing.assert_allclose(seen, expect({8: 0.75, 7: 0.75}), atol=1e-6)


def test_batches_and_nothing_to_see():
    places = jnp.ones((5, 2, 3, 2))
    assert lidar(places, jnp.zeros((5, 2, 3)), jnp.broadcast_to(LEVEL, (5, 2, 3, 3)), 3.0).shape == (5, 2, 16)
    np.testing.assert_array_equal(lidar(jnp.zeros((0, 2)), HERE, LEVEL, 3.0), np.zeros(16))
