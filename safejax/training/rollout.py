"""Acting in environments: one step of a batch of them, rollouts, and evaluation.

Shapes: B environments, T steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from safejax.types import EXTRAS, Algorithm, Array, Carry, Env, EnvState, EpisodeStats, Key, Transition

_ACT, _STEP, _RESET = 1, 2, 3  # tags that keep the uses of one key apart


class Actors(NamedTuple):
    """Environments in the middle of their episodes, and the policy's memory of them."""

    env: EnvState  # [B]
    carry: Carry  # [B] or ()
    episode: EpisodeStats  # [B] running sums of the current episodes
    env_step: Array  # [] int32, environment steps made by all B together


def start(algorithm: Algorithm, env: Env, state: Any, key: Key, env_count: int, *, stagger: bool = False) -> Actors:
    """Reset `env_count` environments.

    With `stagger` their clocks start spread over the episode length, so that time limits do not all fall on one
    step and a multiplier hears of finished episodes often; the first, shortened episodes are never `finished`.
    """
    keys = jax.random.split(jax.random.fold_in(key, _RESET), env_count)
    env_state = jax.vmap(env.reset)(keys)
    if stagger:
        offsets = jnp.arange(env_count, dtype=jnp.int32) * env.episode_length // env_count
        env_state = env_state._replace(steps=offsets)
    return Actors(
        env=env_state,
        carry=algorithm.initial_carry(state, env_count),
        episode=no_episodes(env_count),
        env_step=jnp.zeros((), jnp.int32),
    )


def rollout(
    algorithm: Algorithm, env: Env, state: Any, actors: Actors, key: Key, length: int, *, explore: bool
) -> tuple[Actors, Transition, EpisodeStats]:
    """Act `length` steps in every environment.

    Keys fold in the environment step, so a rollout of T equals two of T / 2 with the same key.

    Returns:
      The environments afterwards; transitions [T, B]; statistics [T, B], of which only the rows where an episode
      ended are `finished`.
    """

    def step(actors: Actors, _: None) -> tuple[Actors, tuple[Transition, EpisodeStats]]:
        actors, transition, episode = act_and_step(algorithm, env, state, actors, key, explore=explore)
        return actors, (transition, episode)

    actors, (transitions, episodes) = jax.lax.scan(step, actors, None, length)
    return actors, transitions, episodes


def act_and_step(
    algorithm: Algorithm, env: Env, state: Any, actors: Actors, key: Key, *, explore: bool
) -> tuple[Actors, Transition, EpisodeStats]:
    """One step of every environment: act, step, account."""
    step_keys = jax.random.split(_at(key, actors, _STEP), actors.env.reward.shape[0])
    decision = decide(algorithm, state, actors, key, explore=explore)
    after = jax.vmap(env.step)(actors.env, decision.action, step_keys)
    return account(algorithm, state, actors, decision, after)


class Decision(NamedTuple):
    """What `Algorithm.act` returned."""

    action: Array  # [B, A], or int32 [B]
    carry: Carry  # [B] or ()
    extras: dict[str, Array]  # [B]


def decide(algorithm: Algorithm, state: Any, actors: Actors, key: Key, *, explore: bool) -> Decision:
    """What the policy does next in every environment.

    Raises:
      ValueError: if `act` returned extras of unknown names.
    """
    act_key = _at(key, actors, _ACT)
    decision = Decision(*algorithm.act(state, actors.env.observation, act_key, actors.carry, explore=explore))
    if unknown := set(decision.extras) - EXTRAS:
        raise ValueError(f"act returned extras {sorted(unknown)}, expected names among {sorted(EXTRAS)}")
    return decision


def account(
    algorithm: Algorithm, state: Any, actors: Actors, decision: Decision, after: EnvState
) -> tuple[Actors, Transition, EpisodeStats]:
    """What a step amounts to: the only place where a `Transition` is made from an `EnvState`.

    Where the simulation diverged the row's reward is NaN, which marks it as no transition; its episode is forgotten.
    """
    env_count = actors.env.reward.shape[0]
    last, diverged = after.terminated | after.truncated, jnp.broadcast_to(after.diverged, (env_count,))
    transition = Transition(
        observation=actors.env.observation,
        action=decision.action,
        reward=jnp.where(after.diverged, jnp.nan, after.reward),
        cost=after.cost,
        discount=1.0 - after.terminated.astype(jnp.float32),
        last=last.astype(jnp.float32),
        next_observation=after.final_observation,
        extras=decision.extras,
    )
    carry = algorithm.advance(decision.carry, transition)
    carry = where_rows(last, algorithm.initial_carry(state, env_count), carry)
    length = actors.episode.length + 1
    episode = EpisodeStats(
        actors.episode.episode_return + after.reward,
        actors.episode.episode_cost + after.cost,
        length,
        finished=last & ~diverged & (length == actors.env.steps + 1),  # seen from its first step
        diverged=diverged,
    )
    no = jnp.zeros_like(last)
    running = where_rows(last, no_episodes(env_count), episode._replace(finished=no, diverged=no))
    return Actors(after, carry, running, actors.env_step + env_count), transition, episode


def evaluate(
    algorithm: Algorithm, env: Env, state: Any, key: Key, episode_count: int, *, explore: bool = False
) -> EpisodeStats:
    """Play `episode_count` episodes side by side, deterministically unless `explore`.

    Returns:
      [episode_count] statistics of the first episode of every environment; where it diverged it is not `finished`,
      and its sums are NaN.
    """
    actors = start(algorithm, env, state, key, episode_count)

    def step(carry: tuple[Actors, EpisodeStats], _: None) -> tuple[tuple[Actors, EpisodeStats], None]:
        actors, first = carry
        actors, _transition, episode = act_and_step(algorithm, env, state, actors, key, explore=explore)
        return (actors, where_rows(ended_first(episode, first), episode, first)), None

    (_, first), _ = jax.lax.scan(step, (actors, no_episodes(episode_count)), None, env.episode_length)
    lost = jnp.where(first.diverged, jnp.nan, 0.0)
    return first._replace(episode_return=first.episode_return + lost, episode_cost=first.episode_cost + lost)


def ended_first(episode: EpisodeStats, first: EpisodeStats) -> Array:
    """[B] bool: where an environment's first episode ends on this step, and `first` does not hold it yet."""
    return (episode.finished | episode.diverged) & ~(first.finished | first.diverged)


def no_episodes(count: int) -> EpisodeStats:
    """Empty sums [count]."""
    zeros, no = jnp.zeros((count,), jnp.float32), jnp.zeros((count,), bool)
    return EpisodeStats(zeros, zeros, jnp.zeros((count,), jnp.int32), no, no)


def where_rows(rows: Array, chosen: Any, otherwise: Any) -> Any:
    """Row-wise choice between two trees with a leading axis [B]."""

    def pick(yes: Array, no: Array) -> Array:
        return jnp.where(rows.reshape(rows.shape + (1,) * (jnp.ndim(yes) - 1)), yes, no)

    return jax.tree.map(pick, chosen, otherwise)


def _at(key: Key, actors: Actors, tag: int) -> Key:
    """The key of one use of the coming step."""
    return jax.random.fold_in(jax.random.fold_in(key, actors.env_step), tag)
