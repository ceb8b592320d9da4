"""Every pre-training and every row behind it: states fit, and what crosses is the same function on the other side.

Nothing is trained. A source State is filled with ones and a target State with zeros, so what moved is seen.
"""

from __future__ import annotations

import functools

import bridges
import jax
import numpy as np
import pytest
from presets import FINETUNING, METHODS, Budget

from safejax.checkpoint import warm_start
from safejax.types import Transition

OBSERVATION, ACTION, HIDDEN, LENGTH, LIMIT = 3, 2, (8,), 10, 5.0
BUDGET = Budget(hidden_sizes=HIDDEN)
MARVEL, PEX, DIFFCPS = (METHODS[name] for name in ("marvel", "policy_expansion", "diffcps_online"))
names = pytest.mark.parametrize("name", bridges.names())


@functools.cache
def source_of(name):
    return bridges.offline(name, BUDGET, action_size=ACTION, episode_length=LENGTH, limit=LIMIT)


def state_of(algorithm, number):
    """A State of the right shapes that holds `number` everywhere; nothing is compiled."""
    zero, observation = np.zeros((), np.float32), np.zeros(OBSERVATION, np.float32)
    example = Transition(observation, np.zeros(ACTION, np.float32), zero, zero, zero, zero, observation)
    shapes = jax.eval_shape(algorithm.init, jax.random.key(0), example)
    return jax.tree.map(lambda spec: np.full(spec.shape, number, spec.dtype), shapes)


def moved(state, pretrained, fields):
    """The State after `warm_start`, having checked that exactly the parts in `fields` became ones."""
    after = warm_start(state, pretrained, fields)
    ones = {
        "".join(str(entry) for entry in path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(after)
        if np.all(np.asarray(leaf) == 1)
    }
    named = tuple("".join(f".{part}" for part in target.split(".")) for target in fields)
    paths = {"".join(str(entry) for entry in path) for path, _ in jax.tree_util.tree_leaves_with_path(state)}
    expected = {path for path in paths if any(path == one or path.startswith((f"{one}.", f"{one}[")) for one in named)}
    assert ones == expected
    assert all(any(path.startswith(one) for path in expected) for one in named)
    return after


def same_critics(fields, target, source, target_networks, source_networks):
    """Whether `target` crosses, and if it does that the networks on both sides are one function."""
    crosses = target in fields
    assert crosses == (f"target_{target.removesuffix('.params')}" in fields)
    assert crosses == (source is not None and target_networks == source_networks)
    return crosses


def bound(algorithm):
    return algorithm.init.keywords["networks"]


def test_names_are_the_methods_and_their_safe_forms():
    found = bridges.names()
    assert len(found) == len(set(found))
    plain = {name for name in found if not name.startswith("safe_")}
    assert plain == set(bridges.FORMS)
    # clones have no values to make safe, CPQ is safe by itself
    assert plain - {name.removeprefix("safe_") for name in found if name.startswith("safe_")} == {
        "bc",
        "diffusion_bc",
        "cpq",
    }


@names
def test_pre_training_takes_the_limit_and_the_discount_of_the_fine_tuning(name):
    source = source_of(name)
    config = source.config
    assert source.safe == name.startswith("safe_")
    assert getattr(config, "discount_factor", FINETUNING.discount_factor) == FINETUNING.discount_factor
    if source.safe:
        safe = config.safety
        assert (safe.cost_limit, safe.episode_length, safe.discount_factor) == (LIMIT, LENGTH, 0.97)
    if name == "cpq":
        assert (config.cost_limit, config.episode_length) == (LIMIT, LENGTH)
    assert source.algorithm.update.keywords["config"] is config


@names
def test_a_policy_without_a_density_is_extracted_and_the_others_are_not(name):
    source = source_of(name)
    phase = bridges.extraction_phase(source)
    assert (phase is None) == source.form.direct
    if phase is None:
        return
    algorithm, config, fields = phase
    after = moved(state_of(algorithm, 0), state_of(source.algorithm, 1), fields)
    networks = bound(algorithm)
    assert networks.frozen.actor == source.networks.actor
    if source.form.frozen in ("residual", "mlp"):
        assert networks.frozen.diffusion == source.config.diffusion
    if source.form.critic is None:  # nothing to weigh by
        assert config.inverse_temperature == 0.0
        assert "critic" not in fields
    else:
        assert config.inverse_temperature > 0.0
        assert networks.critic == source.networks.critic
        assert np.all(jax.tree.leaves(after.critic)[0] == 1)
    assert (config.safety is not None) == source.safe == ("safety" in fields)
    if source.safe:
        assert networks.safety == source.networks.safety
        assert config.safety == source.config.safety


@names
def test_marvel_starts_behind_every_pre_training(name):
    source = source_of(name)
    row = bridges.online(MARVEL, source, LIMIT)
    phase = bridges.extraction_phase(source)
    assert row.extracted == (phase is not None)
    behind = source.algorithm if phase is None else phase[0]
    for algorithm in (row.alignment, row.finetuning):
        moved(state_of(algorithm, 0), state_of(behind, 1), row.fields)
    ours, theirs = bound(row.finetuning), bound(behind)
    assert ours.actor == theirs.actor
    critic = None if source.form.critic is None else source.form
    same_critics(row.fields, "critic.params", critic, ours.critic, getattr(source.networks, "critic", None))
    if source.safe:
        there = source.networks.safety.critic
        same_critics(row.fields, "cost_critic.params", source, ours.cost_critic, there)
    else:
        assert ("cost_critic.params" in row.fields) == (name == "cpq")
    if name == "cpq":
        assert ours.cost_critic == source.networks.cost_critic
    assert "multiplier" not in row.fields  # fine-tuning starts with a fresh controller
    assert row.config.cost_limit == LIMIT
    assert row.config.multiplier == MARVEL.multiplier
    assert row.finetuning.batch.offline_fraction == MARVEL.offline_fraction


@names
def test_policy_expansion_keeps_every_pre_training(name):
    source = source_of(name)
    row = bridges.online(PEX, source, LIMIT)
    assert not row.extracted
    for algorithm in (row.alignment, row.finetuning):
        moved(state_of(algorithm, 0), state_of(source.algorithm, 1), row.fields)
    networks = bound(row.finetuning)
    assert networks.frozen.actor == source.networks.actor
    if source.form.frozen in ("residual", "mlp"):
        assert networks.frozen.diffusion == source.config.diffusion
    critic = None if source.form.critic is None else source.form
    same_critics(row.fields, "critic.params", critic, networks.critic, getattr(source.networks, "critic", None))
    if source.safe:
        crosses = networks.safety.critic == source.networks.safety.critic
        assert ("safety.critic.params" in row.fields) == ("safety.target_critic" in row.fields) == crosses
    assert row.config.safety.cost_limit == LIMIT
    assert row.config.safety.multiplier == PEX.multiplier
    assert row.finetuning.batch.offline_fraction == 0.5


@names
def test_diffcps_goes_on_with_itself_alone(name):
    source = source_of(name)
    if source.form.module != "diffcps":
        with pytest.raises(ValueError, match="diffcps_online goes on with DiffCPS") as caught:
            bridges.online(DIFFCPS, source, LIMIT)
        assert source.form.module in str(caught.value)
        assert "\n" not in str(caught.value)
        return
    row = bridges.online(DIFFCPS, source, LIMIT)
    for algorithm in (row.alignment, row.finetuning):
        moved(state_of(algorithm, 0), state_of(source.algorithm, 1), row.fields)
        assert bound(algorithm) is source.networks
    assert {"actor.params", "ema_actor", "critic.params", "target_critic"} < set(row.fields)
    assert ("safety.critic.params" in row.fields) == source.safe
    assert row.config.safety.multiplier == DIFFCPS.multiplier
    assert row.finetuning.batch.offline_fraction == DIFFCPS.offline_fraction


def test_critics_with_another_activation_or_number_stay_behind():
    """Diffusion-QL's have mish, SfBC's is one with swish: of equal shapes, they would load and mean something else."""
    shared = {"iql", "cpq", "td3_bc", "idql", "align_iql", "align_iql_gaussian"}
    for method in (MARVEL, PEX):
        rows = {name: bridges.online(method, source_of(name), LIMIT).fields for name in bridges.FORMS}
        assert {name for name, fields in rows.items() if "critic.params" in fields} == shared
        safe = {name: bridges.online(method, source_of(f"safe_{name}"), LIMIT).fields for name in shared - {"cpq"}}
        cost = "cost_critic.params" if method is MARVEL else "safety.critic.params"
        assert all(cost in fields for fields in safe.values())
        assert cost not in bridges.online(method, source_of("safe_sfbc"), LIMIT).fields


def test_what_pex_stores_rebuilds_its_networks():
    """`save_policy` keeps the options of `default_networks`; without them another kind of policy would load."""
    for name in ("iql", "td3_bc", "idql", "diffusion_ql"):
        row = bridges.online(PEX, source_of(name), LIMIT)
        rebuilt = bridges.pex.default_networks(ACTION, HIDDEN, **row.network_options)
        assert rebuilt == bound(row.finetuning)
    row = bridges.online(DIFFCPS, source_of("diffcps"), LIMIT)
    assert bridges.diffcps.default_networks(ACTION, HIDDEN, **row.network_options) == source_of("diffcps").networks
