"""A server's beginning and end: it tells its clients, and leaves no task, no socket, no file."""

from __future__ import annotations

import errno
import socket

import anyio
import anyio.lowlevel
import pytest

from goim_core import (
    Disconnect,
    Frame,
    MessageHook,
    OpenAuth,
    Options,
    QueueFull,
    RoomHook,
    Server,
    ServerStopped,
    Session,
    SessionHook,
)
from goim_core.errors import BackboneError
from goim_core.queue import MemoryQueue
from goim_core.testing import ManualClock
from tests.e2e.clients import Client, World, both, frame, int32, serve, until
from tests.e2e.hooks import Gate, Log, SessionLog
from tests.e2e.leftovers import DOORS, nothing_left

pytestmark = pytest.mark.anyio

STOPPING = (1001, "the server is stopping")


async def told_of_the_stop(client: Client) -> None:
    assert await client.told() == (1001, "the server is stopping")


async def test_stop_tells_every_client() -> None:
    async with (
        nothing_left(),
        anyio.create_task_group() as readers,
        Server(auth=OpenAuth(), **DOORS) as server,
    ):
        world = World(server)
        clients = [await world.login(wire, room="live://1") for wire in ("tcp", "ws")]
        clients += [await world.connect(wire) for wire in ("tcp", "ws")]
        for client in clients:
            readers.start_soon(told_of_the_stop, client)


async def test_stop_in_the_middle_of_requests() -> None:
    async with nothing_left(), Server(auth=OpenAuth(), **DOORS) as server:
        world = World(server)
        handshaking = Client(await world.dial("ws"))
        http = Client(await world.dial("http"))
        await http.send_raw(b"POST /goim/push/all HTTP/1.1\r\n")
        await handshaking.send_raw(b"GET /sub")
        world.close()


async def test_stop_answers_a_handshake_that_is_not_done() -> None:
    async def read(client: Client) -> None:
        assert (await client.rest()).startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        client.close()

    async with (
        nothing_left(),
        anyio.create_task_group() as readers,
        Server(auth=OpenAuth(), **DOORS) as server,
    ):
        readers.start_soon(read, Client(await World(server).dial("ws")))


async def test_clients_that_do_not_leave_are_left() -> None:
    async with nothing_left():
        async with Server(auth=OpenAuth(), options=Options(farewell_timeout=0.01), **DOORS) as server:
            world = World(server)
            clients = [await world.login("tcp", room="live://1"), await world.connect("ws")]
        for client in clients:
            await told_of_the_stop(client)


async def test_the_drain_time_is_kept() -> None:
    """A hook that hangs holds up a stop for as long and no longer."""
    clock, gate = ManualClock(), Gate()

    class Stuck(SessionHook):
        async def disconnected(self, session: Session, reason: Disconnect) -> None:
            await gate.wait("disconnected")

    async with nothing_left(), anyio.create_task_group() as helpers:

        async def drive(client: Client) -> None:
            await told_of_the_stop(client)
            await gate.log.reach(1)
            clock.advance(4.4)
            await anyio.wait_all_tasks_blocked()
            gate.log.add("3/4 of 6 s not over")
            clock.advance(0.5)

        async with Server(
            auth=OpenAuth(), sessions=Stuck(), clock=clock, options=Options(drain=6.0), **DOORS
        ) as server:
            helpers.start_soon(drive, await World(server).login("tcp"))
        assert gate.log.entries == ["disconnected", "3/4 of 6 s not over"]


class Parts(RoomHook):
    """Notes that it was closed, and hangs there where it is told to."""

    def __init__(self, *, hangs: bool = False) -> None:
        self.hangs = hangs
        self.closed = False

    async def aclose(self) -> None:
        self.closed = True
        if self.hangs:
            await anyio.sleep_forever()


class HangingSessions(Parts, SessionHook):
    """The same for sessions."""


async def test_a_part_that_does_not_close_is_left(caplog: pytest.LogCaptureFixture) -> None:
    rooms, sessions = Parts(), HangingSessions(hangs=True)
    async with nothing_left():
        async with Server(auth=OpenAuth(), rooms=rooms, sessions=sessions, options=Options(drain=0.01)):
            pass
    assert (rooms.closed, sessions.closed) == (True, True)
    assert "HangingSessions.aclose took longer than 0.01 s" in caplog.text


async def test_a_queue_that_fails_at_the_stop_keeps_nobody_from_being_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(MemoryQueue):
        async def drain(self) -> None:
            raise BackboneError("no broker")

    rooms = Parts()
    async with (
        nothing_left(),
        anyio.create_task_group() as readers,
        Server(auth=OpenAuth(), rooms=rooms, queue=Broken(), **DOORS) as server,
    ):
        readers.start_soon(told_of_the_stop, await World(server).login("tcp"))
    assert rooms.closed
    assert "nobody knows whether all pushes went out: no broker" in caplog.text


@both
async def test_what_was_accepted_is_sent_before_the_stop(wire: str) -> None:
    async def read(client: Client) -> None:
        for n in range(100):
            assert await client.frame() == frame(1000, int32(n))
        await told_of_the_stop(client)

    async with (
        nothing_left(),
        anyio.create_task_group() as readers,
        Server(auth=OpenAuth(), **DOORS) as server,
    ):
        readers.start_soon(read, await World(server).login(wire, room="live://1"))
        for n in range(100):
            await server.push_room("live://1", 1000, int32(n))


async def test_a_cancelled_program() -> None:
    async with nothing_left(), anyio.create_task_group() as readers:
        with anyio.CancelScope() as scope:
            async with Server(auth=OpenAuth(), **DOORS) as server:
                world = World(server)
                for wire in ("tcp", "ws"):
                    readers.start_soon(told_of_the_stop, await world.login(wire))
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught


async def test_what_the_body_raises_comes_out_as_it_is() -> None:
    error = ZeroDivisionError("mine")
    async with nothing_left():
        with pytest.raises(ZeroDivisionError) as raised:
            async with Server(auth=OpenAuth(), **DOORS):
                raise error
        assert raised.value is error


async def test_a_group_that_the_body_raises_comes_out_as_it_is() -> None:
    error = ExceptionGroup("mine", [ValueError("one"), KeyError("two")])
    with pytest.raises(ExceptionGroup) as raised:
        async with Server(auth=OpenAuth(), **DOORS):
            raise error
    assert raised.value is error


async def test_disconnected_once_for_each_connected() -> None:
    sessions = SessionLog()
    async with (
        nothing_left(),
        anyio.create_task_group() as readers,
        Server(auth=OpenAuth(), sessions=sessions, **DOORS) as server,
    ):
        world = World(server)
        gone = await world.login("tcp", key="gone")
        kicked = await world.login("ws", key="kicked")
        for wire in ("tcp", "ws"):
            readers.start_soon(told_of_the_stop, await world.login(wire, key=wire))
        readers.start_soon(told_of_the_stop, await world.login("tcp", key="kicked"))
        gone.reset()
        kicked.close()
        await until(lambda: server.stats().connections == 3)
    came = [entry[1] for entry in sessions.log.entries if entry[0] == "connected"]
    went = [entry[1] for entry in sessions.log.entries if entry[0] == "disconnected"]
    assert sorted(came) == sorted(went) == ["gone", "kicked", "kicked", "tcp", "ws"]


async def test_async_disconnected_hooks_are_waited_for() -> None:
    log = Log()

    class Slow(SessionHook):
        async def disconnected(self, session: Session, reason: Disconnect) -> None:
            for _ in range(10):
                await anyio.lowlevel.checkpoint()
            log.add((session.key, reason.code))

    async with (
        nothing_left(),
        anyio.create_task_group() as readers,
        Server(auth=OpenAuth(), sessions=Slow(), **DOORS) as server,
    ):
        for wire in ("tcp", "ws"):
            readers.start_soon(told_of_the_stop, await World(server).login(wire, key=wire))
    assert sorted(log.entries) == [("tcp", 1001), ("ws", 1001)]


@both
async def test_a_message_under_way_is_answered_before_its_client_is_told(wire: str) -> None:
    gate = Gate()

    class Slow(MessageHook):
        async def receive(self, session: Session, message: Frame) -> Frame:
            await gate.wait("begun")
            return Frame(5, b"done", message.seq)

    async def read(client: Client, idle: Client) -> None:
        await told_of_the_stop(idle)
        gate.opened.set()
        assert await client.frame() == frame(5, b"done", 7)
        await told_of_the_stop(client)
        gate.log.add("told")

    async with (
        nothing_left(),
        anyio.create_task_group() as readers,
        Server(auth=OpenAuth(), messages=Slow(), **DOORS) as server,
    ):
        world = World(server)
        client = await world.login(wire)
        await client.send(frame(4, b"", 7))
        await gate.log.reach(1)
        readers.start_soon(read, client, await world.login(wire))
    assert gate.log.entries == ["begun", "told"]


async def test_while_clients_are_led_away_no_door_is_open_but_http() -> None:
    gate = Gate()

    class Slow(MessageHook):
        async def receive(self, session: Session, message: Frame) -> None:
            await gate.wait("begun")

    async def look(server: Server, client: Client, port: int) -> None:
        await until(lambda: not server.addresses["tcp"])
        assert (server.addresses["ws"], server.draining) == ([], True)
        with socket.socket() as late:
            assert late.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED
        for path, status in ((b"/goim/nodes/weighted", 200), (b"/metrics", 200), (b"/readyz", 503)):
            http = Client(await World(server).dial("http"))
            await http.send_raw(b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path)
            assert (await http.rest()).startswith(b"HTTP/1.1 %d " % status)
            http.close()
        gate.opened.set()
        await client.frame()
        await told_of_the_stop(client)

    async with (
        nothing_left(),
        anyio.create_task_group() as readers,
        Server(auth=OpenAuth(), messages=Slow(), **DOORS) as server,
    ):
        client = await World(server).login("tcp")
        await client.send(frame(4))
        await gate.log.reach(1)
        readers.start_soon(look, server, client, server.port("tcp"))
    assert server.addresses == {"tcp": [], "ws": [], "http": []}


async def test_settings_may_change_while_the_last_hooks_are_waited_for() -> None:
    gate = Gate()

    class Slow(SessionHook):
        async def disconnected(self, session: Session, reason: Disconnect) -> None:
            await gate.wait("begun")

    async def look(server: Server, client: Client) -> None:
        await told_of_the_stop(client)
        await until(lambda: not server.addresses["http"])
        server.reload(options=Options(heartbeat=7))
        assert server.options.heartbeat == 7
        gate.opened.set()

    async with (
        anyio.create_task_group() as tasks,
        Server(auth=OpenAuth(), sessions=Slow(), **DOORS) as server,
    ):
        tasks.start_soon(look, server, await World(server).login("tcp"))


async def test_hooks_may_push_until_the_last_of_them_is_done() -> None:
    log = Log()

    class Says(SessionHook):
        async def disconnected(self, session: Session, reason: Disconnect) -> None:
            await self.server.push_all(1000, b"bye")
            log.add(session.key)

    async with (
        nothing_left(),
        anyio.create_task_group() as readers,
        Server(auth=OpenAuth(), sessions=Says(), **DOORS) as server,
    ):
        readers.start_soon(told_of_the_stop, await World(server).login("tcp", key="k"))
    assert log.entries == ["k"]
    with pytest.raises(ServerStopped, match="the server is not running"):
        await server.push_all(1000, b"late")


# The queue.


async def test_a_full_queue() -> None:
    # 16 MB linger for a room, so nothing more is taken off the queue until the clock moves.
    clock = ManualClock()
    options = Options(queue_size=2, linger=1.0)
    async with serve(clock=clock, options=options) as world, anyio.create_task_group() as pushers:
        server, published = world.server, Log()

        async def publish(n: int) -> None:
            await server.push_room("live://1", 1000, bytes(1 << 20))
            published.add(n)

        for n in range(16):
            await publish(n)
        for n in range(16, 21):
            pushers.start_soon(publish, n)
        await anyio.wait_all_tasks_blocked()
        # One is in the job's hand and two are in the queue: two publishers wait.
        assert len(published.entries) == 19
        with pytest.raises(QueueFull, match="2 pushes wait"):
            await server.push_room("live://1", 1000, b"", nowait=True)
        while server.stats().pending:
            clock.advance(1.0)
            await anyio.lowlevel.checkpoint()
        await published.reach(21)
