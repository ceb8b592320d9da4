"""A run directory under refusal, interruption, kills, torn files and bad numbers."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safejax import checkpoint, runs
from safejax.runs import Interrupted, Run, RunError

CONFIG = {"task": "demo", "limit": 20.0, "hidden": (8, 8)}
CHUNKS = 5


def initial():
    return {"x": jnp.arange(4.0), "key": jax.random.key(3)}


@jax.jit
def move(state, index):
    noise = jax.random.normal(jax.random.fold_in(state["key"], index), (4,))
    return {"x": 0.9 * state["x"] + noise, "key": state["key"]}


def advance(state, index):
    state = move(state, index)
    return state, {"mean": state["x"].mean(), "return": state["x"]}


def finish(directory, step=advance, chunks=CHUNKS, config=CONFIG):
    with Run.open(directory, config) as run:
        return run.stage("first", initial, step, chunks), run.metrics("first")


@pytest.fixture
def undisturbed(tmp_path):
    return finish(tmp_path / "undisturbed")


def same(found, expected):
    """States bit for bit, and the same records, each once, in order."""
    chex.assert_trees_all_equal(*(jax.random.key_data(part[0]["key"]) for part in (found, expected)))
    np.testing.assert_array_equal(found[0]["x"], expected[0]["x"])
    assert [row["chunk"] for row in found[1]] == list(range(CHUNKS))
    assert found[1] == expected[1]


def test_a_stage_runs_records_and_is_not_run_again(tmp_path, undisturbed):
    state, rows = undisturbed
    expected = initial()
    for index in range(CHUNKS):
        expected, record = advance(expected, index)
        assert rows[index]["mean"] == pytest.approx(float(record["mean"]))
        assert rows[index]["return"] == np.asarray(record["return"]).tolist()
    np.testing.assert_array_equal(state["x"], expected["x"])

    def never(state, index):
        raise AssertionError("a finished stage ran again")

    same(finish(tmp_path / "undisturbed", never), undisturbed)


def test_two_stages_keep_their_own_records(tmp_path):
    with Run.open(tmp_path / "run", CONFIG) as run:
        run.stage("first", initial, advance, 2)
        run.stage("second", initial, advance, 3)
    with Run.open(tmp_path / "run", CONFIG) as run:
        run.stage("first", initial, advance, 2)
        assert [row["chunk"] for row in run.metrics("first")] == [0, 1]
        assert [row["chunk"] for row in run.metrics("second")] == [0, 1, 2]


def test_a_foreign_directory_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(RunError, match=r"holds 'thesis\.txt' and no safejax run"), Run.open(tmp_path, CONFIG):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.txt"]


@pytest.mark.parametrize("text", ["{}", '{"format": "another tool"}', "{broken", "", "[]", "\xff", "[" * 100_000])
def test_a_foreign_or_damaged_config_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text, "latin-1")
    with pytest.raises(RunError, match=r"no safejax run.*--output") as caught, Run.open(tmp_path, CONFIG):
        pass
    assert "\n" not in str(caught.value)
    assert (tmp_path / "config.json").read_text("latin-1") == text


def test_another_config_is_refused_by_name(tmp_path):
    with Run.open(tmp_path, CONFIG):
        pass
    for change, words in (
        ({"limit": 5.0}, r"limit=20\.0 \(asked for 5\.0\)"),
        ({"extra": 1}, r"extra=None \(asked for 1\)"),
        ({"hidden": (8,)}, r"hidden=\[8, 8\] \(asked for \[8\]\)"),
    ):
        with pytest.raises(RunError, match=words) as caught, Run.open(tmp_path, CONFIG | change):
            pass
        assert "task" not in str(caught.value)
        assert "\n" not in str(caught.value)
    with Run.open(tmp_path, CONFIG):
        pass


@pytest.mark.parametrize("value", [{1, 2}, np.zeros(2), CONFIG.keys()])
def test_a_config_that_json_cannot_hold_is_refused(tmp_path, value):
    with pytest.raises(RunError, match=r"run: config cannot be stored \(.*\); use numbers and strings$") as caught:
        finish(tmp_path / "run", config={"a": value})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_second_opener_is_refused_until_the_first_is_done(tmp_path):
    with (
        Run.open(tmp_path, CONFIG),
        pytest.raises(RunError, match="in use by another process"),
        Run.open(tmp_path, CONFIG),
    ):
        pass
    with Run.open(tmp_path, CONFIG):
        pass


def test_a_file_in_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunError, match="cannot be written"), Run.open(path, CONFIG):
            pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_chunk_and_the_rest_is_the_same(tmp_path, undisturbed, number, capfd):
    def signalled(state, index):
        if index == 2:
            os.kill(os.getpid(), number)
        return advance(state, index)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="stopped after first, chunk 3 of 5"):
        finish(tmp_path / "run", signalled)
    assert signal.getsignal(number) is before
    assert "stopping after this chunk" in capfd.readouterr().err
    seen = []

    def counted(state, index):
        seen.append(index)
        return advance(state, index)

    same(finish(tmp_path / "run", counted), undisturbed)
    assert seen == [3, 4]


def test_a_second_ctrl_c_is_pythons_own(tmp_path):
    def impatient(state, index):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        return advance(state, index)

    with pytest.raises(KeyboardInterrupt):
        finish(tmp_path / "run", impatient)


class Killed(BaseException):
    """Stands for kill -9: nothing after it runs."""


@pytest.mark.parametrize("where", ["save", "append_record"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("chunk", [1, 3])
def test_a_kill_around_either_write_of_a_chunk_loses_no_record(tmp_path, undisturbed, monkeypatch, where, when, chunk):
    """The checkpoint and the line of metrics.jsonl are two writes; between them lies a moment too."""
    owner = {"save": checkpoint.Checkpoints, "append_record": runs.run}[where]
    original, calls = getattr(owner, where), []

    def killed(*arguments, **keywords):
        calls.append(arguments)
        if when == "after":
            original(*arguments, **keywords)
        if len(calls) == chunk:
            raise Killed
        if when == "before":
            original(*arguments, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(owner, where, killed)
        with pytest.raises(Killed):
            finish(tmp_path / "run")
    same(finish(tmp_path / "run"), undisturbed)


def test_a_torn_last_line_of_metrics_is_survived(tmp_path, undisturbed):
    def stopped(state, index):
        if index == 3:
            raise Killed
        return advance(state, index)

    with pytest.raises(Killed):
        finish(tmp_path / "run", stopped)
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"stage": "first", "chunk": 3, "me')
    with Run.open(tmp_path / "run", CONFIG) as run:
        assert [row["chunk"] for row in run.metrics("first")] == [0, 1, 2]
    same(finish(tmp_path / "run"), undisturbed)
    assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.parametrize("line", [b"{broken", b"\xff\xfe", b"\0\0\0", b"[1]", b"[" * 100_000])
def test_only_the_last_line_of_metrics_may_be_damaged(tmp_path, line):
    _, rows = finish(tmp_path / "run", chunks=2)
    path = tmp_path / "run" / "metrics.jsonl"
    first, second, rest = path.read_bytes().split(b"\n")
    assert rest == b""
    path.write_bytes(b"\n".join([first, second, line]))
    assert finish(tmp_path / "run", chunks=2)[1] == rows
    assert path.read_bytes() == b"\n".join([first, second, b""])
    damaged = b"\n".join([first, line, b""])
    path.write_bytes(damaged)
    with pytest.raises(RunError, match=r"metrics\.jsonl: line 2 is damaged \(.*\), expected a JSON object") as caught:
        finish(tmp_path / "run", chunks=2)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == damaged


def cut(text):
    return text[:-5]


def without(*numbers):
    return lambda text: "".join(line for n, line in enumerate(text.splitlines(True)) if n not in numbers)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (cut, "record 3 of 'first' is of chunk none, expected 2"),
        (without(1), "record 2 of 'first' is of chunk 2, expected 1"),
        (without(0, 1, 2), "record 1 of 'first' is of chunk none, expected 0"),
        (lambda text: text + text.splitlines(True)[1], "record 4 of 'first' is of chunk 1, expected none"),
        (lambda text: text.replace('"chunk": 1', '"chunk": "1"'), "record 2 of 'first' is of chunk 2, expected 1"),
        (lambda text: text.replace('"chunk": 1, ', ""), "record 2 of 'first' is of chunk 2, expected 1"),
    ],
)
def test_a_record_of_a_saved_chunk_is_not_lost_without_a_word(tmp_path, change, words):
    finish(tmp_path / "run", chunks=3)
    path = tmp_path / "run" / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(damaged := change(whole))
    with pytest.raises(RunError, match=rf"metrics\.jsonl: {words}; put a copy of the file back, or delete") as caught:
        finish(tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert path.read_text() == damaged
    path.write_text(whole)
    assert len(finish(tmp_path / "run")[1]) == CHUNKS


@pytest.mark.parametrize("lost", ["checkpoints", "checkpoints/first", "checkpoints/first/*/metadata.json"])
@pytest.mark.filterwarnings("ignore:skipped checkpoint")
def test_a_stage_whose_checkpoints_are_gone_is_not_begun_anew_without_a_word(tmp_path, undisturbed, lost):
    finish(tmp_path / "run", chunks=3)
    kept = {}
    for number, path in enumerate((tmp_path / "run").glob(lost)):
        kept[path] = path.rename(tmp_path / f"kept-{number}")
    for _ in range(2):
        with pytest.raises(RunError, match="has 3 records of 'first', expected its checkpoints in checkpoints/first"):
            finish(tmp_path / "run")
    for path, copy in kept.items():
        copy.rename(path)
    same(finish(tmp_path / "run"), undisturbed)


def test_fewer_chunks_than_were_saved_are_refused(tmp_path):
    finish(tmp_path / "run", chunks=3)
    with pytest.raises(RunError, match="first: 3 chunks were saved, expected at most 2; choose another --output"):
        finish(tmp_path / "run", chunks=2)
    assert len(finish(tmp_path / "run", chunks=3)[1]) == 3


def test_damaged_times_are_begun_anew(tmp_path):
    finish(tmp_path / "run", chunks=1)
    path = tmp_path / "run" / "timing.json"
    damaged = (b"", b"\xff", b"[]", b"[" * 100_000, b'{"first": 3}', b'{"first": {"first_chunk_s": "1"}}')
    for chunks, content in enumerate(damaged, 2):
        path.write_bytes(content)
        assert len(finish(tmp_path / "run", chunks=chunks)[1]) == chunks
        assert json.loads(path.read_text())["first"]["other_chunks"] == 0


def finish_and_report(directory):
    with Run.open(directory, CONFIG) as run:
        run.stage("first", initial, advance, CHUNKS)
        runs.write_json(directory / "results.json", {})


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "timing.json", "results.json"])
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(tmp_path, undisturbed, name):
    """/dev/full takes no byte."""
    directory = tmp_path / "run"
    if name == "config.json":
        directory.mkdir()
    else:
        finish(directory, chunks=2)
    partial = directory / f".partial-{name}"
    partial.symlink_to("/dev/full")
    with pytest.raises(RunError) as caught:
        finish_and_report(directory)
    assert str(caught.value) == (
        f"{directory}: a write failed (No space left on device); make room and run it again, it goes on after the "
        "last chunk that was saved"
    )
    partial.unlink()
    same(finish(directory), undisturbed)


def test_a_disk_that_fills_while_a_record_is_added_loses_no_chunk(tmp_path, undisturbed):
    path = tmp_path / "run" / "metrics.jsonl"

    def filling(state, index):
        if index == 2:
            path.rename(tmp_path / "kept")
            path.symlink_to("/dev/full")
        return advance(state, index)

    with pytest.raises(RunError, match="No space left on device"):
        finish(tmp_path / "run", filling)
    (tmp_path / "kept").rename(path)
    same(finish(tmp_path / "run"), undisturbed)


def test_other_faults_of_files_keep_their_kind(tmp_path):
    with pytest.raises(FileNotFoundError), Run.open(tmp_path, CONFIG):
        (tmp_path / "none").read_text()


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    order = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, original=original: (order.append(name), original(*a)))
    runs.write_json(tmp_path / "a.json", {})
    assert order == ["fsync", "replace"]


def test_a_kill_while_the_config_is_written_leaves_a_usable_directory(tmp_path):
    """`write_json` goes through `.partial-config.json`, which a kill may leave behind."""
    (tmp_path / "run.lock").touch()
    (tmp_path / ".partial-config.json").write_text('{"form')
    with Run.open(tmp_path, CONFIG) as run:
        assert run.metrics("first") == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [[1.0], [float("nan")]]])
def test_a_record_that_is_not_finite_stops_and_keeps_the_last_good_chunk(tmp_path, undisturbed, value):
    def diverging(state, index):
        state, record = advance(state, index)
        return state, record | ({"critic/loss": value} if index == 2 else {})

    with pytest.raises(
        FloatingPointError, match="first, chunk 3: 'critic/loss' is not finite; the last good checkpoint is chunk 2"
    ):
        finish(tmp_path / "run", diverging)
    saved = checkpoint.Checkpoints(tmp_path / "run" / "checkpoints" / "first")
    assert saved.steps()[-1] == 2
    same(finish(tmp_path / "run"), undisturbed)


def test_a_state_that_is_not_finite_is_not_saved(tmp_path, undisturbed):
    def diverging(state, index):
        state, record = advance(state, index)
        return state | ({"x": state["x"].at[1].set(np.nan)} if index == 2 else {}), record

    with pytest.raises(FloatingPointError, match=r"first.000000000003: x has 1 of 4 values .* first nan at \[1\]"):
        finish(tmp_path / "run", diverging)
    assert checkpoint.Checkpoints(tmp_path / "run" / "checkpoints" / "first").steps() == [1, 2]
    same(finish(tmp_path / "run"), undisturbed)


def test_an_intended_infinity_is_saved_where_it_is_allowed(tmp_path):
    def unbounded(state, index):
        state, record = advance(state, index)
        return state | {"bound": jnp.asarray(jnp.inf)}, record

    def begin():
        return initial() | {"bound": jnp.asarray(jnp.inf)}

    for _ in range(2):  # the second time from its checkpoints alone
        with Run.open(tmp_path / "run", CONFIG) as run:
            state = run.stage("first", begin, unbounded, CHUNKS, allow_non_finite=True)
        assert state["bound"] == jnp.inf


def test_what_an_engine_kept_back_is_raised_between_chunks(tmp_path):
    def check():
        raise RuntimeError("bad physics")

    with Run.open(tmp_path, CONFIG) as run, pytest.raises(RuntimeError, match="bad physics"):
        run.stage("first", initial, advance, CHUNKS, check=check)
    assert checkpoint.Checkpoints(tmp_path / "checkpoints" / "first").steps() == []


def test_files_made_once_are_whole(tmp_path):
    calls = []

    def make(path):
        calls.append(path)
        path.write_text("half")
        if len(calls) == 1:
            raise Killed
        path.write_text("whole")

    with Run.open(tmp_path, CONFIG) as run:
        with pytest.raises(Killed):
            run.once("data.txt", make)
        assert not (tmp_path / "data.txt").exists()
        for _ in range(2):
            assert run.once("data.txt", make).read_text() == "whole"
    assert len(calls) == 2


def test_timing_is_kept_over_restarts(tmp_path):
    finish(tmp_path / "run", chunks=2)
    finish(tmp_path / "run", chunks=2)
    timing = json.loads((tmp_path / "run" / "timing.json").read_text())["first"]
    assert timing["other_chunks"] == 1
    assert timing["first_chunk_s"] > 0.0


JOB = """
    import hashlib, sys, time
    import numpy as np
    from safejax.runs import Run

    def initial():
        return {"x": np.arange(64, dtype=np.float32), "count": np.zeros((), np.int32)}

    def advance(state, index):
        noise = np.random.default_rng(index).normal(size=64).astype(np.float32)
        time.sleep(0.02)
        state = {"x": np.float32(0.9) * np.asarray(state["x"]) + noise, "count": np.asarray(state["count"]) + 1}
        return state, {"sum": float(state["x"].sum()), "count": int(state["count"])}

    with Run.open(sys.argv[1], {"job": 1}) as run:
        print("open", flush=True)
        state = run.stage("job", initial, advance, 30)
        rows = [(row["chunk"], row["sum"], row["count"]) for row in run.metrics("job")]
    digest = hashlib.sha256(np.asarray(state["x"]).tobytes() + np.asarray(state["count"]).tobytes())
    print("digest", digest.hexdigest(), hashlib.sha256(repr(rows).encode()).hexdigest(), len(rows), flush=True)
"""


def test_a_process_killed_again_and_again_ends_the_same(tmp_path):
    """kill -9 at random moments, at least three times while chunks run; state and records equal the undisturbed."""
    script = tmp_path / "job.py"
    script.write_text(textwrap.dedent(JOB))
    clock, kills = random.Random(0), 0

    def job(directory):
        return subprocess.Popen(
            [sys.executable, script, directory], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def digest(text):
        return [line for line in text.splitlines() if line.startswith("digest")]

    (expected,) = digest(job(tmp_path / "undisturbed").communicate()[0])
    assert expected.endswith(" 30")
    for _ in range(40):
        process = job(tmp_path / "killed")
        assert process.stdout.readline() == "open\n"
        if kills < 4:
            time.sleep(clock.uniform(0.02, 0.5))
            process.kill()
        kills += process.wait() == -signal.SIGKILL
        found = digest(process.stdout.read())
        process.stdout.close()
        if found:
            break
    assert kills >= 3
    assert found == [expected]
