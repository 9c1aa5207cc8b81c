"""The job: what is merged and what is not, in which order, and who waits for whom."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import attrs
import pytest

from goim_core import job as job_module
from goim_core.comet import Comet, Pushing
from goim_core.job import MSG_BYTES, PACKET_BYTES, Job
from goim_core.options import Options
from goim_core.protocol import split
from goim_core.queue import MemoryQueue, PushMsg, PushType
from goim_core.session import Session
from goim_core.testing import ManualClock
from goim_core.wire import TCP, Packet
from tests.links import Link

pytestmark = pytest.mark.anyio

ROOM = "live://1"
OTHER = "live://2"


class Recorder(Comet):
    """Writes down what it is to push. A push to what is in ``held`` goes on until that is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.pushed: list[tuple[str, list[bytes]]] = []
        self.steps: list[str] = []
        self.eased: list[bool] = []
        self.held: set[str] = set()

    def record(self, whom: str, packet: Packet) -> Pushing:
        self.pushed.append((whom, [frame.body for frame in split(packet.forms[TCP])]))
        self.eased.append(self.at_ease)
        while whom in self.held:
            yield 0.0
        for _ in range(2):
            self.steps.append(whom)
            yield 0.0

    def push_room(self, room_id: str, packet: Packet) -> Pushing:
        return self.record(room_id, packet)

    def push_keys(self, keys: Iterable[str], op: int, packet: Packet) -> Pushing:
        return self.record(f"{op} to {','.join(keys)}", packet)

    def push_all(self, op: int, packet: Packet, speed: int = 0) -> Pushing:
        return self.record(f"{op} to all", packet)


class Acknowledged(MemoryQueue):
    """Writes down what was acknowledged."""

    def __init__(self, size: int = 1024) -> None:
        super().__init__(size)
        self.done: list[PushMsg] = []

    def acknowledge(self, msg: PushMsg) -> None:
        super().acknowledge(msg)
        self.done.append(msg)


def to_room(body: bytes, room: str = ROOM) -> PushMsg:
    return PushMsg(PushType.ROOM, 1000, body, room=room)


def to_all(body: bytes, op: int = 1000, speed: int = 0) -> PushMsg:
    return PushMsg(PushType.BROADCAST, op, body, speed=speed)


def to_keys(body: bytes, *keys: str) -> PushMsg:
    return PushMsg(PushType.PUSH, 1000, body, keys=keys)


class Run:
    """A job that runs, and what it works on."""

    def __init__(self, comet: Comet, queue: MemoryQueue, clock: ManualClock, job: Job) -> None:
        self.comet = comet
        self.queue = queue
        self.clock = clock
        self.job = job

    async def publish(self, *msgs: PushMsg) -> None:
        """Publish, and wait until the job has taken all of it off the queue."""
        for msg in msgs:
            await self.queue.publish(msg)
        await until(lambda: not self.queue._waiting)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if condition():
            return
        await anyio.lowlevel.checkpoint()
    pytest.fail("it did not come to that")


@asynccontextmanager
async def running(comet: Comet, queue: MemoryQueue | None = None, **options: float) -> AsyncIterator[Run]:
    clock = ManualClock()
    queue = MemoryQueue() if queue is None else queue
    job = Job(queue, comet, clock, Options(**options))  # type: ignore[arg-type]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(job.run)
        yield Run(comet, queue, clock, job)
        tasks.cancel_scope.cancel()


async def test_an_idle_room_is_sent_at_once() -> None:
    comet = Recorder()
    async with running(comet) as run:
        for body in (b"one", b"two"):
            await run.publish(to_room(body))
            await run.queue.drain()
    assert comet.pushed == [(ROOM, [b"one"]), (ROOM, [b"two"])]


async def test_what_came_at_once_is_one_packet() -> None:
    comet = Recorder()
    bodies = [b"%d" % number for number in range(20)]
    async with running(comet) as run:
        for body in bodies:
            await run.queue.publish(to_room(body))
        await run.queue.drain()
    assert comet.pushed == [(ROOM, bodies)]


async def test_threads_help_only_where_there_is_little_to_send(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(job_module, "perf_counter", lambda: now)
    comet = Recorder()
    async with running(comet, batch=1) as run:
        await run.publish(to_room(b"after a pause"))
        await run.queue.drain()
        assert comet.eased == [True]
        await run.publish(to_room(b"right behind it"))
        await run.queue.drain()
        now += job_module.EASE
        await run.publish(to_room(b"after another"), to_room(b"and one that waits"))
        await run.queue.drain()
        assert comet.eased == [True, False, False, False]
        now += job_module.EASE
        await run.publish(to_room(b"one room"), to_room(b"and another", OTHER))
        await run.queue.drain()
        assert comet.eased[4:] == [False, False]


async def test_what_lingers_is_in_no_hurry() -> None:
    comet = Recorder()
    async with running(comet, linger=1.0) as run:
        await run.publish(to_room(b"one"))
        await anyio.wait_all_tasks_blocked()
        run.clock.advance(1.0)
        await run.queue.drain()
    assert comet.eased == [False]


@pytest.mark.parametrize("op", [0, 2, 6, 9, 18, -1])
async def test_an_operation_that_no_push_may_have_goes_no_further(op: int) -> None:
    """Another program on the queue need not check it."""
    comet = Recorder()
    async with running(comet) as run:
        foreign = [attrs.evolve(to_room(b"bad"), operation=op), to_all(b"bad", op=op), to_room(b"good")]
        await run.publish(*foreign)
        await run.queue.drain()
    assert comet.pushed == [(ROOM, [b"good"])]
    assert comet.counters.drops == {"operation": 2}


async def after_the_first(comet: Recorder, *msgs: PushMsg, **options: float) -> list[list[bytes]]:
    """The packets that ``msgs`` go in when they arrive while a push for the same is being sent."""
    first = msgs[0]
    whom = first.room or (f"1000 to {','.join(first.keys)}" if first.keys else "1000 to all")
    comet.held.add(whom)
    async with running(comet, **options) as run:
        await run.publish(first)
        await until(lambda: bool(comet.pushed))
        await run.publish(*msgs[1:])
        comet.held.clear()
        await run.queue.drain()
    assert comet.pushed[0][1] == [first.msg]
    return [bodies for _, bodies in comet.pushed[1:]]


async def test_what_comes_while_a_room_is_sent_is_its_next_packet() -> None:
    msgs = [to_room(b"%d" % number) for number in range(5)]
    assert await after_the_first(Recorder(), *msgs) == [[b"1", b"2", b"3", b"4"]]


@pytest.mark.parametrize(
    ("batch", "packets"),
    [(1, [[b"1"], [b"2"], [b"3"]]), (2, [[b"1", b"2"], [b"3"]]), (3, [[b"1", b"2", b"3"]])],
)
async def test_a_batch_has_a_bound(batch: int, packets: list[list[bytes]]) -> None:
    msgs = [to_room(b"%d" % number) for number in range(4)]
    assert await after_the_first(Recorder(), *msgs, batch=batch) == packets


async def test_a_packet_has_a_bound_in_bytes() -> None:
    half = bytes(PACKET_BYTES // 2)
    bodies = [b"", half, half, b"x", bytes(PACKET_BYTES + 1), b"y", b"z"]
    packets = await after_the_first(Recorder(), *[to_room(body) for body in bodies])
    assert packets == [[half, half], [b"x"], [bytes(PACKET_BYTES + 1)], [b"y", b"z"]]


async def test_broadcasts_merge_where_the_operation_is_the_same() -> None:
    ops = [1000, 1000, 1000, 1001, 1001, 1000]
    msgs = [to_all(b"%d" % number, op) for number, op in enumerate(ops)]
    assert await after_the_first(Recorder(), *msgs) == [[b"1", b"2"], [b"3", b"4"], [b"5"]]


async def test_pushes_to_keys_do_not_merge_and_keep_their_order() -> None:
    msgs = [to_keys(b"%d" % number, "a", "b") for number in range(4)]
    assert await after_the_first(Recorder(), *msgs) == [[b"1"], [b"2"], [b"3"]]


async def test_a_room_that_takes_long_holds_up_no_other() -> None:
    comet = Recorder()
    comet.held.add(ROOM)
    async with running(comet) as run:
        await run.publish(to_room(b"slow"))
        await until(lambda: bool(comet.pushed))
        await run.publish(to_room(b"one", OTHER), to_all(b"two"), to_keys(b"three", "k"))
        await until(lambda: len(comet.pushed) == 4)
        assert run.queue.pending >= 1
        comet.held.clear()
        await run.queue.drain()


async def test_many_rooms_take_turns() -> None:
    comet = Recorder()
    rooms = [f"live://{number}" for number in range(4)]
    comet.held.update(rooms)
    async with running(comet) as run:
        await run.publish(*[to_room(b"body", room) for room in rooms])
        await until(lambda: len(comet.pushed) == len(rooms))
        comet.held.clear()
        await run.queue.drain()
    assert sorted(comet.steps[:4]) == sorted(comet.steps[4:]) == rooms


async def test_what_one_receiver_sees_is_in_order_with_everything_real() -> None:
    comet = Comet()
    links = []
    for number in range(300):
        session = Session(mid=number, key=f"k{number}", room_id=ROOM, accepts=frozenset((1000,)))
        links.append(Link(session=session, counters=comet.counters))
        comet.put(links[-1].channel)
    async with running(comet) as run:
        for number in range(50):
            await run.queue.publish(to_room(b"%d" % number))
        await run.queue.drain()
    assert all(link.bodies() == [b"%d" % number for number in range(50)] for link in links)
    assert comet.counters.deliveries == 300 * 50


async def test_each_push_is_acknowledged_once_and_after_it_was_sent() -> None:
    comet, queue = Recorder(), Acknowledged()
    comet.held.update([ROOM, "1001 to all"])
    msgs = [to_room(b"1"), to_room(b"2"), to_room(b"3"), to_all(b"4"), to_all(b"5", 1001), to_keys(b"6", "k")]
    async with running(comet, queue) as run:
        await run.publish(*msgs)
        await until(lambda: len(queue.done) == 2)
        assert {msg.msg for msg in queue.done} == {b"4", b"6"}
        comet.held.clear()
        await queue.drain()
    assert sorted(msg.msg for msg in queue.done) == [msg.msg for msg in msgs]


async def test_a_paced_broadcast_delays_nobody() -> None:
    comet = Comet(buckets=1)
    links = []
    for number in range(3):
        session = Session(mid=number, key=f"k{number}", room_id=ROOM, accepts=frozenset((1000,)))
        links.append(Link(session=session, counters=comet.counters))
        comet.put(links[-1].channel)
    async with running(comet) as run:
        await run.publish(to_all(b"slow", speed=1), to_all(b"at once"), to_room(b"room"))
        await until(lambda: run.queue.pending == 1)
        for number in range(3):
            await run.clock.asleep(1)
            slow = [link.bodies().count(b"slow") for link in links]
            assert slow == [1] * (number + 1) + [0] * (2 - number)
            run.clock.advance(1)
        await run.queue.drain()
    for link in links:
        assert sorted(link.bodies()) == [b"at once", b"room", b"slow"]


# Linger.


async def test_a_room_lingers_for_others_to_come() -> None:
    comet = Recorder()
    async with running(comet, linger=1.0) as run:
        for _ in range(2):
            await run.publish(to_room(b"one"), to_room(b"two"))
            await run.clock.asleep(1.0)
            run.clock.advance(0.9)
            await run.publish(to_room(b"three"))
            assert run.queue.pending == 3
            run.clock.advance(0.1)
            await run.queue.drain()
    assert comet.pushed == [(ROOM, [b"one", b"two", b"three"])] * 2


async def test_a_full_batch_does_not_linger() -> None:
    comet = Recorder()
    async with running(comet, linger=1.0, batch=2) as run:
        await run.publish(to_room(b"one"), to_room(b"two"))
        await run.queue.drain()
        assert comet.pushed == [(ROOM, [b"one", b"two"])]
        # The first linger's end comes while another waits, which keeps its own time.
        await run.clock.asleep(1.0)
        run.clock.advance(0.5)
        await run.publish(to_room(b"three"))
        await until(lambda: run.clock.sleepers == 2)
        run.clock.advance(0.5)
        await until(lambda: run.clock.sleepers == 1)
        assert len(comet.pushed) == 1
        run.clock.advance(0.5)
        await run.queue.drain()
    assert comet.pushed[1:] == [(ROOM, [b"three"])]


async def test_only_rooms_linger() -> None:
    comet = Recorder()
    async with running(comet, linger=1.0) as run:
        await run.publish(to_keys(b"one", "k"), to_all(b"two"))
        await run.queue.drain()
    assert len(comet.pushed) == 2


# Bounds.


@pytest.mark.parametrize("body", [b"", bytes(10_000)])
async def test_publishers_wait_when_too_much_waits_to_be_sent(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 3 * (MSG_BYTES + len(body))
    monkeypatch.setattr(job_module, "PENDING_BYTES", room)
    comet = Recorder()
    comet.held.add(ROOM)
    published = 0

    async def publish() -> None:
        nonlocal published
        for _ in range(20):
            await run.queue.publish(to_room(body))
            published += 1

    async with running(comet, MemoryQueue(2)) as run, anyio.create_task_group() as tasks:
        tasks.start_soon(publish)
        await until(lambda: published == 6)
        for _ in range(50):
            await anyio.lowlevel.checkpoint()
        assert published == 6, "3 wait to be sent, 1 is on its way there, 2 wait in the queue"
        comet.held.clear()
        await until(lambda: published == 20)
        await run.queue.drain()
    assert sum(len(bodies) for _, bodies in comet.pushed) == 20
    assert run.job._pending == 0
    assert run.job._lines == {}
