"""Normalised scores: the published formulas by hand, and the constants against the tasks that carry them."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from safejax import envs
from safejax.scores import (
    D4RL,
    DSRL,
    d4rl_score,
    dsrl_scores,
    find_reference,
    known_scores,
    normalized_cost,
    normalized_return,
)


@pytest.mark.parametrize(
    ("name", "episode_return", "episode_cost", "limit", "expected"),
    [
        # (R - min) / (max - min), C / limit
        ("CarRun", 574.6533203125, 25.0, 20.0, (1.0, 1.25, False)),
        ("CarRun", 204.28726196289062, 20.0, 20.0, (0.0, 1.0, True)),
        ("OfflineBallCircle-v0", 440.9232506752014, 5.0, 10.0, (0.5, 0.5, True)),  # halfway between .38312 and 881.46
        ("OfflineCarCircle2Gymnasium-v0", 46.786809921264648, 120.0, 40.0, (2.0, 3.0, False)),  # above the best is 2
        # a limit of 0 adds 1 to both
        ("OfflineMetadrive-easysparse-v0", 425.8006286621094, 0.0, 0.0, (1.0, 1.0, True)),
        ("HopperVelocity", 37.05154800415039, 3.0, 0.0, (0.0, 4.0, False)),
    ],
)
def test_dsrl_scores_by_hand(name, episode_return, episode_cost, limit, expected):
    assert dsrl_scores(name, episode_return, episode_cost, limit) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_scores_keep_the_shape_of_numpy_and_jax_arrays():
    for xp in (np, jnp):
        scores = dsrl_scores("BallRun", xp.asarray([[26.0, 1327.0]]), xp.asarray([[0.0, 41.0]]), 40.0)
        assert [leaf.shape for leaf in scores] == [(1, 2)] * 3
        assert scores.within_limit.tolist() == [[True, False]]


@pytest.mark.parametrize(
    ("name", "episode_return", "expected"),
    [
        ("hopper-medium-v2", 3234.3, 100.0),
        ("halfcheetah-medium-replay-v0", -280.178953, 0.0),
        ("walker2d-expert-v2", 2296.964504, 50.0),  # halfway between 1.629008 and 4592.3
        ("antmaze-large-play-v2", 0.35, 35.0),  # successes out of episodes
        ("kitchen-mixed-v0", 3.0, 75.0),
        ("maze2d-umaze-v1", 161.86, 100.0),
        ("maze2d-umaze-dense-v1", 68.537689, 0.0),
    ],
)
def test_d4rl_score_by_hand(name, episode_return, expected):
    assert d4rl_score(name, episode_return) == pytest.approx(expected, rel=1e-12, abs=1e-10)


def test_the_constants_of_all_data_sets():
    assert len(DSRL) == 38
    assert all(0 <= each.return_min < each.return_max and 0 <= each.cost_min < each.cost_max for each in DSRL.values())
    assert {name for name, each in DSRL.items() if each.cost_min} == {"easysparse", "hardmean"}
    assert all(random < expert for random, expert in D4RL.values())


def test_tasks_carry_the_constants_of_the_table():
    references = [task.reference for task in map(envs.task, envs.names()) if task.reference is not None]
    assert len(references) >= 29  # 38 less MetaDrive's nine
    assert all(DSRL[each.name] is each for each in references)
    assert envs.normalized_return is normalized_return
    assert envs.normalized_cost is normalized_cost


def test_known_scores_have_the_name_of_their_suite():
    low, high = DSRL["BallCircle"].return_min, DSRL["BallCircle"].return_max
    scores = {"DSRL normalized return": 1.0, "DSRL normalized cost": 0.5}
    assert known_scores("ball_circle", high, 5.0, 10.0) == scores
    assert known_scores("BallCircle", low, 5.0) == {"DSRL normalized return": 0.0}
    assert known_scores("hopper-medium-v2", 3234.3, 0.0) == {"D4RL score": 100.0}
    assert known_scores("hopper", 3234.3, 0.0) == known_scores("", 1.0, 0.0) == {}


@pytest.mark.parametrize("name", ["CarGoal1", "OfflineCarGoal1Gymnasium-v0", "car_goal1"])
def test_all_names_of_a_data_set_are_known(name):
    assert find_reference(name) is DSRL["CarGoal1"]


def test_what_is_unknown_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"unknown DSRL data set 'BalCircle', .* nearest: BallCircle"):
        dsrl_scores("BalCircle", 1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"unknown D4RL data set 'maze2d-huge-v1', expected one of halfcheetah"):
        d4rl_score("maze2d-huge-v1", 1.0)
    with pytest.raises(ValueError, match="cost_limit is -1, expected a cost per episode >= 0"):
        normalized_cost(1.0, -1)
    with pytest.raises(ValueError, match="cost_limit is nan, expected a cost per episode >= 0"):
        normalized_cost(1.0, float("nan"))
