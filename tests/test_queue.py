"""The push queue in memory: the suite that every form keeps, and what this one adds."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from goim_core.errors import ConfigurationError, QueueFull, ServerStopped
from goim_core.queue import MemoryQueue, PushMsg, PushType, Queue
from goim_core.testing.queue_contract import QueueContract

pytestmark = pytest.mark.anyio


def push(body: bytes, room: str = "live://1000") -> PushMsg:
    return PushMsg(PushType.ROOM, 1000, body, room=room)


class TestMemoryQueue(QueueContract):
    """The form in memory."""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Queue]:
        queue = MemoryQueue(16)
        yield queue
        await queue.aclose()

    @pytest.mark.parametrize("size", [0, -1])
    async def test_a_queue_has_room_for_one_at_least(self, size: int) -> None:
        with pytest.raises(ConfigurationError, match=f"^size: expected at least 1, got {size}"):
            MemoryQueue(size)

    async def test_pending_counts_until_the_acknowledgement(self) -> None:
        queue = MemoryQueue(4)
        assert queue.pending == 0
        await queue.publish(push(b"one"))
        await queue.publish(push(b"two"))
        assert queue.pending == 2
        msg = await queue.receive()
        assert queue.pending == 2
        queue.acknowledge(msg)
        assert queue.pending == 1

    async def test_a_publisher_waits_while_the_queue_is_full(self) -> None:
        queue = MemoryQueue(2)
        published: list[int] = []

        async def publish(number: int) -> None:
            await queue.publish(push(b"%d" % number))
            published.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(4):
                tasks.start_soon(publish, number)
                await anyio.wait_all_tasks_blocked()
            assert published == [0, 1]
            received = [(await queue.receive()).msg for _ in range(4)]
        assert received[:2] == [b"0", b"1"]
        assert sorted(received[2:]) == [b"2", b"3"], "trio runs those that are let in at once in any order"
        assert sorted(published) == [0, 1, 2, 3]

    async def test_with_nowait_a_full_queue_says_so(self) -> None:
        queue = MemoryQueue(1)
        await queue.publish(push(b"one"), nowait=True)
        with pytest.raises(QueueFull, match="1 pushes wait"):
            await queue.publish(push(b"two"), nowait=True)
        assert queue.pending == 1
        assert (await queue.receive()).msg == b"one"
        await queue.publish(push(b"three"), nowait=True)
        assert (await queue.receive()).msg == b"three"

    async def test_a_publisher_that_is_cancelled_has_published_nothing(self) -> None:
        queue = MemoryQueue(1)
        await queue.publish(push(b"one"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(queue.publish, push(b"never"))
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        assert queue.pending == 1
        queue.acknowledge(await queue.receive())
        await queue.publish(push(b"two"), nowait=True)
        assert (await queue.receive()).msg == b"two"
        assert queue.pending == 1

    async def test_what_is_acknowledged_before_its_publisher_goes_on_counts_once(self) -> None:
        for _ in range(20):  # trio orders its tasks by chance
            queue = MemoryQueue(1)
            counts: list[int] = []
            async with anyio.create_task_group() as tasks:
                for number in range(5):
                    tasks.start_soon(queue.publish, push(b"%d" % number))
                for _ in range(5):
                    msg = await queue.receive()
                    queue.acknowledge(msg)
                    counts.append(queue.pending)
                tasks.start_soon(queue.drain)
            assert min(counts) >= 0
            assert queue.pending == 0

    async def test_draining_is_not_done_while_a_push_is_on_its_way_to_a_receiver(self) -> None:
        queue = MemoryQueue(1)
        order: list[str] = []

        async def receive() -> None:
            msg = await queue.receive()
            order.append("acknowledged")
            queue.acknowledge(msg)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await anyio.wait_all_tasks_blocked()
            await queue.publish(push(b"one"), nowait=True)
            await queue.drain()
            order.append("drained")
        assert order == ["acknowledged", "drained"]

    async def test_several_may_receive(self) -> None:
        queue = MemoryQueue(4)
        received: list[bytes] = []

        async def receive() -> None:
            received.append((await queue.receive()).msg)

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(receive)
            await anyio.wait_all_tasks_blocked()
            for number in range(3):
                await queue.publish(push(b"%d" % number))
        assert sorted(received) == [b"0", b"1", b"2"]

    async def test_closing_tells_those_who_wait_and_those_who_come_later(self) -> None:
        queue = MemoryQueue(1)
        await queue.publish(push(b"one"))
        told: list[str] = []

        async def publish() -> None:
            with pytest.raises(ServerStopped, match="closed"):
                await queue.publish(push(b"two"))
            told.append("waited")

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(publish)
            await anyio.wait_all_tasks_blocked()
            await queue.aclose()
        assert told == ["waited"] * 3
        for nowait in (False, True):
            with pytest.raises(ServerStopped, match="closed"):
                await queue.publish(push(b"three"), nowait=nowait)

    async def test_closing_ends_a_receive(self) -> None:
        queue = MemoryQueue(1)

        async def receive() -> None:
            with pytest.raises(ServerStopped, match="closed"):
                await queue.receive()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await anyio.wait_all_tasks_blocked()
            await queue.aclose()

    async def test_a_queue_that_is_never_used_needs_no_closing(self) -> None:
        MemoryQueue()
        gc.collect()  # a warning would be an error
