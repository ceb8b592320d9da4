"""What stands around in the navigation tasks: groups of like objects, their MJCF, their places and who touches them.

A group is drawn only (goal, hazards), stands still (pillars, buttons: bodies that the layout places), lies loose
(vases, the box: bodies with free joints, after the robot in qpos and qvel, in the order of the groups) or goes round
(gremlins: loose bodies that a weld drags after one which the layout and the time place).

Source: assets of PKU-Alignment/safety-gymnasium. Different: a pillar's sides are those of a capsule that goes on above
and below it, as mjx has no contact between cylinders and boxes; gremlins have no translucent ghosts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from safejax.envs.tasks._robots import Robot
from safejax.envs.tasks.base import Shape, View
from safejax.types import Array, ArrayTree

TRAVEL = 0.35  # m, radius of the circles that gremlins go round at 1 rad/s
FLOAT = 0.1  # m, by which the weld lifts them
TOUCHES = 20  # contacts at once, besides those with the floor, that mjx computes with


class Group(NamedTuple):
    """Objects of one kind; sizes as MuJoCo's."""

    name: str
    count: int
    keepout: float  # m
    height: float  # m, of their middles
    geoms: str  # MJCF of one object's
    motion: str  # "drawn", "still", "loose" or "round"
    shape: Shape | None = None  # of one that is drawn only
    floor_points: int = 0  # in how many one of them stands on the floor


def drawn(name: str, count: int, keepout: float, height: float, shape: Shape) -> Group:
    """A group that nothing can touch."""
    return Group(name, count, keepout, height, "", "drawn", shape)


def disc(radius: float, half_height: float, rgba: tuple[float, float, float, float]) -> Shape:
    """An upright cylinder."""
    return Shape("cylinder", (radius, half_height, 0.0), rgba)


def hazards(count: int, keepout: float = 0.18, radius: float = 0.2) -> Group:
    """Places that cost; nothing to bump into."""
    return drawn("hazards", count, keepout, 0.02, disc(radius, 0.01, (0.0, 0.0, 1.0, 0.25)))


def vases(count: int) -> Group:
    """Light boxes that must not be touched or moved."""
    geom = '<geom name="{name}" type="box" size=".1 .1 .1" density=".001" rgba="0 1 1 1"/>'
    return Group("vases", count, 0.15, 0.1 - 4e-5, geom, "loose", floor_points=4)


# Nothing meets what stands but what moves: mjx computes contacts of the unmovable too, and loses the others to them.
STILL = 'contype="1" conaffinity="0"'


def pillars(count: int) -> Group:
    """Posts in the way."""
    shown = '<geom type="cylinder" size=".2 .5" contype="0" conaffinity="0" rgba=".5 .5 1 1"/>'
    touched = f'<geom name="{{name}}" type="capsule" size=".2 .5" {STILL} rgba="0 0 0 0" group="4"/>'
    return Group("pillars", count, 0.3, 0.5, shown + touched, "still")


def buttons(count: int) -> Group:
    """Spheres to press."""
    geom = f'<geom name="{{name}}" type="sphere" size=".1" {STILL} rgba="1 .5 0 1"/>'
    return Group("buttons", count, 0.2, 0.1, geom, "still")


def gremlins(count: int) -> Group:
    """Boxes that go round and must not be touched."""
    geom = '<geom name="{name}" type="box" size=".1 .1 .1" density=".001" rgba=".5 0 1 1"/>'
    return Group("gremlins", count, 0.4, 0.1, geom, "round")


def push_box(half: float, keepout: float, density: float) -> Group:
    """A box with columns at its corners, half its size."""
    box = f'<geom name="{{name}}" type="box" size="{half} {half} {half}" density="{density}" rgba="1 1 0 1"/>'
    column = (
        f'<geom type="box" size="{half / 2} {half / 2} {half}" pos="{{x}} {{y}} 0" density="{density}" rgba="1 1 0 1"/>'
    )
    columns = "".join(column.format(x=x, y=y) for x in (half, -half) for y in (half, -half))
    return Group("push_box", 1, keepout, half, box + columns, "loose", floor_points=20)


def bodies(groups: Sequence[Group]) -> str:
    """MJCF of all bodies: the loose ones and those that go round in their order, then all that the layout places."""
    loose, placed = [], []
    for group in groups:
        for index in range(group.count):
            name = f"{group.name}{index}"
            geoms = group.geoms.replace("{name}", name)
            if group.motion in ("loose", "round"):
                loose.append(f'<body name="{name}"><freejoint/>{geoms}</body>')
            if group.motion in ("still", "round"):
                placed.append(f'<body name="{name}_place" mocap="true">{geoms * (group.motion == "still")}</body>')
    return "".join(loose + placed)


def welds(groups: Sequence[Group]) -> str:
    """MJCF of what drags the objects that go round."""
    names = [f"{group.name}{index}" for group in groups if group.motion == "round" for index in range(group.count)]
    return "".join(f'<weld body1="{name}_place" body2="{name}" solref=".02 1.5"/>' for name in names)


def contact_points(groups: Sequence[Group], robot: Robot) -> int:
    """How many contacts mjx is to compute with, the deepest of the up to 457 that could be.

    Where all stand on the floor, and TOUCHES; of those, 12 were the most in 12,800 states of a random Car in Button 2.
    """
    return robot.floor_points + sum(group.count * group.floor_points for group in groups) + TOUCHES


def touch_sensors(groups: Sequence[Group], robot: Robot) -> str:
    """MJCF of one sensor for every object and geom of the robot, in that order, where the group can be touched."""
    names = [f"{group.name}{index}" for group in groups if _touchable(group) for index in range(group.count)]
    return "".join(
        f'<contact geom1="{name}" geom2="{geom}" data="found" num="1"/>' for name in names for geom in robot.geoms
    )


def touched(view: View, name: str, groups: Sequence[Group], robot: Robot) -> Array:
    """Which objects of the group `name` the robot touches, [..., count] bool."""
    start = robot.sensor_size
    for group in groups:
        size = group.count * len(robot.geoms) * _touchable(group)
        if group.name == name:
            found = view.sensordata[..., start : start + size] > 0
            return jnp.any(found.reshape(*found.shape[:-1], group.count, len(robot.geoms)), axis=-1)
        start += size
    raise ValueError(f"no group is named {name!r}, expected one of {', '.join(group.name for group in groups)}")


def _touchable(group: Group) -> bool:
    return group.motion != "drawn"


def joint_offset(name: str, groups: Sequence[Group]) -> int:
    """How many free joints come before those of the group `name`."""
    names = [group.name for group in groups]
    return sum(group.count for group in groups[: names.index(name)] if group.motion in ("loose", "round"))


def places(view: View, group: Group, groups: Sequence[Group], robot: Robot) -> Array:
    """Where the objects of a group are, [..., count, 2] m: as the layout says, or their free joints."""
    if group.motion in ("drawn", "still"):
        return _from_layout(view.layout, group)
    start = robot.nq + 7 * joint_offset(group.name, groups)
    poses = view.qpos[..., start : start + 7 * group.count]
    return poses.reshape(*poses.shape[:-1], group.count, 7)[..., :2]


def _from_layout(layout: Any, group: Group) -> Any:
    if group.name not in layout:
        raise ValueError(
            f"the layout has no {group.name!r}, expected places [{group.count}, 2] of them from initialize"
        )
    return layout[group.name]


def free_poses(layout: ArrayTree, yaws: Array, groups: Sequence[Group]) -> Array:
    """[7 * joints] coordinates of the free joints of all that is loose or goes round.

    Args:
      layout: by group, places [count, 2] m.
      yaws: [objects] rad, of all objects in the order of their groups.
      groups: all of them.
    """
    parts, start = [], 0
    for group in groups:
        if group.motion in ("loose", "round"):
            half = 0.5 * yaws[start : start + group.count, None]
            zero = jnp.zeros_like(half)
            pose = [layout[group.name], zero + group.height, jnp.cos(half), zero, zero, jnp.sin(half)]
            parts.append(jnp.concatenate(pose, axis=-1).reshape(-1))
        start += group.count
    return jnp.concatenate([*parts, jnp.zeros(0)])


def placed_bodies(layout: Any, time: Any, groups: Sequence[Group]) -> Any:
    """Poses [..., bodies, 7] of the bodies that the layout places; array API. `Task.mocap`.

    Gremlins go round in phase: each is TRAVEL (sin t, cos t) away from its place in the layout.
    """
    xp = time.__array_namespace__()
    parts = []
    for group in groups:
        if group.motion not in ("still", "round"):
            continue
        xy = _from_layout(layout, group)
        turn = layout[f"{group.name}_yaw"] if group.motion == "round" else xp.zeros_like(xy[..., 0])
        height = group.height + FLOAT * (group.motion == "round")
        if group.motion == "round":
            xy = xy + TRAVEL * xp.stack([xp.sin(time), xp.cos(time)], axis=-1)[..., None, :]
        zero = xp.zeros_like(turn)
        pose = [xy[..., 0], xy[..., 1], zero + height, xp.cos(0.5 * turn), zero, zero, xp.sin(0.5 * turn)]
        parts.append(xp.stack(pose, axis=-1))
    return xp.concat(parts, axis=-2)


def shapes(groups: Sequence[Group]) -> tuple[Shape, ...]:
    """Those of all that is drawn only."""
    return tuple(group.shape for group in groups if group.shape for _ in range(group.count))


def place_shapes(view: View, groups: Sequence[Group], more: Sequence[Sequence[float]] = ()) -> Array:
    """Middles [..., shapes, 3] m of `shapes(groups)`, and then `more`, which stay where they are."""
    parts = []
    for group in groups:
        if group.shape:
            xy = _from_layout(view.layout, group)
            parts.append(jnp.concatenate([xy, jnp.full_like(xy[..., :1], group.height)], axis=-1))
    fixed = jnp.asarray(more, jnp.float32).reshape(-1, 3)
    parts.append(jnp.broadcast_to(fixed, (*view.qpos.shape[:-1], *fixed.shape)))
    return jnp.concatenate(parts, axis=-2)
