"""Products of patches are flax's convolutions: parameters, values, gradients; accelerators keep their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from safejax.networks.convolution import Conv, DoublingConv


def values_and_gradients(module, params, pictures):
    def loss(params, pictures):
        return jnp.sum(jnp.sin(module.apply(params, pictures)))

    return jax.jit(module.apply)(params, pictures), *jax.jit(jax.grad(loss, (0, 1)))(params, pictures)


@pytest.mark.parametrize(
    ("ours", "theirs", "shape"),
    [
        (Conv(4, 3), nn.Conv(4, (3, 3), 2), (2, 8, 6, 3)),
        (Conv(4, 4, use_bias=False), nn.Conv(4, (4, 4), 2, use_bias=False), (2, 3, 8, 8, 2)),
        (Conv(2, 3, stride=1), nn.Conv(2, (3, 3)), (1, 5, 7, 3)),
        (Conv(2, 5, stride=3), nn.Conv(2, (5, 5), 3), (1, 7, 11, 1)),
        (DoublingConv(3), nn.ConvTranspose(3, (4, 4), (2, 2)), (2, 3, 5, 2)),
        (DoublingConv(2, use_bias=False), nn.ConvTranspose(2, (4, 4), (2, 2), use_bias=False), (2, 2, 4, 4, 3)),
    ],
)
def test_they_are_flax_convolutions(ours, theirs, shape):
    pictures = jax.random.normal(jax.random.key(0), shape)
    params = theirs.init(jax.random.key(1), pictures)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # a bias that shows
    mine = ours.init(jax.random.key(1), pictures)
    assert jax.tree.map(jnp.shape, mine) == jax.tree.map(jnp.shape, params)
    found, expected = (values_and_gradients(module, params, pictures) for module in (ours, theirs))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("module", [Conv(2), DoublingConv(2)])
def test_only_a_cpu_gets_patches(module):
    pictures = jnp.zeros((1, 4, 4, 3))
    params = module.init(jax.random.key(0), pictures)
    for platform, convolves in (("cpu", False), ("cuda", True), ("tpu", True)):
        text = jax.export.export(jax.jit(module.apply), platforms=[platform])(params, pictures).mlir_module()
        assert ("stablehlo.convolution" in text) == convolves, platform
