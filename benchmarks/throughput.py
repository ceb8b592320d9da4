"""How fast updates and environments run here: python benchmarks/throughput.py --help

One JSON line per measurement on standard output (and appended to --output); progress and a table on standard
error. Each runs in a process of its own, so that peak memory and compilation are its own; that of an update first
measures this machine's float32 GEMM rate, its bound on a CPU. `taskset -c 0 python ...` measures one core.

Any method of safejax.algorithms can be named, and align_iql_hard. ppo_lag counts minibatches, by default of
OmniSafe's sizes; marvel is its alignment phase; methods that learn from windows get --batch transitions of them; no
method has its safe form. The engine "raw" is `mujoco.batch` alone, without safejax.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import flops
import jax
import jax.numpy as jnp
import measure
from offline_to_online import OneLineParser, choose, choose_engine, stop

from safejax import envs
from safejax.algorithms import MODULES
from safejax.data import Dataset
from safejax.training import train_offline

WORLD_MODELS = ("safe_dreamer", "fosp")  # see vision_costs.py
METHODS = (*(name for name in MODULES if name not in WORLD_MODELS), *measure.VARIANTS)
USUAL = ("bc", "iql", "cpq", "sac_lag", "marvel", "ppo_lag")
WHAT = ("updates", "environments", "gemm")
ENGINES = (*envs.ENGINES, "raw")
OFF_POLICY = {"hidden": (256, 256), "batch": 256, "observation": 17, "action": 6}  # D4RL-like
PPO_LAG = {"hidden": (64, 64), "batch": 64, "observation": 60, "action": 2}  # OmniSafe on SafetyPointGoal1
DIFFUSION = OFF_POLICY | {"hidden": (256, 256, 256)}  # the authors'
SIZES = {"ppo_lag": PPO_LAG, "diffusion_ql": DIFFUSION, "diffcps": DIFFUSION, "awr": OFF_POLICY | {"hidden": (128, 64)}}
ROWS = 100_000  # of the synthetic data set
EPOCHS, MINIBATCHES = 10, 32  # of one ppo_lag update
POLICY_FREQUENCY = 2  # of methods whose actor rests between
Spec = dict[str, Any]
Record = dict[str, Any]


def positive_integers(text: str) -> tuple[int, ...]:
    """A comma-separated list; argparse turns the ValueError into its one line."""
    values = tuple(map(int, text.split(",")))
    if min(values) < 1:
        raise ValueError
    return values


def positive(kind: type) -> Callable[[str], Any]:
    """The reader of one int or float above 0."""

    def read(text: str) -> Any:
        if not 0 < kind(text) < math.inf:
            raise ValueError
        return kind(text)

    read.__name__ = f"positive {kind.__name__}"  # which argparse's message says
    return read


def appended(text: str) -> IO[str]:
    """A file open for appending; its folder is made."""
    try:
        Path(text).parent.mkdir(parents=True, exist_ok=True)
        return Path(text).open("a")
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; lists are comma-separated, and names are checked in `plan`."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def add(option: str, default: Any, text: str, kind: Any = str, shown: str = "%(default)s") -> None:
        parser.add_argument(option, default=default, type=kind, help=f"{text} (default: {shown})")

    count = positive(int)
    add("--what", ",".join(WHAT), "kinds of measurement")
    add("--methods", ",".join(USUAL), "whose updates")
    add("--tasks", ",".join(envs.names()), "environments")
    add("--engines", "mujoco,mjx,raw", "physics, of " + ", ".join(ENGINES))
    add("--seeds", "1,8,32", "learners under one vmap", positive_integers)
    add("--environments", "1,16,64,256,1024", "side by side", positive_integers)
    add("--devices", 1, "that the CPU is split into, which share the environments", count)
    add("--pictures", None, "draw every step through one camera, so many pixels a side", count, "none")
    for name, size in OFF_POLICY.items():
        others = "".join(f"; {method} {sizes[name]}" for method, sizes in SIZES.items() if sizes[name] != size)
        shown = f"{size}{others}"
        add(f"--{name}", None, "of every method", positive_integers if name == "hidden" else count, shown)
    add("--windows", 4, "timed windows of each measurement", count)
    add("--seconds", 1.2, "length of a window", positive(float))
    add("--rounds", 1, "repetitions of the whole set, every other one backwards", count)
    add("--output", None, "a file that the JSON lines are appended to", appended)
    parser.add_argument("--one", default=None, help=argparse.SUPPRESS)  # what a child process measures
    return parser.parse_args(arguments)


def plan(options: argparse.Namespace) -> list[Spec]:
    """Everything to measure, in the order of the table."""

    def names(option: str, choices: tuple[str, ...]) -> list[str]:
        return [choose(option, name.strip(), choices) for name in getattr(options, option).split(",")]

    given = {name: getattr(options, name) for name in OFF_POLICY if getattr(options, name) is not None}
    specs: list[Spec] = []
    for name in names("methods", METHODS):
        unit = "minibatches/s" if name == "ppo_lag" else "updates/s"
        spec = {"what": "updates", "name": name, "unit": unit}
        spec |= SIZES.get(name, OFF_POLICY) | given
        check_batch(spec)
        text = f"{name} {'x'.join(map(str, spec['hidden']))} batch {spec['batch']}"
        specs += [spec | {"seeds": seeds, "label": f"{text} seeds {seeds}"} for seeds in options.seeds]
    for name in names("tasks", envs.names()):
        spec = {"what": "environments", "name": name, "unit": "steps/s"}
        for engine in names("engines", ENGINES):
            if engine != "raw":
                choose_engine(engine, "engines")
            drawn = None if engine == "raw" else options.pictures
            spec |= {"engine": engine, "pictures": drawn}
            devices = 1 if engine == "raw" else options.devices
            if any(count % devices for count in options.environments):
                stop(f"--environments is {options.environments}, expected multiples of the {devices} devices")
            text = f"{name} {engine} " + (f"{drawn} pixels " if drawn else "") + (f"{devices} devices " * (devices > 1))
            spec["devices"] = devices
            specs += [spec | {"environments": n, "label": f"{text}x {n}"} for n in options.environments]
    for rows, width in measure.GEMM_SHAPES:
        name = f"{rows}x{width}x{width}"
        spec = {"what": "gemm", "name": name, "unit": "GFLOP/s", "label": f"gemm {name}"}
        specs.append(spec | {"shape": (rows, width)})
    whats, pace = names("what", WHAT), {"windows": options.windows, "seconds": options.seconds}
    return [spec | {"pace": pace} for spec in specs if spec["what"] in whats]


def check_batch(spec: Spec) -> None:
    """Refuse a batch that is not a whole number of a sequence method's windows, in one line."""
    length, batch = measure.build(spec).batch.length, spec["batch"]
    if batch % length:
        stop(f"--batch is {batch}, expected a multiple of {length}, the rows of a window of {spec['name']}")


def main(arguments: list[str] | None = None) -> None:
    """Measure the plan, one process after another, or (in such a process) one line of it."""
    options = parse(arguments)
    if options.one is not None:
        print(json.dumps(measure_one(json.loads(options.one)), allow_nan=False))
        return
    specs = plan(options)
    # every other round backwards, so that a drift of the machine weighs on all rows alike
    jobs = [
        (number, index)
        for number in range(options.rounds)
        for index in list(range(len(specs)))[:: -1 if number % 2 else 1]
    ]
    records: list[list[Record]] = [[] for _ in specs]
    failures, start = 0, time.monotonic()
    try:
        for done, (number, index) in enumerate(jobs):
            left = f", {(time.monotonic() - start) / done * (len(jobs) - done):.0f} s left" if done else ""
            print(f"[{done + 1}/{len(jobs)}{left}] {specs[index]['label']}", file=sys.stderr, flush=True)
            record = in_own_process(specs[index])
            if record is None:
                failures += 1
                continue
            records[index].append(record | {"round": number, "command": shlex.join(sys.argv)})
            for file in filter(None, (sys.stdout, options.output)):
                print(json.dumps(records[index][-1]), file=file, flush=True)
    except KeyboardInterrupt:
        failures += 1
        print("interrupted; the records above are complete", file=sys.stderr)
    print(table(specs, records), file=sys.stderr)
    raise SystemExit(1 if failures else 0)


def in_own_process(spec: Spec) -> Record | None:
    """The record that a fresh process measures; None, and a line on standard error, if it fails."""
    child = [sys.executable, str(Path(__file__).resolve()), "--one", json.dumps(spec)]
    result = subprocess.run(child, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return json.loads(result.stdout.splitlines()[-1])
    reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
    print(f"error: {spec['label']} ended with code {result.returncode}: {reason}", file=sys.stderr)
    return None


COLUMNS = {
    "per second": ("median", ",.5g"),
    "per CPU s": ("per_cpu_second", ",.5g"),
    "1st call s": ("first_call_s", ".1f"),
    "compile s": ("compile_s", ".1f"),
    "RSS MB": ("peak_rss_mb", ".0f"),
    "of GEMM peak": ("share_of_peak", ".1%"),
    "of layer GEMM": ("share_of_layer_gemm", ".1%"),
    "load": ("load", ".1f"),
}


def table(specs: list[Spec], records: list[list[Record]]) -> str:
    """Medians over rounds; "x first" is that of the ratios, in each round, to the first row of the same name."""
    rows = [["", *COLUMNS, "windows", "+- 95 %", "x first (rounds)"]]
    firsts: dict[str, dict[int, float]] = {}
    for spec, rounds in zip(specs, records, strict=True):
        if not rounds:
            continue
        rates = {record["round"]: record["median"] for record in rounds}
        first = firsts.setdefault(spec["name"], rates)
        ratios = [rate / first[number] for number, rate in rates.items() if number in first]
        finite = all(record.get("finite", True) for record in rounds)
        row = [f"{spec['label']} [{spec['unit']}]{'' if finite else ' NOT FINITE'}"]
        for key, form in COLUMNS.values():
            values = [record[key] for record in rounds if record.get(key) is not None]
            row.append(format(statistics.median(values), form) if values else "-")
        row.append(f"{min(each['min'] for each in rounds):,.5g}-{max(each['max'] for each in rounds):,.5g}")
        ends = measure.interval_95(list(rates.values())) or rounds[0]["interval_95"]
        row.append(f"{(ends[1] - ends[0]) / 2:,.3g}" if ends else "-")
        spread = f" ({min(ratios):.2f}-{max(ratios):.2f})" if len(ratios) > 1 else ""
        rows.append([*row, f"{statistics.median(ratios):.2f}{spread}" if ratios else "-"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    )


def measure_one(spec: Spec) -> Record:
    """Measure in this process."""
    jax.config.update("jax_enable_compilation_cache", False)
    if spec.get("devices", 1) > 1:
        jax.config.update("jax_num_cpu_devices", spec["devices"])
    load, pace = os.getloadavg()[0], spec["pace"]
    if spec["what"] == "updates":
        measured = measure_updates(spec, pace)
    elif spec["what"] == "gemm":
        measured = measure.gemm(*spec["shape"], **pace)
    elif spec["engine"] == "raw":
        measured = measure.raw(spec["name"], spec["environments"], **pace)
    else:
        env = measure.world(spec["name"], spec["engine"], spec["pictures"])
        measured = measure.environment(env, spec["environments"], devices=spec["devices"], **pace)
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    interval = {"interval_95": measure.interval_95(measured["windows"])}
    return spec | measured | interval | {"load": load, "date": date} | measure.machine()


def measure_updates(spec: Spec, pace: dict[str, Any]) -> Record:
    """Updates per second, summed over seeds, beside the GEMM rates of the minute."""
    sizes = {name: spec[name] for name in OFF_POLICY}
    count = flops.update_flops(spec["name"], **sizes, epochs=EPOCHS, policy_frequency=POLICY_FREQUENCY)
    shapes = ((2048, 2048), (spec["batch"], 256))
    gemms = [measure.gemm(*shape, windows=3, seconds=min(pace["seconds"], 0.6)) for shape in shapes]
    peak, cpu_peak = (max(gemm[key] for gemm in gemms) for key in ("median", "per_cpu_second"))
    before = measure.memory()["peak_rss_mb"]
    # at half the GEMM rate, a call of so many updates takes a quarter of a window
    run, state, data, keys, updates = workload(spec, pace["seconds"] / 4 * 0.5e9 * peak / count)
    compiled, times = measure.compile_timed(jax.jit(run, donate_argnums=0), state, data, keys)
    metrics = None

    def call() -> Any:
        nonlocal state, metrics
        state, metrics = compiled(state, data, keys)
        return state, metrics

    first = measure.timed(call)
    measured = measure.rates(call, updates, **pace)
    gflops = measured["median"] * count / 1e9
    return measured | {
        **times,
        "first_call_s": sum(times.values()) + first,
        "rss_before_mb": before,  # peak up to and with the GEMMs
        "finite": all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(metrics)),
        "flops_per_update": count,
        "gflops": gflops,
        "gemm_gflops": [gemm["median"] for gemm in gemms],  # 2048 x 2048 x 2048, batch x 256 x 256
        "bound": 1e9 * peak / count,  # updates per second at the higher of them
        "share_of_peak": gflops / peak,  # equals median / bound
        "share_of_peak_cpu_s": measured["per_cpu_second"] * count / 1e9 / cpu_peak,
        "share_of_layer_gemm": gflops / gemms[1]["median"],
        "one_update_flops": flops.update_flops(spec["name"], **sizes),  # to compare with XLA's count
        "one_update_flops_xla": measure.xla_flops(spec),
    }


def workload(spec: Spec, affordable: float) -> tuple[Any, ...]:
    """A function of state, data and keys over all seeds, those three, and the updates of one call.

    It makes about `affordable` updates in `train_offline`, or all those of a ppo_lag update on a rollout.
    """
    seeds, on_policy = spec["seeds"], spec["name"] == "ppo_lag"
    if on_policy:
        algorithm, updates = measure.build(spec, EPOCHS, MINIBATCHES), EPOCHS * MINIBATCHES
        shape = (16, spec["batch"] * MINIBATCHES // 16)  # environments, steps
        run = functools.partial(measure.update_on_rollout, algorithm)
    else:
        algorithm, updates = measure.build(spec), 2 ** min(10, int(math.log2(max(1.0, affordable / seeds))))
        shape = (ROWS,)
        rows, *_ = measure.batch_shape(spec, algorithm)
        run = functools.partial(train_offline, algorithm, step_count=updates, batch_size=rows)
    keys = jax.random.key(0) if seeds == 1 else jax.random.split(jax.random.key(0), seeds)
    start = functools.partial(measure.example, spec, algorithm, shape)
    if seeds > 1:
        run = jax.vmap(run, in_axes=(0, 0 if on_policy else None, 0))
        start = jax.vmap(start, out_axes=(0, 0 if on_policy else None))
    state, data = jax.jit(start)(keys)
    if not on_policy:
        data = Dataset(data, jnp.zeros(1, jnp.int32), jnp.full(1, ROWS, jnp.int32))
    return run, state, data, keys, seeds * updates


if __name__ == "__main__":
    main()
