"""Activations by name."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from safejax.types import Array


@jax.custom_jvp
def mish(x: Array) -> Array:
    """x tanh(softplus(x)) of any shape, with one exponential for value and slope (Misra 2019, arXiv:1908.08681).

    `jax.nn.mish` spends three transcendentals on the value and as many on the slope: a third of a Diffusion-QL update
    on a CPU. With e = exp(x) and n = e (e + 2), tanh(log(1 + e)) = n / (n + 2).
    """
    return x * _gate(x)[0]


def _gate(x: Array) -> tuple[Array, Array]:
    """g = tanh(softplus(x)) and x g'; beyond 20, where float32 cannot tell them from 1 and 0, they stay."""
    bounded = jnp.minimum(x, 20.0)
    e = jnp.exp(bounded)
    n = e * (e + 2.0)
    inverse = 1.0 / (n + 2.0)
    return n * inverse, bounded * (4.0 * e * (1.0 + e) * inverse * inverse)


@mish.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    gate, rise = _gate(x)
    return x * gate, (gate + rise) * tangent


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "tanh": jnp.tanh,
    "swish": nn.swish,
    "mish": mish,
}
