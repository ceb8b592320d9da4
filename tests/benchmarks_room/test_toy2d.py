"""benchmarks/toy2d.py: what it plans, one-line errors, tables by hand, and the script on a run of a few updates."""

from __future__ import annotations

import functools
import json

import bandits2d
import jax
import numpy as np
import pytest
import toy2d
import toy2d_report
from one_line import refusal
from PIL import Image
from toy2d import Job

from safejax import algorithms


@pytest.fixture
def tiny(monkeypatch):
    """Small networks and few actions; nothing compiled before or after is shared."""
    for name, value in (("HIDDEN", (8,)), ("SAMPLES", 40), ("BATCH", 16)):
        monkeypatch.setattr(toy2d, name, value)
    jax.clear_caches()
    yield
    jax.clear_caches()


refused = functools.partial(refusal, toy2d.main)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--problems", "circle_shard"], ("circle_shard", "nearest: circle_shared")),
        (["--methods", "awr,difcps"], ("difcps", "nearest: diffcps")),
        (["--methods", ""], ("--methods", "''", "awr")),
        (["--steps", "5,0"], ("5,0", "integers >= 1")),
        (["--steps", "five"], ("five", "integers >= 1")),
        (["--figure-steps", "0"], ("--figure-steps is 0", "at least 1")),
        (["--updates", "0"], ("--updates is 0", "at least 1")),
        (["--updates", "many"], ("--updates", "many")),
        (["--seed", "-1"], ("--seed is -1", "at least 0")),
        (["--sede", "1"], ("--sede",)),
    ],
)
def test_a_bad_option_is_one_line(capsys, tmp_path, arguments, words):
    output = tmp_path / "run"
    message = refused(capsys, "--output", str(output), *arguments)
    assert all(word in message for word in words), message
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], (10_000, "5,15,25,30,50")),
        (["--quick"], (500, "5")),
        (["--quick", "--updates", "7", "--steps", "2"], (7, "2")),
    ],
)
def test_quick_is_a_default_that_options_override(arguments, expected):
    options = toy2d.parse(arguments)
    assert (options.updates, options.steps) == expected


def test_what_is_not_ours_is_left_alone(capsys, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    assert "thesis.tex" in refused(capsys, "--output", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert "thesis.tex" in refused(capsys, "--output", str(tmp_path / "thesis.tex"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "results.json").write_text('{"benchmark": "alignment"}')
    assert "results.json" in refused(capsys, "--output", str(other))
    (other / "results.json").write_text("{")
    refused(capsys, "--output", str(other))


def test_the_first_circle_is_learned_for_every_t_and_awr_once():
    jobs = toy2d.plan(["two_moons", "circle_gaussian", "circle_shared"], ["awr", "idql"], (15, 50), 5)
    by_problem = {name: [job[1:] for job in jobs if job.problem == name] for name in ("two_moons", "circle_gaussian")}
    once = [("data", None), ("exact", 5), ("awr", None), ("idql", 5)]
    assert by_problem["two_moons"] == once
    many = [("data", None), ("exact", 5), ("exact", 15), ("exact", 50)]
    assert by_problem["circle_gaussian"] == [*many, ("awr", None), ("idql", 5), ("idql", 15), ("idql", 50)]
    assert [job[1:] for job in jobs[-4:]] == once  # the second circle


@pytest.mark.parametrize("name", toy2d.METHODS)
def test_every_method_takes_its_settings(name):
    assert name in algorithms.MODULES
    assert name in toy2d_report.STYLES
    algorithm, config = toy2d.build(name, 7, 0.25)
    assert callable(algorithm.update)
    if toy2d.METHODS[name].diffusion:
        assert config.diffusion.step_count == 7
    if toy2d.METHODS[name].limited:
        assert config.behavior_limit == 0.25


def test_chunks_change_nothing_and_seeds_do(tiny, monkeypatch):
    dataset = bandits2d.make_dataset(bandits2d.PROBLEMS["two_moons"], 0)
    job = Job("two_moons", "diffusion_bc", 2)
    whole = toy2d.fit(job, dataset, 12, 0.0, 0)
    assert whole.shape == (40, 2)
    assert np.abs(whole).max() <= 1.0
    assert not np.array_equal(toy2d.fit(job, dataset, 12, 0.0, 1), whole)
    monkeypatch.setattr(toy2d, "CHUNK", 5)
    np.testing.assert_array_equal(toy2d.fit(job, dataset, 12, 0.0, 0), whole)


def test_problems_and_limits_share_one_program(tiny, monkeypatch):
    traces = []
    learn = toy2d.train_offline
    monkeypatch.setattr(toy2d, "train_offline", lambda *args, **kwargs: traces.append(1) or learn(*args, **kwargs))
    drawn = {}
    for problem, limit in (("circle_shared", 0.2), ("circle_shared", 50.0), ("four_modes", 0.3)):
        dataset = bandits2d.make_dataset(bandits2d.PROBLEMS[problem], 0)
        drawn[problem, limit] = toy2d.fit(Job(problem, "diffcps", 2), dataset, 8, limit, 0)
    assert len(traces) == 1
    assert not np.array_equal(drawn["circle_shared", 0.2], drawn["circle_shared", 50.0])


def test_diffcps_is_given_a_limit_just_above_what_the_data_allow(tiny, monkeypatch):
    monkeypatch.setattr(toy2d, "fit", lambda *arguments: np.zeros((4, 2)))
    problem = bandits2d.PROBLEMS["four_modes"]
    dataset = bandits2d.make_dataset(problem, 0)
    record, _ = toy2d.measure(Job("four_modes", "diffcps", 2), dataset, 1, 0)
    least = float(bandits2d.least_loss(dataset.transitions.action, 2))
    assert record["config"]["behavior_limit"] == pytest.approx(least + toy2d.SLACK, abs=6e-4)
    assert record["outside"] == 1.0


def test_actions_that_are_not_finite_are_one_line(tiny, monkeypatch, capsys):
    monkeypatch.setattr(toy2d, "fit", lambda *arguments: np.array([[0.0, np.nan]]))
    dataset = bandits2d.make_dataset(bandits2d.PROBLEMS["two_moons"], 0)
    with pytest.raises(SystemExit) as caught:
        toy2d.measure(Job("two_moons", "idql", 5), dataset, 1, 0)
    assert caught.value.code == 2
    assert "two_moons idql T=5: 50% of the actions are not finite" in capsys.readouterr().err


def record(problem, method, step_count, hit, modes):
    rates = {f"{threshold:g}": hit for threshold in bandits2d.THRESHOLDS}
    scores = {"hit_rate": rates, "reward": 0.5, "modes": modes, "outside": 1.0 - sum(modes)}
    return {"problem": problem, "method": method, "step_count": step_count, **scores}


RECORDS = [
    record("two_moons", "awr", None, 0.25, [0.5, 0.125]),
    record("circle_shared", "data", None, 1.0, [0.25] * 4),
    record("circle_shared", "awr", None, 0.5, [0.1] * 4),
    record("circle_shared", "diffcps", 50, 0.875, [0.2] * 4),
    record("circle_shared", "diffcps", 5, 0.625, [0.2] * 4),
    record("circle_gaussian", "diffcps", 5, 0.0, [0.2] * 4),
]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_tables_by_hand():
    blocks = [block.splitlines() for block in toy2d_report.tables(RECORDS).split("### ")[1:]]
    assert [block[0] for block in blocks][:3] == ["two moons", "circle, shared noise", "circle, Gaussian noise"]
    assert blocks[0][2].endswith("rewards of the modes: 1, 0.")
    assert cells(blocks[0][4])[:3] == ["method", "T", "< 0.001"]
    assert cells(blocks[0][6]) == ["AWR", "-", *["0.250"] * 7, "0.50", "50 12", "38"]
    last = [cells(line) for line in blocks[3][4:] if line.startswith("|")]
    assert last[0] == ["method", "T = 5", "T = 50"]
    assert last[2] == ["fresh data", *["1.00 / 1.00 / -"] * 2]
    assert last[3] == ["AWR", *["0.50 / 0.50 / 0.43"] * 2]  # once for all T
    assert last[4] == ["DiffCPS", "0.62 / 0.62 / 0.59", "0.88 / 0.88 / 0.74"]
    for block in blocks:
        assert all(set(cell) <= set("-:") and len(cell) >= 3 for cell in cells(block[5]))  # Markdown's ruler
        assert len({len(line) for line in block if line.startswith("|")}) == 1


def test_only_the_first_circle_is_compared_with_the_paper():
    hits = toy2d_report.sweep(RECORDS)
    assert list(hits) == ["data", "awr", "diffcps"]
    assert {count: hit["0.02"] for count, hit in hits["diffcps"].items()} == {5: 0.625, 50: 0.875}
    assert toy2d_report.sweep(RECORDS[:1]) == {}
    assert "Hit rate against T" not in toy2d_report.tables(RECORDS[:1])


def test_a_tiny_run(tiny, tmp_path, capsys):
    output = tmp_path / "run"
    arguments = ["--methods", "awr,diffusion_bc", "--steps", "2", "--figure-steps", "2", "--updates", "20"]
    arguments += ["--output", str(output)]
    toy2d.main(["--problems", "four_modes,circle_shared", "--seed", "4", *arguments])
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 8
    assert "[8/8, " in printed.err
    results = json.loads((output / "results.json").read_text())
    assert results["command"].endswith("--updates 20 --output " + str(output))
    assert results["complete"]
    assert set(toy2d.PACKAGES) < set(results["versions"])
    assert (results["seed"], results["updates"], results["batch_size"]) == (4, 20, 16)
    found = [(each["problem"], each["method"], each["step_count"]) for each in results["records"]]
    assert found == [tuple(job) for job in toy2d.plan(["four_modes", "circle_shared"], ["awr", "diffusion_bc"], [2], 2)]
    for each in results["records"]:
        assert len(each["modes"]) == 4
        assert sum(each["modes"]) + each["outside"] == pytest.approx(1.0)
        rates = list(each["hit_rate"].values())
        assert rates == sorted(rates)
        assert ("config" in each) == (each["method"] in toy2d.METHODS)
    assert (output / "tables.md").read_text().strip() in printed.out
    for name in ("toy2d.png", "hit_rate.png"):
        with Image.open(output / name) as picture:
            assert picture.width > 400
        assert (output / name).stat().st_size < 300_000

    toy2d.main(["--problems", "two_moons", *arguments])
    assert len(json.loads((output / "results.json").read_text())["records"]) == 4  # its own results may be replaced


def test_an_interrupted_run_keeps_what_was_finished(tiny, tmp_path, monkeypatch, capsys):
    measure = toy2d.measure

    def interrupted(job, *arguments):
        if job.method == "exact":
            raise KeyboardInterrupt
        return measure(job, *arguments)

    monkeypatch.setattr(toy2d, "measure", interrupted)
    with pytest.raises(SystemExit):
        toy2d.main(["--output", str(tmp_path), "--methods", "awr"])
    assert "interrupted" in capsys.readouterr().err
    results = json.loads((tmp_path / "results.json").read_text())
    assert [each["method"] for each in results["records"]] == ["data"]
    assert not results["complete"]
