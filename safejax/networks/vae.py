"""A conditional variational auto-encoder of actions, the behaviour model of CPQ and its relatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from safejax.networks.mlp import MLP
from safejax.types import Array, Key


class Reconstruction(NamedTuple):
    """What one pass through the auto-encoder gives."""

    action: Array  # [..., A] decoded, in (-1, 1)
    latent_mean: Array  # [..., D]
    latent_log_std: Array  # [..., D]


class ConditionalVAE(nn.Module):
    """Action [..., A] given observation [..., O], through a latent [..., D].

    Source: Fujimoto et al. 2018 (BCQ), https://arxiv.org/abs/1812.02900; log-std limits as in OSRL.
    """

    action_size: int
    hidden_sizes: Sequence[int] = (400, 400)
    latent_factor: int = 2  # D = latent_factor * A

    def setup(self) -> None:
        latent_size = self.latent_factor * self.action_size
        self.encoder = MLP(self.hidden_sizes, 2 * latent_size)
        self.decoder = MLP(self.hidden_sizes, self.action_size)

    def encode(self, observation: Array, action: Array) -> tuple[Array, Array]:
        """Mean and log-std [..., D] of the latent posterior."""
        output = self.encoder(observation, action)
        mean, log_std = jnp.split(output, 2, axis=-1)
        return mean, jnp.clip(log_std, -4.0, 15.0)

    def __call__(self, observation: Array, action: Array, key: Key) -> Reconstruction:
        mean, log_std = self.encode(observation, action)
        latent = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        decoded = jnp.tanh(self.decoder(observation, latent))
        return Reconstruction(decoded, mean, log_std)
