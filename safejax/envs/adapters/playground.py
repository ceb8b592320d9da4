"""MuJoCo Playground's environments for our loops."""

from __future__ import annotations


def from_playground(): ...
