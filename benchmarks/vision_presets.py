"""Budgets of `vision.py`, how its tasks are seen, and its methods, each as an offline and an online `Algorithm`.

FOSP and SafeDreamer see one picture and remember with their world model; behaviour cloning and PEX see a stack of the
last ones. What the paper says stands in the "paper" preset; the smaller ones learn faster from fewer updates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import presets

from safejax import checkpoint, envs
from safejax.algorithms import bc, fosp, iql, pex, safe_dreamer
from safejax.algorithms.safety import SafetyConfig
from safejax.multipliers import MultiplierConfig
from safejax.networks import PixelEncoder
from safejax.types import Algorithm, Env


@dataclass(frozen=True)
class Look:
    """How a task is seen."""

    cameras: tuple[str, ...]
    side: int  # of the pictures, in pixels
    action_repeat: int
    limit: float  # cost units per episode, by default
    preset: str


def look(cameras: tuple[str, ...]) -> Look:
    """By the cameras that a model has: through the robot's own where it has some, else from above."""
    if "vision" in cameras:
        return Look(("vision", "vision_back"), 64, 4, 25.0, "tiny")
    return Look(("top",), 32, 1, 20.0, "mini")


GOAL_RETURN = 30.0  # of the best episode of PointGoal1's data set

Numbers = tuple[tuple[str, Any], ...]

FAST: Numbers = (
    ("model_learning_rate", 1e-3),
    ("learning_rate", 1e-3),
    ("violation_learning_rate", 3e-4),
    ("target_update_rate", 0.1),
    # The multiplier comes further in thousands of updates than the paper's would; of .2 and more, early on, the actor
    # leaves the data for actions that the model takes for harmless.
    ("penalty", 5e-7),
    ("penalty_growth", 1 + 1e-3),
)
"""Numbers of FOSP for few updates; SafeDreamer takes those that it has."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much of everything a run spends; steps are those an agent takes, of one seed."""

    size: str | tuple[int, ...] = "tiny"  # of the world model
    hidden_sizes: tuple[int, ...] = (128, 128)  # of actors and values
    dtype: str = "float32"
    numbers: Numbers = FAST  # of the Config
    batch_size: int = 8  # windows
    length: int = 16
    horizon: int = 10
    behavior_steps: int = 250_000  # of both learners together
    behavior_env_count: int = 32  # of each
    # Start and rate of their multiplier. Great from the start: a car that has learned to race before its cost weighs
    # anything does not unlearn it in time.
    behavior_multiplier: tuple[float, float] = (1.0, 0.2)
    episodes: int = 20  # of each kind: unsafe, safe, random
    offline_updates: int = 1_000
    online_steps: int = 3_000
    env_count: int = 6
    rollout_length: int = 10
    steps_per_update: int = 10
    evaluation_episodes: int = 6
    # of behaviour cloning and PEX
    frames: int = 3
    channels: tuple[int, ...] = (16, 16, 16)
    pixel_batch_size: int = 64
    pixel_updates: int = 3_000
    pixel_steps_per_update: int = 4


PRESETS = {
    "mini": Budget(
        size=(4, 64, 8, 16, 64),
        hidden_sizes=(64, 64),
        numbers=(
            *FAST,
            ("learning_rate", 3e-4),
            ("violation_learning_rate", 1e-4),
            ("discount_factor", 0.97),
            # One step among a hundred moves a return by a hundredth of the returns' spread, which divides advantages:
            # under FISOR's 3 and 5 every action weighs the same.
            ("inverse_temperature", 10.0),
            ("cost_inverse_temperature", 30.0),
            # The ball is paid for the very speed that costs, so the choice has to weigh costs more than in PointGoal1.
            ("choice_cost_coefficient", 1.0),
        ),
        batch_size=8,
        length=16,
        horizon=8,
        behavior_steps=600_000,
        episodes=40,
        offline_updates=3_000,
        online_steps=8_192,
        env_count=8,
        rollout_length=4,
        steps_per_update=4,  # two thirds as many updates as offline, the paper's share being three quarters
        evaluation_episodes=16,
    ),
    "tiny": Budget(),
    "small": Budget(
        size="small",
        hidden_sizes=(256, 256),
        batch_size=16,
        length=32,
        horizon=15,
        episodes=100,
        offline_updates=20_000,
        online_steps=40_000,
        steps_per_update=4,
        channels=(32, 32, 32, 32),
    ),
    "paper": Budget(
        size="paper",
        hidden_sizes=(512, 512),
        dtype="bfloat16",
        numbers=(),
        batch_size=16,
        length=64,
        horizon=15,
        behavior_steps=2_500_000,
        episodes=200,
        offline_updates=125_000,
        online_steps=187_500,
        steps_per_update=2,
        evaluation_episodes=10,
        channels=(32, 32, 32, 32),
        pixel_batch_size=256,
        pixel_updates=100_000,
        pixel_steps_per_update=2,
    ),
}
"""By name; "paper" is FOSP's (its code's configuration), sized for a GPU.

Nothing is rematerialised: the compiled offline update of "paper" works in 12.0 GB beside .5 GB of state by XLA's
`memory_analysis` on a CPU, and in 10.3 GB with `jax.checkpoint` around the steps of every scan.
"""


def quick(budget: Budget) -> Budget:
    """The same path in a minute; learns nothing."""
    return replace(
        budget,
        size=(2, 16, 2, 4, 16),
        hidden_sizes=(16,),
        batch_size=2,
        length=4,
        horizon=3,
        behavior_steps=2_000,
        behavior_env_count=4,
        episodes=2,
        offline_updates=8,
        online_steps=max(64, 2 * budget.env_count * budget.rollout_length),
        steps_per_update=40,
        evaluation_episodes=2,
        channels=(4, 4, 4),
        pixel_batch_size=8,
        pixel_updates=8,
        pixel_steps_per_update=40,
    )


def changed(budget: Budget, text: str) -> Budget:
    """`budget` with numbers of a Config as in "expectile=.9,gate=none".

    Raises:
      ValueError: a name that no Config has, or a value of another kind, in one line.
    """
    defaults, given = asdict(fosp.Config()), []
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in defaults:
            raise ValueError(f"--set {part!r}, expected name=value with a name of {', '.join(defaults)}")
        kind = type(defaults[name])
        try:
            given.append((name, {"True": True, "False": False}[value] if kind is bool else kind(value)))
        except (ValueError, KeyError):
            raise ValueError(f"--set {part!r}, expected a value like {defaults[name]!r}") from None
    return replace(budget, numbers=(*budget.numbers, *given))


@dataclass(frozen=True)
class Row:
    """One method, bound."""

    label: str
    config: Any  # of the online phase, or of the only one
    offline: Algorithm
    online: Algorithm | None
    fields: Mapping[str, str] | None  # of `warm_start`; None: one State serves both phases
    frames: int  # pictures seen at once
    offline_updates: int
    batch_size: int
    steps_per_update: int
    stored: Mapping[str, Any]  # what `save_policy` has to know of the networks

    def begin(self, fresh: Callable[[], Any], pretrained: Any) -> Any:
        """The State that the online phase starts from; `fresh` is asked for one only where it is another."""
        return pretrained if self.fields is None else checkpoint.warm_start(fresh(), pretrained, dict(self.fields))


def _world_model(label: str, module: Any, budget: Budget, env: Env, **numbers: Any) -> Row:
    networks = module.default_networks(env.action_size, budget.hidden_sizes, size=budget.size, dtype=budget.dtype)
    default = module.Config(length=budget.length, horizon=budget.horizon)
    known = {name: value for name, value in budget.numbers if hasattr(default, name)}
    config = replace(default, **({"reward_scale": reward_scale(env.name)} | numbers | known))
    online = module.make(config, networks)
    offline = fosp.make_offline(config, networks) if module is fosp else online
    counts = budget.offline_updates, budget.batch_size, budget.steps_per_update
    stored = {"network_options": {"size": budget.size, "dtype": budget.dtype}}
    return Row(label, config, offline, online, None, 1, *counts, stored)


def _fosp(budget: Budget, env: Env, limit: float) -> Row:
    del limit  # FOSP's is 0 on the cost of feasible states
    return _world_model("FOSP", fosp, budget, env)


def _safe_dreamer(budget: Budget, env: Env, limit: float) -> Row:
    del limit  # its own is 2 on the cost return of imagined states
    return _world_model("SafeDreamer", safe_dreamer, budget, env, offline_fraction=fosp.Config().offline_fraction)


def reward_scale(task: str) -> float:
    """Where the best episode of the task's data set earns what PointGoal1's does, on which FOSP weighs costs."""
    reference = envs.task(task).reference if task in envs.names() else None
    return 1.0 if reference is None else float(f"{GOAL_RETURN / reference.return_max:.3g}")


def _pixel_row(label: str, budget: Budget, config: Any, offline: Algorithm, online: Any, fields: Any) -> Row:
    counts = budget.pixel_updates, budget.pixel_batch_size, budget.pixel_steps_per_update
    stored = {"encoder": PixelEncoder(budget.channels)}
    return Row(label, config, offline, online, fields, budget.frames, *counts, stored)


def _bc(budget: Budget, env: Env, limit: float) -> Row:
    del limit
    config = bc.Config()
    networks = bc.default_networks(env.action_size, budget.hidden_sizes, encoder=PixelEncoder(budget.channels))
    return _pixel_row("behaviour cloning", budget, config, bc.make(config, networks), None, None)


def _pex(budget: Budget, env: Env, limit: float) -> Row:
    encoder = PixelEncoder(budget.channels)
    multiplier = MultiplierConfig(kind="pid", proportional_gain=5e-3, integral_gain=3e-4, derivative_gain=5e-3)
    safety = SafetyConfig(cost_limit=limit, episode_length=env.episode_length)
    scale = presets.reward_scale(envs.task(env.name)) if env.name in envs.names() else 1.0
    numbers: Any = {"discount_factor": 0.97, "expectile": 0.7, "reward_scale": scale}
    offline = iql.Config(**numbers, safety=safety)
    before = iql.default_networks(env.action_size, budget.hidden_sizes, encoder=encoder)
    config = pex.Config(**numbers, safety=replace(safety, multiplier=multiplier))
    networks = pex.default_networks(env.action_size, budget.hidden_sizes, encoder=encoder)
    fields = {
        "frozen": "actor.params",
        "critic.params": "critic.params",
        "target_critic": "target_critic",
        "value.params": "value.params",
        "safety.critic.params": "safety.critic.params",
        "safety.target_critic": "safety.target_critic",
        "safety.value.params": "safety.value.params",
    }
    return _pixel_row("safe IQL, PEX", budget, config, iql.make(offline, before), pex.make(config, networks), fields)


METHODS: dict[str, Callable[[Budget, Env, float], Row]] = {
    "fosp": _fosp,
    "safe_dreamer": _safe_dreamer,
    "pex": _pex,
    "bc": _bc,
}
"""name -> (budget, env, cost limit of an episode) -> Row"""
