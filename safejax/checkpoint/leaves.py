"""The leaves of a state by dotted path: what they are, where two states differ, their values on the host."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from safejax.checkpoint.errors import CheckpointError, NonFiniteStateError
from safejax.checkpoint.processes import whole

_UNKNOWN = ("uint2", "uint4", "float8_e4m3", "float128", "complex256")  # to TensorStore, by which Orbax writes


def by_path(tree: Any, where: object) -> dict[str, Any]:
    """Leaves by dotted path, in the order of `jax.tree.leaves`. `where` is for messages."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "value"
        if name in leaves:
            raise CheckpointError(f"{where}: two leaves are called {name!r}; rename a dictionary key that holds a dot")
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise CheckpointError(f"{where}: a leaf is called {name!r}, half a character; rename a dictionary key")
        leaves[name] = leaf
    return leaves


def signature(leaf: Any) -> dict[str, Any]:
    """Shape and dtype as JSON."""
    return {"shape": list(np.shape(leaf)), "dtype": str(getattr(leaf, "dtype", type(leaf).__name__))}


def signatures(tree: Any, where: object) -> dict[str, dict]:
    """Shapes and dtypes by path. `where` is for messages."""
    return {path: signature(leaf) for path, leaf in by_path(tree, where).items()}


def differences(found: dict[str, dict], expected: dict[str, dict]) -> str:
    """'' or every path that is missing, unexpected or of another shape or dtype."""
    parts = []
    for path in dict.fromkeys([*expected, *found]):
        pair = (entries.get(path) for entries in (found, expected))
        has, wants = (f"{entry['dtype']}{entry['shape']}" if entry else "absent" for entry in pair)
        if has != wants:
            parts.append(f"{path} is {has}, expected {wants}")
    return "; ".join(parts)


def to_host(directory: Path, state: Any) -> tuple[dict[str, np.ndarray], dict[str, dict]]:
    """Values by path, keys as their data, and what metadata.json says of each: shape, dtype, checksum."""
    arrays, entries = {}, {}
    for path, leaf in by_path(state, directory).items():
        if not hasattr(leaf, "dtype"):
            raise CheckpointError(f"{directory}: {path} is {leaf!r}, expected an array; put settings into config")
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        if not is_key and (expected := _unfit(leaf.dtype)):
            raise CheckpointError(f"{directory}: {path} is an array of {leaf.dtype}, expected {expected}")
        array = arrays[path] = whole(jax.random.key_data(leaf) if is_key else leaf)
        entries[path] = {**signature(leaf), "crc32": crc32(array)}
        if is_key:
            entries[path] |= {"key": str(jax.random.key_impl(leaf)), "data": [array.shape, str(array.dtype)]}
    return arrays, entries


def _unfit(dtype: np.dtype) -> str:
    """'' or what is expected in place of a dtype that would not come back as it was."""
    if not (jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)):
        return "numbers or booleans; put settings into config"
    if dtype.name in _UNKNOWN:
        return "a dtype that can be stored; convert it by astype"
    return "" if dtype.isnative else 'this machine\'s byte order; convert it by astype(dtype.newbyteorder("="))'


def from_host(like: Any, value: np.ndarray, key_implementation: str | None) -> Any:
    """`value` in the type of `like`: a typed key, NumPy or JAX, under its sharding."""
    if key_implementation is not None:
        array = jax.random.wrap_key_data(jnp.array(value), impl=key_implementation)
    elif isinstance(like, np.ndarray) or jax.dtypes.canonicalize_dtype(value.dtype) != value.dtype:
        return value  # a 64-bit leaf stays NumPy where JAX would narrow it
    else:
        array = jnp.array(value)
    sharding = getattr(like, "sharding", None)
    if sharding is None or not getattr(like, "committed", True):
        return array
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    return jax.jit(lambda leaf: leaf, out_shardings=sharding)(array)


def crc32(array: np.ndarray) -> int:
    """Checksum of the values; 0 where there are none."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data) if array.size else 0


def refuse_non_finite(directory: Path, arrays: dict[str, np.ndarray]) -> None:
    """Raise NonFiniteStateError with every array that holds NaN or infinity."""
    parts = []
    for path, array in arrays.items():
        if jnp.issubdtype(array.dtype, jnp.inexact) and not (finite := np.isfinite(array)).all():
            first = tuple(int(index) for index in np.argwhere(~finite)[0])
            values = f"{finite.size - finite.sum()} of {finite.size} values"
            parts.append(f"{path} has {values} that are not finite, first {array[first]} at {list(first)}")
    if parts:
        raise NonFiniteStateError(f"{directory}: {'; '.join(parts)}; not saved, what was saved before is intact")
