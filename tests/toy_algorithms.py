"""Four toy methods that stretch the shape: on-policy, sequence with carry, return-conditioned, discrete.

Each is a namespace like an algorithm module: `make()` returns an `Algorithm`. They keep the contract honest before the
real methods need it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from safejax.gradients import gradient_step, train_state
from safejax.networks import MLP, CategoricalActor, GaussianActor
from safejax.types import Algorithm, Array, BatchSpec, TrainState, Transition, bind

OPTIMIZER = optax.adam(1e-2)


class State(NamedTuple):
    step: Array
    actor: TrainState


def _init(network: Any, *inputs: Any, key: Array) -> State:
    return State(jnp.zeros((), jnp.int32), train_state(network.init(key, *inputs), OPTIMIZER))


def on_policy(action_size: int) -> Algorithm:
    """Reinforce on fresh rollouts; stores log_prob and raw_action."""
    network = GaussianActor(action_size, (8,), squash=False)

    def init(key, example, *, config, networks):
        return _init(network, example.observation, key=key)

    def update(state, batch, key, *, config, networks):
        def loss(params):
            log_prob = network.apply(params, batch.observation).log_prob(batch.extras["raw_action"])
            value = -jnp.mean(log_prob * (batch.reward - jnp.mean(batch.reward)))
            return value, {"actor/loss": value}

        actor, metrics = gradient_step(loss, state.actor, OPTIMIZER)
        return State(state.step + 1, actor), metrics

    def act(state, observation, key, carry=(), *, explore=False, config, networks):
        policy = network.apply(state.actor.params, observation)
        if not explore:
            return jnp.clip(policy.mode(), -1, 1), carry, {}
        raw, log_prob = policy.sample_and_log_prob(key)
        return jnp.clip(raw, -1, 1), carry, {"raw_action": raw, "log_prob": log_prob}

    return bind(config=None, networks=None, batch=BatchSpec.fresh(), init=init, update=update, act=act)


def recurrent(action_size: int, length: int = 4) -> Algorithm:
    """A policy with a leaky memory of its observations, trained on windows [B, T]."""
    network = MLP((8,), action_size)

    def remember(memory, observation):
        return 0.5 * memory + observation

    def init(key, example, *, config, networks):
        return _init(network, example.observation, key=key)

    def update(state, batch, key, *, config, networks):
        def window(memory, step):
            observation, last = step
            memory = remember(memory, observation)
            return jnp.where(last[:, None] > 0, 0.0, memory), memory

        time_first = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), (batch.observation, batch.last))
        _, memories = jax.lax.scan(window, jnp.zeros_like(time_first[0][0]), time_first)

        def loss(params):
            action = jnp.tanh(network.apply(params, jnp.swapaxes(memories, 0, 1)))
            value = jnp.mean(jnp.square(action - batch.action))
            return value, {"actor/loss": value}

        actor, metrics = gradient_step(loss, state.actor, OPTIMIZER)
        return State(state.step + 1, actor), metrics

    def act(state, observation, key, carry=(), *, explore=False, config, networks):
        memory = remember(carry, observation)
        mean = network.apply(state.actor.params, memory)
        noise = 0.1 * jax.random.normal(key, mean.shape) if explore else 0.0
        return jnp.tanh(mean + noise), memory, {}

    def initial_carry(state, batch_size, *, config, networks):
        width = state.actor.params["params"]["Dense_0"]["kernel"].shape[0]
        return jnp.zeros((batch_size, width), jnp.float32)

    return bind(
        config=None,
        networks=None,
        batch=BatchSpec.sequence(length),
        init=init,
        update=update,
        act=act,
        initial_carry=initial_carry,
    )


def return_conditioned(action_size: int, target: float = 1.0) -> Algorithm:
    """A policy told how much return is still asked for: `advance` takes each reward off it."""
    network = GaussianActor(action_size, (8,))

    def condition(observation, to_go):
        return jnp.concatenate([observation, to_go[..., None]], axis=-1)

    def init(key, example, *, config, networks):
        return _init(network, condition(example.observation, example.reward), key=key)

    def update(state, batch, key, *, config, networks):
        def loss(params):
            policy = network.apply(params, condition(batch.observation, batch.reward))
            value = -jnp.mean(policy.log_prob(batch.action))
            return value, {"actor/loss": value}

        actor, metrics = gradient_step(loss, state.actor, OPTIMIZER)
        return State(state.step + 1, actor), metrics

    def act(state, observation, key, carry=(), *, explore=False, config, networks):
        policy = network.apply(state.actor.params, condition(observation, carry))
        return policy.sample(key) if explore else policy.mode(), carry, {}

    def initial_carry(state, batch_size, *, config, networks):
        return jnp.full((batch_size,), target, jnp.float32)

    def advance(carry, transition, *, config, networks):
        return carry - transition.reward

    return bind(
        config=None,
        networks=None,
        batch=BatchSpec.uniform(),
        init=init,
        update=update,
        act=act,
        initial_carry=initial_carry,
        advance=advance,
    )


def discrete(action_count: int) -> Algorithm:
    """Behaviour cloning with a categorical actor and int32 actions."""
    network = CategoricalActor(action_count, (8,))

    def init(key, example: Transition, *, config, networks):
        return _init(network, example.observation, key=key)

    def update(state, batch, key, *, config, networks):
        def loss(params):
            value = -jnp.mean(network.apply(params, batch.observation).log_prob(batch.action) * batch.reward)
            return value, {"actor/loss": value}

        actor, metrics = gradient_step(loss, state.actor, OPTIMIZER)
        return State(state.step + 1, actor), metrics

    def act(state, observation, key, carry=(), *, explore=False, config, networks):
        policy = network.apply(state.actor.params, observation)
        return policy.sample(key) if explore else policy.mode(), carry, {}

    return bind(config=None, networks=None, batch=BatchSpec.uniform(), init=init, update=update, act=act)
