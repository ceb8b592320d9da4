"""gymnasium's spaces and our specifications; the one place that imports gymnasium."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from safejax.types import ArrayTree, Env


def import_gymnasium() -> Any:
    """gymnasium, an extra.

    Raises:
      ModuleNotFoundError: it is not installed.
    """
    try:
        import gymnasium
        import gymnasium.vector
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("gymnasium is not installed: pip install 'safejax[gym]'", name=error.name) from error
    return gymnasium


def action_space(env: Env) -> Any:
    """The single action space of `env`: Discrete, or Box [-1, 1]."""
    spaces = import_gymnasium().spaces
    if env.discrete:
        return spaces.Discrete(env.action_size)
    return spaces.Box(-1.0, 1.0, (env.action_size,), np.float32)


def observation_space(spec: ArrayTree) -> Any:
    """The space of an observation: a Box for an array (bytes are bounded, floats are not), a Dict for a dictionary."""
    spaces = import_gymnasium().spaces
    if isinstance(spec, dict):
        return spaces.Dict({name: observation_space(below) for name, below in spec.items()})
    dtype = np.dtype(spec.dtype)
    low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max) if dtype.kind in "iu" else (-np.inf, np.inf)
    return spaces.Box(low, high, spec.shape, dtype.type)


def observation_spec(space: Any) -> ArrayTree:
    """The reverse. Bytes stay bytes, all other numbers become float32.

    Raises:
      ValueError: a space that is neither Box nor Dict.
    """
    spaces = import_gymnasium().spaces
    if isinstance(space, spaces.Dict):
        return {name: observation_spec(below) for name, below in space.items()}
    if not isinstance(space, spaces.Box):
        raise ValueError(
            f"observation space {space}: expected Box, or Dict of them; wrap it with "
            "gymnasium.wrappers.vector.FlattenObservation"
        )
    return jax.ShapeDtypeStruct(space.shape, np.uint8 if space.dtype == np.uint8 else np.float32)


def from_policy(space: Any, action: np.ndarray) -> np.ndarray:
    """Actions [B, A] in [-1, 1], clipped, as actions of a Box `space` with its bounds; int32 [B] counted from a
    Discrete space's start."""
    if not hasattr(space, "low"):
        return action.astype(space.dtype) + space.start
    low, high = (np.asarray(bound, np.float64) for bound in (space.low, space.high))
    middle, half = (low + high) / 2, (high - low) / 2  # exact for bounds of -1 and 1
    unit = np.clip(action, -1.0, 1.0).reshape(-1, *space.shape)
    return np.clip(middle + half * unit, low, high).astype(space.dtype)


def action_size(space: Any) -> int:
    """A of a bounded Box, or the number of actions of a Discrete space.

    Raises:
      ValueError: a space that is neither, or has an infinite bound.
    """
    spaces = import_gymnasium().spaces
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if not isinstance(space, spaces.Box) or not np.isfinite([space.low, space.high]).all():
        raise ValueError(f"action space {space}: expected Discrete, or Box with finite bounds; wrap or rescale it")
    return int(np.prod(space.shape))
