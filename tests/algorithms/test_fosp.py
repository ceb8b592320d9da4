"""FOSP's choice, weights and constraint against closed forms; what its values regress on; that it learns.

Values are given exactly: a stub critic is a two-hot head that says what a function of its inputs says.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safejax.algorithms import feasible_policy, fosp, imagination, latent_values, world_models
from safejax.algorithms.imagination import Dream, Scale
from safejax.algorithms.latent_values import Values
from safejax.data.dataset import from_arrays
from safejax.envs import probes
from safejax.losses.model import two_hot
from safejax.networks.distributions import Normal
from safejax.training import train_offline
from safejax.types import BatchSpec, TrainState, Transition, example_transition

CONFIG = fosp.Config(discount_factor=0.9, horizon=2, cost_limit=1.0)


@dataclass(frozen=True)
class Says:
    """A two-hot head whose value is a row of its parameters [R], by features [..., 0], times the action, if any."""

    def apply(self, params: Any, features: Any, action: Any = None) -> Any:
        value = params[features[..., 0].astype(jnp.int32)]
        return jnp.log(two_hot(value if action is None else value * action[..., 0]) + 1e-30)


@dataclass(frozen=True)
class Logit:
    """p is sigmoid(params) in every state."""

    def apply(self, params: Any, features: Any) -> Any:
        return jnp.broadcast_to(params, (*features.shape[:-1], 1))


@dataclass(frozen=True)
class Still:
    """A Gaussian of unit width about params."""

    action_size: int = 1

    def apply(self, params: Any, features: Any) -> Normal:
        mean = jnp.broadcast_to(params, (*features.shape[:-1], 1))
        return Normal(mean, jnp.zeros_like(mean))


NETWORKS = fosp.Networks(model=None, actor=Still(), critic=Says(), value=Says(), violation=Logit())
BOUND = {"config": CONFIG, "networks": NETWORKS}


def values(q, v=(0.0,)):
    q, v = (jnp.asarray(each, jnp.float32) for each in (q, v))
    return Values(TrainState(q, ()), TrainState(v, ()), q)


def state_of(reward, cost, *, logit=0.0, scales=((0.0, 1.0), (0.0, 1.0)), actors=(0.0, 0.0)):
    offline, online = (TrainState(jnp.float32(each), ()) for each in actors)
    return fosp.State(
        jnp.zeros((), jnp.int32),
        model=TrainState((), ()),
        offline_actor=offline,
        online_actor=online,
        reward=reward,
        cost=cost,
        violation=TrainState(jnp.float32(logit), ()),
        reward_scale=Scale(*map(jnp.float32, scales[0])),
        cost_scale=Scale(*map(jnp.float32, scales[1])),
        multiplier=world_models.constraint(CONFIG).init(),
    )


def choice(reward, cost, config):
    """Probabilities [2, B] of candidates with values reward, cost: [2, B]; the action says which one is meant."""
    reward, cost = jnp.asarray(reward), jnp.asarray(cost)
    count = reward.shape[1]

    @dataclass(frozen=True)
    class Picks:
        def apply(self, params, features, action):
            rows = params[action[..., 0].astype(jnp.int32), features[..., 0].astype(jnp.int32)]
            return jnp.log(two_hot(rows) + 1e-30)

    candidates = jnp.broadcast_to(jnp.arange(2.0)[:, None, None], (2, count, 1))
    features = jnp.arange(float(count))[:, None]
    networks = NETWORKS._replace(critic=Picks())
    state = state_of(values(reward), values(cost))
    return jax.nn.softmax(fosp.choice_logits(state, features, candidates, config=config, networks=networks), axis=0)


def test_each_row_chooses_by_its_own_scores():
    """Closed forms: softmax of 5 (Q_r - .1 Q_c), row by row; equal scores tie."""
    reward, cost = [[3.0, 1.0, 0.4, 9.0], [2.8, 1.2, 0.4, 9.0]], [[5.0, 0.0, 2.0, 4.0], [0.0, 0.0, 2.0, 4.0]]
    found = choice(reward, cost, fosp.Config())
    np.testing.assert_allclose(found[0], [0.182426, 0.268941, 0.5, 0.5], atol=1e-4)
    np.testing.assert_allclose(found.sum(0), 1.0, rtol=1e-6)
    shifted = choice(np.asarray(reward) + 1.0, cost, fosp.Config())
    np.testing.assert_allclose(shifted, found, atol=1e-4)


@pytest.mark.parametrize(("beta", "first"), [(0.0, 0.5), (1.0, 0.450166), (10.0, 0.119203), (1e6, 0.0)])
def test_the_choices_temperature(beta, first):
    found = choice([[1.0], [1.2]], [[0.0], [0.0]], fosp.Config(choice_inverse_temperature=beta))
    np.testing.assert_allclose(found[:, 0], [first, 1.0 - first], atol=1e-4)


def test_plain_policy_expansion_sees_no_costs():
    found = choice([[1.0], [1.2]], [[0.0], [50.0]], fosp.Config(expansion="pex"))
    np.testing.assert_allclose(found[:, 0], [0.268941, 0.731059], atol=1e-4)


def test_the_pair_acts_row_by_row():
    """Q is + a in the first row and - a in the second: the larger and the smaller action is taken there."""
    state = state_of(values([30.0, -30.0]), values([0.0, 0.0]), actors=(0.5, -0.5))
    features = jnp.array([[0.0], [1.0]])
    decide = functools.partial(fosp._decide, state, features, jax.random.key(0), **BOUND)
    action, index = decide(explore=False, joint=True)
    np.testing.assert_allclose(action[:, 0], [0.5, -0.5], rtol=1e-6)
    np.testing.assert_array_equal(index, [1, 0])
    alone, index = decide(explore=False, joint=False)
    np.testing.assert_allclose(alone[:, 0], 0.5, rtol=1e-6)
    np.testing.assert_array_equal(index, 0)


def test_both_of_the_pair_draw_to_explore():
    """Equal scores: a fair choice of draws about .5 and -.5."""
    state = state_of(values([0.0]), values([0.0]), actors=(0.5, -0.5))
    drawn, index = fosp._decide(state, jnp.zeros((20_000, 1)), jax.random.key(1), explore=True, joint=True, **BOUND)
    assert abs(float(index.mean()) - 0.5) < 5 * 0.5 / 20_000**0.5
    for frozen, mean in ((1, 0.5), (0, -0.5)):
        own = drawn[index == frozen, 0]
        assert abs(float(own.mean()) - mean) < 5 * float(own.std()) / len(own) ** 0.5


def dream_of(action, cost=0.0):
    """Two rollouts of two steps in the states 0 and 1; rewards 1, costs `cost`."""
    features = jnp.broadcast_to(jnp.array([0.0, 1.0])[:, None, None], (2, 3, 1))
    ones = jnp.ones((2, 3))
    action = jnp.broadcast_to(action, (2, 2, 1))
    return Dream(features, action, action, ones, cost * ones, ones)


ACTION = jnp.array([[[1.0]], [[1.0]]])  # of the data, one a rollout


def weights(logit, reward, cost, config=CONFIG):
    state = state_of(values(reward, (1.0, 1.0)), values(cost, (2.0, 2.0)), logit=logit, scales=((0, 2), (0, 4)))
    judged = feasible_policy.judge(state, dream_of(ACTION), config=config, networks=NETWORKS)
    return feasible_policy.weights(state, judged, ACTION, config=config, networks=NETWORKS)[:, 0]


def test_feasible_states_weigh_by_reward_and_infeasible_ones_by_cost():
    """A_r = (2 - 1, .5 - 1) / 2 and A_c = (3 - 2, 0 - 2) / 4, with beta 3 and 5."""
    reward, cost = (2.0, 0.5), (3.0, 0.0)
    by_reward, by_cost = np.exp(3 * np.array([0.5, -0.25])), np.exp(-5 * np.array([0.25, -0.5]))
    np.testing.assert_allclose(weights(-50.0, reward, cost), by_reward, rtol=1e-3)
    np.testing.assert_allclose(weights(-50.0, reward, (9.0, 9.0)), by_reward, rtol=1e-3)
    np.testing.assert_allclose(weights(50.0, reward, cost), by_cost, rtol=1e-3)
    np.testing.assert_allclose(weights(50.0, (7.0, 7.0), cost), by_cost, rtol=1e-3)
    np.testing.assert_allclose(weights(0.0, reward, cost), 0.5 * (by_reward + by_cost), rtol=1e-3)
    np.testing.assert_allclose(weights(0.3, (1.0, 1.0), (2.0, 2.0)), 1.0, rtol=1e-3)
    np.testing.assert_allclose(weights(50.0, (50.0, 50.0), (-50.0, 2.0)), [150.0, 1.0], rtol=1e-3)
    np.testing.assert_allclose(weights(-50.0, (50.0, 1.0), cost), [100.0, 1.0], rtol=1e-3)


def test_without_the_gate_every_state_counts_as_feasible():
    config = fosp.Config(gate="none")
    np.testing.assert_allclose(weights(50.0, (2.0, 0.5), (3.0, 0.0), config), np.exp([1.5, -0.75]), rtol=1e-3)


def judged(action, logit, cost, config=CONFIG):
    state = state_of(values([0.0, 0.0], [0.0, 0.0]), values([0.0, 0.0], [0.0, 0.0]), logit=logit)
    return state, feasible_policy.judge(state, dream_of(action, cost), config=config, networks=NETWORKS)


def test_infeasible_states_are_not_constrained():
    """Cost 1 a step: C = 1 + .9 .95 and 1, summed; a certain violation takes all of it away."""
    full = 1.0 + 0.9 * 0.95 + 1.0
    for logit, share in ((-50.0, 1.0), (0.0, 0.5), (50.0, 0.0)):
        np.testing.assert_allclose(judged(ACTION, logit, 1.0)[1].constrained, share * full, atol=1e-5)
    np.testing.assert_allclose(judged(ACTION, 50.0, 7.0)[1].constrained, 0.0, atol=1e-5)
    ungated = fosp.Config(gate="none", discount_factor=0.9)
    np.testing.assert_allclose(judged(ACTION, 50.0, 1.0, ungated)[1].constrained, full, rtol=1e-6)


def test_the_actors_loss_by_hand():
    """-mean w log N(a; m, 1) - eta H + Psi, and the slope of Psi along the costs is the next multiplier."""
    config = fosp.Config(discount_factor=0.9, cost_limit=1.0, multiplier=2.0, penalty=0.5, gate="none")
    networks = NETWORKS

    def loss(mean, cost):
        state, found = judged(ACTION, -50.0, cost, config)
        state = state._replace(multiplier=world_models.constraint(config).init())
        return feasible_policy.loss(mean, state, found, ACTION, config=config, networks=networks)[0]

    excess = 2.855 * 1.0 - 1.0
    entropy = 0.5 * np.log(2 * np.pi * np.e)
    likelihood = -0.5 * (1.0 - 0.2) ** 2 - 0.5 * np.log(2 * np.pi)
    expected = -likelihood - 3e-4 * entropy + 2.0 * excess + 0.25 * excess**2
    np.testing.assert_allclose(loss(0.2, 1.0), expected, rtol=1e-5)
    along_mean, along_cost = jax.grad(loss, argnums=(0, 1))(0.2, 1.0)
    np.testing.assert_allclose(along_mean, -(1.0 - 0.2), rtol=1e-5)
    np.testing.assert_allclose(along_cost, 2.855 * (2.0 + 0.5 * excess), rtol=1e-5)


def test_a_draw_counts_by_its_own_likelihood_and_by_the_worth_of_what_it_became():
    """3 is played as 1: w is that of 1, and the mean m goes by 3 - m; so equal weights leave a Gaussian where it is."""
    found = [jax.grad(drawn_loss)(0.2, times) for times in (1.0, 3.0)]
    np.testing.assert_allclose(found[0] / (1.0 - 0.2), found[1] / (3.0 - 0.2), rtol=1e-5)


def drawn_loss(mean, times):
    state, found = judged(ACTION, 0.0, 0.0)
    return feasible_policy.loss(mean, state, found, times * ACTION, config=CONFIG, networks=NETWORKS)[0]


def test_data_steps_bootstrap_from_the_next_row_or_from_the_value_where_they_arrived():
    """Rows: plain, terminated, plain, cut by time, the window's end."""
    row = lambda *numbers: jnp.array([numbers], jnp.float32)  # noqa: E731
    batch = Transition(
        observation=(),
        action=jnp.zeros((1, 5, 1)),
        reward=row(1, 1, 1, 1, 1),
        cost=row(0, 0, 0, 0, 0),
        discount=row(1, 0, 1, 1, 1),
        last=row(0, 1, 0, 1, 0),
        next_observation=(),
    )
    imagined, arrived = row(10, 20, 30, 40, 50), row(1, 2, 3, 4, 5)
    found = latent_values.of_data(batch, batch.reward, jnp.zeros((1, 5, 1)), imagined, arrived, config=CONFIG)
    np.testing.assert_allclose(found.value, [[1 + 0.9 * 20, 1.0, 1 + 0.9 * 40, 1 + 0.9 * 4, 1 + 0.9 * 5]], rtol=1e-6)


def test_values_take_the_upper_side_of_rewards_and_the_lower_side_of_costs():
    """V regresses on Q = 0 and Q = e - 1, equally often: in symlog space it ends at the share of the expectile."""

    @dataclass(frozen=True)
    class Free:
        def apply(self, params, features):
            return jnp.broadcast_to(params, (*features.shape[:-1], 255))

    networks = NETWORKS._replace(value=Free())
    q, zeros = jnp.array([0.0, np.e - 1.0]), jnp.zeros(255)
    inputs = jnp.array([[0.0], [1.0]]), jnp.ones((2, 1))
    targets = imagination.join(imagination.Targets(inputs, q, jnp.ones(2)))
    config = fosp.Config(learning_rate=0.03)
    optimizer = world_models.optimizer(config)
    for expectile in (config.expectile, config.cost_expectile):
        start = Values(TrainState(q, optimizer.init(q)), TrainState(zeros, optimizer.init(zeros)), q)

        def step(values, _, expectile=expectile):
            learned, _ = latent_values.learn(
                values, targets, expectile=expectile, name="", config=config, networks=networks
            )
            return values._replace(value=learned.value), None

        end, _ = jax.jit(lambda start, step=step: jax.lax.scan(step, start, None, 500))(start)
        value = imagination.value(Free(), end.value.params, jnp.zeros((1, 1)))
        np.testing.assert_allclose(jnp.log1p(value), expectile, atol=0.02)


def test_phases_declare_their_windows():
    networks = fosp.default_networks(2, (8,), size="tiny")
    assert fosp.make_offline(networks=networks).batch == BatchSpec.sequence(64, successors=False)
    assert fosp.make_finetuning(fosp.Config(length=5), networks).batch == BatchSpec.sequence(5, 0.5, successors=False)


@pytest.mark.slow
def test_offline_it_finds_the_action_that_cloning_does_not():
    """One step pays -(a - .5)^2, from uniform actions: a clone acts by 0. Measured after 400 updates: .49, and .03.

    Ungated; with p in the weights, whose states all violate in one case of four, the action was .04 to .22.
    """
    env, random, count = probes.quadratic_bandit(), np.random.default_rng(0), 2000
    action = random.uniform(-1, 1, (count, 1)).astype(np.float32)
    reward, cost, ends = -np.square(action - 0.5)[:, 0], np.maximum(action, 0)[:, 0], np.ones(count, bool)
    nothing = np.zeros((count, 1), np.float32)
    data = from_arrays(nothing, action, reward, cost, terminals=ends, timeouts=~ends, next_observations=nothing)
    rates = dict(learning_rate=1e-3, model_learning_rate=1e-3, violation_learning_rate=3e-4, target_update_rate=0.1)
    networks = fosp.default_networks(1, (32,), size=(2, 8, 4, 4, 32))

    def learned(beta):
        config = fosp.Config(length=4, horizon=1, gate="none", inverse_temperature=beta, **rates)
        algorithm = fosp.make_offline(config, networks)
        state = jax.jit(algorithm.init)(jax.random.key(0), example_transition(env))
        train = jax.jit(functools.partial(train_offline, algorithm, step_count=400, batch_size=32))
        state, _ = train(state, data, jax.random.key(1))
        return float(algorithm.act(state, jnp.zeros((1, 1)), jax.random.key(0))[0][0, 0])

    assert abs(learned(10.0) - 0.5) < 0.1
    assert abs(learned(0.0)) < 0.1
