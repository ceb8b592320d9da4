"""Files cut, altered or never finished: found before Orbax sees them, and nothing of it is noise."""

import errno
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from states import Config, assert_same, forge, largest_file, make_state

import safejax.checkpoint
from safejax.checkpoint import CheckpointError, Checkpoints, DamagedCheckpointError, directory, metadata, restore, save


def test_a_flipped_bit_in_any_file_is_found(tmp_path, capfd):
    state = make_state()
    save(tmp_path / "run", state, Config())
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 4
    for path in files:
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[len(flipped) // 2] ^= 4
        path.write_bytes(flipped)
        with pytest.raises(DamagedCheckpointError) as caught:
            restore(tmp_path / "run", state)
        assert str(caught.value).startswith(f"{path}: not what was written")
        assert str(caught.value).endswith("; restore an older checkpoint or a copy")
        path.write_bytes(content)
    assert_same(restore(tmp_path / "run", state), state)
    assert capfd.readouterr().err == ""


def test_damage_that_reaches_orbax_is_one_line(tmp_path, monkeypatch):
    state = make_state()
    save(tmp_path / "run", state)
    flip = largest_file(tmp_path / "run")
    content = bytearray(flip.read_bytes())
    content[len(content) // 2] ^= 4
    sums = metadata(tmp_path / "run")["files"]
    flip.write_bytes(content)
    monkeypatch.setattr("safejax.checkpoint.arrays.file_sums", lambda folder: sums)  # the first line of defense is down
    with pytest.raises(DamagedCheckpointError, match=r"unreadable|fail their checksum"):
        restore(tmp_path / "run", state)


def test_a_value_that_orbax_reads_wrongly_is_found(tmp_path, monkeypatch):
    state = make_state(3)
    save(tmp_path / "run", state)

    def read_wrongly(folder, leaves):
        return {**read(folder, leaves), "step": np.int32(4)}

    read = safejax.checkpoint.arrays.read_arrays
    monkeypatch.setattr("safejax.checkpoint.arrays.read_arrays", read_wrongly)
    with pytest.raises(DamagedCheckpointError, match=r"the values of step fail their checksum; restore an older"):
        restore(tmp_path / "run", state)


def test_truncated_and_missing_files(tmp_path, capfd):
    state = make_state()
    save(tmp_path / "run", state)
    path = largest_file(tmp_path / "run")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DamagedCheckpointError, match="missing, cut short or altered"):
        restore(tmp_path / "run", state)
    path.unlink()
    with pytest.raises(DamagedCheckpointError, match="missing, cut short or altered"):
        restore(tmp_path / "run", state)
    for content in (
        b"",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        (tmp_path / "run" / "metadata.json").read_bytes()[:-30],
    ):
        (tmp_path / "run" / "metadata.json").write_bytes(content)
        with pytest.raises(DamagedCheckpointError, match=r"metadata\.json: not what was written"):
            restore(tmp_path / "run", state)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about.pop("leaves"),
        lambda about: about.pop("files"),
        lambda about: about.pop("format_version"),
        lambda about: about.pop("config"),
        lambda about: about.update(arrays=3),
        lambda about: about.update(arrays="../other"),
        lambda about: about.update(format_version="9"),
        lambda about: about.update(metric="best"),
        lambda about: about.update(files=[]),
        lambda about: about["leaves"].update(step=[]),
        lambda about: about["leaves"]["step"].pop("dtype"),
    ],
)
def test_a_description_without_what_is_needed_is_damage(tmp_path, change):
    state = {"step": np.ones(2)}
    save(tmp_path / "run", state, {})
    forge(tmp_path / "run", change)
    with pytest.raises(DamagedCheckpointError, match=r"metadata\.json: not what was written"):
        restore(tmp_path / "run", state, config={})


NOISY = """
import gc, resource, sys
from pathlib import Path
import numpy as np
from safejax import checkpoint

directory = Path(sys.argv[1])
state = {f"layer_{index}": np.random.default_rng(index).normal(size=5000) for index in range(60)}
checkpoint.save(directory, state)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
for _ in range(3):
    try:
        checkpoint.save(directory, state)
    except checkpoint.CheckpointError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
largest = max((path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
largest.write_bytes(largest.read_bytes()[:-5000])
sums = checkpoint.metadata(directory)["files"]
for _ in range(3):
    try:
        checkpoint.restore(directory, state)
    except checkpoint.DamagedCheckpointError as error:
        print(error)
    checkpoint.arrays.file_sums = lambda folder: sums  # from here on Orbax meets the cut file
gc.collect()
"""


def test_failed_writes_and_truncated_files_make_no_noise(tmp_path):
    """Orbax alone prints hundreds of lines, some of them when the process ends."""
    command = [sys.executable, "-c", NOISY, str(tmp_path / "run")]
    process = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert process.returncode == 0
    assert process.stderr == ""
    lines = process.stdout.splitlines()
    assert ["the write failed (" in line for line in lines] == [True] * 3 + [False] * 3
    assert "not what was written: missing, cut short or altered" in lines[3]
    assert all("unreadable (" in line for line in lines[4:])


@pytest.fixture
def little_space():
    """Files of 20 kB at most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


LARGE = {"large": np.random.default_rng(0).normal(size=40_000)}


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, little_space, capfd):
    state = make_state()
    save(tmp_path / "run", state)
    with pytest.raises(CheckpointError, match=r"run: the write failed \(.*\); check free space .* before is intact$"):
        save(tmp_path / "run", LARGE)
    assert_same(restore(tmp_path / "run", state), state)
    assert len(list((tmp_path / "run").iterdir())) == 2
    checkpoints = Checkpoints(tmp_path / "steps")
    with pytest.raises(CheckpointError, match=r"is intact; no step is here yet$"):
        checkpoints.save(1, LARGE)
    for step in (2, 3):
        checkpoints.save(step, state)
    with pytest.raises(
        CheckpointError, match=r"000000000004: the write failed .* is intact; the last whole step is 3$"
    ):
        checkpoints.save(4, LARGE)
    assert checkpoints.latest(state)[0] == 3
    checkpoints.save(4, state)
    assert checkpoints.steps() == [3, 4]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError("X: [OS error 28: No space left on device]")]
)
def test_a_full_disk_is_called_that(tmp_path, monkeypatch, error):
    def write(folder, arrays):
        raise error

    monkeypatch.setattr("safejax.checkpoint.arrays.write_arrays", write)
    with pytest.raises(CheckpointError, match=r"the write failed \(disk full\); check free space"):
        save(tmp_path / "run", LARGE)


def test_orbax_is_quiet_and_logging_is_left_alone(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    before = logging.getLogger("absl").level, logging.getLogger().level
    save(tmp_path / "run", make_state())
    restore(tmp_path / "run", make_state())
    assert (logging.getLogger("absl").level, logging.getLogger().level) == before
    assert caplog.records == []


WORKER = """
import sys, itertools
import jax.numpy as jnp
from safejax.checkpoint import Checkpoints, save
directory, first = sys.argv[1], int(sys.argv[2])
checkpoints = Checkpoints(directory + "/steps")
print("ready", flush=True)
for step in itertools.count(first):
    state = {"step": jnp.int32(step), "values": jnp.arange(300_000.0) + step}
    checkpoints.save(step, state)
    save(directory + "/one", state)
    print(step, flush=True)
"""


def test_a_process_killed_while_saving_leaves_whole_checkpoints(tmp_path):
    like = {"step": jnp.int32(0), "values": jnp.zeros(300_000)}
    told = []
    checkpoints = Checkpoints(tmp_path / "steps", log=told.append)
    delays, done, halves = random.Random(0), 0, 0
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    for _ in range(6):
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path), str(done + 1)],
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert worker.stdout.readline() == b"ready\n"
        if done == 0:
            assert worker.stdout.readline() == b"1\n"
        time.sleep(delays.uniform(0.05, 0.5))
        worker.send_signal(signal.SIGKILL)
        finished = worker.communicate()[0].split()
        acknowledged = int(finished[-1]) if finished else max(done, 1)
        step, state = checkpoints.latest(like)
        assert step >= acknowledged  # what a save returned for is never lost
        for found, expected in ((state, step), (restore(tmp_path / "one", like), None)):
            assert expected in (None, int(found["step"]))
            np.testing.assert_array_equal(found["values"], np.arange(300_000.0, dtype=np.float32) + found["step"])
        halves += len(list(tmp_path.glob("steps/*/arrays-*"))) + len(list(tmp_path.glob("one/arrays-*"))) > 3
        done = step
    assert all(line.endswith("arrays without metadata.json") for line in told)  # killed just before the commit
    assert halves  # some kill did hit a save half way, or nothing was tried here


def test_a_description_that_cannot_be_read_costs_nothing(tmp_path, monkeypatch):
    """The disk fails to read it once, and is full then: what was saved before is there."""
    save(tmp_path, {"a": np.ones(3)})
    read = Path.read_bytes

    def unreadable(path):
        if path.name == "metadata.json":
            raise OSError(errno.EIO, "Input/output error")
        return read(path)

    def full(folder, arrays):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", unreadable)
        patch.setattr(directory.files, "write_arrays", full)
        with pytest.raises(CheckpointError, match="disk full"):
            save(tmp_path, {"a": np.zeros(3)})
    np.testing.assert_array_equal(restore(tmp_path, {"a": np.zeros(3)})["a"], 1.0)


def test_a_reader_gets_the_checkpoint_that_replaces_the_one_it_reads(tmp_path, monkeypatch):
    save(tmp_path, {"a": np.ones(3)})
    verify, calls = directory._verified, []

    def overtaken(folder, about):
        if not calls:
            calls.append(folder)
            save(tmp_path, {"a": np.full(3, 2.0)})
        return verify(folder, about)

    monkeypatch.setattr(directory, "_verified", overtaken)
    np.testing.assert_array_equal(restore(tmp_path, {"a": np.zeros(3)})["a"], 2.0)
