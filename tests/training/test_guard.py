"""Updates that are not finite: skipped alone, counted, named; and a run that has too many of them."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_loops import offline_rows
from toy_algorithms import State

from safejax import checkpoint
from safejax.gradients import adam, gradient_step, train_state
from safejax.runs import Run
from safejax.training import finite_means, guard, skip_non_finite, train_offline
from safejax.types import Algorithm, BatchSpec, TrainState, Transition, bind

KEY = jax.random.key(0)
OPTIMIZER = adam(0.1)


def line(optimizer: optax.GradientTransformation = OPTIMIZER, spoiled_from: float = np.inf) -> Algorithm:
    """Fits a weight to the mean reward; the cost enters as 0 sqrt(cost), whose gradient alone is NaN at 0.

    From the update `spoiled_from` on, counted from 0, every reward is NaN.
    """

    def init(key, example, *, config, networks):
        weight = {"weight": jax.random.normal(key, (3,))}
        return State(jnp.zeros((), jnp.int32), train_state(weight, optimizer))

    def update(state, batch, key, *, config, networks):
        reward = jnp.where(state.step >= spoiled_from, jnp.nan, jnp.mean(batch.reward))

        def loss(params):
            root = 0.0 * jnp.sqrt(jnp.abs(params["weight"][0]) * jnp.min(batch.cost))
            value = jnp.mean(jnp.square(params["weight"] - reward)) + root
            return value, {"size": jnp.float32(batch.reward.size), "loss": value}

        actor, metrics = gradient_step(loss, state.actor, optimizer)
        return State(state.step + 1, actor), metrics

    return bind(config=None, networks=None, batch=BatchSpec.uniform(), init=init, update=update, act=init)


def batch(reward=1.0, cost=1.0):
    ones = jnp.ones((4,))
    return Transition(ones[:, None], ones[:, None], reward * ones, cost * ones, ones, 0 * ones, ones[:, None])


@functools.cache
def updates():
    plain = line()
    return plain, jax.jit(plain.update), jax.jit(skip_non_finite(plain).update)


def test_finite_updates_are_bit_for_bit_the_same():
    algorithm, plain, guarded = updates()
    state = algorithm.init(KEY, None)
    for index in range(3):
        expected, metrics = plain(state, batch(index), KEY)
        state, found = guarded(state, batch(index), KEY)
        chex.assert_trees_all_equal(state, expected)
        assert found.pop("skipped") == 0
        chex.assert_trees_all_equal(found, metrics)


@pytest.mark.parametrize(
    ("fault", "loss_is_finite"),
    [({"reward": np.nan}, False), ({"reward": np.inf}, False), ({"reward": 1e30}, False), ({"cost": 0.0}, True)],
)
def test_a_loss_or_a_gradient_that_is_not_finite_leaves_all_but_the_step(fault, loss_is_finite):
    algorithm, plain, guarded = updates()
    state = algorithm.init(KEY, None)
    lost, _ = plain(state, batch(**fault), KEY)
    after, metrics = guarded(state, batch(**fault), KEY)
    assert bool(jnp.isfinite(metrics["loss"])) == loss_is_finite
    assert metrics["skipped"] == 1
    chex.assert_trees_all_equal(after, state._replace(step=state.step + 1))
    # what was avoided
    assert not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(lost)) or fault == {"reward": 1e30}


class Searching(NamedTuple):
    step: jax.Array
    actor: TrainState
    lowest: jax.Array  # of the losses so far; infinity before the first


def searching(counted_from=0):
    """Moves a weight along the mean reward, whose size is that of the gradient; losses count from `counted_from` on."""

    def init(key, example, *, config, networks):
        return Searching(jnp.zeros((), jnp.int32), train_state(jnp.ones(3), OPTIMIZER), jnp.float32(jnp.inf))

    def update(state, batch, key, *, config, networks):
        def loss(params):
            value = jnp.mean(params) * jnp.mean(batch.reward)
            return value, {"loss": value}

        actor, metrics = gradient_step(loss, state.actor, OPTIMIZER)
        counted = jnp.where(jnp.max(batch.cost) > 1, jnp.inf, jnp.minimum(state.lowest, metrics["loss"]))
        lowest = jnp.where(state.step >= counted_from, counted, state.lowest)
        return Searching(state.step + 1, actor, lowest), metrics

    return bind(config=None, networks=None, batch=BatchSpec.uniform(), init=init, update=update, act=init)


def test_a_second_moment_that_overflows_is_skipped():
    """The parameters and the loss stay finite, and would for ever stay as they are."""
    algorithm = searching()
    plain, guarded = jax.jit(algorithm.update), jax.jit(skip_non_finite(algorithm).update)
    state, _ = plain(algorithm.init(KEY, None), batch(2.0), KEY)
    lost, metrics = plain(state, batch(1e25), KEY)
    assert jnp.isfinite(metrics["loss"])
    chex.assert_tree_all_finite(lost.actor.params)
    assert not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(lost.actor.opt_state))
    after, metrics = guarded(state, batch(1e25), KEY)
    assert metrics["skipped"] == 1
    chex.assert_trees_all_equal(after, state._replace(step=state.step + 1))


def test_infinity_by_intention_goes_on_and_no_other():
    algorithm = searching(counted_from=2)
    plain, guarded = (jax.jit(jax.vmap(one.update, (0, 0, None))) for one in (algorithm, skip_non_finite(algorithm)))
    state = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), algorithm.init(KEY, None))
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), batch(1.0), batch(2.0))
    for lowest_is_finite in (False, False, True, True):
        expected, _ = plain(state, both, KEY)
        state, metrics = guarded(state, both, KEY)
        chex.assert_trees_all_equal(state, expected)
        assert metrics["skipped"].tolist() == [0, 0]
        assert jnp.isfinite(state.lowest).all() == lowest_is_finite
    state = state._replace(lowest=state.lowest.at[0].set(jnp.inf))  # of this learner, infinity from before
    for fault, skipped in (({"reward": np.nan}, [0, 1]), ({"cost": 2.0}, [0, 1])):
        spoiled = jax.tree.map(lambda *leaves: jnp.stack(leaves), batch(1.0), batch(**fault))
        after, metrics = guarded(state, spoiled, KEY)
        assert metrics["skipped"].tolist() == skipped
        learner = functools.partial(jax.tree.map, lambda leaf: leaf[1])
        chex.assert_trees_all_equal(learner(after), learner(state)._replace(step=state.step[1] + 1))
        assert jnp.isfinite(after.lowest).all()


def test_every_learner_under_vmap_skips_by_itself():
    algorithm, _, guarded = updates()
    states = jax.vmap(algorithm.init, in_axes=(0, None))(jax.random.split(KEY, 3), None)
    batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), batch(1.0), batch(np.nan), batch(2.0))
    after, metrics = jax.jit(jax.vmap(skip_non_finite(algorithm).update, in_axes=(0, 0, None)))(states, batches, KEY)
    np.testing.assert_array_equal(metrics["skipped"], [0, 1, 0])
    for row in range(3):
        one = functools.partial(jax.tree.map, lambda leaf, row=row: leaf[row])
        chex.assert_trees_all_close(one(after), guarded(one(states), one(batches), KEY)[0], rtol=1e-6)
    weights = (part.actor.params["weight"] for part in (after, states))
    np.testing.assert_array_equal(*(weight[1] for weight in weights))


def test_a_bad_row_costs_the_batches_that_hold_it_and_nothing_else():
    """In a donated scan: as many updates are skipped as batches held the row, in one learner of two."""
    rows = offline_rows()
    reward = rows.transitions.reward.at[7].set(jnp.nan)
    poisoned = rows._replace(transitions=rows.transitions._replace(reward=reward, cost=jnp.ones(20)))
    algorithm = skip_non_finite(line())
    train = jax.jit(functools.partial(train_offline, algorithm, step_count=40, batch_size=2), donate_argnums=0)
    state, metrics = train(algorithm.init(KEY, None), poisoned, KEY)
    skipped = np.asarray(metrics["skipped"])
    np.testing.assert_array_equal(skipped, np.isnan(metrics["loss"]))
    assert 0 < skipped.sum() < 12
    assert int(state.step) == 40
    chex.assert_tree_all_finite(state)
    record = finite_means(metrics, limit=20)
    assert record["skipped"] == skipped.sum()
    np.testing.assert_allclose(record["loss"], np.nanmean(metrics["loss"]), rtol=1e-6)
    assert record["size"] == 2


def stacked(skips):
    """Metrics [2, 6] of two learners; the second skips at `skips`, where "b" is NaN, and "a" too from update 3 on."""
    skipped, a = np.zeros((2, 6)), np.arange(12.0).reshape(2, 6)
    skipped[1, skips] = 1
    b = np.where(skipped, np.nan, 1.0)
    return {"a": np.where((np.arange(6) >= 3) & (skipped > 0), np.inf, a), "b": b, "skipped": skipped}


def test_means_are_over_the_updates_that_were_made():
    record = finite_means(stacked([1, 2]), limit=2)
    np.testing.assert_array_equal(record["skipped"], [0, 2])
    np.testing.assert_array_equal(record["a"], [2.5, (6 + 9 + 10 + 11) / 4])
    np.testing.assert_array_equal(record["b"], [1, 1])
    assert finite_means({}) == {}


@pytest.mark.parametrize(("skips", "name", "update"), [([1, 2, 4], "b", 102), ([3, 4, 5], "a", 104)])
def test_past_the_limit_the_first_metric_and_its_update_are_named(skips, name, update):
    expected = f"3 of 6 updates skipped (learner 1 of 2), limit 2: '{name}' first not finite at update {update}"
    with pytest.raises(FloatingPointError) as caught:
        finite_means(stacked(skips), first_update=100, limit=2)
    assert str(caught.value) == expected


def test_a_state_alone_is_told_from_a_metric():
    metrics = {"loss": np.ones(3), "skipped": np.ones(3)}
    with pytest.raises(FloatingPointError, match=r"^3 of 3 updates skipped, limit 0: 'state' .* at update 1$"):
        finite_means(metrics, limit=0)
    with pytest.raises(FloatingPointError, match=r"^3 of 3 updates skipped, limit 1: "):  # never more than half
        finite_means(metrics, limit=3)


@pytest.mark.parametrize("guarded", [True, False])
def test_a_run_whose_reward_turns_nan_stops_and_keeps_the_last_good_chunk(tmp_path, guarded):
    """20 updates a chunk, NaN from the 46th on: the third chunk is refused; what the second left is finite."""
    algorithm = line(spoiled_from=45)
    learner = skip_non_finite(algorithm) if guarded else algorithm
    rows = offline_rows()
    dataset = rows._replace(transitions=rows.transitions._replace(cost=jnp.ones(20)))
    train = jax.jit(functools.partial(train_offline, learner, step_count=20, batch_size=2), donate_argnums=0)

    def advance(state, index):
        state, metrics = train(state, dataset, KEY)
        means = finite_means(metrics, first_update=20 * index) if guarded else {"loss": metrics["loss"].mean()}
        return state, {"updates": 20 * (index + 1), **means}

    begin = functools.partial(algorithm.init, KEY, None)
    words = (
        "15 of 20 updates skipped, limit 10: 'loss' first not finite at update 46"
        if guarded
        else "'loss' is not finite by update 60"
    )
    with Run.open(tmp_path / "run", {}) as run, pytest.raises(FloatingPointError) as caught:
        run.stage("offline", begin, advance, 5)
    assert str(caught.value) == f"offline, chunk 3: {words}; the last good checkpoint is chunk 2"
    saved = checkpoint.Checkpoints(tmp_path / "run" / "checkpoints" / "offline")
    chunk, state = saved.latest(jax.eval_shape(begin))
    assert (chunk, int(state.step)) == (2, 40)
    chex.assert_tree_all_finite(state)
    assert [row["chunk"] for row in run.metrics("offline")] == [0, 1]


def test_large_numbers_are_finite():
    """Whose sums are not."""
    large = {"a": jnp.full(3, 2e38), "b": jnp.full(70_000, 1.0, jnp.float16)}
    assert guard._is_finite(large)
    for wrong in (jnp.inf, -jnp.inf, jnp.nan):
        assert not guard._is_finite(large | {"c": jnp.array([0.0, wrong])})
        assert not jax.jit(guard._is_finite)(large | {"c": jnp.array([0.0, wrong])})
