"""Data of another task or renderer are refused; data that say nothing pass with a note."""

from __future__ import annotations

import json

import jax
import pytest

from safejax import envs
from safejax.data.checks import DatasetError
from safejax.data.provenance import check_provenance, provenance
from safejax.envs.pixels import RENDERER, pixels, renderer

OURS = provenance(task="ball_circle", engine="mujoco", renderer=None, seed=3, collector={"cost_limit": 5.0})


def test_what_is_noted_can_be_stored():
    assert json.loads(json.dumps(OURS)) == OURS
    assert {"task", "engine", "renderer", "seed", "safejax", "versions", "collector"} == set(OURS)
    assert OURS["versions"]["jax"] == jax.__version__
    assert {"mujoco", "numpy"} <= set(OURS["versions"])


def test_data_of_the_same_task_and_renderer_pass_without_a_note():
    assert check_provenance(OURS, task="ball_circle", renderer=None, source="a.hdf5") == ""
    drawn = OURS | {"renderer": RENDERER}
    assert check_provenance(drawn, task="ball_circle", renderer=RENDERER, source="a.hdf5") == ""
    early = {"safejax": "0.1.0", "task": "ball_circle"}  # before renderers were noted
    assert check_provenance(early, task="ball_circle", renderer=None, source="a.hdf5") == ""


@pytest.mark.parametrize("attributes", [{}, {"task": "BallCircle"}, {"safejax": "0.1.0"}])
def test_data_of_others_pass_with_a_note(attributes):
    note = check_provenance(attributes, task="ball_circle", renderer=None, source="a.hdf5")
    assert note.startswith("note: a.hdf5 says neither task nor renderer")
    assert "\n" not in note


@pytest.mark.parametrize(
    ("changes", "seen", "words"),
    [
        ({"task": "car_circle"}, None, "collected in 'car_circle', expected 'ball_circle'"),
        ({"renderer": "mujoco.Renderer"}, RENDERER, f"'mujoco.Renderer', expected pixels drawn by {RENDERER!r}"),
        ({"renderer": RENDERER}, None, f"pixels drawn by {RENDERER!r}, expected no pixels"),
        ({}, RENDERER, f"no pixels, expected pixels drawn by {RENDERER!r}"),
    ],
)
def test_data_of_another_kind_are_refused_in_one_line(changes, seen, words):
    with pytest.raises(DatasetError) as raised:
        check_provenance(OURS | changes, task="ball_circle", renderer=seen, source="a.hdf5")
    assert words in str(raised.value)
    assert str(raised.value).startswith("a.hdf5: ")
    assert "\n" not in str(raised.value)


def test_an_environment_tells_who_draws_it():
    env = envs.make("ball_circle")
    assert renderer(env) is None
    drawn = pixels(env, height=8, width=8)
    assert renderer(drawn) == RENDERER
    assert renderer(drawn._replace(scene=None)) == "unknown"
