"""Who a connection is, and what a client brings when it asks to be let in."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Iterable, Mapping
from functools import lru_cache
from math import inf
from typing import Any, TypeAlias, TypeVar

from attrs import define, evolve, field, frozen, setters

from goim_core.protocol import INT32_MAX, MAX_ID

__all__ = ["AuthRequest", "MaybeAwaitable", "Session", "check_key", "check_mid", "check_room_id"]

T = TypeVar("T")
MaybeAwaitable: TypeAlias = T | Awaitable[T]
"""What a hook or a contract's method returns: a plain one its value, an ``async def`` an awaitable."""

MAX_TIME = 1e11
"""The latest time, in seconds since 1970: one in milliseconds is a mistake to be told of."""


def check_room_id(room_id: str) -> str:
    """Return ``room_id`` when it is ``type://id``; raise :class:`ValueError` that says what is wrong."""
    kind, separator, name = room_id.partition("://")
    if not (kind and separator and name) or len(room_id) > MAX_ID or not room_id.isprintable():
        raise ValueError(
            f"room_id: expected 'type://id' of at most {MAX_ID} printable characters, got {room_id[:80]!r}"
        )
    return room_id


def check_key(key: str) -> str:
    """Return ``key`` when it can name a connection; raise :class:`ValueError` that says what is wrong."""
    if not key or len(key) > MAX_ID or not key.isprintable():
        raise ValueError(f"key: expected 1 to {MAX_ID} printable characters, got {key[:80]!r}")
    return key


def check_mid(mid: int) -> int:
    """Return ``mid`` when it can be a user's; raise :class:`ValueError` when not."""
    if type(mid) is not int or not -(2**63) <= mid < 2**63:
        raise ValueError(f"mid: expected an int64, got {mid!r:.80}")
    return mid


@lru_cache(maxsize=1024)
def _shared(ops: frozenset[int]) -> frozenset[int]:
    """One object for equal sets: most connections accept the same few ops, and a set is 216 bytes.

    Of plain numbers, also where those of an enum, which are equal to them, come first.
    """
    return frozenset(map(int, ops))


def _accepts(ops: Iterable[int]) -> frozenset[int]:
    try:
        found = frozenset(ops)
    except TypeError:
        raise ValueError(f"accepts: expected operations as int32, got {ops!r:.80}") from None
    for op in found:
        if not isinstance(op, int) or isinstance(op, bool) or not 0 <= op <= INT32_MAX:
            raise ValueError(f"accepts: expected operations as int32, got {op!r:.80}")
    return _shared(found)


def _mid(_: Any, __: Any, mid: int) -> None:
    check_mid(mid)


def _optional_key(_: Any, __: Any, key: str) -> None:
    if not isinstance(key, str):
        raise ValueError(f"key: expected text, got {key!r:.80}")
    if key:
        check_key(key)


def _optional_room_id(_: Any, __: Any, room_id: str) -> None:
    if not isinstance(room_id, str):
        raise ValueError(f"room_id: expected text, got {room_id!r:.80}")
    if room_id:
        check_room_id(room_id)


def _name(_: Any, attribute: Any, value: str) -> None:
    if not isinstance(value, str) or len(value) > MAX_ID:
        raise ValueError(f"{attribute.name}: expected text of at most {MAX_ID} characters, got {value!r:.80}")


def _unix_time(_: Any, attribute: Any, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{attribute.name}: expected seconds since 1970, got {value!r:.80}")
    if not (0 <= value <= MAX_TIME or value == inf):
        raise ValueError(f"{attribute.name}: expected seconds since 1970 or infinity, got {str(value)[:80]}")


def _intern(value: str) -> str:
    # Connections of one room share one string for it.
    return sys.intern(value) if type(value) is str else value


NOWHERE: frozenset[str] = frozenset()
"""No rooms. One object for all connections: an empty set is 216 bytes, each anew."""

_FOLLOWS: Any = [setters.convert, setters.validate]


@define(eq=False, weakref_slot=False, on_setattr=setters.frozen)
class Session:
    """Who a connection is: what ``authenticate`` returns.

    ``mid`` the user (int64); ``key`` the connection, made by the session hook when empty; ``room_id``
    the room it is in, ``type://id`` or empty for none; ``platform`` what the client says it runs on;
    ``accepts`` the operations it wants of key pushes and broadcasts, and the extension operations that
    it knows; ``device`` names the user's cursor in the inbox (empty: the platform does); ``expires``
    when it has to be refreshed, in seconds since 1970; ``data`` anything of the application's own.

    Filled in by the server: ``server`` the node that holds the connection, ``joined`` the rooms that it
    joined beside ``room_id``. ``room_id``, ``joined`` and ``accepts`` follow the client; ``expires`` and
    ``data`` are replaced when it refreshes its token. Two sessions are equal only when they are the same one.

    Raises :class:`ValueError` that names the field for a value that does not fit.
    """

    mid: int = field(validator=_mid)
    key: str = field(default="", validator=_optional_key)
    room_id: str = field(default="", converter=_intern, validator=_optional_room_id, on_setattr=_FOLLOWS)
    platform: str = field(default="", converter=_intern, validator=_name)
    accepts: frozenset[int] = field(default=frozenset(), converter=_accepts, on_setattr=_FOLLOWS)
    device: str = field(default="", converter=_intern, validator=_name)
    expires: float = field(default=inf, validator=_unix_time, on_setattr=_FOLLOWS)
    data: Any = field(default=None, on_setattr=setters.NO_OP, repr=False)
    server: str = ""
    joined: frozenset[str] = field(default=NOWHERE, on_setattr=setters.NO_OP)

    def placed(self, key: str, device: str, server: str) -> Session:
        """A session of its own for one connection: ``key``, where it is and its device are settled."""
        if type(self) is not Session:
            return evolve(self, key=key, device=device, server=server, joined=NOWHERE)
        # What evolve() does, without checking anew what was checked: a tenth of what a connect costs.
        placed = object.__new__(Session)
        put = object.__setattr__
        put(placed, "mid", self.mid)
        put(placed, "key", key)
        put(placed, "room_id", self.room_id)
        put(placed, "platform", self.platform)
        put(placed, "accepts", self.accepts)
        put(placed, "device", device)
        put(placed, "expires", self.expires)
        put(placed, "data", self.data)
        put(placed, "server", server)
        put(placed, "joined", NOWHERE)
        return placed

    @property
    def rooms(self) -> frozenset[str]:
        """Every room that it is in."""
        return self.joined | {self.room_id} if self.room_id else self.joined


@frozen
class AuthRequest:
    """What a client brought when it asked to be let in.

    ``token`` the body of its auth frame; ``transport`` ``"tcp"`` or ``"websocket"``; ``address`` the
    peer's IP address, empty on a Unix socket; ``path`` and ``headers`` of the WebSocket handshake
    (lower-case names; the first of a repeated header), empty on TCP.
    """

    token: bytes = field(repr=False)
    transport: str = "tcp"
    address: str = ""
    path: str = field(default="", repr=False)  # some have the token in the query
    headers: Mapping[str, str] = field(factory=dict, repr=False)

    @property
    def cookie(self) -> str:
        """The Cookie header of the WebSocket handshake, empty without one."""
        return self.headers.get("cookie", "")
