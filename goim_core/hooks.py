"""What an application puts in: base classes to subclass, each with a working default.

A hook method may be an ``async def`` or a plain function. A plain one costs no task, and so must
not block; an ``async def`` runs in a task of its own while its connection waits and all others go
on. Raise :class:`~goim_core.errors.Refused` to refuse one frame, or
:class:`~goim_core.errors.Disconnect` to close the connection; anything else that is raised is
logged and answered as an internal error.
"""

from __future__ import annotations

import json
import logging
import secrets
import sys
from collections.abc import Awaitable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Protocol, TypeAlias, TypeVar

from attrs import define, field, frozen, setters

from goim_core.errors import CloseCode, Disconnect
from goim_core.protocol import INT32_MAX, Frame

__all__ = [
    "AuthHook",
    "AuthRequest",
    "Hook",
    "MaybeAwaitable",
    "MessageHook",
    "OpenAuth",
    "Pusher",
    "Session",
    "SessionHook",
    "check_key",
    "check_room_id",
]

T = TypeVar("T")
MaybeAwaitable: TypeAlias = T | Awaitable[T]

MAX_ID = 256
"""The longest key, room id or platform, in characters."""

_log = logging.getLogger("goim_core.hooks")


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


@lru_cache(maxsize=1024)
def _shared(ops: frozenset[int]) -> frozenset[int]:
    """One object for equal sets: most connections accept the same few ops, and a set is 216 bytes."""
    return ops


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
    if type(mid) is not int or not -(2**63) <= mid < 2**63:
        raise ValueError(f"mid: expected an int64, got {mid!r:.80}")


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


def _platform(_: Any, __: Any, platform: str) -> None:
    if not isinstance(platform, str) or len(platform) > MAX_ID:
        raise ValueError(f"platform: expected text of at most {MAX_ID} characters, got {platform!r:.80}")


def _intern(value: str) -> str:
    # Connections of one room share one string for it.
    return sys.intern(value) if type(value) is str else value


@define(eq=False, weakref_slot=False, on_setattr=setters.frozen)
class Session:
    """Who a connection is: what ``authenticate`` returns.

    ``mid`` the user (int64); ``key`` the connection, made by the session hook when empty; ``room_id``
    the room it is in, ``type://id`` or empty for none, which follows when the client changes rooms;
    ``platform`` what the client says it runs on; ``accepts`` the operations it wants of key pushes and
    broadcasts; ``data`` anything of the application's own; ``server`` the node that holds the connection,
    filled in when it is let in. Two sessions are equal only when they are the same one.

    Raises :class:`ValueError` that names the field for a value that does not fit.
    """

    mid: int = field(validator=_mid)
    key: str = field(default="", validator=_optional_key)
    room_id: str = field(
        default="",
        converter=_intern,
        validator=_optional_room_id,
        on_setattr=[setters.convert, setters.validate],
    )
    platform: str = field(default="", converter=_intern, validator=_platform)
    accepts: frozenset[int] = field(default=frozenset(), converter=_accepts)
    data: Any = None
    server: str = ""


@frozen
class AuthRequest:
    """What a client brought when it asked to be let in.

    ``token`` the body of its auth frame; ``transport`` ``"tcp"`` or ``"websocket"``; ``address`` the
    peer's IP address, empty on a Unix socket; ``path`` and ``headers`` of the WebSocket handshake
    (lower-case names; the first of a repeated header), empty on TCP.
    """

    token: bytes
    transport: str = "tcp"
    address: str = ""
    path: str = ""
    headers: Mapping[str, str] = field(factory=dict)

    @property
    def cookie(self) -> str:
        """The Cookie header of the WebSocket handshake, empty without one."""
        return self.headers.get("cookie", "")


class Pusher(Protocol):
    """The pushes a hook may make, as ``self.server``; :class:`goim_core.Server` is one.

    ``op`` an int32 of 64 or more (or 4, 5); ``body`` opaque bytes. Each returns when the queue has the
    push; with ``nowait`` a full queue raises :class:`~goim_core.errors.QueueFull` at once.
    """

    async def push_keys(self, keys: Iterable[str], op: int, body: bytes, *, nowait: bool = False) -> None:
        """Push to the connections with these keys that accept ``op``."""

    async def push_mids(self, mids: Iterable[int], op: int, body: bytes, *, nowait: bool = False) -> None:
        """Push to every connection of these users that accepts ``op``."""

    async def push_room(self, room_id: str, op: int, body: bytes, *, nowait: bool = False) -> None:
        """Push to every connection in the room ``type://id``."""

    async def push_all(self, op: int, body: bytes, *, speed: int = 0, nowait: bool = False) -> None:
        """Push to every connection that accepts ``op``, at ``speed`` connections a second (0: at once)."""

    def online_rooms(self, room_ids: Iterable[str]) -> dict[str, int]:
        """How many connections are in each of these rooms."""


class Hook:
    """The base of all hooks. ``server`` pushes; it is there from the moment the server starts."""

    server: Pusher


class AuthHook(Hook):
    """Decides who may connect. Subclass it and override :meth:`authenticate`."""

    def authenticate(self, request: AuthRequest) -> MaybeAwaitable[Session]:
        """Return the session of whoever brought ``request``.

        Raise :class:`~goim_core.errors.Refused` or :class:`~goim_core.errors.Disconnect` to keep them
        out: the client is told the reason, then closed. May be an ``async def``.
        """
        raise NotImplementedError(f"{type(self).__name__} has no authenticate()")


class OpenAuth(AuthHook):
    """goim's stock behaviour, for development: believes whatever the token's JSON says.

    ``{"mid":123,"key":"","room_id":"live://1000","platform":"web","accepts":[1000,1001]}``; only
    ``mid`` is required.
    """

    def __init__(self) -> None:
        _log.warning("OpenAuth is on: any client may name itself any user. For development only.")

    def authenticate(self, request: AuthRequest) -> Session:
        """The session that the token asks for; refuses a token that is malformed."""
        try:
            token = json.loads(request.token)
        except (ValueError, RecursionError):
            raise _refused("token: expected JSON") from None
        if not isinstance(token, dict):
            raise _refused(f"token: expected a JSON object, got {type(token).__name__}")
        if "mid" not in token:
            raise _refused("mid: missing from the token")
        accepts = token.get("accepts") or []
        if not isinstance(accepts, list):
            raise _refused(f"accepts: expected a list of operations, got {accepts!r:.80}")
        try:
            return Session(
                mid=token["mid"],
                key=_default(token.get("key")),
                room_id=_default(token.get("room_id")),
                platform=_default(token.get("platform")),
                accepts=accepts,
            )
        except ValueError as error:
            raise _refused(str(error)) from None


def _default(value: Any) -> Any:
    # Go reads a JSON null as the field's zero value.
    return "" if value is None else value


def _refused(reason: str) -> Disconnect:
    return Disconnect(reason, CloseCode.AUTH_REFUSED)


class SessionHook(Hook):
    """Follows sessions: names connections, and hears when they come and go."""

    def make_key(self, session: Session) -> MaybeAwaitable[str]:
        """A key for a connection whose session has none; has to be unique. By default 128 random bits."""
        return secrets.token_hex(16)

    def connected(self, session: Session) -> MaybeAwaitable[None]:
        """Called when ``session`` is let in, after its auth reply, before its next frame is read."""

    def disconnected(self, session: Session, reason: Disconnect) -> MaybeAwaitable[None]:
        """Called once for each ``connected``, when that has returned and the connection has ended."""

    def heartbeat(self, session: Session) -> MaybeAwaitable[None]:
        """Called at each heartbeat of ``session``. Left alone it costs nothing."""


class MessageHook(Hook):
    """Answers what clients send: every operation that is not the protocol's own."""

    def receive(self, session: Session, frame: Frame) -> MaybeAwaitable[Frame | bytes | None]:
        """Answer one frame.

        Return ``None`` for goim's reply (the same op, seq and ver, no body), ``bytes`` for that reply
        with a body, or a :class:`~goim_core.protocol.Frame` to say all of it yourself. Raise
        :class:`~goim_core.errors.Refused` to refuse the frame. Frames of one connection come one
        after the other, in order.
        """
        return None
