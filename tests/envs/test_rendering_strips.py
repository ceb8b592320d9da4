"""Strips of a picture, and what each leaves out: nothing of it may be seen."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from still_life import SCENE, random_qpos

from safejax.envs.rendering import batching, caster, geometry, solids, tracing

BALL = "<mujoco><worldbody><geom size='.5'/></worldbody></mujoco>"


@pytest.mark.parametrize(
    ("height", "width", "count"), [(64, 64, 1), (256, 256, 16), (200, 100, 5), (257, 257, 1), (4096, 4096, 4096)]
)
def test_a_picture_is_cut_where_its_height_divides(height, width, count):
    assert batching.strips(height, width) == count


@pytest.mark.parametrize(
    ("kind", "size", "radius"),
    [
        ("ellipsoid", [0.1, 0.3, 0.2], 0.3),
        ("cylinder", [0.3, 0.4, 9.0], 0.5),
        ("capsule", [0.3, 0.4, 9.0], 0.7),
        ("box", [0.2, 0.3, 0.6], 0.7),
        ("plane", [1.0, 1.0, 1.0], np.inf),
    ],
)
def test_the_ball_around_a_solid(kind, size, radius):
    np.testing.assert_allclose(geometry.radius(kind, np.array([size, size])), [radius, radius], rtol=1e-6)


@pytest.mark.parametrize(
    ("center", "within"),
    [
        ([0, 0, -3], True),
        ([0, 0, 0.4], True),  # the eye is inside
        ([0, 0, 0.6], False),  # behind
        # the upper edge of the rays rises 1 in 1; a ball of radius .5 touches it from sqrt(.5) above
        ([0, 3.7, -3], True),
        ([0, 3.71, -3], False),
        # the lower edge is level
        ([0, -0.49, -3], True),
        ([0, -0.51, -3], False),
        # right and left edges run out 1 in 2: the ball touches them sqrt(1.25) / 2 beside
        ([2.05, 0, -3], True),
        ([-2.05, 0, -3], True),
        ([2.07, 0, -3], False),
        ([-2.07, 0, -3], False),
    ],
)
def test_a_ball_touches_the_pyramid_of_rays(center, within):
    scene = solids.read(mujoco.MjModel.from_xml_string(BALL), (), (0,))
    x, y = (part.ravel() for part in np.meshgrid(np.linspace(-0.5, 0.5, 5), np.linspace(0.0, 1.0, 5)))
    found = tracing.groups_within(scene, jnp.array([center], jnp.float32), x, y)
    np.testing.assert_array_equal(found, [within])


@pytest.mark.parametrize("cameras", [("corner",), ("top", "aimed", "carried", "mean")])
def test_what_a_strip_leaves_out_is_not_seen(cameras, monkeypatch):
    """20 states in six strips, beside pictures drawn at once, of which nothing is left out."""
    model = mujoco.MjModel.from_xml_string(SCENE)
    data, poses = mujoco.MjData(model), []
    for qpos in random_qpos(model, 20):
        data.qpos[:] = qpos
        mujoco.mj_forward(model, data)
        poses.append((data.xpos.astype(np.float32), data.xquat.astype(np.float32)))
    poses = tuple(map(np.stack, zip(*poses, strict=True)))
    monkeypatch.setattr(batching, "STRIP", 800)
    assert batching.strips(60, 80) == 6
    size = dict(height=60, width=80)
    cut = jax.jit(jax.vmap(caster.make_caster(model, cameras, **size).render))(*poses)
    monkeypatch.setattr(caster, "by_platform", lambda _, elsewhere: lambda poses, *_: elsewhere(*poses))
    whole = jax.jit(jax.vmap(caster.make_caster(model, cameras, **size).render))(*poses)
    np.testing.assert_array_equal(cut.segmentation, whole.segmentation)
    np.testing.assert_allclose(np.float32(cut.rgb), np.float32(whole.rgb), atol=1)
    np.testing.assert_allclose(cut.depth, whole.depth, rtol=1e-5)
    assert len(np.unique(cut.segmentation)) > 8


@pytest.mark.parametrize(("side", "left_out"), [(64, False), (256, True)])
def test_only_a_cpu_leaves_out_and_only_from_strips(side, left_out):
    def ways(way):
        absent = str(jax.make_jaxpr(lambda: way.unless_absent(jnp.bool_(False), lambda: 1.0, lambda: 2.0))())
        return way.strips > 1, "cond" in absent

    assert ways(batching.way_on_cpu(jnp.float32(0), side, side)) == (left_out, left_out)
    assert ways(batching.way_elsewhere(jnp.float32(0), side, side)) == (False, False)


def test_strips_without_a_kind_are_drawn_without_it():
    """A scene in which a ball is in the lower half alone: what the program computes for the upper."""
    counted = []

    def unless_absent(needed, function, idle):
        counted.append(bool(needed))
        return function() if needed else idle()

    scene = solids.read(mujoco.MjModel.from_xml_string(BALL), (), (0,))
    way = batching.Way(lambda values: values, batching.always, unless_absent, lambda *_: None, strips=2)
    rotation, center = jnp.eye(3)[None], jnp.array([[0.0, -2.0, -4.0]])
    for least, most in ((0.0, 1.0), (-1.0, 0.0)):
        x, y = (part.ravel() for part in np.meshgrid(np.linspace(-1, 1, 9), np.linspace(least, most, 9)))
        within = tracing.groups_within(scene, center, x, y)
        met = tracing.meet(scene, rotation, center, geometry.Rays(x, y, np.float32(-1.0)), 3, tuple(within), way)
        assert bool((met.opaque.distance < jnp.inf).any()) == (least < 0.0)
    assert counted == [False, True]
