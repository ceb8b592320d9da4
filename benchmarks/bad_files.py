"""What safejax says of data files that are wrong, damaged or hostile: python benchmarks/bad_files.py > table.md

Builds every file of `REFUSED` and `NOTED` in a temporary folder, reads it and prints what was said, as Markdown. The
tests build the same files and compare the words.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import platform
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from safejax.data import DatasetError, check_widths, read

ROWS = 7
ZERO = functools.partial(read, costs="zero", rewards="zero")


class Case(NamedTuple):
    """A file and what is said of it."""

    name: str
    build: Callable[[Path], Path]  # (empty folder) -> what to read
    words: str  # part of the message, or of a note
    attempt: Callable[[Path], Any] = read


def columns(count: int = ROWS, terminals: Any = (2,), timeouts: Any = (5,), seed: int = 0) -> dict[str, np.ndarray]:
    """Good columns: of 7 rows an episode of 3 (terminated), one of 3 (timeout) and an unfinished tail of 1."""
    random, row = np.random.default_rng(seed), np.arange(count)
    ends = np.isin(row, terminals) | np.isin(row, timeouts)
    observations, beyond = random.normal(size=(2, count, 3)).astype(np.float32)
    return {
        "observations": observations,
        "next_observations": np.where(ends[:, None], beyond, np.vstack([observations[1:], beyond[-1:]])),
        "actions": random.uniform(-1, 1, size=(count, 2)).astype(np.float32),
        "rewards": row.astype(np.float32),
        "costs": (row % 2).astype(np.float32),
        "terminals": np.isin(row, terminals),
        "timeouts": np.isin(row, timeouts),
    }


def with_value(key: str, row: int, value: float) -> dict[str, np.ndarray]:
    """The column `key` with `value` in one row, float64."""
    column = columns()[key].astype(np.float64)
    column[row] = value
    return {key: column}


def write(path: Path, held: Mapping[str, Any]) -> Path:
    """A flat HDF5 file as a stranger would write it; None leaves a key out."""
    with h5py.File(path, "w") as file:
        for key, value in held.items():
            if value is not None:
                file[key] = value
    return path


def flat(**changes: Any) -> Callable[[Path], Path]:
    """Builds DSRL's layout with some columns changed, or left out by None."""
    return lambda folder: write(folder / "car.hdf5", {**columns(), **changes})


def edited(edit: Callable[[h5py.File, Path], None], without: str = "observations") -> Callable[[Path], Path]:
    """Builds DSRL's layout without one key, and lets `edit` put something else there."""

    def build(folder: Path) -> Path:
        path = write(folder / "car.hdf5", {**columns(), without: None, "hidden": columns()[without]})
        with h5py.File(path, "a") as file:
            edit(file, folder)
        return path

    return build


def _nameless(folder: Path) -> Path:
    path = flat(costs=None)(folder)
    with h5py.File(path, "a") as file:
        file[b"\xff\x1b"] = np.zeros(ROWS)
    return path


def _external_link(file: h5py.File, folder: Path) -> None:
    file["observations"] = h5py.ExternalLink(str(write(folder / "other.hdf5", columns())), "/observations")


def _external_storage(file: h5py.File, folder: Path) -> None:
    secret = folder / "secret.txt"
    secret.write_bytes(b"not for others " * 12)
    file.create_dataset("observations", (ROWS, 3), "f4", external=[(str(secret), 0, ROWS * 12)])


def _virtual(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout((ROWS, 3), "f4")
    layout[:] = h5py.VirtualSource(str(folder / "missing.hdf5"), "observations", (ROWS, 3))
    file.create_virtual_dataset("observations", layout)


def _linked_part(file: h5py.File, folder: Path) -> None:
    file["observations/pixels"] = np.zeros((ROWS, 4, 4, 3), np.uint8)
    file["observations/state"] = h5py.SoftLink("/hidden")


def _empty_group(file: h5py.File, folder: Path) -> None:
    file.create_group("observations")


def _declared(file: h5py.File, folder: Path) -> None:
    file.create_dataset("observations", (10**12,), "f8", chunks=(10**6,))


def _large_chunk(file: h5py.File, folder: Path) -> None:
    file.create_dataset("observations", (ROWS, 3), "f4", chunks=(2**20, 2**8), maxshape=(None, None))


def _strings(file: h5py.File, folder: Path) -> None:
    file.create_dataset("rewards", data=["a"] * ROWS, dtype=h5py.string_dtype())


def _page(folder: Path) -> Path:
    (folder / "car.hdf5").write_text("<!DOCTYPE html><title>404</title>")
    return folder / "car.hdf5"


def _empty(folder: Path) -> Path:
    (folder / "car.hdf5").touch()
    return folder / "car.hdf5"


def _half(folder: Path) -> Path:
    path = flat()(folder)
    path.write_bytes(path.read_bytes()[:5000])
    return path


def _flipped(folder: Path) -> Path:
    path = flat(rewards=None)(folder)
    with h5py.File(path, "a") as file:
        rewards = file.create_dataset("rewards", data=columns()["rewards"], fletcher32=True, chunks=(ROWS,))
        place = rewards.id.get_chunk_info(0).byte_offset
    held = bytearray(path.read_bytes())
    held[place] ^= 1
    path.write_bytes(held)
    return path


def minari_episodes() -> list[dict[str, Any]]:
    """Two episodes as Minari stores them: 3 steps to a termination and 2 to a truncation, costs from the reset on."""
    random, episodes = np.random.default_rng(0), []
    for terminated, count in ((True, 3), (False, 2)):
        ends = np.arange(count) == count - 1
        episodes.append(
            {
                "observations": random.normal(size=(count + 1, 3)).astype(np.float32),
                "actions": random.uniform(-1, 1, (count, 2)).astype(np.float32),
                "rewards": np.arange(count, dtype=np.float32),
                "terminations": ends & terminated,
                "truncations": ends & (not terminated),
                "infos/cost": 10.0 * np.arange(count + 1, dtype=np.float32),
            }
        )
    return episodes


def minari(
    metadata: Any = None, first: Mapping[str, Any] | None = None, every: Mapping[str, Any] | None = None
) -> Callable[[Path], Path]:
    """Builds Minari's directory with some columns of the first or every episode changed, or left out by None."""

    def build(folder: Path) -> Path:
        data = folder / "car" / "data"
        data.mkdir(parents=True)
        episodes = minari_episodes()
        episodes = [episode | dict(every or {}) for episode in episodes]
        episodes[0] |= dict(first or {})
        held = {f"episode_{k}/{name}": values for k, part in enumerate(episodes) for name, values in part.items()}
        write(data / "main_data.hdf5", held)
        (data / "metadata.json").write_text(
            metadata or json.dumps({"dataset_id": "car/test-v0", "data_format": "hdf5"})
        )
        return folder / "car"

    return build


def _linked_episode(folder: Path) -> Path:
    path = minari()(folder)
    other = write(folder / "other.hdf5", columns())
    with h5py.File(path / "data" / "main_data.hdf5", "a") as file:
        file["episode_2"] = h5py.ExternalLink(str(other), "/")
    return path


def _arrow(folder: Path) -> Path:
    (folder / "car" / "data" / "0").mkdir(parents=True)
    (folder / "car" / "data" / "metadata.json").write_text(json.dumps({"data_format": "arrow"}))
    return folder / "car"


def ogbench_columns() -> dict[str, np.ndarray]:
    """Two trajectories as OGBench stores them, of 4 and 3 states; a 1 marks the last state."""
    states = np.arange(7, dtype=np.float32)
    observations = np.stack([states, states**2, -states], axis=1)
    actions = np.tile(np.array([[0.5, -0.5]], np.float32), (7, 1))
    return {"observations": observations, "actions": actions, "terminals": np.isin(states, (3, 6))}


def npz(**changes: Any) -> Callable[[Path], Path]:
    """Builds OGBench's layout with some arrays changed, or left out by None."""

    def build(folder: Path) -> Path:
        held = {name: array for name, array in {**ogbench_columns(), **changes}.items() if array is not None}
        np.savez_compressed(folder / "maze.npz", **held)
        return folder / "maze.npz"

    return build


class Trap:
    """Unpickling this touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def pickled(folder: Path) -> Path:
    """An npz whose observations, once unpickled, touch the file `executed`."""
    return npz(observations=np.array([Trap(folder / "executed")], object))(folder)


def _half_npz(folder: Path) -> Path:
    path = npz()(folder)
    path.write_bytes(path.read_bytes()[:300])
    return path


def _boastful(folder: Path) -> Path:
    """The header of an array declares more than the zip holds."""
    path, plain = folder / "maze.npz", npz(observations=None)(folder)
    header = str({"descr": "<f4", "fortran_order": False, "shape": (10**9, 3)}).ljust(117) + "\n"
    with zipfile.ZipFile(plain, "a") as archive:
        archive.writestr("observations.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
    return path


def _wide(path: Path) -> None:
    check_widths(read(path)[0], 12, 2, "hopper", source=str(path))


NAN, INF = (with_value(key, row, value) for key, row, value in (("rewards", 4, np.nan), ("observations", 6, np.inf)))
NO_ENDS = {"terminals": np.zeros(ROWS), "timeouts": np.zeros(ROWS)}
NO_STEPS = {key: value[:0] for key, value in minari_episodes()[0].items()} | {"observations": np.zeros((1, 3))}
NONE = {key: value[:0] for key, value in columns().items()}

REFUSED = (
    Case("no such file", lambda folder: folder / "car.hdf5", "no such file. Check the path or download it first."),
    Case("empty file", _empty, "not a complete HDF5 or npz file (0 bytes). Delete it and download it again"),
    Case("web page saved as data", _page, "not a complete HDF5 or npz file (33 bytes; begins with b'<!DOCTYPE html><'"),
    Case("HDF5 cut short", _half, "not a complete HDF5 file (5,000 of "),
    Case("flipped bit under a checksum", _flipped, "not a complete HDF5 file ("),
    Case("no costs", flat(costs=None), "no 'costs'. A safe algorithm needs a cost per step. For plain offline RL pass"),
    Case("no actions", flat(actions=None), "no 'actions'. Keys found: costs, next_observations, observations, "),
    Case("no timeouts", flat(timeouts=None), "no 'timeouts'. Pass episode_length=, the steps after which"),
    Case("no keys", lambda folder: write(folder / "car.hdf5", {}), "Keys found: none."),
    Case("names that are no text", _nameless, "no 'costs'. A safe algorithm"),
    Case("NaN", flat(**NAN), "rewards: 1 non-finite values, first at row 4 (episode 1, step 1)."),
    Case("infinity", flat(**INF), "observations: 3 non-finite values, first at row 6 (episode 2, step 0)."),
    Case(
        "float64 beyond float32",
        flat(**with_value("observations", 0, 1e300)),
        "observations: 3 values too large for float32, first at row 0 (episode 0, step 0).",
    ),
    Case("lengths differ", flat(actions=np.zeros((6, 2))), "actions has 6 rows, observations 7."),
    Case("width of another world", flat(), "observations have 3 features; environment 'hopper' gives 12.", _wide),
    Case(
        "action outside bounds",
        flat(**with_value("actions", 5, 1.31)),
        "actions: 2 values outside [-1, 1], worst 1.31 at row 5. Rescale them, or pass clip_actions=True",
    ),
    Case(
        "negative cost",
        flat(**with_value("costs", 1, -0.2)),
        "costs: minimum -0.2, 1 below 0, first at row 1 (episode 0, step 1). Costs must be >= 0; rewards may have",
    ),
    Case(
        "terminal and timeout",
        flat(timeouts=np.isin(np.arange(ROWS), (2, 5))),
        "1 rows are both terminal and timeout, first at row 2 (episode 0, step 2). Clear the timeouts there; read",
    ),
    Case("flag of 0.5", flat(**with_value("terminals", 3, 0.5)), "terminals: 1 values neither 0 nor 1, first at row 3"),
    Case("no episode ends", flat(**NO_ENDS), "no terminals and no timeouts: pass episode_length=."),
    Case("bytes for rewards", flat(rewards=np.full(ROWS, b"a")), "rewards: dtype S1, expected a real number."),
    Case("strings for rewards", edited(_strings, "rewards"), "rewards: dtype object, expected a real number."),
    Case(
        "complex rewards", flat(rewards=np.zeros(ROWS, complex)), "rewards: dtype complex128, expected a real number."
    ),
    Case("two rewards a row", flat(rewards=np.zeros((ROWS, 2))), "rewards are float64[7, 2], expected [N] or [N, 1]."),
    Case("flat actions", flat(actions=np.zeros(ROWS)), "actions are float64[7], expected float [N, A] or integer [N]."),
    Case("next observations of another width", flat(next_observations=np.zeros((ROWS, 4))), "expected [3] a row, as"),
    Case("no rows", flat(**NONE), "no rows, expected at least one transition."),
    Case("scalar for a column", flat(costs=np.float32(1)), "costs has no rows, expected one a step."),
    Case("many faults", flat(**NAN, costs=None, actions=np.zeros((6, 2))), "no 'costs'. "),
    Case(
        "soft link",
        edited(lambda file, folder: file.__setitem__("observations", h5py.SoftLink("/hidden"))),
        "refused: 'observations' is a link to '/hidden'. Store the values themselves.",
    ),
    Case("link into another file", edited(_external_link), "refused: 'observations' is stored outside this file."),
    Case("storage in another file", edited(_external_storage), "refused: 'observations' is stored outside this file."),
    Case("virtual, source missing", edited(_virtual), "refused: 'observations' is stored outside this file."),
    Case("linked part", edited(_linked_part), "refused: 'observations/state' is a link to '/hidden'."),
    Case(
        "empty group",
        edited(_empty_group),
        "'observations' is a Group, expected a data set.",
    ),
    Case("8 TB declared", edited(_declared), "would need 7.3 TiB; limit 32 GiB (max_bytes=)."),
    Case(
        "large chunk", edited(_large_chunk), "would need 1 GiB; limit 1 MiB", functools.partial(read, max_bytes=2**20)
    ),
    Case(
        "Minari without costs", minari(first={"infos/cost": None}), "1 of 2 episodes hold other columns or widths than"
    ),
    Case(
        "Minari, T observations",
        minari(first={"observations": np.zeros((3, 3))}),
        "has 3 rows, expected 4 for 3 steps.",
    ),
    Case(
        "Minari, costs too long", minari(first={"infos/cost": np.zeros(5)}), "episode_0: costs has 5 rows, rewards 3."
    ),
    Case(
        "Minari, other width",
        minari(first={"actions": np.zeros((3, 4))}),
        "1 of 2 episodes hold other columns or widths",
    ),
    Case("Minari, no rewards", minari(first={"rewards": None}), "episode_0: no 'rewards'."),
    Case("Minari, no steps", minari(every=NO_STEPS), "no rows, expected at least one transition."),
    Case("Minari, linked episode", _linked_episode, "refused: 'episode_2' is stored outside this file."),
    Case(
        "Minari, JPEG pictures",
        minari(first={"observations": np.tile(np.array([0xFF, 0xD8, 0xFF, 0], np.uint8), (4, 1))}),
        "episode_0: pictures are stored as JPEG, which is not read; record with jpeg_encoding=False.",
    ),
    Case("Minari, damaged metadata", minari(metadata="{"), "metadata.json cannot be read (Expecting property name"),
    Case("Minari in Arrow", _arrow, "a directory without Minari's data. Of Minari's data only that in HDF5 is read"),
    Case("Minari over the limit", minari(), "would need 182 bytes; limit", functools.partial(read, max_bytes=100)),
    Case("pickle in npz", pickled, "refused: 'observations' is an object array, a pickle that could run code.", ZERO),
    Case("npz cut short", _half_npz, "not a complete npz file (300 bytes; File is not a zip file).", ZERO),
    Case(
        "zip bomb",
        npz(observations=np.zeros((10**7, 3), np.uint8)),
        "; expected at most 200. Store it without compression.",
        ZERO,
    ),
    Case("npz that boasts", _boastful, "observations: 128 bytes stored, 12,000,000,128 declared.", ZERO),
    Case("npz over the limit", npz(), "bytes (max_bytes=).", functools.partial(ZERO, max_bytes=100)),
    Case(
        "OGBench without rewards",
        npz(),
        "no 'rewards', 'costs'. For data without rewards, to be relabelled, pass rewards=",
    ),
    Case("OGBench, fewer masks", npz(masks=np.ones(6)), "masks are [6], terminals [7].", ZERO),
    Case("OGBench, compact", npz(valids=np.ones(7)), "'valids' found: this is a compact data set of ogbench.", ZERO),
    Case("npz in D4RL's manner", npz(timeouts=np.zeros(7)), "'timeouts' found: this tells trajectories apart as", ZERO),
)

NOTED = (
    Case("unfinished tail", flat(), "unfinished tail of 1 rows is kept as a truncated episode."),
    Case("float64", flat(rewards=np.arange(7.0)), "rewards: float64 kept as float32."),
    Case(
        "constant feature",
        flat(actions=np.array([[0.5, i / 8] for i in range(ROWS)], np.float32)),
        "actions: 1 of 2 features never vary (0). To normalise, divide by at least 0.001.",
    ),
    Case(
        "next observations that are not next",
        flat(next_observations=columns(seed=1)["next_observations"]),
        "next_observations are not the next row's observations on 100.0% of the rows inside episodes.",
    ),
    Case(
        "clip_actions=True",
        flat(**with_value("actions", 5, 1.31)),
        "actions: 2 values clipped to [-1, 1].",
        functools.partial(read, clip_actions=True),
    ),
    Case(
        'repair="terminal_wins"',
        flat(timeouts=np.isin(np.arange(ROWS), (2, 5))),
        "1 rows both terminal and timeout are kept as terminal.",
        functools.partial(read, repair="terminal_wins"),
    ),
    Case(
        "episode_length=2",
        flat(**NO_ENDS),
        "episode_length=2: 3 timeouts set.",
        functools.partial(read, episode_length=2),
    ),
    Case(
        'costs="zero"',
        flat(costs=None),
        "costs: none in the file, all set to 0.",
        functools.partial(read, costs="zero"),
    ),
    Case(
        "D4RL without next observations",
        flat(next_observations=None),
        "2 rows that were cut off have no next observation and are dropped.",
    ),
    Case("OGBench", npz(), "2 rows that were cut off have no next observation and are dropped.", ZERO),
    Case(
        "Minari, episode without an end",
        minari(first={"terminations": np.zeros(3, bool)}),
        "1 of 2 episodes have no end and are kept as truncated.",
    ),
    Case(
        "Minari, other bounds of actions",
        minari(metadata=json.dumps({"action_space": json.dumps({"low": [-0.4, -0.4], "high": [0.4, 0.4]})})),
        "actions: the file's bounds are [-0.4, 0.4]; values are not rescaled.",
    ),
)


def refusal(case: Case, folder: Path) -> str:
    """The message about a file of `REFUSED`, without the folder; '' if it was read."""
    try:
        case.attempt(case.build(folder))
    except DatasetError as error:
        return str(error).replace(f"{folder}/", "")
    return ""


def notes(case: Case, folder: Path) -> list[str]:
    """What was noted of a file of `NOTED`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        _, attributes = case.attempt(case.build(folder))
    return attributes["notes"]


def table(heads: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    """A Markdown table."""
    lines = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in (heads, ("---", "---"), *rows))
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    """Print both tables."""
    versions = {name: importlib.metadata.version(name) for name in ("h5py", "numpy")}
    print(f"Python {platform.python_version()}, {', '.join(f'{name} {number}' for name, number in versions.items())}\n")
    with tempfile.TemporaryDirectory() as temporary:
        for heads, cases, say in (
            (("refused", "message"), REFUSED, refusal),
            (("read", "notes"), NOTED, lambda case, folder: " ".join(notes(case, folder))),
        ):
            rows = []
            for index, case in enumerate(cases):
                folder = Path(temporary) / f"{heads[0]}{index}"
                folder.mkdir()
                rows.append((case.name, say(case, folder)))
            print(table(heads, rows) + "\n")


if __name__ == "__main__":
    main()
