"""Marvel's value pre-alignment on a world with known values, and the bridge from offline methods.

Chen et al. 2024, https://arxiv.org/abs/2412.04426. The batch lists every (s, a, s', a') as often as its
probability asks, so an update is an exact sweep of policy evaluation and nothing is random. The golden values
solve the linear equations Q = r + g P (V + alpha H). Where the released code differs, a test here would fail for
it.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_networks import PlannedActor, Table, one_hot, random_state

from safejax import checkpoint
from safejax.algorithms import cpq, iql, marvel
from safejax.envs import probes
from safejax.types import Transition

POLICY = ((0.6, 0.4), (0.3, 0.7))
PLAIN = ((11.169572, 11.118067, 10.940571, 13.389065), (5.106181, 6.405705, 5.191759, 6.491284))
SOFT = ((12.318590, 12.254674, 12.086042, 14.522127), (5.393435, 6.689857, 5.478127, 6.774549))
ENTROPY = (5.745088, 5.683039, 5.727360, 5.665311)  # U, the discounted entropy of the states ahead
KEY = jax.random.key(0)


@functools.cache
def sweep():
    """400 rows: every (s, a) 100 times, its (s', a') in proportion. All are time limits, none terminates."""
    mdp = probes.golden_cmdp()
    rows = []
    for (s, a), _ in np.ndenumerate(mdp.reward):
        for (following, planned), chance in np.ndenumerate(mdp.transition[s, a][:, None] * np.array(POLICY)):
            rows += [(s, a, following, planned)] * round(100 * chance)
    state, action, following, planned = np.array(rows).T
    assert len(rows) == 400
    observation = jnp.concatenate([one_hot(state, 2), jnp.zeros((400, 1))], axis=1)
    next_observation = jnp.concatenate([one_hot(following, 2), jnp.asarray(planned[:, None], "float32")], 1)
    ones = jnp.ones(400, jnp.float32)
    return Transition(
        observation=observation,
        action=jnp.asarray(action, jnp.int32),
        reward=jnp.asarray(mdp.reward[state, action], jnp.float32),
        cost=jnp.asarray(mdp.cost[state, action], jnp.float32),
        discount=ones,
        last=ones,
        next_observation=next_observation,
        extras={},
    )


NETWORKS = marvel.Networks(PlannedActor(POLICY), Table(2, 2, 2), Table(1, 2, 2))


def alignment(rate, **numbers):
    numbers = dict(reward_scale=1.0) | numbers
    config = marvel.Config(discount_factor=0.9, target_update_rate=0.5, critic_learning_rate=rate, **numbers)
    return marvel.make_alignment(config, NETWORKS)


def initial(critic=None):
    """A state whose critics, and targets, hold `critic` = (Q [4], Qc [4]) if it is given."""
    batch = sweep()
    state = alignment(1e-3).init(KEY, jax.tree.map(lambda leaf: leaf[0], batch))
    if critic is None:
        return state
    q, cost_q = (jnp.asarray(part, jnp.float32).reshape(1, 2, 2) for part in critic)
    q = jnp.tile(q, (2, 1, 1))
    return state._replace(
        critic=state.critic._replace(params=q),
        cost_critic=state.cost_critic._replace(params=cost_q),
        target_critic=q,
        target_cost_critic=cost_q,
    )


@functools.cache
def aligned(terminal=False, **numbers):
    """The state after enough sweeps at falling learning rates."""
    batch = sweep()
    if terminal:
        batch = batch._replace(discount=jnp.zeros_like(batch.discount))
    state = initial()
    for rate in (0.1, 0.01, 0.001):
        method = alignment(rate, **numbers)

        def step(state, _, method=method):
            return method.update(state, batch, KEY)

        state, _ = jax.jit(lambda state, step=step: jax.lax.scan(step, state, None, 600))(state)
    return state


def test_alignment_is_policy_evaluation_of_the_frozen_policy():
    """Within 1e-3 of the linear solve, at every entry; time limits bootstrap, though every row has one."""
    state = aligned()
    np.testing.assert_allclose(state.critic.params.reshape(2, 4), [PLAIN[0]] * 2, atol=1e-3)
    np.testing.assert_allclose(state.cost_critic.params.reshape(4), PLAIN[1], atol=1e-3)


def test_soft_alignment_adds_the_entropy_ahead_to_both_critics():
    """Per sample, with coefficients .2 and .05; the released code has none, or the batch mean in both."""
    soft, plain = (
        aligned(alignment_entropy_coefficient=0.2, alignment_cost_entropy_coefficient=0.05),
        aligned(),
    )
    np.testing.assert_allclose(soft.critic.params.reshape(2, 4), [SOFT[0]] * 2, atol=1e-3)
    np.testing.assert_allclose(soft.cost_critic.params.reshape(4), SOFT[1], atol=1e-3)
    for part, coefficient in (("critic", 0.2), ("cost_critic", 0.05)):
        raised = getattr(soft, part).params[0] - getattr(plain, part).params[0]
        np.testing.assert_allclose(raised.ravel() / coefficient, ENTROPY, atol=0.03)


def test_alignment_leaves_actor_temperature_and_multiplier_bit_for_bit():
    before, after = initial(), aligned()
    for part in ("actor", "log_temperature", "multiplier"):
        chex.assert_trees_all_equal(getattr(after, part), getattr(before, part))
    assert int(after.step) == 1800


def test_terminations_everywhere_give_the_signals_themselves():
    """Q = reward_scale * r and Qc = c: rewards are scaled, costs are not, and no entropy is left."""
    state = aligned(terminal=True, reward_scale=0.1, alignment_entropy_coefficient=0.2)
    np.testing.assert_allclose(state.critic.params[0].ravel(), [0.1, 0.0, 0.05, 0.2], atol=1e-3)
    np.testing.assert_allclose(state.cost_critic.params.ravel(), [0.0, 1.0, 0.0, 1.0], atol=1e-3)


@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        (PLAIN, {}),
        (SOFT, dict(alignment_entropy_coefficient=0.2, alignment_cost_entropy_coefficient=0.05)),
    ],
)
def test_a_correct_critic_has_no_gradient(values, numbers):
    method = alignment(1e-3, **numbers)
    update = jax.jit(method.update)
    for start, still in ((values, True), ((SOFT if values is PLAIN else PLAIN), False)):
        after, _ = update(initial(start), sweep(), KEY)
        for part in ("critic", "cost_critic"):
            gradient = np.abs(np.asarray(getattr(after, part).opt_state[0].mu)).max() / 0.1
            assert (gradient < 1e-5) == still, (part, gradient)


OFFLINE = {
    "cpq": lambda sizes: cpq.make(networks=cpq.default_networks(2, sizes, (8,))),
    "iql": lambda sizes: iql.make(networks=iql.default_networks(2, sizes, actor="squashed")),
}
ACTOR = {"actor.params": "actor.params"}
CRITIC = {"critic.params": "critic.params", "target_critic": "critic.params"}


def example():
    zero = jnp.zeros((), jnp.float32)
    return Transition(jnp.zeros(3), jnp.zeros(2), zero, zero, zero, zero, jnp.zeros(3), {})


def start(algorithm, seed=0):
    return random_state(algorithm, example(), seed)


def rows(count):
    random = np.random.default_rng(3)
    observation, following = jnp.asarray(random.normal(size=(2, count, 3)), jnp.float32)
    action = jnp.tanh(jnp.asarray(random.normal(size=(count, 2)), jnp.float32))
    reward, cost, one = (jnp.asarray(part, jnp.float32) for part in (*random.random((2, count)), np.ones(count)))
    return Transition(observation, action, reward, cost, one, one, following, {})


@pytest.mark.parametrize("name", OFFLINE)
def test_the_policy_crosses_the_bridge_unchanged(name, tmp_path):
    """The released actor has another activation than the offline one: parameters load, actions differ."""
    offline = OFFLINE[name]((8,))
    online = marvel.make_finetuning(networks=marvel.default_networks(2, (8,)))
    trained, _ = jax.jit(offline.update)(start(offline), rows(16), KEY)
    checkpoint.save(tmp_path / "offline", trained)
    restored = checkpoint.restore(tmp_path / "offline", jax.eval_shape(offline.init, KEY, example()))
    fresh = start(online, 1)
    state = checkpoint.warm_start(fresh, restored, ACTOR | CRITIC)
    observation = 3.0 * rows(64).observation
    expected = offline.act(trained, observation, KEY)[0]
    np.testing.assert_array_equal(online.act(state, observation, KEY)[0], expected)
    assert not np.allclose(online.act(fresh, observation, KEY)[0], expected)
    # as many critic leaves as were saved, and the same numbers
    chex.assert_trees_all_equal(state.critic.params, trained.critic.params)
    chex.assert_trees_all_equal(state.target_critic, trained.critic.params)
    # nothing else moved
    chex.assert_trees_all_equal(state.multiplier, fresh.multiplier)
    chex.assert_trees_all_equal(state.actor.opt_state, fresh.actor.opt_state)


@pytest.mark.parametrize("offline_sizes", [(8,), (8, 8, 8), (8, 4)])
def test_a_critic_that_does_not_fit_is_refused(offline_sizes):
    """The released code loads what matches by name and shape, which may be nothing, and says nothing."""
    online = marvel.make_finetuning(networks=marvel.default_networks(2, (8, 8)))
    pretrained = start(OFFLINE["cpq"](offline_sizes))
    with pytest.raises(ValueError, match=r"warm_start: 'critic\.params'.*Dense_") as caught:
        checkpoint.warm_start(start(online), pretrained, CRITIC)
    assert "\n" not in str(caught.value)


def test_the_online_learning_rate_rules_after_the_bridge():
    """Even when Adam's moments cross too: the rate is a Config number and no part of the state."""
    offline = iql.make(iql.Config(learning_rate=1e-1), iql.default_networks(2, (8,), actor="squashed"))
    trained, _ = jax.jit(offline.update)(start(offline), rows(16), KEY)
    networks = marvel.default_networks(2, (8,))

    @jax.jit
    def moved(state, rate):
        online = marvel.make_finetuning(marvel.Config(actor_learning_rate=rate), networks)
        after, _ = online.update(state, rows(16), KEY)
        change = jax.tree.map(lambda new, old: new - old, after.actor.params, state.actor.params)
        return change["params"]["MLP_0"]["Dense_1"]["kernel"]

    fresh = start(marvel.make_finetuning(networks=networks), 1)
    for fields in (ACTOR, {"actor": "actor"}):
        state = checkpoint.warm_start(fresh, trained, fields)
        small, large = moved(state, 1e-4), moved(state, 3e-4)
        np.testing.assert_allclose(large, 3.0 * small, rtol=0.05, atol=1e-6)
        if fields is ACTOR:  # the first step of fresh moments is the learning rate itself
            np.testing.assert_allclose(jnp.abs(small).max(), 1e-4, rtol=1e-2)


def test_finetuning_starts_with_the_adaptive_controller_at_zero():
    """The offline multiplier does not cross: fine-tuning starts from 0 with untouched gains."""
    state = marvel.make_finetuning(networks=NETWORKS).init(KEY, jax.tree.map(lambda leaf: leaf[0], sweep()))
    assert float(state.multiplier.value) == 0.0
    np.testing.assert_array_equal(state.multiplier.gain_scales, np.ones(3))


@pytest.mark.parametrize(
    "name", ["alignment_entropy_coefficient", "alignment_cost_entropy_coefficient", "actor_learning_rate"]
)
def test_alignment_refuses_numbers_out_of_range(name):
    with pytest.raises(ValueError, match=name):
        marvel.make_alignment(marvel.Config(**{name: -0.1}), action_size=2)
