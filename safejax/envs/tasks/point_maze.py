"""Point-Maze: push a mass through a maze to a goal that pays 1 and ends the episode; marked cells cost 1 a step.

A sphere (radius 0.2 m, 1 kg) slides in the plane without friction among walls of whole cells, 1 m wide. An action
in [-1, 1]^2 is a force of at most 5 N per axis, held for 0.05 s; a drag of 2.5 N s/m keeps the speed below 2 m/s per
axis. Observation (4), in the world's frame: [x, y, vx, vy], m and m/s; the goal, always in the same cell, is not in
it. Reward: 1 on the step that ends within 0.5 m of the goal's center, which terminates, else 0. Cost: 1 on a step
that ends in a marked cell. Episodes start at rest in the start cell.

Steps from start to goal, and what the marks cost, at the pace of `safejax.envs.maze_behavior` without noise:
  point_maze_umaze, of 300: the only way (6 cells) takes 77 and costs 12, at least 10 at full speed.
  point_maze_medium, of 600: the short way (10 cells) takes 138 and costs 27, a detour by the lower left (16) 218 and 0.
  point_maze_large, of 800: the short way (14 cells) takes 179 and costs 28, a detour by the upper right (22) 284 and 0.

The maps of walls and the places of the goals are those of maze2d in Fu et al. 2020, D4RL: Datasets for Deep
Data-Driven Reinforcement Learning, https://arxiv.org/abs/2004.07219. Different from it: the walls are rigid bodies of
one physics on both engines, the goal terminates, the start is one cell (there: every free cell, in evaluation too),
the drag is linear (there: the speed is clipped) and a step is five times as long; marked cells and costs are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from safejax.envs.tasks.base import Task, View
from safejax.types import Array, Key

GOAL_RADIUS = 0.5  # m
START_NOISE = 0.1  # m, half the side of the square of starts about a cell's center


class Maze(NamedTuple):
    """A map of cells of 1 m. Row 0 is at the top (largest y), and the middle of the map is the origin.

    Drawn with `#` a wall, `.` free, `S` the start, `G` the goal, `!` a free cell that costs, and `o` the places
    between which a person who plays would move (see `safejax.envs.maze_behavior`).
    """

    drawing: tuple[str, ...]  # R strings of C characters
    episode_length: int  # environment steps
    cost_limits: tuple[float, ...]  # per episode, cost units


MAZES = {
    "point_maze_umaze": Maze(
        drawing=(
            "#####",
            "#G.o#",
            "###!#",
            "#S.o#",
            "#####",
        ),
        episode_length=300,
        cost_limits=(15.0, 20.0, 40.0),
    ),
    "point_maze_medium": Maze(
        drawing=(
            "########",
            "#S.##.o#",
            "#..#...#",
            "##.!!###",
            "#..#..o#",
            "#.#..#.#",
            "#o.o#.G#",
            "########",
        ),
        episode_length=600,
        cost_limits=(5.0, 10.0, 20.0),
    ),
    "point_maze_large": Maze(
        drawing=(
            "############",
            "#S..o#.o...#",
            "#.##.#.#.#.#",
            "#......#..o#",
            "#.####!###.#",
            "#..#.#!...o#",
            "##.#.#.#.###",
            "#o.#o..#.G.#",
            "############",
        ),
        episode_length=800,
        cost_limits=(5.0, 10.0, 20.0),
    ),
}
"""The maps by task name."""


def is_wall(maze: Maze) -> np.ndarray:
    """[R, C] bool."""
    return np.array([list(row) for row in maze.drawing]) == "#"


def cells(maze: Maze, letters: str) -> np.ndarray:
    """[K, 2] int, row and column of the cells drawn with one of `letters`, in reading order."""
    return np.argwhere(np.isin([list(row) for row in maze.drawing], list(letters)))


def centers(maze: Maze, cells: Any) -> np.ndarray:
    """[..., 2] float32, x and y in m, of the centers of `cells` [..., 2]."""
    rows, columns = len(maze.drawing), len(maze.drawing[0])
    row, column = np.moveaxis(np.asarray(cells), -1, 0)
    return np.stack([column + 0.5 - columns / 2, rows / 2 - row - 0.5], axis=-1).astype(np.float32)


def start_in(maze: Maze, cells: Any) -> Callable[[Key], tuple[Array, Array]]:
    """A task's `initialize`: at rest in one of `cells` [K, 2], all equally likely, uniform about its center."""
    places = centers(maze, cells)

    def initialize(key: Key) -> tuple[Array, Array]:
        place_key, noise_key = jax.random.split(key)
        place = jnp.asarray(places)[jax.random.randint(place_key, (), 0, len(places))]
        noise = jax.random.uniform(noise_key, (2,), minval=-START_NOISE, maxval=START_NOISE)
        return place + noise, jnp.zeros(2, jnp.float32)

    return initialize


def observe(view: View) -> Array:
    """[..., 4], see the module's first lines."""
    return jnp.concatenate([view.qpos, view.qvel], axis=-1)


def _task(name: str, maze: Maze) -> Task:
    (goal,) = centers(maze, cells(maze, "G"))
    marked = centers(maze, cells(maze, "!"))

    def terminated(view: View) -> Array:
        return jnp.linalg.norm(view.qpos - goal, axis=-1) <= GOAL_RADIUS

    def reward(before: View, after: View, action: Array) -> Array:
        del before, action
        return terminated(after).astype(jnp.float32)

    def cost(view: View) -> Array:
        offset = jnp.abs(view.qpos[..., None, :] - marked)  # [..., K, 2]
        return jnp.any(jnp.max(offset, axis=-1) < 0.5, axis=-1).astype(jnp.float32)

    return Task(
        name=name,
        model=f"{name}.xml",
        substeps=5,
        episode_length=maze.episode_length,
        observation_size=4,
        action_size=2,
        initialize=start_in(maze, cells(maze, "S")),
        observe=observe,
        reward=reward,
        cost=cost,
        terminated=terminated,
        control=lambda action: action,
        cost_limits=maze.cost_limits,
    )


TASKS = tuple(_task(name, maze) for name, maze in MAZES.items())
