"""One gradient step on a `TrainState`, and the slow copies that follow parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import optax
from jax.custom_batching import custom_vmap

from safejax.types import Array, ArrayTree, Params, TrainState

Aux = TypeVar("Aux")


def train_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Parameters with a fresh optimiser state beside them."""
    return TrainState(params, optimizer.init(params))


def adam(
    learning_rate: float | Array,
    *,
    decay_steps: int = 0,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
    epsilon: float = 1e-8,
) -> optax.GradientTransformation:
    """Adam with the three additions that offline methods use; 0 leaves each out.

    Args:
      learning_rate: at first.
      decay_steps: updates over which a cosine takes the learning rate to 0.
      weight_decay: decoupled (AdamW).
      clip_norm: bound on the gradient's global norm.
      epsilon: Adam's, beside the root of the second moment.
    """
    rate = optax.cosine_decay_schedule(learning_rate, decay_steps) if decay_steps else learning_rate
    adamw = functools.partial(optax.adamw, weight_decay=weight_decay)
    optimizer = (adamw if weight_decay else optax.adam)(rate, eps=epsilon)
    return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer) if clip_norm else optimizer


def gradient_step(
    loss: Callable[[Params], tuple[Array, Aux]],
    state: TrainState,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Aux]:
    """Move `state` one optimiser step down `loss`.

    Args:
      loss: parameters -> ([] loss, metrics, or whatever else it found); the mean over the batch is taken inside it.
      state: parameters and the state of `optimizer`.
      optimizer: an optax transformation; rebuilding it at every trace is free.

    Returns:
      The new state and the loss's metrics, taken at the old parameters.
    """
    gradients, metrics = jax.grad(loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    return TrainState(optax.apply_updates(state.params, updates), opt_state), metrics


def where_due(due: Array, step: Callable[[Any], Any], state: Any) -> Any:
    """`step(state)` where `due`, else `state`: work that is really skipped, for parts that learn every few updates.

    A plain `cond` becomes a `select` under vmap and runs both branches for every learner. Here vmapped learners share
    one branch, taken if any of them is due; seeds count their steps alike, so they skip together.

    Args:
      due: [] bool.
      step: state -> state, same structure, shapes and dtypes.
      state: any tree.
    """

    def taken(state: Any) -> Any:
        return jax.tree.map(lambda new, old: jax.numpy.where(due, new, old), step(state), state)

    return jax.lax.cond(_any_due(due), taken, lambda state: state, state)


@custom_vmap
def _any_due(due: Array) -> Array:
    return due


@_any_due.def_vmap
def _(axis_size: int, batched: Any, due: Array) -> tuple[Array, bool]:
    del axis_size, batched
    return _any_due(jax.numpy.any(due)), False


def polyak(target: ArrayTree, online: ArrayTree, rate: float | Array) -> ArrayTree:
    """Exponential average: (1 - rate) target + rate online, leaf by leaf; rate in [0, 1]."""
    return jax.tree.map(lambda slow, fast: slow + rate * (fast - slow), target, online)


def copy(tree: Any) -> Any:
    """A deep copy. A target that aliased its online parameters would be donated twice."""
    return jax.tree.map(lambda leaf: jax.numpy.array(leaf, copy=True), tree)
