"""The host engine: purity, batching, saved states, faults. Fixtures compile once per module."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_runaway import runaway

from safejax import envs
from safejax.envs.engines.mujoco import make_engine
from safejax.envs.wrappers import build

TASK = envs.task("ball_circle")
STEPS = 12


@pytest.fixture(scope="module")
def env():
    # a short episode, so that resets fall inside the runs
    return build(TASK._replace(episode_length=5), make_engine(TASK))


def loop(env, seed_key, env_count, steps=STEPS):
    reset_key, action_key, step_key = jax.random.split(seed_key, 3)
    state = jax.vmap(env.reset)(jax.random.split(reset_key, env_count))
    actions = jax.random.uniform(action_key, (steps, env_count, 2), minval=-1.2, maxval=1.2)

    def step(state, inputs):
        action, key = inputs
        state = jax.vmap(env.step)(state, action, jax.random.split(key, env_count))
        return state, state

    return jax.lax.scan(step, state, (actions, jax.random.split(step_key, steps)))[1]


def assert_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_scan_and_vmap_under_jit_equal_a_python_loop(env):
    key, count = jax.random.key(0), 3
    scanned = jax.jit(lambda key: loop(env, key, count))(key)
    reset_key, action_key, step_key = jax.random.split(key, 3)
    actions = jax.random.uniform(action_key, (STEPS, count, 2), minval=-1.2, maxval=1.2)
    step_keys = [jax.random.split(key, count) for key in jax.random.split(step_key, STEPS)]
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    for index, key in enumerate(jax.random.split(reset_key, count)):
        state = reset(key)
        for time in range(STEPS):
            state = step(state, actions[time, index], step_keys[time][index])
            expected = jax.tree.map(lambda leaf, t=time, i=index: leaf[t, i], scanned)
            # physics bit for bit; XLA may round rewards differently in another program
            assert_equal(state.physics, expected.physics)
            for ours, theirs in zip(state[1:], expected[1:], strict=True):
                np.testing.assert_allclose(ours, theirs, atol=1e-6)
    env.check()


def test_nested_vmaps_equal_separate_runs_bit_for_bit(env):
    keys = jax.random.split(jax.random.key(1), 3)
    together = jax.jit(jax.vmap(lambda key: loop(env, key, 4)))(keys)
    one = jax.jit(lambda key: loop(env, key, 4))
    separate = jax.tree.map(lambda *leaves: np.stack(leaves), *[one(key) for key in keys])
    assert_equal(together, separate)


def test_results_do_not_depend_on_the_number_of_threads(env):
    key = jax.random.key(2)
    one_thread = build(TASK._replace(episode_length=5), make_engine(TASK, thread_count=1))
    two_threads = build(TASK._replace(episode_length=5), make_engine(TASK, thread_count=2))
    one, two = (jax.jit(lambda key, env=env: loop(env, key, 16))(key) for env in (one_thread, two_threads))
    assert_equal(one, two)


def test_rows_restored_from_numpy_continue_bit_for_bit(env):
    keys = jax.random.split(jax.random.key(3), 4)
    step = jax.jit(jax.vmap(env.step))
    state = jax.vmap(env.reset)(keys)
    for _ in range(2):
        state = step(state, jnp.full((4, 2), 0.7), keys)
    saved = jax.tree.map(np.array, state)
    other_step = jax.jit(jax.vmap(build(TASK._replace(episode_length=5), make_engine(TASK, thread_count=1)).step))
    continued = [state := step(state, jnp.full((4, 2), -0.3), keys) for _ in range(2)]
    state = jax.tree.map(jnp.asarray, saved)
    again = [state := other_step(state, jnp.full((4, 2), -0.3), keys) for _ in range(2)]
    assert_equal(continued, again)
    # float32 views alone would not do: the rows hold more
    rounded = np.asarray(saved.physics.rows).view(np.float64).astype(np.float32).astype(np.float64)
    assert (rounded != np.asarray(saved.physics.rows).view(np.float64)).any()


def test_a_step_without_episode_ends_starts_nothing():
    engine = make_engine(TASK)
    env = build(TASK._replace(episode_length=5), engine)
    host = engine.check.__self__
    state = jax.vmap(env.reset)(jax.random.split(jax.random.key(4), 6))
    assert host.starts == 6
    step = jax.jit(jax.vmap(env.step))
    keys = jax.random.split(jax.random.key(5), 6)
    state = state._replace(steps=jnp.arange(6, dtype=jnp.int32) % 3)
    started = []
    for _ in range(5):
        state = step(state, jnp.zeros((6, 2)), keys)
        jax.block_until_ready(state)
        started.append(host.starts - 6)
    assert started == [0, 0, 2, 4, 6]


def test_a_nan_action_is_kept_for_check_and_restarts_only_its_own_row(env, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keys = jax.random.split(jax.random.key(6), 3)
    state = jax.vmap(env.reset)(keys)
    step = jax.jit(jax.vmap(env.step))
    actions = jnp.zeros((3, 2)).at[1, 0].set(jnp.nan)
    state = step(state, actions, keys)
    np.testing.assert_array_equal(state.diverged, [False, True, False])
    np.testing.assert_array_equal(state.steps, [1, 0, 1])
    assert np.isfinite(state.observation).all()
    with pytest.raises(FloatingPointError, match=r"^ball_circle: action \[nan, 0.0\] in simulation 1 \(1 of 3\), exp"):
        env.check()
    state = step(state, jnp.zeros((3, 2)), keys)
    env.check()  # raised once
    np.testing.assert_array_equal(state.diverged, [False] * 3)
    assert not list(tmp_path.iterdir())  # MuJoCo would have written a log


def test_a_start_that_is_not_finite_is_kept_for_check_and_spoils_its_row_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    engine = make_engine(TASK)
    qpos, qvel = (
        jnp.stack(parts) for parts in zip(*[TASK.initialize(jax.random.key(i)) for i in range(3)], strict=True)
    )
    sound = jax.vmap(engine.start)(jnp.ones(3, bool), qpos, qvel)
    engine.check()
    started = jax.vmap(engine.start)(jnp.ones(3, bool), qpos, qvel.at[1, 0].set(jnp.nan))
    assert np.isnan(started.seen[1]).all()
    for row in (0, 2):
        assert_equal(*(jax.tree.map(lambda leaf, row=row: leaf[row], physics) for physics in (started, sound)))
    with pytest.raises(
        FloatingPointError, match=r"^ball_circle: initialize gave [^\n]* in simulation 1 \(1 of 3\); look"
    ):
        engine.check()
    jax.block_until_ready(engine.start(jnp.bool_(True), qpos[0] * jnp.inf, qvel[0]))
    with pytest.raises(FloatingPointError, match="initialize gave"):
        engine.check()
    assert not list(tmp_path.iterdir())  # MuJoCo would have written a log


def test_a_simulation_that_diverges_restarts_alone_and_stops_nothing(tmp_path, monkeypatch):
    """A motor ten million times too strong, used in one environment of three; the others do not notice."""
    monkeypatch.chdir(tmp_path)
    env = runaway(make_engine)
    keys = jax.random.split(jax.random.key(0), 3)

    @jax.jit
    def run(actions):
        def step(state, action):
            state = jax.vmap(env.step)(state, action, keys)
            return state, state

        return jax.lax.scan(step, jax.vmap(env.reset)(keys), actions)[1]

    calm, wild = (run(jnp.zeros((8, 3, 1)).at[4, 1].set(push)) for push in (0.0, 1.0))
    env.check()
    expected = np.zeros((8, 3), bool)
    expected[4, 1] = True
    np.testing.assert_array_equal(wild.diverged, expected)
    np.testing.assert_array_equal(wild.truncated, expected)
    assert not wild.terminated.any()
    assert wild.reward[4, 1] == wild.cost[4, 1] == 0
    np.testing.assert_array_equal(wild.final_observation[4, 1], wild.observation[4, 1])
    np.testing.assert_array_equal(wild.steps[:, 1], [1, 2, 3, 4, 0, 1, 2, 3])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(wild.observation))
    for others in (0, 2):
        assert_equal(*(jax.tree.map(lambda leaf, row=others: leaf[:, row], states) for states in (wild, calm)))


def test_an_exception_inside_the_callback_waits_for_check():
    def broken(qpos, qvel, action):
        raise ArithmeticError("no force today")

    env = build(TASK, make_engine(TASK._replace(applied_force=broken)))
    state = env.reset(jax.random.key(0))
    state = jax.block_until_ready(jax.jit(env.step)(state, jnp.zeros(2), jax.random.key(1)))
    assert state.diverged
    with pytest.raises(ArithmeticError, match="no force today"):
        env.check()


def test_the_view_is_current_at_the_new_state(env):
    state = jax.jit(env.step)(env.reset(jax.random.key(0)), jnp.ones(2), jax.random.key(1))
    engine = make_engine(TASK)
    view = engine.view(state.physics)
    np.testing.assert_allclose(view.xpos[1], view.qpos[:3], atol=1e-7)
    np.testing.assert_allclose(jnp.linalg.norm(view.xquat[1]), 1, atol=1e-6)
    assert math.prod(state.physics.rows.shape) % 2 == 0
