"""What methods with a world model share: their numbers, the model's loss on windows, and acting with its memory.

Hafner et al. 2023, DreamerV3, https://arxiv.org/abs/2301.04104, first release, with the cost head of SafeDreamer,
Huang et al. 2023, https://arxiv.org/abs/2307.07176. The loss of a row, in nats and squared pixel units, is

    picture + vector + reward + going on + cost + .5 dynamics + .1 representation,

cost times 10 on rows that cost 1 or more. Reward, cost and going on are read from the state that the row's action led
to. What that release does otherwise: it takes a time limit for a termination; here only `discount` ends an episode. It
draws latent codes wherever it acts; here the likeliest ones are taken unless exploring, so that acting is
deterministic.
Shapes: B batch, T window, A action.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from safejax.constraints import Multiplier, augmented_lagrangian
from safejax.gradients import adam, gradient_step
from safejax.losses.model import cost_weight, kl_balance, picture_error, two_hot_loss, vector_error
from safejax.networks.rssm import Latent
from safejax.networks.world_model import Seen, parts
from safejax.types import Array, ArrayTree, BatchSpec, Key, Metrics, Params, TrainState, Transition, check_range


@dataclass(frozen=True, kw_only=True)
class Config:
    """Numbers of the model, of imagination and of the constraint; the defaults are SafeDreamer's."""

    length: int = 64  # T, rows of a window
    offline_fraction: float = 0.0  # of the windows that online batches hold
    horizon: int = 15  # imagined steps
    reward_scale: float = 1.0  # multiplies every reward; FOSP's choice weighs costs against rewards of 20 an episode
    discount_factor: float = 1 - 1 / 333
    trace_decay: float = 0.95  # lambda of the returns
    free_nats: float = 1.0
    dynamics_coefficient: float = 0.5
    representation_coefficient: float = 0.1
    cost_weight: float = 10.0  # of rows that cost 1 or more, in the cost head's loss
    entropy_coefficient: float = 3e-4
    slow_coefficient: float = 1.0  # of the slow copy's values among a critic's targets
    target_update_rate: float = 0.02  # of slow copies
    scale_decay: float = 0.99  # of the percentiles that returns are scaled by
    model_learning_rate: float = 1e-4
    learning_rate: float = 3e-5  # of actors and values
    cost_limit: float = 2.0  # on the cost return from an imagined state
    pessimistic: bool = True  # the constraint is on the sum over imagined states; else on the mean
    multiplier: float = 1e-6  # lambda of the augmented Lagrangian, at first
    penalty: float = 5e-9  # c, at first
    penalty_growth: float = 1 + 1e-5
    penalty_maximum: float = 1.0


def check(config: Config) -> None:
    """Refuse numbers out of range."""
    check_range("length", config.length, 2)
    check_range("horizon", config.horizon, 1)
    check_range("discount_factor", config.discount_factor, 0.0, 1.0)
    check_range("trace_decay", config.trace_decay, 0.0, 1.0)
    check_range("reward_scale", config.reward_scale, 0.0, open_low=True)
    check_range("target_update_rate", config.target_update_rate, 0.0, 1.0)
    check_range("scale_decay", config.scale_decay, 0.0, 1.0)
    check_range("model_learning_rate", config.model_learning_rate, 0.0, open_low=True)
    check_range("learning_rate", config.learning_rate, 0.0, open_low=True)
    check_range("cost_limit", config.cost_limit, 0.0)
    constraint(config)


def windows(config: Config, offline_fraction: float) -> BatchSpec:
    """What these methods eat; a window's next rows are its successors."""
    return BatchSpec.sequence(config.length, offline_fraction, successors=False)


def scaled(batch: Transition, config: Config) -> Transition:
    """The batch with the rewards that model, values and policy know."""
    return batch._replace(reward=config.reward_scale * batch.reward)


def constraint(config: Config) -> Multiplier:
    """The controller of the augmented Lagrangian."""
    return augmented_lagrangian(
        penalty=config.penalty,
        penalty_growth=config.penalty_growth,
        penalty_maximum=config.penalty_maximum,
        initial=config.multiplier,
    )


def model_optimizer(config: Config) -> optax.GradientTransformation:
    """Adam, clipped at a norm of 1000."""
    return adam(config.model_learning_rate, clip_norm=1000.0)


def optimizer(config: Config) -> optax.GradientTransformation:
    """Of actors and values: Adam, clipped at a norm of 100."""
    return adam(config.learning_rate, clip_norm=100.0, epsilon=1e-5)


def learn_model(
    state: TrainState, batch: Transition, key: Key, *, config: Config, networks: Any
) -> tuple[TrainState, Seen, Metrics]:
    """One step of the world model on windows [B, T].

    Returns:
      The model; what it saw under the parameters before the step, without gradients; metrics.
    """

    def loss(params: Params) -> tuple[Array, tuple[Seen, Metrics]]:
        seen = networks.model.observe(params, batch.observation, batch.action, batch.last, key)
        terms = losses(params, seen, batch, config=config, networks=networks)
        means = {f"model/{name}": jnp.mean(term) for name, term in terms.items()}
        total = sum(means.values(), jnp.zeros(()))
        return total, (seen, means | {"model/loss": total})

    model, (seen, metrics) = gradient_step(loss, state, model_optimizer(config))
    return model, jax.lax.stop_gradient(seen), metrics


def losses(params: Params, seen: Seen, batch: Transition, *, config: Config, networks: Any) -> dict[str, Array]:
    """The weighted parts [B, T] of the model's loss, by name."""
    model = networks.model
    arrival = seen.arrival.features
    pixels, vector = parts(batch.observation)
    decoded = model.decode(params, seen.state.features, batch.observation)
    dynamics, representation = kl_balance(seen.state.logits, seen.prior, config.free_nats)
    going_on = model.read(params, "going_on", arrival)[..., 0]
    cost = two_hot_loss(model.read(params, "cost", arrival), batch.cost)
    terms = {
        "reward": two_hot_loss(model.read(params, "reward", arrival), batch.reward),
        "cost": cost_weight(batch.cost, config.cost_weight) * cost,
        "going_on": optax.sigmoid_binary_cross_entropy(going_on, batch.discount),
        "dynamics": config.dynamics_coefficient * dynamics,
        "representation": config.representation_coefficient * representation,
    }
    if pixels is not None:
        terms["picture"] = picture_error(decoded["pixels"], pixels)
    if vector is not None:
        terms["vector"] = vector_error(decoded["state"], vector)
    return terms


class Memory(NamedTuple):
    """The carry of an acting policy."""

    latent: Latent  # [B], of the step before; at an episode's start, of nothing seen
    action: Array  # [B, A], made in it
    started: Array  # [B], 1 where there was one


def initial_carry(state: Any, batch_size: int, *, config: Any, networks: Any) -> Memory:
    """The memory before anything was seen, for States with a `model` and Networks with `model` and `actor`."""
    del config
    return Memory(
        networks.model.initial(state.model.params, (batch_size,)),
        jnp.zeros((batch_size, networks.actor.action_size), jnp.float32),
        jnp.zeros((batch_size,), jnp.float32),
    )


def perceive(state: Any, observation: ArrayTree, carry: Any, key: Key | None, *, config: Any, networks: Any) -> Latent:
    """The state of the world [B], once `observation` [B] is seen; the likeliest one without a key.

    A carry of () is the start of an episode.
    """
    if not carry:
        carry = initial_carry(state, len(jax.tree.leaves(observation)[0]), config=config, networks=networks)
    memory = networks.model.remember(state.model.params, carry.latent, carry.action)
    memory = jnp.where(carry.started[:, None] > 0, memory, carry.latent.memory)
    return networks.model.correct(state.model.params, memory, observation, key)


def remembered(latent: Latent, action: Array) -> Memory:
    """The carry after `action` [B, A] was chosen in `latent` [B]."""
    return Memory(latent, action, jnp.ones(action.shape[:1], jnp.float32))
