"""Every file that is wrong, damaged or hostile, and the words for it."""

import warnings

import bad_files
import data_files
import h5py
import numpy as np
import pytest
import spoiled_files

from safejax.data import DatasetError, read
from safejax.data.notes import successor_mismatch


@pytest.mark.parametrize("case", bad_files.REFUSED, ids=lambda case: case.name)
def test_it_is_refused_in_one_line(tmp_path, case):
    path = case.build(tmp_path)
    with pytest.raises(DatasetError) as caught:
        case.attempt(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert case.words in message
    assert message.isprintable()
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("case", bad_files.NOTED, ids=lambda case: case.name)
def test_it_is_read_and_noted(tmp_path, case):
    assert case.words in bad_files.notes(case, tmp_path)


def test_a_good_file_is_read_without_a_word(tmp_path):
    good = data_files.flat(timeouts=np.isin(np.arange(7), (5, 6)))(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(good)[1] == {"format": "DSRL HDF5", "notes": []}


def test_the_trap_would_have_run(tmp_path):
    path = spoiled_files.pickled(tmp_path)
    np.load(path, allow_pickle=True)["observations"]
    assert (tmp_path / "executed").exists()


def test_only_next_observations_that_are_not_next_warn(tmp_path):
    others = data_files.columns(seed=1)["next_observations"]
    with pytest.warns(UserWarning, match=r"car\.hdf5: next_observations are not .* on 100\.0% of the rows inside"):
        read(data_files.flat(next_observations=others)(tmp_path))


def test_a_row_counts_as_not_next_where_any_part_is_not():
    rows = np.arange(7.0)[:, None]
    held = {"observations": {"a": rows, "b": rows}, "next_observations": {"a": rows + 1, "b": rows + 1}}
    flags = {"terminals": np.arange(7) == 2, "timeouts": np.arange(7) == 5}  # rows 0, 1, 3 and 4 are inside
    assert successor_mismatch({**held, **flags}) == ""
    held["next_observations"]["a"][[0, 1]] += 1
    held["next_observations"]["b"][[1, 3]] += 1
    assert "on 75.0% of the rows inside" in successor_mismatch({**held, **flags})


def test_a_file_that_is_too_large_is_not_called_damaged(tmp_path, monkeypatch):
    def fail(item):
        raise MemoryError("Unable to allocate 21.8 TiB")

    monkeypatch.setattr("safejax.data.formats.hdf5.values", fail)
    with pytest.raises(DatasetError, match=r"does not fit into memory \(Unable to allocate 21.8 TiB\)\. Free"):
        read(data_files.flat()(tmp_path))


def test_a_large_attribute_is_left_out_and_others_stay(tmp_path):
    path = tmp_path / "car.hdf5"
    with h5py.File(path, "w", libver="latest") as file:  # older layouts hold no large attributes
        for key, value in data_files.columns().items():
            file[key] = value
        file.attrs["large"] = np.zeros(2**18)
        file.attrs["small"] = np.int64(3)
        file.attrs["bytes"] = np.bytes_(b"abc")
        file.attrs["empty"] = h5py.Empty("f4")
        file.attrs["complex"] = 1j
    assert {"small": 3, "bytes": "abc"}.items() <= read(path)[1].items()
    assert not {"large", "empty", "complex"} & read(path)[1].keys()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"costs": "one"}, "costs is 'one', expected one of zero"),
        ({"repair": "all"}, "repair is 'all', expected one of terminal_wins"),
        ({"episode_length": 0}, "episode_length is 0"),
        ({"episode_length": 2.5}, "episode_length is 2.5, expected a whole number of steps"),
        ({"max_bytes": -1}, "max_bytes is -1"),
        ({"episode_length": True}, "episode_length is True, expected a whole number of steps"),
    ],
)
def test_options_that_are_none(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        read(data_files.flat()(tmp_path), **options)


@pytest.mark.parametrize(
    "build", [data_files.flat(), data_files.npz(), data_files.minari()], ids=["hdf5", "npz", "minari"]
)
def test_random_damage_is_refused_or_harmless(tmp_path, build):
    path = build(tmp_path)
    held = path / "data" / "main_data.hdf5" if path.is_dir() else path
    whole, random = held.read_bytes(), np.random.default_rng(0)
    messages = []
    for _ in range(60):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[random.integers(0, len(whole), 8)] = random.integers(0, 256, 8)
        held.write_bytes(damaged.tobytes()[: random.integers(1, 2 * len(whole))])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            try:
                bad_files.ZERO(path, max_bytes=2**20)
            except DatasetError as error:
                messages.append(str(error))
    assert len(messages) > 10
    assert all(message.isprintable() for message in messages)


def test_the_table_is_printed_without_folders(capsys):
    bad_files.main()
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("| ")]
    assert len(rows) == len(bad_files.REFUSED) + len(bad_files.NOTED) + 4  # two heads of two lines
    assert "/tmp" not in printed
