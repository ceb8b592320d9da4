"""Numbers of every offline method for every data set, and what was published: what `offline.py` runs and compares with.

Preset "paper" holds each paper's own numbers; "default" keeps them but for the sizes, which two CPU cores can bear.
Data that no paper has seen take the numbers of their nearest relative in D4RL, see `relative`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from safejax.algorithms import align_iql, awr, bc, cpq, diffcps, diffusion_bc, diffusion_ql, idql, iql, sfbc, td3_bc
from safejax.types import check_choice


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One method on one data set."""

    config: Any  # the method's Config
    hidden_sizes: tuple[int, ...]  # passed to the module's default_networks
    batch_size: int  # transitions; windows where the method's BatchSpec is a sequence
    updates: int
    reward: str  # a key of REWARDS
    network_options: dict[str, Any] = field(default_factory=dict)  # further keyword arguments of default_networks


def _range(reward: np.ndarray, episode_return: np.ndarray) -> np.ndarray:
    span = float(np.max(episode_return) - np.min(episode_return))
    if not span > 0.0:
        raise ValueError(f"returns span {span:g}, expected episodes of different returns for reward 'range'; use 'raw'")
    return reward * (1000.0 / span)


def _standardized(reward: np.ndarray, episode_return: np.ndarray) -> np.ndarray:
    del episode_return
    deviation = float(np.std(reward))
    if not deviation > 0.0:
        raise ValueError(f"rewards deviate by {deviation:g}, expected > 0 for reward 'standardized'; use 'raw'")
    return (reward - float(np.mean(reward))) / deviation


REWARDS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "raw": lambda reward, episode_return: reward,
    "minus_one": lambda reward, episode_return: reward - 1.0,  # IQL, antmaze
    "centered": lambda reward, episode_return: 4.0 * (reward - 0.5),  # Diffusion-QL and DiffCPS, antmaze
    "range": _range,  # IQL, locomotion
    "standardized": _standardized,  # Diffusion-QL, Adroit
}
"""Of a data set before learning: (reward [N], undiscounted return of every episode [M]) -> reward [N]."""


class Domain(NamedTuple):
    """What papers set for a group of tasks at once."""

    expectile: float  # IQL appendix B; IDQL appendix E; the launchers of AlignIQL
    inverse_temperature: float  # IQL's; its dropout of .1 in the actor for Adroit and kitchen is not implemented here
    candidate_count: int  # N of IDQL-A, appendix E; for Adroit and kitchen that of its "-1" runs
    mean_of_best: int  # SfBC, appendix B.1
    iql_reward: str  # of IQL, IDQL and AlignIQL
    diffusion_ql_reward: str  # of Diffusion-QL, appendix C, and DiffCPS
    td3_bc_reward: str  # the paper has locomotion alone; antmaze is tinkoff-ai/CORL's


LOCOMOTION = Domain(0.7, 3.0, 128, 4, "range", "raw", "raw")
DOMAINS = {
    "hopper": LOCOMOTION,
    "halfcheetah": LOCOMOTION,
    "walker2d": LOCOMOTION,
    "antmaze": Domain(0.9, 10.0, 32, 1, "minus_one", "centered", "minus_one"),
    "pen": Domain(0.7, 0.5, 64, 1, "raw", "standardized", "raw"),
    "kitchen": Domain(0.7, 0.5, 64, 1, "raw", "raw", "raw"),
}
"""By the first word of a D4RL name."""


class Task(NamedTuple):
    """What Diffusion-QL (Wang et al. 2023, https://arxiv.org/abs/2208.06193, table 3) and DiffCPS (He et al. 2023,
    https://arxiv.org/abs/2310.05333v1, table 3) set for each data set; * read in the code alone (d871f5c, e31b267).
    """

    actor_learning_rate: float  # of both
    max_q: bool  # of both: the max-Q backup, of 10 actions*
    clip_norm: float  # of both*
    kilo_updates: int  # of both: epochs
    value_weight: float  # Diffusion-QL's eta
    behavior_limit: float = 0.05  # DiffCPS's kappa; it has neither Adroit nor kitchen, these are hopper-medium's
    initial_multiplier: float = 1.0  # DiffCPS's lambda*
    minimum_multiplier: float = 0.0
    policy_frequency: int = 2


TASKS = {
    "halfcheetah-medium": Task(3e-4, False, 9.0, 2000, 1.0, 0.06),
    "hopper-medium": Task(3e-4, False, 9.0, 2000, 1.0, 0.05),
    "walker2d-medium": Task(3e-4, False, 1.0, 2000, 1.0, 0.03),
    "halfcheetah-medium-replay": Task(3e-4, False, 2.0, 2000, 1.0, 0.06),
    "hopper-medium-replay": Task(3e-4, False, 4.0, 2000, 1.0, 0.03),
    "walker2d-medium-replay": Task(3e-4, False, 4.0, 2000, 1.0, 0.03),
    "halfcheetah-medium-expert": Task(3e-4, False, 7.0, 2000, 1.0, 0.04),
    "hopper-medium-expert": Task(3e-4, False, 5.0, 2000, 1.0, 0.03),
    "walker2d-medium-expert": Task(3e-4, False, 5.0, 2000, 1.0, 0.04),
    "antmaze-umaze": Task(3e-4, False, 2.0, 1000, 0.5, 0.2, 3.0, 0.3),
    "antmaze-umaze-diverse": Task(3e-4, True, 3.0, 1000, 2.0, 0.09, 3.0, 0.3),
    "antmaze-medium-play": Task(1e-3, True, 2.0, 1000, 2.0, 0.3, 1.0, 0.3),
    "antmaze-medium-diverse": Task(3e-4, True, 1.0, 1000, 3.0, 0.2, 1.0, 0.3),
    "antmaze-large-play": Task(3e-4, True, 10.0, 1000, 4.5, 0.2, 0.5, 0.3, 4),
    "antmaze-large-diverse": Task(3e-4, True, 7.0, 1000, 3.5, 0.2, 0.5, 0.3, 4),
    "pen-human": Task(3e-5, False, 7.0, 1000, 0.15),
    "pen-cloned": Task(3e-5, False, 8.0, 1000, 0.1),
    "kitchen-complete": Task(3e-4, False, 9.0, 250, 0.005),
    "kitchen-partial": Task(3e-4, False, 10.0, 1000, 0.005),
    "kitchen-mixed": Task(3e-4, False, 10.0, 1000, 0.005),
}
"""By D4RL name without version (locomotion -v2, antmaze -v0, pen -v1, kitchen -v0)."""

# ours -> the papers'; none of them ran the ant or the humanoid
_ROBOTS = {
    "half_cheetah": "halfcheetah",
    "hopper": "hopper",
    "walker2d": "walker2d",
    "ant": "walker2d",
    "humanoid": "walker2d",
}

RELATIVES = {
    **{f"{robot}_maze_umaze-play": "antmaze-umaze" for robot in ("point", "ant")},
    **{f"{robot}_maze_umaze-diverse": "antmaze-umaze-diverse" for robot in ("point", "ant")},
    **{
        f"{robot}_maze_{size}-{kind}": f"antmaze-{size}-{kind}"
        for robot in ("point", "ant")
        for size in ("medium", "large")
        for kind in ("play", "diverse")
    },
    **{f"{ours}_velocity-medium": f"{theirs}-medium" for ours, theirs in _ROBOTS.items()},
    **{f"{ours}_velocity-medium-replay": f"{theirs}-medium-replay" for ours, theirs in _ROBOTS.items()},
    **{f"{ours}_velocity-expert": f"{theirs}-medium-expert" for ours, theirs in _ROBOTS.items()},
}
"""Data set made by `behavior.py` -> the closest of `TASKS`."""

_FALLBACKS = (
    ("(point_maze|ant_?maze).*large", "antmaze-large-play"),
    ("(point_maze|ant_?maze).*medium", "antmaze-medium-play"),
    ("point_maze|ant_?maze", "antmaze-umaze"),
    ("(pen|hammer|door|relocate)-human", "pen-human"),
    ("(pen|hammer|door|relocate)-", "pen-cloned"),
    ("", "hopper-medium"),
)


def _name(data: str) -> str:
    return re.sub(r"-v\d+$", "", PurePath(data).name.removesuffix(".hdf5"))


def relative(data: str) -> str:
    """The key of `TASKS` whose numbers serve `data`.

    A name of D4RL serves all of its versions, one made here is looked up in `RELATIVES`. Others fall back: mazes by
    size to antmaze-umaze, -medium-play or -large-play, Adroit to pen-human or -cloned, all else to hopper-medium.
    """
    name = _name(data)
    fallback = next(known for pattern, known in _FALLBACKS if re.match(pattern, name))
    return name if name in TASKS else RELATIVES.get(name, fallback)


def family(data: str) -> str:
    """One of "maze", "locomotion", "other", by the name of a data set."""
    name = _name(data)
    if re.match("point_maze|ant_?maze", name):
        return "maze"
    robots = "hopper|half_?cheetah|walker2d|ant(?!_run|_circle)|humanoid"  # Bullet's ant is another
    return "locomotion" if re.match(f"({robots})([-_]|$)", name) else "other"


def setting(method: str, data: str, preset: str) -> Setting:
    """What `method` learns `data` with.

    Args:
      method: a key of `METHODS`.
      data: the name of a data set, of D4RL ("hopper-medium-v2") or made here ("point_maze_umaze-play"), or a file.
      preset: "paper", the papers' numbers for `relative(data)`; or "default", 50,000 updates on 256 transitions with
        layers of 128, or 100,000 with the papers' layers for an ant's maze; the changes of `SMALL`, and the papers'
        numbers else.

    Raises:
      ValueError: an unknown method or preset, in one line.
    """
    check_choice("method", method, METHODS)
    check_choice("preset", preset, ("default", "paper"))
    name = relative(data)
    _, build = _ROWS[method]
    paper = build(TASKS[name], DOMAINS[name.partition("-")[0]])
    return paper if preset == "paper" else _small(method, paper, wide=re.match("ant_?maze", _name(data)) is not None)


SMALL_UPDATES, SMALL_BATCH, SMALL_WIDTH = 50_000, 256, 128
WIDE_UPDATES = 100_000  # of an ant's maze, where policies with layers of 128 walk and seldom arrive

SMALL: dict[str, dict[str, Any]] = {
    "idql": {"candidate_count": 16},
    "align_iql": {"candidate_count": 16},
    "align_iql_hard": {"candidate_count": 16, "dual_sample_count": 4},
    "sfbc": {"candidate_count": 4, "diffusion": sfbc.Config().diffusion},
}
"""What the default preset changes in a Config, besides the length of learning-rate decays. Four samples a state keep an
update of the last two within the price of Diffusion-QL's with its max-Q backup."""


def _small(method: str, paper: Setting, *, wide: bool) -> Setting:
    changes, updates = SMALL.get(method, {}), WIDE_UPDATES if wide else SMALL_UPDATES
    if getattr(paper.config, "actor_decay_steps", 0):
        changes = changes | {"actor_decay_steps": updates}
    return replace(
        paper,
        config=replace(paper.config, **changes),
        hidden_sizes=paper.hidden_sizes if wide else (SMALL_WIDTH,) * len(paper.hidden_sizes),
        batch_size=SMALL_BATCH // getattr(paper.config, "sequence_length", 1),
        updates=updates,
    )


MILLION = 1_000_000
_plain = functools.partial(Setting, hidden_sizes=(256, 256), batch_size=256, updates=MILLION)  # nearly every paper's


def _bc(task: Task, domain: Domain) -> Setting:
    """As in tinkoff-ai/CORL@6afec90, whose scores are quoted, but for the likelihood in place of a squared error."""
    return _plain(config=bc.Config(learning_rate=3e-4), reward="raw")


def _iql(task: Task, domain: Domain) -> Setting:
    config = iql.Config(
        expectile=domain.expectile, inverse_temperature=domain.inverse_temperature, actor_decay_steps=MILLION
    )
    return _plain(config=config, reward=domain.iql_reward)


def _diffusion_bc(task: Task, domain: Domain) -> Setting:
    """IDQL's actor alone."""
    config = diffusion_bc.Config(actor_decay_steps=3 * MILLION)
    return _plain(config=config, batch_size=512, updates=3 * MILLION, reward="raw")


def _idql(task: Task, domain: Domain) -> Setting:
    """IDQL-A, appendix E. There the actor learns 3M times from 1024 rows and the critic 1.5M times from 256; here one
    batch serves both, as in the last state of its code: 3M times 512 rows."""
    config = idql.Config(
        expectile=domain.expectile, candidate_count=domain.candidate_count, actor_decay_steps=3 * MILLION
    )
    return _plain(config=config, batch_size=512, updates=3 * MILLION, reward=domain.iql_reward)


def _align_iql(task: Task, domain: Domain, alignment: str = "soft") -> Setting:
    """The launchers of felix-thu/AlignIQL, with N = 64 of the three that they evaluate. They run the soft form alone;
    the hard one keeps the bounded dual of our module."""
    config = align_iql.Config(expectile=domain.expectile, alignment=alignment, actor_decay_steps=3 * MILLION)
    return _plain(config=config, batch_size=512, updates=3 * MILLION, reward=domain.iql_reward)


def _align_iql_gaussian(task: Task, domain: Domain) -> Setting:
    """The Gaussian form of felix-thu/RPEX, eta 3, in its shorter runs, which are of locomotion alone."""
    config = align_iql.Config(expectile=domain.expectile, policy="gaussian", penalty=3.0, actor_decay_steps=MILLION)
    return _plain(config=config, reward=domain.iql_reward, network_options={"actor": "gaussian"})


def _diffusion_ql(task: Task, domain: Domain) -> Setting:
    config = diffusion_ql.Config(value_weight=task.value_weight, **_shared(task))
    reward = domain.diffusion_ql_reward
    return _plain(config=config, hidden_sizes=(256,) * 3, updates=1000 * task.kilo_updates, reward=reward)


def _diffcps(task: Task, domain: Domain) -> Setting:
    config = diffcps.Config(
        behavior_limit=task.behavior_limit,
        initial_multiplier=task.initial_multiplier,
        minimum_multiplier=task.minimum_multiplier,
        policy_frequency=task.policy_frequency,
        **_shared(task),
    )
    return replace(_diffusion_ql(task, domain), config=config)


def _shared(task: Task) -> dict[str, Any]:
    return {
        "actor_learning_rate": task.actor_learning_rate,
        "backup_count": 10 if task.max_q else 1,
        "clip_norm": task.clip_norm,
    }


def _sfbc(task: Task, domain: Domain) -> Setting:
    """Appendix B.1: 500 epochs of the behavior model, of 4M rows each in the code, on 4096 rows; the critic, fitted 2
    to 5 times afterwards there, learns along. 15 steps of DDPM stand for 15 of DPM-Solver."""
    config = sfbc.Config(mean_of_best=domain.mean_of_best)
    config = replace(config, diffusion=replace(config.diffusion, step_count=15))
    return _plain(config=config, batch_size=4096 // config.sequence_length, updates=MILLION // 2, reward="raw")


def _awr(task: Task, domain: Domain) -> Setting:
    """xbpeng/awr's sizes, and its values in units of 1 / (1 - discount factor). Optimiser and count of updates are
    ours, those of the code being for online iterations; its width of .4 for the runners is .2 here."""
    config = awr.Config(reward_scale=0.01)
    return _plain(config=config, hidden_sizes=(128, 64), batch_size=256 // config.sequence_length, reward="raw")


def _td3_bc(task: Task, domain: Domain) -> Setting:
    """The paper's table 4; that observations are standardised is up to the data set."""
    return _plain(config=td3_bc.Config(value_weight=2.5), reward=domain.td3_bc_reward)


def _cpq(task: Task, domain: Domain) -> Setting:
    """OSRL's; its `cost_limit` and `episode_length` are to be the task's."""
    return _plain(config=cpq.Config(), batch_size=512, updates=100_000, reward="raw")


_ROWS: dict[str, tuple[ModuleType, Callable[[Task, Domain], Setting]]] = {
    "bc": (bc, _bc),
    "iql": (iql, _iql),
    "diffusion_bc": (diffusion_bc, _diffusion_bc),
    "idql": (idql, _idql),
    "align_iql": (align_iql, _align_iql),
    "align_iql_hard": (align_iql, functools.partial(_align_iql, alignment="hard")),
    "align_iql_gaussian": (align_iql, _align_iql_gaussian),
    "diffusion_ql": (diffusion_ql, _diffusion_ql),
    "diffcps": (diffcps, _diffcps),
    "sfbc": (sfbc, _sfbc),
    "awr": (awr, _awr),
    "td3_bc": (td3_bc, _td3_bc),
    "cpq": (cpq, _cpq),
}

METHODS = {row: module.__name__.rpartition(".")[2] for row, (module, _) in _ROWS.items()}
"""Row of the table -> module of `safejax.algorithms`."""
