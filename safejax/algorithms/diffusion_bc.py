"""Behaviour cloning by a diffusion policy: what every diffusion method starts from, and their shared steps.

The noise-prediction loss of Ho et al. 2020, https://arxiv.org/abs/2006.11239, summed over action dimensions as in
IDQL (https://arxiv.org/abs/2304.10573); an exponential average of the parameters is what acts. Shapes: B batch, K
candidate actions, O observation, A action.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from safejax.algorithms import critics
from safejax.diffusion import DiffusionConfig, check_diffusion, denoising_error, draw_noise, sample
from safejax.gradients import adam, copy, gradient_step, polyak, train_state
from safejax.networks import ResidualDenoiser, given, with_encoder
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
    """Numbers of diffusion behaviour cloning; the defaults are IDQL's."""

    diffusion: DiffusionConfig = DiffusionConfig(clip="noisy", variance="beta")
    actor_learning_rate: float = 3e-4
    actor_decay_steps: int = 0  # updates over which the learning rate falls to 0; 0 keeps it
    weight_decay: float = 1e-4
    ema_rate: float = 1e-3  # of the averaged actor


class Networks(NamedTuple):
    """actor: (observation [B, O], noisy [..., A], index, dropout key or None) -> noise, with `action_size`."""

    actor: Any


class State(NamedTuple):
    """What learning carries."""

    step: Array  # [] int32, gradient steps
    actor: TrainState
    ema_actor: Params  # exponential average of the actor's parameters; it acts


def default_networks(
    action_size: int, hidden_sizes: Sequence[int] = (256, 256), *, encoder: Network | None = None
) -> Networks:
    """IDQL's residual denoiser, as wide as the first hidden size."""
    networks = Networks(residual_denoiser(action_size, hidden_sizes[0]))
    return with_encoder(networks, encoder)


def residual_denoiser(action_size: int, width: int) -> ResidualDenoiser:
    """Three blocks; the time embedding scales with the width (128 at 256)."""
    return ResidualDenoiser(
        action_size, width=width, time_size=2 * max(1, width // 4), time_hidden_sizes=(width, width)
    )


def init(key: Key, example: Transition, *, config: Config, networks: Networks) -> State:
    """A fresh state; `example` is one transition without leading axes."""
    return State(jnp.zeros((), jnp.int32), *init_actor(key, example, config=config, networks=networks))


def init_actor(key: Key, example: Transition, *, config: Any, networks: Any) -> tuple[TrainState, Params]:
    """A fresh denoiser and its average."""
    params = networks.actor.init(key, example.observation, example.action, jnp.zeros((), jnp.int32))
    return train_state(params, _optimizer(config)), copy(params)


def update(state: State, batch: Transition, key: Key, *, config: Config, networks: Networks) -> tuple[State, Metrics]:
    """One gradient step of the denoiser on `batch` [B], and its average."""
    state, metrics = update_actor(state, batch, key, config=config, networks=networks)
    return state._replace(step=state.step + 1), metrics


def update_actor(state: Any, batch: Transition, key: Key, *, config: Any, networks: Any) -> tuple[Any, Metrics]:
    """`update` for any State with `actor` and `ema_actor`; it leaves `step` alone."""
    loss_key, dropout_key = jax.random.split(key)

    def loss(params: Params) -> tuple[Array, Metrics]:
        denoise = denoiser(networks, params, batch.observation, dropout_key)
        error = jnp.mean(jnp.sum(denoising_error(config.diffusion, denoise, batch.action, loss_key), axis=-1))
        return error, {"actor/loss": error}

    actor, metrics = gradient_step(loss, state.actor, _optimizer(config))
    return state._replace(actor=actor, ema_actor=polyak(state.ema_actor, actor.params, config.ema_rate)), metrics


def denoiser(
    networks: Any, params: Params, observation: ArrayTree, dropout_key: Key | None = None
) -> Callable[[Array, Array], Array]:
    """What `safejax.diffusion` takes: (noisy [..., B, A], index) -> predicted noise, given observations [B, O]."""
    predict = given(networks.actor, params, observation)
    return lambda noisy, index: predict(noisy, index, dropout_key)


def propose(
    params: Params, observation: ArrayTree, key: Key, count: int, *, explore: bool, config: Any, networks: Any
) -> Array:
    """K = `count` actions [K, B, A] of the diffusion policy for observations [B, O].

    With `explore` every action has noise of its own. Without, all observations share K fixed noise sequences, so that
    the candidates, and what is chosen among them, are a deterministic function of the observation; the papers' code
    draws fresh ones at evaluation too (`explore=True`).
    """
    rows = jax.tree.leaves(observation)[0].shape[0]
    size = networks.actor.action_size
    if explore:
        noise = draw_noise(config.diffusion, key, (count, rows, size))
    else:
        noise = draw_noise(config.diffusion, jax.random.key(0), (count, 1, size))
        noise = jnp.broadcast_to(noise, (*noise.shape[:2], rows, size))
    return sample(config.diffusion, denoiser(networks, params, observation), noise)


def choose(candidates: Array, log_weight: Array, key: Key | None) -> Array:
    """One of the candidates [K, B, A] for each row: likeliest without a key, else drawn by softmax of [K, B]."""
    return critics.pick(candidates, log_weight, key)[0]


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
    """Actions [B, A] in [-1, 1] of the averaged actor; one fixed noise sequence unless `explore`."""
    candidates = propose(state.ema_actor, observation, key, 1, explore=explore, config=config, networks=networks)
    return jnp.clip(candidates[0], -1.0, 1.0), carry, {}


def _optimizer(config: Any) -> Any:
    return adam(config.actor_learning_rate, decay_steps=config.actor_decay_steps, weight_decay=config.weight_decay)


def check(config: Any) -> None:
    """Refuse numbers out of range; every method over this behaviour model shares it."""
    check_diffusion(config.diffusion)
    check_range("actor_learning_rate", config.actor_learning_rate, 0.0, open_low=True)
    check_range("actor_decay_steps", config.actor_decay_steps, 0)
    check_range("ema_rate", config.ema_rate, 0.0, 1.0)


def make(config: Config = Config(), networks: Networks | None = None, *, action_size: int | None = None) -> Algorithm:
    """Check the numbers and bind them; networks default to `default_networks(action_size)`."""
    check(config)
    networks = choose_networks(networks, default_networks, action_size)
    return bind(config=config, networks=networks, batch=BatchSpec.uniform(), init=init, update=update, act=act)
