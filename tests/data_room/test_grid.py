"""The density filter: hand-made grids, limits, determinism."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safejax.data import grid_filter


def test_a_grid_by_hand():
    # Two by two cells over returns [0, 10] and costs [0, 4].
    returns = [0, 1, 2, 10, 9, 4, 0]
    costs = [0, 1, 1, 4, 3, 4, 50]
    kept = grid_filter(returns, costs, per_bin=2, cost_maximum=4, return_bins=2, cost_bins=2)
    # (low, low) holds 0, 1, 2 and keeps two; (high, high) holds 3, 4; (low, high) only 5; 6 costs too much.
    assert kept.tolist() in ([0, 1, 3, 4], [0, 2, 3, 4], [1, 2, 3, 4])
    alone = grid_filter(returns, costs, per_bin=9, cost_maximum=4, return_bins=2, cost_bins=2, minimum=1)
    assert alone.tolist() == [0, 1, 2, 3, 4, 5]


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(0, 200),
    per_bin=st.integers(1, 5),
    minimum=st.integers(1, 3),
    seed=st.integers(0, 10**6),
)
def test_what_always_holds(count, per_bin, minimum, seed):
    random = np.random.default_rng(seed)
    returns, costs = random.normal(size=count), random.integers(0, 30, size=count)
    options = dict(per_bin=per_bin, minimum=minimum, cost_maximum=20, return_bins=4, cost_bins=3, seed=seed)
    kept = grid_filter(returns, costs, **options)
    np.testing.assert_array_equal(kept, grid_filter(returns, costs, **options))
    assert (np.diff(kept) > 0).all()
    assert (costs[kept] <= 20).all()
    assert len(kept) <= 12 * per_bin
    eligible = np.flatnonzero(costs <= 20)
    np.testing.assert_array_equal(
        grid_filter(returns, costs, **{**options, "per_bin": count + 1, "minimum": 1}), eligible
    )


def test_the_seed_chooses_among_the_crowd():
    returns, costs = np.zeros(100), np.zeros(100)
    draws = {tuple(grid_filter(returns, costs, per_bin=5, seed=seed)) for seed in range(5)}
    assert len(draws) == 5
    assert all(len(draw) == 5 for draw in draws)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"returns \[3\] and costs \[2\], expected \[M\] both"):
        grid_filter([1, 2, 3], [1, 2], per_bin=1)
    with pytest.raises(ValueError, match="not finite"):
        grid_filter([1, np.nan], [1, 2], per_bin=1)
    with pytest.raises(ValueError, match="at least 1"):
        grid_filter([1, 2], [1, 2], per_bin=0)
