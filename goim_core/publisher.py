"""Pushes on their way in: checked, stored where they are for users, and put on the queue."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import anyio.lowlevel

from goim_core.clock import Deadlines
from goim_core.errors import ConfigurationError, Disconnect, HookError, QueueFull, StorageError
from goim_core.flow import settled
from goim_core.metrics import PushCount
from goim_core.protocol import INT32_MAX, Op, pushable
from goim_core.queue import PushMsg, PushType, Queue
from goim_core.registry import Registry
from goim_core.session import Session, check_room_id
from goim_core.storage import StorageHook, StorePolicy, check_idempotency_key
from goim_core.wire import disconnect_body

__all__ = ["Publisher"]

T = TypeVar("T")


class Publisher:
    """Publishes to ``queue``, by way of ``storage`` where there is one, which gets ``timeout`` seconds.

    ``pushes`` counts the calls by kind.
    """

    def __init__(
        self,
        queue: Queue,
        registry: Registry,
        storage: StorageHook | None,
        deadlines: Deadlines,
        timeout: float,
        *,
        pushes: Mapping[str, PushCount] | None = None,
    ) -> None:
        self.pushes = defaultdict(PushCount) if pushes is None else pushes
        self._queue = queue
        self._registry = registry
        self._storage = storage
        self._deadlines = deadlines
        self.timeout = timeout

    async def push_keys(self, keys: Iterable[str], op: int, body: bytes, *, nowait: bool = False) -> None:
        """See :meth:`goim_core.hooks.Pusher.push_keys`."""
        with self.pushes["keys"]:
            _check_push(op, body)
            routes = await settled(self._registry.keys(_many(keys, str, "keys")))
            for server, found in routes.items():
                msg = PushMsg(PushType.PUSH, op, body, server=server, keys=tuple(found))
                await self._queue.publish(msg, nowait=nowait)
            if not routes:
                await _let_others_run()

    async def push_mids(
        self, mids: Iterable[int], op: int, body: bytes, *, nowait: bool = False, idempotency_key: str = ""
    ) -> None:
        """See :meth:`goim_core.hooks.Pusher.push_mids`."""
        with self.pushes["users"]:
            await self._push_mids(mids, op, body, nowait, idempotency_key)

    async def _push_mids(
        self, mids: Iterable[int], op: int, body: bytes, nowait: bool, idempotency_key: str
    ) -> None:
        _check_push(op, body)
        users = list(dict.fromkeys(_many(mids, int, "mids")))
        storage = self._storage
        if nowait and storage is not None:
            # Refused before it is stored, not when it is half done.
            if self._queue.full:
                raise QueueFull("the push queue is full")
            nowait = False
        if storage is None:
            if idempotency_key:
                raise ConfigurationError("idempotency_key: it needs a storage, and the server has none")
            sessions = await self._sessions(users)
            numbers: dict[int, int] = {}
        elif storage.policy == StorePolicy.ALL:
            numbers = await self._store(storage, users, op, body, idempotency_key)
            sessions = await self._sessions(users)
        else:
            sessions = await self._sessions(users)
            online = {session.mid for session in sessions}
            away = [mid for mid in users if mid not in online]
            numbers = await self._store(storage, away, op, body, idempotency_key)
            # Who came while it was being stored may have read the inbox before it was there.
            sessions += await self._sessions(away)
        await self._publish(sessions, numbers, op, body, nowait)

    async def _sessions(self, mids: Sequence[int]) -> list[Session]:
        return list(await settled(self._registry.mids(mids)))

    async def _store(
        self, storage: StorageHook, mids: Sequence[int], op: int, body: bytes, idempotency_key: str
    ) -> dict[int, int]:
        check_idempotency_key(idempotency_key)
        if not mids:
            return {}
        numbers: object = None
        with self._deadlines.move_on_after(self.timeout) as timer:
            numbers = await settled(storage.append(mids, int(op), body, idempotency_key=idempotency_key))
        if timer.cancelled_caught:
            raise StorageError(f"the storage took longer than {self.timeout:g} s: the push may be in it")
        if not isinstance(numbers, dict) or not all(_is_number(numbers.get(mid)) for mid in mids):
            raise HookError(
                f"{type(storage).__qualname__}.append may return the number, 1 or more, for each user"
            )
        return numbers

    async def _publish(
        self, sessions: Iterable[Session], numbers: dict[int, int], op: int, body: bytes, nowait: bool
    ) -> None:
        routes: dict[str, list[Session]] = {}
        for session in sessions:
            routes.setdefault(session.server, []).append(session)
        for server, held in routes.items():
            keys = tuple(session.key for session in held)
            seqs = tuple(numbers.get(session.mid, 0) for session in held)
            msg = PushMsg(PushType.PUSH, op, body, server=server, keys=keys, seqs=seqs)
            await self._queue.publish(msg, nowait=nowait)
        if not routes:
            await _let_others_run()

    async def push_room(self, room_id: str, op: int, body: bytes, *, nowait: bool = False) -> None:
        """See :meth:`goim_core.hooks.Pusher.push_room`."""
        with self.pushes["room"]:
            _check_push(op, body)
            msg = PushMsg(PushType.ROOM, op, body, room=check_room_id(room_id))
            await self._queue.publish(msg, nowait=nowait)

    async def push_all(self, op: int, body: bytes, *, speed: int = 0, nowait: bool = False) -> None:
        """See :meth:`goim_core.hooks.Pusher.push_all`."""
        with self.pushes["all"]:
            _check_push(op, body)
            if isinstance(speed, bool) or not isinstance(speed, int) or not 0 <= speed <= INT32_MAX:
                raise ValueError(f"speed: expected connections a second, 0 or more, got {speed!r}")
            await self._queue.publish(PushMsg(PushType.BROADCAST, op, body, speed=speed), nowait=nowait)

    async def disconnect_keys(self, keys: Iterable[str], why: Disconnect) -> None:
        """See :meth:`goim_core.hooks.Pusher.disconnect_keys`."""
        with self.pushes["disconnect"]:
            routes = await settled(self._registry.keys(_many(keys, str, "keys")))
            for server, found in routes.items():
                await self._disconnect(server, found, why)

    async def disconnect_mids(self, mids: Iterable[int], why: Disconnect) -> None:
        """See :meth:`goim_core.hooks.Pusher.disconnect_mids`."""
        with self.pushes["disconnect"]:
            await self._disconnect_sessions(await self._sessions(_many(mids, int, "mids")), why)

    async def disconnect_sessions(self, sessions: Iterable[Session], why: Disconnect) -> None:
        """Tell these connections why, and close them, wherever they are."""
        with self.pushes["disconnect"]:
            await self._disconnect_sessions(sessions, why)

    async def _disconnect_sessions(self, sessions: Iterable[Session], why: Disconnect) -> None:
        for session in sessions:
            await self._disconnect(session.server, [session.key], why)

    async def _disconnect(self, server: str, keys: Iterable[str], why: Disconnect) -> None:
        # In the queue like a push, so that it comes behind what was pushed before it.
        msg = PushMsg(
            PushType.PUSH, Op.DISCONNECT_REPLY, disconnect_body(why), server=server, keys=tuple(keys)
        )
        await self._queue.publish(msg)


def _is_number(value: object) -> bool:
    # Beyond an int32 it fits no frame: an inbox that is full for ever.
    return type(value) is int and 0 < value <= INT32_MAX


async def _let_others_run() -> None:
    # Who pushes to many that are offline, one by one, would never let anyone else run.
    await anyio.lowlevel.checkpoint()


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
