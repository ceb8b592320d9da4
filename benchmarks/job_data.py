"""Data of `offline_to_online.py`: collected by learners under rising limits and cached, or read from a file."""

from __future__ import annotations

import functools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from data_sum import recipe_digest
from job import BEHAVIOR, Job, episode_record
from presets import behavior_config, plain

import safejax
from safejax import training
from safejax.algorithms import ppo_lag
from safejax.data import Dataset, check_open_actions, check_widths, clip_actions, read_dsrl, write_dsrl
from safejax.data.provenance import check_provenance, provenance
from safejax.envs.pixels import renderer
from safejax.types import Algorithm, Array, ArrayTree, Env, Transition, example_transition

CHUNKS = 20  # of the learners' training


def behavior_data(job: Job, seed: int, cache: Path) -> Path:
    """The behaviour data set of the task in DSRL's layout: from the cache, or made now and cached."""
    budget, env = job.budget, job.env
    config = behavior_config(job.source.reward_scale)
    recipe = {
        "task": env.name,
        "engine": job.engine,
        "seed": seed,
        "learners": budget.behavior_seeds,
        "environments": budget.behavior_env_count,
        "environment_steps": budget.behavior_steps,
        "episodes_per_bin": budget.behavior_per_bin,
        "cost_maximum": budget.behavior_cost_maximum,
        "limits": budget.behavior_limits,
        "collector": plain(config),
        "safejax": safejax.__version__,
    }
    path = cache / f"{env.name}-{recipe_digest(recipe)}.hdf5"
    if path.exists():
        return path
    learners = budget.behavior_seeds
    steps_per_iteration = learners * budget.behavior_env_count * env.episode_length
    iteration_count = max(2, budget.behavior_steps // steps_per_iteration)
    limits = training.limit_schedule(iteration_count, *budget.behavior_limits)
    chunks = np.array_split(limits, min(CHUNKS, iteration_count))
    base = jax.random.fold_in(jax.random.key(seed), BEHAVIOR)
    keys = jax.vmap(functools.partial(jax.random.fold_in, base))(jnp.arange(learners))

    def make_algorithm(limit: Any) -> Algorithm:
        return ppo_lag.make(replace(config, cost_limit=limit), action_size=env.action_size)

    def begin(key: Array) -> training.OnlineState:
        algorithm = make_algorithm(budget.behavior_limits[0])
        learner = algorithm.init(key, example_transition(env))
        return training.init_online(algorithm, env, learner, key, env_count=budget.behavior_env_count, replay=None)

    def initial() -> ArrayTree:
        return jax.jit(jax.vmap(begin))(keys)

    # On one device: the learners need not divide over those that the seeds are spread over.
    step = replace(job, sharding=None).on_seeds(
        lambda state, key, limits: training.collect(
            make_algorithm, env, state, key, limits, rollout_length=env.episode_length
        )
    )
    folder = job.run.directory / "behavior"
    folder.mkdir(exist_ok=True)
    fields = ("observation", "action", "reward", "cost", "discount", "last", "next_observation")

    def advance(state: ArrayTree, index: int) -> tuple[ArrayTree, dict[str, Any]]:
        state, (_, episodes, transitions) = step(state, keys, jnp.asarray(chunks[index]))
        part = {name: np.asarray(getattr(transitions, name)) for name in fields}
        partial = folder / ".partial.npz"
        np.savez(partial, allow_pickle=False, **part)
        os.replace(partial, folder / f"{index:04d}.npz")
        return state, {"limit": float(chunks[index][-1]), **episode_record(episodes)}

    job.run.stage("behavior", initial, advance, len(chunks), check=env.check)
    parts = []
    for index in range(len(chunks)):
        with np.load(folder / f"{index:04d}.npz") as arrays:
            parts.append(Transition(**{name: arrays[name] for name in fields}))
    dataset = training.gather(
        parts,
        cost_maximum=budget.behavior_cost_maximum,
        per_bin=budget.behavior_per_bin,
        minimum=2,
        seed=seed,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    origin = provenance(
        task=env.name, engine=job.engine, renderer=renderer(env), seed=seed, collector=recipe["collector"]
    )
    write_dsrl(path, dataset, recipe | origin)
    for part in folder.iterdir():
        part.unlink()
    return path


def load_data(path: Path, env: Env) -> tuple[Dataset, str]:
    """A data set in DSRL's layout that fits the task, and a note if it does not say where it comes from.

    Raises:
      DatasetError: one line with what was found and expected.
    """
    dataset, attributes = read_dsrl(path)
    note = check_provenance(attributes, task=env.name, renderer=renderer(env), source=str(path))
    check_widths(dataset, env.observation_spec.shape[-1], env.action_size, env.name, source=str(path))
    return dataset, note


def inside(dataset: Dataset, fits_likelihood: bool, bound: float, path: Path) -> Dataset:
    """The rows that pre-training sees: actions clipped to `bound` where a squashed Gaussian's likelihood is fitted.

    Raises:
      DatasetError: actions are at -1 or 1 all the same.
      ValueError: `bound` is not in (0, 1].
    """
    if fits_likelihood:
        dataset = clip_actions(dataset, bound)
        check_open_actions(dataset, str(path))
    return dataset
