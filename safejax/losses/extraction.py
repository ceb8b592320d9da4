"""Which policy attains V? Weights of data or candidate actions under every extraction rule, and alignment's dual.

A critic Q and a value V learned in-sample name no policy. Each rule below weighs the behaviour policy's actions:
pi(a|s) ~ mu(a|s) w(s, a). Weights come as logarithms, without overflow, up to a factor that depends on s alone; any
leading shape, no reduction. (AWR's weight, exp(beta A), is `policy.advantage_weight`: its clip is not scale-free.)
"""

from __future__ import annotations

import math

import chex
import jax
import jax.numpy as jnp

from safejax.types import Array


def expectile_log_weight(advantage: Array, expectile: float | Array) -> Array:
    """IDQL's weight |tau - 1[A < 0]|: the only policy for which V is exactly aligned is the expectile's own.

    Args:
      advantage: [...] Q - V.
      expectile: tau in (0, 1).

    Returns:
      [...] log weights.

    Source: Hansen-Estruch et al. 2023, https://arxiv.org/abs/2304.10573, w = |f'(Q - V)| / |Q - V|.
    """
    return jnp.log(jnp.where(advantage < 0, 1.0 - expectile, expectile))


def quantile_log_weight(advantage: Array, quantile: float | Array) -> Array:
    """IDQL's weight for a quantile value, |tau - 1[A < 0]| / |A|; |A| is kept above 1e-6.

    The released code divides by the signed advantage, which makes probabilities negative.
    """
    return expectile_log_weight(advantage, quantile) - jnp.log(jnp.maximum(jnp.abs(advantage), 1e-6))


def exponential_log_weight(advantage: Array, temperature: float | Array) -> Array:
    """IDQL's weight for the loss exp(alpha u) - alpha u, alpha |exp(alpha A) - 1| / |A|; its limit at A = 0 is alpha^2.

    The released code leaves out the exponential, which makes the weight constant.

    Args:
      advantage: [...] Q - V.
      temperature: alpha > 0.
    """
    scaled = temperature * advantage
    small = jnp.abs(scaled) < 1e-4
    safe = jnp.where(small, 1.0, scaled)
    # (e^x - 1) / x = e^x (1 - e^-x) / x for x > 0: the growing factor stays outside the exponential.
    log_ratio = jnp.maximum(safe, 0.0) + jnp.log(-jnp.expm1(-jnp.abs(safe))) - jnp.log(jnp.abs(safe))
    return 2.0 * jnp.log(temperature) + jnp.where(small, 0.5 * scaled, log_ratio)


def soft_alignment_log_weight(advantage: Array, penalty: float | Array) -> Array:
    """AlignIQL's weight exp(-eta (Q - V)^2): minimises E_pi[log(pi / mu) + eta (Q - V)^2].

    It is symmetric in the sign of A, and by Jensen penalises an upper bound of the squared gap (E_pi Q - V)^2.

    Args:
      advantage: [...] Q - V.
      penalty: eta >= 0; 0 is behaviour cloning.

    Returns:
      [...] log weights, at most 0.

    Source: He et al. 2024, https://arxiv.org/abs/2405.18187 (weight in the released code; optimisation form derived).
    """
    return -penalty * jnp.square(advantage)


def hard_alignment_log_weight(q: Array, beta: Array) -> Array:
    """AlignIQL-hard's weight exp(-beta(s) Q), of the policy nearest to mu in KL(pi || mu) with E_pi Q = V.

    The paper's factor exp(-1 - alpha(s)) normalises and is left out.

    Args:
      q: [..., B] values of actions.
      beta: [B] multipliers; negative where V is above E_mu Q, so that larger values weigh more.
    """
    return -beta * q


def alignment_dual(alpha: Array, beta: Array, q: Array, value: Array) -> Array:
    """The released code's one-sample estimate of AlignIQL-hard's dual, exp(-1 - alpha - beta Q) + alpha + beta V.

    Convex, and right in expectation over actions; but with a single action a state it has no lower bound (alpha =
    -1 - beta Q, beta (V - Q) -> -inf), so only slow, clipped steps of smooth networks keep it finite. Beyond an
    exponent of 10 the exponential goes on as its tangent.

    Args:
      alpha, beta: [...] multipliers of the state.
      q: [...] value of one behaviour action.
      value: [...] V of the state.

    Returns:
      [...] losses; their minimum over alpha and beta is -KL(pi || mu) in expectation.
    """
    chex.assert_equal_shape([alpha, beta, q, value])
    exponent = -1.0 - alpha - beta * q
    bounded = jnp.minimum(exponent, 10.0)
    return jnp.exp(bounded) * (1.0 + exponent - bounded) + alpha + beta * value


def alignment_dual_logsumexp(beta: Array, q: Array, value: Array) -> Array:
    """AlignIQL-hard's dual without alpha, log mean_k exp(-beta Q_k) + beta V over K behaviour samples of each state.

    Bounded below exactly where min Q_k < V < max Q_k. Not in the released code (derived: alpha is eliminated at its
    optimum, `alignment_alpha`).

    Args:
      beta: [...] multipliers of the state.
      q: [K, ...] values of K behaviour actions.
      value: [...] V of the state.

    Returns:
      [...] losses.
    """
    chex.assert_equal_shape([beta, value, q[0]])
    return jax.nn.logsumexp(-beta * q, axis=0) - math.log(q.shape[0]) + beta * value


def alignment_alpha(beta: Array, q: Array) -> Array:
    """alpha that normalises AlignIQL-hard's policy over K behaviour samples [K, ...]: log mean_k exp(-beta Q_k) - 1."""
    return jax.nn.logsumexp(-beta * q, axis=0) - math.log(q.shape[0]) - 1.0
