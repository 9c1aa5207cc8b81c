"""Messages for those who are away: stored, then published; given again until they are acknowledged."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from goim_core import Frame, MessageHook, Options, Session
from goim_core.adapters.sqlite import SQLiteStorage
from goim_core.memory_storage import MemoryStorage
from goim_core.storage import StorageHook, StorePolicy
from goim_core.testing import running
from tests.e2e.clients import Client, World, both, frame, op_of, serve, until
from tests.e2e.hooks import Gate, SessionLog
from tests.e2e.inboxes import ACK, ACKS, OP, ask, number, post, push, reads, reads_on, seq_of, sync

pytestmark = pytest.mark.anyio

NewStorage = Callable[..., StorageHook]
OK = {"code": 0, "message": ""}


@pytest.fixture(params=["memory", "sqlite"])
def new_storage(request: pytest.FixtureRequest, tmp_path: Path) -> NewStorage:
    """Makes the storage of the test, which survives a server's restart when it is a file."""
    if request.param == "memory":
        return MemoryStorage
    return lambda **settings: SQLiteStorage(tmp_path / "inbox.db", **settings)


async def leave(client: Client, sessions: SessionLog) -> None:
    """Close the connection, and wait until the server has done all that follows."""
    ended = ends(sessions)
    client.close()
    while ends(sessions) == ended:
        await sessions.log.reach(len(sessions.log.entries) + 1)


def ends(sessions: SessionLog) -> int:
    return sum(entry[0] == "disconnected" for entry in sessions.log.entries)


# Before the connection, and after.


@both
async def test_stored_come_first_then_live(wire: str, new_storage: NewStorage) -> None:
    async with serve(storage=new_storage()) as world:
        await push(world, range(1, 4))
        client = await world.login(wire, accepts=ACKS)
        await reads(client, range(1, 4))
        await push(world, range(4, 7))
        await reads(client, range(4, 7))


@both
async def test_pushes_that_are_not_to_users_have_no_number(wire: str) -> None:
    async with serve(storage=MemoryStorage()) as world:
        client = await world.login(wire, key="k", room="live://1", accepts=ACKS)
        await world.server.push_keys(["k"], OP, b"key")
        assert await client.frame() == frame(OP, b"key")
        await world.server.push_room("live://1", OP, b"room")
        assert await client.frame() == frame(OP, b"room")
        await world.server.push_all(OP, b"all")
        assert await client.frame() == frame(OP, b"all")
        await reads_on(world, client, 1)


@both
async def test_each_user_has_numbers_of_their_own(wire: str, new_storage: NewStorage) -> None:
    async with serve(storage=new_storage()) as world:
        await push(world, [1, 2], 1)
        await push(world, [1], 2)
        await world.server.push_mids([1, 2, 3], OP, b"to three")
        for mid, last in ((1, 3), (2, 2), (3, 1)):
            client = await world.login(wire, mid=mid, accepts=ACKS)
            await reads(client, range(1, last))
            assert await client.frame() == frame(OP, b"to three", seq=last)


@both
async def test_a_long_inbox_comes_in_order(wire: str, new_storage: NewStorage) -> None:
    """More than one page, and more than fits the outbox."""
    async with serve(storage=new_storage(), options=Options(outbox_packets=4, outbox_bytes=4096)) as world:
        async with anyio.create_task_group() as pushes:
            for _ in range(10):
                pushes.start_soon(push, world, [0] * 30, 2)
        await push(world, range(1, 251))
        client = await world.login(wire, accepts=ACKS, receive_buffer=4096)
        await reads(client, range(1, 251))
        other = await world.login(wire, mid=2, accepts=ACKS)
        assert [seq_of(await other.frame()) for _ in range(300)] == list(range(1, 301))
        assert world.server.stats().drops == {}


@both
async def test_operations_that_are_not_accepted_are_passed_over(wire: str, new_storage: NewStorage) -> None:
    async with serve(storage=new_storage()) as world:
        for seq, op in ((1, OP), (2, 1001), (3, OP), (4, 1001)):
            await world.server.push_mids([1], op, b"%d" % seq)
        client = await world.login(wire, accepts=ACKS)
        await reads(client, [1, 3])
        await world.server.push_mids([1], 1001, b"5")
        await reads_on(world, client, 6)
        assert await ask(client, ACK, b"6") == b"6"
        assert await sync(client, "0") == [1, 2, 3, 4, 5, 6]
        await client.send(frame(14, b"1001"))
        assert await client.frame() == frame(15, b"1001")
        await world.server.push_mids([1], 1001, b"7")
        assert await client.frame() == frame(1001, b"7", seq=7)


@both
async def test_what_is_stored_survives_the_server(wire: str, tmp_path: Path) -> None:
    for start in (1, 4, 7):
        async with serve(storage=SQLiteStorage(tmp_path / "inbox.db")) as world:
            await push(world, range(start, start + 3))
            client = await world.login(wire, accepts=ACKS)
            await reads(client, range(max(1, start - 1), start + 3))
            assert await ask(client, ACK, b"%d" % (start + 1)) == b"%d" % (start + 1)


# Acknowledgements.


@both
async def test_what_is_not_acknowledged_comes_again(wire: str, new_storage: NewStorage) -> None:
    async with serve(storage=new_storage()) as world:
        await push(world, range(1, 6))
        for acknowledged in (0, 2, 4):  # cumulative
            client = await world.login(wire, accepts=ACKS)
            await reads(client, range(1 if not acknowledged else acknowledged - 1, 6))
            assert await ask(client, ACK, b"%d" % acknowledged) == b"%d" % acknowledged
            client.close()
        client = await world.login(wire, accepts=ACKS)
        await reads(client, [5])
        assert await ask(client, ACK, b"5") == b"5"
        last = await world.login(wire, accepts=ACKS)
        await push(world, [6])
        await reads(client, [6])
        await reads(last, [6])


@both
async def test_an_acknowledgement_does_not_go_back(wire: str, new_storage: NewStorage) -> None:
    async with serve(storage=new_storage()) as world:
        await push(world, range(1, 4))
        client = await world.login(wire, accepts=ACKS)
        await reads(client, range(1, 4))
        for ack in (b"3", b"1", b"0", b"3", b"0003"):
            assert await ask(client, ACK, ack) == b"3"
        again = await world.login(wire, accepts=ACKS)
        await reads_on(world, again, 4)


@both
async def test_devices_have_a_cursor_each(wire: str, new_storage: NewStorage) -> None:
    async with serve(storage=new_storage()) as world:
        await push(world, range(1, 4))
        # The platform names a device that has no name of its own.
        devices = [{"device": "phone", "platform": "web"}, {"platform": "web"}, {"device": "tablet"}, {}]
        for ack, device in enumerate(devices):
            client = await world.login(wire, accepts=ACKS, **device)
            await reads(client, range(1, 4))
            assert await ask(client, ACK, b"%d" % ack) == b"%d" % ack
        for ack, device in enumerate(devices):
            client = await world.login(wire, accepts=ACKS, **device)
            await reads(client, range(ack + 1, 4))


@both
async def test_connections_of_one_device_get_all_each(wire: str) -> None:
    async with serve(storage=MemoryStorage()) as world:
        await push(world, [1])
        a = await world.login(wire, accepts=ACKS, device="phone")
        b = await world.login(wire, accepts=ACKS, device="phone")
        await push(world, [2])
        for client in (a, b):
            await reads(client, [1, 2])


# A client of goim does not acknowledge: what it was written has been delivered.


@both
async def test_a_goim_client_gets_each_once(wire: str, new_storage: NewStorage) -> None:
    sessions = SessionLog()
    async with serve(storage=new_storage(), sessions=sessions) as world:
        await push(world, range(1, 4))
        client = await world.login(wire, accepts=[OP])
        await reads(client, range(1, 4))
        await leave(client, sessions)
        for seq in (4, 5):
            client = await world.login(wire, accepts=[OP])
            await reads_on(world, client, seq)
            await leave(client, sessions)


@both
@pytest.mark.parametrize("end", [Client.close, Client.reset])
async def test_a_goim_client_that_ends_before_it_reads(
    wire: str, end: Callable[[Client], None], new_storage: NewStorage
) -> None:
    sessions = SessionLog()
    async with serve(storage=new_storage(), sessions=sessions) as world:
        await push(world, range(1, 4))
        client = await world.login(wire, accepts=[OP])
        await until(lambda: world.server.stats().deliveries == 3)
        end(client)
        await sessions.log.reach(2)
        await reads_on(world, await world.login(wire, accepts=[OP]), 4)


@both
async def test_a_goim_clients_heartbeat_saves_what_it_was_written(wire: str) -> None:
    """So a server that dies gives little twice."""
    storage = MemoryStorage()
    async with serve(storage=storage) as world:
        await push(world, [1, 2])
        client = await world.login(wire, accepts=[OP])
        await reads(client, [1, 2])
        await client.beat()
        assert storage.cursor(1, "") == 2
        await push(world, [3])
        await reads(client, [3])
        assert storage.cursor(1, "") == 2


async def test_a_goim_client_that_is_slow_gets_what_it_was_not_written() -> None:
    sessions, storage = SessionLog(), MemoryStorage()
    async with serve(storage=storage, sessions=sessions) as world:
        for _ in range(300):
            storage.append([1], OP, bytes(16384))
        client = await world.login("tcp", accepts=[OP], receive_buffer=4096)
        await until(lambda: world.server.stats().deliveries > 8)
        await leave(client, sessions)
        cursor = storage.cursor(1, "")
        assert isinstance(cursor, int)
        assert 0 <= cursor < 300
        client = await world.login("tcp", accepts=[OP])
        for seq in range(cursor + 1, 301):
            assert seq_of(await client.frame()) == seq


@both
async def test_one_user_with_both_kinds_of_client(wire: str) -> None:
    sessions = SessionLog()
    async with serve(storage=MemoryStorage(), sessions=sessions) as world:
        new = await world.login(wire, accepts=ACKS, device="new")
        old = await world.login(wire, accepts=[OP], device="old")
        await sessions.log.reach(2)
        await push(world, [1, 2])
        for client in (new, old):
            await reads(client, [1, 2])
            await leave(client, sessions)
        await push(world, [3])
        await reads(await world.login(wire, accepts=ACKS, device="new"), [1, 2, 3])
        await reads(await world.login(wire, accepts=[OP], device="old"), [3])


# SYNC.


@both
async def test_sync_gives_pages(wire: str, new_storage: NewStorage) -> None:
    async with serve(storage=new_storage()) as world:
        await push(world, range(1, 151))
        client = await world.login(wire, accepts=ACKS)
        await reads(client, range(1, 151))
        assert await sync(client, "0,2") == [1, 2]
        assert await sync(client, "2,2") == [3, 4]
        assert await sync(client, "0") == list(range(1, 101))
        assert await sync(client, "100") == list(range(101, 151))
        assert await sync(client, "0,1000") == list(range(1, 151))
        assert await sync(client, "150") == await sync(client, "2147483647,1") == []
        assert await ask(client, ACK, b"150") == b"150"
        assert await sync(client, "149") == [150]  # acknowledged is not removed


@both
async def test_a_sync_is_bounded_in_bytes(wire: str, new_storage: NewStorage) -> None:
    async with serve(storage=new_storage()) as world:
        for seq in range(1, 8):
            await world.server.push_mids([1], OP, b"%d " % seq + bytes(20_000))
        await world.server.push_mids([1], OP, b"8 " + bytes(200_000))
        client = await world.login(wire, accepts=ACKS)
        for seq in range(1, 9):
            assert seq_of(await client.frame()) == seq
        assert await sync(client, "0,1000") == [1, 2, 3]
        assert await sync(client, "7,1000") == [8]  # however large it is


async def test_sync_of_an_empty_inbox() -> None:
    async with serve(storage=MemoryStorage()) as world:
        assert await sync(await world.login("tcp", accepts=ACKS), "0") == []


# Pushed twice.


@both
async def test_a_push_that_is_tried_again_is_stored_once(wire: str, new_storage: NewStorage) -> None:
    async with serve(storage=new_storage()) as world:
        client = await world.login(wire, accepts=ACKS)
        for key in ("a", "a", "b", "a", None, ""):
            assert await post(world, [1], b"x", key) == OK
        for seq in range(1, 5):
            assert await client.frame() == frame(OP, b"x", seq=seq)
        await reads_on(world, client, 5)
        again = await world.login(wire, accepts=ACKS)
        assert [seq_of(await again.frame()) for _ in range(5)] == [1, 2, 3, 4, 5]


async def test_pushes_with_one_key_at_the_same_time_are_stored_once(new_storage: NewStorage) -> None:
    async with serve(storage=new_storage()) as world:
        client = await world.login("tcp", accepts=ACKS)
        async with anyio.create_task_group() as pushes:
            for _ in range(8):
                pushes.start_soon(post, world, [1, 2], b"x", "key")
        assert await client.frame() == frame(OP, b"x", seq=1)
        await reads_on(world, client, 2)
        other = await world.login("tcp", mid=2, accepts=ACKS)
        assert await other.frame() == frame(OP, b"x", seq=1)
        await reads_on(world, other, 2, 2)


async def test_a_retry_for_more_users_reaches_the_others(new_storage: NewStorage) -> None:
    async with serve(storage=new_storage()) as world:
        assert await post(world, [1], b"x", "key") == OK
        assert await post(world, [1, 2], b"x", "key") == OK
        for mid in (1, 2):
            client = await world.login("tcp", mid=mid, accepts=ACKS)
            assert await client.frame() == frame(OP, b"x", seq=1)
            await reads_on(world, client, 2, mid)


async def test_an_idempotency_key_is_checked() -> None:
    async with serve(storage=MemoryStorage()) as world:
        assert await post(world, [1], b"x", "k" * 256) == OK
        assert (await post(world, [1], b"x", "k" * 257))["code"] == -400
        client = await world.login("tcp", accepts=ACKS)
        assert await client.frame() == frame(OP, b"x", seq=1)
        await reads_on(world, client, 2)
    async with serve() as world:  # without a storage nobody would keep the promise
        answer = await post(world, [1], b"x", "key")
        assert answer["code"] == -400
        assert answer["message"].startswith("idempotency_key:")


# Only those who are away.


@both
async def test_offline_policy(wire: str, new_storage: NewStorage) -> None:
    sessions = SessionLog()
    async with serve(storage=new_storage(policy=StorePolicy.OFFLINE), sessions=sessions) as world:
        client = await world.login(wire, accepts=ACKS)
        await sessions.log.reach(1)
        await world.server.push_mids([1, 2], OP, b"live")
        assert await client.frame() == frame(OP, b"live")  # no number: not stored
        await leave(client, sessions)
        await world.server.push_mids([1, 2], OP, b"away")
        client = await world.login(wire, accepts=ACKS)
        assert await client.frame() == frame(OP, b"away", seq=1)
        await world.server.push_mids([1], OP, b"live again")
        assert await client.frame() == frame(OP, b"live again")
        other = await world.login(wire, mid=2, accepts=ACKS)
        assert await other.frame() == frame(OP, b"live", seq=1)
        assert await other.frame() == frame(OP, b"away", seq=2)


async def behind(world: World, receive_buffer: int = 4096) -> Client:
    """A client that does not read, and has more in its inbox than fits its socket."""
    for seq in range(1, 301):
        await world.server.push_mids([1], OP, b"%d " % seq + bytes(16384))
    client = await world.login("tcp", accepts=ACKS, receive_buffer=receive_buffer)
    await until(lambda: world.server.stats().deliveries)
    return client


async def test_offline_policy_holds_the_live_until_the_stored_are_read(new_storage: NewStorage) -> None:
    async with serve(storage=new_storage(policy=StorePolicy.OFFLINE)) as world:
        client = await behind(world)
        for n in range(20):
            await world.server.push_mids([1], OP, b"live %d" % n)
        await world.sent()
        assert [seq_of(await client.frame()) for _ in range(300)] == list(range(1, 301))
        for n in range(20):
            assert await client.frame() == frame(OP, b"live %d" % n)
        assert world.server.stats().drops == {}


async def test_offline_policy_holds_no_more_than_the_outbox() -> None:
    options = Options(outbox_packets=4)
    async with serve(storage=MemoryStorage(policy=StorePolicy.OFFLINE), options=options) as world:
        client = await behind(world)
        for n in range(20):
            await world.server.push_mids([1], OP, b"live %d" % n)
        await world.sent()
        assert world.server.stats().drops == {"inbox": 16}
        assert [seq_of(await client.frame()) for _ in range(300)] == list(range(1, 301))
        for n in range(4):
            assert await client.frame() == frame(OP, b"live %d" % n)
        await world.server.push_mids([1], OP, b"next")
        assert await client.frame() == frame(OP, b"next")


async def test_offline_policy_holds_no_more_bytes_than_the_outbox() -> None:
    options = Options(outbox_bytes=100_000)
    async with serve(storage=MemoryStorage(policy=StorePolicy.OFFLINE), options=options) as world:
        await behind(world)
        for _ in range(20):
            await world.server.push_mids([1], OP, bytes(30_000))
        await world.sent()
        assert world.server.stats().drops == {"inbox": 17}


async def test_what_is_held_for_a_client_that_leaves_is_counted_as_lost() -> None:
    sessions = SessionLog()
    storage = MemoryStorage(policy=StorePolicy.OFFLINE)
    async with serve(storage=storage, sessions=sessions) as world:
        client = await behind(world)
        for _ in range(5):
            await world.server.push_mids([1], OP, b"live")
        await world.sent()
        await leave(client, sessions)
        assert world.server.stats().drops == {"lost": 5}


# Clients that do not keep up, or come and go.


@both
async def test_1000_messages_to_a_reader_that_stops_and_resumes(wire: str, new_storage: NewStorage) -> None:
    options = Options(outbox_packets=16, outbox_bytes=1 << 16)
    async with serve(storage=new_storage(), options=options) as world:
        client = await world.login(wire, accepts=ACKS, receive_buffer=4096)
        other = await world.login(wire, accepts=ACKS, device="other")
        body = bytes(2000)

        async def pushes(first: int, last: int) -> None:
            async with anyio.create_task_group() as together:
                for _ in range(first, last + 1):
                    together.start_soon(world.server.push_mids, [1], OP, body)
            for seq in range(first, last + 1):
                assert seq_of(await other.frame()) == seq

        await pushes(1, 500)
        for seq in range(1, 401):
            assert seq_of(await client.frame()) == seq
        await pushes(501, 1000)
        for seq in range(401, 1001):
            assert await client.frame() == frame(OP, body, seq=seq)
        await world.server.push_mids([1], OP, b"1001")
        await reads(client, [1001])
        assert world.server.stats().drops == {}


@both
async def test_reconnects_while_being_pushed_to(wire: str, new_storage: NewStorage) -> None:
    """No gap, no second order; what comes again has the number that it had."""
    choose, last, seen = random.Random(7), 300, 0
    async with serve(storage=new_storage()) as world, anyio.create_task_group() as pushing:
        for _ in range(3):
            pushing.start_soon(push, world, [0] * (last // 3), 1)
        while seen < last:
            client = await world.login(wire, accepts=ACKS, receive_buffer=4096)
            before = None
            for _ in range(choose.randrange(1, 60)):
                data = await client.frame()
                if op_of(data) == ACK + 1:
                    continue
                seq = seq_of(data)
                assert data == frame(OP, b"0", seq=seq)
                assert seq <= seen + 1 if before is None else seq == before + 1
                before, seen = seq, max(seen, seq)
                if seen == last:
                    break
                if choose.random() < 0.1:
                    await client.send(frame(ACK, b"%d" % seq))
            choose.choice([client.close, client.reset])()


@both
async def test_a_goim_client_reconnects_while_being_pushed_to(wire: str, new_storage: NewStorage) -> None:
    """It reads to the end, so it has everything that it was written; the rest comes the next time."""
    choose, last, seen = random.Random(7), 300, 0
    sessions = SessionLog()
    async with serve(storage=new_storage(), sessions=sessions) as world:
        async with anyio.create_task_group() as pushing:
            for _ in range(3):
                pushing.start_soon(push, world, [0] * (last // 3), 1)
            while seen < last:
                client = await world.login(wire, accepts=[OP], receive_buffer=4096)
                before = None
                with suppress(anyio.EndOfStream):
                    for turn in range(last):
                        if turn == choose.randrange(30):
                            client.sock.shutdown(socket.SHUT_WR)
                        seq = seq_of(await client.frame())
                        assert seq <= seen + 1 if before is None else seq == before + 1
                        before, seen = seq, max(seen, seq)
                        if seen == last:
                            break
                await leave(client, sessions)
        await reads_on(world, await world.login(wire, accepts=[OP]), last + 1)


async def test_a_live_message_overtaken_by_the_next_is_put_in_order() -> None:
    """Two pushes at the same time may reach the queue in the other order."""

    first = anyio.Event()

    class Slow(MemoryStorage):
        """Stores at once; the pusher of the first hears of it last."""

        async def append(self, mids, op, body, *, idempotency_key=""):  # type: ignore[override]
            numbers = super().append(mids, op, body)
            if numbers[1] == 1:
                await first.wait()
            return numbers

    storage = Slow()
    async with serve(storage=storage) as world:
        client = await world.login("tcp", accepts=ACKS)
        async with anyio.create_task_group() as pushes:
            pushes.start_soon(push, world, [1])
            await anyio.wait_all_tasks_blocked()
            await push(world, [2])
            await reads(client, [1, 2])
            first.set()
        await reads_on(world, client, 3)


async def test_an_inbox_that_is_cut_short_has_no_gap_but_that() -> None:
    async with serve(storage=MemoryStorage(keep=10)) as world:
        await push(world, range(1, 31))
        client = await world.login("tcp", accepts=ACKS)
        await reads(client, range(21, 31))
        assert await sync(client, "0") == list(range(21, 31))
        assert await ask(client, ACK, b"30") == b"30"
        await reads_on(world, client, 31)


async def test_many_users_at_once(new_storage: NewStorage) -> None:
    async with serve(storage=new_storage()) as world:
        await push(world, range(1, 11), *range(1, 51))
        clients = [await world.login("tcp", mid=mid, accepts=ACKS) for mid in range(1, 51)]
        await push(world, range(11, 21), *range(1, 51))
        for client in clients:
            await reads(client, range(1, 21))


@both
async def test_number(wire: str) -> None:
    """The bytes of a stored message are a push's, but for the sequence."""
    async with serve(storage=MemoryStorage()) as world:
        await push(world, [1])
        client = await world.connect(wire)
        await client.send(frame(7, b'{"mid":1,"accepts":[1000]}'))
        assert await client.read() == frame(8)
        assert await client.read() == number(1) == b"\0\0\0\x11\0\x10\0\x01\0\0\x03\xe8\0\0\0\x011"


async def test_offline_policy_stores_for_a_user_whose_connection_has_ended() -> None:
    """A hook that still works on its last frame does not keep the user online."""
    gate, sessions = Gate(), SessionLog()

    class Slow(MessageHook):
        async def receive(self, session: Session, frame: Frame) -> None:
            await gate.wait("receive")

    storage = MemoryStorage(policy=StorePolicy.OFFLINE)
    async with serve(storage=storage, sessions=sessions, messages=Slow()) as world:
        client = await world.login("tcp", accepts=ACKS)
        await client.send(frame(4))
        await gate.log.reach(1)
        client.reset()
        await until(lambda: world.server.online_total() == (0, 0))
        await push(world, [1])
        gate.opened.set()
        stored = storage.after(1, 0, 10, 1000)
        assert [message.seq for message in stored] == [1]


async def test_what_a_broken_connection_did_not_take_is_not_delivered() -> None:
    """The first send after a reset says so; the socketless kit makes sure that it is the push."""
    async with running(storage=MemoryStorage()) as app:
        goim = {"mid": 1, "accepts": [OP]}
        client = await app.connect(goim)
        client.link._broken = True  # as a reset that the reactor has not been told of yet
        await app.push_mids([1], OP, "1")
        await app.idle()
        assert client.link.ended
        await (await app.connect(goim)).assert_push(OP, "1", seq=1)
