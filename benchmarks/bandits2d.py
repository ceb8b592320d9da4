"""Bandits with actions in the square [-1, 1]^2 and one state: their data, their true rewards, and scores of actions.

DiffCPS's noisy circle in both readings of its noise (https://arxiv.org/abs/2310.05333, section 3.1), Diffusion-QL's
four modes (https://arxiv.org/abs/2208.06193), and two of ours, where half of the modes pay. Also the diffusion chain
with the exact denoiser of a data set: what a chain of T steps makes of the data if its network has learned everything.
Shapes: N actions, M data points.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial import KDTree

from safejax.data.dataset import Dataset, from_arrays
from safejax.diffusion import Denoiser, DiffusionConfig, denoising_error, draw_noise, make_schedule, sample
from safejax.types import Array, Key

THRESHOLDS = (1e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2)  # of "near a data point"
ROWS = 10_000  # of every data set
OUTSIDE = 0.2  # an action farther than this from every noiseless action belongs to no mode and has reward 0


class Problem(NamedTuple):
    """A bandit: a noiseless action for each mode and position in it, noise, and a reward for each mode."""

    label: str
    support: Callable[[np.ndarray, np.ndarray], np.ndarray]  # (position [N] in [0, 1), mode [N]) -> [N, 2]
    noise: Callable[[np.random.Generator, int], np.ndarray]  # (random, N) -> [N, 2]
    rewards: tuple[float, ...]  # mean of each mode; all have equal shares of the data
    reward_std: float = 0.0
    size: int = 5000  # different points of the data set; divides ROWS


def circle(position: np.ndarray, mode: np.ndarray) -> np.ndarray:
    """The unit circle; its modes are quarters, counter-clockwise from (1, 0)."""
    angle = 0.5 * np.pi * (mode + position)
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def moons(position: np.ndarray, mode: np.ndarray) -> np.ndarray:
    """Two interleaving half circles of radius .6, each the other's image under a half turn; the upper one first."""
    upper = 0.6 * np.stack([np.cos(np.pi * position) - 0.5, np.sin(np.pi * position) - 0.25], axis=-1)
    return np.where(np.asarray(mode)[:, None] == 0, upper, -upper)


def at(*centers: tuple[float, float]) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Every mode is one point."""
    return lambda position, mode: np.asarray(centers)[mode]


def gaussian(random: np.random.Generator, count: int) -> np.ndarray:
    """A deviation of .05 in each coordinate: DiffCPS's text, "N(0, 0.05)", and Diffusion-QL's modes."""
    return random.normal(0.0, 0.05, (count, 2))


def shared(random: np.random.Generator, count: int) -> np.ndarray:
    """One number of U[0, .05] for both coordinates: the ring of DiffCPS's figure is thick along the diagonal alone."""
    return np.repeat(random.uniform(0.0, 0.05, (count, 1)), 2, axis=1)


PROBLEMS = {
    "circle_shared": Problem("circle, shared noise", circle, shared, (1.0,) * 4),
    "circle_gaussian": Problem("circle, Gaussian noise", circle, gaussian, (1.0,) * 4),
    # counter-clockwise from (.8, 0), every other one pays: the best policy has four modes
    "eight_gaussians": Problem(
        "eight Gaussians",
        at(*((0.8 * np.cos(angle), 0.8 * np.sin(angle)) for angle in np.arange(8) * np.pi / 4)),
        gaussian,
        (1.0, 0.0) * 4,
    ),
    "two_moons": Problem("two moons", moons, gaussian, (1.0, 0.0)),
    # upper left, lower left, upper right, lower right: the numbers of the released run_toy_ql.py
    "four_modes": Problem(
        "four modes",
        at((-0.8, 0.8), (-0.8, -0.8), (0.8, 0.8), (0.8, -0.8)),
        gaussian,
        (3.0, 0.0, 1.5, 5.0),
        reward_std=0.5,
        size=ROWS,
    ),
}


def draw(problem: Problem, random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Actions [N, 2] and their modes [N], in equal shares; what noise carries out of the square goes to its rim."""
    mode = np.arange(count) % len(problem.rewards)
    actions = problem.support(random.uniform(size=count), mode) + problem.noise(random, count)
    return np.clip(actions, -1.0, 1.0), mode


def make_dataset(problem: Problem, seed: int) -> Dataset:
    """One state, observed as 0, in which every episode is one action.

    Has ROWS rows, a smaller set several times: the same draws, and one shape that all problems share.
    """
    random = np.random.default_rng(seed)
    actions, mode = draw(problem, random, problem.size)
    rewards = np.asarray(problem.rewards)[mode] + problem.reward_std * random.normal(size=problem.size)
    row = np.arange(ROWS) % problem.size
    zeros, ones = np.zeros(ROWS), np.ones(ROWS)
    return from_arrays(zeros[:, None], actions[row], rewards[row], zeros, ones, zeros, source=problem.label)


def assign(problem: Problem, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mode [N] with the nearest noiseless action, and whether [N] even that is farther away than OUTSIDE."""
    count = len(problem.rewards)
    mode, position = np.repeat(np.arange(count), 1000), np.tile((np.arange(1000) + 0.5) / 1000, count)
    distance, nearest = KDTree(problem.support(position, mode)).query(actions)
    return mode[nearest], distance > OUTSIDE


def hit_rates(data: np.ndarray, actions: np.ndarray) -> dict[str, float]:
    """Threshold -> share of actions [N, 2] whose nearest data point, of [M, 2], is closer: DiffCPS's score."""
    distance, _ = KDTree(data).query(actions)
    return {f"{threshold:g}": float(np.mean(distance < threshold)) for threshold in THRESHOLDS}


def score(problem: Problem, data: np.ndarray, actions: np.ndarray) -> dict[str, Any]:
    """Hit rates, mean true reward, and the share of actions in each mode and outside of all."""
    mode, outside = assign(problem, actions)
    shares = [float(np.mean((mode == each) & ~outside)) for each in range(len(problem.rewards))]
    return {
        "hit_rate": hit_rates(data, actions),
        "reward": float(np.dot(shares, problem.rewards)),
        "modes": shares,
        "outside": float(np.mean(outside)),
    }


def exact_denoiser(data: Array, step_count: int) -> Denoiser:
    """The expected noise in a noisy action [..., 2] of `data` [M, 2]: no network reaches a lower loss."""
    schedule = make_schedule(DiffusionConfig().schedule, step_count)

    def denoise(noisy: Array, index: Array) -> Array:
        alpha_bar = jnp.asarray(schedule.alpha_bar)[index][..., None]
        difference = noisy[..., None, :] - jnp.sqrt(alpha_bar)[..., None] * data
        weight = jax.nn.softmax(-0.5 * jnp.sum(jnp.square(difference), axis=-1) / (1.0 - alpha_bar), axis=-1)
        return (noisy - jnp.sqrt(alpha_bar) * (weight @ data)) / jnp.sqrt(1.0 - alpha_bar)

    return denoise


@functools.partial(jax.jit, static_argnums=(1, 3))
def exact_actions(data: Array, step_count: int, key: Key, count: int) -> Array:
    """Actions [N = count, 2] of Diffusion-QL's chain of `step_count` steps with the exact denoiser of `data` [M, 2]."""
    config = DiffusionConfig(step_count=step_count)
    return sample(config, exact_denoiser(data, step_count), draw_noise(config, key, (count, 2)))


@functools.partial(jax.jit, static_argnums=1)
def least_loss(data: Array, step_count: int) -> Array:
    """The denoising loss [] of the exact denoiser, mean over coordinates, on at most 1,000 of `data` [M, 2]."""
    config = DiffusionConfig(step_count=step_count)
    error = denoising_error(config, exact_denoiser(data, step_count), data[:1000], jax.random.key(0))
    return jnp.mean(error)
