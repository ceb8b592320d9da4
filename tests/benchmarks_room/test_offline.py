"""The offline comparison's command line: bad options in one line, and a whole tiny run with its tables."""

from __future__ import annotations

import functools
import hashlib
import json

import numpy as np
import offline
import offline_training
import pytest
from one_line import refusal

from safejax import envs
from safejax.data import from_arrays, write_dsrl
from safejax.runs import load_policy


def data_file(folder, largest_action=0.5, rows=40, attributes=None, seed=0):
    """Two truncated episodes of noise in ball_circle's widths."""
    random = np.random.default_rng(seed)
    ends = np.arange(rows) % (rows // 2) == rows // 2 - 1
    action = np.tile([[largest_action, -largest_action]], (rows, 1)) * random.uniform(0.5, 1.0, (rows, 1))
    action[0] = largest_action
    noise = random.normal(size=(rows, 8)), action, random.normal(size=rows), random.random(rows) < 0.5
    write_dsrl(folder / "noise.hdf5", from_arrays(*noise, 0 * ends, ends), attributes)
    return str(folder / "noise.hdf5")


refused = functools.partial(refusal, offline.main)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "point_maze_umaze-medium"], ("point_maze_umaze-medium", "play")),
        (["--data", "point_maze-play"], ("point_maze-play", "point_maze_umaze")),
        (["--data", "hopper_velocity-play"], ("hopper_velocity-play", "expert")),
        (["--data", "ant_maze_umaze-expert"], ("ant_maze_umaze-expert", "play or diverse")),
        (["--data", "gone.hdf5"], ("gone.hdf5", "a file or <task>-<kind>")),
        (["--data", "{file}"], ("--task",)),
        (["--data", "{file}", "--task", "bal_circle"], ("bal_circle", "nearest: ball_circle")),
        (["--data", "{file}", "--task", "hopper_velocity"], ("8", "11")),
        (["--data", "{file}", "--task", "ball_circle", "--methods", "idlq"], ("idlq", "nearest: idql")),
        (["--data", "{file}", "--task", "ball_circle", "--preset", "papre"], ("papre", "paper")),
        (["--data", "{file}", "--task", "ball_circle", "--acting", "sampeld"], ("sampeld", "nearest: sampled")),
        (["--data", "{file}", "--task", "ball_circle", "--seeds", "0"], ("--seeds is 0", "at least 1")),
        (["--data", "{file}", "--task", "ball_circle", "--methods", "bc", "--safe", "10"], ("bc has no safe form",)),
        (["--data", "{file}", "--task", "ball_circle", "--safe", "-1"], ("cost_limit is -1",)),
        (["--data", "{file}", "--task", "ball_circle", "--clip-actions", "2"], ("--clip-actions is 2", "(0, 1]")),
        (["--data", "{file}", "--task", "ball_circle", "--updates", "25", "--every", "10"], ("25", "multiple")),
        (["--task", "ball_circle"], ("--data",)),
    ],
)
def test_a_bad_option_is_one_line(capsys, tmp_path, arguments, words):
    file, output = data_file(tmp_path), tmp_path / "run"
    options = [argument.format(file=file) for argument in arguments]
    message = refused(capsys, "--output", str(output), "--cache", str(tmp_path), *options)
    assert all(word in message for word in words), message
    assert not output.exists()


def test_actions_at_the_bounds_are_refused_for_a_squashed_policy(capsys, tmp_path):
    arguments = ["--data", data_file(tmp_path, 1.0), "--task", "ball_circle", "--methods", "bc", "--clip-actions", "1"]
    message = refused(capsys, *arguments, "--output", str(tmp_path / "run"), "--cache", str(tmp_path))
    assert "have an action at -1 or 1" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("safe", "limit"), [([], 20.0), (["--safe", "5"], 5.0)])
def test_cpq_learns_for_the_limit_and_the_length_of_the_task(safe, limit):
    options = offline.parse(["--data", "BallRun", *safe])
    config = offline.learner("cpq", "BallRun", envs.make("ball_run"), options).setting.config
    assert (config.cost_limit, config.episode_length) == (limit, 100)


def test_data_of_another_task_are_refused(capsys, tmp_path):
    file = data_file(tmp_path, attributes={"task": "car_circle", "safejax": "0.1.0"})
    message = refused(capsys, "--data", file, "--task", "ball_circle", "--cache", str(tmp_path))
    assert "collected in 'car_circle', expected 'ball_circle'" in message


@pytest.mark.parametrize(
    ("acting", "expected"),
    [
        ("papers", {"iql": False, "idql": True}),
        ("deterministic", {"iql": False, "idql": False}),
        ("sampled", {"iql": True, "idql": True}),
    ],
)
def test_diffusion_policies_are_sampled_as_in_the_papers(monkeypatch, acting, expected):
    """What `training.evaluate` is asked for; nothing is played."""

    class Asked(Exception):
        pass

    def evaluate(*arguments, explore):
        raise Asked(explore)

    monkeypatch.setattr(offline_training.training, "evaluate", evaluate)
    env = envs.make("ball_circle")
    options = offline.parse(["--data", "noise", "--acting", acting])
    job = offline_training.Job(None, env, (0,), 1, 1, options.acting, {})
    for row, explore in expected.items():
        play = offline_training.evaluator(job, offline.learner(row, "noise", env, options))
        with pytest.raises(Asked) as asked:
            play({"x": np.zeros((1, 2))})
        assert asked.value.args == (explore,)


def test_a_tiny_run_leaves_tables_figure_and_policies(capsys, tmp_path):
    arguments = ["--data", data_file(tmp_path), "--task", "ball_circle", "--methods", "bc,iql", "--seeds", "2"]
    sizes = ["--updates", "4", "--every", "2", "--episodes", "1"]
    folder = tmp_path / "run"
    offline.main([*arguments, *sizes, "--output", str(folder), "--cache", str(tmp_path)])
    table = capsys.readouterr().out
    assert (folder / "table.txt").read_text() in table
    assert (folder / "learning_curves.png").stat().st_size > 0
    assert "40 rows, 2 episodes" in table
    assert "cost/20 (met)" in table

    results = json.loads((folder / "results.json").read_text())
    assert results["diverged_episodes"] == {}
    for row in ("bc", "iql"):
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        records = [record for record in records if record["stage"] == row]
        assert [record["updates"] for record in records] == [2, 4]
        assert results["methods"][row]["return"][-1] == records[-1]["return"]
        assert len(records[-1]["return"]) == 2
        assert records[-1]["evaluation_diverged"] == [0, 0]
        last = results["methods"][row]["last"]
        assert list(last["limits"]) == ["10", "20", "40"]  # the task's own, where --safe names none
        assert len(last["normalized_return"]) == len(last["limits"]["20"]["within_limit"]) == 2
        policy = load_policy(folder / "policies" / row, 1)
        env = envs.make("ball_circle")
        action = policy.act(np.zeros((3, *env.observation_spec.shape), np.float32))
        assert action.shape == (3, env.action_size)
        assert policy.about["data"] == "noise.hdf5"
        assert policy.about["data_sha256"] == hashlib.sha256((tmp_path / "noise.hdf5").read_bytes()).hexdigest()

    data_file(tmp_path, seed=1)  # under the same path
    assert "data_sha256=" in refused(capsys, *arguments, *sizes, "--output", str(folder), "--cache", str(tmp_path))
