"""Engine against engine: the C library beside itself passes, beside one that differs it does not."""

import json

import parity_engines
import pytest
from one_line import refusal

from safejax import envs

SMALL = ("ball_run", "--envs", "48", "--steps", "30")


def second_engine(monkeypatch, change):
    """Let "mjx" be the C library under a changed task, which compiles at once."""
    make = envs.make
    monkeypatch.setattr(
        parity_engines.envs, "make", lambda task, engine: make(change(task) if engine == "mjx" else task, "mujoco")
    )


def results(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_equal_engines_pass(monkeypatch, capsys):
    second_engine(monkeypatch, lambda task: task)
    parity_engines.main([*SMALL])
    random, held = results(capsys)
    assert (random["policy"], held["policy"]) == ("random", "held")
    for result in (random, held):
        assert result["broken"] == []
        assert result["start"] == 0
        assert (result["first_steps"]["median"], result["first_steps"]["worst"]) == (0, 0)
        assert 1e-7 < result["first_steps"]["nudged"] < 1e-3  # of starts that differ by 1e-5
        assert result["length"] == {"means": [30, 30], "p": 1}
        assert result["return"]["p"] > 0.01 / 6
        assert result["return"]["means"][0] != result["return"]["means"][1]  # the keys of the samples differ


def test_a_nudge_is_the_yardstick_of_the_first_steps(monkeypatch, capsys):
    second_engine(monkeypatch, lambda task: parity_engines.nudged(task, 1e-3))
    with pytest.raises(SystemExit):
        parity_engines.main([*SMALL])
    assert all(result["broken"][0].startswith("first_steps") for result in results(capsys))
    parity_engines.main([*SMALL, "--nudge", "1e-3"])
    for result in results(capsys):
        assert result["first_steps"]["median"] == result["first_steps"]["nudged"] > 1e-4
        assert result["broken"] == []


def pays_costs_and_ends(task):
    return task._replace(
        reward=lambda before, after, action: task.reward(before, after, action) + 50.0,
        cost=lambda view: task.cost(view) + 1.0,
        terminated=lambda view: view.qpos[..., 0] > 0.005,
    )


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        (lambda task: task._replace(substeps=5), {"first_steps"}),
        (pays_costs_and_ends, {"return", "cost", "length"}),
    ],
    ids=["physics", "task"],
)
def test_a_difference_is_named_and_fails(monkeypatch, capsys, change, broken):
    second_engine(monkeypatch, change)
    with pytest.raises(SystemExit) as caught:
        parity_engines.main([*SMALL])
    assert caught.value.code == 1
    for result in results(capsys):
        assert broken <= {line.split()[0] for line in result["broken"]}, result


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bal_run"], ("bal_run", "nearest: ball_run")),
        (["ball_run", "--engines", "mujoco"], ("--engines is mujoco", "expected two")),
        (["ball_run", "--engines", "mujoco,mjy"], ("mjy", "mjx")),
        (["ball_run", "--envs", "0"], ("--envs is 0", "at least 1")),
    ],
)
def test_a_bad_option_is_one_line(capsys, arguments, words):
    message = refusal(parity_engines.main, capsys, *arguments)
    assert all(word in message for word in words), message
