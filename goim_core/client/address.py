"""Where a server is: ``tcp://``, ``tls://``, ``ws://`` and ``wss://`` addresses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from attrs import field, frozen

from goim_core.masked import masked

__all__ = ["DOORS", "Target", "parse", "read_nodes"]

DOORS = ("wss", "ws", "tls", "tcp")
"""The schemes of addresses, and the names of a server's doors."""
_PORTS = {"tcp": 3101, "tls": 3101, "ws": 3102, "wss": 3103}


@frozen
class Target:
    """One address. ``path`` is that of the WebSocket handshake, with its query."""

    scheme: str
    host: str
    port: int
    path: str = field(default="/sub", repr=False)

    @property
    def websocket(self) -> bool:
        """Whether frames travel in WebSocket messages."""
        return self.scheme in ("ws", "wss")

    @property
    def secure(self) -> bool:
        """Whether TLS is around the connection."""
        return self.scheme in ("tls", "wss", "https")

    @property
    def authority(self) -> str:
        """Host and port as they stand in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        if self.scheme == "tcp":
            return self.authority
        # Without the query, in which some have a token: this is for logs and errors.
        return f"{self.scheme}://{self.authority}" + (self.path.partition("?")[0] if self.websocket else "")


def parse(address: str, port: int | None = None) -> Target:
    """The target of a URL, or of a TCP host with ``port``.

    Without a port in the URL it is goim's: 3101, for ws 3102, for wss 3103; without a path it is ``/sub``.
    Raises :class:`ValueError` that says what was expected.
    """
    if port is not None:
        return Target("tcp", address, port)
    try:
        url = urlsplit(address)
        host, given = url.hostname, url.port
    except ValueError as error:
        raise ValueError(f"address: {error}, got {masked(address)!r}") from None
    if url.scheme not in _PORTS or not host:
        raise ValueError(
            f"address: expected tcp://, tls://, ws:// or wss:// and a host, got {masked(address)!r}"
        )
    path = (url.path if url.path not in ("", "/") else "/sub") + (f"?{url.query}" if url.query else "")
    return Target(url.scheme, host, _PORTS[url.scheme] if given is None else given, path)


def read_nodes(data: Mapping[str, Any], asked: Target, doors: Iterable[str] = ()) -> list[Target]:
    """Where to connect, best first, after an answer of goim's ``/goim/nodes/weighted`` from ``asked``.

    Of each node the first of ``doors`` that it has. Without ``doors``: ``wss`` or ``tls`` where ``asked`` is
    secure, and else ``ws`` or ``tcp`` before them. A goim server tells hosts and one port for each door
    (and ports that nobody may listen on); goim_core tells the addresses of each node beside them.
    Raises :class:`ValueError` that says what was expected.
    """
    doors = tuple(doors) or (("wss", "tls") if asked.secure else ("ws", "tcp", "wss", "tls"))
    try:
        if data.get("urls"):
            told = [next((urls[door] for door in doors if door in urls), None) for urls in data["urls"]]
            found = [parse(url) for url in told if url is not None]
        else:
            ports = [(door, int(data.get(f"{door}_port") or 0)) for door in doors]
            door, port = next(((door, port) for door, port in ports if port), ("", 0))
            hosts = dict.fromkeys((*(data.get("nodes") or ()), data.get("domain"), asked.host))
            found = [Target(door, str(host), port) for host in hosts if door and host]
    except (AttributeError, TypeError) as error:
        raise ValueError(f"nodes: {error}") from None
    if not found:
        raise ValueError(f"nodes: expected one with a door of {', '.join(doors)}")
    return found
