"""The one-state problem: learned against exact, exact against independent solvers, and what the options refuse."""

from __future__ import annotations

import json
import math

import bandit
import bandit_exact
import jax
import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar

Q, MU = np.array([0.0, 1.0, 2.0]), np.array([0.5, 0.3, 0.2])


def solved(capsys, *arguments: str) -> dict:
    """What `--json` prints, all of it."""
    bandit.main([*arguments, "--json"])
    printed = capsys.readouterr()
    assert printed.err == ""
    return json.loads(printed.out)


def problem_of(*arguments: str) -> bandit_exact.Problem:
    return bandit.check(bandit.parse(list(arguments)))[0]


def exact_of(*arguments: str) -> dict[str, bandit_exact.Solution]:
    return bandit_exact.solve(problem_of(*arguments), 0.0)


def test_the_bandit_of_the_defaults(capsys):
    """Learned multipliers and policies at expectile .7, to six digits."""
    rules = solved(capsys)
    learned = {rule: rules[rule]["learned"] for rule in rules}
    for rule in ("hard_align", "hard_align_sample"):
        np.testing.assert_allclose(learned[rule]["value"], 0.98, atol=1e-6)
        np.testing.assert_allclose(learned[rule]["multipliers"]["beta"], -0.428654, atol=1e-6)
        np.testing.assert_allclose(learned[rule]["multipliers"]["alpha"], -0.640985, atol=1e-6)
        np.testing.assert_allclose(learned[rule]["policy"], [0.349182, 0.321636, 0.329182], atol=1e-6)
        np.testing.assert_allclose((learned[rule]["kl"], learned[rule]["expected_q"]), (0.061066, 0.98), atol=1e-6)
    idql = learned["idql_expectile"]
    np.testing.assert_allclose(idql["policy"], [0.3, 0.42, 0.28], atol=1e-6)
    np.testing.assert_allclose((idql["kl"], idql["expected_q"]), (0.082283, 0.98), atol=1e-6)
    np.testing.assert_allclose(learned["awr"]["policy"], [0.179000, 0.291944, 0.529056], atol=1e-6)
    soft = MU * np.exp(-((Q - 0.98) ** 2))
    np.testing.assert_allclose(learned["soft_align"]["policy"], soft / soft.sum(), atol=1e-6)
    np.testing.assert_allclose(learned["behavior"]["policy"], MU, atol=1e-12)
    for rule, forms in rules.items():
        assert list(forms) == ["learned", "exact"]
        np.testing.assert_allclose(forms["learned"]["policy"], forms["exact"]["policy"], atol=1e-6)
        assert forms["learned"]["multipliers"].keys() == forms["exact"]["multipliers"].keys(), rule


def test_a_shifted_value_is_met_by_hard_alignment_alone(capsys):
    """IDQL's three policies miss it too: their weights are aligned with the V of their own regression."""
    rules = solved(capsys, "--value-shift", ".1")
    gaps = {rule: forms["learned"]["expected_q"] - forms["learned"]["value"] for rule, forms in rules.items()}
    aligned = {rule for rule, gap in gaps.items() if abs(gap) < 1e-6}
    assert aligned == {"hard_align", "hard_align_sample"}


def test_negative_values_unused_actions_and_a_tie(capsys):
    """Lists that start with a minus sign; an action that the data never take; shares that meet --quantile exactly."""
    rules = solved(
        capsys,
        *("--q", "-1,5,0,2", "--behavior", ".5,0,.25,.25", "--quantile", ".5", "--expectile", ".9", "--kappa", "2"),
    )
    assert all(forms["learned"]["policy"][1] == 0.0 for forms in rules.values())
    assert all(abs(sum(forms["learned"]["policy"]) - 1.0) < 1e-9 for forms in rules.values())
    quantile = rules["idql_quantile"]["learned"]
    assert -1.0 <= quantile["value"] <= 0.0
    np.testing.assert_allclose(quantile["expected_q"], quantile["value"], atol=1e-6)
    assert solved(capsys, "--q=-1,5,0,2", "--behavior=.5,0,.25,.25")["awr"] != rules["awr"]


@pytest.mark.parametrize(
    ("expectile", "value", "beta", "alpha", "hard_kl", "idql_kl"),
    [
        (0.5, 0.7, 0.0, -1.0, 0.0, 0.0),
        (0.6, 0.84, -0.219949, -0.830836, 0.015594, 0.020136),
        (0.7, 0.98, -0.428654, -0.640985, 0.061066, 0.082283),
        (0.8, 1.1875, -0.738312, -0.305180, 0.181926, 0.223144),
        (0.9, 1.5, -1.278, 0.423993, 0.493007, 0.565644),
    ],
)
def test_closed_forms_of_every_expectile(expectile, value, beta, alpha, hard_kl, idql_kl):
    rules = exact_of("--expectile", str(expectile))
    hard = rules["hard_align"]
    found = (hard.value, hard.multipliers["beta"], hard.multipliers["alpha"], hard.policy @ Q)
    np.testing.assert_allclose(found, (value, beta, alpha, value), atol=1e-6)
    for rule, kl in (("hard_align", hard_kl), ("idql_expectile", idql_kl)):
        policy = rules[rule].policy
        np.testing.assert_allclose((policy @ np.log(policy / MU), policy @ Q), (kl, value), atol=1e-6)


RANDOM = ("--q", ".3,-1.2,2.5,.9,-.4", "--behavior", ".1,.3,.15,.25,.2", "--expectile", ".8", "--epsilon", ".3")


def test_closed_forms_against_solvers_of_their_problems():
    """The primal problems, by SLSQP and by minimising each value's loss: they know no multiplier and no weight."""
    problem, rules = problem_of(*RANDOM), exact_of(*RANDOM)
    q, mu = problem.q, problem.behavior
    size = len(q)

    def best(objective, constraint):
        whole = {"type": "eq", "fun": lambda policy: policy.sum() - 1.0}
        found = minimize(
            objective,
            mu,
            bounds=[(1e-9, 1.0)] * size,
            constraints=[whole, constraint] if constraint else [whole],
            options={"ftol": 1e-15, "maxiter": 500},
        )
        return found.x

    value = rules["hard_align"].value

    def kl(policy):
        return policy @ np.log(policy / mu)

    hard = best(kl, {"type": "eq", "fun": lambda policy: policy @ q - value})
    np.testing.assert_allclose(rules["hard_align"].policy, hard, atol=1e-5)
    soft = best(lambda policy: kl(policy) + policy @ (q - value) ** 2, None)
    np.testing.assert_allclose(rules["soft_align"].policy, soft, atol=1e-5)
    constraint = {"type": "ineq", "fun": lambda policy: 0.3 - mu @ np.log(mu / policy)}
    np.testing.assert_allclose(rules["forward_kl"].policy, best(lambda policy: -policy @ q, constraint), atol=1e-5)
    awr = best(lambda policy: kl(policy) - policy @ (q - value), None)
    np.testing.assert_allclose(rules["awr"].policy, awr, atol=1e-5)

    losses = {
        "idql_expectile": lambda u: np.where(u < 0, 0.2, 0.8) * u**2,
        "idql_quantile": lambda u: np.where(u < 0, 0.4, 0.6) * np.abs(u),
        "idql_exponential": lambda u: np.exp(u) - u,
    }
    for rule, loss in losses.items():
        # convex: a bracket by minimize_scalar, whose own accuracy is the root of the float's
        found = minimize_scalar(
            lambda v, loss=loss: mu @ loss(q - v), bounds=(q.min(), q.max()), method="bounded", options={"xatol": 1e-12}
        ).x
        np.testing.assert_allclose(bandit_exact.solve(problem, found)[rule].value, found, atol=1e-6)
        np.testing.assert_allclose(rules[rule].policy @ q, rules[rule].value, atol=2e-6)  # IDQL is aligned


def test_where_the_tangent_bends_the_soft_maximum(capsys):
    """alpha (max Q - V) > 5: the learned V is the loss's own, below log E exp(alpha Q) / alpha."""
    arguments = ("--q", "0,1,60", "--behavior", ".5,.499,.001", "--exponential", "1")
    problem = problem_of(*arguments)
    closed = math.log(problem.behavior @ np.exp(problem.q))
    bent = bandit_exact.soft_maximum_of(problem)
    assert closed > bent + 10.0
    assert solved(capsys, *arguments)["idql_exponential"]["learned"]["value"] == pytest.approx(bent, abs=1e-5)


@pytest.mark.parametrize(
    ("kappa", "multiplier", "best"),
    [(0.933753, 0.5, 0.809017), (0.787260, 1.0, 0.707107), (0.721818, 2.0, 0.618034), (0.694393, 10.0, 0.524938)],
)
def test_two_actions_under_the_forward_constraint(kappa, multiplier, best):
    """Q = (0, 1), mu even: nu = ((1 + l) + sqrt(1 + l^2)) / 2, pi(1) = l / (2 (nu - 1))."""
    arguments = ("--q", "0,1", "--behavior", ".5,.5", "--kappa", str(kappa))
    found = exact_of(*arguments)["forward_kl"]
    np.testing.assert_allclose(found.multipliers["lambda"], multiplier, rtol=3e-3)  # kappa has six digits
    np.testing.assert_allclose(found.policy[1], best, atol=1e-4)
    with jax.enable_x64(True):
        learned = bandit.learn_forward_kl(problem_of(*arguments), 0.0)
    np.testing.assert_allclose(learned.multipliers["lambda"], found.multipliers["lambda"], rtol=1e-6)


def test_a_form_out_of_its_bound_is_exit_code_one(capsys, monkeypatch):
    """The learner is cut short: one line names the rule, the deviation and the bound."""
    monkeypatch.setattr(bandit, "STEPS", 3)
    with pytest.raises(SystemExit) as caught:
        bandit.main(["--json"])
    assert caught.value.code == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert "bound 1e-06" in printed.err
    json.loads(printed.out)


def test_the_one_sample_dual_is_left_out_beyond_its_clip(capsys):
    """pi / mu is above e^10 for the second action, where that loss clips its exponent."""
    arguments = ["--q", "0,1", "--behavior", ".999995,.000005", "--expectile", ".99999"]
    assert "hard_align_sample" not in solved(capsys, *arguments)
    bandit.main(arguments)
    table = capsys.readouterr().out
    assert "hard_align_sample is left out" in table
    lines = table.splitlines()
    assert lines[3].split()[:2] == ["behavior", "learned"]
    assert lines[4].split()[0] == "exact"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--q", "0,x,1"], ("--q", "0,x,1", "numbers")),
        (["--q", "0,,1"], ("--q", "numbers")),
        (["--q", "0,nan,1"], ("--q", "finite")),
        (["--q", "0,1"], ("--behavior has 3", "2")),
        (["--behavior", ".5,.3,.1"], ("sums to 0.9", "expected 1")),
        (["--behavior", "-.1,.6,.5"], ("-0.1", ">= 0")),
        (["--q", "1,1,1"], ("--q", "at least two")),
        (["--behavior", "1,0,0"], ("--q", "at least two")),
        (["--expectile", "1"], ("--expectile is 1", "(0, 1)")),
        (["--expectile", "0"], ("--expectile is 0", "(0, 1)")),
        (["--expectile", "nan"], ("--expectile is nan",)),
        (["--expectile", "abc"], ("--expectile", "abc")),
        (["--quantile", "1.5"], ("--quantile is 1.5",)),
        (["--exponential", "0"], ("--exponential is 0",)),
        (["--penalty", "-1"], ("--penalty is -1",)),
        (["--inverse-temperature", "inf"], ("--inverse-temperature is inf",)),
        (["--kappa", "1"], ("--kappa is 1", "minimum is 1.029653")),
        (["--epsilon", "0"], ("--epsilon is 0",)),
        (["--epsilon", "1e6"], ("--epsilon is 1e+06", "478")),
        (["--kappa", "2", "--epsilon", "1"], ("--epsilon", "--kappa")),
        (["--value-shift", "2"], ("--value-shift", "2.98", "(0, 2)")),
        (["--behaviour", "1"], ("--behaviour",)),
    ],
)
def test_a_bad_option_is_one_line(capsys, arguments, words):
    with pytest.raises(SystemExit) as caught:
        bandit.main(arguments)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    assert all(word in printed.err for word in words), printed.err
