"""One gradient step, polyak averaging and copies by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from safejax.gradients import copy, gradient_step, polyak, train_state


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
