"""The faults of `faults.py` that are numbers: a reward that is NaN, a simulation that diverges.

A trial is silently wrong where a learner's state is not finite, or anything is touched but what the fault concerns.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from fault_trials import Row

from safejax import envs, training
from safejax.algorithms import iql
from safejax.data import Dataset
from safejax.envs.tasks import ball
from safejax.types import Algorithm, Env, Transition

ROWS, UPDATES, BATCH = 1_000, 200, 16
ENVS, STEPS, WIDTH = 8, 40, 3


def nan_reward(folder: Path, trials: Collection[int], clock: random.Random) -> Row:
    """One row of the data has a reward that is NaN, which reading would have refused."""
    del folder
    algorithm = training.skip_non_finite(_telling(iql.make(networks=iql.default_networks(2, (8,)))))
    normal = np.random.default_rng(0).normal
    arrays = [normal(size=(ROWS, *shape)) for shape in ((WIDTH,), (2,), (), (WIDTH,))]
    here, action, reward, there = (jnp.asarray(np.tanh(array), jnp.float32) for array in arrays)
    rows = Transition(here, action, reward, jnp.zeros(ROWS), jnp.ones(ROWS), jnp.zeros(ROWS), there)
    dataset = Dataset(rows, jnp.zeros(1, jnp.int32), jnp.full(1, ROWS))
    state = algorithm.init(jax.random.key(0), jax.tree.map(lambda leaf: leaf[0], rows))
    train = jax.jit(
        lambda dataset: training.train_offline(
            algorithm, state, dataset, jax.random.key(1), step_count=UPDATES, batch_size=BATCH
        )
    )
    skipped = wrong = 0
    for _ in trials:
        spoiled = rows._replace(reward=rows.reward.at[clock.randrange(ROWS)].set(jnp.nan))
        after, metrics = jax.tree.map(np.asarray, train(dataset._replace(transitions=spoiled)))
        finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
        wrong += not finite or not np.array_equal(metrics["skipped"], metrics["holds_it"])
        skipped += int(metrics["skipped"].sum())
    happened = f"{skipped} of {UPDATES * len(trials)} updates skipped and counted, exactly those whose batch held it"
    return Row("NaN reward", len(trials), happened, "those updates", wrong)


def _telling(algorithm: Algorithm) -> Algorithm:
    """`algorithm` with the metric "holds_it": whether the batch holds a NaN reward."""

    def update(state: Any, batch: Transition, key: Any) -> Any:
        state, metrics = algorithm.update(state, batch, key)
        return state, metrics | {"holds_it": jnp.isnan(batch.reward).any().astype(jnp.float32)}

    return algorithm._replace(update=update)


def diverging_physics(folder: Path, trials: Collection[int], clock: random.Random) -> Row:
    """An action of (1, 1) throws the ball out of any sound number; one environment takes it once."""

    def force(qpos: Any, qvel: Any, action: Any) -> Any:
        thrown = (action >= 1.0).all(-1)[..., None]
        return np.where(thrown, 1e30, ball.applied_force(qpos, qvel, action))

    env = envs.make(envs.task("ball_circle")._replace(applied_force=force), "mujoco")
    actions = np.random.default_rng(0).uniform(-0.9, 0.9, (STEPS, ENVS, env.action_size)).astype(np.float32)
    play = jax.jit(lambda actions: _play(env, actions))
    calm, once, wrong = jax.tree.map(np.asarray, play(actions)), 0, 0
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(folder):  # MuJoCo writes a log file where it runs
        for _ in trials:
            step, which = clock.randrange(STEPS), clock.randrange(ENVS)
            pushed = actions.copy()
            pushed[step, which] = 1.0
            found = jax.tree.map(np.asarray, play(pushed))
            env.check()
            fault = np.zeros((STEPS, ENVS), bool)
            fault[step, which] = True
            once += np.array_equal(found.diverged, fault)
            others = np.arange(ENVS) != which
            pairs = zip(jax.tree.leaves(found), jax.tree.leaves(calm), strict=True)
            same = all(np.array_equal(new[:, others], old[:, others]) for new, old in pairs)
            sound = np.isfinite(found.observation).all() and not found.steps[step, which]
            wrong += not (same and sound)
    happened = f"{once} times that environment alone restarted, counted once; the others bit for bit as without"
    return Row("simulation diverges", len(trials), happened, "that step; its episode counts nowhere", wrong)


def _play(env: Env, actions: Any) -> Any:
    """[STEPS, ENVS] states after each step, without the physics."""

    def step(states: Any, action: Any) -> Any:
        states = jax.vmap(env.step)(states, action, jax.random.split(jax.random.key(2), ENVS))
        return states, states._replace(physics=())

    return jax.lax.scan(step, jax.vmap(env.reset)(jax.random.split(jax.random.key(1), ENVS)), actions)[1]
