"""One gradient step, polyak averaging and copies by hand."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from safejax.gradients import adam, copy, gradient_step, polyak, train_state, where_due


def loss(params):
    value = jnp.sum(params["x"] ** 2)
    return value, {"loss": value}


def test_a_plain_step_and_metrics_of_the_old_parameters():
    optimizer = optax.sgd(0.1)
    state = train_state({"x": jnp.array([1.0, -2.0])}, optimizer)
    after, metrics = gradient_step(loss, state, optimizer)
    np.testing.assert_allclose(after.params["x"], [0.8, -1.6], rtol=1e-6)
    assert float(metrics["loss"]) == 5.0


def test_the_optimiser_state_moves_and_sees_the_parameters():
    """Weight decay needs the parameters; Adam's first step is its rate against the gradient's sign."""
    optimizer = optax.adamw(0.1, weight_decay=0.5)
    state = train_state({"x": jnp.array([1.0, -2.0])}, optimizer)
    after, _ = gradient_step(loss, state, optimizer)
    np.testing.assert_allclose(after.params["x"], [1.0 - 0.1 - 0.05, -2.0 + 0.1 + 0.1], rtol=1e-5)
    assert int(after.opt_state[0].count) == 1


def test_polyak_by_hand():
    target, online = {"a": jnp.array([0.0, 4.0])}, {"a": jnp.array([2.0, 0.0])}
    np.testing.assert_allclose(polyak(target, online, 0.25)["a"], [0.5, 3.0])
    chex.assert_trees_all_equal(polyak(target, online, 0.0), target)
    chex.assert_trees_all_equal(polyak(target, online, 1.0), online)


def test_a_copy_shares_no_buffer():
    """A target that aliased its online network would be donated twice."""
    tree = {"a": jnp.arange(3.0)}
    twin = copy(tree)
    chex.assert_trees_all_equal(twin, tree)
    both = jax.jit(lambda pair: jax.tree.map(lambda leaf: leaf + 1, pair), donate_argnums=0)((tree, twin))
    np.testing.assert_array_equal(both[1]["a"], [1.0, 2.0, 3.0])
    assert tree["a"].is_deleted()
    assert twin["a"].is_deleted()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, optax.adam(0.1)),
        ({"weight_decay": 0.5}, optax.adamw(0.1, weight_decay=0.5)),
        ({"clip_norm": 0.3}, optax.chain(optax.clip_by_global_norm(0.3), optax.adam(0.1))),
        ({"decay_steps": 4}, optax.adam(optax.cosine_decay_schedule(0.1, 4))),
    ],
)
def test_each_addition_to_adam_alone(options, expected):
    ours = theirs = train_state({"x": jnp.array([1.0, -2.0])}, expected)
    for _ in range(5):
        ours, _ = gradient_step(loss, ours, adam(0.1, **options))
        theirs, _ = gradient_step(loss, theirs, expected)
    chex.assert_trees_all_equal(ours, theirs)


def test_a_decayed_rate_ends_at_zero():
    state = train_state({"x": jnp.array([1.0, -2.0])}, adam(0.1, decay_steps=3))
    for _ in range(3):
        state, _ = gradient_step(loss, state, adam(0.1, decay_steps=3))
    after, _ = gradient_step(loss, state, adam(0.1, decay_steps=3))
    chex.assert_trees_all_equal(after.params, state.params)


def count_runs(runs, state):
    """state + 1, noting on the host that it was really computed."""

    def note(state):
        runs.append(np.shape(state))
        return np.asarray(state)

    return jax.pure_callback(note, jax.ShapeDtypeStruct(state.shape, state.dtype), state, vmap_method="sequential") + 1


def test_what_is_not_due_keeps_its_state_and_is_not_computed():
    runs = []
    step = jax.jit(lambda due, state: where_due(due, functools.partial(count_runs, runs), state))
    assert float(step(jnp.array(True), jnp.float32(3.0))) == 4.0
    assert len(runs) == 1
    assert float(step(jnp.array(False), jnp.float32(3.0))) == 3.0
    assert len(runs) == 1


def test_vmapped_learners_skip_together_and_each_keeps_its_own():
    runs = []
    step = jax.jit(jax.vmap(lambda due, state: where_due(due, functools.partial(count_runs, runs), state)))
    states = jnp.array([1.0, 2.0, 3.0])
    np.testing.assert_array_equal(step(jnp.zeros(3, bool), states), states)
    assert not runs
    np.testing.assert_array_equal(step(jnp.array([True, False, True]), states), [2.0, 2.0, 4.0])
    assert len(runs) == 3  # one branch for all: the second was computed and left out
