"""IDQL: IQL's values and a diffusion policy learn as they do alone; the choice among candidates in closed form."""

from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_networks import ONE_STEP, Sampler, StateTable, coin, one_hot, random_state, uniform

from safejax.algorithms import diffusion_bc, idql, iql
from safejax.algorithms.safety import SafetyConfig, SafetyNetworks
from safejax.networks import Critic, GaussianActor, Value, ensemble
from safejax.types import Transition

KEY = jax.random.key(0)
DRAWS = 20_000
ERROR = 4 * np.sqrt(0.25 / DRAWS)  # four standard errors of a share


@dataclass(frozen=True)
class Line:
    """Critics [E, 2]: level + slope a."""

    critics: int = 2

    def init(self, key, *inputs):
        return jax.random.normal(key, (self.critics, 2))

    def apply(self, params, observation, action):
        return params[:, :1] + params[:, 1:] * action[..., 0]


def prepared(law, q=(0.0, 1.0), state_value=0.0, cost=None, multiplier=0.0, **numbers):
    """IDQL whose candidates follow `law`, with Q = q[0] + q[1] a and the given V, in the one state there is."""
    safe = None if cost is None else SafetyConfig()
    config = idql.Config(**{"diffusion": ONE_STEP, "safety": safe, **numbers})
    networks = idql.Networks(Sampler(law), Line(), StateTable(1), SafetyNetworks(Line(), StateTable(1)))
    method = idql.make(config, networks)
    scalar, observation = jnp.zeros(()), one_hot([0], 1)[0]
    example = Transition(observation, jnp.zeros((1,)), scalar, scalar, scalar, scalar, observation, {})
    state = method.init(KEY, example)
    # the second critic is above the first: the minimum decides
    state = state._replace(target_critic=jnp.array([q, (q[0] + 7.0, q[1])]))
    state = state._replace(value=state.value._replace(params=jnp.array([state_value])))
    if cost is not None:
        moved = state.safety.multiplier._replace(value=jnp.float32(multiplier))
        both = jnp.broadcast_to(jnp.array(cost, jnp.float32), (2, 2))
        state = state._replace(safety=state.safety._replace(multiplier=moved, target_critic=both))
    return method, state


def acted(method, state, explore, count=DRAWS):
    action, _, _ = jax.jit(method.act, static_argnames="explore")(state, one_hot([0] * count, 1), KEY, explore=explore)
    return np.asarray(action)[:, 0]


def test_the_best_of_the_candidates_acts():
    """The largest of N uniform values in (-1, 1): E = (N - 1) / (N + 1), variance 4 N / ((N + 1)^2 (N + 2))."""
    for count in (1, 4):
        method, state = prepared(uniform, candidate_count=count)
        best = acted(method, state, explore=True)
        deviation = np.sqrt(4 * count / ((count + 1) ** 2 * (count + 2)))
        np.testing.assert_allclose(best.mean(), (count - 1) / (count + 1), atol=4 * deviation / np.sqrt(DRAWS))


def test_without_exploring_the_best_of_fixed_candidates_acts():
    method, state = prepared(uniform, candidate_count=8)
    np.testing.assert_array_equal(acted(method, state, False, 3), acted(method, state, False, 1)[[0, 0, 0]])
    downhill, same = prepared(uniform, q=(0.0, -1.0), candidate_count=8)
    assert acted(downhill, same, False, 1) < acted(method, state, False, 1)


# two candidates of opposite sides have Q = 1 and Q = -1 around V = .2
@pytest.mark.parametrize(
    ("numbers", "above", "below"),
    [
        ({"value": "expectile", "expectile": 0.7}, 0.7, 0.3),
        ({"value": "quantile", "quantile": 0.6}, 0.6 / 0.8, 0.4 / 1.2),
        (
            {"value": "exponential", "exponential": 1.5},
            1.5 * (np.exp(1.5 * 0.8) - 1) / 0.8,
            1.5 * (1 - np.exp(-1.5 * 1.2)) / 1.2,
        ),
    ],
)
def test_weighted_selection_draws_by_the_implicit_policy(numbers, above, below):
    """Two coins agree half the time; where they differ the better side is drawn by its weight."""
    method, state = prepared(coin, q=(0.0, 2.0), state_value=0.2, candidate_count=2, selection="weighted", **numbers)
    share = np.mean(acted(method, state, explore=True) > 0)
    np.testing.assert_allclose(share, 0.25 + 0.5 * above / (above + below), atol=ERROR)


def test_the_safe_choice_weighs_costs():
    """Q = a and Qc = a: from a multiplier of 1 on, the lower action is at least as good."""
    for multiplier, wanted in ((0.0, 0.5), (0.5, 0.5), (2.0, -0.5)):
        method, state = prepared(coin, cost=(0.0, 1.0), multiplier=multiplier, candidate_count=16, selection="argmax")
        assert acted(method, state, True, 50).mean() == pytest.approx(wanted)


def test_the_safe_form_draws_by_weight_unless_told_otherwise():
    """Two coins agree half the time; else the weights are .7 and .3, so .6 of the draws are the better coin."""
    method, state = prepared(coin, cost=(0.0, 0.0), candidate_count=2)
    np.testing.assert_allclose(np.mean(acted(method, state, explore=True) > 0), 0.25 + 0.5 * 0.7, atol=ERROR)
    method, state = prepared(coin, candidate_count=2)
    np.testing.assert_allclose(np.mean(acted(method, state, explore=True) > 0), 0.75, atol=ERROR)


def batch_of(count=32):
    random = np.random.default_rng(0)
    column = lambda *shape: jnp.asarray(random.normal(size=(count, *shape)), jnp.float32)  # noqa: E731
    discount = jnp.asarray(random.random(count) < 0.8, jnp.float32)
    action = jnp.tanh(column(2))
    return Transition(column(3), action, column(), column() ** 2, discount, 1.0 - discount, column(3), {})


def test_its_halves_learn_as_iql_and_diffusion_cloning_alone():
    """One update from the same parameters and key: the values are IQL's and the actor is diffusion cloning's."""
    critic, value = ensemble(Critic((16, 16)), 2), Value((16, 16), layer_norm=True)
    batch = batch_of()
    example = jax.tree.map(lambda leaf: leaf[0], batch)
    denoiser = diffusion_bc.residual_denoiser(2, 16)
    method = idql.make(networks=idql.Networks(denoiser, critic, value))
    plain = iql.make(iql.Config(expectile=0.7), iql.Networks(GaussianActor(2, (16,)), critic, value))
    cloning = diffusion_bc.make(networks=diffusion_bc.Networks(denoiser))

    state = random_state(method, example, 0)
    fields = ("critic", "value", "target_critic")
    iql_state = random_state(plain, example, 1)._replace(**{name: getattr(state, name) for name in fields})
    cloned = random_state(cloning, example, 1)._replace(actor=state.actor, ema_actor=state.ema_actor)
    state, metrics = jax.jit(method.update)(state, batch, KEY)
    iql_state, iql_metrics = jax.jit(plain.update)(iql_state, batch, KEY)
    cloned, cloned_metrics = jax.jit(cloning.update)(cloned, batch, KEY)

    for name in fields:
        chex.assert_trees_all_close(getattr(state, name), getattr(iql_state, name), rtol=1e-5, atol=1e-6)
    for name in ("critic/loss", "value/loss"):
        np.testing.assert_allclose(metrics[name], iql_metrics[name], rtol=1e-5)
    # first moments reach 170: what two programs round is some of 1e-7 of that
    chex.assert_trees_all_close((state.actor, state.ema_actor), (cloned.actor, cloned.ema_actor), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(metrics["actor/loss"], cloned_metrics["actor/loss"], rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"candidate_count": 0}, "candidate_count is 0"),
        ({"expectile": 1.0}, "expectile is 1"),
        ({"expectile": 0.0}, "expectile is 0"),
        ({"quantile": 1.0}, "quantile is 1"),
        ({"exponential": 0.0}, "exponential is 0"),
        ({"value": "median"}, "value is 'median'"),
        ({"selection": "best"}, "selection is 'best'"),
    ],
)
def test_bad_numbers_are_refused_in_one_line(change, words):
    with pytest.raises(ValueError, match=words) as raised:
        idql.make(idql.Config(**change), action_size=1)
    assert "\n" not in str(raised.value)
