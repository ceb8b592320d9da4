"""The walker of the ant's mazes: what it sees does not depend on the direction, and a tiny one is learned."""

import ant_walker
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

RANDOM = np.random.default_rng(0)


def turned(state, angle):
    """A maze's observation after the world turned by `angle` about z, by SciPy."""
    turn, state = Rotation.from_euler("z", angle), state.copy()
    state[:2] = turn.apply([*state[:2], 0.0])[:2]
    state[3:7] = (turn * Rotation.from_quat(state[3:7], scalar_first=True)).as_quat(scalar_first=True)
    state[15:18] = turn.apply(state[15:18])
    return state


def test_all_directions_look_the_same():
    state, target = RANDOM.normal(size=29), RANDOM.normal(size=2)
    state[3:7] /= np.linalg.norm(state[3:7])
    seen = np.array(ant_walker.towards_x(jnp.asarray(state), jnp.asarray(target)))
    way = target - state[:2]
    expected = turned(state, -np.arctan2(way[1], way[0]))
    expected[:2] = state[:2]
    expected[3:7] *= np.sign(expected[3] * seen[3])
    np.testing.assert_allclose(seen, expected, atol=1e-5)
    for angle in (0.5, 2.0, -3.0):
        turned_target = Rotation.from_euler("z", angle).apply([*target, 0.0])[:2]
        other = np.array(ant_walker.towards_x(jnp.asarray(turned(state, angle)), jnp.asarray(turned_target)))
        other[3:7] *= np.sign(other[3] * seen[3])
        np.testing.assert_allclose(other[2:], seen[2:], atol=1e-5)


def test_reward_by_hand():
    """Speed along x, of at most 2 m/s, less half of that along y, plus 0.5, less the effort of one motor."""
    for velocity, reward in (((1.0, 0.0), 1.5), ((9.0, -1.0), 2.0), ((-1.0, 0.0), -0.5), ((0.0, 1.5), -0.25)):
        before = np.zeros(15)
        after = before.copy()
        after[:2] += 0.1 * np.array(velocity)
        views = (ant_walker.View(jnp.asarray(qpos), jnp.zeros(14), *[jnp.zeros(0)] * 3) for qpos in (before, after))
        action = jnp.zeros(8).at[0].set(2.0)
        np.testing.assert_allclose(ant_walker.TASK.reward(*views, action), reward - 0.05 * 4.0, atol=1e-5)


@pytest.mark.slow
def test_a_tiny_walker_is_learned_and_drives(tmp_path):
    recipe = ant_walker.Recipe(
        steps=64, env_count=2, updates_per_iteration=1, chunk_steps=32, hidden_sizes=(8, 8), batch_size=8
    )
    params = ant_walker.train(tmp_path, recipe, "mujoco")
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("ant_walker-")
    action = ant_walker.drive(params, recipe)(jnp.ones((3, 29)), jnp.zeros((3, 2)))
    assert action.shape == (3, 8)
    assert 0 < np.abs(action).max() < 1
