"""Heads on features: what they say when fresh, and the range of the latent actor."""

import jax
import jax.numpy as jnp
import numpy as np

from safejax.networks.heads import Head, LatentActor

FEATURES = jax.random.normal(jax.random.key(0), (5, 7))


def test_heads_take_inputs_side_by_side_and_may_start_at_zero():
    action = jnp.ones((5, 2))
    head = Head(3, (4,))
    params = head.init(jax.random.key(1), FEATURES, action)
    joined = head.apply(params, jnp.concatenate([FEATURES, action], axis=-1))
    np.testing.assert_array_equal(head.apply(params, FEATURES, action), joined)
    assert jnp.abs(joined).max() > 0.0
    zero = Head(3, (4,), zero=True)
    np.testing.assert_array_equal(zero.apply(zero.init(jax.random.key(1), FEATURES), FEATURES), np.zeros((5, 3)))


def test_the_latent_actors_means_and_widths_are_bounded():
    actor = LatentActor(2, (4,))
    params = actor.init(jax.random.key(1), FEATURES)
    silent = jax.tree.map(jnp.zeros_like, params)
    np.testing.assert_allclose(jnp.exp(actor.apply(silent, FEATURES).log_std), 0.1 + 0.9 * 0.8807971, rtol=1e-6)
    np.testing.assert_array_equal(actor.apply(silent, FEATURES).mode(), np.zeros((5, 2)))
    loud = actor.apply(jax.tree.map(lambda leaf: 1e3 * leaf, params), FEATURES)
    assert jnp.abs(loud.mean).max() <= 1.0
    widths = jnp.exp(loud.log_std)
    np.testing.assert_allclose([widths.min(), widths.max()], [0.1, 1.0], rtol=1e-5)
