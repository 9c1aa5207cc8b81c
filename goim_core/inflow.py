"""What one task waits for at its socket: bytes, and a time at which it waits no more.

anyio tells the event loop of a socket anew for each wait, and of a deadline each time that it moves: a
fifth of what a small request costs. asyncio is told of the socket once here, and a deadline that moves later
is found out when the old one is there.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import inf

import anyio
import anyio.lowlevel

from goim_core.reactor import in_asyncio
from goim_core.tls import TLSSocket

__all__ = ["Inflow", "Patience", "SealedInflow", "inflow"]


class Inflow:
    """The bytes that come in at ``sock``, which does not block, ``most`` at a time, for one task."""

    def __init__(self, sock: socket.socket, most: int) -> None:
        self._sock = sock
        self._most = most

    async def receive(self) -> bytes:
        """Wait for some bytes; none at the end. Raises OSError where the connection broke."""
        while True:
            # On uvloop a wait that is over as soon as it begins is never cancelled: a peer that sends
            # without a pause would outlive every deadline.
            await anyio.lowlevel.checkpoint_if_cancelled()
            await anyio.wait_readable(self._sock)
            with suppress(BlockingIOError):
                return self._sock.recv(self._most)

    def close(self) -> None:
        """Have the socket not watched: has to come before it is closed."""


class _Watched(Inflow):
    """The same where the event loop is asyncio's own.

    Not uvloop's: it stops to watch a socket with an error, of which a read of what came before does not tell.
    """

    def __init__(self, sock: socket.socket, most: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(sock, most)
        self._loop = loop
        self._waiting: asyncio.Future[bytes] | None = None
        self._watched = False

    async def receive(self) -> bytes:
        """See :meth:`Inflow.receive`."""
        waiting: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting = waiting
        if not self._watched:
            self._loop.add_reader(self._sock, self._on_readable)
            self._watched = True
        try:
            return await waiting
        finally:
            self._waiting = None

    def _on_readable(self) -> None:
        waiting = self._waiting
        if waiting is None or waiting.done():
            self.close()  # the task is at work, and what comes meanwhile is for its next wait
            return
        try:
            data = self._sock.recv(self._most)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            waiting.set_exception(error)
        else:
            waiting.set_result(data)

    def close(self) -> None:
        """See :meth:`Inflow.close`."""
        if self._watched:
            self._loop.remove_reader(self._sock)
            self._watched = False


class SealedInflow(Inflow):
    """The same of a socket with TLS, in a turn of its own for each step of a handshake.

    ``flush`` sends the cipher text that the kernel has not taken yet.
    """

    def __init__(
        self, sock: TLSSocket, most: int, turns: anyio.Lock, flush: Callable[[], Awaitable[None]]
    ) -> None:
        super().__init__(sock.raw, most)
        self._sealed = sock
        self._turns = turns
        self._flush = flush

    async def receive(self) -> bytes:
        """See :meth:`Inflow.receive`."""
        while True:
            await anyio.lowlevel.checkpoint_if_cancelled()
            await self._flush()
            await anyio.wait_readable(self._sock)
            with suppress(BlockingIOError):
                return self._sealed.recv(self._most)
            if self._sealed.due:
                async with self._turns:
                    await anyio.lowlevel.checkpoint()
                    if data := self._sealed.go_on():
                        return data


def inflow(sock: socket.socket, most: int) -> Inflow:
    """The inflow of a plain socket on the event loop that runs."""
    loop = asyncio.get_running_loop() if in_asyncio() else None
    return _Watched(sock, most, loop) if isinstance(loop, asyncio.SelectorEventLoop) else Inflow(sock, most)


class Patience:
    """The deadline of ``scope``: a number that may move later at no cost."""

    def __init__(self, scope: anyio.CancelScope) -> None:
        self._scope = scope
        self._loop = asyncio.get_running_loop() if in_asyncio() else None
        self._timer: asyncio.TimerHandle | None = None
        self._due = inf

    def last(self, seconds: float) -> None:
        """From now on ``scope`` has so many seconds; infinity is for as long as it takes."""
        if self._loop is None:
            self._scope.deadline = anyio.current_time() + seconds
            return
        self._due = self._loop.time() + seconds
        if self._due < (inf if self._timer is None else self._timer.when()):
            self._wind(self._loop)

    def _wind(self, loop: asyncio.AbstractEventLoop) -> None:
        self.close()
        self._timer = loop.call_at(self._due, self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._due <= loop.time():
            self._scope.cancel()
        elif self._due < inf:
            self._wind(loop)

    def close(self) -> None:
        """No deadline any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
