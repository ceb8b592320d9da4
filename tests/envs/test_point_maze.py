"""Point-Maze: maps, physics and task by hand arithmetic; its behavior policy, and the data collected with it."""

import sys

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from scipy import stats

from safejax import envs
from safejax.data import episode_returns
from safejax.envs import maze_behavior, tasks
from safejax.envs.engines.base import load_model
from safejax.envs.tasks import View
from safejax.envs.tasks._maze import GOAL_RADIUS, START_NOISE, cells, centers, is_wall
from safejax.envs.tasks.point_maze import MAZES, start_in
from safejax.training import collect_maze

UMAZE, MEDIUM, LARGE = MAZES
FREE = "S.!oG"


def numbers(maze, letters):
    return cells(maze, letters) @ [len(maze.drawing[0]), 1]


def view_of(position, velocity=(0.0, 0.0)):
    none = jnp.zeros((0,))
    return View(jnp.asarray(position, jnp.float32), jnp.asarray(velocity, jnp.float32), none, none, none)


def gap(maze, position):
    """[...] m from `position` [..., 2] to the nearest wall."""
    walls = centers(maze, np.argwhere(is_wall(maze)))
    outside = np.maximum(np.abs(np.asarray(position)[..., None, :] - walls) - 0.5, 0)
    return np.linalg.norm(outside, axis=-1).min(axis=-1)


def run(env, act, length, count):
    """States [T, B], without physics, under act(observation [B, O], time [] int32) -> [B, A]."""
    keys = jax.random.split(jax.random.key(0), count)

    def step(states, time):
        states = jax.vmap(env.step)(states, act(states.observation, time), keys)
        return states, states._replace(physics=())

    states = jax.jit(lambda keys: jax.lax.scan(step, jax.vmap(env.reset)(keys), jnp.arange(length))[1])(keys)
    env.check()
    return jax.tree.map(np.asarray, states)


# maps


def test_a_file_may_bind_a_family(tmp_path, monkeypatch):
    assert set(MAZES) | {"ball_circle"} <= set(envs.names())
    assert list(envs.names()) == sorted(envs.names())
    for name in MAZES:
        assert envs.task(name).name == name
        assert envs.make(name, "mujoco") is envs.make(name, "mujoco")
    monkeypatch.setattr(tasks, "__path__", [str(tmp_path)])
    known = set(sys.modules)
    try:
        bind = "from safejax.envs import task\nTASK = task('ball_circle')\nTASKS = (task('point_maze_large'),)\n"
        (tmp_path / "both.py").write_text(bind)
        (tmp_path / "_hidden.py").write_text("raise ImportError")
        assert list(tasks._tasks.__wrapped__()) == ["ball_circle", "point_maze_large"]
        (tmp_path / "clash.py").write_text("from safejax.envs import task\nTASKS = (task('ball_circle'),)\n")
        with pytest.raises(ValueError, match=r"^tasks/clash.py: a task 'ball_circle' exists already; [^\n]*$"):
            tasks._tasks.__wrapped__()
        (tmp_path / "bare.py").write_text("")
        with pytest.raises(ValueError, match=r"^tasks/bare.py binds neither TASK nor TASKS; [^\n]*$"):
            tasks._tasks.__wrapped__()
    finally:
        for name in set(sys.modules) - known:
            del sys.modules[name]


@pytest.mark.parametrize("name", MAZES)
def test_the_boxes_are_the_walls_of_the_map(name):
    maze = MAZES[name]
    model = load_model(envs.task(name).model)
    walls = [i for i in range(model.ngeom) if model.geom(i).name.startswith("wall")]
    assert (model.geom_type[walls] == mujoco.mjtGeom.mjGEOM_BOX).all()
    low, high = (model.geom_pos[walls, :2] + sign * model.geom_size[walls, :2] for sign in (-1, 1))
    origin = np.array([len(maze.drawing[0]), len(maze.drawing)]) / 2
    for corner in (low, high):
        np.testing.assert_array_equal((corner + origin) % 1, 0)  # whole cells
    everywhere = np.stack(np.indices(is_wall(maze).shape), axis=-1)
    middle = centers(maze, everywhere)[:, :, None]
    np.testing.assert_array_equal(((low < middle) & (middle < high)).all(-1).any(-1), is_wall(maze))
    # rows go down from the largest y, columns right from the least x
    np.testing.assert_array_equal(centers(maze, [0, 0]), [0.5 - origin[0], origin[1] - 0.5])
    assert is_wall(maze)[[0, -1]].all()
    assert is_wall(maze)[:, [0, -1]].all()
    assert len(cells(maze, "S")) == len(cells(maze, "G")) == 1


def test_distances_by_hand():
    maze = MAZES[UMAZE]
    found = maze_behavior.distances(is_wall(maze))
    (goal,) = numbers(maze, "G")
    expected = [
        [-1, -1, -1, -1, -1],
        [-1, 0, 1, 2, -1],
        [-1, -1, -1, 3, -1],
        [-1, 6, 5, 4, -1],
        [-1, -1, -1, -1, -1],
    ]
    np.testing.assert_array_equal(found[goal].reshape(5, 5), expected)
    np.testing.assert_array_equal(found, found.T)


@pytest.mark.parametrize(("name", "short", "detour"), [(UMAZE, 6, -1), (MEDIUM, 10, 16), (LARGE, 14, 22)])
def test_a_detour_avoids_the_marked_cells_where_the_map_has_one(name, short, detour):
    maze = MAZES[name]
    (start,), (goal,) = numbers(maze, "S"), numbers(maze, "G")
    assert maze_behavior.distances(is_wall(maze))[start, goal] == short
    closed = is_wall(maze)
    closed[tuple(cells(maze, "!").T)] = True
    assert maze_behavior.distances(closed)[start, goal] == detour


@pytest.mark.parametrize("name", MAZES)
def test_following_the_next_cells_takes_as_many_steps_as_the_distance(name):
    wall = is_wall(MAZES[name])
    found, following = maze_behavior.distances(wall), maze_behavior.next_cells(wall)
    free = np.flatnonzero(~wall.reshape(-1))
    assert (found[np.ix_(free, free)] >= 0).all()
    for goal in free:
        at = free.copy()
        for taken in range(found.max() + 1):
            np.testing.assert_array_equal(at == goal, found[free, goal] <= taken)
            assert np.isin(np.abs(following[at, goal] - at), (0, 1, wall.shape[1])).all()
            at = following[at, goal]


# physics


def test_free_motion_by_hand():
    """m v' = m v + h (f - c v'), x' = x + h v', with m = 1 kg, c = 2.5 N s/m, f = 5 N, h = 0.01 s."""
    env = envs.make(UMAZE, "mujoco")
    state, step = env.reset(jax.random.key(0)), jax.jit(env.step)
    position, velocity = np.array(state.observation[:2], np.float64), np.zeros(2)
    for action in ([1.0, 0.0], [0.5, 0.1], [2.0, -0.1], [-1.0, 0.0]):  # 2 is clipped to 1
        state = step(state, jnp.array(action), jax.random.key(0))
        for _ in range(5):
            velocity = (velocity + 0.01 * 5.0 * np.clip(action, -1, 1)) / (1 + 0.01 * 2.5)
            position = position + 0.01 * velocity
        np.testing.assert_allclose(state.observation, [*position, *velocity], atol=1e-6)
    np.testing.assert_allclose(5.0 / 2.5, 2.0)  # the top speed that the module states


@pytest.mark.parametrize("name", MAZES)
def test_walls_stop_the_mass(name):
    maze = MAZES[name]
    anywhere = envs.task(name)._replace(initialize=start_in(maze, cells(maze, FREE)))
    push = jax.random.uniform(jax.random.key(1), (128, 2), minval=-2.0, maxval=2.0)
    states = run(envs.make(anywhere, "mujoco"), lambda observation, time: push, 40, 128)
    gaps = gap(maze, states.final_observation[..., :2])
    assert gaps.min() > 0.17
    assert (gaps < 0.2).mean() > 0.3  # or nothing was tested


def test_a_wall_takes_only_the_push_into_it():
    maze, push = MAZES[UMAZE], jnp.tile(jnp.array([1.0, -1.0]), (4, 1))
    states = run(envs.make(UMAZE, "mujoco"), lambda observation, time: push, 18, 4)
    y, vx, vy = np.moveaxis(states.final_observation[-1, :, 1:], -1, 0)
    floor = centers(maze, cells(maze, "S"))[0, 1] - 0.5
    np.testing.assert_allclose(y, floor + 0.2, atol=0.01)
    np.testing.assert_allclose(vy, 0, atol=1e-3)
    np.testing.assert_allclose(vx, 2.0 * (1 - 1.025**-90), rtol=1e-4)  # as if there were no wall


@pytest.mark.slow
def test_engines_agree():
    """Up to rounding; a wall without friction hardly amplifies it."""
    maze = MAZES[UMAZE]
    task = envs.task(UMAZE)._replace(terminated=lambda view: False)
    pushes = jnp.repeat(jax.random.uniform(jax.random.key(1), (6, 16, 2), minval=-1.5, maxval=1.5), 10, axis=0)

    mjx, host = (run(envs.make(task, engine), lambda _, time: pushes[time], 60, 16) for engine in ("mjx", "mujoco"))
    free = np.minimum.accumulate(gap(maze, host.observation[..., :2]), axis=0) > 0.21
    assert 0.1 < free.mean() < 0.9
    error = np.abs(mjx.observation - host.observation).max(axis=-1)
    assert error[free].max() < 1e-5
    assert np.median(error[-1]) < 1e-3
    for ours, theirs in ((mjx.reward, host.reward), (mjx.cost, host.cost)):
        np.testing.assert_array_equal(ours[free], theirs[free])


# task


@pytest.mark.parametrize("name", MAZES)
def test_the_goal_pays_and_ends_exactly_at_its_radius(name):
    task, maze = envs.task(name), MAZES[name]
    (goal,) = centers(maze, cells(maze, "G"))
    for offset, inside in (((0.5, 0), True), ((0, -0.5), True), ((-0.5001, 0), False), ((0.36, 0.36), False)):
        view = view_of(goal + np.float32(offset))
        assert bool(task.terminated(view)) == inside
        for action in (jnp.zeros(2), jnp.ones(2)):
            assert float(task.reward(view_of(goal), view, action)) == float(inside)
    np.testing.assert_array_equal(task.observe(view_of([1.0, -2.0], [0.25, 3.0])), [1.0, -2.0, 0.25, 3.0])


@pytest.mark.parametrize("name", MAZES)
def test_marked_cells_cost_and_no_others(name):
    task, maze = envs.task(name), MAZES[name]
    everywhere = np.stack(np.indices(is_wall(maze).shape), axis=-1)
    marked = np.array([[letter == "!" for letter in row] for row in maze.drawing], float)
    for offset in ((0, 0), (0.49, 0.49), (-0.49, 0.49), (0.49, -0.49)):
        view = view_of(centers(maze, everywhere) + np.float32(offset), np.ones((*marked.shape, 2)))
        np.testing.assert_array_equal(task.cost(view), marked)
    assert marked.sum() in (1, 2)


@pytest.mark.parametrize("name", MAZES)
def test_episodes_start_at_rest_in_the_start_cell(name):
    task, maze = envs.task(name), MAZES[name]
    qpos, qvel = jax.vmap(task.initialize)(jax.random.split(jax.random.key(0), 1000))
    offset = (qpos - centers(maze, cells(maze, "S"))[0]) / START_NOISE
    assert stats.kstest(offset.reshape(-1), stats.uniform(-1, 2).cdf).pvalue > 0.01
    np.testing.assert_array_equal(qvel, 0)


# behavior


def test_goals_are_drawn_uniformly_and_anew_when_reached():
    maze = MAZES[MEDIUM]
    goals = cells(maze, maze_behavior.GOALS["play"])
    policy = maze_behavior.waypoint_policy(maze, goals)
    places = centers(maze, goals)
    count = 4000
    assert len(goals) == 6

    def command(position, goal, key=0):
        observation = jnp.tile(jnp.array([*position, 0.0, 0.0], jnp.float32), (count, 1))
        carry = policy.initial_carry((), count) if goal is None else jnp.full((count,), goal, jnp.int32)
        return np.asarray(policy.act((), observation, jax.random.key(key), carry, explore=True)[1])

    drawn = command(places[0], None)
    assert stats.chisquare(np.bincount(drawn, minlength=6)).pvalue > 0.01
    np.testing.assert_array_equal(command(places[3] + [GOAL_RADIUS + 0.01, 0], 3), 3)
    other = np.bincount(command(places[3] + [GOAL_RADIUS - 0.01, 0], 3), minlength=6)
    assert other[3] == 0
    assert stats.chisquare(np.delete(other, 3)).pvalue > 0.01


@pytest.mark.parametrize(("name", "steps"), [(UMAZE, 77), (MEDIUM, 138), (LARGE, 179)])
def test_without_noise_the_mass_takes_the_short_way_and_touches_no_wall(name, steps):
    maze = MAZES[name]
    policy = maze_behavior.waypoint_policy(maze, np.concatenate([cells(maze, "G"), cells(maze, "S")]))

    def to_goal(observation, time):
        return policy.act((), observation, jax.random.key(0), jnp.zeros(len(observation), jnp.int32))[0]

    states = run(envs.make(name, "mujoco"), to_goal, steps + 5, 8)
    first = states.terminated.argmax(axis=0)
    np.testing.assert_allclose(first + 1, steps, atol=2)
    assert gap(maze, states.final_observation[..., :2]).min() > 0.2
    costs = [states.cost[: end + 1, index].sum() for index, end in enumerate(first)]
    np.testing.assert_array_equal(costs, {UMAZE: 12, MEDIUM: 27, LARGE: 28}[name])


# data


@pytest.fixture(scope="module", params=[(UMAZE, "play"), (MEDIUM, "play"), (MEDIUM, "diverse")], ids="-".join)
def data(request):
    name, kind = request.param
    return name, kind, jax.tree.map(np.asarray, collect_maze(name, kind, episode_count=100, seed=3, engine="mujoco"))


def test_rows_continue_and_only_the_goal_pays(data):
    name, kind, dataset = data
    maze, rows = MAZES[name], dataset.transitions
    inner = np.flatnonzero(rows.last[:-1] == 0)
    np.testing.assert_array_equal(rows.next_observation[inner], rows.observation[inner + 1])
    assert (rows.next_observation[:-1][rows.last[:-1] > 0] != rows.observation[1:][rows.last[:-1] > 0]).any(1).all()
    (goal,) = centers(maze, cells(maze, "G"))
    at_goal = np.linalg.norm(rows.next_observation[:, :2] - goal, axis=-1) <= GOAL_RADIUS
    np.testing.assert_array_equal(rows.reward, at_goal)
    np.testing.assert_array_equal(rows.discount, 1.0 - at_goal)
    assert (rows.last[at_goal] == 1).all()
    cell = np.abs(rows.next_observation[:, None, :2] - centers(maze, cells(maze, "!"))).max(-1).min(-1) < 0.5
    np.testing.assert_array_equal(rows.cost, cell)
    assert dataset.episode_length.shape == (100,)
    timed_out = rows.discount[dataset.episode_start + dataset.episode_length - 1] == 1
    assert (dataset.episode_length[timed_out] == maze.episode_length).all()
    assert (dataset.episode_length <= maze.episode_length).all()
    begin = rows.observation[dataset.episode_start]
    np.testing.assert_array_equal(begin[:, 2:], 0)
    places = centers(maze, cells(maze, maze_behavior.STARTS[kind]))
    off = np.abs(begin[:, None, :2] - places).max(axis=-1)  # [episodes, places]
    assert off.min(axis=1).max() <= START_NOISE
    used = np.unique(off.argmin(axis=1))
    assert len(used) == {"play": len(places), "diverse": 25}[kind]


def test_most_episodes_do_not_go_from_start_to_goal(data):
    name, kind, dataset = data
    maze, (reached, costs, lengths) = MAZES[name], map(np.asarray, episode_returns(dataset))
    low, high = {(UMAZE, "play"): (0.9, 1.0), (MEDIUM, "play"): (0.6, 0.85), (MEDIUM, "diverse"): (0.4, 0.7)}[
        name, kind
    ]
    assert low < reached.mean() < high
    begin = dataset.transitions.observation[dataset.episode_start, :2]
    from_start = np.abs(begin - centers(maze, cells(maze, "S"))[0]).max(axis=-1) <= START_NOISE
    shortest = {UMAZE: 77, MEDIUM: 138}[name]
    direct = from_start & (reached > 0) & (lengths < 1.25 * shortest)
    assert direct.mean() < {UMAZE: 0.4, MEDIUM: 0.15}[name]
    assert costs.max() > maze.cost_limits[-1]
    assert costs.min() == 0


def test_the_same_arguments_give_the_same_data_and_others_do_not():
    def episodes(kind="play", seed=5, **counts):
        dataset = collect_maze(UMAZE, kind, seed=seed, engine="mujoco", env_count=3, **(counts or {"episode_count": 4}))
        return jax.tree.map(np.asarray, dataset)

    ours = episodes()
    jax.tree.map(np.testing.assert_array_equal, ours, episodes())
    assert len(ours.episode_start) == 4
    for other in (episodes(seed=6), episodes(kind="diverse")):
        assert not np.array_equal(other.transitions.observation, ours.transitions.observation)
    # by steps: the same streams, 134, 133 and 133 rows of the three environments
    cut = episodes(step_count=400)
    assert len(cut.transitions.reward) == 400
    shared = min(134, int(ours.episode_length[:2].sum()))
    np.testing.assert_array_equal(cut.transitions.action[:shared], ours.transitions.action[:shared])
    np.testing.assert_array_equal(cut.transitions.last[[133, 266, 399]], 1)
    np.testing.assert_array_equal(cut.transitions.discount, 1 - cut.transitions.reward)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            dict(name="ball_circle", kind="play", step_count=1),
            "name is 'ball_circle', expected one of ant_maze_large, ",
        ),
        (dict(name=UMAZE, kind="diver", step_count=1), "kind is 'diver', expected one of diverse, play"),
        (
            dict(name=UMAZE, kind="play", step_count=1, engine="bullet"),
            "engine is 'bullet', expected one of mjx, mujoco",
        ),
        (dict(name=UMAZE, kind="play"), "episode_count is None and step_count None, expected one number and one None"),
        (dict(name=UMAZE, kind="play", episode_count=1, step_count=1), "episode_count is 1 and step_count 1, expected"),
        (dict(name=UMAZE, kind="play", episode_count=0), "episode_count is 0, expected"),
        (dict(name=UMAZE, kind="play", step_count=5, env_count=0), "env_count is 0, expected"),
    ],
)
def test_faults_are_named_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=rf"^{message}[^\n]*$"):
        collect_maze(**arguments)
