"""TD3+BC: the deterministic actor climbs the critic and is pulled to the data's actions; nothing else is added.

Fujimoto and Gu 2021, https://arxiv.org/abs/2106.06860: maximise lambda Q(s, pi(s)) - (pi(s) - a)^2, where lambda =
alpha / mean |Q| makes alpha mean the same for every reward scale. The rest is TD3 (Fujimoto et al. 2018,
https://arxiv.org/abs/1802.09477): twin critics, smoothed target actions, and actor and target networks that move on
every second critic step.

As in the authors' code (sfujim/TD3_BC): the actor climbs the first critic, the squared error is a mean over action
dimensions. Differences: initial weights, see `networks.mlp`. The paper normalises observations by the data's mean and
deviation, which matters; here that is the data set's business. The safe form (`Config.safety`) is ours, see
`safety.py` and `actor_loss`. Shapes: B batch, E = 2 critics, O observation, A action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from safejax.algorithms import critics, iql, safety
from safejax.algorithms.bc import act
from safejax.algorithms.safety import SafetyConfig, SafetyNetworks
from safejax.gradients import adam, copy, gradient_step, polyak, train_state, where_due
from safejax.losses.policy import lagrangian
from safejax.losses.value import squared_error, td_target
from safejax.networks import Critic, GaussianActor, ensemble, member, with_encoder
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
    """Numbers of TD3+BC; the defaults are the authors'. Exploration's deviation is the actor's, .1 by default."""

    discount_factor: float = 0.99
    value_weight: float = 2.5  # alpha; 0 is behaviour cloning
    target_noise: float = 0.2  # deviation of the noise on target actions
    target_noise_clip: float = 0.5
    policy_frequency: int = 2  # critic steps to one of actor and target networks
    target_update_rate: float = 0.005
    learning_rate: float = 3e-4  # critics
    actor_learning_rate: float = 3e-4
    reward_scale: float = 1.0
    safety: SafetyConfig | None = None


class Networks(NamedTuple):
    """actor: [B, O] -> distribution whose mode acts; critic: [B, O], [B, A] -> [E, B], E leads its parameters too."""

    actor: Network
    critic: Network
    safety: SafetyNetworks | tuple = ()  # needed by the safe form alone


class State(NamedTuple):
    """What learning carries."""

    step: Array  # [] int32, gradient steps of the critics
    actor: TrainState
    critic: TrainState
    target_actor: Params
    target_critic: Params
    actor_metrics: Metrics  # of the last policy step; the steps between report them again
    safety: Any  # SafetyState, or ()


def default_networks(
    action_size: int, hidden_sizes: Sequence[int] = (256, 256), *, encoder: Network | None = None
) -> Networks:
    """A deterministic actor that explores with deviation .1, and twin critics."""
    hidden_sizes = tuple(hidden_sizes)
    networks = Networks(
        actor=GaussianActor(action_size, hidden_sizes, **iql.ACTORS["deterministic"]),
        critic=ensemble(Critic(hidden_sizes), 2),
        safety=safety.default_networks(hidden_sizes),
    )
    return with_encoder(networks, encoder)


def init(key: Key, example: Transition, *, config: Config, networks: Networks) -> State:
    """A fresh state; `example` is one transition without leading axes."""
    actor_key, critic_key, safety_key = jax.random.split(key, 3)
    actor = networks.actor.init(actor_key, example.observation)
    critic = networks.critic.init(critic_key, example.observation, example.action)
    names = ["actor/loss", "actor/behavior_loss", "actor/value"]
    names += ["cost_value/policy"] if config.safety is not None else []
    return State(
        step=jnp.zeros((), jnp.int32),
        actor=train_state(actor, adam(config.actor_learning_rate)),
        critic=train_state(critic, adam(config.learning_rate)),
        target_actor=copy(actor),
        target_critic=copy(critic),
        actor_metrics={name: jnp.zeros(()) for name in names},
        safety=safety.init(safety_key, example, config=config.safety, networks=networks.safety),
    )


def update(state: State, batch: Transition, key: Key, *, config: Config, networks: Networks) -> tuple[State, Metrics]:
    """One critic step on `batch` [B]; every `policy_frequency`-th one also moves actor, targets and multiplier."""
    next_action = draw_next_action(state, batch, key, config=config, networks=networks)
    target = critic_target(state, batch, next_action, config=config, networks=networks)
    optimizer = adam(config.learning_rate)
    critic, critic_metrics = critics.fit(state.critic, batch, target, optimizer, network=networks.critic)
    safe, safety_metrics = safety.update(
        state.safety, batch, next_action, config=config.safety, networks=networks.safety
    )
    state = state._replace(step=state.step + 1, critic=critic, safety=safe)

    def improve(state: State) -> State:
        def loss(params: Params) -> tuple[Array, Metrics]:
            return actor_loss(params, state, batch, config=config, networks=networks)

        actor, metrics = gradient_step(loss, state.actor, adam(config.actor_learning_rate))
        rate = config.target_update_rate
        safe, _ = safety.tick(state.safety, metrics.get("cost_value/policy", jnp.zeros(())), config=config.safety)
        return state._replace(
            actor=actor,
            target_actor=polyak(state.target_actor, actor.params, rate),
            target_critic=polyak(state.target_critic, state.critic.params, rate),
            actor_metrics=metrics,
            safety=safe,
        )

    state = where_due(state.step % config.policy_frequency == 0, improve, state)
    metrics = critic_metrics | safety_metrics | state.actor_metrics
    if config.safety is not None:
        metrics |= {"multiplier": state.safety.multiplier.value}
    return state, metrics


def draw_next_action(state: State, batch: Transition, key: Key, *, config: Config, networks: Networks) -> Array:
    """a' [B, A]: the target actor's action plus clipped noise, clipped."""
    action = networks.actor.apply(state.target_actor, batch.next_observation).mode()
    noise = config.target_noise * jax.random.normal(key, action.shape)
    noise = jnp.clip(noise, -config.target_noise_clip, config.target_noise_clip)
    return jnp.clip(action + noise, -1.0, 1.0)


def critic_target(state: State, batch: Transition, next_action: Array, *, config: Config, networks: Networks) -> Array:
    """y = r + gamma d min_E Q_target(s', a') [B]."""
    next_q = jnp.min(networks.critic.apply(state.target_critic, batch.next_observation, next_action), axis=0)
    return td_target(config.reward_scale * batch.reward, batch.discount, next_q, config.discount_factor)


def actor_loss(
    params: Params, state: State, batch: Transition, *, config: Config, networks: Networks
) -> tuple[Array, Metrics]:
    """-alpha mean Q_1(s, pi(s)) / mean |Q_1| + mean (pi(s) - a)^2 [] and metrics; the size is a constant.

    In the safe form Q becomes (Q - lambda Qc) / (1 + lambda) and the size mean (|Q| + lambda |Qc|) / (1 + lambda):
    |Q - lambda Qc| would vanish where reward and cost balance.
    """
    action = networks.actor.apply(params, batch.observation).mode()
    first = member(networks.critic, state.critic.params, 0)
    q = networks.critic.apply(first, batch.observation, action)[0]
    objective, size = q, jnp.abs(q)
    metrics = {"actor/value": jnp.mean(q)}
    if state.safety:
        cost_q = safety.cost_values(state.safety, batch.observation, action, networks=networks.safety)
        multiplier = state.safety.multiplier.value
        objective = lagrangian(q, cost_q, multiplier, rescale=True)
        size = lagrangian(size, -jnp.abs(cost_q), multiplier, rescale=True)
        metrics["cost_value/policy"] = jnp.mean(cost_q)
    size = jax.lax.stop_gradient(jnp.maximum(jnp.mean(size), 1e-8))
    behavior = jnp.mean(squared_error(action, batch.action))
    loss = behavior - config.value_weight * jnp.mean(objective) / size
    return loss, metrics | {"actor/loss": loss, "actor/behavior_loss": behavior}


def make(config: Config = Config(), networks: Networks | None = None, *, action_size: int | None = None) -> Algorithm:
    """Check the numbers and bind them; networks default to `default_networks(action_size)`."""
    check_range("discount_factor", config.discount_factor, 0.0, 1.0)
    check_range("target_update_rate", config.target_update_rate, 0.0, 1.0)
    check_range("policy_frequency", config.policy_frequency, 1)
    for name in ("value_weight", "target_noise", "target_noise_clip"):
        check_range(name, getattr(config, name), 0.0)
    for name in ("learning_rate", "actor_learning_rate"):
        check_range(name, getattr(config, name), 0.0, open_low=True)
    safety.check(config.safety)
    networks = choose_networks(networks, default_networks, action_size)
    return bind(config=config, networks=networks, batch=BatchSpec.uniform(), init=init, update=update, act=act)
