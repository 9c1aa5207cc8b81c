"""The guarantees of a user's inbox, against a simple model of it.

Users connect with several devices, read or do not read, acknowledge, leave and come again; messages are pushed,
some twice; the queue loses, delays and doubles pushes; the server is started again with the storage that it had.
Whatever happens:

- what was pushed is stored once, numbered from 1 without a gap;
- a connection gets what its device has not acknowledged, in order, without a gap, each once, and then the live;
- it is given again until it is acknowledged, and not after that;
- to a client that does not acknowledge, what it was written has been delivered, and nothing else.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest
from attrs import Factory, define
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from goim_core import Frame, Options
from goim_core.adapters.sqlite import SQLiteStorage
from goim_core.memory_storage import MemoryStorage
from goim_core.protocol import Decoder, Op, split
from goim_core.storage import StorageHook
from goim_core.testing import App, Client, running

USERS = (1, 2, 3)
WANTED, OTHER, ROOM = 1000, 1001, 1002
"""Operations of messages that every device accepts, that only some do, and of pushes to a room."""
KEYED = "keyed"
DEVICES = {"phone": [WANTED, Op.ACK, Op.SYNC, Op.ERROR], "tablet": [WANTED, OTHER, Op.ACK, Op.ERROR]}
DEVICES |= {"goim": [WANTED], "older": [WANTED, OTHER]}
PAGE_BYTES = 100
"""So that a few messages are several pages."""
CAPACITY = 100
"""How many bytes a client may have on its way while it does not read."""

users = st.sampled_from(USERS)
several = st.lists(users, min_size=1, unique=True)
bodies = st.sampled_from([60, 90, 0, 200]).map(bytes)
pick = st.integers(0, 99)


class Slow(MemoryStorage):
    """A storage in memory whose answers take their time; what it gives may be old by then."""


def _slow(name: str) -> Any:
    async def method(self: Slow, *args: Any, **settings: Any) -> Any:
        await anyio.lowlevel.checkpoint()
        answer = getattr(MemoryStorage, name)(self, *args, **settings)
        for _ in range(10 if name == "after" else 1):
            await anyio.lowlevel.checkpoint()
        return answer

    return method


for _name in ("append", "after", "acknowledge", "cursor", "saw", "last_seen"):
    setattr(Slow, _name, _slow(_name))


@define(eq=False)
class Connection:
    """A client, and what it has got."""

    client: Client
    mid: int
    device: str
    got: int
    """Everything up to this number has come, or is not for it."""
    least: int
    """Everything up to this number has to have come, when nothing is under way and it reads."""
    room: list[bytes] = Factory(list)
    """What was pushed to its room and has not come yet."""

    @property
    def acks(self) -> bool:
        return Op.ACK in DEVICES[self.device]

    @property
    def reads(self) -> bool:
        return self.client.link.reading


class Inboxes(RuleBasedStateMachine):
    """The machine. Rules are plain functions that call into the loop, in which the server runs."""

    def __init__(self, backend: str, new_storage: Callable[[Path], StorageHook]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stack = ExitStack()
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.new_storage: Callable[[], StorageHook] = lambda: new_storage(folder / "inbox.db")
        self.portal = self.stack.enter_context(anyio.from_thread.start_blocking_portal(backend))
        self.storage = self.new_storage()
        self.inboxes: dict[int, list[tuple[int, bytes]]] = {mid: [] for mid in USERS}
        self.cursors: dict[tuple[int, str], int] = {}
        self.keys: dict[int, set[str]] = {mid: set() for mid in USERS}
        self.connections: list[Connection] = []
        self.delayed: list[dict[int, int]] = []
        self.pushed = 0

        self.start()

    def start(self) -> None:
        options = Options(outbox_bytes=1024, outbox_packets=3)
        server = running(storage=self.storage, options=options)
        self.life = self.portal.wrap_async_context_manager(server)
        self.app: App = self.life.__enter__()

    def teardown(self) -> None:
        with self.stack:
            self.life.__exit__(None, None, None)

    # What users do.

    @rule(
        mid=users,
        device=st.sampled_from(list(DEVICES)),
        wire=st.sampled_from(["tcp", "ws"]),
        delays=st.lists(st.integers(0, 15), max_size=3).map(sorted),
    )
    def connect(self, mid: int, device: str, wire: str, delays: Sequence[int]) -> None:
        """Messages are pushed at the same time, a few turns later."""
        cursor, meanwhile = self.cursor(mid, device), len(delays)
        token = {"mid": mid, "device": device, "room_id": "live://1", "accepts": DEVICES[device]}

        async def come() -> Client:
            client = await self.app.open(wire, capacity=CAPACITY)
            await client.send(Op.AUTH, token)
            passed = 0
            for delay in delays:
                for _ in range(delay - passed):
                    await anyio.lowlevel.checkpoint()
                passed = delay
                await self.app.push_mids([mid], WANTED, b"meanwhile")
            await client.assert_reply(Op.AUTH_REPLY)
            return client

        client = self.portal.call(come)
        self.inboxes[mid] += [(WANTED, b"meanwhile")] * meanwhile
        last = len(self.inboxes[mid])
        self.announced({mid: last if meanwhile else 0})
        self.connections.append(Connection(client, mid, device, cursor, last))

    @precondition(lambda self: self.connections)
    @rule(which=pick, how=st.sampled_from(["close", "break_link"]))
    def leave(self, which: int, how: str) -> None:
        connection = self.connections.pop(which % len(self.connections))
        before = self.cursor(connection.mid, connection.device)
        written = self.written(connection)
        self.portal.call(self.run, getattr(connection.client, how))
        if not connection.acks:
            self.delivered(connection, before, written)

    @precondition(lambda self: self.connections)
    @rule(which=pick, count=st.integers(0, 4))
    def stop_reading(self, which: int, count: int) -> None:
        """And be pushed, soon, more than fits."""
        connection = self.connections[which % len(self.connections)]
        self.portal.call(self.run, connection.client.pause_reading)
        for _ in range(count):
            self.push([connection.mid], WANTED, bytes(60), "")

    @precondition(lambda self: self.connections)
    @rule(which=pick)
    def read_on(self, which: int) -> None:
        self.portal.call(self.run, self.connections[which % len(self.connections)].client.resume_reading)

    @precondition(lambda self: self.that_ask())
    @rule(which=pick, seq=st.integers(0, 12))
    def acknowledge(self, which: int, seq: int) -> None:
        connection = self.that_ask()[which % len(self.that_ask())]
        reply = self.request(connection, Op.ACK, b"%d" % seq)
        device = connection.mid, connection.device
        if seq <= len(self.inboxes[connection.mid]):
            self.cursors[device] = max(self.cursors.get(device, 0), seq)
            assert (reply.op, int(reply.body)) == (Op.ACK_REPLY, self.cursors[device])
        else:
            assert reply.op == Op.ERROR  # and the cursor is where it was: see the invariant

    @precondition(lambda self: self.that_ask("phone"))
    @rule(which=pick, after=st.integers(0, 12), limit=st.integers(1, 12))
    def sync(self, which: int, after: int, limit: int) -> None:
        connection = self.that_ask("phone")[which % len(self.that_ask("phone"))]
        reply = self.request(connection, Op.SYNC, b"%d,%d" % (after, limit))
        page = self.inboxes[connection.mid][after : after + limit]
        found = split(reply.body)
        assert found == [Frame(op, body, after + n) for n, (op, body) in enumerate(page[: len(found)], 1)]
        assert len(found) == len(page) or sum(len(body) for _, body in page[: len(found) + 1]) > PAGE_BYTES
        assert found or not page

    @precondition(lambda self: self.connections)
    @rule(which=pick)
    def heartbeat(self, which: int) -> None:
        connection = self.connections[which % len(self.connections)]
        if connection.reads:
            before = self.cursor(connection.mid, connection.device)
            written = self.written(connection)
            self.request(connection, Op.HEARTBEAT, b"")
            if not connection.acks:
                self.delivered(connection, before, written)

    # What the application does.

    @rule(
        mids=several,
        op=st.sampled_from([WANTED, WANTED, OTHER]),
        body=bodies,
        fault=st.sampled_from(["", "", "drop", "delay", "duplicate"]),
    )
    def push_one(self, mids: Sequence[int], op: int, body: bytes, fault: str) -> None:
        self.push(mids, op, body, fault)

    @rule(mids=several, key=st.sampled_from(["a", "b"]), body=bodies)
    def push_perhaps_again(self, mids: Sequence[int], key: str, body: bytes) -> None:
        new = [mid for mid in mids if key not in self.keys[mid]]
        self.portal.call(lambda: self.app.push_mids(mids, WANTED, body, idempotency_key=key))
        for mid in new:
            self.keys[mid].add(key)
            self.inboxes[mid].append((WANTED, body))
        self.announced({mid: len(self.inboxes[mid]) for mid in new})

    @rule(mids=several, count=st.integers(2, 6))
    def push_at_once(self, mids: Sequence[int], count: int) -> None:
        """Several at the same time: the storage says in which order."""
        bodies = {b"%d" % (self.pushed + n) for n in range(count)}
        self.pushed += count

        async def push() -> None:
            async with anyio.create_task_group() as pushes:
                for body in sorted(bodies):
                    pushes.start_soon(self.app.push_mids, mids, WANTED, body)

        self.portal.call(push)
        for mid in mids:
            stored = self.portal.call(self.stored, mid)[len(self.inboxes[mid]) :]
            assert len(stored) == count
            assert {body for _, body in stored} == bodies
            self.inboxes[mid] += stored
        self.announced({mid: len(self.inboxes[mid]) for mid in mids})

    @precondition(lambda self: self.delayed)
    @rule()
    def deliver_what_was_delayed(self) -> None:
        self.portal.call(self.run, self.app.faults.release)
        for numbers in self.delayed:
            self.announced(numbers)
        self.delayed.clear()

    @rule(body=bodies)
    def push_to_a_room(self, body: bytes) -> None:
        """It goes beside the inbox, and does not disturb it."""
        if all(connection.reads for connection in self.connections):
            self.portal.call(self.app.push_room, "live://1", ROOM, body)
            for connection in self.connections:
                connection.room.append(body)

    @rule()
    def restart(self) -> None:
        self.portal.call(self.run, *(connection.client.resume_reading for connection in self.connections))
        self.portal.call(self.run, self.app.faults.heal)
        self.delayed.clear()
        self.everything_arrives()
        ends = [(one, self.cursor(one.mid, one.device), self.written(one)) for one in self.connections]
        self.life.__exit__(None, None, None)
        self.connections.clear()
        if isinstance(self.storage, SQLiteStorage):
            self.storage = self.new_storage()
        self.start()
        for connection, before, _ in ends:
            if not connection.acks:
                # Several connections of one device have one cursor, and all of them have ended.
                device = connection.mid, connection.device
                most = max(written for one, _, written in ends if (one.mid, one.device) == device)
                self.delivered(connection, before, most)

    # What holds all the time.

    @invariant()
    def everything_arrives(self) -> None:
        """And in order, and once."""
        for connection, pushes in zip(self.connections, self.portal.call(self.pushes), strict=True):
            inbox, accepts = self.inboxes[connection.mid], DEVICES[connection.device]
            for push in pushes:
                if push.op == ROOM:
                    assert push == Frame(ROOM, connection.room.pop(0))
                    continue
                connection.got = passed_over(inbox, connection.got, accepts) + 1
                assert push == Frame(*inbox[connection.got - 1], connection.got)
            connection.got = passed_over(inbox, connection.got, accepts)
            if connection.reads:
                assert connection.got >= connection.least
                assert not connection.room

    @invariant()
    def what_is_stored(self) -> None:
        """Each message once, with the number of its place; and the cursors."""
        inboxes, cursors = self.portal.call(self.look)
        assert inboxes == self.inboxes
        assert cursors == {where: self.cursors.get(where, 0) for where in cursors}

    def delivered(self, connection: Connection, before: int, written: int) -> None:
        """The cursor of a client that does not acknowledge is where it should be, now that it is saved."""
        cursor = self.cursor(connection.mid, connection.device)
        inbox, accepts = self.inboxes[connection.mid], DEVICES[connection.device]
        assert before <= cursor <= passed_over(inbox, max(before, written), accepts)
        if connection.reads:
            # All that has come counts: none of it comes again.
            assert passed_over(inbox, cursor, accepts) >= connection.got

    # Calls into the loop.

    def that_ask(self, *devices: str) -> list[Connection]:
        """Connections that read the answer."""
        asks = [one for one in self.connections if one.acks and one.reads]
        return [one for one in asks if not devices or one.device in devices]

    def request(self, connection: Connection, op: int, body: bytes) -> Frame:
        return self.portal.call(connection.client.request, op, body)

    def push(self, mids: Sequence[int], op: int, body: bytes, fault: str) -> None:
        if fault:
            strike = getattr(self.app.faults, fault)(count=1)
        kept = len(self.app.faults.delayed)
        self.store(mids, op, body)
        if fault:
            strike.end()
        if len(self.app.faults.delayed) > kept:
            self.delayed.append({mid: len(self.inboxes[mid]) for mid in mids})
        elif fault != "drop":
            self.announced({mid: len(self.inboxes[mid]) for mid in mids})

    def store(self, mids: Sequence[int], op: int, body: bytes) -> None:
        self.portal.call(self.app.push_mids, mids, op, body)
        self.portal.call(self.app.idle)  # it is the job that meets the queue's faults
        for mid in mids:
            self.inboxes[mid].append((op, body))

    def announced(self, numbers: dict[int, int]) -> None:
        for connection in self.connections:
            connection.least = max(connection.least, numbers.get(connection.mid, 0))

    def written(self, connection: Connection) -> int:
        """The last number that the connection has taken, whether the client has read it or not."""
        if connection.reads:
            return connection.got
        if connection.client.connection.channel.form:
            return len(self.inboxes[connection.mid])  # nothing is known of what it has not read
        decoder = Decoder()
        decoder.receive(bytes(connection.client.link._held))
        last = connection.got
        while (frame := decoder.next_frame()) is not None:
            last = max(last, frame.seq)
        return last

    def cursor(self, mid: int, device: str) -> int:
        return int(self.portal.call(answer, self.storage.cursor, mid, device))

    async def pushes(self) -> list[list[Frame]]:
        return [await connection.client.take_pushes() for connection in self.connections]

    async def look(self) -> tuple[dict[int, list[tuple[int, bytes]]], dict[tuple[int, str], int]]:
        acks = [device for device in DEVICES if Op.ACK in DEVICES[device]]
        cursors = {
            (mid, device): await answer(self.storage.cursor, mid, device) for mid in USERS for device in acks
        }
        return {mid: await self.stored(mid) for mid in USERS}, cursors

    async def stored(self, mid: int) -> list[tuple[int, bytes]]:
        page = await answer(self.storage.after, mid, 0, 1000, 1 << 20)
        assert [message.seq for message in page] == list(range(1, len(page) + 1))
        return [(message.op, message.body) for message in page]

    async def run(self, *actions: Callable[[], object]) -> None:
        for action in actions:
            action()
        await self.app.idle()


async def answer(ask: Callable[..., Any], *args: Any) -> Any:
    """What a method says that may be plain or async."""
    found = ask(*args)
    return await found if hasattr(found, "__await__") else found


def passed_over(inbox: Sequence[tuple[int, bytes]], seq: int, accepts: Iterable[int]) -> int:
    """``seq``, or the last of the messages behind it that are not for this client."""
    while seq < len(inbox) and inbox[seq][0] not in accepts:
        seq += 1
    return seq


@pytest.mark.parametrize(
    ("backend", "new_storage", "examples"),
    [
        pytest.param("asyncio", lambda _: MemoryStorage(), 60, id="asyncio-memory"),
        pytest.param("asyncio", lambda _: Slow(), 60, id="asyncio-slow"),
        pytest.param("trio", lambda _: Slow(), 40, id="trio-slow"),
        pytest.param("asyncio", SQLiteStorage, 20, id="asyncio-sqlite"),
    ],
)
def test_guarantees(
    backend: str,
    new_storage: Callable[[Path], StorageHook],
    examples: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("goim_core.logic.PAGE_BYTES", PAGE_BYTES)
    run_state_machine_as_test(
        lambda: Inboxes(backend, new_storage),
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
