"""What safejax says of data files that are wrong, damaged or hostile: python benchmarks/bad_files.py > table.md

Builds every file of `REFUSED` and `NOTED` in a temporary folder, reads it and prints what was said, as Markdown. The
tests build the same files and compare the words.
"""

from __future__ import annotations

import fcntl
import functools
import importlib.metadata
import json
import platform
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import spoiled_files
from data_files import ROWS, columns, flat, minari, minari_episodes, npz, with_value, write

from safejax.data import DatasetError, check_widths, read

ZERO = functools.partial(read, costs="zero", rewards="zero")


class Case(NamedTuple):
    """A file and what is said of it."""

    name: str
    build: Callable[[Path], Path]  # (empty folder) -> what to read
    words: str  # part of the message, or of a note
    attempt: Callable[[Path], Any] = read


def _wide(path: Path) -> None:
    check_widths(read(path)[0], 12, 2, "hopper", source=str(path))


def _while_written(path: Path) -> None:
    with path.open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)  # as HDF5 holds it
        read(path)


NAN, INF = (with_value(key, row, value) for key, row, value in (("rewards", 4, np.nan), ("observations", 6, np.inf)))
NO_ENDS = {"terminals": np.zeros(ROWS), "timeouts": np.zeros(ROWS)}
NO_STEPS = {key: value[:0] for key, value in minari_episodes()[0].items()} | {"observations": np.zeros((1, 3))}
NONE = {key: value[:0] for key, value in columns().items()}

REFUSED = (
    Case("no such file", lambda folder: folder / "car.hdf5", "no such file. Check the path or download it first."),
    Case(
        "empty file", spoiled_files.empty, "not a complete HDF5 or npz file (0 bytes). Delete it and download it again"
    ),
    Case(
        "web page saved as data",
        spoiled_files.web_page,
        "not a complete HDF5 or npz file (33 bytes; begins with b'<!DOCTYPE html><'",
    ),
    Case("HDF5 cut short", spoiled_files.half_hdf5, "not a complete HDF5 file (5,000 of "),
    Case("flipped bit under a checksum", spoiled_files.flipped_bit, "not a complete HDF5 file ("),
    Case("no costs", flat(costs=None), "no 'costs'. A safe algorithm needs a cost per step. For plain offline RL pass"),
    Case("no actions", flat(actions=None), "no 'actions'. Keys found: costs, next_observations, observations, "),
    Case("no timeouts", flat(timeouts=None), "no 'timeouts'. Pass episode_length=, the steps after which"),
    Case("no keys", lambda folder: write(folder / "car.hdf5", {}), "Keys found: none."),
    Case("names that are no text", spoiled_files.bytes_as_a_name, "no 'costs'. A safe algorithm"),
    Case("NaN", flat(**NAN), "rewards: 1 non-finite values, first at row 4 (episode 1, step 1)."),
    Case("infinity", flat(**INF), "observations: 3 non-finite values, first at row 6 (episode 2, step 0)."),
    Case(
        "float64 beyond float32",
        flat(**with_value("observations", 0, 1e300)),
        "observations: 3 values too large for float32, first at row 0 (episode 0, step 0).",
    ),
    Case("lengths differ", flat(actions=np.zeros((6, 2))), "actions has 6 rows, observations 7."),
    Case("width of another world", flat(), "observations have 3 features; environment 'hopper' gives 12.", _wide),
    Case(
        "action outside bounds",
        flat(**with_value("actions", 5, 1.31)),
        "actions: 2 values outside [-1, 1], worst 1.31 at row 5. Rescale them, or pass clip_actions=True",
    ),
    Case(
        "infinite action, clip_actions=True",
        flat(**with_value("actions", 5, np.inf)),
        "actions: 2 non-finite values, first at row 5 (episode 1, step 2).",
        functools.partial(read, clip_actions=True),
    ),
    Case(
        "negative cost",
        flat(**with_value("costs", 1, -0.2)),
        "costs: minimum -0.2, 1 below 0, first at row 1 (episode 0, step 1). Costs must be >= 0; rewards may have",
    ),
    Case(
        "terminal and timeout",
        flat(timeouts=np.isin(np.arange(ROWS), (2, 5))),
        "1 rows are both terminal and timeout, first at row 2 (episode 0, step 2). Clear the timeouts there; read",
    ),
    Case("flag of 0.5", flat(**with_value("terminals", 3, 0.5)), "terminals: 1 values neither 0 nor 1, first at row 3"),
    Case("no episode ends", flat(**NO_ENDS), "no terminals and no timeouts: pass episode_length=."),
    Case("bytes for rewards", flat(rewards=np.full(ROWS, b"a")), "rewards: dtype S1, expected a real number."),
    Case(
        "strings for rewards",
        spoiled_files.edited(spoiled_files.strings, "rewards"),
        "rewards: dtype object, expected a real number.",
    ),
    Case(
        "complex rewards", flat(rewards=np.zeros(ROWS, complex)), "rewards: dtype complex128, expected a real number."
    ),
    Case("two rewards a row", flat(rewards=np.zeros((ROWS, 2))), "rewards are float64[7, 2], expected [N] or [N, 1]."),
    Case("flat actions", flat(actions=np.zeros(ROWS)), "actions are float64[7], expected float [N, A] or integer [N]."),
    Case("next observations of another width", flat(next_observations=np.zeros((ROWS, 4))), "expected [3] a row, as"),
    Case(
        "pictures whose next are floats",
        flat(observations=np.zeros((ROWS, 4, 4, 3), np.uint8), next_observations=np.zeros((ROWS, 4, 4, 3))),
        "next_observations are float64[7, 4, 4, 3], expected uint8, as observations.",
    ),
    Case("no rows", flat(**NONE), "no rows, expected at least one transition."),
    Case("scalar for a column", flat(costs=np.float32(1)), "costs has no rows, expected one a step."),
    Case("many faults", flat(**NAN, costs=None, actions=np.zeros((6, 2))), "no 'costs'. "),
    Case(
        "soft link",
        spoiled_files.edited(lambda file, folder: file.__setitem__("observations", h5py.SoftLink("/hidden"))),
        "refused: 'observations' is a link to '/hidden'. Store the values themselves.",
    ),
    Case(
        "link into another file",
        spoiled_files.edited(spoiled_files.external_link),
        "refused: 'observations' is stored outside this file.",
    ),
    Case(
        "storage in another file",
        spoiled_files.edited(spoiled_files.external_storage),
        "refused: 'observations' is stored outside this file.",
    ),
    Case(
        "virtual, source missing",
        spoiled_files.edited(spoiled_files.virtual),
        "refused: 'observations' is stored outside this file.",
    ),
    Case(
        "linked part",
        spoiled_files.edited(spoiled_files.linked_part),
        "refused: 'observations/state' is a link to '/hidden'.",
    ),
    Case(
        "empty group",
        spoiled_files.edited(spoiled_files.empty_group),
        "'observations' is a Group, expected a data set.",
    ),
    Case(
        "never written",
        spoiled_files.edited(spoiled_files.never_written, "rewards"),
        "'rewards' was never fully written; what is missing would read as zeros. Collect or",
    ),
    Case(
        "half written", spoiled_files.edited(spoiled_files.half_written, "rewards"), "'rewards' was never fully written"
    ),
    Case(
        "compression that HDF5 lacks",
        spoiled_files.foreign_filter,
        "'rewards' is compressed by filter 32015 lzf, which HDF5 lacks here. Install and import hdf5plugin.",
    ),
    Case(
        "2**50 rows of nothing",
        spoiled_files.edited(spoiled_files.no_width),
        "observations are float32[1125899906842624, 0], expected at least one number a row.",
        functools.partial(read, costs="zero"),
    ),
    Case("actions of no width, npz", npz(actions=np.zeros((7, 0))), "expected at least one number a row.", ZERO),
    Case("being written", flat(), "open for writing elsewhere ([Errno 11] Unable to", _while_written),
    Case(
        "8 TB declared",
        spoiled_files.edited(spoiled_files.declared),
        "would need 7.3 TiB; limit 32 GiB (max_bytes=).",
        functools.partial(read, max_bytes=32 * 2**30),
    ),
    Case(
        "large chunk",
        spoiled_files.edited(spoiled_files.large_chunk),
        "would need 1 GiB; limit 1 MiB",
        functools.partial(read, max_bytes=2**20),
    ),
    Case(
        "Minari without costs", minari(first={"infos/cost": None}), "1 of 2 episodes hold other columns or widths than"
    ),
    Case(
        "Minari, T observations",
        minari(first={"observations": np.zeros((3, 3))}),
        "has 3 rows, expected 4 for 3 steps.",
    ),
    Case(
        "Minari, costs too long", minari(first={"infos/cost": np.zeros(5)}), "episode_0: costs has 5 rows, rewards 3."
    ),
    Case(
        "Minari, other width",
        minari(first={"actions": np.zeros((3, 4))}),
        "1 of 2 episodes hold other columns or widths",
    ),
    Case("Minari, no rewards", minari(first={"rewards": None}), "episode_0: no 'rewards'."),
    Case("Minari, no steps", minari(every=NO_STEPS), "no rows, expected at least one transition."),
    Case("Minari, linked episode", spoiled_files.linked_episode, "refused: 'episode_2' is stored outside this file."),
    Case(
        "Minari, JPEG pictures",
        minari(first={"observations": np.tile(np.array([0xFF, 0xD8, 0xFF, 0], np.uint8), (4, 1))}),
        "episode_0: pictures are stored as JPEG, which is not read; record with jpeg_encoding=False.",
    ),
    Case("Minari, damaged metadata", minari(metadata="{"), "metadata.json cannot be read (Expecting property name"),
    Case(
        "Minari in Arrow",
        spoiled_files.arrow,
        "a directory without Minari's data. Of Minari's data only that in HDF5 is read",
    ),
    Case("Minari over the limit", minari(), "would need 182 bytes; limit", functools.partial(read, max_bytes=100)),
    Case(
        "pickle in npz",
        spoiled_files.pickled,
        "refused: 'observations' is an object array, a pickle that could run code.",
        ZERO,
    ),
    Case("npz cut short", spoiled_files.half_npz, "not a complete npz file (300 bytes; File is not a zip file).", ZERO),
    Case(
        "zip bomb",
        npz(observations=np.zeros((10**7, 3), np.uint8)),
        "; expected at most 200. Store it without compression.",
        ZERO,
    ),
    Case(
        "npz that boasts", spoiled_files.boastful_npz, "observations: 128 bytes stored, 12,000,000,128 declared.", ZERO
    ),
    Case("npz over the limit", npz(), "bytes (max_bytes=).", functools.partial(ZERO, max_bytes=100)),
    Case(
        "OGBench without rewards",
        npz(),
        "no 'rewards', 'costs'. For data without rewards, to be relabelled, pass rewards=",
    ),
    Case("OGBench, fewer masks", npz(masks=np.ones(6)), "masks are [6], terminals [7].", ZERO),
    Case("OGBench, masks of 0.5", npz(masks=np.full(7, 0.5)), "masks: 7 values neither 0 nor 1, first at row 0.", ZERO),
    Case("OGBench, compact", npz(valids=np.ones(7)), "'valids' found: this is a compact data set of ogbench.", ZERO),
    Case("npz in D4RL's manner", npz(timeouts=np.zeros(7)), "'timeouts' found: this tells trajectories apart as", ZERO),
)

NOTED = (
    Case("unfinished tail", flat(), "unfinished tail of 1 rows is kept as a truncated episode."),
    Case("bytes that count costs", flat(costs=np.ones(ROWS, np.uint8)), "costs: uint8 kept as float32."),
    Case("float64", flat(rewards=np.arange(7.0)), "rewards: float64 kept as float32."),
    Case(
        "constant feature",
        flat(actions=np.array([[0.5, i / 8] for i in range(ROWS)], np.float32)),
        "actions: 1 of 2 features never vary (0). To normalise, divide by at least 0.001.",
    ),
    Case(
        "next observations that are not next",
        flat(next_observations=columns(seed=1)["next_observations"]),
        "next_observations are not the next row's observations on 100.0% of the rows inside episodes.",
    ),
    Case(
        "clip_actions=True",
        flat(**with_value("actions", 5, 1.31)),
        "actions: 2 values clipped to [-1, 1].",
        functools.partial(read, clip_actions=True),
    ),
    Case(
        'repair="terminal_wins"',
        flat(timeouts=np.isin(np.arange(ROWS), (2, 5))),
        "1 rows both terminal and timeout are kept as terminal.",
        functools.partial(read, repair="terminal_wins"),
    ),
    Case(
        "episode_length=2",
        flat(**NO_ENDS),
        "episode_length=2: 3 timeouts set.",
        functools.partial(read, episode_length=2),
    ),
    Case(
        'costs="zero"',
        flat(costs=None),
        "costs: none in the file, all set to 0.",
        functools.partial(read, costs="zero"),
    ),
    Case(
        "D4RL without next observations",
        flat(next_observations=None),
        "2 rows that were cut off have no next observation and are dropped.",
    ),
    Case("OGBench", npz(), "2 rows that were cut off have no next observation and are dropped.", ZERO),
    Case(
        "Minari, episode without an end",
        minari(first={"terminations": np.zeros(3, bool)}),
        "1 of 2 episodes have no end and are kept as truncated.",
    ),
    Case(
        "Minari, other bounds of actions",
        minari(metadata=json.dumps({"action_space": json.dumps({"low": [-0.4, -0.4], "high": [0.4, 0.4]})})),
        "actions: the file's bounds are [-0.4, 0.4]; values are not rescaled.",
    ),
)


def refusal(case: Case, folder: Path) -> str:
    """The message about a file of `REFUSED`, without the folder; '' if it was read."""
    try:
        case.attempt(case.build(folder))
    except DatasetError as error:
        return str(error).replace(f"{folder}/", "")
    return ""


def notes(case: Case, folder: Path) -> list[str]:
    """What was noted of a file of `NOTED`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        _, attributes = case.attempt(case.build(folder))
    return attributes["notes"]


def table(heads: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    """A Markdown table."""
    lines = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in (heads, ("---", "---"), *rows))
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    """Print both tables."""
    versions = {name: importlib.metadata.version(name) for name in ("h5py", "numpy")}
    print(f"Python {platform.python_version()}, {', '.join(f'{name} {number}' for name, number in versions.items())}\n")
    with tempfile.TemporaryDirectory() as temporary:
        for heads, cases, say in (
            (("refused", "message"), REFUSED, refusal),
            (("read", "notes"), NOTED, lambda case, folder: " ".join(notes(case, folder))),
        ):
            rows = []
            for index, case in enumerate(cases):
                folder = Path(temporary) / f"{heads[0]}{index}"
                folder.mkdir()
                rows.append((case.name, say(case, folder)))
            print(table(heads, rows) + "\n")


if __name__ == "__main__":
    main()
