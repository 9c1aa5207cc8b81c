"""What every queue does: suites to run on one of your own.

A queue in the process::

    class TestMyQueue(QueueContract):
        @asynccontextmanager
        async def opened(self):
            queue = MyQueue(...)
            yield queue
            await queue.aclose()

A queue on a server that several nodes share, which outlives them: :class:`DurableQueueContract`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from time import monotonic
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from goim_core.errors import BackboneError, QueueFull, ServerStopped
from goim_core.queue import PushMsg, PushType, Queue
from goim_core.testing.quiet import all_blocked

__all__ = ["DurableQueueContract", "QueueContract", "Topic", "working"]


CLOCKS = 0.05
"""How many seconds the clocks of a queue and of the test may be apart."""


def _push(body: bytes, room: str = "live://1000") -> PushMsg:
    return PushMsg(PushType.ROOM, 1000, body, room=room)


class QueueContract:
    """What every queue does. Subclass it as ``Test...`` and say how a queue is opened.

    Runs on what anyio's pytest plugin runs on: the fixture ``anyio_backend``.
    """

    pytestmark = pytest.mark.anyio

    def opened(self) -> AbstractAsyncContextManager[Queue]:
        """An empty queue with room for at least 16 pushes, closed at the end."""
        raise NotImplementedError

    async def test_a_push_comes_out_as_it_went_in(self) -> None:
        msgs = [
            PushMsg(PushType.PUSH, 1000, b"\0\xff", server="node", keys=("a", "\N{SNOWMAN}")),
            PushMsg(PushType.PUSH, 1000, b"", server="node", keys=("a", "b"), seqs=(2**31 - 1, 0)),
            PushMsg(PushType.ROOM, 2**31 - 1, b"", room="live://1000"),
            PushMsg(PushType.BROADCAST, 4, b"body", speed=100),
        ]
        async with self.opened() as queue:
            for msg in msgs:
                await queue.publish(msg)
                received = await queue.receive()
                assert received == msg
                queue.acknowledge(received)

    async def test_one_publishers_pushes_come_in_order(self) -> None:
        async with self.opened() as queue:
            received: list[bytes] = []

            async def publish() -> None:
                for number in range(100):
                    await queue.publish(_push(b"%d" % number))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(publish)
                for _ in range(100):
                    msg = await queue.receive()
                    received.append(msg.msg)
                    queue.acknowledge(msg)
            assert received == [b"%d" % number for number in range(100)]

    async def test_nothing_of_several_publishers_is_lost_or_doubled(self) -> None:
        async with self.opened() as queue:
            received: dict[str, list[bytes]] = {}

            async def publish(room: str) -> None:
                for number in range(30):
                    await queue.publish(_push(b"%d" % number, room))
                    await anyio.lowlevel.checkpoint()

            async with anyio.create_task_group() as tasks:
                for room in ("live://1", "live://2", "live://3"):
                    tasks.start_soon(publish, room)
                for _ in range(90):
                    msg = await queue.receive()
                    received.setdefault(msg.room, []).append(msg.msg)
                    queue.acknowledge(msg)
            expected = [b"%d" % number for number in range(30)]
            assert received == {f"live://{room}": expected for room in (1, 2, 3)}

    async def test_it_says_how_long_the_last_push_has_waited(self) -> None:
        async with self.opened() as queue:
            assert queue.lag == 0
            before = monotonic()
            await queue.publish(_push(b"waits"))
            since = monotonic()
            while monotonic() < since + 0.1:
                await anyio.lowlevel.checkpoint()
            waited = monotonic() - since
            queue.acknowledge(await queue.receive())
            # Clocks of milliseconds, and a server's that was read some time ago.
            assert waited - CLOCKS < queue.lag < monotonic() - before + CLOCKS
            before = monotonic()
            await queue.publish(_push(b"does not"))
            queue.acknowledge(await queue.receive())
            assert 0 <= queue.lag < monotonic() - before + CLOCKS

    async def test_it_does_not_say_that_it_is_empty_while_it_is_not(self) -> None:
        async with self.opened() as queue:
            for number in range(3):
                await queue.publish(_push(b"%d" % number))
            for _ in range(3):
                assert not queue.empty
                queue.acknowledge(await queue.receive())

    async def test_receiving_waits_for_a_push(self) -> None:
        async with self.opened() as queue:
            received: list[PushMsg] = []

            async def receive() -> None:
                received.append(await queue.receive())

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(receive)
                await all_blocked()
                assert received == []
                await queue.publish(_push(b"one"))
            assert received == [_push(b"one")]
            queue.acknowledge(received[0])

    async def test_a_receive_that_is_cancelled_takes_nothing_along(self) -> None:
        async with self.opened() as queue:
            received: list[bytes] = []

            async def receive() -> None:
                received.append((await queue.receive()).msg)

            for number in range(10):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(receive)
                    await all_blocked()
                    await queue.publish(_push(b"%d" % number))
                    # It may have been given the push, or not; it must not lose it.
                    tasks.cancel_scope.cancel()
            while len(received) < 10:
                received.append((await queue.receive()).msg)
            assert received == [b"%d" % number for number in range(10)]

    async def test_draining_waits_until_all_is_acknowledged(self) -> None:
        async with self.opened() as queue:
            drained = anyio.Event()

            async def drain() -> None:
                await queue.drain()
                drained.set()

            await queue.drain()
            async with anyio.create_task_group() as tasks:
                for body in (b"one", b"two"):
                    await queue.publish(_push(body))
                tasks.start_soon(drain)
                msgs = [await queue.receive(), await queue.receive()]
                queue.acknowledge(msgs[0])
                await all_blocked()
                assert not drained.is_set()
                queue.acknowledge(msgs[1])
                await drained.wait()


# A queue on a server.


class Topic(ABC):
    """An empty topic on a real server, as a :class:`DurableQueueContract` wants it."""

    @abstractmethod
    def new_queue(self, **options: Any) -> Queue:
        """A new, unstarted queue on this topic, as another process would make it.

        ``options`` are of its constructor, over what the tests need in any case: ``timeout`` (seconds that
        :meth:`Queue.publish` takes at most) and ``size`` (how many publishes may be under way).
        """

    @abstractmethod
    async def put(self, data: bytes) -> None:
        """Put a message of these bytes on the topic, as a process of another kind would."""

    @abstractmethod
    def frozen(self) -> AbstractAsyncContextManager[None]:
        """A time in which the server answers nothing and keeps what it has: SIGSTOP, then SIGCONT.

        A signal takes a moment: ``os.waitpid(pid, os.WUNTRACED)`` waits until it has stopped.
        """


@asynccontextmanager
async def working(queue: Queue, node: str = "node") -> AsyncIterator[Queue]:
    """``queue`` as a server of that name has it: started, run beside the block, and closed."""
    try:
        await queue.start(node)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(queue.run)
            yield queue
            tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await queue.aclose()


async def _received(queue: Queue, count: int) -> list[bytes]:
    """The bodies of the next pushes, each acknowledged."""
    bodies = []
    with anyio.fail_after(30):
        for _ in range(count):
            msg = await queue.receive()
            queue.acknowledge(msg)
            bodies.append(msg.msg)
    return bodies


class DurableQueueContract(QueueContract):
    """What a queue does that nodes share and that outlives them. Subclass it as ``Test...``::

        class TestMyQueue(DurableQueueContract):
            @asynccontextmanager
            async def topic(self):
                yield MyTopic(server, f"topic-{next(numbers)}")

    where ``MyTopic`` is a :class:`Topic` on a real server. The plain suite runs on it too. Where the
    client library knows only asyncio, override the fixture ``anyio_backend`` beside the class.
    """

    def topic(self) -> AbstractAsyncContextManager[Topic]:
        """A topic that no other test uses; gone, with its server's faults, at the end."""
        raise NotImplementedError

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Queue]:
        async with self.topic() as topic, working(topic.new_queue()) as queue:
            yield queue

    @asynccontextmanager
    async def two_nodes(self) -> AsyncIterator[tuple[Queue, Queue]]:
        """Two nodes on one topic, called ``one`` and ``two``."""
        async with (
            self.topic() as topic,
            working(topic.new_queue(), "one") as one,
            working(topic.new_queue(), "two") as two,
        ):
            yield one, two

    async def test_rooms_and_broadcasts_reach_every_node(self) -> None:
        msgs = [_push(b"room"), PushMsg(PushType.BROADCAST, 1000, b"all", speed=5)]
        async with self.two_nodes() as nodes:
            for node in nodes:
                for msg in msgs:
                    await node.publish(msg)
            for node in nodes:
                for msg in msgs * 2:
                    received = await node.receive()
                    assert received == msg
                    node.acknowledge(received)

    async def test_a_push_to_keys_reaches_its_node_alone_and_in_order(self) -> None:
        async with self.two_nodes() as (one, two):
            for number in range(10):
                await one.publish(PushMsg(PushType.PUSH, 1000, b"to two", server="two", keys=("a",)))
                await one.publish(_push(b"room %d" % number))
            for number in range(10):
                assert await _received(two, 2) == [b"to two", b"room %d" % number]
            assert await _received(one, 10) == [b"room %d" % number for number in range(10)]

    async def test_a_push_to_a_node_that_is_not_there_disturbs_nobody(self) -> None:
        async with self.two_nodes() as (one, two):
            await one.publish(PushMsg(PushType.PUSH, 1000, b"", server="node.3 *>/\N{SNOWMAN}", keys=("a",)))
            await one.publish(_push(b"room"))
            assert await _received(two, 1) == [b"room"]

    @pytest.mark.parametrize("name", ["web-1.example.com", "a b", "*", ">", "a/b\\c", "\N{SNOWMAN}", "%2E:"])
    async def test_any_name_of_a_node_will_do(self, name: str) -> None:
        async with self.topic() as topic, working(topic.new_queue(), name) as queue:
            await queue.publish(PushMsg(PushType.PUSH, 1000, b"one", server=name, keys=("a",)))
            assert await _received(queue, 1) == [b"one"]

    async def test_each_publishers_order_is_kept_among_many(self) -> None:
        rooms = [f"live://{number}" for number in range(6)]
        async with self.two_nodes() as nodes:

            async def publish(node: Queue, room: str) -> None:
                for number in range(50):
                    await node.publish(_push(b"%d" % number, room))

            async with anyio.create_task_group() as tasks:
                for index, room in enumerate(rooms):
                    tasks.start_soon(publish, nodes[index % 2], room)
                for node in nodes:
                    received: dict[str, list[bytes]] = {}
                    for _ in range(50 * len(rooms)):
                        msg = await node.receive()
                        node.acknowledge(msg)
                        received.setdefault(msg.room, []).append(msg.msg)
                    expected = [b"%d" % number for number in range(50)]
                    assert received == dict.fromkeys(rooms, expected)

    async def test_what_is_not_acknowledged_comes_again_after_a_restart(self) -> None:
        async with self.topic() as topic:
            async with working(topic.new_queue()) as queue:
                for number in range(6):
                    await queue.publish(_push(b"%d" % number))
                received = [await queue.receive() for _ in range(4)]
                assert [msg.msg for msg in received] == [b"0", b"1", b"2", b"3"]
                for msg in received[:2]:
                    queue.acknowledge(msg)
            async with working(topic.new_queue()) as queue:
                await queue.publish(_push(b"6"))
                assert await _received(queue, 5) == [b"2", b"3", b"4", b"5", b"6"]
            async with working(topic.new_queue()) as queue:
                await queue.publish(_push(b"7"))
                assert await _received(queue, 1) == [b"7"]

    async def test_what_is_acknowledged_in_another_order_loses_nothing(self) -> None:
        async with self.topic() as topic:
            async with working(topic.new_queue()) as queue:
                for number in range(3):
                    await queue.publish(_push(b"%d" % number))
                received = [await queue.receive() for _ in range(3)]
                queue.acknowledge(received[2])
                queue.acknowledge(received[0])
            async with working(topic.new_queue()) as queue:
                await queue.publish(_push(b"3"))
                again = [(await queue.receive()).msg]
                while again[-1] != b"3":
                    again.append((await queue.receive()).msg)
                assert again in ([b"1", b"3"], [b"1", b"2", b"3"])

    async def test_what_is_published_while_a_node_is_away_comes_when_it_is_back(self) -> None:
        async with self.topic() as topic, working(topic.new_queue(), "one") as one:
            async with working(topic.new_queue(), "two") as two:
                await one.publish(_push(b"0"))
                assert await _received(two, 1) == [b"0"]
            await one.publish(_push(b"1"))
            await one.publish(PushMsg(PushType.PUSH, 1000, b"2", server="two", keys=("a",)))
            await one.publish(PushMsg(PushType.BROADCAST, 1000, b"3"))
            async with working(topic.new_queue(), "two") as two:
                assert await _received(two, 3) == [b"1", b"2", b"3"]

    async def test_a_node_that_is_new_begins_with_what_is_new(self) -> None:
        async with self.topic() as topic, working(topic.new_queue(), "one") as one:
            await one.publish(_push(b"old"))
            async with working(topic.new_queue(), "two") as two:
                await one.publish(_push(b"new"))
                assert await _received(two, 1) == [b"new"]

    async def test_a_server_that_does_not_answer_is_told_to_the_publisher(self) -> None:
        async with self.topic() as topic, working(topic.new_queue(timeout=0.3)) as queue:
            await queue.publish(_push(b"before"))
            async with topic.frozen():
                with anyio.fail_after(5), pytest.raises(BackboneError):
                    await queue.publish(_push(b"in vain"))
                assert queue.trouble
            await self._publish_when_possible(queue, b"after")
            received = await _received(queue, 2)
            # The server may have got what it did not answer.
            if received == [b"before", b"in vain"]:
                received = [b"before", *await _received(queue, 1)]
            assert received == [b"before", b"after"]
            assert not queue.trouble

    async def test_with_nowait_too_many_publishes_under_way_are_refused(self) -> None:
        async with self.topic() as topic, working(topic.new_queue(timeout=0.5, size=4)) as queue:
            told: list[BackboneError] = []

            async def publish() -> None:
                with pytest.raises(BackboneError) as caught:
                    await queue.publish(_push(b"under way"))
                told.append(caught.value)

            async with topic.frozen(), anyio.create_task_group() as tasks:
                for _ in range(6):  # two of them wait for a place
                    tasks.start_soon(publish)
                await all_blocked()
                with pytest.raises(QueueFull, match="4"):
                    await queue.publish(_push(b"too many"), nowait=True)
            assert len(told) == 6
            await self._publish_when_possible(queue, b"after")

    async def _publish_when_possible(self, queue: Queue, body: bytes) -> None:
        with anyio.fail_after(20):
            while True:
                try:
                    await queue.publish(_push(body))
                except BackboneError:
                    continue
                return

    async def test_poison_is_skipped_and_counted(self) -> None:
        async with self.topic() as topic:
            async with working(topic.new_queue()) as queue:
                await queue.publish(_push(b"before"))
                for data in (b"\xff", b"", b"\x08\x07", b"{}"):
                    await topic.put(data)
                await queue.publish(_push(b"after"))
                assert await _received(queue, 1) == [b"before"]
                msg = await queue.receive()
                # No bytes at all are a PUSH to no node in protobuf: passed over, and no poison.
                assert (msg.msg, _skipped(queue)) == (b"after", 3)
                queue.acknowledge(msg)
            async with working(topic.new_queue()) as queue:
                await queue.publish(_push(b"later"))
                assert await _received(queue, 1) == [b"later"]
                assert _skipped(queue) == 0

    async def test_what_another_process_puts_there_is_received(self) -> None:
        async with self.topic() as topic, working(topic.new_queue()) as queue:
            await topic.put(b"\x08\x01\x10\xe8\x07*\x0blive://1000:\x02hi")
            assert await _received(queue, 1) == [b"hi"]

    async def test_a_queue_that_is_closed_says_so(self) -> None:
        async with self.topic() as topic:
            async with working(topic.new_queue()) as queue:
                pass
            for nowait in (False, True):
                with pytest.raises(ServerStopped):
                    await queue.publish(_push(b"late"), nowait=nowait)
            with pytest.raises(ServerStopped):
                await queue.receive()
            await queue.aclose()

    async def test_a_queue_that_never_started_can_be_closed(self) -> None:
        async with self.topic() as topic:
            await topic.new_queue().aclose()


def _skipped(queue: Any) -> int:
    """How much poison ``queue`` has met: the attribute that durable queues have."""
    skipped: int = queue.skipped
    return skipped
