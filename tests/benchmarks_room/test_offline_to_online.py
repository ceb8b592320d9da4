"""The main job's command line: every bad option is one line and exit code 2, and writes nothing."""

from __future__ import annotations

import functools
import hashlib
import json

import h5py
import numpy as np
import offline_to_online
import phases
import pytest
from data_sum import data_sum
from one_line import refusal

from safejax.data import from_arrays, write_dsrl
from safejax.runs import Interrupted

refused = functools.partial(refusal, offline_to_online.main)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "bal_circle"], ("bal_circle", "ball_circle")),
        (["--offline", "cqp"], ("cqp", "nearest: cpq")),
        (["--methods", "marvell"], ("marvell", "nearest: marvel")),
        (["--preset", "papre"], ("papre", "nearest: paper")),
        (["--engine", "mujocco"], ("mujocco", "nearest: mujoco")),
        (["--limit", "-1"], ("-1", ">= 0")),
        (["--limit", "nan"], ("nan", ">= 0")),
        (["--limit", "abc"], ("--limit", "abc")),
        (["--seeds", "0"], ("0", "at least 1")),
        (["--acting", "drawn"], ("--acting is 'drawn'", "sampled")),
        (["--finetune-steps", "0"], ("--finetune-steps is 0", "at least 1")),
        (["--devices", "0"], ("0", "at least 1")),
        (["--devices", "2", "--engine", "mujoco"], ("mujoco", "--engine mjx")),
        (["--sede", "3"], ("--sede",)),
    ],
)
def test_a_bad_option_is_one_line(capsys, tmp_path, arguments, words):
    output = tmp_path / "run"
    message = refused(capsys, "--output", str(output), *arguments)
    assert all(word in message for word in words), message
    assert not output.exists()


def test_a_foreign_directory_is_left_alone(capsys, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    message = refused(capsys, "--output", str(tmp_path))
    assert "thesis.tex" in message
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_another_run_is_left_alone(capsys, tmp_path):
    from safejax.runs import Run

    with Run.open(tmp_path, {"benchmark": "something else"}):
        pass
    before = (tmp_path / "config.json").read_bytes()
    message = refused(capsys, "--output", str(tmp_path))
    assert "something else" in message
    assert (tmp_path / "config.json").read_bytes() == before


def test_data_of_another_width_is_refused(capsys, tmp_path):
    rows = 6
    ends = np.arange(rows) == rows - 1
    observation, action = np.zeros((rows, 5), np.float32), np.zeros((rows, 2), np.float32)
    data = from_arrays(observation, action, np.zeros(rows), np.zeros(rows), 0 * ends, ends)
    write_dsrl(tmp_path / "narrow.hdf5", data)
    message = refused(capsys, "--data", str(tmp_path / "narrow.hdf5"), "--output", str(tmp_path / "run"))
    assert "5" in message
    assert "8" in message
    assert not (tmp_path / "run").exists()


def test_data_of_another_task_is_refused(capsys, tmp_path):
    ends = np.arange(6) == 5
    data = from_arrays(np.zeros((6, 8)), np.zeros((6, 2)), np.zeros(6), np.zeros(6), 0 * ends, ends)
    write_dsrl(tmp_path / "car.hdf5", data, {"task": "car_circle", "safejax": "0.1.0"})
    message = refused(capsys, "--data", str(tmp_path / "car.hdf5"), "--output", str(tmp_path / "run"))
    assert "collected in 'car_circle', expected 'ball_circle'" in message
    assert not (tmp_path / "run").exists()


def test_data_without_costs_is_refused(capsys, tmp_path):
    path = tmp_path / "costless.hdf5"
    with h5py.File(path, "w") as file:
        for name, width in (("observations", 8), ("next_observations", 8), ("actions", 2)):
            file[name] = np.zeros((4, width), np.float32)
        for name in ("rewards", "terminals", "timeouts"):
            file[name] = np.zeros(4, np.float32)
    message = refused(capsys, "--data", str(path), "--output", str(tmp_path / "run"))
    assert "costs" in message
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_the_data_that_it_began_with_alone(capsys, tmp_path, monkeypatch):
    """Another file under the same path is refused; nothing is trained here."""

    def stopped(job, dataset):
        raise Interrupted("stopped")

    monkeypatch.setattr(phases, "pretrain", stopped)
    ends, path, run = np.arange(6) == 5, tmp_path / "noise.hdf5", tmp_path / "run"
    for reward in (0.0, 0.0, 1.0):
        columns = np.zeros((6, 8)), np.zeros((6, 2)), np.full(6, reward), np.zeros(6)
        write_dsrl(path, from_arrays(*columns, 0 * ends, ends))
        arguments = ["--data", str(path), "--output", str(run), "--cache", str(tmp_path)]
        if reward:
            assert "data_sha256=" in refused(capsys, *arguments)
        else:
            offline_to_online.main(arguments)
            assert "stopped" in capsys.readouterr().err
            found = json.loads((run / "config.json").read_text())
            assert found["data_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_folder_is_known_by_the_file_with_its_values(tmp_path):
    values = tmp_path / "car" / "data" / "main_data.hdf5"
    values.parent.mkdir(parents=True)
    values.write_bytes(b"one")
    assert data_sum(tmp_path / "car") == data_sum(values) == hashlib.sha256(b"one").hexdigest()
