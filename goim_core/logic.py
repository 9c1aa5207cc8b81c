"""Logic: who may connect, where everyone is, what may be done, and what becomes of a client's message.

What clients cause is a flow (see flow.py), so that plain hooks cost no task. What the application
pushes is publisher.py's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from typing import Any, cast

from attrs import define

from goim_core.clock import Clock
from goim_core.errors import CloseCode, Disconnect, ErrorCode, HookError, Refused
from goim_core.flow import Flow, attempt, settle, settle_unquoted, waits
from goim_core.hooks import AuthHook, MessageHook, RoomHook, SessionHook
from goim_core.protocol import INT32_MAX, Frame, encode
from goim_core.publisher import Publisher
from goim_core.registry import Registry
from goim_core.session import AuthRequest, Session, check_key
from goim_core.storage import StorageHook, Stored

__all__ = ["Hooks", "Logic"]

PAGE = 100
"""How many stored messages are read at once."""
PAGE_BYTES = 1 << 16
"""How many bytes of them: what the storage holds in memory for one connection."""


@define
class Hooks:
    """The application's part of a server."""

    auth: AuthHook
    rooms: RoomHook
    sessions: SessionHook
    messages: MessageHook
    storage: StorageHook | None = None


class Logic:
    """The business of one server named ``name``, between comet, the hooks and the registry."""

    def __init__(
        self, name: str, *, hooks: Hooks, registry: Registry, publisher: Publisher, clock: Clock
    ) -> None:
        self.name = name
        self._hooks = hooks
        self._registry = registry
        self._publisher = publisher
        self._clock = clock
        self.stores = hooks.storage is not None
        """Whether users have an inbox."""
        self.beats = (
            self.stores
            or _overrides(hooks.sessions, "heartbeat", SessionHook)
            or _overrides(registry, "renew", Registry)
        )
        """Whether a heartbeat concerns anyone; where not, none is told."""
        self._tells_rooms = any(_overrides(hooks.rooms, name, RoomHook) for name in ("entered", "left"))

    # A connection's life.

    def connect(self, request: AuthRequest) -> Flow[Session]:
        """Authenticate, name the connection, see that it may come in, and register where it is."""
        # waits() and not settle() where every client comes by: a generator for each hook would cost more than
        # most hooks do.
        session = yield from self._authenticated(request)
        hook, key = self._hooks.sessions, session.key
        if key:
            yield from settle(hook.check_key(session))
        else:
            made = hook.make_key(session)
            if waits(made):
                made = yield made
            if not isinstance(made, str):
                raise _wrong(hook.make_key, "a str", made)
            key = made
        device = session.device or session.platform
        session = session.placed(check_key(key), device, self.name)
        if session.room_id:
            yield from self.may_enter(session, session.room_id)
        policy = hook.logins
        if policy.at_most is None or policy.replace:
            added = self._registry.add(session)
            if waits(added):
                yield added
        else:
            yield from self._add_as_one_of(policy.at_most, session)
        return session

    def _authenticated(self, request: AuthRequest) -> Flow[Session]:
        session = yield from settle_unquoted(self._hooks.auth.authenticate, request)
        if not isinstance(session, Session):
            raise _wrong(self._hooks.auth.authenticate, "a Session", session)
        return session

    def _add_as_one_of(self, at_most: int, session: Session) -> Flow[None]:
        why = Disconnect("this user is connected elsewhere", CloseCode.TOO_MANY_LOGINS)
        others = [other for other in (yield from self._logins(session)) if other.key != session.key]
        if len(others) >= at_most:
            raise why
        yield from settle(self._registry.add(session))
        added = False
        try:
            # Others may have come at the same time: the first of them stay.
            logins = yield from self._logins(session)
            added = session.key in [other.key for other in logins[:at_most]]
            if not added:
                raise why
        finally:
            if not added:
                yield from self.withdraw(session)

    def _logins(self, session: Session) -> Flow[list[Session]]:
        """The user's connections that count together with ``session``, oldest first."""
        found = yield from settle(self._registry.mids([session.mid]))
        each_platform = self._hooks.sessions.logins.each_platform
        return [other for other in found if not each_platform or other.platform == session.platform]

    def held(self, session: Session) -> int | None:
        """How many connections its user has here, itself too; None where the registry cannot say at once."""
        return self._registry.held(session.mid, self.name)

    def withdraw(self, session: Session) -> Flow[bool]:
        """Undo :meth:`connect` for a connection that was gone before it was let in; was there a route?"""
        return (yield from settle(self._registry.remove(session)))

    def connected(self, session: Session) -> Flow[None]:
        """Tell the hooks that ``session`` is let in, and make room for it under the login policy."""
        told = False
        try:
            heard = self._hooks.sessions.connected(session)
            if waits(heard):
                yield heard
            told = True
        finally:
            if not told:
                session.room_id = ""  # nobody heard that it entered, so nobody shall hear that it left
        if self._tells_rooms:
            yield from self.moved(session, frozenset(), session.rooms)
        at_most = self._hooks.sessions.logins.at_most
        if at_most is not None:
            # The older ones only: of two that come at the same time, the second stays.
            logins = yield from self._logins(session)
            older = list(takewhile(lambda other: other.key != session.key, logins))
            if len(older) >= at_most:
                why = Disconnect("this user has connected elsewhere", CloseCode.TOO_MANY_LOGINS)
                yield self._publisher.disconnect_sessions(older[: len(older) + 1 - at_most], why)

    def withdrawn(self, session: Session, written: int) -> Iterator[Flow[object]]:
        """Forget where ``session`` was: to be run one after the other. ``written`` as in :meth:`written`."""
        yield self.withdraw(session)
        if self.stores:
            yield self.written(session, written)
            yield self._saw(session)

    def disconnected(self, session: Session, why: Disconnect) -> Iterator[Flow[None]]:
        """Tell the hooks that ``session`` is gone: to be run one after the other, each surely."""
        for room_id in sorted(session.rooms):
            yield self._left(session, room_id)
        yield self._disconnected(session, why)

    def _saw(self, session: Session) -> Flow[None]:
        if not (yield from settle(self._registry.mids([session.mid]))):
            yield from settle(self._storage().saw(session.mid, self._clock.time()))

    def _disconnected(self, session: Session, why: Disconnect) -> Flow[None]:
        yield from settle(self._hooks.sessions.disconnected(session, why))

    def heartbeat(self, session: Session, written: int) -> Flow[None]:
        """Renew the route of ``session``, and tell the session hook. ``written`` as in :meth:`written`."""
        yield from settle(self._registry.renew(session))
        yield from self.written(session, written)
        yield from settle(self._hooks.sessions.heartbeat(session))

    def refresh(self, session: Session, request: AuthRequest) -> Flow[None]:
        """Let ``session`` go on with a new token of the same user."""
        try:
            renewed = yield from self._authenticated(request)
        except Disconnect as turned_away:
            raise Refused(turned_away.reason) from None
        if renewed.mid != session.mid:
            raise Refused("token: it is another user's")
        session.expires, session.data = renewed.expires, renewed.data

    # Rooms.

    def may_enter(self, session: Session, room_id: str) -> Flow[None]:
        """Raise :class:`~goim_core.errors.Refused` where ``session`` may not be in the room."""
        allowed = self._hooks.rooms.may_enter(session, room_id)
        if waits(allowed):
            allowed = yield allowed
        if not isinstance(allowed, bool):
            raise _wrong(self._hooks.rooms.may_enter, "True or False", allowed)
        if not allowed:
            raise Refused(f"room_id: {room_id} is not open to this user")

    def moved(self, session: Session, before: frozenset[str], after: frozenset[str]) -> Flow[None]:
        """Tell the room hook which rooms ``session`` has left and entered."""
        if not self._tells_rooms:
            return
        wish = None
        try:
            for room_id in before - after:  # one at most
                wish = yield from attempt(self._left(session, room_id))
        finally:
            # Cut short or not: this one will be told that it is left.
            for room_id in after - before:
                wish = (yield from attempt(self._entered(session, room_id))) or wish
        if wish is not None:
            raise wish

    def _entered(self, session: Session, room_id: str) -> Flow[None]:
        yield from settle(self._hooks.rooms.entered(session, room_id))

    def _left(self, session: Session, room_id: str) -> Flow[None]:
        yield from settle(self._hooks.rooms.left(session, room_id))

    # Messages.

    def receive(self, session: Session, frame: Frame) -> Flow[bytes]:
        """Ask the message hook; returns the bytes of the reply."""
        reply = yield from settle(self._hooks.messages.receive(session, frame))
        if reply is None:
            return encode(frame.op, b"", frame.seq, frame.ver)
        if isinstance(reply, bytes):
            return encode(frame.op, reply, frame.seq, frame.ver)
        if isinstance(reply, Frame):
            return reply.encode()
        raise _wrong(self._hooks.messages.receive, "None, bytes or a Frame", reply)

    # The inbox.

    def cursor(self, session: Session) -> Flow[int]:
        """The last number that the session's device has acknowledged."""
        storage = self._storage()
        return _number(storage.cursor, (yield from settle(storage.cursor(session.mid, session.device))))

    def after(self, session: Session, seq: int, limit: int = PAGE) -> Flow[Sequence[Stored]]:
        """The next page of the user's inbox."""
        storage = self._storage()
        page = yield from settle(storage.after(session.mid, seq, limit, PAGE_BYTES))
        return _page(storage.after, page, seq)

    def acknowledge(self, session: Session, seq: int) -> Flow[int]:
        """Move the cursor of the session's device; where it is now."""
        storage = self._storage()
        moved = yield from settle(storage.acknowledge(session.mid, session.device, seq))
        cursor = _number(storage.acknowledge, moved)
        if seq > cursor:
            raise Refused(f"ack: {seq} is beyond the last message that was stored", ErrorCode.BAD_REQUEST)
        return cursor

    def written(self, session: Session, seq: int) -> Flow[None]:
        """A client that does not acknowledge was written the messages up to ``seq`` (0: nothing new)."""
        if seq and self._hooks.storage is not None:
            yield from settle(self._hooks.storage.acknowledge(session.mid, session.device, seq))

    def last_seen(self, session: Session, mids: Iterable[int]) -> Flow[dict[int, tuple[bool, float | None]]]:
        """Of each user whether they are online, and when their last connection ended."""
        asked = list(mids)
        for mid in asked:
            if (yield from settle(self._hooks.sessions.may_see(session, mid))) is not True:
                raise Refused(f"user {mid}: not for this user to ask about")
        seen = yield from settle(self._storage().last_seen(asked))
        online = {other.mid for other in (yield from settle(self._registry.mids(asked)))}
        return {mid: (mid in online, seen.get(mid)) for mid in asked}

    def _storage(self) -> StorageHook:
        if self._hooks.storage is None:
            raise Refused("this server keeps no inbox", ErrorCode.NOT_FOUND)
        return self._hooks.storage


def _number(method: Any, value: object) -> int:
    if type(value) is not int or not 0 <= value <= INT32_MAX:
        raise _wrong(method, "a number of the inbox, 0 or more", value)
    return value


def _page(method: Any, page: Any, seq: int) -> Sequence[Stored]:
    """``page``, which has to lead on from ``seq``: one that did not would be sent for ever."""
    last = seq
    for message in page if isinstance(page, Sequence) else (None,):
        if not (isinstance(message, Stored) and _fits(message) and last < message.seq):
            raise _wrong(method, f"Stored messages behind number {seq}, in order", page)
        last = message.seq
    return cast("Sequence[Stored]", page)


def _fits(message: Stored) -> bool:
    numbers = isinstance(message.seq, int) and isinstance(message.op, int)
    return numbers and max(message.seq, message.op) <= INT32_MAX and isinstance(message.body, bytes)


def _overrides(instance: object, name: str, base: type) -> bool:
    return getattr(type(instance), name) is not getattr(base, name)


def _wrong(method: Any, allowed: str, value: object) -> HookError:
    return HookError(f"{method.__qualname__} may return {allowed}; it returned {type(value).__name__}")
