"""What can be set, with the values that goim's example configuration has where it has one."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from attrs import field, frozen

from goim_core.errors import ConfigurationError
from goim_core.protocol import INT32_MAX, MAX_BODY

__all__ = ["Options", "OutboxPolicy"]


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
    queue_size: int = _int(1024, 1)
    """How many pushes the memory queue holds before publishers wait."""
    batch: int = _int(256, 1)
    """How many pushes may be merged into one packet; 1 sends each alone."""
    linger: float = _seconds(0.0, 0)
    """How long a room's first push waits for others to be merged with (goim: 1 s); 0 sends at once."""
    census: float = _seconds(10.0)
    """How often a node tells the others how many are online with it (goim: 10 s)."""
    buckets: int = _int(32, 1, 1 << 16)
    """Into how many buckets connections are spread (goim: 32)."""
    backlog: int = _int(4096, 1)
    """How many connections may wait to be accepted, as far as the system allows."""
    http_max_body: int = _int(1 << 20, 0)
    """The largest body of a request to the push API."""

    @property
    def silence(self) -> float:
        """How long a connection may go without a heartbeat."""
        return self.heartbeat * self.heartbeat_max
