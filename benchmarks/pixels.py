"""From pictures alone, offline to online: python benchmarks/pixels.py --help

Random actions in a world that is seen by a camera make a data set; IQL learns from it through a convolutional encoder;
Marvel takes over actor and critic, aligns, and goes on in the world under a cost limit. Prints one JSON object: return
and cost of the random, the offline and the online policy, mean and 95 % interval over seeds.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np
import presets
from offline_to_online import OneLineParser, at_least, choose, stop
from report import interval

from safejax import checkpoint, envs, training
from safejax.algorithms import iql, marvel
from safejax.data.dataset import Dataset
from safejax.envs.pixels import frame_stack, pixels
from safejax.networks import PixelEncoder
from safejax.types import Env, Key, Transition, example_transition


@dataclass(frozen=True)
class Budget:
    """How much of everything; steps of one seed."""

    env_count: int = 16
    data_episodes: int = 8  # of every environment
    offline_updates: int = 3_000
    alignment_updates: int = 500
    online_steps: int = 12_800
    steps_per_update: int = 8
    batch_size: int = 64
    hidden_sizes: tuple[int, ...] = (64, 64)
    channels: tuple[int, ...] = (16, 16, 16)


QUICK = Budget(4, 1, 20, 5, 800, 80, 16, (16,), (4, 4, 4))


def main(arguments: list[str] | None = None) -> None:
    """Check the options, learn, print."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="ball_run", help="(default: %(default)s)")
    parser.add_argument("--camera", default="top", help="(default: %(default)s)")
    parser.add_argument("--size", type=int, default=32, help="pixels a side (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=3, help="seen at once (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=20.0, help="cost units an episode (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="one after the other (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="the same path in seconds; learns nothing")
    options = parser.parse_args(arguments)
    choose("task", options.task, envs.names())
    at_least("frames", options.frames, 1)
    at_least("seeds", options.seeds, 1)
    try:
        seen = pixels(envs.make(options.task), (options.camera,), height=options.size, width=options.size, state=False)
    except ValueError as error:
        stop(str(error))
    env, budget = frame_stack(seen, options.frames), QUICK if options.quick else Budget()
    begun = time.perf_counter()
    rows = [learn(env, budget, options.limit, jax.random.key(seed)) for seed in range(options.seeds)]
    results: dict[str, Any] = {"task": options.task, **vars(options), "budget": vars(budget)}
    for name in rows[0]:
        values = np.array([row[name] for row in rows])  # [seeds, 2]
        quantities = zip(("return", "cost"), values.T, strict=True)
        results[name] = {quantity: summary(column) for quantity, column in quantities}
    versions = measure.machine()
    print(json.dumps(results | {"seconds": round(time.perf_counter() - begun), "machine": versions}))


def summary(values: np.ndarray) -> dict[str, float | None]:
    """Mean and half width of the 95 % interval over seeds; of one seed there is none."""
    return {"mean": float(values.mean()), "half_interval": float(interval(values)[1]) if len(values) > 1 else None}


def learn(env: Env, budget: Budget, limit: float, key: Key) -> dict[str, tuple[float, float]]:
    """Return and cost of the three policies of one seed."""
    encoder = PixelEncoder(channels=budget.channels)
    scale = presets.reward_scale(envs.task(env.name))
    dataset, random = collect(env, budget, key)
    networks = iql.default_networks(env.action_size, budget.hidden_sizes, actor="squashed", encoder=encoder)
    offline = iql.make(iql.Config(discount_factor=0.97, reward_scale=scale), networks)
    state = jax.jit(offline.init)(key, example_transition(env))
    train = functools.partial(training.train_offline, batch_size=budget.batch_size)
    state, _ = jax.jit(functools.partial(train, offline, step_count=budget.offline_updates))(state, dataset, key)
    found = {"random": random, "offline": play(offline, env, state, key)}

    method = presets.METHODS["marvel"]
    config = replace(presets.finetuning_config(method, limit), reward_scale=scale)
    networks = marvel.default_networks(env.action_size, budget.hidden_sizes, encoder=encoder)
    aligning, online = marvel.make_alignment(config, networks), marvel.make_finetuning(config, networks)
    learner = checkpoint.warm_start(
        jax.jit(online.init)(key, example_transition(env)),
        state,
        {"actor.params": "actor.params", "critic.params": "critic.params", "target_critic": "critic.params"},
    )
    learner, _ = jax.jit(functools.partial(train, aligning, step_count=budget.alignment_updates))(learner, dataset, key)
    replay = training.replay_for(online.batch, budget.online_steps, budget.env_count)
    begin = training.init_online(online, env, learner, key, env_count=budget.env_count, replay=replay)
    rollout_length = 4
    steps = rollout_length * budget.env_count
    run = functools.partial(
        training.train_online,
        online,
        env,
        iteration_count=budget.online_steps // steps,
        rollout_length=rollout_length,
        updates_per_iteration=max(1, steps // budget.steps_per_update),
        batch_size=budget.batch_size,
        replay=replay,
    )
    end, _ = jax.jit(lambda state, key, dataset: run(state, key, dataset=dataset))(begin, key, dataset)
    env.check()
    return found | {"online": play(online, env, end.learner, key)}


def collect(env: Env, budget: Budget, key: Key) -> tuple[Dataset, tuple[float, float]]:
    """Whole episodes of random actions, each held for a random while, and what they earned in the mean."""
    count, length = budget.env_count, budget.data_episodes * env.episode_length

    def step(carry: Any, key: Key) -> tuple[Any, Transition]:
        states, actions = carry
        keys = jax.random.split(key, 3)
        fresh = jax.random.uniform(keys[0], actions.shape, minval=-1.0, maxval=1.0)
        actions = jnp.where(jax.random.uniform(keys[1], (count, 1)) < 0.2, fresh, actions)
        after = jax.vmap(env.step)(states, actions, jax.random.split(keys[2], count))
        last = (after.terminated | after.truncated).astype(jnp.float32)
        transition = Transition(
            states.observation,
            actions,
            after.reward,
            after.cost,
            1.0 - after.terminated,
            last,
            after.final_observation,
        )
        return (after, actions), transition

    @jax.jit
    def run(key: Key) -> Transition:
        states = jax.vmap(env.reset)(jax.random.split(key, count))
        return jax.lax.scan(step, (states, jnp.zeros((count, env.action_size))), jax.random.split(key, length))[1]

    transitions = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1)[None], run(jax.random.fold_in(key, 1)))
    env.check()
    episodes = float(jnp.maximum(transitions.last.sum(), 1))
    earned = float(transitions.reward.sum()) / episodes, float(transitions.cost.sum()) / episodes
    return training.whole_episodes([transitions]), earned


def play(algorithm: Any, env: Env, state: Any, key: Key) -> tuple[float, float]:
    """Mean return and cost of 16 episodes, acting deterministically."""
    episodes = jax.jit(lambda state: training.evaluate(algorithm, env, state, key, 16))(state)
    return float(episodes.episode_return.mean()), float(episodes.episode_cost.mean())


if __name__ == "__main__":
    main()
