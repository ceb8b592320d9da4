"""What a run of `vision.py` needs, said before anything is made: memory, updates, arithmetic."""

from __future__ import annotations

import jax
import program_flops
from vision_phases import CHUNKS, Job, tree_bytes
from vision_presets import Budget, Look

from safejax.data.memory import available_bytes
from safejax.types import Algorithm, ArrayTree, Env, example_transition


def pictures(look: Look, budget: Budget, kinds: int, episode_length: int) -> str:
    """A line on the recorded pictures."""
    size = kinds * budget.episodes * episode_length * look.side**2 * 3 * len(look.cameras)
    available = available_bytes()
    left = "" if available is None else f"; {_bytes(available)} available"
    return f"pictures: {_bytes(size)}{left}"


def method(job: Job) -> str:
    """A line on a method: bytes of its state and replay, updates of both phases and what one costs."""
    row = job.row
    phases = [f"{CHUNKS * job.chunk_updates:,} updates of {_gflop(row.offline, job.env, row.batch_size)} GFLOP offline"]
    memory = [f"{_bytes(tree_bytes(_state(row.offline, job.env)))} of state"]
    if row.online is not None:
        count = CHUNKS * job.iterations * job.iteration_updates
        phases.append(f"{count:,} of {_gflop(row.online, job.env, row.batch_size)} online")
        memory.append(f"{_bytes(job.replay_bytes)} of replay")
    return f"{row.label}: {', '.join(memory)}; {', '.join(phases)}"


def _state(algorithm: Algorithm, env: Env) -> ArrayTree:
    return jax.eval_shape(algorithm.init, jax.random.key(0), example_transition(env))


def _gflop(algorithm: Algorithm, env: Env, rows: int) -> str:
    spec = algorithm.batch
    axes = (rows, spec.length) if spec.kind == "sequence" else (rows,)
    one = example_transition(env)
    one = one if spec.successors else one._replace(next_observation=())
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*axes, *leaf.shape), leaf.dtype), one)
    count = program_flops.count(algorithm.update, _state(algorithm, env), batch, jax.random.key(0))
    return f"{count / 1e9:,.1f}"


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
