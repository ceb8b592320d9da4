"""TD3+BC: targets by hand, the delay, the limits of the actor's loss in closed form, and the safe form."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from exact_networks import StateTable, one_hot

from safejax.algorithms import iql, td3_bc
from safejax.algorithms.safety import SafetyConfig, SafetyNetworks
from safejax.constraints import cost_value_limit
from safejax.gradients import gradient_step
from safejax.multipliers import MultiplierConfig
from safejax.networks import GaussianActor
from safejax.types import Transition

KEY = jax.random.key(0)
STILL = 1e-12  # a learning rate that moves nothing


@dataclass(frozen=True)
class Line:
    """Q_e(s, a) = base_e(s) + slope_e a, for actions [B, 1] and one-hot states."""

    critics: int = 2
    states: int = 2

    def init(self, key, *inputs):
        return {"base": jnp.zeros((self.critics, self.states)), "slope": 1.0 + jnp.arange(self.critics)}

    def apply(self, params, observation, action):
        return params["base"] @ observation.T + params["slope"][:, None] * action[:, 0]


def algorithm(states=2, **numbers):
    actor = GaussianActor(1, (), **iql.ACTORS["deterministic"])
    safe = SafetyNetworks(Line(1, states), StateTable(states))
    return td3_bc.make(td3_bc.Config(**numbers), td3_bc.Networks(actor, Line(2, states), safe))


def transitions(states, actions, rewards, discounts, following, count=2, costs=None):
    columns = [rewards, np.zeros(len(states)) if costs is None else costs, discounts, np.zeros(len(states))]
    columns = [jnp.asarray(column, jnp.float32) for column in columns]
    actions = jnp.asarray(actions, jnp.float32)[:, None]
    return Transition(one_hot(states, count), actions, *columns, one_hot(following, count), {})


BATCH = transitions([0, 1, 0], [0.5, -0.2, 0.1], [1.0, 2.0, -1.0], [1, 0, 1], [1, 0, 0], costs=[1.0, 0.0, 2.0])
MEANS = np.array([0.7, -0.4])  # of the target actor in the two states
BASE, SLOPE = np.array([[1.0, 2.0], [0.0, 3.0]]), np.array([2.0, -1.0])  # of the target critics


def actor_params(means):
    """Of the actor above, so that its action is `means[s]`."""
    layer = {"kernel": jnp.arctanh(jnp.asarray(means, jnp.float32))[:, None], "bias": jnp.zeros(1)}
    return {"params": {"MLP_0": {"Dense_0": layer}, "log_std": jnp.zeros(1)}}


def start(method, batch=BATCH):
    state = method.init(KEY, jax.tree.map(lambda leaf: leaf[0], batch))
    target = {"base": jnp.asarray(BASE, jnp.float32), "slope": jnp.asarray(SLOPE, jnp.float32)}
    return state._replace(target_actor=actor_params(MEANS), target_critic=target)


def target_by_hand(next_action):
    """At the next states (1, 0, 0); the second row terminates; gamma .9, rewards halved."""
    following = np.array([1, 0, 0])
    next_q = (BASE[:, following] + SLOPE[:, None] * next_action).min(0)
    return 0.5 * np.array([1.0, 2.0, -1.0]) + 0.9 * np.array([1, 0, 1]) * next_q


def test_the_target_by_hand_without_noise():
    method = algorithm(discount_factor=0.9, reward_scale=0.5, target_noise=0.0)
    _, metrics = jax.jit(method.update)(start(method), BATCH, KEY)
    q = np.array([1.0, 2.0])[:, None] * np.asarray(BATCH.action[:, 0])
    expected = ((q - target_by_hand(MEANS[[1, 0, 0]])) ** 2).mean(-1).sum()
    np.testing.assert_allclose(metrics["critic/loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["critic/mean"], q.mean(), rtol=1e-5)


def test_the_noise_on_target_actions_is_clipped_and_so_are_the_actions():
    """Noise far beyond its clip is one of -.5 and .5, and .7 + .5 is 1."""
    method = algorithm(discount_factor=0.9, reward_scale=0.5, target_noise=1e9)
    config, networks = method.update.keywords["config"], method.update.keywords["networks"]
    state = start(method)
    signs = set()
    for seed in range(8):
        drawn = td3_bc.draw_next_action(state, BATCH, jax.random.key(seed), config=config, networks=networks)
        sign = np.sign(jax.random.normal(jax.random.key(seed), (3, 1)))[:, 0]
        action = np.clip(MEANS[[1, 0, 0]] + 0.5 * sign, -1.0, 1.0)
        np.testing.assert_allclose(drawn[:, 0], action, rtol=1e-5)
        target = td3_bc.critic_target(state, BATCH, drawn, config=config, networks=networks)
        np.testing.assert_allclose(target, target_by_hand(action), rtol=1e-5)
        signs |= set(sign)
    assert signs == {-1.0, 1.0}


def test_noise_below_its_clip_has_the_deviation_given():
    method = algorithm(target_noise=0.1, discount_factor=1.0)
    config, networks = method.update.keywords["config"], method.update.keywords["networks"]
    count = 20_000
    batch = transitions(*(np.zeros(count, int),) * 3, np.ones(count), np.zeros(count, int))
    state = start(method)._replace(target_actor=actor_params([0.2, 0.0]))
    action = td3_bc.draw_next_action(state, batch, KEY, config=config, networks=networks)
    assert abs(float(jnp.mean(action)) - 0.2) < 5.0 * 0.1 / np.sqrt(count)
    assert abs(float(jnp.std(action)) - 0.1) < 5.0 * 0.1 / np.sqrt(2.0 * count)


def test_actor_and_targets_move_on_every_third_step_only():
    method = algorithm(policy_frequency=3, target_update_rate=0.25)
    update = jax.jit(method.update)
    state = start(method)
    for step in range(1, 7):
        after, metrics = update(state, BATCH, jax.random.key(step))
        old, new = state.actor.params["params"]["MLP_0"], after.actor.params["params"]["MLP_0"]
        rate = 0.25 if step % 3 == 0 else 0.0
        for slow, before, fast in (
            (after.target_actor, state.target_actor, after.actor.params),
            (after.target_critic, state.target_critic, after.critic.params),
        ):
            expected = jax.tree.map(lambda slow, fast, rate=rate: (1 - rate) * slow + rate * fast, before, fast)
            jax.tree.map(lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-5), slow, expected)
        moved = not np.array_equal(old["Dense_0"]["kernel"], new["Dense_0"]["kernel"])
        assert moved == (step % 3 == 0)
        assert (float(metrics["actor/behavior_loss"]) > 0.0) == (step >= 3)
        state = after
    assert int(state.step) == 6


def test_without_a_value_weight_the_actor_clones_the_data():
    method = algorithm(value_weight=0.0, policy_frequency=1, actor_learning_rate=1e-2)
    state = start(method)
    after, metrics = method.update(state, BATCH, KEY)
    actor = GaussianActor(1, (), **iql.ACTORS["deterministic"])

    def squared(params):
        error = jnp.square(actor.apply(params, BATCH.observation).mode() - BATCH.action)
        return jnp.mean(error), {"loss": jnp.mean(error)}

    expected, cloning = gradient_step(squared, state.actor, optax.adam(1e-2))
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-6), after.actor.params, expected.params
    )
    np.testing.assert_allclose(metrics["actor/loss"], cloning["loss"], rtol=1e-6)


def test_the_actors_loss_climbs_the_first_critic_in_units_of_its_size():
    """Q_1 = 1 + 3 a over the actions (.7, -.4, .7); Q_2 plays no part, and a tenfold Q changes nothing."""
    method = algorithm()
    config, networks = method.update.keywords["config"], method.update.keywords["networks"]
    state = start(method)
    gradients = []
    for unit in (1.0, 10.0):
        line = {"base": unit * jnp.array([[1.0, 1.0], [9.0, -9.0]]), "slope": unit * jnp.array([3.0, -50.0])}
        state = state._replace(critic=state.critic._replace(params=line))
        gradient, metrics = jax.grad(td3_bc.actor_loss, has_aux=True)(
            actor_params(MEANS), state, BATCH, config=config, networks=networks
        )
        q = 1.0 + 3.0 * np.array([0.7, -0.4, 0.7])
        behavior = np.mean((np.array([0.7, -0.4, 0.7]) - [0.5, -0.2, 0.1]) ** 2)
        np.testing.assert_allclose(metrics["actor/value"], unit * q.mean(), rtol=1e-5)
        np.testing.assert_allclose(metrics["actor/behavior_loss"], behavior, rtol=1e-5)
        np.testing.assert_allclose(metrics["actor/loss"], behavior - 2.5 * q.mean() / np.abs(q).mean(), rtol=1e-5)
        gradients.append(gradient["params"]["MLP_0"]["Dense_0"]["kernel"][:, 0])
    # the size is a constant: d loss / d a is the mean of 2 (a - b) - alpha 3 / size, and tanh' = 1 - a^2
    per_row = 2.0 * (np.array([0.7, -0.4, 0.7]) - [0.5, -0.2, 0.1]) - 2.5 * 3.0 / np.abs(q).mean()
    expected = np.array([per_row[0] + per_row[2], per_row[1]]) / 3.0 * (1.0 - MEANS**2)
    np.testing.assert_allclose(gradients, [expected, expected], rtol=1e-4)


@pytest.mark.parametrize("slope", [0.3, 30.0])
def test_the_trained_action_is_where_the_two_pulls_balance(slope):
    """Q = slope a and data with mean action b: 2 (a - b) = alpha / a, whatever the slope; b .2, alpha .1."""
    action = train_actor(slope, [0.1, 0.3], value_weight=0.1)
    np.testing.assert_allclose(action, (0.2 + np.sqrt(0.04 + 0.2)) / 2.0, atol=1e-4)


@pytest.mark.parametrize("multiplier", [0.0, 3.0])
def test_the_safe_action_balances_the_penalised_pull(multiplier):
    """Q = a and Qc = a: 2 (a - b) = alpha rho / a with rho = (1 - lambda) / (1 + lambda); b .6, alpha .1."""
    dual = MultiplierConfig(learning_rate=STILL, adam=False, initial=multiplier)
    safety = SafetyConfig(multiplier=dual, learning_rate=STILL)
    action = train_actor(1.0, [0.5, 0.7], value_weight=0.1, safety=safety)
    ratio = (1.0 - multiplier) / (1.0 + multiplier)
    np.testing.assert_allclose(action, (0.6 + np.sqrt(0.36 + 0.2 * ratio)) / 2.0, atol=1e-4)


def train_actor(slope, actions, **numbers):
    """The action of the one state after training under frozen critics."""
    batch = transitions([0, 0], actions, [0.0, 0.0], [0, 0], [0, 0], count=1)
    state = None
    for rate in (1e-2, 1e-3, 1e-4):
        method = algorithm(1, policy_frequency=1, learning_rate=STILL, actor_learning_rate=rate, **numbers)
        if state is None:
            state = method.init(KEY, jax.tree.map(lambda leaf: leaf[0], batch))
            line = {"base": jnp.zeros((2, 1)), "slope": jnp.array([slope, -7.0])}
            actor = state.actor._replace(params=actor_params([0.5]))
            state = state._replace(critic=state.critic._replace(params=line), actor=actor)
        train = jax.jit(
            lambda state, method=method: jax.lax.scan(lambda s, _: method.update(s, batch, KEY), state, None, 500)
        )
        state, _ = train(state)
    return np.asarray(method.act(state, jnp.ones((1, 1)), KEY)[0]).item()


def test_the_default_actor_explores_with_the_deviation_of_the_paper():
    networks = td3_bc.default_networks(2, (4,))
    observation = jnp.ones((1, 3))
    policy = networks.actor.apply(networks.actor.init(KEY, observation), observation)
    np.testing.assert_allclose(np.exp(policy.log_std), np.full((1, 2), 0.1), rtol=1e-6)


def test_the_safe_form_with_a_multiplier_of_zero_is_the_plain_method():
    plain, safe = (algorithm(policy_frequency=1, safety=safety) for safety in (None, SafetyConfig()))
    expected, _ = plain.update(start(plain), BATCH, KEY)
    after, _ = safe.update(start(safe), BATCH, KEY)
    for part in ("actor", "critic", "target_actor", "target_critic"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, part), getattr(expected, part))


@pytest.mark.parametrize(("cost_limit", "rises"), [(0.5, True), (50.0, False)])
def test_the_multiplier_moves_on_policy_steps_and_rises_above_the_limit(cost_limit, rises):
    """Qc = 4 + a under the target cost critic, so the policy's cost value is 4 + its mean action."""
    dual = MultiplierConfig(learning_rate=0.1, adam=False, initial=1.0)
    safety = SafetyConfig(
        cost_limit=cost_limit, episode_length=5, discount_factor=0.9, multiplier=dual, target_update_rate=0.0
    )
    method = algorithm(safety=safety, target_noise=0.0)
    state = start(method)
    line = {"base": jnp.full((1, 2), 4.0), "slope": jnp.ones(1)}
    state = state._replace(
        safety=state.safety._replace(target_critic=line), actor=state.actor._replace(params=actor_params(MEANS))
    )
    between, metrics = jax.jit(method.update)(state, BATCH, KEY)
    # the cost critic, a at first, evaluates the target actor and not the data: Qc(s', a') = 4 + a'
    backup = np.array([1.0, 0.0, 2.0]) + 0.9 * np.array([1, 0, 1]) * (4.0 + MEANS[[1, 0, 0]])
    error = np.mean((np.array([0.5, -0.2, 0.1]) - backup) ** 2)
    np.testing.assert_allclose(metrics["cost_critic/loss"], error, rtol=1e-5)
    assert float(metrics["multiplier"]) == float(between.safety.multiplier.value) == 1.0
    after, metrics = jax.jit(method.update)(between, BATCH, KEY)
    cost_value = 4.0 + np.mean([0.7, -0.4, 0.7])
    np.testing.assert_allclose(metrics["cost_value/policy"], cost_value, rtol=1e-5)
    excess = cost_value - float(cost_value_limit(cost_limit, 0.9, 5))
    assert (excess > 0.0) == rises
    np.testing.assert_allclose(after.safety.multiplier.value, max(0.0, 1.0 + 0.1 * excess), rtol=1e-5)
    np.testing.assert_array_equal(metrics["multiplier"], after.safety.multiplier.value)


@pytest.mark.parametrize(
    "change",
    [
        {"value_weight": -1.0},
        {"target_noise": -0.1},
        {"target_noise_clip": -0.1},
        {"policy_frequency": 0},
        {"target_update_rate": 2.0},
        {"actor_learning_rate": 0.0},
        {"discount_factor": 1.1},
    ],
)
def test_numbers_out_of_range_are_refused_in_one_line(change):
    with pytest.raises(ValueError, match=next(iter(change))) as caught:
        td3_bc.make(td3_bc.Config(**change), action_size=2)
    assert "\n" not in str(caught.value)
