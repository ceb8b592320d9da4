"""What is left of the memory, told by a device, by Linux or by a container."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import pytest

from safejax.data import memory
from safejax.data.checks import DatasetError


def test_a_device_with_its_own_memory_is_asked():
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 1000, "bytes_in_use": 400})
    assert memory.available_bytes(device) == 600
    memory.check_fits(600, "rows", "take fewer", device)
    with pytest.raises(DatasetError, match="rows: needs 601 bytes, 600 are available; take fewer"):
        memory.check_fits(601, "rows", "take fewer", device)


def test_otherwise_the_host_is(monkeypatch, tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal:   8 kB\nMemFree:   1 kB\nMemAvailable:       5 kB\n")
    assert memory._free_bytes(tmp_path / "meminfo") == 5 * 1024
    assert memory._free_bytes(tmp_path / "gone") is None
    for limit, left in (("max", None), ("3000", 1000), ("1500", 0)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text("2000\n")
        assert memory._container_bytes(tmp_path) == left
    device = jax.devices()[0]
    for host, container, expected in ((7, None, 7), (7, 5, 5), (None, None, None)):
        monkeypatch.setattr(memory, "_free_bytes", lambda host=host: host)
        monkeypatch.setattr(memory, "_container_bytes", lambda container=container: container)
        assert memory.available_bytes(device) == expected
    memory.check_fits(10**18, "rows", "take fewer", device)  # nobody knows
