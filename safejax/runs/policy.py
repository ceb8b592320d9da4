"""Policies of finished runs: stored with what describes their networks, loaded ready to act."""

from __future__ import annotations

import dataclasses
import functools
import os
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from safejax import algorithms, checkpoint
from safejax.checkpoint.errors import first_line
from safejax.networks import PixelEncoder
from safejax.runs.errors import RunError
from safejax.types import Algorithm, Array, ArrayTree, Carry, Transition

_NEEDED = {"method", "action_size", "observation_size", "hidden_sizes", "seeds"}
_ENCODER = ("channels", "kernel_size", "feature_size")  # what rebuilds a PixelEncoder


class Policy(NamedTuple):
    """A trained policy, ready to act."""

    act: Callable[..., Array]  # (observation [O] or [B, O], key=None) -> action; deterministic without a key
    episode: Callable[[], Callable[..., Array]]  # () -> an `act` that remembers what it saw since; one an episode
    algorithm: Algorithm
    state: Any  # the algorithm's State of one seed
    about: dict[str, Any]  # what `save_policy` stored: method, networks, seeds, and what it was trained on


def save_policy(
    directory: str | os.PathLike,
    state: Any,
    config: Any,
    *,
    method: str,
    action_size: int,
    observation_size: int | Mapping[str, Any],
    hidden_sizes: tuple[int, ...],
    seeds: tuple[int, ...],
    network_options: Mapping[str, Any] | None = None,
    encoder: PixelEncoder | None = None,
    default: bool = False,
    **about: Any,
) -> None:
    """Store a State whose leaves have a leading seed axis [S] so that `load_policy` can rebuild the policy alone.

    Args:
      directory: of the checkpoint.
      state: of `algorithms.module(method)`, leaves [S, ...].
      config: its Config.
      method: name in `algorithms.MODULES`.
      action_size, observation_size, hidden_sizes: of its default networks; with an encoder, observation_size is
        {"pixels": (H, W, C), "state": O}, or without the state.
      seeds: the S seeds, in the order of the leading axis.
      network_options: further keyword arguments of `default_networks` that JSON can hold.
      encoder: of its default networks.
      default: whether `load_policy` takes this one of a run with several.
      **about: JSON-able notes on what it was trained on, e.g. the task.

    Raises:
      RunError: an encoder of another kind, which `load_policy` could not rebuild.
    """
    if encoder is not None and not isinstance(encoder, PixelEncoder):
        kind = type(encoder).__name__
        raise RunError(f"{directory}: encoder is a {kind}, expected a PixelEncoder; use checkpoint.save for others")
    extra = {
        "method": method,
        "action_size": action_size,
        "observation_size": observation_size,
        "hidden_sizes": list(hidden_sizes),
        "network_options": dict(network_options or {}),
        "encoder": None if encoder is None else {name: getattr(encoder, name) for name in _ENCODER},
        "seeds": list(seeds),
        "default": default,
        **about,
    }
    checkpoint.save(directory, state, config, extra=extra)


def load_policy(directory: str | os.PathLike, seed_index: int = 0, *, method: str | None = None) -> Policy:
    """Rebuild a policy from what `save_policy` stored.

    A policy with a memory, such as FOSP's, acts by `episode()`; its `act` knows nothing but the one observation.

    Args:
      directory: of a run, e.g. runs/demo, or of one policy in it, e.g. runs/demo/policies/marvel.
      seed_index: row of the leading seed axis.
      method: which one of a run's policies, by its folder; None takes the only one or the default.

    Raises:
      CheckpointError: the directory holds no readable checkpoint.
      RunError: it holds one that is not a policy, a policy that this safejax cannot rebuild, fewer seeds, or several
        policies of which none was chosen.
    """
    directory = _policy_directory(Path(os.path.abspath(directory)), method)
    stored = checkpoint.metadata(directory)
    about = stored["extra"]
    if not isinstance(about, dict) or not about.keys() >= _NEEDED or not isinstance(about["seeds"], list):
        raise RunError(f"{directory}: holds a checkpoint that is no policy; expected one made by save_policy")
    seed_count = len(about["seeds"])
    if not isinstance(seed_index, int | np.integer) or not 0 <= seed_index < seed_count:
        raise RunError(f"{directory}: holds {seed_count} seeds, asked for index {seed_index}")
    try:
        algorithm, example, like = _rebuilt(about, stored["config"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # of the method, its networks, or JAX
        raise RunError(
            f"{directory}: this safejax cannot rebuild the policy ({first_line(error)}); load it with the version that "
            "saved it"
        ) from error
    state = jax.tree.map(lambda leaf: leaf[seed_index], checkpoint.restore(directory, like))

    @functools.partial(jax.jit, static_argnames="explore")
    def batched(state: Any, observation: ArrayTree, key: Array, carry: Carry, explore: bool) -> tuple[Array, Carry]:
        return algorithm.act(state, observation, key, carry, explore=explore)[:2]

    def decide(observation: Any, key: Array | None, carry: Carry) -> tuple[Array, Carry]:
        observation = jax.tree.map(lambda leaf, zero: jnp.asarray(leaf, zero.dtype), observation, example.observation)
        leaf, zero = (jax.tree.leaves(each)[0] for each in (observation, example.observation))
        single = leaf.ndim == zero.ndim
        rows = jax.tree.map(lambda leaf: leaf[None], observation) if single else observation
        if carry is None:
            carry = algorithm.initial_carry(state, 1 if single else len(leaf))
        action, carry = batched(state, rows, jax.random.key(0) if key is None else key, carry, key is not None)
        return (action[0] if single else action), carry

    def act(observation: Any, key: Array | None = None) -> Array:
        return decide(observation, key, None)[0]

    def episode() -> Callable[..., Array]:
        carry = None

        def act(observation: Any, key: Array | None = None) -> Array:
            nonlocal carry
            action, carry = decide(observation, key, carry)
            return action

        return act

    return Policy(act, episode, algorithm, state, about)


def _rebuilt(about: Mapping[str, Any], plain_config: Any) -> tuple[Algorithm, Transition, Any]:
    """The algorithm, a row of zeros as it sees the world, and the shapes of its State of all seeds [S, ...]."""
    module = algorithms.module(about["method"])
    config = from_plain(module.Config, plain_config)
    options = dict(about.get("network_options") or {})
    if about.get("encoder"):
        options["encoder"] = from_plain(PixelEncoder, about["encoder"])
    networks = module.default_networks(about["action_size"], tuple(about["hidden_sizes"]), **options)
    algorithm = module.make(config, networks)
    scalar = jnp.zeros((), jnp.float32)
    observation = _zero_observation(about["observation_size"])
    action = jnp.zeros((about["action_size"],), jnp.float32)
    example = Transition(observation, action, scalar, scalar, scalar, scalar, observation)
    keys = jax.random.split(jax.random.key(0), len(about["seeds"]))
    return algorithm, example, jax.eval_shape(jax.vmap(algorithm.init, in_axes=(0, None)), keys, example)


def _policy_directory(directory: Path, method: str | None) -> Path:
    """`directory` itself if it is no run, else the chosen one, the only one or the default one of its policies."""
    folder = directory / "policies"
    if not folder.is_dir():
        if method is not None:
            raise RunError(f"{directory}: has no policies to choose method={method!r} from; give a run's directory")
        return directory
    names = sorted(path.parent.name for path in folder.glob("[!.]*/metadata.json"))
    listed = ", ".join(names) or "none yet"
    if method is not None:
        if method not in names:
            raise RunError(f"{directory}: has no policy {method!r}; its policies: {listed}")
        return folder / method
    marked = [name for name in names if _is_default(folder / name)]
    for choice in (names, marked):
        if len(choice) == 1:
            return folder / choice[0]
    raise RunError(f"{directory}: expected one policy or one default, found {len(names)}; pass method=: {listed}")


def _is_default(directory: Path) -> bool:
    try:
        extra = checkpoint.metadata(directory)["extra"]
    except checkpoint.DamagedCheckpointError:
        return False  # another policy of the run may be whole
    return isinstance(extra, dict) and bool(extra.get("default"))


def _zero_observation(size: Any) -> ArrayTree:
    """Zeros without leading axes: [O], or {"pixels": uint8 [H, W, C], "state": [O]}."""
    if not isinstance(size, Mapping):
        return jnp.zeros((size,), jnp.float32)
    return {name: jnp.zeros(s, jnp.uint8 if name == "pixels" else jnp.float32) for name, s in size.items()}


def from_plain(cls: Any, values: Mapping[str, Any]) -> Any:
    """A frozen Config from its JSON form: nested Configs and tuples are rebuilt from the fields' types.

    Fields that `values` lacks, being younger, take their defaults.

    Raises:
      RunError: `values` has a field that `cls` has not, so nobody knows what it was to do.
    """
    if unknown := sorted(values.keys() - {field.name for field in dataclasses.fields(cls)}):
        raise RunError(f"{cls.__module__}.{cls.__name__} has no field {', '.join(unknown)}")
    types = typing.get_type_hints(cls)
    fields = {}
    for field in dataclasses.fields(cls):
        if field.name not in values:
            continue
        value = values[field.name]
        nested = [kind for kind in (types[field.name], *typing.get_args(types[field.name])) if _is_config(kind)]
        if nested and isinstance(value, Mapping):  # a field `SafetyConfig | None` holds one of the two
            value = from_plain(nested[0], value)
        elif isinstance(value, list):
            value = tuple(value)
        fields[field.name] = value
    return cls(**fields)


def _is_config(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)
