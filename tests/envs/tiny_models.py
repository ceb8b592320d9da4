"""Tiny models on which engines are known to go wrong, and views of what an engine makes of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from safejax.envs.tasks import Task

# A light hinge under a velocity servo with a force limit, as the turn of Safety-Gymnasium's Point:
# timestep kv gear^2 / inertia is 11 without the armature, .04 with it.
TURNTABLE = """
<mujoco>
  <option timestep="0.002" gravity="0 0 0"/>
  <worldbody>
    <body name="plate">
      <joint name="turn" type="hinge" axis="0 0 1" armature="{armature}"/>
      <inertial pos="0 0 0" mass="1" diaginertia="1 1 1.6e-5"/>
      <site name="rim" pos="0.5 0 0"/>
    </body>
  </worldbody>
  <actuator><velocity joint="turn" gear="0.3" kv="1" forcelimited="true" forcerange="-0.05 0.05"/></actuator>
  <sensor><velocimeter site="rim"/><jointvel joint="turn"/></sensor>
</mujoco>
"""

TWO_BODIES = """
<mujoco>
  <worldbody>
    <geom name="pillar" type="cylinder" size="0.1 0.2" pos="1 0 0" {pillar}/>
    <body>
      <freejoint/>
      <geom name="{name}" type="{kind}" size="0.1 0.1 0.1"/>
    </body>
  </worldbody>
</mujoco>
"""

BALL = """
<mujoco>
  <option timestep="0.01"/>
  <worldbody>
    <geom type="plane" size="1 1 1"/>
    <body pos="0 0 0.1">
      <freejoint/>
      <geom type="sphere" size="0.1" mass="2"/>
      <site name="middle"/>
    </body>
  </worldbody>
  <sensor><accelerometer site="middle"/></sensor>
</mujoco>
"""


POST = """
<mujoco>
  <worldbody>
    <geom name="floor" type="plane" size="1 1 1" contype="2" conaffinity="0"/>
    <body name="post" mocap="true"><geom name="post" type="sphere" size="0.1" {still}/></body>
    <body name="box" pos="1 0 0.1">
      <freejoint/>
      <geom type="box" size="0.1 0.1 0.1" density="0.001" conaffinity="3"/>
    </body>
  </worldbody>
</mujoco>
"""

LEG = """
<mujoco>
  <worldbody>
    <geom type="plane" size="1 1 1"/>
    <body pos="0 0 {height}" euler="0 {lean} 40">
      <freejoint/>
      <geom type="capsule" size="0.1 0.2"/>
    </body>
  </worldbody>
</mujoco>
"""


def model_file(folder, text, **changes):
    path = folder / f"{abs(hash((text, *changes.items())))}.xml"
    path.write_text(text.format(**changes))
    return str(path)


def make_task(model, **changes):
    """One that moves the model's joints and sees its sensors."""
    size = mujoco.MjModel.from_xml_path(model).nv

    task = Task(
        name="trap",
        model=model,
        substeps=10,
        episode_length=100,
        observation_size=4,
        action_size=1,
        initialize=lambda key: (jnp.zeros(size), jnp.zeros(size)),
        observe=lambda view: view.sensordata,
        reward=lambda before, after, action: after.qpos[..., 0],
        cost=lambda view: view.qvel[..., 0],
    )
    return task._replace(**changes)


def views(engine, actions, qpos=(0.0,), qvel=(0.0,)):
    """Views [steps, rows] under actions [steps, rows, A], every row from the same state."""

    @jax.jit
    def run(actions):
        def step(physics, action):
            physics = jax.vmap(engine.step)(physics, action)
            return physics, jax.vmap(engine.view)(physics)

        start = engine.start(jnp.bool_(True), jnp.array(qpos), jnp.array(qvel))
        physics = jax.tree.map(lambda leaf: jnp.stack([leaf] * actions.shape[1]), start)
        return jax.lax.scan(step, physics, actions)[1]

    return jax.tree.map(np.asarray, run(actions))
