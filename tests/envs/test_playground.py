"""MuJoCo Playground's environments: a stand-in of their form always, the real ones where the package is installed."""

import sys
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from safejax.envs.adapters import from_playground

KEY = jax.random.key(0)


@struct.dataclass
class State:
    """The fields of mujoco_playground._src.mjx_env.State, 0.2.0."""

    data: Any
    obs: Any
    reward: jax.Array
    done: jax.Array
    metrics: dict[str, jax.Array]
    info: dict[str, Any]


class Rail:
    """A cart that moves by its action; its policy sees where it is, its critic also how long it has been under way.

    Like Playground's own it keeps a key and a counter in `info`, writes into it, and gives `done` as a float.
    """

    action_size = 1

    def __init__(self, episode_length=4):
        self._config = SimpleNamespace(episode_length=episode_length)

    def _observation(self, position, info):
        privileged = jnp.hstack([position, info["step"]])
        return {"state": position[None], "privileged_state": privileged}

    def reset(self, rng):
        rng, position_key = jax.random.split(rng)
        position = jax.random.uniform(position_key, minval=-0.1, maxval=0.1)
        info = {"rng": rng, "step": 0, "last_act": jnp.zeros(1)}
        reward, done = jnp.zeros(2)
        return State(position, self._observation(position, info), reward, done, {"reward/far": 0.0}, info)

    def step(self, state, action):
        state.info["rng"], _ = jax.random.split(state.info["rng"])
        state.info["step"] += 1
        state.info["last_act"] = action
        position = state.data + action[0]
        state.metrics["reward/far"] = jnp.abs(position)
        done = (jnp.abs(position) > 3.0).astype(float)
        return state.replace(data=position, obs=self._observation(position, state.info), reward=position, done=done)


def far(state):
    return state.obs["privileged_state"][0] > 1.25


def run(env, action, count):
    state, states = jax.jit(env.reset)(KEY), []
    step = jax.jit(env.step)
    for index in range(count):
        state = step(state, jnp.full((env.action_size,), action), jax.random.fold_in(KEY, index))
        states.append(state)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *[state._replace(physics=()) for state in states])


def test_the_policy_sees_one_part_and_the_cost_sees_all():
    env = from_playground(Rail(), far)
    assert (env.observation_spec.shape, env.episode_length, env.name) == ((1,), 4, "Rail")
    states = run(env, 0.5, 6)
    final = states.final_observation[:, 0]
    np.testing.assert_allclose(np.diff(final[:4]), 0.5, rtol=1e-5)
    np.testing.assert_array_equal(states.truncated, [0, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(states.terminated, np.zeros(6))
    np.testing.assert_array_equal(states.cost, final > 1.25)
    assert states.cost.sum() == 2
    np.testing.assert_array_equal(states.steps, [1, 2, 3, 0, 1, 2])
    assert abs(states.observation[3, 0]) < 0.1  # a fresh one
    np.testing.assert_array_equal(states.reward, final)


def test_a_fall_terminates():
    states = run(from_playground(Rail(), far, episode_length=9), 1.0, 5)
    np.testing.assert_array_equal(states.terminated, states.final_observation[:, 0] > 3.0)
    assert states.terminated.sum() == 1
    assert not states.truncated.any()


def test_other_parts_and_the_whole():
    assert from_playground(Rail(), far, observation="privileged_state").observation_spec.shape == (2,)
    whole = run(from_playground(Rail(), far, observation=None), 0.5, 2)
    assert {name: part.shape for name, part in whole.observation.items()} == {
        "state": (2, 1),
        "privileged_state": (2, 2),
    }
    with pytest.raises(ValueError, match="Rail has no observation 'pixels', expected one of privileged_state, state"):
        from_playground(Rail(), far, observation="pixels")
    with pytest.raises(ValueError, match=r"Rail has no info\['cost'\]"):
        from_playground(Rail())


def test_names_are_loaded_from_the_registry_on_the_implementation_in_jax(monkeypatch):
    asked = []

    def load(name, config_overrides):
        asked.append((name, config_overrides))
        return Rail(episode_length=7)

    monkeypatch.setitem(sys.modules, "mujoco_playground", SimpleNamespace(registry=SimpleNamespace(load=load)))
    env = from_playground("RailRun", far)
    assert (env.name, env.episode_length) == ("RailRun", 7)
    assert asked == [("RailRun", {"impl": "jax"})]


def test_without_playground_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco_playground", None)
    with pytest.raises(ModuleNotFoundError, match=r"not installed: pip install 'safejax\[playground\]'"):
        from_playground("CartpoleBalance", far)


@pytest.mark.slow
def test_playgrounds_own_cartpole():
    """Its observation is position, cos, sin, velocities."""
    pytest.importorskip("mujoco_playground")
    env = from_playground("CartpoleBalance", lambda state: state.obs[0] > 0.05, episode_length=5)
    states = run(env, 1.0, 6)
    np.testing.assert_array_equal(states.truncated, [0, 0, 0, 0, 1, 0])
    np.testing.assert_array_equal(states.cost, states.final_observation[:, 0] > 0.05)
    np.testing.assert_array_equal(states.observation[:4], states.final_observation[:4])
    assert (states.observation[4] != states.final_observation[4]).all()
