"""Parts of one state put into another: copied, strict, and named where they do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from states import assert_same, make_state

from safejax.checkpoint import warm_start


def test_warm_start_moves_what_is_named():
    state, pretrained = make_state(1), make_state(2)
    fields = {"actor": "actor", "critic.params": "critic.params", "target_critic": "critic.params"}
    warm = warm_start(state, pretrained, fields)
    assert_same(warm.actor, pretrained.actor)
    assert_same(warm.critic.params, pretrained.critic.params)
    assert_same(warm.critic.opt_state, state.critic.opt_state)
    assert_same(warm.target_critic, pretrained.critic.params)
    assert_same(warm.step, state.step)
    layer = warm_start(state, pretrained, {"actor.params.params.layer_0": "critic.params.params.layer_0"})
    assert_same(layer.actor.params, pretrained.critic.params)
    assert_same(warm_start(state, pretrained, {}), state)


def test_warm_start_copies_so_that_all_three_may_be_donated():
    state, pretrained = make_state(1), make_state(2)
    expected = jax.tree.map(np.array, pretrained.actor)
    warm = warm_start(state, pretrained, {"actor": "actor", "target_critic": "critic.params"})
    consume = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    consume(pretrained)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(pretrained))
    assert_same(jax.tree.map(np.array, warm.actor), expected)
    consume(warm)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(warm))


def test_warm_start_over_a_seed_axis():
    states, pretrained = (jax.vmap(make_state)(jnp.arange(3) + offset) for offset in (0, 10))
    warm = warm_start(states, pretrained, {"actor": "actor"})
    assert_same(warm.actor, pretrained.actor)
    with pytest.raises(ValueError, match=r"is float32\[3, 5\], expected float32\[3, 3, 5\]"):
        warm_start(states, make_state(), {"actor.params": "actor.params"})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"policy": "actor"},
            "warm_start: state has no 'policy': 'policy' is not among step, actor, critic,",
        ),
        (
            {"actor": "actor.weights"},
            "pretrained has no 'actor.weights': 'weights' is not among params, opt_state",
        ),
        ({"step": "step.x"}, "pretrained has no 'step.x': 'x' is not among "),
        ({"actor": "actor", "actor.params": "actor.params"}, "'actor' already holds 'actor.params'"),
        (
            {"actor": "actor.params"},
            "'actor.params' of pretrained does not fit 'actor' of state: params.params",
        ),
        (
            {"step": "carry"},
            "'carry' of pretrained does not fit 'step' of state: value is absent, expected int32[]",
        ),
        ({"multiplier": "carry"}, "structure PyTreeDef({}), expected PyTreeDef(())"),
    ],
)
def test_warm_start_is_strict(fields, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are compared below
        warm_start(make_state(), make_state(1), fields)
    assert words in str(caught.value)


def test_warm_start_names_the_leaf():
    with pytest.raises(ValueError, match=r"'actor' of state: params\.params\.layer_0\.bias is float32\[6\], expected"):
        warm_start(make_state(), make_state(width=6), {"actor": "actor"})
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), make_state().target_critic)
    with pytest.raises(ValueError, match=r"layer_0\.bias is bfloat16\[5\], expected float32\[5\]"):
        warm_start(make_state(), make_state()._replace(target_critic=half), {"target_critic": "target_critic"})
