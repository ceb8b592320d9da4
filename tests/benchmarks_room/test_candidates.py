"""The sweep over candidates: bad options in one line, and what it records of a stored policy."""

from __future__ import annotations

import functools
import json

import candidates
import jax
import numpy as np
from one_line import refusal

from safejax import envs
from safejax.algorithms import idql, iql
from safejax.diffusion import DiffusionConfig
from safejax.runs import save_policy
from safejax.types import example_transition


def store(folder, name, module, config):
    """An untrained policy of two seeds for the small maze."""
    env = envs.make("point_maze_umaze")
    algorithm = module.make(config, module.default_networks(env.action_size, (8,)))
    state = jax.jit(jax.vmap(algorithm.init, in_axes=(0, None)))(
        jax.random.split(jax.random.key(0), 2), example_transition(env)
    )
    (folder / "policies").mkdir(parents=True, exist_ok=True)
    sizes = {"action_size": env.action_size, "observation_size": 4, "hidden_sizes": (8,)}
    save_policy(folder / "policies" / name, state, config, method=name, seeds=(0, 1), task=env.name, **sizes)


refused = functools.partial(refusal, candidates.main)


def test_bad_options_are_one_line(capsys, tmp_path):
    assert "has no policies" in refused(capsys, str(tmp_path))
    assert "at least 1" in refused(capsys, str(tmp_path), "--counts", "1,0")
    assert "at least 1" in refused(capsys, str(tmp_path), "--counts", "4,many")
    store(tmp_path, "iql", iql, iql.Config())
    assert "iql, expected a method that has candidates" in refused(capsys, str(tmp_path))


def test_every_count_and_noise_is_played(capsys, tmp_path):
    store(tmp_path, "idql", idql, idql.Config(candidate_count=2, diffusion=DiffusionConfig(step_count=1)))
    candidates.main([str(tmp_path), "--counts", "3", "--episodes", "1"])
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    rows = json.loads((tmp_path / "candidates.json").read_text())
    assert [(row["noise"], row["candidates"]) for row in rows] == [("fixed", 3), ("fresh", 3)]
    for row in rows:
        assert row["method"] == "idql"
        assert np.shape(row["return"]) == np.shape(row["cost"]) == (2,)
        assert max(row["length"]) <= 300
