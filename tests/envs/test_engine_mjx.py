"""mjx against the host engine, its sensor trap, and programs for accelerators."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from engine_runaway import runaway

from safejax import envs
from safejax.envs.engines import mjx as mjx_engine
from safejax.envs.engines import mujoco as host_engine
from safejax.envs.tasks import Task

SLIDER = """
<mujoco>
  <option timestep="0.01"/>
  <worldbody>
    <body name="cart">
      <joint name="slide" type="slide" axis="1 0 0"/>
      <joint name="hinge" type="hinge" axis="0 1 0" armature="0.01"/>
      <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.05" contype="0" conaffinity="0"/>
      <site name="tip" pos="0.3 0 0"/>
    </body>
  </worldbody>
  <actuator><motor joint="slide" gear="2"/></actuator>
  <sensor><accelerometer site="tip"/><velocimeter site="tip"/></sensor>
</mujoco>
"""


@pytest.fixture(scope="module")
def slider(tmp_path_factory):
    path = tmp_path_factory.mktemp("assets") / "slider.xml"
    path.write_text(SLIDER)
    return Task(
        name="slider",
        model=str(path),
        substeps=3,
        episode_length=50,
        observation_size=6,
        action_size=1,
        initialize=lambda key: (0.1 * jax.random.normal(key, (2,)), jnp.zeros(2)),
        observe=lambda view: view.sensordata,
        reward=lambda before, after, action: after.qpos[..., 0] - before.qpos[..., 0],
        cost=lambda view: (jnp.abs(view.qvel[..., 0]) > 1.0).astype(jnp.float32),
        control=lambda action: 2.0 * action,
        applied_force=lambda qpos, qvel, action: -0.1 * qvel,
    )


def observations(env, steps, env_count):
    keys = jax.random.split(jax.random.key(0), env_count)
    actions = jax.random.uniform(jax.random.key(1), (steps, env_count, 2), minval=-1.2, maxval=1.2)

    def step(state, action):
        state = jax.vmap(env.step)(state, action, keys)
        return state, (state.observation, state.reward, state.cost)

    return jax.jit(lambda keys: jax.lax.scan(step, jax.vmap(env.reset)(keys), actions)[1])(keys)


@pytest.mark.parametrize(
    ("option", "rounds"),
    [("", mjx_engine.LINE_SEARCH_ROUNDS), ('ls_iterations="70"', 70), ('solver="CG"', mujoco.MjOption().ls_iterations)],
)
def test_the_line_search_is_short_where_the_model_says_nothing(slider, option, rounds):
    model = SLIDER.replace("<option ", f"<option {option} ")
    assert mjx_engine.make_engine(slider._replace(model=model)).model.opt.ls_iterations == rounds


def test_engines_agree_on_ball_circle():
    """To rounding while the ball rolls; a wall amplifies the rounding, so agreement ends there."""
    mjx, host = (observations(envs.make("ball_circle", engine), 50, 8) for engine in ("mjx", "mujoco"))
    error = np.abs(np.asarray(mjx[0]) - np.asarray(host[0])).max(axis=-1)
    assert error[:10].max() < 1e-6
    reach = np.maximum.accumulate(10 * np.linalg.norm(host[0][..., :2], axis=-1))
    assert (reach < 11).mean() > 0.7
    assert error[reach < 11].max() < 1e-4
    assert np.median(error.max(axis=0)) < 2e-5
    np.testing.assert_allclose(mjx[1][:10], host[1][:10], atol=1e-6)
    np.testing.assert_array_equal(mjx[2][:10], host[2][:10])


def test_acceleration_sensors_without_possible_constraints(slider):

    def run(engine):
        def step(physics, action):
            physics = engine.step(physics, action)
            return physics, engine.view(physics).sensordata

        physics = engine.start(jnp.bool_(True), jnp.array([0.2, 0.3]), jnp.array([0.0, 1.0]))
        return engine.view(physics).sensordata, jax.lax.scan(step, physics, jnp.full((3, 1), 0.8))[1]

    host = host_engine.make_engine(slider)
    ours, theirs = (jax.jit(run, static_argnums=0)(e) for e in (mjx_engine.make_engine(slider), host))
    host.check()
    for mjx, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mjx, expected, atol=2e-5)
        assert np.abs(expected[..., :3]).max() > 1
    # what makes the call of our own necessary: mjx alone leaves the accelerometer at zero
    model = mujoco.MjModel.from_xml_path(slider.model)
    mjx_model, data = mjx_engine.mjx.put_model(model), mjx_engine.mjx.make_data(model)
    data = data.replace(qpos=jnp.array([0.2, 0.3]), qvel=jnp.array([0.0, 1.0]))
    alone = jax.jit(mjx_engine.mjx.forward)(mjx_model, data).sensordata
    np.testing.assert_array_equal(alone[:3], 0)
    np.testing.assert_allclose(alone[3:], ours[0][3:], atol=2e-5)


def test_what_is_held_stays_for_the_whole_step_on_both_engines(slider):
    """hold returns the velocity itself, which on the host is a live array; a push of 5 from the rest of the force."""
    held = slider._replace(
        hold=lambda qpos, qvel, action: qvel, applied_force=lambda qpos, qvel, held: 5.0 - 20.0 * held, control=None
    )
    following = held._replace(hold=None, applied_force=lambda qpos, qvel, action: 5.0 - 20.0 * qvel)

    def velocity(engine):
        physics = engine.start(jnp.bool_(True), jnp.array([0.2, 0.3]), jnp.array([0.5, 1.0]))
        return engine.view(engine.step(physics, jnp.zeros(1))).qvel

    host, mjx, other = (
        np.asarray(jax.jit(velocity, static_argnums=0)(module.make_engine(task)))
        for module, task in ((host_engine, held), (mjx_engine, held), (host_engine, following))
    )
    np.testing.assert_allclose(mjx, host, rtol=1e-5)
    assert np.abs(host - other).max() > 1e-2
    with pytest.raises(ValueError, match=r"^slider has hold but no applied_force, [^\n]*$"):
        envs.make(held._replace(applied_force=None), "mujoco")


def test_a_simulation_that_diverges_restarts_alone():
    env, keys = runaway(mjx_engine.make_engine), jax.random.split(jax.random.key(0), 3)

    @jax.jit
    def run(action):
        return jax.vmap(env.step)(jax.vmap(env.reset)(keys), action, keys)

    calm, wild = (run(jnp.zeros((3, 1)).at[1].set(push)) for push in (0.0, jnp.nan))
    np.testing.assert_array_equal(wild.diverged, [False, True, False])
    np.testing.assert_array_equal(run(jnp.zeros((3, 1)).at[1].set(1.0)).diverged, [False, True, False])
    np.testing.assert_array_equal(wild.steps, [1, 0, 1])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(wild))
    for others in (0, 2):
        rows = [jax.tree.map(lambda leaf, row=others: np.asarray(leaf[row]), states) for states in (wild, calm)]
        jax.tree.map(np.testing.assert_array_equal, *rows)


def test_states_keep_structure_shapes_and_types():
    env, key = envs.make("ball_circle", "mjx"), jax.random.key(0)
    reset = jax.eval_shape(env.reset, key)
    step = jax.eval_shape(env.step, reset, jax.ShapeDtypeStruct((2,), jnp.float32), key)
    assert jax.tree.structure(reset) == jax.tree.structure(step)
    for before, after in zip(jax.tree.leaves(reset), jax.tree.leaves(step), strict=True):
        assert (before.shape, before.dtype, before.weak_type) == (after.shape, after.dtype, after.weak_type)


def test_the_step_exports_for_accelerators_without_callbacks():
    key = jax.random.key_data(jax.random.key(0))

    def program(engine):
        env = envs.make("ball_circle", engine)

        def run(key, action):
            key = jax.random.wrap_key_data(key)
            return env.step(env.reset(key), action, key).observation

        return run

    exported = jax.export.export(jax.jit(program("mjx")), platforms=("cuda", "tpu"))(key, jnp.zeros(2))
    assert exported.platforms == ("cuda", "tpu")
    assert not re.findall(r"custom_call @\w*callback", exported.mlir_module())
    # the same search finds the host engine's callbacks
    assert re.findall(r"custom_call @\w*callback", jax.jit(program("mujoco")).lower(key, jnp.zeros(2)).as_text())


def test_importing_the_engine_prints_nothing_and_safejax_imports_no_engine():
    code = (
        "import sys, safejax; import safejax.envs; safejax.envs.names(); safejax.envs.task('ball_circle');"
        "assert not {'mujoco', 'brax'} & set(sys.modules);"
        "import safejax.envs.engines.mjx"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("", "")
