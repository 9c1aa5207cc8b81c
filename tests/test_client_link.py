"""One link to a server: against the real one, and against others that may answer at its address."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from threading import Thread

import anyio
import pytest

from goim_core import (
    AuthHook,
    AuthRequest,
    CloseCode,
    Disconnect,
    Frame,
    Op,
    OpenAuth,
    Options,
    ProtocolError,
    Server,
    Session,
)
from goim_core.client import connect_once
from goim_core.protocol import encode

pytestmark = pytest.mark.anyio

ANYWHERE = "127.0.0.1:0"
PATIENCE = 20.0
"""Seconds after which a test that waits has failed. Nothing in a test that passes waits for it."""


def place(server: Server) -> tuple[str, int]:
    [address] = server.addresses["tcp"]
    assert not isinstance(address, str)
    return address


async def test_a_session_from_its_arguments() -> None:
    seen: list[Session] = []

    class Watching(OpenAuth):
        def authenticate(self, request: AuthRequest) -> Session:
            seen.append(super().authenticate(request))
            return seen[0]

    async with Server(auth=Watching(), tcp=ANYWHERE) as server:
        arguments = {"mid": 7, "key": "k", "room_id": "live://1", "platform": "test"}
        async with connect_once(*place(server), **arguments, accepts=(1000, 1001)) as client:  # type: ignore[arg-type]
            await server.push_room("live://1", 1000, b"a")
            await server.push_mids([7], 1001, b"b")
            assert [await client.receive(), await client.receive()] == [Frame(1000, b"a"), Frame(1001, b"b")]
            await client.send(1234, b"", 9)
            assert await client.receive() == Frame(1234, b"", 9)
    [session] = seen
    assert {name: getattr(session, name) for name in arguments} == arguments
    assert session.accepts == {1000, 1001}


async def test_a_token_of_the_applications_own() -> None:
    class Doorman(AuthHook):
        async def authenticate(self, request: AuthRequest) -> Session:
            return Session(mid=1, room_id=request.token.decode())

    async with (
        Server(auth=Doorman(), tcp=ANYWHERE) as server,
        connect_once(*place(server), token=b"live://2") as client,
    ):
        await server.push_room("live://2", 1000, b"x")
        assert await client.receive() == Frame(1000, b"x")


async def test_a_client_that_is_turned_away_knows_why() -> None:
    class Doorman(AuthHook):
        def authenticate(self, request: AuthRequest) -> Session:
            raise Disconnect("members only", 4444)

    async with Server(auth=Doorman(), tcp=ANYWHERE) as server:
        with pytest.raises(Disconnect) as told:
            async with connect_once(*place(server)):
                pytest.fail("let in")
    assert (told.value.reason, told.value.code) == ("members only", 4444)


async def test_a_client_knows_why_its_server_ends() -> None:
    async with AsyncExitStack() as stack:
        # The client reads when the server has ended, which therefore must not wait for it.
        options = Options(farewell_timeout=0.01)
        async with Server(auth=OpenAuth(), tcp=ANYWHERE, options=options) as server:
            client = await stack.enter_async_context(connect_once(*place(server), mid=1))
            await client.send(1234, b"", 1)
            assert await client.receive() == Frame(1234, b"", 1)
            await server.push_mids([1], 1000, b"not accepted")
        with pytest.raises(Disconnect) as told:
            assert [frame async for frame in client] == []
        assert (told.value.reason, told.value.code) == ("the server is stopping", CloseCode.GOING_AWAY)


async def test_heartbeats_go_out_while_a_frame_is_waited_for() -> None:
    async with (
        Server(auth=OpenAuth(), tcp=ANYWHERE) as server,
        connect_once(*place(server), mid=1, room_id="live://1", heartbeat=0.001) as client,
    ):
        with anyio.fail_after(PATIENCE):
            for _ in range(3):
                assert await client.receive() == Frame(Op.HEARTBEAT_REPLY, bytes((0, 0, 0, 1)))


async def test_no_heartbeat_goes_out_before_its_time() -> None:
    async with Server(auth=OpenAuth(), tcp=ANYWHERE) as server, connect_once(*place(server), mid=1) as client:
        for seq in range(1, 4):
            await client.send(1234, b"", seq)
            assert await client.receive() == Frame(1234, b"", seq)


async def test_a_push_longer_than_a_client_may_send() -> None:
    body = bytes(range(256)) * 2000
    async with (
        Server(auth=OpenAuth(), tcp=ANYWHERE) as server,
        connect_once(*place(server), mid=1, room_id="live://1") as client,
    ):
        await server.push_room("live://1", 1000, body)
        assert await client.receive() == Frame(1000, body)


@contextmanager
def answering(data: bytes, *, reset: bool = False) -> Iterator[tuple[str, int]]:
    """One who answers a token with ``data`` and closes; or waits for more, and resets the connection."""

    def answer() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.settimeout(PATIENCE)
            sock.recv(4096)
            sock.sendall(data)
            if reset:
                sock.recv(4096)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        thread = Thread(target=answer)
        thread.start()
        yield listener.getsockname()
        thread.join()


WELCOME = encode(Op.AUTH_REPLY, b"", 1)


async def test_the_frames_end_where_a_server_closes_without_a_word() -> None:
    with answering(WELCOME + encode(1000, b"x")) as address:
        async with connect_once(*address) as client:
            assert [frame async for frame in client] == [Frame(1000, b"x")]
            with pytest.raises(anyio.EndOfStream):
                await client.receive()


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        (b'{"code":4004,"message":"replaced"}', "replaced", 4004),
        (b"bye, whoever you are", "bye, whoever you are", 1000),
        (b'{"code":4004}', '{"code":4004}', 1000),
        (b'{"code":1006,"message":"no code"}', '{"code":1006,"message":"no code"}', 1000),
        (b'["bye"]', '["bye"]', 1000),
        (b"\xff", "\ufffd", 1000),
        (b"", "", 1000),
    ],
)  # fmt: skip
async def test_what_a_disconnect_says(body: bytes, message: str, code: int) -> None:
    # In goim the body is the application's own.
    with answering(WELCOME + encode(Op.DISCONNECT_REPLY, body)) as address:
        async with connect_once(*address) as client:
            with pytest.raises(Disconnect) as told:
                await client.receive()
            assert (told.value.reason, told.value.code) == (message, code)


async def test_a_connection_that_breaks() -> None:
    with answering(WELCOME, reset=True) as address:
        async with connect_once(*address) as client:
            await client.send(Op.HEARTBEAT)
            with pytest.raises(Disconnect) as told:
                await client.receive()
            assert (told.value.reason, told.value.code) == ("the connection broke", CloseCode.LOST)
            with pytest.raises(Disconnect) as told:
                await client.send(Op.HEARTBEAT)
            assert (told.value.reason, told.value.code) == ("the connection broke", CloseCode.LOST)


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (b"", Disconnect, "closed without a reason"),
        (encode(4, b""), Disconnect, "expected an auth reply, got op 4"),
        (b"HTTP/1.1 400 No\r\n\r\n", ProtocolError, "no goim server: header length: expected 16, got 12081"),
    ],
)  # fmt: skip
async def test_who_does_not_let_the_client_in(answer: bytes, error: type[Exception], message: str) -> None:
    with answering(answer) as address, pytest.raises(error) as told:
        async with connect_once(*address):
            pytest.fail("let in")
    assert str(told.value) == message


async def test_an_address_where_no_one_listens() -> None:
    with socket.socket() as nobody:  # bound and not listening: who tries is refused
        nobody.bind(("127.0.0.1", 0))
        host, port = nobody.getsockname()
        with pytest.raises(OSError, match=f"^cannot connect to {host}:{port}: "):
            async with connect_once(host, port):
                pytest.fail("let in")
