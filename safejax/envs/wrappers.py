"""From a task and an engine to an `Env`: the one place that owns the order of time limit and auto reset."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from safejax.envs.engines.base import Engine
from safejax.envs.tasks.base import Task
from safejax.types import Array, Env, EnvState, Key


def build(task: Task, engine: Engine) -> Env:
    """The environment that runs `task` on `engine`.

    A step moves the physics, looks at the new state for reward, cost and termination, truncates at
    `task.episode_length`, and, where the episode ended either way, replaces the state by a fresh one drawn
    from the step's key. Reward, cost, both ends and `final_observation` then belong to the step just made,
    `observation` and `physics` to the new episode, and `steps` is 0. An episode that terminates on its last
    step is not truncated.

    Raises:
      ValueError: the task has `hold` and no `applied_force`.
    """
    if task.hold is not None and task.applied_force is None:
        raise ValueError(f"{task.name} has hold but no applied_force, which alone receives it; give both or neither")

    def reset(key: Key) -> EnvState:
        physics = engine.start(jnp.ones((), bool), *task.initialize(key))
        observation = _observation(physics)
        zero, no = jnp.zeros((), jnp.float32), jnp.zeros((), bool)
        return EnvState(physics, observation, zero, zero, no, no, observation, jnp.zeros((), jnp.int32))

    def step(state: EnvState, action: Array, key: Key) -> EnvState:
        physics = engine.step(state.physics, action)
        before, after = engine.view(state.physics), engine.view(physics)
        final_observation = _observation(physics)
        steps = state.steps + 1
        terminated = jnp.asarray(task.terminated(after), bool)
        truncated = (steps >= task.episode_length) & ~terminated
        done = terminated | truncated
        # `start` is told where it is needed: a cond around it would run it everywhere under vmap
        fresh = engine.start(done, *task.initialize(key))
        physics = jax.tree.map(lambda new, old: jnp.where(done, new, old), fresh, physics)
        return EnvState(
            physics=physics,
            observation=jnp.where(done, _observation(fresh), final_observation),
            reward=jnp.asarray(task.reward(before, after, action), jnp.float32),
            cost=jnp.asarray(task.cost(after) + task.step_cost(before, after, action), jnp.float32),
            terminated=terminated,
            truncated=truncated,
            final_observation=final_observation,
            steps=jnp.where(done, 0, steps),
        )

    def _observation(physics) -> Array:
        return jnp.asarray(task.observe(engine.view(physics)), jnp.float32)

    return Env(
        reset=reset,
        step=step,
        observation_spec=jax.ShapeDtypeStruct((task.observation_size,), jnp.float32),
        action_size=task.action_size,
        episode_length=task.episode_length,
        name=task.name,
        check=engine.check,
    )
