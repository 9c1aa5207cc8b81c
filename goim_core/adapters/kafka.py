"""KafkaQueue: pushes on a Kafka topic, which nodes and goim's Go processes may share. Needs aiokafka.

Each node is a consumer group of its own and reads all partitions. It assigns them to itself: there is
nobody to share them with, so there is no rebalancing either, and no waiting for it after a restart.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable
from typing import Any, NoReturn, Unpack

import anyio
import anyio.lowlevel
import attrs

from goim_core.adapters.kafka_connect import (
    FAILURES,
    Kafka,
    Security,
    TopicPartition,
    check_asyncio,
    errors,
    said,
)
from goim_core.adapters.kafka_offsets import Partition, partition_of, record_key
from goim_core.adapters.pushmsg import decode_push, encode_push
from goim_core.adapters.trouble import Trouble
from goim_core.errors import BackboneError, ConfigurationError, QueueFull, ServerStopped
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
        self._size = size
        self._prefetch = prefetch
        self._places = anyio.Semaphore(size, fast_acquire=True)
        self._under_way = 0
        self._arrived: deque[PushMsg] = deque()
        self._arrived_bytes = 0
        self._changed = anyio.Event()
        self._to_commit = anyio.Event()
        self._partitions: dict[int, Partition] = {}
        self._producer: Any = None
        self._consumer: Any = None
        self._spoiled = False
        self._closed = False
        self._complained = -COMPLAIN_EVERY
        self._troubles = [
            Trouble(_log, f"{self._kafka}, {what}") for what in ("connection", "reading", "commits")
        ]
        self._connection, self._reading, self._commits = self._troubles

    # Life.

    async def start(self, node: str) -> None:
        """See :meth:`Queue.start`."""
        check_asyncio("KafkaQueue")
        if node == GOIMS_NODE:
            raise ConfigurationError(f"name: {GROUP}{node} is the group of goim's own job: choose another")
        self._node = node
        try:
            with anyio.fail_after(4 * self._kafka.timeout):
                await self._kafka.check()
                self._producer = await self._kafka.producer()
                count = await self._kafka.partitions(self._producer, self.topic, self._retention)
                self._consumer = await self._kafka.consumer(GROUP + node)
                await self._begin(count)
        except FAILURES as error:
            raise BackboneError(
                f"{self._kafka} answers, but does not let this node start: {said(error)}"
            ) from error

    async def _begin(self, count: int) -> None:
        offsets = await self._kafka.first_offsets(self._consumer, self.topic, count, self._retention)
        passed_over = 0
        for number, (position, committed) in offsets.items():
            self._partitions[number] = Partition(position, committed)
            passed_over += max(0, position - committed) if committed >= 0 else 0
        if passed_over:
            self.expired += passed_over
            _log.warning("passed over %d messages of before the last %g s", passed_over, self._retention)
        self._assign()
        # What a new node has not missed it shall not miss, if it ends before its first push.
        await self._commit_now()

    async def run(self) -> None:
        """See :meth:`Queue.run`."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._read)
            tasks.start_soon(self._commit)
            tasks.start_soon(self._look_after)

    async def aclose(self) -> None:
        """Commit what was acknowledged, and close; who waits, and all who come later, get ServerStopped."""
        self._closed = True
        self._wake()
        self._places.release()
        producer, self._producer = self._producer, None
        if producer is not None:
            with anyio.move_on_after(0 if self._connection.text else self._kafka.timeout):
                await producer.flush()
            await self._kafka.stop_producer(producer)
        if self._consumer is not None:
            if not self.trouble:
                await self._try_to_commit()
            await self._drop_consumer()

    @property
    def trouble(self) -> str:
        """See :attr:`Queue.trouble`."""
        return "; ".join(trouble.text for trouble in self._troubles if trouble.text)

    def _check_open(self) -> None:
        if self._closed:
            raise ServerStopped("the push queue is closed")

    # Publishing.

    async def publish(self, msg: PushMsg, *, nowait: bool = False) -> None:
        """See :meth:`Queue.publish`. Raises BackboneError where Kafka does not confirm it in time."""
        self._check_open()
        value = encode_push(msg)
        stage = f"it does not have it: {self._size} pushes before it are not confirmed"
        with anyio.move_on_after(self._kafka.timeout):
            await self._take_place(nowait)
            stage = "it may have it, or get it yet"
            sent = await self._send(msg, value)
            await asyncio.wait([sent])
            return self._sent(sent)
        self._check_open()
        self._connection.begin("a push was not confirmed in time")
        raise BackboneError(
            f"{self._kafka} did not confirm the push within {self._kafka.timeout:g} s: {stage}"
        )

    async def _take_place(self, nowait: bool) -> None:
        if nowait:
            try:
                self._places.acquire_nowait()
            except anyio.WouldBlock:
                raise QueueFull(f"the push queue is full: {self._size} pushes are not confirmed") from None
            return
        await self._places.acquire()
        if self._closed:
            self._places.release()  # the next that waits is to be told too
            self._check_open()

    async def _send(self, msg: PushMsg, value: bytes) -> asyncio.Future[Any]:
        """Give it to the producer. The place is free again when Kafka has answered, however late."""
        producer = self._producer
        try:
            count = len(await producer.partitions_for(self.topic))
            sent: asyncio.Future[Any] = await producer.send(
                self.topic, value, record_key(msg), partition=partition_of(msg, count)
            )
        except BaseException as error:
            self._places.release()
            if isinstance(error, errors.KafkaError):
                self._spoiled |= not isinstance(error, errors.MessageSizeTooLargeError)
                raise BackboneError(f"{self._kafka} does not have the push: {said(error)}") from error
            raise
        self._under_way += 1
        sent.add_done_callback(self._answered)
        return sent

    def _answered(self, sent: asyncio.Future[Any]) -> None:
        self._under_way -= 1
        self._places.release()
        error = sent.exception()
        if error is None:
            where = sent.result()
            partition = self._partitions.get(where.partition)
            if partition is not None:
                partition.published = max(partition.published, where.offset + 1)
        else:
            # A producer whose batches are numbered never gets beyond one that was refused
            # (https://github.com/aio-libs/aiokafka/issues/1017).
            self._spoiled |= self._kafka.idempotent and not getattr(error, "retriable", False)
        self._wake()

    def _sent(self, sent: asyncio.Future[Any]) -> None:
        error = sent.exception()
        if error is None:
            return
        self._check_open()
        refused = isinstance(error, errors.BrokerResponseError) and not error.retriable
        has_it = "it does not have it" if refused and error.errno >= 0 else "it may have it, or get it yet"
        raise BackboneError(f"{self._kafka} did not take the push: {has_it}: {said(error)}") from error

    # Receiving.

    async def receive(self) -> PushMsg:
        """See :meth:`Queue.receive`."""
        await anyio.lowlevel.checkpoint()
        while not self._arrived:
            self._check_open()
            await self._change()
        msg = self._arrived.popleft()
        self._arrived_bytes -= len(msg.msg)
        self._wake()
        return msg

    def acknowledge(self, msg: PushMsg) -> None:
        """See :meth:`Queue.acknowledge`."""
        msg.tag.partition.settle(msg.tag)
        self._to_commit.set()
        self._wake()

    @property
    def pending(self) -> int:
        """See :attr:`Queue.pending`. Counts what others published before our own last one, too."""
        return self._under_way + sum(partition.pending for partition in self._partitions.values())

    async def drain(self) -> None:
        """See :meth:`Queue.drain`."""
        while self.pending and not self._closed:
            await self._change()

    def _wake(self) -> None:
        self._changed.set()

    async def _change(self) -> None:
        if self._changed.is_set():
            self._changed = anyio.Event()
        await self._changed.wait()

    # Reading.

    async def _read(self) -> NoReturn:
        while True:
            try:
                if self._consumer is None:
                    self._consumer = await self._kafka.consumer(GROUP + self._node)
                    self._assign()
                while True:
                    await self._read_some()
                    self._reading.end()
            except FAILURES as error:
                self._reading.begin(said(error))
            await self._drop_consumer()
            await anyio.sleep(RETRY_AFTER)

    async def _read_some(self) -> None:
        while (room := self._prefetch - len(self._arrived)) <= 0 or self._arrived_bytes >= BUFFER_BYTES:
            await self._change()
        if len(self._partitions) > len(self._consumer.assignment()):
            self._assign()
        for records in (await self._consumer.getmany(timeout_ms=WAIT_MS, max_records=room)).values():
            for record in records:
                self._take(record)
        if self._arrived:
            self._wake()

    def _assign(self) -> None:
        self._consumer.assign([TopicPartition(self.topic, number) for number in self._partitions])
        for number, partition in self._partitions.items():
            self._consumer.seek(TopicPartition(self.topic, number), partition.position)

    async def _drop_consumer(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            with anyio.CancelScope(shield=True):
                await self._kafka.stop_consumer(consumer)

    def _take(self, record: Any) -> None:
        partition = self._partitions[record.partition]
        delivery = partition.take(record.offset)
        msg = self._wanted(record)
        if msg is None:
            partition.settle(delivery)
            self._to_commit.set()
            self._wake()
            return
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
        try:
            with anyio.fail_after(self._kafka.timeout):
                await self._commit_now()
        except FAILURES as error:
            self._commits.begin(said(error))
            return False
        self._commits.end()
        return True

    async def _commit_now(self) -> None:
        settled = {
            number: partition.settled
            for number, partition in self._partitions.items()
            if partition.settled != partition.committed
        }
        if settled:
            if self._consumer is None:
                raise errors.KafkaConnectionError("not connected")
            offsets = {TopicPartition(self.topic, number): offset for number, offset in settled.items()}
            await self._consumer.commit(offsets)
            for number, offset in settled.items():
                self._partitions[number].committed = offset

    # Looking after the connection.

    async def _look_after(self) -> NoReturn:
        while True:
            await anyio.sleep(LOOK_EVERY)
            try:
                with anyio.fail_after(2 * self._kafka.timeout):
                    if self._spoiled:
                        await self._renew_producer()
                    await self._look()
            except TimeoutError:
                self._spoiled = True
                self._connection.begin("no answer")
            except (*FAILURES, BackboneError) as error:
                self._connection.begin(said(error))
            else:
                self._connection.end()

    async def _look(self) -> None:
        client = self._producer.client
        if not await client.force_metadata_update():
            raise errors.KafkaConnectionError("no answer")
        found = client.cluster.partitions_for_topic(self.topic)
        if found is None:
            count = await self._kafka.partitions(self._producer, self.topic, self._retention)
        else:
            count = len(found)
        for number in range(len(self._partitions), count):
            self._partitions[number] = Partition(position=0, committed=-1)

    async def _renew_producer(self) -> None:
        old, self._producer = self._producer, await self._kafka.producer()
        self._spoiled = False
        with anyio.CancelScope(shield=True):
            await self._kafka.stop_producer(old)
