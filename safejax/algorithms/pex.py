"""Policy expansion: the offline policy stays, frozen; a new one learns beside it; the critic chooses for each state.

Zhang et al. 2023, https://arxiv.org/abs/2302.00935. Candidates are the frozen policy's action and a draw of the new
policy; one of them acts, with probability softmax(min Q(s, a_i) / alpha). Q and V go on learning as in IQL, from
batches that are half offline data; the new policy imitates what the pair of policies chose, weighted by exp(beta A).

Ours: the frozen policy may offer several candidates, as a diffusion policy does (see `proposal.py`); without
`explore` the best candidate acts (the authors' evaluation draws in one state of ten); the safe form scores candidates
by Q - lambda Qc, with cost values of the pair's own choices (see `safety.py`) and a multiplier that finished episodes
move. `make_alignment` is Marvel's value pre-alignment for this State: it fits the values to the frozen policy on
offline data, and so supplies a cost critic to a checkpoint that has none. Shapes: B batch, K candidates of the frozen
policy, O observation, A action.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from safejax.algorithms import critics, diffusion_bc, in_sample, iql, safety
from safejax.algorithms.proposal import make_proposal
from safejax.algorithms.safety import SafetyNetworks
from safejax.gradients import adam, gradient_step, train_state
from safejax.losses.policy import advantage_weight
from safejax.losses.value import expectile_loss
from safejax.networks import with_encoder
from safejax.types import (
    Algorithm,
    Array,
    ArrayTree,
    BatchSpec,
    Carry,
    EpisodeStats,
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
class Config(iql.Config):
    """IQL's numbers, with the paper's for antmaze, and those of the choice."""

    expectile: float = 0.9
    inverse_temperature: float = 10.0  # beta of the new policy's weights
    choice_inverse_temperature: float = 10.0  # 1 / alpha
    offline_fraction: float = 0.5


class Networks(NamedTuple):
    """actor: [B, O] -> distribution, the new one; frozen: of `proposal.py`; values as in `iql`."""

    actor: Network
    frozen: Any
    critic: Network
    value: Network
    safety: SafetyNetworks | tuple = ()  # needed by the safe form alone


class State(NamedTuple):
    """What learning carries."""

    step: Array  # [] int32, gradient steps
    actor: TrainState
    frozen: Params  # of the offline policy; nothing moves it
    critic: TrainState
    value: TrainState
    target_critic: Params
    safety: Any  # SafetyState, or ()


def default_networks(
    action_size: int,
    hidden_sizes: Sequence[int] = (256, 256),
    *,
    frozen: str = "gaussian",
    encoder: Network | None = None,
) -> Networks:
    """IQL's networks beside a frozen policy of the same sizes, a key of `proposal.PROPOSALS`."""
    offline = iql.default_networks(action_size, hidden_sizes)
    networks = Networks(offline.actor, make_proposal(frozen, action_size, hidden_sizes, encoder), *offline[1:])
    return with_encoder(networks, encoder)


def init(key: Key, example: Transition, *, config: Config, networks: Networks) -> State:
    """A fresh state, to be warm-started; `example` is one transition without leading axes."""
    actor_key, frozen_key, value_key, safety_key = jax.random.split(key, 4)
    actor = networks.actor.init(actor_key, example.observation)
    return State(
        jnp.zeros((), jnp.int32),
        train_state(actor, adam(config.learning_rate, decay_steps=config.actor_decay_steps)),
        networks.frozen.init(frozen_key, example.observation, example.action),
        *in_sample.init(value_key, example, learning_rate=config.learning_rate, networks=networks),
        safety=safety.init(safety_key, example, config=config.safety, networks=networks.safety),
    )


def update(state: State, batch: Transition, key: Key, *, config: Config, networks: Networks) -> tuple[State, Metrics]:
    """One step of values and new policy on `batch` [B]; the multiplier moves in `adapt`."""
    value_loss = functools.partial(expectile_loss, expectile=config.expectile)
    reward = config.reward_scale * batch.reward
    state, _, _, value_metrics = in_sample.update(state, batch, reward, value_loss, config=config, networks=networks)
    action, index = _composite(state, batch.observation, key, explore=True, config=config, networks=networks)
    safe, safety_metrics = safety.update_values(
        state.safety, batch, action, config=config.safety, networks=networks.safety
    )
    state = state._replace(safety=safe)
    q = critics.candidate_values(networks.critic, state.target_critic, batch.observation, action)
    value = networks.value.apply(state.value.params, batch.observation)
    q, value = safety.penalize(safe, q, value, batch.observation, action, networks=networks.safety)
    weight = advantage_weight(q - value, config.inverse_temperature, config.maximum_weight)

    def actor_loss(params: Params) -> tuple[Array, Metrics]:
        log_prob = networks.actor.apply(params, batch.observation).log_prob(action)
        loss = -jnp.mean(weight * log_prob)
        return loss, {"actor/loss": loss, "actor/weight": jnp.mean(weight), "actor/chosen": jnp.mean(index == 0)}

    optimizer = adam(config.learning_rate, decay_steps=config.actor_decay_steps)
    actor, actor_metrics = gradient_step(actor_loss, state.actor, optimizer)
    state = state._replace(step=state.step + 1, actor=actor)
    return state, value_metrics | safety_metrics | actor_metrics


def align(state: State, batch: Transition, key: Key, *, config: Config, networks: Networks) -> tuple[State, Metrics]:
    """Value pre-alignment on offline data [B]: values become the frozen policy's own; no actor and no multiplier moves.

    The frozen policy is the best of its candidates under the critic, as when it acts.
    """
    mean = functools.partial(expectile_loss, expectile=0.5)
    action = frozen_action(state, batch.observation, key, explore=True, config=config, networks=networks)
    reward = config.reward_scale * batch.reward
    evaluated, _, _, metrics = in_sample.update(
        state, batch, reward, mean, value_action=action, config=config, networks=networks
    )
    safe, safety_metrics = safety.update_values(
        state.safety, batch, action, config=safety.of_policy(config.safety), networks=networks.safety
    )
    return evaluated._replace(step=state.step + 1, safety=safe), metrics | safety_metrics


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
    """Actions [B, A]: the best of new and frozen candidates, or one drawn by softmax(Q / alpha) if `explore`.

    `extras["policy_index"]` [B] is 0 where the new policy acts, else 1 + the frozen candidate.
    """
    action, index = _composite(state, observation, key, explore=explore, config=config, networks=networks)
    return action, carry, {"policy_index": index}


def frozen_action(
    state: State, observation: ArrayTree, key: Key, *, explore: bool, config: Config, networks: Networks
) -> Array:
    """The frozen policy's best candidate [B, A]."""
    del config
    candidates = networks.frozen.propose(state.frozen, observation, key, explore=explore)
    return diffusion_bc.choose(candidates, _scores(state, observation, candidates, networks), None)


def _composite(
    state: State, observation: ArrayTree, key: Key, *, explore: bool, config: Config, networks: Networks
) -> tuple[Array, Array]:
    """The pair's action [B, A] and which candidate it was [B]."""
    actor_key, frozen_key, choose_key = jax.random.split(key, 3)
    policy = networks.actor.apply(state.actor.params, observation)
    new = jnp.clip(policy.sample(actor_key) if explore else policy.mode(), -1.0, 1.0)
    frozen = networks.frozen.propose(state.frozen, observation, frozen_key, explore=explore)
    candidates = jnp.concatenate([new[None], frozen])
    logits = config.choice_inverse_temperature * _scores(state, observation, candidates, networks)
    return critics.pick(candidates, logits, choose_key if explore else None)


def _scores(state: State, observation: ArrayTree, candidates: Array, networks: Networks) -> Array:
    """min Q [K, B] under the online critic, less costs if safe."""
    q = critics.candidate_values(networks.critic, state.critic.params, observation, candidates)
    return safety.penalize(state.safety, q, q[0], observation, candidates, networks=networks.safety)[0]


def adapt(state: State, episodes: EpisodeStats, *, config: Config, networks: Networks) -> State:
    """Move the safe form's multiplier by the mean cost of the finished `episodes`."""
    del networks
    return state._replace(safety=safety.adapt(state.safety, episodes, config=config.safety))


def make(config: Config = Config(), networks: Networks | None = None, *, action_size: int | None = None) -> Algorithm:
    """Online learning beside the frozen policy."""
    return _bind(config, networks, action_size, BatchSpec.mixed(config.offline_fraction), update)


def make_alignment(
    config: Config = Config(), networks: Networks | None = None, *, action_size: int | None = None
) -> Algorithm:
    """Value pre-alignment: `update` is `align`, on uniform batches of the offline data."""
    return _bind(config, networks, action_size, BatchSpec.uniform(), align)


def _bind(
    config: Config, networks: Networks | None, action_size: int | None, batch: BatchSpec, update: Any
) -> Algorithm:
    iql.check(config)
    check_range("inverse_temperature", config.inverse_temperature, 0.0)
    check_range("choice_inverse_temperature", config.choice_inverse_temperature, 0.0)
    networks = choose_networks(networks, default_networks, action_size)
    return bind(config=config, networks=networks, batch=batch, init=init, update=update, act=act, adapt=adapt)
