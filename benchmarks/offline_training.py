"""What `offline.py` does with one method: trains all its seeds, evaluates them, saves their policy."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any

import evaluation
import jax
import jax.numpy as jnp
import measure
import numpy as np
from offline_presets import METHODS, REWARDS, Setting

from safejax import training
from safejax.algorithms import cpq
from safejax.data import Dataset, episode_returns
from safejax.networks import MLPDenoiser, ResidualDenoiser
from safejax.runs import Run, save_policy
from safejax.types import Algorithm, Array, Env, example_transition

_UPDATE, _EVALUATION = range(2)  # tags of the keys


@dataclass(frozen=True)
class Job:
    """What the training of one method needs to know."""

    run: Run
    env: Env
    seeds: tuple[int, ...]
    every: int
    episodes: int
    acting: str
    data: dict[str, str]  # their file's name and SHA-256, for the policies' notes

    def keys(self, tag: int) -> Array:
        """One key per seed [S]."""
        return jnp.stack([jax.random.fold_in(jax.random.key(seed), tag) for seed in self.seeds])


@dataclass(frozen=True)
class Learner:
    """One row of the table, bound to the task."""

    setting: Setting
    networks: Any
    algorithm: Algorithm

    @property
    def is_diffusion(self) -> bool:
        """Whether its policy is sampled from noise, which the papers draw afresh when they evaluate."""
        return isinstance(self.networks.actor, ResidualDenoiser | MLPDenoiser)

    @property
    def fits_likelihood(self) -> bool:
        """Whether it fits a tanh-squashed Gaussian to the data's actions."""
        return getattr(self.networks.actor, "squash", False) and not isinstance(self.setting.config, cpq.Config)


def train(job: Job, row: str, learner: Learner, dataset: Dataset) -> None:
    """Every seed of one method, chunk by chunk; each evaluation is recorded and the learner saved."""
    chosen, algorithm = learner.setting, learner.algorithm
    scaled = scale_rewards(dataset, chosen.reward)
    keys, example = job.keys(_UPDATE), example_transition(job.env)
    init = jax.jit(jax.vmap(algorithm.init, in_axes=(0, None)))
    step_count, guarded = min(job.every, chosen.updates), training.skip_non_finite(algorithm)
    loop = functools.partial(training.train_offline, guarded, step_count=step_count, batch_size=chosen.batch_size)
    learn = jax.jit(jax.vmap(loop, in_axes=(0, None, 0)), donate_argnums=0)
    play = evaluator(job, learner)

    def advance(state: Any, index: int) -> tuple[Any, dict[str, Any]]:
        began = time.perf_counter()
        state, metrics = jax.block_until_ready(learn(state, scaled, keys))
        record = {"updates": (index + 1) * step_count, "train_s": time.perf_counter() - began}
        record |= training.finite_means(metrics, first_update=index * step_count) | play(state)
        record["wall_s"] = time.perf_counter() - began
        record["peak_rss_mb"] = measure.memory()["peak_rss_mb"]
        return state, record

    state = job.run.stage(row, lambda: init(keys, example), advance, chosen.updates // step_count, check=job.env.check)
    (job.run.directory / "policies").mkdir(exist_ok=True)
    save = functools.partial(
        save_policy,
        state=state,
        config=chosen.config,
        method=METHODS[row],
        action_size=job.env.action_size,
        observation_size=job.env.observation_spec.shape[-1],
        hidden_sizes=chosen.hidden_sizes,
        network_options=chosen.network_options,
        seeds=job.seeds,
        task=job.env.name,
        **job.data,
    )
    job.run.once(f"policies/{row}", save)


def scale_rewards(dataset: Dataset, kind: str) -> Dataset:
    """The data set with the rewards that the papers train on; evaluations report the task's own."""
    returns = np.asarray(episode_returns(dataset)[0])
    reward = REWARDS[kind](np.asarray(dataset.transitions.reward), returns)
    rows = dataset.transitions._replace(reward=jnp.asarray(reward, jnp.float32))
    return dataset._replace(transitions=rows)


def evaluator(job: Job, learner: Learner) -> Any:
    """State of all seeds -> return, cost and length [S]: means over the episodes of one evaluation that did not
    diverge; and how many did.
    """
    explore = evaluation.explores(job.acting, learner.is_diffusion)

    def play(state: Any, key: Array) -> dict[str, Array]:
        episodes = training.evaluate(learner.algorithm, job.env, state, key, job.episodes, explore=explore)
        sums = {"return": episodes.episode_return, "cost": episodes.episode_cost, "length": episodes.length}
        means = {name: jnp.mean(value, where=episodes.finished) for name, value in sums.items()}  # none finished: NaN
        return means | {"evaluation_diverged": jnp.sum(episodes.diverged)}

    jitted = jax.jit(jax.vmap(play))
    return lambda state: jax.tree.map(np.asarray, jitted(state, job.keys(_EVALUATION)))
