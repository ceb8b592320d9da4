"""Networks that read features: two-hot, Bernoulli and plain heads, and the actor of latent states.

Source: Hafner et al. 2023, DreamerV3, https://arxiv.org/abs/2301.04104, first release. Shapes: `...` leading axes,
A action.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from safejax.networks.distributions import Normal
from safejax.types import Array

DENSE_INIT = nn.initializers.variance_scaling(1.0, "fan_avg", "truncated_normal")
STD_RANGE = (0.1, 1.0)
STD_BIAS = 2.0  # a fresh actor's std is .1 + .9 sigmoid(2) = .89


class DenseNormAct(nn.Module):
    """Dense, LayerNorm, SiLU."""

    size: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        hidden = nn.Dense(self.size, use_bias=False, kernel_init=DENSE_INIT, dtype=self.dtype)(inputs)
        return nn.silu(nn.LayerNorm(epsilon=1e-3, dtype=self.dtype)(hidden))


class Head(nn.Module):
    """Inputs [..., I_k], side by side -> [..., output_size]: layers with normalisation, then a linear one.

    `zero` starts the last layer at 0, so that a two-hot head first says exactly 0 everywhere.
    """

    output_size: int
    hidden_sizes: Sequence[int] = (512, 512)
    zero: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, *inputs: Array) -> Array:
        hidden = jnp.concatenate(inputs, axis=-1)
        for size in self.hidden_sizes:
            hidden = DenseNormAct(size, self.dtype)(hidden)
        kernel_init = nn.initializers.zeros if self.zero else DENSE_INIT
        return nn.Dense(self.output_size, kernel_init=kernel_init)(hidden.astype(jnp.float32))


class LatentActor(nn.Module):
    """Features [..., F] -> `Normal` over actions [..., A]: means in (-1, 1), stds in `STD_RANGE`, not squashed."""

    action_size: int
    hidden_sizes: Sequence[int] = (512, 512)
    dtype: str = "float32"

    @nn.compact
    def __call__(self, features: Array) -> Normal:
        output = Head(2 * self.action_size, self.hidden_sizes, dtype=self.dtype)(features)
        mean, width = jnp.split(output, 2, axis=-1)
        low, high = STD_RANGE
        return Normal(jnp.tanh(mean), jnp.log(low + (high - low) * jax.nn.sigmoid(width + STD_BIAS)))
