"""Links in memory, and the reactor that watches them: what stands for sockets and the kernel."""

from __future__ import annotations

import errno
from collections.abc import Callable
from itertools import count

import anyio
import anyio.lowlevel
from attrs import Factory, define, field

from goim_core.reactor import Reactor, Socket, Source

__all__ = ["Link", "MemoryReactor"]

CAPACITY = 1 << 16
"""How many bytes a link holds for a client that does not read: about what a socket's buffers do."""

_numbers = count(1 << 20)


def _nothing() -> None: ...


@define(eq=False)
class Link:
    """A connection in memory. The server's end has a non-blocking socket's methods.

    ``capacity`` is how many bytes it takes from the server for a client that does not read.
    """

    capacity: int = CAPACITY
    on_change: Callable[[], None] = _nothing
    """Called when the server's end may have become ready. The reactor's."""
    reading: bool = True
    """The client takes what comes."""
    ended: bool = False
    """The server has ended its side, or the whole link."""
    _number: int = Factory(lambda: next(_numbers))
    _to_server: bytearray = field(init=False, factory=bytearray)
    _held: bytearray = field(init=False, factory=bytearray)
    _arrived: bytearray = field(init=False, factory=bytearray)
    _left: bool = field(init=False, default=False)
    _broken: bool = field(init=False, default=False)

    # The server's end: a socket's methods.

    def fileno(self) -> int:
        """A number of its own, as a descriptor is; -1 once it is closed."""
        return self._number

    def recv(self, size: int, /) -> bytes:
        """Up to ``size`` bytes of what the client has sent; none at its end."""
        if self._broken:
            raise ConnectionResetError(errno.ECONNRESET, "connection reset by the client")
        if not self._to_server:
            if self._left:
                return b""
            raise BlockingIOError
        data = bytes(self._to_server[:size])
        del self._to_server[:size]
        return data

    def send(self, data: bytes | memoryview, /) -> int:
        """Take as much of ``data`` as there is room for, and say how much that was."""
        if self._broken or self.ended:
            raise BrokenPipeError(errno.EPIPE, "the connection has ended")
        if self._left:
            return len(data)  # a kernel takes it too, before it hears that nobody is there
        room = self.capacity - len(self._held)
        if room <= 0:
            raise BlockingIOError
        size = min(room, len(data))
        self._held += data[:size]
        if self.reading:
            self._read()
        return size

    def shutdown(self, how: int, /) -> None:
        """End the server's side, whatever ``how``: a server shuts down no other."""
        if self._broken:
            raise OSError(errno.ENOTCONN, "the connection has ended")
        self.ended = True

    def close(self) -> None:
        """Let go of the link."""
        self._number = -1
        self.ended = True

    # What the reactor asks.

    @property
    def readable(self) -> bool:
        """The server has something to receive, be it an end or an error."""
        return bool(self._to_server) or self._left or self._broken

    @property
    def writable(self) -> bool:
        """The server can send, be it only to hear of an error."""
        return len(self._held) < self.capacity or self._left or self._broken

    @property
    def broken(self) -> bool:
        """The client has reset the link: reported to the server whether it wants to read or not."""
        return self._broken

    # The client's end.

    @property
    def gone(self) -> bool:
        """The client has closed or reset the link."""
        return self._left or self._broken

    @property
    def over(self) -> bool:
        """The server's end has come to the client: there is nothing to read before it."""
        return self.ended and not self._held and not self._arrived

    def write(self, data: bytes) -> None:
        """Send ``data`` to the server. Raises ConnectionError when the link has ended."""
        if self.gone or self._number < 0:
            raise ConnectionError("the connection is closed")
        self._to_server += data
        self.on_change()

    def read(self) -> bytes:
        """What has arrived."""
        data = bytes(self._arrived)
        self._arrived.clear()
        return data

    def _read(self) -> None:
        self._arrived += self._held
        self._held.clear()

    def pause(self) -> None:
        """Take nothing more off the link."""
        self.reading = False

    def resume(self) -> None:
        """Take what waits, and what comes."""
        self.reading = True
        self._read()
        self.on_change()

    def leave(self) -> None:
        """Close the client's end: the server still receives what was sent."""
        self._left = True
        self._held.clear()
        self.on_change()

    def reset(self) -> None:
        """Break the link: what is on its way either way is lost."""
        self._broken = True
        self._held.clear()
        self._to_server.clear()
        self.on_change()


class MemoryReactor(Reactor):
    """Calls sources when their links are ready. Only :class:`Link` can be added."""

    def __init__(self) -> None:
        super().__init__()
        self._sources: dict[Socket, Source] = {}
        self._watched: dict[Socket, tuple[bool, bool]] = {}
        self._changed: dict[Link, None] = {}
        self._woken = anyio.Event()

    def add(self, sock: Socket, source: Source) -> None:
        """See :meth:`~goim_core.reactor.Reactor.add`."""
        assert isinstance(sock, Link), "the kit has links in memory only"
        self._sources[sock] = source
        sock.on_change = lambda: self._look(sock)
        self.watch(sock, read=True, write=False)

    def watch(self, sock: Socket, *, read: bool, write: bool) -> None:
        """See :meth:`~goim_core.reactor.Reactor.watch`."""
        assert isinstance(sock, Link)
        self._watched[sock] = (read, write)
        self._look(sock)

    def remove(self, sock: Socket) -> None:
        """See :meth:`~goim_core.reactor.Reactor.remove`."""
        assert isinstance(sock, Link)
        sock.on_change = _nothing
        del self._sources[sock], self._watched[sock]

    def sources(self) -> list[Source]:
        """See :meth:`~goim_core.reactor.Reactor.sources`."""
        return list(self._sources.values())

    def source(self, link: Link) -> Source | None:
        """Who was added for ``link``, if anybody was."""
        return self._sources.get(link)

    def _look(self, link: Link) -> None:
        self._changed[link] = None
        self._wake()

    def _wake(self) -> None:
        self._woken.set()

    async def run(self) -> None:
        """See :meth:`~goim_core.reactor.Reactor.run`."""
        while True:
            if not (self._changed or self._again):
                self._woken = anyio.Event()
                await self._woken.wait()
            changed, self._changed = self._changed, {}
            for link in changed:
                self._serve(link)
            self._turns()
            await anyio.lowlevel.checkpoint()

    def _serve(self, link: Link) -> None:
        if self._ready(link)[0]:
            self._sources[link].on_readable()
        if self._ready(link)[1]:
            self._sources[link].on_writable()
        if any(self._ready(link)):
            self._look(link)  # as with a kernel's level-triggered readiness

    def _ready(self, link: Link) -> tuple[bool, bool]:
        read, write = self._watched.get(link, (False, False))
        served = link in self._sources
        return served and (link.broken or (read and link.readable)), write and link.writable

    def close(self) -> None:
        """See :meth:`~goim_core.reactor.Reactor.close`."""
