"""Selecting from behaviour candidates: a diffusion model of the data proposes, a critic of planned returns picks.

Chen et al. 2022, https://arxiv.org/abs/2209.14548. The critic regresses on returns of the data's own trajectories,
cut wherever the value of the state reached promises more (`plan`); that value is a soft maximum over samples of the
behaviour model (`soft_value`), so no action outside the data's support is asked.

The planning. The paper's target is R_n = r_n + gamma max(R_{n+1}, V(s_{n+1})), the default. The authors' code
(ChenDRAG/SfBC) fits Q(s_n, a_n) to max(R_n, V(s_n)) instead (`planning="released"`): actions worse than V(s_n) are
raised to it. One or a few iterations, as they make, keep the best action best; iterated on, every value rises to the
best and the policy falls back to behaviour cloning.

Other differences from the code: it trains the behaviour model first, draws its 16 samples a state once, and alternates
2 to 5 fits of a fresh critic to whole episodes with a frozen Q; here model and critic learn together, samples are drawn
anew for every batch of windows, and a slowly following target critic stands for the frozen Q. A discrete VP chain with
a DDPM or DDIM sampler stands for DPM-Solver on the continuous one, the residual denoiser of IDQL, averaged, for its
U-Net-like network. It cuts time-outs as if they were terminations; here they bootstrap. Its critic predicts
standardised returns, so alpha is in units of their deviation: here the softmax is divided by it (`return_scale`) and
the critic predicts returns.

The safe form (`Config.safety`) is ours, see `safety.py`: planning is the reward's alone, acting and the multiplier's
estimate weigh (Q - lambda Qc) / (1 + lambda). Shapes: B batch, T time, N = B T rows, K candidate actions, E = 1 critic,
O observation, A action.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from safejax.algorithms import critics, diffusion_bc, safety
from safejax.algorithms.safety import SafetyConfig, SafetyNetworks
from safejax.diffusion import DiffusionConfig
from safejax.gradients import adam, copy, polyak, train_state
from safejax.losses.policy import lagrangian
from safejax.networks import Critic, ensemble, with_encoder
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

_SMALLEST_SCALE = 0.1  # of returns, as in the authors' code


@dataclass(frozen=True, kw_only=True)
class Config:
    """Numbers of SfBC; the defaults are the paper's for locomotion but for the five steps of the chain (15 there)."""

    discount_factor: float = 0.99
    sequence_length: int = 16  # T of the windows; plans end with them
    planning: str = "paper"  # or "released", see the module's first lines
    candidate_count: int = 16  # K of V; each row of a window asks for K actions of the diffusion model
    inverse_temperature: float = 20.0  # alpha of the soft maximum, per standard deviation of the returns
    act_candidate_count: int = 32  # K when acting
    mean_of_best: int = 1  # acts by the mean of so many best candidates; 4 on locomotion
    explore_inverse_temperature: float = 100.0  # likewise
    target_update_rate: float = 0.005
    learning_rate: float = 1e-3  # critic
    actor_learning_rate: float = 1e-4
    actor_decay_steps: int = 0
    weight_decay: float = 0.0
    ema_rate: float = 1e-3
    diffusion: DiffusionConfig = DiffusionConfig(clip="noisy", variance="beta")
    reward_scale: float = 1.0
    safety: SafetyConfig | None = None


class Networks(NamedTuple):
    """actor: a denoiser, see `diffusion_bc`; critic: [..., O], [..., A] -> [E, ...]; safety: its own."""

    actor: Any
    critic: Network
    safety: SafetyNetworks | tuple = ()  # needed by the safe form alone


class State(NamedTuple):
    """What learning carries."""

    step: Array  # [] int32, gradient steps
    actor: TrainState
    ema_actor: Params
    critic: TrainState
    target_critic: Params
    return_scale: Array  # [] running standard deviation of the planned returns
    safety: Any  # SafetyState, or ()


def default_networks(
    action_size: int, hidden_sizes: Sequence[int] = (256, 256), *, encoder: Network | None = None
) -> Networks:
    """Three residual blocks as wide as the first hidden size, and one critic of `hidden_sizes`."""
    hidden_sizes = tuple(hidden_sizes)
    networks = Networks(
        actor=diffusion_bc.residual_denoiser(action_size, hidden_sizes[0]),
        critic=ensemble(Critic(hidden_sizes, "swish"), 1),
        safety=safety.default_networks(hidden_sizes, "swish"),
    )
    return with_encoder(networks, encoder)


def init(key: Key, example: Transition, *, config: Config, networks: Networks) -> State:
    """A fresh state; `example` is one transition without leading axes."""
    actor_key, critic_key, safety_key = jax.random.split(key, 3)
    actor, ema_actor = diffusion_bc.init_actor(actor_key, example, config=config, networks=networks)
    critic = networks.critic.init(critic_key, example.observation, example.action)
    return State(
        step=jnp.zeros((), jnp.int32),
        actor=actor,
        ema_actor=ema_actor,
        critic=train_state(critic, adam(config.learning_rate)),
        target_critic=copy(critic),
        return_scale=jnp.ones(()),
        safety=safety.init(safety_key, example, config=config.safety, networks=networks.safety),
    )


def update(state: State, batch: Transition, key: Key, *, config: Config, networks: Networks) -> tuple[State, Metrics]:
    """One step of every part on windows `batch` [B, T].

    Candidates are drawn for one state a row, the next one: all that the paper's plan asks, also at a truncation in
    mid-window, whose next observation is not the following row's. Where the episode terminated no next state counts,
    and the row's own stands in, so that the cost estimate of the safe form sees states that exist only.
    """
    actor_key, plan_key, released_key = jax.random.split(key, 3)
    rows = jax.tree.map(lambda leaf: jax.lax.collapse(leaf, 0, 2), batch)
    state, actor_metrics = diffusion_bc.update_actor(state, rows, actor_key, config=config, networks=networks)

    select = jax.vmap(jnp.where)
    reached = jax.tree.map(functools.partial(select, rows.discount > 0), rows.next_observation, rows.observation)
    actions, q = _propose(state, reached, plan_key, config=config, networks=networks)
    sharpness = _sharpness(config.inverse_temperature, state)
    next_value = soft_value(q, sharpness).reshape(batch.reward.shape)
    returns = plan(
        config.reward_scale * batch.reward,
        next_value,
        batch.discount,
        batch.last,
        discount_factor=config.discount_factor,
    )
    if config.planning == "released":
        _, q_here = _propose(state, rows.observation, released_key, config=config, networks=networks)
        returns = jnp.maximum(returns, soft_value(q_here, sharpness).reshape(returns.shape))

    optimizer = adam(config.learning_rate)
    critic, critic_metrics = critics.fit(state.critic, batch, returns, optimizer, network=networks.critic)
    target_critic = polyak(state.target_critic, critic.params, config.target_update_rate)
    # the mean over all updates at first, then an average as slow as the target critic
    scale_rate = jnp.maximum(config.target_update_rate, 1.0 / (state.step + 1.0))
    scale = polyak(state.return_scale, jnp.std(returns), scale_rate)
    metrics = {"value/mean": jnp.mean(next_value), "plan/return": jnp.mean(returns), "plan/scale": scale}

    safe = state.safety
    if config.safety is not None:
        cost_q = safety.cost_values(safe, reached, actions, networks=networks.safety)
        score = lagrangian(q, cost_q, safe.multiplier.value, rescale=True)
        share = jax.nn.softmax(sharpness * score, axis=0)
        # asked at the same states, the candidates' costs are computed once
        asked = rows._replace(next_observation=reached)
        safe, safety_metrics = safety.update(
            safe, asked, actions, share, config=config.safety, networks=networks.safety
        )
        cost_value = jnp.mean(jnp.sum(share * cost_q, axis=0))
        safe, tick_metrics = safety.tick(safe, cost_value, config=config.safety)
        metrics |= safety_metrics | tick_metrics

    state = state._replace(
        step=state.step + 1, critic=critic, target_critic=target_critic, return_scale=scale, safety=safe
    )
    return state, actor_metrics | critic_metrics | metrics


def soft_value(q: Array, inverse_temperature: float | Array) -> Array:
    """sum_k softmax_k(alpha Q_k) Q_k: the mean of Q at alpha 0, its maximum as alpha grows.

    Args:
      q: [K, ...] values of K behaviour samples.
      inverse_temperature: alpha >= 0, in inverse units of Q.

    Returns:
      [...] values.

    Source: Chen et al. 2022, https://arxiv.org/abs/2209.14548, the value under pi ~ mu exp(alpha Q).
    """
    return jnp.sum(jax.nn.softmax(inverse_temperature * q, axis=0) * q, axis=0)


def plan(reward: Array, next_value: Array, discount: Array, last: Array, *, discount_factor: float | Array) -> Array:
    """Returns along the last axis, cut where V promises more: R_n = r_n + gamma d_n max(R_{n+1}, V(s_{n+1})).

    At the window's end and where `last` is 1 only V(s_{n+1}) follows: a truncation bootstraps, a termination (discount
    0) does not. Hence R_n >= r_n + gamma d_n R_{n+1} within an episode, and R_n >= r_n + gamma d_n V(s_{n+1}).

    Args:
      reward, discount, last: [..., T]; fields as in `Transition`.
      next_value: [..., T] V of each row's next observation, before any reset; of no account where discount is 0.
      discount_factor: gamma.

    Returns:
      [..., T] in the units of `reward`.

    Source: in-sample planning of Chen et al. 2022, https://arxiv.org/abs/2209.14548, after the episodic planning of Ma
    et al. 2021, https://arxiv.org/abs/2110.09796.
    """
    chex.assert_equal_shape([reward, next_value, discount, last])

    def backward(following: Array, row: tuple[Array, ...]) -> tuple[Array, Array]:
        reward, next_value, discount, last = row
        best = jnp.where(last > 0, next_value, jnp.maximum(following, next_value))
        planned = reward + discount_factor * discount * best
        return planned, planned

    time_first = tuple(jnp.moveaxis(each, -1, 0) for each in (reward, next_value, discount, last))
    # nothing follows the last row
    _, planned = jax.lax.scan(backward, jnp.full_like(time_first[0][0], -jnp.inf), time_first, reverse=True)
    return jnp.moveaxis(planned, 0, -1)


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
    """Actions [B, A] for observations [B, O]: the mean of the `mean_of_best` best candidates under the critic.

    With `explore` as many are drawn without replacement by softmax(100 Q), the authors' way to act at all times: the
    best after Gumbel noise, which takes no exponential that could overflow. Candidates without `explore` come from
    fixed noise, see `diffusion_bc.propose`.
    """
    propose_key, choose_key = jax.random.split(key)
    count = config.act_candidate_count
    actions = diffusion_bc.propose(
        state.ema_actor, observation, propose_key, count, explore=explore, config=config, networks=networks
    )
    score = critics.candidate_values(networks.critic, state.critic.params, observation, actions)
    if state.safety:
        cost_q = safety.cost_values(state.safety, observation, actions, networks=networks.safety)
        score = lagrangian(score, cost_q, state.safety.multiplier.value, rescale=True)
    if explore:
        noise = jax.random.gumbel(choose_key, score.shape)
        score = _sharpness(config.explore_inverse_temperature, state) * score + noise
    _, best = jax.lax.top_k(score.T, config.mean_of_best)  # [B, mean_of_best]
    chosen = jnp.take_along_axis(actions, best.T[..., None], axis=0)
    return jnp.mean(chosen, axis=0), carry, {}


def _propose(
    state: State, observation: ArrayTree, key: Key, *, config: Config, networks: Networks
) -> tuple[Array, Array]:
    """K samples [K, N, A] of the behaviour model and their target Q [K, N]."""
    actions = diffusion_bc.propose(
        state.ema_actor, observation, key, config.candidate_count, explore=True, config=config, networks=networks
    )
    return actions, critics.candidate_values(networks.critic, state.target_critic, observation, actions)


def _sharpness(inverse_temperature: float | Array, state: State) -> Array:
    return inverse_temperature / jnp.maximum(state.return_scale, _SMALLEST_SCALE)


def make(config: Config = Config(), networks: Networks | None = None, *, action_size: int | None = None) -> Algorithm:
    """Check the numbers and bind them; networks default to `default_networks(action_size)`."""
    diffusion_bc.check(config)
    check_choice("diffusion.clip", config.diffusion.clip, ("clean", "noisy"))  # actions stay in [-1, 1]
    check_choice("planning", config.planning, ("paper", "released"))
    check_range("discount_factor", config.discount_factor, 0.0, 1.0)
    check_range("target_update_rate", config.target_update_rate, 0.0, 1.0)
    check_range("learning_rate", config.learning_rate, 0.0, open_low=True)
    check_range("inverse_temperature", config.inverse_temperature, 0.0)
    check_range("explore_inverse_temperature", config.explore_inverse_temperature, 0.0)
    for name in ("sequence_length", "candidate_count", "act_candidate_count"):
        check_range(name, getattr(config, name), 1)
    check_range("mean_of_best", config.mean_of_best, 1, config.act_candidate_count)
    safety.check(config.safety)
    networks = choose_networks(networks, default_networks, action_size)
    batch = BatchSpec.sequence(config.sequence_length)
    return bind(config=config, networks=networks, batch=batch, init=init, update=update, act=act)
