"""Action distributions as pytrees: `sample`, `sample_and_log_prob`, `log_prob`, `mode`, `entropy`.

Shapes: `...` leading axes, A action. Log-probabilities sum over A. They are ours because distrax pulls in
TensorFlow Probability.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from safejax.types import Array, Key

_LARGEST_ACTION = 1.0 - 1e-6  # atanh stays finite, and exact in float32


class Normal(NamedTuple):
    """Diagonal Gaussian; samples are not bounded."""

    mean: Array  # [..., A]
    log_std: Array  # [..., A]

    def sample(self, key: Key) -> Array:
        """[..., A] reparameterised draw."""
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape)

    def log_prob(self, action: Array) -> Array:
        """[...] log-density of `action` [..., A]."""
        noise = (action - self.mean) * jnp.exp(-self.log_std)
        return jnp.sum(-0.5 * jnp.square(noise) - self.log_std - 0.5 * math.log(2 * math.pi), axis=-1)

    def sample_and_log_prob(self, key: Key) -> tuple[Array, Array]:
        """A draw [..., A] and its log-density [...]."""
        action = self.sample(key)
        return action, self.log_prob(action)

    def mode(self) -> Array:
        """[..., A] the mean."""
        return self.mean

    def entropy(self, key: Key | None = None) -> Array:
        """[...] exact differential entropy in nats; the key is not used."""
        del key
        return jnp.sum(self.log_std + 0.5 * math.log(2 * math.pi * math.e), axis=-1)


class TanhNormal(NamedTuple):
    """tanh of a diagonal Gaussian, on (-1, 1)."""

    mean: Array  # [..., A] before the tanh
    log_std: Array  # [..., A] before the tanh

    def _log_prob_before_tanh(self, raw: Array) -> Array:
        # log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)) loses nothing where tanh saturates.
        correction = 2.0 * (math.log(2.0) - raw - jax.nn.softplus(-2.0 * raw))
        return Normal(self.mean, self.log_std).log_prob(raw) - jnp.sum(correction, axis=-1)

    def sample(self, key: Key) -> Array:
        """[..., A] reparameterised draw."""
        return jnp.tanh(Normal(self.mean, self.log_std).sample(key))

    def log_prob(self, action: Array) -> Array:
        """[...] log-density of `action` [..., A] in [-1, 1]; the very edge is pulled in by 1e-6."""
        return self._log_prob_before_tanh(jnp.arctanh(jnp.clip(action, -_LARGEST_ACTION, _LARGEST_ACTION)))

    def sample_and_log_prob(self, key: Key) -> tuple[Array, Array]:
        """A draw [..., A] and its log-density [...], without inverting the tanh."""
        raw = Normal(self.mean, self.log_std).sample(key)
        return jnp.tanh(raw), self._log_prob_before_tanh(raw)

    def mode(self) -> Array:
        """[..., A] tanh of the mean: the median, which is what the field calls the deterministic action."""
        return jnp.tanh(self.mean)

    def entropy(self, key: Key) -> Array:
        """[...] unbiased one-sample estimate in nats: there is no closed form."""
        return -self.sample_and_log_prob(key)[1]


class Categorical(NamedTuple):
    """Choice among A actions; samples are int32 without an action axis."""

    logits: Array  # [..., A]

    def sample(self, key: Key) -> Array:
        """[...] int32 draw."""
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def log_prob(self, action: Array) -> Array:
        """[...] log-probability of `action` [...] int32."""
        log_probs = jax.nn.log_softmax(self.logits)
        return jnp.take_along_axis(log_probs, action[..., None], axis=-1)[..., 0]

    def sample_and_log_prob(self, key: Key) -> tuple[Array, Array]:
        """A draw and its log-probability, both [...]."""
        action = self.sample(key)
        return action, self.log_prob(action)

    def mode(self) -> Array:
        """[...] int32 likeliest action."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)

    def entropy(self, key: Key | None = None) -> Array:
        """[...] exact entropy in nats; the key is not used."""
        del key
        log_probs = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)
