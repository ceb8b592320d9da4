"""A Gaussian policy out of any policy and its critic, by weighted regression: a bridge to Marvel. Ours.

SAC-Lagrangian fine-tunes actors with a density, which a diffusion policy lacks. Here K candidates of the frozen
policy (see `proposal.py`) are drawn for every state of the data, weighed by the softmax of beta (Q - lambda Qc) over
the candidates, and a Gaussian actor maximises the weighted log-likelihood: advantage-weighted regression whose
normaliser is computed instead of clipped. `warm_start` fills `frozen`, `critic` and, from a safe form, `safety`;
nothing but the actor moves. Shapes: B batch, K candidates, O observation, A action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from safejax.algorithms import critics, safety
from safejax.algorithms.bc import act
from safejax.algorithms.proposal import make_proposal
from safejax.algorithms.safety import SafetyConfig, SafetyNetworks
from safejax.gradients import adam, gradient_step, train_state
from safejax.networks import Critic, GaussianActor, ensemble, with_encoder
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

_LARGEST_TARGET = 0.999


@dataclass(frozen=True, kw_only=True)
class Config:
    """Numbers of the extraction."""

    inverse_temperature: float = 3.0  # beta; 0 clones the frozen policy
    learning_rate: float = 3e-4
    safety: SafetyConfig | None = None  # of the frozen policy, if it has one


class Networks(NamedTuple):
    """actor: [B, O] -> distribution, to be learned; frozen: of `proposal.py`; critic: [B, O], [B, A] -> [E, B]."""

    actor: Network
    frozen: Any
    critic: Network
    safety: SafetyNetworks | tuple = ()


class State(NamedTuple):
    """What learning carries."""

    step: Array  # [] int32, gradient steps
    actor: TrainState
    frozen: Params  # of the frozen policy
    critic: Params
    safety: Any  # SafetyState, or (); frozen too


def default_networks(
    action_size: int,
    hidden_sizes: Sequence[int] = (256, 256),
    *,
    frozen: str = "residual",
    encoder: Network | None = None,
) -> Networks:
    """A tanh-normal actor for Marvel, twin critics, and a frozen policy, a key of `proposal.PROPOSALS`."""
    hidden_sizes = tuple(hidden_sizes)
    networks = Networks(
        actor=GaussianActor(action_size, hidden_sizes),
        frozen=make_proposal(frozen, action_size, hidden_sizes, encoder),
        critic=ensemble(Critic(hidden_sizes), 2),
        safety=safety.default_networks(hidden_sizes),
    )
    return with_encoder(networks, encoder)


def init(key: Key, example: Transition, *, config: Config, networks: Networks) -> State:
    """A fresh state, to be warm-started; `example` is one transition without leading axes."""
    actor_key, frozen_key, critic_key, safety_key = jax.random.split(key, 4)
    pair = (example.observation, example.action)
    return State(
        step=jnp.zeros((), jnp.int32),
        actor=train_state(networks.actor.init(actor_key, example.observation), adam(config.learning_rate)),
        frozen=networks.frozen.init(frozen_key, *pair),
        critic=networks.critic.init(critic_key, *pair),
        safety=safety.init(safety_key, example, config=config.safety, networks=networks.safety),
    )


def update(state: State, batch: Transition, key: Key, *, config: Config, networks: Networks) -> tuple[State, Metrics]:
    """One step of the Gaussian actor at the observations of `batch` [B]."""
    observation = batch.observation
    candidates = networks.frozen.propose(state.frozen, observation, key, explore=True)
    q = critics.candidate_values(networks.critic, state.critic, observation, candidates)
    score, _ = safety.penalize(state.safety, q, q[0], observation, candidates, networks=networks.safety)
    weight = jax.nn.softmax(config.inverse_temperature * score, axis=0)

    # at the bounds, where diffusion policies are clipped, a squashed density has no maximum
    inside = jnp.clip(candidates, -_LARGEST_TARGET, _LARGEST_TARGET)

    def loss(params: Params) -> tuple[Array, Metrics]:
        log_prob = networks.actor.apply(params, observation).log_prob(inside)
        error = -jnp.mean(jnp.sum(weight * log_prob, axis=0))
        largest = jnp.mean(jnp.max(weight, axis=0))
        return error, {"actor/loss": error, "actor/largest_weight": largest, "critic/mean": jnp.mean(q)}

    actor, metrics = gradient_step(loss, state.actor, adam(config.learning_rate))
    return state._replace(step=state.step + 1, actor=actor), metrics


def make(config: Config = Config(), networks: Networks | None = None, *, action_size: int | None = None) -> Algorithm:
    """Check the numbers and bind them; networks default to `default_networks(action_size)`."""
    check_range("inverse_temperature", config.inverse_temperature, 0.0)
    check_range("learning_rate", config.learning_rate, 0.0, open_low=True)
    safety.check(config.safety)
    networks = choose_networks(networks, default_networks, action_size)
    return bind(config=config, networks=networks, batch=BatchSpec.uniform(), init=init, update=update, act=act)
