"""What physics engines are known to get wrong, each on a tiny model: were it to come back, a test here fails.

Accelerometers of models that can have no constraint: see test_engine_mjx.py.
"""

import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from packaging.requirements import Requirement
from tiny_models import BALL, LEG, POST, TURNTABLE, TWO_BODIES, make_task, model_file, views

from safejax import envs
from safejax.envs.engines import mjx as mjx_engine
from safejax.envs.engines import mujoco as host_engine


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    """By engine, 50 steps with a push from the velocity, under actions of -1, 2, 1 and one that is not a number."""
    model = model_file(tmp_path_factory.mktemp("assets"), TURNTABLE, armature=0.005)
    task = make_task(
        model, control=lambda action: 3.0 * action, applied_force=lambda qpos, qvel, action: 0.002 - 0.001 * qvel
    )
    actions = jnp.tile(jnp.array([[-1.0], [2.0], [1.0], [jnp.nan]]), (50, 1, 1))
    host = host_engine.make_engine(task)
    found = {"mujoco": views(host, actions), "mjx": views(mjx_engine.make_engine(task), actions)}
    with pytest.raises(FloatingPointError, match=r"^trap: action \[nan\] in simulation 3 \(1 of 4\), expected finite"):
        host.check()
    return found


def test_a_stiff_servo_chatters_unless_its_joint_has_an_armature(tmp_path, turned):
    """Then a start that float32 rounds, and another engine, end elsewhere; with the armature nothing of the kind."""

    def spread(armature):
        task = make_task(model_file(tmp_path, TURNTABLE, armature=armature), substeps=1, control=lambda action: action)
        found = views(host_engine.make_engine(task), jnp.full((200, 1, 1), 0.7))
        return np.diff(found.qvel[20:, 0, 0])

    assert (np.sign(spread("0")[:-1]) != np.sign(spread("0")[1:])).mean() > 0.9
    assert np.abs(spread("0")).max() > 1.0
    assert np.abs(spread("0.005")).max() < 0.05
    np.testing.assert_allclose(turned["mjx"].qpos[:, :3], turned["mujoco"].qpos[:, :3], atol=2e-6)
    assert np.abs(turned["mujoco"].qpos[-1, :3]).min() > 1.0


@pytest.mark.parametrize("engine", ["mujoco", "mjx"])
def test_sensors_do_not_lag(turned, engine):
    """The rim moves at .5 m times the rate of the state that the view holds, though a force acted in between."""
    view = jax.tree.map(lambda leaf: leaf[:, :3], turned[engine])
    assert np.abs(np.diff(view.qvel[:5, :, 0], axis=0)).min() > 1e-3  # a lag of one substep would show
    np.testing.assert_allclose(view.sensordata[..., 1], 0.5 * view.qvel[..., 0], atol=1e-6)
    np.testing.assert_allclose(view.sensordata[..., 3], view.qvel[..., 0], atol=1e-6)


@pytest.mark.parametrize("engine", ["mujoco", "mjx"])
def test_actions_are_clipped_and_one_that_is_no_number_loses_its_row_alone(turned, engine):
    qpos = turned[engine].qpos[..., 0]
    np.testing.assert_array_equal(qpos[:, 1], qpos[:, 2])
    assert np.isnan(qpos[:, 3]).all()
    assert np.isfinite(qpos[:, :3]).all()
    assert np.abs(qpos[-1, 0] - qpos[-1, 1]) > 1


def test_fields_that_a_task_reads_are_the_same_on_both_engines(tmp_path):
    """A ball of 2 kg that rolls on the floor, which carries its weight, 19.62 N."""
    reads = ("cinert", "cvel", "cfrc_ext", "subtree_com", "qfrc_bias")
    task = make_task(model_file(tmp_path, BALL), reads=reads, action_size=0)
    start = {"qpos": (0.3, 0.0, 0.0995, 1.0, 0.0, 0.0, 0.0), "qvel": (0.5, 0.0, 0.0, 0.0, 5.0, 0.0)}
    engine = host_engine.make_engine(task)
    rolled = views(engine, jnp.zeros((20, 1, 0)), **start).extras
    np.testing.assert_allclose(rolled["cfrc_ext"][-1, 0, 1, 5], 19.62, rtol=0.02)
    np.testing.assert_allclose(rolled["subtree_com"][-1, 0, 1, 0], 0.3 + 20 * 0.1 * 0.5, rtol=1e-3)

    def first(engine):
        return engine.view(engine.start(jnp.bool_(True), *(jnp.array(part) for part in start.values()))).extras

    host, mjx = (jax.jit(first, static_argnums=0)(each) for each in (engine, mjx_engine.make_engine(task)))
    assert set(host) == set(mjx) == set(reads)
    for name in reads:
        assert host[name].shape == mjx[name].shape
        np.testing.assert_allclose(mjx[name], host[name], atol=1e-3, rtol=1e-4, err_msg=name)
    assert np.abs(host["cfrc_ext"][1]).max() > 10


def test_a_pillar_that_mjx_cannot_touch_is_refused_by_name(tmp_path):
    def engine(**changes):
        changes = {"pillar": "", "name": "vase", "kind": "box"} | changes
        return mjx_engine.make_engine(make_task(model_file(tmp_path, TWO_BODIES, **changes)))

    message = r"^trap: mjx has no collisions between cylinder 'pillar' and box 'vase'; [^\n]*engine 'mujoco'$"
    with pytest.raises(NotImplementedError, match=message):
        engine()
    with pytest.raises(NotImplementedError, match=r"^trap: [^\n]* cylinder 'pillar' and box 1; [^\n]*$"):
        engine(name="")
    engine(kind="capsule")
    engine(pillar='contype="0" conaffinity="0"')
    host_engine.make_engine(make_task(model_file(tmp_path, TWO_BODIES, pillar="", name="vase", kind="box")))


@pytest.mark.parametrize(("still", "thrown"), [('conaffinity="3"', True), ('conaffinity="0"', False)])
def test_what_cannot_move_must_not_meet_what_cannot_move_or_mjx_throws_light_boxes_up(still, thrown):
    """If the first fails, mjx has learned to ignore such contacts, and `mjx.check_collisions` need not refuse them."""
    model = mujoco.MjModel.from_xml_string(POST.format(still=still))
    mjx = mjx_engine.mjx
    device = mjx.put_model(model, impl="jax")

    def fall(data):
        return jax.lax.fori_loop(0, 5, lambda _, data: mjx.step(device, data), data)

    ours, theirs = jax.jit(fall)(mjx.make_data(model, impl="jax")), mujoco.MjData(model)
    mujoco.mj_step(model, theirs, 5)
    assert abs(theirs.qvel[2]) < 0.02
    assert (abs(float(ours.qvel[2])) > 0.1) == thrown
    if thrown:
        with pytest.raises(NotImplementedError, match=r"^trap: plane 'floor' and sphere 'post' may touch[^\n]*$"):
            mjx_engine.check_collisions("trap", model)
    else:
        mjx_engine.check_collisions("trap", model)


@pytest.mark.parametrize(("lean", "along"), [(70, True), (20, False)], ids=["lying", "standing"])
def test_friction_of_a_capsule_lies_along_it_unless_mjx_finds_it_too_steep(lean, along):
    """If it fails for the standing one, google-deepmind/mujoco#2774 is mended: `engines/mjx.py` says otherwise."""
    height = 0.099 + 0.2 * np.cos(np.deg2rad(lean))
    model = mujoco.MjModel.from_xml_string(LEG.format(height=height, lean=lean))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    mjx = mjx_engine.mjx
    device = mjx.put_model(model, impl="jax")
    found = jax.jit(lambda: mjx.collision(device, mjx.kinematics(device, mjx.make_data(model, impl="jax"))))()
    contact = found._impl.contact
    lowest = int(np.argmin(contact.dist))
    np.testing.assert_allclose(contact.dist[lowest], data.contact.dist, atol=1e-6)
    np.testing.assert_allclose(contact.pos[lowest], data.contact.pos[0], atol=1e-6)
    ours, theirs = np.asarray(contact.frame[lowest]), data.contact.frame.reshape(3, 3)
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-6)  # the normal
    assert np.allclose(ours[1:], theirs[1:], atol=1e-5) == along, (ours, theirs)


@pytest.mark.parametrize("engine", [host_engine, mjx_engine])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "nowhere.xml"}, "MuJoCo cannot read its model: [^\n]*nowhere.xml[^\n]*"),
        (
            {"model": "<mujoco><worldbody><geom size='a'/></worldbody></mujoco>"},
            "MuJoCo cannot read its model: [^\n]*line 1[^\n]*",
        ),
        ({"reads": ("cvel", "speed")}, "reads has 'speed', expected names of mjData's fields, such as 'cvel'"),
    ],
)
def test_a_model_that_cannot_be_had_is_refused_in_one_line(tmp_path, engine, changes, message):
    task = make_task(model_file(tmp_path, BALL))._replace(**changes)
    with pytest.raises(ValueError, match=rf"^trap: {message}$"):
        engine.make_engine(task)


def test_the_release_of_mujoco_with_a_broken_solver_is_excluded():
    """4.0.0 factorises sparse Hessians wrongly; mended in 4.0.1."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (mujoco_needs,) = (r for r in map(Requirement, project["dependencies"]) if r.name == "mujoco")
    expected = {"3.16.0": False, "3.17.0": True, "4.0.0": False, "4.0.1": True, "5.0.0": False}
    assert {version: version in mujoco_needs.specifier for version in expected} == expected


@pytest.mark.parametrize("shape", [(), (3,), (1, 2), (8, 2)])
def test_an_action_of_another_shape_is_refused_when_traced(shape):
    env = envs.make("ball_circle", "mujoco")
    state = jax.eval_shape(env.reset, jax.random.key(0))
    found = str(shape).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(
        ValueError, match=rf"^ball_circle: action has shape {found}, expected \(2,\); [^\n]*vmap step(\n|$)"
    ):
        jax.eval_shape(env.step, state, jax.ShapeDtypeStruct(shape, jnp.float32), jax.random.key(0))
