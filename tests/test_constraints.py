"""Multiplier controllers against worked numbers, closed forms and a plain float64 transcription.

The golden sequences follow the recursion of Marvel's released code (arXiv 2412.04426) in float64 arithmetic.
"""

import collections
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safejax import constraints

LIMIT = 20.0
GAINS = dict(proportional_gain=0.1, integral_gain=0.01, derivative_gain=0.02)
PAPER_GAINS = dict.fromkeys(GAINS, 5e-6)
COSTS = [50, 50, 50, 10, 10, 10, 0, 0, 0, 0]
FIXED = [0.7, 1.36, 1.984, 1.6956, 1.42604, 1.173436, 0.716092, 0.284483, 0.0, 0.0]
ADAPTIVE = [0.7, 1.078019, 1.422299, 1.239029, 1.092673, 0.969988, 0.75551, 0.566953, 0.400593, 0.253765]

EVERY_KIND = {
    "dual_ascent": dict(learning_rate=0.1),
    "pid": GAINS,
    "adaptive_pid": GAINS,
    "augmented_lagrangian": dict(penalty=0.1, penalty_growth=1.1),
}
EVERY = [
    *(pytest.param(functools.partial(constraints.multiplier, k, **o), id=k) for k, o in EVERY_KIND.items()),
    pytest.param(functools.partial(constraints.dual_ascent, learning_rate=0.1, adam=False), id="plain_ascent"),
    pytest.param(functools.partial(constraints.adaptive_pid, rule="released", **GAINS), id="released"),
]


def run(multiplier, costs, cost_limit=LIMIT):
    """Every state after a scan over `costs`, stacked in time."""

    def body(state, cost):
        state = multiplier.update(state, cost, cost_limit)
        return state, state

    return jax.jit(lambda costs: jax.lax.scan(body, multiplier.init(), costs)[1])(jnp.asarray(costs, "float32"))


def transcription(costs, gains, rates=(0.0, 0.0, 0.0), corrected=False, smoothing=0.9, delay=10, gain_range=10.0):
    """The controller with a deque, in float64: values [T], final gains [3] and all derivative gains [T]."""
    initial, gains = np.array(list(gains.values()), float), np.array(list(gains.values()), float)
    smoothed_cost = float(costs[0]) if corrected else 0.0
    window = collections.deque([smoothed_cost], maxlen=delay)
    integral, smoothed_excess, values, derivative_gains = 0.0, 0.0, [], []
    for cost in costs:
        excess = cost - LIMIT
        integral = max(0.0, integral + gains[1] * excess)
        smoothed_excess = smoothing * smoothed_excess + (1 - smoothing) * excess
        smoothed_cost = smoothing * smoothed_cost + (1 - smoothing) * cost
        rise = max(0.0, smoothed_cost - window[0])
        values.append(max(0.0, gains[0] * smoothed_excess + integral + gains[2] * rise))
        window.append(smoothed_cost)
        mean, deviation = np.mean(window) + 0.1, np.std(window)
        relative = (mean - LIMIT) / mean
        factors = 1 + np.array(rates) * [relative, relative, deviation / mean]
        if corrected:
            factors[2] *= (initial[2] / gains[2]) ** rates[2]
        gains = np.clip(gains * factors, initial / gain_range, initial * gain_range)
        derivative_gains.append(gains[2])
    return np.array(values), gains, np.array(derivative_gains)


def wandering_costs(length):
    noise = np.random.default_rng(0).standard_normal(length)
    return np.clip(25 + np.cumsum(4 * noise), 0, 80).astype(np.float32)


@pytest.mark.parametrize(
    ("cost_limit", "episode_length", "expected"),
    [
        (10, 200, 4.330102),
        (20, 200, 8.660203),
        (40, 200, 17.320407),
        (20, 100, 12.679353),
        (20, 300, 6.339727),
        (10, 300, 3.169864),
        (20, 500, 3.973718),
        (20, 1000, 1.999914),
    ],
)
def test_cost_value_limit_matches_golden_numbers(cost_limit, episode_length, expected):
    np.testing.assert_allclose(constraints.cost_value_limit(cost_limit, 0.99, episode_length), expected, rtol=2e-6)


def test_cost_value_limit_at_the_ends_of_the_discount_range():
    assert constraints.cost_value_limit(20.0, 1.0, 300) == pytest.approx(20.0, rel=1e-6)
    assert constraints.cost_value_limit(20.0, 0.0, 10) == pytest.approx(2.0, rel=1e-6)
    traced = jax.jit(lambda g: constraints.cost_value_limit(20.0, g, 100))
    np.testing.assert_allclose(jax.vmap(traced)(jnp.array([0.99, 1.0])), [12.679353, 20.0], rtol=2e-6)
    with pytest.raises(ValueError, match="episode_length is 0"):
        constraints.cost_value_limit(20.0, 0.9, 0)


def test_pid_matches_golden_sequence():
    np.testing.assert_allclose(run(constraints.pid(**GAINS), COSTS).value, FIXED, atol=1e-6)


@pytest.mark.parametrize("cost", [60.0, 20.0])
def test_pid_on_a_constant_cost_follows_its_closed_form(cost):
    t = np.arange(1, 41)
    faded = cost * 0.9 ** np.maximum(0, t - 10) * (1 - 0.9 ** np.minimum(t, 10))
    excess = cost - LIMIT
    expected = 0.1 * excess * (1 - 0.9**t) + 0.01 * t * excess + 0.02 * faded
    states = run(constraints.pid(**GAINS), np.full(40, cost))
    np.testing.assert_allclose(states.value, expected, rtol=1e-5)
    assert expected[-1] < 0.1 or cost > LIMIT  # at the limit only the start's derivative is left, and it fades
    if cost == LIMIT:
        np.testing.assert_array_equal(states.integral, 0.0)
        np.testing.assert_array_equal(states.smoothed_excess, 0.0)


def test_released_rule_matches_golden_sequence():
    states = run(constraints.adaptive_pid(rule="released", **GAINS), COSTS)
    np.testing.assert_allclose(states.value, ADAPTIVE, atol=1e-6)
    gains = states.gain_scales[-1] * np.array(list(GAINS.values()))
    np.testing.assert_allclose(gains, [0.0346410, 0.00346410, 0.0264353], rtol=2e-6)


def test_released_rule_at_the_gains_of_the_released_code():
    states = run(
        constraints.adaptive_pid(rule="released", **PAPER_GAINS),
        [60, 60, 60, 40, 40, 20, 10, 5, 0, 0, 30, 30],
    )
    expected = [2.5, 4.328839, 5.968958, 6.735715, 7.472398, 7.457662, 7.091013, 6.563877]
    expected += [5.881678, 5.223609, 5.209937, 5.212358]
    np.testing.assert_allclose(states.value * 1e4, expected, atol=3e-6)
    np.testing.assert_allclose(states.gain_scales[-1] * 5, [2.489355, 2.489355, 6.785879], rtol=1e-6)


def test_released_rule_over_hundreds_of_updates_of_constant_cost():
    states = run(constraints.adaptive_pid(rule="released", **PAPER_GAINS), np.full(600, 60.0))
    values = states.value[np.array([20, 100, 200, 400, 600]) - 1]
    np.testing.assert_allclose(values, [2.69e-3, 5.62e-2, 0.256, 0.656, 1.056], rtol=2e-3)
    proportional = states.gain_scales[np.array([1, 2, 5, 10, 50, 100]) - 1, 0]
    np.testing.assert_allclose(proportional, [0.73, 0.64, 0.56, 0.55, 1.81, 9.3], atol=0.06)


@pytest.mark.parametrize("rule", ["released", "corrected"])
def test_adaptive_pid_equals_the_transcription_over_400_updates(rule):
    costs = wandering_costs(400)
    states = run(constraints.adaptive_pid(rule=rule, **GAINS), costs)
    values, gains, _ = transcription(costs, GAINS, (0.05,) * 3, corrected=rule == "corrected")
    np.testing.assert_allclose(states.value, values, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(states.gain_scales[-1] * np.array(list(GAINS.values())), gains, rtol=1e-4)


@pytest.mark.parametrize("make", EVERY)
def test_scan_over_400_updates_equals_the_python_loop(make):
    multiplier, costs = make(), wandering_costs(400)
    update, state = jax.jit(multiplier.update), multiplier.init()
    for cost in costs:
        state = update(state, cost, LIMIT)
    last = jax.tree.map(lambda array: array[-1], run(multiplier, costs))
    chex.assert_trees_all_close(state, last, rtol=1e-5, atol=1e-6)
    assert update._cache_size() == 1


@pytest.mark.parametrize("delay", [1, 3])
def test_other_derivative_delays_follow_the_transcription(delay):
    costs = wandering_costs(50)
    options = dict(derivative_delay=delay, derivative_smoothing=0.5, proportional_smoothing=0.5)
    states = run(constraints.adaptive_pid(rule="released", **GAINS, **options), costs)
    values, _, _ = transcription(costs, GAINS, (0.05,) * 3, smoothing=0.5, delay=delay)
    np.testing.assert_allclose(states.value, values, rtol=1e-4, atol=1e-5)


def test_gains_stay_in_range_and_the_released_derivative_gain_never_falls():
    costs = np.concatenate([wandering_costs(300), np.zeros(100), np.full(300, 80.0)])
    for rule in ("released", "corrected"):
        scales = run(constraints.adaptive_pid(rule=rule, gain_range=4.0, **GAINS), costs).gain_scales
        assert scales.min() >= 0.25 * (1 - 1e-6)
        assert scales.max() <= 4.0
        assert scales[:, 0].min() < 0.26  # both ends are reached, so the clip is what is tested
        assert scales[:, 0].max() > 3.9
        falls = np.diff(scales[:, 2]).min()
        assert (falls >= 0) == (rule == "released")


def test_rates_of_zero_give_the_plain_controller():
    rates = dict(proportional_rate=0.0, integral_rate=0.0, derivative_rate=0.0)
    costs = wandering_costs(60)
    plain = run(constraints.pid(**GAINS), costs)
    released = run(constraints.adaptive_pid(rule="released", **GAINS, **rates), costs)
    np.testing.assert_allclose(released.value, plain.value, rtol=1e-6)
    corrected = run(constraints.adaptive_pid(**GAINS, **rates), costs)
    values, _, _ = transcription(costs, GAINS, corrected=True)
    np.testing.assert_allclose(corrected.value, values, rtol=1e-4, atol=1e-5)


def test_corrected_rule_has_no_cold_start():
    corrected = run(constraints.adaptive_pid(**GAINS), np.full(100, 60.0))
    released = run(constraints.adaptive_pid(rule="released", **GAINS), np.full(100, 60.0))
    assert corrected.value[0] == pytest.approx(0.1 * 0.1 * 40 + 0.01 * 40)  # no derivative kick
    assert released.value[0] == pytest.approx(0.1 * 0.1 * 40 + 0.01 * 40 + 0.02 * 6)
    assert (np.diff(corrected.gain_scales[:, 0]) >= 0).all()
    assert released.gain_scales[9, 0] < 0.6  # shrinking under triple the limit: the fault
    assert corrected.gain_scales[9, 0] == pytest.approx((1 + 0.05 * 40.1 / 60.1) ** 10, rel=1e-5)
    np.testing.assert_allclose(corrected.gain_scales[:, 2], 1.0, atol=1e-6)


def test_corrected_derivative_gain_returns_when_the_cost_settles():
    costs = np.concatenate([np.tile([0.0, 60.0], 100), np.full(300, 20.0)])
    corrected = run(constraints.adaptive_pid(derivative_smoothing=0.0, **GAINS), costs).gain_scales[:, 2]
    released = run(constraints.adaptive_pid(derivative_smoothing=0.0, rule="released", **GAINS), costs)
    spread = 30.0 / 30.1  # deviation 30 around a mean of 30, and the 0.1
    assert corrected[199] == pytest.approx((1 + 0.05 * spread) ** 20, rel=1e-3)
    assert corrected[-1] == pytest.approx(1.0, abs=1e-4)
    assert released.gain_scales[-1, 2] == 10.0


@pytest.mark.parametrize("gain", GAINS)
def test_a_gain_of_zero_stays_zero_and_finite(gain):
    states = run(constraints.adaptive_pid(**{**GAINS, gain: 0.0}), wandering_costs(50))
    chex.assert_tree_all_finite(states)
    expected = transcription(wandering_costs(50), {**GAINS, gain: 1e-30}, (0.05,) * 3, corrected=True)[0]
    np.testing.assert_allclose(states.value, expected, rtol=1e-4, atol=1e-5)


def test_the_integral_holds_no_deficit_after_a_long_safe_time():
    states = run(constraints.pid(**GAINS, proportional_smoothing=0.0), [*[5.0] * 200, 50.0])
    assert states.value[-2] == 0.0
    assert states.integral[-2] == 0.0
    assert states.value[-1] == pytest.approx(0.1 * 30 + 0.01 * 30 + 0.02 * 4.5, rel=1e-4)


@pytest.mark.parametrize("make", [constraints.pid, constraints.adaptive_pid])
def test_the_integral_does_not_wind_up_behind_the_upper_clamp(make):
    costs = [*[120.0] * 500, *[10.0] * 25]  # 25 updates let the proportional smoothing forget
    clamped = run(make(**GAINS, maximum=2.0), costs)
    assert clamped.value.max() == 2.0
    assert (clamped.value[20:500] == 2.0).all()
    inner = getattr(clamped, "controller", clamped)
    assert inner.integral.max() <= 2.0  # 500 updates would have integrated to 500 and more
    assert run(make(**GAINS), costs).value[-1] > 100.0
    assert clamped.value[-1] < 0.5


def test_the_clamp_does_not_force_the_integral_down():
    # A proportional term that saturates by itself must not eat the integral gathered before.
    gains = dict(proportional_gain=1.0, integral_gain=0.01, derivative_gain=0.0)
    states = run(constraints.pid(**gains, proportional_smoothing=0.0, maximum=5.0), [22.0] * 50 + [80.0] * 50 + [20.0])
    assert states.integral[49] == pytest.approx(1.0, rel=1e-4)
    np.testing.assert_array_equal(states.integral[50:100], states.integral[49])
    assert states.value[99] == 5.0
    assert states.value[100] == pytest.approx(1.0, rel=1e-4)


def test_the_clamp_on_the_integral_binds():
    states = run(constraints.pid(**GAINS, integral_maximum=0.3), np.full(100, 60.0))
    assert states.integral.max() == pytest.approx(0.3)
    assert states.value[-1] == pytest.approx(0.1 * 40 + 0.3, rel=1e-3)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_the_upper_clamp_binds(kind):
    free = run(constraints.multiplier(kind, **EVERY_KIND[kind]), np.full(60, 60.0)).value
    clamped = run(constraints.multiplier(kind, maximum=0.5, **EVERY_KIND[kind]), np.full(60, 60.0)).value
    assert free[-1] > 0.6
    assert clamped[-1] == 0.5
    assert clamped.max() == 0.5


_scan_every = {
    parameter.id: jax.jit(functools.partial(run, parameter.values[0]())) for parameter in EVERY
}  # compiled once each


@pytest.mark.parametrize("kind", _scan_every)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(costs=st.lists(st.floats(0.0, 1e4, width=32), min_size=16, max_size=16))
def test_multiplier_and_integral_are_never_negative(kind, costs):
    states = _scan_every[kind](jnp.asarray(costs, jnp.float32))
    assert (np.asarray(states.value) >= 0).all()
    inner = getattr(states, "controller", states)
    assert (np.asarray(getattr(inner, "integral", 0.0)) >= 0).all()
    chex.assert_tree_all_finite(states)


@pytest.mark.parametrize("make", EVERY)
def test_states_keep_their_types_and_can_be_donated(make):
    multiplier = make()
    state = multiplier.init()
    for cost in (30, 30.0, np.float64(30), jnp.float32(30)):
        after = jax.eval_shape(multiplier.update, state, cost, 20)
        before = jax.eval_shape(multiplier.init)
        assert jax.tree.leaves(before) == jax.tree.leaves(after)  # shape, dtype and weak type
        assert jax.tree.structure(before) == jax.tree.structure(after)
    assert all(leaf.dtype in (jnp.float32, jnp.int32) for leaf in jax.tree.leaves(state))
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))
    donating = jax.jit(multiplier.update, donate_argnums=0)
    expected = multiplier.update(multiplier.update(multiplier.init(), 60.0, LIMIT), 60.0, LIMIT)
    chex.assert_trees_all_close(donating(donating(state, 60.0, LIMIT), 60.0, LIMIT), expected, rtol=1e-6)
    assert any(leaf.is_deleted() for leaf in jax.tree.leaves(state))  # a leaf nobody reads is not donated


@pytest.mark.parametrize("make", EVERY)
def test_a_nan_cost_shows(make):
    assert np.isnan(run(make(), [30.0, np.nan]).value[-1])


def test_gains_may_be_vmapped():
    scales, costs = jnp.array([0.5, 1.0, 2.0]), wandering_costs(30)

    def sweep(scale, gain_range):
        gains = {name: gain * scale for name, gain in GAINS.items()}
        options = dict(gain_range=gain_range, maximum=3.0 * scale, proportional_rate=0.05 * scale)
        return run(constraints.adaptive_pid(**gains, **options), costs)

    together = jax.vmap(sweep, in_axes=(0, None))(scales, 5.0)
    for index, scale in enumerate(scales):
        alone = sweep(float(scale), 5.0)
        chex.assert_trees_all_close(jax.tree.map(lambda a, i=index: a[i], together), alone, rtol=1e-4, atol=1e-6)

    def ascend(rate, penalty):
        ascent = run(constraints.dual_ascent(learning_rate=rate, initial=rate), costs).value[-1]
        return ascent, run(constraints.augmented_lagrangian(penalty=penalty), costs).value.max()

    ascents, penalties = jax.vmap(ascend)(scales, scales)
    assert len(set(ascents.tolist())) == len(set(penalties.tolist())) == 3
    assert ascents[0] == pytest.approx(float(ascend(0.5, 0.5)[0]), rel=1e-5)


def test_plain_dual_ascent_by_hand():
    ascent = constraints.dual_ascent(learning_rate=0.01, initial=0.5, adam=False)
    states = run(ascent, [30.0, 25.0, 10.0, 0.0, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(states.value, [0.6, 0.65, 0.55, 0.35, 0.15, 0.0, 0.0], atol=1e-6)


def test_adam_dual_ascent_by_hand():
    # Excesses 10, 5, -10: means 1, 1.4, .26 over 1 - .9^t; squares .1, .1249, .2247751 over 1 - .999^t.
    states = run(constraints.dual_ascent(learning_rate=0.01, initial=0.5), [30.0, 25.0, 10.0])
    steps = [
        1.0,
        (1.4 / 0.19) / np.sqrt(0.1249 / 0.001999),
        (0.26 / 0.271) / np.sqrt(0.2247751 / 0.002997001),
    ]
    np.testing.assert_allclose(states.value, 0.5 + 0.01 * np.cumsum(steps), rtol=1e-6)


def test_adam_dual_ascent_equals_optax():
    optimizer, value = optax.adam(0.05), jnp.float32(0.0)
    opt_state, values = optimizer.init(value), []
    for cost in wandering_costs(50):
        step, opt_state = optimizer.update(-(cost - LIMIT), opt_state)
        value = jnp.maximum(value + step, 0.0)
        values.append(value)
    ours = run(constraints.dual_ascent(learning_rate=0.05), wandering_costs(50)).value
    np.testing.assert_allclose(ours, values, rtol=1e-5, atol=1e-6)
    assert max(values) > 0.2


def test_augmented_lagrangian_finds_the_multiplier_of_a_small_problem():
    # min (x - 2)^2 subject to x <= 1: 2 (x - 2) + multiplier = 0 at x = 1, so the multiplier is 2.
    multiplier = constraints.augmented_lagrangian(penalty=1.0, penalty_growth=1.1, penalty_maximum=3.0)
    state = multiplier.init()
    for _ in range(40):
        # The exact minimizer of (x - 2)^2 + max(0, value + penalty (x - 1))^2 / (2 penalty).
        x = (4.0 - state.value + state.penalty) / (2.0 + state.penalty)
        state = multiplier.update(state, x, 1.0)
    assert x == pytest.approx(1.0, abs=1e-5)
    assert state.value == pytest.approx(2.0, abs=1e-5)
    assert state.penalty == 3.0


def test_multipliers_drive_gradient_descent_to_the_constrained_optimum():
    # The same problem, with one gradient step of the actor per update of the multiplier.
    controllers = dict(
        ascent=constraints.dual_ascent(learning_rate=0.05, adam=False),
        pid=constraints.pid(proportional_gain=0.5, integral_gain=0.05, derivative_gain=0.1),
        augmented=constraints.augmented_lagrangian(penalty=0.05),
    )
    for multiplier in controllers.values():

        def body(carry, _, multiplier=multiplier):
            x, state = carry
            state = multiplier.update(state, x, 1.0)
            return (x - 0.1 * (2.0 * (x - 2.0) + state.value), state), None

        (x, state), _ = jax.lax.scan(body, (jnp.float32(0.0), multiplier.init()), length=800)
        np.testing.assert_allclose([x, state.value], [1.0, 2.0], atol=1e-3)


def test_augmented_lagrangian_at_the_constants_of_lambda():
    multiplier = constraints.augmented_lagrangian(
        penalty=5e-9, penalty_growth=1 + 1e-5, penalty_maximum=1.0, initial=1e-6
    )
    state = multiplier.update(multiplier.init(), 10.0, 0.0)
    np.testing.assert_allclose([state.value, state.penalty], [1.05e-6, 5.00005e-9], rtol=1e-6)
    assert multiplier.update(multiplier.init(), 0.0, 1e4).value == 0.0


def test_the_augmented_lagrangians_term_at_the_constants_of_lambda():
    """Values by arithmetic: lambda g + c g^2 / 2 at g = 10, and -lambda^2 / (2 c) where lambda + c g <= 0."""
    multiplier = constraints.augmented_lagrangian(penalty=5e-9, initial=1e-6)
    state = multiplier.init()
    term = functools.partial(constraints.augmented_penalty, state)
    np.testing.assert_allclose([term(10.0), term(-1e4)], [1.025e-5, -1e-4], rtol=1e-5)
    np.testing.assert_allclose([jax.grad(term)(10.0), jax.grad(term)(-1e4)], [1.05e-6, 0.0], rtol=1e-5)
    assert jax.grad(term)(10.0) == multiplier.update(state, 10.0, 0.0).value


def test_the_augmented_lagrangians_term_and_its_gradient_are_continuous():
    state = constraints.AugmentedLagrangianState(jnp.float32(2.0), jnp.float32(0.5))
    below, above = (jax.value_and_grad(lambda g: constraints.augmented_penalty(state, g))(g) for g in (-4.001, -3.999))
    np.testing.assert_allclose(below, [-4.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(above, [-4.0, 0.0], atol=1e-3)


def test_a_penalty_of_zero_leaves_a_plain_lagrangian():
    state = constraints.AugmentedLagrangianState(jnp.float32(0.3), jnp.float32(0.0))
    np.testing.assert_allclose(jax.value_and_grad(lambda g: constraints.augmented_penalty(state, g))(2.0), [0.6, 0.3])


def test_ticks_repeat_one_cost():
    multiplier = constraints.adaptive_pid(rule="released", **PAPER_GAINS)
    state = constraints.ticks(multiplier, multiplier.init(), 60.0, LIMIT, 20)
    assert state.value == pytest.approx(2.69e-3, rel=1e-3)
    assert state.controller.count == 20
    chex.assert_trees_all_equal(constraints.ticks(multiplier, state, 60.0, LIMIT, 0), state)


def test_names_and_numbers_out_of_range_are_refused():
    with pytest.raises(
        ValueError, match="'lagrange', expected one of adaptive_pid, augmented_lagrangian, dual_ascent, pid"
    ):
        constraints.multiplier("lagrange")
    with pytest.raises(ValueError, match="'paper', expected one of corrected, released"):
        constraints.adaptive_pid(**GAINS, rule="paper")
    with pytest.raises(ValueError, match="integral_gain is -1"):
        constraints.pid(**{**GAINS, "integral_gain": -1.0})
    for name, value in dict(
        maximum=-1.0,
        integral_maximum=-1.0,
        derivative_delay=0,
        proportional_smoothing=1.1,
        derivative_rate=-0.1,
    ).items():
        with pytest.raises(ValueError, match=f"{name} is {value}"):
            constraints.adaptive_pid(**GAINS, **{name: value})
    with pytest.raises(ValueError, match=r"gain_range is 0\.5"):
        constraints.adaptive_pid(**GAINS, gain_range=0.5)
    with pytest.raises(ValueError, match="learning_rate is -1"):
        constraints.dual_ascent(learning_rate=-1.0)
    with pytest.raises(ValueError, match="penalty is 0"):
        constraints.augmented_lagrangian(penalty=0.0)
    with pytest.raises(AssertionError):
        constraints.pid(**GAINS).update(constraints.pid(**GAINS).init(), jnp.ones(2), LIMIT)
