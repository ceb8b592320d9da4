"""The nouns: defaults of `bind`, batch kinds, examples of worlds, one-line refusals."""

import jax
import jax.numpy as jnp
import pytest

from safejax.envs import probes
from safejax.types import (
    BatchSpec,
    Transition,
    bind,
    check_choice,
    check_range,
    choose_networks,
    example_transition,
)


def test_bind_fills_config_and_networks_and_the_memoryless_defaults():
    def init(key, example, *, config, networks):
        return config, networks, example

    nothing = lambda *args, config, networks: (args, config, networks)  # noqa: E731
    algorithm = bind(config="c", networks="n", batch=BatchSpec.uniform(), init=init, update=nothing, act=nothing)
    assert algorithm.init("key", "example") == ("c", "n", "example")
    assert algorithm.update(1, 2, 3) == ((1, 2, 3), "c", "n")
    assert algorithm.initial_carry("state", 5) == ()
    assert algorithm.advance("carry", "transition") == "carry"
    assert algorithm.adapt("state", "episodes") == "state"


def test_kinds_of_batches():
    assert BatchSpec.fresh().kind == "fresh"
    assert BatchSpec.mixed(0.25) == BatchSpec("mixed", offline_fraction=0.25)
    assert BatchSpec.sequence(8).length == 8
    assert BatchSpec.sequence(8, 0.5) == BatchSpec("sequence", offline_fraction=0.5, length=8)
    needs_data = [BatchSpec.mixed(0.0), BatchSpec.sequence(8, 0.5), BatchSpec.sequence(8), BatchSpec.uniform()]
    assert [spec.mixes for spec in needs_data] == [True, True, False, False]
    for wrong in (lambda: BatchSpec.mixed(1.1), lambda: BatchSpec.mixed(-0.1), lambda: BatchSpec.sequence(0)):
        with pytest.raises(ValueError, match="expected a number in"):
            wrong()


def test_examples_of_worlds():
    continuous = example_transition(probes.quadratic_bandit(action_size=3))
    assert isinstance(continuous, Transition)
    assert continuous.action.shape == (3,)
    assert continuous.action.dtype == jnp.float32
    discrete = example_transition(probes.tabular(probes.golden_cmdp(), 5))
    assert discrete.action.shape == ()
    assert discrete.action.dtype == jnp.int32
    assert discrete.observation.shape == discrete.next_observation.shape == (2,)
    assert discrete.reward.shape == ()


def test_ranges():
    check_range("x", 0.0, 0.0, 1.0)
    check_range("x", 1.0, 0.0, 1.0, open_low=True)
    for value, open_low, words in (
        (0.0, True, r"x is 0.0, expected a number in \(0, 1\]"),
        (1.5, False, r"x is 1.5, expected a number in \[0, 1\]"),
        (float("nan"), False, "x is nan"),
    ):
        with pytest.raises(ValueError, match=words):
            check_range("x", value, 0.0, 1.0, open_low=open_low)


def test_traced_numbers_pass_so_that_sweeps_vmap():
    def double(value):
        check_range("x", value, 0.0, 1.0)
        return 2 * value

    assert jax.vmap(double)(jnp.array([0.5, 7.0])).tolist() == [1.0, 14.0]


def test_choices_and_networks():
    with pytest.raises(ValueError, match="fruit is 'plum', expected one of apple, pear"):
        check_choice("fruit", "plum", ("pear", "apple"))
    assert choose_networks("given", None, None) == "given"
    assert choose_networks(None, lambda size: size + 1, 2) == 3
    with pytest.raises(ValueError, match="action_size is None"):
        choose_networks(None, lambda size: size, None)
