"""What methods with a world model share: the model's loss, and acting with its memory."""

import functools
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safejax.algorithms import safe_dreamer, world_models
from safejax.envs import probes
from safejax.gradients import train_state
from safejax.losses.model import BINS, two_hot_loss, vector_error
from safejax.networks.rssm import RSSM
from safejax.networks.world_model import world_model
from safejax.training.rollout import rollout, start, where_rows
from safejax.types import Transition, example_transition

B, T = 3, 4
CONFIG = world_models.Config(length=T)
MODEL = world_model((2, 4, 3, 4, 8), bins=BINS)
NETWORKS = SimpleNamespace(model=MODEL, actor=SimpleNamespace(action_size=2))
# codes are as good as certain, so that draws equal the likeliest
CERTAIN = SimpleNamespace(model=replace(MODEL, core=RSSM(4, 3, 4, 8, uniform_share=1e-12)), actor=NETWORKS.actor)


def windows(seed=0):
    random = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(random.normal(size=(B, T, *shape)), jnp.float32)  # noqa: E731
    ones = jnp.ones((B, T))
    return Transition(normal(5), jnp.tanh(normal(2)), normal(), ones * 0, ones, ones * 0, ())


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 5)), jnp.zeros((1, 2)))


@functools.cache
def observed():
    return jax.jit(MODEL.observe)


def terms(params, batch, config=CONFIG):
    seen = observed()(params, batch.observation, batch.action, batch.last, jax.random.key(1))
    return seen, world_models.losses(params, seen, batch, config=config, networks=NETWORKS)


def test_the_parts_of_the_loss(params):
    batch = windows()
    seen, parts = terms(params, batch)
    assert parts.keys() == {"vector", "reward", "cost", "going_on", "dynamics", "representation"}
    assert {part.shape for part in parts.values()} == {(B, T)}
    decoded = MODEL.decode(params, seen.state.features, batch.observation)["state"]
    np.testing.assert_allclose(parts["vector"], vector_error(decoded, batch.observation), rtol=1e-4)
    # a fresh reward head is ignorant; near nothing differs by a free nat, and weighs .5 and .1
    np.testing.assert_allclose(parts["reward"], np.log(BINS), rtol=1e-5)
    assert parts["dynamics"].min() >= 0.5
    assert parts["representation"].min() >= 0.1
    _, free = terms(params, batch, world_models.Config(free_nats=1e3))
    np.testing.assert_allclose(free["dynamics"], 500.0)
    np.testing.assert_allclose(free["representation"], 100.0)


def test_rewards_and_costs_are_read_on_arrival_and_costly_rows_weigh_ten_times(params):
    batch = windows()
    costly = jnp.zeros((B, T)).at[0, 0].set(1.0).at[1, 2].set(0.9)
    seen, parts = terms(params, batch._replace(cost=costly))
    plain = two_hot_loss(MODEL.read(params, "cost", seen.arrival.features), costly)
    np.testing.assert_allclose(parts["cost"] / plain, jnp.ones((B, T)).at[0, 0].set(10.0), rtol=1e-5)
    elsewhere = two_hot_loss(MODEL.read(params, "cost", seen.state.features), costly)
    assert jnp.abs(plain - elsewhere).max() > 1e-3


def test_a_time_limit_is_no_termination(params):
    """Going on is learned as `discount`: of two rows that end an episode, only the terminated one is an end."""
    last = jnp.zeros((B, T)).at[:2, 1].set(1.0)
    batch = windows()._replace(last=last, discount=jnp.ones((B, T)).at[0, 1].set(0.0))
    seen, parts = terms(params, batch)
    logit = MODEL.read(params, "going_on", seen.arrival.features)[..., 0]
    expected = jnp.log1p(jnp.exp(-logit)).at[0, 1].set(jnp.log1p(jnp.exp(logit[0, 1])))
    np.testing.assert_allclose(parts["going_on"], expected, rtol=1e-4)


def test_acting_step_by_step_equals_the_states_of_the_sequence(params):
    """Posteriors are made certain, so that all draws are the likeliest codes."""
    core = params["core"]["params"]
    logits = jax.tree.map(lambda leaf: 1e6 * leaf, core["posterior_logits"])
    sharp = params | {"core": {"params": core | {"posterior_logits": logits}}}
    batch = windows(1)
    last = jnp.zeros((B, T)).at[1, 1].set(1.0)
    seen = jax.jit(CERTAIN.model.observe)(sharp, batch.observation, batch.action, last, jax.random.key(3))
    state = SimpleNamespace(model=train_state(sharp, world_models.model_optimizer(CONFIG)))
    bound = {"config": CONFIG, "networks": CERTAIN}
    carry = fresh = world_models.initial_carry(state, B, **bound)
    perceive = jax.jit(lambda observation, carry: world_models.perceive(state, observation, carry, None, **bound))
    for t in range(T):
        latent = perceive(batch.observation[:, t], carry)
        np.testing.assert_array_equal(latent.code.argmax(-1), seen.state.code[:, t].argmax(-1))
        np.testing.assert_allclose(latent.memory, seen.state.memory[:, t], rtol=1e-5, atol=1e-6)
        carry = where_rows(last[:, t] > 0, fresh, world_models.remembered(latent, batch.action[:, t]))
    first = world_models.perceive(state, batch.observation[:, 0], (), None, **bound)
    np.testing.assert_allclose(first.memory, seen.state.memory[:, 0], rtol=1e-6)


def test_an_end_resets_the_carry():
    env = probes.two_step_delayed()
    networks = safe_dreamer.default_networks(1, (8,), size=(2, 4, 3, 4, 8))
    algorithm = safe_dreamer.make(safe_dreamer.Config(length=2), networks)
    key = jax.random.key(0)
    state = jax.jit(algorithm.init)(key, example_transition(env))
    actors = start(algorithm, env, state, key, 2)
    fresh, started = actors.carry, []
    for _ in range(3):
        actors, transition, _ = rollout(algorithm, env, state, actors, key, 1, explore=True)
        started.append(actors.carry.started.tolist())
        if transition.last[0, 0]:
            jax.tree.map(np.testing.assert_array_equal, actors.carry, fresh)
    assert started == [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]
