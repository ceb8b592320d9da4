"""A navigation world: a robot among groups of objects that its lidar sees; what Goal, Button, Push and Circle share.

Costs are 1 on a step that breaks any rule. Episodes end by time alone. Observation: the robot's own, then 16 numbers of
lidar for each group, in their order.

Source: Ji et al. 2023, Safety-Gymnasium, https://arxiv.org/abs/2310.12567; release 1.0.0 of
PKU-Alignment/safety-gymnasium. Formulas agree with its recordings: observations within 1e-6 but for the accelerometer,
rewards within 1e-6, costs without a mismatch. Different: rewards are not clipped to [-10, 10], which nothing reaches;
where a new goal finds no room in 10,000 draws it stays, where the original ends the episode; layouts come from a
population, see `_placement.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from safejax.envs.tasks import _objects, _placement
from safejax.envs.tasks._lidar import BINS, lidar
from safejax.envs.tasks._objects import Group
from safejax.envs.tasks._robots import Robot, mjcf, position, rotation
from safejax.envs.tasks.base import Reference, Shape, Start, Task, View
from safejax.types import Array, ArrayTree, Key

AGENT_KEEPOUT = 0.4  # m
HAZARD_RADIUS = 0.2  # m
COST_LIMITS = (20.0, 40.0, 80.0)  # per episode, cost units; DSRL's for these tasks


class World(NamedTuple):
    """What stands where."""

    robot: Robot
    groups: tuple[Group, ...]
    half_extent: float  # m, of the square in which all is placed
    agent_keepout: float = AGENT_KEEPOUT  # m
    agent_half_extent: float | None = None  # m, where the robot has a square of its own
    lidar_reach: float = 3.0  # m
    population: int = 4  # layouts drawn side by side; more where few get through


def make(
    world: World,
    name: str,
    reference: Reference | None,
    *,
    reward: Callable[[View, View], Array],
    cost: Callable[[View], Array],
    extend: Callable[[ArrayTree, Key], ArrayTree] = lambda layout, key: layout,
    rearrange: Callable[[View, Key], ArrayTree] | None = None,
    see: Callable[[View, str, Array], Array] = lambda view, group, places: places,
    scenery: tuple[tuple[Shape, tuple[float, float, float]], ...] = (),
    episode_length: int = 1000,
) -> Task:
    """The task of a world.

    Args:
      world: what stands where.
      name: as in `safejax.envs.make`.
      reference: DSRL's data set, where there is one.
      reward: (view before, view after) -> [...].
      cost: view after -> [...] bool.
      extend: (layout of the placed groups, key) -> the layout that an episode starts with.
      rearrange: see `Task`.
      see: (view, a group's name, its lidar [..., 16]) -> what the robot gets to see of it.
      scenery: what else is drawn, and where its middle is, m.
      episode_length: environment steps.
    """
    robot, groups = world.robot, world.groups
    return Task(
        name=name,
        model=mjcf(
            robot,
            objects=_objects.bodies(groups),
            sensors=_objects.touch_sensors(groups, robot),
            equalities=_objects.welds(groups),
            contact_points=_objects.contact_points(groups, robot),
        ),
        substeps=robot.substeps,
        episode_length=episode_length,
        observation_size=robot.observation_size + BINS * len(groups),
        action_size=robot.action_size,
        initialize=functools.partial(initialize, world=world, extend=extend),
        observe=functools.partial(observe, world=world, see=see),
        reward=lambda before, after, action: reward(before, after),
        cost=lambda view: cost(view).astype(jnp.float32),
        control=robot.control,
        mocap=functools.partial(_objects.placed_bodies, groups=groups) if _moves(groups, "still", "round") else None,
        mocap_moves=_moves(groups, "round"),
        rearrange=rearrange,
        shapes=(*_objects.shapes(groups), *(shape for shape, _ in scenery)),
        place_shapes=lambda view: _objects.place_shapes(view, groups, [place for _, place in scenery]),
        cost_limits=COST_LIMITS,
        reference=reference,
    )


def _moves(groups: tuple[Group, ...], *motions: str) -> bool:
    return any(group.motion in motions for group in groups)


def initialize(key: Key, *, world: World, extend: Callable[[ArrayTree, Key], ArrayTree]) -> Start:
    """Everything at rest in a drawn place, turned at random; a goal is drawn twice, as in the original."""
    robot, groups = world.robot, world.groups
    place_key, goal_key, yaw_key, extend_key = jax.random.split(key, 4)
    distances = _distances(world)
    places = _placement.place(place_key, distances, world.population)
    names = _names(groups)
    if "goal" in names:
        index = names.index("goal") + 1
        _, places = _placement.draw(goal_key, distances, places, index, jnp.arange(len(places)) != index)
    yaws = jax.random.uniform(yaw_key, (len(places),), maxval=2.0 * jnp.pi)
    layout, start = {}, 1
    for group in groups:
        layout[group.name] = places[start : start + group.count]
        if group.motion == "round":
            layout[f"{group.name}_yaw"] = yaws[start : start + group.count]
        start += group.count
    loose = _objects.free_poses(layout, yaws[1:], groups)
    qpos, qvel = robot.place(places[0], yaws[0])
    still = jnp.zeros(len(loose) // 7 * 6)
    kept = {name: part for name, part in layout.items() if name not in _loose(groups)}
    return Start(jnp.concatenate([qpos, loose]), jnp.concatenate([qvel, still]), extend(kept, extend_key))


def _names(groups: tuple[Group, ...]) -> list[str]:
    """The group of every object, in their order."""
    return [group.name for group in groups for _ in range(group.count)]


def _loose(groups: tuple[Group, ...]) -> set[str]:
    return {group.name for group in groups if group.motion == "loose"}


def _distances(world: World) -> _placement.Distances:
    """Of the robot and every object, in the order in which they are placed."""
    keepouts = [world.agent_keepout, *(group.keepout for group in world.groups for _ in range(group.count))]
    own = world.half_extent if world.agent_half_extent is None else world.agent_half_extent
    return _placement.distances(keepouts, [own] + [world.half_extent] * (len(keepouts) - 1))


def observe(view: View, *, world: World, see: Callable[[View, str, Array], Array]) -> Array:
    """[..., O], see the module's first lines."""
    parts = [world.robot.observe(view)]
    for group in world.groups:
        places = _objects.places(view, group, world.groups, world.robot)
        seen = lidar(places, position(view), rotation(view), world.lidar_reach)
        parts.append(see(view, group.name, seen))
    return jnp.concatenate(parts, axis=-1)


def distance(view: View, place: Array) -> Array:
    """Between the robot and a place [..., 2], on the floor, [...] m."""
    return jnp.linalg.norm(position(view)[..., :2] - place, axis=-1)


def in_hazard(view: View, radius: float = HAZARD_RADIUS) -> Array:
    """[...] bool: the robot's middle is inside a hazard; False where there is none."""
    if "hazards" not in view.layout:
        return jnp.zeros(view.qpos.shape[:-1], bool)
    offset = position(view)[..., None, :2] - view.layout["hazards"]
    return jnp.any(jnp.linalg.norm(offset, axis=-1) < radius, axis=-1)


def touches(view: View, name: str, world: World) -> Array:
    """[...] bool: the robot touches an object of the group; False where there is none."""
    if name not in (group.name for group in world.groups):
        return jnp.zeros(view.qpos.shape[:-1], bool)
    return jnp.any(_objects.touched(view, name, world.groups, world.robot), axis=-1)


def move_goal(view: View, key: Key, met: Array, world: World) -> ArrayTree:
    """The layout with a new goal where `met` []: away from the robot and everything else as it now stands."""
    groups = world.groups
    now = [_objects.places(view, group, groups, world.robot) for group in groups]
    places = jnp.concatenate([position(view)[None, :2], *now])
    index = _names(groups).index("goal") + 1
    others = jnp.arange(len(places)) != index
    distances = _distances(world)
    _, places = _placement.draw(key, distances, places, index, others, _placement.REDRAW_ROUNDS, needed=met)
    return view.layout | {"goal": places[index : index + 1]}
