"""One checkpoint: exact round trips, and the words for everything that does not fit."""

import asyncio
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from states import Config, assert_same, make_state

from safejax.checkpoint import CheckpointError, Checkpoints, NonFiniteStateError, metadata, restore, save
from safejax.data import make_replay
from safejax.types import TrainState, Transition

REPLAY = make_replay(10, 2)


def test_round_trip(tmp_path):
    state = make_state()
    save(tmp_path / "run", state, Config(), extra={"environment": "point"})
    again = restore(tmp_path / "run", jax.eval_shape(lambda: state), config=Config())
    assert_same(again, state)
    assert isinstance(again.actor, TrainState)
    assert all(isinstance(leaf, jax.Array) and not leaf.weak_type for leaf in jax.tree.leaves(again))
    about = metadata(tmp_path / "run")
    assert about["config"]["learning_rate"] == 3e-4
    assert about["config_class"].endswith("states.Config")
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


class Pair(NamedTuple):
    first: Any
    second: Any


DTYPES = ["float32", "bfloat16", "float16", "int32", "uint32", "uint8", "int64", "float64", "bool"]


def bits(dtype, shape, seed):
    """Any values of `dtype`, NaN and infinity among the floats."""
    size = jnp.dtype(dtype).itemsize
    content = np.random.default_rng(seed).integers(0, 2 if dtype == "bool" else 256, (*shape, size), np.uint8)
    return content.view(jnp.dtype(dtype)).reshape(shape)


shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
arrays = st.builds(bits, st.sampled_from(DTYPES), shapes, st.integers(0, 9))
keys = st.builds(lambda seed, shape: jax.random.split(jax.random.key(seed), shape), st.integers(0, 9), shapes)
names = st.text(st.characters(codec="utf-8", exclude_characters="."), max_size=4)
trees = st.recursive(
    arrays | keys,
    lambda parts: (
        st.dictionaries(names, parts, max_size=3)
        | st.lists(parts, max_size=2).map(tuple)
        | st.builds(Pair, parts, parts)
    ),
    max_leaves=5,
)


@settings(max_examples=25, deadline=None)
@given(tree=trees)
def test_any_tree_comes_back(tmp_path_factory, tree):
    directory = tmp_path_factory.mktemp("any") / "run"
    save(directory, tree, allow_non_finite=True)
    assert_same(restore(directory, tree), tree)


@settings(max_examples=5, deadline=None)
@given(rounds=st.integers(0, 3), seed=st.integers(0, 99))
def test_a_replay_comes_back_and_draws_the_same(tmp_path_factory, rounds, seed):
    row = np.zeros((), np.float32)
    pixels = {"pixels": np.zeros((2, 2, 3), np.uint8), "state": np.zeros(3, np.float32)}
    example = Transition(pixels, np.zeros(2, np.float32), row, row, row, row, pixels)
    state, source = REPLAY.init(example), np.random.default_rng(seed)
    for _ in range(rounds):  # of at most 5 steps for each of 2 environments: the third overwrites the first
        rows = jax.tree.map(lambda leaf: source.integers(0, 256, (2, 2, *leaf.shape)).astype(leaf.dtype), example)
        state = REPLAY.add(state, rows)
    directory = tmp_path_factory.mktemp("replay") / "run"
    save(directory, state)
    again = restore(directory, jax.eval_shape(REPLAY.init, example))
    assert_same(again, state)
    assert int(REPLAY.size(again)) == min(10, 4 * rounds)
    assert_same(*(REPLAY.sample(each, jax.random.key(seed), 4) for each in (again, state)))


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
    parts = message.removesuffix("; restore with the networks and optimizers it had").split("; ")
    assert "actor.params.params.layer_0.kernel is float32[3, 5], expected float32[3, 6]" in parts
    assert parts[-1] == "carry.extra is absent, expected bool[2]"
    assert len(parts) == 16  # step, carry, and both parts of actor, critic, their moments and the target
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
    with pytest.raises(CheckpointError, match=r"run: two leaves are called 'a\.b'; rename"):
        save(tmp_path / "run", {"a": {"b": jnp.ones(1)}, "a.b": jnp.ones(1)})
    with pytest.raises(CheckpointError, match=r"run: a leaf is called 'a\.\\udc80', half a character; rename"):
        save(tmp_path / "run", {"a": {"\udc80": jnp.ones(1)}})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        (np.arange(3, dtype=">f4"), "array of >f4, expected this machine's byte order; convert it by astype"),
        (np.array([1, None]), "array of object, expected numbers or booleans; put settings into config"),
        (np.ones(2, np.longdouble), "array of float128, expected a dtype that can be stored; convert it by astype"),
        (jnp.ones(2, jnp.uint4), "array of uint4, expected a dtype that can be stored; convert it by astype"),
        (np.array(["a"]), "array of <U1, expected numbers or booleans; put settings into config"),
    ],
)
def test_an_array_that_would_not_come_back_is_refused_by_name(tmp_path, leaf, words):
    with pytest.raises(CheckpointError) as caught:
        save(tmp_path / "run", {"actor": {"x": leaf}, "y": np.zeros(2)})
    assert str(caught.value).startswith(f"{tmp_path / 'run'}: actor.x is an {words}")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("metric", [np.zeros(2), np.ones(1), [1.0], "a", 1j, float("inf")])
def test_a_metric_is_one_finite_number(tmp_path, metric):
    for into in (lambda: save(tmp_path, {}, metric=metric), lambda: Checkpoints(tmp_path).save(1, {}, metric=metric)):
        with pytest.raises(CheckpointError, match=r"metric is '.*', expected a finite number or None") as caught:
            into()
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_save_without_files_is_none(tmp_path, monkeypatch):
    save(tmp_path / "run", {"x": np.zeros(2)})
    monkeypatch.setattr("safejax.checkpoint.arrays.write_arrays", lambda folder, arrays: folder.mkdir())
    save(tmp_path / "empty", {"x": np.zeros((0, 2))})
    with pytest.raises(CheckpointError, match=r"run: no files were written; what was saved before is intact"):
        save(tmp_path / "run", {"x": np.ones(2)})
    assert_same(restore(tmp_path / "run", {"x": np.zeros(2)}), {"x": np.zeros(2)})


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    state = make_state()
    save(tmp_path / "run", state)
    values = np.ones((2, 3), np.float32)
    values[1, 2], values[1, 0] = np.nan, np.inf
    half = jnp.array([1.0, -jnp.inf], jnp.bfloat16)
    with pytest.raises(NonFiniteStateError) as caught:
        save(tmp_path / "run", {"a": values, "b": half, "c": np.full(2, 9), "key": jax.random.key(0)})
    assert str(caught.value) == (
        f"{tmp_path / 'run'}: a has 2 of 6 values that are not finite, first inf at [1, 0]; "
        "b has 1 of 2 values that are not finite, first -inf at [1]; not saved, what was saved before is intact"
    )
    assert isinstance(caught.value, CheckpointError)
    assert isinstance(caught.value, FloatingPointError)
    assert_same(restore(tmp_path / "run", state), state)
    save(tmp_path / "run", {"a": values}, allow_non_finite=True)
    assert_same(restore(tmp_path / "run", {"a": values}), {"a": values})


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
