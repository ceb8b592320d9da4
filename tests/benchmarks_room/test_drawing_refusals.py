"""Scripts that draw say in one line, before any work, what they cannot do."""

import importlib

import pytest
from one_line import refusal

from safejax.envs.engines.mjx import mjx


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("gallery", ["nope/x.png"], "output is 'nope/x.png', but there is no directory 'nope'"),
        ("gallery", ["x.xyz"], "output is 'x.xyz', expected a name that ends in .png or "),
        ("gallery", ["x.png", "--size", "0"], "--size is 0, expected at least 1"),
        ("frames", ["--figure", "nope/x.png"], "--figure is 'nope/x.png', but there is no directory 'nope'"),
        ("frames", ["--figure", "x"], "--figure is 'x', expected a name that ends in .png or "),
        ("frames", ["--batches", "4", "0"], "--batches is 0, expected at least 1"),
        ("frames", ["--devices", "3"], "--batches are [1, 256], expected 1 or multiples of the 3 devices"),
        ("ant_walker", ["--steps", "9"], "--steps is 9, expected at least 204800"),
        ("frames", ["--seconds", "nan"], "--seconds is nan, expected a positive number"),
        ("frames", ["--rounds", "many"], "--rounds: invalid int value: 'many'"),
        ("pixels", ["--frames", "0"], "--frames is 0, expected at least 1"),
        ("pixels", ["--seeds", "0"], "--seeds is 0, expected at least 1"),
        ("random_policy", ["--engine", "wrap"], "--engine is 'wrap', expected one of mujoco, mjx, warp; nearest: warp"),
        ("parity_engines", ["ball_run", "--engines", "mujoco,"], "--engines is '', expected one of mujoco, mjx, warp"),
        ("random_policy", ["--table", "nope/x.md"], "--table is 'nope/x.md', but there is no directory 'nope'"),
    ],
)
def test_one_line_before_any_work(script, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUJOCO_GL", "")  # frames.py sets it where nobody did
    assert message in refusal(importlib.import_module(script).main, capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_is_not_installed(monkeypatch, capsys):
    monkeypatch.setattr(mjx.warp, "WARP_INSTALLED", False)
    found = refusal(importlib.import_module("random_policy").main, capsys, "ball_run", "--engine", "warp")
    assert "--engine: warp is not installed: pip install 'safejax[warp]'" in found
