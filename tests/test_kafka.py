"""The queue on Kafka, with a real broker that the tests start (tansu) and a line to it that they disturb."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from aiokafka import (  # type: ignore[import-untyped]
    AIOKafkaConsumer,
    AIOKafkaProducer,
    TopicPartition,
)
from aiokafka.admin import (  # type: ignore[import-untyped]
    AIOKafkaAdminClient,
    NewTopic,
)
from aiokafka.admin.config_resource import (  # type: ignore[import-untyped]
    ConfigResource,
    ConfigResourceType,
)
from hypothesis import given
from hypothesis import strategies as st

from examples.cluster.processes import free_ports
from goim_core import OpenAuth, Server
from goim_core.adapters.kafka import KafkaQueue
from goim_core.adapters.kafka import connect as kafka_connect
from goim_core.adapters.kafka import queue as kafka
from goim_core.adapters.kafka.connect import Kafka
from goim_core.adapters.kafka.offsets import Delivery, Partition, partition_of, record_key
from goim_core.adapters.pushmsg import decode_push, encode_push
from goim_core.client import connect
from goim_core.errors import BackboneError, ConfigurationError, ServerStopped
from goim_core.queue import PushMsg, PushType
from goim_core.registry import MemoryRegistry
from goim_core.testing.queue_contract import DurableQueueContract, Topic, working
from tests.conftest import BACKENDS
from tests.kafka import HOW_TO_GET_ONE, KafkaServer, Line, program

pytestmark = pytest.mark.anyio

TRIO = [("trio", {})]
PATIENCE = 30


@pytest.fixture(params=[each for each in BACKENDS if each.id != "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """aiokafka knows asyncio alone."""
    return request.param


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("COMMIT_EVERY", "LOOK_EVERY", "RETRY_AFTER"):
        monkeypatch.setattr(kafka, name, 0.02)
    monkeypatch.setattr(kafka_connect, "RETRY_MS", 20)
    log = logging.getLogger("aiokafka")
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def broker() -> Iterator[KafkaServer]:
    found = program()
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(HOW_TO_GET_ONE)
        pytest.skip(HOW_TO_GET_ONE)
    server = KafkaServer(found)
    yield server
    server.close()


@pytest.fixture
def topic(broker: KafkaServer) -> str:
    return broker.new_topic()


@pytest.fixture
def own_broker(broker: KafkaServer) -> Iterator[KafkaServer]:
    """One that a test may kill."""
    server = KafkaServer(broker.program)
    yield server
    server.close()


@asynccontextmanager
async def lined(broker: KafkaServer) -> AsyncIterator[tuple[KafkaServer, Line]]:
    """A broker, and the line by which it is to be reached."""
    line = Line(0)
    server = KafkaServer(broker.program, advertised=line.port)
    line.target = server.port
    await line.mend()
    try:
        yield server, line
    finally:
        await line.cut()
        server.close()


@asynccontextmanager
async def node(queue: KafkaQueue, name: str = "node") -> AsyncIterator[KafkaQueue]:
    """``queue`` at work as that of the node ``name``."""
    with anyio.fail_after(PATIENCE):
        async with working(queue, name):
            yield queue


def room(body: bytes, room_id: str = "live://1000") -> PushMsg:
    return PushMsg(PushType.ROOM, 1000, body, room=room_id)


async def received(queue: KafkaQueue, count: int) -> list[bytes]:
    bodies = []
    for _ in range(count):
        msg = await queue.receive()
        queue.acknowledge(msg)
        bodies.append(msg.msg)
    return bodies


async def published(queue: KafkaQueue, body: bytes) -> None:
    """Publish as soon as that is possible again."""
    while True:
        try:
            await queue.publish(room(body))
        except BackboneError:
            await anyio.lowlevel.checkpoint()
        else:
            return


async def well(queue: KafkaQueue) -> None:
    while queue.trouble:
        await queue._change()


async def ill(*queues: KafkaQueue) -> None:
    for queue in queues:
        while not queue._connection.text:
            await queue._change()


@asynccontextmanager
async def admin(broker: KafkaServer) -> AsyncIterator[Any]:
    client = AIOKafkaAdminClient(bootstrap_servers=broker.address)
    await client.start()
    yield client
    await client.close()


@asynccontextmanager
async def producing(broker: KafkaServer) -> AsyncIterator[Any]:
    producer = AIOKafkaProducer(bootstrap_servers=broker.address, acks="all")
    await producer.start()
    yield producer
    await producer.stop()


async def records(broker: KafkaServer, topic: str) -> list[Any]:
    """All that is in the topic."""
    consumer = AIOKafkaConsumer(bootstrap_servers=broker.address, auto_offset_reset="earliest")
    await consumer.start()
    await consumer._client._wait_on_metadata(topic)
    tps = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
    consumer.assign(tps)
    await consumer.seek_to_beginning(*tps)
    count = sum((await consumer.end_offsets(tps)).values())
    found: list[Any] = []
    while len(found) < count:
        for some in (await consumer.getmany(timeout_ms=1000)).values():
            found += some
    await consumer.stop()
    return found


async def committed(broker: KafkaServer, topic: str, node: str) -> int | None:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=broker.address, group_id=f"goim-push-group-{node}", enable_auto_commit=False
    )
    await consumer.start()
    offset: int | None = await consumer.committed(TopicPartition(topic, 0))
    await consumer.stop()
    return offset


class KafkaTopic(Topic):
    def __init__(self, broker: KafkaServer) -> None:
        self.broker = broker
        self.name = broker.new_topic()

    def new_queue(self, **options: Any) -> KafkaQueue:
        return KafkaQueue(self.broker.address, topic=self.name, **options)

    async def put(self, data: bytes) -> None:
        async with producing(self.broker) as producer:
            await producer.send_and_wait(self.name, data)

    @asynccontextmanager
    async def frozen(self) -> AsyncIterator[None]:
        self.broker.pause()
        try:
            yield
        finally:
            self.broker.go_on()


class TestKafkaQueue(DurableQueueContract):
    """What every queue does that nodes share."""

    @pytest.fixture(autouse=True)
    def _server(self, broker: KafkaServer) -> None:
        self.broker = broker

    @asynccontextmanager
    async def topic(self) -> AsyncIterator[Topic]:
        yield KafkaTopic(self.broker)


# What is Kafka's own: keys, partitions, offsets.

PUSHES = [
    PushMsg(PushType.PUSH, 1000, b"a", server="two", keys=("k1", "k2")),
    PushMsg(PushType.PUSH, 1000, b"b", server="two", keys=("k2",)),
    PushMsg(PushType.ROOM, 1000, b"c", room="live://1000"),
    PushMsg(PushType.BROADCAST, 1001, b"d", speed=5),
    PushMsg(PushType.BROADCAST, 1002, b"e"),
]


async def make(broker: KafkaServer, topic: str, partitions: int, **settings: str) -> None:
    async with admin(broker) as client:
        await client.create_topics([NewTopic(topic, partitions, 1, topic_configs=settings)])


async def test_the_topic_holds_goims_messages_under_goims_keys(broker: KafkaServer, topic: str) -> None:
    await make(broker, topic, 8)
    async with node(KafkaQueue(broker.address, topic=topic)) as queue:
        for msg in PUSHES:
            await queue.publish(msg)
    found = {decode_push(each.value): (each.key, each.partition) for each in await records(broker, topic)}
    assert [found[msg][0] for msg in PUSHES] == [b"k1", b"k2", b"live://1000", b"1001", b"1002"]
    places = [found[msg][1] for msg in PUSHES]
    # Each key of a node has its order, whatever the first key is; so have those to all.
    assert places[0] == places[1]
    assert places[3] == places[4]
    assert places == [partition_of(msg, 8) for msg in PUSHES]


@pytest.mark.parametrize(
    ("text", "hashed"), [("", 0x811C9DC5), ("a", 0xE40C292C), ("foobar", 0xBF9CF968), ("bar", 0x76B77D1A)]
)
def test_rooms_are_placed_as_goims_kafka_library_places_them(text: str, hashed: int) -> None:
    """FNV-1a by its authors' test vectors, then Go's int32 and remainder, whose sign is dropped."""
    signed = hashed - 2**32 if hashed >= 2**31 else hashed
    for partitions in (1, 7, 8, 1000):
        assert partition_of(room(b"", text), partitions) == abs(signed) % partitions


def test_every_push_has_a_key_and_a_place() -> None:
    assert record_key(PushMsg(PushType.PUSH, 1000, b"", server="one")) == b"one"
    for partitions in (1, 2, 3, 100):
        assert all(0 <= partition_of(msg, partitions) < partitions for msg in PUSHES)


async def test_order_is_kept_among_several_partitions(broker: KafkaServer, topic: str) -> None:
    await make(broker, topic, 8)
    names = [f"live://{number}" for number in range(20)]
    async with node(KafkaQueue(broker.address, topic=topic)) as queue:
        for number in range(10):
            for name in names:
                await queue.publish(room(b"%d" % number, name))
            await queue.publish(PushMsg(PushType.BROADCAST, 1000 + number, b"%d" % number))
            keys = tuple(f"k{number + each}" for each in range(3))
            await queue.publish(PushMsg(PushType.PUSH, 1000, b"%d" % number, server="node", keys=keys))
        found: dict[str, list[bytes]] = {}
        for _ in range(220):
            msg = await queue.receive()
            queue.acknowledge(msg)
            found.setdefault(f"{msg.type}{msg.room}", []).append(msg.msg)
        await queue.drain()
        assert queue.pending == 0
    assert len(found) == 22
    assert all(bodies == [b"%d" % number for number in range(10)] for bodies in found.values())


async def test_a_topic_that_is_missing_is_made(broker: KafkaServer, topic: str) -> None:
    async with node(KafkaQueue(broker.address, topic=topic, retention=3600)):
        async with admin(broker) as client:
            [answer] = await client.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
            [described] = await client.describe_topics([topic])
    settings = {name: value for name, value, *_ in answer.resources[0][4]}
    assert settings["cleanup.policy"] == "delete"
    assert settings["retention.ms"] == "36000000"
    assert len(described["partitions"]) == 1


async def test_a_topic_that_forgets_pushes_is_refused(broker: KafkaServer, topic: str) -> None:
    await make(broker, topic, 1, **{"cleanup.policy": "compact"})
    queue = KafkaQueue(broker.address, topic=topic)
    with pytest.raises(
        BackboneError, match=f"topic '{topic}': expected cleanup.policy 'delete', got 'compact'"
    ):
        await queue.start("node")
    await queue.aclose()


async def test_only_what_was_acknowledged_is_committed(broker: KafkaServer, topic: str) -> None:
    async with node(KafkaQueue(broker.address, topic=topic), "one") as queue:
        assert await committed(broker, topic, "one") == 0
        for number in range(4):
            await queue.publish(room(b"%d" % number))
        msgs = [await queue.receive() for _ in range(4)]
        for index in (1, 2, 0):
            queue.acknowledge(msgs[index])
        while await committed(broker, topic, "one") != 3:
            await anyio.lowlevel.checkpoint()
        queue.acknowledge(msgs[3])
        queue.acknowledge(msgs[3])  # does no harm
    assert await committed(broker, topic, "one") == 4
    assert await committed(broker, topic, "job") is None


async def test_a_node_that_was_killed_goes_on_at_once(broker: KafkaServer, topic: str) -> None:
    """The broker may believe for a long time that the first is there: it is not asked."""
    async with node(KafkaQueue(broker.address, topic=topic)) as killed:
        for number in range(3):
            await killed.publish(room(b"%d" % number))
        assert await received(killed, 1) == [b"0"]
        while await committed(broker, topic, "node") != 1:
            await anyio.lowlevel.checkpoint()
        await killed.receive()
        async with node(KafkaQueue(broker.address, topic=topic)) as queue:
            assert await received(queue, 2) == [b"1", b"2"]


async def test_what_is_too_old_is_passed_over_and_counted(broker: KafkaServer, topic: str) -> None:
    long_ago = int((time.time() - 100) * 1000)
    async with node(KafkaQueue(broker.address, topic=topic, retention=50)) as queue:
        async with producing(broker) as producer:
            for age in (long_ago, long_ago + 1):
                await producer.send_and_wait(topic, b"\x08\x02", timestamp_ms=age)
        await queue.publish(room(b"new"))
        assert await received(queue, 1) == [b"new"]
        assert (queue.expired, queue.skipped) == (2, 0)


class Offsets:
    """What a consumer says of a topic: for each partition its end, what is recent, and what was committed."""

    def __init__(self, partitions: list[tuple[int, int | None, int | None]]) -> None:
        self.ends, self.recent, self.before = zip(*partitions, strict=True)

    async def end_offsets(self, tps: list[Any]) -> dict[Any, int]:
        return {tp: self.ends[tp.partition] for tp in tps}

    async def offsets_for_times(self, since: dict[Any, int]) -> dict[Any, Any]:
        found = {}
        for tp, at in since.items():
            offset = self.recent[tp.partition]
            # Apache Kafka says None where nothing is recent, tansu an offset without a time.
            nothing = None if tp.partition % 2 else SimpleNamespace(offset=0, timestamp=-1)
            found[tp] = nothing if offset is None else SimpleNamespace(offset=offset, timestamp=at)
        return found

    async def committed(self, tp: Any) -> int | None:
        offset: int | None = self.before[tp.partition]
        return offset


@pytest.mark.parametrize(
    ("partitions", "begin"),
    [
        # A new node: what is new.
        ([(100, 90, None), (5, None, None)], [(100, -1), (5, -1)]),
        # One that was away for a short time, and for a long one.
        ([(100, 10, 50), (100, 60, 50)], [(50, 50), (60, 50)]),
        ([(100, None, 50), (100, None, 50)], [(100, 50), (100, 50)]),
        # With a partition that was added while it was away.
        ([(100, 90, 95), (10, 7, None)], [(95, 95), (7, -1)]),
        # The topic was made anew.
        ([(3, 0, 50), (3, 1, 2)], [(3, 50), (2, 2)]),
    ],
)
async def test_where_a_node_begins(
    partitions: list[tuple[int, int | None, int | None]], begin: list[tuple[int, int]]
) -> None:
    there = Kafka("127.0.0.1:9092", 5, {})
    found = await there.first_offsets(Offsets(partitions), "topic", len(partitions), 60)
    assert found == dict(enumerate(begin))


async def test_no_more_than_prefetch_is_read_ahead(broker: KafkaServer, topic: str) -> None:
    async with node(KafkaQueue(broker.address, topic=topic, prefetch=4)) as queue:
        for number in range(50):
            await queue.publish(room(b"%d" % number))
        while len(queue._arrived) < 4:
            await queue._change()
        for number in range(50):
            assert len(queue._arrived) <= 4
            assert await received(queue, 1) == [b"%d" % number]


async def test_large_bodies_are_not_read_ahead_without_bound(
    broker: KafkaServer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka, "BUFFER_BYTES", 1000)
    async with node(KafkaQueue(broker.address, topic=topic)) as queue:
        for _ in range(3):
            await queue.publish(room(bytes(600)))
            await queue.publish(room(b""))
        assert [len(body) for body in await received(queue, 6)] == [600, 0] * 3
        assert queue._arrived_bytes == 0


@st.composite
def lives(draw: st.DrawFn) -> list[tuple[str, int]]:
    steps = st.tuples(st.sampled_from(["take", "settle", "anew"]), st.integers(0, 30))
    return draw(st.lists(steps, max_size=60))


@given(lives())
def test_nothing_is_committed_before_it_is_settled(steps: list[tuple[str, int]]) -> None:
    partition = Partition(position=10, committed=10)
    out: list[Delivery] = []
    old: list[Delivery] = []
    for step, number in steps:
        if step == "take":
            out.append(partition.take(partition.position + number % 3))  # offsets may have gaps
        elif step == "anew":
            old += out
            out = []
            partition.begin_anew()
        elif both := out + old:
            partition.settle(both[number % len(both)])
        unsettled = [each.offset for each in out if not each.settled]
        assert partition.settled == min(unsettled, default=partition.position)
        assert partition.pending == partition.unsettled == len(unsettled)


def test_what_is_missing_is_looked_for_again_but_not_for_ever() -> None:
    partition = Partition(position=10, committed=10)
    assert [partition.doubts(10), partition.doubts(9)] == [False, False]
    assert [partition.doubts(13) for _ in range(5)] == [True, True, True, False, False]
    partition.take(13)
    assert not partition.doubts(14)
    assert partition.doubts(15), "another gap"
    partition.take(14)
    assert partition.place == 14


class Hasty:
    """A consumer of a broker that shows some batches before those that have lower offsets, for one look each."""

    def __init__(self, hidden: dict[int, list[int]]) -> None:
        self.hidden = {tp: [set(range(low, low + 3)) for low in lows] for tp, lows in hidden.items()}
        self.positions = dict.fromkeys(hidden, 0)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self.positions[tp.partition] = offset

    async def getmany(self, timeout_ms: int, max_records: int) -> dict[Any, list[Any]]:
        found = {}
        for number, hidden in self.hidden.items():
            gone = hidden.pop(0) if hidden else set()
            offsets = [offset for offset in range(self.positions[number], 20) if offset not in gone]
            self.positions[number] = max(offsets, default=self.positions[number] - 1) + 1
            found[TopicPartition("topic", number)] = [
                SimpleNamespace(
                    offset=offset,
                    timestamp=-1,
                    topic="topic",
                    partition=number,
                    value=encode_push(room(b"%d/%d" % (number, offset))),
                )
                for offset in offsets
            ]
        return found


@pytest.mark.parametrize("hidden", [{0: []}, {0: [4], 1: []}, {0: [0], 1: [17]}, {0: [4, 4, 4], 1: [9]}])
async def test_a_batch_that_shows_late_is_not_passed_over(hidden: dict[int, list[int]]) -> None:
    queue = KafkaQueue()
    queue._partitions = {number: Partition(0, 0) for number in hidden}
    queue._consumer = Hasty(hidden)
    for _ in range(6):
        await queue._read_some()
    expected = [b"%d/%d" % (number, offset) for number in hidden for offset in range(20)]
    # Each partition has its own order.
    assert sorted(await received(queue, len(queue._arrived)), key=lambda body: body[:1]) == expected


async def test_a_topic_that_has_fewer_partitions_while_it_is_read_disturbs_nothing() -> None:
    queue = KafkaQueue()
    queue._partitions = {0: Partition(0, 0), 1: Partition(0, 0)}

    class Shrinking(Hasty):
        async def getmany(self, timeout_ms: int, max_records: int) -> dict[Any, list[Any]]:
            queue._set_partitions(1)
            return await super().getmany(timeout_ms, max_records)

    queue._consumer = Shrinking({0: [], 1: []})
    await queue._read_some()
    assert queue._to_assign, "what came is read again, from where the new assignment begins"
    assert not queue._arrived


# Faults.


def test_arguments_that_make_no_sense_are_named() -> None:
    wrong: dict[str, list[Any]] = {
        "servers": ["", "localhost", "localhost:x", ":9092", "localhost:70000", []],
        "topic": ["", 7],
        "retention": [0, -1, "60", True, float("nan"), float("inf")],
        "timeout": [0, None],
        "size": [0, 1.5, True],
        "prefetch": [0],
        "security_protocol": ["TLS"],
        "ssl_context": [None],
        "sasl_password": ["x"],
    }
    for name, values in wrong.items():
        for value in values:
            options = {"security_protocol": "SSL"} if name == "ssl_context" else {}
            with pytest.raises(ConfigurationError, match=f"^{name}: "):
                KafkaQueue(**{**options, name: value})
    assert KafkaQueue(["a:1", "b:2"])._kafka.servers == KafkaQueue("a:1, b:2")._kafka.servers


@pytest.mark.parametrize("anyio_backend", TRIO)
async def test_on_trio_it_says_what_it_needs() -> None:
    with pytest.raises(ConfigurationError, match="^KafkaQueue needs asyncio: run on asyncio or uvloop$"):
        await KafkaQueue().start("node")


async def test_a_node_may_not_have_the_name_of_goims_job(broker: KafkaServer) -> None:
    with pytest.raises(ConfigurationError, match="name: goim-push-group-job is the group of goim's own job"):
        await KafkaQueue(broker.address).start("job")


async def test_a_wrong_address_is_said_at_the_start() -> None:
    nowhere = f"127.0.0.1:{free_ports(1)[0]}"
    queue = KafkaQueue([nowhere, nowhere], timeout=1)
    with pytest.raises(BackboneError, match=rf"no Kafka at servers=.*{nowhere}: cannot connect: "):
        await queue.start("node")
    await queue.aclose()
    with pytest.raises(
        BackboneError, match="no Kafka at servers=.*no-such-host.invalid:9092: cannot connect"
    ):
        await KafkaQueue("no-such-host.invalid:9092", timeout=1).start("node")


@pytest.mark.parametrize(
    ("says", "match"),
    [
        (None, r"did not answer as Kafka does within 0.2 s"),
        (b"-ERR unknown command\r\n", r"did not answer as Kafka does within 0.2 s"),
        (b"", r"does not speak as Kafka does"),
        (b"\0\0\0\x04\0\0\0\x09", r"does not speak as Kafka does"),
        (b"\0\0\0\x01\0", r"does not speak as Kafka does"),
    ],
)
async def test_a_server_of_another_kind_is_said_at_the_start(says: bytes | None, match: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        if says is not None:
            writer.write(says)
        if says != b"":
            await reader.read(-1)
        writer.close()
        over.set()

    over = anyio.Event()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        [listening] = server.sockets
        queue = KafkaQueue(f"127.0.0.1:{listening.getsockname()[1]}", timeout=0.2)
        with pytest.raises(BackboneError, match=match):
            await queue.start("node")
        await queue.aclose()
        await over.wait()


async def test_wrong_credentials_are_said_at_the_start(broker: KafkaServer) -> None:
    strict = KafkaServer(broker.program, more=("--authentication",))
    try:
        queue = KafkaQueue(
            strict.address,
            timeout=1,
            security_protocol="SASL_PLAINTEXT",
            sasl_mechanism="SCRAM-SHA-512",
            sasl_plain_username="goim",
            sasl_plain_password="secret",
        )
        with pytest.raises(BackboneError, match=r"credentials \(sasl_...\) were refused") as caught:
            await queue.start("node")
        assert "secret" not in str(caught.value)
        await queue.aclose()
    finally:
        strict.close()


async def test_a_topic_that_is_neither_there_nor_made_is_said(broker: KafkaServer) -> None:
    async with lined(broker) as (_, line):

        def forbid(api: int, answer: bytearray) -> None:
            if api == 19:  # CreateTopics: throttle time, count, name, error
                answer[10 + len("forbidden") : 12 + len("forbidden")] = (29).to_bytes(2)
            if api == 3:  # Metadata: no topic of this name
                answer[:] = answer.replace(b"forbidden", b"any-other")

        line.answer = forbid
        queue = KafkaQueue(line.address, topic="forbidden", timeout=0.2)
        with pytest.raises(BackboneError, match="topic 'forbidden': .* TopicAuthorizationFailedError"):
            await queue.start("node")
        await queue.aclose()


async def test_a_broker_that_is_killed_and_started_again(
    own_broker: KafkaServer, caplog: pytest.LogCaptureFixture
) -> None:
    """It forgot everything, the topic too: the nodes begin with the new one by themselves."""
    caplog.set_level(logging.INFO, "goim_core")
    async with (
        node(KafkaQueue(own_broker.address, timeout=0.5), "one") as one,
        node(KafkaQueue(own_broker.address, timeout=0.5), "two") as two,
    ):
        for _ in range(2):
            await one.publish(room(b"before"))
        for queue in (one, two):
            assert await received(queue, 2) == [b"before"] * 2
        own_broker.kill()
        with pytest.raises(
            BackboneError, match=r"did not confirm a push within 0.5 s: it may have it|did not take"
        ):
            await one.publish(room(b"lost"))
        await ill(one, two)
        assert "connection: " in one.trouble
        own_broker.start()
        await well(two)
        await published(one, b"after")
        await one.publish(room(b"more"))
        for queue in (one, two):
            while await received(queue, 1) != [b"more"]:
                pass  # "lost" may have come after all
        await well(one)
    said = [each.message for each in caplog.records if each.name.startswith("goim_core")]
    assert sum("connection: no broker answers" in line for line in said) == 2
    assert sum("connection: works again" in line for line in said) == 2


async def test_a_line_that_breaks_loses_nothing_and_mixes_nothing_up(broker: KafkaServer) -> None:
    async with lined(broker) as (_, line):
        one, two = (KafkaQueue(line.address, timeout=0.3) for _ in range(2))
        async with node(one, "one"), node(two, "two"), anyio.create_task_group() as tasks:
            last: list[int] = []
            disturbed = anyio.Event()

            async def publish() -> None:
                number = 0
                while not disturbed.is_set():
                    await published(one, b"%d" % number)
                    number += 1
                last.append(number)
                await published(one, b"%d" % number)

            async def disturb() -> None:
                for _ in range(2):
                    while not two._arrived:
                        await two._change()
                    await line.cut()
                    await ill(one, two)
                    await line.mend()
                    await well(two)
                disturbed.set()

            tasks.start_soon(publish)
            await received(one, 1)
            tasks.start_soon(disturb)
            for queue, numbers in ((one, [0]), (two, [])):
                while not (numbers and last and numbers[-1] == last[0]):
                    numbers.append(int((await received(queue, 1))[0]))
                # What may have been lost was published again, and may so be there twice.
                assert numbers == sorted(numbers)
                assert set(numbers) == set(range(last[0] + 1))
            while one.pending or two.pending:
                await received(one if one.pending else two, 1)
            await well(one)


@pytest.mark.parametrize(
    ("code", "name", "has_it"),
    [
        (29, "TopicAuthorizationFailedError", "it does not have it"),
        (10, "MessageSizeTooLargeError", "it does not have it"),
        (19, "NotEnoughReplicasError", "it may have it"),
        (56, "KafkaStorageError", "it may have it"),
    ],
)
async def test_a_push_that_the_broker_refuses(broker: KafkaServer, code: int, name: str, has_it: str) -> None:
    async with lined(broker) as (_, line):
        async with node(KafkaQueue(line.address, timeout=0.3)) as queue:
            line.answer = refuse_with(code)
            with pytest.raises(BackboneError, match=f"{has_it}(.*{name})?"):
                await queue.publish(room(b"refused"))
            assert "publishing: " in queue.trouble
            line.answer = None
            await published(queue, b"taken")
            assert queue.trouble == ""
            # Of what was refused on the line only, the broker has one copy or more.
            while (await received(queue, 1)) != [b"taken"]:
                pass


def refuse_with(code: int, offset: int = 2**64 - 1) -> Any:
    def refuse(api: int, answer: bytearray) -> None:
        if api == 0:  # Produce: count of topics, the name, count of partitions, number, error, offset
            at = 4 + 2 + int.from_bytes(answer[4:6]) + 4 + 4
            answer[at : at + 10] = code.to_bytes(2) + offset.to_bytes(8)

    return refuse


async def test_a_producer_that_lost_count_is_replaced(broker: KafkaServer) -> None:
    """tansu numbers no producers, so the line says that it does, and once that a number is missing."""
    async with lined(broker) as (_, line):

        def number(api: int, answer: bytearray) -> None:
            if api == 22:  # InitProducerId: throttle time, error, id, epoch
                answer[4:16] = (0).to_bytes(2) + (7).to_bytes(8) + (0).to_bytes(2)
            refuse_with(codes.pop() if api == 0 and codes else 0, 7)(api, answer)

        codes: list[int] = []
        line.answer = number
        async with node(KafkaQueue(line.address, timeout=0.5)) as queue:
            assert queue._kafka.idempotent
            producer = queue._outgoing._producer
            codes.append(45)
            with pytest.raises(BackboneError, match="OutOfOrderSequenceNumber"):
                await queue.publish(room(b"refused"))
            while queue._outgoing._producer is producer:
                await queue._change()
            await queue.publish(room(b"taken"))


async def test_nothing_of_a_consumer_is_left_that_was_dropped_while_its_broker_was_silent(
    own_broker: KafkaServer,
) -> None:
    async with node(KafkaQueue(own_broker.address, timeout=0.3)) as queue:
        await queue.publish(room(b"0"))
        assert await received(queue, 1) == [b"0"]
        consumer, producer = queue._consumer, queue._outgoing._producer
        own_broker.pause()
        try:
            await ill(queue)
            queue._outgoing.spoil()
            with anyio.fail_after(10):
                fetching = {consumer._fetcher._fetch_task}
                while not all(task.done() for task in fetching | consumer._fetcher._pending_tasks):  # noqa: ASYNC110
                    await anyio.sleep(0.01)  # aiokafka tells nobody
        finally:
            own_broker.go_on()
        await well(queue)
        with anyio.fail_after(10):
            while not producer._sender.sender_task.done():  # noqa: ASYNC110
                await anyio.sleep(0.01)
        assert not any(conn.connected() for conn in consumer._client._conns.values())
        assert not any(conn.connected() for conn in producer.client._conns.values())


async def test_an_answer_to_a_producer_that_was_replaced_is_no_news_of_the_topic(
    broker: KafkaServer, topic: str
) -> None:
    """It may come behind those of the new one: the topic has not begun anew, nothing is read again."""
    async with node(KafkaQueue(broker.address, topic=topic)) as queue:
        for number in range(3):
            await queue.publish(room(b"%d" % number))
        assert await received(queue, 3) == [b"0", b"1", b"2"]
        late = asyncio.get_running_loop().create_future()
        late.set_result(SimpleNamespace(partition=0, offset=0))
        queue._outgoing.under_way += 1
        await queue._outgoing._places.acquire()
        queue._outgoing._answered(object(), late)
        await queue.publish(room(b"3"))
        assert await received(queue, 1) == [b"3"]
        assert queue.pending == 0


async def test_a_partition_that_goes_while_it_is_committed_harms_nothing(
    broker: KafkaServer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node(KafkaQueue(broker.address, topic=topic)) as queue:
        commit = queue._consumer.commit
        gone = anyio.Event()

        async def commit_and_lose(offsets: Any) -> None:
            await commit(offsets)
            queue._partitions.clear()
            gone.set()

        monkeypatch.setattr(queue._consumer, "commit", commit_and_lose)
        await queue.publish(room(b"0"))
        assert await received(queue, 1) == [b"0"]
        await gone.wait()
        # The look at the topic finds it again.
        while not queue._partitions:
            await queue._change()
        await queue.publish(room(b"1"))
        while await received(queue, 1) != [b"1"]:
            pass


async def test_a_body_that_is_too_large_is_refused_alone(broker: KafkaServer, topic: str) -> None:
    async with node(KafkaQueue(broker.address, topic=topic)) as queue:
        with pytest.raises(BackboneError, match="does not have the push: .*MessageSizeTooLarge"):
            await queue.publish(room(bytes(1 << 21)))
        await queue.publish(room(bytes(900_000)))
        assert len((await received(queue, 1))[0]) == 900_000
        assert queue.trouble == ""


async def test_closing_does_not_wait_for_a_broker_that_is_away(own_broker: KafkaServer) -> None:
    began = time.monotonic()
    async with anyio.create_task_group() as tasks:
        async with node(KafkaQueue(own_broker.address, timeout=0.5)) as queue:
            await queue.publish(room(b"one"))
            queue.acknowledge(await queue.receive())
            own_broker.kill()
            tasks.start_soon(told, queue)
            await ill(queue)
    assert time.monotonic() - began < 10


async def told(queue: KafkaQueue) -> None:
    with pytest.raises((BackboneError, ServerStopped)):
        await queue.publish(room(b"late"))


async def test_two_servers_share_a_topic(broker: KafkaServer, topic: str) -> None:
    def server(name: str) -> Server:
        queue = KafkaQueue(broker.address, topic=topic)
        return Server(auth=OpenAuth(), queue=queue, tcp="127.0.0.1:0", name=name, registry=registry)

    registry = MemoryRegistry()  # of both: what nodes share by Redis
    async with server("one") as one, server("two") as two:
        [address] = two.addresses["tcp"]
        async with connect(
            "tcp://{}:{}".format(*address), mid=7, room_id="live://1", accepts=[1000]
        ) as client:
            await one.push_room("live://1", 1000, b"to the room")
            await one.push_all(1000, b"to all")
            await one.push_mids([7], 1000, b"to the user")
            await two.push_room("live://1", 1000, b"from its own node")
            bodies = [(await anext(client)).body for _ in range(4)]
        assert sorted(bodies) == [b"from its own node", b"to all", b"to the room", b"to the user"]
        assert one.stats().troubles == two.stats().troubles == {}


async def test_a_server_that_cannot_reach_kafka_does_not_start() -> None:
    queue = KafkaQueue(f"127.0.0.1:{free_ports(1)[0]}", timeout=1)
    with pytest.raises(BackboneError, match="no Kafka at servers="):
        async with Server(auth=OpenAuth(), queue=queue, tcp="127.0.0.1:0"):
            raise AssertionError("it started")
