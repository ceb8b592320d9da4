"""Do critics rank actions as roll-outs do, before and after value pre-alignment? python benchmarks/alignment.py --help

Reads a run of offline_to_online.py that has aligned critics. Plays roll-outs of the frozen offline policy from pairs
(s, a), with the simulator set to s and a played first: pairs of the data set, and the same s with a uniform a. Prints
how the critics' values agree with the discounted sums: Spearman's rank correlation, bias and root mean squared error.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import operator
from pathlib import Path
from typing import Any, NamedTuple

import bridges
import jax
import jax.numpy as jnp
import numpy as np
import phases
import presets
import report
from job_data import load_data
from offline_to_online import OneLineParser, stop
from scipy import stats

from safejax import checkpoint, envs
from safejax.algorithms import marvel
from safejax.checkpoint import CheckpointError
from safejax.data import DatasetError
from safejax.envs.engines.base import Engine
from safejax.envs.engines.mujoco import make_engine
from safejax.envs.tasks import ball
from safejax.runs import RunError, from_plain, write_json
from safejax.types import Array, Env, Key, example_transition

SIGNALS = {"reward": "critic", "cost": "cost_critic"}  # -> field of a State and of its Networks
MEASURES = ("spearman", "bias", "rmse", "monte_carlo")
NOTES = """{task}, {offline}, {seed_count} seeds, {pairs} pairs of each kind, {repeats} roll-outs of each pair.
+-: half width of the 95 % Student-t interval over seeds; a dash: no such critic, or all values are equal.
Roll-outs end after {horizon} steps; critics also count what comes later, {tail:.0%} of the discounted steps.
Published for BallCircle's cost critic on random pairs: -0.2521 before, 0.3579 after
(arXiv 2412.04426, Table 1, as quoted in its public reviews)."""


class Critics(NamedTuple):
    """What a run left behind; leaves have a leading seed axis [S]."""

    config: marvel.Config
    networks: marvel.Networks
    aligned: marvel.State
    before: dict[str, Any]  # signal -> parameters, of the critics that pre-training had
    after: dict[str, Any]


def state_from_observation(observation: Array) -> tuple[Array, Array]:
    """The (qpos [7], qvel [6]) that Ball-Circle observes as `observation` [8].

    Height and vertical velocity are not observed: the ball lies on the floor. With the identity as orientation, the
    angular velocity in the ball's frame is the observed one; a sphere's orientation matters to nothing else.
    """
    planar, rest = 10.0 * observation[:2], jnp.array([ball.RADIUS, 1.0, 0.0, 0.0, 0.0], jnp.float32)
    velocity = jnp.append(observation[2:4] / 0.2, 0.0)
    return jnp.concatenate([planar, rest]), jnp.concatenate([velocity, 10.0 * observation[4:7]])


STATES = {"ball_circle": state_from_observation}  # task -> what rebuilds its state; other tasks cannot be measured


def make_monte_carlo(task: envs.Task, engine: Engine, act: Any, config: Any, *, repeats: int, horizon: int) -> Any:
    """A jitted estimate of the values of a stochastic policy, as critics' targets take it.

    Args:
      task, engine: the world. Ended episodes count nothing more and time limits do not exist, as in those targets.
      act: of an Algorithm.
      config: holds the discount_factor and reward_scale that the critics were trained with.
      repeats, horizon: roll-outs of each pair, and their steps, the given action's included.

    Returns:
      (state, observation [N, O], action [N, A], key) -> mean discounted sums of rewards [N] and costs [N].
    """

    def play(state: Any, observation: Array, action: Array, key: Key) -> tuple[Array, Array]:
        observation, action = (jnp.repeat(part, repeats, axis=0) for part in (observation, action))
        qpos, qvel = jax.vmap(STATES[task.name])(observation)
        physics = jax.vmap(engine.start)(jnp.ones(len(qpos), bool), qpos, qvel)

        def step(carry: Any, index: Array) -> tuple[Any, None]:
            physics, action, weight, reward, cost = carry
            after = jax.vmap(engine.step)(physics, action)  # one host call for all roll-outs
            view = engine.view(after)
            reward += weight * config.reward_scale * task.reward(engine.view(physics), view, action)
            cost += weight * task.cost(view)
            weight = weight * jnp.where(task.terminated(view), 0.0, config.discount_factor)
            action, *_ = act(state, task.observe(view), jax.random.fold_in(key, index), explore=True)
            return (after, action, weight, reward, cost), None

        zeros = jnp.zeros(len(qpos), jnp.float32)
        (*_, reward, cost), _ = jax.lax.scan(step, (physics, action, zeros + 1.0, zeros, zeros), jnp.arange(horizon))
        return jnp.mean(reward.reshape(-1, repeats), axis=1), jnp.mean(cost.reshape(-1, repeats), axis=1)

    return jax.jit(play)


def load(directory: Path, config: dict[str, Any], env: Env) -> Critics:
    """The pre-trained and the aligned critics of a run with that `config`.

    Raises:
      RunError: the run has not aligned anything.
      CheckpointError: a checkpoint is missing, damaged, or of other networks.
    """
    budget = from_plain(presets.Budget, config["budget"])
    methods = {name: presets.METHODS[name] for name in config["methods"] if name in presets.METHODS}
    rows = [name for name, method in methods.items() if method.aligned and method.learner == "marvel"]
    if not rows:
        raise RunError(f"{directory}: has no aligned critics; run it with --methods marvel first")
    # rows that align share the stage and what its targets depend on, so any of their configurations will do
    aligning = from_plain(marvel.Config, config["methods"][rows[0]])
    networks = marvel.default_networks(env.action_size, budget.hidden_sizes)
    sizes = {"action_size": env.action_size, "episode_length": env.episode_length}
    offline = bridges.offline(config["offline"], budget, **sizes, limit=config["limit"])
    online = bridges.online(methods[rows[0]], offline, config["limit"])

    def like(init: Any) -> Any:
        keys = jax.random.split(jax.random.key(0), len(config["seeds"]))
        return jax.eval_shape(jax.vmap(init, in_axes=(0, None)), keys, example_transition(env))

    shapes = like(marvel.make_alignment(aligning, networks).init)._replace(multiplier=())
    done, aligned = checkpoint.Checkpoints(directory / "checkpoints" / "alignment").latest(shapes) or (0, None)
    if aligned is None or done < phases.ALIGNMENT_CHUNKS:
        raise RunError(f"{directory}: alignment is not finished; run it with --methods marvel first")
    pretrained = checkpoint.restore(directory / "pretrained", like(offline.algorithm.init))
    # what an extraction was started from is not kept: such a run has no critics to compare with
    fields = {} if online.extracted else online.fields
    known = {signal: fields[f"{field}.params"] for signal, field in SIGNALS.items() if f"{field}.params" in fields}
    before = {signal: operator.attrgetter(path)(pretrained) for signal, path in known.items()}
    after = {signal: getattr(aligned, field).params for signal, field in SIGNALS.items()}
    return Critics(aligning, networks, aligned, before, after)


@functools.partial(jax.jit, static_argnames=("networks", "signal"))
def critic_values(networks: marvel.Networks, signal: str, params: Any, observation: Array, action: Array) -> Array:
    """[S, N] values of critics [S]: the least of the reward critics, the greatest of the cost critics."""
    network = getattr(networks, SIGNALS[signal])
    pessimistic = jnp.min if signal == "reward" else jnp.max
    return jax.vmap(lambda seed: pessimistic(network.apply(seed, observation, action), axis=0))(params)


def agreement(values: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """How critics' values [N] agree with Monte-Carlo's [N]; the correlation is NaN where either is constant."""
    error = np.asarray(values, np.float64) - truth
    constant = np.ptp(values) == 0 or np.ptp(truth) == 0
    correlation: Any = np.nan if constant else stats.spearmanr(values, truth)[0]
    numbers = (correlation, error.mean(), np.sqrt(np.mean(error**2)), np.mean(truth))
    return dict(zip(MEASURES, map(float, numbers), strict=True))


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as fixed-width text; a dash where there is no critic or no correlation is defined."""

    def cell(values: list[float] | None) -> str:
        known = [value for value in values or () if np.isfinite(value)]
        if not known:
            return "-"
        mean, half_width = report.interval(known)
        text = f"{mean:.3f} +- {'-' if np.isnan(half_width) else f'{half_width:.3f}'}"
        return f"{text} ({len(known)} seeds)" if len(known) < len(values or ()) else text

    lines = [["signal", "pairs", "alignment", "Spearman", "bias", "RMSE", "Monte Carlo"]]
    lines += [[row["signal"], row["pairs"], row["alignment"], *(cell(row[name]) for name in MEASURES)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, measure, print the table and write the JSON file."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("run", type=Path, help="directory of a run of offline_to_online.py")
    add("--data", type=Path, default=None, help="behaviour data set (default: the one the run was given)")
    add("--pairs", type=int, default=512, help="pairs of either kind, the same for all seeds (default: %(default)s)")
    add("--repeats", type=int, default=20, help="roll-outs of each pair (default: %(default)s)")
    add("--horizon", type=int, default=100, help="steps of a roll-out (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the pairs and roll-outs (default: %(default)s)")
    add("--output", type=Path, default=None, help="JSON file of the results (default: RUN/alignment.json)")
    options = parser.parse_args(arguments)
    for name, least in (("pairs", 2), ("repeats", 1), ("horizon", 1), ("seed", 0)):
        if getattr(options, name) < least:
            stop(f"--{name} is {getattr(options, name)}, expected at least {least}")
    try:
        print(measure(options))
    except (RunError, DatasetError, CheckpointError, FloatingPointError, OSError) as error:
        stop(str(error))


def measure(options: argparse.Namespace) -> str:
    """Measure a run, write the JSON file, and return the text to print."""
    try:
        config = json.loads((options.run / "config.json").read_text())
    except (OSError, ValueError):
        config = {}
    if config.get("benchmark") != "offline_to_online":
        raise RunError(f"{options.run}: no run of offline_to_online.py; run it with --methods marvel first")
    if config["task"] not in STATES:
        raise RunError(f"{options.run}: is a run of {config['task']}, expected one of {', '.join(STATES)}")
    env, task = envs.make(config["task"], "mujoco"), envs.task(config["task"])
    critics = load(options.run, config, env)
    if options.data is None and config["data"] is None:
        raise RunError(f"{options.run}: made its own data set; give its file with --data, from the cache's datasets/")
    data, count = options.data or Path(config["data"]), options.pairs
    transitions = load_data(data, env)[0].transitions
    if count > len(transitions.reward):
        raise RunError(f"--pairs is {count}, {data} has {len(transitions.reward)} rows")

    random = np.random.default_rng(options.seed)
    chosen = random.choice(len(transitions.reward), count, replace=False)
    uniform = random.uniform(-1.0, 1.0, (count, env.action_size)).astype(np.float32)
    observation = jnp.tile(transitions.observation[chosen], (2, 1))  # both kinds in one batch of roll-outs
    action = jnp.concatenate([transitions.action[chosen], uniform])
    engine, act = make_engine(task), marvel.make_alignment(critics.config, critics.networks).act
    times = {"repeats": options.repeats, "horizon": options.horizon}
    monte_carlo = make_monte_carlo(task, engine, act, critics.config, **times)
    sums = []
    for index in range(len(config["seeds"])):  # seed by seed: the simulations of all at once need much memory
        state = jax.tree.map(lambda leaf, index=index: leaf[index], critics.aligned)
        key = jax.random.fold_in(jax.random.key(options.seed), index)
        sums.append(jax.device_get(monte_carlo(state, observation, action, key)))
        engine.check()
    truth = dict(zip(SIGNALS, np.stack(sums, axis=1), strict=True))  # each [S, 2 * pairs]
    kinds = {"data": slice(None, count), "random": slice(count, None)}
    rows = []
    for signal, kind, stage in itertools.product(SIGNALS, kinds, ("before", "after")):
        params, each = getattr(critics, stage).get(signal), []
        if params is not None:
            values = np.asarray(critic_values(critics.networks, signal, params, observation, action))
            each = [
                agreement(*pair) for pair in zip(values[:, kinds[kind]], truth[signal][:, kinds[kind]], strict=True)
            ]
        measured = {name: [one[name] for one in each] or None for name in MEASURES}
        rows.append({"signal": signal, "pairs": kind, "alignment": stage, **measured})

    output = options.output or options.run / "alignment.json"
    gamma = critics.config.discount_factor
    results = {name: config[name] for name in ("task", "offline", "seeds")}
    results |= {name: getattr(options, name) for name in ("pairs", "repeats", "horizon", "seed")}
    results |= {"data": str(data), "discount_factor": gamma, "reward_scale": critics.config.reward_scale, "rows": rows}
    write_json(output, json.loads(json.dumps(results), parse_constant=lambda _: None))  # JSON has no NaN
    notes = NOTES.format(**results, seed_count=len(sums), tail=gamma**options.horizon)
    return f"{table(rows)}\n{notes}\nwritten to {output}"


if __name__ == "__main__":
    main()
