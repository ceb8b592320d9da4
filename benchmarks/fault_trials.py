"""The faults of `faults.py`, each tried again and again: what happened, and what was lost.

A trial is silently wrong where something restores that was never saved, or a damaged file passes for a whole one.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import fault_workers as workers
import numpy as np

from safejax import checkpoint
from safejax.checkpoint import Checkpoints, DamagedCheckpointError


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    fault: str
    trials: int
    happened: str
    lost: str
    silently_wrong: int


@contextlib.contextmanager
def process(target: Callable[..., None], *arguments: Any) -> Iterator[tuple[Any, Connection]]:
    """A worker and the pipe it speaks through; what is still alive at the end is killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fault_workers"])
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=target, args=(sender, *arguments))
    worker.start()
    sender.close()
    try:
        yield worker, receiver
    finally:
        worker.kill()
        worker.join()
        receiver.close()


def heard(pipe: Connection) -> list[Any]:
    """Everything that a worker says until it ends."""
    messages = []
    with contextlib.suppress(EOFError, OSError):
        while True:
            messages.append(pipe.recv())
    return messages


def killed_while_saving(values: int, fault: str) -> Callable[..., Row]:
    """A trial of SIGKILL up to 1.6 s into back-to-back saves; every listed step is restored and compared."""

    def tried(folder: Path, trials: Collection[int], clock: random.Random) -> Row:
        checkpoints, like, newest = Checkpoints(folder), workers.state_of(0, values), 0
        half, lost, wrong = 0, 0, 0
        for _ in trials:
            with process(workers.save_on_and_on, folder, newest + 1, values) as (worker, pipe):
                pipe.recv()
                time.sleep(clock.uniform(0.0, 1.6))
                worker.kill()
                returned = [newest, *heard(pipe)][-1]
            half += len(list(folder.glob("[0-9]*/arrays-*"))) > len(checkpoints.steps())
            newest, state = checkpoints.latest(like) or (0, None)
            lost += max(0, returned - newest)
            for step in checkpoints.steps():
                state = checkpoint.restore(checkpoints.path(step), like)
                wrong += not workers.is_exact(step, state)
        happened = f"{half} times a half-written save was on disk; all listed steps restored, {newest} saves in all"
        return Row(fault, len(trials), happened, f"{lost} saves that had returned", wrong)

    return tried


killed_saving_much = killed_while_saving(workers.VALUES, "kill -9 while saving 24 MB")
killed_saving_little = killed_while_saving(20_000, "kill -9 while saving 80 kB")


def full_disk(folder: Path, trials: Collection[int], clock: random.Random) -> Row:
    """No space on a disk of 100 MB of its own where this user may mount one, else files of at most 10 MB."""
    del clock
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", folder], capture_output=True)
    is_disk = mounted.returncode == 0
    try:
        return _full_disk(folder / "run", trials, None if is_disk else 10_000_000)
    finally:
        if is_disk:
            subprocess.run(["umount", folder], check=True)


def _full_disk(folder: Path, trials: Collection[int], file_size: int | None) -> Row:
    like, wrong, messages = workers.state_of(0), 0, set()
    for _ in trials:
        checkpoints = Checkpoints(folder)
        checkpoints.save(1, workers.state_of(1))
        with process(workers.save_in_little_space, folder, 2, file_size) as (_, pipe):
            ((failed, message),) = heard(pipe)
        messages.add(message.split("(")[1].split(")")[0].split(":")[0])
        step, state = checkpoints.latest(like) or (0, like)
        wrong += step != failed - 1 or not workers.is_exact(step, state)
        shutil.rmtree(checkpoints.path(1), ignore_errors=True)  # room again
        Checkpoints(folder).save(failed, workers.state_of(failed))
        wrong += not workers.is_exact(failed, checkpoint.restore(checkpoints.path(failed), like))
        shutil.rmtree(folder)
    where = "a disk of 100 MB" if file_size is None else "files of 10 MB at most"
    happened = f"{where}: `save` raised one line ({', '.join(sorted(messages))}); with room again the same step saved"
    return Row("disk full", len(trials), happened, "the step that did not fit; the one before restored", wrong)


def damaged(fault: str, hurt: Callable[[Path, random.Random], None]) -> Callable[..., Row]:
    """A trial of two steps of which the newer is hurt."""

    def tried(folder: Path, trials: Collection[int], clock: random.Random) -> Row:
        found, back, wrong = 0, 0, 0
        for _ in trials:
            said: list[str] = []
            checkpoints = Checkpoints(folder, log=said.append)
            for step in (1, 2):
                checkpoints.save(step, workers.state_of(step, 5_000))
            hurt(checkpoints.path(2), clock)
            try:
                checkpoint.restore(checkpoints.path(2), workers.state_of(0, 5_000))
                wrong += 1
            except DamagedCheckpointError:
                found += 1
            except checkpoint.CheckpointError:
                found += not (checkpoints.path(2) / "metadata.json").exists()
            step, state = checkpoints.latest(workers.state_of(0, 5_000)) or (0, workers.state_of(0, 5_000))
            back += step == 1 and workers.is_exact(1, state) and len(said) == 1
            shutil.rmtree(folder)
        happened = f"{found} found; {back} times `latest` said which step it skipped and restored the one before"
        return Row(fault, len(trials), happened, "that step", wrong)

    return tried


def _files(step: Path) -> list[Path]:
    return sorted(path for path in step.rglob("*") if path.is_file() and path.stat().st_size)


def _flip_a_bit(step: Path, clock: random.Random) -> None:
    path = clock.choices(files := _files(step), [path.stat().st_size for path in files])[0]
    content = bytearray(path.read_bytes())
    content[clock.randrange(len(content))] ^= 1 << clock.randrange(8)
    path.write_bytes(content)


def _cut_a_file(step: Path, clock: random.Random) -> None:
    path = clock.choice(_files(step))
    os.truncate(path, clock.randrange(path.stat().st_size))


def _empty_the_metadata(step: Path, clock: random.Random) -> None:
    del clock
    os.truncate(step / "metadata.json", 0)


def _remove_the_manifest(step: Path, clock: random.Random) -> None:
    del clock
    next(step.glob("arrays-*/manifest.ocdbt")).unlink()


flipped_bit = damaged("one flipped bit, in any file", _flip_a_bit)
truncated_file = damaged("truncated file, any of them", _cut_a_file)
emptied_metadata = damaged("emptied metadata", _empty_the_metadata)
removed_manifest = damaged("removed manifest", _remove_the_manifest)


def undisturbed(folder: Path) -> str:
    """What the job says at the end of a run that nobody disturbs."""
    with process(workers.job, folder) as (_, pipe):
        return heard(pipe)[-1]


def signalled(number: signal.Signals, fault: str) -> Callable[..., Row]:
    """A trial of a run that gets a signal in some chunk, and is started again."""

    def tried(folder: Path, trials: Collection[int], clock: random.Random) -> Row:
        expected, equal, wrong, losses = undisturbed(folder / "whole"), 0, 0, set()
        for trial in trials:
            run = folder / f"run-{trial}"
            with process(workers.job, run) as (worker, pipe):
                chunk = clock.randrange(workers.CHUNKS - 1)
                while pipe.recv() != chunk:
                    pass
                time.sleep(clock.uniform(0.0, 0.1))
                os.kill(worker.pid, number)
                began = [chunk, *(said for said in heard(pipe) if isinstance(said, int))][-1] + 1
                worker.join()
                wrong += worker.exitcode != (-number if number == signal.SIGKILL else 0)
            found = Checkpoints(run / "checkpoints" / "job").latest(workers.initial())
            losses.add(began - (found[0] if found else 0))
            equal += undisturbed(run) == expected
        happened = f"{equal} runs, started again, ended with the same bytes"
        return Row(
            fault,
            len(trials),
            happened,
            f"{max(losses)} chunk{'s' * (max(losses) != 1)} at most",
            wrong + len(trials) - equal,
        )

    return tried


killed_run = signalled(signal.SIGKILL, "kill -9 in a run")
terminated_run = signalled(signal.SIGTERM, "SIGTERM in a run")
interrupted_run = signalled(signal.SIGINT, "Ctrl-C in a run")


def two_runs(folder: Path, trials: Collection[int], clock: random.Random) -> Row:
    """A second process opens the run directory of a first one."""
    expected, refused, wrong = undisturbed(folder / "whole"), 0, 0
    for trial in trials:
        with process(workers.job, folder / f"run-{trial}", None, 0.5) as (_, first):
            first.recv()
            time.sleep(clock.uniform(0.0, 1.0))
            refused += "in use by another process" in undisturbed(folder / f"run-{trial}")
            wrong += heard(first)[-1] != expected
    return Row(
        "two writers of one run", len(trials), f"{refused} times the second was refused in one line", "nothing", wrong
    )


def two_savers(folder: Path, trials: Collection[int], clock: random.Random) -> Row:
    """Two processes save 20 times each into one directory, without a run."""
    del clock
    refused, wrong, saves = 0, 0, 20
    for _ in trials:
        with (
            process(workers.save_beside_another, folder, 0, saves) as (_, first),
            process(workers.save_beside_another, folder, saves, saves) as (_, second),
        ):
            refused += sum(heard(first) + heard(second))
        state = checkpoint.restore(folder, workers.state_of(0))
        wrong += not workers.is_exact(int(state["step"]), state)
    happened = f"{refused} of {2 * saves * len(trials)} saves refused in one line; what is there is whole"
    return Row("two writers of one checkpoint", len(trials), happened, "the refused saves", wrong)


def state_of_nans(folder: Path, trials: Collection[int], clock: random.Random) -> Row:
    """A chunk ends with NaN in the state; the run is started again without."""
    expected, named, equal = undisturbed(folder / "whole"), 0, 0
    for trial in trials:
        run, chunk = folder / f"run-{trial}", clock.randrange(1, workers.CHUNKS)
        with process(workers.job, run, chunk) as (_, pipe):
            named += "x has 1 of 64 values that are not finite, first nan at [3]" in heard(pipe)[-1]
        found = Checkpoints(run / "checkpoints" / "job").latest(workers.initial())
        equal += found is not None and found[0] == chunk and bool(np.isfinite(found[1]["x"]).all())
        equal -= undisturbed(run) != expected
    happened = f"{named} times the run stopped and named the leaf; the chunk before restored"
    return Row("NaN in the state", len(trials), happened, "that chunk", len(trials) - equal)
