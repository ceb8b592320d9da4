"""benchmarks/report.py: statistics against known values, tables cell by cell, pictures as files."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
from PIL import Image

report = importlib.import_module("report")


@pytest.mark.parametrize(
    ("values", "mean", "half_width"),
    [
        ([0.0, 2.0], 1.0, 12.706204736),  # t(.975, 1) times a standard error of 1
        ([1.0, 2.0, 3.0, 4.0, 5.0], 3.0, 2.776445105 * math.sqrt(0.5)),
        ([4.0, 4.0, 4.0], 4.0, 0.0),
    ],
)
def test_interval_uses_student_t(values, mean, half_width):
    assert report.interval(values) == pytest.approx((mean, half_width), rel=1e-9)


def test_interval_of_one_seed_has_no_width():
    mean, half_width = report.interval([3.0])
    assert mean == 3.0
    assert np.isnan(half_width)
    assert np.isnan(report.interval([[3.0], [4.0]])[1]).all()


def test_interval_reduces_the_last_axis():
    values = np.random.default_rng(0).normal(size=(3, 5))
    mean, half_width = report.interval(values)
    one_by_one = np.array([report.interval(row) for row in values])
    np.testing.assert_allclose(np.stack([mean, half_width], -1), one_by_one, rtol=1e-12)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([100.0, 0.0, 3.0, 2.0, 5.0, 4.0, 1.0, 6.0], 3.5),  # drops 0, 1 and 6, 100
        ([8.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, -90.0], 4.0),  # a quarter of 9 is rounded down to 2
        ([1.0, 5.0, 9.0], 5.0),  # too few to drop any
        ([[0.0, 10.0], [0.0, 10.0]], 5.0),  # over all values
    ],
)
def test_interquartile_mean(values, expected):
    assert report.interquartile_mean(values) == expected


def test_bootstrap_interval_has_the_exact_quantiles_of_two_values():
    # a resample of (0, 1) has mean 0, 1/2, 1 with probability 1/4, 1/2, 1/4
    assert report.bootstrap_interval([0.0, 1.0], seed=0) == (0.0, 1.0)
    assert report.bootstrap_interval([0.0, 1.0], seed=0, confidence=0.4) == (0.5, 0.5)


def test_bootstrap_interval_resamples_within_groups():
    assert report.bootstrap_interval([[0.0, 10.0]] * 4, seed=0) == (5.0, 5.0)


def test_bootstrap_interval_holds_the_estimate_and_repeats():
    values = np.random.default_rng(1).normal(size=20)
    low, high = report.bootstrap_interval(values, seed=3)
    assert values.min() < low < report.interquartile_mean(values) < high < values.max()
    assert report.bootstrap_interval(values, seed=3) == (low, high)
    assert report.bootstrap_interval(values, seed=4) != (low, high)


def test_steps_to_reach():
    returns = [
        # at once, later, too costly first, never safe, never good, both but apart
        [9, 0, 9, 9, 0, 9],
        [0, 5, 9, 9, 4.9, 9],
        [0, 9, 9, 9, 4.9, 4],
    ]
    costs = [
        [2, 9, 3, 3, 0, 3],
        [9, 2, 2, 3, 0, 3],
        [9, 2, 2, 3, 0, 0],
    ]
    steps = report.steps_to_reach([0, 100, 200], returns, costs, target=5, cost_limit=2)
    np.testing.assert_array_equal(steps, [0, 100, 100, math.inf, math.inf, math.inf])


def test_what_breaks_the_limit_sets_no_target():
    assert report.target_return([400.0, 440.0, 1300.0], [0.0, 20.0, 91.0], 20.0, 0.9) == pytest.approx(378.0)
    assert report.target_return([400.0], [20.5], 20.0, 0.9) is None


ROWS = [
    report.Row(method="best safe in data", episode_return=612.34, episode_cost=19.0, learned=False),
    report.Row(method="iql", episode_return=[500.0, 502.0], episode_cost=[10.0, 30.0]),
    report.Row(
        method="marvel",
        episode_return=[1.0, 2.0, 3.0, 4.0, 5.0],
        episode_cost=[20.0, 20.0, 20.1, 0.0, 0.0],
        steps_to_target=[1000, 3000, 2000, math.inf, math.inf],
        cumulative_cost=[12000.0] * 5,
    ),
    report.Row(
        method="scratch",
        episode_return=[7.0],
        episode_cost=[21.0],
        steps_to_target=[math.inf],
        cumulative_cost=[5.0],
    ),
]
CELLS = [
    ["best safe in data", "612.3", "19.0", "20", "-", "-", "-"],
    ["iql", "501.0 +- 12.7", "20.0 +- 127.1", "20", "1/2", "-", "-"],
    ["marvel", "3.0 +- 2.0", "12.0 +- 13.6", "20", "4/5", "3,000", "12,000 +- 0.0"],
    ["scratch", "7.0 +- -", "21.0 +- -", "20", "0/1", "> 150,000", "5.0 +- -"],
]
BUDGET = {"hidden layers": (256, 256), "updates": 20_000, "rate": 3e-4}
ARGUMENTS = (ROWS, 20.0, BUDGET, 4.5, {"marvel": 150_000, "scratch": 150_000})


def test_table():
    lines = report.table(*ARGUMENTS).splitlines()
    rule = lines[2]
    assert set(rule) == {"-", " "}
    edges = [index for index, char in enumerate(rule) if char == "-" and (index == 0 or rule[index - 1] == " ")]
    cells = [
        [line[start:end].strip() for start, end in zip(edges, [*edges[1:], None], strict=True)] for line in lines[3:7]
    ]
    assert cells == CELLS
    assert {len(line) for line in lines[:7]} == {len(rule)}
    notes = " ".join(lines[7:])
    assert "return >= 4.5 at cost <= 20" in notes
    assert "budget: hidden layers 256 x 256, updates 20,000, rate 0.0003." in notes


def test_markdown_holds_the_same_cells():
    lines = report.markdown(*ARGUMENTS).splitlines()
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:6]]
    assert split[2:] == [[cell.replace("+-", "±") for cell in cells] for cells in CELLS]
    assert {len(cells) for cells in split} == {len(report.HEADINGS)}
    assert set(split[1]) == {":---", "---:"}


def test_a_median_between_reached_and_never_is_never():
    row = report.Row(
        method="m",
        episode_return=[1.0] * 4,
        episode_cost=[0.0] * 4,
        steps_to_target=[10, 20, math.inf, math.inf],
    )
    assert "> 99" in report.table([row], 1.0, {}, 0.9, {"m": 99})


@pytest.mark.parametrize("seed_count", [1, 3])
def test_learning_curves_are_written(tmp_path, seed_count):
    values = np.random.default_rng(0).normal(10.0, 1.0, (4, seed_count))
    curve = report.Curve([0, 1000, 2000, 3000], values, np.abs(values))
    report.learning_curves(tmp_path / "curves.png", {"b": curve, "a": curve}, 20.0, "title", labels=["a", "b"])
    assert (tmp_path / "curves.png").stat().st_size < 200_000
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > image.height > 400
        assert len(np.unique(np.asarray(image.convert("L")))) > 10


def test_labels_keep_their_colours_when_a_curve_is_left_out(tmp_path):
    curve = report.Curve([0, 1000], [[1.0], [2.0]], [[1.0], [2.0]])
    second = tuple(int(report.COLORS[1][index : index + 2], 16) for index in (1, 3, 5))
    for labels, expected in ((["a", "b"], True), (None, False)):
        report.learning_curves(tmp_path / "curves.png", {"b": curve}, 2.0, "", labels=labels)
        with Image.open(tmp_path / "curves.png") as image:
            assert (np.asarray(image.convert("RGB")) == second).all(-1).any() == expected
