"""Readiness of all sockets: one kernel object, one task, plain function calls. No I/O of its own.

Every client socket is in one epoll (Linux) or kqueue (macOS, BSD). That object's descriptor is itself
readable when any of its sockets is ready, so the event loop waits for that one, be it asyncio, uvloop or
trio, and no connection needs a task, a coroutine or a stream. Elsewhere (Windows) the same interface is
kept by one waiting task for each socket: task_reactor.py.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import time
from abc import ABC, abstractmethod
from asyncio import _enter_task, _leave_task  # documented under "Extending", for who runs tasks by himself
from collections import deque
from collections.abc import Callable
from typing import Protocol

import anyio
import anyio.lowlevel

from goim_core.poller import EVENTS_A_TURN, WRITE, Poller

__all__ = ["KernelReactor", "Reactor", "Socket", "Source", "in_asyncio"]

_log = logging.getLogger("goim_core.reactor")

SLICE = 0.003
"""How many seconds of a turn go to those who asked for another one: who floods slows others who flood."""


class Socket(Protocol):
    """What is watched: a socket, or what stands for one."""

    def fileno(self) -> int:
        """Its descriptor."""


class Turned(Protocol):
    """What asks for a turn."""

    def on_turn(self) -> None:
        """A turn later, as asked for with :meth:`Reactor.again`."""


class Source(Turned, Protocol):
    """What the reactor calls: one socket's owner. Its methods are plain, and should not raise.

    One that does is at fault: that is logged, and :meth:`lost` ends this socket and no other.
    """

    def on_readable(self) -> None:
        """The socket has bytes, an end, an error, or a connection to accept."""

    def on_writable(self) -> None:
        """The socket takes bytes."""

    def lost(self, error: OSError) -> None:
        """The socket cannot be served any more."""


class Replying(Protocol):
    """What has a reply to send, and time until the end of the turn."""

    def reply(self, data: bytes) -> None:
        """Send it, if that still makes sense."""


class Reactor(ABC):
    """Calls sources when their sockets are ready."""

    def __init__(self) -> None:
        self._again: deque[Turned] = deque()

    @abstractmethod
    def add(self, sock: Socket, source: Source) -> None:
        """Call ``source`` when ``sock`` is readable. May raise OSError where the system has no room."""

    @abstractmethod
    def watch(self, sock: Socket, *, read: bool, write: bool) -> None:
        """From now on watch ``sock``, which was added, for these."""

    @abstractmethod
    def remove(self, sock: Socket) -> None:
        """Forget ``sock``. Has to come before it is closed."""

    @abstractmethod
    def sources(self) -> list[Source]:
        """All that were added and not removed."""

    def again(self, source: Turned) -> None:
        """Call ``source.on_turn()`` in a later turn, as soon as those who asked before have had theirs."""
        self._again.append(source)
        self._wake()

    def reply(self, source: Replying, data: bytes) -> None:
        """Call ``source.reply(data)``: at the end of this turn, where this is called in one."""
        source.reply(data)

    @abstractmethod
    def _wake(self) -> None: ...

    def _turns(self) -> bool:
        until = time.monotonic() + SLICE
        for _ in range(len(self._again)):
            source = self._again.popleft()
            self._guarded(source, source.on_turn)
            if time.monotonic() >= until:
                break
        return bool(self._again)

    def _guarded(self, source: Turned, serve: Callable[[], None]) -> None:
        try:
            serve()
        except Exception:  # noqa: BLE001  # see _failed
            self._failed(source)

    def _failed(self, source: Turned | Replying) -> None:
        """A fault in serving one connection, which must not end all the others."""
        _log.exception("%s failed in its turn, and is closed", type(source).__name__)
        lost: Callable[[OSError], object] | None = getattr(source, "lost", None)
        if lost is not None:
            lost(OSError("it could not be served"))

    @abstractmethod
    async def run(self) -> None:
        """Serve until cancelled."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the kernel's object. The sources' sockets stay theirs."""


class KernelReactor(Reactor):
    """All sockets in one epoll or kqueue, served by :meth:`run`."""

    def __init__(self, poller: Poller) -> None:
        super().__init__()
        self._poller = poller
        # By descriptor: the kernel gives out the lowest free one, so a list stays dense.
        self._sources: list[Source | None] = []
        self._replies: list[tuple[Replying, bytes]] | None = None  # within a turn
        self._ring: Callable[[], object] = _nothing

    def add(self, sock: Socket, source: Source) -> None:
        """See :meth:`Reactor.add`."""
        fd = sock.fileno()
        self._poller.add(fd)
        while fd >= len(self._sources):
            self._sources.append(None)
        self._sources[fd] = source

    def watch(self, sock: Socket, *, read: bool, write: bool) -> None:
        """See :meth:`Reactor.watch`."""
        self._poller.watch(sock.fileno(), read, write)

    def remove(self, sock: Socket) -> None:
        """See :meth:`Reactor.remove`."""
        fd = sock.fileno()
        self._sources[fd] = None
        self._poller.remove(fd)

    def sources(self) -> list[Source]:
        """See :meth:`Reactor.sources`."""
        return [source for source in self._sources if source is not None]

    def _wake(self) -> None:
        self._ring()

    def reply(self, source: Replying, data: bytes) -> None:
        """See :meth:`Reactor.reply`."""
        if self._replies is None:
            source.reply(data)
        else:
            self._replies.append((source, data))

    def _turn(self) -> bool:
        """Serve what is ready now; True when there is more to do at once."""
        sources = self._sources
        events = self._poller.poll()
        # First all are read, then all replies are sent: one send after the other is cheaper, and whoever
        # reads them is not put to sleep and woken for each. Of a heartbeat that is a seventh.
        replies: list[tuple[Replying, bytes]] = []
        self._replies = replies
        for fd, event in events:
            # A socket that was closed earlier in this turn has no source. Where its number was given
            # to a new one, that one is called for nothing, which does no harm: nothing blocks.
            source = sources[fd]
            try:
                if source is not None and event != WRITE:
                    source.on_readable()
                    source = sources[fd]
                if source is not None and event & WRITE:
                    source.on_writable()
            except Exception:  # noqa: BLE001  # see _failed
                assert source is not None
                self._failed(source)
        self._replies = None
        for replying, data in replies:
            try:
                replying.reply(data)
            except Exception:  # noqa: BLE001  # see _failed
                self._failed(replying)
        return (bool(self._again) and self._turns()) or len(events) == EVENTS_A_TURN

    async def run(self) -> None:
        """See :meth:`Reactor.run`."""
        await (self._run_in_callbacks() if in_asyncio() else self._run_in_task())

    async def _run_in_callbacks(self) -> None:
        # A turn is taken in the event loop's own callback. To wake a task for it would cost two more polls
        # of the loop and one of ours, a third of what a lone heartbeat takes; and so would telling the loop
        # of the descriptor anew for each turn, as anyio.wait_readable() does.
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        ended: asyncio.Future[None] = loop.create_future()
        rung: asyncio.Handle | None = None

        def turn() -> None:
            nonlocal rung
            if rung is not None:
                # This turn is the one that was asked for. Left there, each would ask for one more, and the
                # loop's round of callbacks would grow without end, with all of its tasks behind it.
                rung.cancel()
                rung = None
            self._turn_as(loop, task, ended)
            if self._again:
                ring()

        def on_ring() -> None:
            nonlocal rung
            rung = None
            turn()

        def ring() -> None:
            nonlocal rung
            if rung is None:
                rung = loop.call_soon(on_ring)

        loop.add_reader(self._poller.fileno(), turn)
        self._ring = ring
        try:
            if self._again:
                ring()
            await ended
        finally:
            self._ring = _nothing
            loop.remove_reader(self._poller.fileno())
            if rung is not None:
                rung.cancel()

    def _turn_as(
        self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[None], ended: asyncio.Future[None]
    ) -> None:
        """Take a turn in ``task``: what it calls, hooks for one, may ask which task it runs in."""
        _enter_task(loop, task)
        try:
            self._turn()
        except OSError as error:  # of the kernel's object, which nobody can be served without
            if not ended.done():
                ended.set_exception(error)
        finally:
            _leave_task(loop, task)

    async def _run_in_task(self) -> None:
        fileno = self._poller.fileno()
        bell, ear = socket.socketpair()
        with bell, ear:
            bell.setblocking(False)
            ear.setblocking(False)
            self.add(ear, _Ear(ear))
            try:
                while True:
                    if self._turn():
                        await anyio.lowlevel.checkpoint()
                        continue
                    self._ring = functools.partial(bell.send, b"\0")
                    # Waiting for what is ready already would not notice a cancellation on every loop.
                    await anyio.lowlevel.checkpoint_if_cancelled()
                    await anyio.wait_readable(fileno)
                    self._ring = _nothing
            finally:
                self._ring = _nothing
                self.remove(ear)

    def close(self) -> None:
        """See :meth:`Reactor.close`."""
        self._poller.close()


def in_asyncio() -> bool:
    """Whether this task is asyncio's, or uvloop's."""
    try:
        return asyncio.current_task() is not None  # trio may be a guest in asyncio's callbacks
    except RuntimeError:
        return False


def _nothing() -> None:
    pass


class _Ear:
    """Wakes the reactor's task: something was asked of it from outside its turn."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def on_readable(self) -> None:
        self._sock.recv(64)

    def on_writable(self) -> None: ...

    def on_turn(self) -> None: ...

    def lost(self, error: OSError) -> None: ...
