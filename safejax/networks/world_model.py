"""A world model: pictures and vectors in, latent states along real or imagined actions out, and heads that read them.

An observation is [..., O] or {"pixels": uint8 [..., H, W, C], "state": [..., O]}, either part alone too; several
cameras lie side by side in C. The model sees steps as our rows hold them: action, reward and cost of row t belong to
the step from observation t to t + 1, so what the step came to is read from the state it arrives in (see
`Seen.arrival`). DreamerV3's rows hold the action and reward before the observation; nothing else needs converting.

Source: Hafner et al. 2023, DreamerV3, https://arxiv.org/abs/2301.04104, first release, as in SafeDreamer and FOSP.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from safejax.networks.convolution import Conv, DoublingConv
from safejax.networks.encoders import check_sides
from safejax.networks.heads import DENSE_INIT, DenseNormAct, Head
from safejax.networks.rssm import RSSM, Latent, draw
from safejax.types import Array, ArrayTree, Key, Network, Params, check_choice

READERS = ("reward", "cost", "going_on")  # parts that see features alone
SMALLEST = 4  # side of the picture, in pixels, at which the convolutions end


class Encoder(nn.Module):
    """Observation -> embedding [..., E]: convolutions that halve the picture, layers for the vector."""

    depth: int = 32  # channels of the first convolution; each next one has twice as many
    hidden_size: int = 512
    dtype: str = "float32"

    @nn.compact
    def __call__(self, observation: ArrayTree) -> Array:
        pixels, vector = parts(observation)
        embeddings = []
        if pixels is not None:
            hidden = pixels.astype(self.dtype) / 255.0 - 0.5
            for stage in range(stage_count(pixels.shape)):
                channels = self.depth * 2**stage
                hidden = Conv(channels, 4, use_bias=False, kernel_init=DENSE_INIT, dtype=self.dtype)(hidden)
                hidden = nn.silu(nn.LayerNorm(epsilon=1e-3, dtype=self.dtype)(hidden))
            embeddings.append(hidden.reshape(*pixels.shape[:-3], -1))
        if vector is not None:
            hidden = jnp.sign(vector) * jnp.log1p(jnp.abs(vector))
            for _ in range(2):
                hidden = DenseNormAct(self.hidden_size, self.dtype)(hidden)
            embeddings.append(hidden)
        return jnp.concatenate(embeddings, axis=-1)


class Decoder(nn.Module):
    """Features [..., F] -> what the observation was: pixels nominally in [0, 1], the vector's symlog.

    Of the observation given, whose leading axes may be others, the shapes alone are used.
    """

    depth: int = 32
    hidden_size: int = 512
    dtype: str = "float32"

    @nn.compact
    def __call__(self, features: Array, observation: ArrayTree) -> dict[str, Array]:
        pixels, vector = parts(observation)
        decoded = {}
        if pixels is not None:
            height, width, channels = pixels.shape[-3:]
            stages = stage_count(pixels.shape)
            sides, first = (height // 2**stages, width // 2**stages), self.depth * 2 ** (stages - 1)
            hidden = nn.Dense(math.prod(sides) * first, kernel_init=DENSE_INIT, dtype=self.dtype)(features)
            hidden = hidden.reshape(*features.shape[:-1], *sides, first)
            for stage in reversed(range(stages)):
                size = self.depth * 2 ** (stage - 1) if stage else channels
                options = {"use_bias": stage == 0, "kernel_init": DENSE_INIT, "dtype": self.dtype}
                hidden = DoublingConv(size, **options)(hidden)
                if stage:
                    hidden = nn.silu(nn.LayerNorm(epsilon=1e-3, dtype=self.dtype)(hidden))
            decoded["pixels"] = hidden.astype(jnp.float32) + 0.5
        if vector is not None:
            hidden_sizes = 2 * (self.hidden_size,)
            decoded["state"] = Head(vector.shape[-1], hidden_sizes, dtype=self.dtype)(features)
        return decoded


class Seen(NamedTuple):
    """What a model makes of a sequence [B, T] of observations and actions."""

    state: Latent  # [B, T], posteriors: at row t everything up to observation t is known, and no later action
    prior: Array  # [B, T, G, K] logits of the same states before their observations
    arrival: Latent  # [B, T], where the action of row t led: the next row's state, or the prior's where there is none


@dataclass(frozen=True)
class WorldModel:
    """The parts and what is done with them; parameters are a dictionary by part.

    At the first row the memory is a learned vector; DreamerV3 makes one step of the GRU from it.
    """

    encoder: Network  # observation -> embedding
    core: RSSM
    decoder: nn.Module  # features, observation of the shapes wanted -> what the observation was
    reward: nn.Module  # features -> two-hot logits of the reward on arrival
    cost: nn.Module  # features -> two-hot logits of the cost on arrival
    going_on: nn.Module  # features -> logit [..., 1] that the episode goes on after arrival

    def init(self, key: Key, observation: ArrayTree, action: Array) -> Params:
        """Parameters of every part, from one observation and one action of any leading shape."""
        encoder_key, core_key, decoder_key, *keys = jax.random.split(key, 3 + len(READERS))
        params = {"encoder": self.encoder.init(encoder_key, observation)}
        embedding = self.encoder.apply(params["encoder"], observation)
        params["core"] = self.core.init(core_key, embedding, action)
        features = self._core(params, "__call__", embedding, action).features
        params["decoder"] = self.decoder.init(decoder_key, features, observation)
        return params | {name: getattr(self, name).init(key, features) for name, key in zip(READERS, keys, strict=True)}

    def initial(self, params: Params, leading: tuple[int, ...]) -> Latent:
        """The state before anything was seen."""
        return self._core(params, "initial", leading)

    def observe(self, params: Params, observation: ArrayTree, action: Array, last: Array, key: Key) -> Seen:
        """States along a sequence; the model forgets between episodes, and at the first row.

        Args:
          observation: [B, T, ...].
          action: [B, T, A], made at that observation.
          last: [B, T], 1 where an episode ends with that row's step.
        """
        embedding = self.encoder.apply(params["encoder"], observation)
        rows, length = last.shape
        start = self.initial(params, (rows,))

        def step(memory: Array, row: tuple[Array, ...]) -> tuple[Array, tuple[Latent, Array, Latent]]:
            embedding, action, ended, key = row
            prior = self._core(params, "prior", memory)
            key, arrival_key = jax.random.split(key)
            state = draw(memory, self._core(params, "posterior", memory, embedding), key)
            memory = self._core(params, "remember", state, action)
            arrival = draw(memory, self._core(params, "prior", memory), arrival_key)
            memory = jnp.where(ended[:, None] > 0, start.memory, memory)
            return memory, (state, prior, arrival)

        time_first = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), (embedding, action, last))
        _, outputs = jax.lax.scan(step, start.memory, (*time_first, jax.random.split(key, length)))
        state, prior, imagined = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), outputs)
        following = jax.tree.map(lambda leaf: jnp.roll(leaf, -1, axis=1), state)
        alone = last.at[:, -1].set(1) > 0  # no next row of this episode is in the window
        arrival = jax.tree.map(
            lambda ours, theirs: jnp.where(alone.reshape(*alone.shape, *(1,) * (ours.ndim - 2)), ours, theirs),
            imagined,
            following,
        )
        return Seen(state, prior, arrival)

    def remember(self, params: Params, before: Latent, action: Array) -> Array:
        """Memory [..., H] after `action` [..., A] was made in `before`."""
        return self._core(params, "remember", before, action)

    def correct(self, params: Params, memory: Array, observation: ArrayTree, key: Key | None) -> Latent:
        """The state with this memory [..., H] once `observation` is seen; the likeliest one without a key."""
        embedding = self.encoder.apply(params["encoder"], observation)
        return draw(memory, self._core(params, "posterior", memory, embedding), key)

    def imagine(self, params: Params, latent: Latent, action: Array, key: Key) -> Latent:
        """The state after `action` [..., A], as the prior has it."""
        memory = self.remember(params, latent, action)
        return draw(memory, self._core(params, "prior", memory), key)

    def read(self, params: Params, name: str, features: Array) -> Array:
        """What the head `name` says of features [..., F]."""
        return getattr(self, name).apply(params[name], features)

    def decode(self, params: Params, features: Array, observation: ArrayTree) -> Any:
        """What was seen at features [..., F], in the shapes of `observation`, which may have other leading axes."""
        return self.decoder.apply(params["decoder"], features, observation)

    def _core(self, params: Params, method: str, *inputs: Any) -> Any:
        return self.core.apply(params["core"], *inputs, method=method)


def parts(observation: ArrayTree) -> tuple[Array | None, Array | None]:
    """Pixels and vector of an observation; None for what it does not have.

    Raises:
      ValueError: one line, for parts of other names or pixels that are no bytes.
    """
    if not isinstance(observation, dict):
        return None, observation
    pixels, vector = observation.get("pixels"), observation.get("state")
    if (
        observation.keys() - {"pixels", "state"}
        or not observation
        or (pixels is not None and pixels.dtype != jnp.uint8)
    ):
        found = jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", observation)
        raise ValueError(f"observation is {found}, expected [..., O], or 'pixels' uint8 [..., H, W, C] and 'state'")
    return pixels, vector


def stage_count(shape: tuple[int, ...]) -> int:
    """How often a picture [..., H, W, C] is halved until its shorter side is SMALLEST pixels.

    Raises:
      ValueError: a side cannot be halved so often, in one line.
    """
    shorter = min(shape[-3:-1])
    stages = max(1, math.floor(math.log2(shorter / SMALLEST)))
    check_sides(shape, stages)
    return stages


class Size(NamedTuple):
    """Of a world model."""

    depth: int  # channels of the first convolution
    memory_size: int
    groups: int
    classes: int
    hidden_size: int


SIZES = {
    "tiny": Size(depth=8, memory_size=128, groups=8, classes=32, hidden_size=128),
    "small": Size(depth=16, memory_size=256, groups=16, classes=32, hidden_size=256),
    "paper": Size(depth=32, memory_size=512, groups=48, classes=48, hidden_size=512),
}
"""By name; "paper" is that of SafeDreamer's and FOSP's vision configurations."""


def world_model(
    size: str | Sequence[int], *, bins: int, dtype: str = "float32", encoder: Network | None = None
) -> WorldModel:
    """A model of worlds; what their observations are, `init` sees.

    Args:
      size: a name in `SIZES`, or the numbers of a `Size`.
      bins: of the two-hot heads.
      dtype: that layers compute in; "bfloat16" on accelerators. Parameters and distributions stay float32.
      encoder: of observations, if not `Encoder`.

    Raises:
      ValueError: an unknown size; from `init`, an observation that the encoder cannot take; one line.
    """
    if isinstance(size, str):
        check_choice("size", size, SIZES)
    size = SIZES[size] if isinstance(size, str) else Size(*size)
    head = functools.partial(Head, hidden_sizes=2 * (size.hidden_size,), dtype=dtype)
    return WorldModel(
        encoder=Encoder(size.depth, size.hidden_size, dtype) if encoder is None else encoder,
        core=RSSM(size.memory_size, size.groups, size.classes, size.hidden_size, dtype=dtype),
        decoder=Decoder(size.depth, size.hidden_size, dtype),
        reward=head(bins, zero=True),
        cost=head(bins),
        going_on=head(1),
    )
