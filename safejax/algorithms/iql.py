"""Implicit Q-learning: in-sample values by expectile regression, a policy by advantage-weighted regression.

Kostrikov et al. 2021, https://arxiv.org/abs/2110.06169. Order of one update, as in the authors' code: value, actor,
critic, target. Difference from it: variance-scaling instead of orthogonal initialisation. The safe form
(`Config.safety`) is ours, see `safety.py`. Shapes: B batch, E critics, O observation, A action.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from safejax.algorithms import in_sample, safety
from safejax.algorithms.bc import act
from safejax.algorithms.safety import SafetyConfig, SafetyNetworks
from safejax.gradients import adam, gradient_step, train_state
from safejax.losses.policy import advantage_weight
from safejax.losses.value import expectile_loss
from safejax.networks import Critic, GaussianActor, Value, ensemble, with_encoder
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
    """Numbers of IQL; the defaults are the paper's for locomotion (appendix B)."""

    discount_factor: float = 0.99
    expectile: float = 0.7  # tau in eq. 5
    inverse_temperature: float = 3.0  # beta in eq. 7
    maximum_weight: float = 100.0  # clip of exp(beta A)
    target_update_rate: float = 0.005
    learning_rate: float = 3e-4
    actor_decay_steps: int = 0  # updates over which the actor's learning rate falls to 0; 0 keeps it
    reward_scale: float = 1.0
    safety: SafetyConfig | None = None


class Networks(NamedTuple):
    """actor: [B, O] -> distribution; critic: [B, O], [B, A] -> [E, B]; value: [B, O] -> [B]; safety: its own."""

    actor: Network
    critic: Network
    value: Network
    safety: SafetyNetworks | tuple = ()  # needed by the safe form alone


class State(NamedTuple):
    """What learning carries."""

    step: Array  # [] int32, gradient steps
    actor: TrainState
    critic: TrainState
    value: TrainState
    target_critic: Params
    safety: Any  # SafetyState, or ()


ACTORS = {
    "gaussian": dict(squash=False, state_dependent_std=False, log_std_range=(-5.0, 2.0)),
    # A pinned width makes weighted likelihood the weighted squared error of a deterministic actor.
    "deterministic": dict(squash=False, state_dependent_std=False, log_std_range=(math.log(0.1), math.log(0.1))),
    "squashed": dict(),
}
"""The paper's plain Gaussian about tanh means; a deterministic actor that explores with std .1; SAC's tanh-normal."""


def default_networks(
    action_size: int,
    hidden_sizes: Sequence[int] = (256, 256),
    *,
    actor: str = "gaussian",
    encoder: Network | None = None,
) -> Networks:
    """The paper's sizes; `actor` is a key of `ACTORS`, "squashed" if SAC or Marvel shall fine-tune it."""
    check_choice("actor", actor, ACTORS)
    hidden_sizes = tuple(hidden_sizes)
    networks = Networks(
        actor=GaussianActor(action_size, hidden_sizes, **ACTORS[actor]),
        critic=ensemble(Critic(hidden_sizes), 2),
        value=Value(hidden_sizes),
        safety=safety.default_networks(hidden_sizes),
    )
    return with_encoder(networks, encoder)


def init(key: Key, example: Transition, *, config: Config, networks: Networks) -> State:
    """A fresh state; `example` is one transition without leading axes."""
    actor_key, value_key, safety_key = jax.random.split(key, 3)
    actor = networks.actor.init(actor_key, example.observation)
    return State(
        jnp.zeros((), jnp.int32),
        train_state(actor, _actor_optimizer(config)),
        *in_sample.init(value_key, example, learning_rate=config.learning_rate, networks=networks),
        safety=safety.init(safety_key, example, config=config.safety, networks=networks.safety),
    )


def update(state: State, batch: Transition, key: Key, *, config: Config, networks: Networks) -> tuple[State, Metrics]:
    """One step of every part on `batch` [B]; no policy action is ever evaluated by a critic."""
    del key
    value_loss = functools.partial(expectile_loss, expectile=config.expectile)
    reward = config.reward_scale * batch.reward
    state, advantage, _, value_metrics = in_sample.update(
        state, batch, reward, value_loss, config=config, networks=networks
    )
    safe, weight, safety_metrics = safety.weigh(
        state.safety,
        batch,
        advantage,
        lambda advantage: advantage_weight(advantage, config.inverse_temperature, config.maximum_weight),
        config=config.safety,
        networks=networks.safety,
    )

    def actor_loss(params: Params) -> tuple[Array, Metrics]:
        log_prob = networks.actor.apply(params, batch.observation).log_prob(batch.action)
        loss = -jnp.mean(weight * log_prob)
        return loss, {"actor/loss": loss, "actor/weight": jnp.mean(weight)}

    actor, actor_metrics = gradient_step(actor_loss, state.actor, _actor_optimizer(config))
    state = state._replace(step=state.step + 1, actor=actor, safety=safe)
    return state, value_metrics | safety_metrics | actor_metrics


def _actor_optimizer(config: Config) -> Any:
    return adam(config.learning_rate, decay_steps=config.actor_decay_steps)


def check(config: Any) -> None:
    """Refuse numbers out of range; methods that keep IQL's values share it."""
    check_range("discount_factor", config.discount_factor, 0.0, 1.0)
    check_range("expectile", config.expectile, 0.0, 1.0, open_low=True, open_high=True)
    check_range("target_update_rate", config.target_update_rate, 0.0, 1.0)
    check_range("learning_rate", config.learning_rate, 0.0, open_low=True)
    check_range("actor_decay_steps", config.actor_decay_steps, 0)
    safety.check(config.safety)


def make(config: Config = Config(), networks: Networks | None = None, *, action_size: int | None = None) -> Algorithm:
    """Check the numbers and bind them; networks default to `default_networks(action_size)`."""
    check(config)
    check_range("inverse_temperature", config.inverse_temperature, 0.0)
    networks = choose_networks(networks, default_networks, action_size)
    return bind(config=config, networks=networks, batch=BatchSpec.uniform(), init=init, update=update, act=act)
