"""Budgets, and the methods that `offline_to_online.py` compares: what differs between its rows stands here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace

from safejax.algorithms import marvel, ppo_lag
from safejax.envs import Task
from safejax.multipliers import MultiplierConfig


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much of everything a run spends; steps are environment steps of one seed unless said otherwise."""

    hidden_sizes: tuple[int, ...] = (64, 64)
    batch_size: int = 256
    env_count: int = 16  # environments of each off-policy learner
    rollout_length: int = 4  # steps of every environment between updates
    steps_per_update: int = 8  # environment steps per gradient step, off-policy
    behavior_seeds: int = 2  # learners that make the data set
    behavior_env_count: int = 32  # environments of each of them
    behavior_steps: int = 1_000_000  # of all of them together
    behavior_per_bin: int = 4  # episodes kept in each cell of the return x cost grid
    behavior_cost_maximum: float = 80.0  # of an episode that is kept, cost units; DSRL's where it has the task
    behavior_limits: tuple[float, float] = (5.0, 1000.0)  # of the learners, first and last, cost units; see `LIMITS`
    offline_updates: int = 16_000
    extraction_updates: int = 5_000  # of a Gaussian from a policy that SAC cannot fine-tune
    alignment_updates: int = 5_000
    scratch_steps: int = 102_400
    finetune_steps: int = 41_600
    warmup_steps: int = 3_200  # collected before the first update
    evaluation_episodes: int = 20


BUDGETS = {
    "default": Budget(),
    # Marvel's and OSRL's sizes and counts: arXiv 2412.04426 (code), OSRL cpq configs. Sized for a GPU.
    "paper": Budget(
        hidden_sizes=(256, 256),
        behavior_steps=10_000_000,
        behavior_env_count=64,
        offline_updates=100_000,
        extraction_updates=50_000,
        alignment_updates=20_000,
        scratch_steps=1_000_000,
        finetune_steps=100_000,
    ),
}


def quick(budget: Budget) -> Budget:
    """A twentieth of the counts, the same path."""
    updates = ("offline_updates", "extraction_updates", "alignment_updates")
    counts = (*updates, "behavior_steps", "scratch_steps", "finetune_steps")
    return replace(budget, **{name: getattr(budget, name) // 20 for name in counts})


@dataclass(frozen=True)
class Method:
    """One row of the table: how fine-tuning starts and what drives its multiplier."""

    label: str
    pretrained: bool  # starts from the offline checkpoint
    aligned: bool  # value pre-alignment first
    multiplier: MultiplierConfig
    offline_fraction: float  # of each fine-tuning batch drawn from the behaviour data
    learning_rates: tuple[float, float] = (3e-4, 1e-3)  # actor, critics; the same grid for every row
    learner: str = "marvel"  # or "pex", "diffcps": which bridge the offline policy takes, see `bridges.py`


# Every row's multiplier starts at the same value; finished episodes arrive one by one (staggered clocks), so a tick is
# small. Gains and learning rates were tuned on keys split from 100, which no table reports.
INITIAL = 0.35
DUAL_ASCENT = MultiplierConfig(kind="dual_ascent", learning_rate=0.003, initial=INITIAL)
FIXED_PID = MultiplierConfig(
    kind="pid", proportional_gain=5e-3, integral_gain=3e-4, derivative_gain=5e-3, initial=INITIAL
)
ADAPTIVE_PID = replace(FIXED_PID, kind="adaptive_pid")

METHODS = {
    "from_scratch": Method("from scratch (SAC-Lagrangian)", False, False, DUAL_ASCENT, 0.0),
    "warm_start": Method("warm start", True, False, DUAL_ASCENT, 0.25),
    "marvel": Method("Marvel", True, True, ADAPTIVE_PID, 0.25),
    "no_alignment": Method("Marvel without alignment", True, False, ADAPTIVE_PID, 0.25),
    "dual_ascent": Method("Marvel with dual ascent", True, True, DUAL_ASCENT, 0.25),
    "fixed_pid": Method("Marvel with fixed PID", True, True, FIXED_PID, 0.25),
    "empty_replay": Method("Marvel from an empty replay", True, True, ADAPTIVE_PID, 0.0),
    "policy_expansion": Method("policy expansion", True, True, ADAPTIVE_PID, 0.5, learner="pex"),
    "diffcps_online": Method("DiffCPS online", True, True, ADAPTIVE_PID, 0.25, learner="diffcps"),
}


STEP_REWARD = 0.1 * 881.46337890625 / 200  # of the best BallCircle episode in DSRL, scaled


def reward_scale(task: Task) -> float:
    """Where the best episode of the task's data set earns what BallCircle's does at .1, which all rates are tuned for.

    Costs are 0 or 1 a step everywhere, so a multiplier then means the same in every task.
    """
    if task.reference is None:
        return ppo_lag.Config().reward_scale
    return float(f"{STEP_REWARD * task.episode_length / task.reference.return_max:.6g}")


LIMITS = {
    **dict.fromkeys(("ball_run", "car_run", "car_circle"), (5.0, 100.0)),
    **dict.fromkeys(("ball_circle", "ant_run", "ant_circle"), (5.0, 200.0)),
    **{"drone_run": (100.0, 5.0), "drone_circle": (5.0, 150.0)},
    **{f"{robot}_circle{level}": (5.0, 200.0) for robot in ("point", "car") for level in (1, 2)},
    **{f"{robot}_goal1": (80.0, 5.0) for robot in ("point", "car")},
    **{f"{robot}_goal2": (180.0, 5.0) for robot in ("point", "car")},
    **{"point_button1": (150.0, 5.0), "car_button1": (200.0, 10.0)},
    **{"point_button2": (200.0, 5.0), "car_button2": (300.0, 10.0)},
    **{"point_push1": (100.0, 5.0), "car_push1": (150.0, 10.0)},
    **{"point_push2": (150.0, 5.0), "car_push2": (200.0, 10.0)},
    **dict.fromkeys(("half_cheetah_velocity", "hopper_velocity"), (250.0, 10.0)),
    **{"swimmer_velocity": (200.0, 10.0), "walker2d_velocity": (10.0, 300.0), "ant_velocity": (20.0, 300.0)},
}
"""First and last cost limit of the learners that make a task's data: scripts/train_trpol_expert.py of DSRL@71064f2."""

LATE = {"car_circle": 4_000_000}
"""Least behaviour steps of a task whose learners begin to earn late; DSRL's make ten million."""


def for_task(budget: Budget, task: Task) -> Budget:
    """The budget with how the task's data are made; where DSRL does not say, limits rise to a cost at every step."""
    return replace(
        budget,
        behavior_limits=LIMITS.get(task.name, (5.0, float(task.episode_length))),
        behavior_steps=max(budget.behavior_steps, LATE.get(task.name, 0)),
        behavior_cost_maximum=task.reference.cost_max if task.reference else budget.behavior_cost_maximum,
    )


def behavior_config(scale: float) -> ppo_lag.Config:
    """The data collector's numbers; its cost limit moves."""
    return ppo_lag.Config(reward_scale=scale)


# Discount .97 is FSRL's for the Bullet tasks; at .99 learning here takes twice the steps.
FINETUNING = marvel.Config(discount_factor=0.97, target_update_rate=0.01, initial_temperature=0.01)


def finetuning_config(method: Method, limit: float) -> marvel.Config:
    """The numbers of alignment and fine-tuning of one row."""
    actor_rate, critic_rate = method.learning_rates
    return replace(
        FINETUNING,
        cost_limit=limit,
        multiplier=method.multiplier,
        offline_fraction=method.offline_fraction,
        actor_learning_rate=actor_rate,
        critic_learning_rate=critic_rate,
    )


def plain(value: object) -> dict:
    """A frozen dataclass as JSON-able values."""
    return dataclasses.asdict(value)  # type: ignore[arg-type]
