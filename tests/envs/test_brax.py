"""To brax and back."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from safejax import envs
from safejax.algorithms import sac_lag
from safejax.envs.adapters import from_brax, to_brax
from safejax.envs.pixels import pixels
from safejax.envs.rendering import make_caster
from safejax.training import init_online, replay_for, train_online
from safejax.types import example_transition

LENGTH, COUNT = 5, 3


def shape_and_type(leaf):
    return leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)  # keys have none


@pytest.fixture(scope="module")
def ours():
    return envs.make("ball_circle", "mujoco")


@pytest.fixture(scope="module")
def brax_envs(ours):
    to_brax(ours)  # imports brax quietly
    from brax import envs as brax_envs

    return brax_envs


def test_brax_wrappers_own_the_episode(ours):
    env = to_brax(ours)
    from brax.envs import training

    assert (env.observation_size, env.action_size) == (8, 2)
    wrapped = training.wrap(env, episode_length=LENGTH)
    reset, step = jax.jit(wrapped.reset), jax.jit(wrapped.step)
    state = first = reset(jax.random.split(jax.random.PRNGKey(0), COUNT))  # the wrapper wants raw keys
    actions = jnp.full((COUNT, 2), 0.5)
    for index in range(1, LENGTH + 2):
        before = state
        state = step(state, actions)
        ended = index == LENGTH
        np.testing.assert_array_equal(state.done, np.full(COUNT, float(ended)))
        np.testing.assert_array_equal(state.info["truncation"], state.done)
        if ended:
            np.testing.assert_array_equal(state.obs, first.obs)
        assert state.info["cost"].shape == (COUNT,)
        assert (state.info["key"] != before.info["key"]).any()
    assert jax.tree.structure(state) == jax.tree.structure(first)
    ours.check()


def test_costs_and_termination_reach_brax(ours):
    env = to_brax(ours)
    state, step = env.reset(jax.random.key(1)), jax.jit(env.step)
    for _ in range(40):
        state = step(state, jnp.array([1.0, 0.0]))
    assert float(state.obs[0]) > 0.6
    assert float(state.info["cost"]) == 1.0
    assert float(state.metrics["cost"]) == 1.0
    assert float(state.done) == 0.0
    with pytest.raises(ValueError, match="continuous"):
        to_brax(ours._replace(discrete=True, name="grid"))


def test_there_and_back_is_the_same_environment(ours):
    back = from_brax(to_brax(ours), episode_length=LENGTH)
    assert (back.action_size, back.episode_length) == (2, LENGTH)
    assert back.observation_spec.shape == (8,)
    keys = jax.random.split(jax.random.key(2), COUNT)
    state = jax.vmap(back.reset)(keys)
    shapes = jax.tree.map(shape_and_type, state)
    inner = state.physics.pipeline_state
    step, inner_step = jax.jit(jax.vmap(back.step)), jax.jit(jax.vmap(ours.step))
    actions = jnp.full((COUNT, 2), 1.5)
    for index in range(1, LENGTH + 2):
        state = step(state, actions, keys)
        assert jax.tree.map(shape_and_type, state) == shapes
        np.testing.assert_array_equal(state.truncated, np.full(COUNT, index == LENGTH))
        if index <= LENGTH:
            inner = inner_step(inner, jnp.ones((COUNT, 2)), keys)
            np.testing.assert_allclose(state.final_observation, inner.observation, atol=1e-6)
            np.testing.assert_allclose(state.cost, inner.cost)
        if index == LENGTH:
            assert np.abs(state.observation - state.final_observation).max() > 0.01
            np.testing.assert_array_equal(state.steps, np.zeros(COUNT, int))


def test_a_brax_environment_needs_a_cost(brax_envs):
    class Slow(brax_envs.fast.Fast):
        """brax's toy, whose observation counts its steps."""

    with pytest.raises(ValueError, match=r"Slow has no info\['cost'\]"):
        from_brax(Slow())
    with pytest.raises(ValueError, match=r"^env is 'ant', expected an environment, such as brax.envs.get_env[^\n]*$"):
        from_brax("ant")
    with pytest.raises(ValueError, match=r"^episode_length is 0, expected at least 1$"):
        from_brax(Slow(), lambda state: state.obs[0], episode_length=0)
    wrapped = brax_envs.training.AutoResetWrapper(Slow())
    with pytest.raises(ValueError, match=r"^AutoResetWrapper starts episodes by itself [^\n]* without brax's wrappers"):
        from_brax(wrapped, lambda state: state.obs[0])
    env = from_brax(Slow(), lambda state: state.obs[0], episode_length=3, name="slow")
    state = jax.jit(env.reset)(jax.random.key(0))
    for _ in range(3):
        state = jax.jit(env.step)(state, jnp.zeros(env.action_size), jax.random.key(1))
    with pytest.raises(ValueError, match=r"^slow: action has shape \(5,\), expected \(1,\)"):
        env.step(state, jnp.zeros(5), jax.random.key(1))
    with pytest.raises(ValueError, match=r"^slow: cost has shape \(2,\), expected \(\)"):
        from_brax(Slow(), lambda state: state.obs, name="slow").step(state, jnp.zeros(1), jax.random.key(1))
    assert env.name == "slow"
    assert state.truncated
    assert state.cost.dtype == jnp.float32


@pytest.mark.filterwarnings("ignore:Brax System, piplines and environments:UserWarning")
@pytest.mark.filterwarnings("ignore:Accessing .* directly from `Data` is deprecated:DeprecationWarning")
def test_the_documented_safe_ant_is_one(brax_envs):
    ant = brax_envs.get_environment("ant", backend="spring")
    env = from_brax(ant, lambda state: jnp.abs(state.metrics["x_velocity"]) > 1.0)
    state = jax.eval_shape(env.reset, jax.random.key(0))
    after = jax.eval_shape(env.step, state, jnp.zeros(env.action_size), jax.random.key(1))
    assert jax.tree.map(shape_and_type, after) == jax.tree.map(shape_and_type, state)
    assert (env.name, env.observation_spec.shape, env.action_size, env.episode_length) == ("Ant", (27,), 8, 1000)
    assert (after.cost.shape, after.cost.dtype) == ((), jnp.float32)


@pytest.mark.filterwarnings("ignore:Brax System, piplines and environments:UserWarning")
@pytest.mark.filterwarnings("ignore:Accessing .* directly from `Data` is deprecated:DeprecationWarning")
def test_a_safe_learner_in_a_brax_world_with_a_cost(brax_envs):
    """A pole that must not move fast: costs, time limits and terminations of every row that sac_lag stored."""
    pendulum = brax_envs.get_environment("inverted_pendulum", backend="spring")
    env = from_brax(pendulum, lambda state: jnp.abs(state.obs[2]) > 0.05, episode_length=6)
    algorithm = sac_lag.make(networks=sac_lag.default_networks(1, (8,)))
    replay = replay_for(algorithm.batch, 128, 2)

    @jax.jit
    def run(key):
        learner = algorithm.init(key, example_transition(env))
        state = init_online(algorithm, env, learner, key, env_count=2, replay=replay)
        return train_online(
            algorithm,
            env,
            state,
            key,
            iteration_count=4,
            rollout_length=10,
            updates_per_iteration=2,
            batch_size=8,
            replay=replay,
        )

    state, (metrics, episodes) = run(jax.random.key(0))
    rows = jax.tree.map(lambda leaf: np.asarray(leaf)[:, :40], state.replay.experience)
    assert int(state.learner.step) == 8
    assert np.isfinite(metrics["critic/loss"]).all()
    np.testing.assert_array_equal(rows.cost, np.abs(rows.next_observation[..., 2]) > 0.05)
    assert 0 < rows.cost.mean() < 1
    np.testing.assert_array_equal(rows.discount == 0, np.abs(rows.next_observation[..., 1]) > 0.2)  # the pole fell
    lengths = np.asarray(episodes.length)[np.asarray(episodes.finished)]
    assert lengths.max() == 6
    assert rows.last.sum() == len(lengths) > 6
    follows = (rows.observation[:, 1:] == rows.next_observation[:, :-1]).all(-1)
    np.testing.assert_array_equal(follows, rows.last[:, :-1] == 0)


PENDULUM = """
<mujoco>
  <option timestep="0.02"/>
  <worldbody>
    <light pos="0 0 3"/>
    {camera}
    <body pos="0.3 0 1">
      <joint name="slide" type="slide" axis="1 0 0"/>
      <geom type="box" size="0.2 0.2 0.1" mass="1" rgba="1 0 0 1"/>
      <body pos="0 0 0.1" euler="0 30 0">
        <joint name="hinge" type="hinge" axis="0 1 0"/>
        <geom type="capsule" fromto="0 0 0 0 0 0.6" size="0.05" mass="0.1" rgba="0 1 0 1"/>
      </body>
    </body>
  </worldbody>
</mujoco>
"""


def pendulum(brax_envs, camera='<camera name="side" pos="0 -4 1" xyaxes="1 0 0 0 0 1"/>'):
    """Brax's bodies without its dynamics, which take seconds to compile: the action moves the joints."""
    from brax import base, kinematics
    from brax.io import mjcf

    class Pendulum:
        sys = mjcf.loads(PENDULUM.format(camera=camera))
        action_size = 1

        def reset(self, rng):
            return self.at(jax.random.uniform(rng, (2,), minval=-0.5, maxval=0.5))

        def step(self, state, action):
            return self.at(state.obs + 0.2 * action)

        def at(self, q):
            x, xd = kinematics.forward(self.sys, q, jnp.zeros(2))
            return brax_envs.State(base.State(q, jnp.zeros(2), x, xd, None), q, q[0], jnp.zeros(()))

    return from_brax(Pendulum(), lambda state: jnp.abs(state.obs[0]) > 0.5, episode_length=2)


@pytest.mark.filterwarnings("ignore:Brax System, piplines and environments:UserWarning")
@pytest.mark.filterwarnings("ignore:Accessing .* directly from `Data` is deprecated:DeprecationWarning")
def test_cameras_of_brax_see_its_bodies_before_and_after_a_reset(brax_envs):
    """Compared with MuJoCo's own kinematics at the positions that were observed."""
    env = pixels(pendulum(brax_envs), ("side",), height=12, width=16)
    state, step = jax.jit(env.reset)(jax.random.key(0)), jax.jit(env.step)
    states = [state] + [state := step(state, jnp.ones(1), jax.random.key(index)) for index in range(2)]
    caster = make_caster(env.scene.model, ("side",), height=12, width=16)
    rgb, data = jax.jit(caster.rgb), mujoco.MjData(env.scene.model)
    pictures = []
    for observation in [part for state in states for part in (state.observation, state.final_observation)]:
        data.qpos = observation["state"]
        mujoco.mj_kinematics(env.scene.model, data)
        expected = np.asarray(rgb(data.xpos, data.xquat)[0], int)
        assert (np.abs(observation["pixels"] - expected).max(axis=-1) <= 1).mean() > 0.98
        pictures.append(expected)
        assert jax.tree.map(shape_and_type, observation) == jax.tree.map(shape_and_type, env.observation_spec)
    assert states[-1].truncated
    assert np.abs(pictures[-1] - pictures[-2]).max() > 100
    with pytest.raises(ValueError, match=r"^unknown camera 'track'; the model has none(\n|$)"):
        pixels(pendulum(brax_envs, camera=""))
