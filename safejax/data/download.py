"""Downloads that can be cut at any moment: resumed, checked, and complete or absent.

Bytes go to a hidden `.part` file beside the target, one for each address, and only a file that passed every check is
renamed to the target. A later call goes on where an earlier one was cut, if the server still holds the version that
the part began with (`.part.version`). One process downloads, others wait for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import os
import re
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from safejax.data.checks import DatasetError
from safejax.data.checksums import note_sum, sha256_of

_BLOCK = 1 << 18  # bytes read at a time
_ATTEMPTS = 5  # at one address, as long as each brings it further


class _Refused(Exception):
    """The answer of a server cannot be the file."""


class _Cut(Exception):
    """The connection ended before the file did."""


def download(
    addresses: Sequence[str],
    target: str | os.PathLike,
    *,
    size: int | None = None,
    sha256: str | None = None,
    timeout: float = 30.0,
    progress: bool = True,
) -> Path:
    """Bring a file from the first of its addresses that gives the right one; what is there already stays.

    Without a checksum, only the length that the server tells is known to be right; and of a server that names no
    versions, a file that changes between a cut and the resumption goes unnoticed.

    Args:
      addresses: http or https, in the order in which they are asked; redirects are followed.
      target: the file; its directory is made.
      size: bytes it must have, where known.
      sha256: its checksum in hexadecimal, where known.
      timeout: seconds without a byte after which a server is given up.
      progress: show a bar where standard error is a terminal.

    Returns:
      `target`.

    Raises:
      DatasetError: no address gave the file, in one line with all of them, the folder and the way round; or the
        folder cannot be written; or the disk has too little room.
    """
    target = Path(os.path.abspath(target))
    with _one_at_a_time(target, addresses):
        if target.exists():
            return target
        failures = []
        for address in addresses:
            part = _part_of(target, address)
            try:
                _check_room(target, part, size)
                _bring(address, part, size, timeout, progress, target.name)
                _check(part, size, sha256)
            except (_Refused, _Cut, OSError, ValueError, http.client.HTTPException) as error:  # ValueError: no address
                failures.append(f"{address} ({_words(error)})")
                continue
            os.replace(part, target)
            if sha256 is None:
                with contextlib.suppress(OSError):  # a full disk: the file is whole, and later goes unchecked
                    note_sum(target)
            _sweep(target)
            return target
    tried = "; ".join(failures) or "no address is known"
    raise DatasetError(
        f"{target.name} could not be downloaded: {tried}. Try again later, put the file into {target.parent}, "
        "or give path= of a copy"
    )


@contextlib.contextmanager
def _one_at_a_time(target: Path, addresses: Sequence[str]) -> Iterator[None]:
    """Make the target's folder and hold its lock there, which the kernel gives up when its holder dies."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = target.with_name(f".{target.name}.lock").open("a")
    except OSError as error:
        raise DatasetError(
            f"{target.name} could not be downloaded: {target.parent} cannot be written ({error.strerror}). Choose "
            f"another cache=, or give path= of a copy from {' or '.join(addresses)}"
        ) from None
    with file as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{target.name}: another process downloads it; waiting", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _part_of(target: Path, address: str) -> Path:
    """Mirrors may hold different files, so that none goes on with another's bytes."""
    return target.with_name(f".{target.name}.{hashlib.sha256(address.encode()).hexdigest()[:8]}.part")


def _sweep(target: Path) -> None:
    for path in target.parent.glob(f".{target.name}.*.part*"):
        path.unlink(missing_ok=True)


def _delete(part: Path) -> None:
    part.unlink(missing_ok=True)
    _version_file(part).unlink(missing_ok=True)


def _version_file(part: Path) -> Path:
    """Holds what the server called the version of the file that the part began with."""
    return part.with_name(f"{part.name}.version")


def _kept_version(part: Path) -> str:
    file = _version_file(part)
    return file.read_text("latin-1") if file.exists() else ""


def _version(answer: Any) -> str:
    """What `If-Range` may name: a strong ETag, else the time of the last change; '' where there is neither."""
    tag = answer.headers.get("ETag", "")
    return tag if tag.startswith('"') else answer.headers.get("Last-Modified", "")


def _check_room(target: Path, part: Path, size: int | None) -> None:
    missing = (size or 0) - (part.stat().st_size if part.exists() else 0)
    free = shutil.disk_usage(target.parent).free
    if missing > free:
        raise DatasetError(
            f"{target.name} needs {missing:,} bytes, {target.parent} has {free:,} free; make room or choose cache="
        )


def _bring(address: str, part: Path, size: int | None, timeout: float, progress: bool, label: str) -> None:
    """Make `part` as long as the file at `address`, going on after cuts while each attempt brings bytes."""
    for attempt in range(_ATTEMPTS):
        before = part.stat().st_size if part.exists() else 0
        try:
            return _receive(address, part, size, timeout, progress, label)
        except (_Cut, TimeoutError, ConnectionError, http.client.IncompleteRead):
            grown = part.exists() and part.stat().st_size > before
            if not grown or attempt == _ATTEMPTS - 1:
                raise


def _receive(address: str, part: Path, size: int | None, timeout: float, progress: bool, label: str) -> None:
    """One request, from the end of `part` on."""
    have = part.stat().st_size if part.exists() else 0
    if have and have == size:
        return
    headers = {"User-Agent": "safejax", "Accept-Encoding": "identity"}
    version = _kept_version(part) if have else ""
    if have:
        headers["Range"] = f"bytes={have}-"
    if version:
        headers["If-Range"] = version  # of another version the server sends all
    try:
        answer = urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and _total(error) == have:
                return  # nothing follows: the part is the file
            if error.code == 416:
                _delete(part)
                raise _Refused(f"the part had {have:,} bytes, more than the file; it was deleted") from None
            raise
    with answer:
        start, total = _extent(answer, have, size)
        if start and _version(answer) not in ("", version):  # a server that knows ranges, but not If-Range
            _delete(part)
            return _receive(address, part, size, timeout, progress, label)
        shown = {"desc": label, "unit": "B", "unit_scale": True, "disable": None if progress else True}
        with part.open("ab" if start else "wb") as file, tqdm(total=total, initial=start, **shown) as bar:
            if not start:  # the part is empty now: no bytes ever stand beside another file's version
                _version_file(part).write_text(_version(answer), "latin-1")
            while block := answer.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
            have = file.tell()
            file.flush()
            os.fsync(file.fileno())
    if not have:
        raise _Refused("an empty answer")
    if total is not None and have < total:
        raise _Cut(f"cut after {have:,} of {total:,} bytes")


def _extent(answer: Any, have: int, size: int | None) -> tuple[int, int | None]:
    """Where the answer's bytes begin in the file, and how many the file has, if anyone says so."""
    if answer.headers.get_content_type() == "text/html":
        raise _Refused("a web page, expected a file")
    if answer.status == 206:
        found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
        if not found or int(found[1]) != have:
            raise _Refused(f"Content-Range {answer.headers.get('Content-Range')!r}, expected bytes from {have:,} on")
        start, total = have, _total(answer)
    else:  # all of it, whether or not a range was asked for
        start, length = 0, answer.headers.get("Content-Length")
        total = int(length) if length else None
    if None not in (size, total) and size != total:
        raise _Refused(f"{total:,} bytes, expected {size:,}")
    return start, size if total is None else total


def _total(answer: Any) -> int | None:
    found = re.search(r"/(\d+)$", answer.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _check(part: Path, size: int | None, sha256: str | None) -> None:
    """Delete a part that is not the file."""
    fault = ""
    if size is not None and part.stat().st_size != size:
        fault = f"{part.stat().st_size:,} bytes, expected {size:,}"
    elif sha256 is not None:
        found = sha256_of(part)
        fault = "" if found == sha256 else f"SHA-256 {found[:12]}..., expected {sha256[:12]}..."
    if fault:
        _delete(part)
        raise _Refused(f"{fault}; not kept")


def _words(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return " ".join(f"HTTP {error.code} {error.reason}".split())
    reason = getattr(error, "reason", None) or error
    return (
        "no answer in time"
        if isinstance(reason, TimeoutError)
        else " ".join(str(reason).split()) or type(reason).__name__
    )
