"""Keeping cost under a limit: multiplier controllers and the discounted limit.

The safe actor maximizes Q(s, a) - multiplier * Qc(s, a). A `Multiplier` moves that multiplier by the costs
of finished episodes; it is a pair of pure functions over a tuple of arrays, in the style of
`optax.GradientTransformation`. Its state always has a field `value`, [] >= 0: what the actor loss uses.

`cost` is the mean undiscounted cost of recent episodes, [], in the units of `cost_limit`. Gains and rates may
be traced, so a sweep can `vmap` over them. A NaN cost is not hidden: it shows in `value`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from safejax.types import Array, check_choice, check_range


class Multiplier(NamedTuple):
    """A controller of the Lagrange multiplier. Arrays of its states are float32 or int32, strongly typed."""

    init: Callable[[], Any]  # () -> State
    update: Callable[[Any, Any, Any], Any]  # (state, cost [], cost_limit []) -> State, same shapes and dtypes


class DualAscentState(NamedTuple):
    """State of `dual_ascent`."""

    value: Array  # [] >= 0, the multiplier
    mean: Array  # [] Adam's average of cost - cost_limit, cost units; 0 without Adam
    square: Array  # [] Adam's average of its square; 0 without Adam
    count: Array  # [] int32, updates made


class PIDState(NamedTuple):
    """State of `pid`."""

    value: Array  # [] >= 0, the multiplier
    integral: Array  # [] >= 0, in multiplier units: the integral gain is inside
    smoothed_excess: Array  # [] smoothed cost - cost_limit, cost units
    smoothed_cost: Array  # [] cost units
    window: Array  # [derivative_delay] latest smoothed costs; update t writes slot t modulo derivative_delay
    count: Array  # [] int32, updates made


class AdaptivePIDState(NamedTuple):
    """State of `adaptive_pid`."""

    value: Array  # [] >= 0, the multiplier
    gain_scales: Array  # [3] proportional, integral and derivative gain over their initial values
    controller: PIDState


class AugmentedLagrangianState(NamedTuple):
    """State of `augmented_lagrangian`."""

    value: Array  # [] >= 0, the multiplier
    penalty: Array  # [] > 0, multiplier per cost unit


def cost_value_limit(cost_limit: Any, discount_factor: Any, episode_length: int) -> Array:
    """The limit on a discounted cost value that matches a limit on undiscounted episode cost.

    An episode that spends `cost_limit` evenly over its steps has the discounted cost
    cost_limit (1 - g^H) / ((1 - g) H): cost_limit times the mean of g^0 .. g^(H-1), so cost_limit at g = 1.

    Args:
      cost_limit: [] bound on undiscounted episode cost, cost units.
      discount_factor: [] g in [0, 1].
      episode_length: H, environment steps, a Python integer.

    Returns:
      [] float32, cost units.

    Source: the conversion of OSRL, https://arxiv.org/abs/2306.09303 (Liu et al. 2023).
    """
    check_range("episode_length", episode_length, 1)
    return _scalar(cost_limit) * jnp.mean(_scalar(discount_factor) ** jnp.arange(episode_length))


def dual_ascent(*, learning_rate: Any, initial: Any = 0.0, maximum: Any = jnp.inf, adam: bool = True) -> Multiplier:
    """Gradient ascent on multiplier * (cost - cost_limit), projected onto [0, maximum].

    Args:
      learning_rate: [] >= 0, per update; multiplier units with Adam, multiplier per cost unit without.
      initial: [] >= 0, first multiplier.
      maximum: [] >= 0.
      adam: whether Adam (0.9, 0.999, 1e-8) scales the steps, as in most safe-RL code.

    Raises:
      ValueError: for a number out of range.
    """
    _check_non_negative(learning_rate=learning_rate, initial=initial, maximum=maximum)

    def init() -> DualAscentState:
        return DualAscentState(_scalar(initial), _scalar(0.0), _scalar(0.0), jnp.zeros((), jnp.int32))

    def update(state: DualAscentState, cost: Any, cost_limit: Any) -> DualAscentState:
        _, mean, square, count = state
        step, count = _scalar(cost) - _scalar(cost_limit), count + 1
        if adam:
            mean = 0.9 * mean + 0.1 * step
            square = 0.999 * square + 0.001 * step**2
            unbiased_mean, unbiased_square = mean / (1.0 - 0.9**count), square / (1.0 - 0.999**count)
            step = unbiased_mean / (jnp.sqrt(unbiased_square) + 1e-8)
        value = jnp.clip(state.value + _scalar(learning_rate) * step, 0.0, _scalar(maximum))
        return DualAscentState(value, mean, square, count)

    return Multiplier(init, update)


def pid(
    *,
    proportional_gain: Any,
    integral_gain: Any,
    derivative_gain: Any,
    proportional_smoothing: Any = 0.9,
    derivative_smoothing: Any = 0.9,
    derivative_delay: int = 10,
    initial: Any = 0.0,
    maximum: Any = jnp.inf,
    integral_maximum: Any = jnp.inf,
) -> Multiplier:
    """The PID controller of the multiplier.

    With excess e_t = cost - cost_limit, n = derivative_delay, C_0 = P_0 = 0 and I_0 = initial:

        P_t = a_p P_{t-1} + (1 - a_p) e_t          C_t = a_d C_{t-1} + (1 - a_d) cost
        I_t = max(0, I_{t-1} + K_i e_t)            D_t = max(0, C_t - C_{max(0, t-n)})
        value_t = clip(K_p P_t + I_t + K_d D_t, 0, maximum)

    The integral stays under `integral_maximum` and grows no further than saturates the value (anti-windup).
    At the infinite defaults neither acts, and this is the authors' recursion. As C starts at 0, the first
    updates see a rising cost even where it is constant: a kick of up to K_d cost that fades after n updates.

    Args:
      proportional_gain, derivative_gain: [] >= 0, K_p and K_d, multiplier per cost unit.
      integral_gain: [] >= 0, K_i, multiplier per cost unit and update.
      proportional_smoothing, derivative_smoothing: [] a_p and a_d, in [0, 1].
      derivative_delay: n >= 1 updates, a Python integer.
      initial: [] >= 0, the integral and the multiplier before the first update.
      maximum, integral_maximum: [] >= 0, clamps on the multiplier and on I.

    Raises:
      ValueError: for a number out of range.

    Source: Stooke et al. 2020, PID Lagrangian Methods, https://arxiv.org/abs/2007.03964.
    """
    gains = (proportional_gain, integral_gain, derivative_gain)
    smoothing = (proportional_smoothing, derivative_smoothing)
    maxima = (maximum, integral_maximum)
    return _controller(gains, smoothing, derivative_delay, maxima, initial, from_first_cost=False)


def adaptive_pid(
    *,
    proportional_gain: Any,
    integral_gain: Any,
    derivative_gain: Any,
    proportional_smoothing: Any = 0.9,
    derivative_smoothing: Any = 0.9,
    derivative_delay: int = 10,
    initial: Any = 0.0,
    maximum: Any = jnp.inf,
    integral_maximum: Any = jnp.inf,
    proportional_rate: Any = 0.05,
    integral_rate: Any = 0.05,
    derivative_rate: Any = 0.05,
    gain_range: Any = 10.0,
    rule: str = "corrected",
) -> Multiplier:
    """The controller of `pid`, whose gains follow the cost it sees.

    After each update of `pid` the gains move by W, the last n = derivative_delay smoothed costs C (fewer at
    first, C_0 among them). With m = mean(W) + 0.1, s = std(W) / m, limit d and initial gains K0:

        K_p <- K_p (1 + proportional_rate (m - d) / m)
        K_i <- K_i (1 + integral_rate (m - d) / m)         each clipped to [K0 / gain_range, K0 gain_range]
        K_d <- K_d (1 + derivative_rate s) pull

    `rule="released"` is the recursion of the paper's released code, number for number: C_0 = 0, pull = 1. So
    while W remembers the zero of the start, m < d and the gains shrink however high the cost is; and K_d
    never decreases, so in a long run it ends at its cap.

    `rule="corrected"` is ours: C_0 is the first cost seen, so a constant cost has no derivative and moves the
    gains the right way from the first update; and pull = (K0 / K_d)^derivative_rate returns K_d towards K0
    geometrically. At a constant spread s it settles at K0 (1 + derivative_rate s)^(1 / derivative_rate),
    about K0 exp(s), and at K0 when the cost is steady; s < sqrt(n - 1), so this is bounded without the clip.

    "corrected" is the default for what it cannot do: shrink under a violation at the start, or ratchet in a long
    run. It is no better in a short one: on ball_circle (limit 20, three seeds, 41,600 steps) the two and `pid`
    with the same gains ended within each other's spread of return and cost.

    The authors' code has no upper clamps: leave them infinite with "released" to reproduce it. Both rules
    keep one trait of it: at rates of 0.05, m < d / 21 makes the factor of K_p and K_i negative, and the clip
    sends them to their floor in one update.

    Args:
      proportional_gain, integral_gain, derivative_gain: [] >= 0, K0; see `pid`, also for the next six.
      proportional_rate, integral_rate, derivative_rate: [] >= 0, per update; all 0 fixes the gains.
      gain_range: [] >= 1, the largest factor between a gain and its K0, either way.
      rule: "corrected" or "released".

    Raises:
      ValueError: for a number out of range or another rule.

    Source: Chen et al. 2024, Marvel, https://arxiv.org/abs/2412.04426, and its released code (K0 5e-6).
    """
    check_choice("rule", rule, ("corrected", "released"))
    check_range("gain_range", gain_range, 1.0)
    rates = (proportional_rate, integral_rate, derivative_rate)
    names = ("proportional_rate", "integral_rate", "derivative_rate")
    _check_non_negative(**dict(zip(names, rates, strict=True)))
    gains = (proportional_gain, integral_gain, derivative_gain)
    smoothing = (proportional_smoothing, derivative_smoothing)
    maxima, corrected = (maximum, integral_maximum), rule == "corrected"
    controller = _controller(gains, smoothing, derivative_delay, maxima, initial, from_first_cost=corrected)

    def init() -> AdaptivePIDState:
        return AdaptivePIDState(_scalar(initial), jnp.ones(3, jnp.float32), controller.init())

    def update(state: AdaptivePIDState, cost: Any, cost_limit: Any) -> AdaptivePIDState:
        inner = controller.update(state.controller, cost, cost_limit, state.gain_scales)
        valid = jnp.arange(derivative_delay) <= inner.count
        mean = jnp.mean(inner.window, where=valid) + 0.1
        relative_excess = (mean - _scalar(cost_limit)) / mean
        spread = jnp.std(inner.window, where=valid) / mean
        rate = _vector(*rates)
        scales = state.gain_scales * (1.0 + rate * jnp.stack([relative_excess, relative_excess, spread]))
        if corrected:
            scales = scales.at[2].multiply(state.gain_scales[2] ** -rate[2])
        largest = _scalar(gain_range)
        return AdaptivePIDState(inner.value, jnp.clip(scales, 1.0 / largest, largest), inner)

    return Multiplier(init, update)


def augmented_lagrangian(
    *,
    penalty: Any,
    penalty_growth: Any = 1.0,
    penalty_maximum: Any = jnp.inf,
    initial: Any = 0.0,
    maximum: Any = jnp.inf,
) -> Multiplier:
    """The multiplier of the augmented Lagrangian: value <- clip(value + penalty e, 0, maximum).

    Here e = cost - cost_limit. The actor's term is (max(0, value + penalty e)^2 - value^2) / (2 penalty); its
    gradient is the updated value times that of the cost. So update first, then use `value` in the actor loss.

    Args:
      penalty: [] > 0, multiplier per cost unit.
      penalty_growth: [] >= 1, its factor per update, until `penalty_maximum`, [] > 0.
      initial: [] >= 0, first multiplier.
      maximum: [] >= 0, clamp on the multiplier; the authors have none.

    Raises:
      ValueError: for a number out of range.

    Source: As et al. 2022, LAMBDA, https://arxiv.org/abs/2201.09802 (5e-9, growth 1 + 1e-5 to 1, from 1e-6).
    """
    check_range("penalty", penalty, 0.0, open_low=True)
    check_range("penalty_growth", penalty_growth, 1.0)
    check_range("penalty_maximum", penalty_maximum, 0.0, open_low=True)
    _check_non_negative(initial=initial, maximum=maximum)

    def init() -> AugmentedLagrangianState:
        return AugmentedLagrangianState(_scalar(initial), _scalar(penalty))

    def update(state: AugmentedLagrangianState, cost: Any, cost_limit: Any) -> AugmentedLagrangianState:
        value = state.value + state.penalty * (_scalar(cost) - _scalar(cost_limit))
        grown = jnp.minimum(state.penalty * _scalar(penalty_growth), _scalar(penalty_maximum))
        return AugmentedLagrangianState(jnp.clip(value, 0.0, _scalar(maximum)), grown)

    return Multiplier(init, update)


def augmented_penalty(state: AugmentedLagrangianState, excess: Any) -> Array:
    """The actor's term Psi of the augmented Lagrangian, under the multiplier before its update; continuous in all.

    With value lambda, penalty c and excess g: lambda g + c g^2 / 2 where lambda + c g > 0, else -lambda^2 / (2 c).
    Its gradient in g is the multiplier that an update with the same excess gives.

    Args:
      state: of `augmented_lagrangian`.
      excess: [] cost - cost_limit.
    """
    value, penalty = state.value, state.penalty
    inactive = -jnp.square(value) / (2.0 * jnp.maximum(penalty, jnp.finfo(jnp.float32).tiny))
    active = value * excess + 0.5 * penalty * jnp.square(excess)
    return jnp.where(value + penalty * excess > 0.0, active, inactive)


MULTIPLIERS: dict[str, Callable[..., Multiplier]] = {
    "dual_ascent": dual_ascent,
    "pid": pid,
    "adaptive_pid": adaptive_pid,
    "augmented_lagrangian": augmented_lagrangian,
}


def multiplier(kind: str, **options: Any) -> Multiplier:
    """The controller named `kind` in `MULTIPLIERS`, made with `options`; a ValueError lists the names."""
    check_choice("kind", kind, MULTIPLIERS)
    return MULTIPLIERS[kind](**options)


def ticks(multiplier: Multiplier, state: Any, cost: Any, cost_limit: Any, count: int) -> Any:
    """The state after `count` (a Python integer) updates with one cost. Marvel's released code makes 20."""
    return jax.lax.fori_loop(0, count, lambda _, carry: multiplier.update(carry, cost, cost_limit), state)


def _controller(
    gains: tuple, smoothing: tuple, derivative_delay: int, maxima: tuple, initial: Any, *, from_first_cost: bool
) -> Any:
    """The recursion of `pid`; a fourth argument of its update holds factors [3] of the gains."""
    names = ("proportional_gain", "integral_gain", "derivative_gain", "maximum", "integral_maximum", "initial")
    _check_non_negative(**dict(zip(names, (*gains, *maxima, initial), strict=True)))
    check_range("proportional_smoothing", smoothing[0], 0.0, 1.0)
    check_range("derivative_smoothing", smoothing[1], 0.0, 1.0)
    check_range("derivative_delay", derivative_delay, 1)

    def init() -> PIDState:
        value, integral, smoothed_excess, smoothed_cost = map(_scalar, (initial, initial, 0.0, 0.0))
        window, count = jnp.zeros(derivative_delay, jnp.float32), jnp.zeros((), jnp.int32)
        return PIDState(value, integral, smoothed_excess, smoothed_cost, window, count)

    def update(state: PIDState, cost: Any, cost_limit: Any, gain_scales: Any = 1.0) -> PIDState:
        cost, excess = _scalar(cost), _scalar(cost) - _scalar(cost_limit)
        proportional_gain, integral_gain, derivative_gain = _vector(*gains) * gain_scales
        proportional_smoothing, derivative_smoothing = _vector(*smoothing)
        maximum, integral_maximum = _vector(*maxima)

        # With C_0 in every slot at first, the slot to be overwritten always holds C_{max(0, t-n)}.
        start, first = (cost if from_first_cost else 0.0), state.count == 0
        window, before = jnp.where(first, start, state.window), jnp.where(first, start, state.smoothed_cost)
        smoothed_cost = derivative_smoothing * before + (1.0 - derivative_smoothing) * cost
        slot = (state.count + 1) % derivative_delay
        rise = jnp.maximum(smoothed_cost - window[slot], 0.0)
        smoothed_excess = state.smoothed_excess
        smoothed_excess = proportional_smoothing * smoothed_excess + (1.0 - proportional_smoothing) * excess

        rest = proportional_gain * smoothed_excess + derivative_gain * rise
        integral = jnp.clip(state.integral + integral_gain * excess, 0.0, integral_maximum)
        # Anti-windup: no growth beyond what saturates the value, but no loss of what was there before either.
        integral = jnp.minimum(integral, jnp.maximum(state.integral, maximum - rest))
        value = jnp.clip(rest + integral, 0.0, maximum)
        window = window.at[slot].set(smoothed_cost)
        return PIDState(value, integral, smoothed_excess, smoothed_cost, window, state.count + 1)

    return Multiplier(init, update)


def _scalar(number: Any) -> Array:
    """A fresh strongly typed [] float32: no state aliases itself or changes dtype."""
    chex.assert_shape(number, ())
    return jnp.array(number, jnp.float32)


def _vector(*numbers: Any) -> Array:
    return jnp.stack([_scalar(number) for number in numbers])


def _check_non_negative(**numbers: Any) -> None:
    for name, number in numbers.items():
        check_range(name, number, 0.0)
