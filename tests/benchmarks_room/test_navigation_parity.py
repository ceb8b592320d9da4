"""What parity.py makes of a navigation recording, on one made here: it must find nothing wrong, and find what is."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from recordings import read

from safejax import envs
from safejax.envs.tasks._robots import position

STEPS = 12


@pytest.fixture(scope="module")
def episode():
    """Rows of one episode of ours, in the original's layout."""
    env = envs.make("point_goal1")
    step = jax.jit(env.step)
    states = [jax.jit(env.reset)(jax.random.key(3))]
    actions = np.random.default_rng(0).uniform(-1.2, 1.2, (STEPS, 2)).astype(np.float32)
    for action in actions:
        states.append(step(states[-1], jnp.asarray(action), jax.random.key(0)))
    env.check()
    views = [env.scene.view(state) for state in states]
    yaw = np.array([view.qpos[2] for view in views])
    places = {
        "agent_pos": np.array([position(view) for view in views]),
        "agent_yaw": yaw,
        "agent_vel": np.array([np.append(view.qvel[:2], 0.0) for view in views]),
        "goal_pos": np.array([np.append(view.layout["goal"][0], 0.16) for view in views]),
        "time": 0.02 * np.arange(STEPS + 1),
        "qvel": np.array([view.qvel for view in views]),
        # the original's Point counts from where it began
        "qpos": np.array([np.concatenate([np.zeros(3), view.qpos[3:]]) for view in views]),
    }
    hazards = np.asarray(views[0].layout["hazards"])
    objects = np.zeros((1, 9, 3))
    objects[0, :8, :2], objects[0, 8, :2] = hazards, views[0].qpos[3:5]
    return {
        **{name: value[1:] for name, value in places.items()},
        **{f"reset_{name}": value[:1] for name, value in places.items()},
        "episode": np.zeros(STEPS, int),
        "step": np.arange(1, STEPS + 1),
        "episode_id": np.zeros(1, int),
        "action": actions,
        "observation": np.array([state.final_observation for state in states[1:]]),
        "reward": np.array([state.reward for state in states[1:]]),
        "cost": np.array([state.cost for state in states[1:]]),
        "terminated": np.zeros(STEPS, bool),
        "object_names": np.array([*(f"hazard{index}" for index in range(8)), "vase0"]),
        "layout_pos": objects,
        "layout_yaw": np.zeros((1, 9)),
    }


def measured(tmp_path, rows):
    path = tmp_path / "PointGoal1.npz"
    np.savez(path, **rows)
    path.with_suffix(".json").write_text(json.dumps({"env_id": "SafetyPointGoal1-v0", "suite": "safety_gymnasium"}))
    recording = read(path)
    assert recording is not None
    return parity.measure(recording)


def test_our_own_episode_is_without_fault(tmp_path, episode):
    found = measured(tmp_path, episode)
    assert found["broken"] == []
    assert found["observation_max_abs_error"] < 1e-5
    assert found["reward_max_abs_error"] < 1e-6
    assert found["replay_relative_error"] < 1e-3
    assert found["accelerometer_median_error"] < 1e-2


@pytest.mark.parametrize(
    ("part", "change", "bound"),
    [
        ("observation", lambda part: part + 0.01, "observation_max_abs_error"),
        ("observation", lambda part: part + 0.01 * (np.arange(part.shape[1]) < 3), "accelerometer_median_error"),
        ("reward", lambda part: part * 1.1 + 0.01, "reward_max_abs_error"),
        ("cost", lambda part: 1.0 - part, "cost_mismatch_share"),
        ("agent_pos", lambda part: part + np.linspace(0.0, 0.1, STEPS)[:, None], "replay_relative_error"),
    ],
)
def test_what_is_wrong_is_found(tmp_path, episode, part, change, bound):
    found = measured(tmp_path, episode | {part: change(episode[part])})
    assert any(line.startswith(bound) for line in found["broken"])
