"""benchmarks/vision_costs.py: what it counts without running anything."""

import json

import vision_costs


def test_sensors_alone_cost_in_proportion_to_the_windows(capsys):
    def counted(batch):
        vision_costs.main(["--preset", "sensors", "--counts-only", "--batch", str(batch)])
        return json.loads(capsys.readouterr().out)

    one, three = counted(1), counted(3)
    assert "frames" not in one
    assert one["state_bytes"] == three["state_bytes"]
    for part in ("model", "imagination"):
        assert abs(three["gflop"][part] / one["gflop"][part] - 3) < 1e-3, part
    assert one["gflop"]["update"] > one["gflop"]["model"] + one["gflop"]["imagination"]
