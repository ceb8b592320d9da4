"""Denoisers: against the layers of the papers written out, and how their inputs broadcast."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from safejax.networks import MLPDenoiser, ResidualDenoiser
from safejax.networks.denoiser import FourierFeatures, JointDense, sinusoidal_embedding

KEY = jax.random.key(0)
PLAIN = MLPDenoiser(2, (8, 8))
RESIDUAL = ResidualDenoiser(2, width=8, block_count=2, time_size=6, time_hidden_sizes=(5, 4))
NETWORKS = pytest.mark.parametrize("network", [PLAIN, RESIDUAL], ids=["mlp", "residual"])


def inputs(*leading):
    """Observation, noisy action and index with the leading axes given."""
    first, second, third = jax.random.split(jax.random.key(1), 3)
    index = jax.random.randint(third, leading, 0, 5)
    return jax.random.normal(first, (*leading, 3)), jax.random.normal(second, (*leading, 2)), index


def parameters(network):
    """Of the right shapes, none of them 0."""
    shapes = jax.eval_shape(network.init, KEY, *inputs(4))
    generator = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: jnp.asarray(generator.normal(0.0, 0.4, leaf.shape), "float32"), shapes)


def dense(params, value):
    return value @ np.asarray(params["kernel"], np.float64) + np.asarray(params["bias"], np.float64)


def mish(value):
    return value * np.tanh(np.log1p(np.exp(value)))


def swish(value):
    return value / (1.0 + np.exp(-value))


def layer_norm(params, value):
    centred = value - value.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return scaled * np.asarray(params["scale"]) + np.asarray(params["bias"])


def test_the_joint_layer_is_the_dense_layer_of_the_concatenation():
    parts = [jax.random.normal(key, (4, width)) for key, width in zip(jax.random.split(KEY, 3), (3, 1, 5), strict=True)]
    joint, whole = JointDense(6), nn.Dense(6, kernel_init=JointDense(6).kernel_init)
    params = joint.init(KEY, *parts)
    expected = whole.init(KEY, jnp.concatenate(parts, -1))
    assert jax.tree.map(jnp.shape, params) == {"params": {"kernel": (9, 6), "bias": (6,)}}
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    np.testing.assert_allclose(
        joint.apply(params, *parts), whole.apply(params, jnp.concatenate(parts, -1)), rtol=1e-5, atol=1e-6
    )


def test_the_joint_layer_broadcasts_its_inputs():
    joint = JointDense(6)
    parts = [jax.random.normal(KEY, shape) for shape in [(4, 3), (7, 4, 2), (5,)]]
    params = joint.init(KEY, *parts)
    output = joint.apply(params, *parts)
    assert output.shape == (7, 4, 6)
    spread = [jnp.broadcast_to(part, (7, 4, part.shape[-1])) for part in parts]
    np.testing.assert_allclose(output, joint.apply(params, *spread), rtol=1e-5, atol=1e-6)


def test_the_joint_layer_meets_each_state_once():
    """The products of observation [B, O] and step [I] keep those sizes, whatever the number of candidates."""
    joint = JointDense(6)
    parts = [jnp.ones((4, 3)), jnp.ones((7, 4, 2)), jnp.ones(5)]
    params = joint.init(KEY, *parts)
    jaxpr = jax.make_jaxpr(joint.apply)(params, *parts)
    products = [equation.outvars[0].aval.shape for equation in jaxpr.eqns if equation.primitive.name == "dot_general"]
    assert sorted(products, key=len) == [(6,), (4, 6), (7, 4, 6)]


def test_the_start_of_the_joint_layer_has_the_variance_of_its_joint_width():
    parts = [jnp.ones((1, 300)), jnp.ones((1, 100))]
    kernel = JointDense(500).init(KEY, *parts)["params"]["kernel"]
    for block in (kernel[:300], kernel[300:]):
        np.testing.assert_allclose(block.var(), 2.0 / 400.0, rtol=0.03)


def test_the_frequencies_of_the_sinusoidal_embedding():
    frequencies = np.array([1.0, 0.268270, 0.0719686, 0.0193070, 0.00517948, 0.00138950, 0.000372759, 0.0001])
    embedding = sinusoidal_embedding(jnp.arange(5), 16)
    angles = np.arange(5)[:, None] * frequencies
    np.testing.assert_allclose(embedding, np.concatenate([np.sin(angles), np.cos(angles)], -1), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(sinusoidal_embedding(jnp.int32(3), 16), embedding[3])


@pytest.mark.parametrize("size", [2, 5])
def test_a_size_without_room_for_frequencies_is_refused(size):
    with pytest.raises(ValueError, match=rf"^time_size is {size}, expected an even number from 4(\n|$)"):
        MLPDenoiser(2, (8,), time_size=size).init(KEY, *inputs(4))


def test_no_hidden_layer_is_refused():
    with pytest.raises(ValueError, match=r"^hidden_sizes is empty, expected at least one width(\n|$)"):
        MLPDenoiser(2, ()).init(KEY, *inputs(4))


def test_fourier_features_are_cosines_then_sines_of_learned_frequencies():
    features = FourierFeatures(2000)
    params = features.init(KEY, jnp.arange(5))
    frequencies = np.asarray(params["params"]["frequencies"], np.float64)
    assert frequencies.shape == (1000,)
    np.testing.assert_allclose(frequencies.std(), 0.2, rtol=0.07)
    np.testing.assert_allclose(frequencies.mean(), 0.0, atol=4 * 0.2 / np.sqrt(1000))
    angles = 2.0 * np.pi * np.arange(5)[:, None] * frequencies
    expected = np.concatenate([np.cos(angles), np.sin(angles)], -1)
    np.testing.assert_allclose(features.apply(params, jnp.arange(5)), expected, atol=1e-5)


def test_the_plain_denoiser_layer_by_layer():
    params = parameters(PLAIN)
    layers = params["params"]
    observation, noisy, index = inputs(4)
    time = dense(layers["Dense_1"], mish(dense(layers["Dense_0"], np.asarray(sinusoidal_embedding(index, 16)))))
    assert layers["Dense_0"]["kernel"].shape == (16, 32)
    assert layers["Dense_1"]["kernel"].shape == (32, 16)
    hidden = mish(dense(layers["JointDense_0"], np.concatenate([noisy, time, observation], -1)))
    hidden = mish(dense(layers["MLP_0"]["Dense_0"], hidden))
    expected = dense(layers["MLP_0"]["Dense_1"], hidden)
    np.testing.assert_allclose(PLAIN.apply(params, observation, noisy, index), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer_norms", [True, False])
def test_the_residual_denoiser_layer_by_layer(layer_norms):
    network = RESIDUAL.clone(layer_norm=layer_norms)
    params = parameters(network)
    layers = params["params"]
    observation, noisy, index = inputs(4)
    time = np.asarray(FourierFeatures(6).apply({"params": layers["FourierFeatures_0"]}, index), np.float64)
    time = dense(layers["Dense_1"], swish(dense(layers["Dense_0"], time)))
    hidden = dense(layers["JointDense_0"], np.concatenate([noisy, observation, time], -1))
    for block in range(2):
        inner = layer_norm(layers[f"LayerNorm_{block}"], hidden) if layer_norms else hidden
        inner = swish(dense(layers[f"Dense_{2 + 2 * block}"], inner))
        assert inner.shape == (4, 32)
        hidden = hidden + dense(layers[f"Dense_{3 + 2 * block}"], inner)
    expected = dense(layers["Dense_6"], swish(hidden))
    assert ("LayerNorm_0" in layers) is layer_norms
    np.testing.assert_allclose(network.apply(params, observation, noisy, index), expected, rtol=1e-3, atol=1e-3)


def test_the_sizes_of_the_papers():
    def count(network):
        shapes = jax.eval_shape(network.init, KEY, jnp.ones(17), jnp.ones(6), jnp.int32(0))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    # Diffusion-QL and DiffCPS: time 16 -> 32 -> 16, then 17 + 6 + 16 -> 256 -> 256 -> 256 -> 6
    assert count(MLPDenoiser(6)) == (17 * 32 + 33 * 16) + (40 * 256 + 2 * 257 * 256 + 257 * 6)
    # IDQL: 64 frequencies, time 128 -> 256 -> 256, then 17 + 6 + 256 -> 256, three blocks, -> 6
    time = 64 + 129 * 256 + 257 * 256
    assert count(ResidualDenoiser(6)) == time + 280 * 256 + 3 * (512 + 257 * 1024 + 1025 * 256) + 257 * 6


@NETWORKS
def test_candidates_of_a_state_and_a_single_step_broadcast(network):
    params = parameters(network)
    observation, _, _ = inputs(4)
    _, noisy, _ = inputs(7, 4)
    apply = jax.jit(network.apply)
    output = apply(params, observation, noisy, jnp.int32(3))
    assert output.shape == (7, 4, 2)
    for candidate in range(7):
        for row in range(4):
            one = apply(params, observation[row], noisy[candidate, row], jnp.int32(3))
            np.testing.assert_allclose(output[candidate, row], one, rtol=1e-4, atol=1e-4)


@NETWORKS
def test_each_row_has_its_own_step(network):
    params = parameters(network)
    observation, noisy, index = inputs(6)
    assert len(set(np.asarray(index))) > 1
    output = network.apply(params, observation, noisy, index)
    for row in range(6):
        one = network.apply(params, observation[row], noisy[row], index[row])
        np.testing.assert_allclose(output[row], one, rtol=1e-4, atol=1e-4)


@NETWORKS
def test_every_input_matters(network):
    params = parameters(network)
    observation, noisy, index = inputs(4)
    first = network.apply(params, observation, noisy, index)
    for others in [
        (observation + 1.0, noisy, index),
        (observation, noisy + 1.0, index),
        (observation, noisy, index + 1),
    ]:
        assert (jnp.abs(network.apply(params, *others) - first) > 1e-4).all(-1).all()


def test_dropout_acts_only_with_a_key_and_differs_by_key_and_block():
    params, (observation, noisy, index) = parameters(RESIDUAL), inputs(4)
    first = RESIDUAL.apply(params, observation, noisy, index)
    np.testing.assert_array_equal(first, RESIDUAL.apply(params, observation, noisy, index))
    dropped = RESIDUAL.apply(params, observation, noisy, index, KEY)
    np.testing.assert_array_equal(dropped, RESIDUAL.apply(params, observation, noisy, index, KEY))
    assert jnp.abs(dropped - first).max() > 1e-3
    assert jnp.abs(dropped - RESIDUAL.apply(params, observation, noisy, index, jax.random.key(9))).max() > 1e-3
    whole = RESIDUAL.clone(dropout_rate=0.0)
    np.testing.assert_array_equal(whole.apply(params, observation, noisy, index, KEY), first)


def test_dropout_masks_differ_between_blocks():
    """With a first layer that says 1 and branches that add nothing, each dropout shows its own mask."""
    network = ResidualDenoiser(1, width=32, block_count=2, expansion=1, time_size=4, dropout_rate=0.5)
    shapes = jax.eval_shape(network.init, KEY, *inputs())
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    params["params"]["JointDense_0"]["bias"] = jnp.ones(32)
    _, state = network.apply(params, *inputs(), KEY, capture_intermediates=True)
    first, second = (np.asarray(state["intermediates"][f"Dropout_{block}"]["__call__"][0]) for block in (0, 1))
    assert set(first) == set(second) == {0.0, 2.0}
    assert (first != second).any()


@NETWORKS
def test_the_key_may_be_given_to_both(network):
    params, (observation, noisy, index) = parameters(network), inputs(4)
    assert network.apply(params, observation, noisy, index, KEY).shape == (4, 2)


def test_the_first_predictions_of_the_plain_denoiser_are_near_zero():
    network = MLPDenoiser(2)
    output = network.apply(jax.jit(network.init)(KEY, *inputs(64)), *inputs(64))
    assert 0.0 < jnp.square(output).mean() < 0.1
