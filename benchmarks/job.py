"""What the phases of `offline_to_online.py` share: a job, its keys, and records of its episodes. Shapes: S seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bridges import Offline
from presets import Budget

from safejax.runs import Run
from safejax.types import Array, ArrayTree, Env

BEHAVIOR, OFFLINE, ALIGNMENT, FINETUNING, EVALUATION, EXTRACTION = range(6)
"""Tags of the phases' keys."""


@dataclass(frozen=True)
class Job:
    """What every phase needs to know."""

    run: Run
    env: Env
    engine: str
    budget: Budget
    offline: str  # pre-training method
    source: Offline  # the same, bound
    limit: float  # cost units per episode
    seeds: tuple[int, ...]
    acting: str = "papers"  # of evaluated policies, a key of `evaluation.ACTING`
    sharding: Any = None  # of the leading seed axis; None on one device

    def keys(self, phase: int) -> Array:
        """One key per seed [S] for a phase; phases share none."""
        keys = jnp.stack([jax.random.fold_in(jax.random.key(seed), phase) for seed in self.seeds])
        return self.place(keys)

    def place(self, tree: ArrayTree) -> ArrayTree:
        """Spread a tree with a leading seed axis over the devices."""
        return tree if self.sharding is None else jax.device_put(tree, self.sharding)

    def on_seeds(self, function: Any) -> Any:
        """jit(vmap) over states and keys [S]; further arguments are shared; the states are donated."""

        def vmapped(state: ArrayTree, keys: Array, *shared: Any) -> Any:
            return jax.vmap(function, in_axes=(0, 0, *(None,) * len(shared)))(state, keys, *shared)

        jitted = jax.jit(vmapped, donate_argnums=0)
        return lambda state, keys, *shared: jitted(self.place(state), keys, *shared)


def episode_summary(episodes: Any) -> dict[str, Array]:
    """Mean return and cost of the finished episodes, and how many diverged."""
    count = jnp.maximum(jnp.sum(episodes.finished), 1)
    return {
        "training_return": jnp.sum(jnp.where(episodes.finished, episodes.episode_return, 0.0)) / count,
        "training_cost": jnp.sum(jnp.where(episodes.finished, episodes.episode_cost, 0.0)) / count,
        "diverged": jnp.sum(episodes.diverged),
    }


def episode_record(episodes: Any) -> dict[str, Any]:
    """Mean return and cost of each learner's finished episodes, and how many diverged [S]."""
    found = jax.vmap(episode_summary)(episodes)
    return {name.removeprefix("training_"): np.asarray(value) for name, value in found.items()}
