"""How a run ends early."""

from __future__ import annotations


class RunError(ValueError):
    """A run directory that cannot be used; one line says what was found and what to do."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM arrived; everything up to the last chunk is on disk."""
