"""Behaviour data by name: "<maze>-play", "<maze>-diverse", "<task>-medium", "<task>-medium-replay", "<task>-expert".

Maze data come from a waypoint controller, the mass's in seconds; the ant learns to walk first (`ant_walker.py`), 14
minutes on two cores, and then walks for ten on one. Locomotion data come from SAC without costs, as in D4RL (Fu et al.
2020, https://arxiv.org/abs/2004.07219): expert is the last policy, medium the first one that reached a third of its
return, medium-replay everything that SAC saw until then. Files go to the cache, named by a digest of their recipe.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ant_walker
import jax
import jax.numpy as jnp
import numpy as np
from data_sum import recipe_digest

import safejax
from safejax import envs, training
from safejax.algorithms import bc, sac_lag
from safejax.data import Dataset, episode_returns, write_dsrl
from safejax.data.provenance import provenance
from safejax.multipliers import MultiplierConfig
from safejax.runs import Run
from safejax.types import Env, Transition, example_transition

KINDS = ("play", "diverse", "medium", "medium-replay", "expert")
FIELDS = ("observation", "action", "reward", "cost", "discount", "last", "next_observation")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How much behaviour is made; steps are environment steps."""

    maze_steps: int = 100_000  # of a mass
    ant_maze_steps: int = 1_000_000  # as D4RL
    learner_steps: int = 160_000  # of SAC
    rows: int = 100_000  # of "medium" and "expert"
    env_count: int = 8
    chunk_steps: int = 4_000
    hidden_sizes: tuple[int, ...] = (256, 256)
    batch_size: int = 256
    seed: int = 0


SAC = sac_lag.Config(
    reward_scale=1.0, critic_learning_rate=3e-4, initial_temperature=0.2, multiplier=MultiplierConfig(maximum=0.0)
)


def split(name: str) -> tuple[str, str]:
    """("point_maze_umaze", "play") of "point_maze_umaze-play".

    Raises:
      ValueError: an unknown task or kind, or a kind that the task has no behaviour of, in one line.
    """
    task, _, kind = name.partition("-")
    if kind not in KINDS or task not in envs.names():
        raise ValueError(
            f"data is {name!r}, expected a file or <task>-<kind> with a kind of {', '.join(KINDS)} and a task of "
            f"{', '.join(envs.names())}"
        )
    if (kind in ("play", "diverse")) != task.startswith(("point_maze", "ant_maze")):
        raise ValueError(f"data is {name!r}, expected play or diverse for a maze, medium or expert for a robot")
    return task, kind


def make(name: str, cache: Path, recipe: Recipe = Recipe(), engine: str | None = None) -> Path:
    """The file of the data set `name`, made now unless it is in `cache`."""
    task, kind = split(name)
    path = _path(task, kind, cache, recipe, engine)
    if path.exists():
        return path
    cache.mkdir(parents=True, exist_ok=True)
    if kind in ("play", "diverse"):
        step_count, drive = recipe.maze_steps, None
        if task.startswith("ant_maze"):
            step_count, drive = recipe.ant_maze_steps, ant_walker.walker(cache, engine=engine)
        dataset = training.collect_maze(task, kind, step_count=step_count, seed=recipe.seed, engine=engine, drive=drive)
        write_dsrl(path, dataset, _noted(_attributes(task, kind, recipe, engine)))
        return path
    for made, dataset in _locomotion(task, cache, recipe, engine).items():
        attributes = _noted(_attributes(task, made, recipe, engine))
        returns = np.asarray(episode_returns(dataset)[0])
        attributes["episode_return"] = [float(returns.mean()), float(returns.max())]
        write_dsrl(_path(task, made, cache, recipe, engine), dataset, attributes)
    return path


def _attributes(task: str, kind: str, recipe: Recipe, engine: str | None) -> dict[str, Any]:
    learner = {"sac": asdict(SAC)} if kind not in ("play", "diverse") else {}
    if task.startswith("ant_maze"):
        learner = {"walker": ant_walker.about(ant_walker.Recipe(), engine)}
    return {"task": task, "kind": kind, "engine": engine, "safejax": safejax.__version__, **asdict(recipe), **learner}


def _noted(attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a recipe and where its data come from; their observations hold no pixels."""
    engine = attributes["engine"] or envs.default_engine()
    collector = {"kind": attributes["kind"], "sac": attributes.get("sac")}
    collector |= {"walker": attributes["walker"]} if "walker" in attributes else {}
    task, seed = attributes["task"], attributes["seed"]
    return attributes | provenance(task=task, engine=engine, renderer=None, seed=seed, collector=collector)


def _path(task: str, kind: str, cache: Path, recipe: Recipe, engine: str | None) -> Path:
    digest = recipe_digest(_attributes(task, kind, recipe, engine))
    return cache / f"{task}-{kind}-{digest}.hdf5"


def _locomotion(task: str, cache: Path, recipe: Recipe, engine: str | None) -> dict[str, Dataset]:
    """Train SAC chunk by chunk, keeping every chunk's transitions and actor, then cut the three data sets."""
    env = envs.make(task, engine)
    networks = sac_lag.default_networks(env.action_size, recipe.hidden_sizes)
    algorithm = sac_lag.make(SAC, networks)
    key = jax.random.key(recipe.seed)
    replay = training.replay_for(algorithm.batch, recipe.learner_steps, recipe.env_count)
    chunk_count = recipe.learner_steps // recipe.chunk_steps
    player = bc.make(networks=bc.Networks(networks.actor))

    def iteration(updates: int, state: Any, _: Any) -> tuple[Any, tuple[Transition, Any]]:
        state, _, episodes, transitions = training.train_iteration(
            algorithm,
            env,
            state,
            key,
            rollout_length=1,
            updates_per_iteration=updates,
            batch_size=recipe.batch_size,
            replay=replay,
        )
        return state, (transitions._replace(extras={}), jnp.sum(episodes.diverged))

    def chunk(updates: int, state: Any) -> tuple[Any, Transition, Any, Any]:
        length = recipe.chunk_steps // recipe.env_count
        state, (transitions, diverged) = jax.lax.scan(functools.partial(iteration, updates), state, None, length)
        actor = bc.State(state.learner.step, state.learner.actor)
        episodes = training.evaluate(player, env, actor, key, 10)
        episode_return = jnp.mean(episodes.episode_return, where=episodes.finished)
        return state, transitions, episode_return, jnp.sum(diverged)

    warm_up, learn = (jax.jit(functools.partial(chunk, updates), donate_argnums=0) for updates in (0, recipe.env_count))

    def initial() -> Any:
        learner = algorithm.init(key, example_transition(env))
        return training.init_online(algorithm, env, learner, key, env_count=recipe.env_count, replay=replay)

    folder = _path(task, "run", cache, recipe, engine).with_suffix("")
    with Run.open(folder, {"benchmark": "behavior", **_attributes(task, "run", recipe, engine)}) as run:
        parts = folder / "parts"
        parts.mkdir(exist_ok=True)

        def advance(state: Any, index: int) -> tuple[Any, dict[str, Any]]:
            state, transitions, episode_return, diverged = (warm_up if index == 0 else learn)(state)
            leaves = jax.tree.leaves(state.learner.actor.params)
            arrays = {name: np.asarray(getattr(transitions, name)) for name in FIELDS}
            actor = {f"actor{number}": np.asarray(leaf) for number, leaf in enumerate(leaves)}
            np.savez(parts / f"{index:04d}.npz", allow_pickle=False, **arrays, **actor)
            record = {"return": float(episode_return), "diverged": int(diverged)}
            return state, {"env_steps": (index + 1) * recipe.chunk_steps, **record}

        last = run.stage("sac", initial, advance, chunk_count, check=env.check)
        returns = [row["return"] for row in run.metrics("sac")]
    medium = next(index for index, value in enumerate(returns) if value >= returns[-1] / 3)
    saved = [dict(np.load(parts / f"{index:04d}.npz")) for index in range(medium + 1)]
    params = last.learner.actor.params
    treedef, count = jax.tree.structure(params), len(jax.tree.leaves(params))
    medium_params = jax.tree.unflatten(treedef, [saved[-1][f"actor{number}"] for number in range(count)])
    play = functools.partial(_play, env, networks, recipe)
    return {
        "medium-replay": training.whole_episodes([Transition(**{name: s[name] for name in FIELDS}) for s in saved]),
        "medium": play(medium_params),
        "expert": play(params),
    }


def _play(env: Env, networks: Any, recipe: Recipe, params: Any) -> Dataset:
    """Whole episodes of a stochastic actor, about `recipe.rows` steps."""
    player = bc.make(networks=bc.Networks(networks.actor))
    actor = bc.State(jnp.zeros((), jnp.int32), bc.TrainState(params, ()))
    count = 64
    key = jax.random.key(recipe.seed + 1)
    length = recipe.rows // count + env.episode_length // 2

    @jax.jit
    def run() -> Transition:
        actors = training.start(player, env, actor, key, count)
        return training.rollout(player, env, actor, actors, key, length, explore=True)[1]

    transitions = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1)[None], run())
    env.check()
    return training.whole_episodes([transitions])
