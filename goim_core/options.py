"""What can be set, with the values that goim's example configuration has where it has one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from enum import StrEnum
from ipaddress import ip_network
from typing import Any

from attrs import field, frozen

from goim_core.errors import ConfigurationError
from goim_core.protocol import INT32_MAX, MAX_BODY, MAX_ID

__all__ = ["FIXED", "Options", "OutboxPolicy"]

FIXED = ("backlog", "buckets", "queue_size", "send_threads", "ws_path")
"""The options that stay as they are while a server runs: parts are made of them, or other nodes know them."""


class OutboxPolicy(StrEnum):
    """What happens to a push for a connection whose outbox is full."""

    DROP_NEWEST = "drop_newest"
    """The push is dropped and counted: goim's rule."""
    DROP_OLDEST = "drop_oldest"
    """The oldest that waits is dropped and counted, the new one waits."""
    DISCONNECT = "disconnect"
    """The connection is told that it is too slow, and closed."""


def _number(minimum: float, maximum: float = float("inf")) -> Any:
    def check(_: Any, attribute: Any, value: Any) -> None:
        allowed = (int,) if attribute.type == "int" else (int, float)
        if isinstance(value, bool) or not isinstance(value, allowed) or not minimum <= value <= maximum:
            bounds = f"at least {minimum:g}" + (f", at most {maximum:g}" if maximum != float("inf") else "")
            raise ConfigurationError(f"{attribute.name}: expected {attribute.type}, {bounds}; got {value!r}")

    return check


def _path(_: Any, attribute: Any, value: Any) -> None:
    if not (isinstance(value, str) and value.startswith("/") and value.isascii() and value.isprintable()):
        raise ConfigurationError(f"{attribute.name}: expected a path that begins with '/', got {value!r}")


def _policy(value: Any) -> OutboxPolicy:
    try:
        return OutboxPolicy(value)
    except ValueError:
        choices = ", ".join(OutboxPolicy)
        raise ConfigurationError(f"outbox_policy: expected one of {choices}; got {value!r}") from None


def _texts(value: Any) -> Any:
    # A lone text is iterable too, and would be taken for its letters.
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else value


def _each(check: Callable[[str], object], expected: str) -> Any:
    def check_all(_: Any, attribute: Any, value: Any) -> None:
        try:
            fits = isinstance(value, tuple) and all(isinstance(text, str) for text in value)
            for text in value:
                check(text)
        except (TypeError, ValueError):
            fits = False
        if not fits:
            raise ConfigurationError(f"{attribute.name}: expected a list of {expected}; got {value!r:.200}")

    return check_all


def _origin(text: str) -> None:
    if not _ORIGIN.fullmatch(text):
        raise ValueError(text)


_ORIGIN = re.compile(r"null|[a-z][a-z0-9+.-]*://[^/?#\s]+", re.IGNORECASE)
"""A serialized origin (RFC 6454 section 6.2)."""


def _int(default: int, minimum: int, maximum: float = INT32_MAX) -> Any:
    return field(default=default, validator=_number(minimum, maximum))


def _seconds(default: float, minimum: float = 0.001) -> Any:
    # Bounded (by 31 years), because a deadline is a time that has a place on the wheel.
    return field(default=default, validator=_number(minimum, 1e9))


@frozen(kw_only=True)
class Options:
    """Limits and times of a server. Sizes in bytes, times in seconds.

    Raises :class:`~goim_core.errors.ConfigurationError` that names the option.
    """

    max_body: int = _int(MAX_BODY, 0)
    """The largest body of a client's frame."""
    ws_path: str = field(default="/sub", validator=_path)
    """The path of the WebSocket handshake."""
    heartbeat: float = _seconds(240.0)
    """How often a client is expected to send a heartbeat."""
    heartbeat_max: int = _int(2, 1)
    """After this many heartbeat times without one the connection is closed."""
    handshake_timeout: float = _seconds(10.0)
    """For the WebSocket handshake, with TLS before it on `wss`."""
    auth_timeout: float = _seconds(10.0)
    """For the auth frame to arrive and to be decided, with TLS before it on `tls`."""
    write_timeout: float = _seconds(10.0)
    """A connection that takes no byte of what waits for it for this long is closed."""
    farewell_timeout: float = _seconds(2.0)
    """How long a closed connection may take to read the reason and close its side."""
    hook_timeout: float = _seconds(30.0)
    """For one exchange with the application's async hooks."""
    refresh_notice: float = _seconds(30.0)
    """How long before its token runs out a client is asked for a new one."""
    max_connections: int = _int(0, 0)
    """How many clients may be connected; 0: as many as the limit on descriptors leaves room for."""
    max_address_connections: int = _int(1000, 0)
    """How many of one IP address (IPv6: of one /64 network), but for `trusted` ones; 0 is any number."""
    trusted: tuple[str, ...] = field(
        default=("127.0.0.0/8", "::1/128"),
        converter=_texts,
        validator=_each(ip_network, "IP networks like '10.0.0.0/8'"),
    )
    """The networks of proxies, of whose addresses the connections are not counted."""
    max_user_connections: int = _int(1000, 0)
    """How many of one user on this node, but for user 0, who is nobody in particular; 0 is any number."""
    max_handshakes: int = _int(10_000, 1)
    """How many connections may be on their way in; beyond, who got no further for the longest gives way."""
    accept_rate: float = _seconds(5000.0, 0)
    """How many connections a second are accepted, others wait in the backlog; 0 is any number."""
    read_frames: float = _seconds(1000.0, 0)
    """How many frames a second of one connection are read, others wait in the kernel; 0 is any number."""
    read_bytes: float = _seconds(float(1 << 20), 0)
    """How many bytes a second of one connection are read; 0 is any number."""
    read_burst: float = _seconds(5.0)
    """How many seconds' worth of both may come at once."""
    max_room_id: int = _int(MAX_ID, 4, MAX_ID)
    """The longest room id, in characters."""
    max_key: int = _int(MAX_ID, 1, MAX_ID)
    """The longest key of a connection, in characters."""
    max_token: int = _int(MAX_BODY, 0)
    """The largest token, in bytes; `max_body` bounds it too."""
    origins: tuple[str, ...] = field(
        default=(), converter=_texts, validator=_each(_origin, "origins like 'https://example.com'")
    )
    """The origins of which a browser may open a WebSocket; empty: any. What names none is no browser."""
    max_rooms: int = _int(100, 0)
    """How many rooms a connection may join, beside the one that it changes to."""
    rate: float = _seconds(0.0, 0)
    """How many frames a second a connection may send, heartbeats apart; 0 is any number."""
    rate_burst: int = _int(100, 1)
    """How many it may send at once, after it has sent none for a while."""
    max_hooks: int = _int(1000, 1)
    """How many exchanges may be with async hooks at a time; others wait their turn."""
    drain: float = _seconds(5.0)
    """How long stopping may take."""
    outbox_bytes: int = _int(1 << 20, 1024)
    """How much may wait for one connection that takes nothing at the moment."""
    outbox_packets: int = _int(1024, 1)
    """How many pushes and replies may wait for one connection."""
    outbox_policy: OutboxPolicy = field(default=OutboxPolicy.DROP_NEWEST, converter=_policy)
    """What happens to a push when the outbox is full."""
    outbox_total: int = _int(1 << 28, 1024)
    """How much may wait for all connections together; beyond it, those with the most waiting are closed."""
    unfinished_total: int = _int(1 << 26, 1024)
    """How much is held of messages that go on, for all; beyond it, the longest unfinished are closed."""
    queue_size: int = _int(1024, 1)
    """How many pushes the memory queue holds before publishers wait."""
    batch: int = _int(256, 1)
    """How many pushes may be merged into one packet; 1 sends each alone."""
    linger: float = _seconds(0.0, 0)
    """How long a room's first push waits for others to be merged with (goim: 1 s); 0 sends at once."""
    send_threads: int = _int(1, 0, 64)
    """How many threads help to send a push to many, where there are so many other cores, and no TLS."""
    census: float = _seconds(10.0)
    """How often a node tells the others how many are online with it (goim: 10 s)."""
    buckets: int = _int(32, 1, 1 << 16)
    """Into how many buckets connections are spread (goim: 32)."""
    backlog: int = _int(4096, 1)
    """How many connections may wait to be accepted, as far as the system allows."""
    http_max_body: int = _int(1 << 20, 0)
    """The largest body of a request to the push API."""
    http_max_header: int = _int(1 << 16, 64)
    """The largest request line and headers of a request, together."""
    http_timeout: float = _seconds(30.0)
    """How long a request may take to arrive, and its answer to be taken."""
    http_idle: float = _seconds(75.0)
    """How long an HTTP connection may be silent between two requests."""
    http_max_connections: int = _int(1000, 1)
    """How many HTTP connections there may be; at the bound those that are silent longest give way."""

    @property
    def silence(self) -> float:
        """How long a connection may go without a heartbeat."""
        return self.heartbeat * self.heartbeat_max
