"""What an update of FOSP costs, part by part, and what its pictures cost: python benchmarks/vision_costs.py --help

Parts are programs of their own: the world model's step on windows; imagination from all of their states, and its
gradient; and the whole update, of which the rest is heads, actor and multiplier. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import measure
import program_flops
from offline_to_online import OneLineParser, choose, stop
from vision_phases import tree_bytes
from vision_presets import METHODS, PRESETS, Budget, Look, look

from safejax import envs
from safejax.algorithms import imagination, world_models
from safejax.envs.pixels import pixels
from safejax.types import Env, example_transition

SENSORS = replace(PRESETS["paper"], size=(32, 256, 16, 16, 256), hidden_sizes=(256, 256), dtype="float32")
"""No pictures: the sizes of SafeDreamer's osrp_vector, to lay beside the authors' code."""


def main(arguments: list[str] | None = None) -> None:
    """Check the options, measure, print."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--task", default="point_goal1", help="(default: %(default)s)")
    add("--preset", default=None, help="mini, tiny, small, paper, or sensors: no pictures (default: as vision.py)")
    add("--method", default="fosp", help="fosp or safe_dreamer (default: %(default)s)")
    add("--batch", type=int, default=None, help="windows, if not the preset's")
    add("--windows", type=int, default=5, help="of timing (default: %(default)s)")
    add("--seconds", type=float, default=2.0, help="of each (default: %(default)s)")
    add("--counts-only", action="store_true", help="FLOPs and bytes without running anything")
    options = parser.parse_args(arguments)
    choose("task", options.task, envs.names())
    choose("method", options.method, ("fosp", "safe_dreamer"))
    if options.batch is not None and options.batch < 1:
        stop(f"--batch is {options.batch}, expected at least 1")
    scene = envs.make(options.task).scene
    seen = look(tuple(scene.model.camera(index).name for index in range(scene.model.ncam)))
    presets = PRESETS | {"sensors": SENSORS}
    preset = choose("preset", options.preset or seen.preset, presets)
    budget, pictured = presets[preset], preset != "sensors"
    env = envs.make(options.task, action_repeat=seen.action_repeat)
    if pictured:
        env = pixels(env, seen.cameras, height=seen.side, width=seen.side, state=False)
    pace = {"windows": options.windows, "seconds": options.seconds}
    rows = options.batch or budget.batch_size
    record = {"task": options.task, "preset": preset, "method": options.method, "batch": rows, "length": budget.length}
    record |= updates(options.method, budget, env, rows, None if options.counts_only else pace)
    if pictured and not options.counts_only:
        record |= {"frames": frames(env, seen, budget, pace)}
    print(json.dumps(record | {"machine": measure.machine(), "memory": measure.memory()}))


def updates(method: str, budget: Budget, env: Env, rows: int, pace: dict[str, Any] | None) -> dict[str, Any]:
    """FLOPs, and seconds if `pace` is given, of the parts of an update on [rows, length] windows."""
    row = METHODS[method](budget, env, 0.0)
    algorithm, config = row.offline, row.config
    networks = algorithm.act.keywords["networks"]  # type: ignore[attr-defined]
    one = example_transition(env)
    batch = jax.tree.map(
        lambda leaf: jnp.zeros((rows, config.length, *leaf.shape), leaf.dtype), one._replace(next_observation=())
    )
    key = jax.random.key(0)

    def model(state: Any, batch: Any, key: Any) -> Any:
        return world_models.learn_model(state.model, batch, key, config=config, networks=networks)

    def dream(state: Any, batch: Any, key: Any) -> Any:
        begin = networks.model.initial(state.model.params, (rows * config.length,))
        actor = state.actor.params if hasattr(state, "actor") else state.offline_actor.params

        def imagined(params: Any) -> Any:
            act = lambda features, key: networks.actor.apply(params, features).sample(key)  # noqa: E731
            rolled = imagination.imagine(networks.model, state.model.params, begin, act, key, config.horizon)
            return jnp.mean(rolled.reward) + jnp.mean(rolled.cost)

        return jax.value_and_grad(imagined)(actor)

    parts = {"model": model, "imagination": dream, "update": algorithm.update}
    abstract = jax.eval_shape(algorithm.init, key, one)
    counted = {name: program_flops.count(part, abstract, batch, key) for name, part in parts.items()}
    found: dict[str, Any] = {
        "state_bytes": tree_bytes(abstract),
        "gflop": {name: value / 1e9 for name, value in counted.items()},
    }
    if pace is None:
        return found
    state = jax.jit(algorithm.init)(key, one)
    seconds, compiling, working = {}, {}, {}
    for name, part in parts.items():
        began = time.perf_counter()
        program = jax.jit(part).lower(state, batch, key).compile()
        compiling[name] = time.perf_counter() - began
        working[name] = getattr(program.memory_analysis(), "temp_size_in_bytes", None)  # where the backend knows
        jax.block_until_ready(program(state, batch, key))
        seconds[name] = 1.0 / measure.rates(lambda run=program: run(state, batch, key), 1, **pace)["median"]
    rate = {name: found["gflop"][name] / seconds[name] for name in parts}
    return found | {"seconds": seconds, "compile_s": compiling, "gflop_per_s": rate, "working_bytes": working}


def frames(env: Env, seen: Look, budget: Budget, pace: dict[str, Any]) -> dict[str, float]:
    """Agent steps, and pictures of all cameras, per second of random actions in the preset's environments."""
    count, steps = budget.env_count, 20

    def run(states: Any, key: Any) -> Any:
        def step(states: Any, key: Any) -> Any:
            act, move = jax.random.split(key)
            action = jax.random.uniform(act, (count, env.action_size), minval=-1.0, maxval=1.0)
            return jax.vmap(env.step)(states, action, jax.random.split(move, count)), None

        return jax.lax.scan(step, states, jax.random.split(key, steps))[0]

    states = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), count))
    compiled = jax.jit(run)
    jax.block_until_ready(compiled(states, jax.random.key(1)))
    rate = measure.rates(lambda: compiled(states, jax.random.key(1)), count * steps, **pace)["median"]
    return {"environments": count, "steps_per_s": rate, "pictures_per_s": rate * len(seen.cameras)}


if __name__ == "__main__":
    main()
