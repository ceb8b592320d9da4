"""What a process that a test starts inherits: one device, as a user has, and programs compiled as conftest.py says."""

from __future__ import annotations

import os
import re


def environment() -> dict[str, str]:
    """os.environ without the devices that conftest.py makes of one."""
    return {**os.environ, "XLA_FLAGS": re.sub(r"\S*device_count\S*", "", os.environ["XLA_FLAGS"])}
