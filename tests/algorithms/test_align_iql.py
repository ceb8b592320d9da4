"""AlignIQL against the closed forms of a bandit, with tables for networks and a behavior policy that is known exactly.

The bandit: actions at -.8, 0 and .8 of values (0, 1, 2), seen with shares (.5, .3, .2). Ten candidates of the behavior
policy hold each action as often as its share asks, so that means over candidates are exact.
"""

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
from scipy import stats

from safejax.algorithms import align_iql, diffusion_bc, idql
from safejax.algorithms.safety import SafetyConfig, SafetyNetworks
from safejax.diffusion import DiffusionConfig, make_schedule
from safejax.losses.extraction import alignment_alpha
from safejax.networks import GaussianActor
from safejax.types import Transition

PLACES = np.array([-0.8, 0.0, 0.8])
MU = np.array([0.5, 0.3, 0.2])
DATA = (0, 0, 0, 0, 0, 1, 1, 1, 2, 2)
ONE_STEP = DiffusionConfig(step_count=1, clip="noisy", variance="beta")
SHARE = float(make_schedule("vp", 1).alpha_bar[0])


@dataclass(frozen=True)
class PlannedDenoiser:
    """A behavior policy whose K candidates are the K planned actions, whatever the noise; one number learns."""

    actions: tuple[int, ...]
    action_size: int = 1

    def init(self, key: Any, *inputs: Any) -> Any:
        return jnp.zeros(())

    def apply(self, params: Any, observation: Any, noisy: Any, index: Any, key: Any = None) -> Any:
        if noisy.ndim == observation.ndim:  # of the data
            return 0.0 * noisy + params
        clean = jnp.asarray(PLACES, jnp.float32)[jnp.array(self.actions)][: noisy.shape[0], None, None]
        return (noisy - np.sqrt(SHARE) * clean) / np.sqrt(1.0 - SHARE)


@dataclass(frozen=True)
class PlaceTable:
    """Critics [E, 3] of the action whose place is nearest: observation [B, S], action [B, 1] -> [E, B]."""

    critics: int = 2

    def init(self, key: Any, *inputs: Any) -> Any:
        return jnp.zeros((self.critics, len(PLACES)))

    def apply(self, params: Any, observation: Any, action: Any) -> Any:
        nearest = jnp.argmin(jnp.abs(action - jnp.asarray(PLACES, jnp.float32)), axis=-1)
        return params[:, nearest]


@dataclass(frozen=True)
class Fixed:
    """A network without learning: its output is `function` of its inputs, its gradient zero."""

    function: Any

    def init(self, key: Any, *inputs: Any) -> Any:
        return jnp.zeros(())

    def apply(self, params: Any, *inputs: Any) -> Any:
        return self.function(*inputs) + 0.0 * params


def networks_of(actions=DATA, critic=PlaceTable(), value=StateTable(1), **others):
    safe = SafetyNetworks(PlaceTable(1), StateTable(1))
    parts = dict(actor=PlannedDenoiser(actions), critic=critic, value=value, multiplier=StateTable(1), safety=safe)
    return align_iql.Networks(**(parts | others))


def rows(actions, costs=None):
    """One state; action k pays k, spends what `costs` says, and ends the episode."""
    count = len(actions)
    action = jnp.asarray(PLACES[list(actions)], jnp.float32)[:, None]
    cost = jnp.zeros(count) if costs is None else jnp.asarray(costs, jnp.float32)[jnp.array(actions)]
    state = one_hot([0] * count, 1)
    return Transition(state, action, jnp.asarray(actions, jnp.float32), cost, jnp.zeros(count), jnp.ones(count), state)


def first_of(batch):
    return jax.tree.map(lambda leaf: leaf[0], batch)


def train(config, networks, batch, rates=(3e-2, 1e-3, 1e-4), steps=1500):
    """Full-batch updates at falling learning rates."""
    method = align_iql.make(config(rates[0]), networks)
    state = method.init(jax.random.key(0), first_of(batch))
    for rate in rates:
        update = align_iql.make(config(rate), networks).update
        state, metrics = jax.lax.scan(
            lambda state, _, update=update: update(state, batch, jax.random.key(1)), state, None, steps
        )
    return state, jax.tree.map(lambda column: column[-1], metrics)


TABLE = {  # expectile -> V, beta, alpha, policy, KL(policy || data)
    0.5: (0.7, 0.0, -1.0, (0.5, 0.3, 0.2), 0.0),
    0.6: (0.84, -0.219949, -0.830836, (0.422185, 0.315629, 0.262185), 0.015594),
    0.7: (0.98, -0.428654, -0.640985, (0.349182, 0.321636, 0.329182), 0.061066),
    0.8: (1.1875, -0.738312, -0.305180, (0.249582, 0.313336, 0.437082), 0.181926),
    0.9: (1.5, -1.278000, 0.423993, (0.120375, 0.259249, 0.620375), 0.493007),
}


@pytest.mark.parametrize("dual", ["logsumexp", "sample"])
def test_updates_reach_the_multipliers_of_the_bandit(dual):
    """Both estimators, all expectiles at once: Config numbers may be traced."""
    networks, batch = networks_of(), rows(DATA)

    def learn(expectile):
        def config(rate):
            return align_iql.Config(
                alignment="hard",
                dual=dual,
                dual_sample_count=10,
                expectile=expectile,
                diffusion=ONE_STEP,
                learning_rate=rate,
                multiplier_learning_rate=rate,
                target_update_rate=0.5,
            )

        return train(config, networks, batch)

    state, metrics = jax.jit(jax.vmap(learn))(jnp.array(list(TABLE)))
    value, beta, alpha, policy, divergence = (np.array(column) for column in zip(*TABLE.values(), strict=True))
    np.testing.assert_allclose(state.value.params[:, 0], value, atol=1e-3)
    np.testing.assert_allclose(state.beta.params[:, 0], beta, atol=1e-3)
    np.testing.assert_allclose(metrics["alignment/alpha"], alpha, atol=1e-3)
    np.testing.assert_allclose(metrics["alignment/dual"], -divergence, atol=1e-3)
    np.testing.assert_allclose(metrics["alignment/weight"], 1.0, atol=1e-3)  # E_mu w
    weight = np.exp(-state.beta.params * np.arange(3.0)) * MU
    found = weight / weight.sum(-1, keepdims=True)
    np.testing.assert_allclose(found, policy, atol=1e-3)
    np.testing.assert_allclose(found @ np.arange(3.0), state.value.params[:, 0], atol=1e-3)  # aligned
    if dual == "sample":
        np.testing.assert_allclose(state.alpha.params[:, 0], alpha, atol=1e-3)
    else:
        assert state.alpha == ()


def planned(actions, q, value, beta=None, **numbers):
    """A method whose candidates are `actions` of values q, in a state of value V."""
    config = align_iql.Config(candidate_count=len(actions), diffusion=ONE_STEP, **numbers)
    method = align_iql.make(config, networks_of(actions))
    state = method.init(jax.random.key(0), first_of(rows(DATA)))
    table = jnp.tile(jnp.asarray(q, jnp.float32), (2, 1)).at[1].add(5.0)  # the minimum of both is q
    state = state._replace(target_critic=table, value=state.value._replace(params=jnp.array([value])))
    if beta is not None:
        state = state._replace(beta=state.beta._replace(params=jnp.array([beta])))
    return method, state


def chosen(method, state, count=1, **choice):
    """Indices [count] of the actions taken."""
    action, carry, extras = jax.jit(functools.partial(method.act, **choice))(
        state, one_hot([0] * count, 1), jax.random.key(7)
    )
    assert (carry, extras) == ((), {})
    return np.argmin(np.abs(np.asarray(action) - PLACES), axis=-1)


@pytest.mark.parametrize(("value", "index"), [(0.6, 1), (1.0, 2), (0.1, 0)])
@pytest.mark.parametrize("penalty", [0.1, 1.0, 30.0])
def test_soft_alignment_takes_the_candidate_nearest_to_the_value(value, index, penalty):
    """Whatever eta; from V = .6 it passes over a better one, from V = 1 it takes the best as IDQL does."""
    method, state = planned((0, 1, 2), (0.2, 0.5, 0.9), value, penalty=penalty)
    assert chosen(method, state) == [index]
    if value == 1.0:
        config = idql.Config(candidate_count=3, diffusion=ONE_STEP)
        best = idql.make(config, idql.Networks(PlannedDenoiser((0, 1, 2)), PlaceTable(), StateTable(1)))
        ours = {name: getattr(state, name) for name in idql.State._fields}
        assert chosen(best, idql.State(**ours)) == [index]


@pytest.mark.parametrize(("beta", "index"), [(-0.3, 2), (0.3, 0), (-200.0, 2)])
def test_hard_alignment_takes_the_best_or_the_worst_by_the_sign_of_beta(beta, index):
    """exp(-beta Q) would be infinite for two of three at the last, and the first of them win."""
    method, state = planned((0, 1, 2), (0.2, 0.5, 0.9), 0.6, beta, alignment="hard")
    assert chosen(method, state) == [index]


@pytest.mark.parametrize(
    ("numbers", "beta", "law", "wrong"),
    [
        ({}, None, (0.220516, 0.575922, 0.203562), (0.479912, 0.000200, 0.519888)),
        (dict(alignment="hard"), -0.428654, (0.204415, 0.313817, 0.481768), (1 / 3, 1 / 3, 1 / 3)),
    ],
)
def test_exploring_draws_by_the_softmax_of_the_log_weight(numbers, beta, law, wrong):
    """Equal candidates of the bandit, V = .98, eta 1. The released code's soft law favours the least aligned."""
    count = 20000
    method, state = planned((0, 1, 2), (0.0, 1.0, 2.0), 0.98, beta, **numbers)
    shares = np.bincount(chosen(method, state, count, explore=True), minlength=3) / count
    deviation = 4.0 * np.sqrt(np.array(law) * (1.0 - np.array(law)) / count)
    assert np.all(np.abs(shares - law) < deviation)
    assert np.any(np.abs(shares - wrong) > 5.0 * deviation)


def test_exploring_by_argmax_takes_the_likeliest():
    method, state = planned((0, 1, 2), (0.0, 1.0, 2.0), 0.98, selection="argmax")
    np.testing.assert_array_equal(chosen(method, state, 50, explore=True), 1)


def test_only_what_is_used_is_carried_and_sampled(monkeypatch):
    """No multipliers with soft alignment, no alpha beside the log-sum-exp, no behavior samples but for that one."""
    batch, calls = rows(DATA), []
    propose = diffusion_bc.propose
    monkeypatch.setattr(diffusion_bc, "propose", lambda *args, **named: calls.append(args) or propose(*args, **named))
    gaussian = networks_of(actor=GaussianActor(1, (), squash=False), safety=())
    cases = [
        (networks_of(multiplier=(), safety=()), {}, 0, 0),
        (networks_of(safety=()), dict(alignment="hard", dual_sample_count=10), 1, 1),
        (networks_of(safety=()), dict(alignment="hard", dual="sample"), 2, 0),
        (gaussian._replace(multiplier=()), dict(policy="gaussian"), 0, 0),
        (gaussian, dict(policy="gaussian", alignment="hard", dual="sample"), 2, 0),
    ]
    for networks, numbers, multipliers, samples in cases:
        calls.clear()
        method = align_iql.make(align_iql.Config(diffusion=ONE_STEP, **numbers), networks)
        state = jax.eval_shape(method.init, jax.random.key(0), first_of(batch))
        jax.eval_shape(method.update, state, batch, jax.random.key(1))
        assert len(calls) == samples, numbers
        assert (state.alpha != ()) + (state.beta != ()) == multipliers, numbers
        assert (state.ema_actor == ()) == (numbers.get("policy") == "gaussian")
        assert state.safety == ()


def test_one_update_of_both_multipliers_by_hand():
    """q is the target's minimum, V the new value, each loss has the other multiplier as it was; the norm is clipped."""
    config = align_iql.Config(
        alignment="hard", dual="sample", diffusion=ONE_STEP, multiplier_learning_rate=0.1, multiplier_clip_norm=1e-9
    )
    networks = networks_of(multiplier=StateTable(2), value=StateTable(2))
    method = align_iql.make(config, networks)
    batch = rows((0, 2, 1))
    batch = batch._replace(observation=one_hot([0, 1, 0], 2), next_observation=one_hot([0, 1, 0], 2))
    state = random_state(method, first_of(batch), 3)
    state = state._replace(target_critic=jnp.array([[0.1, 0.9, 3.0], [0.4, 0.7, 2.5]]))
    after, metrics = jax.jit(method.update)(state, batch, jax.random.key(1))

    states = np.array([0, 1, 0])
    q, value = np.array([0.1, 2.5, 0.7]), np.asarray(after.value.params)[states]
    alpha, beta = (np.asarray(part.params)[states] for part in (state.alpha, state.beta))
    weight = np.exp(-1.0 - alpha - beta * q)
    np.testing.assert_allclose(metrics["alignment/dual"], np.mean(weight + alpha + beta * value), rtol=1e-5)
    np.testing.assert_allclose(metrics["alignment/weight"], np.mean(weight), rtol=1e-5)
    for part, slope in (("alpha", 1.0 - weight), ("beta", value - weight * q)):
        gradient = np.bincount(states, slope) / 3.0
        clipped = 1e-9 * gradient / np.linalg.norm(gradient)  # below Adam's epsilon, 1e-8, so that its size shows
        step = -0.1 * clipped / (np.abs(clipped) + 1e-8)
        moved = np.asarray(getattr(after, part).params) - np.asarray(getattr(state, part).params)
        np.testing.assert_allclose(moved, step, rtol=1e-3, atol=1e-7)


def test_the_log_sum_exp_step_by_hand():
    """Its values are the new target's at the behavior samples, not at the data's actions."""
    config = align_iql.Config(alignment="hard", dual_sample_count=10, diffusion=ONE_STEP, multiplier_learning_rate=0.1)
    method = align_iql.make(config, networks_of())
    batch = rows((2, 2))
    state = random_state(method, first_of(batch), 4)
    after, metrics = jax.jit(method.update)(state, batch, jax.random.key(1))
    q = np.asarray(after.target_critic).min(0)[list(DATA)]
    beta, value = float(state.beta.params[0]), float(after.value.params[0])
    partition = np.mean(np.exp(-beta * q))
    np.testing.assert_allclose(metrics["alignment/dual"], np.log(partition) + beta * value, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["alignment/alpha"], np.log(partition) - 1.0, rtol=1e-5)
    slope = value - np.mean(np.exp(-beta * q) * q) / partition
    assert np.sign(float(after.beta.params[0]) - beta) == -np.sign(slope)


def gaussian_data(count=2000):
    """Actions at equal quantiles of N(0, 1): means over rows are means under it, to about 1e-3."""
    action = jnp.asarray(stats.norm.ppf((np.arange(count) + 0.5) / count), jnp.float32)[:, None]
    nothing, state = jnp.zeros(count), jnp.ones((count, 1))
    return Transition(state, action, nothing, nothing, nothing, nothing + 1.0, state)


@pytest.mark.parametrize(
    ("numbers", "mean", "variance"),
    [
        (dict(penalty=0.5), 0.4, 0.5),  # (m + 2 eta s^2 V) / (1 + 2 eta s^2), s^2 / (1 + 2 eta s^2)
        (dict(penalty=0.0), 0.0, 1.0),  # behavior cloning
        (dict(alignment="hard", dual="sample", maximum_weight=1e6), 0.8, 1.0),  # N(V, s^2)
    ],
)
def test_a_gaussian_policy_by_weighted_regression(numbers, mean, variance):
    """Data N(0, 1), Q = a and V = .8 as they are: only the actor and the multipliers learn."""
    critic = Fixed(lambda observation, action: jnp.stack([action[..., 0]] * 2))
    networks = networks_of(
        critic=critic,
        value=Fixed(lambda observation: jnp.full(observation.shape[:-1], 0.8)),
        actor=GaussianActor(1, (), squash=False, state_dependent_std=False),
    )

    def config(rate):
        return align_iql.Config(
            policy="gaussian", actor_learning_rate=rate, multiplier_learning_rate=rate, discount_factor=0.0, **numbers
        )

    state, metrics = jax.jit(lambda: train(config, networks, gaussian_data(), (3e-2, 1e-3), 800))()
    observation = jnp.ones((1, 1))
    policy = networks.actor.apply(state.actor.params, observation)
    np.testing.assert_allclose(policy.mode(), [[mean]], atol=0.01)
    np.testing.assert_allclose(jnp.exp(2.0 * policy.log_std), [[variance]], atol=0.02)
    method = align_iql.make(config(1e-3), networks)
    np.testing.assert_array_equal(method.act(state, observation, jax.random.key(0))[0], policy.mode())
    if "dual" in numbers:  # beta = (m - V) / s^2, alpha = -beta m + beta^2 s^2 / 2 - 1
        np.testing.assert_allclose(metrics["alignment/beta"], -0.8, atol=0.01)
        np.testing.assert_allclose(metrics["alignment/alpha"], -0.68, atol=0.01)


SAFETY = SafetyConfig(cost_limit=1.0, episode_length=1, learning_rate=0.1)
FORMS = {
    "soft": {},
    "logsumexp": dict(alignment="hard", dual_sample_count=10),
    "sample": dict(alignment="hard", dual="sample"),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_safe_form_with_a_zero_multiplier_is_the_plain_one(form):
    batch, key = rows(DATA, costs=(0.0, 5.0, 9.0)), jax.random.key(1)
    states = {}
    for name, config in (("plain", None), ("safe", SAFETY)):
        method = align_iql.make(align_iql.Config(diffusion=ONE_STEP, safety=config, **FORMS[form]), networks_of())
        state = random_state(method, first_of(batch), 5)
        states[name] = jax.jit(method.update)(state, batch, key)[0]._replace(safety=())
        if config is not None:
            assert float(state.safety.multiplier.value) == 0.0
    plain, safe = (states[name]._asdict() for name in ("plain", "safe"))
    for part in plain:
        chex.assert_trees_all_close(safe[part], plain[part], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("cost", "rises"), [(3.0, True), (0.4, False)])
def test_the_multiplier_of_the_cost_follows_the_weighted_cost_value(form, cost, rises):
    """Every action costs the same, so the policy's cost value is that number; the limit is 1."""
    batch = rows(DATA, costs=(cost,) * 3)
    method = align_iql.make(align_iql.Config(diffusion=ONE_STEP, safety=SAFETY, **FORMS[form]), networks_of())
    state = random_state(method, first_of(batch), 6)
    cost_value = state.safety.value._replace(params=jnp.array([cost]))
    state = state._replace(safety=state.safety._replace(target_critic=jnp.full((1, 3), cost), value=cost_value))
    after, metrics = jax.jit(method.update)(state, batch, jax.random.key(1))
    np.testing.assert_allclose(metrics["cost_value/policy"], cost, rtol=1e-5)
    assert (float(after.safety.multiplier.value) > 0.0) == rises


def test_the_cost_value_is_the_lower_expectile_whatever_evaluation_says():
    """A policy is aligned with its own cost already, whatever lambda is."""
    batch, losses = rows(DATA, costs=(0.0, 5.0, 9.0)), []
    for evaluation in ("policy", "expectile"):
        config = align_iql.Config(diffusion=ONE_STEP, safety=replace(SAFETY, evaluation=evaluation))
        method = align_iql.make(config, networks_of())
        state = random_state(method, first_of(batch), 6)
        losses.append(float(jax.jit(method.update)(state, batch, jax.random.key(1))[1]["cost_value/loss"]))
    assert losses[0] == losses[1]
    cost_q = np.asarray(state.safety.target_critic)[0]
    assert len(set(cost_q)) == 3
    apart = cost_q[list(DATA)] - np.asarray(state.safety.value.params)
    np.testing.assert_allclose(losses[0], np.mean(np.where(apart < 0, 0.7, 0.3) * apart**2), rtol=1e-4)


@pytest.mark.parametrize(
    ("numbers", "beta", "before", "after"), [({}, None, 2, 0), (dict(alignment="hard"), -0.5, 2, 0)]
)
def test_the_penalised_choice_leaves_the_costly_candidate(numbers, beta, before, after):
    """Q = (0, 1, 2), V = 2, Qc = (0, 4, 9), Vc = 0: at lambda 1 the scores are (0, -3, -7) / 2 and V's is 1."""
    method, state = planned((0, 1, 2), (0.0, 1.0, 2.0), 2.0, beta, safety=SAFETY, **numbers)
    costs = jnp.array([[0.0, 4.0, 9.0]])
    cost_value = state.safety.value._replace(params=jnp.zeros(1))
    state = state._replace(safety=state.safety._replace(target_critic=costs, value=cost_value))
    assert chosen(method, state) == [before]
    multiplier = state.safety.multiplier._replace(value=jnp.float32(1.0))
    assert chosen(method, state._replace(safety=state.safety._replace(multiplier=multiplier))) == [after]


def test_hard_alignment_is_with_the_penalised_value():
    """At lambda 1 both duals see (Q - Qc) / 2 and (V - Vc) / 2: their alpha is that of these values."""
    batch = rows(DATA)
    method = align_iql.make(align_iql.Config(diffusion=ONE_STEP, safety=SAFETY, **FORMS["logsumexp"]), networks_of())
    state = random_state(method, first_of(batch), 8)
    multiplier = state.safety.multiplier._replace(value=jnp.float32(1.0))
    state = state._replace(safety=state.safety._replace(multiplier=multiplier))
    after, metrics = jax.jit(method.update)(state, batch, jax.random.key(1))
    q = (after.target_critic.min(0) - state.safety.target_critic.max(0)) / 2.0
    beta = state.beta.params[0]
    np.testing.assert_allclose(metrics["alignment/alpha"], alignment_alpha(beta, q[jnp.array(DATA)]), rtol=1e-5)
    value = (after.value.params[0] - state.safety.value.params[0]) / 2.0
    expected = metrics["alignment/alpha"] + 1.0 + beta * value
    np.testing.assert_allclose(metrics["alignment/dual"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(alignment="both"), ("alignment", "soft")),
        (dict(policy="flow"), ("policy", "gaussian")),
        (dict(dual="exact"), ("dual", "logsumexp")),
        (dict(selection="weighted"), ("selection", "softmax")),
        (dict(value="mean"), ("value", "expectile")),
        (dict(penalty=-1.0), ("penalty", "-1.0")),
        (dict(dual_sample_count=1), ("dual_sample_count", "1")),
        (dict(multiplier_learning_rate=0.0), ("multiplier_learning_rate",)),
        (dict(multiplier_clip_norm=0.0), ("multiplier_clip_norm",)),
        (dict(maximum_weight=0.0), ("maximum_weight",)),
        (dict(expectile=1.0), ("expectile", "1.0")),
        (dict(quantile=0.0), ("quantile",)),
        (dict(exponential=0.0), ("exponential",)),
        (dict(candidate_count=0), ("candidate_count",)),
        (dict(alignment="hard", policy="gaussian"), ("logsumexp", "gaussian", "'sample'")),
    ],
)
def test_bad_numbers_are_refused_in_one_line(change, words):
    with pytest.raises(ValueError, match=words[0]) as caught:
        align_iql.make(align_iql.Config(**change), action_size=2)
    message = str(caught.value)
    assert all(word in message for word in words)
    assert "\n" not in message


def test_default_networks_fit_their_policy():
    for numbers in ({}, dict(policy="gaussian")):
        method = align_iql.make(align_iql.Config(**numbers), action_size=1)
        state = jax.eval_shape(method.init, jax.random.key(0), first_of(rows(DATA)))
        jax.eval_shape(method.update, state, rows(DATA), jax.random.key(0))
    with pytest.raises(ValueError, match="actor is 'flow'"):
        align_iql.default_networks(2, actor="flow")
