"""Does the main job, killed at random moments, end as if left alone? python benchmarks/kill_resume.py --help

Runs `offline_to_online.py --quick` once undisturbed, then again and again from nothing with SIGKILL at random moments,
each time started anew by the same command, until `--kills` were spent; the last one may end. Every run that ended is
compared with the undisturbed one, byte by byte. Compiled programs are shared, data sets are not.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from offline_to_online import OneLineParser, stop
from tqdm import tqdm

from safejax.runs import write_json

HERE = Path(__file__).resolve().parent
VERSIONS = ("safejax", "jax", "orbax-checkpoint", "mujoco", "numpy")
COMPARED = ("results.json", "table.txt", "metrics.jsonl", "learning_curves.png", "policy.gif")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; values are checked in `main`."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--kills", type=int, default=20, help="(default: %(default)s)")
    add(
        "--share", type=float, default=0.4, help="latest kill after a start, in undisturbed runs (default: %(default)s)"
    )
    add("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    add("--output", type=Path, default=HERE / "results" / "faults" / "kill_resume.json", help="JSON to write")
    add("options", nargs="*", help="further options of offline_to_online.py, after --")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Check the options, run, compare, print and write."""
    options = parse(arguments)
    if options.kills < 1 or not 0 < options.share <= 1:
        stop(f"--kills {options.kills} --share {options.share:g}: expected at least 1, and a share in (0, 1]")
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder), options.kills, options.share, options.seed, options.options)
    command = " ".join(["python", "benchmarks/kill_resume.py", *(sys.argv[1:] if arguments is None else arguments)])
    options.output.parent.mkdir(parents=True, exist_ok=True)
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    write_json(options.output, {"command": command, "seed": options.seed, "versions": versions, **results})
    runs = results["runs"]
    equal = sum(run["equal"]["results.json"] for run in runs)
    print(f"{len(results['kills'])} kills, {len(runs)} runs ended, results.json equal in {equal} of {len(runs)}")
    print("other files that differ:", sorted({name for run in runs for name, same in run["equal"].items() if not same}))


def measure(folder: Path, kill_count: int, share: float, seed: int, options: list[str]) -> dict[str, Any]:
    """Every kill (seconds after the start, chunks that were on disk), and every run that ended, compared."""
    undisturbed = folder / "undisturbed"
    began = time.perf_counter()
    start(undisturbed, options).ended()
    seconds = time.perf_counter() - began
    source = random.Random(seed)
    kills: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    with tqdm(total=kill_count, unit="kill", dynamic_ncols=True) as bar:
        while len(kills) < kill_count or kills[-1]["run"] == len(runs):
            job = start(folder / f"killed-{len(runs)}", options, compiled=undisturbed)
            delay = source.uniform(0.0, share * seconds) if len(kills) < kill_count else None
            if job.killed_after(delay):
                kills.append({"run": len(runs), "seconds": round(delay or 0.0, 3), "chunks": chunks(job.directory)})
                bar.update()
                bar.set_postfix_str(f"{kills[-1]['chunks']} chunks", refresh=False)
            else:
                runs.append(
                    {
                        "kills": sum(kill["run"] == len(runs) for kill in kills),
                        "equal": {name: same(name, job.directory, undisturbed) for name in COMPARED},
                    }
                )
    return {"undisturbed_s": round(seconds, 1), "chunks": chunks(undisturbed), "kills": kills, "runs": runs}


class Job:
    """A started process in a folder of its own."""

    def __init__(self, directory: Path, process: subprocess.Popen) -> None:
        self.directory, self.process = directory, process

    def killed_after(self, seconds: float | None) -> bool:
        """Whether it had to be killed; None lets it end."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return True
        self.ended()
        return False

    def ended(self) -> None:
        """Wait for the end; stop where it is a failure."""
        if self.process.wait():
            last = (self.directory / "log").read_text().strip().splitlines()[-1:]
            stop(f"the job failed with {self.process.returncode}: {''.join(last)}")


def start(directory: Path, options: list[str], compiled: Path | None = None) -> Job:
    """The job, by the same command in every folder, which results.json repeats."""
    cache = directory / "cache"
    if not cache.exists():
        cache.mkdir(parents=True)
        if compiled is not None:
            (cache / "compiled").symlink_to(compiled / "cache" / "compiled")
    script = HERE / "offline_to_online.py"
    command = [sys.executable, script, "--quick", "--output", "run", *options]
    with (directory / "log").open("a") as log:
        environment = {**os.environ, "SAFEJAX_CACHE": str(cache)}
        return Job(directory, subprocess.Popen(command, cwd=directory, env=environment, stdout=log, stderr=log))


def chunks(directory: Path) -> int:
    """Chunks whose records are on disk."""
    path = directory / "run" / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def same(name: str, directory: Path, other: Path) -> bool:
    """Whether a file of two runs is the same, byte by byte."""
    return (directory / "run" / name).read_bytes() == (other / "run" / name).read_bytes()


if __name__ == "__main__":
    main()
