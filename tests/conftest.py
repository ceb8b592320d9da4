"""What has to be set before anything imports JAX or matplotlib."""

from __future__ import annotations

import gc
import itertools
import os
import sys
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

_FLAGS = {
    "--xla_force_host_platform_device_count": "4",  # the sharding tests compare four devices with one
    # tests compile much and compute little
    "--xla_backend_optimization_level": "0",
    "--xla_llvm_disable_expensive_passes": "true",
    "--xla_cpu_parallel_codegen_split_count": "1",  # small programs, and both cores are at work
    # the older emitters compile in half the time; written so, a name that XLA has dropped is no error
    "--xla_backend_extra_options": "xla_cpu_disable_new_fusion_emitters",
}
_given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join([_given, *(f"{k}={v}" for k, v in _FLAGS.items() if k not in _given)]).strip()

# tracing makes many small objects that live on: looking for dead ones every 700, as Python does, takes 5 % of the time
gc.set_threshold(50_000, 20, 20)

# asserts of modules that tests import; rewritten, as pytest does with test modules, they hold under python -O too
pytest.register_assert_rewrite("one_line", "states")

# a script's folder is on the path when it runs; here too, so that tests import `report` as the scripts do
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Two processes share the tests: a file stays in one, for its fixtures; of the longest, a method or notebook."""
    parts = {"test_contract.py": "name", "test_notebooks.py": "path"}
    for item in items:
        call = getattr(item, "callspec", None)
        part = call and call.params.get(parts.get(item.path.name))
        item.add_marker(pytest.mark.xdist_group(f"{item.path}:{part}"))


def pytest_configure(config: pytest.Config) -> None:
    """What several tests of a process compile is compiled once: a cache of its own, gone with it."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return  # it only hands out tests
    import jax

    folder = tempfile.TemporaryDirectory(prefix="safejax-programs-")
    config.add_cleanup(folder.cleanup)
    jax.config.update("jax_compilation_cache_dir", folder.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


CHECKED_EVERY = 10  # tests; the ten heaviest of those measured map 8,000 pieces; counting takes some milliseconds
_done = itertools.count(1)


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Forget compiled programs before a process holds more pieces of memory than Linux allows, and XLA crashes."""
    maps, allowed = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
    if next(_done) % CHECKED_EVERY or not maps.exists():
        return
    if maps.read_bytes().count(b"\n") > int(allowed.read_text()) * 2 // 3:
        import jax

        jax.clear_caches()
