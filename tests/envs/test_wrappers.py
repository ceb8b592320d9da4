"""Time limit and auto reset, on a toy engine whose physics is a counter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safejax import envs
from safejax.envs.engines.base import Engine
from safejax.envs.tasks import Task, View
from safejax.envs.wrappers import build

LENGTH = 4


def view_of(position):
    nothing = jnp.zeros((0,))
    return View(position[None], jnp.zeros((1,)), nothing, nothing, nothing)


TASK = Task(
    name="counter",
    model="",
    substeps=1,
    episode_length=LENGTH,
    observation_size=1,
    action_size=1,
    initialize=lambda key: (jax.random.uniform(key, (1,), maxval=0.5), jnp.zeros(1)),
    observe=lambda view: view.qpos,
    reward=lambda before, after, action: after.qpos[..., 0] - before.qpos[..., 0] + 10 * action[..., 0],
    cost=lambda view: view.qpos[..., 0],
    terminated=lambda view: view.qpos[..., 0] > 100,
)
ENGINE = Engine(
    start=lambda needed, qpos, qvel, layout: jnp.where(needed, qpos[0], -1.0),
    step=lambda physics, action, layout: physics + jnp.clip(action[0], -1, 1),
    view=view_of,
)
ENV = build(TASK, ENGINE)


def run(actions, key=0):
    """States after reset and after each of `actions`."""
    states = [ENV.reset(jax.random.key(key))]
    for index, action in enumerate(actions):
        states.append(ENV.step(states[-1], jnp.array([action]), jax.random.key(100 + index)))
    return states


def test_truncation_keeps_the_last_observation_and_starts_a_fresh_episode():
    states = run([1.0] * (LENGTH + 1))
    first = float(states[0].observation[0])
    for index in range(1, LENGTH):
        np.testing.assert_allclose(states[index].observation, first + index, rtol=1e-6)
        np.testing.assert_array_equal(states[index].observation, states[index].final_observation)
        assert int(states[index].steps) == index
        assert not states[index].truncated
    last = states[LENGTH]
    assert last.truncated
    assert not last.terminated
    np.testing.assert_allclose(last.final_observation, first + LENGTH, rtol=1e-6)
    np.testing.assert_allclose(last.cost, first + LENGTH, rtol=1e-6)  # of the step made, not of the fresh state
    np.testing.assert_allclose(last.reward, 11, rtol=1e-6)
    fresh = TASK.initialize(jax.random.key(100 + LENGTH - 1))[0]
    np.testing.assert_array_equal(last.observation, fresh)  # drawn from the step's key
    assert int(last.steps) == 0
    assert float(last.observation[0]) != first
    after = states[LENGTH + 1]
    np.testing.assert_allclose(after.observation, fresh + 1, rtol=1e-6)
    assert int(after.steps) == 1
    assert not after.truncated


def test_termination_wins_over_truncation():
    state = ENV.reset(jax.random.key(0))._replace(physics=jnp.float32(100.5), steps=jnp.int32(LENGTH - 1))
    state = ENV.step(state, jnp.array([0.0]), jax.random.key(1))
    assert state.terminated
    assert not state.truncated
    assert float(state.final_observation[0]) == 100.5
    assert float(state.observation[0]) < 1
    assert int(state.steps) == 0


def test_tasks_see_the_action_as_given_and_engines_a_fresh_state_only_where_needed():
    states = run([3.0])
    np.testing.assert_allclose(states[1].reward, 31, rtol=1e-6)  # moved 1, and 10 times the unclipped 3
    assert float(states[1].observation[0]) > 0  # not the -1 of an unneeded start


@pytest.mark.parametrize("initialize", [TASK.initialize, lambda key: (jnp.full(1, 0.25), jnp.zeros(1))])
def test_engines_start_nothing_while_no_episode_ends_and_all_else_stays(initialize):
    started = []

    def start(needed, qpos, qvel, layout):
        jax.debug.callback(lambda: started.append(1))
        return qpos[0]

    env = build(TASK._replace(initialize=initialize), ENGINE._replace(start=start))
    step = jax.jit(jax.vmap(env.step, in_axes=(0, None, None)))
    states = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 3))
    jax.effects_barrier()
    started.clear()
    states = step(states._replace(steps=jnp.array([0, LENGTH - 2, 1])), jnp.array([1.0]), jax.random.key(1))
    jax.effects_barrier()
    assert not started
    after = step(states, jnp.array([1.0]), jax.random.key(2))
    jax.effects_barrier()
    assert started
    np.testing.assert_array_equal(after.steps, [2, 0, 3])
    np.testing.assert_allclose((after.observation - states.observation)[::2], 1.0, rtol=1e-6)
    assert float(after.observation[1, 0]) < 0.5


def test_rewards_have_gradients_through_steps_and_the_end_of_an_episode():
    """Of the action, which moves by itself and is paid tenfold."""

    def earned(actions):
        def step(state, action):
            state = ENV.step(state, action[None], jax.random.key(1))
            return state, state.reward

        return jax.lax.scan(step, ENV.reset(jax.random.key(0)), actions)[1].sum()

    np.testing.assert_allclose(jax.grad(earned)(jnp.full(LENGTH + 2, 0.5)), 11.0, rtol=1e-6)


def test_tasks_start_from_keys_of_either_kind():
    """Others' code, such as brax's, still passes keys as uint32[2]."""
    for name in ("ball_circle", "hopper_velocity", "point_maze_umaze", "ant_maze_umaze", "point_goal1"):
        initialize = envs.task(name).initialize
        assert jax.eval_shape(initialize, jax.random.PRNGKey(0)) == jax.eval_shape(initialize, jax.random.key(0))


@pytest.mark.parametrize("field", ["observe", "reward", "cost"])
def test_a_number_of_the_task_that_is_not_finite_restarts_too(field):
    """Where the counter exceeds 2 the field is NaN; a termination there does not count."""

    def spoiled(*arguments):
        value = getattr(TASK, field)(*arguments)
        return jnp.where(arguments[min(1, len(arguments) - 1)].qpos[..., 0] > 2, jnp.nan, value)

    env = build(TASK._replace(**{field: spoiled, "terminated": lambda view: view.qpos[..., 0] > 2}), ENGINE)
    states = [env.reset(jax.random.key(0))]
    for index in range(3):
        states.append(env.step(states[-1], jnp.array([1.0]), jax.random.key(index)))
    position = [float(state.observation[0]) for state in states]
    wrong = [position[0] + index > 2 for index in range(4)].index(True)
    assert [bool(state.diverged) for state in states[: wrong + 1]] == [False] * wrong + [True]
    state = states[wrong]
    assert (bool(state.truncated), bool(state.terminated), int(state.steps)) == (True, False, 0)
    assert (float(state.reward), float(state.cost)) == (0, 0)
    np.testing.assert_array_equal(state.observation, TASK.initialize(jax.random.key(wrong - 1))[0])
    np.testing.assert_array_equal(state.final_observation, state.observation)


def test_a_repeated_action_is_its_steps_summed_and_seen_once():
    twice = build(TASK, ENGINE, action_repeat=2)
    assert twice.episode_length == LENGTH // 2
    single, held = (env.reset(jax.random.key(0)) for env in (ENV, twice))
    for action in (0.5, -0.25):
        parts = []
        for _ in range(2):
            single = ENV.step(single, jnp.array([action]), jax.random.key(1))
            parts.append(single)
        held = twice.step(held, jnp.array([action]), jax.random.key(1))
        np.testing.assert_allclose(held.final_observation, single.final_observation)
        np.testing.assert_allclose(held.reward, sum(part.reward for part in parts), rtol=1e-6)
        np.testing.assert_allclose(held.cost, sum(part.cost for part in parts), rtol=1e-6)
    assert single.truncated
    assert held.truncated
    assert int(held.steps) == 0


def test_a_repeated_action_stops_where_the_episode_ends():
    task = TASK._replace(terminated=lambda view: view.qpos[..., 0] > 1)
    state = build(task, ENGINE, action_repeat=4).reset(jax.random.key(0))
    first = state.observation
    state = build(task, ENGINE, action_repeat=4).step(state, jnp.array([0.8]), jax.random.key(1))
    steps = 1 if float(first[0]) > 0.2 else 2
    assert state.terminated
    np.testing.assert_allclose(state.final_observation, first + 0.8 * steps, rtol=1e-6)
    np.testing.assert_allclose(state.reward, 8.8 * steps, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "action_repeat", "message"),
    [
        ({}, 3, "action_repeat is 3, expected a divisor of the 4 steps of counter"),
        ({}, 2.5, "action_repeat is 2.5, expected a whole number"),
        ({}, "2", "action_repeat is '2', expected a whole number"),
        ({}, 0, "action_repeat is 0, expected at least 1"),
        ({"episode_length": 0}, 1, "counter: episode_length is 0, expected at least 1"),
        ({"substeps": 0}, 1, "counter: substeps is 0, expected at least 1"),
        ({"shapes": (None,)}, 1, "counter has shapes but no place_shapes, [^\\n]*"),
    ],
)
def test_tasks_that_make_no_environment_are_refused(changes, action_repeat, message):
    with pytest.raises(ValueError, match=rf"^{message}(\n|$)"):
        build(TASK._replace(**changes), ENGINE, action_repeat=action_repeat)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observation_size": 2}, r"the observation has shape \(1,\), expected \(2,\)"),
        ({"reward": lambda before, after, action: action}, r"reward has shape \(1,\), expected \(\)"),
        ({"cost": lambda view: view.qpos}, r"cost has shape \(1,\), expected \(\)"),
    ],
)
def test_what_a_task_gives_in_another_shape_is_refused(changes, message):
    env = build(TASK._replace(**changes), ENGINE)
    with pytest.raises(ValueError, match=rf"^counter: {message}(\n|$)"):
        jax.eval_shape(env.step, jax.eval_shape(ENV.reset, jax.random.key(0)), jnp.zeros(1), jax.random.key(0))


def test_an_action_may_be_a_list():
    state = ENV.reset(jax.random.key(0))
    listed, given = (ENV.step(state, action, jax.random.key(1)) for action in ([0.5], jnp.array([0.5])))
    jax.tree.map(np.testing.assert_array_equal, listed, given)
