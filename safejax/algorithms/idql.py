"""Implicit diffusion Q-learning: IQL's values over a diffusion behaviour policy; the best of N samples acts.

Hansen-Estruch et al. 2023, https://arxiv.org/abs/2304.10573. The critic never meets the actor in training: values are
IQL's with one of three regressions, the actor is plain diffusion behaviour cloning. Acting draws N candidates and
takes the one of the highest value, or, exploring with `selection="weighted"`, draws by the implicit policy's weights.

Differences from the released code (philippe-eecs/IDQL@7582571): its quantile weights divide by the signed advantage,
its exponential weights lack the exponential; the launcher does not run. Ours: without `explore` the N candidates come
from fixed noise (`diffusion_bc.propose`); one batch serves actor and critic, as in its newer code. The safe form
(`Config.safety`) is ours, see `safety.py`; it explores by weight, for that is the policy whose cost is held to the
limit, and the best of many candidates is another. Shapes: B batch, K = N candidates, E critics, O observation, A
action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from safejax.algorithms import critics, diffusion_bc, in_sample, iql, safety
from safejax.algorithms.safety import SafetyConfig, SafetyNetworks
from safejax.diffusion import DiffusionConfig
from safejax.losses.extraction import expectile_log_weight, exponential_log_weight, quantile_log_weight
from safejax.losses.value import expectile_loss, exponential_loss, quantile_loss
from safejax.networks import Critic, Value, ensemble, with_encoder
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
    check_choice,
    check_range,
    choose_networks,
)

VALUES = {
    "expectile": (expectile_loss, expectile_log_weight),
    "quantile": (quantile_loss, quantile_log_weight),
    "exponential": (exponential_loss, exponential_log_weight),
}
"""Kind of value -> (its loss, the log weight of the policy that attains it); the Config's number of that name is tau
or alpha in both."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Numbers of IDQL; the defaults are the paper's for locomotion (appendix E)."""

    discount_factor: float = 0.99
    value: str = "expectile"  # or "quantile", "exponential"
    expectile: float = 0.7  # tau of the first; .9 for antmaze
    quantile: float = 0.6  # tau of the second
    exponential: float = 1.0  # alpha of the third
    candidate_count: int = 64  # N
    selection: str = "auto"  # how exploration chooses: "argmax", or "weighted", which "auto" is in the safe form alone
    target_update_rate: float = 0.005
    learning_rate: float = 3e-4  # critic and value
    actor_learning_rate: float = 3e-4
    actor_decay_steps: int = 0
    weight_decay: float = 1e-4
    ema_rate: float = 1e-3
    diffusion: DiffusionConfig = DiffusionConfig(clip="noisy", variance="beta")
    reward_scale: float = 1.0
    safety: SafetyConfig | None = None


class Networks(NamedTuple):
    """actor: a denoiser, see `diffusion_bc`; critic: [B, O], [B, A] -> [E, B]; value: [B, O] -> [B]."""

    actor: Any
    critic: Network
    value: Network
    safety: SafetyNetworks | tuple = ()  # needed by the safe form alone


class State(NamedTuple):
    """What learning carries."""

    step: Array  # [] int32, gradient steps
    actor: TrainState
    ema_actor: Params
    critic: TrainState
    value: TrainState
    target_critic: Params
    safety: Any  # SafetyState, or ()


def default_networks(
    action_size: int, hidden_sizes: Sequence[int] = (256, 256), *, encoder: Network | None = None
) -> Networks:
    """Three residual blocks as wide as the first hidden size, and values of `hidden_sizes`."""
    hidden_sizes = tuple(hidden_sizes)
    networks = Networks(
        actor=diffusion_bc.residual_denoiser(action_size, hidden_sizes[0]),
        critic=ensemble(Critic(hidden_sizes), 2),
        value=Value(hidden_sizes, layer_norm=True),
        safety=safety.default_networks(hidden_sizes),
    )
    return with_encoder(networks, encoder)


def init(key: Key, example: Transition, *, config: Any, networks: Any) -> State:
    """A fresh state; `example` is one transition without leading axes."""
    actor_key, value_key, safety_key = jax.random.split(key, 3)
    return State(
        jnp.zeros((), jnp.int32),
        *diffusion_bc.init_actor(actor_key, example, config=config, networks=networks),
        *in_sample.init(value_key, example, learning_rate=config.learning_rate, networks=networks),
        safety=safety.init(safety_key, example, config=config.safety, networks=networks.safety),
    )


def update(state: State, batch: Transition, key: Key, *, config: Config, networks: Networks) -> tuple[State, Metrics]:
    """One step of every part on `batch` [B]."""
    loss, log_weight = VALUES[config.value]
    number = getattr(config, config.value)
    state, actor_metrics = diffusion_bc.update_actor(state, batch, key, config=config, networks=networks)
    state, advantage, _, value_metrics = in_sample.update(
        state,
        batch,
        config.reward_scale * batch.reward,
        lambda value, q: loss(value, q, number),
        config=config,
        networks=networks,
    )
    safe, _, safety_metrics = safety.weigh(
        state.safety,
        batch,
        advantage,
        lambda advantage: jnp.exp(log_weight(advantage, number)),
        config=config.safety,
        networks=networks.safety,
    )
    state = state._replace(step=state.step + 1, safety=safe)
    return state, actor_metrics | value_metrics | safety_metrics


def act(
    state: State,
    observation: ArrayTree,
    key: Key,
    carry: Carry = (),
    *,
    explore: bool = False,
    config: Config,
    networks: Networks,
) -> tuple[Array, Carry, dict[str, Array]]:
    """Actions [B, A] for observations [B, O]: the best candidate by min target Q, see the module's first lines."""
    propose_key, choose_key = jax.random.split(key)
    actions, q, value = propose(state, observation, propose_key, explore=explore, config=config, networks=networks)
    if explore and (config.selection == "weighted" or (config.selection == "auto" and state.safety)):
        _, log_weight = VALUES[config.value]
        log_weights = log_weight(q - value, getattr(config, config.value))
        return diffusion_bc.choose(actions, log_weights, choose_key), carry, {}
    return diffusion_bc.choose(actions, q, None), carry, {}


def propose(
    state: Any, observation: ArrayTree, key: Key, *, explore: bool, config: Any, networks: Any
) -> tuple[Array, Array, Array]:
    """N candidates of the averaged actor [N, B, A], their values [N, B] and the states' [B], less costs if safe."""
    count = config.candidate_count
    actions = diffusion_bc.propose(
        state.ema_actor, observation, key, count, explore=explore, config=config, networks=networks
    )
    q = critics.candidate_values(networks.critic, state.target_critic, observation, actions)
    value = networks.value.apply(state.value.params, observation)
    q, value = safety.penalize(state.safety, q, value, observation, actions, networks=networks.safety)
    return actions, q, value


def check(config: Any) -> None:
    """Refuse numbers out of range; AlignIQL shares it."""
    iql.check(config)
    diffusion_bc.check(config)
    check_range("candidate_count", config.candidate_count, 1)
    check_choice("value", config.value, VALUES)
    check_range("quantile", config.quantile, 0.0, 1.0, open_low=True, open_high=True)
    check_range("exponential", config.exponential, 0.0, open_low=True)


def make(config: Config = Config(), networks: Networks | None = None, *, action_size: int | None = None) -> Algorithm:
    """Check the numbers and bind them; networks default to `default_networks(action_size)`."""
    check(config)
    check_choice("selection", config.selection, ("auto", "argmax", "weighted"))
    networks = choose_networks(networks, default_networks, action_size)
    return bind(config=config, networks=networks, batch=BatchSpec.uniform(), init=init, update=update, act=act)
