"""Hooks that raise, hang, refuse or return the wrong thing, plain and async: what the client sees."""

from __future__ import annotations

import anyio
import pytest

from goim_core import (
    AuthHook,
    AuthRequest,
    Disconnect,
    ErrorCode,
    Frame,
    MessageHook,
    OpenAuth,
    Refused,
    Session,
    SessionHook,
)
from tests.e2e.clients import both, frame, int32, serve, until
from tests.e2e.hooks import Log, hooks, witnessed

pytestmark = pytest.mark.anyio

kinds = pytest.mark.parametrize("kind", ["plain", "async"])


def broken() -> None:
    raise RuntimeError("a mistake in the application")


@kinds
@pytest.mark.parametrize("name", ["authenticate", "make_key"])
async def test_raises_before_the_client_is_in(kind: str, name: str, caplog: pytest.LogCaptureFixture) -> None:
    async with witnessed(**hooks(kind, name, broken)) as (world, client):
        await client.send(frame(7, b'{"mid":1}'))
        # The application's mistakes are for its log, not for strangers.
        assert await client.told() == (1011, "internal error")
        assert "a mistake in the application" in caplog.text
        assert world.server.stats().users == 1


@kinds
@pytest.mark.parametrize(
    ("name", "returned", "allowed"),
    [
        ("authenticate", None, "a Session"),
        ("authenticate", {"mid": 1}, "a Session"),
        ("make_key", None, "a str"),
        ("make_key", 7, "a str"),
    ],
)
async def test_returns_the_wrong_thing(
    kind: str, name: str, returned: object, allowed: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with witnessed(**hooks(kind, name, lambda: returned)) as (_, client):
        await client.send(frame(7, b'{"mid":1}'))
        assert await client.told() == (1011, "internal error")
        assert f"Broken.{name} may return {allowed}; it returned {type(returned).__name__}" in caplog.text


@pytest.mark.parametrize("key", ["", "a" * 257, "a\nb"])
async def test_makes_a_key_that_is_none(key: str, caplog: pytest.LogCaptureFixture) -> None:
    async with witnessed(**hooks("plain", "make_key", lambda: key)) as (_, client):
        await client.send(frame(7, b'{"mid":1}'))
        assert (await client.told()).code == 1011
        assert "key: expected 1 to 256 printable characters" in caplog.text


@kinds
async def test_connected_raises(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async with witnessed(**hooks(kind, "connected", broken)) as (world, client):
        await client.login()
        assert await client.told() == (1011, "internal error")
        assert "a mistake in the application" in caplog.text
        assert world.server.stats().users == 1


@kinds
async def test_disconnected_raises(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async with witnessed(**hooks(kind, "disconnected", broken)) as (world, client):
        await client.login(key="k", accepts=[1000])
        client.close()
        await until(lambda: "a mistake in the application" in caplog.text)
        assert world.server.stats().users == 1
        # Its route is gone all the same.
        await world.server.push_keys(["k"], 1000, b"x")
        assert world.server.stats().pending == 0


@kinds
async def test_heartbeat_raises(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async with witnessed(**hooks(kind, "heartbeat", broken)) as (_, client):
        await client.login()
        assert [await client.beat(), await client.beat()] == [0, 0]
        assert caplog.text.count("RuntimeError: a mistake in the application") >= 1


@kinds
async def test_heartbeat_disconnects(kind: str) -> None:
    def act() -> None:
        raise Disconnect("enough", 4999)

    async with witnessed(**hooks(kind, "heartbeat", act)) as (_, client):
        await client.login()
        await client.beat()
        assert await client.told() == (4999, "enough")


@kinds
async def test_receive_raises(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async with witnessed(**hooks(kind, "receive", broken)) as (_, client):
        await client.login()
        await client.send(frame(4, b"x", seq=3), frame(2, seq=4))
        assert await client.read() == frame(4, seq=3)
        assert await client.read() == frame(3, int32(0), seq=4)
        assert "a mistake in the application" in caplog.text


@kinds
async def test_receive_raises_and_the_client_reads_errors(kind: str) -> None:
    async with witnessed(**hooks(kind, "receive", broken)) as (_, client):
        await client.login(accepts=[18])
        await client.send(frame(4, b"x", seq=3))
        assert await client.read() == frame(18, b'{"op":4,"code":500,"message":"internal error"}', seq=3)
        await client.beat()


@kinds
@pytest.mark.parametrize("returned", ["text", 5, bytearray(b"x"), Frame])
async def test_receive_returns_the_wrong_thing(
    kind: str, returned: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with witnessed(**hooks(kind, "receive", lambda: returned)) as (_, client):
        await client.login(accepts=[18])
        await client.send(frame(4, b"x", seq=3))
        assert await client.read() == frame(18, b'{"op":4,"code":500,"message":"internal error"}', seq=3)
        said = f"Broken.receive may return None, bytes or a Frame; it returned {type(returned).__name__}"
        assert said in caplog.text


@kinds
async def test_receive_returns_a_frame_that_does_not_fit(kind: str) -> None:
    async with witnessed(**hooks(kind, "receive", lambda: Frame(1 << 40))) as (_, client):
        await client.login(accepts=[18])
        await client.send(frame(4, seq=3))
        assert await client.read() == frame(18, b'{"op":4,"code":500,"message":"internal error"}', seq=3)


# Refusals.


@both
@kinds
async def test_authenticate_refuses(wire: str, kind: str) -> None:
    def act() -> None:
        raise Refused("not today")

    async with serve(**hooks(kind, "authenticate", act)) as world:
        client = await world.connect(wire)
        await client.send(frame(7, b'{"mid":1}'))
        assert await client.told() == (4001, "not today")


@both
@kinds
async def test_authenticate_disconnects_with_a_code(wire: str, kind: str) -> None:
    def act() -> None:
        raise Disconnect("moved to another server", 4100)

    async with serve(**hooks(kind, "authenticate", act)) as world:
        client = await world.connect(wire)
        await client.send(frame(7, b'{"mid":1}'))
        assert await client.told() == (4100, "moved to another server")


@both
@kinds
async def test_connected_refuses(wire: str, kind: str) -> None:
    def act() -> None:
        raise Refused("one device only")

    async with serve(**hooks(kind, "connected", act)) as world:
        client = await world.login(wire)
        assert await client.told() == (4001, "one device only")


def refuse() -> None:
    raise Refused("you are muted \N{SPEAKER WITH CANCELLATION STROKE}", ErrorCode.TOO_MANY)


@both
@kinds
async def test_receive_refuses(wire: str, kind: str) -> None:
    async with serve(**hooks(kind, "receive", refuse)) as world:
        client = await world.login(wire, accepts=[18])
        await client.send(frame(1000, b"hello", seq=5, ver=2))
        error = '{"op":1000,"code":429,"message":"you are muted \N{SPEAKER WITH CANCELLATION STROKE}"}'
        assert await client.read() == frame(18, error.encode(), seq=5, ver=2)
        await client.beat()


@both
@kinds
async def test_receive_refuses_a_goim_client(wire: str, kind: str) -> None:
    async with serve(**hooks(kind, "receive", refuse)) as world:
        client = await world.login(wire)
        await client.send(frame(1000, b"hello", seq=5, ver=2))
        assert await client.read() == frame(1000, seq=5, ver=2)
        await client.beat()


async def test_the_error_op_can_be_subscribed_to() -> None:
    async with serve(**hooks("plain", "receive", refuse)) as world:
        client = await world.login("tcp")
        await client.send(frame(14, b"18"), frame(1000))
        assert await client.read() == frame(15, b"18")
        assert (await client.read())[8:12] == b"\0\0\0\x12"


@both
@kinds
async def test_receive_disconnects(wire: str, kind: str) -> None:
    def act() -> None:
        raise Disconnect("banned", 4200)

    async with serve(**hooks(kind, "receive", act)) as world:
        client = await world.login(wire)
        await client.send(frame(1000), frame(1000))
        assert await client.told() == (4200, "banned")


# What hooks are given, and what they can do.


@both
async def test_what_authenticate_is_given(wire: str) -> None:
    log = Log()

    class Auth(AuthHook):
        def authenticate(self, request: AuthRequest) -> Session:
            log.add(request)
            return Session(mid=1)

    async with serve(auth=Auth()) as world:
        await (await world.connect(wire)).send(frame(7, b"a token"))
        (request,) = await log.reach(1)
        assert (request.token, request.address) == (b"a token", "127.0.0.1")
        assert request.transport == ("tcp" if wire == "tcp" else "websocket")
        assert request.path == ("" if wire == "tcp" else "/sub")
        assert request.headers.get("host") == (None if wire == "tcp" else "localhost")


async def test_a_hook_may_push() -> None:
    class Say(MessageHook):
        async def receive(self, session: Session, frame: Frame) -> None:
            await self.server.push_room(session.room_id, 1000, frame.body)

    async with serve(messages=Say()) as world:
        said = await world.login("ws", room="live://1")
        heard = await world.login("tcp", room="live://1")
        await said.send(frame(4, b"hello", seq=1))
        assert {await said.frame(), await said.frame()} == {frame(4, seq=1), frame(1000, b"hello")}
        assert await heard.frame() == frame(1000, b"hello")


async def test_plain_hooks_need_no_task() -> None:
    tasks = set()

    class Auth(OpenAuth):
        def authenticate(self, request: AuthRequest) -> Session:
            tasks.add(anyio.get_current_task().id)
            return super().authenticate(request)

    class Sessions(SessionHook):
        def connected(self, session: Session) -> None:
            tasks.add(anyio.get_current_task().id)

        def heartbeat(self, session: Session) -> None:
            tasks.add(anyio.get_current_task().id)

        def disconnected(self, session: Session, reason: Disconnect) -> None:
            tasks.add(anyio.get_current_task().id)

    class Messages(MessageHook):
        def receive(self, session: Session, frame: Frame) -> None:
            tasks.add(anyio.get_current_task().id)

    async with serve(auth=Auth(), sessions=Sessions(), messages=Messages()) as world:
        client = await world.login("tcp")
        await client.send(frame(4))
        await client.read()
        await client.beat()
        client.close()
        await until(lambda: world.server.stats().connections == 0)
    # All of them ran in the one task that serves every connection.
    assert len(tasks) == 1
