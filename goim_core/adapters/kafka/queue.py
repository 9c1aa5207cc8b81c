"""KafkaQueue: pushes on a Kafka topic, which nodes and goim's Go processes may share. Needs aiokafka.

Each node is a consumer group of its own and reads all partitions. It assigns them to itself: there is
nobody to share them with, so there is no rebalancing either, and no waiting for it after a restart.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable
from typing import Any, NoReturn, Unpack

import anyio
import attrs

from goim_core.adapters.kafka.connect import (
    FAILURES,
    Kafka,
    Security,
    TopicPartition,
    said,
)
from goim_core.adapters.kafka.offsets import Partition
from goim_core.adapters.kafka.outgoing import Outgoing
from goim_core.adapters.loop import check_asyncio
from goim_core.adapters.pushmsg import decode_push
from goim_core.adapters.trouble import Trouble
from goim_core.errors import BackboneError, ConfigurationError
from goim_core.queue import PushMsg, PushType, Queue

__all__ = ["KafkaQueue"]

GROUP = "goim-push-group-"
GOIMS_NODE = "job"
"""goim's own consumer group ends in this; a node of this name would share the partitions with it."""
COMMIT_EVERY = 0.1
"""Seconds between two commits: so much may come again after a crash."""
LOOK_EVERY = 1.0
"""Seconds between two looks at whether the brokers answer, and how many partitions there are."""
RETRY_AFTER = 1.0
STARTS_WITHIN = 4
"""Times ``timeout``: the start takes several requests."""
WAIT_MS = 1000
BUFFER_BYTES = 1 << 24
COMPLAIN_EVERY = 10.0
"""Seconds between two lines in the log about messages that are passed over."""

_log = logging.getLogger("goim_core.adapters.kafka")


class KafkaQueue(Queue):
    """The topic ``topic`` of the Kafka that ``servers`` (host:port, or several) leads to.

    :meth:`publish` returns when all replicas in sync have the push. It raises BackboneError within
    ``timeout`` seconds, which says whether Kafka may have it; with ``nowait`` QueueFull when ``size``
    publishes are under way. What was published while this node was away comes when it is back, if it is
    not older than ``retention`` seconds by the clock of who published it; a node that starts for the first
    time begins with what is new. At most ``prefetch`` pushes are read ahead. Pushes to one room, to the
    keys of one node, and to all come in order; after a crash the last ones may come again.

    ``skipped`` counts messages that are no pushes, ``expired`` those that were too old. ``security`` are
    aiokafka's options of these names: ``security_protocol``, ``ssl_context``, ``sasl_mechanism``,
    ``sasl_plain_username``, ``sasl_plain_password``, ``sasl_oauth_token_provider`` and so on. asyncio only.

    Raises :class:`~goim_core.errors.ConfigurationError` that names the argument.
    """

    def __init__(
        self,
        servers: str | Iterable[str] = "127.0.0.1:9092",
        *,
        topic: str = "goim-push-topic",
        retention: float = 60.0,
        timeout: float = 5.0,
        size: int = 1024,
        prefetch: int = 1024,
        **security: Unpack[Security],
    ) -> None:
        for name, seconds in (("retention", retention), ("timeout", timeout)):
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 1e9:
                raise ConfigurationError(f"{name}: expected seconds above 0, got {seconds!r}")
        for name, number in (("size", size), ("prefetch", prefetch)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ConfigurationError(f"{name}: expected a number of at least 1, got {number!r}")
        if not isinstance(topic, str) or not topic:
            raise ConfigurationError(f"topic: expected the name of one, got {topic!r}")
        self.topic = topic
        self.skipped = 0
        self.expired = 0
        self._kafka = Kafka(servers, timeout, security)
        self._retention = retention
        self._prefetch = prefetch
        self._arrived: deque[PushMsg] = deque()
        self._arrived_bytes = 0
        self._partitions: dict[int, Partition] = {}
        self._consumer: Any = None
        self._to_assign = False
        self._changed = anyio.Event()
        self._to_commit = anyio.Event()
        self._commit_failed = False
        self._complained = -COMPLAIN_EVERY
        self._troubles = [
            Trouble(_log, f"{self._kafka}, {what}")
            for what in ("connection", "publishing", "reading", "commits")
        ]
        self._connection, publishing, self._reading, self._commits = self._troubles
        self._outgoing = Outgoing(self._kafka, topic, size, publishing, self._published)

    # Life.

    async def start(self, node: str) -> None:
        """See :meth:`Queue.start`."""
        check_asyncio("KafkaQueue")
        if node == GOIMS_NODE:
            raise ConfigurationError(f"name: {GROUP}{node} is the group of goim's own job: choose another")
        self._node = node
        try:
            with anyio.fail_after(STARTS_WITHIN * self._kafka.timeout):
                await self._kafka.check()
                count = await self._outgoing.start(self._retention)
                self._consumer = await self._kafka.consumer(GROUP + node)
                await self._begin(count)
        except FAILURES as error:
            raise BackboneError(f"{self._kafka} does not let this node start: {said(error)}") from error

    async def _begin(self, count: int) -> None:
        first = await self._kafka.first_offsets(self._consumer, self.topic, count, self._retention)
        passed_over = 0
        for number, (position, committed) in first.items():
            self._partitions[number] = Partition(position, committed)
            passed_over += max(0, position - committed) if committed >= 0 else 0
        if passed_over:
            self.expired += passed_over
            _log.warning("passed over: %d messages older than %g s", passed_over, self._retention)
        self._assign()
        # What comes from now on is not missed, even if this node ends before it gets its first push.
        await self._commit_now()

    async def run(self) -> None:
        """See :meth:`Queue.run`."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._look_after)
            tasks.start_soon(self._read)
            tasks.start_soon(self._commit)

    async def aclose(self) -> None:
        """Commit what was acknowledged, and close; who waits, and all who come later, get ServerStopped."""
        away = bool(self._connection.text)
        await self._outgoing.aclose(at_once=away)
        self._changed.set()
        if not away:
            await self._try_to_commit()
        await self._drop_consumer()

    @property
    def trouble(self) -> str:
        """See :attr:`Queue.trouble`."""
        return "; ".join(trouble.text for trouble in self._troubles if trouble.text)

    async def _look_after(self) -> NoReturn:
        while True:
            await anyio.sleep(LOOK_EVERY)
            try:
                with anyio.fail_after(2 * self._kafka.timeout):
                    count = await self._outgoing.look(self._retention)
            except TimeoutError:
                self._outgoing.spoil()
                self._connection.begin("no broker answers in time")
            except (*FAILURES, BackboneError) as error:
                self._connection.begin(error if isinstance(error, BackboneError) else said(error))
            else:
                self._set_partitions(count)
                self._connection.end()
            self._changed.set()

    def _set_partitions(self, count: int) -> None:
        self._to_assign |= count != len(self._partitions)
        for number in range(len(self._partitions), count):
            self._partitions[number] = Partition(position=0, committed=-1)
        for number in range(count, len(self._partitions)):  # of another topic, which had this name
            del self._partitions[number]

    async def _change(self) -> None:
        if self._changed.is_set():
            self._changed = anyio.Event()
        await self._changed.wait()

    # Publishing.

    async def publish(self, msg: PushMsg, *, nowait: bool = False) -> None:
        """See :meth:`Queue.publish`. Raises BackboneError where Kafka does not confirm it in time."""
        await self._outgoing.publish(msg, nowait=nowait)

    def _published(self, number: int, offset: int) -> None:
        partition = self._partitions.get(number)
        if partition is not None:
            self._to_assign |= not partition.confirm(offset)
            self._connection.end()
        self._changed.set()

    # Receiving.

    async def receive(self) -> PushMsg:
        """See :meth:`Queue.receive`."""
        while not self._arrived:
            self._outgoing.check_open()
            await self._change()
        msg = self._arrived.popleft()
        self._arrived_bytes -= len(msg.msg)
        # A negative timestamp is none.
        self.lag = max(0.0, time.time() - msg.tag.timestamp / 1000) if msg.tag.timestamp >= 0 else 0.0
        self._changed.set()
        return msg

    def acknowledge(self, msg: PushMsg) -> None:
        """See :meth:`Queue.acknowledge`."""
        msg.tag.partition.settle(msg.tag)
        self._to_commit.set()
        self._changed.set()

    @property
    def pending(self) -> int:
        """See :attr:`Queue.pending`. Counts what others published before our own last one, too."""
        return self._outgoing.under_way + sum(partition.pending for partition in self._partitions.values())

    async def drain(self) -> None:
        """See :meth:`Queue.drain`."""
        while self.pending:
            await self._change()

    # Reading.

    async def _read(self) -> NoReturn:
        while True:
            try:
                if self._consumer is None:
                    await self._go_on()
                while not (self._connection.text or self._to_assign):
                    await self._read_some()
                    self._reading.end()
            except FAILURES as error:
                self._reading.begin(said(error))
                await anyio.sleep(RETRY_AFTER)
            # The next one begins where we are. This one would try to reach the broker without a pause, and
            # does not always survive that something else is assigned to it.
            await self._drop_consumer()
            while self._connection.text:
                await self._change()

    async def _read_some(self) -> None:
        while len(self._arrived) >= self._prefetch or self._arrived_bytes >= BUFFER_BYTES:
            await self._change()
        room = self._prefetch - len(self._arrived)
        found = await self._consumer.getmany(timeout_ms=WAIT_MS, max_records=room)
        for tp, records in found.items():
            for record in records:
                if self._to_assign:
                    break  # what is left is read again, from where the new assignment begins
                partition = self._partitions[tp.partition]
                if partition.doubts(record.offset):
                    self._consumer.seek(tp, partition.place)
                    break
                self._take(partition, record)
        self._changed.set()

    async def _go_on(self) -> None:
        """Read with a new consumer from where we are."""
        self._consumer = await self._kafka.consumer(GROUP + self._node)
        self._assign()

    def _assign(self) -> None:
        self._to_assign = False
        self._consumer.assign([TopicPartition(self.topic, number) for number in self._partitions])
        for number, partition in self._partitions.items():
            self._consumer.seek(TopicPartition(self.topic, number), partition.place)

    async def _drop_consumer(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            with anyio.CancelScope(shield=True):
                await self._kafka.stop_consumer(consumer)

    def _take(self, partition: Partition, record: Any) -> None:
        if record.offset < partition.position:
            if not partition.is_last(record.offset, record.timestamp):
                partition.begin_anew()  # another topic of this name, or the broker lost the end of it
                self._to_assign = True
            return
        delivery = partition.take(record.offset, record.timestamp)
        msg = self._wanted(record)
        if msg is None:
            partition.settle(delivery)
            self._to_commit.set()
        else:
            self._arrived.append(attrs.evolve(msg, tag=delivery))
            self._arrived_bytes += len(msg.msg)

    def _wanted(self, record: Any) -> PushMsg | None:
        # A negative timestamp is none.
        if 0 <= record.timestamp < (time.time() - self._retention) * 1000:
            self.expired += 1
            self._complain("%d messages so far were older than %g s", self.expired, self._retention)
            return None
        try:
            msg = decode_push(record.value or b"")
        except ValueError as error:
            self.skipped += 1
            where = f"{record.topic}[{record.partition}] at {record.offset}"
            self._complain("%d messages so far were no pushes; %s: %s", self.skipped, where, error)
            return None
        return None if msg.type is PushType.PUSH and msg.server != self._node else msg

    def _complain(self, text: str, *values: object) -> None:
        now = time.monotonic()
        if now - self._complained >= COMPLAIN_EVERY:
            self._complained = now
            _log.warning(f"passed over: {text}", *values)

    # Committing.

    async def _commit(self) -> NoReturn:
        while True:
            await self._to_commit.wait()
            self._to_commit = anyio.Event()
            if not await self._try_to_commit():
                self._to_commit.set()
                await anyio.sleep(RETRY_AFTER)
            await anyio.sleep(COMMIT_EVERY)

    async def _try_to_commit(self) -> bool:
        if self._consumer is None:
            return False
        try:
            # Longer than a request: aiokafka leaves one that is cancelled to end by itself, with an error
            # that nobody takes.
            with anyio.fail_after(1.5 * self._kafka.timeout):
                await self._commit_now()
        except FAILURES as error:
            # Whether the brokers answer at all is looked after elsewhere.
            if self._commit_failed or not isinstance(error, TimeoutError):
                self._commits.begin(said(error))
            self._commit_failed = True
            return False
        self._commit_failed = False
        self._commits.end()
        return True

    async def _commit_now(self) -> None:
        due = {}
        for tp in self._consumer.assignment():
            partition = self._partitions.get(tp.partition)
            if partition is not None and partition.settled != partition.committed:
                due[tp] = partition, partition.settled
        if due:
            await self._consumer.commit({tp: offset for tp, (_, offset) in due.items()})
            for partition, offset in due.values():  # meanwhile the topic may have lost it
                partition.committed = offset
