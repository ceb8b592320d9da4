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

The maps are D4RL's, see `_maze.py`. Different from its maze2d: the walls are rigid bodies of
one physics on all engines, the goal terminates, the start is one cell (there: every free cell, in evaluation too),
the drag is linear (there: the speed is clipped) and a step is five times as long; marked cells and costs are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from safejax.envs.tasks._maze import DRAWINGS, Maze, cells, maze_task, place_in
from safejax.types import Array, Key

MAZES = {
    "point_maze_umaze": Maze(DRAWINGS["umaze"], episode_length=300, cost_limits=(15.0, 20.0, 40.0)),
    "point_maze_medium": Maze(DRAWINGS["medium"], episode_length=600, cost_limits=(5.0, 10.0, 20.0)),
    "point_maze_large": Maze(DRAWINGS["large"], episode_length=800, cost_limits=(5.0, 10.0, 20.0)),
}
"""The maps by task name."""


def start_in(maze: Maze, cells: Any) -> Callable[[Key], tuple[Array, Array]]:
    """A task's `initialize`: at rest in one of `cells` [K, 2], see `place_in`."""
    place = place_in(maze, cells)
    return lambda key: (place(key), jnp.zeros(2, jnp.float32))


TASKS = tuple(
    maze_task(name, maze, start_in(maze, cells(maze, "S")), substeps=5, observation_size=4, action_size=2)
    for name, maze in MAZES.items()
)
