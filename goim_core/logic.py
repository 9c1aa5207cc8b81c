"""Logic: who may connect, where everyone is, and what becomes of a push or a client's message.

What clients cause is a flow (see flow.py), so that plain hooks cost no task; what the application
calls is an ``async def``.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, TypeVar, cast

import anyio.lowlevel
from attrs import evolve

from goim_core.comet import Comet
from goim_core.errors import Disconnect, HookError
from goim_core.flow import Flow, settle
from goim_core.hooks import (
    AuthHook,
    AuthRequest,
    MaybeAwaitable,
    MessageHook,
    Session,
    SessionHook,
    check_key,
    check_room_id,
)
from goim_core.protocol import INT32_MAX, Frame, encode, pushable
from goim_core.queue import PushMsg, PushType, Queue
from goim_core.registry import Registry, Routes

__all__ = ["Logic"]

T = TypeVar("T")


class Logic:
    """The business of one server named ``name``, between comet, the hooks, the registry and the queue."""

    def __init__(
        self,
        name: str,
        *,
        comet: Comet,
        registry: Registry,
        queue: Queue,
        auth: AuthHook,
        sessions: SessionHook,
        messages: MessageHook,
    ) -> None:
        self.name = name
        self._comet = comet
        self._registry = registry
        self._queue = queue
        self._auth = auth
        self._sessions = sessions
        self._messages = messages
        self.beats = _overrides(sessions, "heartbeat", SessionHook) or _overrides(registry, "renew", Registry)
        """Whether a heartbeat concerns anyone; where not, none is told."""

    def connect(self, request: AuthRequest) -> Flow[Session]:
        """Authenticate, name the connection, and register where it is."""
        session = yield from settle(self._auth.authenticate(request))
        if not isinstance(session, Session):
            raise _wrong(self._auth.authenticate, "a Session", session)
        key = session.key
        if not key:
            key = yield from settle(self._sessions.make_key(session))
            if not isinstance(key, str):
                raise _wrong(self._sessions.make_key, "a str", key)
        session = evolve(session, key=check_key(key), server=self.name)
        yield from settle(self._registry.add(session))
        return session

    def withdraw(self, session: Session) -> Flow[None]:
        """Undo :meth:`connect` for a connection that was gone before it was let in."""
        yield from settle(self._registry.remove(session))

    def connected(self, session: Session) -> Flow[None]:
        """Tell the session hook that ``session`` is let in."""
        yield from settle(self._sessions.connected(session))

    def disconnected(self, session: Session, why: Disconnect) -> Flow[None]:
        """Forget where ``session`` was, and tell the session hook."""
        yield from settle(self._registry.remove(session))
        yield from settle(self._sessions.disconnected(session, why))

    def heartbeat(self, session: Session) -> Flow[None]:
        """Renew the route of ``session``, and tell the session hook."""
        yield from settle(self._registry.renew(session))
        yield from settle(self._sessions.heartbeat(session))

    def receive(self, session: Session, frame: Frame) -> Flow[bytes]:
        """Ask the message hook; returns the bytes of the reply."""
        reply = yield from settle(self._messages.receive(session, frame))
        if reply is None:
            return encode(frame.op, b"", frame.seq, frame.ver)
        if isinstance(reply, bytes):
            return encode(frame.op, reply, frame.seq, frame.ver)
        if isinstance(reply, Frame):
            return reply.encode()
        raise _wrong(self._messages.receive, "None, bytes or a Frame", reply)

    async def push_keys(self, keys: Iterable[str], op: int, body: bytes, *, nowait: bool = False) -> None:
        """See :meth:`goim_core.hooks.Pusher.push_keys`."""
        _check_push(op, body)
        await self._publish(await _settled(self._registry.keys(_many(keys, str, "keys"))), op, body, nowait)

    async def push_mids(self, mids: Iterable[int], op: int, body: bytes, *, nowait: bool = False) -> None:
        """See :meth:`goim_core.hooks.Pusher.push_mids`."""
        _check_push(op, body)
        await self._publish(await _settled(self._registry.mids(_many(mids, int, "mids"))), op, body, nowait)

    async def push_room(self, room_id: str, op: int, body: bytes, *, nowait: bool = False) -> None:
        """See :meth:`goim_core.hooks.Pusher.push_room`."""
        _check_push(op, body)
        msg = PushMsg(PushType.ROOM, op, body, room=check_room_id(room_id))
        await self._queue.publish(msg, nowait=nowait)

    async def push_all(self, op: int, body: bytes, *, speed: int = 0, nowait: bool = False) -> None:
        """See :meth:`goim_core.hooks.Pusher.push_all`."""
        _check_push(op, body)
        if isinstance(speed, bool) or not isinstance(speed, int) or not 0 <= speed <= INT32_MAX:
            raise ValueError(f"speed: expected connections a second, 0 or more, got {speed!r}")
        await self._queue.publish(PushMsg(PushType.BROADCAST, op, body, speed=speed), nowait=nowait)

    async def _publish(self, routes: Routes, op: int, body: bytes, nowait: bool) -> None:
        if not routes:
            # Who pushes to many users that are offline, one by one, would never let anyone else run.
            await anyio.lowlevel.checkpoint()
        for server, keys in routes.items():
            msg = PushMsg(PushType.PUSH, op, body, server=server, keys=tuple(keys))
            await self._queue.publish(msg, nowait=nowait)

    def online_top(self, kind: str, limit: int) -> list[tuple[str, int]]:
        """The rooms ``kind://id`` with the most connections: id and count, largest first."""
        return self._comet.online_top(kind, limit)

    def online_rooms(self, room_ids: Iterable[str]) -> dict[str, int]:
        """How many connections are in each of these rooms."""
        return {room_id: self._comet.online(room_id) for room_id in room_ids}

    def online_total(self) -> tuple[int, int]:
        """How many addresses, and how many connections."""
        return len(self._comet.addresses), len(self._comet.buckets)


def _overrides(instance: object, name: str, base: type) -> bool:
    return getattr(type(instance), name) is not getattr(base, name)


async def _settled(value: MaybeAwaitable[T]) -> T:
    return cast("T", await value if inspect.isawaitable(value) else value)


def _wrong(method: Any, allowed: str, value: object) -> HookError:
    return HookError(f"{method.__qualname__} may return {allowed}; it returned {type(value).__name__}")


def _check_push(op: int, body: bytes) -> None:
    if isinstance(op, bool) or not isinstance(op, int) or not pushable(op):
        raise ValueError(f"op: expected an int32 of 64 or more, or 4, 5; got {op!r}")
    if not isinstance(body, bytes):
        raise ValueError(f"body: expected bytes, got {type(body).__name__}")


def _many(values: Iterable[T], kind: type[T], name: str) -> list[T]:
    if isinstance(values, str | bytes):
        raise ValueError(f"{name}: expected several {kind.__name__}, got {values!r:.80}")
    found = list(values)
    for value in found:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{name}: expected {kind.__name__}, got {value!r:.80}")
    return found
