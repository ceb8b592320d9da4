"""Checkpoints: exact round trips, the words for every mismatch, damage found, processes killed in saves."""

import asyncio
import dataclasses
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import safejax.checkpoint
from safejax.checkpoint import (
    CheckpointError,
    Checkpoints,
    DamagedCheckpointError,
    metadata,
    restore,
    save,
    warm_start,
)
from safejax.types import TrainState


class State(NamedTuple):
    step: jax.Array
    actor: TrainState
    critic: TrainState
    target_critic: dict
    multiplier: tuple = ()
    carry: dict = {}


@dataclasses.dataclass(frozen=True)
class Config:
    learning_rate: float = 3e-4
    hidden: tuple = (64, 64)
    limit: float = float("nan")


def make_state(seed=0, width=5):
    keys = jax.random.split(jax.random.key(seed), 2)

    def train_state(key):
        params = {"params": {"layer_0": {"kernel": jax.random.normal(key, (3, width)), "bias": jnp.ones(width)}}}
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
        _, opt_state = optimizer.update(params, optimizer.init(params), params)
        return TrainState(params, opt_state)

    actor, critic = train_state(keys[0]), train_state(keys[1])
    return State(jnp.int32(seed), actor, critic, jax.tree.map(jnp.copy, critic.params))


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def largest_file(directory):
    return max((path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_round_trip(tmp_path):
    state = make_state()
    save(tmp_path / "run", state, Config(), extra={"environment": "point"})
    again = restore(tmp_path / "run", jax.eval_shape(lambda: state), config=Config())
    assert_same(again, state)
    assert isinstance(again.actor, TrainState)
    assert all(isinstance(leaf, jax.Array) and not leaf.weak_type for leaf in jax.tree.leaves(again))
    about = metadata(tmp_path / "run")
    assert about["config"]["learning_rate"] == 3e-4
    assert about["config_class"].endswith("test_save_restore.Config")
    assert about["extra"] == {"environment": "point"}
    assert {"jax", "orbax-checkpoint", "numpy"} <= about["versions"].keys()
    assert about["leaves"]["actor.params.params.layer_0.kernel"]["shape"] == [3, 5]


def test_a_relative_path_and_a_second_save(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("run", make_state(1))
    save("run", make_state(2, width=7))
    assert_same(restore("run", make_state(0, width=7)), make_state(2, width=7))
    assert sorted(path.name.split("-")[0] for path in (tmp_path / "run").iterdir()) == [
        "arrays",
        "metadata.json",
    ]


def test_keys_odd_types_and_no_elements(tmp_path):
    state = {
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(4, impl="rbg"), 2),
        "raw": jax.random.PRNGKey(5),
        "half": jnp.ones((2, 2), jnp.bfloat16),
        "flag": jnp.array([True, False]),
        "nothing": jnp.zeros((0, 3)),
        "double": np.linspace(0, 1, 3),
        "odd name / %": np.arange(3),
        "": np.float32(1.5),
    }
    save(tmp_path / "run", state)
    again = restore(tmp_path / "run", state)
    assert isinstance(again["double"], np.ndarray)
    for name in ("key", "keys"):
        assert again[name].dtype == state[name].dtype
        assert_same(jax.random.key_data(again.pop(name)), jax.random.key_data(state.pop(name)))
    assert_same(again, state)


@pytest.mark.parametrize("state", [(), {}, jnp.arange(3.0), {"empty": jnp.zeros((2, 0))}])
def test_trees_without_names_or_arrays(tmp_path, state):
    save(tmp_path / "run", state)
    assert_same(restore(tmp_path / "run", state), state)


def test_a_sharding_in_like_is_honored(tmp_path):
    sharding = jax.sharding.NamedSharding(jax.make_mesh((1,), ("seed",)), jax.sharding.PartitionSpec("seed"))
    save(tmp_path / "run", jnp.arange(4.0))
    assert restore(tmp_path / "run", jax.ShapeDtypeStruct((4,), "float32", sharding=sharding)).sharding == sharding


arrays = st.builds(
    lambda dtype, shape, seed: np.random.default_rng(seed).integers(0, 256, (*shape, 8), np.uint8).view(dtype),
    st.sampled_from(["float32", "int32", "uint32", "uint8", "float16", "int64"]),
    st.lists(st.integers(0, 3), max_size=2),
    st.integers(0, 9),
)
names = st.text(st.characters(codec="utf-8", exclude_characters="."), max_size=4)
trees = st.recursive(
    arrays,
    lambda parts: st.dictionaries(names, parts, max_size=3) | st.lists(parts, max_size=2).map(tuple),
    max_leaves=4,
)


@settings(max_examples=20, deadline=None)
@given(tree=trees)
def test_any_tree_comes_back(tmp_path_factory, tree):
    directory = tmp_path_factory.mktemp("any") / "run"
    save(directory, tree)
    assert_same(restore(directory, tree), tree)


def test_inside_a_running_event_loop(tmp_path):
    async def notebook():
        save(tmp_path / "run", make_state())
        return restore(tmp_path / "run", make_state(1))

    assert_same(asyncio.run(notebook()), make_state())


def test_every_difference_is_named_at_once(tmp_path):
    state = make_state()
    save(tmp_path / "run", state)
    like = jax.eval_shape(lambda: make_state(width=6))._replace(
        step=jax.ShapeDtypeStruct((), "float32"), carry={"extra": jax.ShapeDtypeStruct((2,), "bool")}
    )
    with pytest.raises(CheckpointError) as caught:
        restore(tmp_path / "run", like)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'run'}: step is int32[], expected float32[]; ")
    assert "actor.params.params.layer_0.kernel is float32[3, 5], expected float32[3, 6]" in message
    assert "and 10 more; restore with the networks and optimizers it had" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"carry": {"extra": np.zeros(2, bool)}}, "carry.extra is absent, expected bool[2]"),
        ({"step": np.zeros((), np.float32)}, "step is int32[], expected float32[]"),
        ({"step": jax.ShapeDtypeStruct((), "bfloat16")}, "step is int32[], expected bfloat16[]"),
        ({"step": np.zeros(1, np.int32)}, "step is int32[], expected int32[1]"),
        ({"step": ()}, "step is int32[], expected absent"),
        ({"step": 3}, "step is int32[], expected int[]"),
        ({"step": jax.random.key(0)}, "step is int32[], expected key<fry>[]"),
    ],
)
def test_each_difference(tmp_path, change, words):
    state = make_state()
    save(tmp_path / "run", state)
    with pytest.raises(CheckpointError) as caught:
        restore(tmp_path / "run", state._replace(**change))
    assert f"{tmp_path / 'run'}: {words}; restore with" in str(caught.value)


def test_another_optimizer_is_named(tmp_path):
    params = {"w": jnp.ones(2)}
    save(tmp_path / "run", TrainState(params, optax.adam(1e-3).init(params)))
    with pytest.raises(CheckpointError, match=r"opt_state\.0\.trace\.w is absent, expected float32\[2\]"):
        restore(tmp_path / "run", TrainState(params, optax.sgd(1e-3, momentum=0.9).init(params)))


def test_another_config_is_named(tmp_path):
    save(tmp_path / "run", make_state(), {"algorithm": Config(learning_rate=0.001), "seed": np.int64(3)})
    like = make_state()
    restore(tmp_path / "run", like, config={"algorithm": Config(learning_rate=0.001), "seed": 3})
    with pytest.raises(CheckpointError) as caught:
        restore(tmp_path / "run", like, config={"algorithm": Config(hidden=(8,)), "name": "x"})
    assert "checkpoint has algorithm.learning_rate=0.001, expected 0.0003; " in str(caught.value)
    assert "algorithm.hidden=[64, 64], expected [8]; " in str(caught.value)
    assert 'name=absent, expected "x"; seed=3, expected absent; use the config' in str(caught.value)


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(CheckpointError, match=r"run: actor is 'words', expected an array; put settings into config"):
        save(tmp_path / "run", {"actor": "words"})
    with pytest.raises(CheckpointError, match=r"run: config cannot be stored: a type is no JSON value"):
        save(tmp_path / "run", {}, {"activation": int})
    with pytest.raises(CheckpointError, match=r"two leaves are called 'a\.b'; rename"):
        save(tmp_path / "run", {"a": {"b": jnp.ones(1)}, "a.b": jnp.ones(1)})
    assert not (tmp_path / "run").exists()


def test_nothing_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone: no such directory; check the path"):
        restore(tmp_path / "gone", make_state())
    with pytest.raises(CheckpointError, match=r"no metadata\.json, so no save was finished here"):
        metadata(tmp_path)


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("safejax.checkpoint.description.FORMAT_VERSION", 2)
    save(tmp_path / "run", {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 2 is newer than this safejax; update it"):
        metadata(tmp_path / "run")


def test_a_flipped_bit_in_any_file_is_found(tmp_path, capfd):
    state = make_state()
    save(tmp_path / "run", state, Config())
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 4
    for path in files:
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[len(flipped) // 2] ^= 4
        path.write_bytes(flipped)
        with pytest.raises(DamagedCheckpointError) as caught:
            restore(tmp_path / "run", state)
        assert str(caught.value).startswith(f"{path}: not what was written")
        assert str(caught.value).endswith("; restore an older checkpoint or a copy")
        path.write_bytes(content)
    assert_same(restore(tmp_path / "run", state), state)
    assert capfd.readouterr().err == ""


def test_damage_that_reaches_orbax_is_one_line(tmp_path, monkeypatch):
    state = make_state()
    save(tmp_path / "run", state)
    flip = largest_file(tmp_path / "run")
    content = bytearray(flip.read_bytes())
    content[len(content) // 2] ^= 4
    sums = metadata(tmp_path / "run")["files"]
    flip.write_bytes(content)
    monkeypatch.setattr("safejax.checkpoint.arrays.file_sums", lambda folder: sums)  # the first line of defense is down
    with pytest.raises(DamagedCheckpointError, match=r"unreadable|fail their checksum"):
        restore(tmp_path / "run", state)


def test_a_value_that_orbax_reads_wrongly_is_found(tmp_path, monkeypatch):
    state = make_state(3)
    save(tmp_path / "run", state)

    def read_wrongly(folder, leaves):
        return {**read(folder, leaves), "step": np.int32(4)}

    read = safejax.checkpoint.arrays.read_arrays
    monkeypatch.setattr("safejax.checkpoint.arrays.read_arrays", read_wrongly)
    with pytest.raises(DamagedCheckpointError, match=r"the values of step fail their checksum; restore an older"):
        restore(tmp_path / "run", state)


def test_truncated_and_missing_files(tmp_path, capfd):
    state = make_state()
    save(tmp_path / "run", state)
    path = largest_file(tmp_path / "run")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DamagedCheckpointError, match="missing, cut short or altered"):
        restore(tmp_path / "run", state)
    path.unlink()
    with pytest.raises(DamagedCheckpointError, match="missing, cut short or altered"):
        restore(tmp_path / "run", state)
    for content in (b"", b"[]", b"{}", b"\xff\xfe", (tmp_path / "run" / "metadata.json").read_bytes()[:-30]):
        (tmp_path / "run" / "metadata.json").write_bytes(content)
        with pytest.raises(DamagedCheckpointError, match=r"metadata\.json: not what was written"):
            restore(tmp_path / "run", state)
    assert capfd.readouterr().err == ""


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, capfd):
    state = make_state()
    save(tmp_path / "run", state)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(CheckpointError) as caught:
            save(tmp_path / "run", {"large": jax.random.normal(jax.random.key(0), (40_000,))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "run: the write failed (" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert_same(restore(tmp_path / "run", state), state)
    assert len(list((tmp_path / "run").iterdir())) == 2
    assert capfd.readouterr().err == ""


def test_orbax_is_quiet_and_logging_is_left_alone(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    before = logging.getLogger("absl").level, logging.getLogger().level
    save(tmp_path / "run", make_state())
    restore(tmp_path / "run", make_state())
    assert (logging.getLogger("absl").level, logging.getLogger().level) == before
    assert caplog.records == []


WORKER = """
import sys, itertools
import jax.numpy as jnp
from safejax.checkpoint import Checkpoints, save
directory, first = sys.argv[1], int(sys.argv[2])
checkpoints = Checkpoints(directory + "/steps")
print("ready", flush=True)
for step in itertools.count(first):
    state = {"step": jnp.int32(step), "values": jnp.arange(300_000.0) + step}
    checkpoints.save(step, state)
    save(directory + "/one", state)
    print(step, flush=True)
"""


def test_a_process_killed_while_saving_leaves_whole_checkpoints(tmp_path):
    like = {"step": jnp.int32(0), "values": jnp.zeros(300_000)}
    checkpoints = Checkpoints(tmp_path / "steps", log=pytest.fail)
    delays, done, halves = random.Random(0), 0, 0
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    for _ in range(6):
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path), str(done + 1)],
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert worker.stdout.readline() == b"ready\n"
        if done == 0:
            assert worker.stdout.readline() == b"1\n"
        time.sleep(delays.uniform(0.05, 0.5))
        worker.send_signal(signal.SIGKILL)
        finished = worker.communicate()[0].split()
        acknowledged = int(finished[-1]) if finished else max(done, 1)
        step, state = checkpoints.latest(like)
        assert step >= acknowledged  # what a save returned for is never lost
        for found, expected in ((state, step), (restore(tmp_path / "one", like), None)):
            assert expected in (None, int(found["step"]))
            np.testing.assert_array_equal(found["values"], np.arange(300_000.0, dtype=np.float32) + found["step"])
        halves += len(list(tmp_path.glob("steps/*/arrays-*"))) + len(list(tmp_path.glob("one/arrays-*"))) > 3
        done = step
    assert halves  # some kill did hit a save half way, or nothing was tried here


def test_rotation_keeps_the_last_two(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run", Config())
    like = make_state()
    assert checkpoints.latest(like) is None
    for step in (1, 5, 9):
        checkpoints.save(step, make_state(step), extra={"env_steps": step * 10})
    assert checkpoints.steps() == [5, 9]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["000000000005", "000000000009"]
    step, state = checkpoints.latest(like)
    assert step == 9
    assert_same(state, make_state(9))
    assert metadata(checkpoints.path(9))["extra"] == {"env_steps": 90}
    with pytest.raises(CheckpointError, match="holds step 9, expected none from 7 on; resume, or use another one"):
        checkpoints.save(7, state)
    with pytest.raises(ValueError, match="keep is 0, expected at least 1"):
        Checkpoints(tmp_path, keep=0)


def test_latest_walks_back_over_damage_and_tells(tmp_path):
    told = []
    checkpoints = Checkpoints(tmp_path / "run", log=told.append, keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, make_state(step))
    largest_file(checkpoints.path(3)).write_bytes(b"")
    step, state = checkpoints.latest(make_state())
    assert step == 2
    assert_same(state, make_state(2))
    assert len(told) == 1
    assert told[0].startswith(f"skipped checkpoint 3: {checkpoints.path(3)}")
    (tmp_path / "run" / "000000000004").mkdir()  # what a killed first save of a step leaves
    (tmp_path / "run" / "notes").mkdir()
    assert checkpoints.steps() == [1, 2, 3]
    checkpoints.save(3, make_state(3))
    assert checkpoints.latest(make_state())[0] == 3
    assert sorted(path.name for path in (tmp_path / "run").iterdir())[3:] == ["notes"]
    for step in (1, 2, 3):
        (checkpoints.path(step) / "metadata.json").write_bytes(b"{")
    with pytest.raises(CheckpointError, match=r"none of steps \[1, 2, 3\] is whole"):
        checkpoints.latest(make_state())


def test_a_damaged_newer_step_gives_way(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run", log=lambda line: None)
    for step in (10, 20):
        checkpoints.save(step, make_state(step))
    largest_file(checkpoints.path(20)).write_bytes(b"")
    assert checkpoints.latest(make_state())[0] == 10
    checkpoints.save(12, make_state(12))
    assert checkpoints.steps() == [10, 12]


def test_latest_does_not_walk_past_a_mismatch(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run", Config(), log=pytest.fail)
    checkpoints.save(1, make_state())
    checkpoints.save(2, make_state())
    with pytest.raises(CheckpointError, match=r"expected float32\[6\]"):
        checkpoints.latest(make_state(width=6))
    with pytest.raises(CheckpointError, match=r"learning_rate=0\.0003, expected 1\.0"):
        Checkpoints(tmp_path / "run", Config(learning_rate=1.0)).latest(make_state())


def test_warm_start_moves_what_is_named():
    state, pretrained = make_state(1), make_state(2)
    fields = {"actor": "actor", "critic.params": "critic.params", "target_critic": "critic.params"}
    warm = warm_start(state, pretrained, fields)
    assert_same(warm.actor, pretrained.actor)
    assert_same(warm.critic.params, pretrained.critic.params)
    assert_same(warm.critic.opt_state, state.critic.opt_state)
    assert_same(warm.target_critic, pretrained.critic.params)
    assert_same(warm.step, state.step)
    layer = warm_start(state, pretrained, {"actor.params.params.layer_0": "critic.params.params.layer_0"})
    assert_same(layer.actor.params, pretrained.critic.params)
    assert_same(warm_start(state, pretrained, {}), state)


def test_warm_start_copies_so_that_all_three_may_be_donated():
    state, pretrained = make_state(1), make_state(2)
    expected = jax.tree.map(np.array, pretrained.actor)
    warm = warm_start(state, pretrained, {"actor": "actor", "target_critic": "critic.params"})
    consume = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    consume(pretrained)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(pretrained))
    assert_same(jax.tree.map(np.array, warm.actor), expected)
    consume(warm)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(warm))


def test_warm_start_over_a_seed_axis():
    states, pretrained = (jax.vmap(make_state)(jnp.arange(3) + offset) for offset in (0, 10))
    warm = warm_start(states, pretrained, {"actor": "actor"})
    assert_same(warm.actor, pretrained.actor)
    with pytest.raises(ValueError, match=r"is float32\[3, 5\], expected float32\[3, 3, 5\]"):
        warm_start(states, make_state(), {"actor.params": "actor.params"})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"policy": "actor"},
            "warm_start: state has no 'policy': 'policy' is not among step, actor, critic,",
        ),
        (
            {"actor": "actor.weights"},
            "pretrained has no 'actor.weights': 'weights' is not among params, opt_state",
        ),
        ({"step": "step.x"}, "pretrained has no 'step.x': 'x' is not among "),
        ({"actor": "actor", "actor.params": "actor.params"}, "'actor' already holds 'actor.params'"),
        (
            {"actor": "actor.params"},
            "'actor.params' of pretrained does not fit 'actor' of state: params.params",
        ),
        (
            {"step": "carry"},
            "'carry' of pretrained does not fit 'step' of state: value is absent, expected int32[]",
        ),
        ({"multiplier": "carry"}, "structure PyTreeDef({}), expected PyTreeDef(())"),
    ],
)
def test_warm_start_is_strict(fields, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are compared below
        warm_start(make_state(), make_state(1), fields)
    assert words in str(caught.value)


def test_warm_start_names_the_leaf():
    with pytest.raises(ValueError, match=r"'actor' of state: params\.params\.layer_0\.bias is float32\[6\], expected"):
        warm_start(make_state(), make_state(width=6), {"actor": "actor"})
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), make_state().target_critic)
    with pytest.raises(ValueError, match=r"layer_0\.bias is bfloat16\[5\], expected float32\[5\]"):
        warm_start(make_state(), make_state()._replace(target_critic=half), {"target_critic": "target_critic"})
