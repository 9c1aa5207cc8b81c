"""What clients do wrong: what each of them sees, while all other connections go on."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from goim_core import Options
from goim_core.testing import ManualClock
from tests.e2e.clients import Client, World, both, frame, serve, until
from tests.e2e.hooks import SessionLog

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def witnessed(**settings: Any) -> AsyncIterator[World]:
    """A server with well-behaved connections that go on afterwards, and nothing else does."""
    async with serve(**settings) as world:
        others = [await world.login(wire, mid=1000, room="witness://1") for wire in ("tcp", "ws")]
        yield world
        await until(lambda: world.server.stats().connections == 2)
        await world.server.push_room("witness://1", 1000, b"still here")
        for client in others:
            assert await client.frame() == frame(1000, b"still here")
            assert await client.beat() == 2


def header(length: int, header_length: int = 16) -> bytes:
    return length.to_bytes(4, "big", signed=True) + header_length.to_bytes(2, "big", signed=True) + bytes(10)


HEADERS = {
    "garbage": (b"\xde\xad\xbe\xef" * 8, 1002, "header length: expected 16, got -8531"),
    "zeros": (bytes(16), 1002, "header length: expected 16, got 0"),
    "length 0": (header(0), 1002, "package length: expected at least 16, got 0"),
    "length 15": (header(15), 1002, "package length: expected at least 16, got 15"),
    "negative length": (header(-1), 1002, "package length: expected at least 16, got -1"),
    "most negative length": (header(-(2**31)), 1002, "package length: expected at least 16, got -2147483648"),
    "huge length": (header(2**31 - 1), 1009, "package length: expected at most 4112, got 2147483647"),
    "header length 15": (header(16, 15), 1002, "header length: expected 16, got 15"),
    "header length 17": (header(17, 17) + b"x", 1002, "header length: expected 16, got 17"),
    "negative header length": (header(16, -16), 1002, "header length: expected 16, got -16"),
}


@both
@pytest.mark.parametrize("live", [True, False], ids=["live", "before auth"])
@pytest.mark.parametrize("name", HEADERS)
async def test_headers(wire: str, live: bool, name: str) -> None:
    data, code, message = HEADERS[name]
    async with witnessed() as world:
        client = await (world.login(wire) if live else world.connect(wire))
        await client.send(data)
        assert await client.told() == (code, message)


@both
async def test_what_came_before_the_garbage_is_answered(wire: str) -> None:
    async with witnessed() as world:
        client = await world.login(wire)
        await client.send(frame(1000, seq=1), frame(1000, seq=2), header(0), frame(1000, seq=3))
        assert await client.read() == frame(1000, seq=1)
        assert await client.read() == frame(1000, seq=2)
        assert (await client.told()).code == 1002


TOKENS = {
    b"": "token: expected JSON",
    b"mid=1": "token: expected JSON",
    b"\xff\xfe": "token: expected JSON",
    b"[" * 4096: "token: expected JSON",
    b"[1]": "token: expected a JSON object, got list",
    b"null": "token: expected a JSON object, got NoneType",
    b"{}": "mid: missing from the token",
    b'{"mid":"1"}': "mid: expected an int64, got '1'",
    b'{"mid":true}': "mid: expected an int64, got True",
    b'{"mid":1.5}': "mid: expected an int64, got 1.5",
    b'{"mid":9223372036854775808}': "mid: expected an int64, got 9223372036854775808",
    b'{"mid":1,"key":5}': "key: expected text, got 5",
    b'{"mid":1,"key":"a\\nb"}': "key: expected 1 to 256 printable characters",
    b'{"mid":1,"key":"\\ud800"}': "key: expected 1 to 256 printable characters",
    b'{"mid":1,"room_id":"lobby"}': "room_id: expected 'type://id'",
    b'{"mid":1,"room_id":[]}': "room_id: expected text, got []",
    b'{"mid":1,"platform":{}}': "platform: expected text",
    b'{"mid":1,"accepts":1000}': "accepts: expected a list of operations, got 1000",
    b'{"mid":1,"accepts":["1000"]}': "accepts: expected operations as int32, got '1000'",
    b'{"mid":1,"accepts":[-1]}': "accepts: expected operations as int32, got -1",
    b'{"mid":1,"accepts":[[]]}': "accepts: expected operations as int32, got [[]]",
}


@both
@pytest.mark.parametrize("token", TOKENS, ids=range(len(TOKENS)))
async def test_tokens(wire: str, token: bytes) -> None:
    async with witnessed() as world:
        client = await world.connect(wire)
        await client.send(frame(7, token))
        told = await client.told()
        assert told.code == 4001
        assert told.message.startswith(TOKENS[token])


@both
async def test_after_a_refused_auth_nothing_is_heard(wire: str) -> None:
    async with witnessed() as world:
        client = await world.connect(wire)
        await client.send(frame(7, b"{}"), frame(7, b'{"mid":1}'), frame(2))
        assert (await client.told()).code == 4001


@both
async def test_auth_twice_changes_nothing(wire: str) -> None:
    async with serve() as world:
        client = await world.login(wire, mid=1, key="k", room="live://1", accepts=[18])
        await client.send(frame(7, json.dumps({"mid": 2, "room_id": "live://2"}).encode(), seq=9))
        message = b'{"op":7,"code":409,"message":"this connection is authenticated already"}'
        assert await client.read() == frame(18, message, seq=9)
        assert await client.beat() == 1
        assert world.server.online_rooms(["live://1", "live://2"]) == {"live://1": 1, "live://2": 0}


@both
async def test_auth_twice_without_the_error_op(wire: str) -> None:
    async with serve() as world:
        client = await world.login(wire)
        await client.send(frame(7, b'{"mid":2}', seq=9))
        # Not op 8: that would say that it is somebody else now.
        assert await client.read() == frame(7, seq=9)


@both
async def test_auth_never(wire: str) -> None:
    clock = ManualClock()
    async with witnessed(clock=clock, options=Options(auth_timeout=3.0)) as world:
        silent = await world.connect(wire)
        busy = await world.connect(wire)
        clock.advance(2.9)
        await busy.send(frame(2))  # no auth, and so no reason to wait longer
        late = await world.connect(wire)
        clock.advance(0.5)
        assert await silent.told() == (4002, "no authentication in time")
        assert (await busy.told()).code == 4002
        await late.login()
        late.close()


@both
@pytest.mark.parametrize("sent", [b"\0", frame(7, b'{"mid":1}')[:-1]], ids=["a byte", "all but one"])
async def test_auth_in_part(wire: str, sent: bytes) -> None:
    clock = ManualClock()
    async with witnessed(clock=clock, options=Options(auth_timeout=3.0)) as world:
        client = await world.connect(wire)
        await client.send_raw(sent if wire == "tcp" else client.as_sent(sent)[: len(sent)])
        clock.advance(3.5)
        assert (await client.told()).code == 4002


@pytest.mark.parametrize("sent", [b"", b"G", b"GET /sub HTTP/1.1\r\nHost: a\r\n"])
async def test_a_handshake_that_never_ends(sent: bytes) -> None:
    clock = ManualClock()
    async with witnessed(clock=clock, options=Options(handshake_timeout=3.0)) as world:
        client = Client(await world.dial("ws"))
        await client.send_raw(sent)
        clock.advance(3.5)
        assert (await client.rest()).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        client.close()


HANDSHAKES = {
    "a frame": (frame(7, b'{"mid":1}'), b"400 Bad Request"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400 Bad Request"),
    "no upgrade": (b"GET /sub HTTP/1.1\r\nHost: a\r\n\r\n", b"426 Upgrade Required"),
    "another path": (b"GET /chat HTTP/1.1\r\nHost: a\r\n\r\n", b"404 Not Found"),
    "a longer path": (b"GET /sub/ HTTP/1.1\r\nHost: a\r\n\r\n", b"404 Not Found"),
    "POST": (b"POST /sub HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", b"405 Method Not Allowed"),
    "HTTP/1.0": (b"GET /sub HTTP/1.0\r\nHost: a\r\n\r\n", b"400 Bad Request"),
    "too long": (b"GET /sub HTTP/1.1\r\nHost: " + b"a" * 8192, b"431 Request Header Fields Too Large"),
}


@pytest.mark.parametrize("name", HANDSHAKES)
async def test_handshakes(name: str) -> None:
    sent, status = HANDSHAKES[name]
    async with witnessed() as world:
        client = Client(await world.dial("ws"))
        await client.send_raw(sent)
        assert (await client.rest()).startswith(b"HTTP/1.1 " + status + b"\r\n")
        client.close()


async def test_http_sent_to_the_tcp_port() -> None:
    async with witnessed() as world:
        client = await world.tcp()
        await client.send_raw(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert await client.told() == (1002, "header length: expected 16, got 12064")


async def test_frames_sent_to_the_http_port() -> None:
    async with witnessed() as world:
        client = Client(await world.dial("http"))
        await client.send_raw(frame(7, b'{"mid":1}'))
        assert (await client.rest()).startswith(b"HTTP/1.1 400 ")
        client.close()
        assert (await world.http("GET", "/goim/online/total"))[1]["data"]["conn_count"] == 2


async def test_a_handshake_sent_to_the_http_port() -> None:
    async with witnessed() as world:
        assert await world.http("GET", "/sub") == (404, {"code": -404, "message": "no such path: '/sub'"})


@both
@pytest.mark.parametrize("live", [True, False], ids=["live", "before auth"])
async def test_a_reset_connection(wire: str, live: bool) -> None:
    sessions = SessionLog()
    async with witnessed(sessions=sessions) as world:
        client = await (world.login(wire, key="k") if live else world.connect(wire))
        client.reset()
        await until(lambda: world.server.stats().closes)
        assert world.server.stats().closes == {4007: 1}
        assert sessions.log.entries[2:] == ([("connected", "k"), ("disconnected", "k", 4007)] if live else [])


@both
async def test_a_reset_connection_is_pushed_to(wire: str) -> None:
    async with witnessed() as world:
        client = await world.login(wire, room="live://1")
        other = await world.login(wire, room="live://1")
        client.reset()
        # Nothing has run in between: the push itself finds out.
        await world.server.push_room("live://1", 1000, b"x")
        assert await other.frame() == frame(1000, b"x")
        assert await other.beat() == 1
        other.close()


@both
async def test_half_open(wire: str) -> None:
    """The client has said that it sends no more: what it had sent is answered, then that is the end."""
    async with witnessed() as world:
        client = await world.login(wire)
        await client.send(frame(1000, seq=1), frame(1000, seq=2))
        client.sock.shutdown(socket.SHUT_WR)
        assert await client.read() == frame(1000, seq=1)
        assert await client.read() == frame(1000, seq=2)
        await client.ended()


@both
async def test_gone_in_the_middle_of_a_frame(wire: str) -> None:
    async with witnessed() as world:
        client = await world.login(wire)
        await client.send_raw(client.as_sent(frame(1000, b"body"))[:-1])
        client.close()
        await until(lambda: world.server.stats().closes == {4007: 1})


async def test_many_connections_that_say_nothing() -> None:
    async with witnessed() as world:
        socks = [await world.dial(door) for door in ("tcp", "ws", "http", "tcp") * 50]
        for sock in socks:
            sock.close()


@both
async def test_who_stays_after_being_told_is_closed(wire: str) -> None:
    clock = ManualClock()
    async with witnessed(clock=clock, options=Options(farewell_timeout=2.0)) as world:
        client = await world.login(wire)
        await client.send(header(0))
        assert (await client.frame())[8:12] == b"\0\0\0\x06"
        await client.send_raw(b"more" * 1000)  # thrown away
        assert world.server.stats().connections == 3
        clock.advance(2.5)
        await until(lambda: world.server.stats().connections == 2)
