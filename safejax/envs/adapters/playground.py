"""MuJoCo Playground's environments for our loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from safejax.envs.adapters.brax import from_brax
from safejax.types import Array, Env, EnvState


def from_playground(
    env: Any,
    cost: Callable[[Any], Array] | None = None,
    *,
    observation: str | None = "state",
    episode_length: int | None = None,
    name: str = "",
) -> Env:
    """A MuJoCo Playground environment, without its wrappers, as an `Env`.

        env = from_playground("CartpoleBalance", lambda state: jnp.abs(state.obs[0]) > 0.5)

    Args:
      env: a name in Playground's registry, loaded with impl="jax" (its default, warp, needs an NVIDIA GPU); or an
        environment.
      cost: state after the step -> [] >= 0; by default `state.info["cost"]`. It sees all of `state.obs`.
      observation: which part of a dictionary observation the policy sees, such as "state" or "privileged_state";
        None keeps the dictionary.
      episode_length: environment steps until truncation; by default that of the environment's configuration.
      name: the name of the result.

    Raises:
      ModuleNotFoundError: a name is given and Playground is not installed.
      ValueError: `cost` is not given and `state.info` has no "cost", or a dictionary observation without
        `observation`.
    """
    if isinstance(env, str):
        name, env = name or env, _load(env)
    length = episode_length or int(env._config.episode_length)
    whole = from_brax(env, cost, episode_length=length, name=name)
    spec = whole.observation_spec
    if observation is None or not isinstance(spec, dict):
        return whole
    if observation not in spec:
        raise ValueError(f"{whole.name} has no observation {observation!r}, expected one of {', '.join(spec)}")

    def seen(state: EnvState) -> EnvState:
        parts = state.observation[observation], state.final_observation[observation]
        return state._replace(observation=parts[0], final_observation=parts[1])

    return whole._replace(
        reset=lambda key: seen(whole.reset(key)),
        step=lambda state, action, key: seen(whole.step(state, action, key)),
        observation_spec=spec[observation],
    )


def _load(name: str) -> Any:
    try:
        from mujoco_playground import registry  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        message = "MuJoCo Playground is not installed: pip install 'safejax[playground]'"
        raise ModuleNotFoundError(message, name=error.name) from error
    return registry.load(name, config_overrides={"impl": "jax"})
