"""The wheel, as a user gets it: built, installed alone into an empty folder, and used from there."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

USE = """
import sys
from pathlib import Path

import jax
import safejax
import safejax.envs

target = Path(sys.argv[1])
assert Path(safejax.__file__).is_relative_to(target), safejax.__file__
env = safejax.envs.make("ball_circle")
states = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 3))
actions = jax.numpy.zeros((3, env.action_size))
states = jax.vmap(env.step)(states, actions, jax.random.split(jax.random.key(1), 3))
env.check()
assert states.observation.shape == (3, 8), states.observation.shape
assert states.steps.tolist() == [1, 1, 1], states.steps
print(safejax.__version__)
"""


def _run(*command: str | Path, cwd: Path, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built by this environment's hatchling: nothing is downloaded."""
    folder = tmp_path_factory.mktemp("wheel")
    _run("-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    package = ROOT / "safejax"
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert any(path.match("envs/assets/*.xml") for path in files)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    inside = {name for name in names if ".dist-info/" not in name}
    assert inside == {path.relative_to(ROOT).as_posix() for path in files}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_installed_wheel_works(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    _run(*install, "--target", site, wheel, cwd=elsewhere)
    printed = _run("-c", USE, site, cwd=elsewhere, PYTHONPATH=str(site))
    assert printed.split()[-1] == wheel.name.split("-")[1]
