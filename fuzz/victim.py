"""The server in the storm: all doors, the whole protocol, a hook that echoes, an inbox for each user.

It prints a line of JSON with its ports, one with its figures at each line on stdin, and ends with stdin.
What the library logs as an error goes to stderr.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import sys
from typing import TextIO

import anyio
import anyio.lowlevel

from goim_core import MemoryStorage, MessageHook, OpenAuth, Server, Session
from goim_core.protocol import Frame

__all__: list[str] = []

ANYWHERE = "127.0.0.1:0"


class Echo(MessageHook):
    async def receive(self, session: Session, frame: Frame) -> bytes:
        await anyio.lowlevel.checkpoint()
        return frame.body


_errors: list[logging.LogRecord] = []


class Errors(logging.StreamHandler[TextIO]):
    """Keeps what it shows."""

    def emit(self, record: logging.LogRecord) -> None:
        _errors.append(record)
        super().emit(record)


def figures(server: Server) -> dict[str, object]:
    """What there is just now."""
    gc.collect()
    stats = server.stats()
    return {
        "connections": stats.connections,
        "rooms": stats.rooms,
        "opened": stats.opened,
        "closes": {int(code): count for code, count in stats.closes.items()},
        "tasks": len(asyncio.all_tasks()),
        "objects": len(gc.get_objects()),
        "errors logged": len(_errors),
    }


async def main() -> None:
    """Serve until stdin ends."""
    async with Server(
        auth=OpenAuth(), messages=Echo(), storage=MemoryStorage(), tcp=ANYWHERE, ws=ANYWHERE, http=ANYWHERE
    ) as server:
        print(json.dumps({door: addresses[0][1] for door, addresses in server.addresses.items()}), flush=True)
        while await _asked():
            print(json.dumps(figures(server)), flush=True)


async def _asked() -> bool:
    """The next line has come; False at the end."""
    await anyio.wait_readable(sys.stdin)
    return bool(os.read(sys.stdin.fileno(), 1))


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR, handlers=[Errors(sys.stderr)])
    logging.getLogger("goim_core.auth").setLevel(logging.ERROR)
    anyio.run(main)
