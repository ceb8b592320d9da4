"""Mazes of square cells for any robot: maps, a goal that pays 1 and ends the episode, marked cells that cost 1 a step.

The maps of walls and the places of the goals are those of maze2d and antmaze in Fu et al. 2020, D4RL: Datasets for Deep
Data-Driven Reinforcement Learning, https://arxiv.org/abs/2004.07219; marked cells and costs are ours. What stands and
moves in a maze, the tasks' files say. Shapes: R x C cells.
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

DRAWINGS = {
    "umaze": (
        "#####",
        "#G.o#",
        "###!#",
        "#S.o#",
        "#####",
    ),
    "medium": (
        "########",
        "#S.##.o#",
        "#..#...#",
        "##.!!###",
        "#..#..o#",
        "#.#..#.#",
        "#o.o#.G#",
        "########",
    ),
    "large": (
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
}
"""Maps by size."""


class Maze(NamedTuple):
    """A map of square cells. Row 0 is at the top (largest y), and the middle of the map is the origin.

    Drawn with `#` a wall, `.` free, `S` the start, `G` the goal, `!` a free cell that costs, and `o` the places
    between which a person who plays would move (see `safejax.envs.maze_behavior`).
    """

    drawing: tuple[str, ...]  # R strings of C characters
    episode_length: int  # environment steps
    cost_limits: tuple[float, ...]  # per episode, cost units
    cell_size: float = 1.0  # m


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
    place = np.stack([column + 0.5 - columns / 2, rows / 2 - row - 0.5], axis=-1)
    return (maze.cell_size * place).astype(np.float32)


def place_in(maze: Maze, cells: Any) -> Callable[[Key], Array]:
    """key -> [2], x and y in m: in one of `cells` [K, 2], all equally likely, uniform about its center."""
    places = centers(maze, cells)

    def draw(key: Key) -> Array:
        place_key, noise_key = jax.random.split(key)
        place = jnp.asarray(places)[jax.random.randint(place_key, (), 0, len(places))]
        return place + jax.random.uniform(noise_key, (2,), minval=-START_NOISE, maxval=START_NOISE)

    return draw


def observe(view: View) -> Array:
    """[..., nq + nv]: qpos and qvel."""
    return jnp.concatenate([view.qpos, view.qvel], axis=-1)


def maze_task(
    name: str,
    maze: Maze,
    initialize: Callable[[Key], tuple[Array, Array]],
    *,
    substeps: int,
    observation_size: int,
    action_size: int,
) -> Task:
    """The task `name` of a robot whose place is qpos[..., :2] and that sees its own qpos and qvel, in `maze`."""
    (goal,) = centers(maze, cells(maze, "G"))
    marked = centers(maze, cells(maze, "!"))

    def terminated(view: View) -> Array:
        return jnp.linalg.norm(view.qpos[..., :2] - goal, axis=-1) <= GOAL_RADIUS

    def reward(before: View, after: View, action: Array) -> Array:
        del before, action
        return terminated(after).astype(jnp.float32)

    def cost(view: View) -> Array:
        offset = jnp.abs(view.qpos[..., None, :2] - marked)  # [..., K, 2]
        return jnp.any(jnp.max(offset, axis=-1) < maze.cell_size / 2, axis=-1).astype(jnp.float32)

    return Task(
        name=name,
        model=f"{name}.xml",
        substeps=substeps,
        episode_length=maze.episode_length,
        observation_size=observation_size,
        action_size=action_size,
        initialize=initialize,
        observe=observe,
        reward=reward,
        cost=cost,
        terminated=terminated,
        control=lambda action: action,
        cost_limits=maze.cost_limits,
    )
