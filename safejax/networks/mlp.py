"""Multi-layer perceptrons: actors, critics, values, and `ensemble`.

Weights start from variance scaling, never from an orthogonal matrix: a QR decomposition under vmapped seeds hangs on
two CPU cores (jax 0.10.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from safejax.networks.activations import ACTIVATIONS
from safejax.networks.distributions import Categorical, Normal, TanhNormal
from safejax.types import Array, Key, Network, Params

_HIDDEN_INIT = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
_OUTPUT_INIT = nn.initializers.variance_scaling(1e-2, "fan_in", "truncated_normal")


def check_arrays(*inputs: Any) -> None:
    """Refuse what no dense layer can take.

    Raises:
      ValueError: one line, for observations with pixels that meet a network without an encoder.
    """
    for each in inputs:
        if not hasattr(each, "shape"):
            kind = f"{type(each).__name__} of {', '.join(each)}" if isinstance(each, dict) else type(each).__name__
            raise ValueError(
                f"a network's input is a {kind}, expected an array [..., O]; for pixels give default_networks an "
                "encoder, such as safejax.networks.PixelEncoder()"
            )


class MLP(nn.Module):
    """Dense layers of the inputs [..., I_k], side by side, -> [..., output_size], with a small last layer."""

    hidden_sizes: Sequence[int]
    output_size: int
    activation: str = "relu"

    @nn.compact
    def __call__(self, first: Array, *others: Array) -> Array:
        check_arrays(first, *others)
        hidden = jnp.concatenate([first, *others], axis=-1) if others else first
        for size in self.hidden_sizes:
            hidden = ACTIVATIONS[self.activation](nn.Dense(size, kernel_init=_HIDDEN_INIT)(hidden))
        return nn.Dense(self.output_size, kernel_init=_OUTPUT_INIT)(hidden)


class GaussianActor(nn.Module):
    """Observation [..., O] -> `TanhNormal` or `Normal` over actions [..., A].

    `squash=True` squashes samples (SAC, CPQ). `squash=False` squashes only the mean and leaves a plain Gaussian
    (IQL, PPO), whose actions the caller clips. `state_dependent_std=False` learns one log-std per action.
    """

    action_size: int
    hidden_sizes: Sequence[int]
    activation: str = "relu"
    squash: bool = True
    state_dependent_std: bool = True
    initial_log_std: float = 0.0
    log_std_range: tuple[float, float] = (-20.0, 2.0)

    @nn.compact
    def __call__(self, observation: Array) -> Normal | TanhNormal:
        output_size = self.action_size * (2 if self.state_dependent_std else 1)
        output = MLP(self.hidden_sizes, output_size, self.activation)(observation)
        if self.state_dependent_std:
            mean, log_std = jnp.split(output, 2, axis=-1)
            log_std = log_std + self.initial_log_std
        else:
            initial = nn.initializers.constant(self.initial_log_std)
            mean = output
            log_std = jnp.broadcast_to(self.param("log_std", initial, (self.action_size,)), mean.shape)
        log_std = jnp.clip(log_std, *self.log_std_range)
        return TanhNormal(mean, log_std) if self.squash else Normal(jnp.tanh(mean), log_std)


class CategoricalActor(nn.Module):
    """Observation [..., O] -> `Categorical` over `action_size` actions."""

    action_size: int
    hidden_sizes: Sequence[int]
    activation: str = "relu"

    @nn.compact
    def __call__(self, observation: Array) -> Categorical:
        return Categorical(MLP(self.hidden_sizes, self.action_size, self.activation)(observation))


class Critic(nn.Module):
    """Observation [..., O], action [..., A] -> [...] value of the pair."""

    hidden_sizes: Sequence[int]
    activation: str = "relu"

    @nn.compact
    def __call__(self, observation: Array, action: Array) -> Array:
        return MLP(self.hidden_sizes, 1, self.activation)(observation, action)[..., 0]


class Value(nn.Module):
    """Observation [..., O] -> [...] value; `layer_norm` normalises the observation first, as IDQL's code does."""

    hidden_sizes: Sequence[int]
    activation: str = "relu"
    layer_norm: bool = False

    @nn.compact
    def __call__(self, observation: Array) -> Array:
        observation = nn.LayerNorm()(observation) if self.layer_norm else observation
        return MLP(self.hidden_sizes, 1, self.activation)(observation)[..., 0]


@dataclass(frozen=True)
class Ensemble:
    """`size` copies of a network with their own parameters; outputs gain a leading axis [E, ...].

    A frozen dataclass and not two closures, so that equal ensembles share one trace.
    """

    network: Network
    size: int

    def init(self, key: Key, *inputs: Any) -> Params:
        """Parameters with a leading axis [E]."""
        return jax.vmap(lambda each: self.network.init(each, *inputs))(jax.random.split(key, self.size))

    def apply(self, params: Params, *inputs: Any) -> Any:
        """Every member on the same inputs: [E, ...]."""
        return jax.vmap(lambda each: self.network.apply(each, *inputs))(params)


def ensemble(network: Network, size: int) -> Ensemble:
    """`size` independent copies of `network` that see the same inputs."""
    return Ensemble(network, size)
