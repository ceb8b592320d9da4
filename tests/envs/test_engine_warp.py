"""MuJoCo Warp against the host engine, where it is installed; what gathers simulations into one call, everywhere."""

import sys

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from engine_runaway import runaway
from tiny_models import BALL, POST, TURNTABLE, TWO_BODIES, make_task, model_file, views

from safejax import envs
from safejax.envs.engines import mujoco as host_engine
from safejax.envs.engines import warp as warp_engine
from safejax.envs.engines.mjx import mjx

MASS = """
<mujoco>
  <worldbody>
    <body>
      <joint name="slide" type="slide" axis="1 0 0"/>
      <geom size="0.1" mass="2"/>
      <site name="middle"/>
    </body>
  </worldbody>
  <actuator><motor joint="slide"/></actuator>
  <sensor><accelerometer site="middle"/></sensor>
</mujoco>
"""

compiles = [
    pytest.mark.slow,
    pytest.mark.skipif(not mjx.warp.WARP_INSTALLED, reason="warp is not installed: pip install 'safejax[warp]'"),
]


def test_without_warp_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "warp", None)
    with pytest.raises(ModuleNotFoundError, match=r"^warp is not installed: pip install 'safejax\[warp\]'$"):
        envs.make("ball_run", "warp")


def test_room_for_contacts_and_constraints():
    """A contact of a sphere with the floor is a pyramid of 4 edges, a box has 4 of them and one with the sphere.

    What mjx cannot compute may be 8 and, of 6 joints, limits on both sides; what touches nothing has room for one.
    """

    def room(text, **changes):
        return warp_engine.room(mujoco.MjModel.from_xml_string(text.format(**changes)))

    assert room(BALL) == (1, 4)
    assert room(POST, still='conaffinity="0"') == (5, 20)
    assert room(TWO_BODIES, pillar="", name="vase", kind="box") == (8, 2 * 6 + 4 * 8)
    assert room(TURNTABLE, armature=0) == (1, 1)


def test_however_many_vmaps_lie_above_all_simulations_are_computed_in_one_call():
    counts = []

    def empty(count):
        counts.append(count)
        return jnp.float32(10.0)

    def one(data, state, action):
        assert (state["angle"].shape, state["nothing"].shape) == ((2,), (0,))
        return {"angle": data + state["angle"] * action, "time": action + 1}

    function = warp_engine.in_one_call(one, empty)
    angle, action = jnp.arange(24.0).reshape(3, 4, 2), jnp.arange(3.0)
    state = {"angle": angle, "nothing": jnp.zeros((3, 4, 0))}
    rows = jax.jit(jax.vmap(jax.vmap(function, in_axes=(0, None))))(state, action)
    assert counts[-1] == 12
    np.testing.assert_array_equal(rows["angle"], 10 + angle * action[:, None, None])
    np.testing.assert_array_equal(rows["time"], np.tile(action[:, None] + 1, 4))

    single = function(jax.tree.map(lambda leaf: leaf[2, 3], state), action[2])
    assert counts[-1] == 1
    np.testing.assert_array_equal(single["angle"], rows["angle"][2, 3])


class TestKernels:
    """On CPU; kernels are compiled for every model, in about half a minute."""

    pytestmark = compiles

    def test_servos_sensors_and_an_action_that_is_no_number(self, tmp_path):
        """As the traps of the other engines; NaN loses its row alone, though the kernels would clip it."""
        task = make_task(
            model_file(tmp_path, TURNTABLE, armature=0.005),
            control=lambda action: 3.0 * action,
            applied_force=lambda qpos, qvel, action: 0.002 - 0.001 * qvel,
        )
        actions = jnp.tile(jnp.array([[-1.0], [2.0], [1.0], [jnp.nan]]), (50, 1, 1))
        host = views(host_engine.make_engine(task), actions)
        warp = views(warp_engine.make_engine(task), actions)
        np.testing.assert_allclose(warp.qpos[:, :3], host.qpos[:, :3], atol=2e-6)
        assert np.isnan(warp.qpos[:, 3]).all()
        np.testing.assert_allclose(warp.sensordata[:, :3, 1], 0.5 * warp.qvel[:, :3, 0], atol=1e-6)
        np.testing.assert_array_equal(warp.qpos[:, 1], warp.qpos[:, 2])

    def test_acceleration_sensors_without_possible_constraints(self, tmp_path):
        """A mass of 2 kg that 1 N moves: 0.5 m/s^2, and gravity's reaction."""
        task = make_task(model_file(tmp_path, MASS), control=lambda action: action)
        seen = views(warp_engine.make_engine(task), jnp.ones((3, 1, 1))).sensordata
        np.testing.assert_allclose(seen[:, 0], [[0.5, 0, 9.81]] * 3, atol=1e-5)

    def test_fields_that_a_task_reads(self, tmp_path):
        reads = ("cinert", "cvel", "cfrc_ext", "subtree_com", "qfrc_bias")
        task = make_task(model_file(tmp_path, BALL), reads=reads, action_size=0)
        start = (jnp.array([0.3, 0, 0.0995, 1, 0, 0, 0]), jnp.array([0.5, 0, 0, 0, 5, 0]))
        host, warp = (
            engine.view(engine.start(jnp.bool_(True), *start)).extras
            for engine in (host_engine.make_engine(task), warp_engine.make_engine(task))
        )
        assert set(host) == set(warp) == set(reads)
        for name in reads:
            np.testing.assert_allclose(warp[name], host[name], atol=1e-3, rtol=1e-4, err_msg=name)

    def test_collisions_that_mjx_lacks(self, tmp_path):
        """A box that falls askew on a pillar, a cylinder; and one beside a post that meets the floor."""
        model = TWO_BODIES.replace("<body>", '<body pos="1.03 0 0.32">')
        for path in (
            model_file(tmp_path, model, pillar="", name="vase", kind="box"),
            model_file(tmp_path, POST, still='conaffinity="3"'),
        ):
            task = make_task(path, action_size=0)
            qpos = mujoco.MjModel.from_xml_path(path).qpos0
            host, warp = (
                views(engine.make_engine(task), jnp.zeros((20, 1, 0)), qpos=qpos, qvel=np.zeros(6))
                for engine in (host_engine, warp_engine)
            )
            np.testing.assert_allclose(warp.qpos, host.qpos, atol=5e-4)
            assert warp.qpos[-1, 0, 2] > 0.09  # and so it does not fall through

    def test_contacts_for_which_there_is_no_room_lose_their_simulation(self, tmp_path, monkeypatch, capfd):
        path = model_file(tmp_path, POST, still='conaffinity="0"')
        task, still = make_task(path, action_size=0), jnp.zeros((2, 1, 0))
        fall = dict(qpos=mujoco.MjModel.from_xml_path(path).qpos0, qvel=np.zeros(6))
        assert np.isfinite(views(warp_engine.make_engine(task), still, **fall).qpos).all()
        monkeypatch.setattr(warp_engine, "room", lambda model: (2, 8))
        assert np.isnan(views(warp_engine.make_engine(task), still, **fall).qvel).all()
        assert capfd.readouterr().out == ""

    def test_a_simulation_that_diverges_restarts_alone(self):
        env, keys = runaway(warp_engine.make_engine), jax.random.split(jax.random.key(0), 3)

        @jax.jit
        def run(action):
            return jax.vmap(env.step)(jax.vmap(env.reset)(keys), action, keys)

        calm, lost, wild = (run(jnp.zeros((3, 1)).at[1].set(push)) for push in (0.0, jnp.nan, 1.0))
        for state in (lost, wild):
            np.testing.assert_array_equal(state.diverged, [False, True, False])
            np.testing.assert_array_equal(state.steps, [1, 0, 1])
            np.testing.assert_array_equal(state.observation[::2], calm.observation[::2])
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))

    def test_a_task_is_the_same_world(self):
        """car_goal0: wheels, a caster, mocap and lidar; a scan of vmaps, and states keep their types."""
        played = {}
        for engine in ("mujoco", "warp"):
            env, keys = envs.make("car_goal0", engine), jax.random.split(jax.random.key(0), 4)
            actions = jax.random.uniform(jax.random.key(1), (10, 4, 2), minval=-1.0, maxval=1.0)

            @jax.jit
            def run(keys, env=env, actions=actions):
                def step(state, action):
                    state = jax.vmap(env.step)(state, action, keys)
                    return state, state

                return jax.lax.scan(step, jax.vmap(env.reset)(keys), actions)[1]

            played[engine] = run(keys)
            env.check()
        for name in ("observation", "reward", "cost"):
            ours, theirs = (np.asarray(getattr(played[engine], name)) for engine in ("warp", "mujoco"))
            np.testing.assert_allclose(ours, theirs, atol=2e-3, err_msg=name)
        assert np.abs(np.diff(np.asarray(played["warp"].observation), axis=0)).max() > 0.1
