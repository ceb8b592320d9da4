"""The learned probability of violating against exact values of chains and random walks, and what it learns from."""

import functools
from dataclasses import dataclass
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from exact_networks import StateTable

from safejax.algorithms import feasibility
from safejax.algorithms.feasibility import Path
from safejax.algorithms.imagination import Dream
from safejax.gradients import train_state
from safejax.types import Transition

WINDOW = 6


@dataclass(frozen=True)
class LogitTable(StateTable):
    """One logit a state, [..., 1]."""

    def apply(self, params, observation):
        return super().apply(params, observation)[..., None]


def walk(key, states, step, absorbing):
    """A window of states: `step` (key) is -1 or 1, and absorbing states stay."""
    start_key, *keys = jax.random.split(key, WINDOW)
    state = jax.random.randint(start_key, (), 0, states)
    rows = [state]
    for each in keys:
        state = jnp.where(jnp.isin(state, absorbing), state, state + step(each))
        rows.append(state)
    return jnp.stack(rows)


def right(key):
    return 1


def either(key):
    return jax.random.choice(key, jnp.array([-1, 1]))


@pytest.mark.parametrize(
    ("step", "states", "absorbing", "violating", "discount_factor", "exact"),
    [
        (right, 4, (3,), 3, 0.99, (0.970299, 0.9801, 0.99, 1.0)),
        (right, 4, (3,), -1, 0.99, (0.0, 0.0, 0.0, 0.0)),
        (either, 5, (0, 4), 0, 0.99, (1.0, 0.732842, 0.480488, 0.237842, 0.0)),
        (either, 5, (0, 4), 0, 0.9, (1.0, 0.603151, 0.340336, 0.153151, 0.0)),
    ],
)
def test_samples_of_chains_and_walks_lead_to_the_exact_probabilities(
    step, states, absorbing, violating, discount_factor, exact
):
    network, size = LogitTable(states), 512
    schedule = optax.exponential_decay(0.3, 100, 0.4)
    learn = functools.partial(
        feasibility.learn, network=network, discount_factor=discount_factor, optimizer=optax.adam(schedule)
    )

    def update(state, key):
        rows = jax.vmap(lambda key: walk(key, states, step, jnp.array(absorbing)))(jax.random.split(key, size))
        ones, last = jnp.ones(rows.shape), jnp.zeros(rows.shape).at[:, -1].set(1.0)
        features = jax.nn.one_hot(rows, states)
        path = Path(features, (rows == violating).astype(jnp.float32), ones, last, 1.0 - last)
        return learn(state, [path])[0], None

    start = train_state(jnp.zeros(states), optax.adam(schedule))
    state, _ = jax.jit(lambda keys: jax.lax.scan(update, start, keys))(jax.random.split(jax.random.key(0), 600))
    found = feasibility.probability(network, state.params, jnp.eye(states))
    np.testing.assert_allclose(found, exact, atol=0.02)


def test_data_states_violate_by_their_own_cost():
    """Rows: a costly one; one that terminates at a violation; one at a time limit; and the window's end."""
    row = jnp.array([[0.7, 1.0, 0.2, 0.0]])
    batch = Transition(
        observation=(),
        action=(),
        reward=jnp.zeros((1, 4)),
        cost=row,
        discount=jnp.array([[1.0, 0.0, 1.0, 1.0]]),
        last=jnp.array([[0.0, 1.0, 1.0, 0.0]]),
        next_observation=(),
    )
    seen = SimpleNamespace(arrival=SimpleNamespace(features=jnp.arange(8.0).reshape(1, 4, 2)))
    path = feasibility.of_data(seen, batch, 0.5)
    np.testing.assert_array_equal(path.violation, [[1, 1, 0, 0]])
    np.testing.assert_array_equal(path.going_on, [[1, 0, 1, 1]])
    np.testing.assert_array_equal(path.open_end, [[0, 0, 1, 1]])
    np.testing.assert_array_equal(path.weight, [[1, 1, 0, 0]])
    np.testing.assert_array_equal(path.features, seen.arrival.features)


def test_imagined_states_violate_by_the_cost_predicted_in_them_and_first_ones_by_the_row_before():
    """Three rows of a window, the second ends an episode: not known, known, and a start that cost nothing."""
    states = jnp.array([[0.6, 0.1, 0.5], [0.1, 0.1, 0.1], [0.9, 0.7, 0.2]])
    going_on = jnp.tile(jnp.array([1.0, 0.9, 0.2]), (3, 1))
    dream = Dream(jnp.zeros((3, 3, 2)), jnp.zeros((3, 2, 1)), jnp.zeros((3, 2, 1)), states, states, going_on)
    row = lambda *numbers: jnp.array([numbers])  # noqa: E731
    batch = Transition((), (), row(0.0, 0.0, 0.0), row(1.0, 1.0, 0.0), row(1.0, 1.0, 1.0), row(0.0, 1.0, 0.0), ())
    path = feasibility.of_dream(dream, batch, jnp.tile(jnp.array([1.0, 0.8]), (3, 1)), 0.5)
    np.testing.assert_array_equal(path.violation, [[0, 0, 1], [1, 0, 0], [0, 1, 0]])
    np.testing.assert_array_equal(path.going_on, going_on)
    np.testing.assert_array_equal(path.open_end, [[0, 0, 1]] * 3)
    np.testing.assert_array_equal(path.weight, jnp.array([[0.0, 0.8, 0.0], [1.0, 0.8, 0.0], [1.0, 0.8, 0.0]]))


def test_rows_without_weight_teach_nothing():
    network = LogitTable(2)
    path = Path(jnp.eye(2)[None], jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]]))
    state = train_state(jnp.zeros(2), optax.sgd(1.0))
    after, _ = feasibility.learn(state, [path], network=network, discount_factor=0.9, optimizer=optax.sgd(1.0))
    assert after.params[0] < 0.0
    assert after.params[1] == 0.0
