"""The server under attack: all doors, the library's defaults, and no address that is trusted.

It prints a line of JSON with its ports and answers each line on stdin with one: ``figures``, ``policy NAME``,
``trim``, ``flood SIZE`` (to the room, 100 a second; 0 ends it). It ends with stdin. What the library
logs as an error goes to stderr.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import logging
import os
import resource
import sys
import time
from contextlib import suppress
from typing import Any, TextIO

import anyio
import attrs

from benchmarks.hostile.attacks import ROOM
from benchmarks.hostile.certificate import server_context
from goim_core import MessageHook, OpenAuth, Options, Server, Session
from goim_core.collector import spare
from goim_core.protocol import Frame

__all__: list[str] = []

DOORS: dict[str, Any] = dict.fromkeys(("tcp", "ws", "tls", "wss", "http"), "127.0.0.1:0")
EVERY = 0.01


class Echo(MessageHook):
    def receive(self, session: Session, frame: Frame) -> bytes:
        return frame.body


_errors: list[logging.LogRecord] = []


class Errors(logging.StreamHandler[TextIO]):
    """Keeps what it shows."""

    def emit(self, record: logging.LogRecord) -> None:
        _errors.append(record)
        super().emit(record)


class Victim:
    """What is asked of it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.size = 0

    def figures(self) -> dict[str, Any]:
        """What there is just now; counts are since the start."""
        stats = self.server.stats()
        return {
            "connections": stats.connections + stats.http_connections,
            "rooms": stats.rooms,
            "tasks": len(asyncio.all_tasks()),
            "errors": len(_errors),
            "waiting": stats.outbox_bytes,
            "unfinished": self.server._pipeline.edge.unfinished.total,  # noqa: SLF001
            "opened": stats.opened,
            "deliveries": stats.deliveries,
            "closes": {str(int(code)): count for code, count in stats.closes.items()},
            "refusals": stats.refusals,
            "drops": stats.drops,
            "cpu": time.process_time(),
        }

    def obey(self, line: str) -> dict[str, Any]:
        """Do what ``line`` says."""
        command, _, argument = line.strip().partition(" ")
        if command == "policy":
            self.server.reload(options=attrs.evolve(self.server.options, outbox_policy=argument))
        elif command == "flood":
            self.size = int(argument)
        elif command == "trim":
            gc.collect()
            with suppress(AttributeError):  # glibc has it: what is free goes back to the system
                ctypes.CDLL(None).malloc_trim(0)
        return self.figures()

    async def flood(self) -> None:
        """Push to the room while that is asked for."""
        while True:
            if self.size:
                await self.server.push_room(ROOM, 1000, bytes(self.size))
            await anyio.sleep(EVERY)


async def main() -> None:
    """Serve until stdin ends."""
    options = Options(trusted=())
    async with Server(
        auth=OpenAuth(), messages=Echo(), ssl_context=server_context(), options=options, **DOORS
    ) as server:
        victim = Victim(server)
        print(json.dumps({door: addresses[0][1] for door, addresses in server.addresses.items()}), flush=True)
        spare()  # as goim-core serve does it
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(victim.flood)
            while line := await _line():
                print(json.dumps(victim.obey(line)), flush=True)
            tasks.cancel_scope.cancel()


async def _line() -> str:
    """The next line, which comes in one piece; empty at the end."""
    await anyio.wait_readable(sys.stdin)
    return os.read(sys.stdin.fileno(), 1024).decode()


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR, handlers=[Errors(sys.stderr)])
    logging.getLogger("goim_core.auth").setLevel(logging.ERROR)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    anyio.run(main)
