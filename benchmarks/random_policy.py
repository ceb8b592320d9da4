"""What a random policy earns in every task: python benchmarks/random_policy.py --help

Plays whole episodes of actions uniform in [-1, 1] and prints one JSON object a task: sizes, limits, and the mean and
95 % interval of return, cost and length. With `--recorded`, a file of the same numbers from the original simulators, it
adds theirs and `standard_errors`, how many standard errors of the difference the means lie apart. `--table` writes it
all as Markdown.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from offline_to_online import OneLineParser, at_least, choose, choose_engine, output, stop
from recordings import task_name

from safejax import envs
from safejax.types import Array, Env

QUANTITIES = ("return", "cost", "length")


def main(arguments: list[str] | None = None) -> None:
    """Check the options, play, print."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", help="task names (default: all)")
    parser.add_argument("--episodes", type=int, default=64, help="of each task (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument(
        "--engine", default=None, help="physics: mujoco, mjx or warp (default: mujoco on CPU, mjx elsewhere)"
    )
    parser.add_argument("--recorded", type=Path, default=None, help="JSON: suite -> environment -> statistics")
    parser.add_argument("--table", type=Path, default=None, help="Markdown file to write")
    options = parser.parse_args(arguments)
    at_least("episodes", options.episodes, 2)
    engine = choose_engine(options.engine)
    if options.table:
        output("--table", options.table, (".md",))
    names = [choose("tasks", name, envs.names()) for name in options.tasks] or list(envs.names())
    recorded = read_recorded(options.recorded) if options.recorded else {}
    results = []
    for name in names:
        result = measure(name, options.episodes, options.seed, engine)
        results.append(compare(result, recorded.get(name)))
        print(json.dumps(results[-1]), flush=True)
    if options.table:
        options.table.write_text(table(results))


def read_recorded(path: Path) -> dict[str, dict[str, Any]]:
    """By our names, what a file of recorded statistics says."""
    if not path.is_file():
        stop(f"--recorded is {path}, which is no file")
    suites = json.loads(path.read_text())
    return {name: about for suite in suites.values() for key, about in suite.items() if (name := task_name(key))}


def measure(name: str, episodes: int, seed: int, engine: str) -> dict[str, Any]:
    """Sizes, limits and what `episodes` random episodes came to."""
    task, env = envs.task(name), envs.make(name, engine)
    played = [np.asarray(part, np.float64) for part in play(env, jax.random.key(seed), episodes)]
    env.check()
    numbers = {}
    for quantity, values in zip(QUANTITIES, played, strict=True):
        half = 1.96 * values.std(ddof=1) / math.sqrt(episodes)
        numbers[quantity] = {"mean": float(values.mean()), "half_interval": float(half)}
    sizes = {"observation": task.observation_size, "action": task.action_size, "episode_length": task.episode_length}
    return {"task": name, **sizes, "cost_limits": task.cost_limits, "episodes": episodes, **numbers}


def play(env: Env, key: Array, episodes: int) -> tuple[Array, Array, Array]:
    """Return, cost and length [episodes] of one episode of each."""
    start_key, *keys = jax.random.split(key, 1 + env.episode_length)

    def step(carry: Any, key: Array) -> tuple[Any, None]:
        states, going, sums = carry
        action_key, step_key = jax.random.split(key)
        actions = jax.random.uniform(action_key, (episodes, env.action_size), minval=-1.0, maxval=1.0)
        states = jax.vmap(env.step)(states, actions, jax.random.split(step_key, episodes))
        earned = jnp.stack([states.reward, states.cost, jnp.ones(episodes)])
        return (states, going & ~(states.terminated | states.truncated), sums + jnp.where(going, earned, 0.0)), None

    @jax.jit
    def run(start_key: Array, keys: Array) -> Array:
        states = jax.vmap(env.reset)(jax.random.split(start_key, episodes))
        begin = states, jnp.ones(episodes, bool), jnp.zeros((3, episodes))
        return jax.lax.scan(step, begin, keys)[0][2]

    return tuple(run(start_key, jnp.stack(keys)))  # type: ignore[return-value]


def compare(result: dict[str, Any], recorded: dict[str, Any] | None) -> dict[str, Any]:
    """`result` with what was recorded, where something was."""
    if recorded is None:
        return result
    theirs: dict[str, Any] = {"episodes": recorded["episodes"]}
    for quantity in QUANTITIES:
        mean, error = recorded[quantity]["mean"], recorded[quantity]["std"] / math.sqrt(recorded["episodes"])
        both = math.hypot(result[quantity]["half_interval"] / 1.96, error)
        apart = abs(result[quantity]["mean"] - mean) / both if both else 0.0
        theirs[quantity] = {"mean": mean, "half_interval": 1.96 * error, "standard_errors": apart}
    return result | {"recorded": theirs}


def table(results: list[dict[str, Any]]) -> str:
    """Markdown."""
    head = "task | O | A | steps | limits | return | recorded | cost | recorded"
    lines = [f"| {head} |", "|" + " --- |" * 9]
    for result in results:
        limits = ", ".join(f"{limit:g}" for limit in result["cost_limits"])
        cells = [result["task"], result["observation"], result["action"], result["episode_length"], limits]
        for quantity in ("return", "cost"):
            cells += [_interval(result[quantity]), _interval(result.get("recorded", {}).get(quantity))]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _interval(numbers: dict[str, float] | None) -> str:
    return "" if numbers is None else f"{numbers['mean']:.3g} ± {numbers['half_interval']:.2g}"


if __name__ == "__main__":
    main()
