"""The ray caster against hand arithmetic and against mujoco.Renderer."""

import math
import re
from importlib import resources
from pathlib import Path

import drawn
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from opengl_pictures import pictures
from still_life import SCENE, random_qpos

from safejax import envs
from safejax.envs.rendering import ALL_GROUPS, Shape, batching, make_caster
from safejax.envs.rendering.geometry import KINDS, Rays

ONE = """<mujoco><visual>{visual}</visual>
<worldbody>{light}<camera name='c' pos='0 0 {height}'/>{geoms}</worldbody></mujoco>"""
TASK_MODELS = ("ball_circle", "drone_run", "ant", "hopper", "half_cheetah")
STATES = {"scene": 20} | dict.fromkeys(TASK_MODELS, 20)  # 100 and 200 pictures
PARTS = ("rgb", "depth", "segmentation")
WORLDS = ("point_goal2", "car_button1", "point_maze_large")  # each camera, three starts


def text_of(name):
    return SCENE if name == "scene" else (resources.files("safejax.envs") / "assets" / f"{name}.xml").read_text()


def cameras_of(model):
    return tuple(model.camera(index).name for index in range(model.ncam))


@pytest.fixture(scope="module")
def worlds():
    """By task: its scene and the views of three starts, which differ in layout, so that each is a model of its own."""
    found = {}
    for name in WORLDS:
        env = envs.make(name)
        starts = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), 3))
        views = [env.scene.view(jax.tree.map(lambda leaf, row=row: leaf[row], starts)) for row in range(3)]
        found[name] = env.scene, views
    return found


@pytest.fixture(scope="module")
def opengl(worlds, tmp_path_factory):
    states = {}
    for name, (scene, views) in worlds.items():
        for row, view in enumerate(views):
            spec = drawn.world(envs.task(name), scene, view)
            spec.compile()
            states[f"{name} {row}/model"], states[f"{name} {row}/cameras"] = spec.to_xml(), cameras_of(scene.model)
            states[f"{name} {row}/qpos"] = view.qpos[None]
    for name, count in STATES.items():
        model = mujoco.MjModel.from_xml_string(text_of(name))
        states[f"{name}/model"], states[f"{name}/cameras"] = text_of(name), cameras_of(model)
        states[f"{name}/qpos"] = random_qpos(model, count)
    found = pictures(states, tmp_path_factory.mktemp("opengl"))
    if found is None:
        pytest.skip("neither libEGL nor libOSMesa loads, so that mujoco.Renderer cannot draw")
    return found


@pytest.mark.parametrize("name", STATES)
def test_pictures_are_those_of_mujoco(name, opengl):
    model = mujoco.MjModel.from_xml_string(text_of(name))
    render = jax.jit(jax.vmap(make_caster(model, cameras_of(model)).render))
    image = jax.tree.map(np.asarray, render(opengl[f"{name}/xpos"], opengl[f"{name}/xquat"]))
    assert_alike(image, *(opengl[f"{name}/{part}"] for part in PARTS), cameras_of(model))


@pytest.mark.parametrize("name", WORLDS)
def test_worlds_with_their_shapes_are_drawn_as_mujoco_draws_the_same_geoms(name, worlds, opengl):
    scene, views = worlds[name]
    cameras = cameras_of(scene.model)
    render = jax.jit(jax.vmap(make_caster(scene.model, cameras, shapes=scene.shapes).render))
    poses = [(view.xpos, view.xquat, scene.place(view)) for view in views]
    image = jax.tree.map(np.asarray, render(*(jnp.stack(part) for part in zip(*poses, strict=True))))
    rgb, depth, segmentation = (np.concatenate([opengl[f"{name} {row}/{part}"] for row in range(3)]) for part in PARTS)
    if "maze" in name:  # its walls overlap at the corners, where the label of either is right
        image, segmentation = image._replace(segmentation=as_one(image.segmentation)), as_one(segmentation)
    assert_alike(image, rgb, depth, segmentation, cameras)
    assert (image.segmentation >= scene.model.ngeom).any() == bool(scene.shapes)


def as_one(labels):
    """The labels of geoms 1 to 15, a large maze's walls, as 1."""
    return np.where((labels >= 1) & (labels <= 15), 1, labels)


def assert_alike(image, rgb, depth, segmentation, cameras):
    same = image.segmentation == segmentation
    per_camera = same.mean(axis=(0, 2, 3))
    assert per_camera.min() >= 0.995, dict(zip(cameras, per_camera, strict=True))
    error = np.abs(image.depth / depth - 1.0)[same]
    assert np.quantile(error, 0.99) < 3e-3  # next to a sphere of flat facets
    assert np.median(error) < 2e-5
    difference = np.abs(image.rgb.astype(int) - rgb).mean(axis=(0, 2, 3, 4))
    assert difference.max() < 2.0, difference  # of 255
    assert np.ptp(rgb) > 100


def entry(kind, size, eye, direction, rotation=None):
    """Distance and unit normal of the first hit of one ray, which starts at `eye`."""
    turn = jnp.asarray(np.eye(3) if rotation is None else rotation, jnp.float32)[None]
    center = -jnp.asarray([eye], jnp.float32)
    rays = Rays(*(jnp.asarray([part], jnp.float32) for part in direction))
    distances, normals = KINDS[kind](turn, center, jnp.asarray([size], jnp.float32), rays)
    piece = int(np.argmin([each[0, 0] for each in distances]))
    distance = float(distances[piece][0, 0])
    if distance == math.inf:
        return distance, None
    normal = np.asarray(normals[piece].slope[0]) @ (distance * np.asarray(direction)) + normals[piece].offset[0]
    return distance, np.asarray(normal / np.linalg.norm(normal))


@pytest.mark.parametrize(
    ("kind", "size", "eye", "direction", "distance", "normal"),
    [
        ("plane", (0, 0, 1), (0, 0, 2), (1, 0, -1), 2, (0, 0, 1)),
        ("plane", (1, 1, 1), (0, 0, -3), (0.2, 0, 1), 3, (0, 0, 1)),  # from behind; its normal stays
        ("ellipsoid", (1, 1, 1), (-3, 0, 0), (1, 0, 0), 2, (-1, 0, 0)),
        ("ellipsoid", (1, 1, 1), (-3, 0.6, 0), (1, 0, 0), 2.2, (-0.8, 0.6, 0)),
        ("ellipsoid", (2, 1, 1), (-5, 0.6, 0), (2, 0, 0), 1.7, (-0.8 / 2, 0.6, 0)),
        ("cylinder", (1, 2, 0), (-3, 0.6, 1.9), (1, 0, 0), 2.2, (-0.8, 0.6, 0)),
        ("cylinder", (1, 2, 0), (0.5, 0, 5), (0, 0, -1), 3, (0, 0, 1)),
        ("cylinder", (1, 2, 0), (0.5, 0, -5), (0, 0, 0.5), 6, (0, 0, -1)),
        ("capsule", (1, 2, 0), (-3, 0.6, 1.9), (1, 0, 0), 2.2, (-0.8, 0.6, 0)),
        ("capsule", (1, 2, 0), (0.6, 0, 6), (0, 0, -1), 3.2, (0.6, 0, 0.8)),
        ("capsule", (1, 2, 0), (-3, 0, -2.6), (1, 0, 0), 2.2, (-0.8, 0, -0.6)),
        ("box", (1, 2, 3), (-3, 0.5, 1), (1, 0, 0), 2, (-1, 0, 0)),
        ("box", (1, 2, 3), (0, 5, 0), (0.1, -1, 0), 3, (0, 1, 0)),
        ("box", (1, 2, 3), (0.5, 0, -7), (0, 0, 2), 2, (0, 0, -1)),
    ],
)
def test_a_ray_enters_a_solid_where_geometry_says(kind, size, eye, direction, distance, normal):
    found, outward = entry(kind, size, eye, direction)
    assert found == pytest.approx(distance, rel=1e-6)
    np.testing.assert_allclose(outward, np.array(normal) / np.linalg.norm(normal), atol=1e-6)
    # the same seen from a turned frame
    angle, axis = 0.7, np.array([1.0, 2.0, 3.0]) / math.sqrt(14)
    cross = np.cross(np.eye(3), -axis)
    turn = np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
    found, outward = entry(kind, size, turn @ eye, turn @ direction, turn)
    assert found == pytest.approx(distance, rel=1e-5)
    np.testing.assert_allclose(turn.T @ outward, np.array(normal) / np.linalg.norm(normal), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "size", "eye", "direction"),
    [
        ("plane", (1, 1, 1), (0, 0, 2), (1, 0, -1)),  # beside the rectangle
        ("plane", (0, 0, 1), (0, 0, 2), (1, 0, 0.1)),  # away from it
        ("ellipsoid", (1, 1, 1), (-3, 1.01, 0), (1, 0, 0)),
        ("ellipsoid", (1, 1, 1), (0.2, 0, 0), (1, 0, 0)),  # from inside
        ("cylinder", (1, 2, 0), (-3, 0, 2.1), (1, 0, 0)),
        ("cylinder", (1, 2, 0), (1.1, 0, 5), (0, 0, -1)),
        ("cylinder", (1, 2, 0), (0, 0, 1), (0.1, 0, 1)),
        ("capsule", (1, 2, 0), (-3, 0.6, 2.9), (1, 0, 0)),
        ("capsule", (1, 2, 0), (0, 0.5, 2.5), (0, 0, -1)),
        ("box", (1, 2, 3), (-3, 2.1, 0), (1, 0, 0)),
        ("box", (1, 2, 3), (0, 0, 0), (1, 0, 0)),
        ("box", (1, 2, 3), (3, 0, 0), (1, 0, 0)),
    ],
)
def test_a_ray_misses_what_is_beside_behind_or_around_it(kind, size, eye, direction):
    assert entry(kind, size, eye, direction)[0] == math.inf


@pytest.mark.parametrize("kind", ["ellipsoid", "cylinder", "capsule"])
def test_an_outline_is_sharp_from_afar(kind):
    """From 30,000 radii, where float32 b^2 - a c is off by a hundred: in at .98 radii of the middle, out at 1.02."""
    rng, upright = np.random.default_rng(0), np.array([0.0, 0.0, 1.0])
    size = (1, 1, 1) if kind == "ellipsoid" else (1, 2, 0)
    for towards in rng.normal(size=(20, 3)):
        towards /= np.linalg.norm(towards)
        across = np.cross(upright, towards)  # of a cylinder's side, else over the upper end
        across = across if kind == "cylinder" else np.cross(towards, across)
        middle = 2 * upright if kind == "capsule" else np.zeros(3)
        for radii, hit in ((0.98, True), (1.02, False)):
            aim = middle + radii * across / np.linalg.norm(across)
            eye = aim - 30_000 * towards
            assert (entry(kind, size, eye, 30_000 * towards)[0] < math.inf) == hit


def picture(geoms, light="", visual="", height=5, positions=None, rows=64, columns=64, **options):
    model = mujoco.MjModel.from_xml_string(ONE.format(geoms=geoms, light=light, visual=visual, height=height))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return jax.jit(make_caster(model, ("c",), height=rows, width=columns, **options).render)(
        data.xpos, data.xquat, None if positions is None else jnp.asarray(positions)
    )


FLOOR = "<geom type='plane' size='9 9 1' rgba='1 .5 .2 1'/>"
AMBIENT = "<headlight ambient='1 1 1' diffuse='0 0 0' specular='0 0 0'/>"


def color_of(*channels):
    return np.floor(255 * np.array(channels) + 0.5)


def test_pixels_are_where_a_pinhole_camera_has_them():
    """5 m above the floor with 45 degrees: 5 rows of 2 tan(22.5 deg) m each."""
    pitch = 2 * math.tan(math.pi / 8)
    tile = f"<geom type='box' size='.1 .1 .0001' pos='{2 * pitch} {pitch} 0'/>"
    image = picture(FLOOR + tile, visual=AMBIENT + "<map znear='.001' zfar='100'/>", height=5, rows=5, columns=9)
    expected = np.zeros((1, 5, 9), int)
    expected[0, 1, 6] = 1
    np.testing.assert_array_equal(image.segmentation, expected)
    np.testing.assert_allclose(image.depth[expected == 0], 5.0, rtol=1e-5)
    np.testing.assert_array_equal(image.rgb[0, 0, 0], color_of(1, 0.5, 0.2))


def test_what_is_translucent_is_blended_twice_as_mujoco_does():
    glass = "<geom type='box' size='9 9 .1' pos='0 0 {}' rgba='{} .25'/>"
    image = picture(FLOOR + glass.format(1, "0 0 1") + glass.format(2, "0 1 0"), visual=AMBIENT)
    weight = 1 - 0.75**2
    below = (1 - weight) * np.array([1, 0.5, 0.2]) + weight * np.array([0, 0, 1])
    np.testing.assert_array_equal(
        image.rgb[0, 32, 32], color_of(*((1 - weight) * below + weight * np.array([0, 1, 0])))
    )
    assert (np.asarray(image.segmentation[0]) == 2).all()  # the nearest, translucent or not
    np.testing.assert_allclose(image.depth[0, 32, 32], 5 - 2.1, rtol=1e-5)
    nearest = picture(FLOOR + glass.format(1, "0 0 1") + glass.format(2, "0 1 0"), visual=AMBIENT, layers=1)
    once = (1 - weight) * np.array([1, 0.5, 0.2]) + weight * np.array([0, 1, 0])
    np.testing.assert_array_equal(nearest.rgb[0, 32, 32], color_of(*once))


def test_lambert_and_shadow():
    light = "<light directional='true' dir='.6 0 -.8' diffuse='.5 .5 .5' ambient='.1 .1 .1' specular='0 0 0'/>"
    ball = "<geom type='sphere' size='.3' pos='-1.5 0 2' rgba='0 0 0 1'/>"  # its shadow falls on the origin
    dark = "<headlight ambient='0 0 0' diffuse='0 0 0' specular='0 0 0'/>"
    plain, shadowed = (picture(FLOOR + ball, light, dark, shadows=shadows).rgb[0] for shadows in (False, True))
    lit, unlit = color_of(*(np.array([1, 0.5, 0.2]) * (0.1 + 0.5 * 0.8))), color_of(*(np.array([1, 0.5, 0.2]) * 0.1))
    np.testing.assert_allclose(np.float32(plain[32, 32]), lit, atol=1)
    np.testing.assert_allclose(np.float32(shadowed[32, 32]), unlit, atol=1)
    np.testing.assert_allclose(np.float32(shadowed[32, 60]), lit, atol=1)
    # 0.3 m around the origin, stretched by 1 / 0.8 along x: pi 0.3^2 / 0.8 m^2 of pixels 10 tan(22.5 deg) / 64 wide
    changed = np.any(np.asarray(plain) != np.asarray(shadowed), axis=-1).sum()
    assert changed == pytest.approx(math.pi * 0.09 / 0.8 / (10 * math.tan(math.pi / 8) / 64) ** 2, rel=0.05)


def test_shapes_stand_where_they_are_placed():
    shapes = (Shape("cylinder", (0.5, 0.1, 0.0), (0, 1, 0, 1)), Shape("sphere", (0.5, 0, 0), (0, 0, 1, 1)))
    image = picture(FLOOR, visual=AMBIENT, shapes=shapes, positions=[[0, 0, 0.1], [1e4, 0, 0]])
    assert set(np.unique(image.segmentation)) == {0, 1}
    np.testing.assert_array_equal(image.rgb[0, 32, 32], color_of(0, 1, 0))
    image = picture(FLOOR, visual=AMBIENT, shapes=shapes, positions=[[1, 0, 0.1], [0, 1, 0.5]])
    assert set(np.unique(image.segmentation)) == {0, 1, 2}


def test_geom_groups_that_are_hidden():
    hidden = FLOOR + "<geom type='box' size='1 1 1' group='3'/><geom type='box' size='1 1 2' rgba='1 1 1 0'/>"
    assert (np.asarray(picture(hidden).segmentation) == 0).all()
    assert set(np.unique(picture(hidden, groups=ALL_GROUPS).segmentation)) == {0, 1}


@pytest.fixture(scope="module")
def small():
    """A caster of 12 x 20 pixels, and poses of six states."""
    ball = "<body pos='0 0 1'><freejoint/><geom type='box' size='.5 .4 .3'/></body>"
    model = mujoco.MjModel.from_xml_string(ONE.format(geoms=FLOOR + ball, light="", visual="", height=5))
    data, poses = mujoco.MjData(model), []
    for qpos in random_qpos(model, 8):
        data.qpos[:] = qpos
        mujoco.mj_forward(model, data)
        poses.append((data.xpos.astype(np.float32), data.xquat.astype(np.float32)))
    caster = make_caster(model, ("c",), height=12, width=20)
    return caster, *map(np.stack, zip(*poses, strict=True))


def test_batches_loops_and_devices_draw_what_single_pictures_are(small, monkeypatch):
    """Single ones in one strip, the others in three."""
    caster, xpos, xquat = small
    single = [jax.jit(caster.render)(*pose) for pose in zip(xpos, xquat, strict=True)]
    monkeypatch.setattr(batching, "STRIP", 80)
    single = jax.tree.map(lambda *parts: np.stack(parts), *single)
    assert single.rgb.shape == (8, 1, 12, 20, 3)
    assert single.rgb.dtype == np.uint8
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    devices = NamedSharding(mesh, PartitionSpec("batch"))
    looped = jax.jit(lambda *poses: jax.lax.scan(lambda carry, pose: (carry, caster.render(*pose)), 0, poses)[1])
    twice = jax.jit(lambda *poses: jax.vmap(jax.vmap(caster.render))(*(x.reshape(2, 4, *x.shape[1:]) for x in poses)))
    for found in (
        looped(xpos, xquat),
        jax.jit(jax.vmap(caster.render))(*jax.device_put((xpos, xquat), devices)),
        jax.jit(jax.shard_map(jax.vmap(caster.render), mesh=mesh, in_specs=devices.spec, out_specs=devices.spec))(
            xpos, xquat
        ),
        jax.tree.map(lambda x: x.reshape(8, *x.shape[2:]), twice(xpos, xquat)),
    ):
        np.testing.assert_array_equal(found.segmentation, single.segmentation)
        np.testing.assert_allclose(np.float32(found.rgb), np.float32(single.rgb), atol=1)
        np.testing.assert_allclose(found.depth, single.depth, rtol=1e-5)


def test_exports_for_accelerators_without_a_callback(small):
    caster, xpos, xquat = small
    for function in (caster.render, jax.vmap(caster.render)):
        poses = (xpos, xquat) if function is not caster.render else (xpos[0], xquat[0])
        exported = jax.export.export(jax.jit(function), platforms=["tpu", "cuda"])(*poses)
        calls = re.findall(r"custom_call @(\w+)", exported.mlir_module())
        assert not [name for name in calls if "callback" in name]


def test_rgb_where_draws_only_rows_that_need_it(small):
    caster, xpos, xquat = small
    expected = jax.jit(jax.vmap(caster.rgb))(xpos, xquat)
    needed, otherwise = np.arange(8) % 3 == 0, np.full(expected.shape, 7, np.uint8)
    drawn = np.asarray(jax.jit(jax.vmap(caster.rgb_where))(needed, otherwise, xpos, xquat))
    np.testing.assert_array_equal(drawn[needed], expected[needed])
    assert (drawn[~needed] == 7).all()


MESH = """<mujoco><asset><mesh name="m" vertex="0 0 0 1 0 0 0 1 0 0 0 1"/></asset>
<worldbody><camera name="c"/><geom name="rock" type="mesh" mesh="m"/></worldbody></mujoco>"""


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (SCENE, {"cameras": ("side",)}, "unknown camera 'side'; the model has 'corner', 'top'"),
        (SCENE, {"cameras": ()}, "number of cameras is 0, expected at least 1"),
        (SCENE, {"cameras": ("top",), "width": 0}, "width is 0, expected at least 1"),
        (SCENE, {"cameras": ("top",), "shapes": [Shape("cone", (1, 1, 1), (1, 1, 1, 1))]}, "shape kind is 'cone'"),
        (MESH, {"cameras": ("c",)}, r"geom 0 'rock' \(group 0\) is a mesh; the ray caster draws plane, "),
        (
            "<mujoco><worldbody><camera name='c' projection='orthographic'/></worldbody></mujoco>",
            {"cameras": ("c",)},
            "camera 'c' is orthographic",
        ),
    ],
)
def test_refusals_are_one_line(text, options, message):
    model = mujoco.MjModel.from_xml_string(text)
    with pytest.raises(ValueError, match=message) as caught:
        make_caster(model, **options)
    assert "\n" not in str(caught.value)


def test_positions_are_one_for_each_shape(small):
    caster, xpos, xquat = small
    with pytest.raises(ValueError, match=r"positions has shape \(1, 3\), expected \(0, 3\)"):
        caster.rgb(xpos[0], xquat[0], np.zeros((1, 3)))


CHECKER = """<texture name="floor" type="2d" builtin="checker" width="100" height="100" rgb1=".859 .843 .765"
 rgb2=".949 .914 .855"/><material name="floor" texture="floor" texrepeat="10 10" shininess=".1" specular=".1"/>"""


def test_pictures_are_those_that_safety_gymnasium_recorded():
    """Every geom and the camera as a mocap body; the recorded floor also reflects, and half the sky shows stars."""
    with np.load(Path(__file__).parents[1] / "data" / "pixels_recording.npz") as file:
        recorded = dict(file)
    near, far, extent = recorded["clip"]
    geoms = ""
    for kind, size, rgba in zip(*(recorded[f"geom_{name}"] for name in ("type", "size", "rgba")), strict=True):
        name = mujoco.mjtGeom(int(kind)).name.removeprefix("mjGEOM_").lower()
        look = 'material="floor" rgba="1 1 1 1"' if name == "plane" else f'rgba="{text(rgba)}"'
        geoms += f'<body mocap="true"><geom type="{name}" size="{text(np.maximum(size, 1e-6))}" {look}/></body>'
    for name, fovy in zip(recorded["cameras"], recorded["fovy"], strict=True):
        geoms += f'<body mocap="true"><camera name="{name}" fovy="{fovy}"/></body>'
    model = mujoco.MjModel.from_xml_string(
        f'<mujoco><statistic extent="{extent}"/><visual><map znear="{near}" zfar="{far}"/></visual><asset>{CHECKER}'
        f'</asset><worldbody><light directional="true" diffuse="1 1 1" specular="0 0 0"/>{geoms}</worldbody></mujoco>'
    )
    xpos = np.concatenate([recorded["geom_xpos"], recorded["cam_xpos"]], axis=1)
    turns = np.concatenate([recorded["geom_xmat"], recorded["cam_xmat"]], axis=1)
    xquat = np.zeros((*turns.shape[:2], 4))
    for place in np.ndindex(*turns.shape[:2]):
        mujoco.mju_mat2Quat(xquat[place], turns[place].astype(float))
    world = np.zeros((len(xpos), 1, 3)), np.tile([1.0, 0.0, 0.0, 0.0], (len(xpos), 1, 1))
    image = jax.jit(jax.vmap(make_caster(model, recorded["cameras"].tolist()).render))(
        np.concatenate([world[0], xpos], axis=1), np.concatenate([world[1], xquat], axis=1)
    )
    for index, name in enumerate(recorded["cameras"]):
        same = np.asarray(image.segmentation)[:, index] == recorded[f"segmentation_{name}"]
        assert same.mean() > 0.995, (name, same.mean())
    index = recorded["cameras"].tolist().index("fixednear")
    drawn, seen = np.asarray(image.rgb)[:, index].astype(int), recorded["segmentation_fixednear"] >= 0
    assert np.abs(drawn - recorded["rgb_fixednear"])[seen].mean() < 3.0  # of 255


def text(numbers):
    return " ".join(f"{number:.6g}" for number in numbers)
