"""Policies stored and rebuilt: the same actions, from a run or by name, and configs through JSON."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safejax import checkpoint
from safejax.algorithms import bc, cpq, diffusion_bc, idql, iql, marvel, ppo_lag, safe_dreamer
from safejax.algorithms.safety import SafetyConfig
from safejax.diffusion import DiffusionConfig
from safejax.multipliers import MultiplierConfig
from safejax.networks import Critic, PixelEncoder
from safejax.runs import RunError, from_plain, load_policy, save_policy
from safejax.types import Transition


def example(observation=3, action=2):
    zero, row = jnp.zeros(()), jnp.zeros(observation)
    return Transition(row, jnp.zeros(action), zero, zero, zero, zero, row, {})


def trained(algorithm, seeds, row=None):
    """A state [S] of random numbers: `init` compiles for seconds."""
    shapes = jax.eval_shape(algorithm.init, jax.random.key(0), row or example())
    source = np.random.default_rng(0)

    def fill(spec):
        return jnp.asarray(source.normal(size=(seeds, *spec.shape)), spec.dtype)

    return jax.tree.map(fill, shapes)


POLICIES = {
    "marvel": (
        marvel.Config(cost_limit=7.0, multiplier=MultiplierConfig(kind="pid", ticks=3)),
        lambda config: marvel.make_finetuning(config, marvel.default_networks(2, (8,))),
    ),
    "diffusion_bc": (
        diffusion_bc.Config(diffusion=DiffusionConfig(step_count=2)),
        lambda config: diffusion_bc.make(config, diffusion_bc.default_networks(2, (8,))),
    ),
    "iql": (
        iql.Config(),
        lambda config: iql.make(config, iql.default_networks(2, (8,), actor="deterministic")),
    ),
    "ppo_lag": (
        ppo_lag.Config(clip_range=0.1),
        lambda config: ppo_lag.make(config, ppo_lag.default_networks(2, (8,))),
    ),
}


NETWORK_OPTIONS = {"iql": {"actor": "deterministic"}}


@pytest.mark.parametrize("method", POLICIES)
def test_a_stored_policy_acts_the_same(tmp_path, method):
    config, make = POLICIES[method]
    algorithm = make(config)
    state = trained(algorithm, 3)
    save_policy(
        tmp_path / "policy",
        state,
        config,
        method=method,
        action_size=2,
        observation_size=3,
        hidden_sizes=(8,),
        network_options=NETWORK_OPTIONS.get(method),
        seeds=(5, 6, 7),
        task="demo",
    )
    observation = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)
    act = jax.jit(algorithm.act, static_argnames="explore")
    for index in (0, 2):
        policy = load_policy(tmp_path / "policy", index)
        one = jax.tree.map(lambda leaf, index=index: leaf[index], state)
        chex.assert_trees_all_equal(policy.state, one)
        expected = act(one, observation, jax.random.key(9))[0]
        np.testing.assert_array_equal(policy.act(observation), expected)
        # a product of one row may round otherwise than one of four
        single = act(one, observation[:1], jax.random.key(9))[0][0]
        np.testing.assert_array_equal(policy.act(observation[0]), single)
        np.testing.assert_array_equal(policy.act(np.asarray(observation[0], np.float64)), single)
        drawn = act(one, observation, jax.random.key(9), explore=True)[0]
        # its program leaves out what else `act` returns, such as a density, and may round otherwise
        np.testing.assert_allclose(policy.act(observation, jax.random.key(9)), drawn, rtol=0, atol=2e-7)
    assert policy.about["task"] == "demo"
    assert policy.about["seeds"] == [5, 6, 7]
    for index in (3, -1, 1.0):
        with pytest.raises(RunError, match=f"holds 3 seeds, asked for index {index}"):
            load_policy(tmp_path / "policy", index)


def test_a_stored_policy_sees_pixels_again(tmp_path):
    encoder = PixelEncoder(channels=(2,), feature_size=3)
    algorithm = bc.make(networks=bc.default_networks(2, (8,), encoder=encoder))
    source = np.random.default_rng(1)
    rows = {"pixels": source.integers(0, 256, (4, 2, 2, 3), np.uint8), "state": source.normal(size=(4, 3))}
    rows = {"pixels": jnp.asarray(rows["pixels"]), "state": jnp.asarray(rows["state"], jnp.float32)}
    one = jax.tree.map(lambda leaf: leaf[1], rows)
    state = trained(algorithm, 2, example()._replace(observation=one, next_observation=one))
    options = dict(method="bc", action_size=2, hidden_sizes=(8,), seeds=(0, 1))
    sizes = {"pixels": (2, 2, 3), "state": 3}
    save_policy(tmp_path / "policy", state, bc.Config(), observation_size=sizes, encoder=encoder, **options)
    policy = load_policy(tmp_path / "policy", 1)
    assert policy.algorithm.act.keywords["networks"] == algorithm.act.keywords["networks"]
    second = jax.tree.map(lambda leaf: leaf[1], state)
    act = jax.jit(algorithm.act)
    # its program leaves out what else `act` returns: a convolution may round otherwise
    np.testing.assert_allclose(policy.act(rows), act(second, rows, jax.random.key(0))[0], rtol=1e-4, atol=1e-6)
    single = act(second, jax.tree.map(lambda leaf: leaf[None], one), jax.random.key(0))[0][0]
    np.testing.assert_allclose(policy.act(jax.tree.map(np.asarray, one)), single, rtol=1e-4, atol=1e-6)
    with pytest.raises(RunError, match="encoder is a Critic, expected a PixelEncoder"):
        save_policy(tmp_path / "other", state, bc.Config(), observation_size=sizes, encoder=Critic((4,)), **options)


def test_a_stored_policy_remembers_its_episode(tmp_path):
    options = {"size": (2, 4, 2, 2, 8)}
    algorithm = safe_dreamer.make(networks=safe_dreamer.default_networks(2, (8,), **options))
    state = trained(algorithm, 1)
    sizes = dict(action_size=2, observation_size=3, hidden_sizes=(8,), seeds=(0,))
    save_policy(
        tmp_path / "policy", state, safe_dreamer.Config(), method="safe_dreamer", network_options=options, **sizes
    )
    policy, one = load_policy(tmp_path / "policy"), jax.tree.map(lambda leaf: leaf[0], state)
    rows = jax.random.normal(jax.random.key(1), (3, 1, 3))
    expected, carry = [], algorithm.initial_carry(one, 1)
    for row in rows:
        action, carry, _ = algorithm.act(one, row, jax.random.key(0), carry)
        expected.append(action[0])
    act = policy.episode()
    np.testing.assert_allclose([act(row[0]) for row in rows], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(policy.episode()(rows[0]), expected[0][None], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(policy.act(rows[0, 0]), expected[0], rtol=1e-4, atol=1e-5)
    assert np.abs(policy.act(rows[1, 0]) - expected[1]).max() > 1e-3  # without its memory


ABOUT = {"method": "bc", "action_size": 2, "observation_size": 3, "hidden_sizes": [8], "seeds": [0, 1]}


@pytest.mark.parametrize(
    ("about", "config", "words"),
    [
        ({"method": "cb"}, {}, "cb"),
        ({"method": ["bc"]}, {}, "list"),
        ({"network_options": {"actors": 2}}, {}, "unexpected keyword argument 'actors'"),
        ({"network_options": [1]}, {}, "cannot convert"),
        ({"hidden_sizes": None}, {}, "NoneType"),
        ({"observation_size": "3"}, {}, "got \\('3',\\)"),
        ({"encoder": {"stride": 2}}, {}, "PixelEncoder has no field stride"),
        ({"method": "diffusion_bc"}, {"diffusion": {"step_count": "few"}}, "'str'"),
        ({}, {"horizon": 3, "alpha": 1}, r"algorithms\.bc\.Config has no field alpha, horizon"),
        ({}, None, "NoneType"),
    ],
)
def test_a_policy_that_cannot_be_rebuilt_is_refused(tmp_path, about, config, words):
    checkpoint.save(tmp_path / "policy", {"x": jnp.zeros(2)}, config, extra=ABOUT | about)
    with pytest.raises(RunError, match=rf"policy: this safejax cannot rebuild .* \(.*{words}.*\); load it") as caught:
        load_policy(tmp_path / "policy")
    assert "\n" not in str(caught.value)


def test_what_is_no_policy_is_refused(tmp_path):
    checkpoint.save(tmp_path / "state", {"x": jnp.zeros(2)})
    with pytest.raises(RunError, match="a checkpoint that is no policy"):
        load_policy(tmp_path / "state")
    for extra in (["method"], {"method": "iql"}, ABOUT | {"seeds": 2}):
        checkpoint.save(tmp_path / "other", {"x": jnp.zeros(2)}, extra=extra)
        with pytest.raises(RunError, match="a checkpoint that is no policy"):
            load_policy(tmp_path / "other")
    with pytest.raises(checkpoint.CheckpointError):
        load_policy(tmp_path / "nothing")


def stored(directory, seeds=(0, 1), **options):
    state = trained(bc.make(networks=bc.default_networks(2, (8,))), len(seeds))
    sizes = dict(action_size=2, observation_size=3, hidden_sizes=(8,))
    save_policy(directory, state, bc.Config(), method="bc", seeds=seeds, **sizes, **options)


def test_a_run_gives_its_only_policy_the_default_or_the_named_one(tmp_path):
    with pytest.raises(RunError, match="has no policies to choose method='bc' from"):
        load_policy(tmp_path, method="bc")
    (tmp_path / "policies" / ".partial-bc").mkdir(parents=True)
    with pytest.raises(RunError, match=r"expected one policy or one default, found 0; pass method=: none yet"):
        load_policy(tmp_path)
    stored(tmp_path / "policies" / "bc", task="first")
    first = load_policy(tmp_path)
    assert first.about["task"] == "first"
    assert first.act(np.zeros(3)).shape == (2,)
    stored(tmp_path / "policies" / "aligned", task="second")
    with pytest.raises(RunError, match=r"one default, found 2; pass method=: aligned, bc"):
        load_policy(tmp_path)
    with pytest.raises(RunError, match=r"has no policy 'marvel'; its policies: aligned, bc"):
        load_policy(tmp_path, method="marvel")
    stored(tmp_path / "policies" / "last", task="third", default=True)
    assert load_policy(tmp_path).about["task"] == "third"
    assert load_policy(str(tmp_path), 1, method="bc").about["task"] == "first"
    assert load_policy(tmp_path / "policies" / "aligned").about["task"] == "second"
    (tmp_path / "policies" / "aligned" / "metadata.json").write_text("")
    assert load_policy(tmp_path).about["task"] == "third"
    with pytest.raises(checkpoint.DamagedCheckpointError):
        load_policy(tmp_path, method="aligned")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    """A nested part."""

    rate: float = 0.1
    names: tuple[str, ...] = ("a",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    """A config with a nested part and a tuple."""

    sizes: tuple[int, ...] = (1, 2)
    inner: Inner = Inner()
    late: int = 3


def test_configs_are_rebuilt_from_json():
    config = Outer(sizes=(4, 5, 6), inner=Inner(rate=0.5, names=("x", "y")))
    plain = json.loads(json.dumps(dataclasses.asdict(config)))
    assert from_plain(Outer, plain) == config
    assert hash(from_plain(Outer, plain)) == hash(config)
    del plain["late"], plain["inner"]["names"]  # fields younger than the file take their defaults
    assert from_plain(Outer, plain) == Outer(sizes=(4, 5, 6), inner=Inner(rate=0.5))
    with pytest.raises(RunError, match=r"test_policies\.Outer has no field gone"):
        from_plain(Outer, plain | {"gone": 1})
    with pytest.raises(RunError, match=r"test_policies\.Inner has no field gone"):
        from_plain(Outer, {"inner": {"gone": 1}})


SAFE = SafetyConfig(cost_limit=3.0, multiplier=MultiplierConfig(kind="pid"))


@pytest.mark.parametrize(
    "config",
    [
        marvel.Config(),
        ppo_lag.Config(),
        cpq.Config(cost_limit=3.0),
        idql.Config(diffusion=DiffusionConfig(step_count=7)),
        idql.Config(safety=SAFE),
        iql.Config(safety=SAFE),
    ],
)
def test_every_real_config_survives_json(config):
    plain = json.loads(json.dumps(dataclasses.asdict(config)))
    assert from_plain(type(config), plain) == config
