"""Ball-Circle against recordings of the original simulator, hand arithmetic and its own claims."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from safejax import envs
from safejax.envs.engines.mujoco import make_engine
from safejax.envs.tasks import View

TASK = envs.task("ball_circle")
RECORDING = dict(np.load(Path(__file__).parents[1] / "data" / "ball_circle_recording.npz"))
NORMALS = np.stack([[np.cos(k * np.pi / 4), np.sin(k * np.pi / 4)] for k in range(8)])


def view_of(position, quaternion, velocity, angular_velocity):
    """A View from world-frame quantities [..., 3] and a quaternion x, y, z, w."""
    quaternion = np.concatenate([quaternion[..., 3:], quaternion[..., :3]], axis=-1)
    scalar, axis = quaternion[..., :1], -quaternion[..., 1:]
    twice = 2 * np.cross(axis, angular_velocity)
    in_body = angular_velocity + scalar * twice + np.cross(axis, twice)
    qpos = np.concatenate([position, quaternion], axis=-1)
    qvel = np.concatenate([velocity, in_body], axis=-1)
    none = np.zeros((*position.shape[:-1], 0))
    return View(*(jnp.asarray(part, jnp.float32) for part in (qpos, qvel, none, none, none)))


def recorded_view():
    names = ("base_pos", "base_quat", "base_linvel", "base_angvel")
    return view_of(*(RECORDING[name].astype(np.float64) for name in names))


def circle_view(position, velocity):
    position, velocity = (np.array([*part, 0.0]) for part in (position, velocity))
    return view_of(position, np.array([0.0, 0.0, 0.0, 1.0]), velocity, np.zeros(3))


def test_observation_reward_and_cost_follow_from_the_recorded_states():
    view, action = recorded_view(), jnp.asarray(RECORDING["action"])
    np.testing.assert_allclose(TASK.observe(view), RECORDING["observation"], atol=1e-5)
    np.testing.assert_allclose(TASK.reward(view, view, action), RECORDING["reward"], atol=1e-5)
    assert np.abs(RECORDING["action"]).max() > 1  # so that clipping is part of what was just checked
    np.testing.assert_array_equal(TASK.cost(view), RECORDING["cost"])
    np.testing.assert_array_equal(TASK.terminated(view), RECORDING["terminated"])
    np.testing.assert_array_equal(RECORDING["step"] == TASK.episode_length, RECORDING["truncated"])


def test_reward_by_hand():
    still = jnp.zeros(2)
    for position, velocity, reward, cost in (
        ((0.0, 7.0), (2.0, 0.0), 1.4, 0.0),
        ((7.0, 0.0), (0.0, -2.0), 1.4, 1.0),
        ((5.0, 0.0), (0.0, -2.0), 1 / 3, 0.0),
    ):
        view = circle_view(position, velocity)
        np.testing.assert_allclose(TASK.reward(view, view, still), reward, rtol=1e-6)
        assert TASK.cost(view) == cost
    view = circle_view((3.0, 0.0), (0.0, 0.0))
    np.testing.assert_allclose(TASK.reward(view, view, jnp.array([1.0, 1.0])), -0.01 * 0.5 * np.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(TASK.reward(view, view, jnp.array([2.0, 0.0])), -0.005, rtol=1e-6)


def test_force_by_hand_and_alike_in_numpy_and_jax():
    rest = TASK.applied_force(np.zeros(7), np.zeros(6), np.array([1.0, -0.5]))
    np.testing.assert_allclose(rest, [3.5, -1.75, 0, 0, 0, 0])
    speed = 2.0  # -m v (.04 + .04 |v|); -I w (.04 + .04 |w|) - .024 m g w / (|w| + .01)
    moving = TASK.applied_force(np.zeros(7), np.array([0, speed, 0, 0, 0, speed]), np.zeros(2))
    turning = -0.03 * speed * 0.12 - 0.024 * 0.3 * 9.81 * speed / (speed + 0.01)
    np.testing.assert_allclose(moving, [0, -0.3 * speed * 0.12, 0, 0, 0, turning])
    generator = np.random.default_rng(0)
    arguments = [generator.normal(size=(3, 5, size)).astype(np.float32) for size in (7, 6, 2)]
    ours = TASK.applied_force(*(jnp.asarray(argument) for argument in arguments))
    np.testing.assert_allclose(ours, TASK.applied_force(*arguments), rtol=1e-5, atol=1e-6)


def test_resets_are_uniform_over_the_ring():
    qpos, qvel = jax.jit(jax.vmap(TASK.initialize))(jax.random.split(jax.random.key(0), 4000))
    radius, angle = np.linalg.norm(qpos[:, :2], axis=-1), np.arctan2(qpos[:, 1], qpos[:, 0])
    assert radius.min() >= 2 - 1e-5
    assert radius.max() <= 4 + 1e-5
    assert stats.kstest((radius**2 - 4) / 12, "uniform").pvalue > 0.01
    assert stats.kstest((angle + np.pi) / (2 * np.pi), "uniform").pvalue > 0.01
    # a uniform radius would not pass
    assert stats.kstest((radius - 2) / 2, "uniform").pvalue < 1e-6
    np.testing.assert_array_equal(qpos[:, 2:], np.tile([0.5, 1, 0, 0, 0], (4000, 1)))
    np.testing.assert_array_equal(qvel, 0)


def first_wall(position, velocity):
    """Index of the first step during which the ball may touch a wall (11.4 m from the origin)."""
    reach = np.maximum(position @ NORMALS.T, (position + 0.1 * velocity) @ NORMALS.T).max(axis=-1)
    return int(np.argmax(reach > 11.3)) if (reach > 11.3).any() else len(position)


def test_replay_stays_within_two_percent_of_the_distance_travelled():
    engine = make_engine(TASK)
    episodes = RECORDING["episode_id"]
    start = RECORDING["reset_base_pos"]
    qpos = np.concatenate([start, np.tile(np.float32([1, 0, 0, 0]), (len(start), 1))], axis=-1)

    @jax.jit
    @jax.vmap
    def replay(qpos, actions):
        def step(physics, action):
            physics = engine.step(physics, action)
            return physics, engine.view(physics).qpos

        return jax.lax.scan(step, engine.start(jnp.bool_(True), qpos, jnp.zeros(6)), actions)[1]

    by_episode = {
        name: RECORDING[name].reshape(len(episodes), 200, -1)
        for name in ("action", "base_pos", "base_linvel", "other_contacts")
    }
    replayed = replay(qpos, by_episode["action"])
    engine.check()
    for index, episode in enumerate(episodes):
        recorded = by_episode["base_pos"][index, :, :2].astype(np.float64)
        before = np.concatenate([start[index, None, :2], recorded[:-1]])
        velocity = np.concatenate([np.zeros((1, 2)), by_episode["base_linvel"][index, :-1, :2]])
        free = first_wall(before, velocity)
        assert not by_episode["other_contacts"][index, :free].any()
        error = np.linalg.norm(replayed[index, :free, :2] - recorded[:free], axis=-1)
        travelled = np.cumsum(np.linalg.norm(recorded - before, axis=-1))[:free]
        # the floor of 4 mm only matters in the first steps and where nothing moves
        assert (error <= 0.02 * np.maximum(travelled, 0.2)).all(), episode
        assert episode == 18 or travelled[-1] > 10


def test_constants_of_the_data_set():
    reference = TASK.reference
    assert reference.name == "BallCircle"
    assert TASK.cost_limits == (10, 20, 40)
    assert envs.normalized_return(reference.return_max, reference) == 1
    assert envs.normalized_return(reference.return_min, reference) == 0
    car_run = envs.Reference("CarRun", 204.28726196289062, 574.6533203125, 40.0)
    assert envs.normalized_return(574.6533203125, car_run) == 1
    assert envs.normalized_cost(25, 20) == 1.25
    assert envs.normalized_cost(0, 0) == 1
    assert envs.normalized_cost(3, 0) == 4


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"^unknown task 'bal_circle', nearest: ball_circle; known: [^\n]*$"):
        envs.make("bal_circle")
    with pytest.raises(ValueError, match="engine is 'bullet', expected one of mjx, mujoco"):
        envs.make("ball_circle", "bullet")
    for name in (None, 3):
        with pytest.raises(ValueError, match=rf"^name is {name}, expected one of safejax.envs.names\(\), or a Task$"):
            envs.make(name)
    assert "ball_circle" in envs.names()
    assert envs.make("ball_circle", "mujoco") is envs.make("ball_circle", "mujoco")
