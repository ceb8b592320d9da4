"""Official weights in our networks against the same networks written out in NumPy, and recorded draws in our code."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safejax.networks import Critic, MLPDenoiser, ResidualDenoiser, Value, ensemble

inputs = importlib.import_module("loss_parity_inputs")

OBSERVATION, ACTION, ROWS = 5, 3, 4
RANDOM = np.random.default_rng(0)


def mish(x):
    return x * np.tanh(np.log1p(np.exp(x)))


def swish(x):
    return x / (1.0 + np.exp(-x))


def torch_layers(prefix, sizes):
    """name -> weight [out, in] and bias, as in a torch state dictionary."""
    entries = {}
    for name, (fan_in, fan_out) in sizes.items():
        entries[f"{prefix}/{name}.weight"] = RANDOM.normal(size=(fan_out, fan_in)).astype(np.float32) / fan_in**0.5
        entries[f"{prefix}/{name}.bias"] = RANDOM.normal(size=fan_out).astype(np.float32)
    return entries


def flax_layers(prefix, sizes):
    """name -> kernel [..., in, out] and bias; for a size instead of a pair, a layer norm."""
    entries = {}
    for name, size in sizes.items():
        shape = (size,) if isinstance(size, int) else size
        leaf = "scale" if isinstance(size, int) else "kernel"
        entries[f"{prefix}/{name}/{leaf}"] = RANDOM.normal(size=shape).astype(np.float32) / shape[0] ** 0.5
        entries[f"{prefix}/{name}/bias"] = RANDOM.normal(size=shape[-1]).astype(np.float32)
    return entries


OBSERVATIONS = RANDOM.normal(size=(ROWS, OBSERVATION)).astype(np.float32)
ACTIONS = RANDOM.normal(size=(ROWS, ACTION)).astype(np.float32)
INDEX = np.array([0, 3, 1, 4], np.int32)


def test_torch_critics_become_an_ensemble():
    shapes = {0: (8, 6), 2: (6, 6), 4: (6, 6), 6: (6, 1)}
    sizes = {f"q{member}_model.{layer}": shape for member in (1, 2) for layer, shape in shapes.items()}
    weights = torch_layers("before/critic", sizes)

    def member(k):
        x = np.concatenate([OBSERVATIONS, ACTIONS], axis=1)
        for layer in (0, 2, 4, 6):
            name = f"before/critic/q{k}_model.{layer}"
            x = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
            x = mish(x) if layer < 6 else x
        return x[:, 0]

    network = ensemble(Critic((6, 6, 6), "mish"), 2)
    ours = network.apply(inputs.torch_critics(weights, "before/critic"), OBSERVATIONS, ACTIONS)
    np.testing.assert_allclose(ours, [member(1), member(2)], rtol=1e-5, atol=1e-6)


def test_a_torch_denoiser_sees_action_time_and_state_in_that_order():
    sizes = {"model.time_mlp.1": (4, 8), "model.time_mlp.3": (8, 4), "model.mid_layer.0": (ACTION + 4 + OBSERVATION, 6)}
    sizes |= {"model.mid_layer.2": (6, 6), "model.mid_layer.4": (6, 6), "model.final_layer": (6, ACTION)}
    weights = torch_layers("before/actor", sizes)

    def layer(name, x):
        return x @ weights[f"before/actor/model.{name}.weight"].T + weights[f"before/actor/model.{name}.bias"]

    angles = INDEX[:, None] * np.array([1.0, 1e-4])
    time = layer("time_mlp.3", mish(layer("time_mlp.1", np.concatenate([np.sin(angles), np.cos(angles)], axis=1))))
    x = np.concatenate([ACTIONS, time, OBSERVATIONS], axis=1)
    for name in ("mid_layer.0", "mid_layer.2", "mid_layer.4"):
        x = mish(layer(name, x))
    network = MLPDenoiser(ACTION, (6, 6, 6), time_size=4)
    ours = network.apply(inputs.torch_denoiser(weights, "before/actor"), OBSERVATIONS, ACTIONS, INDEX)
    np.testing.assert_allclose(ours, layer("final_layer", x), rtol=1e-5, atol=1e-5)


def normed(weights, name, x):
    x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-6)
    return x * weights[f"{name}/scale"] + weights[f"{name}/bias"]


def test_a_residual_denoiser_keeps_its_blocks_apart():
    width, time_size = 4, 6
    sizes = {"MLP_0/Dense_0": (time_size, 5), "MLP_0/Dense_1": (5, 5)}
    sizes["MLPResNet_0/Dense_0"] = (ACTION + OBSERVATION + 5, width)
    for block in range(2):
        name = f"MLPResNet_0/MLPResNetBlock_{block}"
        sizes |= {f"{name}/LayerNorm_0": width, f"{name}/Dense_0": (width, 4 * width)}
        sizes[f"{name}/Dense_1"] = (4 * width, width)
    sizes["MLPResNet_0/Dense_1"] = (width, ACTION)
    weights = flax_layers("actor", sizes)
    weights["actor/FourierFeatures_0/kernel"] = RANDOM.normal(size=(time_size // 2, 1)).astype(np.float32)

    def layer(name, x):
        return x @ weights[f"actor/{name}/kernel"] + weights[f"actor/{name}/bias"]

    angles = 2 * np.pi * INDEX[:, None] * weights["actor/FourierFeatures_0/kernel"].T
    time = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    time = layer("MLP_0/Dense_1", swish(layer("MLP_0/Dense_0", time)))
    x = layer("MLPResNet_0/Dense_0", np.concatenate([ACTIONS, OBSERVATIONS, time], axis=1))
    for block in range(2):
        name = f"MLPResNet_0/MLPResNetBlock_{block}"
        inner = normed(weights, f"actor/{name}/LayerNorm_0", x)
        x = x + layer(f"{name}/Dense_1", swish(layer(f"{name}/Dense_0", inner)))
    network = ResidualDenoiser(ACTION, width, 2, time_size=time_size, time_hidden_sizes=(5, 5))
    ours = network.apply(inputs.residual_denoiser(weights, "actor"), OBSERVATIONS, ACTIONS, INDEX)
    np.testing.assert_allclose(ours, layer("MLPResNet_0/Dense_1", swish(x)), rtol=1e-4, atol=1e-5)


def test_idql_values_and_critics():
    sizes = {"MLP_0/LayerNorm_0": OBSERVATION, "MLP_0/Dense_0": (OBSERVATION, 6), "MLP_0/Dense_1": (6, 6)}
    weights = flax_layers("value", sizes | {"OutputVDense": (6, 1)})

    def layer(name, x):
        return x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]

    x = normed(weights, "value/MLP_0/LayerNorm_0", OBSERVATIONS)
    for name in ("value/MLP_0/Dense_0", "value/MLP_0/Dense_1"):
        x = np.maximum(layer(name, x), 0.0)
    ours = Value((6, 6), layer_norm=True).apply(inputs.idql_value(weights, "value"), OBSERVATIONS)
    np.testing.assert_allclose(ours, layer("value/OutputVDense", x)[:, 0], rtol=1e-5, atol=1e-6)

    prefix, shapes = (
        "critic/VmapStateActionValue_0",
        {"MLP_0/Dense_0": (8, 6), "MLP_0/Dense_1": (6, 6), "Dense_0": (6, 1)},
    )
    members = [flax_layers(prefix, shapes) for _ in range(2)]
    stacked = {name: np.stack([member[name] for member in members]) for name in members[0]}
    ours = ensemble(Critic((6, 6)), 2).apply(inputs.idql_critics(stacked, "critic"), OBSERVATIONS, ACTIONS)
    for member, value in zip(members, ours, strict=True):
        x = np.concatenate([OBSERVATIONS, ACTIONS], axis=1)
        for name in shapes:
            x = x @ member[f"{prefix}/{name}/kernel"] + member[f"{prefix}/{name}/bias"]
            x = np.maximum(x, 0.0) if name != "Dense_0" else x
        np.testing.assert_allclose(value, x[:, 0], rtol=1e-5, atol=1e-6)


class State(NamedTuple):
    target_critic: Any


def test_weights_of_another_size_or_name_are_refused():
    state = State({"kernel": jnp.zeros((2, 3))})
    assert inputs.loaded(state, target_critic={"kernel": np.ones((2, 3))}).target_critic["kernel"].sum() == 6
    with pytest.raises(ValueError, match=r"target_critic is .*\(3, 2\).* at the peer, expected .*\(2, 3\)"):
        inputs.loaded(state, target_critic={"kernel": np.ones((3, 2))})
    with pytest.raises(ValueError, match=r"no layer 'critic/q1_model\.0'"):
        inputs.torch_critics({}, "critic")


def test_draws_come_in_turn_and_all_of_them():
    first, second = np.arange(6.0, dtype=np.float32).reshape(2, 3), np.ones(4, np.int32)
    with inputs.scripted(normal=[first, first], randint=[second]):
        assert jax.random.normal(jax.random.key(0), (3, 2)).tolist() == [[0, 1], [2, 3], [4, 5]]
        assert jax.random.randint(jax.random.key(0), (4,), 0, 9).tolist() == [1, 1, 1, 1]
        assert jax.random.normal(jax.random.key(0), (6,)).shape == (6,)
    with pytest.raises(ValueError, match=r"asks jax.random.normal for \(5,\)"), inputs.scripted(normal=[first]):
        jax.random.normal(jax.random.key(0), (5,))
    with pytest.raises(ValueError, match="left 1 of the peer's draws"), inputs.scripted(normal=[first]):
        pass
    assert np.unique(jax.random.normal(jax.random.key(0), (3,))).size == 3
