"""benchmarks/presets.py: what a task changes in a budget."""

import presets
import pytest

from safejax import envs


def test_limits_are_of_known_tasks_and_within_their_episodes():
    for name, limits in presets.LIMITS.items():
        assert 0 < min(limits) < max(limits) <= envs.task(name).episode_length, name


@pytest.mark.parametrize(
    ("name", "limits", "steps", "maximum"),
    [
        ("car_circle", (5.0, 100.0), 4_000_000, 100.0),  # DSRL's schedule and its data's highest cost
        ("point_goal1", (80.0, 5.0), 1_000_000, 100.0),
        ("point_maze_umaze", (5.0, 300.0), 1_000_000, 80.0),  # not in DSRL: as long as an episode
    ],
)
def test_a_task_brings_how_its_data_are_made(name, limits, steps, maximum):
    task = envs.task(name)
    budget = presets.for_task(presets.Budget(), task)
    assert budget.behavior_limits == limits
    assert budget.behavior_steps == steps
    assert budget.behavior_cost_maximum == maximum


def test_what_a_task_does_not_change_stays():
    budget = presets.BUDGETS["paper"]
    changed = presets.for_task(budget, envs.task("car_circle"))
    kept = presets.plain(budget).items() - presets.plain(changed).items()
    assert {name for name, _ in kept} == {"behavior_limits", "behavior_cost_maximum"}  # its steps are more than enough
