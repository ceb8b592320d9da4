"""Recordings against tasks: what is read, what is measured, and that a broken bound is noticed."""

import json
from pathlib import Path

import numpy as np
import parity
import pytest
import recordings
from one_line import refusal

DATA = Path(__file__).parents[1] / "data"


def write(directory, task, name, suite, **changes):
    """A recording of one of the tasks that the tests have episodes of."""
    file = np.load(DATA / ("bullet_recording.npz" if suite == "bullet" else "velocity_recording.npz"))
    rows = {key.removeprefix(f"{task}/"): file[key] for key in file.files if key.startswith(f"{task}/")}
    directory.mkdir(exist_ok=True)
    np.savez(directory / f"{name}.npz", **rows | {key: change(rows[key]) for key, change in changes.items()})
    (directory / f"{name}.json").write_text(json.dumps({"env_id": f"Safety{name}", "suite": suite}))


def results(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("SafetyBallRun-v0", "ball_run"),
        ("SafetyDroneCircle-v0", "drone_circle"),
        ("SafetyHalfCheetahVelocity-v1", "half_cheetah_velocity"),
        ("SafetyWalker2dVelocity-v1", "walker2d_velocity"),
        ("SafetySpaceRun-v0", None),
        ("BallRun", None),
    ],
)
def test_names_of_the_original_environments(name, task):
    assert recordings.task_of({"env_id": name, "suite": "bullet"}) == task
    assert recordings.task_of({"env_id": name}) is None


def test_recordings_are_found_measured_and_within_their_bounds(tmp_path, capsys):
    write(tmp_path / "bullet", "ball_run", "BallRun-v0", "bullet")
    write(tmp_path / "velocity", "hopper_velocity", "HopperVelocity-v1", "safety_gymnasium")
    # not recordings: no sidecar, a sidecar that is none, an environment that is not here
    np.savez(tmp_path / "alone.npz", step=np.ones(3))
    np.savez(tmp_path / "odd.npz", step=np.ones(3))
    (tmp_path / "odd.json").write_text("[1")
    write(tmp_path / "bullet", "ball_run", "SpaceRun-v0", "bullet")
    parity.main([str(tmp_path)])
    ball, hopper = results(capsys)
    assert (ball["task"], ball["episodes"], ball["rows"]) == ("ball_run", 5, 500)
    assert ball["broken"] == hopper["broken"] == []
    assert ball["reward_max_abs_error"] < 1e-4
    assert 0 < ball["replay_relative_error"] < 0.02
    assert ball["position_range"] > 25
    assert ball["response_error"] < 0.01
    assert (hopper["task"], hopper["cost_mismatch_share"]) == ("hopper_velocity", 0)
    assert hopper["next_position_max_abs_error"] < 1e-6
    assert hopper["replay_relative_error"] < 1e-5


def test_a_broken_bound_is_named_and_fails(tmp_path, capsys):
    write(tmp_path, "ball_run", "BallRun-v0", "bullet", reward=lambda reward: reward + 0.5, cost=lambda cost: 1 - cost)
    with pytest.raises(SystemExit) as caught:
        parity.main([str(tmp_path)])
    assert caught.value.code == 1
    (result,) = results(capsys)
    np.testing.assert_allclose(result["reward_max_abs_error"], 0.5, atol=1e-3)
    assert result["cost_mismatch_share"] == 1
    assert result["broken"] == ["cost_mismatch_share 1 > 0", "reward_max_abs_error 0.5 > 0.0001"]


def test_a_directory_without_recordings_is_refused(tmp_path, capsys):
    assert "no directory" in refusal(parity.main, capsys, str(tmp_path / "none"))
    assert "holds no recording of ball_run" in refusal(parity.main, capsys, str(tmp_path))
