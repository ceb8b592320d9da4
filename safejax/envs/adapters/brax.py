"""Environments in brax's form: ours for brax's training loops, and brax's for ours.

brax is imported inside the functions, because importing `brax.envs` warns about a retired dependency.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from safejax.envs import make
from safejax.envs.rendering import Scene
from safejax.envs.tasks.base import View
from safejax.envs.wrappers import Show, as_float, check_action, is_finite, show_vector
from safejax.types import Array, ArrayTree, Env, EnvState, Key, check_count


def to_brax(env: str | Env) -> Any:
    """`env` as a `brax.envs.base.Env`, unbatched, for brax's training loops and wrappers.

    Time limit and reset belong to brax's wrappers (`brax.envs.training.wrap`, which its training calls): the
    environment's own time limit is off, `obs` is the observation before any reset and `done` is
    `terminated`. Pass `episode_length=env.episode_length` to brax. `info["cost"]` and `metrics["cost"]` hold
    the cost of the step, `info["truncation"]` is 0 until brax's wrapper writes it. A simulation that diverged is `done`
    with reward 0, which brax cannot tell from a termination; `metrics["diverged"]` counts it.

    Args:
      env: a task name, run on its default engine, or an environment.

    Raises:
      ValueError: an unknown task name, or a discrete environment.
    """
    env = env if isinstance(env, Env) else make(env)
    if env.discrete:
        raise ValueError(f"{env.name}: brax's training loops take continuous actions")
    return _brax_class()(env)


def from_brax(
    env: Any, cost: Callable[[Any], Array] | None = None, *, episode_length: int = 1000, name: str = ""
) -> Env:
    """A brax environment, without its wrappers, as an `Env`; with a cost function, its safe variant.

        ant = brax.envs.get_environment("ant", backend="spring")
        env = from_brax(ant, lambda state: jnp.abs(state.metrics["x_velocity"]) > 1.0)

    Actions are clipped to [-1, 1]. Every step computes a fresh state, needed or not. A step
    whose observation, reward or cost is not finite is `diverged`, as in `safejax.envs.wrappers.build`. Where the system
    was made from MJCF, as brax's own are, its cameras may be drawn: `safejax.envs.pixels`.

    Args:
      env: has `reset(key)`, `step(state, action)` and `action_size`; `done` is read as termination.
      cost: state after the step -> [] >= 0, or bool; by default `state.info["cost"]`.
      episode_length: environment steps until truncation.
      name: the name of the result.

    Raises:
      ValueError: no environment of brax's, or one that a wrapper resets; `cost` is not given and `state.info` has no
        "cost"; of `step`, when traced: an action, reward or cost of another shape.
    """
    if not all(hasattr(env, field) for field in ("reset", "step", "action_size")):
        raise ValueError(f"env is {env!r}, expected an environment, such as brax.envs.get_environment gives")
    check_count("episode_length", episode_length)
    spec = jax.eval_shape(env.reset, jax.random.key(0))
    if "first_obs" in spec.info:
        found = f"{type(env).__name__} starts episodes by itself (info has 'first_obs')"
        raise ValueError(f"{found}; pass it without brax's wrappers, as brax.envs.get_environment gives it")
    if cost is None and "cost" not in spec.info:
        raise ValueError(f"{type(env).__name__} has no info['cost']: pass cost, a function of the state")
    world = _World(env, cost or (lambda state: state.info["cost"]), episode_length, name or type(env).__name__, spec)
    return _build(world)


class _World(NamedTuple):
    """The arguments of `from_brax`, all of them given."""

    env: Any
    cost: Callable[[Any], Array]
    episode_length: int
    name: str
    spec: Any  # shapes of brax's state


def _build(world: _World, show: Show = show_vector, observation_spec: ArrayTree = None) -> Env:
    """The environment of `world`, with what to observe as in `safejax.envs.wrappers.build`."""
    env, spec = world.env, world.spec
    observation_spec = spec.obs if observation_spec is None else observation_spec
    nothing = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), observation_spec)
    model = _model(env, spec)

    def observe(state: Any, needed: Array, otherwise: ArrayTree) -> ArrayTree:
        vector = jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), state.obs, spec.obs)
        return show(None if model is None else _view(state), vector, needed, otherwise)

    def reset(key: Key) -> EnvState:
        state = _strong(env.reset(key))
        zero, no = jnp.zeros((), jnp.float32), jnp.zeros((), bool)
        observation = observe(state, jnp.ones((), bool), nothing)
        return EnvState(state, observation, zero, zero, no, no, observation, jnp.zeros((), jnp.int32), diverged=no)

    def step(state: EnvState, action: Array, key: Key) -> EnvState:
        action = check_action(world.name, action, env.action_size)
        before = jax.tree.map(lambda leaf: leaf, state.physics)  # brax writes into its dictionaries
        after = env.step(before, jnp.clip(action, -1.0, 1.0))
        steps = state.steps + 1
        reward = as_float(f"{world.name}: reward", after.reward)
        cost = as_float(f"{world.name}: cost", world.cost(after))
        diverged = ~is_finite((after.obs, reward, cost))
        terminated = after.done.astype(bool) & ~diverged
        truncated = (steps >= world.episode_length) & ~terminated | diverged
        done = terminated | truncated
        fresh = _strong(env.reset(key))
        physics = jax.tree.map(lambda new, old: jnp.where(done, new, old).astype(new.dtype), fresh, after)
        final_observation = observe(after, jnp.ones((), bool), nothing)
        observation = observe(fresh, done, final_observation)
        return EnvState(
            physics=physics,
            observation=observation,
            reward=jnp.where(diverged, 0.0, reward),
            cost=jnp.where(diverged, 0.0, cost),
            terminated=terminated,
            truncated=truncated,
            final_observation=jax.tree.map(
                lambda new, old: jnp.where(diverged, new, old), observation, final_observation
            ),
            steps=jnp.where(done, 0, steps),
            diverged=diverged,
        )

    scene = None
    if model is not None:
        scene = Scene(
            model=model,
            view=lambda state: _view(state.physics),
            shapes=(),
            place=lambda view: jnp.zeros((*view.qpos.shape[:-1], 0, 3)),
            observing=functools.partial(_build, world),
        )
    return Env(reset, step, observation_spec, env.action_size, world.episode_length, world.name, scene=scene)


def _model(env: Any, spec: Any) -> Any:
    """The `mujoco.MjModel` that brax made its system from; None where there is none whose bodies are its links."""
    model = getattr(getattr(env, "sys", None), "mj_model", None)
    if model is None or not hasattr(spec.pipeline_state, "x"):
        return None
    return model if spec.pipeline_state.x.pos.shape == (model.nbody - 1, 3) else None


def _view(state: Any) -> View:
    """Brax's links are the model's bodies, less the world."""
    moment = state.pipeline_state
    leading = moment.q.shape[:-1]
    xpos = jnp.concatenate([jnp.zeros((*leading, 1, 3)), moment.x.pos], axis=-2)
    unturned = jnp.broadcast_to(jnp.array([1.0, 0.0, 0.0, 0.0]), (*leading, 1, 4))
    xquat = jnp.concatenate([unturned, moment.x.rot], axis=-2)
    return View(moment.q, moment.qd, jnp.zeros((*leading, 0)), xpos, xquat)


def _strong(tree: Any) -> Any:
    """The same numbers without weak types, which a step would not keep."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), tree)


@functools.cache
def _brax_class() -> type:
    from safejax.envs.engines.mjx import import_mjx

    import_mjx()  # brax imports it too, and would print
    from brax.envs.base import Env as BraxEnv
    from brax.envs.base import State

    class FromSafejax(BraxEnv):
        def __init__(self, env: Env) -> None:
            self.env = env

        def reset(self, rng: Key) -> Any:
            rng, key = jax.random.split(rng)
            return self._state(self.env.reset(key), rng, jnp.zeros((), jnp.float32))

        def step(self, state: Any, action: Array) -> Any:
            rng, key = jax.random.split(state.info["key"])
            inner = state.pipeline_state
            # steps = 0: the time limit is brax's
            inner = self.env.step(inner._replace(steps=jnp.zeros_like(inner.steps)), action, key)
            new = self._state(inner, rng, (inner.terminated | inner.diverged).astype(jnp.float32))
            # brax's wrappers keep entries of their own in both dictionaries
            info = new.info | state.info | {"cost": inner.cost, "key": rng}
            return new.replace(metrics=state.metrics | new.metrics, info=info)

        def _state(self, inner: EnvState, rng: Key, done: Array) -> Any:
            # the key is no part of pipeline_state, which brax sets back to the first episode's start
            info = {"cost": inner.cost, "truncation": jnp.zeros((), jnp.float32), "key": rng}
            return State(
                pipeline_state=inner,  # pyright: ignore[reportArgumentType]
                obs=inner.final_observation,
                reward=inner.reward,
                done=done,
                metrics={"cost": inner.cost, "diverged": jnp.asarray(inner.diverged, jnp.float32)},
                info=info,
            )

        @property
        def observation_size(self) -> Any:
            return jax.tree.map(lambda spec: spec.shape[-1], self.env.observation_spec)

        @property
        def action_size(self) -> int:
            return self.env.action_size

        @property
        def backend(self) -> str:
            return self.env.name

    return FromSafejax
