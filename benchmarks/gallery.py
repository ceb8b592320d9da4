"""Every task as a picture, by the ray caster: python benchmarks/gallery.py worlds.png

A fresh episode of each task, seen by the camera that shows most of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import numpy as np
from film import camera_of
from matplotlib.figure import Figure
from offline_to_online import PICTURES, OneLineParser, at_least, choose, output
from tqdm import tqdm

from safejax import envs
from safejax.envs.rendering import make_caster

COLUMNS = 8


def main(arguments: list[str] | None = None) -> None:
    """Check the options, draw, write."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="a picture: .png, .jpg, .pdf or .svg")
    parser.add_argument("--tasks", nargs="*", default=None, help="task names (default: all)")
    parser.add_argument("--size", type=int, default=96, help="pixels a side (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    output("output", options.output, PICTURES)
    at_least("size", options.size, 1)
    names = [choose("tasks", name, envs.names()) for name in options.tasks or envs.names()]
    pictures = {name: picture(name, options.size, options.seed) for name in tqdm(names, desc="tasks")}
    figure(pictures).savefig(options.output, dpi=options.size)


def picture(name: str, size: int, seed: int) -> np.ndarray:
    """[size, size, 3] uint8, the start of an episode."""
    env = envs.make(name)
    scene = env.scene
    caster = make_caster(
        scene.model, (camera_of(name, scene),), height=size, width=size, shapes=scene.shapes, shadows=True
    )
    view = scene.view(jax.jit(env.reset)(jax.random.key(seed)))
    return np.asarray(jax.jit(caster.rgb)(view.xpos, view.xquat, scene.place(view))[0])


def figure(pictures: dict[str, np.ndarray]) -> Figure:
    """All of them with their names, row by row."""
    rows = -(-len(pictures) // COLUMNS)
    drawn = Figure(figsize=(1.15 * COLUMNS, 1.3 * rows), layout="constrained")
    axes = drawn.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, (name, pixels) in zip(axes, pictures.items(), strict=False):
        axis.imshow(pixels)
        axis.set_title(name, fontsize=6)
    return drawn


if __name__ == "__main__":
    main()
