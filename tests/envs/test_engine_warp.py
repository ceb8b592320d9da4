"""MuJoCo Warp against the host engine, where it is installed; what gathers simulations into one call, everywhere."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from engine_runaway import runaway
from tiny_models import BALL, LEG, POST, TURNTABLE, TWO_BODIES, make_task, model_file, views

from safejax import envs
from safejax.envs.engines import mujoco as host_engine
from safejax.envs.engines import warp as warp_engine
from safejax.envs.engines.base import load_model
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

HINGED = """
<mujoco>
  <worldbody>
    <body>
      <joint name="hinge" type="hinge" axis="0 1 0"/>
      <geom type="capsule" fromto="0 0 0 0.5 0 0" size="0.05" contype="0" conaffinity="0"/>
      <body name="tip" pos="0.5 0 0"/>
    </body>
  </worldbody>
  <equality><connect body1="tip" anchor="0 0 0" solref="0.5 1"/></equality>
</mujoco>
"""
BOXES = """
<mujoco>
  <worldbody>
    <geom type="box" size="0.1 0.1 0.1"/>
    <body pos="0 0 0.199" euler="0 0 45"><freejoint/><geom type="box" size="0.1 0.1 0.1"/></body>
  </worldbody>
</mujoco>
"""

compiles = [
    pytest.mark.slow,
    pytest.mark.skipif(not mjx.warp.WARP_INSTALLED, reason="warp is not installed: pip install 'safejax[warp]'"),
]


def test_without_warp_or_with_another_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(mjx.warp, "WARP_INSTALLED", False)
    with pytest.raises(ModuleNotFoundError, match=r"^warp is not installed: pip install 'safejax\[warp\]'$"):
        envs.make("ball_run", "warp")
    monkeypatch.setattr(mjx.warp, "WARP_INSTALLED", True)
    monkeypatch.setattr(mjx.warp, "mujoco_warp", None)
    with pytest.raises(ModuleNotFoundError, match=r"^warp is not of the version that mujoco-mjx needs: [^\n]*$"):
        envs.make("ball_run", "warp")


def test_what_has_no_room_is_refused_in_one_line():
    sensor = "<sensor><distance name='far' geom1='a' geom2='b' cutoff='1'/></sensor>"
    model = f"""<mujoco><worldbody><geom name='a' size='.1'/><body pos='1 0 0'><freejoint/>
      <geom name='b' size='.1'/></body></worldbody>{sensor}</mujoco>"""
    with pytest.raises(NotImplementedError, match=r"^far away: engine 'warp' has no room for the sensor 'far' [^\n]*$"):
        warp_engine.check_room("far away", mujoco.MjModel.from_xml_string(model))
    warp_engine.check_room("near", mujoco.MjModel.from_xml_string(model.replace(sensor, "")))


def test_room_for_contacts_and_constraints():
    """By hand: one more of each than there can be; 3 rows a velocity, 6 an equality, and of a contact the edges of its
    pyramid, 4 with three dimensions. A ball meets anything once, two boxes or a box and a floor in 8 places at most."""

    def room(text, **changes):
        return warp_engine.room(mujoco.MjModel.from_xml_string(text.format(**changes)))

    assert room(BALL) == (1 + 1, 1 + 3 * 6 + 4)
    assert room(POST, still='conaffinity="0"') == (1 + 8 + 1, 1 + 3 * 6 + 4 * 9)
    assert room(TWO_BODIES, pillar="", name="vase", kind="box") == (1 + 8, 1 + 3 * 6 + 4 * 8)
    assert room(LEG, height=1, lean=0) == (1 + 2, 1 + 3 * 6 + 4 * 2)
    assert room(TURNTABLE, armature=0) == (1, 1 + 3)
    slippery = BALL.replace('type="sphere"', 'type="sphere" condim="1"').replace(
        'type="plane"', 'type="plane" condim="1"'
    )
    assert room(slippery) == (1 + 1, 1 + 3 * 6 + 1)
    assert room(HINGED) == (1, 1 + 3 * 1 + 6 * 1)
    rolls = BALL.replace("</worldbody>", "</worldbody><contact><pair geom1='floor' geom2='ball' condim='6'/></contact>")
    rolls = rolls.replace("<geom type", "<geom {} type").format("name='floor'", "name='ball'")
    assert room(rolls) == (1 + 1, 1 + 3 * 6 + 10)


@pytest.mark.parametrize("name", envs.names())
def test_there_is_room_for_what_the_host_engine_finds(name):
    """Joints anyhow: bodies inside each other, limbs beyond their limits."""
    model = load_model(envs.task(name).model)
    contacts, rows = warp_engine.room(model)
    data, rng, found = mujoco.MjData(model), np.random.default_rng(0), []
    for _ in range(50):
        mujoco.mj_resetData(model, data)
        data.qpos[:] += rng.normal(scale=0.5, size=model.nq)
        data.mocap_pos[:] += rng.normal(scale=0.5, size=(model.nmocap, 3))
        mujoco.mj_forward(model, data)
        found.append((data.ncon, data.nefc))
    most_contacts, most_rows = np.max(found, axis=0)
    assert most_contacts < contacts
    assert most_rows < rows


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

    def test_a_lone_equality(self, tmp_path):
        """A pendulum whose tip is tied to the world, else it falls: with no row to spare the kernels let it go."""
        task = make_task(model_file(tmp_path, HINGED), action_size=0)
        host, warp = (
            views(engine.make_engine(task), jnp.zeros((20, 1, 0)), qpos=(0.5,), qvel=(0.0,)).qpos
            for engine in (host_engine, warp_engine)
        )
        np.testing.assert_allclose(warp, host, atol=1e-4)
        assert np.abs(host - 0.5).max() < 0.05

    def test_eight_contacts_of_two_boxes(self, tmp_path):
        """One on the other, turned by 45 degrees: mjx finds 4."""
        path = model_file(tmp_path, BOXES)
        task, model = make_task(path, action_size=0), mujoco.MjModel.from_xml_path(path)
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        assert data.ncon == 8
        host, warp = (
            views(engine.make_engine(task), jnp.zeros((20, 1, 0)), qpos=model.qpos0, qvel=np.zeros(6)).qpos
            for engine in (host_engine, warp_engine)
        )
        np.testing.assert_allclose(warp, host, atol=5e-4)

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

    def test_contacts_without_room_are_not_left_out_silently(self, tmp_path, monkeypatch, capfd):
        """One box falls, one is in the air: rows that lack lose the one, contacts all. Nothing is printed."""
        path = model_file(tmp_path, POST, still='conaffinity="0"')
        task, start = make_task(path, action_size=0), mujoco.MjModel.from_xml_path(path).qpos0

        def speeds():
            engine = warp_engine.make_engine(task)

            @jax.jit
            @jax.vmap
            def run(qpos):
                return engine.view(engine.step(engine.start(jnp.bool_(True), qpos, jnp.zeros(6)), jnp.zeros(0))).qvel

            return run(jnp.stack([start, start + jnp.array([0, 0, 5.0, 0, 0, 0, 0])]))

        assert np.isfinite(speeds()).all()
        for few, lost in (((8, 8), [True, False]), ((1, 64), [True, True])):
            monkeypatch.setattr(warp_engine, "room", lambda model, few=few: few)
            np.testing.assert_array_equal(np.isnan(speeds()).all(axis=1), lost)
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

    def test_a_crowded_world_of_many_velocities(self):
        """car_goal2 has 71, more than the kernels take where Jacobians are dense, as its MJCF asks for."""
        env = envs.make("car_goal2", "warp")
        state = jax.jit(env.reset)(jax.random.key(0))
        after = jax.jit(env.step)(state, jnp.ones(2), jax.random.key(1))
        assert not after.diverged

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
