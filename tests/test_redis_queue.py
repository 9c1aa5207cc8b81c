"""The queue on a stream of Redis, on a real one that the tests start."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from redis import Redis

from goim_core.adapters.redis import RedisQueue
from goim_core.adapters.redis import queue as redis_queue
from goim_core.adapters.redis import stream as redis_stream
from goim_core.errors import BackboneError, ConfigurationError, ServerStopped
from goim_core.queue import PushMsg, PushType, Queue
from goim_core.testing.queue_contract import DurableQueueContract, Topic, working
from goim_core.testing.quiet import all_blocked
from tests.redis import RedisServer, started_redis

pytestmark = pytest.mark.anyio

numbers = itertools.count()


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return ("asyncio", {"use_uvloop": request.param})


class Stream(Topic):
    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.name = f"stream-{next(numbers)}"

    def new_queue(self, **options: Any) -> Queue:
        return RedisQueue(self.server.url, stream=self.name, **options)

    async def put(self, data: bytes) -> None:
        self.server.ask("XADD", self.name, "*", "push", data)

    @asynccontextmanager
    async def frozen(self) -> AsyncIterator[None]:
        with self.server.paused():
            yield


class TestRedisQueue(DurableQueueContract):
    """What every queue does that outlives its nodes."""

    @pytest.fixture(autouse=True)
    def _server(self, redis_server: RedisServer) -> None:
        self.redis = redis_server

    @asynccontextmanager
    async def topic(self) -> AsyncIterator[Topic]:
        yield Stream(self.redis)


TOPIC = "goim-push-topic"
HI = b"\x08\x01\x10\xe8\x07*\x0blive://1000:\x02hi"
"""Type 1 (ROOM), operation 1000, room, msg: fields 1, 2, 5 and 7 of goim's PushMsg."""


def push(body: bytes, room: str = "live://1000") -> PushMsg:
    return PushMsg(PushType.ROOM, 1000, body, room=room)


@pytest.fixture
def url(redis_server: RedisServer) -> str:
    redis_server.ask("FLUSHALL")
    return redis_server.url


@pytest.fixture
def raw(redis_server: RedisServer, url: str) -> Iterator[Redis]:
    with Redis(port=redis_server.port, socket_timeout=10) as client:
        yield client


@asynccontextmanager
async def at_work(queue: RedisQueue, node: str = "node") -> AsyncIterator[RedisQueue]:
    async with working(queue, node):
        yield queue


async def until(is_so: Callable[[], Any], seconds: float = 10) -> None:
    with anyio.fail_after(seconds):
        while not (await anyio.to_thread.run_sync(is_so)):
            await anyio.lowlevel.checkpoint()


async def more_than(found: list[Any], count: int) -> None:
    await until(lambda: len(found) > count)


async def take(queue: Queue, count: int) -> list[bytes]:
    bodies = []
    with anyio.fail_after(20):
        for _ in range(count):
            msg = await queue.receive()
            queue.acknowledge(msg)
            bodies.append(msg.msg)
    return bodies


async def publish_when_possible(queue: Queue, *bodies: bytes) -> None:
    with anyio.fail_after(20):
        for body in bodies:
            while True:
                try:
                    await queue.publish(push(body))
                    break
                except BackboneError:
                    await anyio.lowlevel.checkpoint()


# What is in the stream.


async def test_entries_are_goims_messages(url: str, raw: Redis) -> None:
    async with at_work(RedisQueue(url), "node-1") as queue:
        await queue.publish(push(b"hi"))
        ((_, fields),) = cast("list[Any]", raw.xrange(TOPIC))
        assert fields == {b"push": HI}
        assert await take(queue, 1) == [b"hi"]
        (group,) = raw.xinfo_groups(TOPIC)
        assert group["name"] == b"goim_core:node-1"
        await until(lambda: raw.xpending(TOPIC, "goim_core:node-1")["pending"] == 0)
        await until(lambda: not queue._here)


async def test_the_stream_holds_no_more_than_retention(url: str, raw: Redis) -> None:
    async with at_work(RedisQueue(url, retention=0.2)) as queue:
        await queue.publish(push(b"old"))
        assert await take(queue, 1) == [b"old"]
        await until(lambda: raw.xlen(TOPIC) == 0)
        await queue.publish(push(b"new"))
        assert await take(queue, 1) == [b"new"]


async def test_what_is_too_old_is_passed_over_and_counted(
    url: str, raw: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async with at_work(RedisQueue(url)) as queue:
        for number in range(1, 6):
            raw.xadd(TOPIC, {"push": HI}, id=f"{number}-1")
        await queue.publish(push(b"new"))
        assert await take(queue, 1) == [b"new"]
        assert queue.expired == 5
        await until(lambda: raw.xpending(TOPIC, "goim_core:node")["pending"] == 0)
    assert [text for text in caplog.messages if "too old" in text] == [
        f"{number} pushes were too old to be sent" for number in (1, 2, 4)
    ]


async def test_what_was_trimmed_before_it_came_again_is_counted(url: str, raw: Redis) -> None:
    async with at_work(RedisQueue(url)) as queue:
        await queue.publish(push(b"0"))
        await queue.receive()
    raw.xtrim(TOPIC, maxlen=0)
    async with at_work(RedisQueue(url)) as queue:
        await queue.publish(push(b"1"))
        assert await take(queue, 1) == [b"1"]
        assert queue.expired == 1


async def test_entries_of_another_shape_are_passed_over(
    url: str, raw: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async with at_work(RedisQueue(url)) as queue:
        raw.xadd(TOPIC, {"something": "else"})
        raw.xadd(TOPIC, {"push": b"\xff"})
        await queue.publish(push(b"after"))
        assert await take(queue, 1) == [b"after"]
        assert queue.skipped == 2
    assert "no field b'push'" in caplog.text


async def test_groups_that_nobody_reads_any_more_are_deleted(
    url: str, raw: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def groups() -> set[bytes]:
        return {group["name"] for group in cast("list[Any]", raw.xinfo_groups(TOPIC))}

    for name in ("gone", "here"):
        async with at_work(RedisQueue(url), name) as queue:
            await queue.publish(push(b"x"))
            await take(queue, 1)
    raw.xgroup_create(TOPIC, "audit")
    raw.xreadgroup("audit", "somebody", {TOPIC: ">"})
    async with at_work(RedisQueue(url), "here"):
        assert groups() == {b"audit", b"goim_core:gone", b"goim_core:here"}
    monkeypatch.setattr(redis_stream, "ABANDONED", -1)
    async with at_work(RedisQueue(url), "here"):
        assert groups() == {b"audit", b"goim_core:here"}


async def test_no_more_is_read_ahead_than_was_said(url: str, raw: Redis) -> None:
    async with at_work(RedisQueue(url, prefetch=5)) as queue:
        await publish_when_possible(queue, *(b"%d" % number for number in range(50)))
        await until(lambda: raw.xpending(TOPIC, "goim_core:node")["pending"] == 5)
        assert queue.pending == 5
        assert await take(queue, 50) == [b"%d" % number for number in range(50)]


async def test_draining_waits_for_what_has_not_come_yet(url: str, redis_server: RedisServer) -> None:
    async with at_work(RedisQueue(url, prefetch=1)) as queue:
        await publish_when_possible(queue, *(b"%d" % number for number in range(3)))
        drained = anyio.Event()

        async def drain() -> None:
            await queue.drain()
            drained.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(drain)
            for _ in range(3):
                assert not drained.is_set()
                queue.acknowledge(await queue.receive())
            with anyio.fail_after(5):
                await drained.wait()


# Life.


@pytest.mark.parametrize(
    "options",
    [{"stream": ""}, {"stream": 7}, {"retention": 0}, {"timeout": "5"}, {"size": 0}, {"prefetch": True}],
)
def test_an_option_that_cannot_be_is_named(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigurationError, match=f"^{name}: expected"):
        RedisQueue(**options)


async def start(url: str) -> str:
    queue = RedisQueue(url, timeout=0.5)
    with pytest.raises(BackboneError) as caught:
        await queue.start("node-1")
    await queue.aclose()
    assert "secret" not in str(caught.value)
    return str(caught.value)


async def test_a_server_that_is_not_there_or_lets_nobody_in() -> None:
    async with started_redis("--requirepass", "right") as server:
        assert "it refused the credentials of url" in await start(f"redis://:secret@127.0.0.1:{server.port}")
    assert "cannot connect, check url" in await start(f"redis://:secret@127.0.0.1:{server.port}")


async def test_a_stream_that_is_something_else(url: str, raw: Redis) -> None:
    raw.set(TOPIC, "text")
    assert await start(url) == f"stream: '{TOPIC}' is in use in Redis for something that is no stream"


async def test_who_waits_to_publish_is_told_of_the_end(url: str, redis_server: RedisServer) -> None:
    told = []
    async with anyio.create_task_group() as tasks:
        with redis_server.paused():
            queue = RedisQueue(url, size=1, timeout=20)
            # Started by hand: the server does not answer.

            async def publish() -> None:
                with pytest.raises(ServerStopped):
                    await queue.publish(push(b"never"))
                told.append(True)

            for _ in range(3):
                tasks.start_soon(publish)
            await all_blocked()
            assert queue.full
            await queue.aclose()
            await until(lambda: len(told) == 3)


# Faults.


async def test_a_server_that_was_killed_and_started_empty(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with started_redis() as server, at_work(RedisQueue(server.url)) as queue:
        await queue.publish(push(b"before"))
        assert await take(queue, 1) == [b"before"]
        server.kill()
        for _ in range(3):
            with (
                anyio.fail_after(5),
                pytest.raises(BackboneError, match="nothing was sent|may have been done"),
            ):
                await queue.publish(push(b"in vain"))
        assert f"Redis at 127.0.0.1:{server.port}: cannot connect" in queue.trouble
        server.start()
        await publish_when_possible(queue, b"1", b"2")
        assert await take(queue, 2) == [b"1", b"2"]
        await until(lambda: not queue.trouble)
    ours = [text for name, _, text in caplog.record_tuples if name == "goim_core.adapters.redis.queue"]
    assert len([text for text in ours if "works again" in text]) == 2  # its two connections
    assert len([text for text in ours if "had lost the group" in text]) == 1
    assert len(ours) <= 6


async def test_what_redis_has_on_its_disk_survives_it() -> None:
    """All that was accepted comes, in order, on both nodes, though the server is killed twice meanwhile."""
    options = ("--appendonly", "yes", "--appendfsync", "always")
    async with (
        started_redis(*options) as server,
        at_work(RedisQueue(server.url), "one") as one,
        at_work(RedisQueue(server.url), "two") as two,
    ):
        accepted: list[bytes] = []

        async def publish() -> None:
            for number in itertools.count():
                body = b"%d" % number
                try:
                    await one.publish(push(body))
                except BackboneError:
                    await anyio.lowlevel.checkpoint()
                else:
                    accepted.append(body)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(publish)
            for _ in range(2):
                await more_than(accepted, len(accepted) + 100)
                server.kill()
                await until(lambda: one.trouble)
                server.start()
            await more_than(accepted, len(accepted) + 100)
            tasks.cancel_scope.cancel()
        await publish_when_possible(one, b"end")
        for queue in (one, two):
            came: list[bytes] = []
            while not came or came[-1] != b"end":
                came += await take(queue, 1)
            numbers = [int(body) for body in dict.fromkeys(came[:-1])]
            assert numbers == sorted(numbers)
            assert {int(body) for body in accepted} <= set(numbers)


async def test_a_connection_that_breaks_loses_and_doubles_nothing(url: str, raw: Redis) -> None:
    async with at_work(RedisQueue(url, prefetch=4)) as queue:
        received: list[bytes] = []
        unacknowledged: list[PushMsg] = []
        for number in range(60):
            await publish_when_possible(queue, b"%d" % number)
            if number % 10 == 5:
                raw.client_kill_filter(_type="normal", skipme=True)
            if number % 2:
                with anyio.fail_after(10):
                    msg = await queue.receive()
                received.append(msg.msg)
                unacknowledged.append(msg)
            if number % 7 == 0:
                while unacknowledged:
                    queue.acknowledge(unacknowledged.pop())
        while received[-1] != b"59":
            received += await take(queue, 1)
        # One that was not answered for may be there twice: published again, not delivered again.
        assert list(dict.fromkeys(received)) == [b"%d" % number for number in range(60)]
        assert len(received) == raw.xlen(TOPIC)


async def test_what_was_on_its_way_when_the_connection_broke_comes_again(url: str, raw: Redis) -> None:
    async with at_work(RedisQueue(url, prefetch=1)) as queue:
        await publish_when_possible(queue, b"0", b"1", b"2")
        await until(lambda: raw.xpending(TOPIC, "goim_core:node")["pending"] == 1)
        # Redis believes that it has sent them.
        ((_, entries),) = cast("list[Any]", raw.xreadgroup("goim_core:node", "job", {TOPIC: ">"}))
        assert len(entries) == 2
        await queue.publish(push(b"3"))
        opened = queue._reader.opened
        raw.client_kill_filter(_type="normal", skipme=True)
        assert await take(queue, 4) == [b"0", b"1", b"2", b"3"]
        assert queue._reader.opened > opened


async def test_a_server_that_is_no_primary_any_more_is_left(url: str, redis_server: RedisServer) -> None:
    async with at_work(RedisQueue(url)) as queue:
        await queue.publish(push(b"0"))
        assert await take(queue, 1) == [b"0"]
        redis_server.ask("REPLICAOF", "127.0.0.1", "1")
        try:
            opened = queue._writer.opened
            with pytest.raises(BackboneError, match="read only replica"):
                await queue.publish(push(b"1"))
            with pytest.raises(BackboneError, match="read only replica"):
                await queue.publish(push(b"2"))
            assert queue._writer.opened > opened  # it looks whether the address leads to another
        finally:
            redis_server.ask("REPLICAOF", "NO", "ONE")
        await queue.publish(push(b"3"))
        assert await take(queue, 1) == [b"3"]


async def test_a_new_stream_that_begins_where_the_old_one_ended(url: str, raw: Redis) -> None:
    async with at_work(RedisQueue(url)) as queue:
        seconds, microseconds = raw.time()
        for _ in range(2):
            raw.xadd(TOPIC, {"push": HI}, id=f"{seconds * 1000 + microseconds // 1000}-1")
            assert await take(queue, 1) == [b"hi"]
            await until(lambda: not queue._here)
            raw.delete(TOPIC)


async def test_a_stream_that_is_deleted_is_made_again(url: str, raw: Redis) -> None:
    async with at_work(RedisQueue(url)) as queue:
        await queue.publish(push(b"1"))
        assert await take(queue, 1) == [b"1"]
        raw.delete(TOPIC)
        await queue.publish(push(b"2"))
        assert await take(queue, 1) == [b"2"]
        raw.delete(TOPIC)
        raw.set(TOPIC, "text")
        with pytest.raises(BackboneError, match="Redis refused: WRONGTYPE"):
            await queue.publish(push(b"3"))
        await until(lambda: "no stream" in queue.trouble)
        raw.delete(TOPIC)
        await queue.publish(push(b"4"))
        assert await take(queue, 1) == [b"4"]
        await until(lambda: not queue.trouble)


async def test_a_server_without_memory_refuses_pushes_until_there_is_some(url: str, raw: Redis) -> None:
    async with at_work(RedisQueue(url)) as queue:
        await queue.publish(push(b"1"))
        raw.config_set("maxmemory", 1)
        try:
            with pytest.raises(BackboneError, match="Redis refused: .*maxmemory"):
                await queue.publish(push(b"2"))
            assert "publishing to the stream 'goim-push-topic' in Redis: Redis refused: " in queue.trouble
            assert await take(queue, 1) == [b"1"]  # what is there is delivered
            await until(lambda: raw.xpending(TOPIC, "goim_core:node")["pending"] == 0)
        finally:
            raw.config_set("maxmemory", 0)
        await queue.publish(push(b"3"))
        assert not queue.trouble
        assert await take(queue, 1) == [b"3"]


async def test_a_server_that_lets_nobody_read_is_not_asked_all_the_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with started_redis() as server:
        async with at_work(RedisQueue(server.url)) as queue:
            server.ask("ACL", "SETUSER", "default", "-xreadgroup")
            await until(lambda: "XREADGROUP" in queue.trouble.upper())
            began, asked = time.monotonic(), calls(server, "xreadgroup")
            await until(lambda: calls(server, "xreadgroup") >= asked + 3)
            assert time.monotonic() - began > 0.3
            assert len(caplog.records) == 1
            server.ask("ACL", "SETUSER", "default", "+xreadgroup")
            await queue.publish(push(b"1"))
            assert await take(queue, 1) == [b"1"]
            await until(lambda: not queue.trouble)


def calls(server: RedisServer, command: str) -> int:
    """How often the server was asked, and refused it."""
    found: dict[str, Any] = server.ask("INFO", "commandstats").get(f"cmdstat_{command}", {})
    return int(found.get("calls", 0)) + int(found.get("rejected_calls", 0))


async def test_what_cannot_be_acknowledged_is_said_and_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(redis_queue, "UNTOLD", 20)
    monkeypatch.setattr(redis_queue, "RETRY", (0.01, 0.01))
    async with started_redis() as server:
        async with at_work(RedisQueue(server.url, prefetch=5)) as queue:
            server.ask("ACL", "SETUSER", "default", "-xack")
            for number in range(100):
                await queue.publish(push(b"%d" % number))
            assert await take(queue, 20) == [b"%d" % number for number in range(20)]
            await until(lambda: "acknowledging on the stream 'goim-push-topic' in Redis" in queue.trouble)
            with anyio.fail_after(10):
                while queue._arrived or not queue._changed.statistics().tasks_waiting:  # the reading waits
                    if queue._arrived:
                        queue.acknowledge(await queue.receive())
                    await anyio.lowlevel.checkpoint()
            assert 20 <= len(queue._here) <= 20 + 5
            server.ask("ACL", "SETUSER", "default", "+xack")
            last = b""
            while last != b"99":
                (last,) = await take(queue, 1)
            await until(lambda: not queue.trouble and not queue._here)
    assert len([each for each in caplog.records if "acknowledging" in each.message]) == 1


async def test_the_clock_of_redis_is_looked_at_again(url: str, raw: Redis) -> None:
    """Somebody has set it back by an hour since this node has seen it last."""
    async with at_work(RedisQueue(url, retention=1)) as queue:
        queue._ahead += 3_600_000
        await until(lambda: abs(queue._now() - time.time() * 1000) < 1000)
        raw.xadd(TOPIC, {"push": HI})
        assert await take(queue, 1) == [b"hi"]
        assert queue.expired == 0


async def test_a_server_that_is_away_is_not_asked_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []
    async with started_redis() as server, at_work(RedisQueue(server.url)) as queue:
        read = queue._group.read

        async def counted(count: int) -> Any:
            tried.append(time.monotonic())
            return await read(count)

        monkeypatch.setattr(queue._group, "read", counted)
        server.kill()
        await until(lambda: len(tried) >= 5)
        gaps = [later - earlier for earlier, later in itertools.pairwise(tried)]
        assert min(gaps[1:]) > 0.09
        assert gaps[-1] > 0.3
        server.start()


async def test_a_node_that_ends_while_its_server_is_away_ends_at_once() -> None:
    async with started_redis() as server:
        with anyio.fail_after(5):
            async with at_work(RedisQueue(server.url, timeout=0.3)) as queue:
                await queue.publish(push(b"1"))
                queue.acknowledge(await queue.receive())
                server.kill()
        server.start()


def test_on_trio_it_says_what_it_needs() -> None:
    with pytest.raises(ConfigurationError, match="^RedisQueue needs asyncio: run on asyncio or uvloop$"):
        anyio.run(RedisQueue().start, "node-1", backend="trio")
