"""The navigation robots against recordings of the original simulator, and one engine against the other."""

from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from safejax.envs.engines import mjx as mjx_engine
from safejax.envs.engines.mujoco import Host, make_engine, split_view
from safejax.envs.tasks import Task, View
from safejax.envs.tasks._robots import CAR, POINT, RACECAR, ROBOTS, mjcf, position, rotation

RECORDINGS = dict(np.load(Path(__file__).parents[1] / "data" / "navigation_recording.npz"))
FULL_SCALE = {POINT: (1.0, 1.0), CAR: (1.0, 1.0), RACECAR: (20.0, 0.785)}  # the original's actions
FORWARD = {POINT: (1.0, 0.0), CAR: (1.0, 1.0), RACECAR: (1.0, 0.0)}  # actions that drive straight ahead
AHEAD = {POINT: (1.0, 0.0, 0.0), CAR: (0.0, -1.0, 0.0), RACECAR: (1.0, 0.0, 0.0)}  # that way in the robot's frame

each_robot = pytest.mark.parametrize("robot", ROBOTS, ids=lambda robot: robot.name)


def task_of(robot):
    return Task(
        name=robot.name,
        model=robot.model,
        substeps=robot.substeps,
        episode_length=1000,
        observation_size=robot.observation_size,
        action_size=robot.action_size,
        initialize=lambda key: robot.place(jnp.zeros(2), jnp.zeros(())),
        observe=robot.observe,
        reward=lambda before, after, action: jnp.zeros(after.qpos.shape[:-1]),
        cost=lambda view: jnp.zeros(view.qpos.shape[:-1]),
        control=robot.control,
    )


HOSTS = {robot: Host(task_of(robot), 1) for robot in ROBOTS}


def recording(robot):
    prefix = f"{robot.name}/"
    rows = {key.removeprefix(prefix): value for key, value in RECORDINGS.items() if key.startswith(prefix)}
    return rows | {"action": rows["action"] / np.array(FULL_SCALE[robot])}


def replay(robot, qpos, qvel, actions):
    """Views [T, B, ...] after each of actions [T, B, A]; float64 throughout, as the engine keeps its rows."""
    host, views = HOSTS[robot], []
    rows, _ = host.start(np.ones(len(qpos), bool), qpos, qvel)
    for action in actions:
        rows, seen = host.step(rows, action)
        views.append(seen)
    host.check()
    return split_view(jnp.asarray(np.stack(views)), host.view_shapes)


def drive(robot, action, steps, yaw=0.0):
    """Views [T, ...] under a constant action."""
    qpos, qvel = robot.place(jnp.array([[0.3, -0.2]]), jnp.array([yaw]))
    views = replay(robot, np.asarray(qpos), np.asarray(qvel), np.full((steps, 1, 2), action))
    return jax.tree.map(lambda leaf: leaf[:, 0], views)


def replayed_error(robot, episode):
    """Distances [T] in the plane from the recorded path of an episode, and the length [T] of the path so far."""
    rows = recording(robot)
    index = rows["episode_id"].tolist().index(episode)
    mine = rows["episode"] == episode
    start = rows["reset_qpos"][index : index + 1]
    ours = replay(robot, start, np.zeros((1, robot.nv)), rows["action"][mine][:, None]).qpos[:, 0, :2]
    path = np.concatenate([start[:, :2], rows["qpos"][mine][:, :2]])
    travelled = np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=-1))
    return np.linalg.norm(ours - path[1:], axis=-1), travelled


@each_robot
def test_model_counts_what_the_robot_brings(robot):
    model = mujoco.MjModel.from_xml_string(mjcf(robot))
    assert (model.nq, model.nv, model.nsensordata) == (robot.nq, robot.nv, robot.sensor_size)
    assert model.opt.timestep == robot.timestep
    mass = {POINT: 0.005188790, CAR: 0.030444985, RACECAR: 2.156071788}  # kg, of the running original
    np.testing.assert_allclose(model.body_mass.sum(), mass[robot], rtol=1e-6)
    cameras = {model.camera(index).name for index in range(model.ncam)}
    assert cameras == {"vision", "vision_back", "fixednear", "fixedfar", "track", "top"}
    # a box that falls on the robot touches every named geom, or could: by the bits, and by nothing else
    bits = {model.geom(index).name: model.geom_conaffinity[index] & 1 for index in range(model.ngeom)}
    assert {name for name, meets in bits.items() if meets} == set(robot.geoms)


@each_robot
def test_objects_come_after_the_robot_and_mjx_takes_their_contacts(robot):
    shapes = {"box": "0.1 0.1 0.1", "sphere": "0.1", "capsule": "0.2 0.5"}
    objects = "".join(
        f'<body name="{kind}" pos="0 {1 + index} 0.2"><freejoint/><geom type="{kind}" size="{size}"/></body>'
        for index, (kind, size) in enumerate(shapes.items())
    )
    text = mjcf(robot, objects, '<framepos objtype="body" objname="box"/>')
    model = mujoco.MjModel.from_xml_string(text)
    assert model.body("agent").id == 1
    assert model.body("box").id == mujoco.MjModel.from_xml_string(mjcf(robot)).nbody
    assert model.jnt_qposadr[model.body("box").jntadr[0]] == robot.nq
    assert model.sensor_adr[-1] == robot.sensor_size
    mjx_engine.mjx.put_model(model, impl="jax")  # raises where a pair of geoms has no contacts


@each_robot
def test_cylinders_meet_the_floor_alone(robot):
    """Where a sphere goes 3.2 mm into one, mjx, which there searches for the contact, finds 3.17 mm and turns it."""
    model = mujoco.MjModel.from_xml_string(mjcf(robot))
    pairs = [model.geom_type[list(pair[:2])] for pair in mjx_engine.mjx._src.collision_driver.geom_pairs(model)]
    plane, cylinder = mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_CYLINDER
    with_cylinders = [kinds.tolist() for kinds in pairs if cylinder in kinds]
    assert with_cylinders == [[plane, cylinder]] * {"point": 0, "car": 2, "racecar": 4}[robot.name]


@pytest.mark.parametrize("angle", [50.0, 64.0])
def test_corners_of_the_racecar_meet_its_wheels_as_if_they_were_cylinders(angle):
    """Steered beyond the stop, at most as far as free driving gets: the contact lies on the wheel's own side."""
    model = mujoco.MjModel.from_xml_string(mjcf(RACECAR))
    data = mujoco.MjData(model)
    data.qpos[:] = model.qpos0
    data.qpos[2] = 1.0
    data.qpos[9] = np.deg2rad(angle)
    mujoco.mj_forward(model, data)
    (contact,) = data.contact
    corner, tread, wheel = (model.geom(f"right_{part}").id for part in ("corner", "tread", "wheel"))
    assert contact.geom.tolist() == [corner, tread]
    offset = data.geom_xmat[wheel].reshape(3, 3).T @ (data.geom_xpos[corner] - data.geom_xpos[wheel])
    radius, half_width = model.geom_size[wheel][:2]
    assert abs(offset[2]) < half_width
    depth = model.geom_size[corner][0] + radius - np.hypot(*offset[:2])
    np.testing.assert_allclose(-contact.dist, depth, rtol=1e-9)
    assert depth > 1e-3


@each_robot
def test_observation_follows_from_the_recorded_state(robot):
    rows, host = recording(robot), HOSTS[robot]
    data, sensed = mujoco.MjData(host.model), []
    for qpos, qvel, action in zip(rows["qpos"], rows["qvel"], rows["action"], strict=True):
        data.qpos, data.qvel, data.ctrl = qpos, qvel, robot.control(np.clip(action, -1, 1))
        mujoco.mj_forward(host.model, data)
        sensed.append(data.sensordata.copy())
    none = jnp.zeros((len(sensed), 0))
    ours = robot.observe(View(none, none, jnp.asarray(np.array(sensed), jnp.float32), none, none))
    assert ours.shape[-1] == robot.observation_size
    np.testing.assert_allclose(ours[:, 3:], rows["observation"][:, 3:], atol=2e-6)
    # accelerations come from contacts, which feel the rounding of recorded states
    error = np.abs(ours[:, :3] - rows["observation"][:, :3]).max(axis=-1)
    assert np.quantile(error, 0.95) < 1e-3
    assert np.abs(rows["observation"][:, :3]).max() > 5


def test_point_replays_recordings():
    """Exactly at first; then its servo's chatter amplifies the last bits."""
    for episode in (0, 12):
        error, travelled = replayed_error(POINT, episode)
        assert error[:10].max() < 1e-7
        assert error.max() < 0.015 * travelled[-1]
        assert travelled[-1] > 0.2


def test_car_replays_recordings():
    for episode in (0, 12):
        error, travelled = replayed_error(CAR, episode)
        assert error.max() < 2e-6
        assert travelled[-1] > 0.15


def test_racecar_replays_recordings():
    """Smooth driving exactly; random steering overshoots its stop, where a wheel meets the bumper."""
    error, travelled = replayed_error(RACECAR, 8)
    assert error.max() < 1e-6
    assert travelled[-1] > 0.2
    error, travelled = replayed_error(RACECAR, 0)
    assert error[:10].max() < 1e-6
    assert error.max() < 0.04 * travelled[-1]


@pytest.mark.parametrize(
    ("robot", "speeds", "tolerance"),
    [
        (POINT, {1: 0.0566, 2: 0.1111, 5: 0.2626, 10: 0.4791, 20: 0.8051, 50: 1.2809, 100: 1.4680}, 3e-4),
        (CAR, {1: 0.293, 2: 0.377, 5: 0.529, 10: 0.736, 20: 0.784}, 0.08),  # means of three, whose wheels spin and slip
        (RACECAR, {1: 0.0349, 2: 0.0702, 5: 0.1758, 10: 0.3502, 20: 0.6934, 50: 0.9966}, 1e-4),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_speed_straight_ahead(robot, speeds, tolerance):
    """The original's, m/s after so many steps; whichever way the robot looks."""
    views = drive(robot, FORWARD[robot], max(speeds), yaw=2.0)
    velocity = views.sensordata[:, 3:6] @ jnp.array(AHEAD[robot])
    np.testing.assert_allclose(velocity[jnp.array([*speeds]) - 1], [*speeds.values()], atol=tolerance)
    ahead = rotation(views)[-1] @ jnp.array(AHEAD[robot])
    way = position(views)[-1, :2] - jnp.array([0.3, -0.2])
    np.testing.assert_allclose(way / jnp.linalg.norm(way), ahead[:2], atol=0.02)


def test_point_turns_at_the_recorded_rates():
    rate = drive(POINT, (0.0, 1.0), 20).qvel[:, 2]
    np.testing.assert_allclose(rate[jnp.array([0, 19])], [2.876, 2.9985], atol=2e-3)
    both = drive(POINT, (1.0, 1.0), 200)
    np.testing.assert_allclose(jnp.linalg.norm(both.qvel[-1, :2]), 0.863, atol=2e-3)
    np.testing.assert_allclose(both.qvel[-1, 2], 2.972, atol=2e-3)
    # the servo's dead band: it chatters about standing still
    turned = drive(POINT, (0.0, 0.05), 100).qpos[:, 2]
    assert jnp.abs(turned).max() < 0.01


@each_robot
def test_placed_robots_stand_where_they_should(robot):
    xy, yaw = jnp.array([[0.5, -1.0], [2.0, 0.25]]), jnp.array([0.4, -2.5])
    qpos, qvel = robot.place(xy, yaw)
    assert (qpos.shape, qvel.shape) == ((2, robot.nq), (2, robot.nv))
    np.testing.assert_array_equal(qvel, 0)
    views = replay(robot, np.asarray(qpos), np.asarray(qvel), np.zeros((5, 2, 2)))
    np.testing.assert_allclose(position(views)[-1, :, :2], xy, atol=1e-4)
    c, s, one, zero = jnp.cos(yaw), jnp.sin(yaw), jnp.ones(2), jnp.zeros(2)
    turn = jnp.stack([jnp.stack(row, -1) for row in ((c, -s, zero), (s, c, zero), (zero, zero, one))], -2)
    np.testing.assert_allclose(rotation(views)[-1], turn, atol=1e-3)
    magnetometer = robot.observe(views)[-1, :, 9:12]
    np.testing.assert_allclose(magnetometer, jnp.array([0.0, -0.5, 0.0]) @ turn, atol=1e-3)
    np.testing.assert_allclose(robot.observe(views)[-1, :, :3] @ jnp.array([0.0, 0.0, 1.0]), 9.81, atol=0.1)


@pytest.mark.slow
def test_engines_agree_on_the_point():
    """To rounding where the servo does not chatter out of step, else by a part of the way; sensors included."""
    task, count, steps = task_of(POINT), 8, 200
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (steps, 2 * count, 2))
    actions[:, :count, 1] = np.random.default_rng(1).choice([-1.0, -0.05, 0.05, 1.0], (steps, count))

    def run(engine):
        def step(physics, action):
            physics = jax.vmap(engine.step)(physics, action)
            return physics, engine.view(physics)

        qpos, qvel = POINT.place(jnp.zeros((2 * count, 2)), jnp.linspace(0.0, 6.0, 2 * count))
        start = jax.vmap(engine.start)(jnp.ones(2 * count, bool), qpos, qvel)
        return jax.lax.scan(step, start, jnp.asarray(actions, jnp.float32))[1]

    host_engine = make_engine(task)
    mjx, host = (jax.jit(run, static_argnums=0)(engine) for engine in (mjx_engine.make_engine(task), host_engine))
    host_engine.check()
    np.testing.assert_allclose(mjx.qpos[:, :count], host.qpos[:, :count], atol=1e-4)
    np.testing.assert_allclose(mjx.sensordata[:, :count], host.sensordata[:, :count], atol=2e-2)
    apart = np.linalg.norm(mjx.qpos[:, count:, :2] - host.qpos[:, count:, :2], axis=-1).max(axis=0)
    travelled = np.linalg.norm(np.diff(host.qpos[:, count:, :2], axis=0), axis=-1).sum(axis=0)
    assert (apart / travelled).max() < 0.03
    for view in (mjx, host):
        # mjx alone would leave the accelerometer at zero: nothing here can have a contact
        np.testing.assert_allclose(view.sensordata[..., 2], 9.81, atol=1e-3)
        assert np.abs(view.sensordata[..., 1]).max() > 5
        # sensors show the state that they come with
        velocity = jnp.concatenate([view.qvel[..., :2], 0 * view.qvel[..., :1]], axis=-1)
        felt = jnp.einsum("...ij,...i->...j", rotation(view), velocity)
        np.testing.assert_allclose(view.sensordata[..., 3:6], felt, atol=1e-5)
        np.testing.assert_allclose(view.sensordata[..., 8], view.qvel[..., 2], atol=1e-6)


@pytest.mark.parametrize("robot", [CAR, RACECAR], ids=lambda robot: robot.name)
def test_mjx_takes_the_cars(robot):
    """Traced only, and no step: compiling one takes a minute and more."""
    engine = mjx_engine.make_engine(task_of(robot))
    qpos, qvel = robot.place(jnp.zeros(2), jnp.zeros(()))
    view = jax.eval_shape(lambda: engine.view(engine.start(jnp.bool_(True), qpos, qvel)))
    assert (view.qpos.shape, view.qvel.shape, view.sensordata.shape) == ((robot.nq,), (robot.nv,), (robot.sensor_size,))
