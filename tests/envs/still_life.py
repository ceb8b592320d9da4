"""A scene of every kind of solid, material, light and camera, and states in which its things lie anyhow."""

from __future__ import annotations

import mujoco
import numpy as np

SCENE = """<mujoco><asset>
<texture name="squares" type="2d" builtin="checker" width="64" height="64" rgb1=".8 .7 .6" rgb2=".2 .3 .4"/>
<texture type="skybox" builtin="gradient" width="64" height="64" rgb1=".4 .6 .8" rgb2="0 0 .2"/>
<material name="squares" texture="squares" texrepeat="5 5" specular=".1" shininess=".1"/>
<material name="dull" rgba=".3 .8 .3 1" specular="0" emission=".2"/>
</asset><worldbody>
<light directional="true" dir=".3 .2 -1" ambient=".1 .1 .1"/>
<light type="spot" pos="2 -2 4" dir="-2 2 -4" cutoff="40" exponent="2"/>
<camera name="corner" pos="0 -4 3" xyaxes="1 0 0 0 .6 .8"/>
<camera name="top" pos="0 0 7"/>
<camera name="aimed" mode="targetbody" target="capsule" pos="3 2 2" fovy="30"/>
<geom type="plane" size="3 3 .1" material="squares"/>
<geom type="plane" size="1 .5 .1" pos="0 2 .5" zaxis="0 -1 0" rgba=".5 .2 .2 1"/>
<geom type="box" size=".2 .2 .1" group="4" pos="0 0 2"/>
<body name="sphere" pos="-1 0 1"><freejoint/><geom type="sphere" size=".3" rgba=".9 .2 .2 1"/>
  <camera name="carried" pos="0 0 .4" xyaxes="0 -1 0 .3 0 1" fovy="80"/></body>
<body name="capsule" pos="-.3 0 1"><freejoint/><geom type="capsule" size=".15 .3" rgba=".2 .9 .2 1"/>
  <site type="box" size=".1 .05 .05" pos=".2 0 .3" rgba="0 1 1 1"/></body>
<body name="ellipsoid" pos=".3 0 1"><freejoint/><geom type="ellipsoid" size=".3 .2 .1" rgba=".2 .2 .9 1"/></body>
<body name="cylinder" pos="1 0 1"><freejoint/><geom type="cylinder" size=".2 .25" material="dull"/>
  <camera name="mean" mode="trackcom" pos="0 -2 1" xyaxes="1 0 0 0 .5 1"/></body>
<body name="box" pos="0 1 1"><freejoint/><geom type="box" size=".3 .15 .2" rgba=".9 .9 .2 1"/></body>
<body name="glass" pos="0 -1 1"><freejoint/><geom type="cylinder" size=".4 .02" rgba="0 0 1 .25"/>
  <geom type="sphere" size=".2" pos=".3 0 .3" rgba="1 0 0 .4"/></body>
</worldbody></mujoco>"""


def random_qpos(model, count):
    """Free bodies anywhere near their start, turned anyhow; joints turned at random."""
    rng = np.random.default_rng(0)
    qpos = model.qpos0 + rng.normal(scale=0.4, size=(count, model.nq))
    for start in model.jnt_qposadr[model.jnt_type == int(mujoco.mjtJoint.mjJNT_FREE)]:
        turn = rng.normal(size=(count, 4))
        qpos[:, start + 3 : start + 7] = turn / np.linalg.norm(turn, axis=1, keepdims=True)
    return qpos
