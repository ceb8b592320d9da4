"""Implicit Q-learning: in-sample values by expectile regression, a policy by advantage-weighted regression.

Kostrikov et al. 2021, https://arxiv.org/abs/2110.06169. Order of one update, as in the authors' code: value, actor,
critic, target. Differences from it: variance-scaling instead of orthogonal initialisation, a constant actor learning
rate instead of a cosine schedule. Shapes: B batch, E critics, O observation, A action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from safejax.algorithms.bc import act
from safejax.gradients import copy, gradient_step, polyak, train_state
from safejax.losses.policy import advantage_weight
from safejax.losses.value import expectile_loss, squared_error, td_target
from safejax.networks import Critic, GaussianActor, Value, ensemble
from safejax.types import (
    Algorithm,
    Array,
    BatchSpec,
    Key,
    Metrics,
    Network,
    Params,
    TrainState,
    Transition,
    bind,
    check_range,
    choose_networks,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Numbers of IQL; the defaults are the paper's for locomotion (appendix B)."""

    discount_factor: float = 0.99
    expectile: float = 0.7  # tau in eq. 5
    inverse_temperature: float = 3.0  # beta in eq. 7
    maximum_weight: float = 100.0  # clip of exp(beta A)
    target_update_rate: float = 0.005
    learning_rate: float = 3e-4
    reward_scale: float = 1.0


class Networks(NamedTuple):
    """actor: [B, O] -> distribution; critic: [B, O], [B, A] -> [E, B]; value: [B, O] -> [B]."""

    actor: Network
    critic: Network
    value: Network


class State(NamedTuple):
    """What learning carries."""

    step: Array  # [] int32, gradient steps
    actor: TrainState
    critic: TrainState
    value: TrainState
    target_critic: Params


def default_networks(action_size: int, hidden_sizes: Sequence[int] = (256, 256), *, squash: bool = False) -> Networks:
    """The paper's actor is a plain Gaussian about tanh means; `squash=True` gives SAC's, ready for fine-tuning."""
    hidden_sizes = tuple(hidden_sizes)
    if squash:
        actor = GaussianActor(action_size, hidden_sizes)
    else:
        actor = GaussianActor(
            action_size, hidden_sizes, squash=False, state_dependent_std=False, log_std_range=(-5.0, 2.0)
        )
    return Networks(actor, ensemble(Critic(hidden_sizes), 2), Value(hidden_sizes))


def init(key: Key, example: Transition, *, config: Config, networks: Networks) -> State:
    """A fresh state; `example` is one transition without leading axes."""
    actor_key, critic_key, value_key = jax.random.split(key, 3)
    optimizer = optax.adam(config.learning_rate)
    critic = networks.critic.init(critic_key, example.observation, example.action)
    return State(
        step=jnp.zeros((), jnp.int32),
        actor=train_state(networks.actor.init(actor_key, example.observation), optimizer),
        critic=train_state(critic, optimizer),
        value=train_state(networks.value.init(value_key, example.observation), optimizer),
        target_critic=copy(critic),
    )


def update(state: State, batch: Transition, key: Key, *, config: Config, networks: Networks) -> tuple[State, Metrics]:
    """One step of every part on `batch` [B]; no policy action is ever evaluated by a critic."""
    del key
    optimizer = optax.adam(config.learning_rate)
    target_q = jnp.min(networks.critic.apply(state.target_critic, batch.observation, batch.action), axis=0)

    def value_loss(params: Params) -> tuple[Array, Metrics]:
        value = networks.value.apply(params, batch.observation)
        loss = jnp.mean(expectile_loss(value, target_q, config.expectile))
        return loss, {"value/loss": loss, "value/mean": jnp.mean(value)}

    value, value_metrics = gradient_step(value_loss, state.value, optimizer)

    advantage = target_q - networks.value.apply(value.params, batch.observation)
    weight = advantage_weight(advantage, config.inverse_temperature, config.maximum_weight)

    def actor_loss(params: Params) -> tuple[Array, Metrics]:
        log_prob = networks.actor.apply(params, batch.observation).log_prob(batch.action)
        loss = -jnp.mean(weight * log_prob)
        return loss, {"actor/loss": loss, "actor/weight": jnp.mean(weight)}

    actor, actor_metrics = gradient_step(actor_loss, state.actor, optimizer)

    next_value = networks.value.apply(value.params, batch.next_observation)
    target = td_target(config.reward_scale * batch.reward, batch.discount, next_value, config.discount_factor)

    def critic_loss(params: Params) -> tuple[Array, Metrics]:
        q = networks.critic.apply(params, batch.observation, batch.action)
        loss = jnp.sum(jnp.mean(squared_error(q, target), axis=-1))
        return loss, {"critic/loss": loss, "critic/mean": jnp.mean(q)}

    critic, critic_metrics = gradient_step(critic_loss, state.critic, optimizer)
    target_critic = polyak(state.target_critic, critic.params, config.target_update_rate)
    return (
        State(state.step + 1, actor, critic, value, target_critic),
        value_metrics | actor_metrics | critic_metrics,
    )


def make(config: Config = Config(), networks: Networks | None = None, *, action_size: int | None = None) -> Algorithm:
    """Check the numbers and bind them; networks default to `default_networks(action_size)`."""
    check_range("discount_factor", config.discount_factor, 0.0, 1.0)
    check_range("expectile", config.expectile, 0.0, 1.0, open_low=True)
    check_range("inverse_temperature", config.inverse_temperature, 0.0)
    check_range("target_update_rate", config.target_update_rate, 0.0, 1.0)
    check_range("learning_rate", config.learning_rate, 0.0, open_low=True)
    networks = choose_networks(networks, default_networks, action_size)
    return bind(config=config, networks=networks, batch=BatchSpec.uniform(), init=init, update=update, act=act)
