"""benchmarks/offline_presets.py: every setting builds, its numbers are the papers', and so are the published scores."""

from __future__ import annotations

import importlib
from dataclasses import asdict

import behavior
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safejax import algorithms, envs
from safejax.types import Transition

presets = importlib.import_module("offline_presets")
published = importlib.import_module("published")
setting = presets.setting

MADE = tuple(presets.RELATIVES)
NAMED = (*published.PUBLISHED, *MADE, *presets.TASKS, "ball_circle-medium", "kitchen-mixed-v0", "my_data")
PAPER_BATCH = {"diffusion_bc": 512, "idql": 512, "align_iql": 512, "align_iql_hard": 512, "sfbc": 4096, "cpq": 512}
ZERO = jnp.zeros(())
EXAMPLE = Transition(jnp.zeros(11), jnp.zeros(3), ZERO, ZERO, ZERO, ZERO, jnp.zeros(11))


@pytest.mark.parametrize("preset", ["default", "paper"])
@pytest.mark.parametrize("method", presets.METHODS)
def test_every_setting_builds(method, preset):
    module = algorithms.module(presets.METHODS[method])
    seen = set()
    for data in NAMED:
        found = setting(method, data, preset)
        assert isinstance(found.config, module.Config)
        assert found.reward in presets.REWARDS
        networks = module.default_networks(3, found.hidden_sizes, **found.network_options)
        algorithm = module.make(found.config, networks)
        length = algorithm.batch.length if algorithm.batch.kind == "sequence" else 1
        assert found.batch_size * length == (256 if preset == "default" else PAPER_BATCH.get(method, 256))
        if found.config in seen:  # networks and sizes are the method's and the preset's
            continue
        seen.add(found.config)
        state = jax.eval_shape(algorithm.init, jax.random.key(0), EXAMPLE)
        assert state.step.shape == ()


def number(method: str, data: str, name: str):
    found = setting(method, data, "paper")
    return getattr(found, name) if hasattr(found, name) else getattr(found.config, name)


@pytest.mark.parametrize(
    ("method", "data", "numbers"),
    [
        ("diffcps", "hopper-medium-v2", dict(behavior_limit=0.05, clip_norm=9.0, updates=2_000_000, backup_count=1)),
        ("diffcps", "walker2d-medium-v2", dict(behavior_limit=0.03, clip_norm=1.0, policy_frequency=2, reward="raw")),
        ("diffcps", "antmaze-umaze-v0", dict(behavior_limit=0.2, initial_multiplier=3.0, backup_count=1)),
        ("diffcps", "antmaze-umaze-diverse-v0", dict(behavior_limit=0.09, initial_multiplier=3.0, backup_count=10)),
        ("diffcps", "antmaze-medium-play-v0", dict(actor_learning_rate=1e-3, learning_rate=3e-4, behavior_limit=0.3)),
        (
            "diffcps",
            "antmaze-large-play-v0",
            dict(
                policy_frequency=4,
                backup_count=10,
                minimum_multiplier=0.3,
                initial_multiplier=0.5,
                clip_norm=10.0,
                reward="centered",
                updates=1_000_000,
                hidden_sizes=(256, 256, 256),
            ),
        ),
        ("diffusion_ql", "walker2d-medium-expert-v2", dict(clip_norm=5.0, value_weight=1.0, updates=2_000_000)),
        ("diffusion_ql", "antmaze-large-play-v0", dict(value_weight=4.5, backup_count=10, reward="centered")),
        ("diffusion_ql", "pen-human-v1", dict(actor_learning_rate=3e-5, value_weight=0.15, reward="standardized")),
        ("diffusion_ql", "kitchen-complete-v0", dict(value_weight=0.005, updates=250_000, reward="raw")),
        ("iql", "hopper-medium-v2", dict(expectile=0.7, inverse_temperature=3.0, reward="range", updates=1_000_000)),
        ("iql", "antmaze-large-diverse-v0", dict(expectile=0.9, inverse_temperature=10.0, reward="minus_one")),
        ("iql", "pen-cloned-v1", dict(expectile=0.7, inverse_temperature=0.5, reward="raw")),
        ("idql", "halfcheetah-medium-v2", dict(candidate_count=128, expectile=0.7, actor_decay_steps=3_000_000)),
        ("idql", "antmaze-umaze-v2", dict(candidate_count=32, expectile=0.9, reward="minus_one")),
        ("align_iql", "hopper-medium-v2", dict(alignment="soft", candidate_count=64, batch_size=512)),
        ("align_iql_hard", "antmaze-medium-play-v2", dict(alignment="hard", expectile=0.9, updates=3_000_000)),
        ("align_iql_gaussian", "hopper-medium-v2", dict(policy="gaussian", penalty=3.0, batch_size=256)),
        ("sfbc", "hopper-medium-v2", dict(mean_of_best=4, candidate_count=16, act_candidate_count=32)),
        ("sfbc", "antmaze-umaze-v2", dict(mean_of_best=1, inverse_temperature=20.0, learning_rate=1e-3, reward="raw")),
        ("awr", "hopper-medium-v2", dict(temperature=1.0, maximum_weight=20.0, trace_decay=0.95, reward_scale=0.01)),
        ("td3_bc", "hopper-medium-v2", dict(value_weight=2.5, batch_size=256, updates=1_000_000, reward="raw")),
        ("cpq", "ball_circle-medium", dict(batch_size=512, updates=100_000)),
    ],
)
def test_paper_numbers(method, data, numbers):
    assert {name: number(method, data, name) for name in numbers} == numbers


def test_discount_and_chain_are_the_papers_everywhere():
    for method in presets.METHODS:
        for preset in ("default", "paper"):
            config = setting(method, "hopper-medium-v2", preset).config
            assert getattr(config, "discount_factor", 0.99) == 0.99
            chain = getattr(config, "diffusion", None)
            steps = 15 if (method, preset) == ("sfbc", "paper") else 5
            assert chain is None or (chain.schedule, chain.step_count) == ("vp", steps)


def test_default_changes_sizes_alone():
    for method in presets.METHODS:
        for data in ("hopper-medium-replay-v2", "antmaze-large-play-v0"):
            paper, small = setting(method, data, "paper"), setting(method, data, "default")
            is_ant = data.startswith("antmaze")  # smaller ones seldom arrive
            assert small.updates == (100_000 if is_ant else 50_000)
            assert small.hidden_sizes == (paper.hidden_sizes if is_ant else (128,) * len(paper.hidden_sizes))
            assert (small.reward, small.network_options) == (paper.reward, paper.network_options)
            before, after = asdict(paper.config), asdict(small.config)
            changed = {name: after[name] for name in before if before[name] != after[name]}
            if "actor_decay_steps" in changed:  # the decay ends with the learning
                assert before["actor_decay_steps"] == paper.updates
                assert changed.pop("actor_decay_steps") == small.updates
            assert set(changed) <= set(presets.SMALL.get(method, ())), (method, changed)
    for method in ("idql", "align_iql", "align_iql_hard"):
        assert setting(method, "antmaze-umaze-v2", "default").config.candidate_count == 16
    assert setting("diffcps", "hopper-medium-v2", "default").hidden_sizes == (128, 128, 128)
    assert setting("iql", "point_maze_umaze-play", "default").hidden_sizes == (128, 128)
    assert setting("iql", "ant_maze_medium-diverse", "default").hidden_sizes == (256, 256)


def test_data_made_here_have_relatives():
    for task in envs.names():
        for kind in behavior.KINDS:
            data = f"{task}-{kind}"
            try:
                behavior.split(data)
            except ValueError:
                continue
            assert presets.relative(data) in presets.TASKS
            assert data in presets.RELATIVES or presets.family(data) == "other", data
    assert set(presets.RELATIVES.values()) <= set(presets.TASKS)
    for data, relative in presets.RELATIVES.items():
        assert setting("diffcps", data, "paper") == setting("diffcps", relative, "paper")


@pytest.mark.parametrize(
    ("data", "relative", "family"),
    [
        ("hopper-medium-v0", "hopper-medium", "locomotion"),
        ("walker2d-expert-v2", "hopper-medium", "locomotion"),
        ("ant-medium-v2", "hopper-medium", "locomotion"),
        ("antmaze-umaze-diverse-v2", "antmaze-umaze-diverse", "maze"),
        ("antmaze-giant-navigate-v0", "antmaze-umaze", "maze"),
        ("antmaze-large-explore-v0", "antmaze-large-play", "maze"),
        ("point_maze_umaze-play", "antmaze-umaze", "maze"),
        ("point_maze_medium-diverse", "antmaze-medium-diverse", "maze"),
        ("point_maze_medium", "antmaze-medium-play", "maze"),
        ("ant_maze_large", "antmaze-large-play", "maze"),
        ("hopper_velocity-medium-replay", "hopper-medium-replay", "locomotion"),
        ("humanoid_velocity-medium", "walker2d-medium", "locomotion"),
        ("half_cheetah_velocity-medium", "halfcheetah-medium", "locomotion"),
        ("walker2d_velocity-expert", "walker2d-medium-expert", "locomotion"),
        ("ball_circle-medium", "hopper-medium", "other"),
        ("door-human-v1", "pen-human", "other"),
        ("hammer-expert-v1", "pen-cloned", "other"),
        ("kitchen-partial-v0", "kitchen-partial", "other"),
        ("/data/antmaze/hopper-medium-expert-v2.hdf5", "hopper-medium-expert", "locomotion"),
        ("anything", "hopper-medium", "other"),
    ],
)
def test_relative_and_family(data, relative, family):
    assert (presets.relative(data), presets.family(data)) == (relative, family)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("raw", [0.0, 1.0, 0.0, 3.0]),
        ("minus_one", [-1.0, 0.0, -1.0, 2.0]),
        ("centered", [-2.0, 2.0, -2.0, 10.0]),
        ("range", [0.0, 250.0, 0.0, 750.0]),  # returns 1 and 5
        ("standardized", [-1 / 1.5**0.5, 0.0, -1 / 1.5**0.5, 2 / 1.5**0.5]),  # mean 1, variance 6 / 4
    ],
)
def test_rewards(kind, expected):
    reward = np.array([0.0, 1.0, 0.0, 3.0], np.float32)
    scaled = presets.REWARDS[kind](reward, np.array([1.0, 5.0], np.float32))
    np.testing.assert_allclose(scaled, expected, rtol=1e-6, atol=1e-7)
    assert scaled.dtype == np.float32
    assert reward.tolist() == [0.0, 1.0, 0.0, 3.0]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: setting("iqql", "hopper-medium-v2", "paper"), ("iqql", "diffusion_ql")),
        (lambda: setting("iql", "hopper-medium-v2", "papre"), ("papre", "default, paper")),
        (lambda: presets.REWARDS["range"](np.zeros(2), np.ones(3)), ("range", "raw")),
        (lambda: presets.REWARDS["standardized"](np.ones(2), np.ones(1)), ("standardized", "raw")),
    ],
)
def test_errors_are_one_line(call, words):
    with pytest.raises(ValueError, match=words[0]) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def score(data: str, method: str) -> float:
    return float(published.PUBLISHED[data][method].split()[0])


@pytest.mark.parametrize(
    ("data", "method", "text", "selection"),
    [
        ("hopper-medium-replay-v2", "diffcps", "101.1 +- 0.2", "best"),
        ("antmaze-large-play-v0", "diffcps", "65.6 +- 3.6", "best"),
        ("hopper-medium-v2", "iql", "66.3 (5.7)", "not stated"),
        ("hopper-medium-v2", "diffusion_ql", "90.5 +- 4.6", "offline"),
        ("walker2d-medium-expert-v2", "idql", "112.7", "not stated"),
        ("walker2d-medium-replay-v2", "td3_bc", "81.8 +- 5.5", "last"),
        ("antmaze-umaze-v2", "iql", "77.00 +- 5.52", "last"),
        ("antmaze-umaze-v0", "iql", "87.5", "not stated"),
        ("pen-human-v1", "bc", "71.03 +- 6.26", "last"),
        ("hopper-medium-v0", "awr", "35.9", "not stated"),
    ],
)
def test_published(data, method, text, selection):
    assert published.PUBLISHED[data][method] == text
    assert published.SOURCES[data][method].selection == selection


@pytest.mark.parametrize(
    ("method", "prefixes", "version", "count", "mean"),
    [  # averages or totals that the papers print, or that follow from them
        ("iql", ("half", "hopper", "walker"), "v2", 9, 692.6 / 9),  # the rows' own; the paper prints a total of 692.4
        ("diffusion_ql", ("half", "hopper", "walker"), "v2", 9, 791.2 / 9),
        ("idql", ("half", "hopper", "walker"), "v2", 9, 739.2 / 9),
        ("diffcps", ("half", "hopper", "walker"), "v2", 9, 92.26),
        ("diffcps", ("antmaze",), "v0", 6, 81.67),
        ("iql", ("antmaze",), "v0", 6, 378.0 / 6),
        ("iql", ("antmaze",), "v2", 6, 57.17),
        ("bc", ("half", "hopper", "walker"), "v2", 9, 50.40),
        ("bc", ("antmaze",), "v2", 6, 17.21),
        ("td3_bc", ("antmaze",), "v2", 6, 19.33),
        ("bc", ("pen", "door", "hammer", "relocate"), "v1", 12, 48.18),
        ("iql", ("pen", "door", "hammer", "relocate"), "v1", 12, 53.43),
        ("sfbc", ("half", "hopper", "walker"), "v2", 9, 75.6),
        ("sfbc", ("antmaze",), "v2", 6, 74.2),
        ("idql", ("antmaze",), "v2", 6, 79.1),
        ("diffusion_ql", ("antmaze",), "v0", 6, 69.8),
    ],
)
def test_columns_have_the_printed_averages(method, prefixes, version, count, mean):
    names = [data for data in published.PUBLISHED if data.startswith(prefixes) and data.endswith(version)]
    scores = [score(data, method) for data in names]
    assert len(scores) == count
    assert np.mean(scores) == pytest.approx(mean, abs=0.051)


def test_every_score_has_its_source():
    assert published.PUBLISHED.keys() == published.SOURCES.keys()
    for data, rows in published.PUBLISHED.items():
        assert rows.keys() == published.SOURCES[data].keys()
        assert rows.keys() <= presets.METHODS.keys()
        for method, source in published.SOURCES[data].items():
            assert source.table
            assert source.selection in ("last", "best", "offline", "not stated")
            assert -5.0 < score(data, method) < 170.0
