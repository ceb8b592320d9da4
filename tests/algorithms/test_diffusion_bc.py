"""Diffusion behaviour cloning: its loss where the denoiser is known, its average, its candidates, and two modes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_networks import ONE_STEP, Sampler, coin, one_hot, uniform

from safejax.algorithms import diffusion_bc
from safejax.diffusion import DiffusionConfig, make_schedule
from safejax.networks import ResidualDenoiser
from safejax.types import Transition

KEY = jax.random.key(0)


def rows(actions):
    """Transitions [B] with actions [B, A] in the one state there is."""
    action = jnp.asarray(actions, jnp.float32)
    scalar, observation = jnp.zeros(len(action)), one_hot([0] * len(action), 1)
    return Transition(observation, action, scalar, scalar, scalar, scalar, observation, {})


def cloning(law, action_size=1, **numbers):
    config = diffusion_bc.Config(**{"diffusion": ONE_STEP, **numbers})
    return diffusion_bc.make(config, diffusion_bc.Networks(Sampler(law, action_size)))


def one_update(method, batch):
    state = method.init(KEY, jax.tree.map(lambda leaf: leaf[0], batch))
    return state, *jax.jit(method.update)(state, batch, KEY)


@pytest.mark.parametrize("action_size", [1, 3])
def test_the_loss_of_a_denoiser_that_expects_another_action(action_size):
    """With one step the noise is missed by sqrt(abar / (1 - abar)) per unit of action, summed over dimensions."""
    batch = rows(np.full((16, action_size), 0.5))
    _, _, metrics = one_update(cloning(lambda observation, noise: 0.2, action_size), batch)
    remaining = float(make_schedule("vp", 1).alpha_bar[0])
    expected = action_size * remaining / (1 - remaining) * 0.3**2
    np.testing.assert_allclose(metrics["actor/loss"], expected, rtol=1e-4)


def test_the_right_denoiser_has_no_loss_and_only_weight_decay_moves_it():
    method = cloning(lambda observation, noise: 0.5, actor_learning_rate=0.1, weight_decay=0.5, ema_rate=0.25)
    batch = rows(np.full((16, 1), 0.5))
    state = method.init(KEY, jax.tree.map(lambda leaf: leaf[0], batch))
    ones = jnp.ones(())
    state = state._replace(actor=state.actor._replace(params=ones), ema_actor=2.0 * ones)
    after, metrics = jax.jit(method.update)(state, batch, KEY)
    np.testing.assert_allclose(metrics["actor/loss"], 0.0, atol=1e-6)
    np.testing.assert_allclose(after.actor.params, 1.0 - 0.1 * 0.5, rtol=1e-6)
    np.testing.assert_allclose(after.ema_actor, 0.75 * 2.0 + 0.25 * 0.95, rtol=1e-6)
    assert int(after.step) == 1


def test_the_average_acts():
    """A denoiser in whose parameters the action is written: the averaged ones are asked."""

    class Written(Sampler):
        def apply(self, params, observation, noisy, index, key=None):
            return Sampler(lambda observation, noise: params).apply(0.0, observation, noisy, index, key)

    method = diffusion_bc.make(diffusion_bc.Config(diffusion=ONE_STEP), diffusion_bc.Networks(Written(coin)))
    state = method.init(KEY, jax.tree.map(lambda leaf: leaf[0], rows([[0.0]])))
    state = state._replace(ema_actor=jnp.float32(0.25), actor=state.actor._replace(params=jnp.float32(-0.5)))
    action, _, _ = method.act(state, one_hot([0, 0], 1), KEY)
    np.testing.assert_allclose(action, 0.25, atol=1e-6)


def test_without_exploring_an_action_depends_on_its_observation_alone():
    method = cloning(uniform)
    state = method.init(KEY, jax.tree.map(lambda leaf: leaf[0], rows([[0.0]])))
    observation = one_hot([0] * 5, 1)
    action, _, _ = method.act(state, observation, KEY)
    other, _, _ = method.act(state, observation[:1], jax.random.key(1))
    np.testing.assert_allclose(action, np.broadcast_to(other, action.shape), atol=1e-5)
    drawn, _, _ = method.act(state, observation, KEY, explore=True)
    assert len(np.unique(np.asarray(drawn))) == 5


def test_choosing_among_candidates():
    candidates = jnp.array([-1.0, 0.0, 1.0])[:, None, None] * jnp.ones((1, 20_000, 1))
    law = np.array([0.2, 0.7, 0.1])
    log_weight = jnp.broadcast_to(jnp.log(law)[:, None] + 5.0, (3, 20_000))
    assert set(np.unique(np.asarray(diffusion_bc.choose(candidates, log_weight, None)))) == {0.0}
    drawn = np.asarray(diffusion_bc.choose(candidates, log_weight, KEY))
    share = [np.mean(drawn == value) for value in (-1.0, 0.0, 1.0)]
    np.testing.assert_allclose(share, law, atol=4 * np.sqrt(0.25 / 20_000))


def test_it_learns_both_of_two_modes():
    """Actions of -.6 and .6, three to one. A Gaussian would sit between; 2000 draws, four standard errors of a share
    and .1 for what 1500 updates leave unlearnt."""
    config = diffusion_bc.Config(
        diffusion=DiffusionConfig(step_count=15, clip="noisy", variance="beta"), actor_learning_rate=2e-3, ema_rate=0.01
    )
    networks = diffusion_bc.Networks(ResidualDenoiser(1, width=32, time_size=8, time_hidden_sizes=(32, 32)))
    method = diffusion_bc.make(config, networks)
    batch = rows(np.repeat([[-0.6], [0.6]], [96, 32], axis=0))
    state = method.init(KEY, jax.tree.map(lambda leaf: leaf[0], batch))

    @jax.jit
    def learn(state):
        keys = jax.random.split(jax.random.key(1), 1500)
        return jax.lax.scan(lambda state, key: (method.update(state, batch, key)[0], None), state, keys)[0]

    actions = np.asarray(method.act(learn(state), one_hot([0] * 2000, 1), jax.random.key(2), explore=True)[0])
    near = np.abs(np.abs(actions) - 0.6) < 0.1
    assert near.mean() > 0.8
    np.testing.assert_allclose(np.mean(actions < 0), 0.75, atol=0.1 + 4 * np.sqrt(0.25 / 2000))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ema_rate": 1.5}, "ema_rate is 1.5"),
        ({"actor_learning_rate": 0.0}, "actor_learning_rate is 0"),
        ({"diffusion": replace(ONE_STEP, step_count=0)}, "step_count is 0"),
        ({"diffusion": replace(ONE_STEP, clip="both")}, "clip is 'both'"),
    ],
)
def test_bad_numbers_are_refused_in_one_line(change, words):
    with pytest.raises(ValueError, match=words) as raised:
        diffusion_bc.make(diffusion_bc.Config(**change), action_size=1)
    assert "\n" not in str(raised.value)
