"""Where a server listens: its arguments checked, and the sockets made."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable
from os import PathLike
from typing import Any

from attrs import frozen

from goim_core.errors import ConfigurationError
from goim_core.guard import Guard, is_loopback
from goim_core.listener import Address, bind, ip_of, parse_address

__all__ = ["TLS_DOORS", "Contexts", "bind_doors", "check_guarded", "checked_doors"]

TLS_DOORS = ("tls", "wss", "https")


@frozen(eq=False)
class Contexts:
    """What the doors with TLS need."""

    clients: ssl.SSLContext | None
    """For ``tls`` and ``wss``."""
    pushers: ssl.SSLContext | None
    """For ``https``, where it is another."""

    def __attrs_post_init__(self) -> None:
        for argument, context in (("ssl_context", self.clients), ("https_context", self.pushers)):
            # ssl.create_default_context() makes one, and every handshake would fail.
            if context is not None and context.protocol is ssl.PROTOCOL_TLS_CLIENT:
                raise ConfigurationError(f"{argument}: expected a server's context, got a client's")

    def of(self, door: str) -> ssl.SSLContext | None:
        """The context of ``door``; None where it has no TLS.

        Raises :class:`~goim_core.errors.ConfigurationError` where it needs one and has none.
        """
        if door not in TLS_DOORS:
            return None
        context = self.pushers if door == "https" and self.pushers is not None else self.clients
        if context is None:
            raise ConfigurationError(f"ssl_context: expected an ssl.SSLContext, which {door} needs")
        return context

    @property
    def certified(self) -> bool:
        """Whether who comes in at ``https`` has shown a certificate of those who may push.

        A context that is shared with ``tls`` and ``wss`` does not count: its certificates are of clients.
        """
        pushers = self.pushers
        return (
            pushers is not None and pushers is not self.clients and pushers.verify_mode is ssl.CERT_REQUIRED
        )


def checked_doors(contexts: Contexts, **doors: Address | Iterable[Address]) -> dict[str, list[Address]]:
    """The addresses of each door. Raises :class:`~goim_core.errors.ConfigurationError` that names one."""
    checked = {}
    for door, value in doors.items():
        addresses: list[Any] = [value] if _is_address(value) else list(value)  # type: ignore[arg-type]
        for index, address in enumerate(addresses):
            parsed = parse_address(door, address)
            if door == "http" and isinstance(parsed, tuple) and not parsed[0]:
                addresses[index] = ("localhost", parsed[1])
        if addresses:
            contexts.of(door)
        checked[door] = addresses
    return checked


def check_guarded(door: str, sock: socket.socket, guard: Guard, contexts: Contexts) -> None:
    """Raise :class:`~goim_core.errors.ConfigurationError` where strangers could push through ``sock``.

    Asked of the socket, not of what was configured: a name means what it was resolved to.
    """
    if door not in ("http", "https") or guard.has_keys or (door == "https" and contexts.certified):
        return
    ip = ip_of(sock.getsockname())
    if not is_loopback(ip):
        raise ConfigurationError(
            f"{door}: at {ip} anyone who can reach this machine could push: set api_keys (--api-key-file), "
            "or ask for client certificates (https with https_context, --api-client-ca), "
            "or listen on loopback or a Unix socket only"
        )


def _is_address(value: object) -> bool:
    if isinstance(value, tuple):
        return len(value) == 2 and isinstance(value[1], int)
    return isinstance(value, str | PathLike)


def bind_doors(doors: dict[str, list[Address]], backlog: int) -> list[tuple[str, socket.socket]]:
    """Listening sockets for all of them, or none: raises OSError that names the address it cannot have."""
    sockets: list[tuple[str, socket.socket]] = []
    try:
        for door, addresses in doors.items():
            for address in addresses:
                sockets += [(door, sock) for sock in bind(door, address, backlog)]
    except BaseException:
        for _, sock in sockets:
            sock.close()
        raise
    return sockets
