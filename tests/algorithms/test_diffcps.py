"""DiffCPS's primal-dual pair against closed forms, its cadence, and its own way online.

Numbers follow from He et al. 2023, https://arxiv.org/abs/2310.05333. The denoisers and critics are those of
test_diffusion_ql: their losses are known.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_networks import ActionTable, StateTable, one_hot
from test_diffusion_ql import KEY, ONE_STEP, Line, PointDenoiser, StepDenoiser, networks, rows, start

from safejax import checkpoint
from safejax.algorithms import diffcps, diffusion_ql
from safejax.algorithms.safety import SafetyConfig, SafetyNetworks
from safejax.diffusion import DiffusionConfig, make_schedule
from safejax.envs import probes
from safejax.gradients import adam, train_state
from safejax.multipliers import MultiplierConfig
from safejax.types import BatchSpec, EpisodeStats, Transition


@dataclass(frozen=True)
class GaussianDenoiser:
    """The best denoiser of actions N(mean, variance), as a fixed function."""

    mean: float
    variance: float
    action_size: int = 1

    def init(self, key: Any, *inputs: Any) -> Any:
        return jnp.zeros(1)

    def apply(self, params: Any, observation: Any, noisy: Any, index: Any, key: Any = None) -> Any:
        share = jnp.asarray(make_schedule("vp", 5).alpha_bar)[index][..., None]
        spread = share * self.variance + 1.0 - share
        return jnp.sqrt(1.0 - share) * (noisy - jnp.sqrt(share) * self.mean) / spread


@dataclass(frozen=True)
class PlannedDenoiser:
    """Every chain ends at the last entry of the observation, whatever the parameters."""

    action_size: int = 1
    step_count: int = 1

    def init(self, key: Any, *inputs: Any) -> Any:
        return jnp.zeros(1)

    def apply(self, params: Any, observation: Any, noisy: Any, index: Any, key: Any = None) -> Any:
        point = PointDenoiser(self.action_size, self.step_count)
        return point.apply(observation[..., -1:] + 0.0 * params, observation, noisy, index)


# The constraint.


def behavior_loss(actor, action, **numbers):
    """The L_bc that an update reports for actions [B, 1], and the multiplier after it."""
    algorithm = diffcps.make(diffcps.Config(**numbers), networks(actor))
    batch = rows(len(action), jnp.asarray(action, jnp.float32))
    after, metrics = jax.jit(algorithm.update)(start(algorithm, batch), batch, KEY)
    np.testing.assert_allclose(metrics["behavior/multiplier"], after.behavior_multiplier.params)
    return float(metrics["actor/behavior_loss"]), float(after.behavior_multiplier.params)


def test_kappa_is_measured_per_action_dimension():
    """A denoiser that says 0 scores 1, the right one of a point mass 0: the scale on which kappa is given."""
    action = np.full((100_000, 1), 0.4)
    loss, _ = behavior_loss(StepDenoiser(), action)
    assert loss == pytest.approx(1.0, abs=4.0 * math.sqrt(2.0 / 1e5))
    assert behavior_loss(GaussianDenoiser(0.4, 0.0), action)[0] < 1e-9
    twice = jnp.tile(jnp.asarray(action[:1000], jnp.float32), (1, 2))  # two dimensions: still a mean
    assert behavior_loss(StepDenoiser(2), twice)[0] == pytest.approx(1.0, abs=4.0 * math.sqrt(2.0 / 2e3))


@pytest.mark.parametrize(("variance", "least"), [(1.0, 0.288613), (0.25, 0.144918), (0.01, 0.009886)])
def test_a_limit_below_what_the_data_allow_raises_lambda_for_ever(variance, least):
    """The least loss on N(m, s^2) is the mean over i of alpha_bar_i s^2 / (alpha_bar_i s^2 + 1 - alpha_bar_i)."""
    action = 0.3 + math.sqrt(variance) * np.random.default_rng(0).normal(size=(100_000, 1))
    actor = GaussianDenoiser(0.3, variance)
    loss, risen = behavior_loss(actor, action, behavior_limit=0.9 * least)
    assert loss == pytest.approx(least, rel=0.02)
    _, fallen = behavior_loss(actor, action, behavior_limit=1.1 * least)
    np.testing.assert_allclose([risen, fallen], [1.0 + 3e-5, 1.0 - 3e-5], atol=1e-7)


def multiplier_of(value, config):
    return train_state(jnp.float32(value), adam(config.multiplier_learning_rate, clip_norm=config.clip_norm))


def test_lambda_moves_by_its_learning_rate_whatever_the_excess():
    """Adam under a gradient of constant sign: at most 30 in a million policy steps."""
    config = diffcps.Config(behavior_limit=0.06)
    ascend = jax.jit(functools.partial(diffcps.ascend, config=config))
    for loss, sign in ((0.061, 1.0), (5.0, 1.0), (0.059, -1.0), (0.0, -1.0)):
        multiplier = multiplier_of(1.0, config)
        for _ in range(10):
            multiplier = ascend(multiplier, jnp.float32(loss))
        np.testing.assert_allclose(multiplier.params, 1.0 + sign * 3e-4, atol=2e-6)


def test_the_stored_lambda_does_not_wind_up():
    """Clipped at use alone, 300 steps at the bound would ask for 300 steps back; here Adam's memory is all there is."""
    config = diffcps.Config(
        behavior_limit=0.06, minimum_multiplier=0.3, maximum_multiplier=0.8, multiplier_learning_rate=1e-2
    )

    def run(multiplier, losses):
        def step(multiplier, loss):
            stepped = diffcps.ascend(multiplier, loss, config=config)
            return stepped, stepped.params

        return jax.lax.scan(step, multiplier, losses)

    for start_value, resting, moving in ((0.3, 0.0, 0.12), (0.8, 0.12, 0.0)):
        held, path = jax.jit(run)(multiplier_of(start_value, config), jnp.full(300, resting))
        np.testing.assert_array_equal(path, np.float32(start_value))
        _, path = jax.jit(run)(held, jnp.full(30, moving))
        assert np.abs(np.asarray(path) - start_value)[-1] > 0.05
        assert path.min() >= np.float32(0.3)
        assert path.max() <= np.float32(0.8)


def test_lambda_acts_within_its_range_even_if_it_comes_from_elsewhere():
    config = diffcps.Config(minimum_multiplier=0.5, maximum_multiplier=2.0)
    algorithm, batch = diffcps.make(config, networks(PointDenoiser())), rows(8, reward=jnp.ones(8))
    update = jax.jit(algorithm.update)

    def after(value):
        return update(start(algorithm, batch, behavior_multiplier=jnp.float32(value)), batch, KEY)[0]

    for outside, bound in ((-7.0, 0.5), (1e6, 2.0)):
        chex.assert_trees_all_equal(after(outside).actor, after(bound).actor)
        assert 0.5 <= float(after(outside).behavior_multiplier.params) <= 2.0
    assert not np.array_equal(after(0.5).actor.opt_state[1][0].mu, after(2.0).actor.opt_state[1][0].mu)


def cross_entropy(logit):
    """H(pi_b, mu) of mu(1) = sigmoid(logit), pi_b = (1/2, 1/2)."""
    return -0.5 * (jax.nn.log_sigmoid(logit) + jax.nn.log_sigmoid(-logit))


@pytest.mark.parametrize(
    ("multiplier", "chance", "entropy"),
    [(0.5, 0.809017, 0.933753), (1.0, 0.707107, 0.787260), (2.0, 0.618034, 0.721818)],
)
def test_the_dual_pair_on_two_actions(multiplier, chance, entropy):
    """max E_mu Q subject to H(pi_b, mu) <= kappa, Q = (0, 1): mu(a) = lambda pi_b(a) / (nu - Q(a)), with
    nu = ((1 + lambda) + sqrt(1 + lambda^2)) / 2. The reverse divergence, AWR's, would give .731059 at lambda = 1."""
    nu = (1.0 + multiplier + math.sqrt(1.0 + multiplier**2)) / 2.0
    assert chance == pytest.approx(multiplier / (2.0 * (nu - 1.0)), abs=1e-6)
    logit = math.log(chance / (1.0 - chance))
    assert entropy == pytest.approx(float(cross_entropy(logit)), abs=1e-6)
    slope = jax.grad(lambda logit: multiplier * cross_entropy(logit) - jax.nn.sigmoid(logit))
    assert float(slope(logit)) == pytest.approx(0.0, abs=1e-6)

    found, value = solve(entropy, maximum=100.0)
    assert value == pytest.approx(multiplier, abs=5e-3)
    assert found == pytest.approx(chance, abs=1e-3)


def test_an_infeasible_limit_drives_lambda_to_its_bound():
    """No policy is below the data's own entropy, log 2."""
    found, value = solve(0.99 * math.log(2.0), maximum=8.0)
    assert value == 8.0
    nu = (9.0 + math.sqrt(65.0)) / 2.0
    assert found == pytest.approx(8.0 / (2.0 * (nu - 1.0)), abs=1e-3)


def solve(limit, maximum):
    """mu(1) and lambda after gradient steps on lambda H - E_mu Q between steps of `ascend`."""
    logit, value = jnp.float32(0.0), jnp.float32(0.2)
    for rate in (3e-2, 1e-3, 1e-4):
        config = diffcps.Config(behavior_limit=limit, multiplier_learning_rate=rate, maximum_multiplier=maximum)

        def step(carry, _, config=config):
            logit, multiplier = carry

            def primal(_, logit):
                slope = jax.grad(lambda logit: multiplier.params * cross_entropy(logit) - jax.nn.sigmoid(logit))
                return logit - 1.0 / (1.0 + multiplier.params) * slope(logit)

            logit = jax.lax.fori_loop(0, 5, primal, logit)
            return (logit, diffcps.ascend(multiplier, cross_entropy(logit), config=config)), None

        (logit, multiplier), _ = jax.jit(lambda carry, step=step: jax.lax.scan(step, carry, None, 2000))(
            (logit, multiplier_of(value, config))
        )
        value = multiplier.params
    return float(jax.nn.sigmoid(logit)), float(value)


def test_the_whole_update_finds_the_saddle_point():
    """T = 1, data at -.2 and .2, Q = .01 theta + 1: L_bc = g (theta^2 + .04) with g = alpha_bar / (1 - alpha_bar).
    A limit of g (.25 + .04) puts the policy at theta = .5, where lambda 2 g theta = .01 / Q balances."""
    share = math.exp(-5.05)
    g = share / (1.0 - share)
    multiplier = 0.01 / 1.005 / (2.0 * g * 0.5)
    assert multiplier == pytest.approx(1.5425, abs=1e-3)
    action = jnp.asarray([[-0.2], [0.2]])
    batch = rows(2, action, reward=0.01 * action[:, 0] + 1.0, discount=jnp.zeros(2))
    state = None
    for rate in (1e-2, 1e-3, 1e-4):
        # every row terminates and pays what the critics say: they rest
        config = diffcps.Config(
            behavior_limit=g * 0.29,
            diffusion=ONE_STEP,
            multiplier_learning_rate=rate,
            actor_learning_rate=rate,
            learning_rate=1e-9,
        )
        algorithm = diffcps.make(config, networks(PointDenoiser(step_count=1)))
        state = state or start(algorithm, batch, critic=jnp.array([[0.01, 1.0]] * 2), actor=jnp.array([0.0]))
        step = functools.partial(lambda method, state, _: method.update(state, batch, KEY), algorithm)
        state, _ = jax.jit(lambda state, step=step: jax.lax.scan(step, state, None, 2000))(state)
    np.testing.assert_allclose(state.actor.params, [0.5], atol=5e-3)
    np.testing.assert_allclose(state.behavior_multiplier.params, multiplier, rtol=2e-2)


@pytest.mark.parametrize("multiplier", [0.25, 4.0])
def test_with_lambda_fixed_it_is_diffusion_ql(multiplier):
    """The gradient is lambda times that of Diffusion-QL with eta = 1 / lambda; Adam's first moment is a tenth of it."""
    shared = dict(clip_norm=0.0, ema_start=0)
    batch = rows(16, reward=jnp.linspace(-1.0, 1.0, 16))
    constrained = diffcps.make(
        diffcps.Config(initial_multiplier=multiplier, policy_frequency=1, **shared), networks(PointDenoiser())
    )
    weighted = diffusion_ql.make(
        diffusion_ql.Config(value_weight=1.0 / multiplier, **shared), networks(PointDenoiser())
    )
    first, second = (jax.jit(each.update)(start(each, batch), batch, KEY)[0] for each in (constrained, weighted))
    for part in ("critic", "target_critic"):
        chex.assert_trees_all_close(getattr(first, part), getattr(second, part), rtol=1e-6)
    moments = [state.actor.opt_state[0].mu for state in (first, second)]
    np.testing.assert_allclose(moments[0], multiplier * moments[1], rtol=1e-4)
    # and lambda itself saw kappa - L_bc, which has no part of the critics in it
    mean = first.behavior_multiplier.opt_state[0].mu
    np.testing.assert_allclose(mean, 0.1 * (0.06 - first.actor_metrics["actor/behavior_loss"]), rtol=1e-5)


# The cadence.


def test_the_policy_moves_on_every_third_step_and_its_metrics_stay():
    safe = SafetyConfig(multiplier=MultiplierConfig(initial=1.0))
    config = diffcps.Config(policy_frequency=3, ema_start=0, ema_period=1, safety=safe)
    algorithm, batch = diffcps.make(config, networks(PointDenoiser())), rows(8, reward=jnp.ones(8))
    update, state = jax.jit(algorithm.update), None
    state, metrics = start(algorithm, batch), {}
    for step in range(7):
        after, now = update(state, batch, jax.random.key(step))
        moved = step % 3 == 0
        for part in ("actor", "behavior_multiplier", "actor_metrics"):
            same = jax.tree.map(np.array_equal, getattr(after, part), getattr(state, part))
            assert all(jax.tree.leaves(same)) != moved, (part, step)
        assert (float(after.safety.multiplier.value) != float(state.safety.multiplier.value)) == moved
        assert int(after.safety.multiplier.count) == step // 3 + 1
        for name in ("actor/loss", "actor/value_loss", "actor/behavior_loss", "cost_value/policy", "multiplier"):
            assert (now[name] != metrics.get(name)) == moved, (name, step)
        for part in ("critic", "target_critic", "ema_actor"):
            same = jax.tree.map(np.array_equal, getattr(after, part), getattr(state, part))
            assert not any(jax.tree.leaves(same)), (part, step)
        state, metrics = after, now


def branches(algorithm, batch, **options):
    """How many equations the two branches of the one `cond` of an update hold."""
    state = start(algorithm, batch)
    update = algorithm.update
    if options.get("learners"):
        count = options["learners"]
        state = jax.tree.map(lambda leaf: jnp.stack([leaf] * count), state)
        update = jax.vmap(update, in_axes=(0, None, None))
    jaxpr = jax.make_jaxpr(update)(state, batch, KEY)
    (cond,) = [equation for equation in jaxpr.eqns if equation.primitive.name == "cond"]
    return [len(branch.eqns) for branch in cond.params["branches"]]


def test_a_skipped_policy_step_is_skipped_under_vmap_too():
    """`cond` on a batched flag would become a select and run the chain's gradient on every step."""
    algorithm, batch = diffcps.make(diffcps.Config(), networks(PointDenoiser())), rows(4)
    for learners in (0, 3):
        rest, learn = branches(algorithm, batch, learners=learners)
        assert rest == 0
        assert learn > 50


def test_learners_out_of_step_keep_their_own_cadence():
    algorithm, batch = diffcps.make(diffcps.Config(), networks(PointDenoiser())), rows(8, reward=jnp.ones(8))
    alone = [start(algorithm, batch)._replace(step=jnp.int32(step)) for step in range(3)]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
    both, metrics = jax.jit(jax.vmap(algorithm.update, in_axes=(0, None, None)))(together, batch, KEY)
    update = jax.jit(algorithm.update)
    for row, state in enumerate(alone):
        expected = update(state, batch, KEY)
        found = jax.tree.map(lambda leaf, row=row: leaf[row], (both, metrics))
        chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)
        assert (found[0].actor.params != state.actor.params).all() == (row % 2 == 0)


# The safe form.


def test_a_zero_multiplier_of_the_cost_is_the_plain_method():
    batch = rows(8, cost=jnp.ones(8), reward=jnp.linspace(-1.0, 1.0, 8))
    frozen = SafetyConfig(multiplier=MultiplierConfig(learning_rate=0.0))
    methods = [diffcps.make(diffcps.Config(safety=each), networks(PointDenoiser())) for each in (None, frozen)]
    states, metrics = [start(method, batch) for method in methods], [{}, {}]
    for one, update in enumerate(jax.jit(method.update) for method in methods):
        for index in range(3):
            states[one], metrics[one] = update(states[one], batch, jax.random.key(index))
    assert states[0].safety == ()
    for name in ("actor", "ema_actor", "critic", "target_critic", "behavior_multiplier"):
        chex.assert_trees_all_close(getattr(states[1], name), getattr(states[0], name), rtol=1e-5, atol=1e-6)
    assert set(metrics[0]) < set(metrics[1])


# Online.

SAFE = SafetyConfig(
    evaluation="expectile",  # which alignment and fine-tuning pass over
    cost_limit=1.0,
    discount_factor=0.9,
    target_update_rate=0.5,
    multiplier=MultiplierConfig(learning_rate=0.1),
)
POLICY = np.array([[0.6, 0.4], [0.3, 0.7]])
TABLES = diffusion_ql.Networks(
    PlannedDenoiser(), ActionTable(2, 2, 2), SafetyNetworks(ActionTable(1, 2, 2), StateTable(3))
)


def aligning(rate, phase=diffcps.make_alignment, **numbers):
    safe = SafetyConfig(**{**SAFE.__dict__, "learning_rate": rate})
    config = diffcps.Config(
        discount_factor=0.9,
        target_update_rate=0.5,
        learning_rate=rate,
        clip_norm=0.0,
        diffusion=ONE_STEP,
        safety=safe,
        **numbers,
    )
    return phase(config, TABLES)


@functools.cache
def sweep():
    """400 rows: every (s, a) 100 times, its (s', a') as often as their probability asks; none terminates."""
    mdp = probes.golden_cmdp()
    listed = []
    for (s, a), _ in np.ndenumerate(mdp.reward):
        for (following, planned), chance in np.ndenumerate(mdp.transition[s, a][:, None] * POLICY):
            listed += [(s, a, following, planned)] * round(100 * chance)
    state, action, following, planned = np.array(listed).T
    assert len(listed) == 400

    def observe(state, planned):
        return jnp.concatenate([one_hot(state, 2), jnp.asarray(planned[:, None], jnp.float32)], axis=1)

    ones = jnp.ones(400)
    return Transition(
        observation=observe(state, np.zeros(400)),
        action=jnp.asarray(action[:, None], jnp.float32),
        reward=jnp.asarray(mdp.reward[state, action], jnp.float32),
        cost=jnp.asarray(mdp.cost[state, action], jnp.float32),
        discount=ones,
        last=ones,
        next_observation=observe(following, planned),
        extras={},
    )


def policy_values():
    """Q^pi and Qc^pi [4] of the golden world, by linear algebra."""
    mdp = probes.golden_cmdp()
    moves = np.einsum("sat,tb->satb", mdp.transition, POLICY).reshape(4, 4)
    return [np.linalg.solve(np.eye(4) - 0.9 * moves, np.ravel(signal)) for signal in (mdp.reward, mdp.cost)]


def evaluated(phase):
    batch = sweep()
    state = before = start(aligning(0.1, phase), batch)
    for rate in (0.1, 0.01, 0.001):
        step = functools.partial(lambda method, state, _: method.update(state, batch, KEY), aligning(rate, phase))
        state, _ = jax.jit(lambda state, step=step: jax.lax.scan(step, state, None, 600))(state)
    return before, state


@pytest.mark.parametrize("phase", [diffcps.make_alignment, diffcps.make_finetuning])
def test_both_critics_evaluate_the_policy(phase):
    """Alignment, and fine-tuning of an actor that has no gradient: Q^pi and Qc^pi, where in-sample values would be
    the lower expectile of the data's actions."""
    before, after = evaluated(phase)
    q, cost_q = policy_values()
    np.testing.assert_allclose(after.critic.params.reshape(2, 4), [q] * 2, atol=2e-3)
    np.testing.assert_allclose(after.safety.critic.params.reshape(4), cost_q, atol=2e-3)
    np.testing.assert_allclose(after.safety.target_critic.reshape(4), cost_q, atol=2e-3)
    assert int(after.step) == 1800
    # no update of these phases ticks the multiplier of the cost, or fits the in-sample value
    chex.assert_trees_all_equal(after.safety.multiplier, before.safety.multiplier)
    chex.assert_trees_all_equal(after.safety.value, before.safety.value)
    if phase is diffcps.make_alignment:
        for part in ("actor", "ema_actor", "behavior_multiplier", "actor_metrics"):
            chex.assert_trees_all_equal(getattr(after, part), getattr(before, part))
    else:
        assert float(after.behavior_multiplier.params) != float(before.behavior_multiplier.params)


def test_the_cost_critic_asks_the_averaged_policy_and_its_dearest_member():
    """c + gamma d max_E Qc(s', a') with a' = .25 from the average, not the online actor's -.5; row 1 terminates."""
    safe = SafetyConfig(discount_factor=0.8, learning_rate=1e-3)
    nets = networks(PointDenoiser(), cost_critic=Line(2))
    algorithm = diffcps.make_finetuning(diffcps.Config(safety=safe), nets)
    batch = rows(2, cost=jnp.asarray([1.0, 2.0]), discount=jnp.asarray([1.0, 0.0]))
    state = start(algorithm, batch, actor=jnp.array([-0.5]), ema_actor=jnp.array([0.25]))
    zero = state.safety.critic._replace(params=jnp.zeros((2, 2)))
    safe_state = state.safety._replace(critic=zero, target_critic=jnp.array([[4.0, 0.0], [-4.0, 0.5]]))
    _, metrics = jax.jit(algorithm.update)(state._replace(safety=safe_state), batch, KEY)
    targets = np.array([1.0 + 0.8 * 1.0, 2.0])
    np.testing.assert_allclose(metrics["cost_critic/loss"], 2.0 * (targets**2).mean(), rtol=1e-5)


def test_fine_tuning_learns_from_episodes():
    """The multiplier waits for finished episodes; then dual ascent on their mean cost."""
    algorithm = aligning(1e-3, diffcps.make_finetuning)
    state = start(algorithm, sweep())
    cost = jnp.array([3.0, 1.0, 1e6])
    episodes = EpisodeStats(cost, cost, jnp.ones(3, jnp.int32), jnp.array([True, True, False]))
    adapted = algorithm.adapt(state, episodes)
    np.testing.assert_allclose(adapted.safety.multiplier.value, 0.1, rtol=1e-5)
    chex.assert_trees_all_equal(adapted._replace(safety=state.safety), state)
    chex.assert_trees_all_equal(algorithm.adapt(state, episodes._replace(finished=jnp.zeros(3, bool))), state)
    _, metrics = jax.jit(algorithm.update)(adapted, sweep(), KEY)
    np.testing.assert_allclose(metrics["multiplier"], 0.1, rtol=1e-5)


def test_the_penalty_reaches_the_actor_online():
    """Q is flat and Qc rises with the action: with lambda_c the value's gradient turns downwards."""
    resting = SafetyConfig(target_update_rate=0.0)
    config = diffcps.Config(safety=resting, initial_multiplier=0.0, clip_norm=0.0)
    algorithm = diffcps.make_finetuning(config, networks(PointDenoiser()))
    batch = rows(4)
    state = start(algorithm, batch, actor=jnp.array([0.1]), critic=jnp.array([[0.0, 1.0]] * 2))
    moments = []
    for multiplier in (0.0, 2.0):
        safe = state.safety._replace(
            target_critic=jnp.array([[3.0, 1.0]]),
            multiplier=state.safety.multiplier._replace(value=jnp.float32(multiplier)),
        )
        after, metrics = jax.jit(algorithm.update)(state._replace(safety=safe), batch, KEY)
        moments.append(float(after.actor.opt_state[0].mu[0]))
        np.testing.assert_allclose(metrics["cost_value/policy"], 1.3, rtol=1e-5)
    assert abs(moments[0]) < 1e-3
    # -(Q - 2 Qc) / (|Q| + 2 |Qc|) has the slope 6 / (1 + 2.6), and theta is the action; a moment is a tenth
    np.testing.assert_allclose(moments[1], 0.1 * 6.0 / 3.6, rtol=1e-2)


def test_offline_rows_are_mixed_in_only_if_asked_for():
    for fraction, spec in ((0.0, BatchSpec.uniform()), (0.25, BatchSpec.mixed(0.25))):
        config = diffcps.Config(safety=SAFE, offline_fraction=fraction)
        assert diffcps.make_finetuning(config, action_size=1).batch == spec
        assert diffcps.make_alignment(config, action_size=1).batch == BatchSpec.uniform()


def test_a_checkpoint_without_cost_critic_crosses_the_bridge(tmp_path):
    """It acts the same after it, since the multiplier of the cost starts at 0; alignment gives it a cost critic."""
    nets = networks(PointDenoiser())
    offline, aligned = diffcps.make(networks=nets), diffcps.make_alignment(diffcps.Config(safety=SAFE), nets)
    batch = rows(8, cost=jnp.ones(8), reward=jnp.ones(8))
    trained, _ = jax.jit(offline.update)(start(offline, batch), batch, KEY)
    checkpoint.save(tmp_path / "offline", trained)
    example = jax.tree.map(lambda leaf: leaf[0], batch)
    restored = checkpoint.restore(tmp_path / "offline", jax.eval_shape(offline.init, KEY, example))
    names = ["actor", "ema_actor", "critic", "target_critic", "behavior_multiplier"]
    state = checkpoint.warm_start(start(aligned, batch), restored, {name: name for name in names})
    action = offline.act(trained, batch.observation, KEY)[0]
    np.testing.assert_array_equal(aligned.act(state, batch.observation, KEY)[0], action)
    after, metrics = jax.jit(aligned.update)(state, batch, KEY)
    chex.assert_trees_all_equal(after.actor, trained.actor)
    assert np.isfinite(metrics["cost_critic/loss"])
    online = diffcps.make_finetuning(diffcps.Config(safety=SAFE), nets)  # one State for both
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(online.init, KEY, example), after)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("behavior_limit", dict(behavior_limit=-0.1)),
        ("maximum_multiplier", dict(minimum_multiplier=2.0, maximum_multiplier=1.0)),
        ("initial_multiplier", dict(minimum_multiplier=2.0)),
        ("policy_frequency", dict(policy_frequency=0)),
        ("offline_fraction", dict(offline_fraction=1.5)),
        ("candidate_count", dict(candidate_count=0)),
        ("diffusion.clip", dict(diffusion=DiffusionConfig(clip="none"))),
    ],
)
def test_what_make_refuses_in_one_line(name, change):
    with pytest.raises(ValueError, match=name) as caught:
        diffcps.make(diffcps.Config(**change), action_size=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("phase", [diffcps.make_alignment, diffcps.make_finetuning])
def test_the_phases_after_pretraining_need_a_cost(phase):
    assert phase(action_size=1).batch == BatchSpec.uniform()
    with pytest.raises(ValueError, match="safety is None, expected a SafetyConfig") as caught:
        phase(diffcps.Config(), action_size=1)
    assert "\n" not in str(caught.value)
