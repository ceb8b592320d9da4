"""Offline training: many updates from a data set in one scan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from safejax.data.dataset import Dataset, sample, sample_sequences
from safejax.types import Algorithm, Key, Metrics, Transition

_UPDATE, _SAMPLE = 11, 12  # tags that keep the uses of one key apart


def train_offline(
    algorithm: Algorithm,
    state: Any,
    dataset: Dataset,
    key: Key,
    *,
    step_count: int,
    batch_size: int,
    place: Callable[[Transition], Transition] = lambda batch: batch,
) -> tuple[Any, Metrics]:
    """Scan `step_count` times: sample a batch on the device, update.

    Keys fold in `state.step`, so 100 steps equal 2 x 50 with the same key. Jit it with the state donated:
    `jax.jit(functools.partial(train_offline, algorithm, step_count=..., batch_size=...), donate_argnums=0)`.

    Args:
      algorithm: its `batch` says whether transitions [B] or sequences [B, T] are drawn.
      state: the algorithm's State.
      dataset: passed as an argument, never closed over, or XLA would copy it into the program.
      key: one for the whole run.
      step_count: gradient steps.
      batch_size: B, rows of each batch.
      place: applied to every batch, e.g. a `jax.sharding.reshard` over devices.

    Returns:
      The state and its metrics, stacked [step_count].

    Raises:
      ValueError: if the algorithm learns only from fresh rollouts.
    """
    spec = algorithm.batch
    if spec.kind == "fresh":
        raise ValueError("batch is 'fresh': an on-policy method cannot learn from a data set")

    def step(state: Any, _: None) -> tuple[Any, Metrics]:
        step_key = jax.random.fold_in(key, state.step)
        sample_key = jax.random.fold_in(step_key, _SAMPLE)
        if spec.kind == "sequence":
            batch = sample_sequences(dataset, sample_key, batch_size, spec.length, successors=spec.successors)
        else:
            batch = sample(dataset, sample_key, batch_size)
        return algorithm.update(state, place(batch), jax.random.fold_in(step_key, _UPDATE))

    return jax.lax.scan(step, state, None, step_count)
