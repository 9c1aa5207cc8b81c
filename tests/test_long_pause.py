"""Every server that nodes share says nothing for ten seconds, all at the same time, while all goes on being used.

On asyncio alone: the client libraries of all three know no other event loop, each adapter's own tests run on
uvloop too, and ten seconds of real time are spent once. Real they have to be: it is the kernel that keeps the
connections of a process that is stopped.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest
from attrs import define, field

from goim_core import Disconnect, OpenAuth, Options, Server
from goim_core.adapters.kafka import KafkaQueue
from goim_core.adapters.nats import NATSQueue
from goim_core.adapters.redis import RedisQueue, RedisRegistry
from goim_core.client import Client, connect
from goim_core.errors import BackboneError
from goim_core.queue import Queue
from tests import kafka, nats, redis

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform == "win32", reason="it has no SIGSTOP"),
]

PAUSE = 10.0
TIMEOUT = 1.0
"""Seconds for each question to a server."""
SLACK = 1.5
"""What a busy machine may add to it."""
CPU = 2.5
"""Seconds of a processor, for three nodes, three clients and three publishers in those ten. One that turns in a
circle takes all it can get."""
TEXT = 1000
ROOM = "live://1"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@define
class Servers:
    """One of each kind, for this test alone."""

    nats: nats.NATSServer
    redis: redis.RedisServer
    kafka: kafka.KafkaServer

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        with self.nats.frozen(), self.redis.paused():
            self.kafka.pause()
            try:
                yield
            finally:
                self.kafka.go_on()


@pytest.fixture
def servers() -> Iterator[Servers]:
    programs = {nats.HOW_TO_GET_ONE: nats.program(), kafka.HOW_TO_GET_ONE: kafka.program()}
    for how, found in programs.items():
        if found is None:
            if os.environ.get("CI"):
                pytest.fail(how)
            pytest.skip(how)
    made = Servers(nats.NATSServer(nats.program()), redis.RedisServer(), kafka.KafkaServer(kafka.program()))
    yield made
    for each in (made.nats, made.redis, made.kafka):
        each.close()


@define
class Node:
    """A node, its one client, and who publishes to the room that the client is in."""

    mid: int
    server: Server
    client: Client
    accepted: list[int] = field(factory=list)
    refused: list[tuple[float, str]] = field(factory=list)
    """How many seconds it took, and what was said."""
    received: list[int] = field(factory=list)
    others: list[bytes] = field(factory=list)

    async def publish(self) -> None:
        number = 0
        while True:
            began = time.monotonic()
            try:
                await self.server.push_room(ROOM, TEXT, b"%d" % number)
                self.accepted.append(number)
            except BackboneError as error:
                self.refused.append((time.monotonic() - began, str(error)))
            number += 1
            await anyio.sleep(0.02)  # somebody who publishes now and then

    async def receive(self) -> None:
        async for message in self.client:
            if message.body.isdigit():
                self.received.append(int(message.body))
            else:
                self.others.append(message.body)

    async def ask_the_registry(self) -> None:
        """Who is for a user is told in time that nobody knows where he is; who comes in, that he cannot."""
        with anyio.fail_after(2 * TIMEOUT + SLACK), pytest.raises(BackboneError, match="Redis"):
            await self.server.push_mids([self.mid], TEXT, b"lost")
        with anyio.fail_after(4 * TIMEOUT + SLACK), pytest.raises(Disconnect):
            async with guest(self.server, 100 + self.mid, backoff=None):
                pass

    @property
    def order(self) -> list[int]:
        """What was accepted, as it came for the first time."""
        accepted = set(self.accepted)
        return [number for number in dict.fromkeys(self.received) if number in accepted]


def guest(server: Server, mid: int, **options: Any) -> Client:
    [address] = server.addresses["tcp"]
    assert isinstance(address, tuple)
    host, port = address
    return connect(f"tcp://{host}:{port}", mid=mid, accepts=[TEXT], **options)


def queues(servers: Servers) -> dict[str, Queue]:
    return {
        "nats": NATSQueue(servers.nats.url, timeout=TIMEOUT),
        "redis": RedisQueue(servers.redis.url, timeout=TIMEOUT),
        "kafka": KafkaQueue(servers.kafka.address, timeout=TIMEOUT),
    }


@asynccontextmanager
async def nodes(servers: Servers) -> AsyncIterator[list[Node]]:
    """A node on each kind of queue. They share a registry, and no queue: each has its own room of that name."""
    async with AsyncExitStack() as stack:
        found = []
        for mid, (name, queue) in enumerate(queues(servers).items(), 1):
            server = Server(
                auth=OpenAuth(),
                tcp="127.0.0.1:0",
                name=name,
                queue=queue,
                registry=RedisRegistry(servers.redis.url, timeout=TIMEOUT),
                options=Options(census=1.0, drain=4.0, farewell_timeout=0.01),
            )
            await stack.enter_async_context(server)
            client = await stack.enter_async_context(guest(server, mid, rooms=[ROOM]))
            found.append(Node(mid, server, client))
        tasks = await stack.enter_async_context(anyio.create_task_group())
        for node in found:
            tasks.start_soon(node.receive)
        yield found
        tasks.cancel_scope.cancel()


async def until(is_so: Callable[[], object]) -> None:
    with anyio.fail_after(20):
        while not is_so():  # noqa: ASYNC110  # it is the answer of another process, which tells nobody
            await anyio.sleep(0.01)


async def test_ten_seconds_of_silence(servers: Servers, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "goim_core")
    async with nodes(servers) as each:
        async with anyio.create_task_group() as publishers:
            for node in each:
                publishers.start_soon(node.publish)
            await until(lambda: all(len(node.received) > 10 for node in each))
            async with servers.paused():
                await the_pause(each)
            # All of them come back by themselves.
            await until(lambda: not any(node.server.stats().troubles for node in each))
            back = [len(node.accepted) for node in each]
            await until(
                lambda: all(len(node.accepted) > count + 10 for node, count in zip(each, back, strict=True))
            )
            publishers.cancel_scope.cancel()
        for node in each:
            # Nothing that was accepted is lost, and all of it is in order.
            await until(lambda: node.accepted[-1] in node.received)  # noqa: B023  # it is waited for here
            assert node.order == node.accepted
            await node.server.push_mids([node.mid], TEXT, b"to the user")
            await until(lambda: node.others == [b"to the user"])  # noqa: B023
            assert node.client.state == "open"
            assert node.server.stats().troubles == {}
            async with guest(node.server, 100 + node.mid):
                pass
    said_at_each_end(caplog)


async def the_pause(each: list[Node]) -> None:
    before = [len(node.accepted) for node in each]
    used = time.process_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.sleep, PAUSE)
        for node in each:
            tasks.start_soon(node.ask_the_registry)
    used = time.process_time() - used
    assert used < CPU, f"{used:.2f} s of a processor"
    # They say so.
    assert [set(node.server.stats().troubles) for node in each] == [{"queue", "registry"}] * 3
    for node, count in zip(each, before, strict=True):
        # Whoever publishes is told, in time and each time; no push is accepted but what was on its way.
        assert len(node.accepted) <= count + 1
        assert len(node.refused) >= 3
        assert max(seconds for seconds, _ in node.refused) < TIMEOUT + SLACK
        # Clients stay.
        assert node.client.state == "open"


def said_at_each_end(caplog: pytest.LogCaptureFixture) -> None:
    """One line when something is wrong, and one when it is over: of each connection, and each kind of work."""
    said = [each for each in caplog.records if each.name.startswith("goim_core.adapters")]
    for what in ("NATS at", "Redis at", "Kafka at"):
        lines = [(each.levelno, each.getMessage()) for each in said if what in each.getMessage()]
        begun = [text for level, text in lines if level == logging.WARNING]
        ended = [text for _, text in lines if text.endswith(": works again")]
        assert 1 <= len(ended) == len(begun) <= 8, lines
