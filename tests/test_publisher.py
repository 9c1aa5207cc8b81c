"""Pushes on their way in: what is checked, what is stored, and what is put on the queue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from goim_core.clock import Deadlines
from goim_core.errors import (
    CloseCode,
    ConfigurationError,
    Disconnect,
    HookError,
    QueueFull,
    StorageError,
)
from goim_core.memory_storage import MemoryStorage
from goim_core.protocol import Op
from goim_core.publisher import Publisher
from goim_core.queue import MemoryQueue, PushMsg, PushType
from goim_core.registry import MemoryRegistry
from goim_core.session import Session
from goim_core.storage import StorePolicy
from goim_core.testing.clock import ManualClock
from goim_core.wire import read_disconnect
from tests.logics import TIMEOUT, LaterRegistry, new_publisher

pytestmark = pytest.mark.anyio


async def published(push: Callable[[Publisher], Any], *sessions: Session) -> list[PushMsg]:
    queue, registry = MemoryQueue(8), MemoryRegistry()
    for session in sessions:
        registry.add(session)
    await push(new_publisher(queue, registry))
    return [await queue.receive() for _ in range(queue.pending)]


HERE = [Session(mid=1, key="a", server="node-1"), Session(mid=1, key="b", server="node-1")]
THERE = [Session(mid=1, key="c", server="node-2"), Session(mid=2, key="d", server="node-2")]


async def received(queue: MemoryQueue) -> PushMsg:
    """The next push, which has to be there."""
    assert queue.pending, "nothing was published"
    msg = await queue.receive()
    queue.acknowledge(msg)
    return msg


async def test_a_push_to_keys_goes_to_each_server_once() -> None:
    msgs = await published(
        lambda publisher: publisher.push_keys(["a", "d", "b", "x", "a"], 1000, b"p"), *HERE, *THERE
    )
    assert msgs == [
        PushMsg(PushType.PUSH, 1000, b"p", server="node-1", keys=("a", "b")),
        PushMsg(PushType.PUSH, 1000, b"p", server="node-2", keys=("d",)),
    ]


async def test_a_push_to_users_goes_to_all_their_connections() -> None:
    msgs = await published(lambda publisher: publisher.push_mids([1, 5], 1000, b"p"), *HERE, *THERE)
    assert msgs == [
        PushMsg(PushType.PUSH, 1000, b"p", server="node-1", keys=("a", "b"), seqs=(0, 0)),
        PushMsg(PushType.PUSH, 1000, b"p", server="node-2", keys=("c",), seqs=(0,)),
    ]


async def test_a_push_to_nobody_is_none() -> None:
    assert await published(lambda publisher: publisher.push_keys([], 1000, b"p")) == []
    assert await published(lambda publisher: publisher.push_mids(iter([5]), 1000, b"p")) == []


async def test_pushes_with_a_registry_that_takes_its_time() -> None:
    registry, queue = LaterRegistry(), MemoryQueue(8)
    registry.inner.add(HERE[0])
    publisher = new_publisher(queue, registry)
    await publisher.push_keys(["a"], 1000, b"p")
    await publisher.push_mids([1], 1000, b"q")
    assert [(await received(queue)).keys for _ in range(2)] == [("a",), ("a",)]


async def test_a_push_to_a_room_and_to_all() -> None:
    assert await published(lambda publisher: publisher.push_room("live://1", 1000, b"p")) == [
        PushMsg(PushType.ROOM, 1000, b"p", room="live://1")
    ]
    assert await published(lambda publisher: publisher.push_all(1000, b"p", speed=5)) == [
        PushMsg(PushType.BROADCAST, 1000, b"p", speed=5)
    ]


async def push_each(publisher: Publisher, op: Any, body: Any, **nowait: bool) -> list[str]:
    """What each of the four kinds of push says to ``op`` and ``body``."""
    said = []
    for push in (
        publisher.push_keys(["a"], op, body, **nowait),
        publisher.push_mids([1], op, body, **nowait),
        publisher.push_room("live://1", op, body, **nowait),
        publisher.push_all(op, body, **nowait),
    ):
        try:
            await push
        except (ValueError, QueueFull) as error:
            said.append(str(error).partition(":")[0])
    return said


@pytest.mark.parametrize("op", [0, 9, 18, 63, -1, 2**31, True, None, "1000", 1000.0])
async def test_an_op_that_is_not_for_a_push(op: Any) -> None:
    queue = MemoryQueue(8)
    assert await push_each(new_publisher(queue), op, b"") == ["op"] * 4
    assert queue.pending == 0


@pytest.mark.parametrize("body", ["text", None, bytearray(b"x"), 5])
async def test_a_body_is_bytes(body: Any) -> None:
    queue = MemoryQueue(8)
    assert await push_each(new_publisher(queue), 1000, body) == ["body"] * 4
    assert queue.pending == 0


async def test_with_nowait_a_full_queue_says_so() -> None:
    queue, registry = MemoryQueue(1), MemoryRegistry()
    registry.add(HERE[0])
    publisher = new_publisher(queue, registry)
    await publisher.push_all(1000, b"")
    assert await push_each(publisher, 1000, b"", nowait=True) == ["the push queue is full"] * 4


@pytest.mark.parametrize(
    ("name", "push"),
    [
        ("keys", lambda publisher: publisher.push_keys("abc", 1000, b"")),
        ("keys", lambda publisher: publisher.push_keys([b"a"], 1000, b"")),
        ("keys", lambda publisher: publisher.push_keys([1], 1000, b"")),
        ("mids", lambda publisher: publisher.push_mids(["1"], 1000, b"")),
        ("mids", lambda publisher: publisher.push_mids([True], 1000, b"")),
        ("mids", lambda publisher: publisher.push_mids(b"12", 1000, b"")),
        ("room_id", lambda publisher: publisher.push_room("1000", 1000, b"")),
        ("room_id", lambda publisher: publisher.push_room("live://", 1000, b"")),
        ("speed", lambda publisher: publisher.push_all(1000, b"", speed=-1)),
        ("speed", lambda publisher: publisher.push_all(1000, b"", speed=True)),
        ("speed", lambda publisher: publisher.push_all(1000, b"", speed=1.5)),
        ("speed", lambda publisher: publisher.push_all(1000, b"", speed=2**31)),
    ],
)
async def test_an_argument_that_does_not_fit_is_named(name: str, push: Callable[[Publisher], Any]) -> None:
    with pytest.raises(ValueError, match=f"^{name}: "):
        await push(new_publisher())


# Pushes to users with a storage.


class Storage(MemoryStorage):
    """A memory storage that does what a test says before it stores."""

    def __init__(
        self, policy: StorePolicy = StorePolicy.ALL, before: Callable[[], Any] | None = None
    ) -> None:
        super().__init__(policy=policy)
        self.before = before

    async def append(  # type: ignore[override]
        self, mids: Sequence[int], op: int, body: bytes, *, idempotency_key: str = ""
    ) -> dict[int, int]:
        if self.before is not None:
            await self.before()
        return super().append(mids, op, body, idempotency_key=idempotency_key)


class Answers(MemoryStorage):
    """Stores nothing, and answers with what it was given."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def append(self, mids: Sequence[int], op: int, body: bytes, *, idempotency_key: str = "") -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def registry_with(*sessions: Session) -> MemoryRegistry:
    registry = MemoryRegistry()
    for session in sessions:
        registry.add(session)
    return registry


def bodies(storage: MemoryStorage, mid: int) -> list[bytes]:
    return [message.body for message in storage.after(mid, 0, 100, 1 << 20)]


async def test_a_push_to_users_is_stored_and_carries_its_number_in_each_inbox() -> None:
    storage, queue = Storage(), MemoryQueue(8)
    publisher = new_publisher(queue, registry_with(*HERE, *THERE), storage)
    await publisher.push_mids([2], 1000, b"earlier")
    await publisher.push_mids([1, 2, 5, 1], 1000, b"p")
    assert [bodies(storage, mid) for mid in (1, 2, 5)] == [[b"p"], [b"earlier", b"p"], [b"p"]]
    await received(queue)
    assert [await received(queue) for _ in range(queue.pending)] == [
        PushMsg(PushType.PUSH, 1000, b"p", server="node-1", keys=("a", "b"), seqs=(1, 1)),
        PushMsg(PushType.PUSH, 1000, b"p", server="node-2", keys=("c", "d"), seqs=(1, 2)),
    ]


async def test_it_is_published_when_it_has_been_stored_and_not_before() -> None:
    storing, go_on = anyio.Event(), anyio.Event()

    async def before() -> None:
        storing.set()
        await go_on.wait()

    queue = MemoryQueue(8)
    publisher = new_publisher(queue, registry_with(*HERE), Storage(before=before))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(publisher.push_mids, [1], 1000, b"p")
        await storing.wait()
        assert queue.pending == 0
        go_on.set()
    assert (await received(queue)).seqs == (1, 1)


async def test_offline_stores_only_for_those_who_are_away() -> None:
    storage, queue = Storage(StorePolicy.OFFLINE), MemoryQueue(8)
    publisher = new_publisher(queue, registry_with(HERE[0]), storage)
    await publisher.push_mids([1, 2], 1000, b"p")
    assert [bodies(storage, mid) for mid in (1, 2)] == [[], [b"p"]]
    msg = await received(queue)
    assert (msg.keys, msg.seqs) == (("a",), (0,))


async def test_who_comes_while_it_is_being_stored_is_told_of_it() -> None:
    registry = MemoryRegistry()

    async def before() -> None:
        registry.add(HERE[0])

    queue = MemoryQueue(8)
    await new_publisher(queue, registry, Storage(StorePolicy.OFFLINE, before)).push_mids([1], 1000, b"p")
    msg = await received(queue)
    assert (msg.keys, msg.seqs) == (("a",), (1,))


async def test_a_policy_may_be_given_by_its_name() -> None:
    class Mine(MemoryStorage):
        policy = "all"  # type: ignore[assignment]

        def __init__(self) -> None:
            super().__init__()
            del self.policy

    storage, queue = Mine(), MemoryQueue(8)
    await new_publisher(queue, registry_with(HERE[0]), storage).push_mids([1], 1000, b"p")
    assert (await received(queue)).seqs == (1,)


async def test_tried_again_with_the_same_key_it_is_stored_once() -> None:
    storage, queue = Storage(), MemoryQueue(8)
    publisher = new_publisher(queue, registry_with(HERE[0]), storage)
    for body in (b"one", b"again"):
        await publisher.push_mids([1], 1000, body, idempotency_key="k")
    await publisher.push_mids([1], 1000, b"two", idempotency_key="other")
    assert bodies(storage, 1) == [b"one", b"two"]
    assert [(await received(queue)).seqs for _ in range(3)] == [(1,), (1,), (2,)]


@pytest.mark.parametrize("policy", StorePolicy)
@pytest.mark.parametrize("key", [5, None, b"k", "x" * 257])
async def test_an_idempotency_key_is_text(policy: StorePolicy, key: Any) -> None:
    queue = MemoryQueue(8)
    publisher = new_publisher(queue, registry_with(HERE[0]), Storage(policy))
    with pytest.raises(ValueError, match="^idempotency_key: "):
        await publisher.push_mids([1], 1000, b"p", idempotency_key=key)
    assert queue.pending == 0


async def test_an_idempotency_key_without_a_storage_would_promise_too_much() -> None:
    with pytest.raises(ConfigurationError, match="^idempotency_key: "):
        await new_publisher().push_mids([1], 1000, b"p", idempotency_key="k")


async def test_a_push_to_no_users_asks_no_storage() -> None:
    await new_publisher(storage=Answers(RuntimeError("asked"))).push_mids([], 1000, b"p")


@pytest.mark.parametrize(
    "error", [StorageError("full"), OSError(28, "disk full"), RuntimeError("no")], ids=repr
)
async def test_a_push_that_cannot_be_stored_is_not_published(error: Exception) -> None:
    queue = MemoryQueue(8)
    with pytest.raises(type(error)) as raised:
        await new_publisher(queue, registry_with(*HERE), Answers(error)).push_mids([1], 1000, b"p")
    assert raised.value is error
    assert queue.pending == 0


@pytest.mark.parametrize(
    "answer", [None, {}, 1, [1], {2: 1}, {1: 0}, {1: -1}, {1: "1"}, {1: None}, {1: True}, {1: 2**31}]
)
async def test_a_storage_that_returns_no_numbers_is_told(answer: Any) -> None:
    """A number that fits no frame would end the server where it is encoded."""
    queue = MemoryQueue(8)
    with pytest.raises(HookError, match=r"^Answers\.append may return "):
        await new_publisher(queue, registry_with(*HERE), Answers(answer)).push_mids([1], 1000, b"p")
    assert queue.pending == 0


async def test_a_storage_that_hangs_refuses_the_push() -> None:
    clock, hanging = ManualClock(), anyio.Event()
    deadlines = Deadlines(clock)
    queue = MemoryQueue(8)

    async def before() -> None:
        hanging.set()
        await anyio.sleep_forever()

    publisher = Publisher(queue, registry_with(*HERE), Storage(before=before), deadlines, TIMEOUT)

    async def push() -> None:
        with pytest.raises(StorageError, match="longer than 5 s"):
            await publisher.push_mids([1], 1000, b"p")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(push)
        await hanging.wait()
        clock.advance(TIMEOUT + 0.5)
        deadlines.expire()
    assert queue.pending == 0


# Disconnects, which come behind the pushes.


@pytest.mark.parametrize("later", [False, True])
async def test_disconnects_go_through_the_queue_to_each_server(later: bool) -> None:
    registry: Any = LaterRegistry() if later else MemoryRegistry()
    for session in (*HERE, *THERE):
        (registry.inner if later else registry).add(session)
    queue = MemoryQueue(8)
    publisher = new_publisher(queue, registry)
    why = Disconnect("banned \ud800", 4321)
    await publisher.disconnect_keys(["a", "d", "unknown"], why)
    await publisher.disconnect_mids([1, 5], why)
    await publisher.disconnect_mids([], why)
    msgs = [await received(queue) for _ in range(queue.pending)]
    assert [(msg.server, msg.keys) for msg in msgs] == [
        ("node-1", ("a",)),
        ("node-2", ("d",)),
        ("node-1", ("a",)),
        ("node-1", ("b",)),
        ("node-2", ("c",)),
    ]
    for msg in msgs:
        assert (msg.type, msg.operation, msg.seqs) == (PushType.PUSH, Op.DISCONNECT_REPLY, ())
        told = read_disconnect(msg.msg)
        assert (told.reason, told.code) == ("banned ?", 4321)


@pytest.mark.parametrize(("keys", "mids"), [("abc", "12"), ([1], ["1"]), (b"abc", [True])])
async def test_disconnects_name_what_does_not_fit(keys: Any, mids: Any) -> None:
    with pytest.raises(ValueError, match="^keys: "):
        await new_publisher().disconnect_keys(keys, Disconnect("no", CloseCode.NORMAL))
    with pytest.raises(ValueError, match="^mids: "):
        await new_publisher().disconnect_mids(mids, Disconnect("no", CloseCode.NORMAL))
