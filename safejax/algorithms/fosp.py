"""FOSP: a world model, in-sample values, the probability of violating, and an offline policy that a new one joins.

Cao et al. 2024, Fine-tuning Offline Safe Policy through World Models, https://arxiv.org/abs/2407.04942. Two phases over
one State. `make_offline` learns everything but the online actor from windows of data; the actor raises

    E[w log pi(a|s)] + entropy_coefficient H[pi] - Psi(mean sum_t (1 - p(s_t)) C_t - cost_limit),
    w = (1 - p) min(exp(beta_1 A_r), 100) + p min(exp(-beta_2 A_c), 150),

over the data's actions: p is the probability of a violation ahead (`feasibility.py`), A = (Q - V) / S the advantages of
reward and cost (`latent_values.py`), Psi the augmented Lagrangian of imagined cost returns C. `make_finetuning` freezes
that actor and trains a fresh one beside it, on imagined actions of the pair: of both proposals in a state one is drawn
with probability softmax(5 (Q_r - .1 Q_c)). Batches mix offline and new windows; everything else goes on learning.

This is the method as the paper describes it. The paper's beta_1, beta_2, clips and p's learning rate are not known to
us: beta and clips are FISOR's. What the released code (Sunlighted/FOSP@5591393) does otherwise, and we do not:
- for continuous actions its actor climbs Q through the dynamics, so that w never acts (`actor_gradient="backprop"`);
- its two actors share their parameters, so the offline one is not frozen;
- its p never sees a cost, and its V is a lower expectile of rewards, too;
- it chooses for the whole batch by the first row's scores, which are equal, as one action overwrites the other;
- both advantages are divided by the scale of rewards, and the reward's is cut where Q_c > 0;
- time limits are learned as terminations; see also `world_models.py` and `imagination.py`.
Ours: p is a constant in Psi, else infeasible states would pay; of a dreamt action that was cut to [-1, 1] the draw
itself is cloned, else equal weights alone would narrow the policy.

Shapes: B batch, T window, N = B T imagined rollouts, H horizon, F features, A action.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from safejax.algorithms import critics, feasibility, feasible_policy, imagination, latent_values, world_models
from safejax.algorithms.feasible_policy import Judged
from safejax.algorithms.imagination import Scale, Targets
from safejax.algorithms.latent_values import Values
from safejax.algorithms.world_models import initial_carry, learn_model, optimizer, perceive, remembered, scaled, windows
from safejax.constraints import AugmentedLagrangianState
from safejax.gradients import adam, gradient_step, train_state
from safejax.losses.model import BINS
from safejax.networks.heads import Head, LatentActor
from safejax.networks.world_model import WorldModel, world_model
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


@dataclass(frozen=True, kw_only=True)
class Config(world_models.Config):
    """FOSP's numbers; three switches are the paper's ablations."""

    cost_limit: float = 0.0
    offline_fraction: float = 0.5  # of online batches
    expectile: float = 0.8
    cost_expectile: float = 0.2
    inverse_temperature: float = 3.0  # beta_1
    cost_inverse_temperature: float = 5.0  # beta_2
    maximum_weight: float = 100.0
    maximum_cost_weight: float = 150.0
    violation_threshold: float = 0.5  # cost of a step, from which on it violates
    violation_discount_factor: float = 0.99
    violation_learning_rate: float = 1e-5  # below the actor's: p shall change more slowly than the policy it judges
    choice_inverse_temperature: float = 5.0
    choice_cost_coefficient: float = 0.1
    gate: str = "reachability"  # or "none": p is taken for 0
    expansion: str = "safe_pex"  # or "pex": chosen by Q_r alone; or "off": online the offline actor goes on learning
    actor_gradient: str = "weighted"  # or "backprop": Q through the dynamics


class Networks(NamedTuple):
    """model; actor: features -> distribution, of both; the heads, of reward and cost alike; violation: -> logit."""

    model: WorldModel
    actor: Network
    critic: Network  # features, action -> two-hot logits of Q
    value: Network  # features -> two-hot logits of V
    violation: Network  # features -> logit [..., 1] of p


class State(NamedTuple):
    """What both phases carry."""

    step: Array  # [] int32, gradient steps
    model: TrainState
    offline_actor: TrainState  # rests online, unless the expansion is off
    online_actor: TrainState  # rests offline
    reward: Values
    cost: Values
    violation: TrainState
    reward_scale: Scale
    cost_scale: Scale
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
    two_hot = Head(BINS, hidden_sizes, zero=True, dtype=dtype)
    return Networks(
        world_model(size, bins=BINS, dtype=dtype, encoder=encoder),
        LatentActor(action_size, hidden_sizes, dtype),
        critic=two_hot,
        value=two_hot,
        violation=Head(1, hidden_sizes, zero=True, dtype=dtype),
    )


def init(key: Key, example: Transition, *, config: Config, networks: Networks) -> State:
    """A fresh state; `example` is one transition without leading axes."""
    model_key, offline_key, online_key, reward_key, cost_key, violation_key = jax.random.split(key, 6)
    model = networks.model.init(model_key, example.observation, example.action)
    features = networks.model.initial(model, ()).features
    values = functools.partial(
        latent_values.init, features=features, action=example.action, config=config, networks=networks
    )
    return State(
        step=jnp.zeros((), jnp.int32),
        model=train_state(model, world_models.model_optimizer(config)),
        offline_actor=train_state(networks.actor.init(offline_key, features), optimizer(config)),
        online_actor=train_state(networks.actor.init(online_key, features), optimizer(config)),
        reward=values(reward_key),
        cost=values(cost_key),
        violation=train_state(networks.violation.init(violation_key, features), _violation_optimizer(config)),
        reward_scale=imagination.no_scale(),
        cost_scale=imagination.no_scale(),
        multiplier=world_models.constraint(config).init(),
    )


def update(
    state: State, batch: Transition, key: Key, *, online: bool, config: Config, networks: Networks
) -> tuple[State, Metrics]:
    """One step of everything but the other phase's actor, on windows [B, T]."""
    batch = scaled(batch, config)
    model_key, dream_key = jax.random.split(key)
    model, seen, metrics = learn_model(state.model, batch, model_key, config=config, networks=networks)
    start = imagination.starts(seen.state)
    joint = _has_two(config, online)
    learner = "online_actor" if joint else "offline_actor"

    def loss(params: Params) -> tuple[Array, tuple[Judged, Metrics]]:
        acting = state._replace(**{learner: TrainState(params, ())})
        policy = functools.partial(_decide, acting, explore=True, joint=joint, config=config, networks=networks)
        dream = imagination.imagine(
            networks.model, model.params, start, lambda *inputs: policy(*inputs)[0], dream_key, config.horizon
        )
        judged = feasible_policy.judge(state, dream, config=config, networks=networks)
        drawn = dream.drawn if online else batch.action.reshape(-1, 1, batch.action.shape[-1])
        error, metrics = feasible_policy.loss(params, state, judged, drawn, config=config, networks=networks)
        return error, (judged, metrics)

    actor, (judged, actor_metrics) = gradient_step(loss, getattr(state, learner), optimizer(config))
    dream, weight = judged.dream, judged.weight
    reward, reward_metrics, cost, cost_metrics = _learn_values(
        state, batch, seen, judged, online=online, config=config, networks=networks
    )
    violation, violation_metrics = feasibility.learn(
        state.violation,
        [
            feasibility.of_data(seen, batch, config.violation_threshold),
            feasibility.of_dream(dream, batch, weight, config.violation_threshold),
        ],
        network=networks.violation,
        discount_factor=config.violation_discount_factor,
        optimizer=_violation_optimizer(config),
    )
    multiplier = world_models.constraint(config).update(state.multiplier, judged.constrained, config.cost_limit)
    state = state._replace(
        step=state.step + 1,
        model=model,
        reward=reward,
        cost=cost,
        violation=violation,
        reward_scale=imagination.follow(state.reward_scale, judged.reward_return, config.scale_decay),
        cost_scale=imagination.follow(state.cost_scale, judged.cost_return, config.scale_decay),
        multiplier=multiplier,
        **{learner: actor},
    )
    metrics |= actor_metrics | reward_metrics | cost_metrics | violation_metrics
    return state, metrics | {"multiplier": multiplier.value}


def _learn_values(
    state: State, batch: Transition, seen: Any, judged: Judged, *, online: bool, config: Config, networks: Networks
) -> tuple[Values, Metrics, Values, Metrics]:
    """One step of the values of rewards and costs: on dreams, and offline on the data's own steps."""

    def learn(values: Values, signal: Array, returns: Array, expectile: float, name: str) -> tuple[Values, Metrics]:
        inputs = judged.dream.features[:, :-1], judged.dream.action
        sources = [Targets(inputs, returns, judged.weight)]
        if not online:
            imagined = returns[:, 0].reshape(signal.shape)
            next_value = values.v(seen.arrival.features, networks=networks)
            features = seen.state.features
            sources.append(latent_values.of_data(batch, signal, features, imagined, next_value, config=config))
        targets = imagination.join(*sources)
        return latent_values.learn(values, targets, expectile=expectile, name=name, config=config, networks=networks)

    reward = learn(state.reward, batch.reward, judged.reward_return, config.expectile, "")
    cost = learn(state.cost, batch.cost, judged.cost_return, config.cost_expectile, "cost_")
    return *reward, *cost


def act(
    state: State,
    observation: ArrayTree,
    key: Key,
    carry: Carry = (),
    *,
    explore: bool = False,
    online: bool,
    config: Config,
    networks: Networks,
) -> tuple[Array, Carry, dict[str, Array]]:
    """Actions [B, A] for observations [B, ...], without draws unless `explore`.

    `extras["policy_index"]` [B] is 0 where the learning policy acts and 1 where the frozen one does.
    """
    latent_key, action_key = jax.random.split(key)
    latent = perceive(state, observation, carry, latent_key if explore else None, config=config, networks=networks)
    joint = _has_two(config, online)
    drawn, index = _decide(
        state, latent.features, action_key, explore=explore, joint=joint, config=config, networks=networks
    )
    action = imagination.bounded(drawn)
    return action, remembered(latent, action), {"policy_index": index}


def _decide(
    state: State, features: Array, key: Key, *, explore: bool, joint: bool, config: Config, networks: Networks
) -> tuple[Array, Array]:
    """A draw [B, A] at features [B, F], and whose it is, [B]: of the pair if `joint`, else the offline actor's."""
    learner_key, frozen_key, choose_key = jax.random.split(key, 3)

    def propose(actor: TrainState, key: Key) -> Array:
        policy = networks.actor.apply(actor.params, features)
        return policy.sample(key) if explore else policy.mode()

    drawn = propose(state.online_actor if joint else state.offline_actor, learner_key)
    if not joint:
        return drawn, jnp.zeros(drawn.shape[:-1], jnp.int32)
    candidates = jnp.stack([drawn, propose(state.offline_actor, frozen_key)])
    logits = choice_logits(state, features, imagination.bounded(candidates), config=config, networks=networks)
    return critics.pick(candidates, logits, choose_key if explore else None)


def choice_logits(state: State, features: Array, candidates: Array, *, config: Config, networks: Networks) -> Array:
    """[2, B] of candidates [2, B, A] at features [B, F]: 5 (Q_r - .1 Q_c), the second part in the safe form alone."""
    score = jax.vmap(lambda action: state.reward.q(features, action, networks=networks))(candidates)
    if config.expansion == "safe_pex":
        cost = jax.vmap(lambda action: state.cost.q(features, action, networks=networks))(candidates)
        score -= config.choice_cost_coefficient * cost
    return config.choice_inverse_temperature * score


def make_offline(
    config: Config = Config(), networks: Networks | None = None, *, action_size: int | None = None
) -> Algorithm:
    """The first phase, on windows of the offline data; acts by the offline actor."""
    return _bind(config, networks, action_size, windows(config, 0.0), online=False)


def make_finetuning(
    config: Config = Config(), networks: Networks | None = None, *, action_size: int | None = None
) -> Algorithm:
    """The second phase, from the State of the first; acts by the pair, or by the offline actor if expansion is off."""
    return _bind(config, networks, action_size, windows(config, config.offline_fraction), online=True)


make = make_finetuning  # what a trained policy acts with; of the first phase alone, with Config(expansion="off")


def _bind(config: Config, networks: Any, action_size: int | None, batch: BatchSpec, *, online: bool) -> Algorithm:
    world_models.check(config)
    check_range("expectile", config.expectile, 0.0, 1.0, open_low=True, open_high=True)
    check_range("cost_expectile", config.cost_expectile, 0.0, 1.0, open_low=True, open_high=True)
    check_range("inverse_temperature", config.inverse_temperature, 0.0)
    check_range("cost_inverse_temperature", config.cost_inverse_temperature, 0.0)
    check_range("violation_discount_factor", config.violation_discount_factor, 0.0, 1.0)
    check_range("violation_learning_rate", config.violation_learning_rate, 0.0, open_low=True)
    check_range("choice_inverse_temperature", config.choice_inverse_temperature, 0.0)
    check_choice("gate", config.gate, ("reachability", "none"))
    check_choice("expansion", config.expansion, ("safe_pex", "pex", "off"))
    check_choice("actor_gradient", config.actor_gradient, ("weighted", "backprop"))
    return bind(
        config=config,
        networks=choose_networks(networks, default_networks, action_size),
        batch=batch,
        init=init,
        update=functools.partial(update, online=online),
        act=functools.partial(act, online=online),
        initial_carry=initial_carry,
    )


def _has_two(config: Config, online: bool) -> bool:
    """Whether a learning policy stands beside a frozen one."""
    return online and config.expansion != "off"


def _violation_optimizer(config: Config) -> Any:
    return adam(config.violation_learning_rate, clip_norm=100.0, epsilon=1e-5)
