"""The phases of `offline_to_online.py`: behaviour data, pre-training, alignment, fine-tuning, evaluation.

Every phase is a stage of a `Run`: chunks of one jitted call, saved after each. Shapes: S seeds, K chunks.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bridges import Offline, Online, extraction_phase
from presets import Budget, Method, behavior_config, plain

import safejax
from safejax import checkpoint, training
from safejax.algorithms import bc, ppo_lag
from safejax.data import Dataset, check_open_actions, check_widths, clip_actions, read_dsrl, write_dsrl
from safejax.data.provenance import check_provenance, provenance
from safejax.envs.pixels import renderer
from safejax.runs import Run
from safejax.types import Algorithm, Array, ArrayTree, Env, Transition, example_transition

_BEHAVIOR, _OFFLINE, _ALIGNMENT, _FINETUNING, _EVALUATION, _EXTRACTION = range(6)  # tags of the phases' keys
BEHAVIOR_CHUNKS, OFFLINE_CHUNKS, EXTRACTION_CHUNKS, ALIGNMENT_CHUNKS = 20, 20, 5, 5


@dataclass(frozen=True)
class Job:
    """What every phase needs to know."""

    run: Run
    env: Env
    engine: str
    budget: Budget
    offline: str  # pre-training method
    source: Offline  # the same, bound
    limit: float  # cost units per episode
    seeds: tuple[int, ...]
    sharding: Any = None  # of the leading seed axis; None on one device

    def keys(self, phase: int) -> Array:
        """One key per seed [S] for a phase; phases share none."""
        keys = jnp.stack([jax.random.fold_in(jax.random.key(seed), phase) for seed in self.seeds])
        return self.place(keys)

    def place(self, tree: ArrayTree) -> ArrayTree:
        """Spread a tree with a leading seed axis over the devices."""
        return tree if self.sharding is None else jax.device_put(tree, self.sharding)

    def on_seeds(self, function: Any) -> Any:
        """jit(vmap) over states and keys [S]; further arguments are shared; the states are donated."""

        def vmapped(state: ArrayTree, keys: Array, *shared: Any) -> Any:
            return jax.vmap(function, in_axes=(0, 0, *(None,) * len(shared)))(state, keys, *shared)

        jitted = jax.jit(vmapped, donate_argnums=0)
        return lambda state, keys, *shared: jitted(self.place(state), keys, *shared)


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
        "collector": plain(config),
        "safejax": safejax.__version__,
    }
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
    path = cache / f"{env.name}-{digest}.hdf5"
    if path.exists():
        return path
    learners = budget.behavior_seeds
    steps_per_iteration = learners * budget.behavior_env_count * env.episode_length
    iteration_count = max(2, budget.behavior_steps // steps_per_iteration)
    limits = training.limit_schedule(iteration_count, 5.0, float(env.episode_length))
    chunks = np.array_split(limits, min(BEHAVIOR_CHUNKS, iteration_count))
    base = jax.random.fold_in(jax.random.key(seed), _BEHAVIOR)
    keys = jax.vmap(functools.partial(jax.random.fold_in, base))(jnp.arange(learners))

    def make_algorithm(limit: Any) -> Algorithm:
        return ppo_lag.make(replace(config, cost_limit=limit), action_size=env.action_size)

    def begin(key: Array) -> training.OnlineState:
        algorithm = make_algorithm(5.0)
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
        return state, {"limit": float(chunks[index][-1]), **_episode_record(episodes)}

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


def inside(dataset: Dataset, source: Offline, bound: float, path: Path) -> Dataset:
    """The rows that pre-training sees: actions clipped to `bound` where a squashed Gaussian's likelihood is fitted.

    Raises:
      DatasetError: actions are at -1 or 1 all the same.
      ValueError: `bound` is not in (0, 1].
    """
    if source.fits_likelihood:
        dataset = clip_actions(dataset, bound)
        check_open_actions(dataset, str(path))
    return dataset


def pretrain(job: Job, dataset: Dataset) -> Any:
    """Offline pre-training of every seed: the State restored from its Orbax checkpoint [S]."""
    source, updates = job.source, job.budget.offline_updates
    played = "sampled" if source.is_diffusion else "deterministic"
    state, initial = _train_offline(
        job, "offline", source.algorithm, _OFFLINE, dataset, updates, OFFLINE_CHUNKS, played=played
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
        _EXTRACTION,
        dataset,
        updates,
        EXTRACTION_CHUNKS,
        played="deterministic",
        start=lambda state: checkpoint.warm_start(state, pretrained, fields),
    )[0]


def align(job: Job, name: str, method: Method, row: Online, source: Any, dataset: Dataset) -> Any:
    """The State [S] that fine-tuning starts from: fresh, warm-started from `source`, or warm-started and aligned.

    Marvel's rows that start the same way share one stage, so ablations align once.
    """
    keys = job.keys(_ALIGNMENT)

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
        _ALIGNMENT,
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
    played: str | None = None,
    start: Any = lambda state: state,
) -> tuple[Any, Any]:
    """One stage of updates from the data set, the same for every seed; the last State [S] and what makes the first.

    `played` is how every chunk's policy acts in its evaluation, "deterministic" or "sampled"; None: it is not played.
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
        if played:
            record |= evaluation_record(job, algorithm, state, explore=played == "sampled")
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
    keys = job.keys(_FINETUNING)

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
        # DiffCPS online stays a diffusion policy
        return state, record | evaluation_record(job, algorithm, state.learner, explore=method.learner == "diffcps")

    return job.run.stage(name, initial, advance, chunk_count, check=env.check).learner


def evaluation_record(job: Job, algorithm: Algorithm, state: Any, *, explore: bool = False) -> dict[str, np.ndarray]:
    """Return and cost [S] of the policy, deterministic unless `explore`: means over the budget's episodes.

    Episodes whose simulation diverged are not among them, but counted as "evaluation_diverged" [S].
    """
    act = algorithm.act
    if isinstance(act, functools.partial) and act.func is bc.act:  # the actor alone acts: rows share one program
        algorithm = _actor_alone(act.keywords["networks"].actor)
        state = bc.State(jnp.zeros(len(job.seeds), jnp.int32), state.actor)
    return jax.tree.map(np.asarray, _evaluator(job, algorithm, explore)(state, job.keys(_EVALUATION)))


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
        **_episode_summary(episodes),
    }
    return state, (summary, jax.tree.map(jnp.ravel, metrics))


def _episode_summary(episodes: Any) -> dict[str, Array]:
    """Mean return and cost of the finished episodes, and how many diverged."""
    count = jnp.maximum(jnp.sum(episodes.finished), 1)
    return {
        "training_return": jnp.sum(jnp.where(episodes.finished, episodes.episode_return, 0.0)) / count,
        "training_cost": jnp.sum(jnp.where(episodes.finished, episodes.episode_cost, 0.0)) / count,
        "diverged": jnp.sum(episodes.diverged),
    }


def _episode_record(episodes: Any) -> dict[str, Any]:
    """Mean return and cost of each learner's finished episodes, and how many diverged [S]."""
    found = jax.vmap(_episode_summary)(episodes)
    return {name.removeprefix("training_"): np.asarray(value) for name, value in found.items()}
