"""Where a server listens: its arguments checked, and the sockets made."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable
from os import PathLike
from typing import Any

from goim_core.errors import ConfigurationError
from goim_core.listener import Address, bind, parse_address

__all__ = ["bind_doors", "check_secured", "checked_doors"]


def checked_doors(
    ssl_context: ssl.SSLContext | None, **doors: Address | Iterable[Address]
) -> dict[str, list[Address]]:
    """The addresses of each door. Raises :class:`~goim_core.errors.ConfigurationError` that names one."""
    checked = {}
    for door, value in doors.items():
        addresses: list[Any] = [value] if _is_address(value) else list(value)  # type: ignore[arg-type]
        for index, address in enumerate(addresses):
            parsed = parse_address(door, address)
            if door == "http" and isinstance(parsed, tuple) and not parsed[0]:
                addresses[index] = ("localhost", parsed[1])
        if addresses:
            check_secured(door, ssl_context)
        checked[door] = addresses
    return checked


def check_secured(door: str, ssl_context: ssl.SSLContext | None) -> None:
    """Raise :class:`~goim_core.errors.ConfigurationError` where ``door`` needs a context and has none."""
    if door in ("tls", "wss") and ssl_context is None:
        raise ConfigurationError(f"ssl_context: expected an ssl.SSLContext, which {door} needs")


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
