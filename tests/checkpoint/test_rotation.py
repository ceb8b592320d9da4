"""The newest and the best steps of a run, and the way back from a damaged one."""

import fcntl
import os
import shutil

import numpy as np
import pytest
from states import Config, assert_same, forge, largest_file, make_state

from safejax.checkpoint import CheckpointError, Checkpoints, NonFiniteStateError, metadata


def test_rotation_keeps_the_last_two(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run", Config())
    like = make_state()
    assert checkpoints.latest(like) is None
    for step in (1, 5, 9):
        checkpoints.save(step, make_state(step), extra={"env_steps": step * 10})
    assert checkpoints.steps() == [5, 9]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["000000000005", "000000000009"]
    step, state = checkpoints.latest(like)
    assert step == 9
    assert_same(state, make_state(9))
    assert metadata(checkpoints.path(9))["extra"] == {"env_steps": 90}
    with pytest.raises(CheckpointError, match="holds step 9, expected none from 7 on; resume, or use another one"):
        checkpoints.save(7, state)
    with pytest.raises(ValueError, match="keep is 0, expected at least 1"):
        Checkpoints(tmp_path, keep=0)


def filled(directory, metrics, **options):
    """A rotation of tiny states whose steps 1, 2, ... had these metrics."""
    checkpoints = Checkpoints(directory, **options)
    for step, metric in enumerate(metrics, 1):
        checkpoints.save(step, {"x": np.full(2, step)}, metric=metric)
    return checkpoints


@pytest.mark.parametrize(
    ("metrics", "keep", "keep_best", "kept"),
    [
        ([5.0, 1.0, 4.0, 2.0, 3.0], 1, 2, [1, 3, 5]),
        ([5.0, 1.0, 4.0, 2.0, 3.0], 2, 1, [1, 4, 5]),
        ([5.0, 4.0, 3.0, 2.0, 1.0], 1, 1, [1, 5]),  # the newest is the worst, and stays
        ([1.0, 2.0, 3.0], 1, 1, [3]),
        ([2.0, 2.0, None, 0.0], 1, 1, [2, 4]),  # of equals the newer
        ([None, None, None], 1, 2, [3]),
        ([-3.0, None, None], 2, 1, [1, 2, 3]),
    ],
)
def test_the_newest_and_the_best_stay(tmp_path, metrics, keep, keep_best, kept):
    checkpoints = filled(tmp_path / "run", metrics, keep=keep, keep_best=keep_best)
    assert checkpoints.steps() == kept
    assert checkpoints.latest({"x": np.zeros(2, int)})[0] == len(metrics)
    best = checkpoints.best({"x": np.zeros(2, int)})
    values = [metric for metric in metrics if metric is not None]
    assert best is None if not values else metadata(checkpoints.path(best[0]))["metric"] == max(values)


def test_the_best_that_is_whole_is_found_over_damage(tmp_path):
    told = []
    checkpoints = filled(tmp_path / "run", [9.0, 7.0, 8.0, 1.0], keep=1, keep_best=3, log=told.append)
    next(checkpoints.path(1).glob("arrays-*/manifest.ocdbt")).write_bytes(b"")
    step, state = checkpoints.best({"x": np.zeros(2, int)})
    assert step == 3
    np.testing.assert_array_equal(state["x"], 3)
    (checkpoints.path(3) / "metadata.json").write_bytes(b"")  # no metric can be read: not one of the best
    checkpoints.save(5, {"x": np.full(2, 5)}, metric=0.0)
    assert checkpoints.steps() == [1, 2, 4, 5]
    assert [line.split(":")[0] for line in told] == ["skipped checkpoint 1", "skipped checkpoint 3"]


def test_what_would_lose_the_latest_is_refused(tmp_path):
    checkpoints = filled(tmp_path / "run", [1.0, 2.0])
    for step in (1, 2):
        with pytest.raises(CheckpointError, match=f"holds step 2, expected none from {step} on"):
            checkpoints.save(step, {"x": np.zeros(2)})
    with pytest.raises(CheckpointError, match="metric is 'nan', expected a finite number or None"):
        checkpoints.save(3, {"x": np.zeros(2)}, metric=float("nan"))
    with pytest.raises(NonFiniteStateError, match=r"000000000003: x has 1 of 2 values that are not finite"):
        checkpoints.save(3, {"x": np.array([0.0, np.nan])})
    with pytest.raises(ValueError, match="keep_best is -1"):
        Checkpoints(tmp_path, keep_best=-1)
    assert checkpoints.steps() == [1, 2]
    unbounded = {"x": np.array([0.0, np.inf])}
    lenient = Checkpoints(tmp_path / "run", allow_non_finite=True)
    lenient.save(3, unbounded)
    assert lenient.latest(unbounded)[1]["x"].tolist() == [0.0, np.inf]


@pytest.mark.parametrize("step", [-1, 10**12])
def test_a_step_that_could_not_be_listed_is_refused(tmp_path, step):
    checkpoints = Checkpoints(tmp_path / "run")
    with pytest.raises(CheckpointError, match=rf"run: step is {step}, expected one from 0 to 999999999999"):
        checkpoints.save(step, {"x": np.zeros(2)})
    assert not (tmp_path / "run").exists()
    checkpoints.save(10**12 - 1, {"x": np.zeros(2)})
    assert checkpoints.steps() == [10**12 - 1]


def test_left_overs_go_before_the_next_save(tmp_path):
    checkpoints = filled(tmp_path / "run", [1.0, 2.0])
    (tmp_path / "run" / ".trash" / "000000000009-half").mkdir(parents=True)
    (checkpoints.path(7) / ("arrays-" + "0" * 32)).mkdir(parents=True)
    checkpoints.save(8, {"x": np.zeros(2)})
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["000000000002", "000000000008"]


def test_left_overs_go_even_where_the_next_save_fails_for_want_of_space(tmp_path, monkeypatch):
    def full(directory, content):
        raise CheckpointError("disk full")

    checkpoints = filled(tmp_path / "run", [1.0])
    (tmp_path / "run" / ".trash" / "000000000009-half").mkdir(parents=True)
    monkeypatch.setattr("safejax.checkpoint.rotation.write", full)
    with pytest.raises(CheckpointError, match="disk full; the last whole step is 1"):
        checkpoints.save(2, {"x": np.zeros(2)})
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["000000000001"]


def test_two_writers_are_one_too_many(tmp_path):
    checkpoints = filled(tmp_path / "run", [1.0])
    for locked in (tmp_path / "run", checkpoints.path(2)):
        locked.mkdir(exist_ok=True)
        descriptor = os.open(locked, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(CheckpointError, match=rf"{locked.name}: another process is saving here"):
            checkpoints.save(2, {"x": np.zeros(2)})
        os.close(descriptor)
    checkpoints.save(2, {"x": np.zeros(2)})
    assert checkpoints.steps() == [1, 2]


def test_a_disk_without_locks_will_do(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr("fcntl.flock", flock)
    assert filled(tmp_path / "run", [1.0, 2.0]).steps() == [1, 2]


def test_latest_walks_back_over_damage_and_tells(tmp_path):
    told = []
    checkpoints = Checkpoints(tmp_path / "run", log=told.append, keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, make_state(step))
    largest_file(checkpoints.path(3)).write_bytes(b"")
    step, state = checkpoints.latest(make_state())
    assert step == 2
    assert_same(state, make_state(2))
    assert len(told) == 1
    assert told[0].startswith(f"skipped checkpoint 3: {checkpoints.path(3)}")
    (tmp_path / "run" / "000000000004").mkdir()  # what a killed first save of a step leaves
    (tmp_path / "run" / "notes").mkdir()
    assert checkpoints.steps() == [1, 2, 3]
    checkpoints.save(3, make_state(3))
    assert checkpoints.latest(make_state())[0] == 3
    assert sorted(path.name for path in (tmp_path / "run").iterdir())[3:] == ["notes"]
    for step in (1, 2, 3):
        (checkpoints.path(step) / "metadata.json").write_bytes(b"{")
    with pytest.raises(CheckpointError, match=r"none of steps \[1, 2, 3\] is whole"):
        checkpoints.latest(make_state())


def forget(checkpoints):
    (checkpoints.path(3) / "metadata.json").unlink()


def rename(checkpoints):
    shutil.rmtree(checkpoints.path(3))
    checkpoints.path(2).rename(checkpoints.path(3))


@pytest.mark.parametrize(
    ("hurt", "left", "words"),
    [
        (forget, 2, "arrays without metadata.json"),
        (rename, 1, "holds step 2; restore an older checkpoint or a copy"),
        (lambda checkpoints: forge(checkpoints.path(3), lambda about: about.pop("leaves")), 2, "not what was written"),
    ],
)
def test_a_step_that_is_not_what_it_should_be_is_told(tmp_path, hurt, left, words):
    told = []
    checkpoints = filled(tmp_path / "run", [1.0, 2.0, 3.0], keep=3, log=told.append)
    hurt(checkpoints)
    for find in (checkpoints.latest, checkpoints.best):
        step, state = find({"x": np.zeros(2, int)})
        assert step == left
        np.testing.assert_array_equal(state["x"], left)
    assert {line.split(":")[0] for line in told} == {"skipped checkpoint 3"}
    assert words in told[0]
    shutil.rmtree(checkpoints.path(3))
    told.clear()
    assert checkpoints.latest({"x": np.zeros(2, int)})[0] == left
    assert told == []


def test_a_run_of_which_no_step_was_finished_is_told(tmp_path):
    told = []
    checkpoints = filled(tmp_path / "run", [1.0, 2.0], log=told.append)
    for step in (1, 2):
        (checkpoints.path(step) / "metadata.json").unlink()
    assert checkpoints.latest({"x": np.zeros(2, int)}) is None
    assert [line.split(":")[0] for line in told] == ["skipped checkpoint 2", "skipped checkpoint 1"]


def test_a_step_that_does_not_say_which_it_is_is_believed(tmp_path):
    checkpoints = filled(tmp_path / "run", [1.0, 2.0], log=pytest.fail)
    forge(checkpoints.path(2), lambda about: (about.pop("step"), about.pop("metric")))  # as the oldest are
    assert checkpoints.latest({"x": np.zeros(2, int)})[0] == 2
    assert checkpoints.best({"x": np.zeros(2, int)})[0] == 1


def test_a_damaged_newer_step_gives_way(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run", log=lambda line: None)
    for step in (10, 20):
        checkpoints.save(step, make_state(step))
    largest_file(checkpoints.path(20)).write_bytes(b"")
    assert checkpoints.latest(make_state())[0] == 10
    checkpoints.save(12, make_state(12))
    assert checkpoints.steps() == [10, 12]


def test_latest_does_not_walk_past_a_mismatch(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run", Config(), log=pytest.fail)
    checkpoints.save(1, make_state())
    checkpoints.save(2, make_state())
    with pytest.raises(CheckpointError, match=r"expected float32\[6\]"):
        checkpoints.latest(make_state(width=6))
    with pytest.raises(CheckpointError, match=r"learning_rate=0\.0003, expected 1\.0"):
        Checkpoints(tmp_path / "run", Config(learning_rate=1.0)).latest(make_state())
