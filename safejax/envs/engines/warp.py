"""The same physics as MuJoCo Warp's kernels, called through mjx: for NVIDIA GPUs.

Where JAX has no GPU (`JAX_PLATFORMS=cpu`) the kernels run on one core, far slower than both other engines; that is how
tests compare them with the host engine, where warp is installed. They have collisions that mjx lacks, no derivatives,
and, as mjx, other friction under steep capsules. The first call on a machine compiles kernels, up to a minute or two a
model; they are kept on disk.
"""

# pyright: reportAttributeAccessIssue=false
# (the names of the compiled mujoco module are not declared)

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import mujoco

from safejax.envs.engines.base import Engine, check_reads, load_model
from safejax.envs.engines.mjx import Physics, mjx, simulation, view_of
from safejax.envs.tasks.base import Task, View
from safejax.types import Array, ArrayTree

_GEOM, _SENSOR = mujoco.mjtGeom, mujoco.mjtSensor
_SPHERE, _CAPSULE = int(_GEOM.mjGEOM_SPHERE), int(_GEOM.mjGEOM_CAPSULE)
_PLAIN = {_SPHERE, _CAPSULE, int(_GEOM.mjGEOM_PLANE), int(_GEOM.mjGEOM_BOX)}
_BETWEEN_GEOMS = tuple(int(getattr(_SENSOR, f"mjSENS_GEOM{name}")) for name in ("DIST", "NORMAL", "FROMTO"))


def make_engine(task: Task) -> Engine:
    """The warp engine of `task`.

    Raises:
      ModuleNotFoundError: warp is not installed.
      ValueError: MuJoCo cannot read the model, or `task.reads` names no field of mjData.
      NotImplementedError: if the model uses a feature that MuJoCo Warp, or this engine, lacks.
    """
    prepare_warp()
    check_reads(task)
    model = load_model(task.model, task.name)
    check_room(task.name, model)
    model.opt.jacobian = mujoco.mjtJacobian.mjJAC_AUTO  # the kernels refuse dense ones of more than 60 velocities
    with jax.ensure_compile_time_eval():
        warp_model = mjx.put_model(model, impl="warp")
    private = warp_model.opt._impl.replace(warn_overflow=0)  # said by NaN, not on stdout
    warp_model = warp_model.replace(opt=warp_model.opt.replace(_impl=private))
    flags = mjx.warp.mujoco_warp.OverflowType
    too_small = int(flags.NEFC | flags.NJMAX_NNZ | flags.BROADPHASE | flags.NARROWPHASE | flags.CCD | flags.HFIELD)

    def move(data: Any) -> Any:
        after = mjx.step(warp_model, data)
        # `room` sees to it that no contact is left out; were one, all that are computed together would be lost.
        # Once lost, a state stays so: the kernels make 1, 0, 0, 0 of a rotation that is NaN
        sound = (after._impl.overflow & too_small == 0) & _is_finite(data.qpos) & _is_finite(data.qvel)
        return after.replace(qpos=jnp.where(sound, after.qpos, jnp.nan), qvel=jnp.where(sound, after.qvel, jnp.nan))

    def look(data: Any) -> View:
        return view_of(mjx.forward(warp_model, data), task.reads)

    start, step = simulation(task, move, look)

    def checked_step(empty: Any, physics: Physics, action: Array, layout: ArrayTree = ()) -> Physics:
        finite = _is_finite(action)  # the kernels would take NaN for the end of a range
        after = step(empty, physics, jnp.where(finite, action, 0.0), layout)
        qpos, qvel = (jnp.where(finite, state, jnp.nan) for state in (after.view.qpos, after.view.qvel))
        return after._replace(view=after.view._replace(qpos=qpos, qvel=qvel))

    empty = empty_data(model)
    return Engine(
        in_one_call(start, empty), in_one_call(checked_step, empty), lambda physics: physics.view, model=model
    )


def prepare_warp() -> None:
    """See that warp is here, and tell it not to print on stdout what it compiles.

    Raises:
      ModuleNotFoundError: it is not installed, or not as mjx needs it.
    """
    if not mjx.warp.WARP_INSTALLED or mjx.warp.mujoco_warp is None:
        found = "not installed" if not mjx.warp.WARP_INSTALLED else "not of the version that mujoco-mjx needs"
        raise ModuleNotFoundError(f"warp is {found}: pip install 'safejax[warp]'", name="warp")
    import warp

    if warp.config.log_level == warp.LOG_INFO:  # its default
        warp.config.log_level = warp.LOG_WARNING


def check_room(name: str, model: mujoco.MjModel) -> None:
    """Refuse what `room` does not count.

    Raises:
      NotImplementedError: one line, with the `name` of the task.
    """
    sensors = [model.sensor(index).name or index for index in range(model.nsensor)]
    between = [sensors[index] for index in range(model.nsensor) if int(model.sensor_type[index]) in _BETWEEN_GEOMS]
    if model.nflex or between:
        found = f"the sensor {between[0]!r} between geoms" if between else "flexible bodies"
        raise NotImplementedError(f"{name}: engine 'warp' has no room for {found}; take engine 'mujoco' or 'mjx'")


def room(model: mujoco.MjModel) -> tuple[int, int]:
    """(contacts, rows of constraints) that one simulation may have at once, both at least 1.

    All contacts that the kernels could find at all pairs of geoms, whatever `max_contact_points` says: that is for mjx,
    which leaves out the shallow ones, whereas the kernels leave out the last.
    """
    contacts, rows = 1, 0
    for first, second, dim in _pairs(model):
        points = _points(int(model.geom_type[first]), int(model.geom_type[second]))
        contacts += points
        rows += points * (2 * (dim - 1) if dim > 1 else 1)  # edges of the pyramid of friction
    # limits on both sides, friction losses, and equalities, of which the kernels want a row more than they fill
    return contacts, rows + 3 * (model.nv + model.ntendon) + 6 * model.neq + 1


def _pairs(model: mujoco.MjModel) -> list[tuple[int, int, int]]:
    """(geom, geom, dimension of a contact) of what may touch."""
    found = []
    for first, second, pair in mjx._src.collision_driver.geom_pairs(model):
        dims = model.geom_condim[[first, second]].max() if pair < 0 else model.pair_dim[pair]
        found.append((int(first), int(second), int(dims)))
    return found


def _points(*kinds: int) -> int:
    """Contacts that the kernels find at most between geoms of two kinds: 8 are of two boxes."""
    if _SPHERE in kinds:
        return 1
    return 2 if _CAPSULE in kinds and _PLAIN.issuperset(kinds) else 8


def empty_data(model: mujoco.MjModel) -> Callable[[int], Any]:
    """(count) -> an empty `mjx.Data` of one simulation of `model`, with room for the contacts of `count`."""
    contacts, rows = room(model)

    def make(contact_count: int) -> Any:
        return mjx.make_data(model, impl="warp", naconmax=contact_count, njmax=rows)

    with jax.ensure_compile_time_eval():
        small = jax.tree.leaves(make(1))

    def empty(count: int) -> Any:
        shapes = jax.eval_shape(partial(make, count * contacts))
        leaves = [
            leaf if leaf.shape == shape.shape else jnp.zeros(shape.shape, shape.dtype)  # in the program, no constant
            for leaf, shape in zip(small, jax.tree.leaves(shapes), strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    return empty


def in_one_call(one: Callable[..., ArrayTree], empty: Callable[[int], Any]) -> Callable[..., ArrayTree]:
    """`one` without its first argument, which is `empty` of how many simulations are computed together.

    All share one buffer of contacts, so their number must be known where it is made; however many `vmap`s lie above,
    the kernels are called once for all.
    """

    @jax.custom_batching.custom_vmap
    def many(arguments: ArrayTree) -> ArrayTree:  # leaves [count, ...]
        data = empty(len(jax.tree.leaves(arguments)[0]))
        return jax.vmap(partial(one, data))(*arguments)

    @many.def_vmap
    def _(size: int, batched: list[ArrayTree], arguments: ArrayTree) -> tuple[ArrayTree, ArrayTree]:
        def flat(leaf: Array, has_axis: bool) -> Array:  # [size * count, ...]
            leaf = leaf if has_axis else jnp.broadcast_to(leaf, (size, *leaf.shape))
            return leaf.reshape(size * leaf.shape[1], *leaf.shape[2:])

        result = many(jax.tree.map(flat, arguments, batched[0]))
        result = jax.tree.map(lambda leaf: leaf.reshape(size, len(leaf) // size, *leaf.shape[1:]), result)
        return result, jax.tree.map(lambda _: True, result)

    def alone(*arguments: ArrayTree) -> ArrayTree:
        result = many(jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], arguments))
        return jax.tree.map(lambda leaf: leaf[0], result)

    return alone


def _is_finite(values: Array) -> Array:
    return jnp.isfinite(values).all()
