"""Data on disk in slabs: every row has its turn, shapes never change, and what is damaged or too large is refused."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safejax.data import from_arrays, open_slabs, read_slab, slabs, verify_slabs, write_slabs
from safejax.data.checks import DatasetError

KEY = jax.random.key(3)


def rows(first, count, *, pixels=False):
    """Rows that carry their number as the reward; every fifth ends an episode."""
    numbers = np.arange(first, first + count, dtype=np.float32)
    state = np.stack([numbers, -numbers], axis=1)
    observation = {"pixels": np.full((count, 2, 2, 3), numbers[:, None, None, None] % 251, np.uint8), "state": state}
    ends = numbers % 5 == 4
    action = np.full((count, 1), 0.5)
    return from_arrays(observation if pixels else state, action, numbers, numbers * 0, ends, 0 * ends)


def with_part(name):
    data = rows(0, 5)
    seen = {name: data.transitions.observation}
    return data._replace(transitions=data.transitions._replace(observation=seen, next_observation=seen))


def written(folder, counts=(20, 15, 18), **kwargs):
    firsts = np.cumsum((0, *counts))
    parts = (rows(first, count, **kwargs) for first, count in zip(firsts, counts, strict=False))
    write_slabs(parts, folder / "rows.slabs", {"task": "line"})
    return folder / "rows.slabs"


def test_columns_come_back_as_they_were(tmp_path):
    directory = written(tmp_path, pixels=True)
    found = open_slabs(directory, slab_rows=60, blocks_per_slab=1)
    whole = rows(0, 53, pixels=True).transitions
    assert found.attributes == {"task": "line"}
    assert isinstance(found.columns.reward, np.memmap)
    assert jax.tree.structure(found.columns) == jax.tree.structure(whole._replace(extras={}))
    for column, expected in zip(jax.tree.leaves(found.columns), jax.tree.leaves(whole), strict=True):
        assert column.dtype == expected.dtype
        np.testing.assert_array_equal(column, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.slabs"]


@settings(max_examples=15, deadline=None)
@given(count=st.integers(8, 53), slab_rows=st.integers(8, 60), blocks=st.sampled_from([1, 2, 4]))
def test_an_epoch_visits_every_row(tmp_path_factory, count, slab_rows, blocks):
    found = open_slabs(written(tmp_path_factory.mktemp("slabs"), (count,)), slab_rows=slab_rows, blocks_per_slab=blocks)
    assert found.block_rows * blocks <= slab_rows
    parts = [read_slab(found, KEY, index).transitions for index in range(found.slab_count)]
    parts = jax.tree.map(np.asarray, parts)
    assert {part.reward.shape for part in parts} == {(found.block_rows * blocks,)}
    visits = np.bincount(np.concatenate([part.reward for part in parts]).astype(int), minlength=count)
    assert visits.min() == 1
    assert visits.sum() - count < len(found.block_start)  # the rows that two blocks share
    for part in parts:
        numbers = part.reward.reshape(blocks, -1)
        assert (np.diff(numbers, axis=1) == 1).all()
        np.testing.assert_array_equal(part.observation[:, 0], part.reward)
        last = part.last.reshape(blocks, -1)
        assert (last[:, -1] == 1).all()
        np.testing.assert_array_equal(last[:, :-1], numbers[:, :-1] % 5 == 4)
        np.testing.assert_array_equal(part.discount, part.reward % 5 != 4)


def test_the_key_orders_the_blocks_anew_in_every_epoch(tmp_path):
    found = open_slabs(written(tmp_path), slab_rows=20, blocks_per_slab=4)
    assert found.slab_count == 4  # 16 blocks of 4 rows
    order = [np.asarray(read_slab(found, KEY, index).transitions.reward).tolist() for index in range(8)]
    again = [np.asarray(read_slab(found, KEY, index).transitions.reward).tolist() for index in range(8)]
    assert order == again
    assert order[:4] != order[4:]
    assert order[0] != np.asarray(read_slab(found, jax.random.key(4), 0).transitions.reward).tolist()


def test_an_index_below_0_is_refused(tmp_path):
    found = open_slabs(written(tmp_path, (9,)), slab_rows=40)
    with pytest.raises(ValueError, match="index is -1, expected a number in"):
        read_slab(found, KEY, -1)


def test_slabs_that_do_not_fit_are_refused_with_both_numbers(tmp_path, monkeypatch):
    directory = written(tmp_path)
    monkeypatch.setattr("safejax.data.memory.available_bytes", lambda device: 1000)
    with pytest.raises(DatasetError, match=r"two slabs of 56 rows: needs 4,032 bytes, 1,000 are available; lower"):
        open_slabs(directory, slab_rows=64, blocks_per_slab=4)  # 36 bytes a row
    open_slabs(directory, slab_rows=12, blocks_per_slab=4)


def test_writing_refuses_what_does_not_belong_together(tmp_path):
    with pytest.raises(DatasetError, match=r"part 1: .*observation.* expected .* as in the first part"):
        write_slabs([rows(0, 5), rows(5, 5, pixels=True)], tmp_path / "a")
    with pytest.raises(DatasetError, match="observations have a part called 'a/b', expected printable text without /"):
        write_slabs([with_part("a/b")], tmp_path / "a")
    with pytest.raises(DatasetError, match="no parts to write"):
        write_slabs([], tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
    directory = written(tmp_path)
    with pytest.raises(DatasetError, match="exists; delete it"):
        write_slabs([rows(0, 5)], directory)


def test_damage_is_refused_in_one_line(tmp_path):
    directory = written(tmp_path)
    verify_slabs(directory)
    reward = directory / "reward.npy"
    content = bytearray(reward.read_bytes())
    reward.write_bytes(content[:-8])
    with pytest.raises(DatasetError, match=r"rows.slabs: damaged \("):
        open_slabs(directory, slab_rows=40)
    content[-1] ^= 1
    reward.write_bytes(content)
    with pytest.raises(DatasetError, match="reward changed since written"):
        verify_slabs(directory)
    reward.unlink()
    with pytest.raises(DatasetError, match=r"reward.npy: no such file"):
        open_slabs(directory, slab_rows=40)
    (directory / slabs._INDEX).write_text('{"format": "another 1"}')
    with pytest.raises(DatasetError, match="format 'another 1', expected 'safejax slabs 1'"):
        open_slabs(directory, slab_rows=40)
    with pytest.raises(DatasetError, match="no such file; expected a directory of write_slabs"):
        open_slabs(tmp_path / "gone", slab_rows=40)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: change(d, attributes=None), "slabs.json has no attributes"),
        (lambda d: change(d, crc32=3), "slabs.json has no crc32"),
        (lambda d: (d / slabs._INDEX).write_text("[]"), "damaged ("),
        (lambda d: (d / slabs._INDEX).write_bytes(b"\xff"), "damaged ("),
        (lambda d: (d / slabs._INDEX).write_text("[" * 100_000), "damaged (maximum recursion depth"),
        (lambda d: rename(d, "cost", "../cost"), "'../cost' is stored outside this directory"),
        (
            lambda d: (d / "cost.npy").symlink_to((d / "cost.npy").rename(d.parent / "cost.npy")),
            "'cost' is stored outside this directory",
        ),
        (lambda d: change(d, crc32={}), "columns are none"),
        (lambda d: change(d, crc32={"reward": 1}), "columns are reward"),
        (lambda d: (d / "cost.npy").write_bytes(b""), "damaged (No data left in file"),
        (lambda d: np.save(d / "cost.npy", np.float32(1)), "cost is float32[]"),
        (lambda d: np.save(d / "cost.npy", np.zeros((9, 1))), "cost is float64[9, 1]"),
        (lambda d: np.save(d / "cost.npy", np.zeros(9, "U3")), "cost: dtype U3, expected a real number"),
        (lambda d: np.save(d / "cost.npy", np.zeros(9, np.uint8)), "cost is uint8[9]"),
        (lambda d: np.save(d / "cost.npy", np.zeros(8)), "cost has 8 rows, observation 9."),
        (lambda d: np.save(d / "observation.npy", np.zeros(9)), "observation is float64[9]"),
        (
            lambda d: np.save(d / "next_observation.npy", np.zeros((9, 3), np.float32)),
            "next_observation is float32[9, 3], observation float32[9, 2]",
        ),
        (lambda d: [np.save(p, np.load(p)[:0]) for p in d.glob("*.npy")], "no rows"),
        (
            lambda d: rename(d, "next_observation", "next_observation.state"),
            "next_observation.state beside observation",
        ),
    ],
)
def test_opening_refuses_what_reading_would_trip_over(tmp_path, damage, words):
    directory = written(tmp_path, (9,))
    damage(directory)
    with pytest.raises(DatasetError) as raised:
        open_slabs(directory, slab_rows=40)
    assert str(raised.value).startswith(f"{directory}: damaged (")
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def change(directory, **values):
    """Give entries of the index other values, or take them out by None."""
    index = json.loads((directory / slabs._INDEX).read_text()) | values
    text = json.dumps({key: value for key, value in index.items() if value is not None})
    (directory / slabs._INDEX).write_text(text)


def rename(directory, old, new):
    (directory / f"{old}.npy").rename(directory / f"{new}.npy")
    sums = json.loads((directory / slabs._INDEX).read_text())["crc32"]
    change(directory, crc32={new if name == old else name: value for name, value in sums.items()})
