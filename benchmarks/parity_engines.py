"""Do two engines play the same game? python benchmarks/parity_engines.py ball_run hopper_velocity

Plays every task on two engines, the C library and mjx unless told otherwise, from the same starts and prints one JSON
object a task and policy:

- `start`: largest difference of observations at the reset; `first_steps`: over `--exact` steps of the same actions, the
  largest difference in the median episode and in the `worst`, for contacts amplify rounding and some episodes begin in
  one; `nudged`: the median between the first engine and itself, when positions and velocities of the start differ by
  `--nudge` (standard deviation of m, rad, m/s, rad/s): how much the task's own physics makes of so little. Median and
  nudged are of the `component` of the observation that stands worst beside its bound;
- of whole episodes, which are chaotic, how probable samples as different as these are if both engines have the same
  distribution (two-sample Kolmogorov-Smirnov tests of return, cost and length, from different keys).

Policies: `random`, uniform in [-1, 1] at every step; `held`, drawn once and held for 20 steps, which travels further.

`broken` names what fails: a component's median above its bound, the larger of `--tolerance` and `nudged`; or a p-value
below `--level` divided by the number of tests made, so that two equal engines fail with at most that probability. Then
the exit code is 1. Compiling a task for mjx or warp takes a minute and more on a CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from offline_to_online import OneLineParser, choose, choose_engine, stop
from scipy import stats

from safejax import envs
from safejax.envs import Start, Task
from safejax.types import Array, Env, EnvState, Key

POLICIES = {"random": 1, "held": 20}
"""How many steps an action is kept, which is uniform in [-1, 1]."""

MEASURES = ("return", "cost", "length")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; names are checked in `main`."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("tasks", nargs="+", help="names of tasks")
    add("--envs", type=int, default=64, help="episodes on each engine (default: %(default)s)")
    add("--steps", type=int, default=200, help="longest episode (default: %(default)s)")
    add("--exact", type=int, default=3, help="steps compared one by one (default: %(default)s)")
    add("--tolerance", type=float, default=1e-4, help="of observations over these (default: %(default)s)")
    add("--nudge", type=float, default=1e-5, help="of a start, the yardstick beside it (default: %(default)s)")
    add("--level", type=float, default=0.01, help="probability of a false alarm, of all tests (default: %(default)s)")
    add("--engines", default="mujoco,mjx", help="two, comma-separated (default: %(default)s)")
    add("--seed", type=int, default=0, help="(default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Check the options, play, compare, print; exit with 1 where something is broken."""
    options = parse(arguments)
    tasks = [choose("tasks", name, envs.names()) for name in options.tasks]
    engines = [choose_engine(name, "engines") for name in options.engines.split(",")]
    if len(engines) != 2:
        stop(f"--engines is {options.engines}, expected two of {', '.join(envs.ENGINES)}")
    for option in ("envs", "steps", "exact"):
        if getattr(options, option) < 1:
            stop(f"--{option} is {getattr(options, option)}, expected at least 1")
    level = options.level / (len(tasks) * len(POLICIES) * len(MEASURES))
    failed = False
    for name in tasks:
        task = envs.task(name)._replace(episode_length=options.steps)
        played = [*(envs.make(task, engine) for engine in engines), envs.make(nudged(task, options.nudge), engines[0])]
        runs = [jax.jit(_player(env, options.envs, options.steps)) for env in played]
        for policy in POLICIES:
            result = compare(runs, policy, options, level)
            for env in played:
                env.check()
            failed |= bool(result["broken"])
            print(json.dumps({"task": name, "engines": engines, "policy": policy, **result}), flush=True)
    if failed:
        sys.exit(1)


def nudged(task: Task, deviation: float) -> Task:
    """`task`, whose episodes start `deviation` off (standard deviation; m, rad, m/s, rad/s)."""

    def initialize(key: Key) -> Start:
        start = Start(*task.initialize(key))
        keys = jax.random.split(jax.random.fold_in(key, 1))
        qpos, qvel = (
            state + deviation * jax.random.normal(key, state.shape) for key, state in zip(keys, start[:2], strict=True)
        )
        return start._replace(qpos=qpos, qvel=qvel)

    return task._replace(initialize=initialize)


def compare(runs: list[Any], policy: str, options: argparse.Namespace, level: float) -> dict[str, Any]:
    """One line of the output; `runs` are the two engines' players, and that of the first with nudged starts."""
    shared, *own = jax.random.split(jax.random.key(options.seed), 3)
    hold = POLICIES[policy]
    seen, *others = (np.asarray(run(hold, shared)[0])[: options.exact + 1] for run in runs)
    gap, yardstick = (np.abs(seen - other) for other in others)  # [steps, episodes, O]
    medians, allowed = (np.median(apart.max(axis=0), axis=0) for apart in (gap, yardstick))  # [O]
    bounds = np.maximum(options.tolerance, allowed)
    component = int(np.argmax(medians / bounds))
    median, nudge, bound = (float(each[component]) for each in (medians, allowed, bounds))
    result: dict[str, Any] = {
        "episodes": options.envs,
        "start": float(gap[0].max()),
        "first_steps": {"median": median, "worst": float(gap.max()), "nudged": nudge, "component": component},
    }
    broken = [] if median <= bound else [f"first_steps {median:.3g} > {bound:.3g}"]
    samples = [run(hold, key)[1] for run, key in zip(runs[:2], own, strict=True)]
    for measure in MEASURES:
        ours, theirs = (np.asarray(sample[measure]) for sample in samples)
        chance = float(stats.ks_2samp(ours, theirs, method="asymp")[1])  # type: ignore[arg-type]
        result[measure] = {"means": [float(ours.mean()), float(theirs.mean())], "p": chance}
        if not chance >= level:
            broken.append(f"{measure} p {chance:.3g} < {level:.3g}")
    return result | {"broken": broken}


def _player(env: Env, count: int, length: int) -> Callable[[int, Key], tuple[Array, dict[str, Array]]]:
    """(steps an action is kept, key) -> observations [length + 1, count, O], and each first episode's `MEASURES`."""

    def play(hold: int, key: Key) -> tuple[Array, dict[str, Array]]:
        start_key, action_key, step_key = jax.random.split(key, 3)
        start = jax.vmap(env.reset)(jax.random.split(start_key, count))

        def step(carry: tuple[EnvState, Array, dict], time: Array) -> tuple[tuple, Array]:
            state, running, sums = carry
            held_key = jax.random.fold_in(action_key, time // hold)
            action = jax.random.uniform(held_key, (count, env.action_size), minval=-1.0, maxval=1.0)
            keys = jax.random.split(jax.random.fold_in(step_key, time), count)
            state = jax.vmap(env.step)(state, action, keys)
            gained = {"return": state.reward, "cost": state.cost, "length": jnp.ones(count)}
            sums = {name: sums[name] + jnp.where(running, gained[name], 0.0) for name in MEASURES}
            return (state, running & ~(state.terminated | state.truncated), sums), state.final_observation

        carry = (start, jnp.ones(count, bool), {name: jnp.zeros(count) for name in MEASURES})
        (_, _, sums), seen = jax.lax.scan(step, carry, jnp.arange(length))
        return jnp.concatenate([start.observation[None], seen]), sums

    return play


if __name__ == "__main__":
    main()
