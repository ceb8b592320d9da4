"""DSRL's density filter for raw logs: a grid over return and cost, a few episodes kept in each cell."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def grid_filter(
    returns: Any,
    costs: Any,
    *,
    per_bin: int,
    cost_maximum: float = math.inf,
    return_bins: int = 50,
    cost_bins: int = 60,
    minimum: int = 2,
    seed: int = 0,
) -> np.ndarray:
    """Episodes that the grid keeps, so that no kind of behavior crowds out the others.

    The grid spans the returns and costs of episodes with cost <= `cost_maximum`; the largest values fall into
    the last bins. Equal arguments give equal answers.

    Args:
      returns: [M] undiscounted episode sums.
      costs: [M] undiscounted episode sums, cost units.
      per_bin: at most so many episodes are kept in each cell, drawn without replacement.
      cost_maximum: costlier episodes are dropped, cost units.
      return_bins: cells along the return.
      cost_bins: cells along the cost.
      minimum: cells with fewer episodes are dropped as outliers.
      seed: of the draw.

    Returns:
      [K] integers, the kept episodes in ascending order.

    Raises:
      ValueError: shapes that differ, values that are not finite, or counts below 1.

    Source: Liu et al. 2023, Datasets and Benchmarks for Offline Safe Reinforcement Learning,
      https://arxiv.org/abs/2306.09303, and its script process_dataset.py. There the largest values form
      bins of their own; here they belong to the last.
    """
    returns, costs = np.asarray(returns, np.float64), np.asarray(costs, np.float64)
    if returns.ndim != 1 or returns.shape != costs.shape:
        raise ValueError(f"returns {list(returns.shape)} and costs {list(costs.shape)}, expected [M] both")
    if not (np.isfinite(returns).all() and np.isfinite(costs).all()):
        raise ValueError("returns or costs hold values that are not finite; drop those episodes")
    if min(per_bin, return_bins, cost_bins, minimum) < 1:
        raise ValueError("per_bin, return_bins, cost_bins and minimum must be at least 1")

    eligible = np.flatnonzero(costs <= cost_maximum)
    cells = _bin(returns[eligible], return_bins) * cost_bins + _bin(costs[eligible], cost_bins)
    random = np.random.default_rng(seed)
    kept = [np.empty(0, np.int64)]
    for cell in np.unique(cells):
        members = eligible[cells == cell]
        if len(members) >= minimum:
            kept.append(random.choice(members, min(per_bin, len(members)), replace=False))
    return np.sort(np.concatenate(kept))


def _bin(values: np.ndarray, count: int) -> np.ndarray:
    """Bin numbers in [0, count) of equal steps from the least to the largest value."""
    if not values.size or values.min() == values.max():
        return np.zeros(values.shape, np.int64)
    share = (values - values.min()) / (values.max() - values.min())
    return np.minimum((share * count).astype(np.int64), count - 1)
