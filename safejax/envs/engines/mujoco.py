"""MuJoCo's C library on the host's cores, behind JAX functions.

The whole integration state of a simulation (float64, warm start included) travels in `Physics.rows` as
uint32, so a state may be copied, saved, restored or stepped twice, and continues bit for bit. A batch of
simulations reaches the host as one call however many `vmap`s lie above, and runs on a thread pool; results
do not depend on the number of threads.

Nothing raises inside a callback, where an exception would lose donated state: the first failure is kept, the
simulations concerned carry NaN, and `check` raises between chunks. A simulation that diverges under finite actions
carries NaN and is no failure: its environment starts a new episode.
"""

# pyright: reportAttributeAccessIssue=false
# (the names of the compiled mujoco module are not declared)

from __future__ import annotations

import math
import os
import threading
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from mujoco.batch import Batch

from safejax.envs.engines.base import VIEW_FIELDS, Engine, check_reads, load_model
from safejax.envs.tasks.base import Task, View
from safejax.types import Array, ArrayTree

_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
_NONE, _POS, _VEL, _ACC = (int(getattr(mujoco.mjtStage, f"mjSTAGE_{name}")) for name in ("NONE", "POS", "VEL", "ACC"))


class Physics(NamedTuple):
    """State of one simulation."""

    rows: Array  # [2 * nstate] uint32, the float64 integration state
    seen: Array  # [sum of the View's sizes] float32, its fields laid end to end


def make_engine(task: Task, thread_count: int | None = None) -> Engine:
    """The host engine of `task`.

    Args:
      task: the task; its model is read from the package's assets.
      thread_count: threads of the pool; by default every core this process may use.

    Raises:
      ValueError: MuJoCo cannot read the model, or `task.reads` names no field of mjData.
    """
    host = Host(task, thread_count or _core_count())
    row_spec = jax.ShapeDtypeStruct((2 * host.state_size,), jnp.uint32)
    seen_spec = jax.ShapeDtypeStruct((host.view_size,), jnp.float32)

    def call(function: Any, *arguments: ArrayTree) -> Physics:
        # broadcast_all hands over every batch axis at once: one call for all seeds and environments
        specs = (row_spec, seen_spec)
        return Physics(*jax.pure_callback(function, specs, *arguments, vmap_method="broadcast_all"))

    def crossing(layout: ArrayTree) -> ArrayTree:
        return () if task.mocap is None else layout  # nothing else on the host reads it

    def start(needed: Array, qpos: Array, qvel: Array, layout: ArrayTree = ()) -> Physics:
        return call(host.start, needed, qpos, qvel, crossing(layout))

    def step(physics: Physics, action: Array, layout: ArrayTree = ()) -> Physics:
        return call(host.step, physics.rows, action, crossing(layout))

    def view(physics: Physics) -> View:
        return split_view(physics.seen, host.view_shapes)

    return Engine(start, step, view, host.check, host.model)


class Host:
    """The NumPy side: one `Batch` per number of simulations, one caller at a time."""

    def __init__(self, task: Task, thread_count: int) -> None:
        self.task = task
        self.thread_count = thread_count
        check_reads(task)
        self.model = load_model(task.model, task.name)
        # a diverged simulation must show as NaN, not restart silently
        self.model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
        self.state_size = mujoco.mj_stateSize(self.model, _STATE)
        self.view_shapes = view_shapes(self.model, task.reads)
        self.view_size = sum(math.prod(shape) for shape in self.view_shapes.values())
        self.stage = _ACC if task.reads else _view_stage(self.model)
        self.default_row = np.zeros(self.state_size)
        mujoco.mj_getState(self.model, mujoco.MjData(self.model), self.default_row, _STATE)
        self.starts = 0  # simulations started so far
        self._workers: dict[int, _Worker] = {}
        self._lock = threading.Lock()
        self._failure: Exception | None = None

    def start(self, needed: Any, qpos: Any, qvel: Any, layout: Any = ()) -> tuple[np.ndarray, np.ndarray]:
        """Fresh states where `needed`, zeros elsewhere. No work beyond the zeros where none is needed.

        Args:
          needed: [...] bool.
          qpos: [..., nq].
          qvel: [..., nv].
          layout: what `task.mocap` reads, leaves [..., ...].

        Returns:
          rows [..., 2 * nstate] uint32 and seen [..., view size] float32.
        """
        needed = np.asarray(needed)
        rows = np.zeros((*needed.shape, self.state_size))
        seen = np.zeros((*needed.shape, self.view_size), np.float32)
        ids = np.flatnonzero(needed).astype(np.int32)
        if ids.size:
            with self._lock:
                try:
                    drawn = _flat((qpos, qvel, layout), needed.ndim)
                    self._start(needed.size, ids, jax.tree.map(lambda leaf: leaf[ids], drawn), rows, seen)
                except Exception as failure:
                    self._keep(failure)
                    rows[...], seen[...] = np.nan, np.nan
        return rows.view(np.uint32), seen

    def step(self, rows: Any, action: Any, layout: Any = ()) -> tuple[np.ndarray, np.ndarray]:
        """One environment step: `substeps` of physics, then a forward pass at the new state.

        Args:
          rows: [..., 2 * nstate] uint32.
          action: [..., A]; clipped to [-1, 1] here.
          layout: as `start`.

        Returns:
          rows and seen, as `start` does.
        """
        rows, action = np.asarray(rows), np.asarray(action)
        leading = rows.shape[:-1]
        seen = np.empty((math.prod(leading), self.view_size), np.float32)
        with self._lock:
            try:
                layout = _flat(layout, len(leading))
                with np.errstate(over="ignore", invalid="ignore"):  # of a simulation on its way to diverge
                    state = self._step(rows.reshape(-1, rows.shape[-1]).view(np.float64), action, layout, seen)
            except Exception as failure:
                self._keep(failure)
                state = np.full((len(seen), self.state_size), np.nan)
                seen[...] = np.nan
        return state.view(np.uint32).reshape(rows.shape), seen.reshape(*leading, self.view_size)

    def check(self) -> None:
        """Raise the first failure since the last call, once.

        Raises:
          FloatingPointError: an action, or a position or velocity that an episode starts with, was not finite.
          Exception: whatever MuJoCo or the task raised inside a callback.
        """
        with self._lock:
            failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _start(self, count, ids, drawn, rows, seen) -> None:
        sound = np.isfinite(np.concatenate(drawn[:2], axis=-1)).all(axis=-1)
        if not sound.all():
            # never shown to MuJoCo, which would write a log file
            lost = ids[~sound]
            self._keep(_no_start(self.task.name, lost, count))
            rows.reshape(count, -1)[lost], seen.reshape(count, -1)[lost] = np.nan, np.nan
            ids, drawn = jax.tree.map(lambda leaf: leaf[sound], (ids, drawn))
        worker = self._worker(count)
        worker.state[ids] = self.default_row
        worker.qpos[ids], worker.qvel[ids], layout = drawn
        if self.task.mocap is not None:
            worker.place(self.task.mocap(layout, worker.time[ids]), ids)
        worker.batch.forward(ids=ids, stage=self.stage)
        rows.reshape(count, -1)[ids] = worker.state[ids]
        worker.read(seen.reshape(count, -1), ids)
        self.starts += ids.size

    def _step(self, state: np.ndarray, action: np.ndarray, layout: Any, seen: np.ndarray) -> np.ndarray:
        worker = self._worker(len(state))
        given = action.reshape(len(state), -1)
        action = np.clip(given.astype(np.float64), -1.0, 1.0)
        worker.state[...] = state
        misled = np.logical_not(np.isfinite(action).all(axis=-1))
        lost = misled | ~np.isfinite(state).all(axis=-1)
        if misled.any():
            self._keep(_not_finite(self.task.name, misled, given))
        if lost.any():
            # keep NaN from MuJoCo, which would write a log file: step a stand-in and mark it below
            worker.state[lost], action[lost] = self.default_row, 0.0
        self._move(worker, action, layout)
        worker.read(seen)
        state = worker.state.copy()
        lost |= ~(np.abs(seen) < mujoco.mjMAXVAL).all(axis=-1)
        if lost.any():
            state[lost], seen[lost] = np.nan, np.nan
        return state

    def _move(self, worker: _Worker, action: np.ndarray, layout: Any) -> None:
        """The physics of one environment step, on the worker's state."""
        task, batch = self.task, worker.batch
        if task.control is not None:
            worker.ctrl[...] = task.control(action)
        if task.mocap is not None:
            worker.place(task.mocap(layout, worker.time))
        if task.applied_force is None and not task.mocap_moves:
            batch.step(nstep=task.substeps, stage=self.stage)
            return
        # a copy: qpos and qvel are live
        held = action if task.hold is None else np.array(task.hold(worker.qpos, worker.qvel, action))
        for remaining in reversed(range(task.substeps)):
            if task.mocap is not None and task.mocap_moves:
                worker.place(task.mocap(layout, worker.time))
            if task.applied_force is not None:
                worker.force[...] = task.applied_force(worker.qpos, worker.qvel, held)
            last_stage = self.stage if task.applied_force is None else min(self.stage, _VEL)
            batch.step(stage=_NONE if remaining else last_stage)
        if task.applied_force is not None and self.stage > _VEL:
            # accelerations at the new state come from the force at the new state
            worker.force[...] = task.applied_force(worker.qpos, worker.qvel, held)
            batch.forward(stage=self.stage)

    def _worker(self, count: int) -> _Worker:
        if count not in self._workers:
            self._workers[count] = _Worker(self.model, count, self.thread_count, tuple(self.view_shapes))
        return self._workers[count]

    def _keep(self, failure: Exception) -> None:
        if self._failure is None:
            self._failure = failure


def _not_finite(name: str, misled: Any, action: np.ndarray) -> FloatingPointError:
    index = np.flatnonzero(misled)[0]
    found = f"{name}: action {action[index].tolist()} in simulation {index} ({misled.sum()} of {misled.size})"
    return FloatingPointError(f"{found}, expected finite numbers; look at the policy's inputs and parameters")


def _no_start(name: str, lost: np.ndarray, count: int) -> FloatingPointError:
    found = f"{name}: initialize gave positions or velocities that are not finite"
    return FloatingPointError(
        f"{found} in simulation {lost[0]} ({lost.size} of {count}); look at it, and whether its layout has room"
    )


class _Worker:
    """A `Batch` of `count` simulations with the arrays that it shares."""

    def __init__(self, model: mujoco.MjModel, count: int, thread_count: int, names: tuple[str, ...]) -> None:
        # a second thread does not pay below a few simulations each
        self.batch = Batch(model, count, nthread=max(1, min(thread_count, count // 4)))
        self.state = self.batch.state
        self.qpos, self.qvel = self.batch.bind("qpos"), self.batch.bind("qvel")
        self.force, self.ctrl = self.batch.bind("qfrc_applied"), self.batch.bind("ctrl")
        self.time, *self.mocap = (self.batch.bind(name) for name in ("time", "mocap_pos", "mocap_quat"))
        fields = [self.batch.bind(name).reshape(count, -1) for name in names]
        ends = np.cumsum([field.shape[1] for field in fields])
        self.fields = [
            (slice(end - field.shape[1], end), field)
            for end, field in zip(ends.tolist(), fields, strict=True)
            if field.shape[1]
        ]

    def place(self, poses: Any, ids: Any = slice(None)) -> None:
        self.mocap[0][ids], self.mocap[1][ids] = poses[..., :3], poses[..., 3:]

    def read(self, seen: np.ndarray, ids: Any = slice(None)) -> None:
        for columns, field in self.fields:
            seen[ids, columns] = field[ids]


def _flat(tree: Any, leading: int) -> Any:
    """NumPy leaves whose `leading` first axes are one."""

    def flat(leaf: Any) -> np.ndarray:
        return np.asarray(leaf).reshape(math.prod(leaf.shape[:leading]), *leaf.shape[leading:])

    return jax.tree.map(flat, tree)


def view_shapes(model: mujoco.MjModel, reads: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of the fields of a `View` of `model` by their names in mjData, in order; `reads` is the task's."""
    data = mujoco.MjData(model)
    return {name: getattr(data, name).shape for name in (*VIEW_FIELDS, *reads)}


def split_view(seen: Array, shapes: dict[str, tuple[int, ...]]) -> View:
    """`seen` [..., view size] as the fields of a `View`."""
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])[:-1].tolist()
    parts = jnp.split(seen, ends, axis=-1)
    fields = {
        name: part.reshape(*seen.shape[:-1], *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
    return View(*(fields.pop(name) for name in VIEW_FIELDS), extras=fields)


def _view_stage(model: mujoco.MjModel) -> int:
    """The forward pass that makes a `View` current: positions, and as far as the model's sensors need."""
    return max([_POS, *model.sensor_needstage.tolist()])


def _core_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
