"""The order of hooks around a conversation, with hooks that wait."""

from __future__ import annotations

import json
import socket
import struct

import anyio
import anyio.abc
import pytest

from goim_core import (
    AuthHook,
    AuthRequest,
    Disconnect,
    Frame,
    MessageHook,
    Op,
    OpenAuth,
    Refused,
    Server,
    Session,
    SessionHook,
)
from goim_core.client import Link as Client
from goim_core.client import connect_once as connect
from goim_core.connection import Connection
from goim_core.protocol import encode

pytestmark = pytest.mark.anyio


class Gates(AuthHook, SessionHook, MessageHook):
    """Hooks that each wait for their gate, and note when they begin and end."""

    def __init__(self, *, passing: tuple[str, ...] = ()) -> None:
        self.gates = {
            name: anyio.Event() for name in ("authenticate", "connected", "receive", "disconnected")
        }
        self.begun = {name: anyio.Event() for name in self.gates}
        self.log: list[str] = []
        for name in passing:
            self.gates[name].set()

    async def passes(self, name: str) -> None:
        self.log.append(f"{name}...")
        self.begun[name].set()
        await self.gates[name].wait()
        self.log.append(name)

    async def authenticate(self, request: AuthRequest) -> Session:
        await self.passes("authenticate")
        return Session(mid=json.loads(request.token)["mid"], key="k")

    async def connected(self, session: Session) -> None:
        await self.passes("connected")

    async def receive(self, session: Session, frame: Frame) -> bytes:
        await self.passes("receive")
        return frame.body

    async def disconnected(self, session: Session, reason: Disconnect) -> None:
        await self.passes("disconnected")


def server_with(gates: Gates) -> Server:
    return Server(auth=gates, sessions=gates, messages=gates, tcp="127.0.0.1:0")


def address_of(server: Server) -> tuple[str, int]:
    address = server.addresses["tcp"][0]
    assert not isinstance(address, str)
    return address


async def test_nothing_is_handled_before_the_hook_before_it_has_returned() -> None:
    gates = Gates(passing=("disconnected",))
    with anyio.fail_after(10):
        async with server_with(gates) as server, await anyio.connect_tcp(*address_of(server)) as stream:
            token = b'{"mid": 1}'
            await stream.send(encode(Op.AUTH, token, 1) + encode(1000, b"a", 2) + encode(Op.HEARTBEAT, seq=3))
            client = Client(stream, heartbeat=60)
            for name in ("authenticate", "connected", "receive"):
                await gates.begun[name].wait()
                assert gates.log[-1] == f"{name}..."
                gates.gates[name].set()
            assert [(await client.receive()).op for _ in range(3)] == [
                Op.AUTH_REPLY,
                1000,
                Op.HEARTBEAT_REPLY,
            ]
    assert gates.log == [
        "authenticate...", "authenticate", "connected...", "connected", "receive...", "receive",
        "disconnected...", "disconnected",
    ]  # fmt: skip


@pytest.mark.parametrize("during", ["connected", "receive"])
async def test_disconnected_waits_for_the_hook_that_is_under_way(during: str) -> None:
    gates = Gates(passing=("authenticate", "connected", "receive"))
    gates.gates[during] = anyio.Event()
    with anyio.fail_after(10):
        async with server_with(gates) as server:
            stream = await anyio.connect_tcp(*address_of(server))
            await stream.send(encode(Op.AUTH, b'{"mid": 1}', 1) + encode(1000, b"a", 2))
            await gates.begun[during].wait()
            async with connect(*address_of(server), mid=2) as other:  # takes the key "k" over
                await other.send(Op.HEARTBEAT)
                await stream.aclose()
                assert "disconnected..." not in gates.log
                gates.gates[during].set()
                await gates.begun["disconnected"].wait()
                ended = gates.log.index("disconnected...")
                assert gates.log[:ended].count(during) >= 1
                gates.gates["disconnected"].set()
    assert gates.log.count("disconnected") == gates.log.count("connected") == 2


async def test_a_client_that_leaves_during_authenticate_is_never_connected() -> None:
    gates = Gates(passing=("connected", "receive", "disconnected"))
    with anyio.fail_after(10):
        async with server_with(gates) as server:
            stream = await anyio.connect_tcp(*address_of(server))
            await stream.send(encode(Op.AUTH, b'{"mid": 1}', 1))
            await gates.begun["authenticate"].wait()
            # The server resets it while the hook waits: its route has to go, too.
            for connection in server._pipeline.edge.reactor.sources():
                if isinstance(connection, Connection):
                    connection.lost(ConnectionResetError("reset"))
            gates.gates["authenticate"].set()
            await server._pipeline.edge.exchanges.idle()
            assert server._registry.keys(["k"]) == {}
            assert server.stats().users == 0
            await stream.aclose()
    assert gates.log == ["authenticate...", "authenticate"]


async def test_what_waits_for_a_connection_that_ends_is_counted_as_lost() -> None:
    class Watched(SessionHook):
        def __init__(self) -> None:
            self.ended = anyio.Event()

        def disconnected(self, session: Session, reason: Disconnect) -> None:
            self.ended.set()

    sessions = Watched()
    pushes = 200
    with anyio.fail_after(10):
        async with Server(auth=OpenAuth(), sessions=sessions, tcp="127.0.0.1:0") as server:
            async with connect(*address_of(server), mid=1, room_id="live://1") as client:
                for _ in range(pushes):
                    await server.push_room("live://1", 1000, bytes(40_000))
                await server._queue.drain()
                raw = client._stream.extra(anyio.abc.SocketAttribute.raw_socket)
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await sessions.ended.wait()
            stats = server.stats()
    assert stats.drops["lost"] > 0
    assert stats.deliveries + sum(stats.drops.values()) == pushes


async def test_connected_may_still_turn_a_client_away() -> None:
    class Closed(Gates):
        async def connected(self, session: Session) -> None:
            await super().connected(session)
            raise Refused("closed today")

    gates = Closed(passing=("authenticate", "connected", "receive", "disconnected"))
    with anyio.fail_after(10):
        async with server_with(gates) as server, connect(*address_of(server), mid=1) as client:
            with pytest.raises(Disconnect, match="closed today"):
                await client.receive()
            await gates.begun["disconnected"].wait()
    assert gates.log.count("disconnected") == 1
