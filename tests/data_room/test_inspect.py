"""`python -m safejax.data.inspect`: what it prints, what it answers about a bad file, and that it stays offline."""

import io
import os
import socket
import subprocess
import sys

import data_files
import h5py
import numpy as np
import pytest

from safejax.data import inspect


@pytest.fixture
def offline(monkeypatch):
    def refuse(*arguments, **options):
        raise ConnectionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


def test_what_is_printed(tmp_path, capsys, offline):
    path = data_files.flat(costs=np.arange(7.0))(tmp_path)
    with h5py.File(path, "a") as file:
        file.attrs["task"] = "car\x1b[31m"
        file.attrs["long"] = "x" * 1000
    assert inspect.main([str(path), "--cost-limit", "3"]) == 0
    printed, error = capsys.readouterr()
    assert error == ""
    lines = printed.splitlines()
    assert lines[:5] == [
        "format       DSRL HDF5",
        "rows         7",
        "episodes     3: 1 terminated, 2 truncated",
        "observation  [3] float32",
        "action       [2] float32",
    ]
    assert lines[6].split() == ["return", "7", "3.74166", "3", "12"]
    assert lines[7].split() == ["cost", "7", "3.74166", "3", "12"]
    assert lines[8].split() == ["length", "2.33333", "0.942809", "1", "3"]
    assert lines[9] == "cost <= 3: 1 of 3 episodes, best return 3"
    assert "  task: car\\x1b[31m" in lines
    assert "  unfinished tail of 1 rows is kept as a truncated episode." in lines
    assert max(map(len, lines)) < 180


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path, monkeypatch, capfd):
    path = data_files.flat()(tmp_path)
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as stdout, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stdout)
        assert inspect.main([str(path)]) == 0
        stdout.flush()
    assert capfd.readouterr().err == ""


def test_what_the_terminal_cannot_show_is_escaped(tmp_path, monkeypatch):
    path = data_files.flat()(tmp_path)
    with h5py.File(path, "a") as file:
        file.attrs["author"] = "Jos\u00e9"
    stdout = io.TextIOWrapper(io.BytesIO(), "ascii")
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stdout)
        assert inspect.main([str(path)]) == 0
    assert b"\n  author: Jos\\xe9\n" in stdout.buffer.getvalue()


def test_minari_and_pictures(tmp_path, capsys):
    assert inspect.main([str(data_files.minari()(tmp_path))]) == 0
    assert "format       Minari HDF5" in capsys.readouterr().out
    pictures = np.zeros((7, 4, 5, 3), np.uint8)
    with_parts = {"observations": None, "observations/pixels": pictures, "observations/state": np.zeros((7, 2))}
    path = data_files.flat(**with_parts, next_observations=None)(tmp_path)
    assert inspect.main([str(path)]) == 0
    assert "observation  pixels [4, 5, 3] uint8, state [2] float32" in capsys.readouterr().out


def test_options_reach_the_reader(tmp_path, capsys):
    path = data_files.flat(costs=None, **data_files.with_value("actions", 5, 1.31))(tmp_path)
    assert inspect.main([str(path), "--costs", "zero", "--clip-actions"]) == 0
    printed = capsys.readouterr().out
    assert "costs: none in the file, all set to 0." in printed
    assert "actions: 2 values clipped to [-1, 1]." in printed


def test_a_file_beyond_the_memory_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("safejax.data.reading.host_bytes", lambda: 600)
    assert inspect.main([str(data_files.flat()(tmp_path))]) == 2
    assert "would need 294 bytes; limit 100 bytes of 600 bytes available" in capsys.readouterr().err


def test_scores_are_looked_up_by_name(tmp_path, capsys):
    path = str(data_files.flat()(tmp_path))
    assert inspect.main([path, "--name", "BallCircle", "--cost-limit", "4"]) == 0
    # (7 - .38312) / (881.46338 - .38312), 1 / 4
    lines = "DSRL normalized return 0.00750996, of the mean episode\nDSRL normalized cost 0.25, of"
    assert lines in capsys.readouterr().out
    assert inspect.main([path]) == 0
    assert "normalized" not in capsys.readouterr().out


def test_a_bad_file_is_one_line_on_the_standard_error(tmp_path):
    path = data_files.flat(costs=None)(tmp_path)
    command = [sys.executable, "-m", "safejax.data.inspect", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "error"})
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"{path}: no 'costs'. ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("2", "cost <= 2: 3 of 3 episodes, best return 12; the limit excludes nothing"),
        ("0", "cost <= 0: 1 of 3 episodes, best return 6; normalised cost uses eps = 1 at limit 0"),
    ],
)
def test_limits_that_are_odd(tmp_path, capsys, limit, words):
    inspect.main([str(data_files.flat()(tmp_path)), "--cost-limit", limit])
    assert words in capsys.readouterr().out.splitlines()


def test_a_log_without_safe_behaviour(tmp_path, capsys):
    inspect.main([str(data_files.flat(costs=np.ones(7))(tmp_path)), "--cost-limit", "0.5"])
    assert "cost <= 0.5: 0 of 3 episodes, there is no safe behaviour in the log" in capsys.readouterr().out


@pytest.mark.parametrize("option", [["--cost-limit", "-1"], ["--episode-length", "0"]])
def test_a_number_out_of_range_is_one_line(tmp_path, capsys, option):
    assert inspect.main([str(data_files.flat()(tmp_path)), *option]) == 2
    printed, error = capsys.readouterr()
    assert printed == ""
    assert error.count("\n") == 1
