"""The pixel encoder against its layers written out, networks behind it, and two methods that learn from pictures."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safejax.algorithms import bc, iql
from safejax.algorithms.proposal import make_proposal
from safejax.data.dataset import from_arrays
from safejax.networks import (
    ConditionalVAE,
    Critic,
    Encoded,
    GaussianActor,
    MLPDenoiser,
    PixelEncoder,
    ResidualDenoiser,
    Value,
    ensemble,
    given,
    member,
    with_encoder,
)
from safejax.training import train_offline

KEY = jax.random.key(0)
SMALL = PixelEncoder(channels=(4, 3), feature_size=6)
ACTION = 0.5 * jnp.ones((5, 2))


def pictures(*leading, height=8, width=4):
    random = np.random.default_rng(1)
    return {
        "pixels": jnp.asarray(random.integers(0, 256, (*leading, height, width, 3)), jnp.uint8),
        "state": jnp.asarray(random.normal(size=(*leading, 2)), jnp.float32),
    }


def by_hand(params, observation):
    """The encoder of one picture, pixel by pixel; halving pads one row and one column at the end."""
    hidden = np.asarray(observation["pixels"], np.float64) / 255.0 - 0.5
    for layer in range(2):
        kernel, bias = (np.asarray(params[f"Conv_{layer}"][name], np.float64) for name in ("kernel", "bias"))
        padded = np.pad(hidden, ((0, 1), (0, 1), (0, 0)))
        height, width = (side // 2 for side in hidden.shape[:2])
        hidden = np.zeros((height, width, kernel.shape[-1]))
        for y, x in np.ndindex(height, width):
            window = padded[2 * y : 2 * y + 3, 2 * x : 2 * x + 3]
            hidden[y, x] = np.maximum(np.einsum("abc,abcd->d", window, kernel) + bias, 0.0)
    dense, norm = params["Dense_0"], params["LayerNorm_0"]
    trunk = hidden.reshape(-1) @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
    trunk = (trunk - trunk.mean()) / np.sqrt(trunk.var() + 1e-6) * np.asarray(norm["scale"]) + np.asarray(norm["bias"])
    return np.concatenate([np.tanh(trunk), observation["state"]])


def test_the_encoder_is_its_layers():
    observation = pictures()
    params = SMALL.init(KEY, observation)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape), params)
    expected = by_hand(params["params"], observation)
    assert expected.shape == (8,)
    np.testing.assert_allclose(SMALL.apply(params, observation), expected, rtol=1e-4, atol=1e-5)


def test_leading_axes_and_a_missing_state():
    observation = pictures(2, 3)
    params = SMALL.init(KEY, pictures())
    together = SMALL.apply(params, observation)
    assert together.shape == (2, 3, 8)
    one = jax.tree.map(lambda leaf: leaf[1, 2], observation)
    np.testing.assert_allclose(together[1, 2], SMALL.apply(params, one), rtol=1e-4, atol=1e-6)
    alone = SMALL.apply(params, {"pixels": observation["pixels"]})
    np.testing.assert_allclose(alone, together[..., :6], rtol=1e-6)


@pytest.mark.parametrize(
    ("observation", "words"),
    [
        (pictures(height=6), "pixels are 6 x 4, expected multiples of 4, for 2 convolutions"),
        (jnp.zeros((5, 3)), r"observation is float32\[5, 3\], expected {'pixels': uint8 \[..., H, W, C\]}"),
        ({"pixels": jnp.zeros((8, 8, 3))}, r"observation is {'pixels': 'float32\[8, 8, 3\]'}, expected"),
        ({"state": jnp.zeros(3)}, r"observation is {'state': 'float32\[3\]'}, expected"),
        (pictures() | {"goal": jnp.zeros(2)}, "'goal'"),
        ({"pixels": jnp.zeros((8, 8), jnp.uint8)}, r"'uint8\[8, 8\]'"),
    ],
)
def test_other_observations_are_refused_in_one_line(observation, words):
    with pytest.raises(ValueError, match=words) as caught:
        jax.eval_shape(SMALL.init, KEY, observation)
    assert "\n" not in str(caught.value).split("\n--")[0].strip()


@pytest.mark.parametrize(
    ("network", "inputs"),
    [
        (GaussianActor(2, (4,)), ()),
        (Value((4,)), ()),
        (Critic((4,)), (ACTION,)),
        (ConditionalVAE(2, (4,)), (ACTION, KEY)),
        (MLPDenoiser(2, (4,)), (ACTION, jnp.int32(0))),
        (ResidualDenoiser(2, 4), (ACTION, jnp.int32(0))),
    ],
)
def test_pixels_without_an_encoder_are_refused_in_one_line(network, inputs):
    with pytest.raises(
        ValueError, match=r"input is a dict of pixels, state, expected an array .* give default_networks"
    ):
        jax.eval_shape(network.init, KEY, pictures(5), *inputs)


def test_an_encoded_network_is_the_network_of_the_features():
    observation, critic = pictures(5), ensemble(Critic((4,)), 2)
    network = with_encoder(critic, SMALL)
    params = network.init(KEY, observation, ACTION)
    assert params.keys() == {"encoder", "head"}
    features = SMALL.apply(params["encoder"], observation)
    expected = critic.apply(params["head"], features, ACTION)
    chex.assert_trees_all_equal_shapes(params["head"], critic.init(KEY, features, ACTION))
    np.testing.assert_array_equal(network.apply(params, observation, ACTION), expected)
    np.testing.assert_array_equal(given(network, params, observation)(ACTION), expected)
    np.testing.assert_array_equal(given(critic, params["head"], features)(ACTION), expected)
    vae = with_encoder(ConditionalVAE(2, (4,)), SMALL)
    params = vae.init(KEY, observation, ACTION, KEY)
    mean, _ = vae.apply(params, observation, ACTION, method="encode")
    np.testing.assert_array_equal(mean, vae.apply(params, observation, ACTION, KEY).latent_mean)


def test_one_member_keeps_the_whole_encoder():
    observation, network = pictures(5), with_encoder(ensemble(Critic((4,)), 2), SMALL)
    params = network.init(KEY, observation, ACTION)
    both = network.apply(params, observation, ACTION)
    for index in (0, 1):
        one = jax.jit(lambda index: member(network, params, index))(index)
        chex.assert_trees_all_equal(one["encoder"], params["encoder"])
        np.testing.assert_allclose(network.apply(one, observation, ACTION)[0], both[index], rtol=1e-5, atol=1e-7)


def test_every_part_of_networks_has_an_encoder_of_its_own_and_equal_ones_share_a_trace():
    plain = iql.default_networks(2, (4,))
    networks = iql.default_networks(2, (4,), encoder=PixelEncoder(channels=(4, 3), feature_size=6))
    assert networks == with_encoder(plain, SMALL)
    assert hash(networks) == hash(with_encoder(plain, SMALL))
    parts = (*networks[:3], *networks.safety)
    assert all(isinstance(part, Encoded) for part in parts)
    assert [part.network for part in parts] == [*plain[:3], *plain.safety]
    assert with_encoder(plain, None) is plain
    frozen = make_proposal("residual", 2, (8,), SMALL)
    assert frozen.actor == with_encoder(make_proposal("residual", 2, (8,)).actor, SMALL)
    assert frozen.actor.action_size == 2


def test_a_chain_of_denoising_steps_and_candidates_encode_once():
    calls = []

    class Counting:
        """Counts how often it is traced."""

        def init(self, key, observation):
            return jnp.zeros(())

        def apply(self, params, observation):
            calls.append(observation)
            return observation["state"] + params

    frozen = make_proposal("residual", 2, (8,), Counting())
    observation = pictures(5)

    def draw(key):
        params = frozen.init(key, observation, ACTION)
        calls.clear()
        return frozen.propose(params, observation, key, explore=True)

    assert jax.eval_shape(draw, KEY).shape == (8, 5, 2)
    assert [call["state"].shape for call in calls] == [(5, 2)]


def bandit(count):
    """Pictures with one bright column among dim noise, actions at random, reward -4 (action - its place)^2."""
    random = np.random.default_rng(0)
    column = random.integers(0, 8, count)
    pixels = random.integers(0, 60, (count, 8, 8, 1)).astype(np.uint8)
    pixels[np.arange(count), :, column] = 255
    place = np.linspace(-0.6, 0.6, 8)[column, None]
    return {"pixels": pixels}, place, random.uniform(-1.0, 1.0, (count, 1)), random.normal(size=(count, 1))


def learned(algorithm, dataset, place, step_count):
    """Mean distance of the actions from the column's place before and after training, and the metrics."""
    example = jax.tree.map(lambda leaf: leaf[0], dataset.transitions)
    start = jax.jit(algorithm.init)(KEY, example)
    train = jax.jit(functools.partial(train_offline, algorithm, step_count=step_count, batch_size=64))
    end, metrics = train(start, dataset, KEY)
    actions = (algorithm.act(state, dataset.transitions.observation, KEY)[0] for state in (start, end))
    return *(float(jnp.mean(jnp.abs(action - place))) for action in actions), metrics


ENCODER = PixelEncoder(channels=(8,), feature_size=16)


def test_cloning_learns_where_the_bright_column_stands():
    observation, place, _, noise = bandit(512)
    zeros = np.zeros(512)
    dataset = from_arrays(observation, place + 0.1 * noise, zeros, zeros, terminals=zeros + 1, timeouts=zeros)
    assert dataset.transitions.observation["pixels"].dtype == jnp.uint8
    networks = bc.default_networks(1, (32,), encoder=ENCODER)
    before, after, metrics = learned(bc.make(bc.Config(learning_rate=3e-3), networks), dataset, place, 300)
    assert before > 0.25
    assert after < 0.06
    # the data's own density, but for the tanh, has entropy log(.1 sqrt(2 pi e)) = -.88
    assert float(jnp.mean(metrics["actor/log_prob"][:5])) < -0.2
    assert float(jnp.mean(metrics["actor/log_prob"][-20:])) > 0.7


def test_iql_learns_where_the_bright_column_stands():
    observation, place, action, _ = bandit(2048)
    zeros = np.zeros(2048)
    reward = -4.0 * (action - place)[:, 0] ** 2
    dataset = from_arrays(observation, action, reward, zeros, terminals=zeros + 1, timeouts=zeros)
    networks = iql.default_networks(1, (32,), encoder=ENCODER)
    config = iql.Config(learning_rate=3e-3, expectile=0.9, target_update_rate=0.05)
    before, after, metrics = learned(iql.make(config, networks), dataset, place, 500)
    assert before > 0.25
    assert after < 0.12
    assert float(jnp.mean(metrics["critic/loss"][-20:])) < 0.1 * float(jnp.mean(metrics["critic/loss"][:5]))
