"""Pushes on their way to Kafka: many at once, each until it is confirmed or given up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio

from goim_core.adapters.kafka.connect import Kafka, errors, said
from goim_core.adapters.kafka.offsets import partition_of, record_key
from goim_core.adapters.pushmsg import encode_push
from goim_core.adapters.trouble import Trouble
from goim_core.errors import BackboneError, QueueFull, ServerStopped
from goim_core.queue import PushMsg

__all__ = ["Outgoing"]


class Outgoing:
    """Publishes to ``topic``, at most ``size`` pushes at a time.

    ``answered`` is called with partition and offset of each push that is confirmed, and with -1, -1 for
    each that is not.
    """

    def __init__(
        self, kafka: Kafka, topic: str, size: int, trouble: Trouble, answered: Callable[[int, int], None]
    ) -> None:
        self._kafka = kafka
        self._topic = topic
        self._size = size
        self._trouble = trouble
        self._on_answer = answered
        self._places = anyio.Semaphore(size, fast_acquire=True)
        self._producer: Any = None
        self._spoiled = False
        self._failed_at = 0.0
        self._closed = False
        self.under_way = 0

    async def start(self, retention: float) -> int:
        """Connect, and say how many partitions the topic has."""
        self._producer = await self._kafka.producer()
        return await self._kafka.partitions(self._producer, self._topic, retention)

    async def look(self, retention: float) -> int:
        """Ask the brokers how many partitions the topic has; made anew where it is gone.

        Raises BackboneError where no broker answers, and what aiokafka raises.
        """
        if self._spoiled:
            await self._renew()
        client = self._producer.client
        if not await client.force_metadata_update():
            raise BackboneError("no broker answers")
        if time.monotonic() - self._failed_at > 2 * self._kafka.timeout:
            self._trouble.end()  # nobody has tried for some time
        found = client.cluster.partitions_for_topic(self._topic)
        return len(found) if found else await self._kafka.partitions(self._producer, self._topic, retention)

    def spoil(self) -> None:
        """Have a new producer at the next look: this one does not work any more."""
        self._spoiled = True

    async def _renew(self) -> None:
        new = await self._kafka.producer()
        old, self._producer, self._spoiled = self._producer, new, False
        with anyio.CancelScope(shield=True):
            await self._kafka.stop_producer(old)

    async def aclose(self, *, at_once: bool) -> None:
        """Close, when what is under way is confirmed, or ``at_once``. Who publishes gets ServerStopped."""
        self._closed = True
        self._places.release()
        if self._producer is not None:
            with anyio.move_on_after(0 if at_once else self._kafka.timeout):
                await self._producer.flush()
            await self._kafka.stop_producer(self._producer)

    def check_open(self) -> None:
        """Raise ServerStopped where this is closed."""
        if self._closed:
            raise ServerStopped("the push queue is closed")

    async def publish(self, msg: PushMsg, *, nowait: bool) -> None:
        """See :meth:`goim_core.adapters.kafka.KafkaQueue.publish`."""
        self.check_open()
        value = encode_push(msg)
        has_it = f"it does not have it: {self._size} pushes before it are not confirmed"
        with anyio.move_on_after(self._kafka.timeout):
            await self._take_place(nowait)
            has_it = "it may have it, or get it yet"
            sent = await self._send(msg, value)
            await asyncio.wait([sent])  # unlike awaiting it, this lets it go on when we are cancelled
            self._check(sent)
            return
        self.check_open()
        self._fail(f"did not confirm a push within {self._kafka.timeout:g} s: {has_it}")

    async def _take_place(self, nowait: bool) -> None:
        if not nowait:
            await self._places.acquire()
        else:
            try:
                self._places.acquire_nowait()
            except anyio.WouldBlock:
                raise QueueFull(f"the push queue is full: {self._size} pushes are not confirmed") from None
        if self._closed:
            self._places.release()  # the next that waits is to be told too
            self.check_open()

    async def _send(self, msg: PushMsg, value: bytes) -> asyncio.Future[Any]:
        """Give it to the producer. Its place is free again when Kafka has answered, however late."""
        producer = self._producer
        try:
            partition = partition_of(msg, len(await producer.partitions_for(self._topic)))
            sent: asyncio.Future[Any] = await producer.send(
                self._topic, value, record_key(msg), partition=partition
            )
        except BaseException as error:
            self._places.release()
            if isinstance(error, errors.KafkaError):
                self.check_open()
                self._spoiled |= not isinstance(error, errors.MessageSizeTooLargeError)
                self._fail(f"does not have the push: {said(error)}", error)
            raise
        self.under_way += 1
        sent.add_done_callback(partial(self._answered, producer))
        return sent

    def _answered(self, producer: Any, sent: asyncio.Future[Any]) -> None:
        self.under_way -= 1
        self._places.release()
        error = sent.exception()
        if error is None:
            self._trouble.end()
            record = sent.result()
            if producer is self._producer:
                self._on_answer(record.partition, record.offset)
            else:  # late, and behind those of the new one: it would look as if the topic had begun anew
                self._on_answer(-1, -1)
        else:
            # A producer that numbers its batches never gets beyond one that was refused
            # (https://github.com/aio-libs/aiokafka/issues/1017).
            self._spoiled |= self._kafka.idempotent and not getattr(error, "retriable", False)
            self._on_answer(-1, -1)

    def _check(self, sent: asyncio.Future[Any]) -> None:
        error = sent.exception()
        if error is None:
            return
        self.check_open()
        # Error -1 is "unknown": it may have happened after the push was written.
        refused = isinstance(error, errors.BrokerResponseError) and not error.retriable and error.errno > 0
        has_it = "it does not have it" if refused else "it may have it, or get it yet"
        self._fail(f"did not take a push: {has_it}: {said(error)}", error)

    def _fail(self, reason: str, error: BaseException | None = None) -> None:
        self._failed_at = time.monotonic()
        self._trouble.begin(reason)
        raise BackboneError(f"{self._kafka} {reason}") from error
