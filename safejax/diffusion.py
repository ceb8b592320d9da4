"""Diffusion over actions: noise schedules, the denoising loss, the bound on the likelihood, DDPM and DDIM samplers.

a^0 is a clean action [..., A] in [-1, 1] and a^i its version after i = 1..T noising steps,
a^i ~ N(sqrt(alpha_bar_i) a^0, (1 - alpha_bar_i) I). Arrays and networks count the steps from 0: index = i - 1. A
denoiser is any function `denoise(noisy [..., A], index [...] or [] int32) -> noise [..., A]` that predicts the noise
in `noisy`; it closes over its parameters and observation.

Sources: Ho et al. 2020 (DDPM), https://arxiv.org/abs/2006.11239; Song et al. 2021 (DDIM),
https://arxiv.org/abs/2010.02502; Wang et al. 2023 (Diffusion-QL), https://arxiv.org/abs/2208.06193; Hansen-Estruch et
al. 2023 (IDQL), https://arxiv.org/abs/2304.10573.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from safejax.types import Array, Key, check_choice, check_range

Denoiser = Callable[[Array, Array], Array]


class Schedule(NamedTuple):
    """Constants of a chain of T steps: float32 NumPy arrays [T], read only."""

    beta: np.ndarray  # variance added by one step
    alpha_bar: np.ndarray  # squared share of a^0 in a^i: the running product of 1 - beta
    posterior_variance: np.ndarray  # of q(a^{i-1} | a^i, a^0), 0 at the first step; the papers' beta tilde
    posterior_clean: np.ndarray  # coefficient of a^0 in the mean of that posterior
    posterior_noisy: np.ndarray  # coefficient of a^i in it


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """A chain and the way to run it backwards. Diffusion-QL, DiffCPS: the defaults; IDQL: clip noisy, variance beta."""

    schedule: str = "vp"  # or "cosine", "linear"
    step_count: int = 5  # T
    sampler: str = "ddpm"  # or "ddim", which is deterministic: variance and temperature play no part
    clip: str = "clean"  # "clean" predicted a^0 to [-1, 1] at every step, "noisy" iterate after every step, or "none"
    variance: str = "posterior"  # of a reverse step: beta tilde; or "beta"
    temperature: float = 1.0  # scales the noise of the reverse steps, not the a^T that they start from


def _vp(step_count: int) -> np.ndarray:
    low, high = 0.1, 10.0
    share = (2.0 * np.arange(1, step_count + 1) - 1.0) / step_count**2
    return -np.expm1(-low / step_count - 0.5 * (high - low) * share)


def _cosine(step_count: int) -> np.ndarray:
    offset, largest = 0.008, 0.999
    remaining = np.cos((np.linspace(0.0, 1.0, step_count + 1) + offset) / (1.0 + offset) * np.pi / 2.0) ** 2
    return np.clip(1.0 - remaining[1:] / remaining[:-1], 0.0, largest)


def _linear(step_count: int) -> np.ndarray:
    return np.linspace(1e-4, 2e-2, step_count)


_BETAS: dict[str, Callable[[int], np.ndarray]] = {"vp": _vp, "cosine": _cosine, "linear": _linear}
_LARGEST_REMAINDER = 0.05  # of alpha_bar at the last step


@functools.cache
def make_schedule(kind: str, step_count: int) -> Schedule:
    """The constants of a chain of `step_count` steps.

    Args:
      kind: "vp", Xiao et al. 2022, https://arxiv.org/abs/2112.07804, with beta from 0.1 to 10: alpha_bar ends at
        exp(-5.05) whatever the number of steps; "cosine", Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672;
        "linear", Ho et al. 2020, from 1e-4 to 2e-2.
      step_count: T >= 1.

    Raises:
      ValueError: an unknown kind, no step, or a chain that leaves too much of the action after its last step, as
        "linear" does with fewer than 297 steps.
    """
    check_choice("schedule", kind, _BETAS)
    check_range("step_count", step_count, 1, open_high=True)
    beta = _BETAS[kind](step_count)
    alpha_bar = np.cumprod(1.0 - beta)
    if alpha_bar[-1] > _LARGEST_REMAINDER:
        raise ValueError(
            f"schedule {kind!r} with step_count {step_count} ends at alpha_bar {alpha_bar[-1]:.5f}, expected at most "
            f"{_LARGEST_REMAINDER}: such a chain cannot start from N(0, I); use 'vp' or more steps"
        )
    previous = np.append(1.0, alpha_bar[:-1])
    variance = beta * (1.0 - previous) / (1.0 - alpha_bar)
    clean = np.sqrt(previous) * beta / (1.0 - alpha_bar)
    noisy = np.sqrt(1.0 - beta) * (1.0 - previous) / (1.0 - alpha_bar)
    schedule = Schedule(*(column.astype(np.float32) for column in (beta, alpha_bar, variance, clean, noisy)))
    for column in schedule:
        column.flags.writeable = False  # the cache hands the same arrays to everyone
    return schedule


def check_diffusion(config: DiffusionConfig) -> None:
    """Refuse a chain that cannot run.

    Raises:
      ValueError: one line with the field, its value and what was expected.
    """
    make_schedule(config.schedule, config.step_count)
    check_choice("sampler", config.sampler, ("ddpm", "ddim"))
    check_choice("clip", config.clip, ("clean", "noisy", "none"))
    check_choice("variance", config.variance, ("posterior", "beta"))
    check_range("temperature", config.temperature, 0.0, open_high=True)


def add_noise(schedule: Schedule, clean: Array, noise: Array, index: Array) -> Array:
    """a^i [..., A] from a^0 [..., A], standard normal noise [..., A] and index [...] or [] in 0..T-1."""
    alpha_bar = jnp.asarray(schedule.alpha_bar)[index][..., None]
    return jnp.sqrt(alpha_bar) * clean + jnp.sqrt(1.0 - alpha_bar) * noise


def denoising_error(config: DiffusionConfig, denoise: Denoiser, clean: Array, key: Key) -> Array:
    """Squared error [..., A] of the predicted noise, at a step drawn uniformly and with fresh noise for each row.

    No reduction: Diffusion-QL and DiffCPS average over A, IDQL and AlignIQL sum. A denoiser that always says 0 scores
    1 in expectation; data of variance 0 allow 0. For data N(m, s^2) the least is the mean over i of
    alpha_bar_i s^2 / (alpha_bar_i s^2 + 1 - alpha_bar_i).

    Args:
      config: the chain; how it is sampled plays no part.
      denoise: called once with `noisy` [..., A] and `index` [...].
      clean: [..., A] actions of the data.
      key: used up.
    """
    check_diffusion(config)
    index_key, noise_key = jax.random.split(key)
    index = jax.random.randint(index_key, clean.shape[:-1], 0, config.step_count)
    noise = jax.random.normal(noise_key, clean.shape)
    noisy = add_noise(make_schedule(config.schedule, config.step_count), clean, noise, index)
    return jnp.square(denoise(noisy, index) - noise)


def draw_noise(config: DiffusionConfig, key: Key, shape: tuple[int, ...]) -> Array:
    """The standard normal numbers [T, *shape] that `sample` and `elbo_terms` eat, for actions of `shape` [..., A]."""
    return jax.random.normal(key, (config.step_count, *shape))


def _check_chain(config: DiffusionConfig, noise: Array) -> None:
    check_diffusion(config)
    if noise.shape[0] != config.step_count:
        raise ValueError(f"noise has {noise.shape[0]} rows, expected one for each of {config.step_count} steps")


def _predict_clean(config: DiffusionConfig, noisy: Array, alpha_bar: Array, predicted_noise: Array) -> Array:
    clean = (noisy - jnp.sqrt(1.0 - alpha_bar) * predicted_noise) / jnp.sqrt(alpha_bar)
    return jnp.clip(clean, -1.0, 1.0) if config.clip == "clean" else clean


def _reverse_steps(config: DiffusionConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients of the predicted a^0 and of a^i in a^{i-1}, and the deviation of its noise: [T] each."""
    schedule = make_schedule(config.schedule, config.step_count)
    if config.sampler == "ddpm":
        deviation = np.sqrt(schedule.beta if config.variance == "beta" else schedule.posterior_variance)
        deviation[0] = 0.0  # the last reverse step returns its mean
        return schedule.posterior_clean, schedule.posterior_noisy, deviation
    alpha_bar = schedule.alpha_bar
    previous = np.append(np.float32(1.0), alpha_bar[:-1])
    # sqrt(previous) a^0 + sqrt(1 - previous) noise, with the noise that leads from the (clipped) a^0 to a^i
    noisy = np.sqrt((1.0 - previous) / (1.0 - alpha_bar))
    return np.sqrt(previous) - np.sqrt(alpha_bar) * noisy, noisy, np.zeros_like(noisy)


def sample(config: DiffusionConfig, denoise: Denoiser, noise: Array) -> Array:
    """Actions [..., A] from the whole reverse chain; gradients flow through all its steps.

    A step moves to a^{i-1} = c_i a^0 + d_i a^i + sigma_i temperature noise, where a^0 is the clean action that the
    predicted noise implies, (a^i - sqrt(1 - alpha_bar_i) predicted) / sqrt(alpha_bar_i). For DDPM c_i and d_i are the
    coefficients of the posterior mean; unclipped, this is IDQL's
    (a^i - beta_i / sqrt(1 - alpha_bar_i) predicted) / sqrt(1 - beta_i).

    Args:
      config: `clip` "clean" clips a^0 to [-1, 1] at every step, inside the mean (Diffusion-QL, DiffCPS); "noisy" leaves
        a^0 alone and clips a^{i-1} after its noise (IDQL, AlignIQL); both end in [-1, 1]. "none" clips nothing, not
        even the result.
      denoise: called in every step with `noisy` [..., A] and the step's one `index` [], so that what depends on the
        step alone is computed once.
      noise: [T, ..., A] from `draw_noise`: row 0 is a^T, the others are the noise of the steps i = T..2; the step to
        a^0 has none.

    Raises:
      ValueError: noise without T rows.
    """
    _check_chain(config, noise)
    clean_share, noisy_share, deviation = _reverse_steps(config)
    alpha_bar = make_schedule(config.schedule, config.step_count).alpha_bar

    def step(noisy: Array, row: tuple[Array, ...]) -> tuple[Array, None]:
        index, alpha_bar, clean_share, noisy_share, deviation, fresh = row
        clean = _predict_clean(config, noisy, alpha_bar, denoise(noisy, index))
        following = clean_share * clean + noisy_share * noisy + deviation * fresh
        return jnp.clip(following, -1.0, 1.0) if config.clip == "noisy" else following, None

    indices = np.arange(config.step_count, dtype=np.int32)
    columns = (indices, alpha_bar, clean_share, noisy_share, config.temperature * deviation)
    # rolled, the first row stands last, where the deviation is 0
    rows = (*(jnp.asarray(column)[::-1] for column in columns), jnp.roll(noise, -1, axis=0))
    actions, _ = jax.lax.scan(step, noise[0], rows)
    return actions if config.clip == "none" else jnp.clip(actions, -1.0, 1.0)


def elbo_terms(config: DiffusionConfig, denoise: Denoiser, clean: Array, noise: Array) -> Array:
    """The terms [T + 1, ...] of the bound -log mu(a^0) <= their sum, in nats, summed over A.

    Row 0 is -log mu(a^0 | a^1); row i = 1..T-1 is KL(q(a^i | a^{i+1}, a^0) || mu(a^i | a^{i+1})); row T is
    KL(q(a^T | a^0) || N(0, I)). mu is the DDPM chain with Gaussian steps of variance beta at temperature 1: "noisy"
    clipping and the noiseless last step of `sample` have no density and play no part, "clean" clipping does.

    Source: Ho et al. 2020, eq. 5; the bound that DiffCPS puts in place of its constraint, He et al. 2023,
    https://arxiv.org/abs/2310.05333, proposition 1, before its weights are dropped.

    Args:
      config: with variance "beta".
      denoise: called with a traced index [] for each step.
      clean: [..., A].
      noise: [T, ..., A], row i - 1 makes a^i: one sample, exact in expectation.

    Raises:
      ValueError: variance "posterior", which is 0 at the first step, or noise without T rows.
    """
    _check_chain(config, noise)
    if config.variance == "posterior":
        raise ValueError("variance is 'posterior', 0 at the first step: its bound is infinite; expected 'beta'")
    schedule = make_schedule(config.schedule, config.step_count)

    def squared_distance(index: Array, noise: Array) -> Array:
        noisy = add_noise(schedule, clean, noise, index)
        predicted = _predict_clean(config, noisy, jnp.asarray(schedule.alpha_bar)[index], denoise(noisy, index))
        return jnp.square(clean - predicted).sum(-1)

    distance = jax.vmap(squared_distance)(jnp.arange(config.step_count), noise)  # [T, ...]
    # two Gaussians of one step differ in variance by the posterior's share of beta; none at the first step, a density
    share = schedule.posterior_variance[1:] / schedule.beta[1:]
    spread = np.append(math.log(2.0 * math.pi * schedule.beta[0]), share - 1.0 - np.log(share))
    axes = (-1, *(1,) * (distance.ndim - 1))
    weight = schedule.posterior_clean**2 / schedule.beta
    steps = 0.5 * (weight.reshape(axes) * distance + clean.shape[-1] * spread.astype(np.float32).reshape(axes))
    remainder = float(schedule.alpha_bar[-1])
    start = 0.5 * (remainder * (jnp.square(clean) - 1.0) - math.log1p(-remainder)).sum(-1)
    return jnp.concatenate([steps, start[None]])
