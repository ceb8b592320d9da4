"""Offline training on data larger than memory: slab by slab, the next one read while the device works."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from safejax.data.slabs import Slabs, read_slab
from safejax.training.offline import train_offline
from safejax.types import Algorithm, Key, Metrics


def train_offline_slabs(
    algorithm: Algorithm,
    state: Any,
    slabs: Slabs,
    key: Key,
    *,
    slab_count: int,
    updates_per_slab: int,
    batch_size: int,
) -> tuple[Any, Metrics]:
    """`train_offline` on one slab after another; it jits that loop itself and compiles it once.

    Which slab is next follows from `state.step`, and keys fold in `state.step`, so 2 x 50 slabs equal 100 with the
    same key. How drawing from slabs differs from drawing from all rows: see `safejax.data.slabs`.

    Args:
      algorithm: its `batch` says whether transitions [B] or sequences [B, T] are drawn.
      state: the algorithm's State, or of S seeds with leading axes [S]; donated.
      slabs: from `open_slabs`.
      key: one for the whole run, or [S]. Seeds share the order of slabs, which the first of them draws.
      slab_count: slabs to train on; after those of an epoch the next epoch begins.
      updates_per_slab: gradient steps on each slab.
      batch_size: B, rows of each batch.

    Returns:
      The state and its metrics, stacked [slab_count * updates_per_slab], or [S, slab_count * updates_per_slab].

    Raises:
      ValueError: the state stands within a slab: its step is no multiple of `updates_per_slab`; or as `train_offline`.
    """
    step = int(np.ravel(state.step)[0])
    if step % updates_per_slab:
        raise ValueError(f"state.step is {step}, expected a multiple of updates_per_slab, which is {updates_per_slab}")
    first = step // updates_per_slab
    order_key = key.reshape(-1)[0]
    train = _compiled(algorithm, updates_per_slab, batch_size, key.ndim > 0)
    slab = read_slab(slabs, order_key, first)
    parts = []
    for index in range(first + 1, first + 1 + slab_count):
        state, metrics = train(state, slab, key)  # returns at once
        if index < first + slab_count:
            slab = read_slab(slabs, order_key, index)
        parts.append(jax.block_until_ready(metrics))  # so that never more than two slabs are held
    return state, jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=key.ndim), *parts)


@functools.lru_cache(maxsize=16)
def _compiled(algorithm: Algorithm, step_count: int, batch_size: int, seeds: bool) -> Callable[..., Any]:
    loop = functools.partial(train_offline, algorithm, step_count=step_count, batch_size=batch_size)
    return jax.jit(jax.vmap(loop, in_axes=(0, None, 0)) if seeds else loop, donate_argnums=0)
