"""TLS over both wires: the same bytes, certificates of a test's own authority."""

from __future__ import annotations

import os
import ssl
from typing import Any

import pytest
import trustme

from goim_core import ConfigurationError, Frame, MessageHook, OpenAuth, Options, Server, Session
from goim_core.testing import ManualClock
from tests.e2e.clients import Client, WebSocket, World, frame, int32, serve, until

pytestmark = pytest.mark.anyio

secure = pytest.mark.parametrize("wire", ["tls", "wss"])


@pytest.fixture(scope="module")
def contexts() -> dict[str, ssl.SSLContext]:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return {"ssl_context": server, "client_tls": client}


DOORS: dict[str, Any] = {"tls": "127.0.0.1:0", "wss": "127.0.0.1:0"}


@secure
async def test_a_session(wire: str, contexts: dict[str, Any]) -> None:
    async with serve(**DOORS, **contexts) as world:
        client = await world.login(wire, room="live://1", key="k", accepts=[1000])
        plain = await world.login("tcp", room="live://1")
        assert await client.beat() == 2
        await world.server.push_room("live://1", 1000, b"x")
        assert await client.frame() == await plain.frame() == frame(1000, b"x")
        await client.send(*(frame(2, seq=n) for n in range(100)))
        for n in range(100):
            assert await client.read() == frame(3, int32(2), seq=n)


@secure
async def test_refusals_end_with_tlss_own_end(wire: str, contexts: dict[str, Any]) -> None:
    async with serve(**DOORS, **contexts) as world:
        client = await world.connect(wire)
        await client.send(frame(7, b"{}"))
        # The client takes a stream that ends without a close_notify for cut.
        assert await client.told() == (4001, "mid: missing from the token")


@secure
async def test_stop(wire: str, contexts: dict[str, Any]) -> None:
    server = Server(
        auth=OpenAuth(), ssl_context=contexts["ssl_context"], options=Options(farewell_timeout=0.01), **DOORS
    )
    async with server:
        client = await World(server, contexts["client_tls"]).login(wire)
    assert await client.told() == (1001, "the server is stopping")


@secure
async def test_pushes_that_block(wire: str, contexts: dict[str, Any]) -> None:
    """Many times what the socket takes at once, in pushes larger than a TLS record."""
    body = bytes(range(256)) * 256
    async with serve(**DOORS, **contexts, options=Options(outbox_bytes=1 << 25)) as world:
        client = await world.login(wire, key="k", accepts=[1000], receive_buffer=4096)
        for n in range(100):
            await world.server.push_keys(["k"], 1000, int32(n) + body)
        await world.sent()
        for n in range(100):
            assert await client.frame() == frame(1000, int32(n) + body)
        assert world.server.stats().drops == {}
        assert await client.beat() == 0


@secure
async def test_a_slow_client_is_bounded(wire: str, contexts: dict[str, Any]) -> None:
    async with serve(**DOORS, **contexts, options=Options(outbox_bytes=1 << 17)) as world:
        slow = await world.login(wire, key="slow", accepts=[1000], receive_buffer=4096)
        other = await world.login(wire)
        stats, count = world.server.stats, 0
        while not stats().drops:
            assert count < 1000
            await world.server.push_keys(["slow"], 1000, int32(count) + bytes(16384))
            await world.sent()
            count += 1
        assert await other.beat() == 0
        for n in range(count - 1):
            assert (await slow.frame())[16:20] == int32(n)
        await world.server.push_keys(["slow"], 1000, b"after")
        assert await slow.frame() == frame(1000, b"after")


class Large(MessageHook):
    def receive(self, session: Session, frame: Frame) -> bytes:
        return bytes(16384)


@secure
async def test_large_answers_to_pipelined_frames(wire: str, contexts: dict[str, Any]) -> None:
    async with serve(**DOORS, **contexts, messages=Large()) as world:
        client = await world.login(wire)
        await client.send(*(frame(4, seq=n) for n in range(100)))
        for n in range(100):
            assert await client.read() == frame(4, bytes(16384), seq=n)


@secure
@pytest.mark.parametrize("sent", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"])
async def test_a_handshake_that_never_ends(wire: str, sent: bytes, contexts: dict[str, Any]) -> None:
    clock = ManualClock()
    async with serve(**DOORS, **contexts, clock=clock) as world:
        other = await world.login(wire)
        client = Client(await world.dial(wire))
        await client.send_raw(sent)
        await other.beat()
        clock.advance(10.5)
        assert await client.rest() == b""
        client.close()
        await until(lambda: world.server.stats().connections == 1)
        await other.beat()


@secure
@pytest.mark.parametrize(
    "sent", [frame(7, b'{"mid":1}'), b"GET /sub HTTP/1.1\r\nHost: a\r\n\r\n"], ids=["a frame", "HTTP"]
)
async def test_no_tls(wire: str, sent: bytes, contexts: dict[str, Any]) -> None:
    async with serve(**DOORS, **contexts) as world:
        other = await world.login(wire)
        client = Client(await world.dial(wire))
        await client.send_raw(sent)
        await client.rest()  # perhaps TLS's alert, and the end
        client.close()
        await until(lambda: world.server.stats().connections == 1)
        await other.beat()


@secure
async def test_garbage_after_the_handshake(wire: str, contexts: dict[str, Any]) -> None:
    async with serve(**DOORS, **contexts) as world:
        other = await world.login(wire)
        client = await world.login(wire)
        # Past TLS: a record that no key has made.
        os.write(client.sock.fileno(), b"\x17\x03\x03\x00\x20" + bytes(32))
        with pytest.raises(ssl.SSLError, match=r"(?i)alert|eof|mac"):
            await client.receive_raw()
        await until(lambda: world.server.stats().connections == 1)
        await other.beat()


@secure
async def test_reset(wire: str, contexts: dict[str, Any]) -> None:
    async with serve(**DOORS, **contexts) as world:
        other = await world.login(wire, room="live://1")
        (await world.login(wire, room="live://1")).reset()
        await until(lambda: world.server.stats().connections == 1)
        assert await other.beat() == 1


@secure
async def test_frames_cut_into_records_of_a_byte(wire: str, contexts: dict[str, Any]) -> None:
    async with serve(**DOORS, **contexts) as world:
        client = await world.login(wire)
        for byte in client.as_sent(frame(2, seq=9)):
            await client.send_raw(bytes([byte]))
        assert await client.read() == frame(3, int32(0), seq=9)


async def test_a_client_that_does_not_trust_us(contexts: dict[str, Any]) -> None:
    async with serve(
        **DOORS, ssl_context=contexts["ssl_context"], client_tls=ssl.create_default_context()
    ) as world:
        with pytest.raises(ssl.SSLCertVerificationError):
            await world.connect("tls")
        world.sockets[-1].close()
        await until(lambda: world.server.stats().connections == 0)


async def test_tls_needs_a_context() -> None:
    with pytest.raises(
        ConfigurationError, match=r"^ssl_context: expected an ssl\.SSLContext, which wss needs"
    ):
        Server(auth=OpenAuth(), wss="127.0.0.1:0")


async def test_a_websocket_over_tls_with_pings(contexts: dict[str, Any]) -> None:
    async with serve(**DOORS, **contexts) as world:
        client = await world.login("wss")
        assert isinstance(client, WebSocket)
        await client.send_raw(b"\x89\x80\0\0\0\0")
        assert await client.receive_exactly(2) == b"\x8a\x00"
