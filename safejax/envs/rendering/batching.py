"""How a batch of pictures is drawn: strip by strip on a CPU, which skips what a strip shows none of; elsewhere all at
once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from safejax.types import Array

Draw = Callable[..., Any]
STRIP = 4096
"""About how many pixels a CPU draws together: few enough for its cache and to leave out much, enough for its loops."""


class Way(NamedTuple):
    """What is done differently on a CPU, which draws one strip at a time."""

    apart: Draw  # values -> values; what makes and what reads them is not compiled into one loop
    unless_idle: Draw  # (needed [] bool, function, idle) -> function()'s result, which is idle()'s where not needed
    unless_absent: Draw  # as unless_idle, for what is somewhere in most pictures, but not in all strips of them
    each: Draw  # (function, arguments with a leading axis) -> its results, stacked
    strips: int  # of rows, into which a picture is cut


def way_on_cpu(alive: Array, height: int, width: int) -> Way:
    """The way of a CPU; `alive` is a finite number that the compiler does not know."""
    count = strips(height, width)

    def apart(values: Any) -> Any:
        # XLA's fusion for CPUs looks through barriers, but not into a condition
        return jax.lax.cond(alive > 1e30, lambda same: jax.tree.map(jnp.zeros_like, same), lambda same: same, values)

    def unless_idle(needed: Array, function: Draw, idle: Draw) -> Any:
        # under shard_map both results must be known to differ between devices, as `alive` does
        return jax.lax.cond(
            needed, function, lambda: jax.tree.map(lambda leaf: jnp.where(alive > 1e30, 0, leaf), idle())
        )

    def each(function: Draw, rows: Any) -> Any:
        return jax.lax.map(lambda row: function(*row), rows)

    return Way(apart, unless_idle, unless_idle if count > 1 else always, each, count)


def way_elsewhere(alive: Array, height: int, width: int) -> Way:
    """The way of an accelerator, where whole batches are drawn at once."""
    del alive, height, width
    return Way(jax.lax.optimization_barrier, always, always, lambda function, rows: jax.vmap(function)(*rows), strips=1)


def always(needed: Array, function: Draw, idle: Draw) -> Any:
    """`function()`, needed or not."""
    del needed, idle
    return function()


def strips(height: int, width: int) -> int:
    """The number of strips of equal height that comes nearest to STRIP pixels in each; one if all are far smaller."""
    divisors = [count for count in range(1, height + 1) if height % count == 0]
    worthwhile = [count for count in divisors if height * width >= count * STRIP / 4] or [1]
    return min(worthwhile, key=lambda count: abs(math.log(height * width / (count * STRIP))))


def by_platform(on_cpu: Draw, elsewhere: Draw) -> Draw:
    """Two ways to the same result, of which the program holds the one for its platform."""
    in_turn, in_turn_where = one_by_one(on_cpu, elsewhere), one_by_one(_where(on_cpu), _where_looped(elsewhere))

    def draw(poses: Any, needed: Any = None, otherwise: Any = None) -> Any:
        if needed is None:
            return jax.lax.platform_dependent(*poses, cpu=in_turn, default=elsewhere)
        return jax.lax.platform_dependent(
            needed, otherwise, *poses, cpu=in_turn_where, default=_where_looped(elsewhere)
        )

    return draw


def one_by_one(function: Draw, at_once: Draw) -> Draw:
    """`function`, under `vmap` a loop over the batch; but `at_once` where devices share the batch."""
    looped = jax.custom_batching.custom_vmap(function)

    @looped.def_vmap
    def rule(axis_size: int, batched: Any, *arguments: Any) -> tuple[Any, Any]:
        del axis_size
        leaves, tree = jax.tree.flatten(arguments)
        flags = jax.tree.leaves(batched)
        rows = [leaf for leaf, flag in zip(leaves, flags, strict=True) if flag]

        def call(chosen: Draw, row: list[Array]) -> Any:
            parts = iter(row)
            return chosen(*tree.unflatten([next(parts) if flag else leaf for leaf, flag in zip(leaves, flags)]))  # noqa: B905

        if any(map(_is_spread, rows)):
            drawn = jax.vmap(lambda row: call(at_once, row))(rows)
        else:
            drawn = jax.lax.map(lambda row: call(looped, row), rows)
        return drawn, jax.tree.map(lambda _: True, drawn)

    return looped


def _is_spread(batch: Array) -> bool:
    """Whether the first axis is sharded, as far as the type says; XLA sees to the rest."""
    spec = jax.typeof(batch).sharding.spec
    return len(spec) > 0 and spec[0] is not None


def _where(draw: Draw) -> Draw:
    def where(needed: Array, otherwise: Any, *poses: Array) -> Any:
        return jax.lax.cond(needed, lambda: draw(*poses), lambda: otherwise)

    return where


def _where_looped(draw: Draw) -> Draw:
    """A loop of at most one round: unlike a `cond`, under `vmap` it does nothing while no row needs it."""

    def where(needed: Array, otherwise: Any, *poses: Array) -> Any:
        def once(carry: tuple[Array, Any, Any]) -> tuple[Array, Any, Any]:
            _, poses, _ = carry
            # other poses, else the compiler takes the drawing out of the loop and always does it
            return jnp.zeros((), bool), jax.tree.map(jnp.zeros_like, poses), draw(*poses)

        return jax.lax.while_loop(lambda carry: carry[0], once, (needed, poses, otherwise))[2]

    return where
