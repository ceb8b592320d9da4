"""Orbax without its many lines: what matters of them comes back as an exception."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """For the moment of a call, absl logs nothing, and event loops are made that end in silence."""
    logger = logging.getLogger("absl")
    level, make_loop = logger.level, asyncio.new_event_loop
    logger.setLevel(logging.CRITICAL)
    asyncio.new_event_loop = _Loop
    try:
        yield
    finally:
        asyncio.new_event_loop = make_loop
        logger.setLevel(level)


class _Loop(asyncio.SelectorEventLoop):
    """Once one array of many has failed, the results of the others arrive at a closed loop, a traceback for each."""

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any, context: Any = None) -> asyncio.Handle:
        try:
            return super().call_soon_threadsafe(callback, *args, context=context)
        except RuntimeError:
            if not self.is_closed():
                raise
            return asyncio.Handle(callback, args, self, context)  # which nobody runs

    def close(self) -> None:
        """Cancel what still runs, and hear the end of it, before closing."""
        if not self.is_closed():
            tasks = asyncio.all_tasks(self)
            for task in tasks:
                task.cancel()
            self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True) if tasks else asyncio.sleep(0))
        super().close()
