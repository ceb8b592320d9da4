"""The closed forms behind bandit.py: every extraction rule on one state, in NumPy; scalar unknowns by bisection.

Nothing here imports safejax: these are what its losses are held against. Shapes: A actions, all of which the data take.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.optimize import root_scalar
from scipy.special import logsumexp

MAXIMUM_WEIGHT = 100.0  # IQL's clip of exp(beta A)
SMALLEST_ADVANTAGE = 1e-6  # floor under |A| in IDQL's quantile weight
TANGENT = 5.0  # alpha (Q - V) beyond which the exponential loss goes on as its tangent
LARGEST_EXPONENT = 10.0  # log pi / mu beyond which the one-sample dual goes on as its tangent
SMALLEST_LOG_MARGIN = -600.0  # of nu - max Q over the spread: the exponential of less underflows


class Solution(NamedTuple):
    """What a rule comes to: a policy [A] for a value, through multipliers."""

    policy: np.ndarray
    value: float
    multipliers: dict[str, float]


class Problem(NamedTuple):
    """The actions that the data take, and the numbers of the rules."""

    q: np.ndarray  # [A], not all equal
    behavior: np.ndarray  # [A] mu > 0
    kappa: float  # bound on the cross-entropy H(mu, pi), nats
    numbers: argparse.Namespace  # of bandit.py's command line

    @property
    def spread(self) -> float:
        """max Q - min Q."""
        return float(np.ptp(self.q))

    def snap(self, value: float) -> float:
        """The nearest Q if next to `value`: on which side of a Q that it equals a learned V falls would be chance."""
        nearest = float(self.q[np.argmin(np.abs(self.q - value))])
        return nearest if abs(nearest - value) < 1e-6 * self.spread else value


def solve(problem: Problem, quantile: float) -> dict[str, Solution]:
    """Every rule; where a quantile is any number between two Q, the one nearest to `quantile` is taken."""
    numbers, q, mu = problem.numbers, problem.q, problem.behavior
    expectile, quantile, soft_maximum = (
        problem.snap(value) + numbers.value_shift
        for value in (expectile_of(problem), quantile_of(problem, quantile), soft_maximum_of(problem))
    )

    def by_log(log_weight: np.ndarray, value: float = expectile, **multipliers: float) -> Solution:
        weight = mu * np.exp(log_weight - log_weight.max())
        return Solution(weight / weight.sum(), value, multipliers)

    beta = multiplier_of(problem, expectile)
    hard = by_log(-beta * q, alpha=float(logsumexp(-beta * q, b=mu)) - 1.0, beta=beta)
    advantage = q - expectile
    distance = np.maximum(np.abs(q - quantile), SMALLEST_ADVANTAGE)
    # |exp(x) - 1| / |x| with x = alpha A, over exp(max x), which may be too large for a float
    scaled = numbers.exponential * (q - soft_maximum)
    top = scaled.max()
    growth = np.abs(np.exp(scaled - top) - np.exp(-top)) / np.where(scaled == 0.0, 1.0, np.abs(scaled))
    return {
        "behavior": by_log(np.zeros(q.shape)),
        "soft_align": by_log(-numbers.penalty * advantage**2),
        "hard_align": hard,
        "hard_align_sample": hard,
        "idql_expectile": by_log(np.log(asymmetry(advantage, numbers.expectile))),
        "idql_quantile": by_log(np.log(asymmetry(q - quantile, numbers.quantile) / distance), quantile),
        "idql_exponential": by_log(np.log(np.where(scaled == 0.0, np.exp(-top), growth)), soft_maximum),
        "awr": by_log(np.minimum(numbers.inverse_temperature * advantage, math.log(MAXIMUM_WEIGHT))),
        "forward_kl": forward_kl_of(problem, expectile),
    }


def asymmetry(advantage: np.ndarray, level: float) -> np.ndarray:
    """|tau - 1[A < 0]|."""
    return np.where(advantage < 0, 1.0 - level, level)


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where `function` changes its sign between `low` and `high`."""
    return float(root_scalar(function, bracket=(low, high), method="bisect", xtol=1e-15, rtol=1e-15).root)


def expectile_of(problem: Problem) -> float:
    """The mean in which actions above it count tau and actions below 1 - tau; one cut of the sorted actions fits."""
    order = np.argsort(problem.q)
    q, mu = problem.q[order], problem.behavior[order]
    value = math.nan
    for below in range(1, len(q)):
        weight = mu * asymmetry(np.where(np.arange(len(q)) < below, -1.0, 1.0), problem.numbers.expectile)
        value = float(weight @ q / weight.sum())
        if value <= q[below]:
            break
    return value


def quantile_of(problem: Problem, near: float) -> float:
    """The quantile; all numbers between two Q are one if the share below is tau exactly: then the nearest to `near`."""
    order = np.argsort(problem.q)
    share = np.cumsum(problem.behavior[order])
    levels = problem.numbers.quantile + np.array([-1e-9, 1e-9])
    low, high = problem.q[order][np.minimum(np.searchsorted(share, levels), len(share) - 1)]
    return float(np.clip(near, low, high))


def soft_maximum_of(problem: Problem) -> float:
    """log E exp(alpha Q) / alpha, or, where the loss's tangent bends it, the root of the loss's slope."""
    q, mu, alpha = problem.q, problem.behavior, problem.numbers.exponential
    value = float(logsumexp(alpha * q, b=mu)) / alpha
    if alpha * (q.max() - value) <= TANGENT:
        return value
    return root(lambda v: mu @ np.exp(np.minimum(alpha * (q - v), TANGENT)) - 1.0, q.min(), q.max())


def multiplier_of(problem: Problem, value: float) -> float:
    """beta at which pi ~ mu exp(-beta Q) has E Q = V; E Q falls with beta."""
    advantage = (problem.q - value) / problem.spread

    def gap(beta: float) -> float:
        logits = np.log(problem.behavior) - beta * advantage
        return float(np.exp(logits - logits.max()) @ advantage)

    reach = 1.0
    while gap(reach) > 0.0 or gap(-reach) < 0.0:
        reach *= 2.0
    return root(gap, -reach, reach) / problem.spread


def forward_kl_policy(q: np.ndarray, behavior: np.ndarray, log_margin: float) -> tuple[np.ndarray, float, float]:
    """pi = lambda mu / (nu - Q) for nu = max Q + spread exp(log_margin); its lambda, and H(mu, pi)."""
    spread = np.ptp(q)
    weight = behavior / (math.exp(log_margin) + (q.max() - q) / spread)
    policy = weight / weight.sum()
    return policy, float(spread / weight.sum()), float(-behavior @ np.log(policy))


def forward_kl_of(problem: Problem, value: float) -> Solution:
    """The policy of largest E Q with H(mu, pi) <= kappa; the cross-entropy of `forward_kl_policy` falls with nu."""

    def excess(log_margin: float) -> float:
        return forward_kl_policy(problem.q, problem.behavior, log_margin)[2] - problem.kappa

    found = root(excess, SMALLEST_LOG_MARGIN, -SMALLEST_LOG_MARGIN)
    policy, multiplier, _ = forward_kl_policy(problem.q, problem.behavior, found)
    return Solution(policy, value, {"lambda": multiplier})
