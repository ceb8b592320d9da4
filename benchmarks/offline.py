"""Offline methods side by side on one data set: python benchmarks/offline.py --help

Trains every method on the same rows with several seeds under one vmap, plays the policy every k updates, and prints
the LAST checkpoint's return (the best one only under its own heading), with intervals over seeds and, where the data
set has them, the papers' numbers beside. The data set is a file or the name of one that is made here and cached, such
as point_maze_medium-play or hopper_velocity-medium-replay. The same command continues a run that was stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

import behavior
import jax
from data_sum import data_sum
from evaluation import ACTING
from job_data import inside
from offline_outcome import write
from offline_presets import METHODS, setting
from offline_to_online import OneLineParser, check_bound, choose, choose_engine, stop
from offline_training import Job, Learner, train

from safejax import algorithms, envs
from safejax.algorithms import cpq
from safejax.algorithms.safety import SafetyConfig
from safejax.data import catalog, check_widths, locate, read_dsrl
from safejax.data.provenance import check_provenance
from safejax.envs.pixels import renderer
from safejax.runs import Interrupted, Run
from safejax.types import Env


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; choices are checked in `main`."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, help="a file, a public name, or <task>-<kind>: " + ", ".join(behavior.KINDS))
    add("--task", default=None, help="task to play the policy in (default: the data set's)")
    add("--methods", default="iql,idql,align_iql", help=f"comma-separated: {', '.join(METHODS)} (default: %(default)s)")
    add("--seeds", type=int, default=3, help="trained under one vmap (default: %(default)s)")
    add("--seed", type=int, default=0, help="first seed (default: %(default)s)")
    add("--updates", type=int, default=None, help="gradient steps (default: the preset's)")
    add("--every", type=int, default=10_000, help="updates between evaluations (default: %(default)s)")
    add("--episodes", type=int, default=20, help="of each evaluation (default: %(default)s)")
    add(
        "--acting",
        default="papers",
        help="deterministic; sampled; or papers: diffusion policies sampled alone (default)",
    )
    add(
        "--safe",
        type=float,
        default=None,
        metavar="LIMIT",
        help="the safe form of each method, and CPQ's limit (20), cost units an episode",
    )
    add(
        "--clip-actions",
        type=float,
        default=0.999,
        metavar="BOUND",
        help="of the data of methods that fit a squashed Gaussian's likelihood, which has no maximum at 1"
        " (default: %(default)s)",
    )
    add("--preset", default="default", help="default (two CPU cores) or paper (a GPU) (default: %(default)s)")
    add("--engine", default=None, help="mujoco, mjx or warp (default: mujoco on CPU, mjx elsewhere)")
    add("--cache", type=Path, default=Path(os.environ.get("SAFEJAX_CACHE", "~/.cache/safejax")).expanduser())
    add("--output", type=Path, default=None, help="run directory (default: runs/offline-<data>-...)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Check the options, then train or continue."""
    options = parse(arguments)
    rows = [choose("methods", name, METHODS) for name in options.methods.split(",")]
    choose("preset", options.preset, ("default", "paper"))
    choose("acting", options.acting, ACTING)
    for option in ("seeds", "every", "episodes", "updates"):
        value = getattr(options, option)
        if value is not None and value < 1:
            stop(f"--{option} is {value}, expected at least 1")
    check_bound("clip-actions", options.clip_actions)
    choose_engine(options.engine)
    jax.config.update("jax_compilation_cache_dir", str(options.cache / "compiled"))
    try:
        path, name, task = find(options)
        env = envs.make(task, options.engine)
        dataset, attributes = read_dsrl(path)
        note = check_provenance(attributes, task=task, renderer=renderer(env), source=str(path))
        check_widths(dataset, env.observation_spec.shape[-1], env.action_size, env.name, source=str(path))
        learners = {row: learner(row, name, env, options) for row in rows}
        fitted = any(each.fits_likelihood for each in learners.values())
        clipped = inside(dataset, fitted, options.clip_actions, path)
        seeds = tuple(range(options.seed, options.seed + options.seeds))
        safe = f"-limit{options.safe:g}" if options.safe is not None else ""
        output = options.output or Path("runs") / f"offline-{name}{safe}-seed{options.seed}"
        digest = data_sum(path)
        config = {"benchmark": "offline", "data": str(path.resolve()), "data_sha256": digest}
        config |= {"seeds": seeds, "task": task}
        config |= {"updates": options.updates, "preset": options.preset, "safe": options.safe}
        config |= {"clip_actions": options.clip_actions}
        config |= {"every": options.every, "episodes": options.episodes, "acting": options.acting}
        with Run.open(output, config) as run:
            if note:
                print(note, file=sys.stderr)
            data = {"data": path.name, "data_sha256": digest}
            job = Job(run, env, seeds, options.every, options.episodes, options.acting, data)
            for row, each in learners.items():
                train(job, row, each, clipped if each.fits_likelihood else dataset)
            print(write(job, name, dataset, learners))
    except Interrupted as interruption:
        print(f"{interruption}; the same command continues", file=sys.stderr)
    except (ValueError, FloatingPointError) as error:
        stop(str(error))


def find(options: argparse.Namespace) -> tuple[Path, str, str]:
    """The data set's file, its name and the task that its policies play."""
    if Path(options.data).exists() or catalog.find(options.data):
        if options.task is None:
            stop(f"--data is {options.data}, expected --task beside it; one of {', '.join(envs.names())}")
        task = choose("task", options.task, envs.names())
        path = locate(options.data, cache=options.cache / "datasets")
        return path, path.stem, task
    task, _ = behavior.split(options.data)
    path = behavior.make(options.data, options.cache / "datasets", engine=options.engine)
    return path, options.data, choose("task", options.task or task, envs.names())


def learner(row: str, data: str, env: Env, options: argparse.Namespace) -> Learner:
    """One method with its preset for the data set and what the command line changes, bound to the task."""
    found = setting(row, data, options.preset)
    if options.updates is not None:
        found = replace(found, updates=options.updates)
        if getattr(found.config, "actor_decay_steps", 0):
            found = replace(found, config=replace(found.config, actor_decay_steps=options.updates))
    if found.updates % min(options.every, found.updates):
        stop(f"{row} learns {found.updates} updates, expected a multiple of --every {options.every}")
    if isinstance(found.config, cpq.Config):  # which has a limit in any case
        limit = found.config.cost_limit if options.safe is None else options.safe
        found = replace(found, config=replace(found.config, cost_limit=limit, episode_length=env.episode_length))
    elif options.safe is not None:
        if not hasattr(found.config, "safety"):
            stop(f"--safe is {options.safe:g}, but {row} has no safe form; leave it out of --methods")
        limit = SafetyConfig(cost_limit=options.safe, episode_length=env.episode_length)
        found = replace(found, config=replace(found.config, safety=limit))
    module = algorithms.module(METHODS[row])
    networks = module.default_networks(env.action_size, found.hidden_sizes, **found.network_options)
    return Learner(found, networks, module.make(found.config, networks))


if __name__ == "__main__":
    main()
