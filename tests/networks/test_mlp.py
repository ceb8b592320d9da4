"""Flax modules: shapes, what the actors squash, ensembles, the auto-encoder."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from safejax.networks import (
    MLP,
    CategoricalActor,
    ConditionalVAE,
    Critic,
    GaussianActor,
    Value,
    ensemble,
)
from safejax.networks.distributions import Categorical, Normal, TanhNormal

KEY = jax.random.key(0)
OBSERVATION, ACTION = jax.random.normal(KEY, (5, 3)), 0.5 * jnp.ones((5, 2))


def test_an_mlp_is_its_matrices():
    network = MLP((4,), 2)
    params = network.init(KEY, OBSERVATION)
    first, second = params["params"]["Dense_0"], params["params"]["Dense_1"]
    hidden = np.maximum(np.asarray(OBSERVATION) @ first["kernel"] + first["bias"], 0.0)
    expected = hidden @ second["kernel"] + second["bias"]
    np.testing.assert_allclose(network.apply(params, OBSERVATION), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "function"), [("tanh", jnp.tanh), ("swish", nn.swish)])
def test_activations_by_name(name, function):
    network = MLP((4,), 2, name)
    params = network.init(KEY, OBSERVATION)
    first, second = params["params"]["Dense_0"], params["params"]["Dense_1"]
    hidden = function(OBSERVATION @ first["kernel"] + first["bias"])
    expected = hidden @ second["kernel"] + second["bias"]
    np.testing.assert_allclose(network.apply(params, OBSERVATION), expected, rtol=1e-4, atol=1e-6)


def test_critics_and_values_drop_the_last_axis():
    critic, value = Critic((4,)), Value((4,))
    assert critic.apply(critic.init(KEY, OBSERVATION, ACTION), OBSERVATION, ACTION).shape == (5,)
    assert value.apply(value.init(KEY, OBSERVATION), OBSERVATION).shape == (5,)
    one = critic.apply(critic.init(KEY, OBSERVATION[0], ACTION[0]), OBSERVATION[0], ACTION[0])
    assert one.shape == ()


def test_a_squashed_actor_squashes_the_sample_and_a_plain_one_the_mean():
    squashed, plain = GaussianActor(2, (4,)), GaussianActor(2, (4,), squash=False)
    params = squashed.init(KEY, OBSERVATION)
    chex.assert_trees_all_equal(params, plain.init(KEY, OBSERVATION))
    first, second = squashed.apply(params, OBSERVATION), plain.apply(params, OBSERVATION)
    assert isinstance(first, TanhNormal)
    assert isinstance(second, Normal)
    np.testing.assert_array_equal(jnp.tanh(first.mean), second.mean)
    np.testing.assert_array_equal(first.mode(), second.mode())
    np.testing.assert_array_equal(first.log_std, second.log_std)


def test_one_log_std_per_action_does_not_see_the_observation():
    actor = GaussianActor(2, (4,), squash=False, state_dependent_std=False, initial_log_std=-0.5)
    params = actor.init(KEY, OBSERVATION)
    np.testing.assert_array_equal(actor.apply(params, OBSERVATION).log_std, np.full((5, 2), -0.5))
    assert params["params"]["log_std"].shape == (2,)


@pytest.mark.parametrize(("initial", "limit"), [(50.0, 2.0), (-50.0, -5.0)])
def test_the_log_std_is_clipped(initial, limit):
    actor = GaussianActor(2, (4,), initial_log_std=initial, log_std_range=(-5.0, 2.0))
    log_std = actor.apply(actor.init(KEY, OBSERVATION), OBSERVATION).log_std
    np.testing.assert_array_equal(log_std, np.full((5, 2), limit))


def test_a_categorical_actor():
    actor = CategoricalActor(4, (4,))
    policy = actor.apply(actor.init(KEY, OBSERVATION), OBSERVATION)
    assert isinstance(policy, Categorical)
    assert policy.logits.shape == (5, 4)


def test_an_ensemble_equals_separate_networks():
    critic = Critic((4,))
    both = ensemble(critic, 2)
    params = both.init(KEY, OBSERVATION, ACTION)
    together = both.apply(params, OBSERVATION, ACTION)
    assert together.shape == (2, 5)
    for member in range(2):
        alone = critic.apply(jax.tree.map(lambda leaf, m=member: leaf[m], params), OBSERVATION, ACTION)
        np.testing.assert_allclose(together[member], alone, rtol=1e-5, atol=1e-7)
    assert not np.allclose(together[0], together[1])


def test_equal_ensembles_share_one_trace():
    first, second = (ensemble(Critic((4,)), 2) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    assert first != ensemble(Critic((4,)), 3)
    traces = []

    def apply(network, params):
        traces.append(network)
        return network.apply(params, OBSERVATION, ACTION)

    jitted = jax.jit(apply, static_argnums=0)
    params = first.init(KEY, OBSERVATION, ACTION)
    jitted(first, params)
    jitted(second, params)
    assert len(traces) == 1


def decompositions(init):
    """How often the program of `init` under vmapped seeds calls a QR decomposition."""
    text = jax.jit(jax.vmap(init)).lower(jax.random.split(KEY, 3)).as_text()
    return len(re.findall(r"@\w*(?:qr|Householder)", text))


def test_no_initialiser_is_orthogonal():
    """A QR decomposition under vmapped seeds hangs on two cores."""
    assert decompositions(lambda key: nn.Dense(4, kernel_init=nn.initializers.orthogonal()).init(key, ACTION))
    inputs = {Critic((4,)): 2, Value((4,)): 1, GaussianActor(2, (4,)): 1, CategoricalActor(2, (4,)): 1}
    for network, count in inputs.items():
        assert decompositions(lambda key, n=network, c=count: n.init(key, *(OBSERVATION, ACTION)[:c])) == 0
    assert decompositions(lambda key: ConditionalVAE(2, (4, 4)).init(key, OBSERVATION, ACTION, key)) == 0


def test_the_auto_encoder():
    network = ConditionalVAE(2, (4, 4))
    params = network.init(KEY, OBSERVATION, ACTION, KEY)
    output = network.apply(params, OBSERVATION, ACTION, jax.random.key(1))
    chex.assert_shape([output.action, output.latent_mean, output.latent_log_std], [(5, 2), (5, 4), (5, 4)])
    assert float(jnp.abs(output.action).max()) < 1.0
    mean, log_std = network.apply(params, OBSERVATION, ACTION, method="encode")
    np.testing.assert_array_equal(mean, output.latent_mean)
    np.testing.assert_array_equal(log_std, output.latent_log_std)
    assert float(log_std.min()) >= -4.0
    other = network.apply(params, OBSERVATION, ACTION, jax.random.key(2))
    np.testing.assert_array_equal(other.latent_mean, mean)
    assert not np.array_equal(other.action, output.action)


def test_the_auto_encoder_clips_its_log_std():
    network = ConditionalVAE(2, (4,))
    params = network.init(KEY, OBSERVATION, ACTION, KEY)
    bias = params["params"]["encoder"]["Dense_1"]["bias"]
    for value, limit in ((-100.0, -4.0), (100.0, 15.0)):
        params["params"]["encoder"]["Dense_1"]["bias"] = jnp.full_like(bias, value)
        _, log_std = network.apply(params, OBSERVATION, ACTION, method="encode")
        np.testing.assert_array_equal(log_std, np.full((5, 4), limit))
