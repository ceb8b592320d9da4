"""From pictures alone, offline to online, with a world model: python benchmarks/vision.py --help

Records unsafe, safe and random episodes of a task through its cameras (once, then cached), learns from them offline,
fine-tunes in the world, and writes a run directory with a table, curves, checkpoints and, of FOSP, a moving picture:
what the camera sees, what the model makes of it, what it imagines, and the probability of violating along an episode.
Started again with the same options it continues where it was stopped or killed.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from offline_to_online import OneLineParser, choose, choose_engine, stop


def start_and_rate(text: str) -> tuple[float, float]:
    """Two finite numbers >= 0; argparse turns the ValueError into its one line."""
    start, rate = map(float, text.split(","))
    if not (0 <= start < math.inf and 0 <= rate < math.inf):
        raise ValueError
    return start, rate


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; choices are checked in `main`, where they are known."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--task", default="point_goal1", help="a task with cameras (default: %(default)s)")
    add("--methods", default="fosp", help="comma-separated: fosp, safe_dreamer, pex, bc (default: %(default)s)")
    add("--preset", default=None, help="mini, tiny, small or paper (default: mini from above, tiny through its eyes)")
    add("--limit", type=float, default=None, help="cost of an episode that results and PEX are held to")
    add("--set", default="", help="numbers of FOSP and SafeDreamer, for ablations: name=value,name=value")
    add(
        "--behavior-multiplier",
        type=start_and_rate,
        default=None,
        metavar="START,RATE",
        help="of the multiplier of the learners whose episodes are recorded (default: 1,0.2)",
    )
    add("--seed", type=int, default=0, help="first seed, an integer (default: %(default)s)")
    add("--seeds", type=int, default=1, help="one after the other (default: %(default)s)")
    add("--engine", default=None, help="physics: mujoco, mjx or warp (default: mujoco on CPU, mjx elsewhere)")
    add("--quick", action="store_true", help="the same path in a minute; learns nothing")
    add("--data", type=Path, default=None, help="a file that this benchmark recorded, to use instead of recording")
    add(
        "--cache",
        type=Path,
        default=Path(os.environ.get("SAFEJAX_CACHE", "~/.cache/safejax")).expanduser(),
        help="folder of recorded episodes and compiled programs (default: $SAFEJAX_CACHE or %(default)s)",
    )
    add("--output", type=Path, default=None, help="run directory (default: runs/vision-<task>-<preset>-...)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Check the options, then run or continue the job."""
    options = parse(arguments)
    if options.seeds < 1:
        stop(f"--seeds is {options.seeds}, expected at least 1")
    if options.limit is not None and not options.limit >= 0:
        stop(f"--limit is {options.limit:g}, expected a cost per episode >= 0")

    import jax
    import presets
    import vision_data
    import vision_needs
    import vision_outcome
    from data_sum import data_sum
    from vision_phases import Job, learn
    from vision_presets import METHODS, PRESETS, changed, look, quick

    from safejax import envs
    from safejax.envs.pixels import frame_stack, pixels
    from safejax.runs import Interrupted, Run

    choose("task", options.task, envs.names())
    methods = tuple(choose("methods", name, METHODS) for name in options.methods.split(","))
    engine = choose_engine(options.engine)
    scene = envs.make(options.task, engine).scene
    seen = look(tuple(scene.model.camera(index).name for index in range(scene.model.ncam)))
    preset = options.preset or seen.preset
    choose("preset", preset, PRESETS)
    budget = quick(PRESETS[preset]) if options.quick else PRESETS[preset]
    try:
        budget = changed(budget, options.set)
    except ValueError as error:
        stop(str(error))
    if options.behavior_multiplier is not None:
        budget = replace(budget, behavior_multiplier=options.behavior_multiplier)
    limit = seen.limit if options.limit is None else options.limit
    seeds = tuple(range(options.seed, options.seed + options.seeds))
    try:
        world = envs.make(options.task, engine, action_repeat=seen.action_repeat)
        single = pixels(world, seen.cameras, height=seen.side, width=seen.side, state=False)
        rows = {name: METHODS[name](budget, single, limit) for name in methods}
        views = {row.frames: frame_stack(single, row.frames) if row.frames > 1 else single for row in rows.values()}
    except ValueError as error:
        stop(str(error))
    for row in rows.values():
        if (length := row.offline.batch.length) > world.episode_length:
            stop(f"--set length={length}, expected at most the {world.episode_length} steps of an episode")
    config = {
        "benchmark": "vision",
        "task": options.task,
        "engine": engine,
        "look": presets.plain(seen),
        "limit": limit,
        "seeds": seeds,
        "budget": presets.plain(budget),
        "methods": {name: presets.plain(row.config) for name, row in rows.items()},
        "data": str(options.data),
    }
    name = f"vision-{options.task}-{preset}-seed{options.seed}" + ("-quick" if options.quick else "")
    jax.config.update("jax_compilation_cache_dir", str(options.cache / "compiled"))
    try:
        if options.data is not None:
            vision_data.load(options.data, options.task, seen, 1)  # refused before anything is written
            config["data_sha256"] = data_sum(options.data)
        with Run.open(options.output or Path("runs") / name, config) as run:
            jobs = {name: Job(run, name, row, views[row.frames], budget) for name, row in rows.items()}
            print(vision_needs.pictures(seen, budget, len(vision_data.KINDS), world.episode_length), file=sys.stderr)
            for job in jobs.values():
                print(vision_needs.method(job), file=sys.stderr)
            path = options.data or vision_data.recorded(
                run, options.task, engine, seen, budget, options.seed, options.cache / "datasets"
            )
            digest = config.get("data_sha256") or data_sum(path)
            learned: dict[str, list[Any]] = {}
            for frames in views:
                dataset = vision_data.load(path, options.task, seen, frames)
                for name, job in jobs.items():
                    if job.row.frames == frames:
                        learned[name] = [learn(job, seed, dataset) for seed in seeds]
            print(vision_outcome.write(run, rows, views, learned, path, digest, limit, seeds, options.task, budget))
    except Interrupted as interruption:
        print(f"{interruption}; the same command continues", file=sys.stderr)
    except (ValueError, FloatingPointError) as error:
        stop(str(error))


if __name__ == "__main__":
    main()
