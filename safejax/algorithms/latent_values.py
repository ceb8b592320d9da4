"""FOSP's values of latent states: Q by imagined returns, V by an expectile of Q; of rewards and costs alike.

Cao et al. 2024, https://arxiv.org/abs/2407.04942. Along imagined rollouts, and offline on the data's own steps too,

    Q(s, a) -> R(s, a), and its slow copy,      V(s) -> Q(s, a), weighed by the expectile where Q is above V,

both in two-hot form. R is the lambda-return with V as its bootstrap; of a data step it is r + g d R(s'), where R(s') is
the return imagined from the next state of the window, or V(s') where the window or the episode ends.
The released code weighs V as for a lower expectile of rewards, too; here rewards take the upper side and costs the
lower one, which is what in-sample improvement needs.
Shapes: B batch, T window, N = B T, F features, A action.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from safejax.algorithms import imagination
from safejax.algorithms.imagination import Targets
from safejax.algorithms.world_models import Config, optimizer
from safejax.gradients import copy, gradient_step, train_state
from safejax.losses.model import two_hot_expectile_loss
from safejax.losses.value import td_target
from safejax.types import Array, Key, Metrics, Params, TrainState, Transition


class Values(NamedTuple):
    """Of rewards, or of costs."""

    critic: TrainState  # Q(s, a)
    value: TrainState  # V(s)
    slow: Params  # of Q

    def q(self, features: Array, action: Array, *, networks: Any) -> Array:
        """Q [...] of features [..., F] and actions [..., A]."""
        return imagination.value(networks.critic, self.critic.params, features, action)

    def v(self, features: Array, *, networks: Any) -> Array:
        """V [...] of features [..., F]."""
        return imagination.value(networks.value, self.value.params, features)


def init(key: Key, features: Array, action: Array, *, config: Config, networks: Any) -> Values:
    """Fresh values for Networks that have `critic` and `value`."""
    critic_key, value_key = jax.random.split(key)
    critic = networks.critic.init(critic_key, features, action)
    value = networks.value.init(value_key, features)
    return Values(train_state(critic, optimizer(config)), train_state(value, optimizer(config)), copy(critic))


def of_data(
    batch: Transition, signal: Array, features: Array, imagined: Array, next_value: Array, *, config: Config
) -> Targets:
    """What Q of the data's own steps regresses on.

    Args:
      batch: [B, T].
      signal: [B, T] rewards or costs.
      features: [B, T, F] of the states.
      imagined: [B, T] returns imagined from the states.
      next_value: [B, T] V of the states that the steps arrived in.

    Returns:
      Targets [B, T].
    """
    alone = batch.last.at[:, -1].set(1)  # no next row of this episode is in the window
    ahead = jnp.where(alone > 0, next_value, jnp.roll(imagined, -1, axis=1))
    target = td_target(signal, batch.discount, ahead, config.discount_factor)
    return Targets((features, batch.action), target, jnp.ones_like(target))


def learn(
    values: Values, targets: Targets, *, expectile: float | Array, name: str, config: Config, networks: Any
) -> tuple[Values, Metrics]:
    """One step of V, of Q and of Q's slow copy.

    Args:
      targets: from `imagination.join`, whose inputs are (features, action).
      expectile: of Q that V is; above one half for rewards, below it for costs.
      name: prefix of the metrics.
    """
    features, action = targets.inputs
    q = values.q(features, action, networks=networks)

    def value_loss(params: Params) -> tuple[Array, Metrics]:
        logits = networks.value.apply(params, features)
        total = jnp.sum(targets.weight * two_hot_expectile_loss(logits, q, expectile))
        return total, {f"{name}value/loss": total}

    value, value_metrics = gradient_step(value_loss, values.value, optimizer(config))
    critic, slow, critic_metrics = imagination.regress(
        values.critic, values.slow, targets, network=networks.critic, config=config, name=f"{name}critic"
    )
    return Values(critic, value, slow), value_metrics | critic_metrics
