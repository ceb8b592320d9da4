"""What a task draws beside the physics: layouts that change, and bodies that follow them, on both engines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safejax import envs
from safejax.envs import Start, Task
from safejax.envs.engines import mjx as mjx_engine
from safejax.envs.engines import mujoco as host_engine
from safejax.envs.wrappers import build, where_needed

SLIDER = """
<mujoco>
  <option timestep="0.01" gravity="0 0 0"/>
  <worldbody>
    <body name="slider">
      <joint type="slide" axis="1 0 0"/>
      <geom size="0.05" mass="1" contype="0" conaffinity="0"/>
    </body>
    <body name="target" mocap="true">
      <geom size="0.05" contype="0" conaffinity="0"/>
    </body>
  </worldbody>
</mujoco>
"""


def mocap(layout, time):
    """On a circle about the goal, at its phase."""
    xp = time.__array_namespace__()
    zero = xp.zeros_like(time)
    place = layout["goal"] + xp.stack([xp.sin(time), xp.cos(time), zero], axis=-1)
    turn = xp.stack([xp.cos(0.5 * time), zero, zero, xp.sin(0.5 * time)], axis=-1)
    return xp.concat([place, turn], axis=-1)[..., None, :]


def rearrange(view, key):
    """The goal jumps to the slider and beyond, once the slider has passed it."""
    met = view.qpos[..., 0] > view.layout["goal"][0]
    goal = jnp.where(met, view.layout["goal"] + jnp.array([1.0, 0.0, 0.0]), view.layout["goal"])
    return {"goal": goal, "met": view.layout["met"] + met}


TASK = Task(
    name="slider",
    model=SLIDER,
    substeps=4,
    episode_length=6,
    observation_size=4,
    action_size=1,
    initialize=lambda key: Start(
        jnp.zeros(1),
        jnp.full(1, 10.0),
        {"goal": jnp.array([0.9, jax.random.uniform(key), 0.5]), "met": jnp.zeros((), jnp.int32)},
    ),
    observe=lambda view: jnp.concatenate([view.qpos, view.layout["goal"]], axis=-1),
    reward=lambda before, after, action: after.qpos[..., 0] - after.layout["goal"][..., 0],
    cost=lambda view: view.layout["met"].astype(jnp.float32),
    mocap=mocap,
    mocap_moves=True,
    rearrange=rearrange,
)
STEP = 0.4  # m that the slider moves in a step of 4 substeps of 0.01 s


@pytest.fixture(scope="module", params=[host_engine, mjx_engine], ids=["mujoco", "mjx"])
def states(request):
    """Seven states of one world: a reset and six steps, the last of which ends the episode."""
    env = build(TASK, request.param.make_engine(TASK))
    step = jax.jit(env.step)
    states = [jax.jit(env.reset)(jax.random.key(0))]
    for index in range(6):
        states.append(step(states[-1], jnp.zeros(1), jax.random.key(index)))
    env.check()
    view = request.param.make_engine(TASK).view
    return states, [view(state.physics) for state in states]


def test_a_step_is_paid_by_the_layout_it_was_made_in_and_seen_in_the_next(states):
    states, _ = states
    goals = [0.9, 0.9, 0.9, 1.9, 1.9, 2.9]  # after 0 to 5 steps: passed on the third and the fifth
    for count, state in enumerate(states[:6]):
        np.testing.assert_allclose(state.observation[:2], [STEP * count, goals[count]], rtol=1e-5, atol=1e-6)
        if count:
            np.testing.assert_allclose(state.reward, STEP * count - goals[count - 1], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal([int(state.cost) for state in states[1:]], [0, 0, 0, 1, 1, 2])


def test_an_ended_episode_draws_a_fresh_layout(states):
    states, _ = states
    last = states[6]
    assert last.truncated
    np.testing.assert_allclose(last.final_observation[1], 2.9, rtol=1e-6)
    np.testing.assert_allclose(last.observation[:2], [0.0, 0.9], rtol=1e-6)
    assert int(last.layout["met"]) == 0
    assert not np.allclose(last.layout["goal"][1], states[0].layout["goal"][1])


def test_bodies_follow_the_layout_and_the_time(states):
    states, views = states
    for count in range(6):
        # set before the last physics step: of the layout then, at the time before it
        time = 0.04 * count - 0.01 if count else 0.0
        goal = np.asarray(states[max(count - 1, 0)].layout["goal"])
        expected = goal + np.array([np.sin(time), np.cos(time), 0.0])
        np.testing.assert_allclose(views[count].xpos[2], expected, atol=1e-5)
        turn = [np.cos(0.5 * time), 0.0, 0.0, np.sin(0.5 * time)]
        np.testing.assert_allclose(views[count].xquat[2], turn, atol=1e-5)


def test_nothing_is_drawn_while_no_row_needs_it():
    drawn = []

    def draw(needed, key):
        jax.debug.callback(lambda: drawn.append(1))
        return {"place": jax.random.uniform(key, (2,)) + 1.0}

    keys = jax.random.split(jax.random.key(0), 3)
    run = jax.jit(jax.vmap(lambda needed, key: where_needed(needed, draw, key)))
    none = run(jnp.zeros(3, bool), keys)
    jax.effects_barrier()
    assert not drawn
    np.testing.assert_array_equal(none["place"], np.zeros((3, 2)))
    some = run(jnp.array([False, True, False]), keys)
    jax.effects_barrier()
    assert drawn
    assert (np.asarray(some["place"]).min(axis=-1) >= [0.0, 1.0, 0.0]).all()
    np.testing.assert_array_equal(some["place"][::2], np.zeros((2, 2)))


def test_a_task_without_a_layout_gives_none():
    state = envs.make("ball_circle").reset(jax.random.key(0))
    assert state.layout == ()
