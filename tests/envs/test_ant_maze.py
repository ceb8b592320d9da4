"""Ant-Maze: the maps of Point-Maze four times as large, around the ant of the velocity task."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from scipy import stats

from safejax import envs
from safejax.envs.engines import mjx as mjx_engine
from safejax.envs.engines.base import load_model
from safejax.envs.maze_behavior import waypoint_policy
from safejax.envs.tasks import View
from safejax.envs.tasks._maze import cells, centers, is_wall
from safejax.envs.tasks.ant_maze import MAZES
from safejax.envs.tasks.point_maze import MAZES as POINT_MAZES
from safejax.training import collect_maze

UMAZE = "ant_maze_umaze"
NAMES = dict(zip(MAZES, POINT_MAZES, strict=True))


def view_of(place):
    qpos, none = jnp.zeros((*np.shape(place)[:-1], 15)).at[..., :2].set(jnp.asarray(place)), jnp.zeros((0,))
    return View(qpos, jnp.ones((*np.shape(place)[:-1], 14)), none, none, none)


def model_of(name):
    return load_model(envs.task(name).model)


@pytest.mark.parametrize("name", MAZES)
def test_map_and_walls_are_the_point_mazes_times_four(name):
    ours, theirs = MAZES[name], POINT_MAZES[NAMES[name]]
    assert ours.drawing == theirs.drawing
    everywhere = np.stack(np.indices(is_wall(ours).shape), axis=-1)
    np.testing.assert_array_equal(centers(ours, everywhere), 4.0 * centers(theirs, everywhere))
    boxes = []
    for model in (model_of(name), model_of(NAMES[name])):
        walls = [index for index in range(model.ngeom) if model.geom(index).name.startswith("wall")]
        boxes.append(np.concatenate([model.geom_pos[walls, :2], model.geom_size[walls, :2]], axis=1))
        assert (model.geom_type[walls] == mujoco.mjtGeom.mjGEOM_BOX).all()
    np.testing.assert_array_equal(boxes[0], 4.0 * boxes[1])
    walls = [index for index in range(model_of(name).ngeom) if model_of(name).geom(index).name.startswith("wall")]
    np.testing.assert_array_equal(model_of(name).geom_pos[walls, 2], 1.0)  # from the floor
    np.testing.assert_array_equal(model_of(name).geom_size[walls, 2], 1.0)  # to 2 m


def test_the_robot_is_that_of_the_velocity_task():
    ours, theirs = model_of(UMAZE), model_of("ant_velocity")
    for field in ("body_mass", "body_inertia", "body_pos", "dof_armature", "dof_damping", "jnt_range", "actuator_gear"):
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))
    assert (ours.opt.timestep, ours.opt.integrator) == (theirs.opt.timestep, theirs.opt.integrator)
    assert envs.task(UMAZE).substeps * ours.opt.timestep == pytest.approx(0.1)


@pytest.mark.parametrize(("name", "length"), [(UMAZE, 700), ("ant_maze_medium", 1000), ("ant_maze_large", 1000)])
def test_goal_marks_and_length(name, length):
    task, maze = envs.task(name), MAZES[name]
    assert task.episode_length == length
    (goal,) = centers(maze, cells(maze, "G"))
    for offset, inside in (((0.5, 0), True), ((0, -0.49), True), ((-0.501, 0), False), ((0.36, 0.36), False)):
        view = view_of(goal + np.float32(offset))
        assert bool(task.terminated(view)) == inside
        assert float(task.reward(view_of(goal), view, jnp.zeros(8))) == float(inside)
    everywhere = np.stack(np.indices(is_wall(maze).shape), axis=-1)
    marked = np.array([[letter == "!" for letter in row] for row in maze.drawing], float)
    for offset in ((0, 0), (1.99, 1.99), (-1.99, 1.99), (1.99, -1.99)):
        np.testing.assert_array_equal(task.cost(view_of(centers(maze, everywhere) + np.float32(offset))), marked)
    np.testing.assert_array_equal(task.observe(view_of([3.0, -4.0])), [3.0, -4.0, *[0.0] * 13, *[1.0] * 14])


def test_episodes_start_standing_in_the_start_cell():
    task, maze = envs.task(UMAZE), MAZES[UMAZE]
    qpos, qvel = jax.jit(jax.vmap(task.initialize))(jax.random.split(jax.random.key(0), 1000))
    start = np.array([*centers(maze, cells(maze, "S"))[0], 0.75])
    joints = np.concatenate([qpos[:, :3] - start, qpos[:, 7:]], axis=1)
    assert stats.kstest(joints.reshape(-1) / 0.1, stats.uniform(-1, 2).cdf).pvalue > 0.01
    assert stats.kstest(np.ravel(qvel) / 0.1, stats.norm.cdf).pvalue > 0.01
    np.testing.assert_allclose(np.linalg.norm(qpos[:, 3:7], axis=-1), 1.0, rtol=1e-6)


def test_a_wall_stops_the_ant_and_the_floor_carries_it():
    """Thrown at 5 m/s at the wall below the start, whose face is 2 m away; the torso has a radius of 0.25 m."""
    maze = MAZES[UMAZE]
    (start,) = centers(maze, cells(maze, "S"))

    def thrown(key):
        qpos, qvel = envs.task(UMAZE).initialize(key)
        return qpos, qvel.at[1].set(-5.0)

    env = envs.make(envs.task(UMAZE)._replace(initialize=thrown), "mujoco")
    keys = jax.random.split(jax.random.key(0), 8)

    def step(state, _):
        state = jax.vmap(env.step)(state, jnp.zeros((8, 8)), keys)
        return state, state.observation

    seen = jax.jit(lambda keys: jax.lax.scan(step, jax.vmap(env.reset)(keys), length=40)[1])(keys)
    env.check()
    y, height = np.asarray(seen[..., 1]) - start[1], np.asarray(seen[..., 2])
    assert y.min() > -2.0 + 0.24
    assert (y.min(axis=0) < -0.5).all()
    assert height.min() > 0.2
    assert height.max() < 1.5


def test_mjx_takes_the_large_maze_with_a_bounded_number_of_contacts():
    """Traced only: compiling it costs a minute."""
    engine = mjx_engine.make_engine(envs.task("ant_maze_large"))
    physics = jax.eval_shape(lambda: engine.start(jnp.bool_(True), jnp.zeros(15), jnp.zeros(14)))
    assert jax.eval_shape(engine.view, physics).qpos.shape == (15,)
    model = model_of("ant_maze_large")
    data = jax.eval_shape(lambda: mjx_engine.mjx.make_data(model, impl="jax"))
    assert data._impl.contact.dist.shape == (16,)


def test_waypoints_are_the_point_mazes_times_four():
    name, found = "ant_maze_medium", []
    goal = centers(POINT_MAZES[NAMES[name]], cells(MAZES[name], "SoG")[5])
    places = np.random.default_rng(0).uniform(-3.9, 3.9, (256, 2))
    places = places[np.linalg.norm(places - goal, axis=-1) > 0.6]  # the radius of a goal is no part of a cell
    for maze, scale in ((MAZES[name], 4.0), (POINT_MAZES[NAMES[name]], 1.0)):
        policy = waypoint_policy(maze, cells(maze, "SoG"), lambda seen, target, scale=scale: 0.1 * target / scale)
        observation = jnp.asarray(scale * places, jnp.float32)
        found.append(policy.act((), observation, jax.random.key(0), jnp.full((len(places),), 5))[0])
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    assert len(np.unique(np.round(found[0], 4), axis=0)) > 20


def test_the_collector_takes_a_walker_and_has_none():
    known = ", ".join(POINT_MAZES)
    message = rf"^drive is None, expected a policy that walks in ant_maze_umaze; only {known} have one built in$"
    with pytest.raises(ValueError, match=message):
        collect_maze(UMAZE, "play", step_count=1)
    seen = []

    def drive(observation, target):
        seen.append((observation.shape, target.shape))
        return jnp.zeros((len(observation), 8))

    data = collect_maze(UMAZE, "play", step_count=6, env_count=3, drive=drive, engine="mujoco")
    assert seen[0] == ((3, 29), (3, 2))
    assert data.transitions.observation.shape == (6, 29)
    # only noise moves it
    assert 0.05 < np.std(data.transitions.action) < 0.4
