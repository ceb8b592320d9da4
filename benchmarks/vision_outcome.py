"""What `vision.py` leaves behind: results.json, the table, the curves, checkpoints, and FOSP's moving picture."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import evaluation
import jax
import jax.numpy as jnp
import measure
import numpy as np
import presets
import report
import vision_film
from vision_presets import Budget, Row

from safejax import envs
from safejax.data import Dataset, episode_returns, read_dsrl
from safejax.runs import Run, save_policy, write_json
from safejax.types import Env


def write(
    run: Run,
    rows: Mapping[str, Row],
    views: Mapping[int, Env],
    learned: Mapping[str, Sequence[tuple[Any, Any]]],
    path: Path,
    digest: str,
    limit: float,
    seeds: Sequence[int],
    task: str,
    budget: Budget,
) -> str:
    """Write every result of a finished run into its directory; the table to print. `digest` is of the data."""
    dataset, attributes = read_dsrl(path)
    kinds = _kinds(dataset, attributes)
    curves = {phase: _curves(run, rows, phase, seeds) for phase in ("offline", "online")}
    reference = envs.task(task).reference
    finals = {
        f"{rows[name].label}, {phase}": (curve.returns[-1], curve.costs[-1])
        for name in rows
        for phase in curves
        if (curve := curves[phase].get(name)) is not None
    }
    scores = {label: evaluation.scores(*final, (limit,), reference) for label, final in finals.items()}
    losses = {name: _losses(run, name, seeds) for name in rows}
    reconstruction = {
        rows[name].label: found["model/picture"][-1] for name, found in losses.items() if "model/picture" in found
    }
    if reconstruction:
        reconstruction["the data's mean picture"] = _about_the_mean(dataset.transitions.observation["pixels"])
    table = f"{_table(kinds, finals, limit)}\n{_pictures(reconstruction)}\n{evaluation.table(scores)}"
    results = {
        "command": " ".join(["python", "benchmarks/vision.py", *sys.argv[1:]]),
        "machine": measure.machine(),
        "task": task,
        "limit": limit,
        "seeds": list(seeds),
        "budget": presets.plain(budget),
        "data": kinds,
        "rows": {
            label: {"return": final[0].tolist(), "cost": final[1].tolist()} | scores[label]
            for label, final in finals.items()
        },
        "losses": losses,
        "picture_error": reconstruction,
        "cumulative_cost": {
            name: [_spent(run.metrics(f"{name}-online-{seed}")) for seed in seeds] for name in curves["online"]
        },
        "curves": {
            phase: {
                rows[name].label: {
                    "steps": curve.env_steps.tolist(),
                    "returns": curve.returns.tolist(),
                    "costs": curve.costs.tolist(),
                }
                for name, curve in found.items()
            }
            for phase, found in curves.items()
        },
    }
    write_json(run.directory / "results.json", results)
    (run.directory / "table.txt").write_text(table + "\n")
    labels = [row.label for row in rows.values()]
    for phase, steps in (("offline", "updates"), ("online", "agent steps")):
        if curves[phase]:
            labelled = {rows[name].label: curve for name, curve in curves[phase].items()}
            title = f"{task} from pictures, {phase}, {len(seeds)} {'seeds' if len(seeds) > 1 else 'seed'}"
            report.learning_curves(run.directory / f"{phase}.png", labelled, limit, title, labels, steps)
    for name, states in learned.items():
        env = views[rows[name].frames]
        save_policy(
            run.directory / "policies" / name,
            jax.tree.map(lambda *leaves: jnp.stack(leaves), *(state for state, _ in states)),
            rows[name].config,
            method=name,
            action_size=env.action_size,
            observation_size={part: spec.shape for part, spec in env.observation_spec.items()},
            hidden_sizes=budget.hidden_sizes,
            seeds=tuple(seeds),
            default=name == next(iter(learned)),
            task=task,
            data=path.name,
            data_sha256=digest,
            **rows[name].stored,
        )
    if "fosp" in learned:
        vision_film.write(run.directory / "dream.gif", rows["fosp"], views[1], learned["fosp"][0][0], seeds[0])
    return f"{table}\n\nepisodes: {path}\nwritten to {run.directory}"


def _kinds(dataset: Dataset, attributes: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Mean return and cost of the data's episodes by kind, which lie one after the other."""
    returns, costs, _ = (np.asarray(values) for values in episode_returns(dataset))
    names = attributes.get("kinds", ["all"])
    if len(returns) != len(names) * attributes.get("episodes_per_kind", len(returns)):  # some diverged
        names = ["all"]
    groups = np.array_split(np.arange(len(returns)), len(names))
    return {
        name: {
            "episodes": len(rows),
            "return": float(returns[rows].mean()),
            "cost": float(costs[rows].mean()),
        }
        for name, rows in zip(names, groups, strict=True)
    }


def _about_the_mean(pictures: Any) -> float:
    """Squared distance of pictures [N, H, W, C] from their mean, values in [0, 1], a picture: what no model is for."""
    rows = np.asarray(pictures).reshape(len(pictures), -1)
    first, second = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
    for begin in range(0, len(rows), 1000):
        part = rows[begin : begin + 1000] / 255.0
        first, second = first + part.sum(0), second + np.square(part).sum(0)
    return float(np.sum(second / len(rows) - np.square(first / len(rows))))


def _pictures(errors: Mapping[str, float]) -> str:
    """A line on how well world models know the pictures at the end of the offline phase; none without such a model."""
    found = ", ".join(f"{label} {error:.1f}" for label, error in errors.items())
    return f"squared error a picture: {found}\n" if errors else ""


def _curves(run: Run, rows: Mapping[str, Row], phase: str, seeds: Sequence[int]) -> dict[str, report.Curve]:
    found = {}
    for name in rows:
        records = [run.metrics(f"{name}-{phase}-{seed}") for seed in seeds]
        if all(records):
            steps = [record["updates" if phase == "offline" else "env_steps"] for record in records[0]]
            values = (np.array([[row[key] for row in each] for each in records]).T for key in ("return", "cost"))
            found[name] = report.Curve(np.array(steps), *values)
    return found


def _losses(run: Run, name: str, seeds: Sequence[int]) -> dict[str, list[float]]:
    """Along the offline phase, means over seeds and chunks of updates: the losses among the metrics."""
    records = [run.metrics(f"{name}-offline-{seed}") for seed in seeds]
    keys = [key for key in records[0][0] if key.endswith(("/loss", "/picture"))]
    return {key: np.mean([[row[key] for row in each] for each in records], axis=0).tolist() for key in keys}


def _spent(records: list[dict[str, Any]]) -> float:
    """Cost of all environment steps of a stage, unfinished episodes included."""
    return float(np.sum([record["finished_cost"] for record in records]) + records[-1]["unfinished_cost"])


def _table(kinds: Mapping[str, Any], finals: Mapping[str, tuple[np.ndarray, np.ndarray]], limit: float) -> str:
    lines = [("", "return", "cost", "limit", "seeds within")]
    for name, row in kinds.items():
        found = f"{row['return']:.1f}", f"{row['cost']:.1f}"
        lines.append((f"data, {name} ({row['episodes']} episodes)", *found, "", ""))
    for label, (returns, costs) in finals.items():
        within = f"{np.sum(costs <= limit)}/{costs.size}"
        lines.append((label, _spread(returns), _spread(costs), f"{limit:g}", within))
    return "\n".join(report.aligned(lines))


def _spread(values: np.ndarray) -> str:
    mean, half = report.interval(values)
    return f"{mean:.1f}" if np.isnan(half) else f"{mean:.1f} +- {half:.1f}"
