"""SafeDreamer's BSRP-Lag: an actor and two critics that learn in imagination alone, under an augmented Lagrangian.

Huang et al. 2023, https://arxiv.org/abs/2307.07176: background planning, no planner when acting. From every state of
the replayed windows the actor imagines H steps; with returns R and C, values V, scale S and weights w_t the actor's
loss is

    -mean w_t (R_t - V(s_t)) / S - entropy_coefficient H[pi] + Psi(mean sum_t C_t - cost_limit),

whose gradient runs through the model's dynamics. Values regress on their returns and on their slow copies.
What the released code (PKU-Alignment/SafeDreamer@529221f) does otherwise: see `world_models.py` and `imagination.py`.
Shapes: B batch, T window, N = B T imagined rollouts, H horizon, A action.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from safejax.algorithms import imagination, world_models
from safejax.algorithms.imagination import Dream, Scale, Targets
from safejax.algorithms.world_models import (
    Config,
    initial_carry,
    learn_model,
    optimizer,
    perceive,
    remembered,
    scaled,
    windows,
)
from safejax.constraints import AugmentedLagrangianState, augmented_penalty
from safejax.gradients import copy, gradient_step, train_state
from safejax.losses.model import BINS
from safejax.networks.heads import Head, LatentActor
from safejax.networks.world_model import WorldModel, world_model
from safejax.types import (
    Algorithm,
    Array,
    ArrayTree,
    Carry,
    Key,
    Metrics,
    Network,
    Params,
    TrainState,
    Transition,
    bind,
    choose_networks,
)

__all__ = ["Config", "Networks", "State", "act", "default_networks", "init", "make", "update"]


class Networks(NamedTuple):
    """model; actor: features -> distribution; critic: features -> two-hot logits, of reward and cost alike."""

    model: WorldModel
    actor: Network
    critic: Network


class Critic(NamedTuple):
    """Values and their slow copy."""

    value: TrainState
    slow: Params


class State(NamedTuple):
    """What learning carries."""

    step: Array  # [] int32, gradient steps
    model: TrainState
    actor: TrainState
    reward: Critic
    cost: Critic
    scale: Scale  # of reward returns
    multiplier: AugmentedLagrangianState


def default_networks(
    action_size: int,
    hidden_sizes: Sequence[int] = (512, 512),
    *,
    size: str | Sequence[int] = "paper",
    dtype: str = "float32",
    encoder: Network | None = None,
) -> Networks:
    """The paper's sizes: `size` of the world model, `hidden_sizes` of all others; `encoder` replaces the model's."""
    hidden_sizes = tuple(hidden_sizes)
    return Networks(
        world_model(size, bins=BINS, dtype=dtype, encoder=encoder),
        LatentActor(action_size, hidden_sizes, dtype),
        Head(BINS, hidden_sizes, zero=True, dtype=dtype),
    )


def init(key: Key, example: Transition, *, config: Config, networks: Networks) -> State:
    """A fresh state; `example` is one transition without leading axes."""
    model_key, actor_key, reward_key, cost_key = jax.random.split(key, 4)
    model = networks.model.init(model_key, example.observation, example.action)
    features = networks.model.initial(model, ()).features

    def critic(key: Key) -> Critic:
        params = networks.critic.init(key, features)
        return Critic(train_state(params, optimizer(config)), copy(params))

    return State(
        step=jnp.zeros((), jnp.int32),
        model=train_state(model, world_models.model_optimizer(config)),
        actor=train_state(networks.actor.init(actor_key, features), optimizer(config)),
        reward=critic(reward_key),
        cost=critic(cost_key),
        scale=imagination.no_scale(),
        multiplier=world_models.constraint(config).init(),
    )


class Judged(NamedTuple):
    """A dream and its worth."""

    dream: Dream
    reward_return: Array  # [N, H]
    cost_return: Array  # [N, H]
    constrained: Array  # [] what the Lagrangian limits


def update(state: State, batch: Transition, key: Key, *, config: Config, networks: Networks) -> tuple[State, Metrics]:
    """One step of model, actor, critics and multiplier on windows [B, T]."""
    batch = scaled(batch, config)
    model_key, dream_key = jax.random.split(key)
    model, seen, model_metrics = learn_model(state.model, batch, model_key, config=config, networks=networks)
    start = imagination.starts(seen.state)

    def loss(params: Params) -> tuple[Array, tuple[Judged, Metrics]]:
        policy = lambda features, key: networks.actor.apply(params, features).sample(key)  # noqa: E731
        dream = imagination.imagine(networks.model, model.params, start, policy, dream_key, config.horizon)
        value = imagination.value(networks.critic, state.reward.value.params, dream.features)
        cost_value = imagination.value(networks.critic, state.cost.value.params, dream.features)
        reward_return = imagination.returns(dream.reward, dream.going_on, value, config=config)
        cost_return = imagination.returns(dream.cost, dream.going_on, cost_value, config=config)
        weight = dream.weight(config.discount_factor)
        advantage = (reward_return - value[:, :-1]) / state.scale.spread
        entropy = networks.actor.apply(params, jax.lax.stop_gradient(dream.features[:, :-1])).entropy()
        constrained = imagination.constrained_cost(cost_return, 1.0, config=config)
        penalty = augmented_penalty(state.multiplier, constrained - config.cost_limit)
        error = -jnp.mean(weight * (advantage + config.entropy_coefficient * entropy)) + penalty
        metrics = {"actor/loss": error, "actor/entropy": jnp.mean(entropy), "actor/cost": constrained}
        return error, (Judged(dream, reward_return, cost_return, constrained), metrics)

    actor, (judged, actor_metrics) = gradient_step(loss, state.actor, optimizer(config))
    inputs, weight = (judged.dream.features[:, :-1],), judged.dream.weight(config.discount_factor)

    def fit(critic: Critic, returns: Array, name: str) -> tuple[Critic, Metrics]:
        targets = imagination.join(Targets(inputs, returns, weight))
        *parts, metrics = imagination.regress(
            critic.value, critic.slow, targets, network=networks.critic, config=config, name=name
        )
        return Critic(*parts), metrics

    reward, reward_metrics = fit(state.reward, judged.reward_return, "critic")
    cost, cost_metrics = fit(state.cost, judged.cost_return, "cost_critic")
    multiplier = world_models.constraint(config).update(state.multiplier, judged.constrained, config.cost_limit)
    scale = imagination.follow(state.scale, judged.reward_return, config.scale_decay)
    metrics = model_metrics | actor_metrics | reward_metrics | cost_metrics
    metrics |= {"multiplier": multiplier.value, "scale": scale.spread}
    return State(state.step + 1, model, actor, reward, cost, scale, multiplier), metrics


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
    """Actions [B, A] for observations [B, ...]: the mode in the likeliest state, or draws of both if `explore`."""
    latent_key, action_key = jax.random.split(key)
    latent = perceive(state, observation, carry, latent_key if explore else None, config=config, networks=networks)
    policy = networks.actor.apply(state.actor.params, latent.features)
    action = imagination.bounded(policy.sample(action_key) if explore else policy.mode())
    return action, remembered(latent, action), {}


def make(config: Config = Config(), networks: Any = None, *, action_size: int | None = None) -> Algorithm:
    """Check the numbers and bind them, for offline and online alike; networks default to `default_networks`."""
    world_models.check(config)
    return bind(
        config=config,
        networks=choose_networks(networks, default_networks, action_size),
        batch=windows(config, config.offline_fraction),
        init=init,
        update=update,
        act=act,
        initial_carry=initial_carry,
    )
