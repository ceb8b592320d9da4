"""Diffusion Q-learning with denoisers whose chains and losses are known, and critics that are lines and tables.

Numbers follow from Wang et al. 2023, https://arxiv.org/abs/2208.06193, and the VP schedule's closed form.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_networks import StateTable, Table, one_hot, random_state

from safejax.algorithms import diffusion_bc, diffusion_ql, safety
from safejax.algorithms.safety import SafetyConfig, SafetyNetworks
from safejax.diffusion import DiffusionConfig, denoising_error, make_schedule
from safejax.multipliers import MultiplierConfig
from safejax.types import Transition

KEY = jax.random.key(0)
ONE_STEP = DiffusionConfig(step_count=1)


@dataclass(frozen=True)
class PointDenoiser:
    """The exact denoiser of a point mass theta [A]: every chain ends there, at a^0 = theta.

    At step i the squared error is alpha_bar_i / (1 - alpha_bar_i) (a - theta)^2, whatever the noise.
    """

    action_size: int = 1
    step_count: int = 5

    def init(self, key: Any, *inputs: Any) -> Any:
        return 0.1 * jax.random.normal(key, (self.action_size,))

    def apply(self, params: Any, observation: Any, noisy: Any, index: Any, key: Any = None) -> Any:
        share = jnp.asarray(make_schedule("vp", self.step_count).alpha_bar)[index][..., None]
        return (noisy - jnp.sqrt(share) * params) / jnp.sqrt(1.0 - share)


@dataclass(frozen=True)
class StepDenoiser:
    """One number theta_i for each step, whatever the action; all zeros say 0 everywhere."""

    action_size: int = 1
    step_count: int = 5

    def init(self, key: Any, *inputs: Any) -> Any:
        return jnp.zeros((self.step_count,))

    def apply(self, params: Any, observation: Any, noisy: Any, index: Any, key: Any = None) -> Any:
        return jnp.broadcast_to(params[index][..., None], noisy.shape)


@dataclass(frozen=True)
class Line:
    """E critics slope * f(a) + offset of the first action dimension; parameters [E, 2]."""

    critics: int = 2
    feature: Any = staticmethod(lambda action: action)

    def init(self, key: Any, *inputs: Any) -> Any:
        return 0.1 * jax.random.normal(key, (self.critics, 2))

    def apply(self, params: Any, observation: Any, action: Any) -> Any:
        return params[:, :1] * self.feature(action[..., 0]) + params[:, 1:]


def is_positive(action):
    return (action > 0).astype(jnp.float32)


def networks(actor, critic=None, cost_critic=None):
    """Exact networks over observations [B, 2]."""
    safe = SafetyNetworks(cost_critic or Line(1), StateTable(2))
    return diffusion_ql.Networks(actor, critic or Line(), safe)


def rows(count, action=None, **columns):
    """`count` transitions of one action dimension, zeros but for what is given; none ends."""
    random = np.random.default_rng(0)
    observation, following = jnp.asarray(random.normal(size=(2, count, 2)), jnp.float32)
    action = jnp.tanh(jnp.asarray(random.normal(size=(count, 1)), jnp.float32)) if action is None else action
    zero, one = jnp.zeros(count), jnp.ones(count)
    return Transition(observation, action, zero, zero, one, zero, following, {})._replace(**columns)


def start(algorithm, batch, **parts):
    """A fresh state with some parts replaced; (params) of a TrainState by its name."""
    state = algorithm.init(KEY, jax.tree.map(lambda leaf: leaf[0], batch))
    for name, value in parts.items():
        part = getattr(state, name)
        state = state._replace(**{name: part._replace(params=value) if hasattr(part, "opt_state") else value})
    return state


# The critics.


def test_the_backup_is_the_least_over_critics_of_the_best_over_actions():
    """Not the best of the least: of Q1 = (3, 0) and Q2 = (1, 2) that would be 1."""
    target = np.array([[3.0, 0.0, 0.5], [1.0, 2.0, 0.4]])
    candidates = np.array([[0] * 10, [1] * 10, [2] * 10, [0, 1] * 5, [2] * 9 + [0]])  # of one row each
    expected = [1.0, 0.0, 0.4, 2.0, 1.0]
    count = len(expected)
    tables = jnp.asarray(np.tile(target[:, None], (1, count, 1)), jnp.float32)
    nets = diffusion_ql.Networks(StepDenoiser(), Table(2, count, 3))
    config = diffusion_ql.Config(discount_factor=1.0, backup_count=10, clip_norm=0.0)
    each = one_hot(range(count), count)
    batch = rows(count, jnp.zeros(count, jnp.int32), observation=each, next_observation=each)
    state = start(diffusion_ql.make(config, nets), batch, critic=jnp.zeros_like(tables), target_critic=tables)
    after, metrics = diffusion_ql.update_critic(state, batch, jnp.asarray(candidates.T), config=config, networks=nets)
    # critics at 0 move towards y: a tenth of their gradient, 2 (0 - y) / B, is Adam's first moment
    backups = -10.0 * count / 2.0 * after.critic.opt_state[0].mu[:, :, 0]
    np.testing.assert_allclose(backups, [expected] * 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["critic/loss"], 2.0 * np.square(expected).mean(), rtol=1e-5)
    # ten equal samples are one, and one more sample never lowers it
    single, _ = diffusion_ql.update_critic(state, batch, jnp.asarray(candidates.T[:1]), config=config, networks=nets)
    backups = -10.0 * count / 2.0 * single.critic.opt_state[0].mu[0, :, 0]
    np.testing.assert_allclose(backups, [1.0, 0.0, 0.4, 1.0, 0.4], rtol=1e-5)


def test_the_critics_step_by_hand():
    """Rewards are scaled, row 1 terminates, the target follows the new critic."""
    config = diffusion_ql.Config(discount_factor=0.9, reward_scale=0.5, target_update_rate=0.2, clip_norm=0.0)
    nets = diffusion_ql.Networks(StepDenoiser(), Table(2, 2, 2))
    batch = rows(
        3,
        jnp.asarray([0, 1, 1], jnp.int32),
        observation=one_hot([0, 1, 0], 2),
        next_observation=one_hot([1, 0, 1], 2),
        reward=jnp.asarray([1.0, 2.0, -1.0]),
        discount=jnp.asarray([1.0, 0.0, 1.0]),
    )
    target = np.array([[[1.0, 2.0], [3.0, 0.5]], [[2.0, 0.2], [0.1, 4.0]]])
    algorithm = diffusion_ql.make(config, nets)
    state = start(algorithm, batch, target_critic=jnp.asarray(target, jnp.float32))
    following = np.array([[1, 0, 0]])
    after, metrics = diffusion_ql.update_critic(state, batch, jnp.asarray(following), config=config, networks=nets)
    following_q = target[:, [1, 0, 1], following[0]].min(0)
    backups = 0.5 * np.array([1.0, 2.0, -1.0]) + 0.9 * np.array([1, 0, 1]) * following_q
    q = np.asarray(state.critic.params)[:, [0, 1, 0], [0, 1, 1]]
    np.testing.assert_allclose(metrics["critic/loss"], ((q - backups) ** 2).mean(-1).sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["critic/mean"], q.mean(), rtol=1e-5)
    # Adam's first moment is a tenth of the gradient
    gradient = np.zeros_like(target)
    gradient[:, [0, 1, 0], [0, 1, 1]] = 2.0 * (q - backups) / 3.0
    np.testing.assert_allclose(after.critic.opt_state[0].mu, 0.1 * gradient, rtol=1e-5)
    moved = 0.8 * target + 0.2 * np.asarray(after.critic.params)
    np.testing.assert_allclose(after.target_critic, moved, rtol=1e-5)


def test_next_actions_come_from_the_averaged_actor():
    nets = networks(PointDenoiser())
    config, batch = diffusion_ql.Config(backup_count=3), rows(4)
    state = start(diffusion_ql.make(config, nets), batch, actor=jnp.array([0.2]), ema_actor=jnp.array([-0.6]))
    actions = diffusion_ql.draw_next_actions(state, batch, KEY, config=config, networks=nets)
    np.testing.assert_allclose(actions, np.full((3, 4, 1), -0.6), atol=1e-6)


# The actor.


def value_loss(critic, action, key=KEY, cost=None, multiplier=0.0):
    """L_q and its gradient in the actions, of lines (slope, offset)."""
    config = SafetyConfig(multiplier=MultiplierConfig(initial=multiplier, maximum=1e9)) if cost is not None else None
    nets = networks(StepDenoiser())
    algorithm = diffusion_ql.make(diffusion_ql.Config(safety=config), nets)
    batch = rows(len(action))
    state = start(algorithm, batch, critic=jnp.asarray(critic, jnp.float32))
    if cost is not None:
        state = state._replace(safety=state.safety._replace(target_critic=jnp.asarray([cost], jnp.float32)))
    return jax.value_and_grad(
        lambda action: diffusion_ql.value_loss(state, batch.observation, action, key, networks=nets)[0]
    )(jnp.asarray(action, jnp.float32)[:, None])


ACTIONS = np.array([-0.8, 0.1, 0.5, 0.9])
KEYS = [jax.random.key(seed) for seed in range(20)]


def test_the_value_term_is_relative_and_climbs_one_critic():
    """-mean Q_a / mean |Q_b|; |Q_b| has no gradient; either critic is a for half of the keys."""
    lines = np.array([[2.0, -1.0], [-0.5, 3.0]])
    q = lines[:, :1] * ACTIONS + lines[:, 1:]
    expected = [(-q[a].mean() / np.abs(q[1 - a]).mean(), -lines[a, 0] / 4 / np.abs(q[1 - a]).mean()) for a in (0, 1)]
    times = [0, 0]
    for key in KEYS:
        loss, gradient = value_loss(lines, ACTIONS, key)
        climbed = int(np.argmin([abs(float(loss) - each) for each, _ in expected]))
        times[climbed] += 1
        np.testing.assert_allclose(loss, expected[climbed][0], rtol=1e-5)
        np.testing.assert_allclose(gradient, np.full((4, 1), expected[climbed][1]), rtol=1e-5)
    assert min(times) >= 4


def test_the_value_term_ignores_the_scale_of_the_reward():
    lines = np.array([[2.0, -1.0], [-0.5, 3.0]])
    for scale in (1e-3, 1e3):
        chex.assert_trees_all_close(value_loss(scale * lines, ACTIONS), value_loss(lines, ACTIONS), rtol=1e-5)
    for constant in (0.01, 7.0):
        np.testing.assert_allclose(value_loss([[0.0, constant]] * 2, ACTIONS)[0], -1.0, rtol=1e-6)
    loss, gradient = value_loss(np.zeros((2, 2)), ACTIONS)  # nothing to climb, and no division by 0
    assert float(loss) == 0.0
    assert not np.any(gradient)


def test_costs_enter_the_value_term_and_its_size():
    """-mean (Q_a - lambda Qc) / mean (|Q_b| + lambda |Qc|); all scaled alike, nothing changes."""
    line, cost, multiplier = np.array([2.0, 1.0]), np.array([1.5, -0.2]), 3.0
    q, cost_q = line[0] * ACTIONS + line[1], cost[0] * ACTIONS + cost[1]
    size = (np.abs(q) + multiplier * np.abs(cost_q)).mean()
    loss, gradient = value_loss([line] * 2, ACTIONS, cost=cost, multiplier=multiplier)
    np.testing.assert_allclose(loss, -(q - multiplier * cost_q).mean() / size, rtol=1e-5)
    np.testing.assert_allclose(gradient, np.full((4, 1), -(2.0 - multiplier * 1.5) / 4 / size), rtol=1e-5)
    scaled = value_loss([10.0 * line] * 2, ACTIONS, cost=10.0 * cost, multiplier=multiplier)
    chex.assert_trees_all_close(scaled, (loss, gradient), rtol=1e-5)
    plain = value_loss([line] * 2, ACTIONS)
    chex.assert_trees_all_close(value_loss([line] * 2, ACTIONS, cost=cost), plain, rtol=1e-6)
    # reward and cost in balance everywhere: the size stays, the division is harmless
    balanced, _ = value_loss([line] * 2, ACTIONS, cost=line, multiplier=1.0)
    np.testing.assert_allclose(balanced, 0.0, atol=1e-7)


def test_the_gradient_reaches_every_step_of_the_chain():
    """With predictions theta_i the chain is linear: d a^0 / d theta_i is the product of the later steps' factors."""
    schedule = make_schedule("vp", 5)
    root = np.sqrt(schedule.alpha_bar.astype(np.float64))
    own = -schedule.posterior_clean * np.sqrt(1.0 - schedule.alpha_bar) / root
    factor = schedule.posterior_clean / root + schedule.posterior_noisy
    expected = [own[index] * np.prod(factor[:index]) for index in range(5)]

    config = diffusion_ql.Config(diffusion=DiffusionConfig(clip="none"))
    nets, batch = networks(StepDenoiser()), rows(6)
    state = start(diffusion_ql.make(replace(config, diffusion=DiffusionConfig()), nets), batch)
    state = state._replace(critic=state.critic._replace(params=jnp.array([[1.0, 40.0]] * 2)))  # positive throughout
    loss = functools.partial(
        diffusion_ql.actor_loss, state=state, batch=batch, key=KEY, weights=(0.0, 1.0), config=config, networks=nets
    )
    gradient, metrics = jax.grad(loss, has_aux=True)(state.actor.params)
    # a and b are the same line, so that the size is the mean value
    np.testing.assert_allclose(gradient, -np.array(expected) / float(metrics["actor/value"]), rtol=1e-4)
    np.testing.assert_allclose(metrics["actor/value_loss"], -1.0, rtol=1e-5)


def small_networks():
    return diffusion_ql.default_networks(1, (8,))


def test_without_the_value_it_is_diffusion_behavior_cloning():
    """The gradient of eta = 0 is that of the mean denoising error; eta = 1 has another."""
    nets, batch, config = small_networks(), rows(16), diffusion_ql.Config()
    state = random_state(diffusion_ql.make(config, nets), jax.tree.map(lambda leaf: leaf[0], batch), 0)

    @jax.jit
    def gradient(weight):
        loss = functools.partial(
            diffusion_ql.actor_loss, state=state, batch=batch, key=KEY, config=config, networks=nets
        )
        return jax.grad(loss, has_aux=True)(state.actor.params, weights=(1.0, weight))

    def cloning(params):
        denoise = diffusion_bc.denoiser(nets, params, batch.observation)
        return denoising_error(config.diffusion, denoise, batch.action, jax.random.split(KEY, 3)[0]).mean()

    expected_loss, expected = jax.jit(jax.value_and_grad(cloning))(state.actor.params)
    plain, metrics = gradient(0.0)
    chex.assert_trees_all_close(plain, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(metrics["actor/behavior_loss"], expected_loss, rtol=1e-5)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(gradient(1.0)[0], expected, rtol=1e-2, atol=1e-2)


def test_the_policy_settles_where_the_data_and_the_value_balance():
    """T = 1, data at -.2 and .2, Q = theta + offset: L_bc = g (theta^2 + .04) and -eta Q / |Q| have their common
    stationary point at 2 g theta (theta + offset) = eta slope, with g = alpha_bar / (1 - alpha_bar)."""
    share = math.exp(-5.05)
    g = share / (1.0 - share)
    slope, offset, weight = 0.01, 1.0, 0.5
    # 2 g theta (slope theta + offset) = weight slope
    theta = (-offset + math.sqrt(offset**2 + 2.0 * slope * weight * slope / g)) / (2.0 * slope)
    assert abs(theta) < 0.9
    action = jnp.asarray([[-0.2], [0.2]])
    batch = rows(2, action, reward=slope * action[:, 0] + offset, discount=jnp.zeros(2))
    nets = networks(PointDenoiser(step_count=1))
    state = None
    for rate in (1e-2, 1e-3, 1e-4):
        # every row terminates and pays what the critics say: they rest
        config = diffusion_ql.Config(
            diffusion=ONE_STEP, value_weight=weight, actor_learning_rate=rate, learning_rate=1e-9, ema_start=0
        )
        algorithm = diffusion_ql.make(config, nets)
        state = state or start(algorithm, batch, critic=jnp.array([[slope, offset]] * 2))
        step = functools.partial(lambda method, state, _: method.update(state, batch, KEY), algorithm)
        state, metrics = jax.jit(lambda state, step=step: jax.lax.scan(step, state, None, 500))(state)
    np.testing.assert_allclose(state.actor.params, [theta], atol=1e-3)
    np.testing.assert_allclose(metrics["actor/behavior_loss"][-1], g * (theta**2 + 0.04), rtol=1e-2)


def test_gradient_norms_are_clipped_in_actor_and_critics():
    """Adam's first moment is a tenth of the clipped gradient."""
    nets = networks(PointDenoiser())
    batch = rows(4, jnp.full((4, 1), 0.9), reward=jnp.full(4, 50.0))
    for bound in (0.01, 0.0):
        algorithm = diffusion_ql.make(diffusion_ql.Config(clip_norm=bound), nets)
        state = start(algorithm, batch, actor=jnp.array([-0.9]), critic=jnp.ones((2, 2)))
        after, _ = jax.jit(algorithm.update)(state, batch, KEY)
        for part in (after.actor, after.critic):
            adam = part.opt_state[1][0] if bound else part.opt_state[0]
            norm = 10.0 * float(jnp.sqrt(jnp.sum(jnp.square(adam.mu))))
            assert norm == pytest.approx(0.01, rel=1e-4) if bound else norm > 0.1


# Averages.


def test_the_average_waits_for_its_start_and_moves_every_fifth_update():
    """Then the gap to constant parameters shrinks by .995 each time."""
    config, nets = diffusion_ql.Config(), networks(PointDenoiser())
    state = start(diffusion_ql.make(config, nets), rows(1), ema_actor=jnp.array([0.0]))
    average = jax.jit(functools.partial(diffusion_ql.average_actor, config=config))
    for step in (0, 5, 995, 999, 1001, 1004):
        moved = average(state._replace(step=jnp.int32(step)), jnp.array([1.0]))
        np.testing.assert_array_equal(moved, [0.0], err_msg=str(step))
    for step in range(1000, 1016):
        state = state._replace(step=jnp.int32(step))
        state = state._replace(ema_actor=average(state, jnp.array([1.0])))
    np.testing.assert_allclose(1.0 - state.ema_actor, [0.995**4], rtol=1e-6)


def test_an_update_averages_the_actor_that_it_made():
    nets, batch = networks(PointDenoiser()), rows(4)
    algorithm = diffusion_ql.make(diffusion_ql.Config(), nets)
    update = jax.jit(algorithm.update)
    for step, rate in ((999, 0.0), (1000, 0.005), (1001, 0.0)):
        state = start(algorithm, batch, ema_actor=jnp.array([0.5]))._replace(step=jnp.int32(step))
        after, _ = update(state, batch, KEY)
        assert int(after.step) == step + 1
        assert float(after.actor.params[0]) != float(state.actor.params[0])
        expected = 0.5 + rate * (np.asarray(after.actor.params) - 0.5)
        np.testing.assert_allclose(after.ema_actor, expected, rtol=1e-6)


# Acting.

CHOICE = networks(StepDenoiser(step_count=1), Line(feature=is_positive), Line(1, feature=is_positive))


def chooser(rise, offset=0.0, count=3, **parts):
    """A method whose candidates are positive with chance 1/2, where Q is `rise` higher; the second critic is above."""
    config = diffusion_ql.Config(diffusion=ONE_STEP, candidate_count=count, safety=SafetyConfig())
    algorithm = diffusion_ql.make(config, CHOICE)
    state = start(algorithm, rows(1), target_critic=jnp.array([[rise, offset], [rise, offset + 5.0]]))
    return algorithm, state._replace(**parts)


def positive_share(rise, **options):
    algorithm, state = chooser(rise, **options)
    act = jax.jit(functools.partial(algorithm.act, explore=True))
    return np.asarray(act(state, jnp.zeros((20_000, 2)), KEY)[0])[:, 0] > 0


def test_exploration_draws_by_softmax_at_temperature_one():
    """n of 3 candidates positive, n ~ Bin(3, 1/2): one of them acts with chance n e / (n e + 3 - n)."""
    chance = sum(math.comb(3, n) / 8 * n * math.e / (n * math.e + 3 - n) for n in range(4))
    share = positive_share(1.0)
    np.testing.assert_allclose(share.mean(), chance, atol=4.0 * 0.5 / math.sqrt(20_000))
    np.testing.assert_array_equal(positive_share(1.0, offset=8.0), share)  # a constant changes nothing
    np.testing.assert_allclose(positive_share(100.0).mean(), 7 / 8, atol=4.0 * 0.33 / math.sqrt(20_000))


def test_values_0_1_2_are_chosen_in_these_proportions():
    candidates = jnp.broadcast_to(jnp.arange(3.0)[:, None, None], (3, 20_000, 1))
    q = jnp.broadcast_to(jnp.arange(3.0)[:, None], (3, 20_000))
    drawn = np.asarray(diffusion_bc.choose(candidates, q, KEY))[:, 0]
    shares = [(drawn == value).mean() for value in range(3)]
    np.testing.assert_allclose(shares, [0.090031, 0.244728, 0.665241], atol=4.0 * 0.47 / math.sqrt(20_000))


@pytest.mark.parametrize(("offset", "sign"), [(50.0, 1.0), (5.0, -1.0), (-50.0, -1.0)])
def test_the_lesser_target_critic_chooses(offset, sign):
    """The first prefers positive actions by 1, the second negative ones by 9: it counts where it is below."""
    algorithm, state = chooser(1.0, count=50)
    state = state._replace(target_critic=jnp.array([[1.0, 0.0], [-9.0, offset]]))
    action, _, _ = algorithm.act(state, jnp.zeros((4, 2)), KEY)
    np.testing.assert_array_equal(np.sign(action), np.full((4, 1), sign))


def test_the_online_actor_acts():
    nets = networks(PointDenoiser())
    algorithm = diffusion_ql.make(networks=nets)
    state = start(algorithm, rows(1), actor=jnp.array([0.3]), ema_actor=jnp.array([0.8]))
    for explore in (False, True):
        action, _, _ = algorithm.act(state, jnp.zeros((5, 2)), KEY, explore=explore)
        np.testing.assert_allclose(action, np.full((5, 1), 0.3), atol=1e-6)


# The safe form.


def test_a_penalty_changes_the_choice():
    """Q rises by 1 and Qc by 1 where the action is positive: from lambda = 1 on, negative actions are as good."""
    for multiplier, sign in ((0.0, 1.0), (0.9, 1.0), (1.1, -1.0), (50.0, -1.0)):
        algorithm, state = chooser(1.0, count=50)
        safe = state.safety._replace(
            target_critic=jnp.array([[1.0, 2.0]]),
            multiplier=state.safety.multiplier._replace(value=jnp.float32(multiplier)),
        )
        action, _, _ = algorithm.act(state._replace(safety=safe), jnp.zeros((3, 2)), KEY)
        np.testing.assert_array_equal(np.sign(action), np.full((3, 1), sign), err_msg=str(multiplier))


def test_a_zero_multiplier_is_the_plain_method():
    batch = rows(16, cost=jnp.ones(16), reward=jnp.linspace(-1.0, 1.0, 16))
    frozen = SafetyConfig(multiplier=MultiplierConfig(learning_rate=0.0))
    plain, safe = (
        diffusion_ql.make(config, networks(PointDenoiser()))
        for config in (diffusion_ql.Config(ema_start=0), diffusion_ql.Config(ema_start=0, safety=frozen))
    )
    updates = [jax.jit(algorithm.update) for algorithm in (plain, safe)]
    states, metrics = [start(algorithm, batch) for algorithm in (plain, safe)], [{}, {}]
    for index in range(3):
        for one, update in enumerate(updates):
            states[one], metrics[one] = update(states[one], batch, jax.random.key(index))
    assert states[0].safety == ()
    for name in ("actor", "ema_actor", "critic", "target_critic"):
        chex.assert_trees_all_close(getattr(states[1], name), getattr(states[0], name), rtol=1e-5, atol=1e-6)
    assert set(metrics[0]) < set(metrics[1])
    assert "cost_value/policy" not in metrics[0]


@pytest.mark.parametrize("cost_value", [0.5, 1.5])
def test_the_multiplier_moves_by_the_cost_value_of_the_policys_own_actions(cost_value):
    """The policy acts at .5, where Qc = 2 a + c; at gamma 1 the limit is the episode's, 1. The data's actions, at -.9,
    would put it on the other side."""
    config = SafetyConfig(
        cost_limit=1.0, discount_factor=1.0, multiplier=MultiplierConfig(initial=0.2, learning_rate=0.1)
    )
    algorithm = diffusion_ql.make(diffusion_ql.Config(safety=config), networks(PointDenoiser()))
    batch = rows(4, jnp.full((4, 1), -0.9))
    state = start(algorithm, batch, actor=jnp.array([0.5]), ema_actor=jnp.array([-0.3]))
    state = state._replace(safety=state.safety._replace(target_critic=jnp.array([[2.0, cost_value - 1.0]])))
    after, metrics = jax.jit(algorithm.update)(state, batch, KEY)
    target = np.asarray(after.safety.target_critic)[0]  # stepped once before the actor meets it
    np.testing.assert_allclose(metrics["cost_value/policy"], 0.5 * target[0] + target[1], rtol=1e-5)
    np.testing.assert_allclose(metrics["cost_value/policy"], cost_value, atol=0.01)
    np.testing.assert_allclose(metrics["cost_value/limit"], 1.0, rtol=1e-6)
    moved = 0.2 + 0.1 * math.copysign(1.0, cost_value - 1.0)
    np.testing.assert_allclose(after.safety.multiplier.value, moved, rtol=1e-5)
    np.testing.assert_allclose(metrics["multiplier"], moved, rtol=1e-5)
    # the cost critic evaluates the averaged policy
    acting = jnp.full((4, 1), -0.3)
    expected, _ = safety.update(state.safety, batch, acting, config=config, networks=networks(PointDenoiser()).safety)
    chex.assert_trees_all_close(after.safety.critic, expected.critic, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("value_weight", dict(value_weight=-1.0)),
        ("backup_count", dict(backup_count=0)),
        ("candidate_count", dict(candidate_count=0)),
        ("ema_period", dict(ema_period=0)),
        ("ema_rate", dict(ema_rate=1.5)),
        ("clip_norm", dict(clip_norm=-1.0)),
        ("discount_factor", dict(discount_factor=1.1)),
        ("diffusion.clip", dict(diffusion=DiffusionConfig(clip="none"))),
        ("alpha_bar", dict(diffusion=DiffusionConfig(schedule="linear"))),
        ("safety.cost_limit", dict(safety=SafetyConfig(cost_limit=-1.0))),
    ],
)
def test_what_make_refuses_in_one_line(name, change):
    with pytest.raises(ValueError, match=name) as caught:
        diffusion_ql.make(diffusion_ql.Config(**change), action_size=1)
    assert "\n" not in str(caught.value)
