"""Writes what `offline.py` found: table.txt, results.json and learning curves."""

from __future__ import annotations

import importlib.metadata
import sys
from dataclasses import asdict
from typing import Any

import evaluation
import jax
import numpy as np
import report
from offline_training import Job, Learner
from published import PUBLISHED

from safejax import envs
from safejax.data import Dataset, episode_returns
from safejax.runs import write_json


def write(job: Job, data: str, dataset: Dataset, learners: dict[str, Learner]) -> str:
    """results.json, table.txt and learning_curves.png; the table to print."""
    published = PUBLISHED.get(data, {})
    trained = {row: job.run.metrics(row) for row in learners}
    lines: list[tuple[str, ...]] = [
        ("method", "return (last)", "cost (last)", "length", "return (best)", "updates/s", "wall", "published")
    ]
    for row, records in trained.items():
        returns = np.array([record["return"] for record in records])  # [K, S]
        last = {name: np.array(records[-1][name]) for name in ("return", "cost", "length")}
        rate = _rate(records, len(job.seeds))
        best = report.interval(returns[np.argmax(returns.mean(1))])
        text = [_mean(report.interval(last[name])) for name in ("return", "cost", "length")]
        speed = "-" if rate is None else f"{rate:.0f}"
        lines.append((row, *text, _mean(best), speed, f"{_wall(records):.0f} s", published.get(row, "-")))
    behavior_returns, behavior_costs, _ = (np.asarray(column) for column in episode_returns(dataset))
    notes = (
        f"data: {len(dataset.transitions.reward):,} rows, {len(behavior_returns):,} episodes, return "
        f"{behavior_returns.mean():.2f}, cost {behavior_costs.mean():.2f}",
        f"{len(job.seeds)} seeds, {job.episodes} episodes each, actions {evaluation.ACTING[job.acting]}; +- 95 % "
        "Student-t over seeds; 'best' picks the evaluation with the highest mean and is no result; updates/s: all "
        f"seeds together; wall: with evaluations and compilation; peak memory {_memory(trained):,.0f} MB",
    )
    task, limit = envs.task(job.env.name), getattr(next(iter(learners.values())).setting.config, "safety", None)
    limits = (limit.cost_limit,) if limit else task.cost_limits
    scores = {
        row: evaluation.scores(records[-1]["return"], records[-1]["cost"], limits, task.reference)
        for row, records in trained.items()
    }
    diverged = evaluation.diverged(trained)
    table = [*report.aligned(lines), *notes, "", evaluation.table(scores), *evaluation.diverged_lines(diverged)]
    table = "\n".join(table)
    results = {
        "command": " ".join(["python", "benchmarks/offline.py", *sys.argv[1:]]),
        "versions": {name: importlib.metadata.version(name) for name in ("safejax", "jax", "mujoco", "optax")},
        "device": jax.devices()[0].device_kind,
        "data": data,
        "seeds": list(job.seeds),
        "behavior": {"return": float(behavior_returns.mean()), "cost": float(behavior_costs.mean())},
        "peak_memory_mb": _memory(trained),
        "diverged_episodes": diverged,
        "methods": {
            row: {
                "updates": [record["updates"] for record in records],
                **{name: [record[name] for record in records] for name in ("return", "cost", "length")},
                "last": scores[row],
                "updates_per_second": _rate(records, len(job.seeds)),
                "wall_s": _wall(records),
                "setting": asdict(learners[row].setting),
            }
            for row, records in trained.items()
        },
        "published": published,
    }
    write_json(job.run.directory / "results.json", results)
    (job.run.directory / "table.txt").write_text(table + "\n")
    names = ("updates", "return", "cost")
    curves = {
        row: report.Curve(*(np.array([record[name] for record in records]) for name in names))
        for row, records in trained.items()
    }
    report.learning_curves(
        job.run.directory / "learning_curves.png",
        curves,
        limit.cost_limit if limit else None,
        f"{data}, {len(job.seeds)} seeds",
        steps="updates",
    )
    return f"{table}\nwritten to {job.run.directory}"


def _rate(records: list[dict[str, Any]], seed_count: int) -> float | None:
    """Updates per second over all seeds, without the first chunk, which compiles; None if there is no other."""
    rest = records[1:]
    if not rest:
        return None
    count = (rest[-1]["updates"] - records[0]["updates"]) * seed_count
    return count / sum(record["train_s"] for record in rest)


def _wall(records: list[dict[str, Any]]) -> float:
    """Seconds of all chunks."""
    return sum(record["wall_s"] for record in records)


def _memory(trained: dict[str, list[dict[str, Any]]]) -> float:
    """The process's largest resident size so far, in MB."""
    return max(record["peak_rss_mb"] for records in trained.values() for record in records)


def _mean(interval: tuple[Any, Any]) -> str:
    mean, half_width = interval
    return f"{mean:.2f} +- {half_width:.2f}"
