"""Statistics, tables and pictures of an offline-to-online comparison: arrays in, text and files out.

Shape letters: S seeds, K evaluations along a run, T environment steps of an episode, G groups such as tasks.
Intervals over seeds are Student-t at 95 %; `interquartile_mean` and `bootstrap_interval` serve many runs.
"""

from __future__ import annotations

import io
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from PIL import Image
from scipy import stats

# Okabe and Ito's palette without its yellow, which is too faint for lines on white
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK = "#444444"
SAFE, COSTLY = "#0072B2", "#D7263D"

HEADINGS = (
    ("method",),
    ("return", "mean +- 95 %"),
    ("cost", "mean +- 95 %"),
    ("limit",),
    ("seeds within", "the limit"),
    ("env steps to 90 % of", "from-scratch, in limit"),
    ("cumulative cost", "mean +- 95 %"),
)
"""Of the columns of `table` and `markdown`, line by line."""


def interval(values: ArrayLike) -> tuple[Any, Any]:
    """Mean and half width of the 95 % Student-t interval over the last axis.

    Args:
      values: [..., S], one number per seed.

    Returns:
      mean [...] and half width [...]; the half width of one seed is NaN.
    """
    array = np.asarray(values, np.float64)
    count = array.shape[-1]
    mean = array.mean(-1)
    if count < 2:
        return mean, np.full_like(mean, np.nan)[()]
    return mean, stats.t.ppf(0.975, count - 1) * array.std(-1, ddof=1) / math.sqrt(count)


def interquartile_mean(values: ArrayLike) -> float:
    """Mean of what is left after the lowest and the highest quarter (rounded down) of all values are dropped.

    Source: Agarwal et al. 2021, Deep Reinforcement Learning at the Edge of the Statistical Precipice,
    https://arxiv.org/abs/2108.13264, section 4.3.
    """
    array = np.asarray(values, np.float64)
    return float(_interquartile_mean(array.reshape(1, -1))[0])


def bootstrap_interval(
    values: ArrayLike, seed: int, resamples: int = 2000, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of `interquartile_mean`, stratified: seeds are redrawn within each group.

    Args:
      values: [S] or [S, G].
      seed: of the resampling; the same seed gives the same interval.
      resamples: data sets to draw.
      confidence: share of the resampled means inside the interval, in (0, 1).

    Returns:
      low and high end.

    Source: Agarwal et al. 2021, section 4.2.
    """
    array = np.asarray(values, np.float64)
    array = array.reshape(array.shape[0], -1)
    rows = np.random.default_rng(seed).integers(0, array.shape[0], (resamples, *array.shape))
    drawn = np.take_along_axis(np.broadcast_to(array, rows.shape), rows, axis=1)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(_interquartile_mean(drawn.reshape(resamples, -1)), (tail, 1.0 - tail))
    return float(low), float(high)


def _interquartile_mean(rows: np.ndarray) -> np.ndarray:
    cut = rows.shape[-1] // 4
    return np.sort(rows, axis=-1)[:, cut : rows.shape[-1] - cut].mean(-1)


def target_return(returns: ArrayLike, costs: ArrayLike, cost_limit: float, share: float) -> float | None:
    """`share` of the mean return of the seeds within the limit; None where there is none.

    A seed beyond the limit sets no target: no safe policy has to return what it does.

    Args:
      returns: [S] of the last policies that are to be reached, per episode.
      costs: [S] beside them, cost units.
      cost_limit: cost units per episode.
      share: of the mean.
    """
    within = np.asarray(costs) <= cost_limit
    return share * float(np.mean(np.asarray(returns)[within])) if np.any(within) else None


def steps_to_reach(
    env_steps: ArrayLike, returns: ArrayLike, costs: ArrayLike, target: float, cost_limit: float
) -> np.ndarray:
    """The first evaluated environment step with return >= target and cost <= cost_limit, per seed.

    Args:
      env_steps: [K], ascending.
      returns, costs: [K, S] per episode.
      target: episode return.
      cost_limit: per episode, cost units.

    Returns:
      [S]; inf for a seed that never gets there.
    """
    reached = (np.asarray(returns) >= target) & (np.asarray(costs) <= cost_limit)
    first = np.asarray(env_steps, np.float64)[np.argmax(reached, axis=0)]
    return np.where(reached.any(axis=0), first, np.inf)


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One method of the table. None, and what has no meaning without learning, is printed as "-"."""

    method: str
    episode_return: np.ndarray  # [S], or [] without learning
    episode_cost: np.ndarray  # [S], or [] without learning
    steps_to_target: np.ndarray | None = None  # [S], inf where never reached
    cumulative_cost: np.ndarray | None = None  # [S] cost units over the whole online run
    learned: bool = True  # False: a number that no seed produced, such as the data set's best safe return


def table(
    rows: Sequence[Row],
    cost_limit: float,
    budget: Mapping[str, Any],
    target: float | None,
    step_budget: Mapping[str, int],
) -> str:
    """The comparison as fixed-width text, with the target and the budgets beneath.

    Args:
      rows: from top to bottom.
      cost_limit: per episode, cost units.
      budget: what every method was given, name -> number, tuple of sizes or text.
      target: the return that `Row.steps_to_target` is about; None if there is none.
      step_budget: method -> environment steps of its run, printed where half of the seeds miss the target.
    """
    body = [_cells(row, cost_limit, step_budget, "+-") for row in rows]
    depth = max(map(len, HEADINGS))
    columns = [
        [*("",) * (depth - len(heading)), *heading, *(cells[index] for cells in body)]
        for index, heading in enumerate(HEADINGS)
    ]
    lines = aligned(list(zip(*columns, strict=True)))
    lines.insert(depth, "  ".join("-" * max(map(len, column)) for column in columns))
    notes = [textwrap.fill(note, len(lines[depth])) for note in _notes(cost_limit, budget, target, "+-")]
    return "\n".join([*lines, *notes])


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells as text in columns: the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ([text.rjust(width) for text, width in zip(line, widths, strict=True)] for line in lines)
    return ["  ".join([line[0].ljust(widths[0]), *cells[1:]]) for line, cells in zip(lines, padded, strict=True)]


def markdown(
    rows: Sequence[Row],
    cost_limit: float,
    budget: Mapping[str, Any],
    target: float | None,
    step_budget: Mapping[str, int],
) -> str:
    """`table` for a README: the same arguments and numbers, as a Markdown table and a paragraph."""
    lines = [" | ".join(" ".join(heading) for heading in HEADINGS).replace("+-", "±")]
    lines.append(" | ".join([":---", *("---:",) * (len(HEADINGS) - 1)]))
    lines += [" | ".join(_cells(row, cost_limit, step_budget, "±")) for row in rows]
    notes = _notes(cost_limit, budget, target, "±")
    return "\n".join([*(f"| {line} |" for line in lines), "", *notes])


def _cells(row: Row, cost_limit: float, step_budget: Mapping[str, int], sign: str) -> list[str]:
    costs = np.atleast_1d(row.episode_cost)
    within = f"{np.sum(costs <= cost_limit)}/{costs.size}" if row.learned else "-"
    steps = "-"
    if row.steps_to_target is not None:
        median = float(np.median(np.asarray(row.steps_to_target, np.float64)))
        steps = f"{median:,.0f}" if math.isfinite(median) else f"> {step_budget[row.method]:,}"
    return [
        row.method,
        _mean(row.episode_return, row.learned, sign),
        _mean(costs, row.learned, sign),
        f"{cost_limit:g}",
        within,
        steps,
        "-" if row.cumulative_cost is None else _mean(row.cumulative_cost, row.learned, sign),
    ]


def _mean(values: ArrayLike, with_interval: bool, sign: str) -> str:
    mean, half_width = interval(np.atleast_1d(values))
    if not with_interval:
        return _number(mean)
    return f"{_number(mean)} {sign} {'-' if math.isnan(half_width) else _number(half_width)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}"


def _notes(cost_limit: float, budget: Mapping[str, Any], target: float | None, sign: str) -> list[str]:
    parts = [f"{sign}: half width of the 95 % Student-t interval over seeds; env steps: median over seeds"]
    if target is not None:
        parts.append(f"target: return >= {target:.1f} at cost <= {cost_limit:g}, both in one evaluation")
    notes = ["; ".join(parts) + "."]
    if budget:
        parts = (f"{name} {_plain(value)}" for name, value in budget.items())
        notes.append(f"budget: {', '.join(parts)}.")
    return notes


def _plain(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, tuple | list):
        return " x ".join(map(_plain, value))
    return str(value)


class Curve(NamedTuple):
    """Evaluations along the runs of one method."""

    env_steps: np.ndarray  # [K], ascending; updates, offline
    returns: np.ndarray  # [K, S] per episode
    costs: np.ndarray  # [K, S] per episode


def learning_curves(
    path: str | os.PathLike,
    curves: Mapping[str, Curve],
    cost_limit: float | None,
    title: str,
    labels: Sequence[str] | None = None,
    steps: str = "environment steps",
) -> None:
    """Write a picture of return and cost against steps: means with 95 % bands over seeds.

    Args:
      path: of the PNG file.
      curves: label -> Curve.
      cost_limit: per episode, cost units; drawn as a dashed line if there is one.
      title: above both panels.
      labels: of a whole set of pictures, so that each keeps its colour in all; by default those of `curves`.
      steps: what the horizontal axis counts.
    """
    labels = list(curves) if labels is None else list(labels)
    figure = Figure(figsize=(9.0, 3.9), layout="constrained")
    panels = figure.subplots(1, 2)
    last_step = max(float(np.max(curve.env_steps)) for curve in curves.values()) / 1000.0
    for axes, name in zip(panels, ("returns", "costs"), strict=True):
        _soften(axes)
        for label, curve in curves.items():
            thousands = np.asarray(curve.env_steps, np.float64) / 1000.0
            mean, half_width = interval(getattr(curve, name))
            color = COLORS[labels.index(label) % len(COLORS)]
            axes.plot(thousands, mean, color=color, linewidth=1.8, label=label)
            if not np.isnan(half_width).all():
                axes.fill_between(thousands, mean - half_width, mean + half_width, color=color, alpha=0.17, linewidth=0)
        axes.set_xlim(0.0, last_step)
        axes.set_xlabel(f"{steps} (thousands)")
        axes.set_ylabel(f"episode {name.removesuffix('s')}")
    costs = panels[1]
    # bands are symmetric and would reach below zero, where no cost can be
    top = max(costs.get_ylim()[1], 1.3 * (cost_limit or 0.0), 1e-3)
    costs.set_ylim(-0.02 * top, top)
    if cost_limit is not None:
        costs.axhline(cost_limit, color=INK, linewidth=1.2, linestyle=(0, (5, 3)))
        beside = costs.get_yaxis_transform()
        costs.text(1.01, cost_limit, f"limit {cost_limit:g}", transform=beside, va="center", color=INK)
    figure.suptitle(title, fontsize="medium")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    full = io.BytesIO()
    figure.savefig(full, dpi=150)
    # 256 colours are plenty for lines and bands, and a quarter of the size
    Image.open(full).convert("RGB").quantize(256).save(path, format="PNG", optimize=True, dpi=(150, 150))


def _soften(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(color="#999999")
    axes.xaxis.set_major_locator(MaxNLocator(6))
