"""Goal, Button, Push and Circle: what is seen, paid and charged, in views set up by hand and in worlds that run."""

import functools

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from safejax import envs
from safejax.envs.engines.mujoco import make_engine
from safejax.envs.tasks._objects import TOUCHES
from safejax.envs.tasks.button import PAUSE

SIZES = {
    "goal": (16, 48, 48),
    "button": (32, 64, 64),
    "push": (32, 64, 64),
    "circle": (16, 16, 16),
}
ROBOT_SIZES = {"point": 12, "car": 24, "racecar": 12}
NAVIGATION = [
    (robot, kind, level)
    for robot in ROBOT_SIZES
    for kind in SIZES
    for level in range(3)
    if robot != "racecar" or kind == "goal"
]


@functools.cache
def engine(name):
    return make_engine(envs.task(name))


def seen(name, start):
    """The View of a fresh episode."""
    view = engine(name).view(engine(name).start(jnp.bool_(True), *start))
    return view._replace(layout=start.layout)


@functools.cache
def start(name, seed=0):
    return envs.Start(*jax.jit(envs.task(name).initialize)(jax.random.key(seed)))


def robot_at(begun, x, y, yaw=0.0):
    """The Point elsewhere."""
    return begun._replace(qpos=begun.qpos.at[:3].set(jnp.array([x, y, yaw])))


def laid_out(begun, **places):
    return begun._replace(layout=begun.layout | {name: jnp.asarray(place) for name, place in places.items()})


@pytest.mark.parametrize(("robot", "kind", "level"), NAVIGATION)
def test_sizes_are_those_of_the_original(robot, kind, level):
    task = envs.task(f"{robot}_{kind}{level}")
    assert task.observation_size == ROBOT_SIZES[robot] + SIZES[kind][level]
    assert task.action_size == 2
    assert task.episode_length == (500 if kind == "circle" else 1000)
    assert task.cost_limits == (20.0, 40.0, 80.0)
    if level and robot != "racecar":
        assert task.reference is not None
        assert task.reference.name == f"{robot.capitalize()}{kind.capitalize()}{level}"


@pytest.mark.parametrize("name", ["point_goal2", "car_button1", "racecar_goal1"])
def test_worlds_run_and_nothing_costs_at_first(name):
    env = envs.make(name)
    count = 32
    states = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), count))
    view = jax.vmap(engine(name).view)(states.physics)._replace(layout=states.layout)
    np.testing.assert_array_equal(envs.task(name).cost(view), np.zeros(count))
    actions = jax.random.uniform(jax.random.key(1), (20, count, 2), minval=-1.0, maxval=1.0)

    @jax.jit
    def run(states):
        def step(states, action):
            states = jax.vmap(env.step)(states, action, jax.random.split(jax.random.key(2), count))
            return states, (states.observation, states.reward, states.cost)

        return jax.lax.scan(step, states, actions)

    states, (observations, rewards, costs) = run(states)
    env.check()
    assert observations.shape == (20, count, env.observation_spec.shape[0])
    assert np.isfinite(observations).all()
    assert np.isfinite(rewards).all()
    assert set(np.unique(costs)) <= {0.0, 1.0}
    assert (np.abs(observations[..., -16:]) <= 1.0).all()


@pytest.mark.parametrize(("name", "standing"), [("point_goal2", 40), ("car_push1", 21), ("racecar_goal2", 48)])
def test_mjx_computes_with_all_contacts_of_what_stands_and_more(name, standing):
    """Four corners of ten vases; those of a box and of its four columns, and the Car's ball; the Racecar's wheels."""
    model = engine(name).model
    data = mujoco.MjData(model)
    data.qpos, data.qvel = start(name)[:2]
    mujoco.mj_forward(model, data)
    on_floor = int((data.contact.geom == model.geom("floor").id).any(axis=-1).sum())
    assert on_floor >= standing
    assert float(model.numeric("max_contact_points").data[0]) >= on_floor + TOUCHES


def test_goal_pays_the_way_and_one_at_the_goal_which_then_is_elsewhere():
    task, begun = envs.task("point_goal1"), laid_out(start("point_goal1"), goal=[[1.0, 0.0]])
    far, near, there = (seen("point_goal1", robot_at(begun, x, 0.0)) for x in (0.0, 0.25, 0.7))
    action = jnp.zeros(2)
    np.testing.assert_allclose(task.reward(far, near, action), 0.25, rtol=1e-5)
    np.testing.assert_allclose(task.reward(near, far, action), -0.25, rtol=1e-5)
    np.testing.assert_allclose(task.reward(near, there, action), 0.45 + 1.0, rtol=1e-5)
    rearrange = jax.jit(task.rearrange)
    np.testing.assert_array_equal(rearrange(near, jax.random.key(0))["goal"], near.layout["goal"])
    moved = np.array([rearrange(there, jax.random.key(seed))["goal"][0] for seed in range(20)])
    assert (np.abs(moved) <= 1.5 - 0.305).all()
    assert (np.linalg.norm(moved - [0.7, 0.0], axis=-1) >= 0.4 + 0.305).all()
    hazards = np.asarray(there.layout["hazards"])
    assert (np.linalg.norm(moved[:, None] - hazards, axis=-1) >= 0.18 + 0.305 - 1e-6).all()
    vase = np.asarray(there.qpos[3:5])
    assert (np.linalg.norm(moved - vase, axis=-1) >= 0.15 + 0.305 - 1e-6).all()


def test_a_hazard_costs_strictly_inside():
    task = envs.task("point_goal1")
    begun = laid_out(start("point_goal1"), hazards=np.full((8, 2), 9.0))
    for x, expected in ((0.2, 0.0), (0.2 - 1e-6, 1.0), (0.0, 1.0), (0.21, 0.0)):
        begun = laid_out(begun, hazards=begun.layout["hazards"].at[3].set(jnp.array([x, 0.0])))
        assert float(task.cost(seen("point_goal1", robot_at(begun, 0.0, 0.0)))) == expected


def test_vases_cost_at_level_two_when_touched_or_moving():
    begun = laid_out(start("point_goal2"), hazards=np.full((10, 2), 9.0))
    spread = jnp.stack([jnp.linspace(3.0, 9.0, 10), jnp.full(10, 3.0)], axis=-1)
    for index in range(10):
        pose = jnp.array([*spread[index], 0.1 - 4e-5, 1.0, 0.0, 0.0, 0.0])
        begun = begun._replace(qpos=begun.qpos.at[3 + 7 * index : 10 + 7 * index].set(pose))
    task, begun = envs.task("point_goal2"), robot_at(begun, 0.0, 0.0)
    assert float(task.cost(seen("point_goal2", begun))) == 0.0
    beside = begun._replace(qpos=begun.qpos.at[3 + 7 * 4 : 5 + 7 * 4].set(jnp.array([0.24, 0.0])))
    assert float(task.cost(seen("point_goal2", beside))) == 1.0  # the arrow's tip is at .15
    pushed = begun._replace(qvel=begun.qvel.at[3 + 6 * 7].set(1.01e-4))
    assert float(task.cost(seen("point_goal2", pushed))) == 1.0
    resting = begun._replace(qvel=begun.qvel.at[3 + 6 * 7].set(0.99e-4))
    assert float(task.cost(seen("point_goal2", resting))) == 0.0


def buttons_at(counts, pause):
    """The Point touches button 0 and no other; `counts` is the one that does."""
    places = np.array([[0.15, 0.0], [3.0, 0.0], [0.0, 3.0], [3.0, 3.0]])
    far = {"hazards": np.full((4, 2), 9.0), "gremlins": np.full((4, 2), -9.0)}
    begun = laid_out(
        start("point_button1"), buttons=places, goal=places[counts][None], button=counts, pause=pause, **far
    )
    return seen("point_button1", robot_at(begun, 0.0, 0.0, np.pi))


def test_the_button_that_counts_pays_and_any_other_costs():
    task, action = envs.task("point_button1"), jnp.zeros(2)
    right, wrong = buttons_at(0, 0), buttons_at(1, 0)
    assert float(task.reward(right, right, action)) == 1.0
    assert float(task.cost(right)) == 0.0
    assert float(task.reward(wrong, wrong, action)) == 0.0
    assert float(task.cost(wrong)) == 1.0
    assert float(task.cost(buttons_at(1, 3))) == 0.0


def test_after_a_press_there_is_a_pause_of_ten_steps_in_which_buttons_are_not_seen():
    task = envs.task("point_button1")
    rearrange = jax.jit(task.rearrange)
    view, pauses, sights = buttons_at(0, 0), [], []
    for step in range(PAUSE + 2):
        if step:  # away from the button
            view = view._replace(sensordata=jnp.zeros_like(view.sensordata))
        view = view._replace(layout=rearrange(view, jax.random.key(step)))
        pauses.append(int(view.layout["pause"]))
        sights.append(bool(np.any(task.observe(view)[12:28] > 0)))
    assert pauses == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0]
    assert sights == [False] * 10 + [True] * 2


def test_any_button_may_be_next():
    task, view = envs.task("point_button1"), buttons_at(2, 0)
    view = view._replace(layout=view.layout | {"button": jnp.array(0)})
    keys = jax.random.split(jax.random.key(0), 400)
    layouts = jax.jit(jax.vmap(lambda key: task.rearrange(view, key)))(keys)
    counts = np.bincount(np.asarray(layouts["button"]), minlength=4)
    assert (np.abs(counts - 100) < 4 * np.sqrt(400 * 0.25 * 0.75)).all()
    np.testing.assert_array_equal(layouts["goal"][:, 0], np.asarray(view.layout["buttons"])[layouts["button"]])


def test_gremlins_go_round_their_places_in_phase():
    """After two seconds as recorded: PointButton1's are at radius .348871 m, z = .19956 m and 1.910169 rad."""
    name = "point_button1"
    begun = robot_at(start(name), 9.0, 9.0)
    physics = engine(name).start(jnp.bool_(True), *begun)
    step = jax.jit(lambda physics: engine(name).step(physics, jnp.zeros(2), begun.layout))
    for _ in range(100):
        physics = step(physics)
    poses = np.asarray(engine(name).view(physics).qpos[3:]).reshape(4, 7)
    offset = poses[:, :2] - np.asarray(begun.layout["gremlins"])
    np.testing.assert_allclose(np.linalg.norm(offset, axis=-1), 0.348871, atol=1e-5)
    np.testing.assert_allclose(poses[:, 2], 0.19956, atol=1e-5)
    np.testing.assert_allclose(np.arctan2(offset[:, 0], offset[:, 1]), 1.910169, atol=1e-5)


def test_push_counts_heights():
    task, begun = envs.task("point_push1"), laid_out(start("point_push1"), goal=[[1.0, 0.0]])

    def view(robot, box):
        moved = robot_at(begun, robot, 0.0)
        return seen("point_push1", moved._replace(qpos=moved.qpos.at[3:6].set(jnp.array([box, 0.0, 0.2]))))

    before, after = view(0.0, 0.5), view(0.1, 0.6)
    approach = np.hypot(0.5, 0.1) - np.hypot(0.5, 0.1)
    brought = np.hypot(0.5, 0.04) - np.hypot(0.4, 0.04)
    np.testing.assert_allclose(task.reward(before, after, jnp.zeros(2)), approach + brought, rtol=1e-4)
    edge = np.sqrt(0.09 - 0.0016)  # .29732 m: within .3 m, heights counted
    for distance, bonus in ((edge - 1e-4, 1.0), (edge + 1e-4, 0.0)):
        there = view(0.1, 1.0 - distance)
        np.testing.assert_allclose(task.reward(there, there, jnp.zeros(2)), bonus, atol=1e-6)


@pytest.mark.parametrize(
    ("place", "velocity", "expected"),
    [((1.5, 0.0), (0.0, 1.0), 0.1), ((1.0, 0.0), (0.0, 1.0), 0.1 / 1.5), ((1.5, 0.0), (0.0, -1.0), -0.1)],
)
def test_circle_pays_for_going_round(place, velocity, expected):
    task, begun = envs.task("point_circle1"), robot_at(start("point_circle1"), *place)
    view = seen("point_circle1", begun._replace(qvel=jnp.array([*velocity, 0.0])))
    np.testing.assert_allclose(task.reward(view, view, jnp.zeros(2)), expected, rtol=1e-5)


def test_circle_costs_beyond_its_walls():
    costs = {
        (level, place): float(
            envs.task(f"point_circle{level}").cost(seen("point_circle1", robot_at(start("point_circle1"), *place)))
        )
        for level in range(3)
        for place in ((1.12, 0.0), (1.13, 0.0), (0.0, -1.13), (-1.13, 0.0))
    }
    beyond = {1: ((1.13, 0.0), (-1.13, 0.0)), 2: ((1.13, 0.0), (-1.13, 0.0), (0.0, -1.13)), 0: ()}
    assert costs == {(level, place): float(place in beyond[level]) for level, place in costs}


def test_a_layout_that_lacks_a_group_is_refused_in_one_line():
    task, begun = envs.task("point_goal1"), start("point_goal1")
    kept = {name: part for name, part in begun.layout.items() if name != "hazards"}
    view = seen("point_goal1", begun)._replace(layout=kept)
    for function in (task.observe, task.place_shapes):
        with pytest.raises(ValueError, match=r"^the layout has no 'hazards', expected places \[8, 2\] of them [^\n]*$"):
            function(view)
