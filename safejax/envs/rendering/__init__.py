"""Pictures of MuJoCo scenes by casting rays, as JAX functions: no OpenGL, any device, many scenes at once.

caster = make_caster(model, cameras=("track", "top"))
image = jax.jit(jax.vmap(caster.render))(view.xpos, view.xquat)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from safejax.envs.rendering.caster import ALL_GROUPS, VISIBLE_GROUPS, Caster, Image, make_caster
from safejax.envs.tasks.base import Shape, View
from safejax.types import Array, Env, EnvState

__all__ = ["ALL_GROUPS", "VISIBLE_GROUPS", "Caster", "Image", "Scene", "Shape", "make_caster"]


class Scene(NamedTuple):
    """What may be drawn of an environment."""

    model: Any  # mujoco.MjModel
    view: Callable[[EnvState], View]
    shapes: tuple[Shape, ...]
    place: Callable[[View], Array]  # positions [n, 3] of the shapes
    observing: Callable[..., Env] | None = None  # see safejax.envs.wrappers.build; None once it is wrapped
