"""Pictures as observations, and their stacks, on a toy engine whose ball stands at the number of steps made."""

import re

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from safejax.envs import make, probes
from safejax.envs.engines.base import Engine
from safejax.envs.pixels import frame_stack, pixels
from safejax.envs.rendering import make_caster
from safejax.envs.tasks.base import Task, View
from safejax.envs.wrappers import build

LENGTH, SIZE = 4, 8
MODEL = mujoco.MjModel.from_xml_string("""<mujoco><worldbody>
<camera name="track" pos="0 0 9"/><camera name="side" pos="0 -9 0" xyaxes="1 0 0 0 0 1"/>
<body name="ball"><geom type="sphere" size="1"/></body></worldbody></mujoco>""")


def view_of(position):
    xpos = jnp.stack([jnp.zeros(3), jnp.stack([position, 0.0 * position, 0.0 * position])])
    nothing = jnp.zeros((0,))
    return View(position[None], jnp.zeros(1), nothing, xpos, jnp.tile(jnp.array([1.0, 0.0, 0.0, 0.0]), (2, 1)))


TASK = Task(
    name="counter",
    model="",
    substeps=1,
    episode_length=LENGTH,
    observation_size=1,
    action_size=1,
    initialize=lambda key: (jax.random.uniform(key, (1,), minval=-3.0, maxval=-2.0), jnp.zeros(1)),
    observe=lambda view: view.qpos,
    reward=lambda before, after, action: after.qpos[..., 0] - before.qpos[..., 0],
    cost=lambda view: view.qpos[..., 0],
)
ENGINE = Engine(
    start=lambda needed, qpos, qvel, layout=(): jnp.where(needed, qpos[0], 9.0),
    step=lambda physics, action, layout=(): physics + 1.0,
    view=view_of,
    model=MODEL,
)
CASTER = make_caster(MODEL, ("track", "side"), height=SIZE, width=SIZE + 1)


@jax.jit
def drawn(position):
    """What both cameras see with the ball at `position`: colours beside one another."""
    view = view_of(position)
    return jnp.concatenate(list(CASTER.rgb(view.xpos, view.xquat)), axis=-1)


def pictures(state=True):
    return pixels(build(TASK, ENGINE), ("track", "side"), height=SIZE, width=SIZE + 1, state=state)


def run(env, steps, key=0):
    step = jax.jit(env.step)
    states = [jax.jit(env.reset)(jax.random.key(key))]
    for index in range(steps):
        states.append(step(states[-1], jnp.ones(1), jax.random.key(100 + index)))
    return states


def spec_of(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def test_observations_are_what_the_cameras_see_before_and_after_a_reset():
    env = pictures()
    states = run(env, LENGTH + 1)
    for state in states:
        np.testing.assert_array_equal(state.observation["pixels"], drawn(state.observation["state"][0]))
        np.testing.assert_array_equal(state.final_observation["pixels"], drawn(state.final_observation["state"][0]))
        assert spec_of(state.observation) == spec_of(env.observation_spec)
    assert env.observation_spec["pixels"].shape == (SIZE, SIZE + 1, 6)
    last = states[LENGTH]
    assert last.truncated
    first = states[0].observation["state"][0]
    np.testing.assert_allclose(last.final_observation["state"][0], first + LENGTH, rtol=1e-5)
    assert last.observation["state"][0] < -2  # a fresh episode
    assert (np.asarray(last.observation["pixels"]) != np.asarray(last.final_observation["pixels"])).any()


def test_without_the_state_only_pixels_are_left():
    env = pictures(state=False)
    assert list(env.observation_spec) == ["pixels"]
    state = jax.jit(env.reset)(jax.random.key(0))
    np.testing.assert_array_equal(state.observation["pixels"], drawn(state.physics))


def test_stacks_repeat_the_first_frame_and_end_with_the_last():
    inner, env = run(pictures(), LENGTH + 2), frame_stack(pictures(), 3)
    states = run(env, LENGTH + 2)
    assert env.observation_spec["pixels"].shape == (SIZE, SIZE + 1, 18)
    assert spec_of(states[-1].observation) == spec_of(env.observation_spec)
    frames = [np.asarray(state.observation["pixels"]) for state in inner]

    def stack(*indices):
        return np.concatenate([frames[index] for index in indices], axis=-1)

    np.testing.assert_array_equal(states[0].observation["pixels"], stack(0, 0, 0))
    np.testing.assert_array_equal(states[1].observation["pixels"], stack(0, 0, 1))
    np.testing.assert_array_equal(states[3].observation["pixels"], stack(1, 2, 3))
    np.testing.assert_array_equal(states[LENGTH].observation["pixels"], stack(LENGTH, LENGTH, LENGTH))
    end = np.concatenate([frames[2], frames[3], np.asarray(inner[LENGTH].final_observation["pixels"])], axis=-1)
    np.testing.assert_array_equal(states[LENGTH].final_observation["pixels"], end)
    np.testing.assert_array_equal(states[LENGTH + 1].observation["pixels"], stack(LENGTH, LENGTH, LENGTH + 1))
    for state, plain in zip(states, inner, strict=True):
        np.testing.assert_array_equal(state.observation["state"], plain.observation["state"])


def test_without_pixels_the_vector_is_stacked():
    env = frame_stack(build(TASK, ENGINE), 2)
    states = run(env, LENGTH)
    first = float(states[0].observation[0])
    np.testing.assert_allclose(states[0].observation, [first, first])
    np.testing.assert_allclose(states[2].observation, [first + 1, first + 2], rtol=1e-6)
    np.testing.assert_allclose(states[LENGTH].final_observation, [first + 3, first + 4], rtol=1e-6)
    assert env.observation_spec.shape == (2,)


def test_an_environment_of_make_in_a_vmapped_loop():
    env = frame_stack(pixels(make("ball_circle", "mujoco"), height=6, width=6), 2)
    states = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), 2))

    def step(states, key):
        states = jax.vmap(env.step)(states, jnp.ones((2, 2)), jax.random.split(key, 2))
        return states, states.observation["pixels"]

    _, seen = jax.jit(lambda states, keys: jax.lax.scan(step, states, keys))(
        states, jax.random.split(jax.random.key(1), 3)
    )
    env.check()
    assert seen.shape == (3, 2, 6, 6, 6)
    np.testing.assert_array_equal(seen[1:, ..., :3], seen[:-1, ..., 3:])
    assert np.ptp(np.asarray(seen)) > 50


def test_refusals():
    with pytest.raises(ValueError, match="probe/truncating has no scene to draw"):
        pixels(probes.truncating())
    with pytest.raises(ValueError, match="counter is wrapped already; apply pixels first, then frame_stack"):
        pixels(frame_stack(build(TASK, ENGINE), 2))
    for wrapped in (pixels, lambda env: frame_stack(env, 2)):
        with pytest.raises(ValueError, match=r"^env is 'counter', expected an environment, [^\n]*$"):
            wrapped("counter")
    refused = {
        "unknown camera 'front'; the model has 'track', 'side'": dict(cameras=("front",)),
        "unknown camera 0; the model has 'track', 'side'": dict(cameras=(0,)),
        "cameras is 'track', expected several names: ('track',)": dict(cameras="track"),
        "height is 8.5, expected a whole number": dict(height=8.5),
        "groups is (0, 9), expected some of (0, 1, 2, 3, 4, 5)": dict(groups=(0, 9)),
    }
    for message, changes in refused.items():
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            pixels(build(TASK, ENGINE), **changes)
    with pytest.raises(ValueError, match="layers is -1, expected at least 0"):
        make_caster(MODEL, layers=-1)
    for count, expected in ((0, "at least 1"), (2.5, "a whole number")):
        with pytest.raises(ValueError, match=f"count is {count}, expected {expected}"):
            frame_stack(build(TASK, ENGINE), count)
