"""Monte-Carlo values against sums made by hand, the rebuilt states, and the script on a run of untrained critics."""

from __future__ import annotations

import json

import alignment
import bridges
import jax
import jax.numpy as jnp
import numpy as np
import phases
import presets
import pytest
from one_line import refusal

from safejax import checkpoint, envs
from safejax.algorithms import marvel
from safejax.data import from_arrays, write_dsrl
from safejax.envs.engines.mujoco import make_engine
from safejax.types import example_transition

TASK = envs.task("ball_circle")
GAMMA, SCALE = 0.9, 0.1
ENGINE = make_engine(TASK, 1)


def observations(count: int) -> np.ndarray:
    """States that Ball-Circle can be in, as it observes them [count, 8]."""
    random = np.random.default_rng(0)
    position = random.uniform(-7.0, 7.0, (count, 2))
    velocity, spin = random.uniform(-4.0, 4.0, (count, 2)), random.uniform(-8.0, 8.0, (count, 3))
    ring = (np.linalg.norm(position, axis=1, keepdims=True) - 7.0) / 10.0
    return np.hstack([0.1 * position, 0.2 * velocity, 0.1 * spin, ring]).astype(np.float32)


@jax.jit
def started(rows):
    qpos, qvel = jax.vmap(alignment.state_from_observation)(jnp.asarray(rows))
    return jax.vmap(ENGINE.start)(jnp.ones(len(rows), bool), qpos, qvel)


step = jax.jit(jax.vmap(ENGINE.step))
observe = jax.jit(lambda physics: TASK.observe(ENGINE.view(physics)))
reward_of = jax.jit(lambda before, after, action: TASK.reward(ENGINE.view(before), ENGINE.view(after), action))


def zero_policy(state, observation, key, *, explore):
    del state, key
    assert explore
    return jnp.zeros((len(observation), 2)), (), {}


def monte_carlo(horizon: int, rows: np.ndarray, action: np.ndarray, act=zero_policy, repeats: int = 2):
    config = marvel.Config(discount_factor=GAMMA, reward_scale=SCALE)
    play = alignment.make_monte_carlo(TASK, ENGINE, act, config, repeats=repeats, horizon=horizon)
    sums = play((), jnp.asarray(rows), jnp.asarray(action), jax.random.key(0))
    ENGINE.check()
    return map(np.asarray, sums)


def test_a_rebuilt_state_is_observed_as_given():
    rows = observations(64)
    np.testing.assert_allclose(observe(started(rows)), rows, atol=1e-6)


def test_a_rebuilt_state_moves_as_the_original():
    """The height, which is not observed, differs by a fraction of a millimetre."""
    start = jax.vmap(TASK.initialize)(jax.random.split(jax.random.key(1), 8))
    physics = jax.vmap(ENGINE.start)(jnp.ones(8, bool), *start)
    actions = jax.random.uniform(jax.random.key(2), (21, 8, 2), minval=-1.0)
    for action in actions[:-1]:
        physics = step(physics, action)
    observed = observe(physics)
    assert np.abs(observed[:, 2:7]).max() > 0.1
    again = step(started(observed), actions[-1])
    expected = observe(step(physics, actions[-1]))
    np.testing.assert_allclose(observe(again), expected, atol=1e-3)


def test_balls_at_rest():
    """At the centre nothing happens; at rest beyond |x| = 6 every step costs 1."""
    rows = np.zeros((2, 8), np.float32)
    rows[:, 0], rows[:, 7] = (0.0, 0.65), (-0.7, -0.05)
    reward, cost = monte_carlo(5, rows, np.zeros((2, 2), np.float32))
    np.testing.assert_allclose(reward, 0.0, atol=1e-5)
    np.testing.assert_allclose(cost, [0.0, (1 - GAMMA**5) / (1 - GAMMA)], rtol=1e-5)


def test_one_step_is_the_reward_of_the_given_action():
    rows, action = observations(16), np.random.default_rng(1).uniform(-1, 1, (16, 2)).astype(np.float32)
    physics = started(rows)
    after = step(physics, jnp.asarray(action))
    reward, cost = monte_carlo(1, rows, action)
    np.testing.assert_allclose(reward, SCALE * reward_of(physics, after, action), rtol=1e-5)
    np.testing.assert_allclose(cost, TASK.cost(ENGINE.view(after)))


def test_the_policy_follows_and_repeats_are_averaged():
    """Two steps, the second action drawn by the policy: the mean over repeats of each one's own sum."""
    rows, action = observations(3), np.zeros((3, 2), np.float32)

    def policy(state, observation, key, *, explore):
        del state, explore
        return jax.random.uniform(key, (len(observation), 2), minval=-1.0), (), {}

    key = jax.random.fold_in(jax.random.key(0), 0)
    drawn, *_ = policy((), jnp.zeros((12, 8)), key, explore=True)
    first = step(started(np.repeat(rows, 4, axis=0)), jnp.zeros((12, 2)))
    second = step(first, drawn)
    one = reward_of(first, first, jnp.zeros((12, 2)))
    two = reward_of(first, second, drawn)
    reward, _ = monte_carlo(2, rows, action, policy, repeats=4)
    np.testing.assert_allclose(reward, SCALE * np.mean((one + GAMMA * two).reshape(3, 4), axis=1), rtol=1e-5)


def test_agreement_by_hand():
    found = alignment.agreement(np.array([1.0, 2.0, 9.0]), np.array([3.0, 1.0, 5.0]))
    assert found == pytest.approx({"spearman": 0.5, "bias": 1.0, "rmse": 21**0.5 / 3**0.5, "monte_carlo": 3.0})
    assert np.isnan(alignment.agreement(np.array([1.0, 2.0]), np.zeros(2))["spearman"])


def untrained_run(directory, offline: str, finished_chunks: int) -> list[str]:
    """A run of two seeds with random networks, and the arguments that measure it."""
    budget = presets.Budget(hidden_sizes=(4,))
    config = presets.finetuning_config(presets.METHODS["marvel"], 20.0)
    sizes = {"action_size": 2, "episode_length": TASK.episode_length}
    source = bridges.offline(offline, budget, **sizes, limit=20.0)
    alignment_phase = marvel.make_alignment(config, marvel.default_networks(2, budget.hidden_sizes))
    example = example_transition(envs.make("ball_circle", "mujoco"))
    random = np.random.default_rng(0)

    def drawn(algorithm):
        keys = jax.random.split(jax.random.key(0), 2)
        shapes = jax.eval_shape(jax.vmap(algorithm.init, in_axes=(0, None)), keys, example)
        return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(leaf.dtype), shapes)

    directory.mkdir()
    checkpoint.save(directory / "pretrained", drawn(source.algorithm), source.config)
    aligned = drawn(alignment_phase)._replace(multiplier=())
    checkpoint.Checkpoints(directory / "checkpoints" / "alignment").save(finished_chunks, aligned)
    about = {"benchmark": "offline_to_online", "task": "ball_circle", "offline": offline, "limit": 20.0}
    about |= {"seeds": [0, 1], "data": None, "budget": presets.plain(budget)}
    about |= {"methods": {"marvel": presets.plain(config)}}
    (directory / "config.json").write_text(json.dumps(about))
    rows, ends = observations(12), np.arange(12) == 11
    data = from_arrays(rows, np.full((12, 2), 0.1, np.float32), np.zeros(12), np.zeros(12), 0 * ends, ends)
    write_dsrl(directory / "data.hdf5", data)
    numbers = ["--pairs", "6", "--repeats", "2", "--horizon", "2"]
    return [str(directory), "--data", str(directory / "data.hdf5"), *numbers]


def refused(capsys, arguments: list[str]) -> str:
    return refusal(alignment.main, capsys, *arguments)


def test_a_run_is_measured(capsys, tmp_path):
    arguments = untrained_run(tmp_path / "run", "iql", phases.ALIGNMENT_CHUNKS)
    alignment.main(arguments)
    printed = capsys.readouterr().out.splitlines()
    results = json.loads((tmp_path / "run" / "alignment.json").read_text())
    assert results["discount_factor"] == presets.FINETUNING.discount_factor
    rows = {(row["signal"], row["pairs"], row["alignment"]): row for row in results["rows"]}
    assert len(rows) == 8
    assert rows["cost", "random", "before"]["bias"] is None  # IQL has no cost critic
    assert all(len(row["bias"]) == 2 for key, row in rows.items() if key[0] == "reward" or key[2] == "after")
    assert printed[6].split() == ["cost", "data", "before", "-", "-", "-", "-"]
    before, after = rows["reward", "data", "before"], rows["reward", "data", "after"]
    assert before["monte_carlo"] == after["monte_carlo"]
    assert before["bias"] != after["bias"]

    assert "--pairs is 13" in refused(capsys, [*arguments, "--pairs", "13"])
    assert "--data" in refused(capsys, arguments[:1])


def test_errors_are_one_line(capsys, tmp_path):
    assert "--methods marvel first" in refused(capsys, [str(tmp_path / "missing")])
    assert "--horizon is 0" in refused(capsys, [str(tmp_path), "--horizon", "0"])
    arguments = untrained_run(tmp_path / "run", "bc", phases.ALIGNMENT_CHUNKS - 1)
    assert "not finished; run it with --methods marvel first" in refused(capsys, arguments)
