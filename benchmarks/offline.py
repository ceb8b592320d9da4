"""Offline methods side by side on one data set: python benchmarks/offline.py --help

Trains every method on the same rows with several seeds under one vmap, plays the policy every k updates, and prints
the LAST checkpoint's return (the best one only under its own heading), with intervals over seeds and, where the data
set has them, the papers' numbers beside. The data set is a file or the name of one that is made here and cached, such
as point_maze_medium-play or hopper_velocity-medium-replay. The same command continues a run that was stopped.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import behavior
import evaluation
import jax
import jax.numpy as jnp
import measure
import numpy as np
import report
from data_sum import data_sum
from offline_presets import METHODS, REWARDS, Setting, setting
from offline_to_online import OneLineParser, choose, stop
from published import PUBLISHED

from safejax import algorithms, envs, training
from safejax.algorithms import cpq
from safejax.algorithms.safety import SafetyConfig
from safejax.data import (
    Dataset,
    catalog,
    check_open_actions,
    check_widths,
    clip_actions,
    episode_returns,
    locate,
    read_dsrl,
)
from safejax.data.provenance import check_provenance
from safejax.envs.pixels import renderer
from safejax.networks import MLPDenoiser, ResidualDenoiser
from safejax.runs import Interrupted, Run, save_policy, write_json
from safejax.types import Algorithm, Array, Env, example_transition

ACTING = ("papers", "deterministic", "sampled")
_UPDATE, _EVALUATION = range(2)  # tags of the keys


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
    add("--safe", type=float, default=None, metavar="LIMIT", help="the safe form of each method, cost units an episode")
    add("--clip-actions", type=float, default=1.0, metavar="BOUND", help="of the data set (default: %(default)s)")
    add("--preset", default="default", help="default (two CPU cores) or paper (a GPU) (default: %(default)s)")
    add("--engine", default=None, help="mujoco or mjx (default: mujoco on CPU, mjx elsewhere)")
    add("--cache", type=Path, default=Path(os.environ.get("SAFEJAX_CACHE", "~/.cache/safejax")).expanduser())
    add("--output", type=Path, default=None, help="run directory (default: runs/offline-<data>-...)")
    return parser.parse_args(arguments)


@dataclass(frozen=True)
class Job:
    """What the training of one method needs to know."""

    run: Run
    env: Env
    seeds: tuple[int, ...]
    every: int
    episodes: int
    acting: str
    data: dict[str, str]  # their file's name and SHA-256, for the policies' notes

    def keys(self, tag: int) -> Array:
        """One key per seed [S]."""
        return jnp.stack([jax.random.fold_in(jax.random.key(seed), tag) for seed in self.seeds])


@dataclass(frozen=True)
class Learner:
    """One row of the table, bound to the task."""

    setting: Setting
    networks: Any
    algorithm: Algorithm

    @property
    def is_diffusion(self) -> bool:
        """Whether its policy is sampled from noise, which the papers draw afresh when they evaluate."""
        return isinstance(self.networks.actor, ResidualDenoiser | MLPDenoiser)

    @property
    def fits_likelihood(self) -> bool:
        """Whether it fits a tanh-squashed Gaussian to the data's actions."""
        return getattr(self.networks.actor, "squash", False) and not isinstance(self.setting.config, cpq.Config)


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
    jax.config.update("jax_compilation_cache_dir", str(options.cache / "compiled"))
    try:
        path, name, task = find(options)
        env = envs.make(task, options.engine)
        dataset, attributes = read_dsrl(path)
        note = check_provenance(attributes, task=task, renderer=renderer(env), source=str(path))
        check_widths(dataset, env.observation_spec.shape[-1], env.action_size, env.name, source=str(path))
        learners = {row: learner(row, name, env, options) for row in rows}
        dataset = clip_actions(dataset, options.clip_actions)
        if any(each.fits_likelihood for each in learners.values()):
            check_open_actions(dataset, str(path))
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
                train(job, row, each, dataset)
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
    if options.safe is not None:
        if not hasattr(found.config, "safety"):
            stop(f"--safe is {options.safe:g}, but {row} has no safe form; leave it out of --methods")
        limit = SafetyConfig(cost_limit=options.safe, episode_length=env.episode_length)
        found = replace(found, config=replace(found.config, safety=limit))
    module = algorithms.module(METHODS[row])
    networks = module.default_networks(env.action_size, found.hidden_sizes, **found.network_options)
    return Learner(found, networks, module.make(found.config, networks))


def train(job: Job, row: str, learner: Learner, dataset: Dataset) -> None:
    """Every seed of one method, chunk by chunk; each evaluation is recorded and the learner saved."""
    chosen, algorithm = learner.setting, learner.algorithm
    scaled = scale_rewards(dataset, chosen.reward)
    keys, example = job.keys(_UPDATE), example_transition(job.env)
    init = jax.jit(jax.vmap(algorithm.init, in_axes=(0, None)))
    step_count, guarded = min(job.every, chosen.updates), training.skip_non_finite(algorithm)
    loop = functools.partial(training.train_offline, guarded, step_count=step_count, batch_size=chosen.batch_size)
    learn = jax.jit(jax.vmap(loop, in_axes=(0, None, 0)), donate_argnums=0)
    play = evaluator(job, learner)

    def advance(state: Any, index: int) -> tuple[Any, dict[str, Any]]:
        began = time.perf_counter()
        state, metrics = jax.block_until_ready(learn(state, scaled, keys))
        record = {"updates": (index + 1) * step_count, "train_s": time.perf_counter() - began}
        record |= training.finite_means(metrics, first_update=index * step_count) | play(state)
        record["wall_s"] = time.perf_counter() - began
        record["peak_rss_mb"] = measure.memory()["peak_rss_mb"]
        return state, record

    state = job.run.stage(row, lambda: init(keys, example), advance, chosen.updates // step_count, check=job.env.check)
    (job.run.directory / "policies").mkdir(exist_ok=True)
    save = functools.partial(
        save_policy,
        state=state,
        config=chosen.config,
        method=METHODS[row],
        action_size=job.env.action_size,
        observation_size=job.env.observation_spec.shape[-1],
        hidden_sizes=chosen.hidden_sizes,
        network_options=chosen.network_options,
        seeds=job.seeds,
        task=job.env.name,
        **job.data,
    )
    job.run.once(f"policies/{row}", save)


def scale_rewards(dataset: Dataset, kind: str) -> Dataset:
    """The data set with the rewards that the papers train on; evaluations report the task's own."""
    returns = np.asarray(episode_returns(dataset)[0])
    reward = REWARDS[kind](np.asarray(dataset.transitions.reward), returns)
    rows = dataset.transitions._replace(reward=jnp.asarray(reward, jnp.float32))
    return dataset._replace(transitions=rows)


def evaluator(job: Job, learner: Learner) -> Any:
    """State of all seeds -> return, cost and length [S]: means over the episodes of one evaluation that did not
    diverge; and how many did.
    """
    explore = job.acting == "sampled" or (job.acting == "papers" and learner.is_diffusion)

    def play(state: Any, key: Array) -> dict[str, Array]:
        episodes = training.evaluate(learner.algorithm, job.env, state, key, job.episodes, explore=explore)
        sums = {"return": episodes.episode_return, "cost": episodes.episode_cost, "length": episodes.length}
        means = {name: jnp.mean(value, where=episodes.finished) for name, value in sums.items()}  # none finished: NaN
        return means | {"evaluation_diverged": jnp.sum(episodes.diverged)}

    jitted = jax.jit(jax.vmap(play))
    return lambda state: jax.tree.map(np.asarray, jitted(state, job.keys(_EVALUATION)))


def write(job: Job, data: str, dataset: Dataset, learners: dict[str, Learner]) -> str:
    """results.json, table.txt and learning_curves.png; the table to print."""
    published = PUBLISHED.get(data, {})
    trained = {row: job.run.metrics(row) for row in learners}
    lines: list[tuple[str, ...]] = [
        ("method", "return (last)", "cost (last)", "length", "return (best)", "updates/s", "wall", "published")
    ]
    for row, records in trained.items():
        returns = np.array([record["return"] for record in records])  # [K, S]
        last = {name: np.array(records[-1][name]) for name in ("return", "cost", "length")}
        rate = _rate(records, len(job.seeds))
        best = report.interval(returns[np.argmax(returns.mean(1))])
        text = [_mean(report.interval(last[name])) for name in ("return", "cost", "length")]
        speed = "-" if rate is None else f"{rate:.0f}"
        lines.append((row, *text, _mean(best), speed, f"{_wall(records):.0f} s", published.get(row, "-")))
    behavior_returns, behavior_costs, _ = (np.asarray(column) for column in episode_returns(dataset))
    acting = {"papers": "of diffusion policies sampled, of others deterministic"}.get(job.acting, job.acting)
    notes = (
        f"data: {len(dataset.transitions.reward):,} rows, {len(behavior_returns):,} episodes, return "
        f"{behavior_returns.mean():.2f}, cost {behavior_costs.mean():.2f}",
        f"{len(job.seeds)} seeds, {job.episodes} episodes each, actions {acting}; +- 95 % Student-t over seeds; 'best' "
        "picks the evaluation with the highest mean and is no result; updates/s: all seeds together; wall: with "
        f"evaluations and compilation; peak memory {_memory(trained):,.0f} MB",
    )
    task, limit = envs.task(job.env.name), getattr(next(iter(learners.values())).setting.config, "safety", None)
    limits = (limit.cost_limit,) if limit else task.cost_limits
    scores = {
        row: evaluation.scores(records[-1]["return"], records[-1]["cost"], limits, task.reference)
        for row, records in trained.items()
    }
    diverged = evaluation.diverged(trained)
    table = [*report.aligned(lines), *notes, "", evaluation.table(scores), *evaluation.diverged_lines(diverged)]
    table = "\n".join(table)
    results = {
        "command": " ".join(["python", "benchmarks/offline.py", *sys.argv[1:]]),
        "versions": {name: importlib.metadata.version(name) for name in ("safejax", "jax", "mujoco", "optax")},
        "device": jax.devices()[0].device_kind,
        "data": data,
        "seeds": list(job.seeds),
        "behavior": {"return": float(behavior_returns.mean()), "cost": float(behavior_costs.mean())},
        "peak_memory_mb": _memory(trained),
        "diverged_episodes": diverged,
        "methods": {
            row: {
                "updates": [record["updates"] for record in records],
                **{name: [record[name] for record in records] for name in ("return", "cost", "length")},
                "last": scores[row],
                "updates_per_second": _rate(records, len(job.seeds)),
                "wall_s": _wall(records),
                "setting": asdict(learners[row].setting),
            }
            for row, records in trained.items()
        },
        "published": published,
    }
    write_json(job.run.directory / "results.json", results)
    (job.run.directory / "table.txt").write_text(table + "\n")
    names = ("updates", "return", "cost")
    curves = {
        row: report.Curve(*(np.array([record[name] for record in records]) for name in names))
        for row, records in trained.items()
    }
    report.learning_curves(
        job.run.directory / "learning_curves.png",
        curves,
        limit.cost_limit if limit else None,
        f"{data}, {len(job.seeds)} seeds",
        steps="updates",
    )
    return f"{table}\nwritten to {job.run.directory}"


def _rate(records: list[dict[str, Any]], seed_count: int) -> float | None:
    """Updates per second over all seeds, without the first chunk, which compiles; None if there is no other."""
    rest = records[1:]
    if not rest:
        return None
    count = (rest[-1]["updates"] - records[0]["updates"]) * seed_count
    return count / sum(record["train_s"] for record in rest)


def _wall(records: list[dict[str, Any]]) -> float:
    """Seconds of all chunks."""
    return sum(record["wall_s"] for record in records)


def _memory(trained: dict[str, list[dict[str, Any]]]) -> float:
    """The process's largest resident size so far, in MB."""
    return max(record["peak_rss_mb"] for records in trained.values() for record in records)


def _mean(interval: tuple[Any, Any]) -> str:
    mean, half_width = interval
    return f"{mean:.2f} +- {half_width:.2f}"


if __name__ == "__main__":
    main()
