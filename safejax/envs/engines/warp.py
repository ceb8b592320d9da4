"""The same physics as MuJoCo Warp's kernels, called through mjx: for NVIDIA GPUs.

The kernels run on CPU too, where tests compare them with the host engine, far slower than both other engines. They
have collisions that mjx lacks, and no derivatives. The first call on a machine compiles kernels, for up to a minute or
two a model; they are kept on disk.
"""

# pyright: reportAttributeAccessIssue=false
# (the names of the compiled mujoco module are not declared)

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import mujoco

from safejax.envs.engines.base import Engine, check_reads, load_model
from safejax.envs.engines.mjx import Physics, mjx, simulation, view_of
from safejax.envs.tasks.base import Task, View
from safejax.types import Array, ArrayTree

POINTS = 8  # contacts of one pair of geoms, at most: of two boxes
TOO_SMALL = 0b111111  # of the kernels' flags of overflow, those of contacts and constraints: some were left out


def make_engine(task: Task) -> Engine:
    """The warp engine of `task`.

    A simulation with more contacts or constraints than there is room for carries NaN, as one that diverges.

    Raises:
      ModuleNotFoundError: warp is not installed.
      ValueError: MuJoCo cannot read the model, or `task.reads` names no field of mjData.
      NotImplementedError: if the model uses a feature that MuJoCo Warp lacks.
    """
    import_warp()
    check_reads(task)
    model = load_model(task.model, task.name)
    contacts, rows = room(model)
    with jax.ensure_compile_time_eval():
        warp_model = mjx.put_model(model, impl="warp")
    private = warp_model.opt._impl.replace(warn_overflow=0)  # said by NaN, not on stdout
    warp_model = warp_model.replace(opt=warp_model.opt.replace(_impl=private))

    def empty(count: int) -> Any:
        with jax.ensure_compile_time_eval():
            return mjx.make_data(model, impl="warp", naconmax=count * contacts, njmax=rows)

    def move(data: Any) -> Any:
        after = mjx.step(warp_model, data)
        # once lost, a state stays so: the kernels make 1, 0, 0, 0 of a rotation that is NaN
        sound = (after._impl.overflow & TOO_SMALL == 0) & _is_finite(data.qpos) & _is_finite(data.qvel)
        return after.replace(qpos=jnp.where(sound, after.qpos, jnp.nan), qvel=jnp.where(sound, after.qvel, jnp.nan))

    def look(data: Any) -> View:
        return view_of(mjx.forward(warp_model, data), task.reads)

    start, step = simulation(task, move, look)

    def checked_step(empty: Any, physics: Physics, action: Array, layout: ArrayTree = ()) -> Physics:
        finite = _is_finite(action)  # the kernels would take NaN for the end of a range
        after = step(empty, physics, jnp.where(finite, action, 0.0), layout)
        qpos, qvel = (jnp.where(finite, state, jnp.nan) for state in (after.view.qpos, after.view.qvel))
        return after._replace(view=after.view._replace(qpos=qpos, qvel=qvel))

    return Engine(
        in_one_call(start, empty), in_one_call(checked_step, empty), lambda physics: physics.view, model=model
    )


def import_warp() -> ModuleType:
    """The package `warp`, told not to print on stdout what it compiles.

    Raises:
      ModuleNotFoundError: it is not installed.
    """
    try:
        import warp
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("warp is not installed: pip install 'safejax[warp]'", name=error.name) from error
    if warp.config.log_level == warp.LOG_INFO:  # its default
        warp.config.log_level = warp.LOG_WARNING
    return warp


def room(model: mujoco.MjModel) -> tuple[int, int]:
    """How many contacts and rows of constraints are enough for one simulation, both at least 1.

    Those of mjx, whose shapes are fixed, and of contacts one a pair of geoms at least, which the broad phase needs.
    """
    pairs = len(list(mjx._src.collision_driver.geom_pairs(model)))
    try:
        fixed = mjx.make_data(model, impl="jax")._impl
        contacts, rows = len(fixed.contact.dist), len(fixed.efc_J)
    except (NotImplementedError, ValueError):  # a pair for which mjx has no function
        contacts = POINTS * pairs
        edges = 2 * (max(model.geom_condim) - 1) or 1  # of a friction pyramid
        rows = 6 * model.neq + 2 * (model.nv + model.ntendon) + edges * contacts
    return max(contacts, pairs, 1), max(int(rows), 1)


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
