"""The other side of loss_parity.py: one update of an official implementation, with all that went in and came out.

What loss_parity_torch.py and loss_parity_jax.py share. They run as `python SCRIPT PEER CHECKOUT FILE` under the peer's
own interpreter (Python >= 3.9) and write an npz file. Packages that are imported there but that no update touches
(simulators, loggers) are replaced by stand-ins. Random draws are not replaced but recorded, in their order. Names in
the file (Diffusion-QL and DiffCPS run two updates, whose names go on with "plain/" or "backup/"):

    batch/*    what the update was given                   number/*   hyper-parameters
    before/*   parameters at its start, by network         draw/*     random draws, by what they served
    moment/*   first Adam moments after it, 0.1 x gradient after/*    parameters at its end
    term/*     what the official code says it computed     text/*     revision and versions
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import subprocess
import sys
import types

import numpy as np

BATCH, OBSERVATION, ACTION = 64, 5, 3
STEPS = 5  # of the diffusion chain, as published
EVALUATED = 8  # observations of the batch that actions are evaluated for
ABSENT = ("d4rl", "gym", "wandb", "dmcgym", "dm_control", "moviepy", "imageio", "dateutil")


class StandIn(types.ModuleType):
    """A package whose every attribute is an empty class."""

    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__class_getitem__": classmethod(lambda cls, item: cls)})


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Serves a `StandIn` for the packages in `ABSENT` and whatever is below them."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] in ABSENT:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        return StandIn(spec.name)

    def exec_module(self, module):
        pass


@contextlib.contextmanager
def replaced(module, **functions):
    """Attributes of `module`, replaced for a while."""
    kept = {name: getattr(module, name) for name in functions}
    try:
        for name, function in functions.items():
            setattr(module, name, function)
        yield
    finally:
        for name, function in kept.items():
            setattr(module, name, function)


@contextlib.contextmanager
def recorded(module, *names):
    """The arrays that these functions of `module` return meanwhile, in order.

    Tracers are left out: flax traces initialisers for their shapes.
    """
    draws = []

    def recording(function):
        def call(*arguments, **options):
            draw = function(*arguments, **options)
            if "Tracer" not in type(draw).__name__:
                draws.append(draw)
            return draw

        return call

    with replaced(module, **{name: recording(getattr(module, name)) for name in names}):
        yield draws


def chain(draws):
    """What one reverse chain drew, [T + 1, rows, A]: its start, then the noise of steps T - 1 to 0."""
    return np.stack([np.asarray(draw) for draw in draws])


def make_batch():
    """Standard normal rows, a fifth of them terminal; actions inside the bounds."""
    random = np.random.default_rng(0)
    rows = {
        "observation": random.normal(size=(BATCH, OBSERVATION)),
        "action": np.clip(0.5 * random.normal(size=(BATCH, ACTION)), -0.999, 0.999),
        "reward": random.normal(size=BATCH),
        "discount": random.random(BATCH) > 0.2,
        "next_observation": random.normal(size=(BATCH, OBSERVATION)),
    }
    return {name: value.astype(np.float32) for name, value in rows.items()}


def prefixed(prefix, tree):
    """The entries of `tree` under names that start with `prefix`, as NumPy arrays."""
    return {f"{prefix}/{name}": np.asarray(value).copy() for name, value in tree.items()}


def revision(checkout):
    """The commit of a checkout, if it is one and git is there."""
    command = ["git", "-C", checkout, "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main(engine, peers):
    """Run the update that the command line names, of `peers` (name -> function of the batch), and write the file."""
    peer, checkout, output = sys.argv[1:]
    sys.argv = sys.argv[:1]
    sys.meta_path.insert(0, StandIns())
    sys.path[0] = checkout  # in place of the script's folder
    batch = make_batch()
    file = {**peers[peer](batch), **prefixed("batch", batch)}
    versions = f"{engine} {importlib.import_module(engine).__version__}, Python {sys.version.split()[0]}"
    file.update(prefixed("text", {"revision": revision(checkout), "versions": versions}))
    np.savez(output, **file)
