"""The probability p(s) that a latent state leads to a violation, learned from observed and imagined ones.

RESPO's recursion p(s) = max(1[s violates], g p(s')), Ganai et al. 2023, https://arxiv.org/abs/2309.13528, as FOSP's
paper uses it, Cao et al. 2024, https://arxiv.org/abs/2407.04942; see `losses/reachability.py`. p is a sigmoid, fitted
by cross-entropy, whose minimiser is the mean of the targets.
FOSP's released code calls a state violating where the estimate itself is above 0, so no cost ever enters it. Here data
states violate by their own cost, and imagined ones by the cost predicted in them. A state's cost is that of the step
that led to it.
Shapes: B batch, T window, N imagined rollouts, H horizon, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from safejax.algorithms.imagination import Dream, Targets, join
from safejax.gradients import gradient_step
from safejax.losses.reachability import violation_probability
from safejax.networks.world_model import Seen
from safejax.types import Array, Metrics, Network, Params, TrainState, Transition


class Path(NamedTuple):
    """States in their order; see `violation_probability`."""

    features: Array  # [..., T, F]
    violation: Array  # [..., T] 1 where the state violates
    going_on: Array  # [..., T] 0 where the episode ends there
    open_end: Array  # [..., T] 1 where what follows is not known
    weight: Array  # [..., T] in the loss


def of_data(seen: Seen, batch: Transition, threshold: float) -> Path:
    """The states [B, T] that the rows of a window arrived in; a row violates if it cost `threshold` or more."""
    alone = batch.last.at[:, -1].set(1)
    open_end = alone * batch.discount
    violation = (batch.cost >= threshold).astype(jnp.float32)
    return Path(seen.arrival.features, violation, batch.discount, open_end, 1.0 - open_end)


def of_dream(dream: Dream, batch: Transition, weight: Array, threshold: float) -> Path:
    """The states [N, H + 1] of dreams from the rows of `batch` [B, T], whose steps weigh `weight` [N, H].

    What led to the first state is known: the row before, or at an episode's start no step at all. Of a window's first
    row it is not, and the head, which learns on arrivals, has never seen such a state: there nothing is taught.
    """
    known = jnp.ones_like(batch.cost).at[:, 0].set(0.0)
    before = known * jnp.roll(batch.cost * (1.0 - batch.last), 1, axis=1)
    violation = (dream.cost.at[:, 0].set(before.ravel()) >= threshold).astype(jnp.float32)
    none = jnp.zeros_like(dream.cost)
    weight = none.at[:, :-1].set(weight.at[:, 0].multiply(known.ravel()))
    return Path(dream.features, violation, dream.going_on, none.at[:, -1].set(1.0), weight)


def probability(network: Network, params: Params, features: Array) -> Array:
    """p [...] in [0, 1] of features [..., F]."""
    return jax.nn.sigmoid(network.apply(params, features)[..., 0])


def learn(
    state: TrainState,
    paths: Sequence[Path],
    *,
    network: Network,
    discount_factor: float | Array,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
    """One step of `network`, features [..., F] -> logit [..., 1], towards its targets along `paths`."""

    def aim(path: Path) -> Targets:
        features, violation, going_on, open_end, weight = path
        estimate = probability(network, state.params, features)
        target = violation_probability(violation, going_on, estimate, open_end, discount_factor)
        return Targets((features,), target, weight)

    targets = join(*map(aim, paths))

    def loss(params: Params) -> tuple[Array, Metrics]:
        logit = network.apply(params, *targets.inputs)[..., 0]
        total = jnp.sum(targets.weight * optax.sigmoid_binary_cross_entropy(logit, targets.value))
        return total, {"feasibility/loss": total, "feasibility/target": jnp.mean(targets.value)}

    return gradient_step(loss, state, optimizer)
