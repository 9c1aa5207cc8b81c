"""Work that grows with the number of connections, cut into steps."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeAlias, TypeVar

import anyio.lowlevel

__all__ = ["Steps", "at_once", "stepped"]

T = TypeVar("T")
Steps: TypeAlias = Generator[None, None, T]
"""Work that yields between its steps, and returns what it found."""


def at_once(steps: Steps[T]) -> T:
    """All steps in one go."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: T = end.value
            return found


async def stepped(steps: Steps[T]) -> T:
    """All steps, and the rest of the program in between."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: T = end.value
            return found
        await anyio.lowlevel.checkpoint()
