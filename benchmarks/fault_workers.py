"""Processes that `faults.py` kills, starves and signals, and what they should have left behind."""

from __future__ import annotations

import hashlib
import itertools
import os
import resource
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from safejax.checkpoint import CheckpointError, Checkpoints, save
from safejax.runs import Interrupted, Run, RunError

VALUES = 6_000_000  # float32: 24 MB, a small learner with its replay
CHUNKS = 20


def state_of(step: int, values: int = VALUES) -> dict[str, np.ndarray]:
    """The state of a step, the same in every process."""
    return {
        "step": np.array(step, np.int32),
        "values": np.random.default_rng(step).standard_normal(values, np.float32),
    }


def is_exact(step: int, state: dict[str, np.ndarray]) -> bool:
    """Whether a restored state is that of its step, byte by byte."""
    expected = state_of(step, state["values"].size)
    return all(state[name].tobytes() == expected[name].tobytes() for name in expected)


def save_on_and_on(pipe: Connection, directory: Path, first: int, values: int) -> None:
    """Save step after step until killed; every step is sent once its save returned."""
    checkpoints = Checkpoints(directory)
    pipe.send("ready")
    for step in itertools.count(first):
        checkpoints.save(step, state_of(step, values))
        pipe.send(step)


def save_in_little_space(pipe: Connection, directory: Path, first: int, file_size: int | None) -> None:
    """Save until there is no space: that of the disk, or of a file at most `file_size` bytes long; send the error."""
    if file_size is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, hard))
    checkpoints = Checkpoints(directory, keep=1000)
    for step in itertools.count(first):
        try:
            checkpoints.save(step, state_of(step))
        except CheckpointError as error:
            pipe.send((step, str(error)))
            return


def save_beside_another(pipe: Connection, directory: Path, offset: int, count: int) -> None:
    """Save `count` states into one directory that another process writes too; send how many were refused."""
    refused = 0
    for number in range(count):
        try:
            save(directory, state_of(offset + number))
        except CheckpointError as error:
            if "another process is saving here" not in str(error):
                raise
            refused += 1
    pipe.send(refused)


def initial() -> dict[str, np.ndarray]:
    """The first state of the job."""
    return {"x": np.arange(64, dtype=np.float32), "chunks": np.zeros((), np.int32)}


def job(pipe: Connection, directory: Path, bad_chunk: int | None = None, chunk_seconds: float = 0.05) -> None:
    """A run of one stage; sends each chunk's index as it begins, and at the end how it ended.

    Where it ends well that is a digest of the last state and all records. In `bad_chunk` the state becomes NaN.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the progress bar
    tqdm.set_lock(threading.RLock())  # its own is shared between processes, and a killed one would leave it

    def advance(state: dict[str, Any], index: int) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        pipe.send(index)
        time.sleep(chunk_seconds)
        noise = np.random.default_rng(index).normal(size=64).astype(np.float32)
        x = np.float32(0.9) * np.asarray(state["x"]) + noise
        record = {"sum": float(x.sum())}
        if index == bad_chunk:
            x[3] = np.nan
        return {"x": x, "chunks": np.asarray(state["chunks"]) + np.int32(1)}, record

    try:
        with Run.open(directory, {"job": "faults"}) as run:
            state = run.stage("job", initial, advance, CHUNKS)
            content = np.asarray(state["x"]).tobytes() + repr(run.metrics("job")).encode()
            pipe.send(hashlib.sha256(content).hexdigest())
    except (Interrupted, RunError, FloatingPointError) as error:
        pipe.send(f"{type(error).__name__}: {error}")
