"""The rooms of safejax and the arrows between them; names, docstrings and asserts: read from the source."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "safejax").rglob("*.py"))

# A room is a package or a single file of safejax, except that constraints.py and multipliers.py share one.
# Each may import itself and these:
ARROWS = {
    "types": "",
    "scores": "types",
    "data": "scores types",
    "envs": "scores types",
    "losses": "types",
    "networks": "types",
    "constraints": "types",
    "diffusion": "types",
    "gradients": "types",
    "training": "data envs types",
    "algorithms": "losses networks constraints diffusion gradients types",
    "checkpoint": "types",
    "runs": "training algorithms checkpoint data envs losses networks constraints diffusion gradients types",
}
SHARED_ROOMS = {
    "multipliers": "constraints",
    "__init__": "types",
}  # safejax itself only repeats the nouns of types

# Third parties, and the rooms that may import them; what is not named here may not be imported at all.
ANYWHERE = {"jax", "chex", "numpy", "scipy"}
TYPES_ONLY = {"jax", "chex"}
THIRD_PARTIES = {
    "brax": {"envs"},
    "mujoco": {"envs"},
    "mujoco_playground": {"envs"},
    "gymnasium": {"envs"},
    "warp": {"envs"},
    "flax": {"networks"},
    "orbax": {"checkpoint"},
    "optax": {"gradients", "algorithms"},
    "h5py": {"data"},
    "tqdm": {"data", "runs"},
}


def imports(path: Path, source: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import in the file safejax/`path`, wherever in the file it stands."""
    package = ("safejax", *path.with_suffix("").parts)[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            if module == "safejax":
                yield from ((node.lineno, f"safejax.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module


def target_room(name: str) -> str:
    """The room of an imported name just below safejax; what is no file there is a noun of `types`."""
    name = SHARED_ROOMS.get(name, name)
    is_module = any((ROOT / "safejax" / leaf).exists() for leaf in (name, f"{name}.py"))
    return name if name in ARROWS or is_module else "types"


def violations(path: Path, source: str) -> list[str]:
    """What the file safejax/`path` imports and may not."""
    room = path.parts[0].removesuffix(".py")
    room = SHARED_ROOMS.get(room, room)
    if room not in ARROWS:
        return [f"{path}: no room of ARROWS"]
    found = []
    for line, name in imports(path, source):
        top, *below = name.split(".")
        if top == "safejax":
            target = target_room(below[0] if below else "__init__")
            allowed = target in {room, *ARROWS[room].split()}
        elif top in sys.stdlib_module_names:
            allowed = True
        elif room == "types":
            allowed = top in TYPES_ONLY
        else:
            allowed = top in ANYWHERE or room in THIRD_PARTIES.get(top, ())
        if not allowed:
            found.append(f"{path}:{line}: {room} imports {name}")
    return found


def test_arrows_point_down():
    assert len(SOURCES) > 20
    found = []
    for path in SOURCES:
        found += violations(path.relative_to(ROOT / "safejax"), path.read_text())
    assert found == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("training/online.py", "from safejax.algorithms import iql"),
        ("training/online.py", "def run():\n    import safejax.algorithms.iql"),
        ("training/online.py", "if TYPE_CHECKING:\n    from ..algorithms.iql import State"),
        ("training/online.py", "from safejax import runs"),
        ("training/online.py", "from safejax.losses.value import td_target"),
        ("training/host.py", "def run():\n    import gymnasium"),
        ("algorithms/iql.py", "from safejax.training import train_offline"),
        ("algorithms/iql.py", "from safejax import data"),
        ("algorithms/iql.py", "from flax import linen as nn"),
        ("algorithms/iql.py", "from .. import envs"),
        ("data/replay.py", "from safejax.envs import make"),
        ("training/offline.py", "import tqdm"),
        ("scores.py", "from safejax.data import Dataset"),
        ("losses/value.py", "import safejax.networks"),
        ("losses/value.py", "import optax"),
        ("networks/mlp.py", "from safejax.diffusion import schedule"),
        ("envs/probes.py", "from safejax.constraints import multiplier"),
        ("multipliers.py", "from safejax.gradients import polyak"),
        ("checkpoint/rotation.py", "from safejax.runs import Run"),
        ("checkpoint/arrays.py", "import pickle, torch"),
        ("runs/run.py", "import mujoco.batch"),
        ("types.py", "import numpy as np"),
        ("types.py", "from safejax.gradients import polyak"),
        ("__init__.py", "from safejax.envs import make"),
        ("somewhere/new.py", ""),
    ],
)
def test_a_forbidden_arrow_is_found(path, source):
    assert len(violations(Path(path), source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "training/online.py",
            "from safejax.data.replay import mix\nfrom safejax.types import Env\nimport jax",
        ),
        ("training/online.py", "from .rollout import start\nfrom . import collect"),
        (
            "algorithms/marvel.py",
            "from safejax.algorithms import sac_lag\nfrom safejax.multipliers import ticks",
        ),
        ("algorithms/iql.py", "import optax\nfrom safejax import Transition, diffusion\nimport safejax"),
        ("constraints.py", "from safejax import multipliers\nimport numpy as np\nimport math"),
        (
            "envs/engines/mjx.py",
            "from mujoco import mjx\nfrom ..tasks.base import Task\nfrom ... import types",
        ),
        ("runs/run.py", "from tqdm import tqdm\nfrom safejax import algorithms, checkpoint, training"),
        ("types.py", "import chex\nimport functools"),
    ],
)
def test_an_allowed_arrow_passes(path, source):
    assert violations(Path(path), source) == []


VAGUE = ("utils", "helpers", "common", "manager")


def test_names_say_what_a_file_holds():
    folders = (ROOT / name for name in ("safejax", "benchmarks", "tests", "notebooks"))
    names = [path.relative_to(ROOT).as_posix() for folder in folders for path in folder.rglob("*.py")]
    assert [name for name in names if any(word in name.lower() for word in VAGUE)] == []


def undocumented(source: str) -> list[str]:
    """Module-level public functions and classes without a docstring; the module too, unless it is empty."""
    tree = ast.parse(source)
    named = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    public = [node for node in named if not node.name.startswith("_")]
    names = [] if ast.get_docstring(tree) or not tree.body else ["<module>"]
    return names + [node.name for node in public if not ast.get_docstring(node)]


def asserts(source: str) -> list[int]:
    """Lines with an `assert` statement, which `python -O` removes; calls of `chex.assert_*` are none."""
    return [node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_is_public_is_documented(path):
    assert undocumented(path.read_text()) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_check_that_python_o_removes(path):
    assert asserts(path.read_text()) == []


def test_the_readers_of_source_find_what_they_look_for():
    source = "def f(): pass\nclass A:\n 'said'\n def g(self):\n  assert self\ndef _h(): chex.assert_rank(1, 0)"
    assert undocumented(source) == ["<module>", "f"]
    assert asserts(source) == [5]
