"""Replay, a ring of transitions for each environment; mixing offline with online batches.

Everything is pure: it runs under jit, scan and vmap over seeds, and a state may be donated. Rows whose reward is NaN
are of simulations that diverged: they never enter, and as every environment has a ring of its own, that leaves no
gap. Where none did, batches are bit for bit those of flashbax's trajectory buffer. Shape letters: B environments or
batch, T time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from safejax.types import Array, Key, Transition, check_range


class Rings(NamedTuple):
    """What is stored: B rings of L rows."""

    experience: Transition  # [B, L]
    following: Array  # [B] int32, where the next row goes
    stored: Array  # [B] int32, rows held


class Replay(NamedTuple):
    """Pure functions over a replay state, a pytree of arrays."""

    init: Callable[..., Any]  # (example: Transition without leading axes) -> state
    add: Callable[..., Any]  # (state, transitions [B, T]) -> state; the oldest are overwritten, diverged rows left out
    sample: Callable[..., Transition]  # (state, key, batch_size) -> [B], or [B, T] with sequence_length > 1
    size: Callable[..., Array]  # (state) -> [] int32, transitions stored


def make_replay(capacity: int, env_count: int, *, sequence_length: int = 1, successors: bool = True) -> Replay:
    """A replay buffer that draws with replacement from what it holds: an environment, then one of its windows.

    Sampling before any environment has `sequence_length` transitions gives zeros: fill first, ask `size`. Windows of a
    sequence are consecutive in time within one environment and may span episode ends. `last` becomes 1 on the row
    before one that was left out, which cut its episode.

    Args:
      capacity: transitions kept over all environments; each keeps capacity // env_count.
      env_count: B of the transitions that `add` gets.
      sequence_length: T of the sampled windows; 1 gives single transitions [B].
      successors: whether next_observation is kept, which is half the memory; else it becomes ().

    Raises:
      ValueError: capacity that does not hold `sequence_length` steps of every environment; from `add`, while
        tracing, transitions of other axes or longer than the ring, or of other names in extras.
    """
    check_range("env_count", env_count, 1)
    check_range("sequence_length", sequence_length, 1)
    check_range("capacity", capacity, sequence_length * env_count)
    ring_length = capacity // env_count

    environments = jnp.arange(env_count)[:, None]

    def kept(transitions: Transition) -> Transition:
        return transitions if successors else transitions._replace(next_observation=())

    def init(example: Transition) -> Rings:
        example = kept(example)
        experience = jax.tree.map(lambda leaf: jnp.zeros((env_count, ring_length, *leaf.shape), leaf.dtype), example)
        return Rings(experience, jnp.zeros((env_count,), jnp.int32), jnp.zeros((env_count,), jnp.int32))

    def add(state: Rings, transitions: Transition) -> Rings:
        transitions = kept(transitions)
        expected, given = jax.tree.structure(state.experience), jax.tree.structure(transitions)
        if expected != given:
            raise ValueError(f"replay: transitions of structure {given}, expected {expected} as in init")
        axes = transitions.reward.shape
        if len(axes) != 2 or axes[0] != env_count or axes[1] > ring_length:
            raise ValueError(f"replay: transitions {list(axes)}, expected [{env_count}, T <= {ring_length}]")
        real = ~jnp.isnan(transitions.reward)
        before = jnp.cumsum(real, axis=1, dtype=jnp.int32) - real  # [B, T] rows that enter ahead of each
        place = (state.following[:, None] + before) % ring_length
        entering = jnp.where(real, place, ring_length)  # a place outside is dropped
        experience = jax.tree.map(
            lambda ring, rows: ring.at[environments, entering].set(rows, mode="drop"), state.experience, transitions
        )
        cutting = ~real & (state.stored[:, None] + before > 0)
        cut = jnp.where(cutting, (place - 1) % ring_length, ring_length)
        experience = experience._replace(last=experience.last.at[environments, cut].set(1.0, mode="drop"))
        count = jnp.sum(real, axis=1, dtype=jnp.int32)
        stored = jnp.minimum(state.stored + count, ring_length)
        return Rings(experience, (state.following + count) % ring_length, stored)

    def sample(state: Rings, key: Key, batch_size: int) -> Transition:
        key, start_key = jax.random.split(key)
        _, environment_key = jax.random.split(key)
        windows = jnp.maximum(state.stored - sequence_length + 1, 0)
        chosen = jax.random.randint(environment_key, (batch_size,), 0, env_count)
        chosen = jnp.where(windows[chosen] > 0, chosen, jnp.argmax(windows))
        start = jax.random.randint(start_key, (batch_size,), 0, windows[chosen])
        oldest = (state.following - state.stored)[chosen]
        place = ((oldest + start)[:, None] + jnp.arange(sequence_length)) % ring_length
        rows = jax.tree.map(lambda ring: ring[chosen[:, None], place], state.experience)
        return rows if sequence_length > 1 else jax.tree.map(lambda leaf: leaf[:, 0], rows)

    def size(state: Rings) -> Array:
        return jnp.sum(state.stored)

    return Replay(init, add, sample, size)


def mix(offline: Transition, online: Transition) -> Transition:
    """One batch [B1 + B2] of offline transitions [B1], first, and online transitions [B2], or of windows [B1, T].

    It keeps the extras that both carry: what the acting policy noted of its own steps, no data set can have.

    Raises:
      ValueError: if the observations differ in structure.
    """
    both = offline.extras.keys() & online.extras.keys()
    offline, online = (
        part._replace(extras={name: value for name, value in part.extras.items() if name in both})
        for part in (offline, online)
    )
    if jax.tree.structure(offline) != jax.tree.structure(online):
        raise ValueError(
            f"mix: offline {jax.tree.structure(offline)}, online {jax.tree.structure(online)}; "
            "give both the same observations"
        )
    return jax.tree.map(lambda first, second: jnp.concatenate([first, second]), offline, online)
