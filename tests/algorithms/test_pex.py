"""Policy expansion: the choice against its closed form, what learns and what does not, alignment on a known world.

Actions stand at places of a line, values are tables over states and places, and the frozen policy offers places that
are known, so that every number can be written down.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_networks import StateTable, one_hot, random_state

from safejax.algorithms import pex
from safejax.algorithms.safety import SafetyConfig, SafetyNetworks
from safejax.envs import probes
from safejax.multipliers import MultiplierConfig
from safejax.networks.distributions import Normal
from safejax.types import BatchSpec, EpisodeStats, Transition

KEY = jax.random.key(0)
NEW, FIRST, SECOND = 0.75, -0.75, 0.0  # where the new policy acts, and the frozen one's two candidates
PLACES = (FIRST, SECOND, NEW)


@dataclass(frozen=True)
class PlaceTable:
    """Critics [E, S, 3] of the action whose place is nearest: observation [B, >= S], action [B, 1] -> [E, B]."""

    critics: int
    states: int
    places: tuple[float, ...] = PLACES

    def init(self, key: Any, *inputs: Any) -> Any:
        return jnp.zeros((self.critics, self.states, len(self.places)))

    def apply(self, params: Any, observation: Any, action: Any) -> Any:
        nearest = jnp.argmin(jnp.abs(action - jnp.array(self.places)), axis=-1)
        rows = jnp.einsum("esp,bs->ebp", params, observation[..., : self.states])
        return jnp.sum(rows * jax.nn.one_hot(nearest, len(self.places)), axis=-1)


@dataclass(frozen=True)
class LineActor:
    """A Gaussian whose means [S] and one log-deviation are parameters; narrow at first, about NEW."""

    states: int

    def init(self, key: Any, observation: Any) -> Any:
        return {"mean": jnp.full(self.states, NEW), "log_std": jnp.array([-4.0])}

    def apply(self, params: Any, observation: Any) -> Any:
        mean = observation[..., : self.states] @ params["mean"]
        return Normal(mean[..., None], jnp.broadcast_to(params["log_std"], (*mean.shape, 1)))


@dataclass(frozen=True)
class KnownFrozen:
    """A frozen policy whose candidates are its parameters [K], in every state."""

    candidates: tuple[float, ...] = (FIRST,)

    def init(self, key: Any, observation: Any, action: Any) -> Any:
        return jnp.array(self.candidates)

    def propose(self, params: Any, observation: Any, key: Any, *, explore: bool) -> Any:
        return jnp.broadcast_to(params[:, None, None], (params.size, observation.shape[0], 1))


def networks_of(states, candidates=(FIRST,)):
    return pex.Networks(
        LineActor(states),
        KnownFrozen(candidates),
        PlaceTable(2, states),
        StateTable(states),
        SafetyNetworks(PlaceTable(1, states), StateTable(states)),
    )


def example(states):
    zero = jnp.zeros(())
    return Transition(jnp.zeros(states), jnp.zeros(1), zero, zero, zero, zero, jnp.zeros(states))


def prepared(q, *, candidates=(FIRST,), cost=None, multiplier=0.0, config=None):
    """A method and its State in which place p of state s is worth q[s][p], under the smaller of the two critics."""
    q = jnp.asarray(q, jnp.float32)
    config = pex.Config() if config is None else config
    if cost is not None:
        config = replace(config, safety=SafetyConfig())
    method = pex.make(config, networks_of(len(q), candidates))
    state = method.init(KEY, example(len(q)))
    state = state._replace(critic=state.critic._replace(params=jnp.stack([q + 5.0, q])))
    if cost is not None:
        safe = state.safety
        safe = safe._replace(target_critic=jnp.asarray(cost, jnp.float32)[None])
        safe = safe._replace(multiplier=safe.multiplier._replace(value=jnp.float32(multiplier)))
        state = state._replace(safety=safe)
    return method, state


def chosen(method, state, observation, *, explore=True, key=KEY):
    """(action, index) of one call of `act`."""
    action, carry, extras = jax.jit(functools.partial(method.act, explore=explore))(state, observation, key)
    assert carry == ()
    assert list(extras) == ["policy_index"]
    assert extras["policy_index"].dtype == jnp.int32
    return np.asarray(action), np.asarray(extras["policy_index"])


COUNT = 20_000  # rows of each state: a frequency's deviation is at most .0036


def frequencies(method, state, states, choices):
    """[S, choices] shares of the indices drawn in COUNT rows of every state, one batch."""
    observation = one_hot(np.repeat(np.arange(states), COUNT), states)
    _, index = chosen(method, state, observation)
    return np.stack([np.bincount(part, minlength=choices) / COUNT for part in index.reshape(states, COUNT)])


GOLDEN = {0.0: 0.5, 1.0: 0.549834, 5.0: 0.731059, 10.0: 0.880797}
"""1 / alpha -> the second's probability with values 1.0 and 1.2."""


@pytest.mark.parametrize("inverse_temperature", GOLDEN)
def test_the_choice_is_the_softmax_of_values_of_every_row(inverse_temperature):
    """States whose pair of values is (1, 1.2), (1.2, 1), equal, and far apart, side by side in one batch."""
    q = np.array(
        [[1.0, 9.0, 1.2], [1.2, 9.0, 1.0], [0.7, 9.0, 0.7], [0.0, 9.0, 3.0]]
    )  # the second place: never offered
    method, state = prepared(q, config=pex.Config(choice_inverse_temperature=inverse_temperature))
    found = frequencies(method, state, 4, 2)
    expected = 1.0 / (1.0 + np.exp(-inverse_temperature * (q[:, 2] - q[:, 0])))  # of the new policy, index 0
    np.testing.assert_allclose(expected[0], GOLDEN[inverse_temperature], atol=1e-6)
    np.testing.assert_allclose(found[:, 0], expected, atol=0.015)


def test_several_frozen_candidates_share_the_softmax():
    q = np.array([[0.3, -0.2, 0.1], [2.0, 0.0, 1.0]])
    config = pex.Config(choice_inverse_temperature=2.0)
    method, state = prepared(q, candidates=(FIRST, SECOND), config=config)
    logits = 2.0 * q[:, [2, 0, 1]]  # new, first, second
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(frequencies(method, state, 2, 3), expected, atol=0.015)


def test_the_safe_choice_weighs_costs():
    """Q = (3, 2.8), Qc = (5, 0), lambda = .1: softmax(5 (Q - lambda Qc)) is (.182426, .817574).

    Scores are divided by 1 + lambda here, so 5 is 5.5 of ours; at lambda 0 the better, costlier one leads.
    """
    q, cost = [[3.0, 0.0, 2.8]], [[5.0, 0.0, 0.0]]
    config = pex.Config(choice_inverse_temperature=5.5)
    method, state = prepared(q, cost=cost, multiplier=0.1, config=config)
    np.testing.assert_allclose(frequencies(method, state, 1, 2), [[0.817574, 0.182426]], atol=0.015)
    assert chosen(method, state, one_hot([0], 1), explore=False)[1] == [0]
    method, state = prepared(q, cost=cost, multiplier=0.0, config=config)
    np.testing.assert_allclose(frequencies(method, state, 1, 2)[:, 0], 1.0 / (1.0 + np.exp(1.1)), atol=0.015)
    assert chosen(method, state, one_hot([0], 1), explore=False)[1] == [1]


def test_the_choice_ignores_what_the_state_alone_adds():
    """The same draws, bit for bit: values and offsets are multiples of 1/4."""
    q = np.array([[0.25, 0.0, 0.5], [0.75, 0.0, 0.25]])
    observation = one_hot(np.repeat([0, 1], 500), 2)
    drawn = [chosen(*prepared(q + offset), observation)[1] for offset in (0.0, np.array([[16.0], [-8.0]]))]
    np.testing.assert_array_equal(*drawn)
    assert 0 < drawn[0].mean() < 1


def test_the_mixture_gains_as_alpha_falls():
    """With the same noise no row's value ever falls as 1 / alpha grows; at 0 it is the mean, at last the best."""
    q = np.array([[1.0, 0.0, 1.3], [0.4, 0.0, 0.1]])
    _, state = prepared(q)
    networks, observation = networks_of(2), one_hot(np.repeat([0, 1], COUNT), 2)

    @jax.jit
    @jax.vmap
    def indices(inverse_temperature):
        config = pex.Config(choice_inverse_temperature=inverse_temperature)
        return pex.make(config, networks).act(state, observation, KEY, explore=True)[2]["policy_index"]

    index = np.asarray(indices(jnp.array([0.0, 0.5, 2.0, 8.0, 32.0, 1e4])))
    value = np.where(index == 0, q[:, 2].repeat(COUNT), q[:, 0].repeat(COUNT))
    assert np.all(np.diff(value, axis=0) >= 0)
    means = value.mean(axis=1)
    np.testing.assert_allclose(means[0], q[:, [0, 2]].mean(), atol=0.005)
    assert np.all(np.diff(means) > 0)
    np.testing.assert_allclose(means[-1], (1.3 + 0.4) / 2, rtol=1e-6)


@pytest.mark.parametrize(("q", "index", "place"), [((0, 1, 2), 0, NEW), ((3, 1, 2), 1, FIRST), ((0, 3, 2), 2, SECOND)])
def test_without_exploring_the_best_candidate_acts(q, index, place):
    """Whatever the key; the index says which: 0 is the new policy, then the frozen one's candidates."""
    method, state = prepared([q, (0, 1, 2)], candidates=(FIRST, SECOND))
    for key in (KEY, jax.random.key(8)):
        action, found = chosen(method, state, one_hot([0, 1, 0], 2), explore=False, key=key)
        np.testing.assert_array_equal(found, [index, 0, index])
        np.testing.assert_allclose(action[:, 0], [place, NEW, place], rtol=1e-6)


def test_the_index_names_the_action():
    """Exploring: a frozen place exactly, or a draw of the new policy, which has another value in every row."""
    method, state = prepared([(1.0, 1.0, 1.0)], candidates=(FIRST, SECOND))
    action, index = chosen(method, state, one_hot([0] * 200, 1))
    assert set(index) == {0, 1, 2}
    np.testing.assert_array_equal(action[index == 1], FIRST)
    np.testing.assert_array_equal(action[index == 2], SECOND)
    new = action[index == 0][:, 0]
    assert len(set(new.tolist())) == len(new)
    np.testing.assert_allclose(new, NEW, atol=0.1)


def test_actions_stay_in_bounds():
    method, state = prepared([(0.0, 0.0, 9.0)])
    wide = {"mean": jnp.array([0.9]), "log_std": jnp.array([0.0])}
    state = state._replace(actor=state.actor._replace(params=wide))
    action, _ = chosen(method, state, one_hot([0] * 100, 1))
    assert np.max(action) == 1.0
    assert np.min(action) >= -1.0


class Told(NamedTuple):
    """A law whose log-likelihood tells actions apart: 1 at the frozen place, 1000 about NEW, a million elsewhere."""

    inner: Any

    def sample(self, key: Any) -> Any:
        return self.inner.sample(key)

    def log_prob(self, action: Any) -> Any:
        is_new = jnp.abs(action[..., 0] - NEW) < 0.1
        return jnp.where(action[..., 0] == FIRST, 1.0, jnp.where(is_new, 1e3, 1e6))


@dataclass(frozen=True)
class ToldActor(LineActor):
    """A `LineActor` with that law."""

    def apply(self, params: Any, observation: Any) -> Any:
        return Told(super().apply(params, observation))


def batch_of(states, count, count_states):
    """Rows whose own actions, at .3, no policy of the pair ever takes."""
    random = np.random.default_rng(1)
    reward, cost = jnp.asarray(random.random((2, count)), jnp.float32)
    ones = jnp.ones(count)
    observation = one_hot(states, count_states)
    return Transition(observation, jnp.full((count, 1), 0.3), reward, cost, ones, ones, observation)


def test_the_new_policy_imitates_the_pair_and_never_the_data():
    """Its targets are the frozen place or its own draws, both of them, and the share of draws is reported."""
    networks = networks_of(1)._replace(actor=ToldActor(1))
    method = pex.make(pex.Config(inverse_temperature=0.0), networks)  # all weights are 1
    state = method.init(KEY, example(1))
    _, metrics = jax.jit(method.update)(state, batch_of([0] * 64, 64, 1), jax.random.key(4))
    drawn = round(64 * float(metrics["actor/chosen"]))
    assert 10 < drawn < 54  # all values are equal: one half
    np.testing.assert_allclose(metrics["actor/loss"], -(1e3 * drawn + 64 - drawn) / 64, rtol=1e-6)


@pytest.mark.parametrize("safe", [False, True])
def test_the_weights_by_hand(safe):
    """exp(beta (min Q_target - V)), clipped; targets choose by the online critics, weights by the slow ones.

    The choice is all but greedy, so state 0 imitates the frozen place and state 1 the new policy's own draw.
    """
    safety = SafetyConfig(multiplier=MultiplierConfig(initial=0.5)) if safe else None
    config = pex.Config(
        inverse_temperature=2.0, maximum_weight=3.0, choice_inverse_temperature=1e5, learning_rate=0.01, safety=safety
    )
    method = pex.make(config, networks_of(2))
    state = method.init(KEY, example(2))
    online = jnp.array([[2.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    target = np.array([[0.9, 0.0, 0.0], [0.0, 0.0, 0.4]])
    state = state._replace(
        critic=state.critic._replace(params=jnp.stack([online, online])),
        target_critic=jnp.asarray(np.stack([target, target + 1.0]), jnp.float32),
        value=state.value._replace(params=jnp.array([0.1, 0.2])),
    )
    cost = np.array([[0.2, 0.0, 0.0], [0.0, 0.0, 0.7]])
    if safe:
        state = state._replace(safety=state.safety._replace(target_critic=jnp.asarray(cost, jnp.float32)[None]))
    batch = batch_of([0, 1, 1], 3, 2)
    after, metrics = jax.jit(method.update)(state, batch, KEY)
    np.testing.assert_allclose(metrics["actor/chosen"], 2 / 3, rtol=1e-6)

    q = np.min(np.asarray(after.target_critic), axis=0)[[0, 1, 1], [0, 2, 2]]
    value = np.asarray(after.value.params)[[0, 1, 1]]
    if safe:  # lambda stays; the cost critic's slow parameters and new value
        cost_q = np.asarray(after.safety.target_critic)[0][[0, 1, 1], [0, 2, 2]]
        cost_value = np.asarray(after.safety.value.params)[[0, 1, 1]]
        q, value = (q - 0.5 * cost_q) / 1.5, (value - 0.5 * cost_value) / 1.5
        assert float(after.safety.multiplier.value) == 0.5
        # V of the cost regresses on what the pair chose
        chosen = cost[[0, 1, 1], [0, 2, 2]] - np.asarray(state.safety.value.params)[[0, 1, 1]]
        np.testing.assert_allclose(metrics["cost_value/loss"], np.mean(chosen**2), rtol=1e-5)
    weight = np.minimum(np.exp(2.0 * (q - value)), 3.0)
    np.testing.assert_allclose(metrics["actor/weight"], weight.mean(), rtol=1e-5)
    if not safe:
        assert weight[0] == 3.0
        assert weight[1] < 3.0
    # state 0 pulls its mean from NEW towards FIRST; Adam's first step is the learning rate
    moved = np.asarray(after.actor.params["mean"]) - NEW
    np.testing.assert_allclose(moved[0], -0.01, rtol=1e-3)
    log_prob = -0.5 * ((FIRST - NEW) / np.exp(-4.0)) ** 2  # so far off that the rest is small
    np.testing.assert_allclose(metrics["actor/loss"], -weight[0] * log_prob / 3.0, rtol=2e-3)


def test_nothing_moves_the_frozen_policy():
    """Bit for bit, through updates and alignment, while everything that learns moves."""
    config = pex.Config(safety=SafetyConfig(multiplier=MultiplierConfig(initial=0.5)))
    networks, batch = networks_of(2, (FIRST, SECOND)), batch_of([0, 1, 1], 3, 2)
    learned = {"critic", "value", "target_critic"}
    for make, moves in ((pex.make, learned | {"actor"}), (pex.make_alignment, learned)):
        method = make(config, networks)
        state = random_state(method, example(2), 0)
        state = state._replace(safety=state.safety._replace(multiplier=method.init(KEY, example(2)).safety.multiplier))
        update, after = jax.jit(method.update), state
        for index in range(3):
            after, _ = update(after, batch, jax.random.key(index))
        assert int(after.step) == 3
        assert float(after.safety.multiplier.value) == 0.5
        chex.assert_trees_all_equal(after.safety.multiplier, state.safety.multiplier)
        for name in ("frozen", "actor", "critic", "value", "target_critic"):
            parts = zip(jax.tree.leaves(getattr(after, name)), jax.tree.leaves(getattr(state, name)), strict=True)
            assert all(np.array_equal(new, old) for new, old in parts) == (name not in moves), name


def test_finished_episodes_move_the_multiplier():
    costs = jnp.array([30.0, 10.0, 500.0])
    episodes = EpisodeStats(costs, costs, jnp.ones(3, jnp.int32), jnp.array([True, True, False]))
    controller = MultiplierConfig(initial=0.5, learning_rate=0.01, adam=False)
    method = pex.make(pex.Config(safety=SafetyConfig(cost_limit=15.0, multiplier=controller)), networks_of(1))
    state = method.init(KEY, example(1))
    after = method.adapt(state, episodes)
    np.testing.assert_allclose(after.safety.multiplier.value, 0.5 + 0.01 * (20.0 - 15.0), rtol=1e-6)
    still = method.adapt(state, episodes._replace(finished=jnp.zeros(3, bool)))
    chex.assert_trees_all_equal(still, state)
    plain, plain_state = prepared([(0.0, 0.0, 0.0)])
    chex.assert_trees_all_equal(plain.adapt(plain_state, episodes), plain_state)


# Alignment: the two-state world, action a at place a - 1/2; an observation's last two entries are planned actions.

MDP = probes.golden_cmdp()
POLICY = ((0.6, 0.4), (0.3, 0.7))
VALUES = ((11.169572, 11.118067, 10.940571, 13.389065), (5.106181, 6.405705, 5.191759, 6.491284))


@dataclass(frozen=True)
class PlannedFrozen:
    """Candidates are the last `count` entries of an observation."""

    count: int

    def init(self, key: Any, observation: Any, action: Any) -> Any:
        return jnp.ones(2)

    def propose(self, params: Any, observation: Any, key: Any, *, explore: bool) -> Any:
        return observation[:, -self.count :].T[..., None]


@dataclass(frozen=True)
class WideStateTable(StateTable):
    """Values [S] of observations that carry more than the state."""

    def apply(self, params: Any, observation: Any) -> Any:
        return observation[..., : self.states] @ params


@functools.cache
def world():
    """400 rows: every (s, a) 100 times with its s', and with the frozen policy's action at s as POLICY has it."""
    rows = []
    for (s, a), _ in np.ndenumerate(MDP.reward):
        for following in range(2):
            for planned in range(2):
                count = round(100 * MDP.transition[s, a, following] * POLICY[s][planned])
                rows += [(s, a, following, planned)] * count
    state, action, following, planned = np.array(rows).T
    assert len(rows) == 400

    def observe(states, planned):
        plans = np.stack([0.5 - planned, planned - 0.5], axis=1)  # the other one, then the planned one
        return jnp.concatenate([one_hot(states, 2), jnp.asarray(plans, jnp.float32)], axis=1)

    reward, cost = (jnp.asarray(table[state, action], jnp.float32) for table in (MDP.reward, MDP.cost))
    ones = jnp.ones(400)
    action = jnp.asarray(action[:, None] - 0.5, jnp.float32)
    return Transition(observe(state, planned), action, reward, cost, ones, ones, observe(following, planned))


def aligned(count, multiplier=0.0):
    """The State after sweeps of alignment with the last `count` planned actions as candidates."""
    places = (-0.5, 0.5)
    networks = pex.Networks(
        LineActor(2),
        PlannedFrozen(count),
        PlaceTable(2, 2, places),
        WideStateTable(2),
        SafetyNetworks(PlaceTable(1, 2, places), WideStateTable(2)),
    )
    batch = world()
    config = pex.Config(discount_factor=0.9, target_update_rate=0.5, reward_scale=0.1)
    safety = SafetyConfig(
        evaluation="expectile",  # which alignment passes over
        discount_factor=0.9,
        target_update_rate=0.5,
        multiplier=MultiplierConfig(initial=multiplier),
    )

    @jax.jit
    def train(state, rate):
        numbers = replace(config, learning_rate=rate, safety=replace(safety, learning_rate=rate))
        update = pex.make_alignment(numbers, networks).update
        return jax.lax.scan(lambda state, _: (update(state, batch, KEY)[0], None), state, None, 1200)[0]

    first = jax.tree.map(lambda leaf: leaf[0], batch)
    state = pex.make_alignment(replace(config, safety=safety), networks).init(KEY, first)
    for rate in (0.1, 0.01, 0.001):
        state = train(state, rate)
    return state


def test_alignment_evaluates_the_frozen_policy():
    """Its Q and Qc, at every entry, not those of data or of an expectile; rewards are scaled, costs are not."""
    state = aligned(1)
    np.testing.assert_allclose(state.critic.params.reshape(2, 4), [0.1 * np.array(VALUES[0])] * 2, atol=1e-3)
    np.testing.assert_allclose(state.target_critic.reshape(2, 4), [0.1 * np.array(VALUES[0])] * 2, atol=1e-3)
    np.testing.assert_allclose(state.safety.critic.params.reshape(4), VALUES[1], atol=1e-3)
    value = np.sum(np.reshape(VALUES[1], (2, 2)) * np.array(POLICY), axis=1)
    np.testing.assert_allclose(state.safety.value.params, value, atol=1e-3)
    assert int(state.step) == 3600


@pytest.mark.parametrize("multiplier", [0.0, 0.9])
def test_alignment_evaluates_the_best_of_several_candidates(multiplier):
    """With both actions on offer: the policy that is greedy under its own 0.1 Q - lambda Qc."""
    state = aligned(2, multiplier)
    q, cost_q = np.asarray(state.critic.params)[0], np.asarray(state.safety.critic.params)[0]
    best = np.argmax(q - multiplier * cost_q, axis=1)
    expected = probes.evaluate(MDP, np.eye(2)[best], 0.9)
    np.testing.assert_allclose(q, 0.1 * expected[0], atol=1e-3)
    np.testing.assert_allclose(cost_q, expected[1], atol=1e-3)
    # lambda 0: the optimal policy, in state 1 the costly action; with lambda .9 costs are shunned everywhere
    np.testing.assert_array_equal(best, [0, 0] if multiplier else [1, 1])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("choice_inverse_temperature", -1.0),
        ("inverse_temperature", -1.0),
        ("expectile", 1.0),
        ("offline_fraction", 1.5),
        ("safety", SafetyConfig(cost_limit=-2.0)),
    ],
)
def test_numbers_out_of_range_are_refused_in_one_line(name, value):
    with pytest.raises(ValueError, match="cost_limit is -2" if name == "safety" else name) as caught:
        pex.make(pex.Config(**{name: value}), action_size=2)
    assert "\n" not in str(caught.value)


def test_batches_are_half_offline_and_alignment_is_offline():
    assert pex.make(networks=networks_of(1)).batch == BatchSpec.mixed(0.5)
    assert pex.make_alignment(networks=networks_of(1)).batch.kind == "uniform"
