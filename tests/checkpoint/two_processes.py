"""One of two processes with two devices each, which save global arrays: DIRECTORY ADDRESS INDEX."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np

from safejax import checkpoint


def values():
    """The state as one process has it: sharded over one axis or two, replicated, and local."""
    source = np.random.default_rng(0)
    return {
        "rows": source.normal(size=(8, 3)).astype(np.float32),
        "both": source.integers(0, 256, (4, 4), np.uint8),
        "half": np.arange(4).astype(jax.numpy.bfloat16),
        "flags": np.array([True, False, True, True]),
        "replicated": np.arange(5, dtype=np.int32),
        "local": np.float32(2.5),
        "key": jax.random.split(jax.random.key(3), 4),
    }


def main(directory: Path, address: str, index: int) -> None:
    """Save, restore, fail to save, rotate; every process must pass all of it."""
    jax.distributed.initialize(address, 2, index)
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def spread(value, *axes):
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        return jax.jit(lambda leaf: leaf, out_shardings=sharding)(value)

    axes = {"both": ("x", "y"), "replicated": (), "local": None}
    state = {
        name: value if axes.get(name, ()) is None else spread(value, *axes.get(name, (("x", "y"),)))
        for name, value in values().items()
    }
    assert_spread(state)
    checkpoint.save(directory / "run", state, {"limit": 2.0})
    again = checkpoint.restore(directory / "run", state, config={"limit": 2.0})
    for name, leaf in again.items():
        for found, expected in zip(shards(leaf), shards(state[name]), strict=True):
            np.testing.assert_array_equal(found, expected)
    print("said: restored what was saved")
    if index == 0:
        (directory / "file").touch()
    try:
        checkpoint.save(directory / "file" / "run", state)
    except checkpoint.CheckpointError as error:
        print("said:", error)
    steps = checkpoint.Checkpoints(directory / "steps")
    for step in (1, 2, 3):
        steps.save(step, {"x": spread(np.arange(8.0, dtype=np.float32) + step, ("x", "y"))})
    print("said: steps", steps.steps())


def shards(leaf):
    """The parts of an array that this process holds."""
    if not isinstance(leaf, jax.Array):
        return [leaf]
    if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return [np.asarray(shard.data) for shard in leaf.addressable_shards]


def assert_spread(state):
    """Raise unless no process could save alone."""
    if state["rows"].is_fully_addressable or jax.device_count() != 4:
        raise RuntimeError(f"{jax.device_count()} devices, expected 4 in two processes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
