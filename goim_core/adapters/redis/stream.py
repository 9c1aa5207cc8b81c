"""One node's consumer group on a stream of Redis: each entry once, and again what was not acknowledged."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import anyio

from goim_core.adapters.redis.pipeline import Command, RedisConnection
from goim_core.adapters.trouble import Trouble
from goim_core.errors import BackboneError
from goim_core.masked import masked

__all__ = ["START", "Group", "Id", "read_id", "write_id"]

PREFIX = "goim_core:"
CONSUMER = "job"
BLOCK = 1.0
"""How many seconds one reading waits for something to come."""
MEND_PAUSE = 0.1
ABANDONED = 86_400_000
"""A group that nobody has read from for so many milliseconds is deleted: its node has another name now."""

Id = tuple[int, int]
"""An entry's: milliseconds since 1970 by the clock of Redis, and a number."""
START: Id = (0, 0)
Entry = tuple[Id, list[bytes] | None]
"""An entry, with its fields and values one after the other; None where it was trimmed before it was read."""


class Group:
    """The group of ``node`` on ``stream``, read by ``connection``, which nobody else uses meanwhile."""

    def __init__(self, connection: RedisConnection, stream: str, node: str, log: logging.Logger) -> None:
        self._connection = connection
        self._stream = stream
        self._name = PREFIX + node
        self._log = log
        self.trouble = Trouble(log, f"the stream {stream!r} in Redis")
        self.read_to = START
        """The last entry that came."""
        self._pending_after: Id | None = START
        """How far what came before, and was not acknowledged, is read; None when all of it is."""

    async def start(self) -> int:
        """Make the group where there is none, beginning with what is new; the time, in milliseconds.

        Raises :class:`~goim_core.errors.BackboneError` that says what is wrong.
        """
        (seconds, microseconds), made = await self._connection.exchange([("TIME",), self._make("$")])
        self._check_made(made)
        (groups,) = await self._connection.exchange([("XINFO", "GROUPS", self._stream)])
        found = {group[b"name"]: group for group in _dicts(groups)}
        own = found.pop(self._name.encode(), None)
        if own is not None:
            self.read_to = read_id(own[b"last-delivered-id"])
        await self._delete_abandoned([name for name in found if name.startswith(PREFIX.encode())])
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def read(self, count: int) -> list[Entry]:
        """The next entries, at most ``count``; none when none came for a while. All of them are to be taken.

        Raises :class:`~goim_core.errors.BackboneError`. After that what came and is not acknowledged comes
        again, because some of it may have been on its way: also what the caller has.
        """
        pending = self._pending_after is not None
        after = b">" if self._pending_after is None else write_id(self._pending_after)
        where = ("STREAMS", self._stream, after)
        command = ("XREADGROUP", "GROUP", self._name, CONSUMER, "COUNT", count, "BLOCK", int(BLOCK * 1000))
        self._pending_after = START  # if this fails
        (reply,) = await self._connection.exchange([(*command, *where)], BLOCK)
        if isinstance(reply, Exception):
            await self._mend(reply)
            return []
        self.trouble.end()
        entries = [(read_id(entry), fields) for entry, fields in reply[0][1]] if reply else []
        last = entries[-1][0] if entries else START
        self._pending_after = last if pending and entries else None
        self.read_to = max(self.read_to, last)
        return entries

    def acknowledgement(self, ids: Iterable[Id]) -> Command:
        """The command that says that these have been dealt with."""
        return ("XACK", self._stream, self._name, *map(write_id, ids))

    async def _mend(self, error: Exception) -> None:
        """The group is gone, or the stream: Redis came back without them, or somebody deleted them."""
        # Not exactly from there: a new stream may have begun within the same millisecond.
        last = (max(0, self.read_to[0] - 1), 0)
        (made,) = await self._connection.exchange([self._make(write_id(last))])
        try:
            self._check_mended(made, error)
        except BackboneError as still:
            self.trouble.begin(still)
            raise
        self._log.warning("the stream %r had lost the group of this node: %s", self._stream, error)
        await anyio.sleep(MEND_PAUSE)

    def _make(self, after: str | bytes) -> Command:
        return ("XGROUP", "CREATE", self._stream, self._name, after, "MKSTREAM")

    def _check_made(self, reply: Any) -> None:
        if not isinstance(reply, Exception) or str(reply).startswith("BUSYGROUP"):
            return
        if "WRONGTYPE" in str(reply):
            raise BackboneError(
                f"stream: {self._stream!r} is in use in Redis for something that is no stream"
            )
        raise BackboneError(f"url: this Redis cannot be used: {masked(reply)}")

    def _check_mended(self, reply: Any, error: Exception) -> None:
        self._check_made(reply)
        if isinstance(reply, Exception):  # the group is there: it is the reading that is refused
            raise BackboneError(f"url: Redis refused: {masked(error)}")

    async def _delete_abandoned(self, names: list[bytes]) -> None:
        if not names:
            return
        consumers = await self._connection.exchange(
            [("XINFO", "CONSUMERS", self._stream, name) for name in names]
        )
        idle = [[each[b"idle"] for each in _dicts(reply)] for reply in consumers]
        abandoned = [
            name for name, times in zip(names, idle, strict=True) if times and min(times) > ABANDONED
        ]
        if abandoned:
            await self._connection.exchange([("XGROUP", "DESTROY", self._stream, name) for name in abandoned])


def read_id(text: bytes) -> Id:
    """The id that Redis wrote."""
    milliseconds, _, number = text.partition(b"-")
    return int(milliseconds), int(number)


def write_id(id_: Id) -> bytes:
    """``id_`` as Redis writes it."""
    return b"%d-%d" % id_


def _dicts(reply: Any) -> list[dict[bytes, Any]]:
    """What XINFO said; nothing where it may not be asked."""
    if isinstance(reply, Exception):
        return []
    return [dict(zip(each[::2], each[1::2], strict=True)) for each in reply]
