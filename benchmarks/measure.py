"""What throughput.py measures with: windows of calls, memory, the machine, GEMMs, environments, XLA's FLOPs."""

from __future__ import annotations

import functools
import os
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import safejax
from safejax import algorithms, envs
from safejax.envs.pixels import pixels
from safejax.types import Algorithm, Array, Env, EnvState, Key, Transition

PACKAGES = ("jax", "jaxlib", "flax", "optax", "mujoco", "mujoco-mjx", "numpy")
VARIANTS = {"align_iql_hard": ("align_iql", {"alignment": "hard"})}  # name -> (method, numbers of its Config)
GEMM_SHAPES = ((2048, 2048), (256, 256), (512, 256), (2560, 256), (5120, 400))  # rows, width


def timed(call: Callable[[], Any]) -> float:
    """Seconds of one call, until everything that it returns is ready."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def rates(call: Callable[[], Any], units: float, *, windows: int, seconds: float) -> dict[str, Any]:
    """Units per second of a `call` that has run once: warm up, then `windows` windows of about `seconds`.

    Every call is waited for, as training loops do between chunks; calls should last milliseconds at least.
    """
    elapsed, count = 0.0, 0
    while elapsed < min(seconds, 1.0):
        elapsed, count = elapsed + timed(call), count + 1
    repeats = max(1, round(seconds * count / elapsed))
    wall, cpu = [], []
    for _ in range(windows):
        start, cpu_start = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            jax.block_until_ready(call())
        wall.append(repeats * units / (time.perf_counter() - start))
        cpu.append(repeats * units / max(time.process_time() - cpu_start, 1e-9))
    return {
        "median": statistics.median(wall),
        "min": min(wall),
        "max": max(wall),
        "windows": wall,
        "per_cpu_second": statistics.median(cpu),
        "units_per_call": units,
        "calls_per_window": repeats,
        **memory(),
    }


def interval_95(values: Sequence[float]) -> list[float] | None:
    """Ends of the Student-t interval of the mean; None for a single value."""
    if len(values) < 2:
        return None
    from scipy import stats  # late, after `memory`: it takes some itself

    half_width = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return [statistics.fmean(values) - float(half_width), statistics.fmean(values) + float(half_width)]


def compile_timed(function: Any, *arguments: Any) -> tuple[Any, dict[str, float]]:
    """A jitted function compiled for `arguments`, and the seconds that lowering and compiling took."""
    start = time.perf_counter()
    lowered = function.lower(*arguments)
    middle = time.perf_counter()
    compiled = lowered.compile()
    return compiled, {"lower_s": middle - start, "compile_s": time.perf_counter() - middle}


def memory() -> dict[str, float | None]:
    """Peak megabytes: of this process on the host, and of the first device where it keeps count."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    device_peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit,
        "peak_device_mb": None if device_peak is None else device_peak / 2**20,
    }


def core_count() -> int:
    """Cores that this process may use; `taskset -c 0` makes it one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Where a figure was measured."""
    device, info = jax.devices()[0], Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    return {
        "versions": {"python": platform.python_version(), "safejax": safejax.__version__}
        | {name: metadata.version(name) for name in PACKAGES},
        "platform": device.platform,
        "device_kind": device.device_kind,
        "processor": model[1] if model else platform.processor(),
        "cores": core_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


@functools.partial(jax.jit, static_argnums=2)
def _chain(left: Array, right: Array, count: int) -> Array:
    return jax.lax.fori_loop(0, count, lambda _, product: product @ right, left)


def gemm(rows: int, width: int, *, windows: int, seconds: float) -> dict[str, Any]:
    """GFLOP/s of chained float32 products [rows, width] @ [width, width], at the precision networks use.

    The chain is one program, as an update in a scan is, so that no dispatch from Python counts.
    """
    left, right = jnp.ones((rows, width)), jnp.full((width, width), 1.0 / width)
    count = 1
    while True:
        call = functools.partial(_chain, left, right, count)
        first = timed(call)
        if timed(call) > seconds / 8 or count >= 2**16:
            break
        count *= 4
    measured = rates(call, 2e-9 * rows * width * width * count, windows=windows, seconds=seconds)
    return {"first_call_s": first} | measured


def world(name: str, engine: str, side: int | None = None) -> Env:
    """The task as its sensors show it, or drawn every step, `side` pixels square.

    Through the robot's own camera where it has one, else through the model's first.
    """
    env = envs.make(name, engine)
    if side is None:
        return env
    model = env.scene.model
    cameras = [model.camera(index).name for index in range(model.ncam)]
    camera = "vision" if "vision" in cameras else cameras[0]
    return pixels(env, (camera,), height=side, width=side, state=False)


def environment(env: Env, env_count: int, *, windows: int, seconds: float, devices: int = 1) -> dict[str, Any]:
    """Steps per second of `env_count` environments under random actions, resets included, in one loop.

    That many `devices` share the environments, each with a loop of its own.
    """
    mesh, rows = jax.make_mesh((devices,), ("device",), devices=jax.devices()[:devices]), jax.P("device")
    key, count = jax.random.key(0), env_count // devices
    states = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(1), env_count))
    states = jax.device_put(states, jax.NamedSharding(mesh, rows))

    def step(index: Array, states: EnvState, key: Array) -> EnvState:
        act_key, step_key = jax.random.split(jax.random.fold_in(key, index))
        if env.discrete:
            action = jax.random.randint(act_key, (count,), 0, env.action_size)
        else:
            action = jax.random.uniform(act_key, (count, env.action_size), minval=-1.0)
        return jax.vmap(env.step)(states, action, jax.random.split(step_key, count))

    # the length is an argument, so that it can be fitted to `seconds` without compiling again
    def loop(states: EnvState, key: Array, length: int) -> EnvState:
        key = jax.random.fold_in(key, jax.lax.axis_index("device"))
        return jax.lax.fori_loop(0, length, lambda index, states: step(index, states, key), states)

    spread = jax.shard_map(loop, mesh=mesh, in_specs=(rows, jax.P(), jax.P()), out_specs=rows, check_vma=False)
    compiled, times = compile_timed(jax.jit(spread, donate_argnums=0), states, key, 1)

    def play(length: int) -> EnvState:
        nonlocal states
        states = compiled(states, key, length)
        return states

    first = timed(lambda: play(1))
    length = fit(play, seconds)
    measured = rates(lambda: play(length), env_count * length, windows=windows, seconds=seconds)
    env.check()
    return times | {"first_call_s": sum(times.values()) + first} | measured


def raw(name: str, env_count: int, *, windows: int, seconds: float) -> dict[str, Any]:
    """Steps per second of `mujoco.batch` alone, the ceiling of the engine "mujoco".

    The same model, substeps and sensors under random controls, from the task's first states; without the task's forces
    and resets, and with nothing that the layout moves.
    """
    from mujoco.batch import Batch

    from safejax.envs.engines.mujoco import Host

    task = envs.task(name)
    host = Host(task, core_count())
    batch = Batch(host.model, env_count, nthread=max(1, min(core_count(), env_count // 4)))
    start = jax.vmap(task.initialize)(jax.random.split(jax.random.key(0), env_count))
    batch.bind("qpos")[...], batch.bind("qvel")[...] = start[0], start[1]
    ctrl, first_state = batch.bind("ctrl"), batch.state.copy()
    controls = np.random.default_rng(0).uniform(-1.0, 1.0, (64, *ctrl.shape))

    def play(length: int) -> None:
        for index in range(length):
            if index % task.episode_length == 0:
                batch.state[...] = first_state
            ctrl[...] = controls[index % len(controls)]
            batch.step(nstep=task.substeps, stage=host.stage)

    first = timed(lambda: play(1))
    length = fit(play, seconds)
    measured = rates(lambda: play(length), env_count * length, windows=windows, seconds=seconds)
    return {"first_call_s": first} | measured


def fit(play: Callable[[int], Any], seconds: float) -> int:
    """A length for which `play` takes an eighth of `seconds`, or more if one step does."""
    length = 1
    while timed(functools.partial(play, length)) < seconds / 8:
        length *= 4
    return length


def build(spec: Mapping[str, Any], epochs: int = 1, minibatches: int = 1) -> Algorithm:
    """The method or variant `name` with networks for `hidden` and `action` of `spec`; the two counts are ppo_lag's."""
    method, numbers = VARIANTS.get(spec["name"], (spec["name"], {}))
    module = algorithms.module(method)
    networks = module.default_networks(spec["action"], tuple(spec["hidden"]))
    if method == "marvel":
        return module.make_alignment(networks=networks)
    if method == "ppo_lag":
        numbers = {"epoch_count": epochs, "minibatch_count": minibatches}
    return module.make(module.Config(**numbers), networks)


def example(spec: Mapping[str, Any], algorithm: Algorithm, shape: tuple[int, ...], key: Key) -> tuple[Any, Transition]:
    """A fresh state, and random transitions of leading `shape`; of an on-policy method, with its actions."""
    keys = jax.random.split(jax.random.key(1), 6)  # the same for all seeds
    normal = lambda index, *size: jax.random.normal(keys[index], (*shape, *size))  # noqa: E731
    here, there = normal(0, spec["observation"]), normal(1, spec["observation"])
    action = jnp.clip(0.5 * normal(2, spec["action"]), -0.999, 0.999)
    cost, last = (normal(3) > 1.3).astype(jnp.float32), (normal(4) > 3.0).astype(jnp.float32)
    rows = Transition(here, action, normal(5), cost, 1.0 - last, last, there)
    state = algorithm.init(key, jax.tree.map(lambda leaf: leaf[(0,) * len(shape)], rows))
    if algorithm.batch.kind == "fresh":
        action, _, extras = algorithm.act(state, here, key, explore=True)
        rows = rows._replace(action=action, extras=extras)
    return state, rows


def update_on_rollout(algorithm: Algorithm, state: Any, rollout: Transition, key: Key) -> tuple[Any, Any]:
    """What `train_iteration` does after collecting."""
    return algorithm.update(state, rollout, jax.random.fold_in(key, state.step))


def batch_shape(spec: Mapping[str, Any], algorithm: Algorithm) -> tuple[int, ...]:
    """The leading axes of `batch` transitions as `update` eats them: one rollout, windows, or rows."""
    batch = spec["batch"]
    if algorithm.batch.kind == "fresh":
        return 1, batch
    length = algorithm.batch.length
    return (batch // length, length) if algorithm.batch.kind == "sequence" else (batch,)


def abstract_update(spec: Mapping[str, Any], algorithm: Algorithm) -> tuple[Any, Transition, Key]:
    """Shapes of the arguments of one update of one seed; of ppo_lag, of one minibatch and its preparation."""
    key = jax.eval_shape(jax.random.key, 0)
    return *jax.eval_shape(functools.partial(example, spec, algorithm, batch_shape(spec, algorithm)), key), key


def xla_flops(spec: Mapping[str, Any]) -> float | None:
    """XLA's count for one update of one seed; of ppo_lag, for one minibatch and the preparation of its rows.

    Of a `cond` it counts the dearer branch: an update in which the actor moves.
    """
    algorithm = build(spec)
    # it counts the body of a loop once, so there must be no loops
    with mock.patch.object(jax.lax, "scan", functools.partial(jax.lax.scan, unroll=True)):
        lowered = jax.jit(algorithm.update).lower(*abstract_update(spec, algorithm))
    # products are counted before machine code is made of them
    cheap = {"xla_llvm_disable_expensive_passes": True, "xla_backend_optimization_level": 0}
    compiled = lowered.compile(compiler_options=cheap)
    return (compiled.cost_analysis() or {}).get("flops")
