"""Every task on both engines, by shapes alone; and the task that the first lines of `safejax.envs` write."""

import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safejax import envs
from safejax.envs.engines import mjx as mjx_engine
from safejax.envs.engines import mujoco as host_engine
from safejax.envs.pixels import pixels
from safejax.envs.wrappers import build


def kinds(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)


@pytest.mark.parametrize("name", envs.names())
def test_states_keep_structure_shapes_and_types(name):
    """A step takes a state to one of its kind, so loops may carry it, and a reset gives the same."""
    task = envs.task(name)
    env = build(task, host_engine.make_engine(task))
    key = jax.eval_shape(jax.random.key, 0)
    state = jax.eval_shape(env.reset, key)
    after = jax.eval_shape(env.step, state, jax.ShapeDtypeStruct((task.action_size,), jnp.float32), key)
    assert kinds(after) == kinds(state)
    assert (state.observation.shape, state.observation.dtype) == ((task.observation_size,), jnp.float32)
    for field, dtype in dict(
        reward="f4", cost="f4", terminated=bool, truncated=bool, steps="i4", diverged=bool
    ).items():
        assert kinds(getattr(state, field)) == ((), np.dtype(dtype), False), field


@pytest.mark.parametrize("name", envs.names())
def test_mjx_knows_all_that_a_model_uses(name):
    assert mjx_engine.make_engine(envs.task(name)).model.nq > 0


def test_the_documented_task_runs_as_it_stands():
    """Full force for a second: half a metre at 2 m/s^2, less damping, and too fast from the tenth step on."""
    lines = envs.__doc__.split("For example")[1].split("\n\n", 1)[1].split("\n\nA task that")[0]
    assert 40 <= len(lines.splitlines()) <= 65
    written = {}
    exec(textwrap.dedent(lines), written)
    env = written["env"]
    assert (env.name, env.episode_length, env.observation_spec.shape) == ("slide", 100, (2,))
    state = first = jax.jit(env.reset)(jax.random.key(0))
    step = jax.jit(env.step)
    costs = []
    for _ in range(20):
        state = step(state, jnp.ones(1), jax.random.key(1))
        costs.append(float(state.cost))
    env.check()
    np.testing.assert_allclose(state.observation - first.observation, [0.97, 1.9], atol=0.03)
    assert costs == [0.0] * 10 + [1.0] * 10
    assert pixels(env, height=8, width=8).observation_spec["pixels"].shape == (8, 8, 3)
