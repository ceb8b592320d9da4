"""Normalised scores: DSRL's of return and cost, D4RL's of return, and the constants that both rest on.

The two suites count differently, so they have different names here: DSRL's scale runs from 0 to 1 and spans the
returns in the data set; D4RL's runs from 0 to 100 and spans those of a random and an expert policy. Returns and costs
are undiscounted sums over an episode.
"""

from __future__ import annotations

import difflib
import re
from typing import Any, NamedTuple


class Reference(NamedTuple):
    """A data set of DSRL, with the constants that normalise returns.

    Source: Liu et al. 2023, Datasets and Benchmarks for Offline Safe RL, https://arxiv.org/abs/2306.09303;
    constants from dsrl/infos.py of liuzuxin/DSRL@71064f2.
    """

    name: str  # the data set's name, such as "BallCircle"
    return_min: float  # lowest and highest undiscounted episode return in the data set
    return_max: float
    cost_max: float  # highest and lowest undiscounted episode cost in the data set
    cost_min: float = 0.0


_DSRL = (
    Reference("AntCircle", 0.0177031010389328, 460.7091979980469, 200.0),
    Reference("AntRun", 0.001767391717990563, 955.4818725585938, 150.0),
    Reference("BallCircle", 0.38312244415283203, 881.46337890625, 80.0),
    Reference("BallRun", 26.339754104614258, 1327.445556640625, 80.0),
    Reference("CarCircle", 3.484419822692871, 534.3060913085938, 100.0),
    Reference("CarRun", 204.28726196289062, 574.6533203125, 40.0),
    Reference("DroneCircle", 207.794189453125, 996.38916015625, 100.0),
    Reference("DroneRun", 10.557029724121094, 682.8330078125, 140.0),
    Reference("CarButton1", 0.0028926206826067613, 44.420003345738984, 250.0),
    Reference("CarButton2", 0.001767391717990563, 41.99513815522894, 300.0),
    Reference("CarCircle1", 8.037073135375977, 24.94155502319336, 250.0),
    Reference("CarCircle2", 5.113386154174805, 25.950098037719727, 398.0),
    Reference("CarGoal1", 0.012232819540852091, 39.907809198384705, 120.0),
    Reference("CarGoal2", 0.001032874531954775, 28.902897990056502, 200.0),
    Reference("CarPush1", 0.013700173533941762, 16.304467598905237, 200.0),
    Reference("CarPush2", 0.00029391133526335267, 15.141648491514314, 250.0),
    Reference("PointButton1", 0.008822109034937853, 41.19301568767707, 200.0),
    Reference("PointButton2", 0.014114166087574098, 42.8985953616709, 250.0),
    Reference("PointCircle1", 20.067626953125, 61.72819519042969, 200.0),
    Reference("PointCircle2", 20.478347778320312, 54.02184295654297, 299.0),
    Reference("PointGoal1", 0.01196012764197707, 30.071114857340543, 100.0),
    Reference("PointGoal2", 0.002616959830266108, 27.717709787852737, 200.0),
    Reference("PointPush1", 0.0014001545292344209, 16.518654299293367, 150.0),
    Reference("PointPush2", 0.0012438183001730607, 14.691039145644403, 200.0),
    Reference("AntVelocity", 6.1519012451171875, 2976.276611328125, 250.0),
    Reference("HalfCheetahVelocity", 5.7509765625, 2806.93310546875, 250.0),
    Reference("HopperVelocity", 37.05154800415039, 1911.396728515625, 250.0),
    Reference("SwimmerVelocity", 0.07114458084106445, 238.95831298828125, 200.0),
    Reference("Walker2dVelocity", 18.668498992919922, 3418.223876953125, 300.0),
    Reference("easysparse", 20.094310760498047, 425.8006286621094, 82.42418670654297, 0.00025356505648232996),
    Reference("easymean", 22.142553329467773, 425.82440185546875, 82.38601684570312),
    Reference("easydense", 19.71139144897461, 425.81732177734375, 80.36358642578125),
    Reference("mediumsparse", 17.446578979492188, 269.80084228515625, 46.46459197998047),
    Reference("mediummean", 17.032529830932617, 269.8221435546875, 46.46154022216797),
    Reference("mediumdense", 15.102348327636719, 269.7813415527344, 46.45858383178711),
    Reference("hardsparse", 17.247974395751953, 486.80523681640625, 85.010009765625),
    Reference("hardmean", 19.387981414794922, 486.9967956542969, 84.33995056152344, 0.00033149970113299787),
    Reference("harddense", 15.386894226074219, 486.63616943359375, 84.76679229736328),
)

DSRL: dict[str, Reference] = {reference.name: reference for reference in _DSRL}
"""The 38 data sets of DSRL by name."""

D4RL: dict[str, tuple[float, float]] = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
    "antmaze": (0.0, 1.0),
    "kitchen": (0.0, 4.0),
    "pen": (96.262799, 3076.8331017826877),
    "hammer": (-274.856578, 12794.134825156867),
    "relocate": (-6.425911, 4233.877797728884),
    "door": (-56.512833, 2880.5693087298737),
    "maze2d-open-v0": (0.01, 20.66),
    "maze2d-umaze-v1": (23.85, 161.86),
    "maze2d-medium-v1": (13.13, 277.39),
    "maze2d-large-v1": (6.7, 273.99),
    "maze2d-open-dense-v0": (11.17817, 27.166538620695782),
    "maze2d-umaze-dense-v1": (68.537689, 193.66285642381482),
    "maze2d-medium-dense-v1": (44.264742, 297.4552547777125),
    "maze2d-large-dense-v1": (30.569041, 303.4857382709002),
}
"""Returns of a random and of an expert policy, by robot where all of a robot's data sets share them.

Source: Fu et al. 2020, D4RL, https://arxiv.org/abs/2004.07219; d4rl/infos.py of Farama-Foundation/D4RL@89141a6.
"""


class DSRLScores(NamedTuple):
    """What DSRL reports of episodes, beside the raw sums; all of the shape of the returns."""

    normalized_return: Any  # 0 is the data set's worst episode, 1 its best
    normalized_cost: Any  # over the limit
    within_limit: Any  # bool, whether the cost is at most the limit


def dsrl_scores(name: str, episode_return: Any, episode_cost: Any, cost_limit: float) -> DSRLScores:
    """DSRL's scores of undiscounted episode sums.

    Args:
      name: a data set of DSRL, "BallCircle" or "OfflineBallCircle-v0".
      episode_return: [...] task units.
      episode_cost: [...] cost units.
      cost_limit: per episode, cost units, >= 0.

    Raises:
      ValueError: an unknown name, with the nearest ones, or a limit below 0 or NaN.
    """
    reference = find_reference(name)
    within = episode_cost <= cost_limit
    return DSRLScores(normalized_return(episode_return, reference), normalized_cost(episode_cost, cost_limit), within)


def d4rl_score(name: str, episode_return: Any) -> Any:
    """D4RL's score: 100 (R - random) / (expert - random) of undiscounted returns R [...].

    Args:
      name: a data set of D4RL, such as "halfcheetah-medium-v2".
      episode_return: [...] task units.

    Raises:
      ValueError: a name whose robot or maze is unknown, with the known ones.
    """
    key = _d4rl_key(name)
    if not key:
        raise ValueError(f"unknown D4RL data set {name!r}, expected one of {', '.join(D4RL)}, or a robot's data set")
    random, expert = D4RL[key]
    return 100.0 * (episode_return - random) / (expert - random)


def _d4rl_key(name: str) -> str:
    """The robot of a data set, or its whole name where the maze decides; "" of an unknown one."""
    return next((key for key in (name, name.split("-")[0]) if key in D4RL), "")


def find_reference(name: str) -> Reference:
    """The constants of a data set of DSRL by its name, by that of DSRL's environment or of our task "ball_circle".

    Raises:
      ValueError: an unknown name, with the nearest ones.
    """
    found = _reference(name)
    if found is None:
        nearest = ", ".join(difflib.get_close_matches(dsrl_name(name), DSRL, cutoff=0.0))
        raise ValueError(f"unknown DSRL data set {name!r}, expected one of 38; nearest: {nearest}")
    return found


def _reference(name: str) -> Reference | None:
    wanted = dsrl_name(name).replace("_", "").lower()
    return next((each for key, each in DSRL.items() if key.lower() == wanted), None)


def known_scores(
    name: str, episode_return: float, episode_cost: float, cost_limit: float | None = None
) -> dict[str, float]:
    """Every score that the data set or task `name` has, by what it is called; {} of a name that is unknown."""
    if _reference(name) is not None:
        scores = dsrl_scores(name, episode_return, episode_cost, 0.0 if cost_limit is None else cost_limit)
        cost = {} if cost_limit is None else {"DSRL normalized cost": scores.normalized_cost}
        return {"DSRL normalized return": scores.normalized_return, **cost}
    if _d4rl_key(name) and re.search(r"-v\d+$", name):
        return {"D4RL score": d4rl_score(name, episode_return)}
    return {}


def dsrl_name(name: str) -> str:
    """ "CarGoal1" of "OfflineCarGoal1Gymnasium-v0"; other names stay as they are."""
    return re.sub(r"^Offline(?:Metadrive-)?(\w+?)(?:Gymnasium)?-v\d$", r"\1", name)


def normalized_return(episode_return: Any, reference: Reference) -> Any:
    """Returns [...] on the scale where the data set's worst is 0 and its best 1; values may leave [0, 1].

    Source: Liu et al. 2023, section 5.
    """
    return (episode_return - reference.return_min) / (reference.return_max - reference.return_min)


def normalized_cost(episode_cost: Any, cost_limit: float) -> Any:
    """Episode costs [...] over the limit; at most 1 is safe. A limit of 0 adds 1 to both, as DSRL does.

    Source: offline_env.py of liuzuxin/DSRL@71064f2.

    Raises:
      ValueError: a limit below 0 or NaN.
    """
    if not cost_limit >= 0:  # nor NaN
        raise ValueError(f"cost_limit is {cost_limit:g}, expected a cost per episode >= 0")
    offset = 1.0 if cost_limit == 0 else 0.0
    return (episode_cost + offset) / (cost_limit + offset)
