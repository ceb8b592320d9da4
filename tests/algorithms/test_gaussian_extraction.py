"""A Gaussian out of any policy: its moments in closed form, what moves, the way from diffusion policies to Marvel."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_networks import StateTable, one_hot, random_state

from safejax import checkpoint
from safejax.algorithms import diffusion_bc, diffusion_ql, extraction, idql, marvel
from safejax.algorithms.proposal import PROPOSALS, FrozenActor, FrozenDiffusion, make_proposal
from safejax.algorithms.safety import SafetyConfig, SafetyNetworks
from safejax.diffusion import DiffusionConfig
from safejax.networks.distributions import Normal
from safejax.types import Transition

KEY = jax.random.key(0)
CANDIDATES = np.array([-0.8, -0.3, 0.1, 0.4, 0.9])


@dataclass(frozen=True)
class KnownFrozen:
    """A frozen policy whose candidates are its parameters [K], shifted by .05 in state 1."""

    def init(self, key: Any, observation: Any, action: Any) -> Any:
        return jnp.asarray(CANDIDATES, jnp.float32)

    def propose(self, params: Any, observation: Any, key: Any, *, explore: bool) -> Any:
        return params[:, None, None] + 0.05 * observation[None, :, 1:2]


@dataclass(frozen=True)
class Parabola:
    """Critics [E, 2]: slope a + curvature a^2, observation [B, 2], action [B, 1] -> [E, B]."""

    critics: int

    def init(self, key: Any, *inputs: Any) -> Any:
        return jnp.zeros((self.critics, 2))

    def apply(self, params: Any, observation: Any, action: Any) -> Any:
        place = action[..., 0]
        return params[:, :1] * place + params[:, 1:] * place**2


@dataclass(frozen=True)
class TableActor:
    """A Gaussian with a mean and a log-deviation [S, 2] for every state."""

    states: int = 2

    def init(self, key: Any, observation: Any) -> Any:
        return jnp.zeros((self.states, 2))

    def apply(self, params: Any, observation: Any) -> Any:
        mean, log_std = jnp.split(observation @ params, 2, axis=-1)
        return Normal(mean, log_std)


NETWORKS = extraction.Networks(TableActor(), KnownFrozen(), Parabola(2), SafetyNetworks(Parabola(1), StateTable(2)))


def rows(states):
    """Rows whose actions, rewards and costs play no part: nothing but observations is read."""
    count, poison = len(states), jnp.full(len(states), jnp.nan)
    observation = one_hot(states, 2)
    return Transition(observation, jnp.full((count, 1), jnp.nan), poison, poison, poison, poison, observation)


def example():
    zero = jnp.zeros(())
    return Transition(jnp.zeros(2), jnp.zeros(1), zero, zero, zero, zero, jnp.zeros(2))


def extracted(inverse_temperature, critic, safe=None):
    """(state before, state after) of sweeps over both states at falling rates; safe = (cost critic, lambda)."""
    config = extraction.Config(inverse_temperature=inverse_temperature, safety=None if safe is None else SafetyConfig())
    state = extraction.make(config, NETWORKS).init(KEY, example())
    critic = jnp.asarray(critic, jnp.float32)
    state = state._replace(critic=jnp.stack([critic, critic + jnp.array([0.0, 3.0])]))  # the first is the smaller
    if safe is not None:
        cost, multiplier = safe
        controller = state.safety.multiplier._replace(value=jnp.float32(multiplier))
        cost = jnp.asarray(cost, jnp.float32)[None]
        state = state._replace(safety=state.safety._replace(target_critic=cost, multiplier=controller))

    @jax.jit
    def train(state, rate):
        update = extraction.make(replace(config, learning_rate=rate), NETWORKS).update
        return jax.lax.scan(lambda state, _: update(state, rows([0, 1]), KEY), state, None, 1500)

    before = state
    for rate in (3e-2, 1e-3, 1e-4):
        state, metrics = train(state, rate)
    return before, state, metrics


@pytest.mark.parametrize(
    ("inverse_temperature", "critic", "safe"),
    [
        (0.0, (5.0, -4.0), None),
        (3.0, (1.0, 0.5), None),
        (2.0, (1.0, 0.5), ((2.0, 0.3), 1.5)),
        (0.0, (1.0, 0.5), ((2.0, 0.3), 1.5)),
    ],
)
def test_the_gaussian_has_the_weighted_moments_of_the_candidates(inverse_temperature, critic, safe):
    """w = softmax(beta (Q - lambda Qc) / (1 + lambda)) over the candidates of a state; beta 0 clones them."""
    _, state, metrics = extracted(inverse_temperature, critic, safe)
    largest = []
    for index, (mean, log_std) in enumerate(np.asarray(state.actor.params)):
        places = CANDIDATES + 0.05 * index
        score = critic[0] * places + critic[1] * places**2
        if safe is not None:
            (slope, curve), multiplier = safe
            score = (score - multiplier * (slope * places + curve * places**2)) / (1.0 + multiplier)
        weight = np.exp(inverse_temperature * score)
        weight /= weight.sum()
        expected = weight @ places
        np.testing.assert_allclose(mean, expected, atol=1e-3)
        np.testing.assert_allclose(np.exp(2 * log_std), weight @ (places - expected) ** 2, atol=1e-3)
        largest.append(weight.max())
        if inverse_temperature == 0.0:
            np.testing.assert_allclose(expected, places.mean(), rtol=1e-12)
    np.testing.assert_allclose(metrics["actor/largest_weight"][-1], np.mean(largest), rtol=1e-5)


def test_nothing_but_the_actor_moves():
    before, after, _ = extracted(3.0, (1.0, 0.5), ((2.0, 0.3), 1.5))
    for name in ("frozen", "critic", "safety"):
        chex.assert_trees_all_equal(getattr(after, name), getattr(before, name))
    assert int(after.step) == 4500
    assert np.all(np.abs(np.asarray(after.actor.params)) > 1e-3)


def test_the_gaussian_acts():
    """Its mean, within bounds; a draw where exploring."""
    method = extraction.make(networks=NETWORKS)
    state = method.init(KEY, example())
    state = state._replace(actor=state.actor._replace(params=jnp.array([[0.3, -2.0], [1.7, -2.0]])))
    action = method.act(state, one_hot([0, 1], 2), KEY)[0]
    np.testing.assert_allclose(action, [[0.3], [1.0]], rtol=1e-6)
    drawn = method.act(state, one_hot([0, 1], 2), KEY, explore=True)[0]
    assert abs(float(drawn[0, 0]) - 0.3) > 1e-4


SIZES = (8,)
SOURCES = {
    "idql": (idql, "residual", "ema_actor", dict(candidate_count=3)),
    "diffusion_ql": (diffusion_ql, "mlp", "actor.params", {}),
}


@pytest.mark.parametrize(("name", "safe"), [("idql", True), ("diffusion_ql", False)])
def test_the_way_from_a_diffusion_policy_to_marvel(name, safe):
    """Offline state -> extraction -> one step -> Marvel, whose actor is the extracted one, and whose update runs."""
    module, kind, policy, numbers = SOURCES[name]
    config = module.Config(safety=SafetyConfig() if safe else None, **numbers)
    source_networks = module.default_networks(2, SIZES)
    one = Transition(*(jnp.zeros(shape) for shape in ((3,), (2,), (), (), (), (), (3,))))
    pretrained = random_state(module.make(config, source_networks), one, 0)

    networks = extraction.default_networks(2, SIZES, frozen=kind)
    networks = networks._replace(critic=source_networks.critic, safety=source_networks.safety)
    assert networks.frozen.actor == source_networks.actor
    method = extraction.make(extraction.Config(safety=config.safety), networks)
    fields = {"frozen": policy, "critic": "target_critic"} | ({"safety": "safety"} if safe else {})
    fresh = random_state(method, one, 1)
    start = checkpoint.warm_start(fresh, pretrained, fields)
    source_policy = pretrained.ema_actor if policy == "ema_actor" else pretrained.actor.params
    chex.assert_trees_all_equal(start.frozen, source_policy)
    chex.assert_trees_all_equal(start.critic, pretrained.target_critic)
    chex.assert_trees_all_equal(start.actor, fresh.actor)
    assert (start.safety == ()) != safe

    random = np.random.default_rng(2)
    observation = jnp.asarray(random.normal(size=(4, 3)), jnp.float32)
    zeros = jnp.zeros(4)
    batch = Transition(observation, jnp.zeros((4, 2)), zeros, zeros, zeros + 1, zeros, observation)
    # what the frozen half offers are the source's own candidates
    expected = diffusion_bc.propose(
        source_policy, observation, KEY, 8, explore=True, config=config, networks=source_networks
    )
    found = networks.frozen.propose(start.frozen, observation, KEY, explore=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    state, metrics = jax.jit(method.update)(start, batch, KEY)
    chex.assert_tree_all_finite((state, metrics))
    online = marvel.make_finetuning(networks=marvel.default_networks(2, SIZES))
    crossing = {"actor.params": "actor.params"}
    if name == "idql":  # its critics are Marvel's; Diffusion-QL's have another activation
        assert networks.critic == marvel.default_networks(2, SIZES).critic
        crossing |= {"critic.params": "critic", "target_critic": "critic"}
        if safe:
            crossing |= {"cost_critic.params": "safety.critic.params", "target_cost_critic": "safety.target_critic"}
    learner = checkpoint.warm_start(random_state(online, one, 3), state, crossing)
    expected = method.act(state, observation, KEY)[0]
    np.testing.assert_array_equal(online.act(learner, observation, KEY)[0], expected)
    after, _ = jax.eval_shape(online.update, learner, batch, KEY)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, jax.eval_shape(lambda state: state, learner))


def test_a_frozen_actor_offers_its_mode_and_draws():
    """The mode first, all within bounds; the draws are fixed unless exploring."""
    frozen = FrozenActor(TableActor(), candidate_count=6)
    params = jnp.array([[0.2, -1.0], [0.9, 1.0]])
    observation = one_hot([0, 1, 0], 2)
    plain = [frozen.propose(params, observation, key, explore=False) for key in (KEY, jax.random.key(1))]
    explored = [frozen.propose(params, observation, key, explore=True) for key in (KEY, jax.random.key(1))]
    np.testing.assert_array_equal(*plain)
    assert not np.array_equal(*explored)
    for found in (*plain, *explored):
        assert found.shape == (6, 3, 1)
        np.testing.assert_allclose(found[0, :, 0], [0.2, 0.9, 0.2], rtol=1e-6)
        assert np.all(np.abs(found) <= 1.0)
        assert np.any(found[1:] == 1.0)  # clipped: state 1 is wide
        assert len(set(np.asarray(found[:, 0, 0]).tolist())) == 6
    np.testing.assert_array_equal(frozen.init(KEY, observation, None), jnp.zeros((2, 2)))


def test_a_frozen_diffusion_offers_what_the_policy_draws():
    denoiser, chain = diffusion_bc.residual_denoiser(2, 4), DiffusionConfig(step_count=2, clip="noisy", variance="beta")
    frozen = FrozenDiffusion(denoiser, chain, candidate_count=3)
    observation = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    params = jax.jit(frozen.init)(KEY, observation[0], jnp.zeros(2))
    source_config, networks = diffusion_bc.Config(diffusion=chain), diffusion_bc.Networks(denoiser)
    source = diffusion_bc.make(source_config, networks)
    one = Transition(observation[0], jnp.zeros(2), *[jnp.zeros(())] * 4, observation[0])
    shapes = functools.partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype))
    assert shapes(params) == shapes(jax.eval_shape(source.init, KEY, one).ema_actor)
    for explore in (False, True):
        found = jax.jit(functools.partial(frozen.propose, explore=explore))(params, observation, KEY)
        assert found.shape == (3, 4, 2)
        propose = functools.partial(
            diffusion_bc.propose, count=3, explore=explore, config=source_config, networks=networks
        )
        expected = jax.jit(propose)(params, observation, KEY)
        np.testing.assert_array_equal(found, expected)


def test_an_unknown_kind_of_policy_is_one_line():
    with pytest.raises(ValueError, match="frozen is 'score'") as caught:
        make_proposal("score", 2, (8,))
    message = str(caught.value)
    assert all(name in message for name in PROPOSALS)
    assert "\n" not in message


@pytest.mark.parametrize("name", ["inverse_temperature", "learning_rate"])
def test_numbers_out_of_range_are_refused_in_one_line(name):
    with pytest.raises(ValueError, match=f"{name} is -1") as caught:
        extraction.make(extraction.Config(**{name: -1.0}), NETWORKS)
    assert "\n" not in str(caught.value)


def test_a_bad_safe_half_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"safety\.cost_limit is -1"):
        extraction.make(extraction.Config(safety=SafetyConfig(cost_limit=-1.0)), NETWORKS)
