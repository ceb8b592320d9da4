"""random_policy.py: what it plays, and how it compares."""

import json
import math

import jax
import numpy as np
import pytest
import random_policy

from safejax import envs
from safejax.types import Env, EnvState


def counting_env(length, ends):
    """Pays the step's number, costs 1, and terminates after `ends` steps."""

    def reset(key):
        zero, no = jax.numpy.zeros(()), jax.numpy.zeros((), bool)
        return EnvState((), zero, zero, zero, no, no, zero, jax.numpy.zeros((), jax.numpy.int32))

    def step(state, action, key):
        steps = state.steps + 1
        done = steps == ends
        paid = jax.numpy.asarray(steps, jax.numpy.float32)
        return state._replace(
            reward=paid, cost=jax.numpy.ones(()), terminated=done, steps=jax.numpy.where(done, 0, steps)
        )

    return Env(reset, step, jax.ShapeDtypeStruct((), "float32"), 2, length)


def test_only_the_first_episode_counts():
    returns, costs, lengths = random_policy.play(counting_env(10, 4), jax.random.key(0), 3)
    np.testing.assert_allclose(returns, 1 + 2 + 3 + 4)
    np.testing.assert_allclose(costs, 4)
    np.testing.assert_allclose(lengths, 4)


def test_what_was_recorded_stands_beside_it():
    quantities = {name: {"mean": 3.0, "half_interval": 1.96 * 0.3} for name in random_policy.QUANTITIES}
    recorded = {"episodes": 25, **{name: {"mean": 2.0, "std": 2.0} for name in random_policy.QUANTITIES}}
    found = random_policy.compare({"task": "x", **quantities}, recorded)["recorded"]["cost"]
    np.testing.assert_allclose(found["standard_errors"], 1.0 / math.hypot(0.3, 0.4))
    np.testing.assert_allclose(found["half_interval"], 1.96 * 0.4)
    assert "recorded" not in random_policy.compare(quantities, None)


def test_one_task_end_to_end(tmp_path, capsys):
    statistics = {
        "bullet": {"BallRun": {"episodes": 4, **{q: {"mean": 1.0, "std": 1.0} for q in random_policy.QUANTITIES}}}
    }
    (tmp_path / "statistics.json").write_text(json.dumps(statistics))
    table = tmp_path / "table.md"
    random_policy.main(
        ["ball_run", "--episodes", "4", "--recorded", str(tmp_path / "statistics.json"), "--table", str(table)]
    )
    found = json.loads(capsys.readouterr().out)
    assert found["task"] == "ball_run"
    assert found["observation"] == envs.task("ball_run").observation_size
    assert found["length"] == {"mean": 100.0, "half_interval": 0.0}
    assert found["recorded"]["length"]["standard_errors"] == pytest.approx(99 / 0.5)
    assert table.read_text().count("| ball_run |") == 1


@pytest.mark.parametrize("arguments", [["ball_runn"], ["--episodes", "1"], ["--recorded", "nowhere.json"]])
def test_bad_options_get_one_line(arguments, capsys):
    with pytest.raises(SystemExit):
        random_policy.main(arguments)
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
