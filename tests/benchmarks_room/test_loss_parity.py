"""benchmarks/loss_parity.py against an IQL written out in NumPy, its comparison, and its errors.

That IQL takes the place of the official checkout: it has the same names, and its gradients are derived by hand.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from types import SimpleNamespace

import numpy as np
import pytest

loss_parity = importlib.import_module("loss_parity")
terms = importlib.import_module("loss_parity_terms")


class Learner:
    """One update of IQL with two hidden layers of 256, after its paper."""

    def __init__(self, seed, observations, actions, discount, tau, expectile, temperature, max_steps):
        self.discount, self.tau, self.expectile, self.temperature = discount, tau, expectile, temperature
        random, state, action = np.random.default_rng(seed), observations.shape[-1], actions.shape[-1]

        def layers(*sizes):
            shapes = [(sizes[index], sizes[index + 1]) for index in range(len(sizes) - 1)]
            return {
                f"Dense_{index}": {
                    "kernel": random.normal(size=shape) * (2.0 / shape[0]) ** 0.5,
                    "bias": 0.1 * random.normal(size=shape[1]),
                }
                for index, shape in enumerate(shapes)
            }

        critic, wide = (state + action, 256, 256, 1), layers(state, 256, 256, action)
        body = {name: wide[name] for name in ("Dense_0", "Dense_1")}
        actor = {"MLP_0": body, "Dense_0": wide["Dense_2"], "log_stds": np.linspace(-0.5, 0.5, action)}
        self.actor = Model(actor)
        self.critic = Model({f"Critic_{member}": {"MLP_0": layers(*critic)} for member in range(2)})
        self.target_critic = Model(self.critic.params)
        self.value = Model({"MLP_0": layers(state, 256, 256, 1)})

    def update(self, batch):
        """Value, actor, critic, target."""
        rows, pairs = len(batch.rewards), np.concatenate([batch.observations, batch.actions], axis=1)
        q = np.min([forward(member["MLP_0"], pairs)[-1] for member in self.target_critic.params.values()], axis=0)
        hidden = forward(self.value.params["MLP_0"], batch.observations)
        gap = q - hidden[-1]
        side = np.where(gap > 0, self.expectile, 1 - self.expectile)
        info = {"value_loss": np.mean(side * gap**2)}
        self.value.step({"MLP_0": backward(self.value.params["MLP_0"], hidden, -2 * side * gap / rows)})

        advantage = q - forward(self.value.params["MLP_0"], batch.observations)[-1]
        weight = np.minimum(np.exp(self.temperature * advantage), 100.0)
        head = self.actor.params
        body = {**head["MLP_0"], "Dense_2": head["Dense_0"]}
        hidden = forward(body, batch.observations)
        mean, log_std = np.tanh(hidden[-1]), head["log_stds"]
        error = (batch.actions - mean) / np.exp(log_std)
        log_prob = np.sum(-0.5 * error**2 - log_std - 0.5 * np.log(2 * np.pi), axis=1, keepdims=True)
        info["actor_loss"] = -np.mean(weight * log_prob)
        moved = backward(body, hidden, -weight / rows * error / np.exp(log_std) * (1 - mean**2))
        spread = np.sum(-weight / rows * (error**2 - 1), axis=0)
        names = {"MLP_0": {name: moved[name] for name in ("Dense_0", "Dense_1")}, "Dense_0": moved["Dense_2"]}
        self.actor.step({**names, "log_stds": spread})

        following = forward(self.value.params["MLP_0"], batch.next_observations)[-1][:, 0]
        target = (batch.rewards + self.discount * batch.masks * following)[:, None]
        info["critic_loss"], moved, before = 0.0, {}, self.target_critic.params
        for name, member in self.critic.params.items():
            hidden = forward(member["MLP_0"], pairs)
            info["critic_loss"] += np.mean((hidden[-1] - target) ** 2)
            moved[name] = {"MLP_0": backward(member["MLP_0"], hidden, 2 * (hidden[-1] - target) / rows)}
        self.critic.step(moved)
        self.target_critic = Model(
            mapped(lambda new, old: self.tau * new + (1 - self.tau) * old, self.critic.params, before)
        )
        return info


class Model:
    """Parameters that take the first step of Adam."""

    def __init__(self, params):
        self.params = params

    def replace(self, params):
        return Model(params)

    def step(self, gradient):
        """Its first moment is (1 - .9) g, its step 3e-4 g / (|g| + 1e-8)."""
        self.opt_state = SimpleNamespace(mu=mapped(lambda g: 0.1 * g, gradient))
        self.params = mapped(lambda p, g: p - 3e-4 * g / (np.abs(g) + 1e-8), self.params, gradient)


def mapped(function, *trees):
    """`function` of the leaves of dictionaries."""
    if isinstance(trees[0], dict):
        return {name: mapped(function, *(tree[name] for tree in trees)) for name in trees[0]}
    return function(*trees)


def forward(layers, inputs):
    """What goes into each dense layer, and the output; relu between them."""
    hidden = [np.asarray(inputs, np.float64)]
    for index in range(len(layers)):
        layer = layers[f"Dense_{index}"]
        output = hidden[-1] @ layer["kernel"] + layer["bias"]
        hidden.append(np.maximum(output, 0.0) if index + 1 < len(layers) else output)
    return hidden


def backward(layers, hidden, gradient):
    """The gradients of the layers, from that of the output."""
    found = {}
    for index in reversed(range(len(layers))):
        found[f"Dense_{index}"] = {"kernel": hidden[index].T @ gradient, "bias": gradient.sum(axis=0)}
        gradient = (gradient @ layers[f"Dense_{index}"]["kernel"].T) * (hidden[index] > 0)
    return found


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkout")
    parts = [Learner, Model, mapped, forward, backward]
    header = "import gym\nimport numpy as np\nfrom types import SimpleNamespace\n"  # gym is not installed
    (folder / "learner.py").write_text(header + "\n".join(map(inspect.getsource, parts)))
    names = "['observations', 'actions', 'rewards', 'masks', 'next_observations']"
    (folder / "common.py").write_text(f"from collections import namedtuple\nBatch = namedtuple('Batch', {names})\n")
    return folder


@pytest.fixture(scope="module")
def file(checkout):
    return loss_parity.run_peer("iql", checkout, sys.executable)


def run(checkout, peer="iql", python=sys.executable):
    return loss_parity.main(["--peer", peer, "--checkout", str(checkout), "--python", str(python)])


def test_our_update_is_that_of_an_iql_in_numpy(checkout, file, monkeypatch, capsys):
    monkeypatch.setattr(loss_parity, "run_peer", lambda *arguments: file)
    assert run(checkout) == 0
    text = capsys.readouterr().out
    assert "ikostrikov/implicit_q_learning@unknown (jax" in text
    assert "7 terms, 0 differ" in text
    assert "DIFFERS" not in text
    assert "Deliberate differences" in text


@pytest.mark.parametrize(
    ("entry", "change", "marked"),
    [
        ("term/critic_loss", lambda value: value * (1 + 1e-4), {"critic loss"}),
        ("moment/actor/log_stds", lambda value: value[::-1], {"actor gradient"}),
        (
            "after/target_critic/Critic_1/MLP_0/Dense_0/bias",
            lambda value: value + 1e-2,
            {"target critic after the update"},
        ),
        ("number/expectile", lambda value: value + 0.1, {"value loss", "value gradient"}),
        ("term/value_loss", lambda value: value * np.nan, {"value loss"}),
    ],
)
def test_a_mismatch_is_marked_and_fails(entry, change, marked, checkout, file, monkeypatch, capsys):
    monkeypatch.setattr(loss_parity, "run_peer", lambda *arguments: file | {entry: np.asarray(change(file[entry]))})
    assert run(checkout) == 1
    lines = capsys.readouterr().out.splitlines()
    assert marked <= {line.split("  ")[0] for line in lines if line.endswith("DIFFERS")}
    assert "0 differ" not in "\n".join(lines)


def test_terms_are_compared_by_norm_and_shape():
    rows = loss_parity.compare(
        [
            terms.Term("equal", 2.0, np.float32(2.0)),
            terms.Term("off", {"a": np.array([3.0, 4.0])}, {"a": np.array([3.0, 4.5])}, 0.2),
            terms.Term("nothing", np.zeros(2), np.zeros(2)),
        ]
    )
    assert [row.difference for row in rows] == pytest.approx([0.0, 0.1, 0.0])
    assert (rows[0].theirs, rows[1].theirs) == (2.0, 5.0)
    assert not any(map(loss_parity.differs, rows))
    assert loss_parity.differs(rows[1]._replace(limit=0.09))
    with pytest.raises(ValueError, match="gone: shapes"):
        loss_parity.compare([terms.Term("gone", np.zeros(2), np.zeros(3))])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peer": "diffcsp"}, ["--peer is 'diffcsp'", "nearest: diffcps"]),
        ({"peer": "idql"}, ["--checkout is", "ddpm_iql_learner.py", "philippe-eecs/IDQL"]),
        ({"checkout": "/nowhere"}, ["--checkout is /nowhere", "learner.py", "ikostrikov/implicit_q_learning"]),
        ({"python": "/no/python"}, ["--python is /no/python", "jax 0.4.13"]),
    ],
)
def test_a_wrong_option_is_one_line_and_code_2(change, words, checkout, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(**{"checkout": checkout} | change)
    assert stopped.value.code == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert len(error.splitlines()) == 1
    for word in words:
        assert word in error


def test_a_peer_that_fails_says_why_in_one_line(tmp_path, capsys):
    (tmp_path / "learner.py").write_text("raise RuntimeError('no such weather')\n")
    with pytest.raises(SystemExit):
        run(tmp_path)
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "the peer failed: RuntimeError: no such weather (it needs jax 0.4.13" in error
