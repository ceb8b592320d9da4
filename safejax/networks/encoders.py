"""Pixels: a convolutional encoder, and any network behind one.

An observation with pixels is `{"pixels": uint8 [..., H, W, C], "state": float [..., O]}`; "state" may be absent, frames
of a stack lie side by side in C. Pixels stay uint8 in data sets, replay and batches: the encoder alone scales them.

Every role (actor, critic, value, auto-encoder) has an encoder of its own, trained by that role's loss, and the members
of an ensemble share theirs. So a role stays one TrainState that `warm_start` moves whole, and a target network averages
its own copy. SAC+AE (Yarats et al. 2019, https://arxiv.org/abs/1910.01741) and DrQ (Kostrikov et al. 2020,
https://arxiv.org/abs/2004.13649) save the actor's encoder: it borrows the critic's convolutions and stops the gradient
there. We do not: methods without a critic would need another rule, and cloning learns what a critic need not see.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from safejax.networks.convolution import Conv
from safejax.types import Array, ArrayTree, Key, Network, Params

_CONVOLUTION_INIT = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
_TRUNK_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


class PixelEncoder(nn.Module):
    """Pixels uint8 [..., H, W, C] and a state [..., O], if there is one -> features [..., feature_size + O].

    Convolutions that halve the picture, ReLU after each; then Dense, LayerNorm and tanh as in SAC+AE and DrQ, whose
    later convolutions do not halve: theirs take four times the products (80 x 80 x 9 pixels). The state joins behind
    the tanh as it is.

    Raises:
      ValueError: an observation of another kind, or a picture that cannot be halved so often, in one line.
    """

    channels: Sequence[int] = (32, 32, 32, 32)  # one convolution each
    kernel_size: int = 3
    feature_size: int = 50

    @nn.compact
    def __call__(self, observation: ArrayTree) -> Array:
        pixels, *state = _parts(observation)
        check_sides(pixels.shape, len(self.channels))
        hidden = pixels.astype(jnp.float32) / 255.0 - 0.5
        for size in self.channels:
            hidden = Conv(size, self.kernel_size, kernel_init=_CONVOLUTION_INIT)(hidden)
            hidden = nn.relu(hidden)
        flat = hidden.reshape(*pixels.shape[:-3], -1)
        trunk = nn.LayerNorm()(nn.Dense(self.feature_size, kernel_init=_TRUNK_INIT)(flat))
        return jnp.concatenate([jnp.tanh(trunk), *state], axis=-1)


def _parts(observation: ArrayTree) -> tuple[Array, ...]:
    """(pixels,) or (pixels, state)."""
    named = observation if isinstance(observation, dict) else {}
    pixels = named.get("pixels", jnp.zeros(()))
    if named.keys() - {"pixels", "state"} or pixels.ndim < 3 or pixels.dtype != jnp.uint8:
        found = jax.tree.map(lambda leaf: f"{jnp.asarray(leaf).dtype}{list(jnp.shape(leaf))}", observation)
        raise ValueError(
            f"observation is {found}, expected {{'pixels': uint8 [..., H, W, C]}}, with 'state' [..., O] or without"
        )
    return (pixels, named["state"]) if "state" in named else (pixels,)


def check_sides(shape: tuple[int, ...], convolutions: int) -> None:
    """Refuse pictures [..., H, W, C] that so many convolutions cannot halve.

    Raises:
      ValueError: one line with the sides and what they must be multiples of.
    """
    height, width, _ = shape[-3:]
    if height % 2**convolutions or width % 2**convolutions:
        raise ValueError(
            f"pixels are {height} x {width}, expected multiples of {2**convolutions}, for {convolutions} convolutions "
            "that halve them; render another size, or give the encoder fewer channels"
        )


@dataclass(frozen=True)
class Encoded:
    """`network` with features in place of the observation, its first input; parameters {"encoder", "head"}."""

    encoder: Network
    network: Any

    def init(self, key: Key, observation: ArrayTree, *inputs: Any) -> Params:
        """Parameters of both."""
        encoder_key, head_key = jax.random.split(key)
        encoder = self.encoder.init(encoder_key, observation)
        features = self.encoder.apply(encoder, observation)
        return {"encoder": encoder, "head": self.network.init(head_key, features, *inputs)}

    def apply(self, params: Params, observation: ArrayTree, *inputs: Any, **options: Any) -> Any:
        """What `network` gives for the features and the other inputs."""
        return given(self, params, observation)(*inputs, **options)

    @property
    def action_size(self) -> int:
        """Of a denoiser."""
        return self.network.action_size


def with_encoder(networks: Any, encoder: Network | None) -> Any:
    """A method's Networks, or one network, with `encoder` in front of each; unchanged without an encoder."""
    if encoder is None:
        return networks
    return jax.tree.map(lambda each: Encoded(encoder, each) if hasattr(each, "apply") else each, networks)


def given(network: Any, params: Params, observation: ArrayTree) -> Callable[..., Any]:
    """`network.apply` with its first two arguments filled in: the observation is encoded once for all calls."""
    if isinstance(network, Encoded):
        features = network.encoder.apply(params["encoder"], observation)
        return functools.partial(network.network.apply, params["head"], features)
    return functools.partial(network.apply, params, observation)


def member(network: Any, params: Params, index: int | Array) -> Params:
    """Parameters of an ensemble of one: those of critic `index` [] and the whole encoder, if there is one.

    Args:
      network: an ensemble, or any network whose parameters all have a leading axis [E]; or such behind an encoder.
    """
    if isinstance(network, Encoded):
        return params | {"head": member(network.network, params["head"], index)}
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, index, 1), params)
