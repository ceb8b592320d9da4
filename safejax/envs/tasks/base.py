"""What a task is: numbers and pure functions over a small view of the physics. No engine appears here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from safejax.scores import Reference
from safejax.types import Array, ArrayTree, Key


class View(NamedTuple):
    """What a task may read: a part of the physics, and the layout; float32, SI units, any leading axes."""

    qpos: Array  # [..., nq] generalised positions; quaternions are w, x, y, z
    qvel: Array  # [..., nv] generalised velocities; a free joint's angular velocity is in the body's frame
    sensordata: Array  # [..., nsensordata]
    xpos: Array  # [..., nbody, 3] world positions of the body frames
    xquat: Array  # [..., nbody, 4] world orientations of the body frames, w, x, y, z
    extras: dict[str, Array] = {}  # what `Task.reads` names
    layout: ArrayTree = ()  # what the task drew beside the physics, see `Start`


class Shape(NamedTuple):
    """A solid that is drawn and never touched, such as a goal or a hazard; upright, at a position given when drawn."""

    kind: str  # "sphere", "capsule", "ellipsoid", "cylinder" or "box"
    size: tuple[float, float, float]  # as MuJoCo's geom size, m; numbers that the kind does not use are ignored
    rgba: tuple[float, float, float, float]  # in [0, 1]


class Start(NamedTuple):
    """A fresh episode."""

    qpos: Array  # [nq]
    qvel: Array  # [nv]
    layout: ArrayTree = ()  # where goals and hazards are, which button counts: arrays of fixed shapes


def _never(view: View) -> Array:
    return jnp.zeros(view.qpos.shape[:-1], bool)


def _free(before: View, after: View, action: Array) -> Array:
    del before, action
    return jnp.zeros(after.qpos.shape[:-1], jnp.float32)


class Task(NamedTuple):
    """A world without its physics engine. Functions take one simulation or any leading axes.

    `applied_force`, `hold`, `control` and `mocap` are written with the array API (`xp = qvel.__array_namespace__()`):
    the host engine calls them with NumPy arrays, float64 but for the layout, the mjx engine with JAX arrays. All others
    are JAX functions.
    """

    name: str  # as in `safejax.envs.make`
    model: str  # MJCF file in safejax/envs/assets, or an absolute path, or the text of one, which begins with "<"
    substeps: int  # physics steps per environment step
    episode_length: int  # environment steps until truncation
    observation_size: int  # O
    action_size: int  # A
    initialize: Callable[[Key], tuple]  # key -> a `Start`, or its (qpos [nq], qvel [nv]) where there is no layout
    observe: Callable[[View], Array]  # view -> [..., O]
    reward: Callable[[View, View, Array], Array]  # (before, after, action [..., A] as given, unclipped) -> [...]
    cost: Callable[[View], Array]  # view after the step -> [...] >= 0
    terminated: Callable[[View], Array] = _never  # view after the step -> [...] bool
    control: Callable[[Any], Any] | None = None  # action [..., A] in [-1, 1] -> ctrl [..., nu]
    applied_force: Callable[[Any, Any, Any], Any] | None = None  # (qpos, qvel, action) -> [..., nv], every substep
    hold: Callable[[Any, Any, Any], Any] | None = None  # as `applied_force`, once a step: what it gets for the action
    mocap: Callable[[Any, Any], Any] | None = None  # (layout, time [...] s) -> its bodies' x y z, quaternion [..., 7]
    mocap_moves: bool = False  # whether `mocap` depends on the time: then every substep asks it, else every step
    rearrange: Callable[[View, Key], ArrayTree] | None = None  # view after the step -> the layout from the next step on
    step_cost: Callable[[View, View, Array], Array] = _free  # as `reward` -> [...] >= 0; adds to `cost`
    reads: tuple[str, ...] = ()  # fields of mjData, such as "cvel", for `View.extras`; they cost a full forward pass
    shapes: tuple[Shape, ...] = ()  # what is drawn and never touched
    place_shapes: Callable[[View], Array] | None = None  # view -> middles [..., len(shapes), 3] of `shapes`
    cost_limits: tuple[float, ...] = (10.0, 20.0, 40.0)  # per episode, cost units; DSRL's evaluation limits
    reference: Reference | None = None  # the offline data set that the task reproduces
