"""A whole online job (networks, moments, replay, MuJoCo states, counters) killed with SIGKILL ends the same."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import resume_job
from own_process import environment

from safejax import checkpoint

PROGRAM = Path(resume_job.__file__)


def start(directory: Path) -> subprocess.Popen:
    command = [sys.executable, str(PROGRAM), str(directory)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=environment())


def rows(directory: Path) -> list[dict]:
    path = directory / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def leaf_sums(directory: Path) -> dict[str, int]:
    saved = checkpoint.Checkpoints(directory / "checkpoints" / "online")
    about = checkpoint.metadata(saved.path(max(saved.steps())))
    return {name: leaf["crc32"] for name, leaf in about["leaves"].items()}


def test_killed_job_ends_bit_for_bit_like_an_uninterrupted_one(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    _, errors = (job := start(whole)).communicate(timeout=300)
    assert job.returncode == 0, errors.decode()[-2000:]

    job = start(killed)
    deadline = time.monotonic() + 300
    while len(rows(killed)) < 2 and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    job.communicate()
    assert job.returncode == -signal.SIGKILL
    assert 2 <= len(rows(killed)) < resume_job.CHUNKS

    _, errors = (job := start(killed)).communicate(timeout=300)
    assert job.returncode == 0, errors.decode()[-2000:]
    assert leaf_sums(killed) == leaf_sums(whole)
    assert rows(killed) == rows(whole)
    assert [row["chunk"] for row in rows(killed)] == list(range(resume_job.CHUNKS))
