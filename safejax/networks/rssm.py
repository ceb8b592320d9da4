"""A recurrent state-space model: what a world model remembers, step by step, seen or imagined.

The state of a world at a time has a deterministic part h, the memory of a GRU, and a stochastic part z, `groups`
categorical variables of `classes` each, drawn from the posterior p(z | h, o) where there is an observation and from the
prior p(z | h) where there is none.

Source: Hafner et al. 2023, DreamerV3, https://arxiv.org/abs/2301.04104, in the form of its first release (one dense GRU
with layer normalisation, learned initial memory), which SafeDreamer and FOSP build on; sizes in `world_model.SIZES`.
Shapes: H memory, G groups, K classes, E embedding, A action; `...` leading axes.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from safejax.networks.heads import DENSE_INIT, DenseNormAct
from safejax.types import Array, Key

UPDATE_BIAS = -1.0  # of the GRU's gate: a fresh memory keeps sigmoid(1) = .73 of what it holds


class Latent(NamedTuple):
    """The state of a world, as the model has it."""

    memory: Array  # [..., H]
    code: Array  # [..., G, K] one-hot, with the gradient of the probabilities
    logits: Array  # [..., G, K] of the distribution that the code was drawn from, mixed with the uniform one

    @property
    def features(self) -> Array:
        """[..., H + G K], what heads, actors and critics read."""
        return jnp.concatenate([self.memory, self.code.reshape(*self.code.shape[:-2], -1)], axis=-1)


class RSSM(nn.Module):
    """The parts of the model as methods: `initial`, `remember`, `prior`, `posterior`."""

    memory_size: int = 512
    groups: int = 48
    classes: int = 48
    hidden_size: int = 512
    uniform_share: float = 0.01
    dtype: str = "float32"

    def setup(self) -> None:
        self.first_memory = self.param("first_memory", nn.initializers.zeros, (self.memory_size,))
        self.joined = DenseNormAct(self.hidden_size, self.dtype)
        self.gates = nn.Dense(3 * self.memory_size, use_bias=False, kernel_init=DENSE_INIT, dtype=self.dtype)
        self.gates_norm = nn.LayerNorm(epsilon=1e-3, dtype=self.dtype)
        self.prior_hidden = DenseNormAct(self.hidden_size, self.dtype)
        self.posterior_hidden = DenseNormAct(self.hidden_size, self.dtype)
        count = self.groups * self.classes
        self.prior_logits = nn.Dense(count, kernel_init=DENSE_INIT, dtype=self.dtype)
        self.posterior_logits = nn.Dense(count, kernel_init=DENSE_INIT, dtype=self.dtype)

    def __call__(self, embedding: Array, action: Array) -> Latent:
        """Touches every parameter, for `init`: a first posterior, and a step from it."""
        latent = self.initial(embedding.shape[:-1])
        memory = self.remember(latent, action)
        return Latent(memory, latent.code, self.prior(memory) + self.posterior(memory, embedding))

    def initial(self, leading: tuple[int, ...]) -> Latent:
        """The state before anything was seen: a learned memory, and the prior's likeliest code."""
        memory = jnp.broadcast_to(jnp.tanh(self.first_memory), (*leading, self.memory_size))
        return draw(memory, self.prior(memory), None)

    def remember(self, latent: Latent, action: Array) -> Array:
        """[..., H] memory after `action` [..., A], which is shrunk to a largest entry of 1 where it is beyond."""
        action = action / jax.lax.stop_gradient(jnp.maximum(1.0, jnp.abs(action)))
        code = latent.code.reshape(*latent.code.shape[:-2], -1)
        joined = self.joined(jnp.concatenate([code, action], axis=-1))
        gates = self.gates_norm(self.gates(jnp.concatenate([latent.memory, joined], axis=-1)))
        reset, candidate, update = jnp.split(gates.astype(jnp.float32), 3, axis=-1)
        update = jax.nn.sigmoid(update + UPDATE_BIAS)
        return update * jnp.tanh(jax.nn.sigmoid(reset) * candidate) + (1.0 - update) * latent.memory

    def prior(self, memory: Array) -> Array:
        """Logits [..., G, K] without an observation."""
        return self._mixed(self.prior_logits(self.prior_hidden(memory)))

    def posterior(self, memory: Array, embedding: Array) -> Array:
        """Logits [..., G, K] given the embedding [..., E] of an observation."""
        hidden = self.posterior_hidden(jnp.concatenate([memory, embedding], axis=-1))
        return self._mixed(self.posterior_logits(hidden))

    def _mixed(self, logits: Array) -> Array:
        """Log-probabilities of which a small share is uniform, so that no class is ever impossible."""
        logits = logits.astype(jnp.float32).reshape(*logits.shape[:-1], self.groups, self.classes)
        share = self.uniform_share
        return jnp.log((1.0 - share) * jax.nn.softmax(logits) + share / self.classes)


def draw(memory: Array, logits: Array, key: Key | None) -> Latent:
    """A `Latent` with a code drawn from `logits` [..., G, K]; gradients pass to the probabilities, straight through.

    Without a key it is the likeliest code.
    """
    probability = jax.nn.softmax(logits)
    index = jnp.argmax(logits, axis=-1) if key is None else jax.random.categorical(key, logits)
    hot = jax.nn.one_hot(index, logits.shape[-1])
    return Latent(memory, jax.lax.stop_gradient(hot - probability) + probability, logits)
