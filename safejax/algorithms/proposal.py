"""Frozen policies that offer candidate actions: what policy expansion and extraction keep of an offline method.

Each is a frozen dataclass with `init(key, observation, action) -> params`, to be replaced by `warm_start`, and
`propose(params, observation, key, explore=) -> candidates`. Shapes: B batch, K candidates, O observation, A action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from safejax.algorithms import diffusion_bc, iql
from safejax.diffusion import DiffusionConfig
from safejax.networks import GaussianActor, MLPDenoiser, with_encoder
from safejax.types import Array, ArrayTree, Key, Network, Params, check_choice


@dataclass(frozen=True)
class FrozenActor:
    """An actor with a distribution: its mode, and `candidate_count` - 1 draws."""

    actor: Network
    candidate_count: int = 1

    def init(self, key: Key, observation: ArrayTree, action: Array) -> Params:
        """Parameters of the shape that a checkpoint has."""
        del action
        return self.actor.init(key, observation)

    def propose(self, params: Params, observation: ArrayTree, key: Key, *, explore: bool) -> Array:
        """[K, B, A] for observations [B, O]; the draws come from a fixed key unless `explore`."""
        policy = self.actor.apply(params, observation)
        keys = jax.random.split(key if explore else jax.random.key(0), self.candidate_count)
        candidates = jax.vmap(policy.sample)(keys).at[0].set(policy.mode())
        return jnp.clip(candidates, -1.0, 1.0)


@dataclass(frozen=True)
class FrozenDiffusion:
    """A denoiser and how it is sampled: `candidate_count` draws."""

    actor: Any
    diffusion: DiffusionConfig
    candidate_count: int = 8

    def init(self, key: Key, observation: ArrayTree, action: Array) -> Params:
        """Parameters of the shape that a checkpoint has."""
        return self.actor.init(key, observation, action, jnp.zeros((), jnp.int32))

    def propose(self, params: Params, observation: ArrayTree, key: Key, *, explore: bool) -> Array:
        """[K, B, A] for observations [B, O]; fixed noise unless `explore`, see `diffusion_bc.propose`."""
        return diffusion_bc.propose(
            params, observation, key, self.candidate_count, explore=explore, config=self, networks=self
        )


PROPOSALS = {
    "gaussian": lambda size, hidden: FrozenActor(GaussianActor(size, hidden, **iql.ACTORS["gaussian"])),
    "squashed": lambda size, hidden: FrozenActor(GaussianActor(size, hidden)),
    "deterministic": lambda size, hidden: FrozenActor(GaussianActor(size, hidden, **iql.ACTORS["deterministic"]), 8),
    "residual": lambda size, hidden: FrozenDiffusion(
        diffusion_bc.residual_denoiser(size, hidden[0]), DiffusionConfig(clip="noisy", variance="beta")
    ),
    "mlp": lambda size, hidden: FrozenDiffusion(MLPDenoiser(size, hidden), DiffusionConfig()),
}
"""Name -> (action size, hidden sizes) -> the policy of that kind: IQL's, SAC's, TD3+BC's, IDQL's, Diffusion-QL's."""


def make_proposal(
    name: str, action_size: int, hidden_sizes: Sequence[int], encoder: Network | None = None
) -> FrozenActor | FrozenDiffusion:
    """A frozen policy by name, with the networks that its method has by default.

    Raises:
      ValueError: an unknown name, in one line.
    """
    check_choice("frozen", name, PROPOSALS)
    frozen = PROPOSALS[name](action_size, tuple(hidden_sizes))
    return replace(frozen, actor=with_encoder(frozen.actor, encoder))
