"""Online training: collect, add, adapt, update; the same loop for UTD 1, UTD 0.02 and PPO.

Shapes: B environments, T rollout length, I iterations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from safejax.data.dataset import Dataset, sample, sample_sequences
from safejax.data.replay import Replay, make_replay, mix
from safejax.training.diverged import real_rows
from safejax.training.rollout import Actors, decide, rollout, start
from safejax.types import (
    Algorithm,
    ArrayTree,
    BatchSpec,
    Env,
    EpisodeStats,
    HostEnv,
    Key,
    Metrics,
    Transition,
    example_transition,
)

ENVIRONMENT, _UPDATE, _SAMPLE, _OFFLINE = 21, 22, 23, 24  # tags that keep the uses of one key apart


class OnlineState(NamedTuple):
    """Everything that online training carries, and a checkpoint must hold."""

    learner: Any  # the algorithm's State
    actors: Actors
    replay: ArrayTree  # () for on-policy methods


def replay_for(spec: BatchSpec, capacity: int, env_count: int) -> Replay | None:
    """The replay buffer that `spec` needs; None for on-policy methods. `capacity` counts transitions."""
    if spec.kind == "fresh":
        return None
    return make_replay(capacity, env_count, sequence_length=spec.length, successors=spec.successors)


def init_online(
    algorithm: Algorithm,
    env: Env,
    learner: Any,
    key: Key,
    *,
    env_count: int,
    replay: Replay | None,
    stagger: bool = False,
) -> OnlineState:
    """Fresh environments (`stagger`: see `start`) and an empty replay around a learner."""
    return around(algorithm, env, learner, start(algorithm, env, learner, key, env_count, stagger=stagger), key, replay)


def around(
    algorithm: Algorithm, env: Env | HostEnv, learner: Any, actors: Actors, key: Key, replay: Replay | None
) -> OnlineState:
    """An empty replay, of the rows that `algorithm` makes of `env`, around a learner and its environments."""
    example = example_transition(env)
    if replay is not None:
        extras = jax.eval_shape(lambda: decide(algorithm, learner, actors, key, explore=True)).extras
        example = example._replace(
            extras={name: jnp.zeros(spec.shape[1:], spec.dtype) for name, spec in extras.items()}
        )
    state = OnlineState(learner, actors, replay.init(example) if replay is not None else ())
    # A fresh state may hold one buffer twice, or the caller's; a donated one must not.
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), state)


def train_online(
    algorithm: Algorithm,
    env: Env,
    state: OnlineState,
    key: Key,
    *,
    iteration_count: int,
    rollout_length: int,
    updates_per_iteration: int,
    batch_size: int,
    replay: Replay | None,
    dataset: Dataset | None = None,
    place: Callable[[Transition], Transition] = lambda batch: batch,
) -> tuple[OnlineState, tuple[Metrics, EpisodeStats]]:
    """Scan `iteration_count` times `train_iteration`, whose arguments these are.

    Keys fold in the environment step and the gradient step, so one call of 2 I iterations equals two of I.

    Returns:
      The state; metrics stacked [I, updates] (fresh: [I, 1]); episode statistics [I, T, B].
    """

    def iteration(state: OnlineState, _: None) -> tuple[OnlineState, tuple[Metrics, EpisodeStats]]:
        state, metrics, episodes, _transitions = train_iteration(
            algorithm,
            env,
            state,
            key,
            rollout_length=rollout_length,
            updates_per_iteration=updates_per_iteration,
            batch_size=batch_size,
            replay=replay,
            dataset=dataset,
            place=place,
        )
        return state, (metrics, episodes)

    return jax.lax.scan(iteration, state, None, iteration_count)


def train_iteration(
    algorithm: Algorithm,
    env: Env,
    state: OnlineState,
    key: Key,
    *,
    rollout_length: int,
    updates_per_iteration: int,
    batch_size: int,
    replay: Replay | None,
    dataset: Dataset | None = None,
    place: Callable[[Transition], Transition] = lambda batch: batch,
) -> tuple[OnlineState, Metrics, EpisodeStats, Transition]:
    """Collect T steps in B environments, add them to the replay, adapt once, update.

    With `updates_per_iteration=0` it is a warm-up: it fills the replay and ticks no multiplier.

    Args:
      algorithm: its `batch` says what `update` eats, and which share of each batch is drawn from `dataset`.
      env: unbatched; B comes from `state`.
      state: from `init_online`.
      key: one for the whole run.
      rollout_length: T, steps that every environment makes.
      updates_per_iteration: gradient steps; on-policy methods take one update, on the rollout.
      batch_size: rows of each batch.
      replay: from `replay_for`.
      dataset: offline data for batches that mix it in.
      place: applied to every batch, e.g. a `jax.sharding.reshard` over devices.

    Returns:
      The state, metrics stacked [updates] (fresh: [1]), episode statistics [T, B] and the transitions [B, T], those
      of simulations that diverged with reward NaN.

    Raises:
      ValueError: if a method that mixes offline data in gets no data set.
    """
    env_key = jax.random.fold_in(key, ENVIRONMENT)
    actors, transitions, episodes = rollout(
        algorithm, env, state.learner, state.actors, env_key, rollout_length, explore=True
    )
    transitions = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), transitions)
    state, metrics = learn(
        algorithm,
        state._replace(actors=actors),
        transitions,
        episodes,
        key,
        updates_per_iteration=updates_per_iteration,
        batch_size=batch_size,
        replay=replay,
        dataset=dataset,
        place=place,
    )
    return state, metrics, episodes, transitions


def learn(
    algorithm: Algorithm,
    state: OnlineState,
    transitions: Transition,
    episodes: EpisodeStats,
    key: Key,
    *,
    updates_per_iteration: int,
    batch_size: int,
    replay: Replay | None,
    dataset: Dataset | None = None,
    place: Callable[[Transition], Transition] = lambda batch: batch,
) -> tuple[OnlineState, Metrics]:
    """The half of `train_iteration` after its rollout: add `transitions` [B, T], adapt once, update.

    Rows of simulations that diverged do not enter the replay; in a rollout that is learned from, see `real_rows`.

    Raises:
      ValueError: if a method that mixes offline data in gets no data set.
    """
    spec = algorithm.batch
    if spec.mixes and dataset is None and updates_per_iteration:
        raise ValueError(f"offline_fraction is {spec.offline_fraction}, expected a dataset= to draw from")
    learner, replay_state, metrics = state.learner, state.replay, {}
    if replay is not None:
        replay_state = replay.add(replay_state, transitions)
    if updates_per_iteration:
        learner = algorithm.adapt(learner, episodes)

    def update(learner: Any, _: None) -> tuple[Any, Metrics]:
        step_key = jax.random.fold_in(key, learner.step)
        if replay is None:
            batch = real_rows(transitions)
        else:
            sample_key = jax.random.fold_in(step_key, _SAMPLE)
            batch = _draw(spec, replay, replay_state, dataset, sample_key, batch_size)
        return algorithm.update(learner, place(batch), jax.random.fold_in(step_key, _UPDATE))

    if updates_per_iteration:
        update_count = updates_per_iteration if replay is not None else 1
        learner, metrics = jax.lax.scan(update, learner, None, update_count)
    return state._replace(learner=learner, replay=replay_state), metrics


def _draw(
    spec: BatchSpec,
    replay: Replay,
    replay_state: ArrayTree,
    dataset: Dataset | None,
    key: Key,
    batch_size: int,
) -> Transition:
    if dataset is None or not spec.mixes:
        return replay.sample(replay_state, key, batch_size)
    offline_size, offline_key = round(batch_size * spec.offline_fraction), jax.random.fold_in(key, _OFFLINE)
    if spec.kind == "sequence":
        offline = sample_sequences(dataset, offline_key, offline_size, spec.length, successors=spec.successors)
    else:
        offline = sample(dataset, offline_key, offline_size)
    return mix(offline, replay.sample(replay_state, key, batch_size - offline_size))
