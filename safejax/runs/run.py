"""A run directory that survives Ctrl-C, SIGTERM and kill -9: lock, stages in chunks, metrics, resume.

    with Run.open("runs/demo", config) as run:
        state = run.stage("offline", initial, advance, chunk_count=20)

A stage's state is saved after every chunk, so a kill loses at most one; the same program started again continues
where the newest readable checkpoint is, and what it then computes is what it would have computed.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
from tqdm import tqdm

from safejax import checkpoint
from safejax.runs.errors import Interrupted, RunError
from safejax.runs.files import append_record, read_json, read_records, room_needed, write_json, write_records
from safejax.types import ArrayTree

_FORMAT = "safejax run 1"
_TIMES = ("first_chunk_s", "other_chunks_s", "other_chunks")  # of a stage


class Run:
    """An open run directory; see the module's docstring."""

    def __init__(self, directory: Path, lock: TextIO) -> None:
        self.directory = directory
        self._lock = lock
        self._stop = False
        self._metrics = directory / "metrics.jsonl"
        self._timing = _stored_timing(directory)

    @classmethod
    @contextlib.contextmanager
    def open(cls, directory: str | os.PathLike, config: Mapping[str, Any]) -> Iterator[Run]:
        """Create or continue the run in `directory`, hold its lock, and hear signals until the block ends.

        Args:
          directory: new, empty, or holding a run of the same `config`.
          config: JSON-able; written to config.json and compared when the run continues.

        Raises:
          RunError: the directory is not writable, holds other things, a damaged or another config, or is in use; JSON
            cannot hold the config; or the disk is full while anything inside the block is written.
        """
        path = Path(os.path.abspath(directory))
        try:
            config = json.loads(json.dumps({"format": _FORMAT, **config}))
        except (TypeError, ValueError) as error:
            raise RunError(f"{path}: config cannot be stored ({error}); use numbers and strings") from None
        try:
            path.mkdir(parents=True, exist_ok=True)
            _refuse_foreign(path)
            lock = (path / "run.lock").open("a")
        except OSError as error:
            raise RunError(f"{path}: cannot be written ({error.strerror}); choose another --output") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(f"{path}: in use by another process; wait for it or choose another --output") from None
            stored = _stored_config(path)
            if stored is not None and stored != config:
                raise RunError(f"{path}: holds a run with {_difference(stored, config)}; choose another --output")
            with room_needed(path):
                if stored is None:
                    write_json(path / "config.json", config)
                run = cls(path, lock)
                with run._listening():
                    yield run

    def stage(
        self,
        name: str,
        initial: Callable[[], ArrayTree],
        advance: Callable[[ArrayTree, int], tuple[ArrayTree, Mapping[str, Any]]],
        chunk_count: int,
        *,
        check: Callable[[], None] = lambda: None,
        allow_non_finite: bool = False,
    ) -> Any:
        """Run `advance` chunk by chunk, saving after each, and return the last state.

        Args:
          name: of the stage; its checkpoints lie in checkpoints/<name>.
          initial: -> the first state; only its shapes are asked for when the stage continues.
          advance: (state, chunk index) -> (state, record); the state may be donated. Records are numbers or nested
            lists of numbers; each becomes a line of metrics.jsonl.
          chunk_count: chunks of the whole stage.
          check: raises what an engine kept back, after every chunk.
          allow_non_finite: save a state that holds NaN or infinity by intention; records stay finite.

        Raises:
          RunError: a line of metrics.jsonl is damaged, its records are not those of the chunks that were saved, or more
            than `chunk_count` were saved.
          Interrupted: after the chunk in which Ctrl-C or SIGTERM arrived was saved.
          FloatingPointError: `advance` or `check` raised one, or a record or the state is not finite; names the last
            good chunk, which stays on disk.
        """
        saved = checkpoint.Checkpoints(self.directory / "checkpoints" / name, allow_non_finite=allow_non_finite)
        found = saved.latest(jax.eval_shape(initial))
        done, state = found if found is not None else (0, None)
        if done > chunk_count:
            raise RunError(
                f"{saved.directory}: {done} chunks were saved, expected at most {chunk_count}; choose another --output"
            )
        self._keep_metrics(name, done)
        if done == chunk_count:
            return state
        state = initial() if state is None else state
        timing = self._timing.setdefault(name, dict.fromkeys(_TIMES, 0))
        print(f"{name}: compiling", file=sys.stderr, flush=True)
        with tqdm(total=chunk_count, initial=done, desc=name, unit="chunk", dynamic_ncols=True) as bar:
            for index in range(done, chunk_count):
                began = time.perf_counter()
                try:
                    state, record = advance(state, index)
                    record = {key: np.asarray(value).tolist() for key, value in record.items()}
                    check()
                    _refuse_non_finite(record)
                except FloatingPointError as error:
                    last = f"the last good checkpoint is chunk {index}" if index else "there is no good checkpoint yet"
                    raise FloatingPointError(f"{name}, chunk {index + 1}: {error}; {last}") from None
                # In this order a kill between the two leaves a record too many, which the next start drops.
                append_record(self._metrics, {"stage": name, "chunk": index, **record})
                saved.save(index + 1, state)
                elapsed = time.perf_counter() - began
                if index == done:
                    timing["first_chunk_s"] += elapsed
                else:
                    timing["other_chunks_s"] += elapsed
                    timing["other_chunks"] += 1
                write_json(self.directory / "timing.json", self._timing)
                bar.update()
                bar.set_postfix_str(_headline(record), refresh=False)
                if self._stop:
                    raise Interrupted(f"stopped after {name}, chunk {index + 1} of {chunk_count}")
        return state

    def metrics(self, stage: str) -> list[dict[str, Any]]:
        """The records of a stage so far, in order.

        Raises:
          RunError: a line of metrics.jsonl is damaged.
        """
        return [row for row in read_records(self._metrics) if row.get("stage") == stage]

    def once(self, name: str, make: Callable[[Path], None]) -> Path:
        """The file `name` of the run, made by `make` (into a temporary path) if it is not there yet."""
        path = self.directory / name
        if not path.exists():
            partial = path.with_name(f".partial-{path.name}")
            make(partial)
            os.replace(partial, path)
        return path

    def _keep_metrics(self, stage: str, done: int) -> None:
        """Drop records of chunks that will run again, so that none appears twice.

        A kill leaves the record of every chunk that was saved, and at most that of the next one besides.
        """
        rows = read_records(self._metrics)
        own = [row.get("chunk") for row in rows if row.get("stage") == stage]
        if done == 0 and own not in ([], [0]):
            raise RunError(
                f"{self._metrics}: has {len(own)} records of {stage!r}, expected its checkpoints in "
                f"checkpoints/{stage}; put a copy of that folder back, or delete the records to begin {stage!r} anew"
            )
        kept = [row for row in rows if row.get("stage") != stage or row.get("chunk") in range(done)]
        chunks = [row["chunk"] for row in kept if row.get("stage") == stage]
        for number, (found, expected) in enumerate(itertools.zip_longest(chunks, range(done), fillvalue="none"), 1):
            if found != expected:
                raise RunError(
                    f"{self._metrics}: record {number} of {stage!r} is of chunk {found}, expected {expected}; put a "
                    f"copy of the file back, or delete checkpoints/{stage} and all records of it to begin anew"
                )
        write_records(self._metrics, kept)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Turn the first Ctrl-C or SIGTERM into a flag; a second Ctrl-C is Python's own."""

        def stop(number: int, frame: Any) -> None:
            del frame
            self._stop = True
            signal.signal(signal.SIGINT, signal.default_int_handler)
            # Not print: the signal may have arrived inside a write of the progress bar.
            os.write(2, f"\n{signal.Signals(number).name}: stopping after this chunk\n".encode())

        try:
            before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: signals belong to somebody else
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _stored_config(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path / "config.json")
    except ValueError as error:
        raise RunError(
            f"{path}: config.json cannot be read ({error}), so this is a damaged run or no safejax run; put a copy of "
            "it back, or choose another --output"
        ) from None


def _stored_timing(path: Path) -> dict[str, dict[str, float]]:
    """The seconds of every stage; damaged ones are begun anew."""
    try:
        stages = read_json(path / "timing.json") or {}
    except ValueError:
        return {}

    def is_whole(times: Any) -> bool:
        return isinstance(times, dict) and all(isinstance(times.get(name), int | float) for name in _TIMES)

    return {name: times for name, times in stages.items() if is_whole(times)}


def _refuse_foreign(path: Path) -> None:
    ours = ("run.lock", ".partial-config.json")  # what a kill at the very start leaves
    found = sorted(entry.name for entry in path.iterdir() if entry.name not in ours)
    stored = _stored_config(path)
    if found and (stored is None or stored.get("format") != _FORMAT):
        raise RunError(
            f"{path}: holds {found[0]!r} and no safejax run, expected a new or empty directory; choose another --output"
        )


def _difference(stored: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    names = [name for name in {**stored, **given} if stored.get(name) != given.get(name)]
    return ", ".join(f"{name}={stored.get(name)!r} (asked for {given.get(name)!r})" for name in names[:3])


def _refuse_non_finite(record: Mapping[str, Any]) -> None:
    for name, value in record.items():
        if not np.all(np.isfinite(np.asarray(value, np.float64))):
            raise FloatingPointError(
                f"{name!r} is not finite" + (f" by update {record['updates']}" if "updates" in record else "")
            )


def _headline(record: Mapping[str, Any]) -> str:
    """The mean return and cost of a record, if it has them."""
    return " ".join(f"{name} {np.mean(record[name]):.1f}" for name in ("return", "cost") if name in record)
