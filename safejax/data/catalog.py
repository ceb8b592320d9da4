"""Public data sets by name: where each lies, in which order to ask, how long it is and its checksum where known.

The table is catalog.tsv, whose head names its sources. Nothing here opens a connection.
"""

from __future__ import annotations

import difflib
import functools
from pathlib import Path
from typing import NamedTuple

from safejax.scores import dsrl_name

HOSTS = {
    "dsrl-hf": "https://huggingface.co/datasets/YYY-45/DSRL/resolve/main/{path}",
    "dsrl": "http://data.offline-saferl.org/download/{path}",  # DSRL's older host, often unreachable
    "d4rl": "https://rail.eecs.berkeley.edu/datasets/offline_rl/{path}",
    "d4rl-hf": "https://huggingface.co/datasets/imone/D4RL/resolve/main/{file}",
}
"""Addresses by the names in the table; `file` is the last part of `path`."""


class Entry(NamedTuple):
    """A data set that can be downloaded."""

    name: str  # such as "BallCircle" or "halfcheetah-medium-v2"
    file: str  # its name here; never taken from a server
    addresses: tuple[str, ...]  # mirrors, first the one to ask first
    size: int | None  # bytes; None where nobody published it
    sha256: str | None  # hexadecimal; None where nobody published it


def names() -> tuple[str, ...]:
    """Names of the data sets, in the table's order."""
    return tuple(_entries())


def find(name: str) -> Entry | None:
    """The entry of `name`, "BallCircle" or "OfflineBallCircle-v0"; None if it has none."""
    return _entries().get(dsrl_name(name))


def nearest(name: str) -> list[str]:
    """Up to three names that look like `name`, the nearest first."""
    return difflib.get_close_matches(name, names(), n=3, cutoff=0.4)


@functools.cache
def _entries() -> dict[str, Entry]:
    lines = Path(__file__).with_name("catalog.tsv").read_text().splitlines()
    entries = [_entry(*line.split("\t")) for line in lines if not line.startswith("#")]
    return {entry.name: entry for entry in entries}


def _entry(name: str, hosts: str, path: str, size: str, sha256: str) -> Entry:
    file = path.rpartition("/")[2]
    addresses = tuple(HOSTS[host].format(path=path, file=file) for host in hosts.split(","))
    return Entry(name, file, addresses, None if size == "-" else int(size), None if sha256 == "-" else sha256)
