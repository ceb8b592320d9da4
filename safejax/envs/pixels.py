"""Observations as pictures: `pixels` draws what an environment's cameras see, `frame_stack` keeps the last few.

    env = frame_stack(pixels(safejax.envs.make("ball_circle"), cameras=("track",)), 3)

The pictures come from the ray caster of `safejax.envs.rendering`, and differ from MuJoCo's by rounding, silhouettes
and textures: do not mix the two in one data set.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from safejax.envs.rendering import VISIBLE_GROUPS, make_caster
from safejax.envs.tasks.base import View
from safejax.envs.wrappers import show_vector
from safejax.types import Array, ArrayTree, Env, EnvState, Key, check_count

RENDERER = "safejax.envs.rendering"
"""What `pixels` draws with."""


def pixels(
    env: Env,
    cameras: Sequence[str] = ("track",),
    *,
    height: int = 64,
    width: int = 64,
    state: bool = True,
    shadows: bool = False,
    groups: Sequence[int] = VISIBLE_GROUPS,
) -> Env:
    """`env` with observations {"pixels": uint8 [H, W, 3 * cameras], "state": [O]}.

    `final_observation` shows the state before a reset. On a CPU the picture after a reset is drawn only where an
    episode ended; elsewhere every step draws both.

    Args:
      env: an environment with a scene, such as those of `safejax.envs.make`, or of `from_brax` with a camera.
      cameras: names of its model's cameras; their colours lie beside one another in the last axis.
      height: H.
      width: W.
      state: whether to keep the environment's own observation.
      shadows: see `rendering.make_caster`.
      groups: see `rendering.make_caster`.

    Raises:
      ValueError: `env` is no environment, has no scene, or draws pictures already; and what `make_caster` raises.
    """
    _check_env(env)
    if env.scene is None:
        raise ValueError(f"{env.name or 'the environment'} has no scene to draw; expected one of safejax.envs.make")
    scene = env.scene
    if scene.observing is None:
        raise ValueError(f"{env.name or 'the environment'} is wrapped already; apply pixels first, then frame_stack")
    caster = make_caster(
        scene.model, cameras, height=height, width=width, shapes=scene.shapes, shadows=shadows, groups=groups
    )

    def observe(view: View, vector: ArrayTree, needed: Array, otherwise: ArrayTree) -> ArrayTree:
        old = jnp.moveaxis(otherwise["pixels"].reshape(height, width, len(cameras), 3), 2, 0)
        drawn = caster.rgb_where(needed, old, view.xpos, view.xquat, scene.place(view))
        observation = {"pixels": jnp.moveaxis(drawn, 0, 2).reshape(height, width, -1)}
        return observation | ({"state": show_vector(view, vector, needed, otherwise["state"])} if state else {})

    spec = {"pixels": jax.ShapeDtypeStruct((height, width, 3 * len(cameras)), jnp.uint8)}
    seen = scene.observing(observe, spec | ({"state": env.observation_spec} if state else {}))
    return seen._replace(scene=seen.scene._replace(observing=None))


def frame_stack(env: Env, count: int) -> Env:
    """`env` with the last `count` frames beside one another in the last axis, the newest last.

    Frames are the leaves named "pixels" of the observation, or, without any, all its leaves. An episode begins with
    its first frame repeated; `final_observation` ends with the last frame of the old episode.

    Raises:
      ValueError: `env` is no environment; `count` is no whole number, or below 1.
    """
    _check_env(env)
    check_count("count", count)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(env.observation_spec)]
    named = [path for path in paths if _is_pixels(path)]
    stacked = set(named or paths)

    def on_frames(function: Any, *trees: ArrayTree) -> ArrayTree:
        """`function` of the leaves that are frames; others are those of the last tree."""
        return jax.tree_util.tree_map_with_path(
            lambda path, *leaves: function(*leaves) if path in stacked else leaves[-1], *trees
        )

    repeat = functools.partial(on_frames, lambda frame: jnp.concatenate([frame] * count, axis=-1))

    def push(frames: Array, frame: Array) -> Array:
        return jnp.concatenate([frames[..., frame.shape[-1] :], frame], axis=-1)

    def reset(key: Key) -> EnvState:
        state = env.reset(key)
        observation = repeat(state.observation)
        return state._replace(observation=observation, final_observation=observation)

    def step(state: EnvState, action: Array, key: Key) -> EnvState:
        after = env.step(state, action, key)
        final_observation = on_frames(push, state.observation, after.final_observation)
        done = after.terminated | after.truncated
        observation = jax.tree.map(functools.partial(jnp.where, done), repeat(after.observation), final_observation)
        return after._replace(observation=observation, final_observation=final_observation)

    spec = on_frames(
        lambda leaf: jax.ShapeDtypeStruct((*leaf.shape[:-1], count * leaf.shape[-1]), leaf.dtype), env.observation_spec
    )
    scene = None if env.scene is None else env.scene._replace(observing=None)
    return env._replace(reset=reset, step=step, observation_spec=spec, scene=scene)


def renderer(env: Env) -> str | None:
    """Who draws the pixels of `env`, as data sets note it; None if it observes none."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(env.observation_spec)]
    if not any(map(_is_pixels, paths)):
        return None
    return "unknown" if env.scene is None else RENDERER


def _check_env(env: Any) -> None:
    if not isinstance(env, Env):
        raise ValueError(f"env is {env!r}, expected an environment, such as safejax.envs.make gives")


def _is_pixels(path: tuple[Any, ...]) -> bool:
    return bool(path) and str(getattr(path[-1], "key", getattr(path[-1], "name", ""))) == "pixels"
