"""The phases of `offline_to_online.py`: pre-training, extraction, alignment, fine-tuning, evaluation.

Every phase is a stage of a `Run`: chunks of one jitted call, saved after each. Shapes: S seeds, K chunks.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bridges import Online, extraction_phase
from evaluation import explores
from job import ALIGNMENT, EVALUATION, EXTRACTION, FINETUNING, OFFLINE, Job, episode_summary
from presets import Method

from safejax import checkpoint, training
from safejax.algorithms import bc
from safejax.data import Dataset
from safejax.types import Algorithm, Array, ArrayTree, example_transition

OFFLINE_CHUNKS, EXTRACTION_CHUNKS, ALIGNMENT_CHUNKS = 20, 5, 5


def pretrain(job: Job, dataset: Dataset) -> Any:
    """Offline pre-training of every seed: the State restored from its Orbax checkpoint [S]."""
    source, updates = job.source, job.budget.offline_updates
    explore = explores(job.acting, source.is_diffusion)
    state, initial = _train_offline(
        job, "offline", source.algorithm, OFFLINE, dataset, updates, OFFLINE_CHUNKS, explore=explore
    )
    folder = job.run.once("pretrained", lambda path: checkpoint.save(path, state, source.config))
    return checkpoint.restore(folder, jax.eval_shape(initial), config=source.config)


def extract(job: Job, pretrained: Any, dataset: Dataset) -> Any:
    """A Gaussian policy out of the pre-trained one [S], or `pretrained` itself where its actor is a Gaussian."""
    found = extraction_phase(job.source)
    if found is None:
        return pretrained
    algorithm, _, fields = found
    updates = job.budget.extraction_updates
    return _train_offline(
        job,
        "extraction",
        algorithm,
        EXTRACTION,
        dataset,
        updates,
        EXTRACTION_CHUNKS,
        explore=explores(job.acting, False),
        start=lambda state: checkpoint.warm_start(state, pretrained, fields),
    )[0]


def align(job: Job, name: str, method: Method, row: Online, source: Any, dataset: Dataset) -> Any:
    """The State [S] that fine-tuning starts from: fresh, warm-started from `source`, or warm-started and aligned.

    Marvel's rows that start the same way share one stage, so ablations align once.
    """
    keys = job.keys(ALIGNMENT)

    def start(state: Any) -> Any:
        return checkpoint.warm_start(state, source, row.fields) if method.pretrained else state

    def initial() -> Any:
        return start(jax.jit(jax.vmap(row.alignment.init, in_axes=(0, None)))(keys, example_transition(job.env)))

    if not method.aligned:
        return initial()
    shared = method.learner == "marvel"
    aligned, _ = _train_offline(
        job,
        "alignment" if shared else f"alignment-{name}",
        row.alignment,
        ALIGNMENT,
        dataset,
        job.budget.alignment_updates,
        ALIGNMENT_CHUNKS,
        start=lambda state: start(state)._replace(multiplier=()) if shared else start(state),
    )
    return aligned._replace(multiplier=initial().multiplier) if shared else aligned


def _train_offline(
    job: Job,
    name: str,
    algorithm: Algorithm,
    tag: int,
    dataset: Dataset,
    updates: int,
    chunk_count: int,
    *,
    explore: bool | None = None,
    start: Any = lambda state: state,
) -> tuple[Any, Any]:
    """One stage of updates from the data set, the same for every seed; the last State [S] and what makes the first.

    `explore` is whether every chunk's policy acts by sampling in its evaluation; None: it is not played.
    """
    keys = job.keys(tag)
    step_count = max(1, updates // chunk_count)
    batch_size = job.budget.batch_size // (algorithm.batch.length if algorithm.batch.kind == "sequence" else 1)
    train = job.on_seeds(
        lambda state, key, dataset: training.train_offline(
            training.skip_non_finite(algorithm), state, dataset, key, step_count=step_count, batch_size=batch_size
        )
    )

    def initial() -> ArrayTree:
        return start(jax.jit(jax.vmap(algorithm.init, in_axes=(0, None)))(keys, example_transition(job.env)))

    def advance(state: ArrayTree, index: int) -> tuple[ArrayTree, dict[str, Any]]:
        state, metrics = train(state, keys, dataset)
        means = training.finite_means(metrics, first_update=index * step_count)
        record = {"updates": (index + 1) * step_count, **means}
        if explore is not None:
            record |= evaluation_record(job, algorithm, state, explore=explore)
        return state, record

    return job.run.stage(name, initial, advance, chunk_count, check=job.env.check), initial


def finetune(job: Job, name: str, method: Method, row: Online, start: Any, dataset: Dataset) -> Any:
    """Online fine-tuning (or learning from scratch) of every seed; the last State [S]."""
    env, budget, algorithm = job.env, job.budget, row.finetuning
    total = budget.finetune_steps if method.pretrained else budget.scratch_steps
    iteration_steps = budget.env_count * budget.rollout_length
    iteration_count = env.episode_length // budget.rollout_length
    chunk_steps = iteration_steps * iteration_count
    chunk_count = max(2, total // chunk_steps)
    warmup_chunks = max(1, min(budget.warmup_steps // chunk_steps, chunk_count - 1))
    replay = training.replay_for(algorithm.batch, chunk_count * chunk_steps, budget.env_count)
    keys = job.keys(FINETUNING)
    explore = explores(job.acting, method.learner == "diffcps")  # which stays a diffusion policy

    def loop(updates: int) -> Any:
        return job.on_seeds(
            lambda state, key, dataset: _summary(
                *training.train_online(
                    training.skip_non_finite(algorithm),
                    env,
                    state,
                    key,
                    iteration_count=iteration_count,
                    rollout_length=budget.rollout_length,
                    updates_per_iteration=updates,
                    batch_size=budget.batch_size,
                    replay=replay,
                    dataset=dataset,
                )
            )
        )

    updates = iteration_steps // budget.steps_per_update
    warm_up, learn = loop(0), loop(updates)

    def initial() -> training.OnlineState:
        begin = functools.partial(training.init_online, algorithm, env, env_count=budget.env_count, replay=replay)
        return jax.jit(jax.vmap(begin))(start, keys)

    def advance(state: Any, index: int) -> tuple[Any, dict[str, Any]]:
        state, (summary, metrics) = (warm_up if index < warmup_chunks else learn)(state, keys, dataset)
        made = (index - warmup_chunks) * iteration_count * updates
        record = {
            "env_steps": (index + 1) * chunk_steps,
            **{key: np.asarray(value) for key, value in summary.items()},
            **training.finite_means(metrics, first_update=made),
            "multiplier": np.asarray(_multiplier(state.learner)),
        }
        return state, record | evaluation_record(job, algorithm, state.learner, explore=explore)

    return job.run.stage(name, initial, advance, chunk_count, check=env.check).learner


def evaluation_record(job: Job, algorithm: Algorithm, state: Any, *, explore: bool = False) -> dict[str, np.ndarray]:
    """Return and cost [S] of the policy, deterministic unless `explore`: means over the budget's episodes.

    Episodes whose simulation diverged are not among them, but counted as "evaluation_diverged" [S].
    """
    act = algorithm.act
    if isinstance(act, functools.partial) and act.func is bc.act:  # the actor alone acts: rows share one program
        algorithm = _actor_alone(act.keywords["networks"].actor)
        state = bc.State(jnp.zeros(len(job.seeds), jnp.int32), state.actor)
    return jax.tree.map(np.asarray, _evaluator(job, algorithm, explore)(state, job.keys(EVALUATION)))


@functools.cache
def _actor_alone(actor: Any) -> Algorithm:
    return bc.make(networks=bc.Networks(actor))


@functools.cache
def _evaluator(job: Job, algorithm: Algorithm, explore: bool) -> Any:
    """Compiled once for each algorithm."""
    env, budget = job.env, job.budget

    def play(state: Any, key: Array) -> dict[str, Array]:
        episodes = training.evaluate(algorithm, env, state, key, budget.evaluation_episodes, explore=explore)
        mean = functools.partial(jnp.mean, where=episodes.finished)  # none finished: NaN
        means = {"return": mean(episodes.episode_return), "cost": mean(episodes.episode_cost)}
        return means | {"evaluation_diverged": jnp.sum(episodes.diverged)}

    return jax.jit(jax.vmap(play))


def _multiplier(learner: Any) -> Array:
    """lambda [S], of Marvel's State or of a safe half."""
    return (learner.multiplier if hasattr(learner, "multiplier") else learner.safety.multiplier).value


def _summary(state: training.OnlineState, outputs: tuple) -> tuple[training.OnlineState, tuple]:
    """What a chunk of fine-tuning reports of one seed: costs spent, training episodes; metrics of all updates."""
    metrics, episodes = outputs
    spent = jnp.sum(jnp.where(episodes.finished, episodes.episode_cost, 0.0))
    summary = {
        "finished_cost": spent,
        "unfinished_cost": jnp.sum(state.actors.episode.episode_cost),
        **episode_summary(episodes),
    }
    return state, (summary, jax.tree.map(jnp.ravel, metrics))
