"""The phases of `vision.py`: offline learning, fine-tuning, and evaluation, one seed after the other.

Every phase is a stage of a `Run`: chunks of one jitted call, saved after each.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from vision_presets import Budget, Row

from safejax import training
from safejax.data import Dataset
from safejax.data.memory import check_fits
from safejax.runs import Run
from safejax.types import Algorithm, Array, ArrayTree, Env, Key, example_transition

_OFFLINE, _ONLINE, _EVALUATION = 21, 22, 23  # tags of keys
CHUNKS = 8  # of each phase


@dataclass(frozen=True)
class Job:
    """One method in one world."""

    run: Run
    name: str
    row: Row
    env: Env  # as the method sees it
    budget: Budget

    def stage(self, phase: str, seed: int) -> str:
        """The name of a phase's stage."""
        return f"{self.name}-{phase}-{seed}"

    @property
    def chunk_updates(self) -> int:
        """Of the offline phase."""
        return max(1, self.row.offline_updates // CHUNKS)

    @property
    def iteration_steps(self) -> int:
        """Of all environments between updates."""
        return self.budget.env_count * self.budget.rollout_length

    @property
    def iterations(self) -> int:
        """Of a chunk of the online phase."""
        return max(1, self.budget.online_steps // (self.iteration_steps * CHUNKS))

    @property
    def iteration_updates(self) -> int:
        """Of an iteration of the online phase."""
        return max(1, self.iteration_steps // self.row.steps_per_update)

    @functools.cached_property
    def replay(self) -> Any:
        """Room for every step of the online phase."""
        steps = (CHUNKS * self.iterations + self.warmup_iterations) * self.iteration_steps
        return training.replay_for(self.online.batch, steps, self.budget.env_count)

    @property
    def replay_bytes(self) -> int:
        """Of that room."""
        return tree_bytes(jax.eval_shape(self.replay.init, example_transition(self.env)))

    @property
    def online(self) -> Algorithm:
        """The algorithm of the online phase."""
        if self.row.online is None:
            raise ValueError(f"{self.row.label} has no online phase")
        return self.row.online

    # Compiled once for all seeds.

    @functools.cached_property
    def pretrain(self) -> Any:
        """(state, dataset, key) -> (state, metrics), a chunk of the offline phase."""
        guarded = training.skip_non_finite(self.row.offline)
        numbers = {"step_count": self.chunk_updates, "batch_size": self.row.batch_size}
        return jax.jit(functools.partial(training.train_offline, guarded, **numbers), donate_argnums=0)

    @property
    def warmup_iterations(self) -> int:
        """Before the first update: as many steps as a window holds, and half as many again to choose from."""
        return -(-3 * self.online.batch.length // (2 * self.budget.rollout_length))

    @functools.cached_property
    def warm_up(self) -> Any:
        """(state, key, dataset) -> (state, no metrics, episodes), what goes before the first chunk."""
        return self._online_loop(self.warmup_iterations, 0)

    @functools.cached_property
    def finetune(self) -> Any:
        """(state, key, dataset) -> (state, metrics of all updates, episodes), a chunk of the online phase."""
        return self._online_loop(self.iterations, self.iteration_updates)

    def _online_loop(self, iterations: int, updates: int) -> Any:
        def loop(state: Any, key: Key, dataset: Dataset) -> Any:
            state, (metrics, episodes) = training.train_online(
                training.skip_non_finite(self.online),
                self.env,
                state,
                key,
                iteration_count=iterations,
                rollout_length=self.budget.rollout_length,
                updates_per_iteration=updates,
                batch_size=self.row.batch_size,
                replay=self.replay,
                dataset=dataset,
            )
            return state, jax.tree.map(jnp.ravel, metrics), episodes

        return jax.jit(loop, donate_argnums=0)

    @functools.cached_property
    def play(self) -> dict[str, Any]:
        """Phase -> (state, key) -> episodes played deterministically."""
        count = self.budget.evaluation_episodes

        def player(algorithm: Any) -> Any:
            return jax.jit(lambda state, key: training.evaluate(algorithm, self.env, state, key, count))

        return {"offline": player(self.row.offline), "online": player(self.row.online)}


def tree_bytes(tree: ArrayTree) -> int:
    """Of all leaves of a tree of arrays or of their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def learn(job: Job, seed: int, dataset: Dataset) -> tuple[Any, Any]:
    """Both phases of one seed; the last State, and that of the offline phase."""
    key = jax.random.key(seed)
    pretrained = _pretrain(job, seed, jax.random.fold_in(key, _OFFLINE), dataset)
    if job.row.online is None:
        return pretrained, pretrained
    return _finetune(job, seed, jax.random.fold_in(key, _ONLINE), pretrained, dataset), pretrained


def _pretrain(job: Job, seed: int, key: Key, dataset: Dataset) -> Any:
    def initial() -> Any:
        return jax.jit(job.row.offline.init)(key, example_transition(job.env))

    def advance(state: Any, index: int) -> tuple[Any, dict[str, Any]]:
        state, metrics = job.pretrain(state, dataset, key)
        means = training.finite_means(metrics, first_update=index * job.chunk_updates)
        record = {"updates": (index + 1) * job.chunk_updates, **means}
        return state, record | _played(job, "offline", state, seed)

    return job.run.stage(job.stage("offline", seed), initial, advance, CHUNKS, check=job.env.check)


def _finetune(job: Job, seed: int, key: Key, pretrained: Any, dataset: Dataset) -> Any:
    row, env, example = job.row, job.env, example_transition(job.env)
    check_fits(job.replay_bytes, f"the replay of {job.name}", "choose a smaller --preset")

    def initial() -> Any:
        learner = row.begin(lambda: jax.jit(job.online.init)(key, example), pretrained)
        return training.init_online(job.online, env, learner, key, env_count=job.budget.env_count, replay=job.replay)

    def advance(state: Any, index: int) -> tuple[Any, dict[str, Any]]:
        before = 0.0
        if index == 0:
            state, _, episodes = job.warm_up(state, key, dataset)
            before = np.where(episodes.finished, episodes.episode_cost, 0.0).sum()
        state, metrics, episodes = job.finetune(state, key, dataset)
        updates = job.iterations * job.iteration_updates
        record = {
            "env_steps": ((index + 1) * job.iterations + job.warmup_iterations) * job.iteration_steps,
            "finished_cost": before + np.where(episodes.finished, episodes.episode_cost, 0.0).sum(),
            "unfinished_cost": jnp.sum(state.actors.episode.episode_cost),
            "diverged": episodes.diverged.sum(),
            **training.finite_means(metrics, first_update=index * updates),
        }
        return state, record | _played(job, "online", state.learner, seed)

    return job.run.stage(job.stage("online", seed), initial, advance, CHUNKS, check=env.check).learner


def _played(job: Job, phase: str, state: Any, seed: int) -> dict[str, Array]:
    """Mean return and cost of episodes that it plays deterministically."""
    episodes = job.play[phase](state, jax.random.fold_in(jax.random.key(seed), _EVALUATION))
    mean = functools.partial(jnp.mean, where=episodes.finished)
    return {"return": mean(episodes.episode_return), "cost": mean(episodes.episode_cost)}
