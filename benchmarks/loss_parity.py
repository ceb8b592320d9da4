"""Do our updates compute what the official code computes? python benchmarks/loss_parity.py --help

Runs one update of an official implementation, from an outside checkout and under an interpreter that has what it
needs, on a random batch; puts its weights and the random numbers that it drew into our own `update`; and prints every
loss, gradient, target and action of both sides. Exit code 1 if one differs by more than round-off.

    git clone https://github.com/felix-thu/DiffCPS && python -m venv peer && peer/bin/pip install torch numpy
    python benchmarks/loss_parity.py --peer diffcps --checkout DiffCPS --python peer/bin/python
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from loss_parity_terms import TERMS, Term
from offline_to_online import HERE, OneLineParser, choose, stop
from report import aligned

import safejax


class Peer(NamedTuple):
    """An official implementation."""

    repository: str
    module: str  # a file that every checkout of it has
    script: str  # of ours, which runs it
    needs: str
    differences: tuple[str, ...]  # deliberate, and outside of what is compared


_DIFFUSION = (
    "initial weights: ours by variance scaling with a small last layer, theirs torch's defaults",
    "learning rates stay constant; their cosine is stepped once per 50 epochs and ends at .999 of its start",
    "acting: without `explore` ours takes the best of fixed candidates; theirs always draws by softmax(Q)",
    "clipped gradients: torch divides by norm + 1e-6, optax by the norm",
    "the size of Q_b in the Q loss has a floor of 1e-8 in ours",
)
PEERS = {
    "diffcps": Peer(
        "felix-thu/DiffCPS",
        "agents/diffcps.py",
        "loss_parity_torch.py",
        "torch",
        (
            "the multiplier: ours is projected onto its range when it moves, as in the paper; theirs when it is used",
            *_DIFFUSION,
        ),
    ),
    "diffusion_ql": Peer(
        "Zhendong-Wang/Diffusion-Policies-for-Offline-RL",
        "agents/ql_diffusion.py",
        "loss_parity_torch.py",
        "torch",
        _DIFFUSION,
    ),
    "idql": Peer(
        "philippe-eecs/IDQL",
        "jaxrl5/agents/ddpm_iql_simple/ddpm_iql_learner.py",
        "loss_parity_jax.py",
        "jax 0.4.13, flax 0.6.11, optax 0.1.5, distrax 0.1.3, tensorflow-probability 0.20.1",
        (
            "critic loss: theirs is the mean over both critics, ours the sum (compared doubled); Adam hardly sees it",
            "dropout of the denoiser was off on both sides: the two libraries draw different masks",
            "the exponential value loss: theirs is a surrogate, with the exponential cut at log 6 and without the"
            " gradient's factor alpha (compared at alpha = 1, below the cut); ours follows its tangent from 5 on",
            "implicit-policy weights: theirs divide by the signed advantage (quantile) or lack the exponential",
            "the paper's denoiser (mish, time embedding of 64): ours has the sizes of the repository's last state",
            "acting: without `explore` ours takes the best of fixed candidates, theirs of fresh ones",
            "the actor's learning rate is constant by default; theirs falls to 0 over 3e6 updates",
        ),
    ),
    "iql": Peer(
        "ikostrikov/implicit_q_learning",
        "learner.py",
        "loss_parity_jax.py",
        "jax 0.4.13, flax 0.6.11, optax 0.1.5, tensorflow-probability 0.20.1",
        (
            "initial weights: ours by variance scaling, theirs orthogonal",
            "the actor's learning rate is constant by default; theirs falls to 0 over max_steps",
            "no dropout in our actor; theirs is off by default",
            "the weight exp(beta A): ours clips the exponent, theirs the weight, which is the same number",
        ),
    ),
}


class Row(NamedTuple):
    """A line of the table."""

    name: str
    theirs: float  # a scalar, or the norm of an array
    ours: float
    difference: float  # ||theirs - ours|| / ||theirs||
    limit: float


def compare(terms: Iterable[Term]) -> list[Row]:
    """The rows of the table.

    Raises:
      ValueError: a term whose arrays have other shapes on either side.
    """
    rows = []
    for name, theirs, ours, limit in terms:
        shapes = [list(map(np.shape, jax.tree.leaves(side))) for side in (theirs, ours)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{name}: shapes {shapes[0]} at the peer, {shapes[1]} in ours")
        vectors = [
            np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(side)])
            for side in (theirs, ours)
        ]
        shown = [float(side[0] if len(side) == 1 else np.linalg.norm(side)) for side in vectors]
        difference, size = np.linalg.norm(vectors[0] - vectors[1]), np.linalg.norm(vectors[0])
        rows.append(Row(name, shown[0], shown[1], float(difference / max(size, 1e-30)), limit))
    return rows


def differs(row: Row) -> bool:
    """Whether the difference is above the limit, or no number."""
    return not row.difference <= row.limit


def table(rows: list[Row]) -> str:
    """The rows as fixed-width text; what differs is marked."""
    lines = [("term", "theirs", "ours", "difference", "limit")]
    lines += [
        (row.name, f"{row.theirs:.6g}", f"{row.ours:.6g}", f"{row.difference:.1e}", f"{row.limit:.0e}") for row in rows
    ]
    marks = ["", *("  DIFFERS" if differs(row) else "" for row in rows)]
    return "\n".join(line + mark for line, mark in zip(aligned(lines), marks, strict=True))


def report(peer: str, file: dict[str, np.ndarray]) -> tuple[str, bool]:
    """What is printed of the file that the peer wrote, and whether all terms agree.

    Raises:
      ValueError: weights or draws that do not fit ours, in one line.
    """
    with jax.default_device(jax.local_devices(backend="cpu")[0]):  # an accelerator's float32 products are shorter
        rows = compare(TERMS[peer](file))
    bad = [row.name for row in rows if differs(row)]
    worst = max((row.difference for row in rows), key=lambda value: math.inf if math.isnan(value) else value)
    theirs = f"{PEERS[peer].repository}@{file['text/revision']} ({file['text/versions']})"
    lines = [f"{theirs} against safejax {safejax.__version__} (jax {jax.__version__})", "", table(rows), ""]
    lines.append("Arrays are shown by their norm; a difference is the norm of the difference over the norm of theirs.")
    lines.append(f"{len(rows)} terms, {len(bad)} differ; the largest relative difference is {worst:.1e}.")
    lines += ["", "Deliberate differences, outside of this comparison:"]
    return "\n".join([*lines, *(f"- {text}" for text in PEERS[peer].differences)]), not bad


def run_peer(peer: str, checkout: Path, python: str) -> dict[str, np.ndarray]:
    """The file that one update of the peer leaves, run under the interpreter `python`.

    Raises:
      ValueError: the peer failed; one line with its last one.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "peer.npz"
        command = [python, str(HERE / PEERS[peer].script), peer, str(checkout.resolve()), str(output)]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if result.returncode:
            last = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
            raise ValueError(f"the peer failed: {last} (it needs {PEERS[peer].needs}, and numpy)")
        with np.load(output) as file:
            return dict(file)


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, run both sides, print; 0 if they agree, else 1."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help=f"one of {', '.join(PEERS)}")
    parser.add_argument("--checkout", required=True, type=Path, help="folder of the official repository")
    parser.add_argument("--python", required=True, help="interpreter that has the packages of that repository")
    options = parser.parse_args(arguments)
    peer = PEERS[choose("peer", options.peer, PEERS)]
    if not (options.checkout / peer.module).is_file():
        stop(f"--checkout is {options.checkout}, which has no {peer.module}; clone github.com/{peer.repository}")
    if shutil.which(options.python) is None:
        stop(f"--python is {options.python}, expected an interpreter that has {peer.needs}")
    try:
        text, agree = report(options.peer, run_peer(options.peer, options.checkout, options.python))
    except ValueError as error:
        stop(str(error))
    except KeyError as error:
        stop(f"the peer has no {error}: its networks are not those of the expected revision")
    print(text)
    return 0 if agree else 1


if __name__ == "__main__":
    raise SystemExit(main())
