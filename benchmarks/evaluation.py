"""What every evaluation reports: raw and normalised return and cost, the limits and whether they are met, and IQMs.

Shape letter: S seeds. Returns and costs are those of an evaluation, means over its episodes, one a seed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import report
from numpy.typing import ArrayLike

from safejax.scores import Reference, normalized_cost, normalized_return

ACTING = {
    "papers": "of diffusion policies sampled, of others deterministic",
    "deterministic": "deterministic",
    "sampled": "sampled",
}
"""How policies act when they are evaluated, as `--acting` names it -> what tables say of their actions."""


def explores(acting: str, is_diffusion: bool) -> bool:
    """Whether a policy's actions are sampled in its evaluation; `acting` is a key of `ACTING`."""
    return acting == "sampled" or (acting == "papers" and is_diffusion)


def scores(
    returns: ArrayLike, costs: ArrayLike, limits: Sequence[float], reference: Reference | None
) -> dict[str, Any]:
    """The scores of one evaluation for results.json, beside its raw returns and costs.

    Args:
      returns: [S] task units.
      costs: [S] cost units per episode.
      limits: cost limits that the costs are held against, cost units per episode.
      reference: DSRL's constants of the task; None where it has none, then returns stay raw.

    Returns:
      "normalized_return" [S] or None; "limits": limit -> "normalized_cost" [S] and "within_limit" [S];
      "interquartile": "return" and "cost" -> mean over seeds and its 95 % bootstrap interval. What is not finite is
      None, since JSON has no word for it.
    """
    returns, costs = np.atleast_1d(returns).astype(np.float64), np.atleast_1d(costs).astype(np.float64)
    held = {
        f"{limit:g}": {"normalized_cost": _plain(normalized_cost(costs, limit)), "within_limit": _within(costs, limit)}
        for limit in limits
    }
    return {
        "normalized_return": None if reference is None else _plain(normalized_return(returns, reference)),
        "limits": held,
        "interquartile": {"return": _interquartile(returns), "cost": _interquartile(costs)},
    }


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Evaluations as fixed-width text.

    Args:
      rows: label -> what `scores` gave, all with the same limits.
    """
    limits = list(next(iter(rows.values()))["limits"])
    lines = [("method", "return: IQM [95 %]", "normalised", "cost: IQM [95 %]", *(f"cost/{it} (met)" for it in limits))]
    for label, row in rows.items():
        held = [row["limits"][limit] for limit in limits]
        lines.append(
            (
                label,
                _spread(row["interquartile"]["return"]),
                _mean(row["normalized_return"]),
                _spread(row["interquartile"]["cost"]),
                *(f"{_mean(it['normalized_cost'])} ({_met(it['within_limit'])})" for it in held),
            )
        )
    note = (
        "IQM: interquartile mean over seeds with its bootstrap interval; normalised: on DSRL's scale, 0 its data set's "
        "worst episode and 1 its best; cost/limit: mean over seeds, in brackets the seeds that meet the limit."
    )
    text = report.aligned(lines)
    return "\n".join([*text, textwrap.fill(note, len(text[0]))])


def diverged(stages: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, int]]:
    """Episodes whose simulation diverged, which no mean holds; stages without any are left out.

    Args:
      stages: name -> records; a record may hold "diverged" of training and "evaluation_diverged", counts [S].
    """
    names = {"training": "diverged", "evaluation": "evaluation_diverged"}
    counts = {
        stage: {what: sum(int(np.sum(record.get(name, 0))) for record in records) for what, name in names.items()}
        for stage, records in stages.items()
    }
    return {stage: count for stage, count in counts.items() if any(count.values())}


def diverged_lines(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What `diverged` gave, a line a stage."""
    return [
        f"{stage}: {count['training']} episodes of training and {count['evaluation']} of evaluation diverged; no mean "
        "holds them"
        for stage, count in counts.items()
    ]


def _interquartile(values: np.ndarray) -> dict[str, float] | None:
    if not np.isfinite(values).all():
        return None
    low, high = report.bootstrap_interval(values, seed=0)
    return {"mean": report.interquartile_mean(values), "low": low, "high": high}


def _within(costs: np.ndarray, limit: float) -> list[bool]:
    return [bool(cost <= limit) for cost in costs]


def _plain(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def _spread(found: Mapping[str, float] | None) -> str:
    return "-" if found is None else f"{found['mean']:,.2f} [{found['low']:,.2f}, {found['high']:,.2f}]"


def _mean(values: Sequence[float | None] | None) -> str:
    return "-" if values is None or None in values else f"{np.mean(np.asarray(values, np.float64)):.3f}"


def _met(within: Sequence[bool]) -> str:
    return f"{sum(within)}/{len(within)}"
