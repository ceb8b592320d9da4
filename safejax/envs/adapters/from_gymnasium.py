"""Any gymnasium vector environment for `train_online_host`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from safejax.envs.adapters.spaces import action_size, from_policy, observation_spec
from safejax.types import ArrayTree, EnvState, HostEnv

_MODES = ("NextStep", "SameStep", "Disabled")  # values of gymnasium.vector.AutoresetMode


def from_gymnasium(
    vector_env: Any,
    cost: Callable[[ArrayTree, np.ndarray, ArrayTree], Any] | None = None,
    *,
    seed: int | None = 0,
    name: str = "",
) -> HostEnv:
    """A `gymnasium.vector.VectorEnv` as worlds that step on the host.

    Every transition ends in what was observed before any reset, in each of gymnasium's three modes: SAME_STEP hands
    it over in `info["final_obs"]`; DISABLED is told which environments to reset; under NEXT_STEP the step after an
    end takes no action and its row is marked as not real. Where both flags are set, termination wins. Actions in
    [-1, 1] are stretched to the bounds of the action space.

        vector_env = gymnasium.make_vec("Pendulum-v1", num_envs=8)
        env = from_gymnasium(vector_env, lambda observation, action, after: np.abs(after[:, 2]) > 4.0)

    Args:
      vector_env: a vector environment of Box or Discrete actions, and of Box observations or a Dict of them. Give
        AsyncVectorEnv context="forkserver" or "spawn": a process that runs JAX must not be forked.
      cost: (observation [B, O], action [B, A] in [-1, 1], next observation [B, O]), NumPy -> [B] >= 0; by default
        `info["cost"]`, for ended rows of SAME_STEP `info["final_info"]["cost"]`.
      seed: of the first reset; later ones go on from there.
      name: the name of the result, by default gymnasium's.

    Raises:
      ValueError: no vector environment, spaces of other kinds, infinite action bounds, an unknown autoreset mode; from
        `step`, actions or costs of another shape, a cost below 0, a row without its cost or its final observation.
      FloatingPointError: from `step`, an observation, reward or cost that is not finite: gymnasium has no way to
        start a single environment afresh.
    """
    if not hasattr(vector_env, "single_action_space"):
        found = getattr(getattr(vector_env, "spec", None), "id", vector_env)
        raise ValueError(f"{found!r} is no vector environment, expected one such as gymnasium.make_vec gives")
    mode = vector_env.metadata.get("autoreset_mode")
    mode = getattr(mode, "value", mode)
    if mode not in _MODES:
        raise ValueError(f"metadata['autoreset_mode'] is {mode!r}, expected one of {', '.join(_MODES)}")
    spec = observation_spec(vector_env.single_observation_space)
    space, count = vector_env.single_action_space, vector_env.num_envs
    registered = getattr(vector_env, "spec", None)
    name = name or (registered.id if registered else type(vector_env.unwrapped).__name__)
    seeds = iter((seed,))

    def seen(observation: Any) -> ArrayTree:
        return jax.tree.map(lambda leaf, part: np.array(part, leaf.dtype), spec, observation)  # buffers are reused

    def reset() -> EnvState:
        observation = seen(vector_env.reset(seed=next(seeds, None))[0])
        zeros, no, steps = (np.zeros(count, dtype) for dtype in (np.float32, bool, np.int32))
        return _state(observation, zeros, zeros, no, no, observation, steps)

    expected = (count, action_size(space)) if hasattr(space, "low") else (count,)

    def step(state: EnvState, action: Any) -> tuple[EnvState, np.ndarray]:
        _check_shape(f"{name}: actions", action, expected)
        observation, reward, terminated, truncated, info = vector_env.step(from_policy(space, np.asarray(action)))
        before, observation = jax.device_get(state), seen(observation)
        terminated, truncated = np.array(terminated, bool), np.array(truncated, bool)
        ended, final_observation = terminated | truncated, observation
        real = ~(before.terminated | before.truncated) if mode == "NextStep" else np.ones(count, bool)
        if mode == "SameStep" and ended.any():
            final_observation = _final(spec, observation, info, ended)
        if mode == "Disabled" and ended.any():
            observation = seen(vector_env.reset(options={"reset_mask": ended.copy()})[0])
        if cost is None:
            costs = _cost(info, real)
        else:
            costs = np.asarray(cost(before.observation, np.asarray(action), final_observation), np.float32)
            _check_shape(f"{name}: cost", costs, (count,))
        reward = np.array(reward, np.float32)
        _refuse_non_finite(name, real, [*jax.tree.leaves(final_observation), reward, costs])
        if (costs[real] < 0.0).any():
            raise ValueError(f"{name}: cost {costs[real].min():g}, expected at least 0")
        after = _state(
            observation,
            reward,
            costs,
            terminated,
            truncated & ~terminated,
            final_observation,
            np.where(ended | ~real, 0, before.steps + 1).astype(np.int32),
        )
        return after, real

    return HostEnv(reset, step, spec, action_size(space), count, name, discrete=not hasattr(space, "low"))


def _state(*fields: Any) -> EnvState:
    """NumPy where `EnvState` says arrays of JAX, which the compiled halves of the loop take alike; no physics."""
    return EnvState((), *fields)


def _final(spec: ArrayTree, observation: ArrayTree, info: dict[str, Any], ended: np.ndarray) -> ArrayTree:
    """`observation` with the ended rows as they were before their reset.

    gymnasium's own classes give an object array of single observations; others give one batch.
    """
    given = info.get("final_obs")
    if given is None:
        raise ValueError("an episode ended and info has no 'final_obs', which AutoresetMode.SAME_STEP owes")
    if isinstance(given, np.ndarray) and given.dtype == object:
        given = jax.tree.map(lambda _, *rows: np.stack(rows), spec, *given[ended])
    else:
        given = jax.tree.map(lambda _, rows: np.asarray(rows)[ended], spec, given)

    def put(rows: np.ndarray, final: np.ndarray) -> np.ndarray:
        rows = rows.copy()
        rows[ended] = final
        return rows

    return jax.tree.map(put, observation, given)


def _check_shape(name: str, array: Any, expected: tuple[int, ...]) -> None:
    if np.shape(array) != expected:
        raise ValueError(f"{name} of shape {list(np.shape(array))}, expected {list(expected)}")


def _refuse_non_finite(name: str, real: np.ndarray, parts: list[np.ndarray]) -> None:
    finite = [np.isfinite(part.reshape(len(real), -1)).all(axis=1) for part in parts]
    lost = np.flatnonzero(real & ~np.logical_and.reduce(finite))
    if lost.size:
        found = f"{name}: observation, reward or cost of environment {lost[0]} is not finite"
        raise FloatingPointError(f"{found} ({lost.size} of {len(real)} environments)")


def _cost(info: dict[str, Any], real: np.ndarray) -> np.ndarray:
    """[B] float32: `info["cost"]`, and of rows with a final_info what that says."""
    costs, known = np.zeros(real.shape, np.float32), np.zeros(real.shape, bool)
    for part in (info, info.get("final_info", {})):
        if "cost" in part:
            rows = np.asarray(part.get("_cost", np.ones_like(known)), bool)
            costs[rows], known = np.asarray(part["cost"])[rows], known | rows
    if not known[real].all():
        raise ValueError("a step came without info['cost']: pass cost=, a function of observations and action")
    return costs
