"""Arrays spread over devices and processes: saved by some, restored by others, equal."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import two_processes
from states import assert_same

from safejax.checkpoint import restore, save


def spread(tree, device_count):
    """`tree` under a sharding of the leading axis."""
    mesh = jax.make_mesh((device_count,), ("seed",), devices=jax.devices()[:device_count])
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("seed")))


@pytest.mark.parametrize("device_count", [1, 2, 3, 4])
def test_any_number_of_devices_restores_what_four_saved(tmp_path, device_count):
    tree = {"x": jnp.arange(24.0).reshape(12, 2), "half": jnp.ones(12, jnp.bfloat16), "key": jax.random.key(0)}
    tree["key"] = jax.random.split(tree["key"], 12)
    save(tmp_path / "run", spread(tree, 4))
    like = spread(jax.tree.map(jnp.zeros_like, {"x": tree["x"], "half": tree["half"]}), device_count)
    like["key"] = spread(jax.random.split(jax.random.key(9), 12), device_count)
    again = restore(tmp_path / "run", like)
    assert_same(again, tree)
    for name in tree:
        assert again[name].sharding == like[name].sharding
        assert len(again[name].sharding.device_set) == device_count


def test_two_processes_save_and_one_restores(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    workers = [
        subprocess.Popen(
            [sys.executable, Path(two_processes.__file__), str(tmp_path), address, str(index)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for index in range(2)
    ]
    for index, worker in enumerate(workers):
        printed, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors[-2000:]
        said = re.findall("said: (.*)", printed)  # among what Gloo's threads print, in lines and in pieces of them
        assert said[0] == "restored what was saved"
        assert ("the write failed" if index == 0 else "process 0 could not save; its message says why") in said[1]
        assert said[2:] == ["steps [2, 3]"]
    expected = two_processes.values()
    assert_same(restore(tmp_path / "run", expected), expected)
    third = restore(tmp_path / "steps" / "000000000003", {"x": np.zeros(8, np.float32)})
    np.testing.assert_array_equal(third["x"], np.arange(8) + 3)
