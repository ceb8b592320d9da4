'''Worlds: `make` a task by name on one of three engines.

    env = safejax.envs.make("ball_circle")
    states = jax.vmap(env.reset)(jax.random.split(key, 64))
    states = jax.vmap(env.step)(states, actions, jax.random.split(key, 64))
    env.check()                                     # between chunks: raises what the host engine kept back

A task is a value of numbers and pure functions, with MJCF. For example a mass on a rail that must not go fast:

    import jax
    import jax.numpy as jnp

    import safejax.envs
    from safejax.envs import Task

    MODEL = """
    <mujoco>
      <option timestep="0.01"/>
      <worldbody>
        <light pos="0 0 3"/>
        <camera name="track" pos="0 -4 1" xyaxes="1 0 0 0 0.3 1"/>
        <geom type="plane" size="5 5 1"/>
        <body name="mass" pos="0 0 0.2">
          <joint name="slide" type="slide" axis="1 0 0" damping="0.1"/>
          <geom type="sphere" size="0.1" mass="1"/>
        </body>
      </worldbody>
      <actuator><motor joint="slide"/></actuator>
    </mujoco>
    """


    def initialize(key):
        """At rest, up to a metre from the middle."""
        return jax.random.uniform(key, (1,), minval=-1.0), jnp.zeros(1)


    def observe(view):
        """Position and velocity."""
        return jnp.concatenate([view.qpos, view.qvel], axis=-1)


    def reward(before, after, action):
        """Metres to the right."""
        return after.qpos[..., 0] - before.qpos[..., 0]


    def cost(view):
        """1 where it is faster than 1 m/s."""
        return (jnp.abs(view.qvel[..., 0]) > 1.0).astype(jnp.float32)


    TASK = Task(
        name="slide",
        model=MODEL,
        substeps=5,  # a step is 5 * 0.01 s
        episode_length=100,
        observation_size=2,
        action_size=1,
        initialize=initialize,
        observe=observe,
        reward=reward,
        cost=cost,
        control=lambda action: 2.0 * action,  # N
    )
    env = safejax.envs.make(TASK)

A task that is to have a name for `make` is a file in `safejax/envs/tasks`, one a family, that binds TASK, or TASKS, a
tuple, where several share their functions; its MJCF may then be a file in `safejax/envs/assets`.

What a task draws beside the physics, such as where its hazards are, is its layout: `initialize` returns
`Start(qpos, qvel, layout)`, every view holds it as `view.layout`, and `Task.rearrange` changes it, as when a goal was
reached. A task that needs more of the physics names fields of mjData in `Task.reads` and finds them in `view.extras`.
`Task.shapes` are drawn where `Task.place_shapes` says; `safejax.envs.pixels` makes observations of pictures, and
`safejax.envs.adapters` leads to brax, gymnasium and MuJoCo Playground, and back.
'''

from __future__ import annotations

import difflib
import functools
import importlib

import jax

from safejax.envs.tasks import load, names
from safejax.envs.tasks.base import Start, Task, View
from safejax.scores import Reference, normalized_cost, normalized_return
from safejax.types import Env, check_choice

__all__ = [
    "Reference",
    "Start",
    "Task",
    "View",
    "default_engine",
    "make",
    "names",
    "normalized_cost",
    "normalized_return",
    "task",
]

ENGINES = ("mujoco", "mjx", "warp")


def make(name: str | Task, engine: str | None = None, *, action_repeat: int = 1) -> Env:
    """The environment `name`. The same arguments give the same functions, so compiled loops are reused.

    An action that is not finite makes its step `diverged`, and a new episode begins. On mujoco `check` then raises a
    line that shows the action; the other engines, which stay on the device, keep nothing back: there count `diverged`.

    Args:
      name: one of `names()`; or a task, such as a variant `task(name)._replace(initialize=...)`.
      engine: "mujoco" (C library, host threads), "mjx" (JAX operations) or "warp" (MuJoCo Warp's kernels, for NVIDIA
        GPUs; extra `warp`); by default mujoco where JAX runs on CPU, else mjx.
      action_repeat: control steps that each action is held for; rewards and costs are summed, episodes are shorter.

    Raises:
      ValueError: an unknown name, with the nearest known one, an unknown engine, an `action_repeat` that does not
        divide the task's episode, or a model that MuJoCo cannot read.
      ModuleNotFoundError: warp is not installed.
    """
    if not isinstance(name, str | Task):
        raise ValueError(f"name is {name!r}, expected one of safejax.envs.names(), or a Task")
    engine = default_engine() if engine is None else engine
    check_choice("engine", engine, ENGINES)
    return _make(task(name) if isinstance(name, str) else name, engine, action_repeat)


def default_engine() -> str:
    """The engine of choice: "mujoco" where JAX runs on CPU, else "mjx"."""
    return "mujoco" if jax.default_backend() == "cpu" else "mjx"


def task(name: str) -> Task:
    """The task `name`, without an engine.

    Raises:
      ValueError: an unknown name, with the nearest known one.
    """
    if name not in names():
        nearest = difflib.get_close_matches(name, names(), n=1, cutoff=0.0)
        raise ValueError(f"unknown task {name!r}, nearest: {', '.join(nearest)}; known: {', '.join(names())}")
    return load(name)


@functools.cache
def _make(task: Task, engine: str, action_repeat: int) -> Env:
    from safejax.envs.wrappers import build

    module = importlib.import_module(f"safejax.envs.engines.{engine}")
    return build(task, module.make_engine(task), action_repeat=action_repeat)
