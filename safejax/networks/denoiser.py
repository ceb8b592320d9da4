"""Networks that predict the noise in a noisy action, for `safejax.diffusion`.

Both take `(observation [..., O], noisy [..., A], index [...] or [], key=None)` and give noise [..., A]. Leading axes
broadcast: with observation [B, O], noisy [K, B, A] and index [], the first layer meets each state once for its K
candidates, and the step once for all.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from safejax.networks.activations import ACTIVATIONS, mish
from safejax.networks.mlp import MLP, check_arrays
from safejax.types import Array, Key

_HIDDEN_INIT = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
_XAVIER_INIT = nn.initializers.xavier_uniform()


class JointDense(nn.Module):
    """`nn.Dense` of the concatenation of its inputs [..., I_k], whose leading axes only have to broadcast.

    Its parameters are those of that layer: one kernel [sum of I_k, size], cut into one block per input, and a bias.
    """

    size: int
    kernel_init: nn.initializers.Initializer = _HIDDEN_INIT

    @nn.compact
    def __call__(self, *inputs: Array) -> Array:
        check_arrays(*inputs)
        widths = [each.shape[-1] for each in inputs]
        kernel = self.param("kernel", self.kernel_init, (sum(widths), self.size))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.size,))
        blocks = jnp.split(kernel, np.cumsum(widths)[:-1])
        # inputs without candidates are added first, so that the large sum is made once
        parts = sorted((each @ block for each, block in zip(inputs, blocks, strict=True)), key=jnp.ndim)
        return sum(parts, bias)


def sinusoidal_embedding(index: Array, size: int) -> Array:
    """[sin, cos] [..., size] of index [...] times the frequencies 10000^(-k / (size / 2 - 1)).

    Raises:
      ValueError: a size that is odd or below 4.
    """
    if size < 4 or size % 2:
        raise ValueError(f"time_size is {size}, expected an even number from 4")
    half = size // 2
    frequencies = (10000.0 ** (-np.arange(half) / (half - 1.0))).astype(np.float32)
    angles = jnp.asarray(index, jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class FourierFeatures(nn.Module):
    """[cos, sin] [..., size] of 2 pi w index, with learned frequencies w [size / 2] that start from N(0, 0.2^2)."""

    size: int

    @nn.compact
    def __call__(self, index: Array) -> Array:
        frequencies = self.param("frequencies", nn.initializers.normal(0.2), (self.size // 2,))
        angles = 2.0 * jnp.pi * jnp.asarray(index, jnp.float32)[..., None] * frequencies
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class MLPDenoiser(nn.Module):
    """The plain network of Diffusion-QL and DiffCPS; it has no dropout, `key` plays no part.

    Source: Wang et al. 2023, https://arxiv.org/abs/2208.06193, appendix B. Differs from the authors' code in its
    initial weights: variance scaling with a small last layer, so that the first predictions are near 0.

    Raises:
      ValueError: no hidden layer, or a time_size that is odd or below 4.
    """

    action_size: int
    hidden_sizes: Sequence[int] = (256, 256, 256)
    time_size: int = 16
    activation: str = "mish"

    @nn.compact
    def __call__(self, observation: Array, noisy: Array, index: Array, key: Key | None = None) -> Array:
        del key
        if not self.hidden_sizes:
            raise ValueError("hidden_sizes is empty, expected at least one width")
        time = nn.Dense(2 * self.time_size, kernel_init=_HIDDEN_INIT)(sinusoidal_embedding(index, self.time_size))
        time = nn.Dense(self.time_size, kernel_init=_HIDDEN_INIT)(mish(time))
        first, *others = self.hidden_sizes
        hidden = ACTIVATIONS[self.activation](JointDense(first)(noisy, time, observation))
        return MLP(others, self.action_size, self.activation)(hidden)


class ResidualDenoiser(nn.Module):
    """The residual network with layer norms of IDQL and AlignIQL; dropout acts only where a `key` is given.

    Source: Hansen-Estruch et al. 2023, https://arxiv.org/abs/2304.10573, appendix E; sizes and activations of the last
    state of their code (the paper: time_size 64, time_hidden_sizes (128, 128), mish). A block is
    x + Dense(swish(Dense(LayerNorm(Dropout(x))))).
    """

    action_size: int
    width: int = 256
    block_count: int = 3
    expansion: int = 4
    time_size: int = 128
    time_hidden_sizes: Sequence[int] = (256, 256)
    dropout_rate: float = 0.1
    layer_norm: bool = True

    @nn.compact
    def __call__(self, observation: Array, noisy: Array, index: Array, key: Key | None = None) -> Array:
        time = FourierFeatures(self.time_size)(index)
        for layer, size in enumerate(self.time_hidden_sizes):
            time = nn.Dense(size, kernel_init=_XAVIER_INIT)(nn.swish(time) if layer else time)
        hidden = JointDense(self.width, kernel_init=_XAVIER_INIT)(noisy, observation, time)
        for block in range(self.block_count):
            dropout_key = None if key is None else jax.random.fold_in(key, block)
            inner = nn.Dropout(self.dropout_rate)(hidden, deterministic=key is None, rng=dropout_key)
            inner = nn.LayerNorm()(inner) if self.layer_norm else inner
            inner = nn.swish(nn.Dense(self.expansion * self.width)(inner))
            hidden = hidden + nn.Dense(self.width)(inner)
        return nn.Dense(self.action_size, kernel_init=_XAVIER_INIT)(nn.swish(hidden))
