"""Updates that are not finite are skipped and counted; where there are too many, training stops and says why.

    guarded = skip_non_finite(algorithm)
    update = jax.jit(guarded.update, donate_argnums=0)
    for step in range(step_count):
        state, metrics = update(state, batch_of(step), jax.random.fold_in(key, step))  # metrics["skipped"] is 0 or 1

    state, metrics = jax.jit(functools.partial(train_offline, guarded, ...))(state, dataset, key)
    record = finite_means(metrics)  # raises FloatingPointError past the limit

Shapes: U updates; `...` stands for leading axes, such as seeds.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from safejax.types import Algorithm, Array, ArrayTree, Key, Metrics, Transition

SKIPPED = "skipped"
"""The metric that a guarded update adds: 1 where it was skipped, else 0."""
LIMIT = 10
"""Skipped updates that `finite_means` lets pass in one call: a bad row now and then, not a state that is lost."""


def skip_non_finite(algorithm: Algorithm) -> Algorithm:
    """`algorithm` whose update returns the old state, with `step` advanced, where its result is not finite.

    The result is its metrics and the new state, except for Adam's first moment (fields named "mu") and slow copies
    (named "target..."): they are means of gradients and parameters, and finite where those are. Adam's second moment
    is looked at: a finite gradient whose square overflows (above 1e19) turns it to infinity, after which the parameter
    stays finite and never moves again. A leaf of the old state that holds infinity by intention may go on holding it:
    what was finite and no longer is is the fault. Where all is finite the update is bit for bit the unguarded one.
    Under vmap every learner skips by itself.
    """

    def update(state: Any, batch: Transition, key: Key) -> tuple[Any, Metrics]:
        new, metrics = algorithm.update(state, batch, key)
        told = _is_finite(metrics)
        kept, skipped = jax.lax.cond(
            _everywhere(told & _is_finite(new)),
            lambda new, old, told: (new, jnp.zeros_like(told)),
            lambda new, old, told: _choose(told & _stays_finite(new, old), new, old),
            *(new, state, told),
        )
        return kept._replace(step=new.step), metrics | {SKIPPED: skipped.astype(jnp.float32)}

    return algorithm._replace(update=update)


def finite_means(metrics: Metrics, *, first_update: int = 0, limit: int = LIMIT) -> dict[str, np.ndarray]:
    """One record of many guarded updates: means over those that were not skipped, and how many were.

    Args:
      metrics: [..., U] of guarded updates; {} gives {}.
      first_update: updates made before these, for the message.
      limit: skipped updates of one learner that are let pass; never more than half of them.

    Returns:
      Means [...], and under "skipped" a count [...].

    Raises:
      FloatingPointError: a learner skipped more than `limit`; one line names the first metric that was not finite, and
        the update, counted from 1.
    """
    if not metrics:
        return {}
    rows = {name: np.asarray(value) for name, value in metrics.items()}
    skipped = rows.pop(SKIPPED) > 0
    counts = skipped.sum(-1)
    limit = min(limit, skipped.shape[-1] // 2)
    if (counts > limit).any():
        learner = np.unravel_index(np.argmax(counts), counts.shape)
        found = f"{counts[learner]} of {skipped.shape[-1]} updates skipped"
        found += f" (learner {', '.join(map(str, learner))} of {counts.size})" if counts.size > 1 else ""
        index = int(np.argmax(skipped[learner]))
        names = [name for name, value in rows.items() if not np.isfinite(value[learner][index])]
        raise FloatingPointError(
            f"{found}, limit {limit}: {names[0] if names else 'state'!r} first not finite at update "
            f"{first_update + index + 1}"
        )
    made = np.where(counts < skipped.shape[-1], skipped.shape[-1] - counts, np.nan)
    means = {name: np.where(skipped, 0.0, value).sum(-1) / made for name, value in rows.items()}
    return means | {SKIPPED: counts}


def _is_finite(tree: ArrayTree) -> Array:
    """[] bool."""
    sizes = _sizes(tree)
    return jnp.isfinite(jnp.max(jnp.stack(sizes))) if sizes else jnp.ones((), bool)


def _stays_finite(new: ArrayTree, old: ArrayTree) -> Array:
    """[] bool: every leaf that was finite is."""
    before, after = _sizes(old), _sizes(new)
    lost = [jnp.isfinite(was) & ~jnp.isfinite(now) for was, now in zip(before, after, strict=True)]
    return ~jnp.any(jnp.stack(lost)) if lost else jnp.ones((), bool)


def _sizes(tree: ArrayTree) -> list[Array]:
    """The largest magnitude of each leaf of real numbers that is looked at, NaN where there is one.

    It costs two thirds of asking every number, and unlike a sum does not overflow.
    """
    return [
        jnp.max(jnp.abs(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.size and not any(map(_follows, path))
    ]


def _follows(entry: Any) -> bool:
    name = getattr(entry, "name", "")  # of a field of a named tuple
    return name == "mu" or name.startswith("target")


def _choose(finite: Array, new: Any, old: Any) -> tuple[Any, Array]:
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old), ~finite


@custom_vmap
def _everywhere(finite: Array) -> Array:
    """Whether all learners are finite: the `cond` on it stays one under vmap, which spares a copy of the state."""
    return finite


@_everywhere.def_vmap
def _(axis_size: int, batched: Any, finite: Array) -> tuple[Array, bool]:
    del axis_size, batched
    return _everywhere(jnp.all(finite)), False
