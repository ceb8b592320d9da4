"""A state like those of the algorithms, and what tests of checkpoints do with it."""

from __future__ import annotations

import dataclasses
import json
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from safejax.types import TrainState


class State(NamedTuple):
    step: jax.Array
    actor: TrainState
    critic: TrainState
    target_critic: dict
    multiplier: tuple = ()
    carry: dict = {}


@dataclasses.dataclass(frozen=True)
class Config:
    learning_rate: float = 3e-4
    hidden: tuple = (64, 64)
    limit: float = float("nan")


def make_state(seed=0, width=5):
    keys = jax.random.split(jax.random.key(seed), 2)

    def train_state(key):
        params = {"params": {"layer_0": {"kernel": jax.random.normal(key, (3, width)), "bias": jnp.ones(width)}}}
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
        _, opt_state = optimizer.update(params, optimizer.init(params), params)
        return TrainState(params, opt_state)

    actor, critic = train_state(keys[0]), train_state(keys[1])
    return State(jnp.int32(seed), actor, critic, jax.tree.map(jnp.copy, critic.params))


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def largest_file(directory):
    """Of those that Orbax wrote: into how many it spreads the arrays is chance, and metadata.json may be larger."""
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != "metadata.json")
    return max(files, key=lambda path: path.stat().st_size)


def forge(directory, change):
    """Rewrite metadata.json as `change(its contents)` leaves it, under a checksum that is right."""
    about = json.loads((directory / "metadata.json").read_bytes())
    del about["checksum"]
    change(about)
    about["checksum"] = zlib.crc32(json.dumps(about, indent=1).encode())
    (directory / "metadata.json").write_text(json.dumps(about))
