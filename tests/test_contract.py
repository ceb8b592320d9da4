"""One battery over every algorithm: add a line to `CASES` and the method is held to the shape.

Bitwise: resume, chunking with donation. To rtol 1e-4: jit against no jit, vmap against single runs, devices.
The shape is repeated with pixels, for one form of every method (`PIXELS`).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_algorithms

from safejax import checkpoint
from safejax.algorithms import (
    MODULES,
    align_iql,
    awr,
    bc,
    cpq,
    diffcps,
    diffusion_bc,
    diffusion_ql,
    extraction,
    fosp,
    idql,
    iql,
    marvel,
    pex,
    ppo_lag,
    sac_lag,
    safe_dreamer,
    sfbc,
    td3_bc,
)
from safejax.algorithms.safety import SafetyConfig
from safejax.data.dataset import from_arrays
from safejax.networks import PixelEncoder
from safejax.training import skip_non_finite, train_offline
from safejax.types import Algorithm, EpisodeStats, Transition

OBSERVATION, ACTION, ROWS, BATCH = 5, 2, 64, 8
HIDDEN = (8,)
CHAIN = 2  # denoising steps of every diffusion policy
PICTURE = (4, 4, 3)
ENCODER = PixelEncoder(channels=(4,), feature_size=OBSERVATION - 1)  # with a state [1]: heads of the same sizes
SAFETY = SafetyConfig(cost_limit=1.0, episode_length=10)


@dataclass(frozen=True)
class Case:
    """One method, small."""

    make: Callable[..., Algorithm]  # (encoder=None), but for the toys
    uses_reward: bool = True  # a NaN reward must show in its metrics
    is_discrete: bool = False


def small(module, *, make: str = "make", uses_reward: bool = True, networks: dict | None = None, **numbers) -> Case:
    """A method, or a phase of it, with small networks and the numbers of its Config that differ from the default."""

    def bound(encoder=None):
        default = module.default_networks(ACTION, HIDDEN, encoder=encoder, **networks or {})
        return getattr(module, make)(short(module.Config(**numbers)), default)

    return Case(bound, uses_reward)


def short(config):
    """The same Config with `CHAIN` denoising steps, if it has any."""
    chain = getattr(config, "diffusion", None)
    return config if chain is None else replace(config, diffusion=replace(chain, step_count=CHAIN))


GAUSSIAN, RESIDUAL, VAE = {"actor": "gaussian"}, {"frozen": "residual"}, {"vae_hidden_sizes": HIDDEN}
LATENT = {"networks": {"size": (2, 4, 4, 3, 8)}, "horizon": 2, "length": 3}  # see `networks.world_model.Size`
CASES = {
    "bc": small(bc, uses_reward=False),
    "iql": small(iql),
    "iql_squashed": small(iql, networks={"actor": "squashed"}),
    "iql_safe": small(iql, networks={"actor": "deterministic"}, safety=SAFETY),
    "awr": small(awr, sequence_length=4),
    "awr_safe": small(awr, sequence_length=4, safety=SAFETY),
    "td3_bc": small(td3_bc),
    "td3_bc_safe": small(td3_bc, safety=SAFETY, policy_frequency=1),
    "diffusion_bc": small(diffusion_bc, uses_reward=False),
    "idql": small(idql, candidate_count=4),
    "idql_quantile": small(idql, candidate_count=4, value="quantile", selection="weighted"),
    "idql_safe": small(idql, candidate_count=4, value="exponential", safety=SAFETY),
    "align_iql": small(align_iql, candidate_count=4),
    "align_iql_hard": small(align_iql, candidate_count=4, alignment="hard", dual_sample_count=3),
    "align_iql_safe": small(
        align_iql, networks=GAUSSIAN, policy="gaussian", alignment="hard", dual="sample", safety=SAFETY
    ),
    "sfbc": small(sfbc, sequence_length=2, candidate_count=3, act_candidate_count=4),
    "sfbc_safe": small(sfbc, sequence_length=2, candidate_count=3, act_candidate_count=4, safety=SAFETY),
    "diffusion_ql": small(diffusion_ql, candidate_count=4),
    "diffusion_ql_safe": small(diffusion_ql, candidate_count=4, backup_count=2, safety=SAFETY),
    "diffcps": small(diffcps, candidate_count=4),
    "diffcps_safe": small(diffcps, candidate_count=4, policy_frequency=1, safety=SAFETY),
    "diffcps_alignment": small(diffcps, make="make_alignment", safety=SAFETY),
    "diffcps_finetuning": small(diffcps, make="make_finetuning", safety=SAFETY),
    "cpq": small(cpq, networks=VAE),
    "cpq_push_up": small(cpq, networks=VAE, push_up=True),
    "ppo_lag": small(ppo_lag, epoch_count=2, minibatch_count=2),
    "sac_lag": small(sac_lag),
    "extraction": small(extraction, uses_reward=False),
    "pex": small(pex),
    "pex_safe": small(pex, networks=RESIDUAL, safety=SAFETY),
    "pex_alignment": small(pex, make="make_alignment", networks=RESIDUAL, safety=SAFETY),
    "marvel_alignment": small(marvel, make="make_alignment"),
    "marvel_finetuning": small(marvel, make="make_finetuning"),
    "safe_dreamer": small(safe_dreamer, **LATENT),
    "fosp_offline": small(fosp, make="make_offline", **LATENT),
    "fosp_finetuning": small(fosp, make="make_finetuning", **LATENT),
    "toy_on_policy": Case(lambda: toy_algorithms.on_policy(ACTION)),
    "toy_recurrent": Case(lambda: toy_algorithms.recurrent(ACTION), uses_reward=False),
    "toy_return_conditioned": Case(lambda: toy_algorithms.return_conditioned(ACTION)),
    "toy_discrete": Case(lambda: toy_algorithms.discrete(ACTION), is_discrete=True),
}


def transitions(leading: tuple[int, ...], *, discrete: bool, pixels: bool = False, seed: int = 0) -> Transition:
    """Random rows with ends of both kinds."""
    random = np.random.default_rng(seed)
    terminated = random.random(leading) < 0.1
    last = terminated | (random.random(leading) < 0.1)

    def normal(*shape):
        return jnp.asarray(random.normal(size=(*leading, *shape)), jnp.float32)

    def observation():
        if not pixels:
            return normal(OBSERVATION)
        return {"pixels": jnp.asarray(random.integers(0, 256, (*leading, *PICTURE)), jnp.uint8), "state": normal(1)}

    action = jnp.tanh(normal(ACTION))
    return Transition(
        observation=observation(),
        action=jnp.asarray(random.integers(0, ACTION, leading), jnp.int32) if discrete else action,
        reward=normal(),
        cost=jnp.asarray(random.random(leading) < 0.3, jnp.float32),
        discount=jnp.asarray(1.0 - terminated, jnp.float32),
        last=jnp.asarray(last, jnp.float32),
        next_observation=observation(),
    )


def batch_of(case: Case, algorithm: Algorithm, seed: int = 0, *, pixels: bool = False) -> Transition:
    """A batch of the kind that the algorithm declares."""
    kind = algorithm.batch.kind
    leading = {"fresh": (4, 8), "sequence": (BATCH, algorithm.batch.length)}.get(kind, (BATCH,))
    batch = transitions(leading, discrete=case.is_discrete, pixels=pixels, seed=seed)
    if kind == "fresh":
        extras = {"raw_action": 1.2 * batch.action, "log_prob": -jnp.ones(leading)}
        batch = batch._replace(extras=extras)
    return batch


@functools.cache
def prepared(name: str):
    """(case, algorithm, example, jitted init, jitted update): compiled once for all tests of a method."""
    case = CASES[name]
    algorithm = case.make()
    example = jax.tree.map(lambda leaf: leaf[0], transitions((1,), discrete=case.is_discrete))
    return case, algorithm, example, jax.jit(algorithm.init), jax.jit(algorithm.update)


names = pytest.mark.parametrize("name", CASES)
# Of the tests that compile most, one form of a method runs always, and "fosp_offline" for those with a world model;
# the others are slow ones, run by hand.
OTHER_FORMS = {
    *("iql", "iql_squashed", "awr", "td3_bc_safe", "idql", "idql_quantile", "align_iql", "align_iql_hard", "sfbc"),
    *("diffusion_ql", "diffcps", "diffcps_safe", "cpq", "pex", "pex_alignment"),
    *("safe_dreamer", "fosp_finetuning"),
}


def names_without(slow):
    """All cases, of which some are slow ones."""
    marked = [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in CASES]
    return pytest.mark.parametrize("name", marked)


costly = names_without(OTHER_FORMS)


def test_every_method_of_the_table_has_a_case():
    for name in MODULES:
        assert any(case == name or case.startswith(f"{name}_") for case in CASES), name


@names
def test_shapes_dtypes_and_weak_types_are_stable(name):
    case, algorithm, example, init, update = prepared(name)
    state = init(jax.random.key(0), example)
    after, metrics = update(state, batch_of(case, algorithm), jax.random.key(1))
    avals = functools.partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type))
    assert avals(after) == avals(state)
    assert state.step.dtype == jnp.int32
    assert int(after.step) == int(state.step) + 1
    assert all(jnp.ndim(value) == 0 for value in metrics.values())
    chex.assert_tree_all_finite((after, metrics))


@names
def test_one_trace_serves_every_step(name):
    case, algorithm, example, init, update = prepared(name)
    state, _ = update(init(jax.random.key(0), example), batch_of(case, algorithm), jax.random.key(1))
    programs = update._cache_size()
    for index in range(3):
        state, _ = update(state, batch_of(case, algorithm, index), jax.random.key(index))
    assert update._cache_size() == programs


@names_without(OTHER_FORMS | {"fosp_offline"})
def test_jit_equals_no_jit(name):
    case, algorithm, example, init, update = prepared(name)
    state = init(jax.random.key(0), example)
    batch, key = batch_of(case, algorithm), jax.random.key(1)
    with jax.disable_jit():
        plain = algorithm.update(state, batch, key)
    # Adam turns a sign of rounding noise into a step of the learning rate where a gradient is all but zero.
    chex.assert_trees_all_close(update(state, batch, key), plain, rtol=1e-4, atol=1e-5)


@costly
def test_vmapped_seeds_equal_single_runs(name):
    case, algorithm, example, init, update = prepared(name)
    keys = jax.random.split(jax.random.key(3), 2)
    batch = batch_of(case, algorithm)
    states = jax.jit(jax.vmap(algorithm.init, in_axes=(0, None)))(keys, example)
    together, _ = jax.jit(jax.vmap(algorithm.update, in_axes=(0, None, 0)))(states, batch, keys)
    for row, key in enumerate(keys):
        alone, _ = update(init(key, example), batch, key)
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf, row=row: leaf[row], together), alone, rtol=1e-4, atol=1e-5
        )


@names
def test_save_restore_continue_equals_uninterrupted(name, tmp_path):
    case, algorithm, example, init, update = prepared(name)
    key = jax.random.key(1)
    state, _ = update(init(jax.random.key(0), example), batch_of(case, algorithm), key)
    checkpoint.save(tmp_path / "state", state)
    restored = checkpoint.restore(tmp_path / "state", jax.eval_shape(algorithm.init, key, example))
    chex.assert_trees_all_equal(restored, state)
    second = batch_of(case, algorithm, 1)
    chex.assert_trees_all_equal(update(restored, second, key), update(state, second, key))


@costly
def test_two_chunks_of_a_donated_state_equal_one(name):
    case, algorithm, example, init, _ = prepared(name)
    if algorithm.batch.kind == "fresh":
        pytest.skip("on-policy: the online loop's test covers it")
    rows = transitions((ROWS,), discrete=case.is_discrete)
    dataset = from_arrays(
        rows.observation,
        rows.action,
        rows.reward,
        rows.cost,
        terminals=rows.discount == 0,
        timeouts=(rows.last > 0) & (rows.discount > 0),
        next_observations=rows.next_observation,
    )
    train = functools.partial(train_offline, algorithm, batch_size=BATCH)
    start, key = init(jax.random.key(0), example), jax.random.key(5)
    whole, _ = jax.jit(functools.partial(train, step_count=4))(start, dataset, key)
    # a target that aliased its online parameters could not be donated
    chunk = jax.jit(functools.partial(train, step_count=2), donate_argnums=0)
    half, _ = chunk(start, dataset, key)
    half, _ = chunk(half, dataset, key)
    chex.assert_trees_all_equal(half, whole)


@names
def test_act_is_bounded_deterministic_and_keeps_its_carry(name):
    case, algorithm, example, init, _ = prepared(name)
    state = init(jax.random.key(0), example)
    observation = 10.0 * transitions((5,), discrete=False).observation
    carry = algorithm.initial_carry(state, 5)
    act = jax.jit(algorithm.act, static_argnames="explore")
    first, after, _ = act(state, observation, jax.random.key(1), carry)
    again, _, _ = act(state, observation, jax.random.key(2), carry)
    chex.assert_trees_all_equal(first, again)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, carry)
    drawn, _, extras = act(state, observation, jax.random.key(2), carry, explore=True)
    chex.assert_equal_shape([drawn, first])
    assert all(value.shape[0] == 5 for value in extras.values())
    if case.is_discrete:
        assert drawn.dtype == jnp.int32
        assert set(np.asarray(drawn)) <= set(range(ACTION))
    else:
        assert float(jnp.max(jnp.abs(jnp.stack([first, drawn])))) <= 1.0
        ordinary = 0.1 * observation  # far out, every draw of a diffusion policy may end at the bounds
        calm, drawn = (act(state, ordinary, jax.random.key(2), carry, explore=explore)[0] for explore in (False, True))
        assert not np.array_equal(drawn, calm)


@costly
def test_four_devices_equal_one(name):
    case, algorithm, example, init, update = prepared(name)
    batch, key = batch_of(case, algorithm), jax.random.key(1)
    expected = update(init(jax.random.key(0), example), batch, key)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = (
        jax.sharding.NamedSharding(mesh, spec)
        for spec in (jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec())
    )
    state = jax.device_put(init(jax.random.key(0), example), whole)
    spread = jax.jit(algorithm.update)(state, jax.device_put(batch, rows), jax.device_put(key, whole))
    chex.assert_trees_all_close(jax.device_get(spread), jax.device_get(expected), rtol=1e-4, atol=1e-5)


@names
def test_a_nan_reward_shows_in_the_metrics(name):
    case, algorithm, example, init, update = prepared(name)
    if not case.uses_reward:
        pytest.skip("does not learn from rewards")
    batch = batch_of(case, algorithm)
    _, metrics = update(
        init(jax.random.key(0), example),
        batch._replace(reward=batch.reward.at[(0,) * batch.reward.ndim].set(math.nan)),
        jax.random.key(1),
    )
    assert any(bool(jnp.isnan(value)) for value in metrics.values())


@pytest.mark.parametrize("name", ["iql_safe", "td3_bc", "ppo_lag", "marvel_finetuning"])
def test_a_guarded_update_skips_a_nan_reward_and_else_changes_nothing(name):
    """Over the compiled update, whose results it gets or refuses."""
    case, algorithm, example, init, update = prepared(name)
    guarded = skip_non_finite(algorithm._replace(update=update)).update
    state, batch, key = init(jax.random.key(0), example), batch_of(case, algorithm), jax.random.key(1)
    after, metrics = guarded(state, batch, key)
    expected, plain = update(state, batch, key)
    chex.assert_trees_all_equal((after, metrics), (expected, plain | {"skipped": 0.0}))
    poisoned = batch._replace(reward=batch.reward.at[(0,) * batch.reward.ndim].set(math.nan))
    after, metrics = guarded(state, poisoned, key)
    assert metrics["skipped"] == 1
    chex.assert_trees_all_equal(after, state._replace(step=state.step + 1))


@names
def test_every_update_exports_for_tpu_and_cuda_without_callbacks(name):
    case, algorithm, example, init, _ = prepared(name)
    arguments = (init(jax.random.key(0), example), batch_of(case, algorithm), jax.random.key(1))
    exported = jax.export.export(jax.jit(algorithm.update), platforms=("tpu", "cuda"))(*arguments)
    targets = re.findall(r"custom_call @(\w+)", exported.mlir_module())
    assert not [target for target in targets if "callback" in target]


PIXELS = [
    *("bc", "iql_safe", "awr", "td3_bc", "diffusion_bc", "idql", "align_iql", "sfbc", "diffusion_ql"),
    *("diffcps_alignment", "cpq_push_up", "ppo_lag", "sac_lag", "extraction", "pex", "marvel_alignment"),
    *("safe_dreamer", "fosp_offline"),
]
with_pixels = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "safe_dreamer" else name for name in PIXELS]
)


@functools.cache
def prepared_with_pixels(name: str):
    """(algorithm, state of random numbers, batch, jitted update): compiled once, and `init` only traced."""
    algorithm = CASES[name].make(ENCODER)
    example = jax.tree.map(lambda leaf: leaf[0], transitions((1,), discrete=False, pixels=True))
    random = np.random.default_rng(0)

    def fill(path, spec):
        learned = "opt_state" not in jax.tree_util.keystr(path) and spec.ndim
        return jnp.asarray(0.3 * random.normal(size=spec.shape) if learned else np.zeros(spec.shape), spec.dtype)

    state = jax.tree_util.tree_map_with_path(fill, jax.eval_shape(algorithm.init, jax.random.key(0), example))
    return algorithm, state, batch_of(CASES[name], algorithm, pixels=True), jax.jit(algorithm.update)


def test_every_method_of_the_table_meets_pixels():
    for name in MODULES:
        assert any(case == name or case.startswith(f"{name}_") for case in PIXELS), name


@with_pixels
def test_with_pixels_every_encoder_learns_and_keeps_its_shapes(name):
    _, state, batch, update = prepared_with_pixels(name)
    after, metrics = update(state, batch, jax.random.key(1))
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    chex.assert_tree_all_finite((after, metrics))
    moved = jax.tree.map(lambda new, old: not np.array_equal(new, old), after, state)
    is_role = lambda part: isinstance(part, dict) and "encoder" in part  # noqa: E731
    roles = [part for part in jax.tree.leaves(moved, is_leaf=is_role) if is_role(part)]
    learned = [part for part in roles if any(jax.tree.leaves({**part, "encoder": ()}))]
    assert learned
    assert all(all(jax.tree.leaves(part["encoder"])) for part in learned)


@with_pixels
def test_with_pixels_save_restore_continue_equals_uninterrupted(name, tmp_path):
    _, state, batch, update = prepared_with_pixels(name)
    key = jax.random.key(1)
    state, _ = update(state, batch, key)
    checkpoint.save(tmp_path / "state", state)
    restored = checkpoint.restore(tmp_path / "state", jax.eval_shape(lambda: state))
    chex.assert_trees_all_equal(update(restored, batch, key), update(state, batch, key))


@with_pixels
def test_with_pixels_act_is_bounded_deterministic_and_sees_the_picture(name):
    algorithm, state, _, _ = prepared_with_pixels(name)
    seen = transitions((8,), discrete=False, pixels=True).observation
    seen = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), seen)
    seen["pixels"] = seen["pixels"].at[8:].set(0)  # in the dark

    act = jax.jit(algorithm.act)
    first, again = (act(state, seen, jax.random.key(seed))[0] for seed in (1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[:8], first[8:])
    assert first.shape == (16, ACTION)
    assert float(jnp.max(jnp.abs(first))) <= 1.0


@pytest.mark.parametrize("name", ["bc", pytest.param("diffusion_bc", marks=pytest.mark.slow)])
def test_with_pixels_jitted_and_vmapped_seeds_equal_single_runs_without_jit(name):
    algorithm, state, batch, update = prepared_with_pixels(name)
    keys = jax.random.split(jax.random.key(3), 2)
    states = jax.tree.map(lambda leaf: jnp.stack([leaf, 1.1 * leaf]).astype(leaf.dtype), state)
    together, _ = jax.jit(jax.vmap(algorithm.update, in_axes=(0, None, 0)))(states, batch, keys)
    first, second = (jax.tree.map(lambda leaf, row=row: leaf[row], together) for row in range(2))
    chex.assert_trees_all_close(update(state, batch, keys[0])[0], first, rtol=1e-4, atol=1e-5)
    with jax.disable_jit():
        plain, _ = algorithm.update(jax.tree.map(lambda leaf: leaf[1], states), batch, keys[1])
    chex.assert_trees_all_close(plain, second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ppo_lag", "sac_lag", "marvel_finetuning"])
def test_adapt_moves_the_multiplier_only_when_an_episode_finished(name):
    _, algorithm, example, init, _ = prepared(name)
    state = init(jax.random.key(0), example)
    cost = jnp.array([100.0, 60.0, 1e6])
    episodes = EpisodeStats(cost, cost, jnp.ones(3, jnp.int32), jnp.array([True, True, False]))
    none = episodes._replace(finished=jnp.zeros(3, bool))
    chex.assert_trees_all_equal(algorithm.adapt(state, none), state)
    adapted = algorithm.adapt(state, episodes)
    assert float(adapted.multiplier.value) > 0.0
    same_mean = episodes._replace(episode_cost=jnp.array([80.0, 80.0, 0.0]))
    chex.assert_trees_all_close(algorithm.adapt(state, same_mean), adapted, rtol=1e-6)


@pytest.mark.parametrize("name", ["sac_lag", "marvel_finetuning", "ppo_lag"])
def test_costs_leave_the_reward_learner_alone_while_the_multiplier_is_zero(name):
    case, algorithm, example, init, update = prepared(name)
    batch, key = batch_of(case, algorithm), jax.random.key(1)
    state = init(jax.random.key(0), example)
    with_costs, _ = update(state, batch, key)
    without, _ = update(state, batch._replace(cost=jnp.zeros_like(batch.cost)), key)
    reward_parts = [field for field in ("actor", "critic", "value", "target_critic") if hasattr(state, field)]
    for part in reward_parts:
        chex.assert_trees_all_close(getattr(with_costs, part), getattr(without, part), rtol=1e-6)


def test_alignment_moves_critics_only():
    case, algorithm, example, init, update = prepared("marvel_alignment")
    state = init(jax.random.key(0), example)
    after, _ = update(state, batch_of(case, algorithm), jax.random.key(1))
    for frozen in ("actor", "multiplier", "log_temperature"):
        chex.assert_trees_all_equal(getattr(after, frozen), getattr(state, frozen))
    for moved in ("critic", "cost_critic", "target_critic", "target_cost_critic"):
        with pytest.raises(AssertionError):
            chex.assert_trees_all_close(getattr(after, moved), getattr(state, moved), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "rests", "moves"),
    [("fosp_offline", "online_actor", "offline_actor"), ("fosp_finetuning", "offline_actor", "online_actor")],
)
def test_each_phase_moves_its_own_actor_and_everything_else(name, rests, moves):
    case, algorithm, example, init, update = prepared(name)
    state = init(jax.random.key(0), example)
    after = state
    for index in range(3):  # the first step moves zero-initialised last layers alone
        after, _ = update(after, batch_of(case, algorithm, index), jax.random.key(index))
    chex.assert_trees_all_equal(getattr(after, rests), getattr(state, rests))
    buffers = lambda actor: {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(actor)}  # noqa: E731
    assert not buffers(after.offline_actor) & buffers(after.online_actor)
    for field in (moves, "model", "violation"):
        changed = jax.tree.map(
            lambda new, old: not np.array_equal(new, old), getattr(after, field), getattr(state, field)
        )
        assert all(jax.tree.leaves(changed.params)), field
    for values in ("reward", "cost"):
        for field in ("critic", "value"):
            pair = (getattr(getattr(each, values), field).params for each in (after, state))
            changed = jax.tree.map(lambda new, old: not np.array_equal(new, old), *pair)
            assert all(jax.tree.leaves(changed)), (values, field)


@pytest.mark.parametrize(
    ("module", "change"),
    [
        (bc, {"learning_rate": 0.0}),
        (iql, {"expectile": 1.5}),
        (cpq, {"cost_limit": -1.0}),
        (cpq, {"candidate_count": 0}),
        (ppo_lag, {"clip_range": -0.1}),
        (sac_lag, {"discount_factor": 1.1}),
        (safe_dreamer, {"length": 1}),
        (fosp, {"violation_discount_factor": 1.5}),
        (fosp, {"gate": "hard"}),
    ],
)
def test_make_refuses_numbers_out_of_range_in_one_line(module, change):
    with pytest.raises(ValueError, match=next(iter(change))) as caught:
        module.make(module.Config(**change), action_size=2)
    assert "\n" not in str(caught.value)
