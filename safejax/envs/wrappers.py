"""From a task and an engine to an `Env`: the one place that owns the order of time limit and auto reset."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from safejax.envs.engines.base import Engine
from safejax.envs.rendering import Scene
from safejax.envs.tasks.base import Start, Task, View
from safejax.types import Array, ArrayTree, Env, EnvState, Key, check_count

Show = Callable[[Any, ArrayTree, Array, ArrayTree], ArrayTree]
"""(view, the task's vector, needed [] bool, otherwise) -> what is observed where `needed`, else `otherwise`."""

LARGEST = 1e10
"""A position or velocity beyond it has diverged; MuJoCo's mjMAXVAL."""


class _Course(NamedTuple):
    """What an action has come to, after some of the control steps that hold it."""

    physics: ArrayTree
    layout: ArrayTree
    reward: Array  # [] float32, sums over the steps
    cost: Array
    terminated: Array  # [] bool
    diverged: Array


def build(
    task: Task,
    engine: Engine,
    show: Show | None = None,
    observation_spec: ArrayTree = None,
    *,
    action_repeat: int = 1,
) -> Env:
    """The environment that runs `task` on `engine`.

    A step moves the physics, looks at the new state for reward, cost and termination, truncates at
    `task.episode_length`, and, where the episode ended either way, replaces the state by a fresh one drawn
    from the step's key. Reward, cost, both ends and `final_observation` then belong to the step just made,
    `observation` and `physics` to the new episode, and `steps` is 0. An episode that terminates on its last
    step is not truncated. Physics gets the action clipped to [-1, 1], the task's reward and cost as given.

    Where the new physics, observation, reward or cost is not finite, the step is `diverged`: it counts as truncated,
    its reward and cost are 0 and its `final_observation` is the next episode's first. A non-finite action does that
    too, and the host engine keeps it for `check`, because the policy and not the simulation is at fault.

    With `action_repeat` a step holds its action for so many of the task's control steps, or until the episode ends:
    rewards and costs are summed, it is observed once, and an episode has as many steps fewer.

    Args:
      task: the task.
      engine: its physics.
      show: what to observe in place of the task's own vector; asked for every final observation, and where an
        episode ended for the first one of the next.
      observation_spec: what `show` returns.
      action_repeat: control steps a step.

    Raises:
      ValueError: the task has `hold` and no `applied_force`, or `shapes` and no `place_shapes`, or a number of steps
        below 1; an `action_repeat` that does not divide the task's episode; of `reset` and `step`, when traced: an
        action, observation, reward or cost of another shape.
    """
    check_count("action_repeat", action_repeat)
    for name in ("substeps", "episode_length"):
        check_count(f"{task.name}: {name}", getattr(task, name))
    episode_length, left = divmod(task.episode_length, action_repeat)
    if left:
        raise ValueError(
            f"action_repeat is {action_repeat}, expected a divisor of the {task.episode_length} steps of {task.name}"
        )
    if task.hold is not None and task.applied_force is None:
        raise ValueError(f"{task.name} has hold but no applied_force, which alone receives it; give both or neither")
    if task.shapes and task.place_shapes is None:
        raise ValueError(f"{task.name} has shapes but no place_shapes, which says where they are; give both or neither")
    show = show_vector if show is None else show
    if observation_spec is None:
        observation_spec = jax.ShapeDtypeStruct((task.observation_size,), jnp.float32)
    nothing = jax.tree.map(lambda spec: np.zeros(spec.shape, spec.dtype), observation_spec)

    def reset(key: Key) -> EnvState:
        yes = jnp.ones((), bool)
        physics, layout = begin_where(yes, key)
        observation = observe(physics, layout, yes, nothing)
        zero, no = jnp.zeros((), jnp.float32), jnp.zeros((), bool)
        steps = jnp.zeros((), jnp.int32)
        return EnvState(physics, observation, zero, zero, no, no, observation, steps, layout, no)

    def step(state: EnvState, action: Array, key: Key) -> EnvState:
        action = check_action(task.name, action, task.action_size)
        layout, start_key, layout_key = state.layout, key, key
        if task.rearrange is not None:
            start_key, layout_key = jax.random.split(key)
        zero, no = jnp.zeros((), jnp.float32), jnp.zeros((), bool)
        course = _Course(state.physics, layout, zero, zero, no, no)
        if action_repeat == 1:
            course = control_step(course, action, layout_key)
        else:
            keys = jax.random.split(layout_key, action_repeat)
            course, _ = jax.lax.scan(lambda course, key: (control_step(course, action, key), None), course, keys)
        physics, layout, reward, cost, terminated, diverged = course
        final_observation = observe(physics, layout, jnp.ones((), bool), nothing)
        diverged |= ~is_finite(final_observation)
        steps = state.steps + 1
        terminated &= ~diverged
        truncated = (steps >= episode_length) & ~terminated | diverged
        done = terminated | truncated
        fresh = where_needed(done, begin_where, start_key)
        physics, layout = jax.tree.map(lambda new, old: jnp.where(done, new, old), fresh, (physics, layout))
        observation = observe(physics, layout, done, final_observation)
        final_observation = jax.tree.map(lambda new, old: jnp.where(diverged, new, old), observation, final_observation)
        return EnvState(
            physics=physics,
            observation=observation,
            reward=jnp.where(diverged, 0.0, reward),
            cost=jnp.where(diverged, 0.0, cost),
            terminated=terminated,
            truncated=truncated,
            final_observation=final_observation,
            steps=jnp.where(done, 0, steps),
            layout=layout,
            diverged=diverged,
        )

    def begin_where(needed: Array, key: Key) -> tuple[ArrayTree, ArrayTree]:
        """Physics and layout of a new episode; the host engine does nothing for rows where it is not `needed`."""
        # bound to `needed`, else the compiler takes a start that is always the same out of the loop around this
        needed, start = jax.lax.optimization_barrier((needed, Start(*task.initialize(key))))
        return engine.start(needed, *start), start.layout

    def control_step(course: _Course, action: Array, key: Key) -> _Course:
        """One control step on, unless the episode is over."""
        physics = engine.step(course.physics, action, course.layout)
        before, after = (engine.view(moment)._replace(layout=course.layout) for moment in (course.physics, physics))
        layout = course.layout if task.rearrange is None else task.rearrange(after, key)
        reward = as_float(f"{task.name}: reward", task.reward(before, after, action))
        cost = as_float(f"{task.name}: cost", task.cost(after) + task.step_cost(before, after, action))
        within = [jnp.all(jnp.abs(part) < LARGEST) for part in (after.qpos, after.qvel)]
        diverged = ~(within[0] & within[1] & is_finite((reward, cost)))
        terminated = jnp.asarray(task.terminated(after), bool)
        held = _Course(physics, layout, course.reward + reward, course.cost + cost, terminated, diverged)
        if action_repeat == 1:
            return held
        over = course.terminated | course.diverged
        return jax.tree.map(lambda old, new: jnp.where(over, old, new), course, held)

    def observe(physics: ArrayTree, layout: ArrayTree, needed: Array, otherwise: ArrayTree) -> ArrayTree:
        view = engine.view(physics)._replace(layout=layout)
        vector = as_float(f"{task.name}: the observation", task.observe(view), (task.observation_size,))
        return show(view, vector, needed, otherwise)

    scene = None
    if engine.model is not None:
        scene = Scene(
            model=engine.model,
            view=lambda state: engine.view(state.physics)._replace(layout=state.layout),
            shapes=task.shapes,
            place=task.place_shapes or (lambda view: jnp.zeros((*view.qpos.shape[:-1], 0, 3))),
            observing=functools.partial(build, task, engine, action_repeat=action_repeat),
        )
    return Env(
        reset=reset,
        step=step,
        observation_spec=observation_spec,
        action_size=task.action_size,
        episode_length=episode_length,
        name=task.name,
        check=engine.check,
        scene=scene,
    )


def show_vector(view: View | None, vector: ArrayTree, needed: Array, otherwise: ArrayTree) -> ArrayTree:
    """`Show` of the task's vector itself."""
    del view
    return jax.tree.map(lambda new, old: jnp.where(needed, new, old), vector, otherwise)


def check_action(name: str, action: Any, size: int) -> Array:
    """`action` as an array [A].

    Raises:
      ValueError: another shape than (`size`,).
    """
    action = jnp.asarray(action)
    if action.shape != (size,):
        found = f"{name}: action has shape {action.shape}, expected ({size},)"
        raise ValueError(f"{found}; for a batch of environments, vmap step")
    return action


def as_float(name: str, value: Any, shape: tuple[int, ...] = ()) -> Array:
    """`value` as float32.

    Raises:
      ValueError: another shape than `shape`.
    """
    value = jnp.asarray(value, jnp.float32)
    if value.shape != shape:
        raise ValueError(f"{name} has shape {value.shape}, expected {shape}")
    return value


def is_finite(tree: ArrayTree) -> Array:
    """[] bool: whether every real number of `tree` is finite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return functools.reduce(jnp.logical_and, [jnp.all(jnp.isfinite(leaf)) for leaf in leaves], jnp.bool_(True))


def where_needed(needed: Array, draw: Callable[[Array, Key], ArrayTree], key: Key) -> ArrayTree:
    """`draw(needed, key)` where `needed` [] is true, else zeros; under `vmap`, no work while no row needs it.

    A loop of at most one round: unlike a `cond`, it keeps its condition under `vmap`.
    """
    zeros = jax.tree.map(lambda spec: jnp.zeros(spec.shape, spec.dtype), jax.eval_shape(draw, needed, key))

    def once(carry: tuple[Array, Key, ArrayTree]) -> tuple[Array, Key, ArrayTree]:
        needed, key, _ = carry
        # another key, else the compiler takes what does not change in the loop out of it and always does it
        return jnp.bool_(False), jax.random.fold_in(key, 0), draw(needed, key)

    return jax.lax.while_loop(lambda carry: carry[0], once, (needed, key, zeros))[2]
