"""Mish by one exponential equals its definition, and so does its slope."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safejax.networks.activations import mish

POINTS = np.concatenate([np.linspace(-120, 120, 4001), np.linspace(-1e-3, 1e-3, 101), [1e30, -1e30]])


def exact(x):
    """Value and slope in double precision."""
    softplus = np.logaddexp(0.0, x)
    gate = np.tanh(softplus)
    sigmoid = np.where(x > 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))
    return x * gate, gate + x * (1 - gate) * (1 + gate) * sigmoid


def test_value_and_slope():
    x = jnp.asarray(POINTS, jnp.float32)
    value, slope = jax.jvp(mish, (x,), (jnp.ones_like(x),))
    expected = exact(np.asarray(x, np.float64))
    np.testing.assert_allclose(value, expected[0], rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(slope, expected[1], rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(mish))(x), slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_shape_and_dtype_are_kept(shape):
    x = jnp.full(shape, 0.5, jnp.float32)
    chex.assert_trees_all_equal_shapes_and_dtypes(mish(x), x)
    chex.assert_trees_all_close(mish(x), jax.nn.mish(x), rtol=1e-6)


def test_a_nan_stays():
    assert np.isnan(float(mish(jnp.nan)))
