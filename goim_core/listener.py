"""Listening sockets: where connections are let in. Accepting is part of the reactor's turns."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

from goim_core.clock import Deadlines, Timer
from goim_core.errors import ConfigurationError
from goim_core.reactor import Reactor

__all__ = ["Address", "Listener", "bind", "ip_of", "parse_address"]

Address: TypeAlias = "str | tuple[str, int] | os.PathLike[str]"
"""``"host:port"``, ``"[::1]:port"``, ``":port"`` (all addresses), ``(host, port)``, or a Unix socket:
``"unix:path"`` or a path object."""

Accept: TypeAlias = Callable[[socket.socket, str], None]
"""Takes over an accepted, non-blocking socket and its peer's IP address (empty on a Unix socket)."""

ACCEPTS_A_TURN = 32
PAUSE = 0.25
"""How many seconds a listener that cannot accept waits before it tries again."""

_EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))

_NOT_HERE = frozenset((errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT))
"""A host may have an address of a kind that this machine has not: then it listens on the others."""

_log = logging.getLogger("goim_core.listener")


class Listener:
    """Accepts connections of one listening socket and hands them to ``accept``.

    Where the system has no descriptor or memory left, or there is no ``room`` for more connections, it stops
    listening for a moment and tries again: those who wait are not lost, and nothing spins (goim's accept
    loop returns for good).
    """

    def __init__(
        self,
        sock: socket.socket,
        accept: Accept,
        reactor: Reactor,
        deadlines: Deadlines,
        room: Callable[[], int] = lambda: ACCEPTS_A_TURN,
    ) -> None:
        self.sock = sock
        self._room = room
        self._accept = accept
        self._reactor = reactor
        self._deadlines = deadlines
        reactor.add(sock, self)

    def on_readable(self) -> None:
        """Accept some of those who wait."""
        room = self._room()
        if not room:
            self._pause()
        for _ in range(min(room, ACCEPTS_A_TURN)):
            try:
                sock, peer = self.sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._fail(error)
                    return
                continue  # the peer was gone before it was accepted
            sock.setblocking(False)
            try:
                self._accept(sock, ip_of(peer))
            except OSError as error:
                sock.close()
                self._fail(error)
                return

    def on_writable(self) -> None:
        """Never: a listening socket is not watched for it."""

    def lost(self, error: OSError) -> None:
        """One that came could not be taken in: the next one may be."""

    def on_turn(self) -> None:
        """Listen again after a pause."""
        if self.open:
            self._reactor.watch(self.sock, read=True, write=False)

    def _fail(self, error: OSError) -> None:
        _log.warning("cannot accept connections for %s s: %s", PAUSE, error)
        self._pause()

    def _pause(self) -> None:
        self._reactor.watch(self.sock, read=False, write=False)
        self._deadlines.watch(Timer(self._deadlines.clock.now() + PAUSE, self.on_turn))

    @property
    def open(self) -> bool:
        """Whether it listens still."""
        return self.sock.fileno() >= 0

    @property
    def address(self) -> tuple[str, int] | str:
        """Where it listens: ``(host, port)``, or the path of a Unix socket."""
        name = self.sock.getsockname()
        return name if isinstance(name, str) else (name[0], name[1])

    def close(self) -> None:
        """Stop listening. Whoever was accepted stays."""
        if not self.open:
            return
        self._reactor.remove(self.sock)
        address = self.address
        if isinstance(address, str):
            # Before the socket ends, so that it cannot be the path of a successor yet.
            Path(address).unlink(missing_ok=True)
        self.sock.close()


class _Listening(socket.socket):
    """A listening socket that keeps its family and kind.

    ``accept()`` asks for both, and the standard library looks for the numbers' enums each time: a quarter
    of what accepting costs.
    """

    __slots__ = ("family", "type")

    def __init__(self, sock: socket.socket) -> None:
        family, kind = sock.family, sock.type
        super().__init__(family, kind, sock.proto, fileno=sock.detach())
        self.family, self.type = family, kind  # type: ignore[misc]  # properties of its base
        self.setblocking(False)


def ip_of(peer: object) -> str:
    """The IP address in a socket's name or its peer's, empty for a Unix socket."""
    if not isinstance(peer, tuple) or not peer:
        return ""
    ip: str = peer[0]
    # On a dual-stack socket an IPv4 peer shows as ::ffff:1.2.3.4 (RFC 4291 section 2.5.5.2).
    return ip.removeprefix("::ffff:") if "." in ip else ip


def parse_address(option: str, address: Address) -> tuple[str, int] | Path:
    """``(host, port)``, host empty for all addresses, or a Unix socket's path.

    Raises :class:`~goim_core.errors.ConfigurationError` that names ``option``.
    """
    if isinstance(address, os.PathLike):
        return Path(address)
    if isinstance(address, str) and address.startswith("unix:"):
        return Path(address.removeprefix("unix:"))
    if isinstance(address, str):
        host, colon, port = address.rpartition(":")
        if not colon or not port.isdecimal():
            raise ConfigurationError(f"{option}: expected 'host:port', got {address!r}")
        address = (host.removeprefix("[").removesuffix("]"), int(port))
    if not (isinstance(address, tuple) and len(address) == 2 and isinstance(address[0], str)):
        raise ConfigurationError(f"{option}: expected 'host:port', (host, port) or a path, got {address!r}")
    host, number = address
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= 65535:
        raise ConfigurationError(f"{option}: expected a port from 0 to 65535, got {number!r}")
    return host, number


def bind(option: str, address: Address, backlog: int) -> list[socket.socket]:
    """Non-blocking listening sockets for ``address``: one for each address that its host has.

    An empty host is all addresses, IPv6 and IPv4 through one socket where the system can. Port 0 is a
    free port, the same for all of them. Raises OSError with a message that names ``option``.
    """
    target = parse_address(option, address)
    try:
        if isinstance(target, Path):
            return [_bind_unix(target, backlog)]
        host, port = target
        if not host and socket.has_dualstack_ipv6():
            sock = socket.create_server(
                ("", port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True
            )
            return [_prepared(sock)]
        return _bind_each(host, port, backlog)
    except OSError as error:
        # Python 3.11 repeats the address in it: "... (while attempting to bind on address ...)".
        why = str(error.strerror or error).partition(" (while ")[0]
        shown = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else address
        raise OSError(error.errno, f"{option}: cannot listen on {shown}: {why}") from error
    except UnicodeError as error:  # from the encoding of host names (IDNA)
        raise ConfigurationError(f"{option}: {host!r} is no host name: {error}") from None


def _bind_each(host: str, port: int, backlog: int) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    absent: OSError | None = None
    try:
        for family, resolved in _resolve(host, port):
            try:
                sock = socket.create_server((resolved, port), family=family, backlog=backlog)
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                absent = error
                continue
            sockets.append(_prepared(sock))
            port = port or sockets[-1].getsockname()[1]
        if absent is not None and not sockets:
            raise absent
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _resolve(host: str, port: int) -> Iterable[tuple[socket.AddressFamily, str]]:
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    # IPv4 first: where both are tried with one port, it is the one that most others listen on.
    return dict.fromkeys(sorted(((family, str(name[0])) for family, _, _, _, name in found)))


def _prepared(sock: socket.socket) -> socket.socket:
    sock = _Listening(sock)
    # Accepted sockets inherit it, which saves a system call for each.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _bind_unix(path: Path, backlog: int) -> socket.socket:
    if sys.platform == "win32":
        raise OSError(errno.EAFNOSUPPORT, "this system has no Unix sockets")
    # A socket that a killed process left behind is in the way; a file of another kind is not ours.
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)  # where somebody listens and is busy, connecting would wait
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
            except BlockingIOError:
                pass
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(str(path))
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return _Listening(sock)
