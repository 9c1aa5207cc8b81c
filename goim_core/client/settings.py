"""What can be set for a client, checked."""

from __future__ import annotations

import json
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from inspect import isawaitable
from random import random
from typing import Any, Literal, TypeAlias, TypedDict

from attrs import field, frozen

from goim_core.client.address import DOORS
from goim_core.client.backoff import Backoff
from goim_core.client.messages import StateChange
from goim_core.clock import Clock, SystemClock
from goim_core.errors import CloseCode
from goim_core.protocol import MAX_BODY, Op

__all__ = ["EXTENSIONS", "Options", "Settings", "Token", "TokenSource", "token_bytes"]

Token: TypeAlias = bytes | str | Mapping[str, Any]
"""The body of the auth frame; a mapping is sent as JSON."""
TokenSource: TypeAlias = Token | Callable[[], Token | Awaitable[Token]]
"""A token, or a plain or async function that makes a fresh one for each connection."""

EXTENSIONS = frozenset(
    int(op)
    for op in (
        *(Op.ERROR, Op.ACK, Op.SYNC, Op.JOIN, Op.LEAVE, Op.MEMBERS, Op.WATCH, Op.UNWATCH, Op.PRESENCE),
        *(Op.LAST_SEEN, Op.REFRESH, Op.EXPIRING, Op.MOVE),
    )
)
"""The extension operations that the client knows: what ``accepts`` of a token should list for it."""

STOP_ON = frozenset((CloseCode.AUTH_REFUSED, CloseCode.REPLACED, CloseCode.TOO_MANY_LOGINS))
"""After these a client does not connect again: it would be refused again, or fight with itself."""


def _seconds(_: Any, attribute: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"{attribute.name}: expected seconds above 0, got {value!r}")


def _ack(_: Any, __: Any, value: Any) -> None:
    if value not in ("auto", "manual", "none"):
        raise ValueError(f"ack: expected 'auto', 'manual' or 'none', got {value!r}")


def _rooms(rooms: Iterable[str]) -> tuple[str, ...]:
    if isinstance(rooms, str):
        raise ValueError(f"rooms: expected a list of room ids, got {rooms!r}")
    return tuple(rooms)


def _doors(doors: Iterable[str]) -> tuple[str, ...]:
    chosen = tuple(doors)
    if isinstance(doors, str) or not set(chosen) <= set(DOORS):
        raise ValueError(f"doors: expected a list of {', '.join(DOORS)}; got {doors!r}")
    return chosen


def _codes(codes: Iterable[int]) -> frozenset[int]:
    return frozenset(codes)


def _count(minimum: int) -> Any:
    def check(_: Any, attribute: Any, value: Any) -> None:
        if type(value) is not int or value < minimum:
            raise ValueError(f"{attribute.name}: expected an int of at least {minimum}, got {value!r}")

    return check


class Options(TypedDict, total=False):
    """What :func:`goim_core.client.connect` takes beside who it is. Times in seconds, sizes in bytes."""

    rooms: Iterable[str]
    """Rooms to join, at once and after each reconnect."""
    ack: Literal["auto", "manual", "none"]
    """``auto`` (the default): a message is acknowledged when the next one is taken, or the block is left
    without an exception. ``manual``: by :meth:`Message.ack`. ``none``: never."""
    after: int
    """The last number of the inbox that was seen before (0): what is not above it is a second copy."""
    ack_every: int
    """At the latest after this many messages the server is told (64)..."""
    ack_delay: float
    """...or after this time (0.1)."""
    buffer: int
    """How many messages may wait to be taken before the connection is not read any more (256)."""
    max_body: int
    """The largest body that may be sent: the server's limit (4096)."""
    heartbeat: float
    """How often a heartbeat is sent (30)."""
    heartbeat_timeout: float
    """How long its answer may take before the connection counts as lost (10)."""
    connect_timeout: float
    """How long a connection may take to be made, with the token and authentication (10)."""
    request_timeout: float
    """How long a reply may take, with waiting for a connection (10)."""
    close_timeout: float
    """How long sending the last words may take (2)."""
    backoff: Backoff | None
    """When to connect again; None for never: the first loss ends the client."""
    stop_on: Iterable[int]
    """Close codes after which it does not connect again (4001, 4004, 4009)."""
    doors: Iterable[str]
    """With a node list: which doors of a node to use, best first. Unless given, ``wss`` and ``tls`` where the
    list came over https, and else ``ws`` and ``tcp`` before them."""
    refresh_nodes: float
    """How often, while connected, a node list is asked for again (60), more or less a fifth; ``math.inf`` for
    never. Whoever was its only node at first so knows the others when that one dies."""
    ssl_context: ssl.SSLContext | None
    """For ``tls``, ``wss`` and ``https``; the system's certificates unless given."""
    headers: Mapping[str, str]
    """More headers for the WebSocket handshake: a Cookie, say."""
    on_state: Callable[[StateChange], object] | None
    """A plain function, called at each change of state."""
    clock: Clock
    """Another clock, which a test may own."""
    random: Callable[[], float]
    """Numbers from 0 to 1 for the backoff."""


@frozen(kw_only=True)
class Settings:
    """:class:`Options` and the token, checked. Raises :class:`ValueError` that names the option."""

    token: TokenSource = field(repr=False)
    rooms: tuple[str, ...] = field(default=(), converter=_rooms)
    ack: Literal["auto", "manual", "none"] = field(default="auto", validator=_ack)
    after: int = field(default=0, validator=_count(0))
    ack_every: int = field(default=64, validator=_count(1))
    ack_delay: float = field(default=0.1, validator=_seconds)
    buffer: int = field(default=256, validator=_count(1))
    max_body: int = field(default=MAX_BODY, validator=_count(0))
    heartbeat: float = field(default=30.0, validator=_seconds)
    heartbeat_timeout: float = field(default=10.0, validator=_seconds)
    connect_timeout: float = field(default=10.0, validator=_seconds)
    request_timeout: float = field(default=10.0, validator=_seconds)
    close_timeout: float = field(default=2.0, validator=_seconds)
    backoff: Backoff | None = field(factory=Backoff)
    stop_on: frozenset[int] = field(default=STOP_ON, converter=_codes)
    doors: tuple[str, ...] = field(default=(), converter=_doors)
    refresh_nodes: float = field(default=60.0, validator=_seconds)
    ssl_context: ssl.SSLContext | None = None
    headers: Mapping[str, str] = field(factory=dict, repr=False)
    on_state: Callable[[StateChange], object] | None = None
    clock: Clock = field(factory=SystemClock)
    random: Callable[[], float] = random


async def token_bytes(source: TokenSource) -> bytes:
    """A token out of ``source``, as it is sent. Raises what a function for it raises."""
    token = source() if callable(source) else source
    if isawaitable(token):
        token = await token
    if isinstance(token, bytes):
        return token
    if isinstance(token, str):
        return token.encode()
    if isinstance(token, Mapping):
        return json.dumps(dict(token)).encode()
    raise ValueError(f"token: expected bytes, text or a mapping, got {type(token).__name__}")
