"""The table of faults: bad options in one line, damage that is found, and damage that would not be."""

from __future__ import annotations

import functools
import json
import random

import fault_numbers
import fault_trials
import faults
import kill_resume
import pytest
from one_line import refusal

from safejax import checkpoint

refused = functools.partial(refusal, faults.main)


def test_bad_options_are_one_line(capsys):
    assert "flipped_bits" in refused(capsys, "--only", "flipped_bits")
    assert "--trials is 0, expected at least 1" in refused(capsys, "--trials", "0")
    assert "--kills 0" in refusal(kill_resume.main, capsys, "--kills", "0")
    assert "a share in (0, 1]" in refusal(kill_resume.main, capsys, "--share", "0")


def test_what_is_printed_and_written(capsys, tmp_path):
    output = tmp_path / "new" / "faults.json"
    faults.main(["--only", "flipped_bit,emptied_metadata", "--trials", "2", "--seed", "3", "--output", str(output)])
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 4
    assert printed[2].startswith("| one flipped bit, in any file | 2 | 2 found; 2 times `latest` said which step")
    results = json.loads(output.read_text())
    assert results["seed"] == 3
    assert results["command"].endswith(f"--output {output}")
    assert {"jax", "orbax-checkpoint", "tensorstore"} <= results["versions"].keys()
    assert [row["silently_wrong"] for row in results["faults"]] == [0, 0]


def test_damage_that_nobody_finds_is_counted(tmp_path, monkeypatch):
    def believe(path, like, config=None):
        del config
        return like

    monkeypatch.setattr(checkpoint, "restore", believe)
    row = fault_trials.flipped_bit(tmp_path / "here", range(2), random.Random(0))
    assert row.silently_wrong == 2
    assert row.happened.startswith("0 found")


def test_a_job_that_fails_stops_the_comparison(capsys, tmp_path):
    job = kill_resume.start(tmp_path / "run", ["--limit", "-1"])
    with pytest.raises(SystemExit):
        job.ended()
    assert "the job failed with 2: error: --limit is -1, expected" in capsys.readouterr().err
    assert (tmp_path / "run" / "cache").is_dir()


def test_runs_are_compared_by_their_bytes(tmp_path):
    for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name / "run").mkdir(parents=True)
        (tmp_path / name / "run" / "results.json").write_text(text)
        (tmp_path / name / "run" / "metrics.jsonl").write_text("{}\n" * int(text))
    assert kill_resume.same("results.json", tmp_path / "a", tmp_path / "b")
    assert not kill_resume.same("results.json", tmp_path / "a", tmp_path / "c")
    assert [kill_resume.chunks(tmp_path / name) for name in ("a", "c", "none")] == [1, 2, 0]


def test_numbers_that_are_not_finite_cost_what_they_concern(tmp_path):
    rewards = fault_numbers.nan_reward(tmp_path, range(2), random.Random(0))
    physics = fault_numbers.diverging_physics(tmp_path, range(2), random.Random(0))
    assert rewards.silently_wrong == physics.silently_wrong == 0
    assert not rewards.happened.startswith("0 of")
    assert physics.happened.startswith("2 times that environment alone")
