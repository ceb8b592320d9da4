"""AlignIQL: IDQL with another answer to "which policy attains V?": the one nearest to the data that is aligned with it.

He et al. 2024, https://arxiv.org/abs/2405.18187. A policy is aligned if E_pi Q(s, a) = V(s). IDQL's weights are aligned
for the exact V of its own regression alone; these are for any V. `alignment="soft"` minimises KL(pi || mu) +
eta E_pi (Q - V)^2 and takes candidates by exp(-eta (Q - V)^2); `"hard"` meets the constraint itself and takes them by
exp(-beta(s) Q), where beta(s) is a learned multiplier. Values and behaviour policy are IDQL's. `policy="gaussian"` is
weighted regression with the same weights instead of candidates.

Losses and numbers are the released code's (felix-thu/AlignIQL; Gaussian: felix-thu/RPEX); the optimisation problems
behind them are derived, unconfirmed against the paper's text. What that code does otherwise, and we do not:
- its stochastic acting normalises -(Q - V)^2 itself, so that the least aligned candidate is the likeliest;
- its hard weight overflows; here candidates are compared by -beta Q;
- it estimates the dual of the hard problem by the batch's one action a state (`dual="sample"`), which has no lower
  bound where an observation is seen once. `"logsumexp"`, the default, draws K actions of the behaviour policy instead
  and eliminates alpha: bounded wherever V lies among their values, low by O(1/K), exact as K grows;
- its Gaussian form has eta = 3 (the diffusion's is 1, which argmax ignores) and takes the advantage before V's step.

Ours: `"sample"` takes Q from the target critic before this step's average; the rest as in `idql`. The safe form
(`Config.safety`) is ours, see `safety.py`: Q - lambda Qc is aligned with V - lambda Vc, Vc being the lower expectile of
the costs whatever `evaluation` says, for a policy is aligned with its own cost already. Shapes: B batch, K samples or
candidates, E critics, O observation, A action.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from safejax.algorithms import bc, critics, diffusion_bc, idql, in_sample, iql, safety
from safejax.gradients import adam, gradient_step, train_state
from safejax.losses.extraction import (
    alignment_alpha,
    alignment_dual,
    alignment_dual_logsumexp,
    hard_alignment_log_weight,
    soft_alignment_log_weight,
)
from safejax.networks import GaussianActor, Value, with_encoder
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
class Config(idql.Config):
    """IDQL's numbers and alignment's; the defaults are the released code's."""

    alignment: str = "soft"  # or "hard"
    policy: str = "diffusion"  # or "gaussian"
    penalty: float = 1.0  # eta of soft alignment; 3 in the Gaussian code
    dual: str = "logsumexp"  # or "sample": how hard alignment estimates its dual
    dual_sample_count: int = 16  # K of the first
    multiplier_learning_rate: float = 3e-5
    multiplier_clip_norm: float = 1.0  # of each multiplier's gradient
    maximum_weight: float = 100.0  # clip of hard alignment's weights of data; soft ones are at most 1
    selection: str = "softmax"  # or "argmax": how exploration chooses among the candidates


class Networks(NamedTuple):
    """IDQL's with `multiplier`: [B, O] -> [B], of alpha and of beta; actor: a denoiser, or [B, O] -> distribution."""

    actor: Any
    critic: Network
    value: Network
    multiplier: Any = ()  # needed by hard alignment alone
    safety: Any = ()  # SafetyNetworks, needed by the safe form alone


class State(NamedTuple):
    """What learning carries."""

    step: Array  # [] int32, gradient steps
    actor: TrainState
    ema_actor: Params  # () with a Gaussian policy
    critic: TrainState
    value: TrainState
    target_critic: Params
    alpha: Any  # TrainState of the normaliser; () unless `dual` is "sample"
    beta: Any  # TrainState; () with soft alignment
    safety: Any  # SafetyState, or ()


def default_networks(
    action_size: int,
    hidden_sizes: Sequence[int] = (256, 256),
    *,
    actor: str = "diffusion",
    encoder: Network | None = None,
) -> Networks:
    """IDQL's, and multipliers like its value; `actor` is "diffusion" or a key of `iql.ACTORS`."""
    check_choice("actor", actor, ("diffusion", *iql.ACTORS))
    hidden_sizes = tuple(hidden_sizes)
    denoiser, critic, value, cost_networks = idql.default_networks(action_size, hidden_sizes)
    gaussian = None if actor == "diffusion" else GaussianActor(action_size, hidden_sizes, **iql.ACTORS[actor])
    networks = Networks(gaussian or denoiser, critic, value, Value(hidden_sizes, layer_norm=True), cost_networks)
    return with_encoder(networks, encoder)


def init(key: Key, example: Transition, *, config: Config, networks: Networks) -> State:
    """A fresh state; `example` is one transition without leading axes."""
    actor_key, value_key, multiplier_key, safety_key = jax.random.split(key, 4)
    if config.policy == "diffusion":
        actor = diffusion_bc.init_actor(actor_key, example, config=config, networks=networks)
    else:
        actor = train_state(networks.actor.init(actor_key, example.observation), _actor_optimizer(config)), ()

    def multiplier(key: Key) -> TrainState:
        return train_state(networks.multiplier.init(key, example.observation), _multiplier_optimizer(config))

    alpha_key, beta_key = jax.random.split(multiplier_key)
    hard = config.alignment == "hard"
    return State(
        jnp.zeros((), jnp.int32),
        *actor,
        *in_sample.init(value_key, example, learning_rate=config.learning_rate, networks=networks),
        alpha=multiplier(alpha_key) if hard and config.dual == "sample" else (),
        beta=multiplier(beta_key) if hard else (),
        safety=safety.init(safety_key, example, config=config.safety, networks=networks.safety),
    )


def update(state: State, batch: Transition, key: Key, *, config: Config, networks: Networks) -> tuple[State, Metrics]:
    """One step of every part on `batch` [B]; the multipliers follow the new V, a Gaussian actor everything else."""
    actor_key, dual_key = jax.random.split(key)
    metrics: Metrics = {}
    if config.policy == "diffusion":
        state, metrics = diffusion_bc.update_actor(state, batch, actor_key, config=config, networks=networks)
    value_loss, _ = idql.VALUES[config.value]
    state, advantage, q, value_metrics = in_sample.update(
        state,
        batch,
        config.reward_scale * batch.reward,
        lambda value, q: value_loss(value, q, getattr(config, config.value)),
        config=config,
        networks=networks,
    )
    metrics |= value_metrics
    if config.alignment == "hard":
        state, log_weight, dual_metrics = _update_multipliers(
            state, batch, q, q - advantage, dual_key, config=config, networks=networks
        )
        metrics |= dual_metrics
    else:
        log_weight = functools.partial(soft_alignment_log_weight, penalty=config.penalty)
    safe, weight, safety_metrics = safety.weigh(
        state.safety,
        batch,
        advantage,
        lambda advantage: jnp.exp(jnp.minimum(log_weight(advantage), jnp.log(config.maximum_weight))),
        config=safety.of_data(config.safety),
        networks=networks.safety,
    )
    state = state._replace(step=state.step + 1, safety=safe)
    metrics |= safety_metrics | {"alignment/weight": jnp.mean(weight)}
    if config.policy == "gaussian":
        state, actor_metrics = _regress_actor(state, batch, weight, config=config, networks=networks)
        metrics |= actor_metrics
    return state, metrics


def _update_multipliers(
    state: State, batch: Transition, q: Array, value: Array, key: Key, *, config: Config, networks: Networks
) -> tuple[State, Any, Metrics]:
    """One step of beta, and of alpha if the dual needs one, each with the other as it was.

    Args:
      q, value: [B] of the batch.

    Returns:
      The state; log pi / mu of the batch's actions, -1 - alpha - beta Q, as a function of their advantages [B], under
      the multipliers before this step; metrics.
    """
    observation, actions = batch.observation, batch.action
    sampled = config.dual == "logsumexp"
    if sampled:
        count = config.dual_sample_count
        actions = diffusion_bc.propose(
            state.ema_actor, observation, key, count, explore=True, config=config, networks=networks
        )
        q = critics.candidate_values(networks.critic, state.target_critic, observation, actions)
    q, value = safety.penalize(state.safety, q, value, observation, actions, networks=networks.safety)
    beta = networks.multiplier.apply(state.beta.params, observation)
    alpha = alignment_alpha(beta, q) if sampled else networks.multiplier.apply(state.alpha.params, observation)

    def dual(alpha: Array, beta: Array) -> Array:
        loss = alignment_dual_logsumexp(beta, q, value) if sampled else alignment_dual(alpha, beta, q, value)
        return jnp.mean(loss)

    def alpha_loss(params: Params) -> tuple[Array, Metrics]:
        return dual(networks.multiplier.apply(params, observation), beta), {}

    def beta_loss(params: Params) -> tuple[Array, Metrics]:
        loss = dual(alpha, networks.multiplier.apply(params, observation))
        return loss, {
            "alignment/dual": loss,
            "alignment/alpha": jnp.mean(alpha),
            "alignment/beta": jnp.mean(beta),
        }

    optimizer = _multiplier_optimizer(config)
    new_beta, metrics = gradient_step(beta_loss, state.beta, optimizer)
    if not sampled:
        state = state._replace(alpha=gradient_step(alpha_loss, state.alpha, optimizer)[0])
    return (
        state._replace(beta=new_beta),
        lambda advantage: hard_alignment_log_weight(advantage + value, beta) - alpha - 1.0,
        metrics,
    )


def _regress_actor(
    state: State, batch: Transition, weight: Array, *, config: Config, networks: Networks
) -> tuple[State, Metrics]:
    """One step of a Gaussian actor up the weighted log-likelihood of `batch` [B]."""

    def loss(params: Params) -> tuple[Array, Metrics]:
        log_prob = networks.actor.apply(params, batch.observation).log_prob(batch.action)
        return -jnp.mean(weight * log_prob), {"actor/loss": -jnp.mean(weight * log_prob)}

    actor, metrics = gradient_step(loss, state.actor, _actor_optimizer(config))
    return state._replace(actor=actor), metrics


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
    """Actions [B, A] for observations [B, O]: the candidate of the largest weight, or a draw by weight if `explore`.

    The soft weight takes the candidate whose Q is nearest to V, hence the best one where V is above them all; the hard
    one takes the best where beta(s) < 0, as it is for V above the mean of Q, and the worst where beta(s) > 0.
    A Gaussian policy acts by its mode, or draws.
    """
    if config.policy == "gaussian":
        return bc.act(state, observation, key, carry, explore=explore, config=config, networks=networks)
    propose_key, choose_key = jax.random.split(key)
    actions, q, value = idql.propose(state, observation, propose_key, explore=explore, config=config, networks=networks)
    if config.alignment == "hard":
        log_weight = hard_alignment_log_weight(q, networks.multiplier.apply(state.beta.params, observation))
    else:
        log_weight = soft_alignment_log_weight(q - value, config.penalty)
    drawn = explore and config.selection == "softmax"
    return diffusion_bc.choose(actions, log_weight, choose_key if drawn else None), carry, {}


def _actor_optimizer(config: Config) -> Any:
    return adam(config.actor_learning_rate, decay_steps=config.actor_decay_steps)


def _multiplier_optimizer(config: Config) -> Any:
    return adam(config.multiplier_learning_rate, clip_norm=config.multiplier_clip_norm)


def check(config: Config) -> None:
    """Refuse numbers out of range, and the one combination that has no meaning."""
    idql.check(config)
    check_choice("alignment", config.alignment, ("soft", "hard"))
    check_choice("policy", config.policy, ("diffusion", "gaussian"))
    check_choice("dual", config.dual, ("logsumexp", "sample"))
    check_choice("selection", config.selection, ("argmax", "softmax"))
    check_range("penalty", config.penalty, 0.0)
    check_range("dual_sample_count", config.dual_sample_count, 2)
    check_range("multiplier_learning_rate", config.multiplier_learning_rate, 0.0, open_low=True)
    check_range("multiplier_clip_norm", config.multiplier_clip_norm, 0.0, open_low=True)
    check_range("maximum_weight", config.maximum_weight, 0.0, open_low=True)
    if (config.alignment, config.policy, config.dual) == ("hard", "gaussian", "logsumexp"):
        raise ValueError("dual is 'logsumexp' with policy 'gaussian', which models no behavior; expected 'sample'")


def make(config: Config = Config(), networks: Networks | None = None, *, action_size: int | None = None) -> Algorithm:
    """Check the numbers and bind them; networks default to those of `config.policy` for `action_size` actions."""
    check(config)
    default = functools.partial(default_networks, actor=config.policy)
    networks = choose_networks(networks, default, action_size)
    return bind(config=config, networks=networks, batch=BatchSpec.uniform(), init=init, update=update, act=act)
