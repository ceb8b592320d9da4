"""Our side of loss_parity.py: what our own `update`, unchanged, computes from the peer's weights and recorded draws.

Losses are the update's metrics; gradients are read off the first moments of its optimisers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import loss_parity_inputs as inputs
import numpy as np
from loss_parity_inputs import File, fresh, loaded, scripted, transitions

from safejax.algorithms import diffcps, diffusion_bc, diffusion_ql, idql, iql
from safejax.diffusion import add_noise, make_schedule, sample
from safejax.networks import ResidualDenoiser, Value
from safejax.types import Array


class Term(NamedTuple):
    """One quantity, computed twice; arrays of one size."""

    name: str
    theirs: Any
    ours: Any
    limit: float = 1e-5  # of the relative difference


# IDQL's chain clips the noisy action and not the clean one, so its first steps magnify round-off: against float64 with
# the same weights the chains of both sides are off by 2e-6 over a batch, but by up to 2e-5 in a single action.
SELECTED = 5e-5  # limit for a few single actions


def gradient_term(name: str, moment: Any, opt_state: Any, factor: float = 1.0) -> Term:
    """Gradients, `factor` times theirs, from the first moments of the one Adam on either side: 0.1 g after one step."""
    parts = jax.tree.leaves(opt_state, is_leaf=lambda part: hasattr(part, "mu"))
    ours = next(part.mu for part in parts if hasattr(part, "mu"))
    theirs, ours = (jax.tree.map(lambda leaf: leaf / 0.1, tree) for tree in (moment, ours))
    return Term(f"{name} gradient", jax.tree.map(lambda leaf: factor * leaf, theirs), ours)


def iql_terms(file: File) -> Iterator[Term]:
    """One update of IQL."""
    convert = {"actor": inputs.iql_actor, "critic": inputs.iql_critics, "value": inputs.iql_value}
    config = iql.Config(
        discount_factor=file["number/discount"].item(),
        expectile=file["number/expectile"].item(),
        inverse_temperature=file["number/temperature"].item(),
        target_update_rate=file["number/tau"].item(),
        actor_decay_steps=file["number/max_steps"].item(),
    )
    batch = transitions(file)
    algorithm = iql.make(config, action_size=batch.action.shape[-1])
    before = {name: function(file, f"before/{name}") for name, function in convert.items()}
    target = inputs.iql_critics(file, "before/target_critic")
    state = loaded(fresh(algorithm, batch), **before, target_critic=target)
    after, metrics = algorithm.update(state, batch, jax.random.key(0))
    for name, function in convert.items():
        yield Term(f"{name} loss", file[f"term/{name}_loss"], metrics[f"{name}/loss"])
        yield gradient_term(name, function(file, f"moment/{name}"), getattr(after, name).opt_state)
    target = inputs.iql_critics(file, "after/target_critic")
    yield Term("target critic after the update", target, after.target_critic)


def idql_terms(file: File) -> Iterator[Term]:
    """One update of IDQL, its sampler and the action that it evaluates; and the values of its paper's code."""
    count = file["number/N"].item()
    config = idql.Config(
        discount_factor=file["number/discount"].item(),
        expectile=file["number/critic_hyperparam"].item(),
        candidate_count=count,
        target_update_rate=file["number/tau"].item(),
        ema_rate=file["number/actor_tau"].item(),
    )
    batch = transitions(file)
    schedule = make_schedule(config.diffusion.schedule, config.diffusion.step_count)
    yield Term("beta", file["term/betas"], schedule.beta)
    yield Term("alpha bar", file["term/alpha_hats"], schedule.alpha_bar)

    networks = idql.default_networks(batch.action.shape[-1])
    networks = networks._replace(actor=ResidualDenoiser(batch.action.shape[-1], dropout_rate=0.0))
    algorithm = idql.make(config, networks)
    convert = {"actor": inputs.residual_denoiser, "critic": inputs.idql_critics, "value": inputs.idql_value}
    theirs = {"actor": "score_model", "critic": "critic", "value": "value"}
    before = {name: function(file, f"before/{theirs[name]}") for name, function in convert.items()}
    before["ema_actor"] = inputs.residual_denoiser(file, "before/target_score_model")
    before["target_critic"] = inputs.idql_critics(file, "before/target_critic")
    state = loaded(fresh(algorithm, batch), **before)
    with scripted(normal=[file["draw/noise"]], randint=[file["draw/time_index"]]):
        after, metrics = algorithm.update(state, batch, jax.random.key(0))
    for name, function in convert.items():
        # theirs is the mean over both critics, ours the sum
        text, factor = ("2 x critic", 2.0) if name == "critic" else (name, 1.0)
        yield Term(f"{text} loss", factor * file[f"term/{name}_loss"], metrics[f"{name}/loss"])
        moment = function(file, f"moment/{theirs[name]}")
        yield gradient_term(text, moment, getattr(after, name).opt_state, factor)
    target = inputs.idql_critics(file, "after/target_critic")
    yield Term("target critic after the update", target, after.target_critic)
    averaged = inputs.residual_denoiser(file, "after/target_score_model")
    yield Term("averaged actor after the update", averaged, after.ema_actor)

    # the last draw of their chain is multiplied by 0, ours is not made
    denoise = diffusion_bc.denoiser(networks, state.ema_actor, batch.observation)
    ours = sample(config.diffusion, denoise, jnp.asarray(file["draw/chain"][:-1]))
    yield Term("actions from the reverse chain", file["term/chain"], ours)
    with scripted(normal=[file["draw/evaluated"][:-1]]):
        rows = batch.observation[: len(file["term/evaluated"])]
        action, *_ = algorithm.act(state, rows, jax.random.key(0), explore=True)
    yield Term(f"best of {count} candidates", file["term/evaluated"], action, SELECTED)

    networks = networks._replace(value=Value((256, 256)))
    for kind in ("expectile", "quantile", "exponential"):
        number = {kind: file[f"number/{kind}"].item()}
        algorithm = idql.make(dataclasses.replace(config, value=kind, **number), networks)
        value = inputs.idql_value(file, f"before/{kind}_value")
        target = inputs.idql_critics(file, f"before/{kind}_target_critic")
        state = loaded(fresh(algorithm, batch), value=value, target_critic=target)
        after, metrics = algorithm.update(state, batch, jax.random.key(0))
        if kind != "exponential":  # theirs is a surrogate, which has the gradient of the loss but not its value
            yield Term(f"paper's {kind} value loss", file[f"term/{kind}_value_loss"], metrics["value/loss"])
        moment = inputs.idql_value(file, f"moment/{kind}_value")
        yield gradient_term(f"paper's {kind} value", moment, after.value.opt_state)


def diffusion_terms(file: File, module: Any, numbers: Callable[[File], dict[str, Any]]) -> Iterator[Term]:
    """An update of Diffusion-QL or DiffCPS without and one with the max-Q backup, and their parts.

    Args:
      file: of the peer.
      module: ours.
      numbers: what the Config of `module` has beyond those that both share, of the numbers of one update.
    """
    batch = transitions(file)
    networks = module.default_networks(batch.action.shape[-1])
    config = module.Config(ema_start=0)
    schedule = make_schedule(config.diffusion.schedule, config.diffusion.step_count)
    columns = ("betas", "alphas_cumprod", "posterior_variance", "posterior_mean_coef1", "posterior_mean_coef2")
    for name, ours in zip(columns, schedule, strict=True):
        yield Term(name, file[f"before/actor/{name}"], ours)

    before = {name: inputs.torch_denoiser(file, f"before/{name}") for name in ("actor", "ema_actor")}
    before |= {name: inputs.torch_critics(file, f"before/{name}") for name in ("critic", "target_critic")}
    denoise = diffusion_bc.denoiser(networks, jax.tree.map(jnp.asarray, before["actor"]), batch.observation)
    index, noise = (jnp.asarray(file[f"draw/plain/{name}"]) for name in ("time_index", "noise"))
    noisy = add_noise(schedule, batch.action, noise, index)
    yield Term("noisy actions", file["term/noisy_action"], noisy)
    yield Term("predicted noise", file["term/noise_prediction"], denoise(noisy, index))
    # the last draw of their chain is multiplied by 0, ours is not made
    chain = sample(config.diffusion, denoise, jnp.asarray(file["draw/chain"][:-1]))
    yield Term("actions from the reverse chain", file["term/chain"], chain)

    for case, text in (("plain", ""), ("backup", "max-Q backup, clipped: ")):
        given = {name.rpartition("/")[2]: value for name, value in file.items() if name.startswith(f"number/{case}/")}
        # a row of their draws is a pair (state, candidate), the candidate counting faster
        draws = file[f"draw/{case}/next_action"][:-1]
        backup_count = draws.shape[1] // len(batch.reward)
        draws = draws.reshape(len(draws), -1, backup_count, draws.shape[-1]).swapaxes(1, 2)
        config = module.Config(
            discount_factor=given["discount"].item(),
            target_update_rate=given["tau"].item(),
            backup_count=backup_count,
            actor_learning_rate=given["lr"].item(),
            clip_norm=given["grad_norm"].item(),
            ema_start=0,
            **numbers(given),
        )
        algorithm = module.make(config, networks)
        state = loaded(fresh(algorithm, batch), **before)
        normal = [draws, file[f"draw/{case}/noise"], file[f"draw/{case}/action"][:-1]]
        second = np.array(given["max_q_backup"])  # whether Q_a is the second critic
        with scripted(normal=normal, randint=[file[f"draw/{case}/time_index"]], bernoulli=[second]):
            after, metrics = algorithm.update(state, batch, jax.random.key(0))
        for name, ours in METRICS.items():
            yield Term(f"{text}{name.replace('_', ' ')}", file[f"term/{case}/{name}"], metrics[ours])
        for name, convert in (("critic", inputs.torch_critics), ("actor", inputs.torch_denoiser)):
            moment = convert(file, f"moment/{case}/{name}")
            yield gradient_term(f"{text}{name}", moment, getattr(after, name).opt_state)
        if f"term/{case}/multiplier" in file:
            multiplier = after.behavior_multiplier
            yield Term(f"{text}multiplier after the update", file[f"term/{case}/multiplier"], multiplier.params)
            theirs = 0.1 * file[f"term/{case}/multiplier_gradient"]
            yield gradient_term(f"{text}multiplier", theirs, multiplier.opt_state)
        target = inputs.torch_critics(file, f"after/{case}/target_critic")
        yield Term(f"{text}target critic after the update", target, after.target_critic)
        averaged = inputs.torch_denoiser(file, f"after/{case}/ema_actor")
        yield Term(f"{text}averaged actor after the update", averaged, after.ema_actor)

    seen = []

    def likeliest(key: Any, logits: Array, axis: int) -> Array:
        seen.append(jax.nn.softmax(logits, axis))
        return jnp.argmax(logits, axis)

    rows = batch.observation[: len(file["term/chosen"])]
    with scripted(normal=[file["draw/chosen"][:-1]]), mock.patch.object(jax.random, "categorical", likeliest):
        action, *_ = algorithm.act(state, rows, jax.random.key(0), explore=True)
    yield Term("probabilities of 50 candidates", file["term/probabilities"], seen[0])
    yield Term("likeliest of 50 candidates", file["term/chosen"], action)


def diffusion_ql_numbers(given: File) -> dict[str, Any]:
    """What only Diffusion-QL's Config has."""
    return {"value_weight": given["eta"].item()}


def diffcps_numbers(given: File) -> dict[str, Any]:
    """What only DiffCPS's Config has."""
    return {
        "behavior_limit": given["target_kl"].item(),
        "initial_multiplier": given["LA"].item(),
        "policy_frequency": given["policy_freq"].item(),
    }


METRICS = {
    "critic_loss": "critic/loss",
    "behavior_loss": "actor/behavior_loss",
    "value_loss": "actor/value_loss",
    "actor_loss": "actor/loss",
}
"""Term of the peers' file -> metric of our update, in Diffusion-QL and DiffCPS."""

TERMS: dict[str, Callable[[File], Iterator[Term]]] = {
    "diffcps": functools.partial(diffusion_terms, module=diffcps, numbers=diffcps_numbers),
    "diffusion_ql": functools.partial(diffusion_terms, module=diffusion_ql, numbers=diffusion_ql_numbers),
    "idql": idql_terms,
    "iql": iql_terms,
}
