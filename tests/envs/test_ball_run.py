"""Ball-Run against recordings of the original simulator and hand arithmetic; see also test_ball_circle."""

import jax
import jax.numpy as jnp
import numpy as np
from bullet_recording import recorded, view_of

from safejax import envs
from safejax.envs.engines.mujoco import make_engine
from safejax.envs.tasks import _bullet as bullet

TASK = envs.task("ball_run")
RECORDING = recorded("ball_run")


def test_observation_reward_and_cost_follow_from_the_recorded_states():
    before, after = view_of(RECORDING, "before"), view_of(RECORDING, "after")
    np.testing.assert_allclose(TASK.observe(after), RECORDING["observation"], atol=1e-5)
    reward = TASK.reward(before, after, jnp.asarray(RECORDING["action"]))
    np.testing.assert_allclose(reward, RECORDING["reward"], atol=2e-4)  # positions are float32, 60 a metre
    np.testing.assert_array_equal(TASK.cost(after), RECORDING["cost"])
    assert 0.1 < RECORDING["cost"].mean() < 0.9
    assert not np.asarray(TASK.terminated(after)).any()


def test_a_run_at_the_limit_earns_what_the_data_set_says():
    """100 steps of 1/30 s at 2.5 m/s: 60 x 2.5 x 100 / 30 = 500, and no cost; a little faster, all of it."""
    x = jnp.arange(101) * np.float32(2.5 / 30)
    positions = jnp.stack([x, jnp.zeros(101)], axis=-1)
    np.testing.assert_allclose(jnp.sum(bullet.run_reward(positions[:-1], positions[1:])), 500.0, rtol=1e-5)
    assert bullet.run_cost(jnp.array([3.0, 2.0]), jnp.array([1.5, 2.0]), 2.5) == 0
    assert bullet.run_cost(jnp.array([3.0, 2.0]), jnp.array([1.5, 2.001]), 2.5) == 1
    assert bullet.run_cost(jnp.array([3.0, -2.001]), jnp.zeros(2), 2.5) == 1


def test_progress_keeps_float32():
    """A millimetre ahead pays .06: the difference of two distances of a kilometre would lose it."""
    near = bullet.run_reward(jnp.array([10.0, 1.0]), jnp.array([10.001, 1.0]))
    np.testing.assert_allclose(near, 0.06, rtol=2e-3)
    assert bullet.run_reward(jnp.array([10.001, 1.0]), jnp.array([10.0, 1.0])) == -near


def test_replay_stays_within_one_percent_of_the_distance_travelled():
    engine = make_engine(TASK)

    @jax.jit
    @jax.vmap
    def replay(qpos, qvel, actions):
        def step(physics, action):
            physics = engine.step(physics, action)
            return physics, engine.view(physics).qpos

        return jax.lax.scan(step, engine.start(jnp.bool_(True), qpos, qvel), actions)[1]

    count, start = len(RECORDING["episode_id"]), view_of(RECORDING, "reset")
    actions = RECORDING["action"].reshape(count, 100, 2)
    replayed = np.asarray(replay(start.qpos, start.qvel, actions))[..., :2]
    engine.check()
    positions = RECORDING["base_pos"].reshape(count, 100, 3)[..., :2].astype(np.float64)
    steps = np.diff(positions, axis=1, prepend=RECORDING["reset_base_pos"][:, None, :2])
    travelled = np.cumsum(np.linalg.norm(steps, axis=-1), axis=-1)
    error = np.linalg.norm(replayed - positions, axis=-1)
    # the floor of 2 mm only matters in the first steps and where nothing moves
    assert (error <= 0.01 * np.maximum(travelled, 0.2)).all()
    assert travelled[:, -1].max() > 30


def test_resets_are_near_the_origin():
    qpos, qvel = jax.vmap(TASK.initialize)(jax.random.split(jax.random.key(0), 500))
    assert np.abs(qpos[:, :2]).max() <= 0.01
    assert np.abs(np.std(qpos[:, :2]) - 0.01 / np.sqrt(3)) < 3e-4
    np.testing.assert_array_equal(qpos[:, 2:], np.tile([0.5, 1, 0, 0, 0], (500, 1)))
    np.testing.assert_array_equal(qvel, 0)
