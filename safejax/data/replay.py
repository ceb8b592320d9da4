"""Replay over flashbax, a ring of transitions for each environment; mixing offline with online batches.

Everything is pure: it runs under jit, scan and vmap over seeds, and a state may be donated. Shape letters: B
environments or batch, T time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flashbax.buffers import trajectory_buffer

from safejax.types import Array, Transition, check_range


class Replay(NamedTuple):
    """Pure functions over a replay state, a pytree of arrays."""

    init: Callable[..., Any]  # (example: Transition without leading axes) -> state
    add: Callable[..., Any]  # (state, transitions [B, T]) -> state; the oldest are overwritten
    sample: Callable[..., Transition]  # (state, key, batch_size) -> [B], or [B, T] with sequence_length > 1
    size: Callable[..., Array]  # (state) -> [] int32, transitions stored


def make_replay(capacity: int, env_count: int, *, sequence_length: int = 1) -> Replay:
    """A replay buffer that draws uniformly with replacement from what it holds.

    Sampling before `sequence_length * env_count` transitions are stored gives zeros: fill first, ask `size`.
    Windows of a sequence are consecutive in time within one environment and may span episode ends.

    Args:
      capacity: transitions kept over all environments; each keeps capacity // env_count.
      env_count: B of the transitions that `add` gets.
      sequence_length: T of the sampled windows; 1 gives single transitions [B].

    Raises:
      ValueError: capacity that does not hold `sequence_length` steps of every environment; from `add`, while
        tracing, transitions of other axes or longer than the ring, or of other names in extras.
    """
    check_range("env_count", env_count, 1)
    check_range("sequence_length", sequence_length, 1)
    check_range("capacity", capacity, sequence_length * env_count)
    ring_length = capacity // env_count

    def init(example: Transition) -> Any:
        return trajectory_buffer.init(example, env_count, ring_length)

    def add(state: Any, transitions: Transition) -> Any:
        expected, given = jax.tree.structure(state.experience), jax.tree.structure(transitions)
        if expected != given:
            raise ValueError(f"replay: transitions of structure {given}, expected {expected} as in init")
        axes = transitions.reward.shape
        if len(axes) != 2 or axes[0] != env_count or axes[1] > ring_length:
            raise ValueError(f"replay: transitions {list(axes)}, expected [{env_count}, T <= {ring_length}]")
        return trajectory_buffer.add(state, transitions)

    def sample(state: Any, key: Any, batch_size: int) -> Transition:
        rows = trajectory_buffer.sample(state, key, batch_size, sequence_length, period=1).experience
        return rows if sequence_length > 1 else jax.tree.map(lambda leaf: leaf[:, 0], rows)

    def size(state: Any) -> Array:
        return jnp.where(state.is_full, ring_length, state.current_index).astype(jnp.int32) * env_count

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
