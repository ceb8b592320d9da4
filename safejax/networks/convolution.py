"""Convolutions that halve a picture and transposed ones that double it; on a CPU they are products of patches.

XLA's CPU backend has a fast convolution that it does not use inside loops, where training happens: there a gradient on
128 pictures of 64 x 64 pixels takes 1133 ms against 41 ms outside (JAX 0.10.2, one core; `benchmarks/convolutions.py`).
As products of patches it takes 46 ms. Accelerators keep their own convolutions. Parameters and results are those of
`flax.linen.Conv` and `ConvTranspose` with padding "SAME", up to rounding.
Shapes: H x W pixels, I and O channels, K x K kernel, S stride.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from safejax.types import Array

_LAYOUT = ("NHWC", "HWIO", "NHWC")


class Conv(nn.Module):
    """[..., H, W, I] -> [..., ceil(H / S), ceil(W / S), O]."""

    features: int  # O
    kernel_size: int = 3
    stride: int = 2
    use_bias: bool = True
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()
    dtype: str = "float32"

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        pictures, kernel = _prepared(self, inputs)

        def native(pictures: Array, kernel: Array) -> Array:
            strides = 2 * (self.stride,)
            return jax.lax.conv_general_dilated(pictures, kernel, strides, "SAME", dimension_numbers=_LAYOUT)

        def patches(pictures: Array, kernel: Array) -> Array:
            return _strided_products(pictures, kernel, self.stride)

        return _finished(self, inputs, jax.lax.platform_dependent(pictures, kernel, cpu=patches, default=native))


class DoublingConv(nn.Module):
    """[..., H, W, I] -> [..., 2 H, 2 W, O]: the transposed convolution with a kernel of 4 and a stride of 2."""

    features: int
    use_bias: bool = True
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()
    dtype: str = "float32"

    kernel_size = 4  # `_doubled` knows no other

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        pictures, kernel = _prepared(self, inputs)

        def native(pictures: Array, kernel: Array) -> Array:
            return jax.lax.conv_transpose(pictures, kernel, (2, 2), "SAME", dimension_numbers=_LAYOUT)

        return _finished(self, inputs, jax.lax.platform_dependent(pictures, kernel, cpu=_doubled, default=native))


def _prepared(module: Conv | DoublingConv, inputs: Array) -> tuple[Array, Array]:
    """Pictures [N, H, W, I] and the kernel [K, K, I, O]."""
    shape = 2 * (module.kernel_size,) + (inputs.shape[-1], module.features)
    kernel = module.param("kernel", module.kernel_init, shape, jnp.float32)
    pictures = inputs.reshape(-1, *inputs.shape[-3:])
    return pictures.astype(module.dtype), kernel.astype(module.dtype)


def _finished(module: Conv | DoublingConv, inputs: Array, outputs: Array) -> Array:
    """With the bias, and the leading axes of `inputs`."""
    if module.use_bias:
        bias = module.param("bias", nn.initializers.zeros_init(), (module.features,), jnp.float32)
        outputs += bias.astype(module.dtype)
    return outputs.reshape(*inputs.shape[:-3], *outputs.shape[1:])


def _strided_products(pictures: Array, kernel: Array, stride: int) -> Array:
    """Every place of the kernel gives a shifted picture of the output's size; one product joins them."""
    size, sides = kernel.shape[0], pictures.shape[1:3]
    outs = [-(-side // stride) for side in sides]
    missing = [max((out - 1) * stride + size - side, 0) for out, side in zip(outs, sides, strict=True)]
    pads = [(each // 2, each - each // 2) for each in missing]
    padded = jnp.pad(pictures, ((0, 0), *pads, (0, 0)))
    ends = [(out - 1) * stride + 1 for out in outs]
    shifted = [
        padded[:, row : row + ends[0] : stride, column : column + ends[1] : stride]
        for row in range(size)
        for column in range(size)
    ]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def _doubled(pictures: Array, kernel: Array) -> Array:
    """Of the pixels out, those in even and odd rows and columns each see two rows and columns of the pixels in.

    Row 2 m of the output is K[0] x[m - 1] + K[2] x[m], row 2 m + 1 is K[1] x[m] + K[3] x[m + 1]; columns likewise.
    """
    count, height, width, _ = pictures.shape
    padded = jnp.pad(pictures, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def pixels(row: int, column: int) -> Array:
        near = [padded[:, row + r : row + r + height, column + c : column + c + width] for r in (0, 1) for c in (0, 1)]
        return jnp.concatenate(near, axis=-1) @ kernel[row::2, column::2].reshape(-1, kernel.shape[-1])

    rows = [jnp.stack([pixels(row, 0), pixels(row, 1)], axis=3) for row in (0, 1)]  # [N, H, W, 2, O]
    return jnp.stack(rows, axis=2).reshape(count, 2 * height, 2 * width, -1)
