"""Which policy does each extraction rule take from one Q and one V? python benchmarks/bandit.py --help

One state: actions of known values Q that the data take with known probabilities mu. V is learned from them, then every
rule's multipliers and policy, by gradient steps on safejax's losses over the exact mu. Beside each stands the closed
form (bandit_exact.py). KL is KL(pi || mu); a policy is aligned if E Q = V. Exit code 1 if a learned form is further
than 1e-3 (rules with multipliers) or 1e-6 (the others) from the exact one.

  python benchmarks/bandit.py --q 0,1,2 --behavior .5,.3,.2 --expectile .7
  python benchmarks/bandit.py --value-shift .1      # a V that no regression has: hard alignment alone still meets it
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from typing import Any

import bandit_exact
import jax
import jax.numpy as jnp
import numpy as np
import optax
from bandit_exact import Problem, Solution
from offline_to_online import OneLineParser, stop

from safejax.gradients import adam, gradient_step, train_state
from safejax.losses import extraction
from safejax.losses.policy import advantage_weight
from safejax.losses.value import expectile_loss, exponential_loss, quantile_loss
from safejax.types import TrainState

STEPS = 10000
RATE = 0.1  # of Adam at first, in spreads of Q
MULTIPLIER_BOUND, POLICY_BOUND = 1e-3, 1e-6
LISTS = ("--q", "--behavior")


def descend(loss: Callable[[Any], Any], start: Any) -> Any:
    """Where twice `STEPS` steps of Adam from `start` end, the rate falling to 0 each time.

    A V next to the best Q has slopes far below the first ones, which Adam remembers for thousands of steps: hence the
    second time. Its epsilon, 1e-8, would stand beside them: hence the factor.
    """
    optimizer = adam(RATE, decay_steps=STEPS)

    def step(state: TrainState, _: None) -> tuple[TrainState, None]:
        return gradient_step(lambda params: (1e6 * loss(params), {}), state, optimizer)[0], None

    run = jax.jit(lambda params: jax.lax.scan(step, train_state(params, optimizer), None, STEPS)[0].params)
    return run(run(jax.tree.map(jnp.asarray, start)))


def learn(problem: Problem) -> dict[str, Solution]:
    """Every rule by gradient steps, in units of the spread of Q; needs double precision."""
    numbers, q, mu, spread = problem.numbers, jnp.asarray(problem.q), jnp.asarray(problem.behavior), problem.spread
    middle = float(q.mean())

    def learn_value(loss: Any, number: float) -> float:
        values = (q - middle) / spread
        found = descend(lambda value: mu @ loss(jnp.full(q.shape, value), values, number), 0.0)
        return problem.snap(middle + spread * float(found)) + numbers.value_shift

    expectile = learn_value(expectile_loss, numbers.expectile)
    quantile = learn_value(quantile_loss, numbers.quantile)
    soft_maximum = learn_value(exponential_loss, numbers.exponential * spread)

    def weighted(log_weight: Any, value: float = expectile, **multipliers: float) -> Solution:
        return Solution(np.asarray(jax.nn.softmax(jnp.log(mu) + log_weight)), value, multipliers)

    # Of advantages in place of values: beta is the same, alpha differs by beta V, and their curvatures separate.
    advantage = (q - expectile) / spread
    # The dual's mean is over equal samples, and it knows no more than beta Q: probabilities enter as shifts of that.
    shares = jnp.log(q.size * mu)

    def logsumexp_dual(beta: Any) -> Any:
        return extraction.alignment_dual_logsumexp(jnp.ones(()), beta * advantage - shares, jnp.zeros(()))

    def sample_dual(multipliers: Any) -> Any:
        alpha, beta = (jnp.full(q.shape, each) for each in multipliers)
        return mu @ extraction.alignment_dual(alpha, beta, advantage, jnp.zeros(q.shape))

    beta = descend(logsumexp_dual, 0.0) / spread
    alpha = extraction.alignment_alpha(jnp.ones(()), beta * q - shares)
    sample_alpha, sample_beta = descend(sample_dual, (0.0, 0.0))
    sample_alpha, sample_beta = sample_alpha - sample_beta / spread * expectile, sample_beta / spread
    hard, tau = extraction.hard_alignment_log_weight, numbers.expectile
    return {
        "behavior": weighted(jnp.zeros(q.shape)),
        "soft_align": weighted(extraction.soft_alignment_log_weight(q - expectile, numbers.penalty)),
        "hard_align": weighted(hard(q, beta), alpha=float(alpha), beta=float(beta)),
        "hard_align_sample": weighted(hard(q, sample_beta), alpha=float(sample_alpha), beta=float(sample_beta)),
        "idql_expectile": weighted(extraction.expectile_log_weight(q - expectile, tau)),
        "idql_quantile": weighted(extraction.quantile_log_weight(q - quantile, numbers.quantile), quantile),
        "idql_exponential": weighted(
            extraction.exponential_log_weight(q - soft_maximum, numbers.exponential), soft_maximum
        ),
        "awr": weighted(jnp.log(advantage_weight(q - expectile, numbers.inverse_temperature))),
        "forward_kl": learn_forward_kl(problem, expectile),
    }


def learn_forward_kl(problem: Problem, value: float) -> Solution:
    """DiffCPS's constraint: logits down lambda H(mu, pi) - E_pi Q while log lambda goes up H(mu, pi) - kappa.

    The logarithm, where DiffCPS steps lambda itself, serves multipliers of any size with one rate.
    """
    q, mu = jnp.asarray(problem.q / problem.spread), jnp.asarray(problem.behavior)

    def step(state: tuple[TrainState, TrainState], rate: Any) -> tuple[tuple[TrainState, TrainState], None]:
        actor, multiplier = state

        def actor_loss(logits: Any) -> tuple[Any, dict[str, Any]]:
            log_policy = jax.nn.log_softmax(logits)
            cross_entropy = -mu @ log_policy
            objective = jnp.exp(log_policy) @ q - jnp.exp(multiplier.params) * cross_entropy
            return -objective, {"excess": cross_entropy - problem.kappa}

        actor, metrics = gradient_step(actor_loss, actor, optax.adam(rate))
        multiplier, _ = gradient_step(lambda log: (-metrics["excess"] * log, {}), multiplier, optax.adam(0.2 * rate))
        return (actor, multiplier), None

    rates = RATE * jnp.cos(0.5 * jnp.pi * jnp.linspace(0.0, 1.0, 2 * STEPS)) ** 2
    start = train_state(jnp.log(mu), optax.adam(RATE)), train_state(jnp.zeros(()), optax.adam(RATE))
    (actor, multiplier), _ = jax.jit(lambda state: jax.lax.scan(step, state, rates))(start)
    policy = np.asarray(jax.nn.softmax(actor.params))
    return Solution(policy, value, {"lambda": float(jnp.exp(multiplier.params)) * problem.spread})


def deviation(learned: Solution, exact: Solution) -> tuple[float, float]:
    """(largest difference of probabilities, and of V and multipliers relative to numbers above 1; the bound on it)."""
    pairs = [(learned.value, exact.value)]
    pairs += [(learned.multipliers[name], number) for name, number in exact.multipliers.items()]
    off = [abs(ours - theirs) / max(1.0, abs(theirs)) for ours, theirs in pairs]
    off.append(np.max(np.abs(learned.policy - exact.policy)))
    return float(np.max(off)), MULTIPLIER_BOUND if exact.multipliers else POLICY_BOUND  # np.max keeps a NaN


def describe(solution: Solution, problem: Problem, taken: np.ndarray) -> dict[str, Any]:
    """A solution in numbers; actions that the data never take have probability 0."""
    policy = np.zeros(taken.shape)
    policy[taken] = solution.policy
    positive = solution.policy > 0.0
    ratio = np.log(solution.policy[positive] / problem.behavior[positive])
    return {
        "policy": policy.tolist(),
        "value": solution.value,
        "expected_q": float(solution.policy @ problem.q),
        "kl": float(solution.policy[positive] @ ratio),
        "multipliers": solution.multipliers,
    }


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; a list may start with a minus sign, which argparse takes for an option."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in LISTS and argument[:1] == "-" and argument[1:2] in tuple("0123456789."):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--q", default="0,1,2", help="values of the actions, comma-separated (default: %(default)s)")
    add("--behavior", default=".5,.3,.2", help="probabilities of the actions in the data (default: %(default)s)")
    add("--expectile", type=float, default=0.7, help="tau of V, in (0, 1) (default: %(default)s)")
    add("--quantile", type=float, default=0.6, help="tau of IDQL's quantile value (default: %(default)s)")
    add("--exponential", type=float, default=1.0, help="alpha of IDQL's exponential value (default: %(default)s)")
    add("--penalty", type=float, default=1.0, help="eta of soft alignment (default: %(default)s)")
    add("--inverse-temperature", type=float, default=1.0, help="beta of AWR's exp(beta A) (default: %(default)s)")
    bound = parser.add_mutually_exclusive_group()
    bound.add_argument("--epsilon", type=float, help="forward_kl's bound on KL(mu || pi), nats (default: 0.1)")
    bound.add_argument("--kappa", type=float, help="the same as a bound on the cross-entropy H(mu, pi), nats")
    add("--value-shift", type=float, default=0.0, help="added to every V before extraction (default: %(default)s)")
    add("--json", action="store_true", help="print one JSON object, rule -> learned and exact, and nothing else")
    return parser.parse_args(joined)


def parse_list(option: str, text: str) -> np.ndarray:
    """Finite numbers from one comma-separated string."""
    try:
        found = np.array([float(part) for part in text.split(",")])
    except ValueError:
        stop(f"{option} is {text!r}, expected numbers separated by commas")
    if not np.all(np.isfinite(found)):
        stop(f"{option} is {text!r}, expected finite numbers")
    return found


def check(options: argparse.Namespace) -> tuple[Problem, np.ndarray]:
    """The problem, and which actions [A] the data take; one line and exit code 2 for what cannot be solved."""
    q, behavior = parse_list("--q", options.q), parse_list("--behavior", options.behavior)
    if len(q) != len(behavior):
        stop(f"--behavior has {len(behavior)} numbers, expected {len(q)}, as many as --q")
    if np.any(behavior < 0.0):
        stop(f"--behavior has {behavior.min():g}, expected probabilities >= 0")
    if abs(behavior.sum() - 1.0) > 1e-6:
        stop(f"--behavior sums to {behavior.sum():g}, expected 1")
    for option, high in (("expectile", 1.0), ("quantile", 1.0), ("exponential", math.inf)):
        if not 0.0 < getattr(options, option) < high:
            stop(f"--{option} is {getattr(options, option):g}, expected a number in (0, {high:g})")
    for option in ("penalty", "inverse_temperature"):
        if not 0.0 <= getattr(options, option) < math.inf:
            stop(f"--{option.replace('_', '-')} is {getattr(options, option):g}, expected a finite number >= 0")
    taken = behavior > 0.0
    q, mu = q[taken], behavior[taken] / behavior.sum()
    if np.ptp(q) == 0.0:
        stop("--q has one value among the actions of the data, expected at least two: nothing can be chosen")
    problem = Problem(q, mu, check_kappa(q, mu, options), options)
    value = bandit_exact.expectile_of(problem) + options.value_shift
    if not q.min() < value < q.max():
        stop(
            f"--value-shift takes V to {value:g}, expected inside ({q.min():g}, {q.max():g}):"
            " no policy of the data's actions has another"
        )
    return problem, taken


def check_kappa(q: np.ndarray, mu: np.ndarray, options: argparse.Namespace) -> float:
    """The bound on H(mu, pi): not so low that lambda is infinite, nor so high that it is 0."""
    entropy = float(-mu @ np.log(mu))
    most = bandit_exact.forward_kl_policy(q, mu, bandit_exact.SMALLEST_LOG_MARGIN)[2]
    if options.kappa is not None:
        if not entropy + 1e-5 <= options.kappa <= most:
            stop(
                f"--kappa is {options.kappa:g}, expected a number from {entropy + 1e-5:.6f} to {most:g}:"
                f" the feasible minimum is {entropy:.6f}, the entropy of --behavior"
            )
        return options.kappa
    epsilon = 0.1 if options.epsilon is None else options.epsilon
    if not 1e-5 <= epsilon <= most - entropy:
        stop(f"--epsilon is {epsilon:g}, expected a number from 0.00001 to {most - entropy:g}: 0 is the data's policy")
    return entropy + epsilon


def table(problem: Problem, learned: dict[str, Solution], exact: dict[str, Solution], taken: np.ndarray) -> str:
    """Two lines a rule: as learned, and exact."""
    numbers = problem.numbers
    lines = [
        f"Q = ({numbers.q}), mu = ({numbers.behavior}), expectile {numbers.expectile:g}",
        f"forward_kl: H(mu, pi) <= {problem.kappa:.6f}",
        f"{'rule':18}{'':7}{'V':>13}{'E Q':>13}{'KL':>10}  {'multipliers':34}policy",
    ]
    for rule in exact:
        for kind, solution in (("learned", learned[rule]), ("exact", exact[rule])):
            found = describe(solution, problem, taken)
            multipliers = " ".join(f"{name} {number:.6g}" for name, number in solution.multipliers.items())
            policy = " ".join(f"{share:.6f}" for share in found["policy"])
            means = f"{found['value']:13.6f}{found['expected_q']:13.6f}{found['kl']:10.6f}"
            lines.append(f"{rule if kind == 'learned' else '':18}{kind:7}{means}  {multipliers:34}{policy}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Solve the problem by every rule, print, and fail if a learned form is further off than its bound."""
    problem, taken = check(parse(sys.argv[1:] if arguments is None else arguments))
    with jax.enable_x64(True):
        learned = learn(problem)
    exact = bandit_exact.solve(problem, learned["idql_quantile"].value - problem.numbers.value_shift)
    note = ""
    if np.max(exact["hard_align"].policy / problem.behavior) > math.exp(bandit_exact.LARGEST_EXPONENT):
        del exact["hard_align_sample"]
        note = "\nhard_align_sample is left out: its policy is where the one-sample dual goes on as its tangent"
    if problem.numbers.json:
        forms = {"learned": learned, "exact": exact}
        found = {rule: {form: describe(rules[rule], problem, taken) for form, rules in forms.items()} for rule in exact}
        print(json.dumps(found))
    else:
        print(table(problem, learned, exact, taken) + note)
    for rule in exact:
        off, bound = deviation(learned[rule], exact[rule])
        if not off <= bound:
            print(f"error: {rule} was learned to {off:.2g} of its exact form, bound {bound:g}", file=sys.stderr)
            raise SystemExit(1)


if __name__ == "__main__":
    main()
