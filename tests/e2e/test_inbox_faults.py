"""What clients ask wrongly of their inbox, and storages that fail, hang or are full: all others go on."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from goim_core import Options
from goim_core.adapters.sqlite import SQLiteStorage
from goim_core.errors import HookError, StorageError
from goim_core.memory_storage import MemoryStorage
from goim_core.storage import StorageHook
from goim_core.testing import ManualClock
from tests.e2e.clients import Client, World, both, frame, op_of, serve, until
from tests.e2e.hooks import Gate, SessionLog
from tests.e2e.inboxes import (
    ACK,
    ACKS,
    EXPIRING,
    JOIN,
    LAST_SEEN,
    LEAVE,
    MEMBERS,
    OP,
    PRESENCE,
    REFRESH,
    SYNC,
    UNWATCH,
    WATCH,
    ask,
    post,
    push,
    reads,
    reads_on,
    refused,
    sync,
    turned_down,
)

pytestmark = pytest.mark.anyio

OK = {"code": 0, "message": ""}
storages = pytest.mark.parametrize("kind", ["memory", "sqlite"])


def new_storage(kind: str, folder: Path) -> StorageHook:
    return MemoryStorage() if kind == "memory" else SQLiteStorage(folder / "inbox.db")


@asynccontextmanager
async def witnessed(storage: StorageHook, **settings: Any) -> AsyncIterator[tuple[World, Client]]:
    """A server, and a client of user 9, which has to be served to the end."""
    async with serve(storage=storage, **settings) as world:
        witness = await world.login("tcp", mid=9, accepts=ACKS)
        await push(world, [1], 9)
        await reads(witness, [1])
        yield world, witness
        await push(world, [2], 9)
        await reads(witness, [2])
        assert await ask(witness, ACK, b"2") == b"2"
        assert await sync(witness, "0") == [1, 2]
        await witness.beat()


# What clients ask.


@both
@storages
@pytest.mark.parametrize("body", [b"4", b"5", b"2147483647"])
async def test_an_ack_from_the_future_moves_nothing(
    wire: str, kind: str, body: bytes, tmp_path: Path
) -> None:
    async with witnessed(new_storage(kind, tmp_path)) as (world, _):
        await push(world, range(1, 4))
        client = await world.login(wire, accepts=ACKS)
        await reads(client, range(1, 4))
        code, message = await refused(client, ACK, body)
        assert code == 400
        assert body.decode() in message
        await reads(await world.login(wire, accepts=ACKS), range(1, 4))
        assert await ask(client, ACK, b"2") == b"2"
        assert (await refused(client, ACK, body))[0] == 400
        await reads(await world.login(wire, accepts=ACKS), [3])


@both
@storages
async def test_an_ack_for_another_users_number_moves_nothing(wire: str, kind: str, tmp_path: Path) -> None:
    async with witnessed(new_storage(kind, tmp_path)) as (world, _):
        await push(world, range(1, 4), 1)
        await push(world, range(1, 2), 2)
        theirs = await world.login(wire, mid=1, accepts=ACKS)
        await reads(theirs, range(1, 4))
        client = await world.login(wire, mid=2, accepts=ACKS)
        await reads(client, [1])
        assert (await refused(client, ACK, b"3"))[0] == 400
        await reads(await world.login(wire, mid=2, accepts=ACKS), [1])
        await reads(await world.login(wire, mid=1, accepts=ACKS), range(1, 4))
        # What may be stored later has not been acknowledged before.
        await push(world, range(2, 4), 2)
        await reads(await world.login(wire, mid=2, accepts=ACKS), [1, 2, 3])


NO_NUMBER = [
    b"-1",
    b"",
    b"x",
    b"1,2",
    b"1,",
    b" 1",
    b"1_0",
    b"+1",
    b"1.0",
    b"1e1",
    b"2147483648",
    b"9" * 4000,
]
NO_NUMBER += [b"\xff", "\N{ARABIC-INDIC DIGIT ONE}".encode(), b"\0\0\0\x01", b"0x1", b"null", b"{}"]


@both
async def test_an_ack_that_is_no_number(wire: str) -> None:
    async with witnessed(MemoryStorage()) as (world, _):
        await push(world, [1, 2])
        client = await world.login(wire, accepts=ACKS)
        await reads(client, [1, 2])
        for body in NO_NUMBER:
            code, message = await refused(client, ACK, body)
            assert (code, message.partition(":")[0]) == (400, "ack")
        await reads_on(world, client, 3)
        await reads(await world.login(wire, accepts=ACKS), [1, 2, 3])


@both
async def test_a_sync_that_is_no_page(wire: str) -> None:
    async with witnessed(MemoryStorage()) as (world, _):
        await push(world, [1, 2])
        client = await world.login(wire, accepts=ACKS)
        await reads(client, [1, 2])
        wrong = [body for body in NO_NUMBER if body != b"1,2"]
        for body in [*wrong, b"0,0", b"0,1001", b"0,-1", b"0,1,1", b"-1,1", b",", b"0,x"]:
            code, message = await refused(client, SYNC, body)
            assert (code, message.partition(":")[0]) == (400, "sync")
        assert await sync(client, "0,1000") == [1, 2]


@both
async def test_a_client_without_errors_gets_an_empty_reply(wire: str) -> None:
    async with witnessed(MemoryStorage()) as (world, _):
        await push(world, [1])
        client = await world.login(wire, accepts=[OP, ACK, SYNC])
        await reads(client, [1])
        for op, body in ((ACK, b"7"), (ACK, b"-1"), (SYNC, b"x")):
            await turned_down(client, op, body)
        await reads(await world.login(wire, accepts=ACKS), [1])


EXTENSIONS = [ACK, SYNC, JOIN, LEAVE, MEMBERS, WATCH, UNWATCH, LAST_SEEN, REFRESH]


@both
async def test_operations_that_were_not_opted_into(wire: str) -> None:
    bodies = {JOIN: b"live://1", LEAVE: b"live://1", WATCH: b"live://1", UNWATCH: b"live://1"}
    bodies |= {MEMBERS: b'{"room_id":"live://1"}', LAST_SEEN: b"[1]", REFRESH: b'{"mid":1}'}
    async with witnessed(MemoryStorage()) as (world, _):
        await push(world, [1])
        told = await world.login(wire, room="live://1", accepts=[OP, 18])
        goim = await world.login(wire, room="live://1", accepts=[OP], device="goim")
        await reads(told, [1])
        await reads(goim, [1])
        for op in EXTENSIONS:
            body = bodies.get(op, b"1")
            code, message = await refused(told, op, body)
            assert (code, str(op) in message) == (400, True)
            await turned_down(goim, op, body)
            if op not in (REFRESH, LAST_SEEN):
                await told.send(frame(14, b"%d" % op))  # it may opt in later
                assert await told.frame() == frame(15, b"%d" % op)
                if op != LEAVE:
                    await ask(told, op, body)
        for op in (19, 21, 23, PRESENCE, 35, EXPIRING, 41, 63):
            assert (await refused(told, op))[0] == 400
            await turned_down(goim, op)
        for client in (told, goim):
            await client.send(frame(2))
            assert op_of(await client.frame()) == 3


async def test_acks_and_syncs_without_a_storage() -> None:
    async with serve() as world:
        client = await world.login("tcp", accepts=[*ACKS, LAST_SEEN])
        for op, body in ((ACK, b"1"), (SYNC, b"0"), (LAST_SEEN, b"[1]")):
            assert (await refused(client, op, body))[0] == 404
        await client.beat()


async def test_many_acks_in_one_write() -> None:
    async with witnessed(MemoryStorage()) as (world, _):
        await push(world, range(1, 201))
        client = await world.login("tcp", accepts=ACKS)
        await reads(client, range(1, 201))
        acks = [b"%d" % n if n % 3 else b"-%d" % n for n in range(1, 201)]
        await client.send(*(frame(ACK, body, seq=n) for n, body in enumerate(acks, 1)))
        for n in range(1, 201):
            answer = await client.frame()
            assert answer == frame(21, b"%d" % n, seq=n) if n % 3 else op_of(answer) == 18


# Storages that fail. Each does so for user 1 only.


def concerns_user_1(name: str, mid: Any, *rest: Any) -> bool:
    """Of reading, only the first page does: whether the server has read on already is its own business."""
    return (mid == 1 if isinstance(mid, int) else 1 in mid) and (name != "after" or rest[0] == 0)


class Faulty(MemoryStorage):
    """A storage whose method ``name`` does ``act`` first when it is about user 1, and returns what that does."""

    def __init__(self, kind: str, name: str, act: Callable[[], Any]) -> None:
        super().__init__()
        self.faulty = True
        self._name, self._act = name, act
        setattr(self, name, self._plain if kind == "plain" else self._async)

    def _plain(self, mid: Any, *rest: Any, **settings: Any) -> Any:
        if self.faulty and concerns_user_1(self._name, mid, *rest):
            found = self._act()
            if found is not None:
                return found
        return getattr(MemoryStorage, self._name)(self, mid, *rest, **settings)

    async def _async(self, *args: Any, **settings: Any) -> Any:
        await anyio.lowlevel.checkpoint()
        return self._plain(*args, **settings)


class Hanging(MemoryStorage):
    """A storage whose method ``name`` waits at a gate when it is about user 1."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.hangs = True
        self.gate = Gate()
        self._name = name
        setattr(self, name, self._wait)

    async def _wait(self, mid: Any, *rest: Any, **settings: Any) -> Any:
        if self.hangs and concerns_user_1(self._name, mid, *rest):
            await self.gate.wait(self._name)
        return getattr(MemoryStorage, self._name)(self, mid, *rest, **settings)


def fail() -> None:
    raise StorageError("the disk is on fire")


def crash() -> None:
    raise RuntimeError("a mistake in the storage")


kinds = pytest.mark.parametrize("kind", ["plain", "async"])


@kinds
async def test_append_fails(kind: str) -> None:
    """The push is refused with an error, and not half done."""
    storage = Faulty(kind, "append", fail)
    async with witnessed(storage) as (world, _):
        client = await world.login("tcp", mid=1, accepts=ACKS)
        other = await world.login("tcp", mid=2, accepts=ACKS)
        assert await post(world, [1, 2], b"x") == {"code": -500, "message": "the disk is on fire"}
        with pytest.raises(StorageError, match="the disk is on fire"):
            await world.server.push_mids([2, 1], OP, b"x")
        storage.faulty = False
        await reads_on(world, client, 1)
        await reads_on(world, other, 1, 2)


@kinds
async def test_append_crashes(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    storage = Faulty(kind, "append", crash)
    async with witnessed(storage) as (world, _):
        client = await world.login("tcp", mid=1, accepts=ACKS)
        status, answer = await world.http("POST", "/goim/push/mids?operation=1000&mids=1", b"x")
        assert (status, answer["code"]) == (500, -500)
        assert "a mistake in the storage" in caplog.text
        assert answer["message"] == "internal error"
        storage.faulty = False
        await reads_on(world, client, 1)


@kinds
@pytest.mark.parametrize("wrong", [[], 5, {2: 1}, True])
async def test_append_returns_the_wrong_thing(kind: str, wrong: object) -> None:
    async with witnessed(Faulty(kind, "append", lambda: wrong)) as (world, _):
        with pytest.raises(HookError, match="may return the number"):
            await world.server.push_mids([1], OP, b"x")
        assert (await post(world, [1], b"x"))["code"] == -500


@both
@kinds
@pytest.mark.parametrize("name", ["cursor", "after"])
@pytest.mark.parametrize("act", [fail, crash])
async def test_the_inbox_cannot_be_read(
    wire: str, kind: str, name: str, act: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Without it nothing would be in order: the client is told to come again."""
    storage = Faulty(kind, name, act)
    async with witnessed(storage) as (world, _):
        await push(world, [1])
        client = await world.login(wire, accepts=ACKS)
        assert await client.told() == (1011, "the inbox cannot be read: internal error")
        assert "the disk" in caplog.text or "a mistake" in caplog.text
        storage.faulty = False
        await reads(await world.login(wire, accepts=ACKS), [1])


@both
@kinds
async def test_sync_and_ack_fail(wire: str, kind: str) -> None:
    for name, op, body in (("after", SYNC, b"0"), ("acknowledge", ACK, b"1")):
        storage = Faulty(kind, name, fail)
        storage.faulty = False
        async with witnessed(storage) as (world, _):
            await push(world, [1])
            client = await world.login(wire, accepts=ACKS)
            await reads(client, [1])
            storage.faulty = True
            assert await refused(client, op, body) == (500, "internal error")
            storage.faulty = False
            await ask(client, op, body)


@kinds
@pytest.mark.parametrize("name", ["acknowledge", "saw"])
async def test_what_the_end_of_a_goim_client_should_save_fails(kind: str, name: str) -> None:
    sessions, storage = SessionLog(), Faulty(kind, name, fail)
    async with witnessed(storage, sessions=sessions) as (world, _):
        await push(world, [1])
        client = await world.login("tcp", key="k", accepts=[OP])
        await reads(client, [1])
        await client.beat()
        client.close()
        await sessions.log.reach(3)
        assert sessions.log.entries[-1] == ("disconnected", "k", 4007)
        storage.faulty = False
        await push(world, [2])
        again = await world.login("tcp", accepts=[OP])
        await reads(again, [1, 2] if name == "acknowledge" else [2])


# Storages that are slow.


async def test_append_hangs() -> None:
    clock, storage = ManualClock(), Hanging("append")
    async with witnessed(storage, clock=clock, options=Options(hook_timeout=3.0)) as (world, witness):
        client = await world.login("tcp", mid=1, accepts=ACKS)
        answers = []

        async def push_it() -> None:
            answers.append(await post(world, [1], b"x"))

        async with anyio.create_task_group() as pushes:
            pushes.start_soon(push_it)
            await storage.gate.log.reach(1)
            assert await sync(witness, "0") == [1]
            clock.advance(3.5)
        message = "the storage took longer than 3 s: the push may be in it"
        assert answers == [{"code": -500, "message": message}]
        storage.hangs = False
        await reads_on(world, client, 1)


@both
@pytest.mark.parametrize("name", ["cursor", "after"])
async def test_reading_hangs(wire: str, name: str) -> None:
    clock, storage = ManualClock(), Hanging(name)
    async with witnessed(storage, clock=clock, options=Options(hook_timeout=3.0)) as (world, witness):
        await push(world, [1])
        client = await world.login(wire, accepts=ACKS)
        await storage.gate.log.reach(1)
        assert await ask(client, ACK, b"1") == b"1"  # it is served meanwhile
        await client.beat()
        assert await sync(witness, "0") == [1]
        clock.advance(3.5)
        assert await client.told() == (1011, "the inbox cannot be read: the server took too long")


@both
@pytest.mark.parametrize(("name", "op", "body"), [("after", SYNC, b"0"), ("acknowledge", ACK, b"1")])
async def test_sync_and_ack_hang(wire: str, name: str, op: int, body: bytes) -> None:
    clock, storage = ManualClock(), Hanging(name)
    storage.hangs = False
    async with witnessed(storage, clock=clock, options=Options(hook_timeout=3.0)) as (world, witness):
        await push(world, [1])
        client = await world.login(wire, accepts=ACKS)
        await reads(client, [1])
        storage.hangs = True
        await client.send(frame(op, body, seq=1), frame(2, seq=2))
        await storage.gate.log.reach(1)
        assert await sync(witness, "0") == [1]
        clock.advance(3.5)
        answers = await client.frame(), await client.frame()  # in the order of the requests
        assert [(op_of(answer), answer[15]) for answer in answers] == [(18, 1), (3, 2)]
        assert b'"code":504' in answers[0]


@both
async def test_a_client_that_leaves_while_its_inbox_is_read(wire: str) -> None:
    storage, sessions = Hanging("after"), SessionLog()
    async with witnessed(storage, sessions=sessions) as (world, _):
        await push(world, [1, 2])
        client = await world.login(wire, accepts=[OP])
        await storage.gate.log.reach(1)
        client.reset()
        await sessions.log.reach(3)
        storage.gate.opened.set()
        await reads(await world.login(wire, accepts=[OP]), [1, 2])


# A storage that is full.


async def test_a_full_disk_refuses_pushes(tmp_path: Path) -> None:
    storage = SQLiteStorage(tmp_path / "inbox.db")
    async with witnessed(storage) as (world, _):
        client = await world.login("tcp", accepts=ACKS)
        (pages,) = storage._writer.execute("PRAGMA page_count").fetchone()
        storage._writer.execute(f"PRAGMA max_page_count = {pages + 8}")
        accepted = 0
        while (answer := await post(world, [1, 2], b"x" * 4000)) == OK:
            accepted += 1
            assert accepted < 100
        assert answer["code"] == -500
        assert "full" in answer["message"]
        for seq in range(1, accepted + 1):
            assert await client.frame() == frame(OP, b"x" * 4000, seq=seq)
        storage._writer.execute("PRAGMA max_page_count = 1000000")
        await reads_on(world, client, accepted + 1)
        other = await world.login("tcp", mid=2, accepts=ACKS)  # it was not half done either
        assert len([await other.frame() for _ in range(accepted)]) == accepted
        await reads_on(world, other, accepted + 1, 2)


async def test_a_locked_database_refuses_pushes(tmp_path: Path) -> None:
    class Impatient(SQLiteStorage):
        lock_seconds = 0.2  # its own two connections may be in each other's way for a moment

    storage = Impatient(tmp_path / "inbox.db")
    async with witnessed(storage) as (world, witness):
        other = sqlite3.connect(tmp_path / "inbox.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        answer = await post(world, [1], b"x")
        assert answer["code"] == -500
        assert "locked by another program" in answer["message"]
        assert await sync(witness, "0") == [1]  # readers go on
        assert (await refused(witness, ACK, b"1"))[0] == 500
        other.close()
        assert await post(world, [1], b"1") == OK
        await reads(await world.login("tcp", accepts=ACKS), [1])


async def test_a_storage_that_does_not_start_stops_the_server(tmp_path: Path) -> None:
    file = tmp_path / "inbox.db"
    file.write_bytes(b"no database" * 100)
    with pytest.raises(StorageError, match="no SQLite database"):
        async with serve(storage=SQLiteStorage(file)):
            pytest.fail("it has started")


async def test_the_server_goes_on_when_the_storage_is_slow_for_one(tmp_path: Path) -> None:
    """While one append hangs, 100 others are stored and delivered, and heartbeats are answered."""
    storage = Hanging("append")
    async with witnessed(storage) as (world, _), anyio.create_task_group() as pushes:
        pushes.start_soon(world.server.push_mids, [1], OP, b"1")
        await storage.gate.log.reach(1)
        client = await world.login("tcp", mid=2, accepts=ACKS)
        await push(world, range(1, 101), 2)
        await reads(client, range(1, 101))
        await client.beat()
        storage.hangs = False
        storage.gate.opened.set()
        await reads(await world.login("tcp", mid=1, accepts=ACKS), [1])
    await until(lambda: world.server.stats().connections == 0)
