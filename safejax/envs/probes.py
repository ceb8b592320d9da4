"""Tiny worlds with exact answers, for tests and notebooks.

Tabular constrained MDPs with their solutions in float64 NumPy, and probe worlds that each isolate one ability
of an agent, after the probe environments of gymnax and rejax. Shape letters here: S states; A actions of a
tabular world, or the action size. A reset costs a few operations, so every step computes one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from safejax.types import Array, Env, EnvState, Key


class TabularCMDP(NamedTuple):
    """A finite constrained MDP, in float64 NumPy."""

    transition: np.ndarray  # [S, A, S] rows sum to 1
    reward: np.ndarray  # [S, A] expected reward
    cost: np.ndarray  # [S, A] >= 0, cost units
    initial: np.ndarray  # [S] sums to 1
    termination: np.ndarray | float = 0.0  # [S, A] or [], probability that the episode terminates on this step


def golden_cmdp() -> TabularCMDP:
    """Two states, two actions, starting in the first; action 1 costs one unit in either.

    For the policy ((0.6, 0.4), (0.3, 0.7)) at discount factor 0.9, rows (s0a0, s0a1, s1a0, s1a1):
    Q = (11.169572, 11.118067, 10.940571, 13.389065), Qc = (5.106181, 6.405705, 5.191759, 6.491284); with
    temperatures 0.2 and 0.05, Q = (12.318590, 12.254674, 12.086042, 14.522127) and
    Qc = (5.393435, 6.689857, 5.478127, 6.774549).
    """
    return TabularCMDP(
        transition=np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.7, 0.3], [0.0, 1.0]]]),
        reward=np.array([[1.0, 0.0], [0.5, 2.0]]),
        cost=np.array([[0.0, 1.0], [0.0, 1.0]]),
        initial=np.array([1.0, 0.0]),
    )


def evaluate(mdp: TabularCMDP, policy: np.ndarray, discount_factor: float) -> tuple[np.ndarray, np.ndarray]:
    """The discounted action values of `policy` [S, A]: (Q, Qc), each [S, A], by one linear solve.

    Time limits are no part of the model: these are the values of the task that only `termination` ends.
    """
    return soft_evaluate(mdp, policy, discount_factor, 0.0, 0.0)


def soft_evaluate(
    mdp: TabularCMDP,
    policy: np.ndarray,
    discount_factor: float,
    reward_temperature: float,
    cost_temperature: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Action values with an entropy bonus: Q = r + g P (V + reward_temperature * entropy); so for Qc.

    The bonus of the current action is not counted, as in SAC; both bonuses raise their value.

    Args:
      mdp: the world.
      policy: [S, A] action probabilities.
      discount_factor: g in [0, 1); 1 only where every episode terminates.
      reward_temperature: weight of the next states' entropy in Q, reward units per nat.
      cost_temperature: the same in Qc, cost units per nat.

    Returns:
      (Q, Qc), each [S, A] float64.

    Source: Chen et al. 2024, Marvel's value pre-alignment, https://arxiv.org/abs/2412.04426.
    """
    policy = np.asarray(policy, np.float64)
    entropy = -np.sum(policy * np.log(np.where(policy > 0.0, policy, 1.0)), axis=1)
    onward = discount_factor * _continuing(mdp)
    size = mdp.reward.size
    backup = np.eye(size) - np.einsum("iaj,jb->iajb", onward, policy).reshape(size, size)
    bonus = onward @ entropy
    sources = np.stack([mdp.reward + reward_temperature * bonus, mdp.cost + cost_temperature * bonus], axis=-1)
    values = np.linalg.solve(backup, sources.reshape(size, 2)).reshape(*mdp.reward.shape, 2)
    return values[..., 0], values[..., 1]


def solve(
    mdp: TabularCMDP, discount_factor: float, multiplier: float = 0.0, tolerance: float = 1e-10
) -> tuple[np.ndarray, np.ndarray]:
    """The optimum of reward - multiplier * cost without a constraint, by value iteration.

    Args:
      mdp: the world.
      discount_factor: in [0, 1).
      multiplier: >= 0, reward units per cost unit.
      tolerance: > 0, bound on the error of the values.

    Returns:
      (Q [S, A] within `tolerance` of the optimum, policy [S, A] greedy and deterministic).
    """
    reward, onward = mdp.reward - multiplier * mdp.cost, discount_factor * _continuing(mdp)
    values, change = np.zeros_like(reward), np.inf
    while change * discount_factor > tolerance * (1.0 - discount_factor):
        updated = reward + onward @ values.max(axis=1)
        values, change = updated, np.abs(updated - values).max()
    return values, np.eye(reward.shape[1])[values.argmax(axis=1)]


def solve_constrained(
    mdp: TabularCMDP, discount_factor: float, cost_value_limit: float
) -> tuple[np.ndarray, float, float, float]:
    """The best policy whose discounted cost from the start keeps the limit, by linear programming.

    The program is over discounted occupancies x [S, A] >= 0: sum_a x(s', a) = initial(s') + g sum x P(s'|.).

    Args:
      mdp: the world.
      discount_factor: g in [0, 1).
      cost_value_limit: bound on the expected discounted cost from `initial`, cost units.

    Returns:
      policy: [S, A]; uniform in states it never visits.
      multiplier: >= 0, the dual variable: what one more cost unit of limit is worth, in reward units.
      value: expected discounted reward from `initial`.
      cost: expected discounted cost from `initial`.

    Raises:
      ValueError: if no policy keeps the limit.
    """
    from scipy.optimize import linprog  # here, because it costs 0.2 s that the probe worlds do not need

    states, actions = mdp.reward.shape
    inflow = (discount_factor * _continuing(mdp)).reshape(states * actions, states)
    solution = linprog(
        -mdp.reward.ravel(),
        A_ub=mdp.cost.reshape(1, -1),
        b_ub=[cost_value_limit],
        A_eq=np.repeat(np.eye(states), actions, axis=1) - inflow.T,
        b_eq=mdp.initial,
        method="highs",
    )
    if solution.status != 0:
        raise ValueError(f"no policy keeps a discounted cost of {cost_value_limit:g}: {solution.message}")
    occupancy = solution.x.reshape(states, actions)
    visits = occupancy.sum(axis=1, keepdims=True)
    visited = visits > 1e-12
    policy = np.where(visited, occupancy / np.where(visited, visits, 1.0), 1.0 / actions)
    multiplier = float(-solution.ineqlin.marginals[0])
    return policy, multiplier, float(-solution.fun), float(np.sum(occupancy * mdp.cost))


def tabular(mdp: TabularCMDP, episode_length: int) -> Env:
    """`mdp` as a world: one-hot observations [S], actions int32 [] below A, cut at `episode_length`."""
    states, actions = mdp.reward.shape
    with np.errstate(divide="ignore"):
        initial, transition = np.log(mdp.initial), np.log(mdp.transition)  # log 0 = -inf is never drawn
    logits = initial.astype(np.float32), transition.astype(np.float32)
    tables = np.stack([mdp.reward, mdp.cost, np.broadcast_to(mdp.termination, (states, actions))], axis=-1)
    tables = tables.astype(np.float32)

    def start(key: Key) -> Array:
        return jax.random.categorical(key, logits[0]).astype(jnp.int32)

    def advance(state: Array, action: Array, key: Key) -> tuple[Array, Array, Array, Array]:
        next_key, end_key = jax.random.split(key)
        reward, cost, termination = jnp.asarray(tables)[state, action]
        next_state = jax.random.categorical(next_key, jnp.asarray(logits[1])[state, action])
        return next_state.astype(jnp.int32), reward, cost, jax.random.uniform(end_key) < termination

    def observe(state: Array) -> Array:
        return jax.nn.one_hot(state, states, dtype=jnp.float32)

    return _world("probe/tabular", start, advance, observe, states, actions, episode_length, discrete=True)


def constant_reward(action_size: int = 1) -> Env:
    """One step that pays 1 and costs nothing, whatever the action: Q = V = 1, Qc = 0.

    An agent that fails here cannot fit a constant, or bootstraps through terminations.
    """

    def advance(state: Array, action: Array, key: Key) -> tuple[Array, Any, Any, Any]:
        del action, key
        return state, 1.0, 0.0, True

    return _world("probe/constant_reward", _zero, advance, _observe_nothing, 1, action_size, 1)


def quadratic_bandit(target: float = 0.5, action_size: int = 1) -> Env:
    """One step with reward -sum (a - target)^2 and cost sum max(0, a).

    Without a limit the best action is `target` everywhere: reward 0, cost A max(0, target). Under a limit d
    on the expected cost, 0 < d < A target, the best policy is the deterministic a = d / A, with reward
    -A (target - d / A)^2, cost d and multiplier 2 (target - d / A); randomness only loses.
    """

    def advance(state: Array, action: Array, key: Key) -> tuple[Array, Any, Any, Any]:
        del key
        return state, -jnp.sum((action - target) ** 2), jnp.sum(jnp.maximum(action, 0.0)), True

    return _world("probe/quadratic_bandit", _zero, advance, _observe_nothing, 1, action_size, 1)


def two_step_delayed(reward: float = 1.0, cost: float = 1.0, action_size: int = 1) -> Env:
    """Two steps, observed one-hot [2]; only the second pays `reward` and costs `cost`, and it terminates.

    With discount factor g, for any policy: Q = (g reward, reward) and Qc = (g cost, cost) at the first and
    second observation. An agent that fails here does not discount, or does not bootstrap.
    """

    def advance(state: Array, action: Array, key: Key) -> tuple[Array, Any, Any, Any]:
        del action, key
        second = state == 1
        return state + 1, reward * second, cost * second, second

    def observe(state: Array) -> Array:
        # The state after termination is never acted in; it shows as zeros.
        return jax.nn.one_hot(state, 2, dtype=jnp.float32)

    return _world("probe/two_step_delayed", _zero, advance, observe, 2, action_size, 2)


def truncating(episode_length: int = 10, cost: float = 0.5, action_size: int = 1) -> Env:
    """Every step pays 1 and costs `cost`; only time ends an episode, and the observation does not show time.

    With discount factor g and bootstrapping through truncations, Q = 1 / (1 - g) and Qc = cost / (1 - g). An
    agent that takes truncation for termination, trained uniformly on whole episodes of length H, finds
    1 / (1 - g (1 - 1 / H)) instead, and with time in view (1 - g^H) / (1 - g) at the start.
    """

    def advance(state: Array, action: Array, key: Key) -> tuple[Array, Any, Any, Any]:
        del action, key
        return state, 1.0, cost, False

    return _world("probe/truncating", _zero, advance, _observe_nothing, 1, action_size, episode_length)


def _zero(key: Key) -> Array:
    del key
    return jnp.zeros((), jnp.int32)


def _observe_nothing(state: Array) -> Array:
    del state
    return jnp.zeros(1, jnp.float32)


def _world(
    name: str,
    start: Callable[[Key], Array],
    advance: Callable[[Array, Array, Key], tuple[Any, Any, Any, Any]],
    observe: Callable[[Array], Array],
    observation_size: int,
    action_size: int,
    episode_length: int,
    discrete: bool = False,
) -> Env:
    """An `Env` from start (key -> state), advance (-> state, reward, cost, terminated) and observe.

    A step that terminates is not truncated as well. After either the state is the next episode's start.
    """

    def reset(key: Key) -> EnvState:
        state = start(key)
        zero, no = jnp.zeros((), jnp.float32), jnp.zeros((), bool)
        return EnvState(
            physics=state,
            observation=observe(state),
            reward=zero,
            cost=zero,
            terminated=no,
            truncated=no,
            final_observation=observe(state),
            steps=jnp.zeros((), jnp.int32),
            diverged=no,
        )

    def step(state: EnvState, action: Array, key: Key) -> EnvState:
        advance_key, reset_key = jax.random.split(key)
        physics, reward, cost, terminated = advance(state.physics, action, advance_key)
        terminated = jnp.asarray(terminated, bool)
        truncated = (state.steps + 1 >= episode_length) & ~terminated
        ended = terminated | truncated
        following = jnp.where(ended, start(reset_key), physics)
        return EnvState(
            physics=following,
            observation=observe(following),
            reward=jnp.asarray(reward, jnp.float32),
            cost=jnp.asarray(cost, jnp.float32),
            terminated=terminated,
            truncated=truncated,
            final_observation=observe(physics),
            steps=jnp.where(ended, 0, state.steps + 1),
            diverged=jnp.zeros((), bool),
        )

    specification = jax.ShapeDtypeStruct((observation_size,), jnp.float32)
    return Env(reset, step, specification, action_size, episode_length, name, discrete)


def _continuing(mdp: TabularCMDP) -> np.ndarray:
    """[S, A, S] the probability of the next state with the episode going on."""
    return (1.0 - np.broadcast_to(mdp.termination, mdp.reward.shape))[..., None] * mdp.transition
