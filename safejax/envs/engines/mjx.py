"""The same physics as JAX operations (MJX, its `jax` kind): for GPUs, TPUs and programs without callbacks.

Equal to the host engine up to float32 rounding before a hard contact; after one, rounding grows. Where a capsule stands
on a plane at more than 60 degrees, mjx turns the pyramid of its friction, which the host lays along the capsule
(google-deepmind/mujoco#2774): ants then slide otherwise; what random ones earn is alike.
"""

# pyright: reportAttributeAccessIssue=false
# (the names of the compiled mujoco module are not declared)

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from safejax.envs.engines.base import VIEW_FIELDS, Engine, check_reads, load_model
from safejax.envs.tasks.base import Task, View
from safejax.types import Array, ArrayTree


def import_mjx() -> ModuleType:
    """`mujoco.mjx`, without the two lines that it prints where the optional warp is not installed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        from mujoco import mjx
    for line in printed.getvalue().splitlines():
        if not line.startswith(("Failed to import warp", "Failed to import mujoco_warp")):
            print(line)
    return mjx


mjx: Any = import_mjx()


LINE_SEARCH_ROUNDS = 10
"""Of Newton's solver, where the model says nothing: in a batch mjx makes them all, converged or not, and MuJoCo's 50
take three times as long. From states of 11 tasks the steps of both are the same to the bit."""


class Physics(NamedTuple):
    """State of one simulation."""

    view: View  # holds qpos and qvel
    act: Array  # [na] actuator activations
    qacc_warmstart: Array  # [nv] where the constraint solver starts
    time: Array  # [] s since the episode's start
    mocap: Array  # [nmocap, 7] poses of the bodies that the task places


def make_engine(task: Task) -> Engine:
    """The mjx engine of `task`. Its solver makes LINE_SEARCH_ROUNDS, unless the model sets `ls_iterations` itself.

    Raises:
      ValueError: MuJoCo cannot read the model, or `task.reads` names no field of mjData.
      NotImplementedError: if the model uses a feature that mjx lacks, such as collisions of a cylinder with a box, or
        lets things touch of which none can move.
    """
    check_reads(task)
    model = load_model(task.model, task.name)
    check_collisions(task.name, model)
    newton = model.opt.solver == mujoco.mjtSolver.mjSOL_NEWTON
    if newton and model.opt.ls_iterations == mujoco.MjOption().ls_iterations:
        model.opt.ls_iterations = LINE_SEARCH_ROUNDS
    with jax.ensure_compile_time_eval():
        mjx_model, empty = mjx.put_model(model, impl="jax"), mjx.make_data(model, impl="jax")

    def look(data: Any) -> View:
        data = forward(mjx_model, data) if model.nsensor or task.reads else mjx.kinematics(mjx_model, data)
        return view_of(data, task.reads)

    start, step = simulation(task, partial(mjx.step, mjx_model), look)
    return Engine(partial(start, empty), partial(step, empty), lambda physics: physics.view, model=model)


def simulation(
    task: Task, move: Callable[[Any], Any], look: Callable[[Any], View]
) -> tuple[Callable[..., Physics], Callable[..., Physics]]:
    """`Engine.start` and `Engine.step` of one simulation, both with an empty `mjx.Data` as an argument before theirs.

    Args:
      task: the task.
      move: one step of physics, `mjx.Data` to `mjx.Data`.
      look: a forward pass and what `view_of` makes of it.
    """

    def mocap_at(layout: ArrayTree, time: Array, mocap: Array) -> Array:
        return mocap if task.mocap is None else task.mocap(layout, time)

    def start(empty: Any, needed: Array, qpos: Array, qvel: Array, layout: ArrayTree = ()) -> Physics:
        del needed  # for all rows, in steps where one needs it: a GPU has nothing to gain
        mocap = mocap_at(layout, empty.time, jnp.concatenate([empty.mocap_pos, empty.mocap_quat], axis=-1))
        data = empty.replace(qpos=qpos, qvel=qvel, mocap_pos=mocap[:, :3], mocap_quat=mocap[:, 3:])
        return Physics(look(data), empty.act, jnp.zeros_like(qvel), empty.time, mocap)

    def step(empty: Any, physics: Physics, action: Array, layout: ArrayTree = ()) -> Physics:
        action = jnp.clip(action, -1.0, 1.0)
        ctrl = empty.ctrl if task.control is None else task.control(action)
        held = action if task.hold is None else task.hold(physics.view.qpos, physics.view.qvel, action)

        def data_of(qpos: Any, qvel: Any, act: Any, qacc_warmstart: Any, time: Any, mocap: Any) -> Any:
            force = empty.qfrc_applied
            if task.applied_force is not None:
                force = task.applied_force(qpos, qvel, held)
            state = dict(qpos=qpos, qvel=qvel, act=act, qacc_warmstart=qacc_warmstart, time=time)
            poses = dict(mocap_pos=mocap[:, :3], mocap_quat=mocap[:, 3:])
            return empty.replace(**state, **poses, ctrl=ctrl, qfrc_applied=force)

        def substep(carry: tuple[Array, ...], _: None) -> tuple[tuple[Array, ...], None]:
            if task.mocap_moves:
                carry = (*carry[:-1], mocap_at(layout, *carry[-2:]))
            data = move(data_of(*carry))
            return (data.qpos, data.qvel, data.act, data.qacc_warmstart, data.time, carry[-1]), None

        view, act, warmstart, time, mocap = physics
        carry = (view.qpos, view.qvel, act, warmstart, time, mocap_at(layout, time, mocap))
        carry, _ = jax.lax.scan(substep, carry, length=task.substeps)
        return Physics(look(data_of(*carry)), *carry[2:])

    return start, step


def view_of(data: Any, reads: tuple[str, ...]) -> View:
    """The view of an `mjx.Data` after a forward pass, with the fields `reads` of it."""
    fields = {name: _field(data, name).astype(jnp.float32) for name in (*VIEW_FIELDS, *reads)}
    return View(*(fields.pop(name) for name in VIEW_FIELDS), extras=fields)


def check_collisions(name: str, model: mujoco.MjModel) -> None:
    """Refuse geoms that may touch and whose types mjx has no collision function for, or that neither can move.

    The C library ignores contacts in which nothing can move. mjx gives them an infinite stiffness, and in float32 the
    solver then no longer sees the other contacts: a light box is thrown up at 10 m/s (google-deepmind/mujoco#2606 may
    be the same).

    Raises:
      NotImplementedError: one line that names the first such pair of the task `name`.
    """
    driver = mjx._src.collision_driver
    apart = "keep them apart by contype and conaffinity, an <exclude> or no <pair>, or take engine 'mujoco'"
    for first, second, _ in driver.geom_pairs(model):
        if not driver.has_collision_fn(*model.geom_type[[first, second]]):
            raise NotImplementedError(
                f"{name}: mjx has no collisions between {_describe(model, first)} and {_describe(model, second)}; use "
                f"a capsule, sphere or mesh for one of them, {apart}"
            )
        if not any(_can_move(model, model.geom_bodyid[geom]) for geom in (first, second)):
            raise NotImplementedError(
                f"{name}: {_describe(model, first)} and {_describe(model, second)} may touch and neither can move, "
                f"which in mjx spoils all other contacts; {apart}"
            )


def _can_move(model: mujoco.MjModel, body: int) -> bool:
    """Whether a joint of the body, or of one that carries it, moves it."""
    while body:
        if model.body_dofnum[body]:
            return True
        body = model.body_parentid[body]
    return False


def _describe(model: mujoco.MjModel, geom: int) -> str:
    kind = mujoco.mjtGeom(model.geom_type[geom]).name.removeprefix("mjGEOM_").lower()
    return f"{kind} {model.geom(geom).name or geom!r}"


def _field(data: Any, name: str) -> Array:
    return getattr(data if name in data.__dataclass_fields__ else data._impl, name)


def forward(mjx_model: Any, data: Any) -> Any:
    """`mjx.forward`, with its acceleration sensors computed even where the model can have no constraint.

    In that case mjx returns before it reads accelerometers, force sensors and the like, which stay 0.
    """
    data = mjx.forward(mjx_model, data)
    if np.size(data._impl.efc_J) == 0:
        data = mjx.sensor_acc(mjx_model, data)
    return data
