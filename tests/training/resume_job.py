"""The program that test_resume.py kills: SAC-Lagrangian on ball_circle, two seeds, saved after every chunk."""

from __future__ import annotations

import functools
import sys

import jax

from safejax import envs, training
from safejax.algorithms import sac_lag
from safejax.runs import Run
from safejax.types import example_transition

CHUNKS = 6


def main(directory: str) -> None:
    env = envs.make("ball_circle")
    algorithm = sac_lag.make(networks=sac_lag.default_networks(env.action_size, (8,)))
    replay = training.replay_for(algorithm.batch, 800, 4)
    keys = jax.random.split(jax.random.key(7), 2)

    def begin(key):
        learner = algorithm.init(key, example_transition(env))
        return training.init_online(algorithm, env, learner, key, env_count=4, replay=replay, stagger=True)

    train = functools.partial(
        training.train_online,
        algorithm,
        env,
        iteration_count=25,
        rollout_length=2,
        updates_per_iteration=1,
        batch_size=8,
        replay=replay,
    )
    chunk = jax.jit(jax.vmap(train), donate_argnums=0)

    def advance(state, index):
        state, (metrics, _) = chunk(state, keys)
        return state, {"loss": metrics["critic/loss"].mean(axis=(1, 2))}

    with Run.open(directory, {"job": "resume"}) as run:
        run.stage("online", lambda: jax.jit(jax.vmap(begin))(keys), advance, CHUNKS, check=env.check)


if __name__ == "__main__":
    main(sys.argv[1])
