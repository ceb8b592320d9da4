"""The ant's walker: what it sees turns with it, what it is paid for; it is trained once and steered by its target."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np

from safejax.envs.tasks import View

ant_walker = importlib.import_module("ant_walker")
TINY = ant_walker.Recipe(steps=128, env_count=4, rollout_length=16, chunk=1, hidden_sizes=(8,))


def view_of(qpos, target):
    none = jnp.zeros((0,))
    return View(jnp.asarray(qpos, jnp.float32), jnp.zeros(14), none, none, none, layout=jnp.asarray(target))


def standing(x=0.0, y=0.0, height=0.75, orientation=(1.0, 0.0, 0.0, 0.0)):
    return np.array([x, y, height, *orientation, *[0.1] * 8], np.float32)


def test_what_it_sees_turns_with_it():
    """The whole scene turned about the vertical and moved by (7, -3): nothing changes."""
    random = np.random.default_rng(0)
    quaternion = random.normal(size=4)
    qpos, qvel = standing(0.3, -0.2, 0.6, quaternion / np.linalg.norm(quaternion)), random.normal(size=14)
    target, angle = np.array([2.0, 1.0]), 0.9
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    half = np.array([np.cos(angle / 2), np.sin(angle / 2)])
    w, x, y, z = qpos[3:7]
    moved, rates = qpos.copy(), qvel.copy()
    moved[:2] = turn @ qpos[:2] + [7, -3]
    moved[3:7] = half[0] * np.array([w, x, y, z]) + half[1] * np.array([-z, -y, x, w])  # (0, 0, 1) times it
    rates[:2] = turn @ qvel[:2]  # the angular velocity is in the body's frame
    before = ant_walker.seen(jnp.asarray(qpos), jnp.asarray(qvel), jnp.asarray(target))
    after = ant_walker.seen(jnp.asarray(moved), jnp.asarray(rates), jnp.asarray(turn @ target + [7, -3]))
    assert before.shape == (28,)
    np.testing.assert_allclose(after, before, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(before[-2:]), 1.0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(before[1:4]), 1.0, atol=1e-6)


def test_heading_north_a_place_in_the_east_is_to_the_right():
    north = standing(orientation=(np.sqrt(0.5), 0, 0, np.sqrt(0.5)))
    seen = ant_walker.seen(jnp.asarray(north), jnp.zeros(14).at[1].set(2.0), jnp.array([5.0, 0.0]))
    np.testing.assert_allclose(seen[1:4], [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(seen[12:14], [0.2, 0], atol=1e-6)  # it goes ahead
    np.testing.assert_allclose(seen[-2:], [0, -1], atol=1e-6)


def test_reward_is_the_speed_towards_the_place_at_most_two_less_the_effort():
    task, target = ant_walker.walk(), (4.0, 0.0)
    for end, speed in ((0.1, 1.0), (-0.1, -1.0), (0.3, 2.0), (0.0, 0.0)):
        before, after = view_of(standing(), target), view_of(standing(end), target)
        np.testing.assert_allclose(task.reward(before, after, jnp.zeros(8)), speed + 0.2, atol=1e-5)
        np.testing.assert_allclose(task.reward(before, after, jnp.ones(8)), speed, atol=1e-5)


def test_a_fall_ends_the_episode():
    task = ant_walker.walk()
    for view, fallen in ((standing(), False), (standing(orientation=(0, 1, 0, 0)), True), (standing(height=0.2), True)):
        assert bool(task.terminated(view_of(view, (1.0, 0.0)))) == fallen


def test_places_are_two_to_six_metres_away_and_change_when_reached():
    task = ant_walker.walk()
    starts = jax.vmap(task.initialize)(jax.random.split(jax.random.key(0), 200))
    away = np.linalg.norm(starts.layout, axis=-1)
    assert (away.min() >= 2.0, away.max() <= 6.0) == (True, True)
    assert np.abs(starts.layout.mean(0)).max() < 4 * 3.0 / np.sqrt(200)
    keys = jax.random.split(jax.random.key(1), 1000)
    near, far = ((0.4, 0.0), (0.6, 0.0))
    for target, share in ((near, 1.0), (far, ant_walker.TURN)):
        found = jax.vmap(lambda key, target=target: task.rearrange(view_of(standing(), target), key))(keys)
        changed = np.any(np.asarray(found) != np.float32(target), axis=-1).mean()
        assert abs(changed - share) <= 4 * np.sqrt(share * (1 - share) / len(keys))


def test_a_walker_is_trained_once_and_steered_by_its_target(tmp_path):
    drive = ant_walker.walker(tmp_path, TINY, "mujoco")
    (folder,) = tmp_path.iterdir()
    rows = (folder / "metrics.jsonl").read_text()
    assert rows.count("\n") == 2
    again = ant_walker.walker(tmp_path, TINY, "mujoco")
    assert (folder / "metrics.jsonl").read_text() == rows
    observation = jax.random.normal(jax.random.key(0), (3, 29))
    target = jnp.ones((3, 2))
    action = drive(observation, target)
    assert action.shape == (3, 8)
    np.testing.assert_array_equal(action, again(observation, target))
    assert np.abs(action - drive(observation, -target)).max() > 1e-4
