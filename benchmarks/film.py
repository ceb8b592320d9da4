"""An episode as a moving picture, drawn by the ray caster: no OpenGL."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.animation import PillowWriter
from matplotlib.figure import Figure
from report import COSTLY, SAFE

from safejax.envs.rendering import Scene, make_caster
from safejax.training.rollout import Actors, act_and_step, start
from safejax.types import Algorithm, Env, Key

NEARER = ("hopper", "walker2d", "half_cheetah", "humanoid", "ant_velocity", "swimmer", "drone_run", "ball_run")
"""Tasks that start so, whose robot would be a few pixels to a camera that sees everything."""

EDGE, CAPTION = 4, 18  # pixels around and above a picture


def camera_of(name: str, scene: Scene) -> str:
    """The camera that shows most of the task `name`."""
    known = [scene.model.camera(index).name for index in range(scene.model.ncam)]
    order = ("track",) if name.startswith(NEARER) else ("fixedfar", "top", "track")
    return next((camera for camera in order if camera in known), known[0])


class Film(NamedTuple):
    """One episode."""

    pictures: np.ndarray  # [K, H, W, 3] uint8, at some of the steps
    shown: np.ndarray  # [K] int, which
    rewards: np.ndarray  # [T]
    costs: np.ndarray  # [T]


def film(algorithm: Algorithm, env: Env, state: Any, key: Key, *, frame_count: int = 50, size: int = 160) -> Film:
    """Play an episode deterministically and draw it before some of its steps, evenly chosen.

    Args:
      algorithm: the method.
      env: with a scene.
      state: the algorithm's State of one seed.
      key: randomness.
      frame_count: at most so many pictures.
      size: pixels a side.
    """
    scene = env.scene
    caster = make_caster(
        scene.model, (camera_of(env.name, scene),), height=size, width=size, shapes=scene.shapes, shadows=True
    )

    @jax.jit
    def play(state: Any, key: Key) -> Any:
        def step(actors: Actors, _: None) -> Any:
            view = scene.view(jax.tree.map(lambda leaf: leaf[0], actors.env))
            actors, transition, _episode = act_and_step(algorithm, env, state, actors, key, explore=False)
            row = transition.reward[0], transition.cost[0], transition.last[0]
            return actors, (view.xpos, view.xquat, scene.place(view), row)

        return jax.lax.scan(step, start(algorithm, env, state, key, 1), None, env.episode_length)[1]

    *bodies, (rewards, costs, last) = play(state, key)
    env.check()
    length = int(np.argmax(np.append(np.asarray(last) > 0, True))) + 1
    shown = np.unique(np.linspace(0, min(length, len(rewards)) - 1, frame_count).round().astype(int))
    draw = jax.jit(lambda bodies: jax.lax.map(lambda each: caster.rgb(*each)[0], bodies))
    pictures = draw(jax.tree.map(lambda leaf: jnp.asarray(leaf)[shown], tuple(bodies)))
    return Film(np.asarray(pictures), shown, np.asarray(rewards)[:length], np.asarray(costs)[:length])


def write_gif(path: str | os.PathLike, film: Film, title: str = "") -> None:
    """Write a film as a GIF of 20 pictures a second, with running sums and a frame that is red where a step costs."""
    sums = {"return": np.cumsum(film.rewards), "cost": np.cumsum(film.costs)}
    height, width = film.pictures.shape[1:3]
    whole = width + 2 * EDGE, height + 2 * EDGE + CAPTION
    figure = Figure(figsize=(whole[0] / 100, whole[1] / 100), dpi=100)
    # pixel for pixel: what is scaled takes twice the bytes
    place = (EDGE / whole[0], EDGE / whole[1], width / whole[0], height / whole[1])
    axes = figure.add_axes(place, xticks=[], yticks=[])
    axes.spines[:].set_linewidth(3)
    image = axes.imshow(film.pictures[0], aspect="auto", interpolation="nearest")
    caption = figure.text(0.5, 1 - CAPTION / 2 / whole[1], "", ha="center", va="center", fontsize=6.5)
    writer = PillowWriter(fps=20)
    with writer.saving(figure, os.fspath(path), dpi=100):
        for picture, step in zip(film.pictures, film.shown, strict=True):
            image.set_data(picture)
            axes.spines[:].set_color(COSTLY if film.costs[step] > 0 else SAFE)
            running = "  ".join(f"{name} {values[step]:.0f}" for name, values in sums.items())
            caption.set_text(f"{title}  {running}" if title else running)
            writer.grab_frame()
