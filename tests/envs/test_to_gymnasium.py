"""Our worlds as gymnasium's, judged by gymnasium's own classes and by a world whose every number is known."""

import functools
import sys
import warnings

import jax
import numpy as np
import pytest
from counting_world import counting, pictured

gymnasium = pytest.importorskip("gymnasium")

from gymnasium.utils.env_checker import check_env, data_equivalence  # noqa: E402
from gymnasium.vector import AutoresetMode, SyncVectorEnv  # noqa: E402

from safejax import envs  # noqa: E402
from safejax.envs.adapters import to_gymnasium, to_gymnasium_env  # noqa: E402
from safejax.envs.probes import golden_cmdp, tabular  # noqa: E402

COUNT = 5


@functools.cache
def counters():
    return to_gymnasium(counting(), COUNT)


ZEROS = np.zeros((COUNT, 1), np.float32)


@pytest.mark.parametrize(
    "world", [counting, pictured, lambda: tabular(golden_cmdp(), 4), lambda: envs.make("ball_circle", "mujoco")]
)
def test_gymnasiums_own_checker_finds_nothing(world):
    """Its complaints are warnings. Three are expected: unbounded observations, and no `env.spec` to play back."""
    with warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always")
        check_env(to_gymnasium_env(world()))
    expected = ("minimum value is -infinity", "maximum value is infinity", "not having a spec")
    found = [str(complaint.message) for complaint in complaints]
    assert [text for text in found if not any(part in text for part in expected)] == []


def test_a_vector_does_what_gymnasiums_vector_of_single_environments_does():
    """SyncVectorEnv resets in the same step; after an end it gives a row's cost in final_info only, we in both."""
    ours = to_gymnasium(pictured(), 3)
    theirs = SyncVectorEnv([lambda: to_gymnasium_env(pictured())] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"]
    for name in ("single_observation_space", "single_action_space", "observation_space", "action_space", "num_envs"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert data_equivalence(ours.reset(seed=3), theirs.reset(seed=3))
    ends = 0
    for _ in range(10):
        (*mine, info), (*reference, expected) = ours.step(ZEROS[:3]), theirs.step(ZEROS[:3])
        assert ours.observation_space.contains(mine[0])
        for one, other in zip(mine, reference, strict=True):
            assert jax.tree.all(jax.tree.map(np.array_equal, one, other))
        ended = mine[2] | mine[3]
        if not ended.all():
            np.testing.assert_array_equal(info.pop("cost")[~ended], expected.pop("cost")[~ended])
            np.testing.assert_array_equal(expected.pop("_cost"), ~ended)
            assert info.pop("_cost").all()
            finals = info.pop("final_obs", []), expected.pop("final_obs", [])
            assert all(data_equivalence(*pair) for pair in zip(*finals, strict=True))
            assert data_equivalence(jax.tree.map(np.float64, info), jax.tree.map(np.float64, expected))
        ends += ended.sum()
    assert ends > 6


def test_every_number_of_every_step():
    env = counters()
    count = env.reset(seed=0)[0][:, 0]
    total, ended_total = np.zeros(COUNT), 0
    for _ in range(10):
        observation, reward, terminated, truncated, info = env.step(ZEROS)
        after = count + 1
        ended = terminated | truncated
        np.testing.assert_array_equal(reward, after)
        np.testing.assert_array_equal(info["cost"], after % 2)
        np.testing.assert_array_equal(terminated, (after // 10 % 2 == 0) & (after % 10 == 2))
        np.testing.assert_array_equal(truncated, after % 10 == 3)
        np.testing.assert_array_equal(observation[~ended, 0], after[~ended])
        np.testing.assert_array_equal(observation[ended, 0] % 10, 0)
        assert ("final_obs" in info) == ended.any()
        if ended.any():
            np.testing.assert_array_equal(info["_final_obs"], ended)
            np.testing.assert_array_equal(np.stack(info["final_obs"][ended])[:, 0], after[ended])
            np.testing.assert_array_equal(info["final_info"]["cost"][ended], after[ended] % 2)
        count, total, ended_total = observation[:, 0], total + info["cost"], ended_total + ended.sum()
    assert ended_total > 2 * COUNT


def played(env, seed, steps=6):
    observations = [env.reset(seed=seed)[0]]
    return np.stack(observations + [env.step(ZEROS[: env.num_envs])[0] for _ in range(steps)])


def test_seeds_are_honoured():
    """Copy i under the seed s is copy 0 under s + i; a reset without a seed draws anew."""
    env, alone = counters(), to_gymnasium(counting(), 1)
    first = played(env, 7)
    np.testing.assert_array_equal(played(env, 7), first)
    np.testing.assert_array_equal(played(env, [7, 8, 9, 10, 11]), first)
    np.testing.assert_array_equal(np.concatenate([played(alone, 7 + i) for i in range(COUNT)], axis=1), first)
    assert not np.array_equal(played(env, 12), first)
    assert len({played(env, None).tobytes() for _ in range(4)}) == 4
    np.testing.assert_array_equal(
        to_gymnasium(counting(), COUNT, seed=7).reset()[0], first[0]
    )  # the seed of the constructor


def test_a_reset_mask_resets_its_rows_alone():
    env = to_gymnasium(counting(begins=(1, 3)), COUNT)
    env.reset(seed=1)
    before = env.step(ZEROS)[0]
    mask = np.arange(COUNT) % 2 == 0
    after = env.reset(options={"reset_mask": mask})[0]
    np.testing.assert_array_equal(after[~mask], before[~mask])
    np.testing.assert_array_equal(after[mask] % 10, 0)
    np.testing.assert_array_equal(env.step(ZEROS)[0], after + 1)
    with pytest.raises(ValueError, match=r"^reset_mask has shape \[3\], expected \[5\]$"):
        env.reset(options={"reset_mask": mask[:3]})
    with pytest.raises(ValueError, match=r"^seed has shape \[1\], expected \[5\]$"):
        env.reset(seed=[1])
    for count in (0, -1):
        with pytest.raises(ValueError, match=f"^count is {count}, expected at least 1$"):
            to_gymnasium(counting(), count)
    with pytest.raises(ValueError, match=r"^name is 3, expected one of safejax.envs.names\(\), or a Task$"):
        to_gymnasium(3, 2)


def test_gymnasiums_statistics_count_our_episodes():
    env = gymnasium.wrappers.vector.RecordEpisodeStatistics(to_gymnasium(counting(), COUNT))
    begins = env.reset(seed=2)[0][:, 0]
    lengths = np.where(begins // 10 % 2 == 0, 2, 3)
    seen = np.zeros(COUNT, bool)
    for _ in range(3):
        info = env.step(ZEROS)[-1]
        new = info.get("_episode", np.zeros(COUNT, bool)) & ~seen
        seen |= new
        if new.any():
            np.testing.assert_array_equal(info["episode"]["l"][new], lengths[new])
            returns = lengths * begins + lengths * (lengths + 1) / 2
            np.testing.assert_array_equal(info["episode"]["r"][new], returns[new])
    assert seen.all()


def test_actions_are_clipped_or_refused():
    def echo(state, action, key):
        return world.step(state, action, key)._replace(reward=action[0])

    world = counting()
    env = to_gymnasium(world._replace(step=echo), 3)
    env.reset()
    np.testing.assert_array_equal(env.step(np.array([[-7.0], [0.25], [2.0]]))[1], [-1, 0.25, 1])
    with pytest.raises(ValueError, match=r"actions of shape \[3\], expected \[3, 1\]"):
        env.step(np.zeros(3))
    with pytest.raises(FloatingPointError, match=r"^counting: actions \[\[0.0\], \[nan\], \[0.0\]\], expected finite"):
        env.step(np.array([[0.0], [np.nan], [0.0]]))
    discrete = to_gymnasium(tabular(golden_cmdp(), 4), 2)
    with pytest.raises(gymnasium.error.ResetNeeded):
        discrete.step(np.zeros(2, int))
    discrete.reset()
    discrete.step(np.array([0, 1]))
    with pytest.raises(ValueError, match=r"actions \[0, 2\], expected 0 to 1"):
        discrete.step(np.array([0, 2]))


def test_a_single_environment_waits_for_reset():
    env = to_gymnasium_env(counting(begins=(2,)))
    assert env.reset(seed=0)[0] == [20.0]
    env.step([0.0])
    observation, reward, terminated, truncated, info = env.step([0.0])
    assert (observation.tolist(), reward, terminated, truncated, info) == ([22.0], 22.0, True, False, {"cost": 0.0})
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step([0.0])
    assert env.reset()[0] == [20.0]


def test_host_engines_report_their_failures():
    lost = envs.task("ball_circle")._replace(initialize=lambda key: (np.full(7, np.nan), np.zeros(6)))
    env = to_gymnasium(lost, 2)
    with pytest.raises(FloatingPointError, match="ball_circle: initialize gave positions or velocities that are not"):
        env.reset()


def test_without_gymnasium_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ModuleNotFoundError, match=r"gymnasium is not installed: pip install 'safejax\[gym\]'"):
        to_gymnasium_env(counting())
