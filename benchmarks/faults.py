"""What does each fault of the machine cost? python benchmarks/faults.py --help

Kills, starves, damages and signals processes that save checkpoints, and prints as Markdown what happened and what was
lost. `--only` names some of the faults; `kill_resume.py` does the same to the whole main job.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import fault_numbers as numbers
import fault_trials as trials
from offline_to_online import OneLineParser, choose, stop
from tqdm import tqdm

from safejax.runs import write_json

HERE = Path(__file__).resolve().parent
VERSIONS = ("safejax", "jax", "orbax-checkpoint", "tensorstore", "numpy")

# name -> how often it is tried by default, and the trial: (empty folder, trials counted from 1, clock) -> Row
FAULTS: dict[str, tuple[int, Callable[..., trials.Row]]] = {
    "kill_saving_much": (100, trials.killed_saving_much),
    "kill_saving_little": (100, trials.killed_saving_little),
    "kill_run": (10, trials.killed_run),
    "disk_full": (5, trials.full_disk),
    "flipped_bit": (100, trials.flipped_bit),
    "truncated_file": (60, trials.truncated_file),
    "emptied_metadata": (5, trials.emptied_metadata),
    "removed_manifest": (5, trials.removed_manifest),
    "two_runs": (5, trials.two_runs),
    "two_savers": (3, trials.two_savers),
    "sigterm": (10, trials.terminated_run),
    "ctrl_c": (10, trials.interrupted_run),
    "nan_state": (5, trials.state_of_nans),
    "nan_reward": (20, numbers.nan_reward),
    "diverging_physics": (20, numbers.diverging_physics),
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; values are checked in `main`."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", default=",".join(FAULTS), help="comma-separated (default: %(default)s)")
    add("--trials", type=int, default=None, help="of each fault (default: its own number)")
    add("--seed", type=int, default=0, help="of moments and places (default: %(default)s)")
    add("--output", type=Path, default=HERE / "results" / "faults" / "faults.json", help="JSON to write")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Check the options, try every fault, print and write."""
    options = parse(arguments)
    names = [choose("only", name, FAULTS) for name in options.only.split(",")]
    if options.trials is not None and options.trials < 1:
        stop(f"--trials is {options.trials}, expected at least 1")
    rows, began = [], time.perf_counter()
    for name in names:
        count, tried = FAULTS[name]
        tries = tqdm(range(1, (options.trials or count) + 1), name, unit="trial", dynamic_ncols=True)
        with tempfile.TemporaryDirectory() as folder:
            rows.append(tried(Path(folder) / "here", tries, random.Random(f"{options.seed} {name}")))
    print(table(rows))
    command = ["python", "benchmarks/faults.py", *(sys.argv[1:] if arguments is None else arguments)]
    results = {
        "command": " ".join(command),
        "seed": options.seed,
        "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
        "seconds": round(time.perf_counter() - began, 1),
        "faults": [dataclasses.asdict(row) for row in rows],
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, results)


def table(rows: list[trials.Row]) -> str:
    """The rows as Markdown."""
    lines = ["| fault | trials | what happened | what was lost | silently wrong |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        cells = (row.fault, str(row.trials), row.happened, row.lost, str(row.silently_wrong))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
