"""README.md keeps its promises: commands, custom loop, table of methods; and no file names our machines."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from safejax.algorithms import MODULES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

INSTALL = r"python3? -m venv \.venv && \. \.venv/bin/activate && pip install -e '\.\[dev\]'"
RUN = r"python benchmarks/offline_to_online\.py --task ball_circle"
TEST = "pytest"


def blocks(text: str, *languages: str) -> list[str]:
    """The fenced code blocks of these languages."""
    fences = re.findall(r"^```([\w-]*)[^\n]*\n(.*?)^```\s*$", text, re.MULTILINE | re.DOTALL)
    return [body for language, body in fences if language in languages]


def commands(text: str) -> list[str]:
    """The lines of the shell blocks, without prompts and comments."""
    lines = "\n".join(blocks(text, "bash", "sh", "shell", "console")).splitlines()
    return [re.sub(r"^\$ |\s+#.*$", "", line).strip() for line in lines]


def methods(text: str) -> set[str]:
    """Names in backticks in the first cell of a table's row."""
    cells = re.findall(r"^\|([^|\n]*)\|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_the_three_commands():
    missing = [
        pattern for pattern in (INSTALL, RUN, TEST) if not any(re.fullmatch(pattern, line) for line in commands(README))
    ]
    assert missing == []


def test_the_custom_loop_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = blocks(README, "python")[0]
    exec(compile(first, "README.md", "exec"), {"__name__": "__main__"})


@pytest.mark.filterwarnings("ignore:Brax System")  # brax says so of its own
def test_the_worlds_are_made_as_shown():
    block = blocks(README, "python")[1]
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    names["vector_env"].close()
    assert names["env"].env_count == 8


def test_every_method_has_a_row():
    assert sorted(set(MODULES) - methods(README)) == []


# written in parts, so that this file does not contain what it looks for
PRIVATE = re.compile(
    "/" + r"work/|://\S*/sim" + r"ple\b|python" + r"hosted\.org|[-_]index[-_]" + "url|find[-_]" + "links",
    re.IGNORECASE,
)


def private_lines(name: str, lines: Iterable[str]) -> list[str]:
    """Lines that name a folder of a machine of ours or the address of a package registry."""
    return [f"{name}:{number}: {line}" for number, line in enumerate(lines, 1) if PRIVATE.search(line)]


def test_no_file_names_a_machine_or_a_registry():
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    found = []
    for name in filter(None, names):
        try:
            text = (ROOT / name).read_text("utf-8")
        except (UnicodeDecodeError, FileNotFoundError):  # a picture; deleted but not yet committed
            continue
        found += private_lines(name, text.splitlines())
    assert found == []


@pytest.mark.parametrize(
    "line", ["cd /" + "work/here", "pip install --index" + "-url x a", "https://pypi.org/sim" + "ple/jax"]
)
def test_a_private_line_is_found(line):
    assert private_lines("file", ["fine", line]) == [f"file:2: {line}"]


def test_the_readers_of_markdown():
    text = "| `a` | `b` |\n| :-- | --: |\n```bash\n$ pytest  # all\n```\n```python\nx = 1\n```\n"
    assert methods(text) == {"a"}
    assert commands(text) == ["pytest"]
    assert blocks(text, "python") == ["x = 1\n"]
