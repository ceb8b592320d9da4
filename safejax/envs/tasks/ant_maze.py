"""Ant-Maze: walk through a maze to a goal that pays 1 and ends the episode; marked cells cost 1 a step.

The ant of `ant_velocity` walks among walls 2 m high, in cells of 4 m; nothing else differs from Point-Maze, whose maps
these are: reward 1 on the step that ends with the torso within 0.5 m of the goal's center, which terminates, else 0;
cost 1 on a step that ends with the torso in a marked cell. A step takes 0.1 s. Observation (29): [x, y, height,
orientation w x y z, joint angles (8), velocity (3), angular velocity (3, body's frame), joint velocities (8)], m, rad,
s; the goal, always in the same cell, is not in it. An ant on its back does not terminate. Episodes start in the start
cell, with the noise of `ant_velocity`.

| task | steps | short way | its cost at 1 m/s | detour without cost |
|---|---|---|---|---|
| ant_maze_umaze | 700 | 24 m | 40 | none |
| ant_maze_medium | 1000 | 40 m | 80 | 64 m |
| ant_maze_large | 1000 | 56 m | 80 | 88 m |

Data of it come from `safejax.training.collect_maze` with a walker as `drive`; `benchmarks/ant_walker.py` trains one.

Source: antmaze of Fu et al. 2020, D4RL, https://arxiv.org/abs/2004.07219, for maps, cell size, goal radius,
observation, step and lengths. Different from it: the ant is that of Gymnasium 0.28.1 with a physics step of 0.01 s
(there: an older one, 0.02 s), the goal terminates, the start is one cell; marked cells and costs are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from safejax.envs.tasks._maze import DRAWINGS, Maze, cells, maze_task, place_in
from safejax.types import Array, Key

CELL = 4.0  # m
HEIGHT = 0.75  # m, of the torso at the start
NOISE = 0.1  # half width of the uniform noise on qpos at the start, standard deviation of qvel's

MAZES = {
    "ant_maze_umaze": Maze(DRAWINGS["umaze"], episode_length=700, cost_limits=(40.0, 60.0, 80.0), cell_size=CELL),
    "ant_maze_medium": Maze(DRAWINGS["medium"], episode_length=1000, cost_limits=(10.0, 20.0, 40.0), cell_size=CELL),
    "ant_maze_large": Maze(DRAWINGS["large"], episode_length=1000, cost_limits=(10.0, 20.0, 40.0), cell_size=CELL),
}
"""The maps by task name."""


def stance(key: Key, heading: Array | float = 0.0) -> Array:
    """[13] of qpos: height, orientation and joint angles of an ant that stands turned by `heading`, rad; with noise."""
    half = 0.5 * heading
    still = jnp.array([HEIGHT, jnp.cos(half), 0.0, 0.0, jnp.sin(half), *[0.0] * 8])
    drawn = still + jax.random.uniform(key, (13,), minval=-NOISE, maxval=NOISE)
    return drawn.at[1:5].divide(jnp.linalg.norm(drawn[1:5]))


def start_in(maze: Maze, cells: Any) -> Callable[[Key], tuple[Array, Array]]:
    """A task's `initialize`: standing in one of `cells` [K, 2], see `place_in`, with noise."""
    place = place_in(maze, cells)

    def initialize(key: Key) -> tuple[Array, Array]:
        place_key, qpos_key, qvel_key = jax.random.split(key, 3)
        return jnp.concatenate([place(place_key), stance(qpos_key)]), NOISE * jax.random.normal(qvel_key, (14,))

    return initialize


TASKS = tuple(
    maze_task(name, maze, start_in(maze, cells(maze, "S")), substeps=10, observation_size=29, action_size=8)
    for name, maze in MAZES.items()
)
