"""Behaviour cloning: the smallest method, and the template to copy.

Maximum likelihood of the data set's actions under the actor; the baseline "BC-All" of Liu et al. 2023 (DSRL),
https://arxiv.org/abs/2306.09303, which uses the squared error of a deterministic actor instead. Shapes: B batch,
O observation, A action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from safejax.gradients import gradient_step, train_state
from safejax.networks import GaussianActor, with_encoder
from safejax.types import (
    Algorithm,
    Array,
    ArrayTree,
    BatchSpec,
    Carry,
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
    """Numbers of behaviour cloning."""

    learning_rate: float = 1e-3


class Networks(NamedTuple):
    """actor: observation [B, O] -> distribution over actions."""

    actor: Network


class State(NamedTuple):
    """What learning carries."""

    step: Array  # [] int32, gradient steps
    actor: TrainState


def default_networks(
    action_size: int, hidden_sizes: Sequence[int] = (256, 256), *, encoder: Network | None = None
) -> Networks:
    """A tanh-normal actor; every part sees observations through `encoder`, if there is one."""
    networks = Networks(GaussianActor(action_size, tuple(hidden_sizes)))
    return with_encoder(networks, encoder)


def init(key: Key, example: Transition, *, config: Config, networks: Networks) -> State:
    """A fresh state; `example` is one transition without leading axes."""
    actor = networks.actor.init(key, example.observation)
    return State(jnp.zeros((), jnp.int32), train_state(actor, optax.adam(config.learning_rate)))


def update(state: State, batch: Transition, key: Key, *, config: Config, networks: Networks) -> tuple[State, Metrics]:
    """One gradient step on the negative log-likelihood of `batch` [B]."""
    del key

    def loss(params: Params) -> tuple[Array, Metrics]:
        log_prob = networks.actor.apply(params, batch.observation).log_prob(batch.action)
        return -jnp.mean(log_prob), {"actor/log_prob": jnp.mean(log_prob)}

    actor, metrics = gradient_step(loss, state.actor, optax.adam(config.learning_rate))
    return State(state.step + 1, actor), metrics


def act(
    state: Any,
    observation: ArrayTree,
    key: Key,
    carry: Carry = (),
    *,
    explore: bool = False,
    config: Any,
    networks: Any,
) -> tuple[Array, Carry, dict[str, Array]]:
    """Actions [B, A] for observations [B, O]: the mode, or a draw if `explore`, clipped to [-1, 1].

    Any State with an `actor` and any Networks with an `actor` will do: methods that act this way import it.
    """
    del config
    policy = networks.actor.apply(state.actor.params, observation)
    action = policy.sample(key) if explore else policy.mode()
    return jnp.clip(action, -1.0, 1.0), carry, {}


def make(config: Config = Config(), networks: Networks | None = None, *, action_size: int | None = None) -> Algorithm:
    """Check the numbers and bind them; networks default to `default_networks(action_size)`."""
    check_range("learning_rate", config.learning_rate, 0.0, open_low=True)
    networks = choose_networks(networks, default_networks, action_size)
    return bind(config=config, networks=networks, batch=BatchSpec.uniform(), init=init, update=update, act=act)
