"""Velocity tasks against recordings of the original simulator, hand arithmetic and its own statistics.

The humanoid, which reads more than positions and velocities, has its own file.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from safejax.envs.engines import mjx as mjx_engine
from safejax.envs.engines.mujoco import make_engine
from safejax.envs.tasks import View
from safejax.envs.tasks.velocity import TASKS as ALL_TASKS
from safejax.envs.wrappers import build

RECORDINGS = dict(np.load(Path(__file__).parents[1] / "data" / "velocity_recording.npz"))
TASKS = [task for task in ALL_TASKS if not task.reads]
BY_NAME = {task.name: task for task in TASKS}
HOPPER, WALKER, CHEETAH, SWIMMER, ANT = (
    BY_NAME[f"{robot}_velocity"] for robot in ("hopper", "walker2d", "half_cheetah", "swimmer", "ant")
)
ENGINES = {name: make_engine(task) for name, task in BY_NAME.items()}
CONTROL_STEP = dict(zip(BY_NAME, (0.008, 0.008, 0.05, 0.04, 0.05), strict=True))
SPEED_LIMIT = dict(zip(BY_NAME, (0.7402, 2.3415, 3.2096, 0.2282, 2.6222), strict=True))


def view_of(qpos, qvel):
    none = jnp.zeros((*np.shape(qpos)[:-1], 0))
    return View(jnp.asarray(qpos, jnp.float32), jnp.asarray(qvel, jnp.float32), none, none, none)


def standing(task, x=0.0, **changes):
    """The start without noise, at `x`, with entries of qpos and qvel changed by name, such as qpos_2."""
    qpos, qvel = (np.zeros(part.shape) for part in jax.eval_shape(task.initialize, jax.random.key(0)))
    if task is ANT:
        qpos[2:4] = 0.75, 1.0
    else:
        qpos[1] = 0.0 if task in (CHEETAH, SWIMMER) else 1.25
    qpos[0] = x
    for name, value in changes.items():
        field, index = name.split("_")
        {"qpos": qpos, "qvel": qvel}[field][int(index)] = value
    return view_of(qpos, qvel)


def recording(name):
    return {key.split("/")[1]: value for key, value in RECORDINGS.items() if key.startswith(f"{name}/")}


def moved(task, speed, action=None):
    """Reward and cost of a step at `speed` that starts 2 m from the origin."""
    action = jnp.zeros(task.action_size) if action is None else jnp.asarray(action)
    before, after = standing(task, 2.0), standing(task, 2.0 + speed * CONTROL_STEP[task.name])
    return float(task.reward(before, after, action)), float(task.step_cost(before, after, action))


def before_and_after(rows):
    first = np.searchsorted(rows["episode_id"], rows["episode"])
    start = (rows["step"] == 1)[:, None]
    before = (np.where(start, rows[f"reset_{key}"][first], np.roll(rows[key], 1, axis=0)) for key in ("qpos", "qvel"))
    return view_of(*before), view_of(rows["qpos"], rows["qvel"])


@pytest.mark.parametrize("name", BY_NAME)
def test_observation_reward_cost_and_end_follow_from_the_recorded_states(name):
    task, rows = BY_NAME[name], recording(name)
    before, after = before_and_after(rows)
    np.testing.assert_allclose(task.observe(after), rows["observation"], atol=1e-6)
    assert rows["observation"].shape[-1] == task.observation_size
    assert rows["action"].shape[-1] == task.action_size
    np.testing.assert_array_equal(task.terminated(after), rows["terminated"])
    falls = {CHEETAH.name: 0, SWIMMER.name: 0, ANT.name: 1}
    assert rows["terminated"].sum() == falls.get(name, len(rows["episode_id"]))
    action = jnp.asarray(rows["action"])
    error = np.abs(task.reward(before, after, action) - rows["reward"])
    assert error.max() < (0.06 if task is ANT else 3e-5)  # the original's ant differences a stage of its integrator
    assert np.median(error) < (2e-3 if task is ANT else 3e-5)
    np.testing.assert_array_equal(task.cost(after) + task.step_cost(before, after, action), rows["cost"])
    assert rows["cost"].any()


@pytest.mark.parametrize("name", BY_NAME)
def test_single_steps_from_the_recorded_states(name):
    engine, rows = ENGINES[name], recording(name)
    before, after = before_and_after(rows)
    start = jax.vmap(engine.start)(jnp.ones(len(rows["step"]), bool), before.qpos, before.qvel)
    ours = engine.view(jax.vmap(engine.step)(start, jnp.asarray(rows["action"])))
    engine.check()
    np.testing.assert_allclose(ours.qpos, after.qpos, atol=1e-6)
    np.testing.assert_allclose(ours.qvel, after.qvel, atol=2e-4)
    assert np.abs(after.qvel - before.qvel).max() > 1  # there was something to predict


@pytest.mark.parametrize("name", ["hopper_velocity", "walker2d_velocity", "swimmer_velocity"])
def test_whole_episodes_from_the_recorded_starts(name):
    """Falls with every contact, and 100 steps in the water; the half cheetah is chaotic over an episode."""
    engine, rows = ENGINES[name], recording(name)
    length = np.bincount(rows["episode"])[rows["episode_id"]]
    actions = np.zeros((len(length), length.max(), rows["action"].shape[1]), np.float32)
    played = np.arange(length.max()) < length[:, None]
    actions[played] = rows["action"]

    @jax.jit
    @jax.vmap
    def replay(qpos, qvel, actions):
        def step(physics, action):
            physics = engine.step(physics, action)
            return physics, engine.view(physics)

        return jax.lax.scan(step, engine.start(jnp.bool_(True), qpos, qvel), actions)[1]

    replayed = replay(rows["reset_qpos"], rows["reset_qvel"], actions)
    engine.check()
    np.testing.assert_allclose(replayed.qpos[played], rows["qpos"], atol=2e-6)
    np.testing.assert_allclose(replayed.qvel[played], rows["qvel"], atol=5e-5)


@pytest.mark.parametrize(
    ("task", "speed", "action", "reward"),
    [
        (HOPPER, 0.5, [0.0, 0.0, 0.0], 0.5 + 1.0),
        (HOPPER, -0.5, [1.0, -1.0, 0.5], -0.5 + 1.0 - 1e-3 * 2.25),
        (HOPPER, 0.0, [3.0, 0.0, 0.0], 1.0 - 1e-3 * 9.0),  # not clipped
        (WALKER, 2.0, [1.0, 1.0, 0.0, 0.0, 0.0, -2.0], 2.0 + 1.0 - 1e-3 * 6.0),
        (CHEETAH, 3.0, [1.0, 1.0, 0.0, 0.0, 0.0, -2.0], 3.0 - 0.1 * 6.0),
        (SWIMMER, 0.2, [1.0, -2.0], 0.2 - 1e-4 * 5.0),
        (ANT, 2.0, [1.0, -2.0, *[0.0] * 6], 2.0 + 1.0 - 0.5 * 5.0),
    ],
)
def test_reward_by_hand(task, speed, action, reward):
    np.testing.assert_allclose(moved(task, speed, action)[0], reward, atol=1e-4)


@pytest.mark.parametrize("name", BY_NAME)
def test_a_step_costs_one_above_the_limit(name):
    task, limit = BY_NAME[name], SPEED_LIMIT[name]
    backwards = (-9.0, 1.0 if task is ANT else 0.0)
    for speed, cost in ((limit + 1e-3, 1.0), (limit - 1e-3, 0.0), (9.0, 1.0), (0.0, 0.0), backwards):
        assert moved(task, speed)[1] == cost, speed
    # an instantaneous speed is not what counts
    still, fast = standing(task), standing(task, qvel_0=9.0)
    assert task.cost(fast) + task.step_cost(still, fast, jnp.zeros(task.action_size)) == 0
    assert task.cost_limits == (20, 40, 80)


@pytest.mark.parametrize(
    ("task", "change", "inside", "outside"),
    [
        (HOPPER, "qpos_1", (0.701, 2.5, 200.0), (0.699, -1.0)),
        (HOPPER, "qpos_2", (0.199, -0.199), (0.201, -0.201)),
        (HOPPER, "qpos_4", (99.9, -99.9), (100.1, -100.1)),
        (HOPPER, "qvel_0", (99.9, -99.9), (100.1, -100.1)),
        (HOPPER, "qvel_5", (99.9, -99.9), (100.1, -100.1)),
        (HOPPER, "qpos_0", (1e4, -1e4), ()),
        (WALKER, "qpos_1", (0.801, 1.999), (0.799, 2.001)),
        (WALKER, "qpos_2", (0.999, -0.999), (1.001, -1.001)),
        (WALKER, "qvel_3", (200.0, -200.0), ()),
        (CHEETAH, "qpos_1", (-0.6, 3.0), ()),
        (CHEETAH, "qpos_2", (3.0, -3.0), ()),
        (SWIMMER, "qpos_1", (-50.0, 50.0), ()),
        (ANT, "qpos_1", (-50.0, 50.0), ()),
        (ANT, "qpos_2", (0.201, 0.999), (0.199, 1.001)),
        *((task, "qpos_1", (), (np.nan,)) for task in TASKS),
    ],
)
def test_bounds_of_termination(task, change, inside, outside):
    assert not any(task.terminated(standing(task, **{change: value})) for value in inside)
    assert all(task.terminated(standing(task, **{change: value})) for value in outside)


def test_observation_clips_velocities_of_hopper_and_walker():
    for task, seen in ((HOPPER, 10.0), (WALKER, 10.0), (CHEETAH, 12.0)):
        observation = task.observe(standing(task, 5.0, qvel_1=12.0, qvel_2=-12.0, qpos_2=11.0))
        joint_count = task.action_size
        start = [0.0 if task is CHEETAH else 1.25, 11.0, *[0.0] * joint_count]
        np.testing.assert_allclose(observation, [*start, 0.0, seen, -seen, *[0.0] * joint_count])
    observation = SWIMMER.observe(standing(SWIMMER, 5.0, qvel_1=12.0, qpos_1=3.0, qpos_2=11.0))
    np.testing.assert_allclose(observation, [11.0, 0.0, 0.0, 0.0, 12.0, 0.0, 0.0, 0.0])
    observation = ANT.observe(standing(ANT, 5.0, qvel_0=12.0, qpos_1=3.0, qpos_14=11.0))
    np.testing.assert_allclose(observation, [0.75, 1.0, *[0.0] * 10, 11.0, 12.0, *[0.0] * 13])


def test_the_ant_is_slow_only_if_it_is_slow_in_the_plane():
    """2 m/s ahead and 1.6 or 1.8 m/s aside: 2.561 or 2.691 in all."""
    for aside, cost in ((1.6, 0.0), (-1.8, 1.0)):
        after = standing(ANT, 0.1, qpos_1=0.05 * aside)
        assert ANT.step_cost(standing(ANT), after, jnp.zeros(8)) == cost


@pytest.mark.parametrize("name", BY_NAME)
def test_resets_are_noisy(name):
    task = BY_NAME[name]
    qpos, qvel = jax.jit(jax.vmap(task.initialize))(jax.random.split(jax.random.key(0), 2000))
    start, noise = standing(task).qpos, 0.1 if task in (CHEETAH, SWIMMER, ANT) else 5e-3
    if task is ANT:  # an orientation has length 1, which correlates its entries
        np.testing.assert_allclose(np.linalg.norm(qpos[:, 3:7], axis=-1), 1.0, rtol=1e-6)
        assert np.std(qpos[:, 4:7]) > 0.05
        qpos, start = np.delete(qpos, slice(3, 7), axis=1), np.delete(start, slice(3, 7))
    assert np.abs(qpos - start).max() <= noise * (1 + 1e-4)
    uniform = stats.uniform(-noise, 2 * noise)
    velocity = stats.norm(0, noise) if task in (CHEETAH, ANT) else uniform
    for samples, distribution in ((qpos - start, uniform), (qvel, velocity)):
        # the entries of one state are independent, so all can be pooled
        assert stats.kstest(np.ravel(samples), distribution.cdf).pvalue > 0.01
        assert np.abs(np.corrcoef(samples.T) - np.eye(samples.shape[1])).max() < 0.12
    assert np.abs(np.corrcoef(qpos.T, qvel.T)[: qpos.shape[1], qpos.shape[1] :]).max() < 0.12


def test_the_environment_costs_speed_and_pays_for_the_step_that_falls():
    env, engine = build(HOPPER, ENGINES["hopper_velocity"]), ENGINES["hopper_velocity"]
    state = env.reset(jax.random.key(0))
    for speed, pitch in ((1.0, 0.0), (0.5, 0.0), (1.0, 0.25)):
        start = standing(HOPPER, 3.0, qvel_0=speed, qpos_2=pitch)
        physics = engine.start(jnp.bool_(True), start.qpos, start.qvel)
        after = env.step(state._replace(physics=physics), jnp.zeros(3), jax.random.key(1))
        assert after.cost == float(speed > 0.7402)
        assert after.terminated == (pitch > 0.2)
        np.testing.assert_allclose(after.reward, 1.0 + speed, atol=0.02)
    engine.check()


@pytest.mark.slow
def test_engines_agree_on_the_hopper():
    """To float32 rounding over 20 steps, in which it falls and lands; for longer only in distribution."""
    key, steps, count = jax.random.key(3), 20, 4
    actions = jax.random.uniform(key, (steps, count, 3), minval=-1.0, maxval=1.0)
    qpos, qvel = jax.vmap(HOPPER.initialize)(jax.random.split(key, count))

    def run(engine):
        def step(physics, action):
            physics = jax.vmap(engine.step)(physics, action)
            return physics, engine.view(physics)

        start = jax.vmap(engine.start)(jnp.ones(count, bool), qpos, qvel)
        return jax.lax.scan(step, start, actions)[1]

    host, mjx = (
        jax.jit(run, static_argnums=0)(e) for e in (ENGINES["hopper_velocity"], mjx_engine.make_engine(HOPPER))
    )
    ENGINES["hopper_velocity"].check()
    np.testing.assert_allclose(mjx.qpos[0], host.qpos[0], atol=5e-7)
    np.testing.assert_allclose(mjx.qpos, host.qpos, atol=5e-6)
    np.testing.assert_allclose(mjx.qvel, host.qvel, atol=1e-4)
    assert np.abs(host.qvel).max() > 1


@pytest.mark.parametrize("task", [WALKER, CHEETAH, SWIMMER, ANT])
def test_mjx_takes_the_other_robots(task):
    """Traced only: compiling one costs 10 s and more."""
    env = build(task, mjx_engine.make_engine(task))
    before = jax.eval_shape(env.reset, jax.random.key(0))
    after = jax.eval_shape(env.step, before, jnp.zeros(task.action_size), jax.random.key(1))
    shapes = (jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) for state in (before, after))
    assert next(shapes) == next(shapes)


# Mean and standard deviation over 20 episodes of the original under uniformly random actions. The mean of ours may
# differ by three standard errors of the difference, for the hopper 20.5 +- 13 (return) and 24.4 +- 10 (length).
@pytest.mark.parametrize(
    ("name", "steps", "returns", "lengths"),
    [
        ("hopper_velocity", 400, (20.45, 19.00), (24.40, 14.40)),
        ("walker2d_velocity", 400, (3.18, 6.21), (19.25, 6.31)),
        ("half_cheetah_velocity", 1000, (-275.37, 59.11), (1000.0, 0.0)),
        ("swimmer_velocity", 1000, (3.64, 10.28), (1000.0, 0.0)),
        ("ant_velocity", 1000, (-98.01, 122.18), (286.15, 364.34)),
    ],
)
def test_random_policy_earns_what_it_did_in_the_original(name, steps, returns, lengths):
    env, count = build(BY_NAME[name], ENGINES[name]), 16

    def step(state, key):
        action = jax.random.uniform(key, (count, env.action_size), minval=-1.0, maxval=1.0)
        state = jax.vmap(env.step)(state, action, jax.random.split(key, count))
        return state, (state.reward, state.cost, state.terminated | state.truncated)

    @jax.jit
    def play(key):
        state = jax.vmap(env.reset)(jax.random.split(key, count))
        return jax.lax.scan(step, state, jax.random.split(key, steps))[1]

    reward, cost, done = (np.asarray(part) for part in play(jax.random.key(5)))
    env.check()
    ours = []  # return and length of the finished episodes
    for column in range(count):
        begin = 0
        for end in np.flatnonzero(done[:, column]) + 1:
            part = slice(begin, end)
            ours.append((reward[part, column].sum(), end - begin))
            begin = end
    ours = np.array(ours)
    # a step of the original's swimmer costs .25 +- .03, whole episodes of the others nothing
    assert abs(cost.mean() - (0.25 if name == "swimmer_velocity" else 0.0)) < 0.01
    for column, (mean, deviation) in enumerate((returns, lengths)):
        error = np.sqrt(deviation**2 / 20 + ours[:, column].var() / len(ours))
        assert abs(ours[:, column].mean() - mean) <= 3 * error
