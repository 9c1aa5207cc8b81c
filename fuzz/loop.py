"""One event loop for all inputs of an async target, and the faults that the library logs meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = ["nothing_logged", "run", "start"]

T = TypeVar("T")
_loops: list[asyncio.AbstractEventLoop] = []


def _loop() -> asyncio.AbstractEventLoop:
    if not _loops:
        _loops.append(asyncio.new_event_loop())
    return _loops[0]


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run it to its end."""
    return _loop().run_until_complete(coroutine)


def start(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Have it run whenever something is run."""
    return _loop().create_task(coroutine)


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []
        self.setFormatter(logging.Formatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(self.format(record))


@contextmanager
def nothing_logged() -> Iterator[None]:
    """Within the block the library logs no error: a hook, a route or a task that failed would be one."""
    records = _Records()
    logger = logging.getLogger("goim_core")
    logger.addHandler(records)
    try:
        yield
    finally:
        logger.removeHandler(records)
    assert not records.found, "\n".join(records.found)
