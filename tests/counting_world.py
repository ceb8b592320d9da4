"""A world whose every number is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from safejax.types import Env, EnvState


def counting(begins=(1, 2, 3, 4), diverging=()):
    """Counts up from ten times one of `begins`; terminates at the 2nd step from even ones, else is cut at the 3rd.

    The reward is the count after the step, the cost 1 at odd counts. A reset observation is never the final one.
    Steps to the counts `diverging` diverge.
    """

    def state_at(count, steps, reward, cost, terminated, truncated, final, diverged=False):
        return EnvState(
            physics=count,
            observation=count[None],
            reward=jnp.asarray(reward, jnp.float32),
            cost=jnp.asarray(cost, jnp.float32),
            terminated=jnp.asarray(terminated),
            truncated=jnp.asarray(truncated),
            final_observation=final[None],
            steps=jnp.asarray(steps, jnp.int32),
            diverged=jnp.asarray(diverged),
        )

    def begin(key):
        return 10.0 * jax.random.choice(key, jnp.array(begins, jnp.float32))

    def reset(key):
        count = begin(key)
        return state_at(count, 0, 0.0, 0.0, False, False, count)

    def step(state, action, key):
        del action
        count, steps = state.physics + 1.0, state.steps + 1
        diverged = jnp.isin(count, jnp.array(diverging, jnp.float32))
        terminated = (jnp.floor(count / 10.0) % 2 == 0) & (steps == 2) & ~diverged
        truncated = (steps == 3) & ~terminated | diverged
        ended = terminated | truncated
        following = jnp.where(ended, begin(key), count)
        steps = jnp.where(ended, 0, steps)
        reward, cost = (jnp.where(diverged, 0.0, value) for value in (count, count % 2))
        final = jnp.where(diverged, following, count)
        return state_at(following, steps, reward, cost, terminated, truncated, final, diverged)

    return Env(reset, step, jax.ShapeDtypeStruct((1,), jnp.float32), 1, 3, "counting")


def pictured():
    """`counting` that also shows its count as a picture."""
    world = counting()

    def show(state):
        def seen(count):
            return {"pixels": jnp.full((2, 2, 3), count[0]).astype(jnp.uint8), "state": count}

        return state._replace(observation=seen(state.observation), final_observation=seen(state.final_observation))

    return world._replace(
        reset=lambda key: show(world.reset(key)),
        step=lambda state, action, key: show(world.step(state, action, key)),
        observation_spec={
            "pixels": jax.ShapeDtypeStruct((2, 2, 3), jnp.uint8),
            "state": jax.ShapeDtypeStruct((1,), jnp.float32),
        },
    )
