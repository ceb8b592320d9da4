"""A world model at work along an episode, as a moving picture.

Side by side: what the cameras see, what the model makes of it (decoded from its states), and what it imagines when it
is told the actions alone, from a state every `HORIZON` steps. Below, the probability of violating ahead, and the steps
that cost. Shapes: T steps of one episode, H x W pixels, C channels of all cameras.
"""

from __future__ import annotations

import functools
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.animation import PillowWriter
from matplotlib.figure import Figure
from report import COSTLY, INK, SAFE
from vision_presets import Row

from safejax.algorithms import feasibility
from safejax.training.rollout import rollout, start
from safejax.types import Array, Env, Key

HORIZON = 15  # steps that are imagined at a stretch
TITLES = ("seen", "reconstructed", "imagined")
DOTS = 80  # per inch


class Dreamt(NamedTuple):
    """One episode."""

    pictures: np.ndarray  # [3, T, H, W, C] uint8, in the order of TITLES
    violation: np.ndarray  # [T] probability
    costs: np.ndarray  # [T]


def dream(row: Row, env: Env, state: Any, key: Key) -> Dreamt:
    """Play an episode by the policy of `state` and look at it with its model."""
    algorithm = row.online or row.offline
    networks = algorithm.act.keywords["networks"]  # type: ignore[attr-defined]
    model, params = networks.model, state.model.params

    @jax.jit
    def play(key: Key) -> Any:
        begin = start(algorithm, env, state, key, 1)
        _, rows, _ = rollout(algorithm, env, state, begin, key, env.episode_length, explore=False)
        return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), rows._replace(extras={}))

    rows = play(key)
    env.check()
    end = int(np.argmax(np.append(np.asarray(rows.last[0]) > 0, True))) + 1
    rows = jax.tree.map(lambda leaf: leaf[:, : min(end, env.episode_length)], rows)

    @jax.jit
    def look(rows: Any, key: Key) -> tuple[Array, Array, Array]:
        seen = model.observe(params, rows.observation, rows.action, rows.last, key)
        length = rows.reward.shape[1]

        def step(latent: Any, each: tuple[Any, Array, Array]) -> tuple[Any, Array]:
            posterior, action, number = each
            latent = jax.tree.map(functools.partial(jnp.where, number % HORIZON == 0), posterior, latent)
            return model.imagine(params, latent, action, jax.random.fold_in(key, number)), latent.features

        states = jax.tree.map(lambda leaf: leaf[0], seen.state)
        first = jax.tree.map(lambda leaf: leaf[0], states)
        _, imagined = jax.lax.scan(step, first, (states, rows.action[0], jnp.arange(length)))
        features = jnp.stack([states.features, imagined])
        decoded = model.decode(params, features, jax.tree.map(lambda leaf: leaf[0], rows.observation))["pixels"]
        probability = feasibility.probability(networks.violation, state.violation.params, states.features)
        return rows.observation["pixels"][0], decoded, probability

    pixels, decoded, probability = look(rows, key)
    decoded = np.asarray(jnp.clip(decoded * 255, 0, 255)).astype(np.uint8)
    return Dreamt(np.stack([np.asarray(pixels), *decoded]), np.asarray(probability), np.asarray(rows.cost[0]))


def write(path: str | os.PathLike, row: Row, env: Env, state: Any, seed: int, frame_count: int = 50) -> None:
    """Write the first of `env`'s episodes as a GIF of 10 pictures a second, at some of its steps."""
    found = dream(row, env, state, jax.random.key(seed))
    shown = np.arange(min(frame_count, len(found.costs)))
    first = [_beside(each[0]) for each in found.pictures]
    height, width = first[0].shape[:2]
    figure = Figure(figsize=(4.2, 1.3 * height / width + 1.1), dpi=DOTS)
    grid = figure.add_gridspec(2, 3, height_ratios=(2.2, 1), left=0.1, right=0.98, top=0.9, bottom=0.17, wspace=0.06)
    images = []
    for place, (title, picture) in enumerate(zip(TITLES, first, strict=True)):
        axes = figure.add_subplot(grid[0, place], xticks=[], yticks=[])
        axes.set_title(title, fontsize=8, color=INK)
        images.append(axes.imshow(picture, interpolation="nearest"))
    below = figure.add_subplot(grid[1, :], xlim=(0, len(shown)), ylim=(0, 1.05))
    below.tick_params(labelsize=6)
    below.set_ylabel("p(violate)", fontsize=7)
    below.set_xlabel("step", fontsize=7)
    costly = np.flatnonzero(found.costs[: len(shown)] > 0)
    below.vlines(costly, 0, 1.05, color=COSTLY, linewidth=0.8, alpha=0.5)
    (line,) = below.plot([], [], color=SAFE, linewidth=1.2)
    writer = PillowWriter(fps=10)
    with writer.saving(figure, os.fspath(path), dpi=DOTS):
        for step in shown:
            for image, pictures in zip(images, found.pictures, strict=True):
                image.set_data(_beside(pictures[step]))
            line.set_data(np.arange(step + 1), found.violation[: step + 1])
            writer.grab_frame()


def _beside(picture: np.ndarray) -> np.ndarray:
    """[H, W, 3 cameras] -> [H, cameras W, 3]: the pictures of all cameras from left to right."""
    return np.concatenate(np.split(picture, picture.shape[-1] // 3, axis=-1), axis=1)
