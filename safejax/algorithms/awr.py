"""Advantage-weighted regression: a value fitted to the data's own returns, a policy by weighted likelihood.

Peng et al. 2019, https://arxiv.org/abs/1910.00177, here from a fixed data set, as in its experiments on static data.
Nothing bootstraps from actions of the learned policy: A = R - V with V the value of whoever collected the data and R
the TD(lambda) return of the data, so the method makes one step of improvement over the behavior policy and no more.

Differences from the authors' code (xbpeng/awr): it fits V to the returns of a whole replay buffer with 200 to 500 steps
of SGD with momentum, computes returns and advantages anew, standardises these over the buffer and takes 1,000 actor
steps; here each update takes one Adam step of both on a batch of windows, one evaluation of V serves target and
advantage, R bootstraps at the window's end, and the statistics are the batch's. Its actor is a linear mean of fixed
width with a penalty for leaving the action range; here the mean passes through a tanh. It normalises observations; so
should the data set. The safe form (`Config.safety`) is ours, see `safety.py`; the penalised advantage is what is
standardised there. Shapes: B batch, T time, O observation, A action.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from safejax.algorithms import iql, safety
from safejax.algorithms.bc import act
from safejax.algorithms.safety import SafetyConfig, SafetyNetworks
from safejax.gradients import adam, gradient_step, train_state
from safejax.losses.policy import advantage_weight
from safejax.losses.value import generalized_advantage, squared_error
from safejax.networks import GaussianActor, Value, with_encoder
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
    check_choice,
    check_range,
    choose_networks,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Numbers of AWR; lambda, temperature and clip are the authors', the optimiser is ours."""

    discount_factor: float = 0.99
    trace_decay: float = 0.95  # lambda of the returns
    sequence_length: int = 32  # T of the windows; the traces end with them
    temperature: float = 1.0  # divides the advantage; in its standard deviations if `standardize`
    maximum_weight: float = 20.0  # clip of exp(A / temperature)
    standardize: bool = True  # advantages to mean 0 and deviation 1 over the batch
    learning_rate: float = 3e-4  # value
    actor_learning_rate: float = 3e-4
    actor_decay_steps: int = 0  # updates over which the actor's learning rate falls to 0; 0 keeps it
    reward_scale: float = 1.0
    safety: SafetyConfig | None = None


class Networks(NamedTuple):
    """actor: [..., O] -> distribution; value: [..., O] -> [...]; safety: its own."""

    actor: Network
    value: Network
    safety: SafetyNetworks | tuple = ()  # needed by the safe form alone


class State(NamedTuple):
    """What learning carries."""

    step: Array  # [] int32, gradient steps
    actor: TrainState
    value: TrainState
    safety: Any  # SafetyState, or ()


ACTORS = iql.ACTORS | {"fixed": iql.ACTORS["gaussian"] | dict(log_std_range=(math.log(0.2), math.log(0.2)))}
"""IQL's, and the authors' Gaussian of fixed width .2."""


def default_networks(
    action_size: int,
    hidden_sizes: Sequence[int] = (128, 64),
    *,
    actor: str = "fixed",
    encoder: Network | None = None,
) -> Networks:
    """The authors' sizes; `actor` is a key of `ACTORS`, "squashed" if SAC or Marvel shall fine-tune it."""
    check_choice("actor", actor, ACTORS)
    hidden_sizes = tuple(hidden_sizes)
    networks = Networks(
        actor=GaussianActor(action_size, hidden_sizes, **ACTORS[actor]),
        value=Value(hidden_sizes),
        safety=safety.default_networks(hidden_sizes),
    )
    return with_encoder(networks, encoder)


def init(key: Key, example: Transition, *, config: Config, networks: Networks) -> State:
    """A fresh state; `example` is one transition without leading axes."""
    actor_key, value_key, safety_key = jax.random.split(key, 3)
    return State(
        step=jnp.zeros((), jnp.int32),
        actor=train_state(networks.actor.init(actor_key, example.observation), _actor_optimizer(config)),
        value=train_state(networks.value.init(value_key, example.observation), adam(config.learning_rate)),
        safety=safety.init(safety_key, example, config=config.safety, networks=networks.safety),
    )


def update(state: State, batch: Transition, key: Key, *, config: Config, networks: Networks) -> tuple[State, Metrics]:
    """One step of value and actor on windows `batch` [B, T]."""
    del key
    value = networks.value.apply(state.value.params, batch.observation)
    next_value = networks.value.apply(state.value.params, batch.next_observation)
    advantage = generalized_advantage(
        config.reward_scale * batch.reward,
        value,
        next_value,
        batch.discount,
        batch.last,
        discount_factor=config.discount_factor,
        trace_decay=config.trace_decay,
    )
    returns = advantage + value

    def value_loss(params: Params) -> tuple[Array, Metrics]:
        prediction = networks.value.apply(params, batch.observation)
        loss = jnp.mean(squared_error(prediction, returns))
        return loss, {"value/loss": loss, "value/mean": jnp.mean(prediction)}

    value, value_metrics = gradient_step(value_loss, state.value, adam(config.learning_rate))
    rows = jax.tree.map(lambda leaf: jax.lax.collapse(leaf, 0, 2), batch)
    safe, weight, safety_metrics = safety.weigh(
        state.safety,
        rows,
        jax.lax.collapse(advantage, 0, 2),
        lambda advantage: weigh(advantage, config=config),
        config=config.safety,
        networks=networks.safety,
    )

    def actor_loss(params: Params) -> tuple[Array, Metrics]:
        log_prob = networks.actor.apply(params, rows.observation).log_prob(rows.action)
        loss = -jnp.mean(weight * log_prob)
        return loss, {"actor/loss": loss, "actor/weight": jnp.mean(weight), "actor/largest_weight": jnp.max(weight)}

    actor, actor_metrics = gradient_step(actor_loss, state.actor, _actor_optimizer(config))
    metrics = value_metrics | safety_metrics | actor_metrics
    return State(state.step + 1, actor, value, safe), metrics | {"value/advantage_std": jnp.std(advantage)}


def weigh(advantage: Array, *, config: Config) -> Array:
    """Weights min(exp(A / temperature), maximum_weight) [N] of advantages [N], with `standardize` of standard scores.

    Source: Peng et al. 2019, algorithm 1; the clip and the scores, (A - mean) / (deviation + 1e-5), are the authors'
    code's.
    """
    if config.standardize:
        advantage = (advantage - jnp.mean(advantage)) / (jnp.std(advantage) + 1e-5)
    return advantage_weight(advantage, 1.0 / config.temperature, config.maximum_weight)


def _actor_optimizer(config: Config) -> Any:
    return adam(config.actor_learning_rate, decay_steps=config.actor_decay_steps)


def make(config: Config = Config(), networks: Networks | None = None, *, action_size: int | None = None) -> Algorithm:
    """Check the numbers and bind them; networks default to `default_networks(action_size)`."""
    check_range("discount_factor", config.discount_factor, 0.0, 1.0)
    check_range("trace_decay", config.trace_decay, 0.0, 1.0)
    for name in ("temperature", "maximum_weight", "learning_rate", "actor_learning_rate"):
        check_range(name, getattr(config, name), 0.0, open_low=True)
    check_range("actor_decay_steps", config.actor_decay_steps, 0)
    check_range("sequence_length", config.sequence_length, 1)
    safety.check(config.safety)
    networks = choose_networks(networks, default_networks, action_size)
    batch = BatchSpec.sequence(config.sequence_length)
    return bind(config=config, networks=networks, batch=batch, init=init, update=update, act=act)
