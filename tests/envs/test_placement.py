"""Layouts against the original's algorithm, redone here attempt by attempt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from safejax.envs.tasks import _placement as placement
from safejax.envs.tasks.button import LEVELS

HALF_EXTENT, GROUPS = LEVELS[1]
KEEPOUTS = [0.4, *(group.keepout for group in GROUPS for _ in range(group.count))]
DISTANCES = placement.distances(KEEPOUTS, [HALF_EXTENT] * len(KEEPOUTS))


def original(attempts, rng, count=len(KEEPOUTS)):
    """Places [layouts that got through, count, 2]: objects in turn, a hundred draws each, all or nothing."""
    places = np.zeros((attempts, 0, 2), np.float32)
    for index, keepout in enumerate(KEEPOUTS[:count]):
        reach = HALF_EXTENT - keepout
        draws = rng.uniform(-reach, reach, (len(places), 100, 2)).astype(np.float32)
        apart = np.float32(keepout) + np.array(KEEPOUTS[:index], np.float32)
        fits = (np.linalg.norm(draws[:, :, None] - places[:, None], axis=-1) >= apart).all(-1)
        first = draws[np.arange(len(draws)), fits.argmax(-1)]
        places = np.concatenate([places, first[:, None]], axis=1)[fits.any(-1)]
    return places


@pytest.fixture(scope="module")
def layouts():
    keys = jax.random.split(jax.random.key(0), 400)
    return np.asarray(jax.jit(jax.lax.map, static_argnums=0)(lambda key: placement.place(key, DISTANCES), keys))


def test_everything_keeps_its_distance_and_stays_inside(layouts):
    apart = np.linalg.norm(layouts[:, :, None] - layouts[:, None], axis=-1)
    needed = np.array(KEEPOUTS)[:, None] + np.array(KEEPOUTS)
    off_diagonal = ~np.eye(len(KEEPOUTS), dtype=bool)
    assert (apart >= needed - 1e-6)[:, off_diagonal].all()
    assert (np.abs(layouts) <= HALF_EXTENT - np.array(KEEPOUTS)[:, None] + 1e-6).all()


def test_buttons_lie_as_the_original_lays_them(layouts):
    """Two-sample tests at one in a hundred in all, of the layouts that one attempt in sixty brings."""
    expected = original(25_000, np.random.default_rng(0))
    assert 0.01 < len(expected) / 25_000 < 0.025
    values = {
        **{f"radius {index}": lambda places, index=index: _radius(places[:, index]) for index in range(14)},
        **{f"x {index}": lambda places, index=index: places[:, index, 0] for index in (0, 1, 5, 6, 13)},
        "agent to button": lambda places: _radius(places[:, 0] - places[:, 1]),
        "gremlin to gremlin": lambda places: _radius(places[:, 12] - places[:, 13]),
        "hazard to gremlin": lambda places: _radius(places[:, 6] - places[:, 10]),
    }
    for name, value in values.items():
        found = scipy.stats.ks_2samp(value(layouts), value(expected))
        assert found.pvalue > 0.01 / len(values), name
    # without regard to the gremlins, the first ten would stand nearer the middle than where all have found room
    first = original(3000, np.random.default_rng(1), count=10)
    assert scipy.stats.ks_2samp(_reach(first), _reach(expected)).pvalue < 1e-5
    assert scipy.stats.ks_2samp(_reach(layouts), _reach(expected)).pvalue > 1e-3


def _reach(places):
    """How far the first ten objects stand from the middle, in the mean."""
    return _radius(places[:, :10]).mean(1)


def _radius(places):
    return np.linalg.norm(places, axis=-1)


def test_one_object_is_drawn_anew_where_needed():
    places = jnp.array([[0.0, 0.0], [0.9, 0.9], [-0.9, 0.5]])
    distances = placement.distances([0.3, 0.1, 0.1], [1.0] * 3)
    others = jnp.arange(3) != 1
    keys = jax.random.split(jax.random.key(0), 500)
    draw = jax.jit(jax.vmap(lambda key, needed: placement.draw(key, distances, places, 1, others, needed=needed)))
    found, drawn = draw(keys, jnp.arange(500) % 2 == 0)
    np.testing.assert_array_equal(drawn[1::2], jnp.broadcast_to(places, (250, 3, 2)))
    np.testing.assert_array_equal(found, np.ones(500, bool))
    moved = np.asarray(drawn[::2, 1])
    assert (np.linalg.norm(moved, axis=-1) >= 0.4).all()
    assert (np.linalg.norm(moved - np.asarray(places[2]), axis=-1) >= 0.2).all()
    assert len(np.unique(moved[:, 0])) == 250


def test_where_there_is_no_room_the_object_stays():
    places = jnp.array([[0.0, 0.0], [0.9, 0.9]])
    found, kept = placement.draw(
        jax.random.key(0), placement.distances([2.0, 0.1], [3.0, 1.0]), places, 1, jnp.array([True, False])
    )
    assert not found
    np.testing.assert_array_equal(kept, places)


@pytest.mark.parametrize(("keepouts", "extent"), [([0.6] * 6, 0.8), ([0.1, 0.9], 0.8)])
def test_objects_that_cannot_have_room_are_refused(keepouts, extent):
    found = rf"{len(keepouts)} objects with keepouts up to {max(keepouts)} m, [\d.]+ m\^2 in all, have no room in 2.56"
    with pytest.raises(ValueError, match=found):
        placement.distances(keepouts, [extent] * len(keepouts))


def test_what_finds_no_room_is_nowhere_and_nothing_waits_for_it():
    """Two middles inside +-.3 m are never a metre apart, though the discs' area would do."""
    places = placement.place(jax.random.key(0), placement.distances([0.5, 0.5], [0.8] * 2), population=1)
    assert jnp.isnan(places).all()
