"""A task whose physics really diverges: a sliding mass under a motor ten million times too strong."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from safejax.envs.tasks import Task
from safejax.envs.wrappers import build

MODEL = """
<mujoco>
  <option timestep="0.01"/>
  <worldbody>
    <body><joint name="slide" type="slide" axis="1 0 0"/><geom size="0.1" mass="1"/></body>
  </worldbody>
  <actuator><motor joint="slide" gear="1e13"/></actuator>
</mujoco>
"""
TASK = Task(
    name="runaway",
    model=MODEL,
    substeps=1,
    episode_length=100,
    observation_size=1,
    action_size=1,
    initialize=lambda key: (jax.random.normal(key, (1,)), jnp.zeros(1)),
    observe=lambda view: view.qpos,
    reward=lambda before, after, action: after.qpos[..., 0],
    cost=lambda view: jnp.abs(view.qpos[..., 0]),
    control=lambda action: action,
)


def runaway(make_engine):
    """The environment; any push makes its position and velocity larger than any sound number."""
    return build(TASK, make_engine(TASK))
