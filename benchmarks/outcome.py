"""What `offline_to_online.py` leaves behind: results.json, the table, the curves, a moving picture, policies."""

from __future__ import annotations

import functools
import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import evaluation
import jax
import jax.numpy as jnp
import numpy as np
import report
from bridges import Online
from film import film, write_gif
from job import Job
from presets import METHODS, plain

from safejax import envs
from safejax.data.dataset import Dataset, best_safe_return, episode_returns
from safejax.runs import save_policy, write_json

SHARE = 0.9  # of from-scratch's final return within the limit: the target of "environment steps to reach"


def write(
    job: Job, dataset: Dataset, data_path: Path, digest: str, learners: dict[str, Any], online: dict[str, Online]
) -> str:
    """Write every result of a finished run into its directory; the table to print. `digest` is of the data."""
    methods = METHODS
    run, budget, limit = job.run, job.budget, job.limit
    curves = {name: _curve(run.metrics(name)) for name in learners}
    offline = run.metrics("offline")[-1]
    target = None
    if "from_scratch" in curves:
        scratch = curves["from_scratch"]
        target = report.target_return(scratch.returns[-1], scratch.costs[-1], limit, SHARE)

    drawn = evaluation.explores(job.acting, job.source.is_diffusion)
    best = best_safe_return(dataset, limit)
    rows = [
        report.Row(
            method="data set, best safe episode",
            episode_return=np.array([best]),
            episode_cost=np.array([_cost_of(dataset, best, limit)]),
            learned=False,
        ),
        report.Row(
            method=f"offline policy ({job.offline}{', drawn' if drawn else ''})",
            episode_return=np.array(offline["return"]),
            episode_cost=np.array(offline["cost"]),
        ),
    ]
    if extracted := run.metrics("extraction"):
        row = report.Row(
            method="Gaussian extracted from it",
            episode_return=np.array(extracted[-1]["return"]),
            episode_cost=np.array(extracted[-1]["cost"]),
        )
        rows.append(row)
    for name, curve in curves.items():
        steps = None
        if target is not None:
            steps = report.steps_to_reach(curve.env_steps, curve.returns, curve.costs, target, limit)
        rows.append(
            report.Row(
                method=methods[name].label,
                episode_return=curve.returns[-1],
                episode_cost=curve.costs[-1],
                steps_to_target=steps,
                cumulative_cost=_cumulative_cost(run.metrics(name)),
            )
        )
    step_budget = {methods[name].label: int(curve.env_steps[-1]) for name, curve in curves.items()}
    reference = envs.task(job.env.name).reference
    scores = {row.method: evaluation.scores(row.episode_return, row.episode_cost, (limit,), reference) for row in rows}
    stages = ("behavior", "offline", "extraction", *curves)
    diverged = evaluation.diverged({stage: run.metrics(stage) for stage in stages})
    table = f"{report.table(rows, limit, plain(budget), target, step_budget)}\n\n{evaluation.table(scores)}"
    table = "\n".join([table, f"actions: {evaluation.ACTING[job.acting]}.", *evaluation.diverged_lines(diverged)])

    results = {
        "command": " ".join(["python", "benchmarks/offline_to_online.py", *sys.argv[1:]]),
        "versions": {name: importlib.metadata.version(name) for name in ("safejax", "jax", "mujoco", "optax")},
        "device": jax.devices()[0].device_kind,
        "task": job.env.name,
        "offline": job.offline,
        "limit": limit,
        "acting": job.acting,
        "seeds": list(job.seeds),
        "budget": plain(budget),
        "data": {
            "rows": int(dataset.transitions.reward.shape[0]),
            "episodes": int(episode_returns(dataset)[0].shape[0]),
        },
        "target_return": target,
        "diverged_episodes": diverged,
        "rows": {row.method: _row_values(row) | scores[row.method] for row in rows},
        "curves": {
            methods[name].label: {
                "env_steps": curve.env_steps.tolist(),
                "returns": curve.returns.tolist(),
                "costs": curve.costs.tolist(),
            }
            for name, curve in curves.items()
        },
    }
    write_json(run.directory / "results.json", results)
    (run.directory / "table.txt").write_text(table + "\n")
    labelled = {methods[name].label: curve for name, curve in curves.items()}
    title = f"{job.env.name}, cost limit {limit:g}, {len(job.seeds)} seeds"
    labels = [method.label for method in methods.values()]  # all of them, so that colours stay
    report.learning_curves(run.directory / "learning_curves.png", labelled, limit, title, labels)
    shown = "marvel" if "marvel" in learners else next(iter(learners))
    data = {"data": data_path.name, "data_sha256": digest}
    for name, learner in learners.items():
        _save(job, name, online[name], learner, data, default=name == shown)
    _film(job, methods[shown].label, online[shown], learners[shown], run.directory / "policy.gif")
    return f"{table}\n\ndata set: {data_path}\nwritten to {run.directory}"


def _curve(records: list[dict[str, Any]]) -> report.Curve:
    columns = (np.array([record[name] for record in records]) for name in ("env_steps", "return", "cost"))
    return report.Curve(*columns)


def _cumulative_cost(records: list[dict[str, Any]]) -> np.ndarray:
    """Cost [S] of all environment steps of a stage, unfinished episodes included."""
    finished = np.sum([record["finished_cost"] for record in records], axis=0)
    return finished + np.array(records[-1]["unfinished_cost"])


def _cost_of(dataset: Dataset, episode_return: float, limit: float) -> float:
    returns, costs, _ = map(np.asarray, episode_returns(dataset))
    safe = np.flatnonzero(costs <= limit)
    return float(costs[safe[np.argmin(np.abs(returns[safe] - episode_return))]]) if safe.size else float("nan")


def _row_values(row: report.Row) -> dict[str, Any]:
    def values(array: np.ndarray | None) -> list | None:
        """JSON has no infinity: a target never reached is null."""
        return None if array is None else [float(x) if np.isfinite(x) else None for x in array]

    return {
        "return": values(row.episode_return),
        "cost": values(row.episode_cost),
        "steps_to_target": values(row.steps_to_target),
        "cumulative_cost": values(row.cumulative_cost),
    }


def _save(job: Job, name: str, row: Online, learner: Any, data: dict[str, str], *, default: bool) -> None:
    save = functools.partial(
        save_policy,
        state=learner,
        config=row.config,
        method=row.module,
        action_size=job.env.action_size,
        observation_size=job.env.observation_spec.shape[-1],
        hidden_sizes=job.budget.hidden_sizes,
        network_options=row.network_options,
        seeds=job.seeds,
        default=default,
        task=job.env.name,
        engine=job.engine,
        limit=job.limit,
        offline=job.offline,
        row=name,
        **data,
    )
    (job.run.directory / "policies").mkdir(exist_ok=True)
    job.run.once(f"policies/{name}", save)


def _film(job: Job, label: str, row: Online, learner: Any, path: Path) -> None:
    """One deterministic episode of the first seed."""
    state = jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], learner)
    episode = film(row.finetuning, job.env, state, jax.random.key(job.seeds[0]))
    write_gif(path, episode, label)
