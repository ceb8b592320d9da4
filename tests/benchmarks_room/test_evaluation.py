"""benchmarks/evaluation.py: scores by hand, and the table that shows them."""

from __future__ import annotations

import importlib
import json

from safejax.scores import Reference

evaluation = importlib.import_module("evaluation")
REFERENCE = Reference("Toy", 100.0, 300.0, 50.0)


def test_scores_by_hand():
    found = evaluation.scores([100.0, 200.0, 400.0], [0.0, 20.0, 30.0], (0.0, 20.0), REFERENCE)
    assert found["normalized_return"] == [0.0, 0.5, 1.5]
    assert found["limits"] == {
        "0": {"normalized_cost": [1.0, 21.0, 31.0], "within_limit": [True, False, False]},
        "20": {"normalized_cost": [0.0, 1.0, 1.5], "within_limit": [True, True, False]},
    }
    iqm = found["interquartile"]["cost"]
    assert iqm["mean"] == 50 / 3  # of three, none is dropped
    assert 0.0 <= iqm["low"] < iqm["mean"] < iqm["high"] <= 30.0
    assert evaluation.scores([100.0, 200.0, 400.0], [0.0, 20.0, 30.0], (0.0, 20.0), REFERENCE) == found


def test_what_has_no_number_is_null():
    found = evaluation.scores([float("-inf")], [float("nan")], (20.0,), None)
    assert json.loads(json.dumps(found, allow_nan=False)) == {
        "normalized_return": None,
        "limits": {"20": {"normalized_cost": [None], "within_limit": [False]}},
        "interquartile": {"return": None, "cost": None},
    }


def test_table():
    rows = {
        "best": evaluation.scores([200.0], [19.0], (20.0,), REFERENCE),
        "none": evaluation.scores([float("-inf")], [float("nan")], (20.0,), None),
        "iql": evaluation.scores([100.0, 100.0], [10.0, 30.0], (20.0,), REFERENCE),
    }
    lines = evaluation.table(rows).splitlines()
    cells = [line.split() for line in lines[1:4]]
    assert cells == [
        ["best", "200.00", "[200.00,", "200.00]", "0.500", "19.00", "[19.00,", "19.00]", "0.950", "(1/1)"],
        ["none", "-", "-", "-", "-", "(0/1)"],
        ["iql", "100.00", "[100.00,", "100.00]", "0.000", "20.00", "[10.00,", "30.00]", "1.000", "(1/2)"],
    ]
    assert len({len(line) for line in lines[:4]}) == 1
    assert "cost/20 (met)" in lines[0]


def test_diverged_episodes_are_counted_by_stage():
    records = {
        "behavior": [{"return": [1.0, 2.0], "diverged": [1, 0]}, {"diverged": [2, 4]}],
        "offline": [{"evaluation_diverged": [0, 0]}],
        "alignment": [{"loss": [0.5, 0.5]}],
        "marvel": [{"diverged": [0, 0], "evaluation_diverged": [0, 3]}],
    }
    found = evaluation.diverged(records)
    assert found == {"behavior": {"training": 7, "evaluation": 0}, "marvel": {"training": 0, "evaluation": 3}}
    assert evaluation.diverged_lines(found) == [
        "behavior: 7 episodes of training and 0 of evaluation diverged; no mean holds them",
        "marvel: 0 episodes of training and 3 of evaluation diverged; no mean holds them",
    ]
