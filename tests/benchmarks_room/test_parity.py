"""Recordings against tasks: what is read, what is measured, and that a broken bound is noticed."""

import io
import json
from pathlib import Path

import mujoco
import numpy as np
import parity
import pytest
import recordings
from one_line import refusal

from safejax import envs
from safejax.envs.engines.base import load_model
from safejax.envs.tasks import View

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
    assert result["broken"] == ["reward_max_abs_error 0.5 > 0.0001", "cost_mismatch_share 1 > 0"]


def test_several_recordings_of_a_task_are_one_object(tmp_path, capsys):
    for place, more in (("a", 0.25), ("b", 0.5)):
        write(tmp_path / place, "ball_run", "BallRun-v0", "bullet", reward=lambda reward, more=more: reward + more)
    with pytest.raises(SystemExit):
        parity.main([str(tmp_path)])
    (result,) = results(capsys)
    assert (result["episodes"], result["rows"]) == (10, 1000)
    np.testing.assert_allclose(result["reward_max_abs_error"], 0.5, atol=1e-3)
    assert result["broken"] == ["reward_max_abs_error 0.5 > 0.0001"]


def test_what_is_not_finite_is_null(tmp_path, capsys):
    write(
        tmp_path,
        "ball_run",
        "BallRun-v0",
        "bullet",
        observation=lambda seen: np.where(seen == seen[3, 2], np.nan, seen),
    )
    with pytest.raises(SystemExit):
        parity.main([str(tmp_path)])
    line = capsys.readouterr().out
    result = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert result["observation_max_abs_error"] is None
    assert result["broken"] == ["observation_max_abs_error nan > 0.0001"]


def test_a_damaged_recording_is_named(tmp_path, capsys):
    write(tmp_path, "ball_run", "BallRun-v0", "bullet")
    path = tmp_path / "BallRun-v0.npz"
    whole = path.read_bytes()
    array = io.BytesIO()
    np.save(array, np.ones(3))
    for damaged in (b"nonsense", b"", whole[:-100], whole[:5000] + b"damage" + whole[5006:], array.getvalue()):
        path.write_bytes(damaged)
        assert f"{path} is no npz file or damaged" in refusal(parity.main, capsys, str(tmp_path))


@pytest.mark.parametrize("name", ["base_quat", "reset_base_linvel", "episode_id", "terminated"])
def test_an_array_that_is_missing_is_named(name, tmp_path, capsys):
    write(tmp_path, "ball_run", "BallRun-v0", "bullet")
    path = tmp_path / "BallRun-v0.npz"
    with np.load(path) as file:
        rows = {key: file[key] for key in file.files if key != name}
    np.savez(path, **rows)
    assert f"{path} has no array '{name}'" in refusal(parity.main, capsys, str(tmp_path))


def test_every_task_has_bounds():
    assert set(parity.BOUNDS) == set(envs.names())
    formulas = {f"{part}_max_abs_error" for part in ("observation", "reward")}
    formulas |= {f"{part}_mismatch_share" for part in ("cost", "end")}
    assert all(formulas <= set(bounds) for bounds in parity.BOUNDS.values())
    for name in ("car_button2", "point_circle0", "racecar_goal2"):
        assert {"replay_relative_error", "accelerometer_median_error"} <= set(parity.BOUNDS[name])


@pytest.mark.parametrize("task", ["hopper", "walker2d", "half_cheetah", "swimmer", "ant", "humanoid"])
def test_a_runners_next_velocity_is_bound(task):
    assert parity.BOUNDS[f"{task}_velocity"]["next_velocity_max_abs_error"] == 1e-3


def test_single_steps_begin_at_the_float64_that_was_recorded():
    """MuJoCo's own steps, which float32 starts would miss by some 1e-5 m/s: only what is returned is rounded."""
    task, count = envs.task("half_cheetah_velocity"), 60
    model = load_model(task.model)
    data = mujoco.MjData(model)
    actions = np.random.default_rng(0).uniform(-1, 1, (count, model.nu))
    qpos, qvel = [data.qpos.copy()], [data.qvel.copy()]
    for action in actions:
        data.ctrl = action
        mujoco.mj_step(model, data, task.substeps)
        qpos.append(data.qpos.copy())
        qvel.append(data.qvel.copy())
    none = [np.zeros((count, 0))] * 3
    before, after = (
        View(np.array(qpos[:-1]), np.array(qvel[:-1]), *none),
        View(np.array(qpos[1:]), np.array(qvel[1:]), *none),
    )
    rows = {"step": np.arange(1, count + 1), "action": actions}
    found = parity.single_steps(recordings.Recording(task.name, rows, before, after, after))
    assert found["next_velocity_max_abs_error"] <= 1e-7 * np.abs(qvel).max()


def test_a_directory_without_recordings_is_refused(tmp_path, capsys):
    assert "no directory" in refusal(parity.main, capsys, str(tmp_path / "none"))
    assert "holds no recording of ant_circle" in refusal(parity.main, capsys, str(tmp_path))
