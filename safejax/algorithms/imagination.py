"""Imagined rollouts, the returns along them, and two-hot values that regress on these.

Hafner et al. 2023, DreamerV3, https://arxiv.org/abs/2301.04104, first release; costs as in SafeDreamer, Huang et al.
2023, https://arxiv.org/abs/2307.07176. What that release does otherwise: it imagines that an episode goes on wherever
that is likelier than not; here the probability itself discounts, as in DreamerV3's current form. And it lets actions
beyond [-1, 1] reach critics; here imagined actions are bounded as acted ones are, and keep their gradient.

Shapes: N imagined rollouts, H horizon, F features, A action; states are [N, H + 1] and steps [N, H].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from safejax.algorithms.world_models import Config, optimizer
from safejax.gradients import gradient_step, polyak
from safejax.losses.model import lambda_return, two_hot_loss, two_hot_mean
from safejax.networks.rssm import Latent
from safejax.networks.world_model import WorldModel
from safejax.types import Array, Key, Metrics, Network, Params, TrainState


class Dream(NamedTuple):
    """Imagined rollouts; step t leads from state t to state t + 1."""

    features: Array  # [N, H + 1, F]
    action: Array  # [N, H, A] in [-1, 1]
    drawn: Array  # [N, H, A] what the policy drew, of which `action` is the bounded form and `log_prob` speaks
    reward: Array  # [N, H + 1] predicted on arrival in each state
    cost: Array  # [N, H + 1] the same
    going_on: Array  # [N, H + 1] probability that the episode goes on there; 1 in the first state

    def weight(self, discount_factor: float | Array) -> Array:
        """[N, H] w_t = prod of gamma d_k over the states 1 .. t, d being `going_on`: how far each step counts."""
        discounts = discount_factor * self.going_on[:, 1:-1]
        ones = jnp.ones_like(self.going_on[:, :1])
        return jax.lax.stop_gradient(jnp.cumprod(jnp.concatenate([ones, discounts], axis=1), axis=1))


def imagine(
    model: WorldModel,
    params: Params,
    start: Latent,
    policy: Callable[[Array, Key], Array],
    key: Key,
    horizon: int,
) -> Dream:
    """Roll `policy` out from `start` [N], in the model alone; gradients reach it through the model's dynamics.

    Args:
      policy: (features [N, F] without gradients, key) -> draws [N, A], not bounded.
      horizon: H.
    """

    def step(latent: Latent, key: Key) -> tuple[Latent, tuple[Array, Array]]:
        policy_key, model_key = jax.random.split(key)
        drawn = policy(jax.lax.stop_gradient(latent.features), policy_key)
        following = model.imagine(params, latent, bounded(drawn), model_key)
        return following, (following.features, drawn)

    _, steps = jax.lax.scan(step, start, jax.random.split(key, horizon))
    features, drawn = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), steps)
    features = jnp.concatenate([start.features[:, None], features], axis=1)
    going_on = jax.nn.sigmoid(model.read(params, "going_on", features)[..., 0])
    return Dream(
        features,
        bounded(drawn),
        drawn,
        two_hot_mean(model.read(params, "reward", features)),
        two_hot_mean(model.read(params, "cost", features)),
        going_on.at[:, 0].set(1.0),
    )


def starts(latent: Latent) -> Latent:
    """Latents [B, T] as the first states [N = B T] of imagined rollouts, without gradients."""
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf.reshape(-1, *leaf.shape[2:])), latent)


def bounded(action: Array) -> Array:
    """`action` [...] clipped to [-1, 1]; beyond, its gradient is that of a / |a| at a constant |a|, and not 0."""
    return action / jax.lax.stop_gradient(jnp.maximum(1.0, jnp.abs(action)))


def returns(signal: Array, going_on: Array, value: Array, *, config: Config) -> Array:
    """Lambda-returns [N, H] from states 0 .. H - 1, of what was predicted on arrival, `signal` [N, H + 1].

    Args:
      signal: rewards or costs.
      going_on: [N, H + 1].
      value: [N, H + 1] of the states.
    """
    return lambda_return(
        signal[:, 1:],
        going_on[:, 1:],
        value[:, 1:],
        discount_factor=config.discount_factor,
        trace_decay=config.trace_decay,
    )


class Scale(NamedTuple):
    """A slow range of values."""

    low: Array  # [] 5th percentile
    high: Array  # [] 95th

    @property
    def spread(self) -> Array:
        """[] what values are divided by; at least 1, so that small ones are not blown up."""
        return jnp.maximum(1.0, self.high - self.low)


def no_scale() -> Scale:
    """Before anything was seen."""
    return Scale(jnp.zeros(()), jnp.zeros(()))


def follow(scale: Scale, values: Array, decay: float | Array) -> Scale:
    """`scale` moved towards the percentiles of `values`, of any shape."""
    return polyak(scale, Scale(*jnp.percentile(values, jnp.array([5.0, 95.0]))), 1.0 - decay)


class Targets(NamedTuple):
    """What values regress on; any leading shape. The loss is the sum of the weighted errors."""

    inputs: tuple[Array, ...]  # features [..., F], and actions [..., A] for a critic of both
    value: Array  # [...]
    weight: Array  # [...]


def join(*sources: Targets) -> Targets:
    """One row of targets [M]; of each source the mean loss counts, however many it has."""

    def flat(targets: Targets) -> Targets:
        inputs = tuple(each.reshape(-1, each.shape[-1]) for each in targets.inputs)
        return Targets(inputs, targets.value.ravel(), targets.weight.ravel() / targets.weight.size)

    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *map(flat, sources))


def value(network: Network, params: Params, *inputs: Array) -> Array:
    """[...] what a two-hot head stands for."""
    return two_hot_mean(network.apply(params, *inputs))


def regress(
    state: TrainState, slow: Params, targets: Targets, *, network: Network, config: Config, name: str
) -> tuple[TrainState, Params, Metrics]:
    """One step of two-hot values on targets, and on what their slow copy says there; and one of the slow copy.

    Args:
      state: parameters of `network`.
      slow: of its slow copy.
      targets: from `join`.
      name: prefix of the metrics.
    """
    anchor = value(network, slow, *targets.inputs)

    def loss(params: Params) -> tuple[Array, Metrics]:
        logits = network.apply(params, *targets.inputs)
        error = two_hot_loss(logits, targets.value) + config.slow_coefficient * two_hot_loss(logits, anchor)
        total = jnp.sum(targets.weight * error)
        return total, {f"{name}/loss": total, f"{name}/target": jnp.mean(targets.value)}

    state, metrics = gradient_step(loss, state, optimizer(config))
    return state, polyak(slow, state.params, config.target_update_rate), metrics


def constrained_cost(cost_return: Array, share: Array | float, *, config: Any) -> Array:
    """[] what the augmented Lagrangian keeps under the limit: mean over rollouts of the sum (or mean) of cost returns.

    Args:
      cost_return: [N, H].
      share: how much each state counts.
    """
    reduce = jnp.sum if config.pessimistic else jnp.mean
    return jnp.mean(reduce(share * cost_return, axis=1))
