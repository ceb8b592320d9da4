"""A Config's choice of multiplier controller, and its tick from finished episodes; the controllers are `constraints`'.

The controller's cadence decides its behaviour, so ticks per call is a number of the Config: Marvel's released code
makes 20 with the same cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from safejax.constraints import Multiplier, multiplier, ticks
from safejax.types import Array, EpisodeStats, check_range

MultiplierState = Any


@dataclass(frozen=True, kw_only=True)
class MultiplierConfig:
    """Numbers of a controller of lambda, in reward-scale units per unit of episode cost; unused ones are ignored."""

    kind: str = "dual_ascent"  # or "pid", "adaptive_pid", "augmented_lagrangian"
    ticks: int = 1  # controller updates per call, with the same cost
    initial: float = 0.0  # lambda at first (PID: its integral)
    maximum: float = 100.0  # lambda never exceeds it
    learning_rate: float = 0.05  # dual ascent
    adam: bool = True  # dual ascent: Adam, or the plain step
    proportional_gain: float = 5e-3  # PID
    integral_gain: float = 5e-3
    derivative_gain: float = 5e-3
    integral_maximum: float = 100.0
    rule: str = "corrected"  # adaptive PID: or "released"
    penalty: float = 1e-3  # augmented Lagrangian
    penalty_growth: float = 1.0


def make_multiplier(config: MultiplierConfig) -> Multiplier:
    """The controller that `config` describes.

    Raises:
      ValueError: unknown kind or a number out of range, in one line.
    """
    check_range("ticks", config.ticks, 1)
    names = {
        "dual_ascent": ("learning_rate", "initial", "maximum", "adam"),
        "pid": _PID,
        "adaptive_pid": (*_PID, "rule"),
        "augmented_lagrangian": ("penalty", "penalty_growth", "initial", "maximum"),
    }.get(config.kind, ())
    return multiplier(config.kind, **{name: getattr(config, name) for name in names})


_PID = ("proportional_gain", "integral_gain", "derivative_gain", "initial", "maximum", "integral_maximum")


def adapt_multiplier(
    config: MultiplierConfig, state: MultiplierState, episodes: EpisodeStats, cost_limit: float | Array
) -> MultiplierState:
    """Tick the controller with the mean cost of the finished episodes; without one, nothing moves.

    Args:
      config: of the controller.
      state: of the controller.
      episodes: any leading shape; only rows with `finished` count.
      cost_limit: cost units per episode.
    """
    finished = episodes.finished.astype(jnp.float32)
    count = jnp.sum(finished)
    cost = jnp.sum(finished * episodes.episode_cost) / jnp.maximum(count, 1.0)
    ticked = ticks(make_multiplier(config), state, cost, cost_limit, config.ticks)
    return jax.tree.map(lambda new, old: jnp.where(count > 0, new, old), ticked, state)
