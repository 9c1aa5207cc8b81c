"""Connections to Kafka by aiokafka, and what is wrong with them, in a sentence."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from itertools import chain
from typing import Any, TypedDict

import anyio

from goim_core.errors import BackboneError, ConfigurationError
from goim_core.masked import masked

try:
    from aiokafka import (  # type: ignore[import-untyped]
        AIOKafkaConsumer,
        AIOKafkaProducer,
        TopicPartition,
        errors,
    )
    from aiokafka.admin import (  # type: ignore[import-untyped]
        AIOKafkaAdminClient,
        NewTopic,
    )
    from aiokafka.admin.config_resource import (  # type: ignore[import-untyped]
        ConfigResource,
        ConfigResourceType,
    )
    from aiokafka.conn import collect_hosts, create_conn  # type: ignore[import-untyped]
except ImportError as error:
    raise ImportError("KafkaQueue needs aiokafka: pip install 'goim_core[kafka]'") from error

__all__ = ["FAILURES", "Kafka", "Security", "TopicPartition", "errors", "said"]

FAILURES = (errors.KafkaError, OSError, TimeoutError, EOFError)
"""What aiokafka raises when a connection or a broker fails."""
PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
PARTITIONS = 1
"""Of a topic that is made here. Each node reads all of it anyway, and one keeps all in order."""
REPLICAS = 3
TOPIC_HOURS = 1
"""How long a topic that is made here keeps its messages, at least: long enough to look into it."""
RETRY_MS = 250
"""Between aiokafka's own attempts to reach a broker."""
FETCH_WAIT_MS = 50
"""How long a broker may keep a fetch that finds nothing. Apache Kafka answers when something comes; others
(tansu 0.6) look only once in half of that time."""
FETCH_BYTES = 1 << 23
BATCH_BYTES = 1 << 17
METADATA_MS = 30_000
EXISTS = 36
"""TOPIC_ALREADY_EXISTS (https://kafka.apache.org/protocol.html#protocol_error_codes)."""

_log = logging.getLogger("goim_core.adapters.kafka")


class Security(TypedDict, total=False):
    """aiokafka's options of these names: how to get in."""

    security_protocol: str
    ssl_context: Any
    sasl_mechanism: str
    sasl_plain_username: str
    sasl_plain_password: str
    sasl_kerberos_service_name: str
    sasl_kerberos_domain_name: str
    sasl_oauth_token_provider: Any


class Kafka:
    """The brokers that ``servers`` leads to; ``timeout`` in seconds for each request."""

    def __init__(self, servers: str | Iterable[str], timeout: float, security: Security) -> None:
        unknown = sorted(set(security) - Security.__optional_keys__)
        if unknown:
            raise ConfigurationError(
                f"{unknown[0]}: no option of KafkaQueue; those for security are aiokafka's"
            )
        self.servers = _checked_servers(servers)
        self.timeout = timeout
        self.idempotent = True
        """Whether the brokers give producers the number by which they know a repeated batch."""
        self._options: dict[str, Any] = {
            "security_protocol": "PLAINTEXT",
            "request_timeout_ms": int(timeout * 1000),
            **security,
        }
        protocol = self._options["security_protocol"]
        if protocol not in PROTOCOLS:
            raise ConfigurationError(
                f"security_protocol: expected one of {', '.join(PROTOCOLS)}, got {protocol!r}"
            )
        if protocol.endswith("SSL") and not security.get("ssl_context"):
            raise ConfigurationError("ssl_context: needed where security_protocol names SSL")

    def __str__(self) -> str:
        return f"Kafka at {', '.join(self.servers)}"

    async def check(self) -> None:
        """Raise BackboneError that says why no server answers as Kafka does, if none does."""
        reasons = []
        for host, port, _ in collect_hosts(list(self.servers), randomize=False):
            reason = await self._why_not(host, port)
            if not reason:
                return
            reasons.append(f"{host}:{port}: {reason}")
        raise BackboneError(f"no Kafka at servers={list(self.servers)}: {'; '.join(reasons)}")

    async def _why_not(self, host: str, port: int) -> str:
        try:
            connection = await create_conn(host, port, **self._options)
        except (errors.AuthenticationFailedError, errors.UnsupportedSaslMechanismError, LookupError) as error:
            # LookupError: what aiokafka's SCRAM makes of a server's last word, where that is a refusal.
            return f"the credentials (sasl_...) were refused: {said(error)}"
        except TimeoutError:
            return (
                f"it did not answer as Kafka does within {self.timeout:g} s "
                "(another kind of server, or another security_protocol?)"
            )
        except (errors.KafkaError, EOFError) as error:
            return f"it does not speak as Kafka does, or refuses security_protocol: {said(error)}"
        except OSError as error:
            return f"cannot connect: {said(error)}"
        except ValueError as error:
            raise ConfigurationError(f"security options: {said(error)}") from error
        connection.close()
        return ""

    # Clients.

    async def producer(self) -> AIOKafkaProducer:
        """A started producer that has what it sent confirmed by all replicas in sync."""
        if self.idempotent:
            try:
                return await self._start_producer(enable_idempotence=True)
            except (errors.BrokerResponseError, errors.IncompatibleBrokerVersion) as error:
                if error.retriable:
                    raise
                self.idempotent = False
                _log.info("%s: a push that is sent again may come twice: %s", self, said(error))
        return await self._start_producer(enable_idempotence=False)

    async def _start_producer(self, *, enable_idempotence: bool) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            bootstrap_servers=list(self.servers),
            acks="all",
            enable_idempotence=enable_idempotence,
            max_batch_size=BATCH_BYTES,
            metadata_max_age_ms=METADATA_MS,
            retry_backoff_ms=RETRY_MS,
            **self._options,
        )
        try:
            await producer.start()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.stop_producer(producer)
            raise
        return producer

    async def stop_producer(self, producer: AIOKafkaProducer) -> None:
        """Stop it within a bounded time; publishers of what it has not sent are told."""
        # There is no public call that gives up what waits: stopping alone sends it, however long that takes.
        waiting = producer._message_accumulator  # noqa: SLF001
        for batch in chain.from_iterable(waiting._batches.values()):  # noqa: SLF001
            batch.drain_ready()
        waiting.fail_all(errors.KafkaConnectionError("the connection was given up"))
        await self._end(producer.stop())
        await self._end(producer._sender.close())  # noqa: SLF001  # where stopping was given up half-way
        await self._end(producer.client.close())

    async def consumer(self, group: str) -> AIOKafkaConsumer:
        """A started consumer, in which nothing is assigned yet."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=list(self.servers),
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=FETCH_WAIT_MS,
            fetch_max_bytes=FETCH_BYTES,
            metadata_max_age_ms=METADATA_MS,
            retry_backoff_ms=RETRY_MS,
            **self._options,
        )
        try:
            await consumer.start()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.stop_consumer(consumer)
            raise
        return consumer

    async def stop_consumer(self, consumer: AIOKafkaConsumer) -> None:
        """Stop it, and all that it does, within a bounded time."""
        # Stopping waits for the coordinator. Given up there, it would leave the rest at work for ever: tasks
        # that fetch, and connect where that fails.
        fetcher, coordinator = consumer._fetcher, consumer._coordinator  # noqa: SLF001
        if fetcher is not None:
            await self._end(fetcher.close())
            fetching = list(fetcher._pending_tasks)  # noqa: SLF001  # it awaits the first one only
            for task in fetching:
                task.cancel()
            if fetching:
                await asyncio.wait(fetching, timeout=self.timeout)
        await self._end(consumer.stop())
        if coordinator is not None:
            await self._end(coordinator._stop_commit_offsets_refresh_task())  # noqa: SLF001
        await self._end(consumer._client.close())  # noqa: SLF001

    async def _end(self, stopping: Coroutine[Any, Any, None]) -> None:
        # In a task of its own: aiokafka lets the cancellation of its own tasks out, to whoever stops it.
        task = asyncio.ensure_future(stopping)
        await asyncio.wait([task], timeout=self.timeout)
        if task.cancel():
            await asyncio.wait([task], timeout=self.timeout)
        if task.done() and not task.cancelled() and (error := task.exception()):
            _log.debug("%s: while closing: %s", self, said(error))

    # The topic.

    async def partitions(self, producer: AIOKafkaProducer, topic: str, retention: float) -> int:
        """How many partitions ``topic`` has; it is made where it is not there.

        Raises BackboneError where it is not to be had, or forgets messages that others need.
        """
        refused = await self._make_topic(len(producer.client.cluster.brokers()), topic, retention)
        try:
            return len(await producer.partitions_for(topic))
        except errors.KafkaError as error:
            why = refused or said(error)
            raise BackboneError(f"topic {topic!r}: {self} has none, and makes none: {why}") from error

    async def _make_topic(self, brokers: int, topic: str, retention: float) -> str:
        admin = AIOKafkaAdminClient(
            bootstrap_servers=list(self.servers), retry_backoff_ms=RETRY_MS, **self._options
        )
        try:
            await admin.start()
            answer = await admin.create_topics([_new_topic(topic, brokers, retention)])
            _, code, *words = answer.topic_errors[0]
            if code == EXISTS:
                await self._check_topic(admin, topic)
            return (
                ""
                if code in (0, EXISTS)
                else " ".join((errors.for_code(code).__name__, *filter(None, words)))
            )
        finally:
            with anyio.CancelScope(shield=True):
                await self._end(admin.close())

    async def _check_topic(self, admin: AIOKafkaAdminClient, topic: str) -> None:
        with suppress(errors.KafkaError):  # whoever may not read the settings has to trust them
            for answer in await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)]):
                for _, _, _, _, found in answer.resources:
                    policy = {name: value for name, value, *_ in found}.get("cleanup.policy", "")
                    if "compact" in policy:
                        raise BackboneError(
                            f"topic {topic!r}: expected cleanup.policy 'delete', got {policy!r}, which "
                            "keeps only the last push to each room"
                        )

    async def first_offsets(
        self, consumer: AIOKafkaConsumer, topic: str, partitions: int, retention: float
    ) -> dict[int, tuple[int, int]]:
        """For each partition the offset to begin with, and that which its group has committed (-1: none).

        A group that never committed begins with what is new. Others go on where they were, but not with
        what is older than ``retention`` seconds: of a long absence there may be hours.
        """
        tps = [TopicPartition(topic, number) for number in range(partitions)]
        ends = await consumer.end_offsets(tps)
        since = int((time.time() - retention) * 1000)
        recent = await consumer.offsets_for_times(dict.fromkeys(tps, since))
        committed = {tp: await consumer.committed(tp) for tp in tps}
        is_new = all(offset is None for offset in committed.values())
        begin = {}
        for tp in tps:
            found = recent[tp]
            first = found.offset if found is not None and found.timestamp >= since else ends[tp]
            before = committed[tp]
            # A partition that was added meanwhile is read from where what is recent begins.
            position = ends[tp] if is_new else min(max(first, before or 0), ends[tp])
            begin[tp.partition] = position, -1 if before is None else before
        return begin


def said(error: BaseException) -> str:
    """What ``error`` says, in one line, with its kind where it says nothing."""
    kind = type(error).__name__
    text = " ".join(masked(error).split())
    return text if kind in text or (isinstance(error, OSError) and text) else f"{kind} {text}".strip()


def _new_topic(topic: str, brokers: int, retention: float) -> NewTopic:
    replicas = max(1, min(REPLICAS, brokers))
    kept = max(TOPIC_HOURS * 3600, 10 * retention)
    settings = {"retention.ms": str(int(kept * 1000)), "cleanup.policy": "delete"}
    if replicas == REPLICAS:
        settings["min.insync.replicas"] = "2"  # with acks=all: one broker may fail, and nothing is lost
    return NewTopic(topic, PARTITIONS, replicas, topic_configs=settings)


def _checked_servers(servers: str | Iterable[str]) -> tuple[str, ...]:
    found = tuple(servers.split(",")) if isinstance(servers, str) else tuple(servers)
    for server in found:
        host, _, port = server.strip().rpartition(":")
        if "@" in server:  # not shown: there may be a password in it
            raise ConfigurationError(
                "servers: expected host:port, and credentials in sasl_plain_username, ..."
            )
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigurationError(f"servers: expected host:port or several of them, got {server!r}")
    if not found:
        raise ConfigurationError("servers: expected host:port or several of them, got none")
    return tuple(server.strip() for server in found)
