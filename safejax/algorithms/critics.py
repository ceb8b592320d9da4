"""What every method does with an ensemble of critics: fit it to targets, and ask it for the values of candidates.

Shapes: B batch, T window, K candidate actions, E critics, O observation, A action.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from safejax.gradients import gradient_step
from safejax.losses.value import squared_error
from safejax.networks import given
from safejax.types import Array, ArrayTree, Key, Metrics, Network, Params, TrainState, Transition


def fit(
    critic: TrainState, batch: Transition, target: Array, optimizer: Any, *, network: Network, name: str = "critic"
) -> tuple[TrainState, Metrics]:
    """One gradient step of every member towards `target` [B], or [B, T]; each member's error is a mean.

    Args:
      critic: of `network`, ([B, O], [B, A]) -> [E, B].
      batch: [B]; its observations and actions are asked.
      target: a constant, in the units of the critic.
      optimizer: of the optax kind.
      name: prefix of the metrics "loss" and "mean".
    """

    def loss(params: Params) -> tuple[Array, Metrics]:
        q = network.apply(params, batch.observation, batch.action)
        chex.assert_equal_shape([q[0], target])
        error = jnp.sum(jnp.mean(squared_error(q, target), axis=tuple(range(1, q.ndim))))
        return error, {f"{name}/loss": error, f"{name}/mean": jnp.mean(q)}

    return gradient_step(loss, critic, optimizer)


def candidate_values(
    network: Network,
    params: Params,
    observation: ArrayTree,
    action: Array,
    *,
    reduce: Callable[..., Array] = jnp.min,
) -> Array:
    """Values [B] of actions [B, A], or [K, B] of candidates [K, B, A], reduced over the ensemble."""
    value = given(network, params, observation)
    return reduce(jax.vmap(value)(action) if action.ndim == 3 else value(action), axis=-2)


def pick(candidates: Array, logits: Array, key: Key | None) -> tuple[Array, Array]:
    """One candidate for each row: the likeliest without a key, else one drawn by the softmax over K.

    Args:
      candidates: [K, B, A].
      logits: [K, B].

    Returns:
      Actions [B, A] and which candidates they were, [B] int32.
    """
    index = jnp.argmax(logits, axis=0) if key is None else jax.random.categorical(key, logits, axis=0)
    return jnp.take_along_axis(candidates, index[None, :, None], axis=0)[0], index.astype(jnp.int32)
