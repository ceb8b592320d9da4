"""Official weights, batches and random draws put into our code, for loss_parity.py.

A file is what loss_parity_peer.py wrote, as a dictionary of arrays. A `prefix` is "before/critic", "moment/critic" and
so on: gradients have the names and shapes of parameters, and convert alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from safejax.types import Algorithm, Array, Params, Transition

File = dict[str, np.ndarray]


def dense(file: File, name: str) -> dict[str, np.ndarray]:
    """A dense layer or layer norm of torch ("name.weight" [out, in]) or flax ("name/kernel" [in, out]) as flax's.

    Raises:
      ValueError: the file has no such layer.
    """
    if f"{name}.weight" in file:
        return {"kernel": file[f"{name}.weight"].T, "bias": file[f"{name}.bias"]}
    leaves = {leaf: file[f"{name}/{leaf}"] for leaf in ("kernel", "scale", "bias") if f"{name}/{leaf}" in file}
    if not leaves:
        raise ValueError(f"the peer has no layer {name!r}: its networks are not those of the expected revision")
    return leaves


def perceptron(file: File, names: Sequence[str]) -> dict[str, Any]:
    """Our `MLP` from the names of its layers."""
    return {f"Dense_{index}": dense(file, name) for index, name in enumerate(names)}


def torch_critics(file: File, prefix: str) -> Params:
    """Both critics of Diffusion-QL and DiffCPS, with a leading axis [2]."""
    members = [perceptron(file, [f"{prefix}/q{member}_model.{layer}" for layer in (0, 2, 4, 6)]) for member in (1, 2)]
    return {"params": {"MLP_0": _stacked(members)}}


def torch_denoiser(file: File, prefix: str) -> Params:
    """The noise predictor of Diffusion-QL and DiffCPS as an `MLPDenoiser`."""
    time = {f"Dense_{index}": dense(file, f"{prefix}/model.time_mlp.{layer}") for index, layer in enumerate((1, 3))}
    first = {"JointDense_0": dense(file, f"{prefix}/model.mid_layer.0")}
    others = [f"{prefix}/model.mid_layer.2", f"{prefix}/model.mid_layer.4", f"{prefix}/model.final_layer"]
    return {"params": time | first | {"MLP_0": perceptron(file, others)}}


def residual_denoiser(file: File, prefix: str) -> Params:
    """IDQL's score network as a `ResidualDenoiser`; its Dense layers count on from the time's two."""
    frequencies = file[f"{prefix}/FourierFeatures_0/kernel"][:, 0]
    names, norms, count = [f"{prefix}/MLP_0/Dense_{layer}" for layer in range(2)], {}, 0
    while f"{prefix}/MLPResNet_0/MLPResNetBlock_{count}/Dense_0/kernel" in file:
        block = f"{prefix}/MLPResNet_0/MLPResNetBlock_{count}"
        names += [f"{block}/Dense_{layer}" for layer in range(2)]
        norms[f"LayerNorm_{count}"] = dense(file, f"{block}/LayerNorm_0")
        count += 1
    names.append(f"{prefix}/MLPResNet_0/Dense_1")
    first = {"JointDense_0": dense(file, f"{prefix}/MLPResNet_0/Dense_0")}
    return {"params": {"FourierFeatures_0": {"frequencies": frequencies}} | first | norms | perceptron(file, names)}


def idql_critics(file: File, prefix: str) -> Params:
    """Both critics of IDQL, which already have a leading axis [2]."""
    names = ["MLP_0/Dense_0", "MLP_0/Dense_1", "Dense_0"]
    return {"params": {"MLP_0": perceptron(file, [f"{prefix}/VmapStateActionValue_0/{name}" for name in names])}}


def idql_value(file: File, prefix: str) -> Params:
    """IDQL's value, with its layer norm if it has one."""
    norm = f"{prefix}/MLP_0/LayerNorm_0"
    norms = {"LayerNorm_0": dense(file, norm)} if f"{norm}/scale" in file else {}
    names = [f"{prefix}/MLP_0/Dense_0", f"{prefix}/MLP_0/Dense_1", f"{prefix}/OutputVDense"]
    return {"params": norms | {"MLP_0": perceptron(file, names)}}


def iql_critics(file: File, prefix: str) -> Params:
    """Both critics of IQL, with a leading axis [2]."""
    members = [
        perceptron(file, [f"{prefix}/Critic_{member}/MLP_0/Dense_{layer}" for layer in range(3)]) for member in range(2)
    ]
    return {"params": {"MLP_0": _stacked(members)}}


def iql_value(file: File, prefix: str) -> Params:
    """IQL's value."""
    return {"params": {"MLP_0": perceptron(file, [f"{prefix}/MLP_0/Dense_{layer}" for layer in range(3)])}}


def iql_actor(file: File, prefix: str) -> Params:
    """IQL's Gaussian actor, with one log-std for each action."""
    names = [f"{prefix}/MLP_0/Dense_0", f"{prefix}/MLP_0/Dense_1", f"{prefix}/Dense_0"]
    return {"params": {"MLP_0": perceptron(file, names), "log_std": file[f"{prefix}/log_stds"]}}


def _stacked(members: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *members)


def loaded(state: Any, **params: Params) -> Any:
    """`state` with parameters put in place of its own, by field; optimisers stay as fresh as they are.

    Raises:
      ValueError: parameters of another structure or shape.
    """
    for name, given in params.items():
        field = getattr(state, name)
        own = field.params if hasattr(field, "params") else field
        shapes = [jax.tree.map(jnp.shape, tree) for tree in (given, own)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{name} is {shapes[0]} at the peer, expected {shapes[1]}")
        given = jax.tree.map(jnp.asarray, given)
        state = state._replace(**{name: field._replace(params=given) if hasattr(field, "params") else given})
    return state


def transitions(file: File) -> Transition:
    """The peer's batch; costs are 0 and nothing ends but by terminating."""
    order = ("observation", "action", "reward", "discount", "next_observation")
    observation, action, reward, discount, following = (jnp.asarray(file[f"batch/{name}"]) for name in order)
    zeros = jnp.zeros_like(reward)
    return Transition(observation, action, reward, zeros, discount, zeros, following)


def fresh(algorithm: Algorithm, batch: Transition) -> Any:
    """A state for transitions like those of the batch."""
    return algorithm.init(jax.random.key(0), jax.tree.map(lambda leaf: leaf[0], batch))


@contextlib.contextmanager
def scripted(**draws: Sequence[np.ndarray]) -> Iterator[None]:
    """Functions of `jax.random`, by name, return the given arrays, in turn and in the shape that is asked for.

    Raises:
      ValueError: a draw of another size, one too many, or one left over.
    """

    def turns(name: str, arrays: list[np.ndarray]) -> Callable[..., Array]:
        def draw(key: Any, shape: Sequence[int] = (), *limits: Any, **options: Any) -> Array:
            del key, limits, options
            if not arrays or arrays[0].size != np.prod(shape, dtype=int):
                left = [array.shape for array in arrays]
                raise ValueError(f"our update asks jax.random.{name} for {tuple(shape)}, the peer's draws are {left}")
            return jnp.asarray(arrays.pop(0)).reshape(shape)

        return draw

    queues = {name: list(arrays) for name, arrays in draws.items()}
    with contextlib.ExitStack() as stack:
        for name, arrays in queues.items():
            stack.enter_context(mock.patch.object(jax.random, name, turns(name, arrays)))
        yield
    if any(queues.values()):
        raise ValueError(f"our update left {sum(map(len, queues.values()))} of the peer's draws")
