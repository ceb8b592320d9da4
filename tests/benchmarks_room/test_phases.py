"""What the phases record of episodes: means over those that finished, and a count of those that diverged."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import phases
from counting_world import counting
from job import Job, episode_record
from presets import Budget

from safejax.types import BatchSpec, EpisodeStats, bind


def test_collection_counts_episodes_that_diverged():
    """Of 2 learners and 3 rows each."""
    finished, diverged = np.array([[1, 0, 1], [0, 0, 0]], bool), np.array([[0, 1, 0], [1, 0, 1]], bool)
    sums = np.where(finished, [[2.0, 9.0, 4.0]], np.nan)
    episodes = EpisodeStats(sums, sums / 2, np.ones((2, 3), np.int32), finished, diverged)
    found = episode_record(episodes)
    assert {name: value.tolist() for name, value in found.items()} == {
        "return": [3.0, 0.0],
        "cost": [1.5, 0.0],
        "diverged": [1, 2],
    }


def still():
    """Acts with 0.5 and learns nothing."""

    def act(state, observation, key, carry=(), *, explore=False, config, networks):
        return jnp.full((observation.shape[0], 1), 0.5), carry, {}

    def nothing(*arguments, config, networks):
        return arguments[0]

    return bind(config=None, networks=None, batch=BatchSpec.uniform(), init=nothing, update=nothing, act=act)


def test_an_evaluation_counts_episodes_that_diverged():
    """Episodes begin at 10 or 30; those from 30 diverge on their first step, the others return 11 + 12 + 13."""
    job = Job(
        run=None,
        env=counting(begins=(1, 3), diverging=(31.0,)),
        engine="none",
        budget=Budget(evaluation_episodes=8),
        offline="none",
        source=None,
        limit=1.0,
        seeds=(0, 1),
    )
    found = phases.evaluation_record(job, still(), jnp.zeros((2, 1)))
    counts = found["evaluation_diverged"]
    assert counts.shape == (2,)
    assert (counts > 0).all()
    assert (counts < 8).all()
    assert found["return"].tolist() == [36.0, 36.0]
    assert found["cost"].tolist() == [2.0, 2.0]
