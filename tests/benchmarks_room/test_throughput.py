"""benchmarks/throughput.py: FLOPs against hand arithmetic and XLA, pairing over rounds, and the script itself."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from own_process import environment

throughput = importlib.import_module("throughput")

SCRIPT = Path(throughput.__file__)
KEYS = (
    "what name label unit median min max windows interval_95 per_cpu_second first_call_s peak_rss_mb "
    "peak_device_mb versions platform device_kind cores load command round"
)
UPDATE_KEYS = (
    "seeds batch hidden observation action lower_s compile_s flops_per_update gflops gemm_gflops bound "
    "share_of_peak share_of_layer_gemm one_update_flops one_update_flops_xla finite"
)


def run(*arguments):
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)


def test_rounds_are_paired_with_the_first_row_of_the_same_round():
    def record(number, rate):
        return {
            "round": number,
            "median": rate,
            "min": rate,
            "max": rate,
            "interval_95": None,
            "per_cpu_second": rate,
            "first_call_s": 1.0,
            "peak_rss_mb": 1.0,
            "load": 1.0,
        }

    specs = [{"name": "bc", "unit": "updates/s", "label": f"bc seeds {seeds}"} for seeds in (1, 8)]
    # the machine slows down threefold; the ratio does not
    first = [record(0, 300.0), record(1, 100.0), record(2, 200.0)]
    second = [record(0, 600.0), record(1, 200.0), record(2, 500.0)]
    lines = throughput.table(specs, [first, second]).splitlines()
    assert lines[1].endswith("1.00 (1.00-1.00)")
    assert lines[2].endswith("2.00 (2.00-2.50)")
    assert " 500 " in lines[2]  # median over rounds


def test_script_writes_complete_records(tmp_path):
    output = tmp_path / "new" / "records.jsonl"
    sizes = ["--hidden", "8,8", "--batch", "16", "--seeds", "2"]
    worlds = ["--environments", "4", "--pictures", "8", "--devices", "2"]
    choice = ["--what", "updates,environments", "--methods", "bc", "--tasks", "ball_circle", "--engines", "mujoco"]
    pace = ["--windows", "1", "--seconds", "0.05", "--output", str(output)]
    result = run(*sizes, *worlds, *choice, *pace)
    assert result.returncode == 0, result.stderr
    assert result.stdout == output.read_text()
    update, environment = map(json.loads, result.stdout.splitlines())
    assert update.keys() >= {*KEYS.split(), *UPDATE_KEYS.split()}
    assert environment.keys() >= {*KEYS.split(), "engine", "environments", "lower_s", "compile_s"}
    assert (update["name"], update["seeds"], update["hidden"]) == ("bc", 2, [8, 8])
    assert (environment["name"], environment["environments"], environment["pictures"]) == ("ball_circle", 4, 8)
    assert environment["devices"] == 2
    for record in (update, environment):
        assert 0 < record["min"] <= record["median"] <= record["max"]
        assert record["first_call_s"] > record["lower_s"] + record["compile_s"] > 0
        assert record["interval_95"] is None  # of one window
    assert update["finite"]
    assert 0 < update["share_of_peak"] == pytest.approx(update["median"] / update["bound"])
    assert "[2/2" in result.stderr
    assert "bc 8x8 batch 16 seeds 2 [updates/s]" in result.stderr


def test_a_method_has_sizes_of_its_own_unless_they_are_given():
    def hidden(*arguments):
        specs = throughput.plan(throughput.parse(["--what", "updates", "--seeds", "1", *arguments]))
        return [(spec["name"], tuple(spec["hidden"]), spec["batch"]) for spec in specs]

    own = [("diffcps", (256, 256, 256), 256), ("awr", (128, 64), 256), ("idql", (256, 256), 256)]
    assert hidden("--methods", "diffcps,awr,idql") == own
    assert hidden("--methods", "diffcps,awr", "--hidden", "8") == [("diffcps", (8,), 256), ("awr", (8,), 256)]


def test_learners_from_windows_get_a_batch_of_transitions():
    spec = {"name": "awr", "hidden": [8], "batch": 64, "observation": 3, "action": 2, "seeds": 2}
    run, state, data, keys, updates = throughput.workload(spec, affordable=4.0)
    assert updates == 4  # two of each seed
    program = str(jax.make_jaxpr(run)(state, data, keys))
    assert "f32[2,2,32,3]" in program  # seeds, windows, their rows, observation: 64 transitions a seed
    state, metrics = jax.jit(run)(state, data, keys)
    assert state.step.tolist() == [2, 2]
    assert all(jax.numpy.isfinite(each).all() for each in metrics.values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "bc,iqll"], ["--methods is 'iqll'", "nearest: iql"]),
        (["--tasks", "ball_cirle"], ["--tasks", "nearest: ball_circle"]),
        (["--hidden", "64,0"], ["--hidden", "'64,0'"]),
        (["--windows", "x"], ["--windows", "positive int", "'x'"]),
        (["--output", "/dev/null/x"], ["--output", "/dev/null"]),
        (["--seconds", "nan"], ["--seconds", "positive float", "'nan'"]),
        (["--methods", "bc,awr", "--batch", "100"], ["--batch is 100", "multiple of 32", "awr"]),
    ],
)
def test_a_wrong_option_is_one_line_and_code_2(arguments, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        throughput.main(arguments)
    assert stopped.value.code == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert len(error.splitlines()) == 1
    for word in words:
        assert word in error
