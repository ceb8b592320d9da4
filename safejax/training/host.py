"""Online training in worlds that step on the host: the loop of `train_online`, with its environment outside JAX.

Acting and learning are the compiled halves that `rollout` and `train_iteration` are made of, so an algorithm cannot
tell the difference. The worlds keep their own state: a run cannot be resumed in the middle of an episode.

Shapes: B environments, T rollout length, I iterations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from safejax.data.dataset import Dataset
from safejax.data.replay import Replay
from safejax.training.online import ENVIRONMENT, OnlineState, around, learn
from safejax.training.rollout import Actors, Decision, account, decide, ended_first, no_episodes, where_rows
from safejax.types import Algorithm, Array, EnvState, EpisodeStats, HostEnv, Key, Metrics, Transition


class HostState(NamedTuple):
    """What `train_online_host` carries beside the environments themselves."""

    online: OnlineState
    waiting: tuple[Any, ...] = ()  # steps of which some rows are still to be handed out, see `host_rollout`


def init_online_host(algorithm: Algorithm, env: HostEnv, learner: Any, key: Key, *, replay: Replay | None) -> HostState:
    """Reset environments and an empty replay around a learner; `replay_for` takes `env.env_count`."""
    return HostState(around(algorithm, env, learner, _start(algorithm, env, learner), key, replay))


def train_online_host(
    algorithm: Algorithm,
    env: HostEnv,
    state: HostState,
    key: Key,
    *,
    iteration_count: int,
    rollout_length: int,
    updates_per_iteration: int,
    batch_size: int,
    replay: Replay | None,
    dataset: Dataset | None = None,
    place: Callable[[Transition], Transition] = lambda batch: batch,
) -> tuple[HostState, tuple[Metrics, EpisodeStats]]:
    """`train_online` for a `HostEnv`; not to be jitted, it compiles its parts. `state` is donated: use what returns.

    Returns:
      The state; metrics stacked [I, updates] (fresh: [I, 1]); episode statistics [I, T, B].
    """
    env_key = jax.random.fold_in(key, ENVIRONMENT)
    rows = []
    online, waiting = state
    for _ in range(iteration_count):
        actors, waiting, transitions, episodes = host_rollout(
            algorithm, env, online.learner, online.actors, waiting, env_key, rollout_length, explore=True
        )
        if algorithm.batch.kind == "fresh":
            waiting = ()  # the next batch must be of the next policy
        online, metrics = _learn(
            algorithm,
            online._replace(actors=()),
            jax.tree.map(lambda leaf: np.swapaxes(leaf, 0, 1), transitions),
            episodes,
            key,
            updates_per_iteration=updates_per_iteration,
            batch_size=batch_size,
            replay=replay,
            dataset=dataset,
            place=place,
        )
        online = online._replace(actors=actors)
        rows.append((metrics, episodes))
    return HostState(online, waiting), jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)


def host_rollout(
    algorithm: Algorithm,
    env: HostEnv,
    state: Any,
    actors: Actors,
    waiting: tuple[Any, ...],
    key: Key,
    length: int,
    *,
    explore: bool,
) -> tuple[Actors, tuple[Any, ...], Transition, EpisodeStats]:
    """Act until every environment has made `length` steps.

    Rows that are not real are left out, so that environments get ahead of one another where they reset on a step of
    their own. What is ahead waits for the next call, environment by environment in its order of time.

    Returns:
      The environments afterwards; what waits; transitions [T, B] and statistics [T, B], NumPy.
    """
    steps = list(waiting)
    while not steps or np.sum([unused for _, unused in steps], axis=0).min() < length:
        actors, *step = _step(algorithm, env, state, actors, key, explore)
        steps.append(step)
    unused = np.stack([unused for _, unused in steps])
    earliest = np.argsort(~unused, axis=0, kind="stable")[:length], np.arange(env.env_count)
    transitions, episodes = jax.tree.map(lambda *leaves: np.stack(leaves)[earliest], *[rows for rows, _ in steps])
    unused[earliest] = False
    waiting = tuple((rows, left) for (rows, _), left in zip(steps, unused, strict=True) if left.any())
    return actors, waiting, transitions, episodes


def evaluate_host(algorithm: Algorithm, env: HostEnv, state: Any, key: Key, *, explore: bool = False) -> EpisodeStats:
    """Reset `env` and play one episode in each of its environments, deterministically unless `explore`.

    Returns:
      [B] statistics of the first episode of every environment, NumPy.
    """
    actors = _start(algorithm, env, state)
    first = jax.device_get(no_episodes(env.env_count))
    while not (first.finished | first.diverged).all():
        actors, (_, episode), _ = _step(algorithm, env, state, actors, key, explore)
        first = jax.tree.map(functools.partial(np.where, ended_first(episode, first)), episode, first)
    return first


def _start(algorithm: Algorithm, env: HostEnv, state: Any) -> Actors:
    return Actors(
        env=env.reset(),
        carry=algorithm.initial_carry(state, env.env_count),
        episode=no_episodes(env.env_count),
        env_step=jnp.zeros((), jnp.int32),
    )


def _step(
    algorithm: Algorithm, env: HostEnv, state: Any, actors: Actors, key: Key, explore: bool
) -> tuple[Actors, tuple[Transition, EpisodeStats], np.ndarray]:
    """The environments after one step; its rows [B], and which of them are real."""
    decision = _decide(algorithm, state, actors, key, explore=explore)
    after, real = env.step(actors.env, np.asarray(decision.action))
    actors, *rows = _account(algorithm, state, actors, decision, after, real)
    return actors, jax.device_get(tuple(rows)), np.asarray(real)


_decide = jax.jit(decide, static_argnums=0, static_argnames="explore")


@functools.partial(jax.jit, static_argnums=0)
def _account(
    algorithm: Algorithm, state: Any, actors: Actors, decision: Decision, after: EnvState, real: Array
) -> tuple[Actors, Transition, EpisodeStats]:
    """`account`, except that a row which is not real leaves its episode's beginning as it was."""
    new, transition, episode = account(algorithm, state, actors, decision, after)
    carry, running = where_rows(real, (new.carry, new.episode), (actors.carry, actors.episode))
    return new._replace(carry=carry, episode=running), transition, episode


_learn = jax.jit(
    learn,
    static_argnums=0,
    static_argnames=("updates_per_iteration", "batch_size", "replay", "place"),
    donate_argnums=1,
)
