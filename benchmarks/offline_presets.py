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

_ROBOTS = {"halfcheetah": "half_cheetah", "hopper": "hopper", "walker2d": "walker2d"}

RELATIVES = {
    "point_maze_umaze-play": "antmaze-umaze",
    "point_maze_umaze-diverse": "antmaze-umaze-diverse",
    **{f"point_maze_{kind}": f"antmaze-{kind}" for kind in ("medium-play", "medium-diverse")},
    **{f"point_maze_{kind}": f"antmaze-{kind}" for kind in ("large-play", "large-diverse")},
    **{f"{ours}_velocity-medium": f"{theirs}-medium" for theirs, ours in _ROBOTS.items()},
    **{f"{ours}_velocity-medium-replay": f"{theirs}-medium-replay" for theirs, ours in _ROBOTS.items()},
    **{f"{ours}_velocity-expert": f"{theirs}-medium-expert" for theirs, ours in _ROBOTS.items()},
}
"""Data set made by `behavior.py` -> the closest of `TASKS`."""

_FALLBACKS = (
    ("(point_maze|antmaze).*large", "antmaze-large-play"),
    ("(point_maze|antmaze).*medium", "antmaze-medium-play"),
    ("point_maze|antmaze", "antmaze-umaze"),
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
    if re.match("point_maze|antmaze", name):
        return "maze"
    return "locomotion" if re.match("(hopper|half_?cheetah|walker2d|ant)([-_]|$)", name) else "other"


def setting(method: str, data: str, preset: str) -> Setting:
    """What `method` learns `data` with.

    Args:
      method: a key of `METHODS`.
      data: the name of a data set, of D4RL ("hopper-medium-v2") or made here ("point_maze_umaze-play"), or a file.
      preset: "paper", the papers' numbers for `relative(data)`; or "default", 50,000 updates on 256 transitions with
        layers of 128, the changes of `SMALL`, and the papers' numbers else.

    Raises:
      ValueError: an unknown method or preset, in one line.
    """
    check_choice("method", method, METHODS)
    check_choice("preset", preset, ("default", "paper"))
    name = relative(data)
    _, build = _ROWS[method]
    paper = build(TASKS[name], DOMAINS[name.partition("-")[0]])
    return paper if preset == "paper" else _small(method, paper)


SMALL_UPDATES, SMALL_BATCH, SMALL_WIDTH = 50_000, 256, 128

SMALL: dict[str, dict[str, Any]] = {
    "idql": {"candidate_count": 16},
    "align_iql": {"candidate_count": 16},
    "align_iql_hard": {"candidate_count": 16, "dual_sample_count": 4},
    "sfbc": {"candidate_count": 4, "diffusion": sfbc.Config().diffusion},
}
"""What the default preset changes in a Config, besides the length of learning-rate decays. Four samples a state keep an
update of the last two within the price of Diffusion-QL's with its max-Q backup."""


def _small(method: str, paper: Setting) -> Setting:
    changes = SMALL.get(method, {})
    if getattr(paper.config, "actor_decay_steps", 0):
        changes = changes | {"actor_decay_steps": SMALL_UPDATES}
    return replace(
        paper,
        config=replace(paper.config, **changes),
        hidden_sizes=(SMALL_WIDTH,) * len(paper.hidden_sizes),
        batch_size=SMALL_BATCH // getattr(paper.config, "sequence_length", 1),
        updates=SMALL_UPDATES,
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


class Source(NamedTuple):
    """Where a published score stands, and of which checkpoint it is."""

    table: str
    selection: str  # "last"; "best" of a run's evaluations; "offline", by the behavior loss; or "not stated"


_CORL = Source("tinkoff-ai/CORL@6afec90, README, last scores", "last")
_DQL = Source("Diffusion-QL, arXiv 2208.06193, table 1; standard errors over rollouts", "offline")
_DIFFCPS = Source("DiffCPS, arXiv 2310.05333v1, table 1", "best")
_QUOTED = "quoted in DiffCPS, arXiv 2310.05333v1, table 1"

# One source a column, in the table's order. Scores are normalised as in D4RL and stand as printed: the mean, and the
# deviation over seeds where there is one.
_TABLES: tuple[tuple[str, tuple[Source, ...]], ...] = (
    (
        """
data                        |bc            |td3_bc      |iql        |idql |sfbc        |diffusion_ql|diffcps
halfcheetah-medium-v2       |42.40 +- 0.19 |48.3 +- 0.3 |47.4 (0.2) |51.0 |45.9 +- 2.2 |51.1 +- 0.5 |71.0 +- 0.5
hopper-medium-v2            |53.51 +- 1.76 |59.3 +- 4.2 |66.3 (5.7) |65.4 |57.1 +- 4.1 |90.5 +- 4.6 |100.1 +- 3.5
walker2d-medium-v2          |63.23 +- 16.24|83.7 +- 2.1 |78.3 (8.7) |82.5 |77.9 +- 2.5 |87.0 +- 0.9 |90.9 +- 1.6
halfcheetah-medium-replay-v2|35.66 +- 2.33 |44.6 +- 0.5 |44.2 (1.2) |45.9 |37.1 +- 1.7 |47.8 +- 0.3 |50.5 +- 0.6
hopper-medium-replay-v2     |29.81 +- 2.07 |60.9 +- 18.8|94.7 (8.6) |92.1 |86.2 +- 9.1 |101.3 +- 0.6|101.1 +- 0.2
walker2d-medium-replay-v2   |21.80 +- 10.15|81.8 +- 5.5 |73.9 (7.1) |85.1 |65.1 +- 5.6 |95.5 +- 1.5 |91.3 +- 0.7
halfcheetah-medium-expert-v2|55.95 +- 7.35 |90.7 +- 4.3 |86.7 (5.3) |95.9 |92.6 +- 0.5 |96.8 +- 0.3 |100.3 +- 4.1
hopper-medium-expert-v2     |52.30 +- 4.01 |98.0 +- 9.4 |91.5 (14.3)|108.6|108.6 +- 2.1|111.1 +- 1.3|112.1 +- 0.6
walker2d-medium-expert-v2   |98.96 +- 15.98|110.1 +- 0.5|109.6 (1.0)|112.7|109.8 +- 0.2|110.1 +- 0.3|113.1 +- 1.8
""",
        (
            _CORL,
            Source("TD3+BC, arXiv 2106.06860, table 9; mean of the last ten evaluations", "last"),
            Source("IQL, arXiv 2110.06169, table 1; deviations from fuyw/jrlzoo, iql/README.md", "not stated"),
            Source("IDQL-A, arXiv 2304.10573, table 1", "not stated"),
            Source("SfBC, arXiv 2209.14548, table 1", "not stated"),
            _DQL,
            _DIFFCPS,
        ),
    ),
    (
        """
data                        |td3_bc      |awr
halfcheetah-medium-v0       |42.8 +- 0.3 |37.4
hopper-medium-v0            |99.5 +- 1.0 |35.9
walker2d-medium-v0          |79.7 +- 1.8 |17.4
halfcheetah-medium-replay-v0|43.3 +- 0.5 |40.3
hopper-medium-replay-v0     |31.4 +- 3.0 |28.4
walker2d-medium-replay-v0   |25.2 +- 5.1 |15.5
halfcheetah-medium-expert-v0|97.9 +- 4.4 |52.7
hopper-medium-expert-v0     |112.2 +- 0.2|27.1
walker2d-medium-expert-v0   |101.1 +- 9.3|53.8
""",
        (
            Source("TD3+BC, arXiv 2106.06860, table 2; mean of the last ten evaluations", "last"),
            Source("D4RL's, quoted in SfBC, arXiv 2209.14548, table 1", "not stated"),
        ),
    ),
    (
        """
data                     |iql |diffusion_ql|diffcps
antmaze-umaze-v0         |87.5|93.4        |97.4 +- 3.7
antmaze-umaze-diverse-v0 |62.2|66.2        |87.4 +- 3.8
antmaze-medium-play-v0   |71.2|76.6        |88.2 +- 2.2
antmaze-medium-diverse-v0|70.0|78.6        |87.8 +- 6.5
antmaze-large-play-v0    |39.6|46.4        |65.6 +- 3.6
antmaze-large-diverse-v0 |47.5|57.3        |63.6 +- 3.9
""",
        (
            Source("IQL, arXiv 2110.06169, table 1", "not stated"),
            Source(f"Diffusion-QL, {_QUOTED}", "offline"),
            _DIFFCPS,
        ),
    ),
    (
        """
data                     |bc           |td3_bc        |iql           |idql|sfbc
antmaze-umaze-v2         |55.25 +- 4.15|70.75 +- 39.18|77.00 +- 5.52 |94.0|92.0
antmaze-umaze-diverse-v2 |47.25 +- 4.09|44.75 +- 11.61|54.25 +- 5.54 |80.2|85.3
antmaze-medium-play-v2   |0.00 +- 0.00 |0.25 +- 0.43  |65.75 +- 11.71|84.5|81.3
antmaze-medium-diverse-v2|0.75 +- 0.83 |0.25 +- 0.43  |73.75 +- 5.45 |84.8|82.0
antmaze-large-play-v2    |0.00 +- 0.00 |0.00 +- 0.00  |42.00 +- 4.53 |63.5|59.3
antmaze-large-diverse-v2 |0.00 +- 0.00 |0.00 +- 0.00  |30.25 +- 3.63 |67.9|45.5
""",
        (
            _CORL,
            _CORL,
            _CORL,
            Source(f"IDQL-A, {_QUOTED}; version not stated, its launcher has v2", "not stated"),
            Source(f"SfBC, {_QUOTED}; version not stated, its code has v2", "not stated"),
        ),
    ),
    (
        """
data              |bc            |iql           |idql
pen-human-v1      |71.03 +- 6.26 |78.49 +- 8.21 |76 +- 10
pen-cloned-v1     |51.92 +- 15.15|83.42 +- 8.19 |64 +- 7
pen-expert-v1     |109.65 +- 7.28|128.05 +- 9.21|140 +- 6
door-human-v1     |2.34 +- 4.00  |3.26 +- 1.83  |6 +- 2
door-cloned-v1    |-0.09 +- 0.03 |3.07 +- 1.75  |0
door-expert-v1    |105.35 +- 0.09|106.65 +- 0.25|105 +- 1
hammer-human-v1   |3.03 +- 3.39  |1.79 +- 0.80  |2 +- 1
hammer-cloned-v1  |0.55 +- 0.16  |1.50 +- 0.69  |2 +- 1
hammer-expert-v1  |126.78 +- 0.64|128.68 +- 0.33|125 +- 4
relocate-human-v1 |0.04 +- 0.03  |0.12 +- 0.04  |0
relocate-cloned-v1|-0.06 +- 0.01 |0.04 +- 0.01  |0
relocate-expert-v1|107.58 +- 1.20|106.11 +- 4.02|107 +- 1
""",
        (_CORL, _CORL, Source("IDQL re-run with tuned N in FQL, arXiv 2502.02538, table 3", "not stated")),
    ),
)

PUBLISHED: dict[str, dict[str, str]] = {}
"""D4RL name -> row of the table -> score as published.

Nothing for AlignIQL, whose tables were not at hand, nor for diffusion_bc and cpq, which have none on D4RL.
"""

SOURCES: dict[str, dict[str, Source]] = {}
"""The same keys -> where it stands. Scores of unlike selection do not compare: CORL's best beat its last by 5 to 15."""

for _text, _sources in _TABLES:
    (_, *_columns), *_lines = ([_cell.strip() for _cell in _line.split("|")] for _line in _text.split("\n")[1:-1])
    for _data, *_scores in _lines:
        PUBLISHED[_data] = dict(zip(_columns, _scores, strict=True))
        SOURCES[_data] = dict(zip(_columns, _sources, strict=True))
