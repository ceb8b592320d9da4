"""What every script does with a command line that it cannot serve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def refusal(main: Callable[[list[str]], Any], capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that `main` prints before it exits with code 2."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1, message
    return message
