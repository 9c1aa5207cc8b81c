"""What goim does wrong (the numbers are those of its list in the wire's description), done right.

Its fault 5 and 11 are in test_websocket.py.
"""

from __future__ import annotations

import itertools
import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import anyio
import anyio.lowlevel
import pytest

from goim_core import Frame, MessageHook, Options, OutboxPolicy, Session
from goim_core.testing import ManualClock
from tests.e2e.clients import Client, World, both, frame, int32, op_of, serve, split, until
from tests.e2e.hooks import SessionLog

pytestmark = pytest.mark.anyio

BIG = 16384


def number(data: bytes) -> int:
    return int.from_bytes(data[16:20], "big")


# 1: room messages arrive out of order under load.


@pytest.mark.parametrize("load", [False, True], ids=["idle", "under load"])
async def test_2000_room_messages_keep_their_order(load: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if load:
        # As with a very large room: one member is sent to, then all else has its turn. Time is counted in
        # looks at the clock, so that it is the same on a machine of any speed.
        monkeypatch.setattr("goim_core.comet.CHUNK", 1)
        monkeypatch.setattr("goim_core.comet.SLICE", 0.0)
        monkeypatch.setattr("goim_core.job.SLICE", 1.5)
        monkeypatch.setattr("goim_core.job.perf_counter", itertools.count().__next__)
    batches = 0
    async with serve() as world:
        members = [await world.login(wire, room="live://1") for wire in ("tcp", "ws") * 4]

        async def read(client: Client) -> None:
            nonlocal batches
            expected = 0
            while expected < 2000:
                data = await client.read()
                batches += op_of(data) == 9
                for part in split(data[16:]) if op_of(data) == 9 else [data]:
                    assert part == frame(1000, int32(expected))
                    expected += 1

        async with anyio.create_task_group() as readers:
            for client in members:
                readers.start_soon(read, client)
            for n in range(2000):
                await world.server.push_room("live://1", 1000, int32(n))
    # Under load what arrives in the pauses is merged: without that, nothing would be shown here.
    assert batches or not load


# 2: a full queue drops silently, and a key push stops at the first full key.


async def fill(world: World, key: str, full: Callable[[], object]) -> int:
    """Push numbered messages to a client that does not read until it is ``full``; how many."""
    for count in range(1000):
        if full():
            return count
        await world.server.push_keys([key], 1000, int32(count) + bytes(BIG))
        await world.sent()
    pytest.fail("16 MB were pushed to a client that does not read, and it is not full")


def small(policy: OutboxPolicy) -> Options:
    return Options(outbox_bytes=4 * BIG, outbox_policy=policy)


@both
@pytest.mark.parametrize("policy", [OutboxPolicy.DROP_NEWEST, OutboxPolicy.DROP_OLDEST])
async def test_drops_of_a_slow_client_are_counted(wire: str, policy: OutboxPolicy) -> None:
    async with serve(options=small(policy)) as world:
        slow = await world.login(wire, key="slow", accepts=[1000], receive_buffer=4096)
        drops = world.server.stats
        sent = await fill(world, "slow", lambda: drops().drops.get(policy, 0) >= 5)
        got = [number(await slow.frame()) for _ in range(sent - drops().drops[policy])]
        assert got == sorted(set(got))
        # The oldest that waited are gone, or the newest; what the kernel had taken comes in any case.
        assert got[0] == 0
        assert (got[-1] == sent - 1) is (policy is OutboxPolicy.DROP_OLDEST)
        await world.server.push_keys(["slow"], 1000, b"after")
        assert await slow.frame() == frame(1000, b"after")
        assert drops().drops == {policy: sent - len(got)}
        assert drops().deliveries == len(got) + 1


@both
async def test_a_slow_client_may_be_disconnected(wire: str) -> None:
    async with serve(options=small(OutboxPolicy.DISCONNECT)) as world:
        slow = await world.login(wire, key="slow", accepts=[1000], receive_buffer=4096)
        sent = await fill(world, "slow", lambda: world.server.stats().users == 0)
        lost = world.server.stats().drops["disconnect"]
        for n in range(sent - lost):
            assert number(await slow.frame()) == n
        assert (await slow.told()).code == 4005
        assert world.server.stats().closes == {4005: 1}


@both
async def test_a_key_push_goes_past_a_full_key(wire: str) -> None:
    async with serve(options=small(OutboxPolicy.DROP_NEWEST)) as world:
        await world.login(wire, key="slow", accepts=[1000], receive_buffer=4096)
        client = await world.login(wire, key="quick", accepts=[1000])
        await fill(world, "slow", lambda: world.server.stats().drops)
        await world.server.push_keys(["slow", "quick"], 1000, bytes(BIG))
        assert await client.frame() == frame(1000, bytes(BIG))


async def test_a_client_that_takes_nothing_is_given_up() -> None:
    clock = ManualClock()
    async with serve(clock=clock, options=Options(outbox_bytes=4 * BIG, write_timeout=5.0)) as world:
        await world.login("tcp", key="slow", accepts=[1000], receive_buffer=4096)
        await fill(world, "slow", lambda: world.server.stats().drops)
        clock.advance(4.9)
        await anyio.wait_all_tasks_blocked()
        assert world.server.stats().closes == {}
        clock.advance(0.5)
        await until(lambda: world.server.stats().closes)
        assert world.server.stats().closes == {4005: 1}
        clock.advance(3.0)  # it does not read why either
        await until(lambda: world.server.stats().connections == 0)


# 3: a slow client that reconnects with its key blocks its bucket.


@both
async def test_a_slow_client_that_comes_back_blocks_nobody(wire: str) -> None:
    # One bucket, and a clock that stands still: nothing is saved by a timeout.
    options = Options(outbox_bytes=4 * BIG, buckets=1)
    async with serve(clock=ManualClock(), options=options) as world:
        other = await world.login(wire, mid=2, room="live://1", accepts=[1000])
        old = await world.login(wire, key="k", room="live://1", accepts=[1000], receive_buffer=4096)
        await fill(world, "k", lambda: world.server.stats().drops)
        new = await world.login(wire, key="k", room="live://1", accepts=[1000])
        assert await new.beat() == 2
        await world.server.push_keys(["k"], 1000, b"key")
        await world.server.push_room("live://1", 1000, b"room")
        assert {await new.frame(), await new.frame()} == {frame(1000, b"key"), frame(1000, b"room")}
        assert await other.frame() == frame(1000, b"room")
        # When the old one reads at last, it is told why it was left out.
        while (data := await old.frame())[8:12] == int32(1000):
            assert len(data) == 20 + BIG
        assert data == frame(6, b'{"code":4004,"message":"replaced by a newer connection with the same key"}')


# 4: more than 8 frames in one packet close the connection.


@both
async def test_100_heartbeats_in_one_packet(wire: str) -> None:
    async with serve() as world:
        client = await world.login(wire, room="live://1")
        await client.send(*(frame(2, seq=n) for n in range(100)))
        for n in range(100):
            assert await client.read() == frame(3, int32(1), seq=n)


class Later(MessageHook):
    """Answers after the rest of the program has run."""

    async def receive(self, session: Session, frame: Frame) -> bytes:
        await anyio.lowlevel.checkpoint()
        return frame.body


@both
async def test_100_messages_to_an_async_hook_in_one_packet(wire: str) -> None:
    async with serve(messages=Later()) as world:
        client = await world.login(wire)
        # Heartbeats between them do not overtake.
        await client.send(*(data for n in range(50) for data in (frame(4, int32(n), seq=n), frame(2, seq=n))))
        for n in range(50):
            assert await client.read() == frame(4, int32(n), seq=n)
            assert await client.read() == frame(3, int32(0), seq=n)


class Echo(MessageHook):
    def receive(self, session: Session, frame: Frame) -> bytes:
        return bytes(BIG)


@both
async def test_pipelined_frames_with_large_answers(wire: str) -> None:
    """Answers of 1.6 MB to one packet: more than an outbox, and the client reads all the time."""
    async with serve(messages=Echo()) as world:
        client = await world.login(wire)
        await client.send(*(frame(4, seq=n) for n in range(100)))
        for n in range(100):
            assert await client.read() == frame(4, bytes(BIG), seq=n)


@both
async def test_a_client_that_never_reads_its_answers(wire: str) -> None:
    """It costs a bounded amount of memory, then its connection."""
    async with serve(messages=Echo()) as world:
        other = await world.login(wire)
        client = await world.login(wire, receive_buffer=4096)
        await client.send(*(frame(4, seq=n) for n in range(2000)))
        await until(lambda: world.server.stats().closes)
        assert world.server.stats().closes == {4005: 1}
        assert await other.beat() == 0


# 6: at the descriptor limit the accept loop returns for good.


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Within the block this process can open ``count`` more descriptors."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    fillers = [os.dup(0)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[0] + 64, limits[1]))
    try:
        with suppress(OSError):
            while True:
                fillers.append(os.dup(0))
        for _ in range(count):
            os.close(fillers.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for filler in fillers:
            os.close(filler)


async def test_the_descriptor_limit_reached_and_left(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()

    def warnings() -> int:
        return caplog.text.count("cannot accept connections")

    async with serve(clock=clock) as world:
        old = [await world.login(wire, room="live://1") for wire in ("tcp", "ws", "tcp", "ws")]
        new = [Client(socket.socket()) for _ in range(6)]
        world.sockets += [client.sock for client in new]
        with descriptors_left(2):
            for client in new:
                client.sock.connect(world.server.addresses["tcp"][0])
                client.sock.setblocking(False)
                await client.send(frame(7, b'{"mid":9}', seq=1))
            for client in new[:2]:
                assert await client.read() == frame(8, seq=1)
            # Those who are in go on, and nothing spins: one warning in all this time.
            for client in old * 20:
                assert await client.beat() == 4
            await world.server.push_room("live://1", 1000, b"x")
            assert [await client.frame() for client in old] == [frame(1000, b"x")] * 4
            assert warnings() == 1
            # It is tried again for as long as it lasts, and succeeds when some have left.
            for tried in range(2, 5):
                clock.advance(0.5)
                while warnings() < tried:
                    await anyio.lowlevel.checkpoint()
            for client in old[:2]:
                client.close()
            await until(lambda: world.server.stats().connections == 4)
            clock.advance(0.5)
            for client in new[2:]:
                assert await client.read() == frame(8, seq=1)
            assert await old[2].beat() == 2


# 7: a room push waits for up to a second; a burst above 40 is lost.


@both
async def test_an_idle_room_is_sent_at_once(wire: str) -> None:
    # A clock that never advances: no timer takes part.
    async with serve(clock=ManualClock()) as world:
        client = await world.login(wire, room="live://1")
        for n in range(3):
            await world.server.push_room("live://1", 1000, int32(n))
            assert await client.read() == frame(1000, int32(n))


@both
async def test_a_burst_of_1000_is_not_lost(wire: str) -> None:
    async with serve(clock=ManualClock()) as world:
        client = await world.login(wire, room="live://1")
        async with anyio.create_task_group() as pushers:
            for n in range(1000):
                pushers.start_soon(world.server.push_room, "live://1", 1000, int32(n))
            got = {number(await client.frame()) for _ in range(1000)}
        assert got == set(range(1000))
        assert world.server.stats().drops == {}


# 8: a kicked connection deletes its successor's route.


@both
async def test_a_replaced_connection_leaves_the_new_ones_route(wire: str) -> None:
    sessions = SessionLog()
    async with serve(sessions=sessions) as world:
        old = await world.login(wire, mid=5, key="k", room="live://1", accepts=[1000])
        new = await world.login(wire, mid=5, key="k", room="live://1", accepts=[1000])
        assert await old.told() == (4004, "replaced by a newer connection with the same key")
        entries = await sessions.log.reach(3)
        assert sorted(entries) == [("connected", "k"), ("connected", "k"), ("disconnected", "k", 4004)]
        await world.server.push_keys(["k"], 1000, b"by key")
        await world.server.push_mids([5], 1000, b"by user")
        assert await new.frame() == frame(1000, b"by key")
        assert await new.frame() == frame(1000, b"by user")
        assert await new.beat() == 1
        assert world.server.online_total() == (1, 1)


@both
async def test_a_key_that_moves_to_another_user(wire: str) -> None:
    async with serve() as world:
        old = await world.login(wire, mid=5, key="k", accepts=[1000])
        new = await world.login(wire, mid=6, key="k", accepts=[1000])
        assert (await old.told()).code == 4004
        await world.server.push_mids([5], 1000, b"for the old user")
        await world.server.push_mids([6], 1000, b"for the new user")
        assert await new.frame() == frame(1000, b"for the new user")
