"""A learner nobody here wrote trains in our world, unchanged: brax's own PPO."""

import functools

import jax
import jax.numpy as jnp

from safejax import envs
from safejax.envs.adapters import to_brax

LENGTH = 100


def replicate(tree, devices):
    """`jax.device_put_replicated`, which brax 0.14.2 calls and JAX 0.10 no longer has."""
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * len(devices)), tree)


def test_brax_ppo_learns_ball_run(monkeypatch):
    """Before it the ball goes nowhere; the track pays for speed, and speed costs.

    Five seeds gave returns of -45 to 10 before and 680 to 1170 after, costs of 1 to 8 and 62 to 80.
    """
    monkeypatch.setattr(jax, "device_put_replicated", replicate, raising=False)
    ours = envs.make("ball_run", "mujoco")
    env = to_brax(ours)  # before the learner's import, as it imports brax quietly
    from brax.training.agents.ppo import networks, train

    seen = []
    train.train(
        env,
        num_timesteps=17920,
        episode_length=LENGTH,
        num_envs=64,
        unroll_length=10,
        batch_size=64,
        num_minibatches=4,
        num_updates_per_batch=4,
        learning_rate=1e-3,
        entropy_cost=1e-3,
        discounting=0.97,
        reward_scaling=0.1,
        normalize_observations=True,
        network_factory=functools.partial(
            networks.make_ppo_networks, policy_hidden_layer_sizes=(32, 32), value_hidden_layer_sizes=(32, 32)
        ),
        num_evals=2,
        num_eval_envs=32,
        max_devices_per_host=1,
        use_pmap_on_reset=False,
        progress_fn=lambda step, metrics: seen.append((step, metrics)),
    )
    ours.check()
    (_, before), (_, after) = seen
    assert float(before["eval/episode_reward"]) < 100.0
    assert float(after["eval/episode_reward"]) > 500.0
    assert float(before["eval/episode_cost"]) < 30.0 < float(after["eval/episode_cost"]) <= LENGTH
    assert float(after["eval/avg_episode_length"]) == LENGTH
