"""Tables and figures of `toy2d.py`: records and actions in, Markdown and PNG files out."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bandits2d import PROBLEMS, assign
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image

Record = dict[str, Any]  # one row of results.json: problem, method, step_count and scores
Hits = dict[int | None, dict[str, float]]  # T, None without diffusion -> threshold -> hit rate

INK, FAINT = "#444444", "#d0d0d0"
STYLES = {  # labels, and colors of Okabe and Ito's palette
    "data": ("fresh data", "#999999"),
    "exact": ("exact denoiser", "#999999"),
    "awr": ("AWR", "#000000"),
    "diffusion_bc": ("diffusion BC", "#56B4E9"),
    "sfbc": ("SfBC", "#009E73"),
    "idql": ("IDQL", "#E69F00"),
    "align_iql": ("AlignIQL", "#CC79A7"),
    "diffusion_ql": ("Diffusion-QL", "#D55E00"),
    "diffcps": ("DiffCPS", "#0072B2"),
}
REWARDS = LinearSegmentedColormap.from_list("rewards", [FAINT, "#7b3294"])
PLOTTED = ("0.02", "0.2")  # thresholds of the second figure and the second table
POINTS = 1000  # drawn of each cloud

# Read off DiffCPS's line plot (https://arxiv.org/abs/2310.05333, figure 2); its threshold is not known.
PUBLISHED: dict[str, dict[int | None, float]] = {
    "awr": {None: 0.43},
    "sfbc": {5: 0.64, 15: 0.665, 25: 0.71, 30: 0.595, 50: 0.595},
    "diffusion_ql": {5: 0.55, 15: 0.69, 25: 0.715, 30: 0.78, 50: 0.755},
    "diffcps": {5: 0.59, 15: 0.695, 25: 0.725, 30: 0.71, 50: 0.74},
}


def tables(records: Sequence[Record]) -> str:
    """Markdown: scores for each problem, then hit rates against T beside the published ones."""
    blocks = []
    for name in dict.fromkeys(record["problem"] for record in records):
        rows = [record for record in records if record["problem"] == name]
        thresholds = [f"< {threshold}" for threshold in rows[0]["hit_rate"]]
        lines = [["method", "T", *thresholds, "reward", "modes, %", "outside, %"]]
        for row in rows:
            hits = [f"{hit:.3f}" for hit in row["hit_rate"].values()]
            modes, outside = " ".join(f"{100 * share:.0f}" for share in row["modes"]), f"{100 * row['outside']:.0f}"
            count = str(row["step_count"] or "-")
            lines.append([STYLES[row["method"]][0], count, *hits, f"{row['reward']:.2f}", modes, outside])
        rewards = ", ".join(f"{reward:g}" for reward in PROBLEMS[name].rewards)
        what = f"Share of actions closer to a data point than each threshold; rewards of the modes: {rewards}."
        blocks.append(f"### {PROBLEMS[name].label}\n\n{what}\n\n{_markdown(lines)}")
    hits = sweep(records)
    if hits:
        what = f"{' / '.join(PLOTTED)} / published (read off a plot whose threshold is not known)."
        blocks.append(f"### Hit rate against T on the circle\n\n{what}\n\n{_markdown(_beside_published(hits))}")
    return "\n\n".join(blocks)


def sweep(records: Sequence[Record]) -> dict[str, Hits]:
    """Method -> T -> hit rates, of the first circle among the problems; empty if there is none."""
    name = next((record["problem"] for record in records if record["problem"].startswith("circle")), None)
    hits: dict[str, Hits] = {}
    for record in records:
        if record["problem"] == name:
            hits.setdefault(record["method"], {})[record["step_count"]] = record["hit_rate"]
    return hits


def _beside_published(hits: Mapping[str, Hits]) -> list[list[str]]:
    counts = sorted({count for each in hits.values() for count in each if count is not None})
    lines = [["method", *(f"T = {count}" for count in counts)]]
    for method, by_count in hits.items():
        keys = [None] * len(counts) if None in by_count else counts  # without diffusion the same at every T
        found = [[f"{by_count[key][threshold]:.2f}" for threshold in PLOTTED] for key in keys]
        published = [PUBLISHED.get(method, {}).get(key) for key in keys]
        cells = [" / ".join([*a, "-" if b is None else f"{b:g}"]) for a, b in zip(found, published, strict=True)]
        lines.append([STYLES[method][0], *cells])
    return lines


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    first, *others = ([text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in lines)
    ruler = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in [first, ruler, *others])


def draw_clouds(
    path: Path, clouds: Mapping[tuple[str, str], np.ndarray], data: Mapping[str, np.ndarray], title: str
) -> None:
    """Write the picture of samples: a row for each problem, the data first, then a column for each method.

    Args:
      path: of the PNG file.
      clouds: (problem, method) -> actions [N, 2].
      data: problem -> data points [M, 2]; grey behind every cloud, and colored by reward in the first column.
      title: above all panels.
    """
    methods = list(dict.fromkeys(method for _, method in clouds))
    side, left, top = 1.25, 0.3, 0.48  # inches
    width, height = side * (1 + len(methods)) + left, side * len(data) + top
    figure = Figure(figsize=(width, height))
    edges = dict(left=left / width, right=0.998, bottom=0.004, top=1.0 - top / height, wspace=0.05, hspace=0.05)
    panels = figure.subplots(len(data), 1 + len(methods), squeeze=False, gridspec_kw=edges)
    for row, (name, points) in zip(panels, data.items(), strict=True):
        points, rewards = points[: 2 * POINTS], np.asarray(PROBLEMS[name].rewards)
        for axes in row:
            axes.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), xticks=[], yticks=[], aspect="equal")
            axes.spines[:].set_color("#bbbbbb")
        row[0].set_ylabel(PROBLEMS[name].label, fontsize=7, color=INK)
        mode, _ = assign(PROBLEMS[name], points)
        row[0].scatter(*points.T, s=1.5, c=rewards[mode] / max(rewards), cmap=REWARDS, vmin=0, vmax=1, linewidths=0)
        for axes, method in zip(row[1:], methods, strict=True):
            axes.scatter(*points.T, s=1.5, color=FAINT, linewidths=0)
            axes.scatter(*clouds[name, method][:POINTS].T, s=2.0, color=STYLES[method][1], linewidths=0)
    for axes, text in zip(panels[0], ["data", *(STYLES[method][0] for method in methods)], strict=True):
        axes.set_title(text, fontsize=9, color=INK)
    figure.suptitle(title, x=left / width, y=1.0 - 0.06 / height, ha="left", fontsize=8, color=INK)
    _save(figure, path)


def draw_hit_rates(path: Path, hits: Mapping[str, Hits]) -> None:
    """Write the picture of hit rates against T: a panel for each of PLOTTED, then the published lines."""
    figure = Figure(figsize=(9.0, 3.1), layout="constrained")
    panels = figure.subplots(1, len(PLOTTED) + 1, sharey=True)
    counts = [count for by_count in hits.values() for count in by_count if count is not None]
    for axes, threshold in zip(panels, PLOTTED, strict=False):
        curves = {method: {count: hit[threshold] for count, hit in each.items()} for method, each in hits.items()}
        _draw_lines(axes, curves, f"closer than {threshold}", counts)
    published = {method: PUBLISHED[method] for method in hits if method in PUBLISHED}
    _draw_lines(panels[-1], published, "published, threshold unknown", counts)
    panels[0].set(ylim=(0.0, 1.02), ylabel="share of actions near the data")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize="small", frameon=False)
    _save(figure, path)


def _draw_lines(
    axes: Axes, curves: Mapping[str, Mapping[int | None, float]], title: str, counts: Sequence[int]
) -> None:
    axes.set_title(title, fontsize=9, color=INK)
    axes.set_xlabel("denoising steps T")
    axes.set_xlim(0.0, 1.05 * max(counts, default=1))
    axes.set_xticks(sorted(set(counts)))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(color="#999999")
    for method, curve in curves.items():
        name, color = STYLES[method]
        dashes = ":" if method in ("data", "exact") else "-"
        if None in curve:
            axes.axhline(
                curve[None], color=color, linewidth=1.4, linestyle=dashes if dashes == ":" else "--", label=name
            )
        else:
            axes.plot(
                *zip(*sorted(curve.items()), strict=True), dashes, color=color, marker="o", markersize=3, label=name
            )


def _save(figure: Figure, path: Path) -> None:
    full = io.BytesIO()
    figure.savefig(full, dpi=150)
    # 256 colors are plenty for dots and lines, and a quarter of the size
    Image.open(full).convert("RGB").quantize(256).save(path, format="PNG", optimize=True, dpi=(150, 150))
