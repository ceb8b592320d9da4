"""Pictures for `vision.py`: unsafe, safe and random episodes in equal parts, as FOSP's data are mixed.

Two PPO-Lagrangian learners that see the task's vector, one under a low cost limit and one under none, learn first. Then
they and random actions play in the world as its cameras see it, exploring, and the pictures alone are kept.
Shapes: N rows, B environments, T steps, H x W pixels, C channels of one frame.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import presets
from data_sum import recipe_digest
from vision_presets import Budget, Look

import safejax
from safejax import envs, training
from safejax.algorithms import ppo_lag
from safejax.data import Dataset, DatasetError, check_provenance, read_dsrl, write_dsrl
from safejax.data.memory import check_fits
from safejax.data.provenance import provenance
from safejax.envs.pixels import RENDERER, pixels, renderer
from safejax.multipliers import MultiplierConfig
from safejax.runs import Run
from safejax.training.rollout import rollout, start
from safejax.types import Algorithm, Array, Env, Key, Transition, example_transition

KINDS = ("unsafe", "safe", "random")
LIMITS = (1e9, 1.0)  # of the learners, cost units per episode
CHUNKS = 10  # of their learning
TOGETHER = 16  # episodes recorded at once
_LEARN, _RECORD = 11, 12  # tags of keys


def recorded(run: Run, task: str, engine: str, look: Look, budget: Budget, seed: int, cache: Path) -> Path:
    """The file of episodes: from the cache, or made now and cached."""
    world = envs.make(task, engine, action_repeat=look.action_repeat)
    initial, rate = budget.behavior_multiplier
    multiplier = MultiplierConfig(initial=initial, learning_rate=rate)
    config = replace(presets.behavior_config(presets.reward_scale(envs.task(task))), multiplier=multiplier)
    recipe = {
        "task": task,
        "engine": engine,
        "seed": seed,
        "cameras": list(look.cameras),
        "side": look.side,
        "action_repeat": look.action_repeat,
        "kinds": list(KINDS),
        "limits": list(LIMITS),
        "episodes_per_kind": budget.episodes,
        "environment_steps": budget.behavior_steps,
        "environments": budget.behavior_env_count,
        "collector": presets.plain(config),
        "safejax": safejax.__version__,
        "model": _fingerprint(world.scene.model),
    }
    path = cache / f"{task}-pixels-{recipe_digest(recipe)}.hdf5"
    if path.exists():
        return path
    learners = _behavior(run, world, config, budget, seed)
    seen = pixels(world, look.cameras, height=look.side, width=look.side)
    dataset = _record(run, seen, config, learners, budget, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    origin = provenance(task=task, engine=engine, renderer=renderer(seen), seed=seed, collector=recipe["collector"])
    write_dsrl(path, dataset, recipe | origin)
    return path


def _fingerprint(model: Any) -> str:
    """Of a world as it is drawn and moves, so that pictures of another are not taken for its own."""
    content = np.zeros(mujoco.mj_sizeModel(model), np.uint8)  # type: ignore[attr-defined]
    mujoco.mj_saveModel(model, None, content)  # type: ignore[attr-defined]
    return hashlib.sha256(content.tobytes()).hexdigest()[:12]


def _behavior(run: Run, env: Env, config: ppo_lag.Config, budget: Budget, seed: int) -> Any:
    """The States [2] of the learners under LIMITS."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), _LEARN), len(LIMITS))
    steps = budget.behavior_env_count * env.episode_length
    iterations = max(1, budget.behavior_steps // (len(LIMITS) * steps * CHUNKS))

    def make(limit: Any) -> Algorithm:
        return ppo_lag.make(replace(config, cost_limit=limit), action_size=env.action_size)

    def begin(key: Key) -> training.OnlineState:
        learner = make(1.0).init(key, example_transition(env))
        return training.init_online(make(1.0), env, learner, key, env_count=budget.behavior_env_count, replay=None)

    @functools.partial(jax.jit, donate_argnums=0)
    @jax.vmap
    def learn(state: Any, key: Key, limit: Array) -> Any:
        limits = jnp.broadcast_to(limit, (iterations,))
        state, (_, episodes, _) = training.collect(make, env, state, key, limits, rollout_length=env.episode_length)
        count = jnp.maximum(jnp.sum(episodes.finished), 1)
        sums = episodes.episode_return, episodes.episode_cost
        return state, [jnp.sum(jnp.where(episodes.finished, each, 0.0)) / count for each in sums]

    def advance(state: Any, index: int) -> tuple[Any, dict[str, Any]]:
        state, (returns, costs) = learn(state, keys, jnp.array(LIMITS))
        return state, {"env_steps": (index + 1) * iterations * steps, "return": returns, "cost": costs}

    return run.stage("behavior", lambda: jax.jit(jax.vmap(begin))(keys), advance, CHUNKS, check=env.check).learner


def _record(run: Run, env: Env, config: ppo_lag.Config, learners: Any, budget: Budget, seed: int) -> Dataset:
    """Episodes of every kind, in the order of KINDS, their pictures alone; kept as parts in the run until joined."""
    learner = ppo_lag.make(config, action_size=env.action_size)

    def drawn(state: Any, observation: Any, key: Key, carry: Any = (), *, explore: bool = False) -> Any:
        del state, explore
        shape = observation["state"].shape[0], env.action_size
        return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0), carry, {}

    def sighted(state: Any, observation: Any, key: Key, carry: Any = (), *, explore: bool = False) -> Any:
        return learner.act(state, observation["state"], key, carry, explore=explore)

    together = min(TOGETHER, budget.episodes)
    rounds = -(-budget.episodes // together)

    @functools.partial(jax.jit, static_argnums=0)
    def play(act: Callable[..., Any], state: Any, key: Key) -> Transition:
        algorithm = learner._replace(act=act)
        begin = start(algorithm, env, state, key, together)
        _, rows, _ = rollout(algorithm, env, state, begin, key, env.episode_length, explore=True)
        return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1)[None], rows._replace(extras={}))

    folder = run.directory / "episodes"
    folder.mkdir(exist_ok=True)

    def advance(state: Array, index: int) -> tuple[Array, dict[str, Any]]:
        kind, turn = divmod(index, rounds)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _RECORD), index)
        own = jax.tree.map(lambda leaf: leaf[min(kind, len(LIMITS) - 1)], learners)
        rows = play(drawn if KINDS[kind] == "random" else sighted, own, key)
        rows = jax.tree.map(lambda leaf: np.asarray(leaf)[:, : budget.episodes - turn * together], rows)
        pictures = {"pixels": rows.observation["pixels"], "next_pixels": rows.next_observation["pixels"]}
        scalars = {name: getattr(rows, name) for name in ("action", "reward", "cost", "discount", "last")}
        partial = folder / ".partial.npz"
        np.savez(partial, allow_pickle=False, **pictures, **scalars)
        os.replace(partial, folder / f"{index:04d}.npz")
        episodes = max(float(rows.last.sum()), 1.0)
        return state, {"return": rows.reward.sum() / episodes, "cost": rows.cost.sum() / episodes}

    count = rounds * len(KINDS)
    run.stage("episodes", lambda: jnp.zeros(()), advance, count, check=env.check)
    parts = []
    for index in range(count):
        with np.load(folder / f"{index:04d}.npz") as arrays:
            part = dict(arrays)
        pictures = ({"pixels": part.pop(name)} for name in ("pixels", "next_pixels"))
        parts.append(Transition(observation=next(pictures), next_observation=next(pictures), **part))
    dataset = training.whole_episodes([jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *parts)])
    for file in folder.iterdir():
        file.unlink()
    return dataset


def load(path: Path, task: str, look: Look, frames: int) -> Dataset:
    """The episodes of a file as a policy sees them that looks at the last `frames` pictures.

    Raises:
      DatasetError: one line: another task, renderer, cameras, size or action repeat; or no memory for them.
    """
    dataset, attributes = read_dsrl(path)
    check_provenance(attributes, task=task, renderer=RENDERER, source=str(path))
    wanted = {"cameras": list(look.cameras), "side": look.side, "action_repeat": look.action_repeat}
    for name, expected in wanted.items():
        if name in attributes and attributes[name] != expected:
            words = f"{name} {attributes[name]}, expected {expected}"
            raise DatasetError(f"{path}: recorded with {words}; collect data of that kind or look so yourself")
    observation = dataset.transitions.observation
    shape = observation["pixels"].shape if isinstance(observation, dict) and "pixels" in observation else None
    if shape is None or shape[1:] != (look.side, look.side, 3 * len(look.cameras)):
        found = "no pixels" if shape is None else f"pixels {list(shape[1:])}"
        expected = [look.side, look.side, 3 * len(look.cameras)]
        raise DatasetError(f"{path}: {found}, expected {expected} a row, of cameras {', '.join(look.cameras)}")
    bytes_read = observation["pixels"].size
    print(f"{path.name}: {shape[0]:,} rows, {bytes_read / 1e6:,.0f} MB of pictures", file=sys.stderr)
    if frames == 1:
        return dataset._replace(transitions=dataset.transitions._replace(next_observation=()))
    check_fits(2 * frames * bytes_read, f"{path}: its pictures, {frames} at once", "choose a smaller --preset")
    return stacked(dataset, frames)


def stacked(dataset: Dataset, count: int) -> Dataset:
    """The data set as `envs.pixels.frame_stack` would have shown it: [N, H, W, count C], the newest last.

    Of an episode's last row the next picture is its own where the file holds no other.
    """
    rows = dataset.transitions
    frames, following = (each["pixels"] for each in (rows.observation, rows.next_observation))
    number = jnp.arange(len(rows.reward))
    begin = dataset.episode_start[jnp.searchsorted(dataset.episode_start, number, side="right") - 1]
    old = jnp.maximum(number[:, None] - jnp.arange(count - 1, -1, -1), begin[:, None])  # [N, count]
    stack = jnp.concatenate([frames[old[:, each]] for each in range(count)], axis=-1)
    after = jnp.concatenate([stack[..., frames.shape[-1] :], following], axis=-1)
    return dataset._replace(
        transitions=rows._replace(observation={"pixels": stack}, next_observation={"pixels": after})
    )
