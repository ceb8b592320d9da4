"""The tick of a multiplier from finished episodes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safejax.constraints import MULTIPLIERS
from safejax.multipliers import MultiplierConfig, adapt_multiplier, make_multiplier
from safejax.types import EpisodeStats


def episodes(costs, finished):
    cost = jnp.asarray(costs, jnp.float32)
    return EpisodeStats(cost, cost, jnp.ones(cost.shape, jnp.int32), jnp.asarray(finished))


def test_the_mean_is_over_finished_episodes_of_any_shape():
    """Plain ascent from 1: 1 + .1 (mean(30, 50) - 20) = 3."""
    config = MultiplierConfig(learning_rate=0.1, adam=False, initial=1.0)
    stats = episodes([[30.0, 1e6], [0.0, 50.0]], [[True, False], [False, True]])
    state = adapt_multiplier(config, make_multiplier(config).init(), stats, 20.0)
    np.testing.assert_allclose(state.value, 3.0, rtol=1e-6)


@pytest.mark.parametrize("kind", MULTIPLIERS)
def test_every_kind_builds_ticks_and_rests(kind):
    config = MultiplierConfig(kind=kind, ticks=2)
    controller = make_multiplier(config)
    start = controller.init()
    none = episodes([90.0, np.nan], [False, False])
    chex.assert_trees_all_equal(
        adapt_multiplier(config, start, none._replace(episode_cost=jnp.array([90.0, 90.0])), 20.0), start
    )
    found = jax.jit(lambda state: adapt_multiplier(config, state, episodes([60.0], [True]), 20.0))(start)
    twice = controller.update(controller.update(start, 60.0, 20.0), 60.0, 20.0)
    chex.assert_trees_all_close(found, twice, rtol=1e-6)
    assert float(found.value) > 0.0


def test_ticks_count():
    """Plain ascent: n ticks with one cost climb n times as far."""
    for count in (1, 3, 20):
        config = MultiplierConfig(learning_rate=0.01, adam=False, ticks=count)
        state = adapt_multiplier(config, make_multiplier(config).init(), episodes([30.0], [True]), 20.0)
        np.testing.assert_allclose(state.value, 0.1 * count, rtol=1e-5)
        assert int(state.count) == count


@pytest.mark.parametrize("kind", MULTIPLIERS)
def test_the_maximum_binds(kind):
    config = MultiplierConfig(kind=kind, ticks=50, maximum=0.25, learning_rate=1.0, penalty=1.0)
    state = adapt_multiplier(config, make_multiplier(config).init(), episodes([500.0], [True]), 20.0)
    assert float(state.value) == 0.25


def test_every_number_reaches_its_controller():
    """A changed number changes what the controller does, for each kind that uses it."""
    changes = {
        "dual_ascent": dict(initial=1.0, learning_rate=0.5, adam=False),
        "pid": dict(proportional_gain=1.0, integral_gain=1.0, derivative_gain=1.0, integral_maximum=0.01),
        "adaptive_pid": dict(
            proportional_gain=1.0,
            integral_gain=1.0,
            derivative_gain=1.0,
            integral_maximum=0.01,
            rule="released",
        ),
        "augmented_lagrangian": dict(initial=1.0, penalty=1.0, penalty_growth=1.5),
    }

    def final(config):
        controller = make_multiplier(config)
        state = controller.init()
        for cost in (30.0, 60.0, 90.0):
            state = controller.update(state, cost, 20.0)
        return float(state.value)

    for kind, numbers in changes.items():
        plain = final(MultiplierConfig(kind=kind))
        for name, value in numbers.items():
            assert final(MultiplierConfig(kind=kind, **{name: value})) != plain, (kind, name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(kind="pi"), "kind is 'pi', expected one of adaptive_pid, augmented_lagrangian, dual_ascent, pid"),
        (dict(ticks=0), "ticks is 0"),
        (dict(learning_rate=-1.0), "learning_rate is -1.0"),
        (dict(kind="adaptive_pid", rule="new"), "rule is 'new', expected one of corrected, released"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(change, words):
    with pytest.raises(ValueError, match=words) as caught:
        make_multiplier(MultiplierConfig(**change))
    assert "\n" not in str(caught.value)
