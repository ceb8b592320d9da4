"""Dense-layer FLOPs of one update of every method, two per multiply-add.

Counted: evaluations, gradients of weights, gradients of inputs where something before them learns; of these, what no
implementation of the method can leave out. Not counted: activations, layer norms, optimisers, target averages,
gathers, products that serve a metric alone, the safe forms. A product that two places need counts once: a denoiser's
first layer meets a state once for all its candidates and steps of a chain, and a step of a chain once for all rows.
Beyond that no sum of products is rearranged.

`sizes` are one network's widths from input to output.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

CHAIN = 5  # steps of the reverse chain by default
CANDIDATES = {"align_iql_hard": 16, "extraction": 8, "sfbc": 16}  # which an update draws for each state by default


def _products(sizes: Sequence[int]) -> int:
    return sum(inputs * outputs for inputs, outputs in itertools.pairwise(sizes))


def forward(sizes: Sequence[int], batch: int) -> int:
    """One evaluation of a network."""
    return 2 * batch * _products(sizes)


def train(sizes: Sequence[int], batch: int, columns: int = 0) -> int:
    """Evaluation, gradients of all weights, of the inputs of every layer but the first, and of `columns` of its."""
    return 2 * batch * (3 * _products(sizes) - (sizes[0] - columns) * sizes[1])


def through(sizes: Sequence[int], batch: int, columns: int) -> int:
    """Evaluation and the gradient of `columns` of the inputs, through frozen weights."""
    return 2 * batch * (2 * _products(sizes) - (sizes[0] - columns) * sizes[1])


class Denoiser(NamedTuple):
    """Multiply-adds of the parts of a denoiser for one row; the first layer is cut by its three inputs."""

    observation: int
    noisy: int
    time: int  # its embedding and its part of the first layer
    fixed: int  # of `time`, the layer on features that do not learn
    rest: int  # all after the first layer


def mlp_denoiser(observation: int, action: int, hidden: Sequence[int], time: int = 16) -> Denoiser:
    """`networks.MLPDenoiser`: sinusoidal features, two dense layers on them."""
    first = hidden[0]
    embedding = _products((time, 2 * time, time, first))
    return Denoiser(observation * first, action * first, embedding, 2 * time**2, _products((*hidden, action)))


def residual_denoiser(observation: int, action: int, width: int) -> Denoiser:
    """`diffusion_bc.residual_denoiser`: learned Fourier features, two dense layers on them, three blocks."""
    embedding = _products((2 * max(1, width // 4), width, width, width))
    blocks = 3 * _products((width, 4 * width, width))
    return Denoiser(observation * width, action * width, embedding, 0, blocks + width * action)


def clone(denoiser: Denoiser, batch: int) -> int:
    """A gradient of the denoising loss, each row at a step of its own."""
    learned = denoiser.time + denoiser.rest
    data = denoiser.observation + denoiser.noisy
    return 2 * batch * (3 * learned - denoiser.fixed + 2 * data)


def sample(denoiser: Denoiser, batch: int, candidates: int, chain: int = CHAIN) -> int:
    """`candidates` actions for each of `batch` observations by a reverse chain."""
    step = batch * candidates * (denoiser.noisy + denoiser.rest) + denoiser.time
    return 2 * (batch * denoiser.observation + chain * step)


def climb(denoiser: Denoiser, batch: int, chain: int = CHAIN) -> int:
    """A reverse chain of one action a row and the gradient through it, beside a `clone` of the same rows.

    The observation's part of the first layer is the clone's; the noise that the chain starts from needs no gradient.
    """
    weights = batch * (denoiser.observation + denoiser.noisy + denoiser.rest) + denoiser.time
    inputs = batch * denoiser.rest + denoiser.time - denoiser.fixed
    evaluation = batch * (denoiser.noisy + denoiser.rest) + denoiser.time
    return 2 * (chain * (evaluation + weights + inputs) + (chain - 1) * batch * denoiser.noisy)


def update_flops(
    method: str,
    *,
    observation: int,
    action: int,
    hidden: Sequence[int],
    batch: int,
    epochs: int = 1,
    policy_frequency: int = 1,
) -> float:
    """Minimal FLOPs of one update; of ppo_lag, of one minibatch and its share of the preparation.

    Args:
      method: a key of `throughput.METHODS`.
      observation, action, hidden: sizes of the networks.
      batch: transitions of the batch or minibatch, over all windows of a sequence method.
      epochs: of ppo_lag, passes over a rollout, which share its preparation: four values of every row.
      policy_frequency: of methods whose actor rests between, critic steps to one of the actor; with 1 the update is
        one in which it moves.
    """
    value, critic = (observation, *hidden, 1), (observation + action, *hidden, 1)
    mean, mean_and_std = (observation, *hidden, action), (observation, *hidden, 2 * action)
    v, v_step = forward(value, batch), train(value, batch)
    q, q_step, gradient = forward(critic, batch), train(critic, batch), through(critic, batch, action)
    twins = 2 * q + 2 * q_step  # two critics: their targets, then a gradient step
    in_sample = twins + v_step + v  # and a value, whose step is followed by its use at the next observation
    normalized = in_sample + train(value, batch, observation) - v_step  # a layer norm learns before the value's layers
    residual, plain = residual_denoiser(observation, action, hidden[0]), mlp_denoiser(observation, action, hidden)
    drawn = CANDIDATES.get(method, 1)
    # next action; both reward critics and the cost critic, first their targets, then a gradient step
    evaluation = forward(mean_and_std, batch) + 3 * q + 3 * q_step
    match method:
        case "bc":
            return train(mean_and_std, batch)
        case "awr":  # one evaluation of V(s) serves its own step, too
            return v_step + v + train(mean, batch)
        case "iql":  # the new value once more, for the advantage
            return in_sample + v + train(mean, batch)
        case "td3_bc":
            return forward(mean, batch) + twins + (train(mean, batch) + gradient) / policy_frequency
        case "diffusion_bc":
            return clone(residual, batch)
        case "idql" | "align_iql":  # the advantage weighs no loss
            return clone(residual, batch) + normalized
        case "align_iql_hard":  # the new value and the multiplier at s, against candidates of the behaviour policy
            dual = v + train(value, batch, observation) + sample(residual, batch, drawn) + drawn * 2 * q
            return clone(residual, batch) + normalized + dual
        case "sfbc":
            return clone(residual, batch) + sample(residual, batch, drawn) + drawn * q + q_step
        case "diffusion_ql" | "diffcps":
            actor = clone(plain, batch) + climb(plain, batch) + gradient + q
            actor /= policy_frequency if method == "diffcps" else 1
            return sample(plain, batch, 1) + twins + actor
        case "pex":  # the frozen action; two candidates under both new critics, the chosen one under the targets
            choice = forward(mean, batch) + 2 * 2 * q + 2 * q + v
            return in_sample + choice + train(mean, batch)
        case "extraction":
            return sample(residual, batch, drawn) + drawn * 2 * q + train(mean_and_std, batch)
        case "marvel":  # alignment
            return evaluation
        case "sac_lag":
            return evaluation + train(mean_and_std, batch) + 3 * gradient
        case "cpq":  # without push-up; no gradient passes the indicator of the cost critic
            return evaluation + train(mean_and_std, batch) + 2 * gradient + q
        case "ppo_lag":
            return train(mean, batch) + 2 * v_step + 4 * v / epochs
    raise ValueError(f"method is {method!r}, which has no FLOP count")
