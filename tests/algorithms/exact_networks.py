"""Networks small enough for exact answers: tables over one-hot states, and actors whose draws are known.

Each is a frozen dataclass with `init` and `apply`, as an algorithm's `Networks` takes. Shapes: E critics,
S states, A actions, B batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from safejax.diffusion import DiffusionConfig, make_schedule
from safejax.networks.distributions import Categorical

ONE_STEP = DiffusionConfig(step_count=1, clip="noisy", variance="beta")


@dataclass(frozen=True)
class Table:
    """Critics [E, S, A]: observation [..., >= S] (one-hot first), int32 action [...] -> [E, ...]."""

    critics: int
    states: int
    actions: int

    def init(self, key: Any, *inputs: Any) -> Any:
        return 0.1 * jax.random.normal(key, (self.critics, self.states, self.actions))

    def apply(self, params: Any, observation: Any, action: Any) -> Any:
        rows = jnp.einsum("esa,...s->e...a", params, observation[..., : self.states])
        return jnp.sum(rows * jax.nn.one_hot(action, self.actions), axis=-1)


@dataclass(frozen=True)
class ActionTable(Table):
    """`Table` whose action [..., 1] holds the index of an action as a float."""

    def apply(self, params: Any, observation: Any, action: Any) -> Any:
        index = jnp.round(action[..., 0]).astype(jnp.int32)
        return super().apply(params, observation, index)


@dataclass(frozen=True)
class StateTable:
    """Values [S]: observation [..., S] -> [...]."""

    states: int

    def init(self, key: Any, *inputs: Any) -> Any:
        return 0.1 * jax.random.normal(key, (self.states,))

    def apply(self, params: Any, observation: Any) -> Any:
        return observation @ params


@dataclass(frozen=True)
class LogitTable:
    """Log-probabilities [S, A], uniform at first: observation [..., S] -> `Categorical`."""

    states: int
    actions: int

    def init(self, key: Any, *inputs: Any) -> Any:
        return jnp.zeros((self.states, self.actions))

    def apply(self, params: Any, observation: Any) -> Any:
        return Categorical(observation @ params)


class Planned(NamedTuple):
    """A categorical law whose draw was planned."""

    logits: Any
    action: Any

    def sample(self, key: Any) -> Any:
        del key
        return self.action

    def log_prob(self, action: Any) -> Any:
        return Categorical(self.logits).log_prob(action)

    def sample_and_log_prob(self, key: Any) -> Any:
        return self.sample(key), self.log_prob(self.action)


@dataclass(frozen=True)
class PlannedActor:
    """The policy given as rows [S, A]; the last entry of an observation [..., S + 1] is the action drawn.

    A batch that lists every action as often as its probability asks makes expectations exact.
    """

    policy: tuple[tuple[float, ...], ...]

    def init(self, key: Any, *inputs: Any) -> Any:
        return jnp.log(jnp.array(self.policy))

    def apply(self, params: Any, observation: Any) -> Any:
        return Planned(observation[..., :-1] @ params, observation[..., -1].astype(jnp.int32))


class FixedNoise(NamedTuple):
    """tanh(mean + std * noise) with a noise [B, A] that no key changes."""

    mean: Any
    log_std: Any

    def _noise(self) -> Any:
        return jnp.asarray(np.sin(1.0 + 1.7 * np.arange(self.mean.size)).reshape(self.mean.shape), "float32")

    def sample(self, key: Any) -> Any:
        return self.sample_and_log_prob(key)[0]

    def sample_and_log_prob(self, key: Any) -> Any:
        del key
        noise = self._noise()
        action = jnp.tanh(self.mean + jnp.exp(self.log_std) * noise)
        normal = -0.5 * noise**2 - self.log_std - 0.5 * np.log(2 * np.pi)
        return action, jnp.sum(normal - jnp.log(1.0 - action**2), axis=-1)


@dataclass(frozen=True)
class FixedNoiseActor:
    """A linear actor with `FixedNoise`: draws do not depend on keys, so tests need not split any."""

    actions: int

    def init(self, key: Any, observation: Any) -> Any:
        weights = 0.5 * jax.random.normal(key, (observation.shape[-1], self.actions))
        return {"weights": weights, "log_std": jnp.full((self.actions,), -1.0)}

    def apply(self, params: Any, observation: Any) -> Any:
        mean = observation @ params["weights"]
        return FixedNoise(mean, jnp.broadcast_to(params["log_std"], mean.shape))


@dataclass(frozen=True)
class Sampler:
    """A denoiser for which one reverse step from the noise x [..., 1] gives the action `law(observation, x)`."""

    law: Callable[[Any, Any], Any]
    action_size: int = 1

    def init(self, key, *inputs):
        return jnp.zeros(())

    def apply(self, params, observation, noisy, index, key=None):
        remaining = float(make_schedule("vp", 1).alpha_bar[0])
        clean = jnp.broadcast_to(self.law(observation, noisy), noisy.shape)
        return (noisy - np.sqrt(remaining) * clean) / np.sqrt(1.0 - remaining) + 0.0 * params


def uniform(observation, noise):
    """On (-1, 1)."""
    return 2.0 * jax.scipy.stats.norm.cdf(noise) - 1.0


def coin(observation, noise):
    """-1/2 or 1/2."""
    return jnp.where(noise > 0, 0.5, -0.5)


def random_state(algorithm: Any, example: Any, seed: int) -> Any:
    """A state of the right shapes, all zeros but for random parameters and targets; `init` compiles for seconds."""
    random = np.random.default_rng(seed)

    def fill(path: Any, spec: Any) -> Any:
        moves = "opt_state" not in jax.tree_util.keystr(path) and "multiplier" not in jax.tree_util.keystr(path)
        if moves and spec.ndim:
            return jnp.asarray(0.5 * random.normal(size=spec.shape), spec.dtype)
        return jnp.zeros(spec.shape, spec.dtype)

    shapes = jax.eval_shape(algorithm.init, jax.random.key(0), example)
    return jax.tree_util.tree_map_with_path(fill, shapes)


def one_hot(states: Any, count: int) -> Any:
    """[B] integers -> [B, count] float32."""
    return jnp.asarray(np.eye(count, dtype=np.float32)[np.asarray(states)])
