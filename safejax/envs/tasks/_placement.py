"""Where things stand: places drawn one after the other, none too near another.

As Safety-Gymnasium draws them: every object in turn is drawn uniformly until it keeps its distance from those before
it; if a hundred draws all fail, the whole layout is drawn again. Here a population of layouts grows side by side, and
a layout that fails is replaced by a copy of one that has not, which a resampled population allows (sequential Monte
Carlo): the same distribution up to a bias of the order of one over the population, in a bounded time. Of four buttons
and four gremlins, one layout in sixty gets through; a population of 64 does so nearly always, else it starts again, up
to ATTEMPTS times. Objects that still find no room are nowhere: NaN.

Source: utils/random_generator.py of PKU-Alignment/safety-gymnasium. Shapes: n objects, P layouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from safejax.types import Array, Key

DRAWS = 10  # places that an object draws at once
ROUNDS = 10  # times that it may: a hundred draws
POPULATION = 64  # layouts that grow side by side
ATTEMPTS = 100  # populations, one after the other
REDRAW_ROUNDS = 1000  # for a single object among others


class Distances(NamedTuple):
    """What keeps objects apart, and inside."""

    reach: Array  # [n] m, half the side of the square in which an object's middle may be
    apart: Array  # [n, n] m, the least distance between two middles


def distances(keepouts: Sequence[float], half_extents: Sequence[float]) -> Distances:
    """Objects of these keepouts (m) stay as far apart as both say, and inside their square by their own.

    Args:
      keepouts: [n] m.
      half_extents: [n] m, half the side of the square of each.

    Raises:
      ValueError: a square too small for its object, or for the discs of all objects without regard to gaps.
    """
    keepout, extent = np.asarray(keepouts, np.float32), np.asarray(half_extents, np.float32)
    discs, square = np.pi * np.sum(keepout**2), 4.0 * np.max(extent) ** 2
    if np.any(keepout > extent) or discs > square:
        found = f"{len(keepout)} objects with keepouts up to {keepout.max():g} m, {discs:.3g} m^2 in all"
        raise ValueError(f"{found}, have no room in {square:.3g} m^2; expected fewer, smaller or a larger half_extent")
    return Distances(extent - keepout, keepout[:, None] + keepout)  # pyright: ignore[reportArgumentType]


def place(key: Key, distances: Distances, population: int = POPULATION) -> Array:
    """Places of all objects, drawn in their order. [n, 2] m; NaN where ATTEMPTS found no room"""
    count = len(distances.reach)

    def attempt(carry: tuple[Array, Array, Key, Array]) -> tuple[Array, Array, Key, Array]:
        _, attempts, key, _ = carry
        key, *keys = jax.random.split(key, 2 * count + 1)

        def grow(carry: tuple[Array, Array], drawn: tuple[Array, Key, Key]) -> tuple[tuple[Array, Array], None]:
            places, alive = carry
            index, draw_key, copy_key = drawn
            found, places = jax.vmap(
                lambda key, places: draw(key, distances, places, index, jnp.arange(count) < index)
            )(jax.random.split(draw_key, population), places)
            alive = alive & found
            # the dead become copies of the living; if none lives, it does not matter which
            chosen = jax.random.categorical(copy_key, jnp.where(alive, 0.0, -jnp.inf), shape=(population,))
            places = jnp.where(alive[:, None, None], places, places[chosen])
            return (places, jnp.broadcast_to(jnp.any(alive), alive.shape)), None

        keys = jnp.stack(keys).reshape(2, count, *key.shape)  # a key of the old kind has a shape
        start = jnp.zeros((population, count, 2)), jnp.ones(population, bool)
        (places, alive), _ = jax.lax.scan(grow, start, (jnp.arange(count), *keys))
        return alive[0], attempts + 1, key, places[0]

    start = jnp.bool_(False), jnp.zeros((), jnp.int32), key, jnp.zeros((count, 2))
    found, _, _, places = jax.lax.while_loop(lambda carry: ~carry[0] & (carry[1] < ATTEMPTS), attempt, start)
    return jnp.where(found, places, jnp.nan)


def draw(
    key: Key,
    distances: Distances,
    places: Array,
    index: Array | int,
    others: Array,
    rounds: int = ROUNDS,
    needed: Array | bool = True,
) -> tuple[Array, Array]:
    """Draw one object's place anew.

    Args:
      key: randomness.
      distances: of all n objects.
      places: [n, 2] m.
      index: [] which object.
      others: [n] bool, from which it keeps its distance.
      rounds: of DRAWS draws each.
      needed: [] where False, nothing is drawn: no work at all while no row of a `vmap` needs it.

    Returns:
      found [] bool, and places [n, 2]; where none was found or needed, as they were.
    """
    reach, apart = jnp.asarray(distances.reach)[index], jnp.asarray(distances.apart)[index]

    def round_(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        _, count, place = carry
        draws = jax.random.uniform(jax.random.fold_in(key, count), (DRAWS, 2), minval=-reach, maxval=reach)
        clear = jnp.linalg.norm(draws[:, None] - places, axis=-1) >= apart
        fits = jnp.all(clear | ~others, axis=-1)
        return jnp.any(fits), count + 1, jnp.where(jnp.any(fits), draws[jnp.argmax(fits)], place)

    start = ~jnp.asarray(needed), jnp.zeros((), jnp.int32), places[index]
    found, _, place = jax.lax.while_loop(lambda carry: ~carry[0] & (carry[1] < rounds), round_, start)
    return found, places.at[index].set(place)
