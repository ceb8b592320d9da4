"""IQL's half that every in-sample method shares: Q by TD towards V, V by an asymmetric regression on Q.

No action outside the data is evaluated, unless `value_action` is given. Serves rewards and costs alike: the signal, the
value loss and the reduction over the ensemble are arguments. Source: Kostrikov et al. 2021,
https://arxiv.org/abs/2110.06169.
Shapes: B batch, E critics, O observation, A action.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from safejax.algorithms import critics
from safejax.gradients import copy, gradient_step, polyak, train_state
from safejax.losses.value import td_target
from safejax.types import Array, Key, Metrics, Params, TrainState, Transition


def init(
    key: Key, example: Transition, *, learning_rate: float | Array, networks: Any
) -> tuple[TrainState, TrainState, Params]:
    """Fresh critic, value and target critic from Networks that have `critic` and `value`."""
    critic_key, value_key = jax.random.split(key)
    optimizer = optax.adam(learning_rate)
    critic = networks.critic.init(critic_key, example.observation, example.action)
    value = networks.value.init(value_key, example.observation)
    return train_state(critic, optimizer), train_state(value, optimizer), copy(critic)


def update(
    state: Any,
    batch: Transition,
    signal: Array,
    value_loss: Callable[[Array, Array], Array],
    *,
    value_action: Array | None = None,
    reduce: Callable[..., Array] = jnp.min,
    name: str = "",
    config: Any,
    networks: Any,
) -> tuple[Any, Array, Array, Metrics]:
    """One step of value, critic and target on `batch` [B], in the order of the authors' code.

    Args:
      state: any State with `critic`, `value` and `target_critic`.
      batch: [B].
      signal: [B] what the critic sums up: scaled rewards, or costs.
      value_loss: (value [B], q [B]) -> [B].
      value_action: [B, A] actions on whose values V regresses, if not the batch's: with a policy's own actions and an
        expectile of one half this is policy evaluation.
      reduce: over the ensemble; jnp.min for rewards, jnp.max for costs.
      name: prefix of the metrics.
      config: with `discount_factor`, `learning_rate` and `target_update_rate`.
      networks: with `critic` and `value`.

    Returns:
      The state; advantages [B] and values [B] of those actions: min Q_target(s, a) under the target before this step
      less the new V, and that Q; metrics.
    """
    optimizer = optax.adam(config.learning_rate)
    action = batch.action if value_action is None else value_action
    q = reduce(networks.critic.apply(state.target_critic, batch.observation, action), axis=0)

    def loss_of_value(params: Params) -> tuple[Array, Metrics]:
        value = networks.value.apply(params, batch.observation)
        loss = jnp.mean(value_loss(value, q))
        return loss, {f"{name}value/loss": loss, f"{name}value/mean": jnp.mean(value)}

    value, value_metrics = gradient_step(loss_of_value, state.value, optimizer)
    advantage = q - networks.value.apply(value.params, batch.observation)
    next_value = networks.value.apply(value.params, batch.next_observation)
    target = td_target(signal, batch.discount, next_value, config.discount_factor)

    critic, critic_metrics = critics.fit(
        state.critic, batch, target, optimizer, network=networks.critic, name=f"{name}critic"
    )
    target_critic = polyak(state.target_critic, critic.params, config.target_update_rate)
    state = state._replace(critic=critic, value=value, target_critic=target_critic)
    return state, advantage, q, value_metrics | critic_metrics
