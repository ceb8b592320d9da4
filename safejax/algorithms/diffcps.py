"""DiffCPS: Diffusion-QL whose weight on the data is the multiplier of a constraint; and its own way online.

He et al. 2023, https://arxiv.org/abs/2310.05333: maximise Q subject to KL(behavior || policy) <= epsilon, where the
divergence is bounded by the denoising loss L_bc up to a constant (the paper's proposition 1; its weights are dropped).
Every `policy_frequency` critic steps the actor descends lambda L_bc + L_q, then lambda ascends on L_bc - kappa.
Everything else is `diffusion_ql`'s, also what it says of the code.

Differences from the authors' code (felix-thu/DiffCPS@e31b267): the stored lambda is projected onto its range, as the
paper has it; theirs is clipped at use alone and winds up beyond the range, which delays its return. The paper sums L_bc
over action dimensions, the code averages; kappa here is the code's. The paper's claim of strong duality is disputed by
its reviewers (the objective is not concave in the policy); nothing here rests on it.

The safe form (`Config.safety`) is ours: the multiplier of the cost moves on policy steps. Two more phases over the same
State are ours as well. `make_alignment` re-fits critics, the cost critic among them, to the frozen policy, as Marvel
does (https://arxiv.org/abs/2412.04426), so that a checkpoint without cost critic can start. `make_finetuning` is this
update online, with the multiplier of the cost driven by finished episodes. In both the cost critic is the averaged
policy's own, whatever `safety.evaluation` is: online the data follow the policy, and the lowest cost that the data
reach says nothing about what the policy now spends. What acts, the best of the candidates under these critics, is one
improvement beyond the policy that they evaluate.

Shapes: B batch, K candidate actions, E = 2 critics, O observation, A action.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from safejax.algorithms import diffusion_ql, safety
from safejax.algorithms.diffusion_ql import Networks, act, default_networks
from safejax.algorithms.safety import SafetyConfig
from safejax.diffusion import DiffusionConfig
from safejax.gradients import adam, gradient_step, train_state, where_due
from safejax.types import (
    Algorithm,
    Array,
    BatchSpec,
    EpisodeStats,
    Key,
    Metrics,
    Params,
    TrainState,
    Transition,
    bind,
    check_range,
    choose_networks,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Numbers of DiffCPS; the defaults are the authors' for halfcheetah-medium."""

    discount_factor: float = 0.99
    behavior_limit: float = 0.06  # kappa, of L_bc; .03 to .06 for locomotion, .09 to .3 for antmaze
    initial_multiplier: float = 1.0  # lambda, of that limit; the cost has a multiplier of its own in `safety`
    minimum_multiplier: float = 0.0  # .3 for antmaze
    maximum_multiplier: float = 100.0
    multiplier_learning_rate: float = 3e-5
    policy_frequency: int = 2  # critic steps to one of actor and lambda; 4 for antmaze-large
    backup_count: int = 1  # as in Diffusion-QL, down to `reward_scale`
    candidate_count: int = 50
    target_update_rate: float = 0.005
    learning_rate: float = 3e-4
    actor_learning_rate: float = 3e-4
    clip_norm: float = 9.0
    ema_rate: float = 0.005
    ema_start: int = 1000
    ema_period: int = 5
    diffusion: DiffusionConfig = DiffusionConfig()
    reward_scale: float = 1.0
    offline_fraction: float = 0.0  # share of each batch of fine-tuning from the offline data set
    safety: SafetyConfig | None = None


class State(NamedTuple):
    """What learning carries."""

    step: Array  # [] int32, gradient steps of the critics
    actor: TrainState
    ema_actor: Params
    critic: TrainState
    target_critic: Params
    behavior_multiplier: TrainState  # params: [] lambda
    actor_metrics: Metrics  # of the last policy step; the steps between report them again
    safety: Any  # SafetyState, or ()


def init(key: Key, example: Transition, *, config: Config, networks: Networks) -> State:
    """A fresh state; `example` is one transition without leading axes."""
    start = diffusion_ql.init(key, example, config=config, networks=networks)
    multiplier = jnp.asarray(config.initial_multiplier, jnp.float32)
    metrics = {f"actor/{name}": jnp.zeros(()) for name in ("loss", "behavior_loss", "value_loss", "value")}
    if config.safety is not None:
        metrics["cost_value/policy"] = jnp.zeros(())
    return State(
        **start._asdict(),
        behavior_multiplier=train_state(multiplier, _multiplier_optimizer(config)),
        actor_metrics=metrics,
    )


def update(state: State, batch: Transition, key: Key, *, config: Config, networks: Networks) -> tuple[State, Metrics]:
    """One critic step on `batch` [B]; one in `policy_frequency`, from the first, also moves actor and multipliers."""
    critic_key, actor_key = jax.random.split(key)
    next_action = diffusion_ql.draw_next_actions(state, batch, critic_key, config=config, networks=networks)
    state, critic_metrics = diffusion_ql.update_critic(state, batch, next_action, config=config, networks=networks)
    safe, safety_metrics = safety.update(
        state.safety, batch, next_action[0], config=config.safety, networks=networks.safety
    )
    state = state._replace(safety=safe)
    improved, due, metrics = _improve(state, batch, actor_key, config=config, networks=networks)
    if config.safety is not None:
        ticked, tick_metrics = safety.tick(safe, metrics["cost_value/policy"], config=config.safety)
        safe = _where(due, ticked, safe)
        improved = improved._replace(safety=safe)
        metrics = tick_metrics | metrics | {"multiplier": safe.multiplier.value}
    return improved._replace(step=state.step + 1), critic_metrics | safety_metrics | metrics


def finetune(state: State, batch: Transition, key: Key, *, config: Config, networks: Networks) -> tuple[State, Metrics]:
    """`update` for data of the policy's own: the cost critic evaluates the policy, `adapt` moves its multiplier."""
    critic_key, actor_key = jax.random.split(key)
    state, critic_metrics = _evaluate(state, batch, critic_key, config=config, networks=networks)
    improved, _, metrics = _improve(state, batch, actor_key, config=config, networks=networks)
    return improved._replace(step=state.step + 1), critic_metrics | metrics


def align(state: State, batch: Transition, key: Key, *, config: Config, networks: Networks) -> tuple[State, Metrics]:
    """One step of value pre-alignment on offline data [B]: critics and targets move, actors and multipliers do not.

    The reward critic tends to the averaged policy's values (with `backup_count` > 1: of its best of so many), the
    cost critic to its cost values. The cost value network of `safety` plays no part and stays.
    """
    state, metrics = _evaluate(state, batch, key, config=config, networks=networks)
    return state._replace(step=state.step + 1), metrics


def ascend(multiplier: TrainState, behavior_loss: Array, *, config: Config) -> TrainState:
    """One step of lambda up L_bc - kappa by Adam, then its projection onto [minimum, maximum]: no wind-up.

    Adam moves it by about `multiplier_learning_rate` a step whatever the excess: by at most 30 in a million.
    """

    def loss(value: Params) -> tuple[Array, Metrics]:
        return (config.behavior_limit - behavior_loss) * value, {}

    stepped, _ = gradient_step(loss, multiplier, _multiplier_optimizer(config))
    return stepped._replace(params=_clip_multiplier(stepped.params, config))


def _improve(
    state: State, batch: Transition, key: Key, *, config: Config, networks: Networks
) -> tuple[State, Array, Metrics]:
    """Actor and lambda, if their step is due, and the averaged actor; whether it was due [], and the metrics."""
    due = state.step % config.policy_frequency == 0

    def learn(parts: tuple[TrainState, TrainState, Metrics]) -> tuple[TrainState, TrainState, Metrics]:
        _, behavior_multiplier, _ = parts
        # a lambda from elsewhere (`warm_start`) may lie outside this Config's range
        weight = _clip_multiplier(behavior_multiplier.params, config)
        actor, metrics = diffusion_ql.update_actor(state, batch, key, (weight, 1.0), config=config, networks=networks)
        return actor, ascend(behavior_multiplier, metrics["actor/behavior_loss"], config=config), metrics

    parts = (state.actor, state.behavior_multiplier, state.actor_metrics)
    actor, behavior_multiplier, actor_metrics = where_due(due, learn, parts)
    ema_actor = diffusion_ql.average_actor(state, actor.params, config=config)
    metrics = actor_metrics | {"behavior/multiplier": behavior_multiplier.params}
    if config.safety is not None:
        metrics["multiplier"] = state.safety.multiplier.value
    state = state._replace(
        actor=actor, ema_actor=ema_actor, behavior_multiplier=behavior_multiplier, actor_metrics=actor_metrics
    )
    return state, due, metrics


def _where(flag: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda new, old: jnp.where(flag, new, old), new, old)


def _evaluate(state: State, batch: Transition, key: Key, *, config: Any, networks: Networks) -> tuple[State, Metrics]:
    """One TD step of reward and cost critics towards the averaged policy's actions, drawn once for both."""
    next_action = diffusion_ql.draw_next_actions(state, batch, key, config=config, networks=networks)
    state, metrics = diffusion_ql.update_critic(state, batch, next_action, config=config, networks=networks)
    safe, cost_metrics = safety.update(
        state.safety, batch, next_action[0], config=safety.of_policy(config.safety), networks=networks.safety
    )
    return state._replace(safety=safe), metrics | cost_metrics


def _clip_multiplier(value: Array, config: Config) -> Array:
    return jnp.clip(value, config.minimum_multiplier, config.maximum_multiplier)


def _multiplier_optimizer(config: Config) -> Any:
    return adam(config.multiplier_learning_rate, clip_norm=config.clip_norm)


def adapt(state: State, episodes: EpisodeStats, *, config: Config, networks: Networks) -> State:
    """Move the multiplier of the cost by the mean cost of the finished `episodes`; nothing moves if none finished."""
    del networks
    return state._replace(safety=safety.adapt(state.safety, episodes, config=config.safety))


def check(config: Config) -> None:
    """Refuse numbers out of range."""
    diffusion_ql.check(config)
    check_range("behavior_limit", config.behavior_limit, 0.0)
    check_range("minimum_multiplier", config.minimum_multiplier, 0.0)
    check_range("maximum_multiplier", config.maximum_multiplier, config.minimum_multiplier)
    check_range("initial_multiplier", config.initial_multiplier, config.minimum_multiplier, config.maximum_multiplier)
    check_range("multiplier_learning_rate", config.multiplier_learning_rate, 0.0)
    check_range("policy_frequency", config.policy_frequency, 1)
    check_range("offline_fraction", config.offline_fraction, 0.0, 1.0)


def make(config: Config = Config(), networks: Networks | None = None, *, action_size: int | None = None) -> Algorithm:
    """Offline learning: check the numbers and bind them; networks default to `default_networks(action_size)`."""
    return _bind(config, networks, action_size, BatchSpec.uniform(), update)


def make_alignment(
    config: Config = Config(safety=SafetyConfig()), networks: Networks | None = None, *, action_size: int | None = None
) -> Algorithm:
    """Value pre-alignment: `update` is `align`, on uniform batches of the offline data; needs `safety`."""
    _require_safety(config)
    return _bind(config, networks, action_size, BatchSpec.uniform(), align)


def make_finetuning(
    config: Config = Config(safety=SafetyConfig()), networks: Networks | None = None, *, action_size: int | None = None
) -> Algorithm:
    """Online learning: `update` is `finetune`, from an empty or a mixed replay; needs `safety`."""
    _require_safety(config)
    batch = BatchSpec.mixed(config.offline_fraction) if config.offline_fraction else BatchSpec.uniform()
    return _bind(config, networks, action_size, batch, finetune, adapt=adapt)


def _bind(
    config: Config, networks: Networks | None, action_size: int | None, batch: BatchSpec, update: Any, **parts: Any
) -> Algorithm:
    check(config)
    networks = choose_networks(networks, default_networks, action_size)
    return bind(config=config, networks=networks, batch=batch, init=init, update=update, act=act, **parts)


def _require_safety(config: Config) -> None:
    if config.safety is None:
        raise ValueError("safety is None, expected a SafetyConfig: this phase keeps a cost critic and a multiplier")
