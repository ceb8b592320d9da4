"""Training in gymnasium's vector environments: what is stored under each autoreset mode, and the same run twice."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_algorithms
from counting_world import counting, pictured

gymnasium = pytest.importorskip("gymnasium")

from gymnasium.vector import AutoresetMode, SyncVectorEnv  # noqa: E402

from safejax.algorithms import sac_lag  # noqa: E402
from safejax.envs.adapters import from_gymnasium, to_gymnasium  # noqa: E402
from safejax.multipliers import MultiplierConfig  # noqa: E402
from safejax.training import (  # noqa: E402
    evaluate_host,
    init_online,
    init_online_host,
    replay_for,
    train_online,
    train_online_host,
)
from safejax.types import BatchSpec, bind, example_transition  # noqa: E402

KEY = jax.random.key(0)
LENGTHS = (2, 3, 5)  # of the episodes of each environment: the first terminate, the others are cut


class Counter(gymnasium.Env):
    """Observes how many steps it made, pays that, costs 1 at odd counts and ends after `length` steps."""

    observation_space = gymnasium.spaces.Box(0.0, np.inf, (1,), np.float64)
    action_space = gymnasium.spaces.Box(np.array([1.0, -4.0]), np.array([2.0, 0.0]), dtype=np.float64)

    def __init__(self, length, terminates):
        self.length, self.terminates = length, terminates

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.array([0.0]), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.count += 1
        ended = self.count == self.length
        info = {"cost": float(self.count % 2), "action": action}
        # time runs out on a termination as well, which says that the episode is over for good
        return np.array([float(self.count)]), float(self.count), ended and self.terminates, ended, info


def counters(mode):
    makers = [functools.partial(Counter, length, length == 2) for length in LENGTHS]
    return SyncVectorEnv(makers, autoreset_mode=mode)


def still(spec=None):
    """Always acts alike, and notes how often it did in this episode; its updates show what was in their batch."""

    def init(key, example, *, config, networks):
        return toy_algorithms.State(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def update(state, batch, key, *, config, networks):
        return state._replace(step=state.step + 1), {"most": batch.reward.max(), "rows": batch.reward.size}

    def act(state, observation, key, carry=(), *, explore=False, config, networks):
        return jnp.zeros((observation.shape[0], 2)), carry + 1, {"time_index": carry}

    def initial_carry(state, batch_size, *, config, networks):
        return jnp.zeros((batch_size,), jnp.int32)

    def adapt(state, episodes, *, config, networks):
        return state._replace(actor=state.actor + jnp.sum(episodes.finished))

    return bind(
        config=None,
        networks=None,
        batch=spec or BatchSpec.uniform(),
        init=init,
        update=update,
        act=act,
        initial_carry=initial_carry,
        adapt=adapt,
    )


def trained(env, algorithm, *, iterations, rollout_length, updates=1, batch_size=8):
    replay = replay_for(algorithm.batch, 300, env.env_count)
    learner = algorithm.init(KEY, example_transition(env))
    state = init_online_host(algorithm, env, learner, KEY, replay=replay)
    return train_online_host(
        algorithm,
        env,
        state,
        KEY,
        iteration_count=iterations,
        rollout_length=rollout_length,
        updates_per_iteration=updates,
        batch_size=batch_size,
        replay=replay,
    )


def stored(state, steps):
    """The first `steps` transitions of every environment in the replay, [B, T]."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:, :steps], state.online.replay.experience)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_every_stored_transition(mode):
    """Each environment counts 0, 1, ... to its length, again and again: no reset shows, whatever the mode."""
    state, (metrics, episodes) = trained(from_gymnasium(counters(mode)), still(), iterations=6, rollout_length=5)
    rows = stored(state, 30)
    count = np.arange(30) % np.array(LENGTHS)[:, None]
    last = count == np.array(LENGTHS)[:, None] - 1
    np.testing.assert_array_equal(rows.observation[..., 0], count)
    np.testing.assert_array_equal(rows.next_observation[..., 0], count + 1)
    np.testing.assert_array_equal(rows.reward, count + 1)
    np.testing.assert_array_equal(rows.cost, (count + 1) % 2)
    np.testing.assert_array_equal(rows.last, last)
    np.testing.assert_array_equal(rows.discount, 1 - (last & (np.arange(3) == 0)[:, None]))
    np.testing.assert_array_equal(rows.extras["time_index"], count)
    chex.assert_type(jax.tree.leaves(rows._replace(extras={})), np.float32)
    # 30 steps hold 15, 10 and 6 episodes; their statistics come in the same order
    by_step = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(30, 3).T, episodes)
    np.testing.assert_array_equal(by_step.finished, last)
    np.testing.assert_array_equal(by_step.length, count + 1)
    np.testing.assert_array_equal(by_step.episode_return, (count + 1) * (count + 2) / 2)
    np.testing.assert_array_equal(by_step.episode_cost, (count + 2) // 2)
    assert int(state.online.learner.actor) == 31
    assert int(state.online.learner.step) == 6
    assert 0 < metrics["most"].min() <= metrics["most"].max() <= 5


def test_what_is_ahead_waits_for_the_next_call():
    """Under NEXT_STEP the environments get ahead of one another; two calls give what one does."""
    env, again = (from_gymnasium(counters(AutoresetMode.NEXT_STEP)) for _ in range(2))
    algorithm = still()
    whole, _ = trained(env, algorithm, iterations=8, rollout_length=1)
    replay = replay_for(algorithm.batch, 300, 3)
    half = init_online_host(algorithm, again, algorithm.init(KEY, None), KEY, replay=replay)
    for _ in range(2):
        half, _ = train_online_host(
            algorithm,
            again,
            half,
            KEY,
            iteration_count=4,
            rollout_length=1,
            updates_per_iteration=1,
            batch_size=8,
            replay=replay,
        )
    chex.assert_trees_all_equal(stored(half, 8), stored(whole, 8))
    assert len(whole.waiting) == len(half.waiting) > 0


def test_on_policy_batches_are_of_the_policy_that_learns():
    """A fresh batch holds one rollout [B, T], each environment's in its order; nothing waits for another policy."""
    state, (metrics, _) = trained(
        from_gymnasium(counters(AutoresetMode.NEXT_STEP)), still(BatchSpec.fresh()), iterations=3, rollout_length=4
    )
    np.testing.assert_array_equal(metrics["rows"], np.full((3, 1), 12))
    assert state.waiting == ()


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_evaluation_plays_one_episode_in_each(mode):
    env = from_gymnasium(counters(mode))
    for _ in range(2):
        stats = evaluate_host(still(), env, still().init(KEY, None), KEY)
        np.testing.assert_array_equal(stats.length, LENGTHS)
        np.testing.assert_array_equal(stats.episode_return, [3, 6, 15])
        np.testing.assert_array_equal(stats.episode_cost, [1, 2, 3])


def test_termination_wins_over_truncation():
    """The first environment sets both flags on its second step."""
    env = from_gymnasium(counters(AutoresetMode.SAME_STEP))
    state, real = env.step(env.step(env.reset(), np.zeros((3, 2)))[0], np.zeros((3, 2)))
    np.testing.assert_array_equal(state.terminated, [True, False, False])
    np.testing.assert_array_equal(state.truncated, [False, False, False])
    np.testing.assert_array_equal(state.steps, [0, 2, 2])
    assert real.all()


@pytest.mark.parametrize(("action", "given"), [(-1.0, [1, -4]), (0.0, [1.5, -2]), (0.5, [1.75, -1]), (9.0, [2, 0])])
def test_actions_are_stretched_to_the_bounds(action, given):
    vector_env = counters(AutoresetMode.NEXT_STEP)
    env = from_gymnasium(vector_env)
    step, vector_env.step = vector_env.step, lambda actions: seen.append(actions) or step(actions)
    seen = []
    env.step(env.reset(), np.full((3, 2), action, np.float32))
    np.testing.assert_array_equal(seen[0], np.tile(given, (3, 1)))


def test_gymnasiums_own_vector_of_poles():
    """CartPoleVectorEnv: discrete, next-step resets of its own, and a cost given as a function."""
    vector_env = gymnasium.make_vec("CartPole-v1", num_envs=4, vectorization_mode="vector_entry_point")
    seen = []

    def cost(observation, action, after):
        seen.append((observation, action, after))
        return np.abs(after[:, 2]) > 0.1

    env = from_gymnasium(vector_env, cost)
    assert (env.discrete, env.action_size, env.name) == (True, 2, "CartPole-v1")
    state, (_, episodes) = trained(env, toy_algorithms.discrete(2), iterations=10, rollout_length=10)
    rows = stored(state, 75)  # as many as fit
    assert rows.action.dtype == np.int32
    assert set(np.unique(rows.action)) == {0, 1}
    angle = rows.next_observation[..., 2]
    np.testing.assert_array_equal(rows.cost, np.abs(angle) > 0.1)
    np.testing.assert_array_equal(rows.discount == 0, np.abs(angle) > 12 * 2 * np.pi / 360)
    assert np.asarray(episodes.finished).sum() > 4
    assert (np.abs(rows.next_observation - rows.observation) < 0.7).all()  # no step leads to a reset
    np.testing.assert_array_equal(rows.reward, 1)  # a reset step pays 0


LEARNERS = {
    "sac_lag": lambda: sac_lag.make(
        sac_lag.Config(cost_limit=1.0, multiplier=MultiplierConfig(learning_rate=0.1)),
        sac_lag.default_networks(1, (8,)),
    ),
    "on_policy": lambda: toy_algorithms.on_policy(1),
}


@pytest.mark.parametrize("name", ["on_policy", pytest.param("sac_lag", marks=pytest.mark.slow)])
def test_there_and_back_an_algorithm_learns_the_same(name):
    """A world with one beginning, so that both ways see the same one: the same actions, rows and learner."""
    world, algorithm = counting(begins=(2,)), LEARNERS[name]()

    def step(state, action, key):  # the action must tell, or equal rewards would say little
        after = world.step(state, action, key)
        return after._replace(reward=after.reward + action[0])

    env = world._replace(step=step)
    replay = replay_for(algorithm.batch, 64, 2)
    numbers = dict(rollout_length=4, updates_per_iteration=2, batch_size=8, replay=replay)
    learner = jax.jit(algorithm.init)(KEY, example_transition(env))
    state = init_online(algorithm, env, learner, KEY, env_count=2, replay=replay)
    state, (metrics, episodes) = jax.jit(functools.partial(train_online, algorithm, env, iteration_count=3, **numbers))(
        state, KEY
    )
    host = from_gymnasium(to_gymnasium(env, 2))
    other = init_online_host(algorithm, host, learner, KEY, replay=replay)
    other, (other_metrics, other_episodes) = train_online_host(
        algorithm, host, other, KEY, iteration_count=3, **numbers
    )
    close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)
    close(other.online.replay, state.replay)
    close(other.online.learner, state.learner)
    close(other.online.actors._replace(env=()), state.actors._replace(env=()))
    close((other_metrics, other_episodes), (metrics, episodes))
    assert int(other.online.learner.step) == int(state.learner.step) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(metadata={}), r"metadata\['autoreset_mode'\] is None, expected one of NextStep, SameStep, Disabled"),
        (dict(single_action_space=gymnasium.spaces.MultiBinary(2)), r"action space MultiBinary\(2\): expected"),
        (dict(single_action_space=gymnasium.spaces.Box(0, np.inf, (2,))), "Box with finite bounds"),
        (dict(single_observation_space=gymnasium.spaces.Discrete(3)), r"observation space Discrete\(3\): expected Box"),
    ],
)
def test_what_cannot_be_driven_is_refused(change, message):
    vector_env = counters(AutoresetMode.NEXT_STEP)
    for name, value in change.items():
        setattr(vector_env, name, value)
    with pytest.raises(ValueError, match=message):
        from_gymnasium(vector_env)


@pytest.mark.parametrize("single", ["Pendulum-v1", functools.partial(gymnasium.make, "Pendulum-v1")])
def test_a_single_environment_is_no_vector_of_them(single):
    with pytest.raises(
        ValueError, match=r"^'Pendulum-v1' is no vector environment, expected one such as gymnasium.make_"
    ):
        from_gymnasium(single() if callable(single) else single)


@pytest.mark.parametrize(
    ("actions", "cost", "message"),
    [
        ((4, 2), (3,), r"actions of shape \[4, 2\], expected \[3, 2\]"),
        ((3, 1), (3,), r"actions of shape \[3, 1\], expected \[3, 2\]"),
        ((3, 2), (), r"cost of shape \[\], expected \[3\]"),
        ((3, 2), (3,), "cost -1, expected at least 0"),
    ],
)
def test_actions_and_costs_that_do_not_fit_are_refused(actions, cost, message):
    vector_env = counters(AutoresetMode.SAME_STEP)
    env = from_gymnasium(vector_env, lambda observation, action, after: np.full(cost, -1.0), name="counters")
    with pytest.raises(ValueError, match=f"^counters: {message}$"):
        env.step(env.reset(), np.zeros(actions))


@pytest.mark.parametrize(
    ("lost", "message"), [("cost", r"without info\['cost'\]: pass cost="), ("final_obs", "no 'final_obs'")]
)
def test_what_a_step_owes_is_missed(lost, message):
    vector_env = counters(AutoresetMode.SAME_STEP)
    step = vector_env.step

    def forgetful(actions):
        *rest, info = step(actions)
        return *rest, {name: value for name, value in info.items() if name != lost}

    vector_env.step = forgetful
    env = from_gymnasium(vector_env)
    state, actions = env.reset(), np.zeros((3, 2))
    with pytest.raises(ValueError, match=message):
        env.step(env.step(state, actions)[0], actions)


def test_observations_may_be_dictionaries():
    """Also where a library hands the last observations over in one batch, as gymnasium's own classes do not."""
    vector_env = to_gymnasium(pictured(), 2)
    env = from_gymnasium(vector_env)
    assert env.observation_spec == pictured().observation_spec
    step = vector_env.step

    def batched(actions):
        *rest, info = step(actions)
        if "final_obs" in info:
            final = jax.tree.map(np.zeros_like, rest[0])
            for row in np.flatnonzero(info["_final_obs"]):
                for part in final:
                    final[part][row] = info["final_obs"][row][part]
            info["final_obs"] = final
        return *rest, info

    states = [[env.reset()], []]
    for _ in range(4):
        states[0].append(env.step(states[0][-1], np.zeros((2, 1)))[0])
    vector_env.step = batched
    vector_env.reset(seed=0)
    states[1].append(states[0][0])
    for _ in range(4):
        states[1].append(env.step(states[1][-1], np.zeros((2, 1)))[0])
    chex.assert_trees_all_equal(*states)
    assert states[0][-1].final_observation["pixels"].dtype == np.uint8
    assert any(state.terminated.any() or state.truncated.any() for state in states[0])
