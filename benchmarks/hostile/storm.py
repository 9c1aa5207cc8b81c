"""Many client sockets in one thread: each follows a script, a generator of steps. Raw epoll, to be cheap.

A step is bytes to send, or a :class:`Wait`. A script that returns True resets its connection, else it is
closed; the server may end it before.
"""

from __future__ import annotations

import errno
import heapq
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Script", "Storm", "Wait"]

RESET = struct.pack("ii", 1, 0)
IP_BIND_ADDRESS_NO_PORT = 24
SOURCES = 250
"""Addresses from 127.0.1.1 on: each has the ports and the places of one."""
PATIENCE = 40.0
"""Seconds after which a connection is given up that the server leaves in the backlog."""


@dataclass(frozen=True)
class Wait:
    """Do nothing for so many seconds, but read and throw away what comes, up to ``size`` bytes a time.

    With ``size`` 0 nothing is read. ``deaf``: that the server has ended its side is not noticed. With
    ``reply`` it is over as soon as something was read.
    """

    seconds: float
    size: int = 1 << 16
    deaf: bool = False
    reply: bool = False


Script: TypeAlias = Generator[bytes | Wait, None, bool]


class _Client:
    __slots__ = ("begun", "out", "script", "sock", "turn", "wait")

    def __init__(self, sock: socket.socket, script: Script) -> None:
        self.sock = sock
        self.script = script
        self.out = memoryview(b"")
        self.wait: Wait | None = None
        self.begun = False
        self.turn = 0
        """Which step it is at: a timer of an earlier one is out of date."""


class Storm:
    """``count`` connections to ``port``, at most ``at_once`` of them open, each with a script of its own."""

    def __init__(
        self, port: int, script: Callable[[int], Script], count: int, at_once: int, sources: int = SOURCES
    ) -> None:
        self.tally: Counter[str] = Counter()
        self._address = ("127.0.0.1", port)
        self._script = script
        self._count = count
        self._at_once = at_once
        self._sources = sources
        self._epoll = select.epoll()
        self._open: dict[int, _Client] = {}
        self._timers: list[tuple[float, int, int, int]] = []
        self._opened = 0

    def run(self, seconds: float) -> None:
        """All of it, in so many seconds at most."""
        until = time.monotonic() + seconds
        while (self._opened < self._count or self._open) and time.monotonic() < until:
            for _ in range(min(self._count - self._opened, self._at_once - len(self._open), 64)):
                self._connect()
            for fd, event in self._epoll.poll(self._patience(until)):
                client = self._open.get(fd)
                if client is not None:
                    self._ready(client, event)
            self._expire()
        for client in list(self._open.values()):
            self._end(client, "still open at the end", reset=True)
        self._epoll.close()

    def _patience(self, until: float) -> float:
        if self._opened < self._count and len(self._open) < self._at_once:
            return 0.0
        next_timer = self._timers[0][0] if self._timers else until
        return max(0.0, min(next_timer, until) - time.monotonic())

    def _connect(self) -> None:
        number, self._opened = self._opened, self._opened + 1
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((f"127.0.{1 + number % self._sources}.1", 0))
        client = self._open[sock.fileno()] = _Client(sock, self._script(number))
        code = sock.connect_ex(self._address)
        if code not in (0, errno.EINPROGRESS):
            self._end(client, errno.errorcode[code])
            return
        self._epoll.register(sock, select.EPOLLOUT)
        self._timer(client, PATIENCE)

    def _ready(self, client: _Client, event: int) -> None:
        try:
            if event & (select.EPOLLERR | select.EPOLLHUP):
                self._end(client, "reset by the server")
            elif event & select.EPOLLOUT and client.wait is None:
                client.begun = True
                self._send(client)
            elif event & select.EPOLLIN and client.wait is not None and client.wait.size:
                data = client.sock.recv(client.wait.size)
                if not data:
                    self._end(client, "closed by the server")
                elif client.wait.reply:
                    self._step(client)
            elif event & select.EPOLLRDHUP:
                self._end(client, "closed by the server")
        except BlockingIOError:
            pass
        except OSError:
            self._end(client, "reset by the server")

    def _send(self, client: _Client) -> None:
        if client.out:
            client.out = client.out[client.sock.send(client.out) :]
        if not client.out:
            self._step(client)

    def _step(self, client: _Client) -> None:
        client.turn += 1
        client.wait = None
        try:
            step = next(client.script)
        except StopIteration as end:
            self._end(client, "reset by the client" if end.value else "closed by the client", reset=end.value)
            return
        events = select.EPOLLRDHUP
        if isinstance(step, bytes):
            client.out = memoryview(step)
            events |= select.EPOLLOUT
        else:
            client.wait = step
            self._timer(client, step.seconds)
            events = 0 if step.deaf else events
            events |= select.EPOLLIN if step.size else 0
        self._epoll.modify(client.sock, events)

    def _timer(self, client: _Client, seconds: float) -> None:
        heapq.heappush(
            self._timers, (time.monotonic() + seconds, client.sock.fileno(), id(client), client.turn)
        )

    def _expire(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _, fd, which, turn = heapq.heappop(self._timers)
            client = self._open.get(fd)
            if client is None or id(client) != which or client.turn != turn:
                continue
            if client.begun:
                self._step(client)
            else:
                self._end(client, "never accepted")

    def _end(self, client: _Client, how: str, *, reset: bool = False) -> None:
        self.tally[how] += 1
        del self._open[client.sock.fileno()]
        client.script.close()
        if reset:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.sock.close()
