"""A server's beginning and end: it tells its clients, and leaves no task, no socket, no file."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from goim_core import (
    AuthHook,
    AuthRequest,
    ConfigurationError,
    Disconnect,
    Frame,
    MessageHook,
    OpenAuth,
    Options,
    QueueFull,
    Server,
    ServerStopped,
    Session,
    SessionHook,
)
from tests.clocks import ManualClock
from tests.e2e.clients import PATIENCE, Client, Gate, Log, SessionLog, Told, World, both, frame, int32, serve, until

pytestmark = pytest.mark.anyio

STOPPING = (1001, "the server is stopping")


def descriptors() -> set[str]:
    """What this process has open, but for the directory that is read here."""
    return {name for name in os.listdir("/dev/fd") if Path("/dev/fd", name).exists()}


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """After the block there are as many tasks and descriptors as before it."""
    tasks, files = anyio.get_running_tasks(), descriptors()
    with anyio.fail_after(PATIENCE):
        yield
    assert anyio.get_running_tasks() == tasks
    assert descriptors() == files


@asynccontextmanager
async def farewells(*clients: Client) -> AsyncIterator[list[Told]]:
    """Reads what each of the clients is told by a server that stops within the block."""
    told: list[Told] = []

    async def read(client: Client) -> None:
        told.append(await client.told())

    async with anyio.create_task_group() as readers:
        for client in clients:
            readers.start_soon(read, client)
        yield told


DOORS: dict[str, Any] = dict.fromkeys(("tcp", "ws", "http"), "127.0.0.1:0")


async def test_stop_tells_every_client() -> None:
    async with nothing_left():
        server = Server(auth=OpenAuth(), **DOORS)
        await server.__aenter__()
        world = World(server)
        clients = [await world.login(wire, room="live://1") for wire in ("tcp", "ws")]
        clients += [await world.connect(wire) for wire in ("tcp", "ws")]
        async with farewells(*clients) as told:
            await server.__aexit__(None, None, None)
        assert told == [STOPPING] * 4


async def test_stop_ends_every_stage_of_every_door() -> None:
    async with nothing_left(), Server(auth=OpenAuth(), **DOORS) as server:
        world = World(server)
        handshaking = Client(await world.dial("ws"))
        http = Client(await world.dial("http"))
        await http.send_raw(b"POST /goim/push/all HTTP/1.1\r\n")
        await handshaking.send_raw(b"GET /sub")
        world.close()


async def test_stop_answers_a_handshake_that_is_not_done() -> None:
    async with nothing_left():
        server = Server(auth=OpenAuth(), **DOORS)
        await server.__aenter__()
        client = Client(await World(server).dial("ws"))

        async def read() -> None:
            assert (await client.rest()).startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            client.close()

        async with anyio.create_task_group() as readers:
            readers.start_soon(read)
            await server.__aexit__(None, None, None)


async def test_clients_that_do_not_leave_are_left() -> None:
    async with nothing_left():
        async with Server(auth=OpenAuth(), options=Options(farewell_timeout=0.01), **DOORS) as server:
            world = World(server)
            clients = [await world.login("tcp", room="live://1"), await world.connect("ws")]
        for client in clients:
            assert await client.told() == STOPPING


async def test_the_drain_time_is_kept() -> None:
    """Clients that do not leave, and a hook that hangs, hold up a stop for as long and no longer."""
    gate = Gate()

    class Stuck(SessionHook):
        async def disconnected(self, session: Session, reason: Disconnect) -> None:
            await gate.wait("disconnected")

    clock = ManualClock()
    async with nothing_left():
        server = Server(auth=OpenAuth(), sessions=Stuck(), clock=clock, options=Options(drain=6.0), **DOORS)
        await server.__aenter__()
        client = await World(server).login("tcp")
        async with anyio.create_task_group() as stopping:
            stopping.start_soon(server.__aexit__, None, None, None)
            await gate.log.reach(1)
            clock.advance(2.5)  # the farewell's time is over, the drain's is not
            await anyio.wait_all_tasks_blocked()
            assert stopping.cancel_scope.cancel_called is False
            assert server.stats().connections == 0
            clock.advance(1.0)
        client.close()


@both
async def test_what_was_accepted_is_sent_before_the_stop(wire: str) -> None:
    server = Server(auth=OpenAuth(), **DOORS)
    with anyio.fail_after(PATIENCE):
        await server.__aenter__()
        client = await World(server).login(wire, room="live://1")
        for n in range(100):
            await server.push_room("live://1", 1000, int32(n))

        async def read() -> None:
            for n in range(100):
                assert await client.frame() == frame(1000, int32(n))
            assert await client.told() == STOPPING

        async with anyio.create_task_group() as readers:
            readers.start_soon(read)
            await server.__aexit__(None, None, None)


async def test_a_cancelled_program() -> None:
    async with nothing_left(), anyio.create_task_group() as readers:

        async def read(client: Client) -> None:
            assert await client.told() == STOPPING

        with anyio.CancelScope() as scope:
            async with Server(auth=OpenAuth(), **DOORS) as server:
                world = World(server)
                for wire in ("tcp", "ws"):
                    readers.start_soon(read, await world.login(wire))
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
    async with nothing_left():
        async with Server(auth=OpenAuth(), sessions=sessions, **DOORS) as server:
            world = World(server)
            stays = [await world.login(wire, key=wire) for wire in ("tcp", "ws")]
            gone = await world.login("tcp", key="gone")
            kicked = await world.login("ws", key="kicked")
            takes = await world.login("tcp", key="kicked")
            gone.reset()
            kicked.close()
            await until(lambda: server.stats().connections == 3)
            for client in (*stays, takes):
                client.sock.shutdown(socket.SHUT_WR) if client is takes else None
        world.close()
        entries = sessions.log.entries
        came = [entry[1] for entry in entries if entry[0] == "connected"]
        went = [entry[1] for entry in entries if entry[0] == "disconnected"]
        assert sorted(came) == sorted(went) == ["gone", "kicked", "kicked", "tcp", "ws"]


async def test_async_disconnected_hooks_are_waited_for() -> None:
    log = Log()

    class Slow(SessionHook):
        async def disconnected(self, session: Session, reason: Disconnect) -> None:
            for _ in range(10):
                await anyio.lowlevel.checkpoint()
            log.add((session.key, reason.code))

    server = Server(auth=OpenAuth(), sessions=Slow(), **DOORS)
    with anyio.fail_after(PATIENCE):
        await server.__aenter__()
        clients = [await World(server).login(wire, key=wire) for wire in ("tcp", "ws")]
        async with farewells(*clients):
            await server.__aexit__(None, None, None)
        assert sorted(log.entries) == [("tcp", 1001), ("ws", 1001)]


async def test_a_message_under_way_is_answered_before_the_stop() -> None:
    """At least it is not cancelled: the hook comes to its end."""
    gate = Gate()

    class Slow(MessageHook):
        async def receive(self, session: Session, frame: Frame) -> None:
            await gate.wait("begun")
            gate.log.add("done")

    server = Server(auth=OpenAuth(), messages=Slow(), **DOORS)
    with anyio.fail_after(PATIENCE):
        await server.__aenter__()
        client = await World(server).login("tcp")
        await client.send(frame(4))
        await gate.log.reach(1)
        async with farewells(client), anyio.create_task_group() as stopping:
            stopping.start_soon(server.__aexit__, None, None, None)
            await anyio.wait_all_tasks_blocked()
            gate.opened.set()
        assert gate.log.entries == ["begun", "done"]


async def test_a_push_in_a_disconnected_hook_of_a_stop_is_refused() -> None:
    log = Log()

    class Says(SessionHook):
        async def disconnected(self, session: Session, reason: Disconnect) -> None:
            try:
                await self.server.push_all(1000, b"bye")
            except ServerStopped as error:
                log.add(str(error))

    async with serve(sessions=Says()) as world:
        await world.login("tcp")
    # The client of ``world`` is closed as the block ends, so it may be said before the stop or in it.
    assert set(log.entries) <= {"the server is not running"}


# The start.


async def test_no_auth_names_the_choices() -> None:
    with pytest.raises(ConfigurationError, match=r"^auth: .*OpenAuth.*AuthHook"):
        Server(tcp="127.0.0.1:0")


async def test_an_auth_hook_without_authenticate() -> None:
    async with serve(auth=AuthHook()) as world:
        client = await world.connect("tcp")
        await client.send(frame(7, b'{"mid":1}'))
        assert (await client.told()).code == 1011


@pytest.mark.parametrize("argument", ["auth", "sessions", "messages"])
@pytest.mark.parametrize("hook", [OpenAuth, object(), "open", lambda request: None], ids=range(4))
async def test_a_hook_of_the_wrong_type(argument: str, hook: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^{argument}: expected an instance of "):
        Server(**{"auth": OpenAuth(), argument: hook})


@pytest.mark.parametrize("door", ["tcp", "ws", "http"])
async def test_a_port_in_use_names_the_door(door: str) -> None:
    async with serve() as world:
        address = world.server.addresses[door][0]
        async with nothing_left():
            with pytest.raises(OSError, match=f"^.*{door}: cannot listen on .*{address[1]}.*in use"):
                async with Server(auth=OpenAuth(), **{**DOORS, door: address}):
                    pytest.fail("it started")


async def test_a_server_runs_once() -> None:
    async with serve() as world:
        with pytest.raises(ServerStopped):
            await world.server.__aenter__()
    with pytest.raises(ServerStopped):
        await world.server.__aenter__()


async def test_a_server_without_doors() -> None:
    async with nothing_left(), Server(auth=OpenAuth()) as server:
        await server.push_all(1000, b"x")
        await until(lambda: not server.stats().pending)
        assert server.addresses == {}


async def test_two_servers_in_one_process() -> None:
    async with serve() as one, serve() as two:
        clients = [await world.login("tcp", key="k", room="live://1", accepts=[1000]) for world in (one, two)]
        await one.server.push_keys(["k"], 1000, b"one")
        await two.server.push_room("live://1", 1000, b"two")
        assert await clients[0].frame() == frame(1000, b"one")
        assert await clients[1].frame() == frame(1000, b"two")
        assert [await client.beat() for client in clients] == [1, 1]


async def test_a_second_server_at_the_same_port_after_the_first() -> None:
    async with serve() as world:
        address = world.server.addresses["tcp"][0]
        await world.login("tcp")
    async with serve(tcp=address) as world:
        assert await (await world.login("tcp")).beat() == 0


async def test_dual_stack() -> None:
    async with serve(tcp=":0") as world:
        ((_, port),) = world.server.addresses["tcp"]
        for host in ("127.0.0.1", "::1"):
            client = Client(await world.dial_address((host, port)))
            await client.login(room="live://1")
        assert await client.beat() == 2
        assert world.server.online_total() == (2, 2)


async def test_the_push_api_is_on_loopback_unless_told() -> None:
    async with serve(http=":0") as world:
        assert {host for host, _ in world.server.addresses["http"]} <= {"127.0.0.1", "::1"}
        assert (await world.http("GET", "/goim/online/total"))[0] == 200


async def test_several_addresses_for_a_door() -> None:
    async with serve(tcp=["127.0.0.1:0", ("127.0.0.1", 0)]) as world:
        for address in world.server.addresses["tcp"]:
            client = await Client(await world.dial_address(address)).login(room="live://1")
        assert await client.beat() == 2


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "goim.sock"
    async with serve(tcp=[path, "127.0.0.1:0"]) as world:
        assert world.server.addresses["tcp"][0] == str(path)
        client = await world.login("tcp", room="live://1")
        assert client.sock.family == socket.AF_UNIX
        await world.server.push_room("live://1", 1000, b"x")
        assert await client.frame() == frame(1000, b"x")
    assert not path.exists()


async def test_a_unix_socket_that_a_killed_process_left(tmp_path: Path) -> None:
    path = tmp_path / "goim.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with serve(tcp=f"unix:{path}") as world:
        await world.login("tcp")


async def test_a_unix_socket_in_use(tmp_path: Path) -> None:
    path = tmp_path / "goim.sock"
    async with serve(tcp=path) as world:
        with pytest.raises(OSError, match=r"tcp: cannot listen on .*goim\.sock"):
            async with Server(auth=OpenAuth(), tcp=path):
                pytest.fail("it started")
        await world.login("tcp")


async def test_a_file_in_the_place_of_a_unix_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(OSError, match="tcp: cannot listen"):
        async with Server(auth=OpenAuth(), tcp=path):
            pytest.fail("it started")
    assert path.read_text() == "mine"


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
        clock.advance(1.0)
        await published.reach(21)
        await clock.asleep(1.0)
        clock.advance(1.0)
        await world.sent()


async def test_authenticate_may_be_slow_for_one_only() -> None:
    gate = Gate()

    class Slow(OpenAuth):
        async def authenticate(self, request: AuthRequest) -> Session:  # type: ignore[override]
            session = super().authenticate(request)
            if session.mid == 1:
                await gate.wait("one")
            return session

    async with serve(auth=Slow()) as world:
        one = await world.connect("tcp")
        await one.send(frame(7, b'{"mid":1}'))
        await gate.log.reach(1)
        assert await (await world.login("tcp", mid=2)).beat() == 0
        gate.opened.set()
        assert await one.read() == frame(8)
