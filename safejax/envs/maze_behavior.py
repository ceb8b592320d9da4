"""Behavior in a maze: go to a commanded goal by the shortest way, then to another; what play data are made with.

The policy knows the map, learns nothing and does not mind costs. Its goals are not the task's: reward and termination
stay with the task, so that most episodes wander and only a commanded way that comes by the task's goal ends there.

Source: the antmaze data sets of Fu et al. 2020, D4RL, https://arxiv.org/abs/2004.07219, section 5: "play" goes between
hand-picked places, "diverse" between random ones. Here goals change within an episode, as in its maze2d. What moves the
robot to the next cell is its `Drive`: of a point mass a controller, of an ant a policy that has to be trained, as
`benchmarks/ant_walker.py` does.
Shapes: R x C cells, K goals, B environments, O observation, A action.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from safejax.envs import make, task
from safejax.envs.tasks import ant_maze, point_maze
from safejax.envs.tasks._maze import GOAL_RADIUS, Maze, cells, centers, is_wall
from safejax.types import Algorithm, Array, BatchSpec, Carry, Env, Key, check_choice

STARTS = {"play": "So", "diverse": "S.!o"}
"""By kind, the cells (letters of the map) in which episodes start."""

GOALS = {"play": "SoG", "diverse": "S.!oG"}
"""By kind, the cells that are commanded."""

POSITION_GAIN = 2.0  # action per m
VELOCITY_GAIN = 0.3  # action per m/s
NOISE = 0.5  # standard deviation of what is added to a mass's action before it is clipped, as in maze2d
ANT_NOISE = 0.2  # the same of an ant's
CORRIDOR = 0.25  # cells off a corridor's middle; a mass of radius 0.2 m has 0.3 m of its cell of 1 m

Drive = Callable[[Array, Array], Array]
"""(observations [B, O], targets [B, 2] in m) -> actions [B, A], each one step towards its target."""

_ROBOTS = {
    **{name: (maze, point_maze.start_in, NOISE) for name, maze in point_maze.MAZES.items()},
    **{name: (maze, ant_maze.start_in, ANT_NOISE) for name, maze in ant_maze.MAZES.items()},
}

_NEIGHBORS = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])  # up, down, left, right; the first of equals is taken


def distances(is_wall: np.ndarray) -> np.ndarray:
    """Steps between neighboring free cells on the shortest way, by breadth-first search from all cells at once.

    Args:
      is_wall: [R, C] bool, with walls along its border.

    Returns:
      [R * C, R * C] int32, from cell to cell, where the cell in row r and column c has number r * C + c; -1 where
      there is no way, as from and to walls.
    """
    free = ~is_wall.reshape(-1)
    columns = is_wall.shape[1]
    numbers = np.arange(free.size)
    apart = np.abs(numbers[:, None] - numbers)
    adjacent = np.isin(apart, (1, columns)) & free & free[:, None]  # a border of walls keeps rows apart
    frontier = np.diag(free)
    found = np.full(adjacent.shape, -1, np.int32)
    distance = 0
    while frontier.any():
        found[frontier] = distance
        frontier = (frontier @ adjacent) & (found < 0)
        distance += 1
    return found


def next_cells(is_wall: np.ndarray) -> np.ndarray:
    """[R * C, R * C] int32: on the way from cell i to cell j, the neighbor of i that comes next; i where there is none.

    Of equally short ways it takes the one that goes first up, else down, left, right.
    """
    found = distances(is_wall)
    numbers = np.arange(len(found))
    table = np.tile(numbers[:, None], len(found))
    for step in _NEIGHBORS[::-1] @ [is_wall.shape[1], 1]:
        neighbor = np.clip(numbers + step, 0, len(found) - 1)
        closer = (found > 0) & (found[neighbor] == found - 1)
        table = np.where(closer, neighbor[:, None], table)
    return table.astype(np.int32)


@functools.cache
def make_behavior(name: str, kind: str, engine: str | None = None, drive: Drive | None = None) -> tuple[Algorithm, Env]:
    """A policy that goes from goal to goal, and the maze with episodes that start where this kind of data do.

    Args:
      name: a maze, such as "point_maze_umaze".
      kind: "play", between the places marked on the map, or "diverse", between all free cells.
      engine: as in `safejax.envs.make`.
      drive: what moves the robot; by default `push`, which moves the mass. The ant has none here.

    Returns:
      An `Algorithm` whose state is () and whose carry [B] is the goal commanded, exploring with action noise; and
      the maze, which differs from the evaluated one in where episodes start only: never in the goal's cell.

    Raises:
      ValueError: an unknown name, kind or engine, or an ant without a drive.
    """
    check_choice("name", name, _ROBOTS)
    check_choice("kind", kind, STARTS)
    if drive is None and name not in point_maze.MAZES:
        known = ", ".join(point_maze.MAZES)
        raise ValueError(f"drive is None, expected a policy that walks in {name}; only {known} have one built in")
    maze, start_in, noise = _ROBOTS[name]
    env = make(task(name)._replace(initialize=start_in(maze, cells(maze, STARTS[kind]))), engine)
    return waypoint_policy(maze, cells(maze, GOALS[kind]), drive or push, noise), env


def push(observation: Array, target: Array) -> Array:
    """The mass's `Drive`: proportional-derivative control."""
    return POSITION_GAIN * (target - observation[:, :2]) - VELOCITY_GAIN * observation[:, 2:]


def waypoint_policy(maze: Maze, goals: np.ndarray, drive: Drive = push, noise: float = NOISE) -> Algorithm:
    """Drives to the middle of the next cell on the way to a goal drawn from `goals`.

    A goal is drawn when there is none or it is within the task's goal radius; never the same twice in a row.

    Args:
      maze: where the robot is; its place leads the observation.
      goals: [K, 2] rows and columns, K >= 2.
      drive: what moves the robot.
      noise: standard deviation of what is added to its actions when exploring.
    """
    rows, columns = is_wall(maze).shape
    middles = centers(maze, np.indices((rows, columns)).reshape(2, -1).T)  # [R * C, 2]
    following = next_cells(is_wall(maze))
    goal_cells = (goals @ [columns, 1]).astype(np.int32)  # [K]

    def act(
        state: Any, observation: Array, key: Key, carry: Carry, *, explore: bool = False
    ) -> tuple[Array, Carry, dict[str, Array]]:
        del state
        position = observation[:, :2]
        goal_key, noise_key = jax.random.split(key)
        goal = _command(goal_key, carry, position)
        cell = _cell(position)
        waypoint = jnp.asarray(following)[cell, jnp.asarray(goal_cells)[goal]]
        here, there = jnp.asarray(middles)[cell], jnp.asarray(middles)[waypoint]
        # before a turn: first to the middle of this cell, lest the robot catch on the corner
        aside = jnp.max(jnp.where(here == there, jnp.abs(position - here), 0.0), axis=-1, keepdims=True)
        action = drive(observation, jnp.where(aside < CORRIDOR * maze.cell_size, there, here))
        if explore:
            action = action + noise * jax.random.normal(noise_key, action.shape)
        return jnp.clip(action, -1.0, 1.0), goal, {}

    def _command(key: Key, goal: Array, position: Array) -> Array:
        """[B] numbers of goals: as before, or others where these are reached."""
        first_key, other_key = jax.random.split(key)
        first = jax.random.randint(first_key, goal.shape, 0, len(goals))
        other = (goal + jax.random.randint(other_key, goal.shape, 1, len(goals))) % len(goals)
        place = jnp.asarray(middles)[jnp.asarray(goal_cells)[goal]]
        reached = jnp.linalg.norm(position - place, axis=-1) <= GOAL_RADIUS
        return jnp.where(goal < 0, first, jnp.where(reached, other, goal))

    def _cell(position: Array) -> Array:
        """[B] numbers of the cells that hold `position` [B, 2]."""
        row = jnp.floor(rows / 2 - position[:, 1] / maze.cell_size)
        column = jnp.floor(position[:, 0] / maze.cell_size + columns / 2)
        return (row * columns + column).astype(jnp.int32)

    return Algorithm(
        init=lambda key, example: (),
        update=lambda state, batch, key: (state, {}),
        act=act,
        initial_carry=lambda state, batch_size: jnp.full((batch_size,), -1, jnp.int32),
        advance=lambda carry, transition: carry,
        adapt=lambda state, episodes: state,
        batch=BatchSpec.uniform(),
    )
