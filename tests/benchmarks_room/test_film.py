"""benchmarks/film.py: an episode as pictures, to its end and no further."""

from __future__ import annotations

import itertools

import film
import jax
import numpy as np
import pytest
from PIL import Image

from safejax import envs
from safejax.algorithms import bc
from safejax.types import example_transition


def test_the_camera_shows_most_of_the_task():
    cameras = {name: film.camera_of(name, envs.make(name, "mujoco").scene) for name in ("ball_circle", "ball_run")}
    assert cameras == {"ball_circle": "top", "ball_run": "track"}


def test_a_film_is_one_episode_to_its_end():
    """The world's own count of steps says when that is, and not how long it is played."""
    env = envs.make(envs.task("ball_run")._replace(episode_length=6), "mujoco")._replace(episode_length=9)
    algorithm = bc.make(networks=bc.default_networks(env.action_size, (4,)))
    state = algorithm.init(jax.random.key(0), example_transition(env))
    shot = film.film(algorithm, env, state, jax.random.key(1), frame_count=4, size=16)
    assert shot.pictures.shape == (4, 16, 16, 3)
    assert shot.rewards.shape == shot.costs.shape == (6,)
    np.testing.assert_array_equal(shot.shown, [0, 2, 3, 5])


@pytest.fixture
def shot():
    pictures = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)
    return film.Film(pictures, np.array([0, 2, 4, 6]), np.ones(7), np.array([0, 0, 0, 0, 1, 0, 1]))


def test_a_gif_moves_and_its_frame_is_red_where_a_step_costs(tmp_path, shot):
    film.write_gif(tmp_path / "policy.gif", shot, "title")
    with Image.open(tmp_path / "policy.gif") as image:
        assert image.n_frames == 4  # type: ignore[attr-defined]
        frames = []
        for index in range(4):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB"), np.int32))
    assert all((first != second).any() for first, second in itertools.pairwise(frames))
    middle = [frame[len(frame) // 2 : -20, 4] for frame in frames]  # the left side of the frame
    redness = [np.median(side[:, 0] - side[:, 2]) for side in middle]
    assert redness[0] < -50
    assert redness[2] > 50
    assert redness[3] > 50
