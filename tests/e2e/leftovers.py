"""What a server that has stopped must not leave behind."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from tests.e2e.clients import PATIENCE

DOORS: dict[str, Any] = dict.fromkeys(("tcp", "ws", "http"), "127.0.0.1:0")


def descriptors() -> set[str]:
    """What this process has open, sockets too, but for the directory that is read here."""
    return {path.name for path in Path("/dev/fd").iterdir() if is_open(int(path.name))}


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """After the block there are as many tasks and descriptors as before it."""
    tasks, files = anyio.get_running_tasks(), descriptors()
    with anyio.fail_after(PATIENCE):
        yield
    left = [task for task in anyio.get_running_tasks() if task not in tasks]
    assert not left
    assert descriptors() == files
