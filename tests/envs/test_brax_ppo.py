"""A learner nobody here wrote trains in our worlds, unchanged: brax's own PPO."""

import functools

import jax
import jax.numpy as jnp
import pytest

from safejax import envs
from safejax.envs.adapters import to_brax


def replicate(tree, devices):
    """`jax.device_put_replicated`, which brax 0.14.2 calls and JAX 0.10 no longer has."""
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * len(devices)), tree)


@pytest.fixture
def learn(monkeypatch):
    """(task, numbers of brax's PPO) -> its metrics before and after learning on the host engine."""
    monkeypatch.setattr(jax, "device_put_replicated", replicate, raising=False)

    def learn(name, *, hidden, **numbers):
        ours = envs.make(name, "mujoco")
        env = to_brax(ours)  # before the learner's import, as it imports brax quietly
        from brax.training.agents.ppo import networks, train

        seen = []
        make = functools.partial(
            networks.make_ppo_networks, policy_hidden_layer_sizes=hidden, value_hidden_layer_sizes=hidden
        )
        train.train(
            env,
            episode_length=ours.episode_length,
            num_envs=64,
            num_eval_envs=32,
            num_evals=2,
            num_updates_per_batch=4,
            normalize_observations=True,
            network_factory=make,
            max_devices_per_host=1,
            use_pmap_on_reset=False,
            progress_fn=lambda step, metrics: seen.append(metrics),
            **numbers,
        )
        ours.check()
        before, after = seen
        assert float(after["eval/avg_episode_length"]) == ours.episode_length
        return before, after

    return learn


def test_brax_ppo_learns_ball_run(learn):
    """Before it the ball goes nowhere; the track pays for speed, and speed costs.

    Five seeds gave returns of -45 to 10 before and 680 to 1170 after, costs of 1 to 8 and 62 to 80.
    """
    before, after = learn(
        "ball_run",
        hidden=(32, 32),
        num_timesteps=17920,
        unroll_length=10,
        batch_size=64,
        num_minibatches=4,
        learning_rate=1e-3,
        entropy_cost=1e-3,
        discounting=0.97,
        reward_scaling=0.1,
    )
    assert float(before["eval/episode_reward"]) < 100.0
    assert float(after["eval/episode_reward"]) > 500.0
    assert float(before["eval/episode_cost"]) < 30.0 < float(after["eval/episode_cost"]) <= 100.0


@pytest.mark.slow
def test_brax_ppo_learns_point_goal1(learn):
    """From sensors alone: a random policy earns nothing, and one seed went from -0.3 to 24.5 (cost 36 to 57)."""
    before, after = learn(
        "point_goal1",
        hidden=(64, 64),
        num_timesteps=400_000,
        unroll_length=20,
        batch_size=128,
        num_minibatches=8,
        learning_rate=1e-3,
        entropy_cost=1e-3,
        discounting=0.97,
        reward_scaling=10.0,
    )
    assert float(before["eval/episode_reward"]) < 1.0
    assert float(after["eval/episode_reward"]) > 5.0
