"""One gradient step on a `TrainState`, and the slow copies that follow parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from safejax.types import Array, ArrayTree, Metrics, Params, TrainState


def train_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Parameters with a fresh optimiser state beside them."""
    return TrainState(params, optimizer.init(params))


def gradient_step(
    loss: Callable[[Params], tuple[Array, Metrics]],
    state: TrainState,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
    """Move `state` one optimiser step down `loss`.

    Args:
      loss: parameters -> ([] loss, metrics); the mean over the batch is taken inside it.
      state: parameters and the state of `optimizer`.
      optimizer: an optax transformation; rebuilding it at every trace is free.

    Returns:
      The new state and the loss's metrics, taken at the old parameters.
    """
    gradients, metrics = jax.grad(loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    return TrainState(optax.apply_updates(state.params, updates), opt_state), metrics


def polyak(target: ArrayTree, online: ArrayTree, rate: float | Array) -> ArrayTree:
    """Exponential average: (1 - rate) target + rate online, leaf by leaf; rate in [0, 1]."""
    return jax.tree.map(lambda slow, fast: slow + rate * (fast - slow), target, online)


def copy(tree: Any) -> Any:
    """A deep copy. A target that aliased its online parameters would be donated twice."""
    return jax.tree.map(lambda leaf: jax.numpy.array(leaf, copy=True), tree)
