"""Targets of violations ahead, against powers of the discount factor and hand arithmetic."""

import jax.numpy as jnp
import numpy as np
import pytest

from safejax.losses.reachability import reachability_target, violation_probability


def targets(violation, going_on=None, estimate=None, open_end=None, discount_factor=0.99):
    rows = [jnp.asarray(violation, jnp.float32)]
    for given, default in ((going_on, 1.0), (estimate, 0.0), (open_end, 0.0)):
        rows.append(jnp.full(rows[0].shape, default) if given is None else jnp.asarray(given, jnp.float32))
    return violation_probability(*rows, discount_factor)


def test_a_chain_into_a_violation():
    np.testing.assert_allclose(targets([0, 0, 0, 1]), [0.970299, 0.9801, 0.99, 1.0], rtol=1e-6)


def test_after_the_last_violation_nothing_is_left():
    np.testing.assert_allclose(targets([0, 0, 1, 0, 0]), [0.9801, 0.99, 1.0, 0.0, 0.0], rtol=1e-6)


def test_the_first_violation_counts_and_no_later_one():
    np.testing.assert_allclose(targets([0, 1, 0, 1]), [0.99, 1.0, 0.99, 1.0], rtol=1e-6)


def test_a_termination_cuts_and_a_violation_there_still_counts():
    np.testing.assert_allclose(targets([0, 0, 1], going_on=[1, 0, 1]), [0.0, 0.0, 1.0], atol=1e-7)
    np.testing.assert_allclose(targets([0, 1, 0], going_on=[1, 0, 1], estimate=[0.5] * 3), [0.99, 1.0, 0.0], rtol=1e-6)


def test_at_an_open_end_the_estimate_stands_for_what_follows():
    found = targets([0, 0, 0, 0], estimate=[0.9, 0.4, 0.9, 0.6], open_end=[0, 1, 0, 1], discount_factor=0.5)
    np.testing.assert_allclose(found, [0.2, 0.4, 0.3, 0.6], rtol=1e-6)
    # a violation there is certain, whatever the estimate says
    assert targets([1.0], estimate=[0.2], open_end=[1.0]) == 1.0


def test_rows_are_batched():
    both = targets([[0, 0, 1], [0, 0, 0]], estimate=np.full((2, 3), 0.5), open_end=[[0, 0, 1]] * 2)
    np.testing.assert_allclose(both, [[0.9801, 0.99, 1.0], [0.49005, 0.495, 0.5]], rtol=1e-6)


def test_reachability_target_by_hand():
    target = reachability_target(
        jnp.array([-1.0, -1.0, 1.0, -1.0]),
        jnp.array([0.5, -2.0, 0.0, 0.5]),
        jnp.array([1.0, 1.0, 1.0, 0.0]),
        0.9,
    )
    np.testing.assert_allclose(target, [0.35, -1.0, 1.0, -1.0], rtol=1e-6)
    with pytest.raises(AssertionError):
        reachability_target(jnp.zeros(3), jnp.zeros(()), jnp.ones(3), 0.9)


def test_reachability_of_a_chain_that_ends_in_a_violation():
    # h = -1 until it is +1 for ever: k steps before, the value is -1 + 2 g^k.
    violation, value = jnp.array([-1.0, -1.0, -1.0, 1.0]), jnp.zeros(4)
    for _ in range(200):
        value = reachability_target(violation, value[jnp.array([1, 2, 3, 3])], jnp.ones(4), 0.9)
    np.testing.assert_allclose(value, [0.458, 0.62, 0.8, 1.0], rtol=1e-5)
