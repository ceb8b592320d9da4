"""One job from behaviour data to a policy fine-tuned safely online: python benchmarks/offline_to_online.py --help

Makes a behaviour data set of the task (once, then cached), pre-trains offline, fine-tunes online under a cost limit
with Marvel and two baselines, and writes a run directory with a table, curves, a picture of the policy and Orbax
checkpoints. Started again with the same options it continues where it was stopped or killed.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent
PICTURES = (".png", ".jpg", ".pdf", ".svg")  # what a figure may be


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see --help\n")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; choices are checked in `main`, where they are known."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--task", default="ball_circle", help="task name (default: %(default)s)")
    add(
        "--offline",
        default="cpq",
        help="pre-training method: cpq, bc, iql, idql, align_iql, diffcps, ... and their safe forms, safe_iql, ..."
        " (default: %(default)s)",
    )
    add(
        "--methods",
        default="from_scratch,warm_start,marvel",
        help="rows to train, comma-separated; also no_alignment, dual_ascent, fixed_pid,"
        " empty_replay, policy_expansion, diffcps_online (default: %(default)s)",
    )
    add("--limit", type=float, default=20.0, help="cost limit, cost units per episode (default: %(default)s)")
    add("--seed", type=int, default=0, help="first seed, an integer (default: %(default)s)")
    add("--seeds", type=int, default=5, help="number of seeds, trained under one vmap (default: %(default)s)")
    add("--engine", default=None, help="physics: mujoco, mjx or warp (default: mujoco on CPU, mjx elsewhere)")
    add("--devices", type=int, default=1, help="devices the seeds are spread over (default: %(default)s)")
    add("--preset", default="default", help="budgets: default (two CPU cores) or paper (a GPU)")
    add(
        "--acting",
        default="papers",
        help="of evaluated policies: deterministic; sampled; or papers: diffusion policies sampled alone (default)",
    )
    add(
        "--finetune-steps",
        type=int,
        default=None,
        help="environment steps after the warm start (default: the preset's)",
    )
    add(
        "--quick",
        action="store_true",
        help="2 seeds and a twentieth of the budgets: the same path in two minutes",
    )
    add(
        "--clip-actions",
        type=float,
        default=0.999,
        metavar="BOUND",
        help="of the data in pre-training by likelihood, which has no maximum at 1 (default: %(default)s)",
    )
    add("--data", default=None, help="a file or public name, such as BallCircle, to use instead of collecting data")
    add(
        "--cache",
        type=Path,
        default=Path(os.environ.get("SAFEJAX_CACHE", "~/.cache/safejax")).expanduser(),
        help="folder of collected data sets and compiled programs (default: $SAFEJAX_CACHE or %(default)s)",
    )
    add(
        "--output",
        type=Path,
        default=None,
        help="run directory (default: runs/<task>-<offline>-limit<limit>-...)",
    )
    return parser.parse_args(arguments)


def stop(message: str) -> NoReturn:
    """One line on standard error, exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def choose(option: str, value: str, choices: Any) -> str:
    """`value`, or one line that names the nearest valid ones."""
    if value in choices:
        return value
    near = difflib.get_close_matches(value, list(choices), n=3, cutoff=0.4) or list(choices)
    stop(f"--{option} is {value!r}, expected one of {', '.join(choices)}; nearest: {', '.join(near)}")


def choose_engine(name: str | None, option: str = "engine") -> str:
    """`name`, by default the engine of choice here, or one line where it is none or not installed."""
    from safejax import envs

    name = envs.default_engine() if name is None else name
    if choose(option, name, envs.ENGINES) == "warp":
        from safejax.envs.engines.warp import prepare_warp

        try:
            prepare_warp()
        except ModuleNotFoundError as error:
            stop(f"--{option}: {error}")
    return name


def at_least(option: str, value: int, least: int) -> None:
    """One line if `value` is less than `least`."""
    if value < least:
        stop(f"--{option} is {value}, expected at least {least}")


def check_bound(option: str, value: float) -> None:
    """One line if `value` is not in (0, 1]."""
    if not 0.0 < value <= 1.0:
        stop(f"--{option} is {value:g}, expected a bound of actions in (0, 1]")


def output(option: str, path: Path, suffixes: tuple[str, ...]) -> None:
    """One line, before any work, if no file of such a kind can be written to `path`."""
    if path.suffix.lower() not in suffixes:
        stop(f"{option} is {str(path)!r}, expected a name that ends in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        stop(f"{option} is {str(path)!r}, but there is no directory {str(path.parent)!r}")


def main(arguments: list[str] | None = None) -> None:
    """Check the options, then run or continue the job."""
    options = parse(arguments)
    if options.limit < 0 or options.limit != options.limit:
        stop(f"--limit is {options.limit:g}, expected a cost per episode >= 0")
    check_bound("clip-actions", options.clip_actions)
    if options.seeds < 1:
        stop(f"--seeds is {options.seeds}, expected at least 1")
    if options.devices < 1:
        stop(f"--devices is {options.devices}, expected at least 1")
    if options.devices > 1:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={options.devices}".strip()

    sys.path.insert(0, str(HERE))
    import bridges
    import jax
    import outcome
    import presets
    from data_sum import data_sum
    from evaluation import ACTING
    from job import Job
    from job_data import behavior_data, inside, load_data
    from phases import align, extract, finetune, pretrain

    from safejax import envs
    from safejax.data import locate
    from safejax.runs import Interrupted, Run

    choose("task", options.task, envs.names())
    choose("offline", options.offline, bridges.names())
    choose("preset", options.preset, presets.BUDGETS)
    choose("acting", options.acting, ACTING)
    methods = tuple(choose("methods", name, presets.METHODS) for name in options.methods.split(","))
    task = envs.task(options.task)
    budget = presets.for_task(presets.BUDGETS[options.preset], task)
    seed_count = options.seeds
    if options.quick:
        budget, seed_count = presets.quick(budget), min(2, options.seeds)
    if options.finetune_steps is not None:
        at_least("finetune-steps", options.finetune_steps, 1)
        budget = dataclasses.replace(budget, finetune_steps=options.finetune_steps)
    seeds = tuple(range(options.seed, options.seed + seed_count))
    engine = choose_engine(options.engine)
    if options.devices > 1 and engine != "mjx":
        stop(f"--devices is {options.devices} with the {engine} engine, which runs on one; use --engine mjx")
    env = envs.make(options.task, engine)
    sharding = seed_sharding(options.devices, seed_count)
    output = options.output or Path("runs") / (
        f"{options.task}-{options.offline}-limit{options.limit:g}-seed{options.seed}"
        + (f"-finetune{options.finetune_steps}" if options.finetune_steps else "")
        + (f"-{options.acting}" if options.acting != "papers" else "")
        + ("-quick" if options.quick else "")
    )
    try:
        sizes = {"action_size": env.action_size, "episode_length": env.episode_length}
        scale = presets.reward_scale(task)
        source = bridges.offline(options.offline, budget, limit=options.limit, reward_scale=scale, **sizes)
        rows = {name: bridges.online(presets.METHODS[name], source, options.limit) for name in methods}
    except ValueError as error:
        stop(str(error))
    config = {
        "benchmark": "offline_to_online",
        "task": options.task,
        "engine": engine,
        "offline": options.offline,
        "limit": options.limit,
        "seeds": seeds,
        "data": None,
        "clip_actions": options.clip_actions,
        "acting": options.acting,
        "budget": presets.plain(budget),
        "offline_config": presets.plain(source.config),
        "methods": {name: presets.plain(row.config) for name, row in rows.items()},
    }
    jax.config.update("jax_compilation_cache_dir", str(options.cache / "compiled"))
    try:
        path = None
        if options.data is not None:
            # refuse it before anything is written
            path = locate(options.data, cache=options.cache / "datasets")
            inside(load_data(path, env)[0], source.fits_likelihood, options.clip_actions, path)
            config |= {"data": str(path.resolve()), "data_sha256": data_sum(path)}
        with Run.open(output, config) as run:
            job = Job(run, env, engine, budget, options.offline, source, options.limit, seeds, options.acting, sharding)
            path = path or behavior_data(job, options.seed, options.cache / "datasets")
            digest = config.get("data_sha256") or data_sum(path)
            dataset, note = load_data(path, env)
            if note:
                print(note, file=sys.stderr)
            pretrained = pretrain(job, inside(dataset, source.fits_likelihood, options.clip_actions, path))
            gaussian = extract(job, pretrained, dataset) if any(row.extracted for row in rows.values()) else None
            learners = {}
            for name, row in rows.items():
                method, before = presets.METHODS[name], gaussian if row.extracted else pretrained
                start = align(job, name, method, row, before, dataset)
                learners[name] = finetune(job, name, method, row, start, dataset)
            print(outcome.write(job, dataset, path, digest, learners, rows))
    except Interrupted as interruption:
        print(f"{interruption}; the same command continues", file=sys.stderr)
    except (ValueError, FloatingPointError) as error:
        stop(str(error))


def seed_sharding(devices: int, seed_count: int) -> Any:
    """A sharding of the leading seed axis over `devices`, or None for one."""
    import jax

    if devices == 1:
        return None
    if devices > len(jax.devices()):
        stop(f"--devices is {devices}, found {len(jax.devices())}")
    if seed_count % devices:
        stop(f"--devices is {devices}, expected a divisor of the {seed_count} seeds")
    mesh = jax.make_mesh((devices,), ("seed",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("seed"))


if __name__ == "__main__":
    main()
