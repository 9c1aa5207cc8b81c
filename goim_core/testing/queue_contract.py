"""What every queue does: a suite to run on one of your own.

::

    class TestMyQueue(QueueContract):
        @asynccontextmanager
        async def opened(self):
            queue = MyQueue(...)
            yield queue
            await queue.aclose()
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

import anyio
import anyio.lowlevel
import pytest

from goim_core.queue import PushMsg, PushType, Queue
from goim_core.testing.quiet import all_blocked

__all__ = ["QueueContract"]


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
