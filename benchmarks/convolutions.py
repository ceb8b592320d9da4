"""Gradients of encoders with XLA's convolutions and with safejax's, in a loop or not: python benchmarks/convolutions.py

A loop is what training runs in. Prints one JSON object a row, milliseconds of one gradient (the least of five calls).
"""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import measure
from flax import linen as nn

from safejax.networks.convolution import Conv

ENCODERS = {
    "PixelEncoder, 64 x 32x32x9": ((64, 32, 32, 9), 3, (16, 16, 16)),
    "world model, 128 x 32x32x3": ((128, 32, 32, 3), 4, (4, 8, 16)),
    "world model, 128 x 64x64x6": ((128, 64, 64, 6), 4, (8, 16, 32, 64)),
}
STEPS = 5  # of the loop


class Stack(nn.Module):
    """Convolutions that halve the picture, ReLU after each."""

    ours: bool
    size: int
    channels: tuple[int, ...]

    @nn.compact
    def __call__(self, pictures: jax.Array) -> jax.Array:
        for count in self.channels:
            layer = Conv(count, self.size) if self.ours else nn.Conv(count, 2 * (self.size,), 2)
            pictures = nn.relu(layer(pictures))
        return pictures


def main() -> None:
    """Measure and print."""
    for name, (shape, size, channels) in ENCODERS.items():
        for ours in (False, True):
            network = Stack(ours, size, channels)
            pictures = jax.random.normal(jax.random.key(0), shape)
            params = network.init(jax.random.key(1), pictures)
            row = {"encoder": name, "convolution": "safejax" if ours else "XLA"}
            row |= {"alone_ms": _milliseconds(network, params, pictures, 0)}
            row |= {"loop_ms": _milliseconds(network, params, pictures, STEPS) / STEPS}
            print(json.dumps(row | {"machine": measure.machine()}), flush=True)


def _milliseconds(network: Any, params: Any, pictures: jax.Array, steps: int) -> float:
    gradient = jax.grad(lambda params: jnp.sum(jnp.square(network.apply(params, pictures))))

    def loop(params: Any) -> Any:
        def step(params: Any, _: None) -> tuple[Any, None]:
            return jax.tree.map(lambda old, slope: old - 1e-6 * slope, params, gradient(params)), None

        return jax.lax.scan(step, params, None, steps)[0]

    call = jax.jit(loop if steps else gradient)
    jax.block_until_ready(call(params))
    return 1e3 * min(measure.timed(lambda: call(params)) for _ in range(5))


if __name__ == "__main__":
    main()
