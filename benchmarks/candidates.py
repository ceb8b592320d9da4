"""How many candidates? python benchmarks/candidates.py RUN [--counts 1,2,4,16]

Plays the stored policies of a run of offline.py with other numbers N of candidates, which methods over a diffusion
model choose among when they act; nothing is trained. N = 1 is the model itself, unchosen. Prints return and cost,
mean and 95 % interval over seeds, with fixed and with fresh noise, and writes candidates.json into the run.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import report
from offline_to_online import OneLineParser, stop
from tqdm import tqdm

from safejax import algorithms, envs, training
from safejax.checkpoint import CheckpointError
from safejax.runs import RunError, load_policy, write_json

SIGNALS = {"return": "episode_return", "cost": "episode_cost", "length": "length"}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; values are checked in `main`."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="directory of a finished run of offline.py")
    parser.add_argument("--counts", default="1,2,4,16", help="numbers of candidates (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=20, help="of every seed (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Check the options, play, print and write."""
    options = parse(arguments)
    counts = [int(text) if text.isdigit() else 0 for text in options.counts.split(",")]
    if min(counts) < 1 or options.episodes < 1:
        stop(f"--counts {options.counts} --episodes {options.episodes}: expected whole numbers of at least 1")
    if not (stored := sorted((options.run / "policies").glob("*"))):
        stop(f"{options.run} has no policies, expected a finished run of offline.py")
    try:
        rows = [row for folder in stored for row in sweep(folder, counts, options.episodes)]
    except (RunError, CheckpointError) as error:
        stop(str(error))
    if not rows:
        stop(f"{options.run} has {', '.join(path.name for path in stored)}, expected a method that has candidates")
    lines: list[tuple[str, ...]] = [("method", "noise", "N", "return", "cost", "length")]
    for row in rows:
        text = ("{:.2f} +- {:.2f}".format(*report.interval(np.array(row[name]))) for name in SIGNALS)
        lines.append((row["method"], row["noise"], str(row["candidates"]), *text))
    print("\n".join(report.aligned(lines)))
    write_json(options.run / "candidates.json", rows)


def sweep(folder: Path, counts: list[int], episode_count: int) -> list[dict[str, Any]]:
    """Records of one stored policy, a list over seeds for each signal; none if it has no candidates."""
    first = load_policy(folder)
    bound = first.algorithm.act.keywords
    if not hasattr(bound["config"], "candidate_count"):
        return []
    env, method = envs.make(first.about["task"]), algorithms.module(first.about["method"])
    states = [load_policy(folder, index).state for index in range(len(first.about["seeds"]))]
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)  # [S]
    keys = jax.vmap(jax.random.key)(jnp.array(first.about["seeds"]))
    rows = []
    for explore, count in tqdm(list(itertools.product((False, True), counts)), folder.name, unit="setting"):
        algorithm = method.make(replace(bound["config"], candidate_count=count), bound["networks"])
        play = functools.partial(training.evaluate, algorithm, env, episode_count=episode_count, explore=explore)
        episodes = jax.jit(jax.vmap(play))(state, keys)  # [S, episodes]
        means = {name: np.asarray(getattr(episodes, field).mean(-1)).tolist() for name, field in SIGNALS.items()}
        env.check()
        noise = "fresh" if explore else "fixed"
        rows.append({"method": folder.name, "noise": noise, "candidates": count, **means})
    return rows


if __name__ == "__main__":
    main()
