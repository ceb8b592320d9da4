"""The checkpoints of one run: the newest few and the best few stay, and a damaged one is stepped over."""

from __future__ import annotations

import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from safejax.checkpoint.description import metadata
from safejax.checkpoint.directory import Content, exclusive, gather, restore, write
from safejax.checkpoint.errors import CheckpointError, DamagedCheckpointError, first_line
from safejax.checkpoint.processes import on_the_first

Tree = TypeVar("Tree")

_DIGITS = 12  # of a step in its directory's name
LAST_STEP = 10**_DIGITS - 1


class Checkpoints:
    """The last few checkpoints of one run, and the best few, one directory a step.

    Args:
      directory: made by the first `save`.
      config: stored with every checkpoint and compared by `latest` and `best`.
      keep: how many of the newest steps stay on disk.
      keep_best: how many stay besides because their metric is the largest; of equal ones the newer.
      allow_non_finite: save NaN and infinity too, for a state that holds them by intention.
      log: told in one line about each damaged or unfinished step that is passed over.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        config: Any = None,
        *,
        keep: int = 2,
        keep_best: int = 0,
        allow_non_finite: bool = False,
        log: Callable[[str], Any] = warnings.warn,
    ):
        if keep < 1:
            raise ValueError(f"keep is {keep}, expected at least 1")
        if keep_best < 0:
            raise ValueError(f"keep_best is {keep_best}, expected at least 0")
        self.directory = Path(os.path.abspath(directory))
        self.config, self.keep, self.keep_best, self.log = config, keep, keep_best, log
        self.allow_non_finite = allow_non_finite
        self._damaged: set[int] = set()

    def path(self, step: int) -> Path:
        """The directory of one step, for `restore` and `metadata`."""
        return self.directory / f"{step:0{_DIGITS}d}"

    def steps(self) -> list[int]:
        """Steps whose save was finished, oldest first."""
        return sorted(int(path.name) for path in self._directories() if (path / "metadata.json").exists())

    def _directories(self) -> list[Path]:
        return list(self.directory.glob("[0-9]" * _DIGITS))

    def save(self, step: int, state: Any, *, extra: Any = None, metric: float | None = None) -> None:
        """Save `state` as `step`, then delete all steps but the newest and the best.

        Args:
          step: later than every whole step that is here, at most `LAST_STEP`.
          state: as in `checkpoint.save`.
          extra: as there.
          metric: how good the state is, more is better; None is never among the best.

        Raises:
          CheckpointError: as `save`; `step` is out of range; or a whole checkpoint not older than it is here, from a
            run not resumed.
          NonFiniteStateError: NaN or infinity in the state, which is not saved, unless `allow_non_finite`.
        """
        if not 0 <= step <= LAST_STEP:
            raise CheckpointError(f"{self.directory}: step is {step}, expected one from 0 to {LAST_STEP}")
        content = gather(self.path(step), state, self.config, extra, metric, self.allow_non_finite)
        content.about["step"] = step  # by which `latest` knows a copy under another number
        on_the_first(lambda: self._save(step, content))

    def _save(self, step: int, content: Content) -> None:
        newer = [other for other in self.steps() if other >= step and other not in self._damaged]
        if newer:
            raise CheckpointError(
                f"{self.directory}: holds step {newer[-1]}, expected none from {step} on; resume, or use another one"
            )
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{self.directory}: cannot be made ({first_line(error)})") from error
        with exclusive(self.directory):
            self._empty_trash()  # first, for its space
            try:
                write(self.path(step), content)
            except CheckpointError as error:
                last = f"the last whole step is {max(self.steps())}" if self.steps() else "no step is here yet"
                raise CheckpointError(f"{error}; {last}") from error
            self._damaged.discard(step)
            steps = [other for other in self.steps() if other <= step]
            best = self._ranked(steps)[: self.keep_best] if self.keep_best else []
            self._throw_away({*steps[-self.keep :], *best})

    def _ranked(self, steps: Iterable[int]) -> list[int]:
        """Those of `steps` that have a metric, best first."""
        metrics = {}
        for step in steps:
            try:
                metric = self._about(step).get("metric")
            except DamagedCheckpointError as error:
                self._skip(step, error)
                continue
            if metric is not None:
                metrics[step] = (metric, step)
        return sorted(metrics, key=lambda step: metrics[step], reverse=True)

    def _throw_away(self, kept: set[int]) -> None:
        """Delete every step but those; a rename is atomic, so no half-deleted step is ever listed."""
        trash, paths = self.directory / ".trash", {self.path(step) for step in kept}
        for path in self._directories():
            if path not in paths:
                trash.mkdir(exist_ok=True)
                os.rename(path, trash / f"{path.name}-{uuid.uuid4().hex}")
        self._empty_trash()

    def _empty_trash(self) -> None:
        shutil.rmtree(self.directory / ".trash", ignore_errors=True)

    def latest(self, like: Tree) -> tuple[int, Tree] | None:
        """The newest step that verifies, and its state; None where nothing was ever saved.

        Raises:
          CheckpointError: the newest whole checkpoint does not fit `like` or the config, or none is whole.
        """
        steps = self.steps()
        found = self._first_whole(reversed(steps), like) if steps else None
        self._tell_unfinished(found[0] if found else -1)
        return found

    def best(self, like: Tree) -> tuple[int, Tree] | None:
        """The step of the largest metric that verifies, and its state; None where nothing was saved with a metric.

        Raises:
          CheckpointError: as `latest`.
        """
        ranked = self._ranked(self.steps())
        return self._first_whole(ranked, like) if ranked else None

    def _first_whole(self, steps: Iterable[int], like: Tree) -> tuple[int, Tree]:
        steps = list(steps)
        for step in steps:
            try:
                self._about(step)
                return step, restore(self.path(step), like, config=self.config)
            except DamagedCheckpointError as error:
                self._skip(step, error)
        raise CheckpointError(
            f"{self.directory}: none of steps {sorted(steps)} is whole; restore a copy or use another directory"
        )

    def _about(self, step: int) -> dict[str, Any]:
        """The metadata of a step, which are those of no other; the oldest checkpoints do not say their step."""
        about = metadata(self.path(step))
        if about.get("step", step) != step:
            raise DamagedCheckpointError(self.path(step), f"holds step {about['step']}")
        return about

    def _tell_unfinished(self, after: int) -> None:
        """Log the steps later than `after` that hold arrays alone, of a save or a copy that was cut short."""
        for path in sorted(self._directories(), reverse=True):
            bare = any(path.glob("arrays-" + "?" * 32)) and not (path / "metadata.json").exists()
            if bare and int(path.name) > after:
                self.log(f"skipped checkpoint {int(path.name)}: {path}: arrays without metadata.json")

    def _skip(self, step: int, error: DamagedCheckpointError) -> None:
        self._damaged.add(step)
        self.log(f"skipped checkpoint {step}: {error}")
