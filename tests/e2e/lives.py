"""A server in a process of its own, which can be killed and started again: see doomed.py."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import anyio.to_thread

from tests.e2e.clients import Client
from tests.e2e.processes import ROOT, environment

__all__ = ["GONE", "Lives"]

GONE = (anyio.EndOfStream, ConnectionError)
"""What a client sees of a server that is killed."""


class Lives:
    """The lives of a server on one ``storage`` (a file, or PostgreSQL's dsn), each in a process of its own."""

    def __init__(self, storage: str, keep: int = 10_000) -> None:
        self._plan = {"storage": storage, "keep": keep}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.doomed"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        self.pid = 0
        self._addresses: dict[str, tuple[str, int]] = {}

    async def begin(self, step: str = "", count: int = 0) -> None:
        """Start; killed by itself at the ``count``-th ``step``, or by :meth:`kill`."""
        assert self._process.stdin is not None
        plan = {**self._plan, "step": step, "count": count}
        self._process.stdin.write(json.dumps(plan) + "\n")
        self._process.stdin.flush()
        said = await self._line()
        self.pid = said.pop("pid")
        self._addresses = {door: (host, port) for door, (host, port) in said.items()}

    async def ended(self) -> None:
        """The server has to be killed, and not to end in any other way."""
        assert await self._line() == {"status": -signal.SIGKILL}
        self.pid = 0

    async def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = await anyio.to_thread.run_sync(self._process.stdout.readline, abandon_on_cancel=True)
        said = json.loads(line)
        assert isinstance(said, dict)
        return said

    @asynccontextmanager
    async def dialed(self, door: str, receive_buffer: int = 0) -> AsyncIterator[Client]:
        """A client. It may raise one of GONE, here or in the block: the server has been killed."""
        with socket.socket() as sock:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if receive_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            with suppress(BlockingIOError):
                sock.connect(self._addresses[door])
            await anyio.wait_writable(sock)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise ConnectionRefusedError(error)
            yield Client(sock)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        with suppress(ProcessLookupError):
            if self.pid:
                self.kill()
        self._process.kill()
        self._process.communicate()
