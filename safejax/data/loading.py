"""`load`: a data set by the path of a file or by its public name, downloaded once and then cached."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from safejax.data import catalog
from safejax.data.checks import refuse
from safejax.data.checksums import check_file
from safejax.data.dataset import Dataset
from safejax.data.download import download
from safejax.data.provenance import check_provenance
from safejax.data.reading import read


def load(
    path_or_name: str | os.PathLike,
    *,
    path: str | os.PathLike | None = None,
    cache: str | os.PathLike | None = None,
    task: str | None = None,
    renderer: str | None = None,
    **options: Any,
) -> Dataset:
    """The data set in a file or folder, or the one of a public name, such as "BallCircle" or "hopper-medium-v2".

    Args:
      path_or_name: see `locate`.
      path: see `locate`.
      cache: see `locate`.
      task: that the data are for, if known: data that say they were collected in another are refused.
      renderer: only with `task`, of the pixels that the policy will see: data drawn by another are refused.
      **options: of `read`.

    Raises:
      DatasetError: as `locate`, `read` and `check_provenance`.
      ValueError: a renderer without a task, or as `read`.

    Warns:
      UserWarning: as `read`; or data that do not say of which task they are.
    """
    if renderer is not None and task is None:
        raise ValueError(f"renderer is {renderer!r} without task=, so that nothing would be checked; pass both")
    dataset, attributes = read(locate(path_or_name, path=path, cache=cache), **options)
    source = str(path_or_name)
    note = "" if task is None else check_provenance(attributes, task=task, renderer=renderer, source=source)
    if note:
        warnings.warn(note, stacklevel=2)
    return dataset


def locate(
    path_or_name: str | os.PathLike,
    *,
    path: str | os.PathLike | None = None,
    cache: str | os.PathLike | None = None,
    timeout: float = 30.0,
    progress: bool = True,
) -> Path:
    """Where the data set lies here; a public one that is not here yet is downloaded.

    Looked for in this order: `path`; a file or folder called `path_or_name`; the cache; the addresses of
    `safejax.data.catalog`. A file of the cache is read once, to compare its SHA-256 with the published one, or with
    its own on arrival where none is published.

    Args:
      path_or_name: a file, a folder, or a name of `safejax.data.catalog.names()`, or of DSRL's environments.
      path: a copy that is here already; then nothing is looked up.
      cache: folder of downloads; by default `cache_folder()`.
      timeout: seconds without a byte after which a server is given up.
      progress: show a bar where standard error is a terminal.

    Raises:
      DatasetError: nothing here under that path or name; a cached file of another length or SHA-256; or as `download`.
    """
    local = Path(path_or_name if path is None else path)
    if os.path.exists(local):  # Path.exists fails on names that no file can have
        return local
    if path is not None:
        refuse(path, ["no such file; check path="])
    entry = catalog.find(os.fspath(path_or_name))
    if entry is None:
        near = catalog.nearest(os.fspath(path_or_name))
        hint = f"; nearest: {', '.join(near)}" if near else ""
        refuse(path_or_name, [f"no such file, and no name of safejax.data.catalog.names(){hint}"])
    folder = cache_folder() if cache is None else Path(cache)
    target = folder / entry.file
    if not os.path.exists(target):
        return download(
            entry.addresses, target, size=entry.size, sha256=entry.sha256, timeout=timeout, progress=progress
        )
    check_file(target, entry.size, entry.sha256)
    return target


def cache_folder() -> Path:
    """Where downloads go: $SAFEJAX_CACHE/datasets, by default ~/.cache/safejax/datasets."""
    return Path(os.environ.get("SAFEJAX_CACHE") or "~/.cache/safejax").expanduser() / "datasets"
