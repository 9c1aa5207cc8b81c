"""How a server starts, or says why not; where it listens."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from goim_core import (
    AuthHook,
    ConfigurationError,
    OpenAuth,
    RoomHook,
    Server,
    ServerStopped,
)
from goim_core.reactor import Reactor
from tests.e2e.clients import Client, frame, serve, until
from tests.e2e.leftovers import DOORS, nothing_left

pytestmark = pytest.mark.anyio

STOPPING = (1001, "the server is stopping")


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


class Opened(RoomHook):
    """Cancelled while it opens, it goes on, as a worker thread does."""

    closed = False

    async def start(self) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self.closed = True


async def test_who_is_cancelled_while_it_starts_does_not_hang() -> None:
    rooms = Opened()
    async with nothing_left():
        with anyio.CancelScope() as scope:
            scope.cancel()
            async with Server(auth=OpenAuth(), rooms=rooms, tcp="127.0.0.1:0"):
                raise AssertionError("it was cancelled before")
    assert rooms.closed


async def test_a_fault_at_the_start_comes_out_as_it_is() -> None:
    def no_reactor() -> Reactor:
        raise OSError("too many open files")

    rooms = Opened()
    async with nothing_left():
        with pytest.raises(OSError, match="^too many open files$"):
            async with Server(auth=OpenAuth(), rooms=rooms, tcp="127.0.0.1:0", reactor=no_reactor):
                raise AssertionError("it cannot start")
    assert rooms.closed


@pytest.mark.parametrize("door", ["tls", "wss", "https"])
async def test_a_socket_is_not_taken_in_at_a_door_that_cannot_be(door: str) -> None:
    """Plain text where TLS was asked for would go unnoticed."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with Server(auth=OpenAuth()) as server:
            with pytest.raises(ValueError, match="^(ssl_context|door): expected"):
                server.accept(ours, door)
            assert server.stats().opened == 0


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
        (address,) = world.server.addresses["tcp"]
        for host in ("127.0.0.1", "::1"):
            client = Client(await world.dial_address((host, int(address[1]))))
            await client.login(room="live://1")
        assert await client.beat() == 2
        assert world.server.online_total() == (2, 2)


async def test_the_push_api_is_on_loopback_unless_told() -> None:
    async with serve(http=":0") as world:
        assert {address[0] for address in world.server.addresses["http"]} <= {"127.0.0.1", "::1"}
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
