"""Which actions does each policy give in a world of one state? python benchmarks/toy2d.py --help

Every method learns from the data of the same bandits (`bandits2d.py`) and is asked for actions. Scored are the share of
them near a data point, their true reward, and their modes. Beside them stand fresh draws of the data's distribution,
and the diffusion chain with the exact denoiser. The first circle among the problems is learned for every T in --steps,
as in DiffCPS's figure (arXiv 2310.05333, section 3.1); every problem for T = --figure-steps.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import bandits2d
import jax
import jax.numpy as jnp
import numpy as np
import toy2d_report
from bandits2d import PROBLEMS
from measure import memory
from offline_to_online import OneLineParser, choose, stop
from toy2d_report import Record

from safejax import algorithms
from safejax.data.dataset import Dataset
from safejax.networks import Critic, MLPDenoiser, ensemble
from safejax.runs import write_json
from safejax.training import train_offline
from safejax.types import Algorithm, Array, Key

HIDDEN = (64, 64, 64)  # of every denoiser, critic, value and Gaussian
BATCH = 128  # rows of an update
CHUNK = 1000  # updates between two moments at which Ctrl-C is heard
SAMPLES = 2000  # actions asked of every policy
SLACK = 0.01  # of DiffCPS's limit above the least denoising loss
UPDATES, STEPS = 10_000, "5,15,25,30,50"
QUICK_UPDATES, QUICK_STEPS = 500, "5"
PACKAGES = ("safejax", "jax", "jaxlib", "flax", "optax", "numpy")


@dataclass(frozen=True)
class Method:
    """What a method, a module of safejax.algorithms, is given for a bandit."""

    settings: Mapping[str, Any]  # of Config
    diffusion: bool = True
    limited: bool = False  # `behavior_limit` is what the data allow and SLACK
    networks: Mapping[str, Any] = field(default_factory=dict)  # of default_networks


RATES = dict(learning_rate=1e-3, actor_learning_rate=1e-3)
AVERAGED = dict(actor_learning_rate=1e-3, ema_rate=5e-3)  # short runs need a faster average
PLAIN = dict(candidate_count=1)  # the policy itself, not the best of 50 actions, as in Diffusion-QL's toy
METHODS = {
    "awr": Method(RATES | dict(sequence_length=1), diffusion=False, networks=dict(actor="gaussian")),
    "diffusion_bc": Method(AVERAGED),
    "sfbc": Method(RATES | AVERAGED | dict(sequence_length=1, candidate_count=1, explore_inverse_temperature=20.0)),
    # the policies that the weights imply, not the best candidate
    "idql": Method(RATES | AVERAGED | dict(candidate_count=32, selection="weighted")),
    "align_iql": Method(RATES | AVERAGED | dict(candidate_count=32)),
    "diffusion_ql": Method(RATES | PLAIN | dict(value_weight=0.25)),
    "diffcps": Method(RATES | PLAIN | dict(multiplier_learning_rate=3e-3), limited=True),
}


class Job(NamedTuple):
    """One row of the results: a problem, a method or reference, and its denoising steps."""

    problem: str
    method: str
    step_count: int | None  # T; None without diffusion

    def __str__(self) -> str:
        return f"{self.problem} {self.method}" + (f" T={self.step_count}" if self.step_count else "")


def plan(problems: Sequence[str], methods: Sequence[str], steps: Sequence[int], figure_steps: int) -> list[Job]:
    """Everything to learn, in the order of the tables."""
    circle = next((name for name in problems if name.startswith("circle")), None)
    jobs = []
    for problem in problems:
        counts = sorted({figure_steps, *(steps if problem == circle else ())})
        jobs += [Job(problem, "data", None), *(Job(problem, "exact", count) for count in counts)]
        for method in methods:
            jobs += [Job(problem, method, count) for count in (counts if METHODS[method].diffusion else [None])]
    return jobs


def build(name: str, step_count: int | None, limit: float | Array) -> tuple[Algorithm, Any]:
    """A method with T = `step_count`, and its Config; the same sizes, denoiser and critic wherever there is one."""
    module, method = algorithms.module(name), METHODS[name]
    config = module.Config(**method.settings)
    networks = module.default_networks(2, HIDDEN, **method.networks)
    if method.diffusion:
        config = replace(config, diffusion=replace(config.diffusion, step_count=step_count))
        networks = networks._replace(actor=MLPDenoiser(2, HIDDEN, activation="swish"))
    if "critic" in networks._fields:
        networks = networks._replace(critic=ensemble(Critic(HIDDEN), networks.critic.size))
    if method.limited:
        config = replace(config, behavior_limit=limit)
    return module.make(config, networks), config


# The limit is traced: all problems share the programs of a method and T.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _init(name: str, step_count: int | None, limit: Array, key: Key, dataset: Dataset) -> Any:
    algorithm, _ = build(name, step_count, limit)
    return algorithm.init(key, jax.tree.map(lambda rows: rows[0], dataset.transitions))


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _learn(
    name: str, step_count: int | None, updates: int, limit: Array, state: Any, key: Key, dataset: Dataset
) -> Any:
    algorithm, _ = build(name, step_count, limit)
    return train_offline(algorithm, state, dataset, key, step_count=updates, batch_size=BATCH)[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _act(name: str, step_count: int | None, limit: Array, state: Any, key: Key) -> Array:
    algorithm, _ = build(name, step_count, limit)
    return algorithm.act(state, jnp.zeros((SAMPLES, 1)), key, explore=True)[0]


def fit(job: Job, dataset: Dataset, updates: int, limit: float, seed: int) -> np.ndarray:
    """Learn, then draw SAMPLES actions [N, 2]; `limit` is that of DiffCPS."""
    method, bound = (job.method, job.step_count), jnp.float32(limit)
    init_key, learn_key, act_key = jax.random.split(jax.random.key(seed), 3)
    state = _init(*method, bound, init_key, dataset)
    ends = np.linspace(0, updates, math.ceil(updates / CHUNK) + 1).astype(int)
    for count in np.diff(ends).tolist():
        state = jax.block_until_ready(_learn(*method, count, bound, state, learn_key, dataset))
    return np.asarray(_act(*method, bound, state, act_key))


def measure(job: Job, dataset: Dataset, updates: int, seed: int) -> tuple[Record, np.ndarray]:
    """The record of a job, and its actions [N, 2]."""
    problem, start = PROBLEMS[job.problem], time.monotonic()
    data, record = dataset.transitions.action[: problem.size], dict[str, Any](job._asdict())
    if job.method == "data":
        actions, _ = bandits2d.draw(problem, np.random.default_rng([seed, 1]), SAMPLES)
    elif job.method == "exact":
        actions = np.asarray(bandits2d.exact_actions(data, job.step_count, jax.random.key(seed), SAMPLES))
    else:
        limit = 0.0
        if METHODS[job.method].limited:
            limit = round(float(bandits2d.least_loss(data, job.step_count)) + SLACK, 3)
        actions = fit(job, dataset, updates, limit, seed)
        record["config"] = asdict(build(job.method, job.step_count, limit)[1])
    if not np.isfinite(actions).all():
        stop(f"{job}: {np.mean(~np.isfinite(actions)):.0%} of the actions are not finite; lower its learning rates")
    record |= bandits2d.score(problem, np.asarray(data), actions)
    return record | {"seconds": round(time.monotonic() - start, 1)}, actions


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; lists are comma-separated, and values are checked in `main`."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def add(option: str, default: Any, text: str, kind: Any = str, shown: str = "%(default)s") -> None:
        parser.add_argument(option, default=default, type=kind, help=f"{text} (default: {shown})")

    add("--problems", ",".join(PROBLEMS), "bandits, rows of the figure")
    add("--methods", ",".join(METHODS), "columns of the figure")
    add("--steps", None, "denoising steps T of the first circle", shown=f"{STEPS}; --quick {QUICK_STEPS}")
    add("--figure-steps", 5, "T of the figure, on every problem", int)
    add("--updates", None, "gradient steps of each method", int, f"{UPDATES}; --quick {QUICK_UPDATES}")
    add("--seed", 0, "of data, learning and actions", int)
    add("--output", None, "directory of the results", Path, "runs/toy2d-seed<seed>")
    parser.add_argument("--quick", action="store_true", help="few updates and one T: the same path in a minute")
    options = parser.parse_args(arguments)
    options.steps = options.steps or (QUICK_STEPS if options.quick else STEPS)
    if options.updates is None:
        options.updates = QUICK_UPDATES if options.quick else UPDATES
    return options


def counts(option: str, text: str) -> tuple[int, ...]:
    """A comma-separated list of numbers >= 1, or one line."""
    try:
        values = tuple(map(int, text.split(",")))
    except ValueError:
        values = (0,)
    if min(values) < 1:
        stop(f"--{option} is {text!r}, expected integers >= 1 such as 5,15,50")
    return values


def claim(directory: Path) -> None:
    """Make the directory, or stop if it holds anything but results of this script."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        found = sorted(path.name for path in directory.iterdir())
        stored = json.loads((directory / "results.json").read_text()) if "results.json" in found else None
    except (OSError, ValueError) as error:
        stop(f"--output {directory}: {error}; choose another")
    if found and (not isinstance(stored, dict) or stored.get("benchmark") != "toy2d"):
        stop(f"--output {directory} holds {found[0]!r}, expected a new or empty directory; choose another")


def main(arguments: list[str] | None = None) -> None:
    """Check the options, learn, and write results.json, tables.md and the two figures."""
    options = parse(arguments)
    problems, methods = (
        list(dict.fromkeys(choose(option, name, choices) for name in getattr(options, option).split(",")))
        for option, choices in (("problems", PROBLEMS), ("methods", METHODS))
    )
    steps = counts("steps", options.steps)
    for name, least in (("figure_steps", 1), ("updates", 1), ("seed", 0)):
        if getattr(options, name) < least:
            stop(f"--{name.replace('_', '-')} is {getattr(options, name)}, expected at least {least}")
    updates = options.updates
    output = options.output or Path("runs") / f"toy2d-seed{options.seed}{'-quick' if options.quick else ''}"
    claim(output)
    results: dict[str, Any] = {
        "benchmark": "toy2d",
        "command": shlex.join(["python", "benchmarks/toy2d.py", *(sys.argv[1:] if arguments is None else arguments)]),
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES},
        "device": jax.devices()[0].device_kind,
        "seed": options.seed,
        "updates": updates,
        "batch_size": BATCH,
        "hidden_sizes": HIDDEN,
        "actions": SAMPLES,
        "complete": False,
        "records": [],
    }
    datasets = {name: bandits2d.make_dataset(PROBLEMS[name], options.seed) for name in problems}
    clouds, jobs, start = {}, plan(problems, methods, steps, options.figure_steps), time.monotonic()
    try:
        for done, job in enumerate(jobs):
            left = f", {(time.monotonic() - start) / done * (len(jobs) - done):.0f} s left" if done else ""
            print(f"[{done + 1}/{len(jobs)}{left}] {job}", file=sys.stderr, flush=True)
            record, actions = measure(job, datasets[job.problem], updates, options.seed)
            results["records"].append(record)
            if job.method != "data" and job.step_count in (None, options.figure_steps):
                clouds[job.problem, job.method] = actions
            write_json(output / "results.json", results)
    except KeyboardInterrupt:
        stop(f"interrupted; {output / 'results.json'} holds what was finished")
    results |= {"complete": True, "seconds": round(time.monotonic() - start, 1)}
    results["peak_rss_mb"] = round(memory()["peak_rss_mb"] or 0.0)
    write_json(output / "results.json", results)
    text = toy2d_report.tables(results["records"])
    (output / "tables.md").write_text(text + "\n")
    data = {name: np.asarray(dataset.transitions.action) for name, dataset in datasets.items()}
    title = f"Actions at T = {options.figure_steps}, {updates:,} updates. Data: grey, in the first column by reward."
    toy2d_report.draw_clouds(output / "toy2d.png", clouds, data, title)
    hits = toy2d_report.sweep(results["records"])
    if hits:
        toy2d_report.draw_hit_rates(output / "hit_rate.png", hits)
    print(f"{text}\n\nwritten to {output}")


if __name__ == "__main__":
    main()
