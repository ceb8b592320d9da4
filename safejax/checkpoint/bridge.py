"""`warm_start`: parts of one phase's state become parts of the next one's."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from safejax.checkpoint import leaves

Tree = TypeVar("Tree")


def warm_start(state: Tree, pretrained: Any, fields: Mapping[str, str]) -> Tree:
    """`state` with some of its parts replaced by copies of parts of `pretrained`.

    `{"actor": "actor"}` moves a whole TrainState, parameters and optimizer moments; `{"critic.params":
    "critic.params"}` moves parameters alone and leaves the optimizer fresh; `{"target_critic":
    "critic.params"}` renames. Dots walk named tuples and dictionaries. Leading seed axes need no care.

    Args:
      state: the state that a new phase begins with.
      pretrained: the state of the phase before.
      fields: target name in `state` -> source name in `pretrained`.

    Returns:
      A new state; what moved is copied, so either state may be donated afterwards.

    Raises:
      ValueError: an unknown name, overlapping targets, or parts whose structure, shapes or dtypes differ.
    """
    for target in fields:
        for other in fields:
            if other.startswith(target + "."):
                raise ValueError(f"warm_start: {target!r} already holds {other!r}; name only one of them")
    for target, source in fields.items():
        old, new = _walk(state, target, "state"), _walk(pretrained, source, "pretrained")
        found, expected = (leaves.signatures(each, "warm_start") for each in (new, old))
        differences = leaves.differences(found, expected)
        if not differences and jax.tree.structure(old) != jax.tree.structure(new):
            differences = f"structure {jax.tree.structure(new)}, expected {jax.tree.structure(old)}"
        if differences:
            raise ValueError(f"warm_start: {source!r} of pretrained does not fit {target!r} of state: {differences}")
        state = _put(state, target.split("."), jax.tree.map(functools.partial(jnp.array, copy=True), new))
    return state


def _walk(tree: Any, name: str, what: str) -> Any:
    for part in name.split("."):
        names = tree if isinstance(tree, Mapping) else getattr(tree, "_fields", ())
        if part not in names:
            raise ValueError(f"warm_start: {what} has no {name!r}: {part!r} is not among {', '.join(map(str, names))}")
        tree = tree[part] if isinstance(tree, Mapping) else getattr(tree, part)
    return tree


def _put(tree: Any, parts: list[str], value: Any) -> Any:
    if not parts:
        return value
    first, rest = parts[0], parts[1:]
    if isinstance(tree, Mapping):
        return {**tree, first: _put(tree[first], rest, value)}
    return tree._replace(**{first: _put(getattr(tree, first), rest, value)})
