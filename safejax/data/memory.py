"""How much memory is left, asked before anything is allocated."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax

from safejax.data.checks import DatasetError


def check_fits(needed: int, what: str, advice: str, device: Any = None) -> None:
    """Refuse what will not fit; where nobody says how much is left, everything passes.

    Args:
      needed: bytes.
      what: begins the message, such as a file's name and rows.
      advice: ends it: what to do instead.
      device: as `available_bytes`.

    Raises:
      DatasetError: with the bytes needed and available.
    """
    available = available_bytes(device)
    if available is not None and needed > available:
        raise DatasetError(f"{what}: needs {needed:,} bytes, {available:,} are available; {advice}")


def available_bytes(device: Any = None) -> int | None:
    """Bytes that may still be allocated on `device`, by default the first; None where nothing tells.

    A device with memory of its own tells it. One that shares the host's has what Linux calls available, or what the
    container's limit leaves of it.
    """
    stats = (jax.devices()[0] if device is None else device).memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return host_bytes()


def host_bytes() -> int | None:
    """Bytes that this process may still allocate on the host; None where nothing tells."""
    known = [count for count in (_free_bytes(), _container_bytes()) if count is not None]
    return min(known, default=None)


def _free_bytes(file: Path = Path("/proc/meminfo")) -> int | None:
    """MemAvailable."""
    found = re.search(r"^MemAvailable: +(\d+) kB$", _text(file), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _container_bytes(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the limit of this control group leaves; None without a limit."""
    limit, used = (_text(folder / name).strip() for name in ("memory.max", "memory.current"))
    if not (limit.isdecimal() and used.isdecimal()):
        return None
    cached = re.search(r"^inactive_file (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)  # given up when asked for
    return min(max(int(limit) - int(used) + int(cached[1] if cached else 0), 0), int(limit))


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
