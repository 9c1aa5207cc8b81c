"""What an application puts in: base classes to subclass, each with a working default.

A hook method may be an ``async def`` or a plain function. A plain one costs no task, and so must
not block; an ``async def`` runs in a task of its own while its connection waits and all others go
on. Raise :class:`~goim_core.errors.Refused` to refuse one frame, or
:class:`~goim_core.errors.Disconnect` to close the connection; anything else that is raised is
logged and answered as an internal error.

The storage of messages for those who are away is a hook too: see storage.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from os import urandom
from typing import Any, Protocol

from attrs import field, frozen

from goim_core.clock import Clock
from goim_core.errors import ConfigurationError, Disconnect
from goim_core.protocol import Frame
from goim_core.session import AuthRequest, MaybeAwaitable, Session

__all__ = [
    "AuthHook",
    "Hook",
    "LoginPolicy",
    "MessageHook",
    "Pusher",
    "RoomHook",
    "SessionHook",
]


class Pusher(Protocol):
    """What a hook may ask of the server, as ``self.server``; :class:`goim_core.Server` is one.

    ``op`` an int32 of 64 or more (or 4, 5); ``body`` opaque bytes. Each push returns when the queue has
    it; with ``nowait`` a full queue raises :class:`~goim_core.errors.QueueFull` at once.
    """

    @property
    def clock(self) -> Clock:
        """The server's clock, which a test may own."""

    async def push_keys(self, keys: Iterable[str], op: int, body: bytes, *, nowait: bool = False) -> None:
        """Push to the connections with these keys that accept ``op``."""

    async def push_mids(
        self, mids: Iterable[int], op: int, body: bytes, *, nowait: bool = False, idempotency_key: str = ""
    ) -> None:
        """Push to every connection of these users that accepts ``op``.

        With a storage the message is stored first, for those who are away; a push that is tried again
        with the same ``idempotency_key`` is stored once.
        """

    async def push_room(self, room_id: str, op: int, body: bytes, *, nowait: bool = False) -> None:
        """Push to every connection in the room ``type://id``."""

    async def push_all(self, op: int, body: bytes, *, speed: int = 0, nowait: bool = False) -> None:
        """Push to every connection that accepts ``op``, at ``speed`` connections a second (0: at once)."""

    async def disconnect_keys(self, keys: Iterable[str], why: Disconnect) -> None:
        """Tell the connections with these keys why, and close them."""

    async def disconnect_mids(self, mids: Iterable[int], why: Disconnect) -> None:
        """Tell every connection of these users why, and close them."""

    def online_rooms(self, room_ids: Iterable[str]) -> dict[str, int]:
        """How many connections are in each of these rooms."""

    def members(self, room_id: str, *, offset: int = 0, limit: int = 100) -> list[Session]:
        """Who is in the room on this node, in the order they came: at most ``limit`` after ``offset``."""


class Hook:
    """The base of all hooks. ``server`` pushes; it is there from the moment the server is made."""

    server: Pusher

    async def start(self) -> None:
        """Open files and connections; called once when the server starts. By default there are none."""

    async def aclose(self) -> None:
        """Let go of files and connections; called when the server has stopped."""

    def now(self) -> float:
        """Seconds since 1970, on the server's clock where there is one."""
        server: Pusher | None = getattr(self, "server", None)
        return time.time() if server is None else server.clock.time()


class AuthHook(Hook):
    """Decides who may connect. Subclass it and override :meth:`authenticate`."""

    def authenticate(self, request: AuthRequest) -> MaybeAwaitable[Session]:
        """Return the session of whoever brought ``request``.

        Raise :class:`~goim_core.errors.Refused` or :class:`~goim_core.errors.Disconnect` to keep them
        out: the client is told the reason, then closed. Asked again when a client refreshes a token that
        runs out (see ``Session.expires``): a refusal then leaves it as it was. May be an ``async def``.
        """
        raise NotImplementedError(f"{type(self).__name__} has no authenticate()")


class RoomHook(Hook):
    """Decides who may be in which room, and hears who is."""

    def may_enter(self, session: Session, room_id: str) -> MaybeAwaitable[bool]:
        """Whether ``session`` may be in ``room_id``: asked at authentication, change of room and join.

        False, or a :class:`~goim_core.errors.Refused` that says why, leaves the client where it was; at
        authentication it is turned away. By default everyone may.
        """
        return True

    def entered(self, session: Session, room_id: str) -> MaybeAwaitable[None]:
        """``session`` is in ``room_id`` now."""

    def left(self, session: Session, room_id: str) -> MaybeAwaitable[None]:
        """``session`` is not in ``room_id`` any more: called once for each ``entered``."""


def _at_most(_: Any, attribute: Any, value: Any) -> None:
    if value is not None and (type(value) is not int or value < 1):
        raise ConfigurationError(f"{attribute.name}: expected 1 or more connections or None, got {value!r}")


@frozen
class LoginPolicy:
    """How many connections one user may have, and what becomes of one more.

    ``LoginPolicy()`` allows any number. ``LoginPolicy(at_most=1)`` replaces the old with the new,
    ``LoginPolicy(at_most=1, replace=False)`` refuses the new, ``LoginPolicy(at_most=3)`` keeps the newest
    three. With ``each_platform`` every platform counts for itself: only for tokens that sign it, since a
    client that chooses its platform has as many as it can name.

    Raises :class:`~goim_core.errors.ConfigurationError` that names the field.
    """

    at_most: int | None = field(default=None, validator=_at_most)
    replace: bool = True
    each_platform: bool = False


class SessionHook(Hook):
    """Follows sessions: names connections, and hears when they come and go.

    ``logins`` is the policy for several connections of one user: a class attribute to override.
    """

    logins: LoginPolicy = LoginPolicy()

    def make_key(self, session: Session) -> MaybeAwaitable[str]:
        """A key for a connection whose session has none; has to be unique. By default 128 random bits."""
        return urandom(16).hex()

    def check_key(self, session: Session) -> MaybeAwaitable[None]:
        """Raise :class:`~goim_core.errors.Refused` where ``session`` may not have the key that it names.

        A connection takes over the key of an older one, which is closed. By default any key will do, as
        in goim.
        """

    def connected(self, session: Session) -> MaybeAwaitable[None]:
        """Called when ``session`` is let in, after its auth reply, before its next frame is read."""

    def disconnected(self, session: Session, reason: Disconnect) -> MaybeAwaitable[None]:
        """Called once for each ``connected``, when that has returned and the connection has ended."""

    def heartbeat(self, session: Session) -> MaybeAwaitable[None]:
        """Called at each heartbeat of ``session``. Left alone it costs nothing."""

    def may_see(self, session: Session, mid: int) -> MaybeAwaitable[bool]:
        """Whether ``session`` may ask when the user ``mid`` was last seen. By default only itself."""
        return mid == session.mid


class MessageHook(Hook):
    """Answers what clients send: every operation that is not the protocol's own."""

    def receive(self, session: Session, frame: Frame) -> MaybeAwaitable[Frame | bytes | None]:
        """Answer one frame.

        Return ``None`` for goim's reply (the same op, seq and ver, no body), ``bytes`` for that reply
        with a body, or a :class:`~goim_core.protocol.Frame` to say all of it yourself. Raise
        :class:`~goim_core.errors.Refused` to refuse the frame. Frames of one connection come one
        after the other, in order. ``self.server`` sends on: to users, to a room, to all.
        """
        return None
