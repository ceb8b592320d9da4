"""Our environments as gymnasium's: copies that step together in one compiled program, or one by itself."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from safejax.envs import make
from safejax.envs.adapters.spaces import action_space, import_gymnasium, observation_space
from safejax.types import Array, Env, EnvState, Key, check_count


def to_gymnasium(env: str | Env, count: int, *, seed: int = 0) -> Any:
    """`count` copies of `env` as a `gymnasium.vector.VectorEnv`.

    An environment that ends is reset within the same step (AutoresetMode.SAME_STEP): its row of the observation is
    the next episode's, `info["final_obs"]` holds what it saw last. `info["cost"]` [count] is the cost of every step;
    ended rows have it in `info["final_info"]` too. Where simulations diverged, `info["diverged"]` [count] says which:
    that step is truncated, its reward and cost are 0, and it is not to be learned from. Copy i under the seed s does
    what copy 0 does under s + i. Actions outside the space are clipped to [-1, 1], or refused where they are discrete.

    Args:
      env: a task name, run on its default engine, or an environment.
      count: number of copies.
      seed: of the first `reset`, if that is not given one.

    Raises:
      ModuleNotFoundError: gymnasium is not installed.
      ValueError: an unknown task name, a `count` below 1; from `step`, actions of another shape or outside a discrete
        space; from `reset`, seeds or a mask for another number of copies.
      FloatingPointError: from `step`, an action that is not finite; and what the host engine kept back.
    """
    check_count("count", count)
    return _vector_class()(env if isinstance(env, Env) else make(env), count, seed)


def to_gymnasium_env(env: str | Env, *, seed: int = 0) -> Any:
    """`env` as a single `gymnasium.Env`, which waits for `reset` at an episode's end; the rest as in `to_gymnasium`."""
    return _single_class()(env if isinstance(env, Env) else make(env), seed)


class _Copies:
    """The compiled programs of `count` copies, their states and their keys."""

    def __init__(self, env: Env, count: int, seed: int) -> None:
        def reset(keys: Key) -> tuple[Key, EnvState]:
            keys, now = _split(keys)
            return keys, jax.vmap(env.reset)(now)

        def step(keys: Key, state: EnvState, action: Array) -> tuple[Key, EnvState]:
            keys, now = _split(keys)
            return keys, jax.vmap(env.step)(state, action, now)

        self._reset, self._step = jax.jit(reset), jax.jit(step)
        self._env, self._space = env, action_space(env)
        self._shape = (count, *self._space.shape)
        self._keys = _keys(seed, count)
        self._state: EnvState | None = None

    def reset(self, seed: Any, mask: np.ndarray | None = None) -> Any:
        """The state, NumPy, with new episodes in the rows of `mask`, by default all."""
        for name, given in (("seed", seed if np.ndim(seed) else None), ("reset_mask", mask)):
            if given is not None and np.shape(given) != self._shape[:1]:
                raise ValueError(f"{name} has shape {list(np.shape(given))}, expected [{self._shape[0]}]")
        keys = self._keys if seed is None else _keys(seed, self._shape[0])
        keys, state = self._reset(keys)
        if mask is not None and self._state is not None:
            keys, state = _choose(mask, (keys, state), (self._keys, self._state))
        self._keys, self._state = keys, state
        self._env.check()
        return jax.device_get(state._replace(physics=()))

    def step(self, action: Any) -> Any:
        """The state after a step, NumPy."""
        if self._state is None:
            raise import_gymnasium().error.ResetNeeded("step was called before reset")
        action = np.asarray(action, self._space.dtype)
        if action.shape != self._shape:
            raise ValueError(f"actions of shape {list(action.shape)}, expected {list(self._shape)}")
        if self._env.discrete:
            if ((action < 0) | (action >= self._env.action_size)).any():
                raise ValueError(f"actions {action.tolist()}, expected 0 to {self._env.action_size - 1}")
            action = action.astype(np.int32)
        elif not np.isfinite(action).all():
            raise FloatingPointError(f"{self._env.name}: actions {action.tolist()}, expected finite numbers")
        else:
            action = np.clip(action, -1.0, 1.0)
        self._keys, self._state = _, state = self._step(self._keys, self._state, action)
        self._env.check()
        return jax.device_get(state._replace(physics=()))


def _keys(seed: Any, count: int) -> Key:
    """[count] keys, of seed, seed + 1, ...; or of `count` seeds."""
    seeds = np.arange(count) + seed if np.ndim(seed) == 0 else np.asarray(seed)
    return jax.vmap(jax.random.key)(seeds.astype(np.uint32))


def _split(keys: Key) -> tuple[Key, Key]:
    pairs = jax.vmap(jax.random.split)(keys)
    return pairs[:, 0], pairs[:, 1]


@jax.jit
def _choose(rows: Array, chosen: Any, otherwise: Any) -> Any:
    def pick(yes: Array, no: Array) -> Array:
        return jnp.where(rows.reshape(rows.shape + (1,) * (yes.ndim - 1)), yes, no)

    return jax.tree.map(pick, chosen, otherwise)


@functools.cache
def _vector_class() -> type:
    gymnasium = import_gymnasium()
    batch_space = gymnasium.vector.utils.batch_space

    class SafejaxVectorEnv(gymnasium.vector.VectorEnv):
        metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP, "render_modes": []}

        def __init__(self, env: Env, count: int, seed: int) -> None:
            self.num_envs = count
            self.single_action_space, self.single_observation_space = (
                action_space(env),
                observation_space(env.observation_spec),
            )
            self.action_space = batch_space(self.single_action_space, count)
            self.observation_space = batch_space(self.single_observation_space, count)
            self._copies = _Copies(env, count, seed)

        def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed if np.ndim(seed) == 0 else None)
            return self._copies.reset(seed, (options or {}).get("reset_mask")).observation, {}

        def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
            state = self._copies.step(actions)
            ended, every = state.terminated | state.truncated, np.ones(self.num_envs, bool)
            info: dict[str, Any] = {"cost": state.cost, "_cost": every}
            if state.diverged.any():
                info["diverged"] = info["_diverged"] = state.diverged
            if ended.any():
                final = np.full(self.num_envs, None, object)
                for row in np.flatnonzero(ended):
                    final[row] = jax.tree.map(lambda leaf, row=row: leaf[row], state.final_observation)
                info["final_obs"], info["_final_obs"] = final, ended.copy()
                info["final_info"] = {"cost": np.where(ended, state.cost, 0.0), "_cost": ended.copy()}
                info["_final_info"] = ended.copy()
            return state.observation, state.reward, state.terminated, state.truncated, info

    return SafejaxVectorEnv


@functools.cache
def _single_class() -> type:
    gymnasium = import_gymnasium()

    class SafejaxEnv(gymnasium.Env):
        metadata = {"render_modes": []}

        def __init__(self, env: Env, seed: int) -> None:
            self.action_space, self.observation_space = action_space(env), observation_space(env.observation_spec)
            self._copies = _Copies(env, 1, seed)
            self._next: Any = None  # what the coming episode starts with, once the last one has ended

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            if seed is not None or self._next is None:
                self._next = self._copies.reset(seed).observation
            observation, self._next = self._next, None
            return _first(observation), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            if self._next is not None:
                raise gymnasium.error.ResetNeeded("step was called after the episode's end, expected reset")
            state = self._copies.step(np.asarray(action)[None])
            terminated, truncated = bool(state.terminated[0]), bool(state.truncated[0])
            self._next = state.observation if terminated or truncated else None
            info = {"cost": float(state.cost[0])} | ({"diverged": True} if state.diverged[0] else {})
            return _first(state.final_observation), float(state.reward[0]), terminated, truncated, info

    return SafejaxEnv


def _first(batch: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], batch)
