"""RedisQueue: pushes on a stream of Redis (or Valkey), which all nodes share. Needs redis-py and asyncio.

The stream's entries have one field, ``push``: goim's protobuf ``PushMsg``. Every node reads all of them, in
a consumer group of its own, ``goim_core:<node>``.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import anyio
from attrs import evolve

from goim_core.adapters.loop import check_asyncio
from goim_core.adapters.pushmsg import decode_push, encode_push
from goim_core.adapters.redis.pipeline import (
    RedisConnection,
    RedisPipeline,
    Unanswered,
    check_seconds,
)
from goim_core.adapters.redis.stream import START, Group, Id, read_id
from goim_core.adapters.trouble import Trouble
from goim_core.errors import BackboneError, ConfigurationError, QueueFull, ServerStopped
from goim_core.queue import PushMsg, PushType, Queue

__all__ = ["RedisQueue"]

FIELD = b"push"
READ = 256
"""How many entries one reading takes."""
BUFFER_BYTES = 1 << 24
ACKS = 500
UNTOLD = 10_000
"""No more is read while so many acknowledgements wait to be told."""
ACK_PAUSE = 0.02
"""Acknowledgements are gathered so long, in seconds: that many pushes come again after a crash."""
RETRY = (0.1, 2.0)
"""Seconds until a reading that failed is tried again, the first time and at most."""

_log = logging.getLogger("goim_core.adapters.redis.queue")


class RedisQueue(Queue):
    """The stream ``stream`` in the Redis 6.2 or newer, or Valkey, that ``url`` names; no Redis Cluster.

    :meth:`publish` returns when Redis has the push; whether that is on a disk then is its ``appendfsync``.
    It raises :class:`~goim_core.errors.BackboneError` within ``timeout`` seconds, which says whether Redis
    may have it; with ``nowait`` :class:`~goim_core.errors.QueueFull` when ``size`` publishes are under way.
    Pushes come in the order in which Redis got them. What was published while this node was away comes when
    it is back, if it is not older than ``retention`` seconds; a node that starts for the first time begins
    with what is new. At most ``prefetch`` pushes are read ahead. After a crash the last ones may come again.

    ``skipped`` counts entries that are no pushes, ``expired`` those that were too old.

    Raises :class:`~goim_core.errors.ConfigurationError` that names the argument.
    """

    def __init__(
        self,
        url: str = "redis://127.0.0.1:6379",
        *,
        stream: str = "goim-push-topic",
        retention: float = 60.0,
        timeout: float = 5.0,
        size: int = 1024,
        prefetch: int = 1024,
    ) -> None:
        if not isinstance(stream, str) or not stream:
            raise ConfigurationError(f"stream: expected the name of one, got {stream!r:.80}")
        for name, number in (("size", size), ("prefetch", prefetch)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ConfigurationError(f"{name}: expected a number of at least 1, got {number!r:.80}")
        self.stream = stream
        self.skipped = 0
        self.expired = 0
        self._retention = check_seconds("retention", retention)
        self._timeout = check_seconds("timeout", timeout)
        self._writer = RedisConnection(url, timeout, _log)
        self._reader = RedisConnection(url, timeout, _log)
        self._pipeline = RedisPipeline(self._writer)
        self._node = ""
        self._group = Group(self._reader, stream, "", _log)
        self._size = size
        self._places = anyio.Semaphore(size, fast_acquire=True)
        self._prefetch = prefetch
        self._arrived: deque[PushMsg] = deque()
        self._arrived_bytes = 0
        self._changed = anyio.Event()
        self._waiting: set[Id] = set()
        """What came for this node and is not acknowledged."""
        self._here: set[Id] = set()
        """What came at all and Redis was not told of yet."""
        self._acknowledged: list[Id] = []
        self._to_acknowledge = anyio.Event()
        self._refused = Trouble(_log, f"publishing to the stream {stream!r} in Redis")
        self._untold = Trouble(_log, f"acknowledging on the stream {stream!r} in Redis")
        self._published = START
        self._ahead = 0.0
        self._closed = False

    # Life.

    async def start(self, node: str) -> None:
        """See :meth:`Queue.start`."""
        check_asyncio("RedisQueue")
        self._node = node
        self._group = Group(self._reader, self.stream, node, _log)
        try:
            self._set_clock(await self._group.start())
        except BaseException:
            await self._reader.aclose()
            raise

    async def run(self) -> None:
        """See :meth:`Queue.run`."""
        async with anyio.create_task_group() as tasks:
            for work in (self._pipeline.run, self._read, self._tell_acknowledged, self._trim):
                tasks.start_soon(work)

    async def aclose(self) -> None:
        """Tell what was acknowledged, and close; who waits, and all who come later, get ServerStopped."""
        self._closed = True
        self._pipeline.close()
        self._arrived.clear()
        self._wake()
        self._places.release()
        if self._acknowledged and not self._writer.trouble.text:
            try:
                await self._writer.exchange(
                    [self._group.acknowledgement(part) for part in _parts(self._acknowledged)]
                )
            except BackboneError as error:
                _log.warning("some pushes will come again: %s", error)
        for connection in (self._reader, self._writer):
            await connection.aclose()

    @property
    def trouble(self) -> str:
        """See :attr:`Queue.trouble`."""
        connections = self._writer.trouble.text or self._reader.trouble.text
        others = (self._group.trouble, self._refused, self._untold)
        return connections or "; ".join(each.text for each in others if each.text)

    # Publishing.

    async def publish(self, msg: PushMsg, *, nowait: bool = False) -> None:
        """See :meth:`Queue.publish`. Raises BackboneError where Redis does not take it in time."""
        self._check_open()
        data = encode_push(msg)
        until = anyio.current_time() + self._timeout
        await self._take_place(nowait)
        try:
            oldest = b"%d" % max(0, self._now() - int(self._retention * 1000))
            add = ("XADD", self.stream, "MINID", "~", oldest, "*", FIELD, data)
            (reply,) = await self._pipeline.calls([add], within=until - anyio.current_time())
        except Unanswered:
            self._check_open()
            raise
        except BackboneError as error:
            self._refused.begin(error)
            raise
        finally:
            self._places.release()
        self._refused.end()
        self._published = max(self._published, read_id(reply))
        self._set_clock(self._published[0])

    async def _take_place(self, nowait: bool) -> None:
        try:
            self._places.acquire_nowait()
        except anyio.WouldBlock:
            if nowait:
                raise QueueFull(f"the push queue is full: {self._size} pushes are under way") from None
        else:
            return
        with anyio.move_on_after(self._timeout):
            await self._places.acquire()
            if self._closed:
                self._places.release()  # the next that waits is to be told too
                self._check_open()
            return
        raise Unanswered(self._writer.late(), sent=False)

    def _check_open(self) -> None:
        if self._closed:
            raise ServerStopped("the push queue is closed")

    @property
    def full(self) -> bool:
        """See :attr:`Queue.full`."""
        return not self._places.value

    @property
    def pending(self) -> int:
        """See :attr:`Queue.pending`: those under way to Redis, and those that came and are not sent yet."""
        return self._size - self._places.value + len(self._waiting)

    async def drain(self) -> None:
        """See :meth:`Queue.drain`: all that is in Redis up to what this process published last."""
        last = self._published
        while self._group.read_to < last or any(each <= last for each in self._waiting):
            await self._changed.wait()

    # Receiving.

    async def receive(self) -> PushMsg:
        """See :meth:`Queue.receive`."""
        while not self._arrived:
            self._check_open()
            await self._changed.wait()
        msg = self._arrived.popleft()
        self._arrived_bytes -= len(msg.msg)
        self.lag = max(0.0, self._now() - msg.tag[0]) / 1000
        if not self._arrived:
            self._wake()
        return msg

    def acknowledge(self, msg: PushMsg) -> None:
        """See :meth:`Queue.acknowledge`."""
        self._waiting.discard(msg.tag)
        self._done(msg.tag)
        self._wake()

    def _done(self, id_: Id) -> None:
        self._acknowledged.append(id_)
        self._to_acknowledge.set()

    def _wake(self) -> None:
        """Something has come, gone or been read: whoever waits shall look."""
        if self._changed.statistics().tasks_waiting:
            self._changed.set()
            self._changed = anyio.Event()

    async def _read(self) -> None:
        pause, most = RETRY
        while True:
            while self._enough:
                await self._changed.wait()
            try:
                entries = await self._group.read(min(READ, self._prefetch - len(self._arrived)))
                pause, _ = RETRY
            except BackboneError:  # it is in trouble, and said so
                await anyio.sleep(pause)
                pause = min(2 * pause, most)
                continue
            for id_, fields in entries:
                if id_ not in self._here:
                    self._here.add(id_)
                    self._take(id_, fields)
            self._wake()

    @property
    def _enough(self) -> bool:
        untold = len(self._acknowledged) >= UNTOLD
        return untold or len(self._arrived) >= self._prefetch or self._arrived_bytes >= BUFFER_BYTES

    def _take(self, id_: Id, fields: list[bytes] | None) -> None:
        msg = self._decoded(id_, fields)
        if msg is None or (msg.type is PushType.PUSH and msg.server != self._node):
            self._done(id_)
            return
        self._waiting.add(id_)
        self._arrived.append(evolve(msg, tag=id_))
        self._arrived_bytes += len(msg.msg)

    def _decoded(self, id_: Id, fields: list[bytes] | None) -> PushMsg | None:
        if fields is None or self._now() - id_[0] > self._retention * 1000:
            self.expired += 1
            _tell(self.expired, "%d pushes were too old to be sent", self.expired)
            return None
        try:
            found = dict(zip(fields[::2], fields[1::2], strict=True))
            return decode_push(found[FIELD])
        except (KeyError, ValueError) as error:
            self.skipped += 1
            why = f"no field {error}" if isinstance(error, KeyError) else error
            _tell(self.skipped, "passed over %d entries that are no pushes, the last: %s", self.skipped, why)
            return None

    # What goes on beside.

    async def _tell_acknowledged(self) -> None:
        while True:
            if not self._acknowledged:
                self._to_acknowledge = anyio.Event()
                await self._to_acknowledge.wait()
            if len(self._acknowledged) < ACKS:
                await anyio.sleep(ACK_PAUSE)
            some = self._acknowledged[:ACKS]
            try:
                await self._pipeline.call(*self._group.acknowledgement(some))
            except BackboneError as error:
                if not isinstance(error, Unanswered):  # of that the connection says enough
                    self._untold.begin(error)
                await anyio.sleep(RETRY[1])
            else:
                del self._acknowledged[: len(some)]
                self._here.difference_update(some)
                self._untold.end()
                self._wake()

    async def _trim(self) -> None:
        """Make room, also while nothing can be published because there is none."""
        while True:
            await anyio.sleep(min(5.0, max(0.1, self._retention / 10)))
            await self._look_at_clock()
            oldest = b"%d" % max(0, self._now() - int(self._retention * 1000))
            try:
                await self._pipeline.call("XTRIM", self.stream, "MINID", "=", oldest)
            except BackboneError as error:
                _log.debug("not trimmed: %s", error)  # it is in trouble, and said so

    async def _look_at_clock(self) -> None:
        """Somebody may have set it: by an old one, what has just come could be too old."""
        try:
            seconds, microseconds = await self._pipeline.call("TIME")
        except BackboneError as error:
            _log.debug("the time of Redis is not known: %s", error)
        else:
            self._set_clock(int(seconds) * 1000 + int(microseconds) // 1000)

    def _set_clock(self, milliseconds: int) -> None:
        self._ahead = milliseconds - time.monotonic() * 1000

    def _now(self) -> int:
        """The time by the clock of Redis, in milliseconds."""
        return int(self._ahead + time.monotonic() * 1000)


def _parts(ids: Sequence[Id]) -> Iterable[Sequence[Id]]:
    return (ids[start : start + ACKS] for start in range(0, len(ids), ACKS))


def _tell(count: int, text: str, *arguments: Any) -> None:
    """Say it the 1st, 2nd, 4th, 8th time: one bad publisher shall not fill the log."""
    if not count & (count - 1):
        _log.warning(text, *arguments)
