"""The world model against hand arithmetic, and what it must and must not know."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safejax.networks import rssm
from safejax.networks.world_model import SIZES, Size, stage_count, world_model

SIZE = Size(depth=2, memory_size=6, groups=3, classes=4, hidden_size=8)
B, T = 2, 5


def observations(key, leading=(B, T)):
    pixel_key, state_key = jax.random.split(key)
    return {
        "pixels": jax.random.randint(pixel_key, (*leading, 8, 16, 3), 0, 256).astype(jnp.uint8),
        "state": jax.random.normal(state_key, (*leading, 5)),
    }


MODEL = world_model(SIZE, bins=9)
ACTION = jax.random.uniform(jax.random.key(1), (B, T, 2), minval=-1.0)
SEEN = observations(jax.random.key(2))
OPEN = jnp.zeros((B, T)).at[:, -1].set(1)


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(3), SEEN, ACTION)


@pytest.fixture(scope="module")
def observe(params):
    return functools.partial(jax.jit(MODEL.observe), params)


def test_shapes(params, observe):
    seen = observe(SEEN, ACTION, OPEN, jax.random.key(0))
    for latent in (seen.state, seen.arrival):
        assert [leaf.shape for leaf in latent] == [(B, T, 6), (B, T, 3, 4), (B, T, 3, 4)]
    assert seen.prior.shape == (B, T, 3, 4)
    features = seen.state.features
    assert features.shape == (B, T, 6 + 12)
    decoded = MODEL.decode(params, features, SEEN)
    assert (decoded["pixels"].shape, decoded["state"].shape) == (SEEN["pixels"].shape, SEEN["state"].shape)
    assert MODEL.read(params, "going_on", features).shape == (B, T, 1)
    np.testing.assert_array_equal(MODEL.read(params, "reward", features), np.zeros((B, T, 9)))
    assert np.abs(MODEL.read(params, "cost", features)).max() > 0


def test_codes_are_one_hot_with_the_gradient_of_the_probabilities():
    logits = jax.random.normal(jax.random.key(0), (7, 3, 4))
    latent = rssm.draw(jnp.zeros((7, 6)), logits, jax.random.key(1))
    np.testing.assert_allclose(latent.code.sum(-1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(latent.code.max(-1), 1.0, rtol=1e-6)
    weight = jnp.arange(4.0)
    straight = jax.grad(lambda logits: (rssm.draw(jnp.zeros((7, 6)), logits, jax.random.key(1)).code * weight).sum())
    smooth = jax.grad(lambda logits: (jax.nn.softmax(logits) * weight).sum())
    np.testing.assert_allclose(straight(logits), smooth(logits), atol=1e-6)


def test_no_class_is_impossible(params):
    core = jax.tree.map(lambda leaf: 100 * leaf, params["core"])
    probability = jax.nn.softmax(MODEL.core.apply(core, jnp.ones(6), method="prior"))
    assert probability.min() >= 0.01 / 4 - 1e-6
    np.testing.assert_allclose(probability.sum(-1), 1.0, rtol=1e-5)


def test_without_weights_the_memory_fades_by_the_gates_bias(params):
    empty = jax.tree.map(jnp.zeros_like, params["core"])
    memory = jnp.array([1.0, -2.0, 0.5, 0.0, 3.0, 1.0])
    latent = rssm.Latent(memory, jnp.zeros((3, 4)), jnp.zeros((3, 4)))
    after = MODEL.core.apply(empty, latent, jnp.zeros(2), method="remember")
    np.testing.assert_allclose(after, (1 - 0.2689414) * memory, rtol=1e-6)


def test_actions_beyond_one_count_as_one(params):
    latent = MODEL.initial(params, ())
    remember = functools.partial(MODEL.core.apply, params["core"], latent, method="remember")
    np.testing.assert_allclose(remember(jnp.array([5.0, -0.5])), remember(jnp.array([1.0, -0.5])), rtol=1e-6)


def test_a_state_knows_the_past_and_nothing_else(observe):
    key = jax.random.key(0)
    plain = observe(SEEN, ACTION, OPEN, key).state
    later = observe(SEEN, ACTION.at[:, 2:].set(0.9), OPEN, key).state
    np.testing.assert_array_equal(later.logits[:, :3], plain.logits[:, :3])
    assert np.abs(later.memory[:, 3] - plain.memory[:, 3]).max() > 1e-3
    seen_later = jax.tree.map(lambda leaf: leaf.at[:, 3:].set(0), SEEN)
    np.testing.assert_array_equal(observe(seen_later, ACTION, OPEN, key).state.logits[:, :3], plain.logits[:, :3])


def test_the_model_forgets_between_episodes(observe):
    """After an end at row 1, rows 2 to 4 do not depend on what was before, and start from the first memory."""
    ends, key = OPEN.at[:, 1].set(1), jax.random.key(0)
    plain = observe(SEEN, ACTION, ends, key).state
    other = jax.tree.map(lambda leaf: leaf.at[:, :2].set(1), SEEN)
    changed = observe(other, ACTION.at[:, :2].set(0.3), ends, key).state
    assert np.abs(changed.logits[:, 1] - plain.logits[:, 1]).max() > 1e-3
    np.testing.assert_array_equal(changed.logits[:, 2:], plain.logits[:, 2:])
    np.testing.assert_array_equal(plain.memory[:, 2], plain.memory[:, 0])


def test_a_step_arrives_in_the_next_state_or_where_there_is_none_in_an_imagined_one(params, observe):
    ends = OPEN.at[0, 1].set(1)
    seen = observe(SEEN, ACTION, ends, jax.random.key(0))
    np.testing.assert_array_equal(seen.arrival.code[1, :4], seen.state.code[1, 1:])
    np.testing.assert_array_equal(seen.arrival.memory[0, 2:4], seen.state.memory[0, 3:])
    # at an end the memory of the arrival is what the last state and action make, and not the next episode's
    for row, t in ((0, 1), (0, 4), (1, 4)):
        latent = jax.tree.map(lambda leaf, at=(row, t): leaf[at], seen.state)
        expected = MODEL.core.apply(params["core"], latent, ACTION[row, t], method="remember")
        np.testing.assert_allclose(seen.arrival.memory[row, t], expected, rtol=1e-5, atol=1e-6)


def test_acting_step_by_step_has_the_memory_of_the_sequence(params, observe):
    """Codes are drawn with other keys, so they are handed over; the memory follows."""
    seen = observe(SEEN, ACTION, OPEN, jax.random.key(0))
    for t in range(T - 1):
        before = jax.tree.map(lambda leaf, t=t: leaf[:, t], seen.state)
        now = jax.tree.map(lambda leaf, t=t: leaf[:, t + 1], SEEN)
        memory = MODEL.remember(params, before, ACTION[:, t])
        latent = MODEL.correct(params, memory, now, jax.random.key(t))
        np.testing.assert_allclose(latent.memory, seen.state.memory[:, t + 1], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(latent.logits, seen.state.logits[:, t + 1], rtol=1e-4, atol=1e-5)
        imagined = MODEL.imagine(params, before, ACTION[:, t], jax.random.key(t))
        np.testing.assert_allclose(imagined.logits, seen.prior[:, t + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shape", "stages"), [((64, 64, 6), 4), ((32, 32, 3), 3), ((8, 16, 1), 1), ((48, 64, 3), 3)])
def test_pictures_are_halved_down_to_about_four_pixels(shape, stages):
    assert stage_count(shape) == stages


@pytest.mark.parametrize("side", [3, 36 + 1, 66])
def test_sides_that_cannot_be_halved_are_refused(side):
    with pytest.raises(ValueError, match=rf"^pixels are {side} x {side}, expected multiples of \d+[^\n]*$"):
        stage_count((side, side, 3))


def test_other_observations_are_refused():
    wrong = {"pixels": jnp.zeros((8, 8, 3))}
    with pytest.raises(ValueError, match=r"^observation is .*float32\[8, 8, 3\].*expected"):
        MODEL.init(jax.random.key(0), wrong, ACTION[0, 0])
    with pytest.raises(ValueError, match=r"^size is 'huge', expected one of paper, small, tiny$"):
        world_model("huge", bins=9)


@pytest.mark.parametrize("size", SIZES)
def test_presets_trace_and_layers_of_half_precision_keep_float32_states(size):
    model = world_model(size, bins=255, dtype="bfloat16")
    spec = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    pixels = {"pixels": jax.ShapeDtypeStruct((3, 4, 64, 64, 6), jnp.uint8)}
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(model.init, key, pixels, spec((3, 4, 2)))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    seen = jax.eval_shape(model.observe, params, pixels, spec((3, 4, 2)), spec((3, 4)), key)
    assert {leaf.dtype for leaf in jax.tree.leaves(seen)} == {jnp.dtype("float32")}
    assert seen.state.code.shape == (3, 4, SIZES[size].groups, SIZES[size].classes)
