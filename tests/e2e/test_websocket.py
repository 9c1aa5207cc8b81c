"""What only a WebSocket can do to a connection, and what goim gets wrong there (its faults 5 and 11)."""

from __future__ import annotations

import pytest
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from goim_core import Options
from tests.e2e.clients import WebSocket, World, frame, int32, serve

pytestmark = pytest.mark.anyio


async def member(world: World, room: str = "") -> WebSocket:
    return await (await world.websocket()).login(room=room)


def opened(payload: bytes, *, masked: bool = True, first: int = 0x82) -> bytes:
    """A client's WebSocket frame, made by hand."""
    return bytes([first, len(payload) | (0x80 if masked else 0)]) + bytes(4 if masked else 0) + payload


async def test_ping_is_answered_at_once() -> None:
    async with serve() as world:
        client = await member(world)
        await client.send_raw(client.ws.send(Ping(payload=b"here?")))
        event = await client.event()
        assert isinstance(event, Pong)
        assert event.payload == b"here?"


async def test_ping_is_answered_before_auth() -> None:
    async with serve() as world:
        client = await world.websocket()
        await client.send_raw(client.ws.send(Ping(payload=b"")))
        assert isinstance(await client.event(), Pong)
        await client.login()


async def test_an_unasked_pong_is_ignored() -> None:
    async with serve() as world:
        client = await member(world)
        await client.send_raw(client.ws.send(Pong(payload=b"x")))
        assert await client.beat() == 0


@pytest.mark.parametrize(("code", "reason"), [(1000, None), (1001, "moving on"), (4321, "mine")])
async def test_close_is_answered(code: int, reason: str | None) -> None:
    async with serve() as world:
        client = await member(world)
        await client.send_raw(client.ws.send(CloseConnection(code=code, reason=reason)))
        event = await client.event()
        assert isinstance(event, CloseConnection)
        assert event.code == code
        await client.ended()


async def test_close_without_a_code_is_answered_in_kind() -> None:
    async with serve() as world:
        client = await member(world)
        await client.send_raw(opened(b"", first=0x88))
        assert await client.rest() == b"\x88\x00"


async def test_a_message_in_fragments_with_pings_between() -> None:
    async with serve() as world:
        client = await member(world, "live://1")
        data = frame(2, seq=3)
        for at in range(len(data)):
            last = at == len(data) - 1
            part = BytesMessage(data=data[at : at + 1], message_finished=last)
            await client.send_raw(client.ws.send(part))
            await client.send_raw(client.ws.send(Ping(payload=bytes([at]))))
            if last:
                assert await client.read() == frame(3, int32(1), seq=3)
            event = await client.event()
            assert isinstance(event, Pong)
            assert event.payload == bytes([at])


async def test_several_frames_in_one_message() -> None:
    async with serve() as world:
        client = await member(world)
        await client.send(frame(2, seq=1) + frame(12, b"live://1", seq=2) + frame(2, seq=3))
        assert await client.read() == frame(3, int32(0), seq=1)
        assert await client.read() == frame(13, b"live://1", seq=2)
        assert await client.read() == frame(3, int32(1), seq=3)


async def test_auth_and_more_in_one_message() -> None:
    async with serve() as world:
        client = await world.websocket()
        await client.send(frame(7, b'{"mid":1}', seq=1) + frame(2, seq=2))
        assert await client.read() == frame(8, seq=1)
        assert await client.read() == frame(3, int32(0), seq=2)


async def test_text_with_the_same_bytes() -> None:
    async with serve() as world:
        client = await world.websocket()
        for data in (frame(7, b'{"mid":1}', seq=1), frame(2, seq=2)):
            await client.send_raw(client.ws.send(TextMessage(data=data.decode())))
        # The answers are binary all the same.
        assert await client.read() == frame(8, seq=1)
        assert await client.read() == frame(3, int32(0), seq=2)


async def test_text_that_is_no_utf8() -> None:
    async with serve() as world:
        client = await member(world)
        await client.send_raw(opened(b"\xff" * 16, first=0x81))
        assert (await client.told()).code == 1007


async def test_a_length_beyond_the_message_gets_nobodys_bytes() -> None:
    """goim's fault 5: it answers with what other clients left in its buffer."""
    async with serve() as world:
        other = await member(world)
        await other.send(frame(1000, b"secret" * 500))
        assert await other.read() == frame(1000)
        client = await member(world)
        await client.send(int32(3016) + frame(12, b"live://1")[4:])
        told = await client.told()
        assert told == (1002, "message: its last 24 bytes are no complete frame")
        assert await other.beat() == 0


@pytest.mark.parametrize("cut", [1, 15, 16, 19])
async def test_a_frame_may_not_go_on_in_the_next_message(cut: int) -> None:
    async with serve() as world:
        client = await member(world)
        await client.send(frame(1000, b"body")[:cut], frame(1000, b"body")[cut:])
        assert (await client.told()).code == 1002


async def test_bytes_left_over() -> None:
    async with serve() as world:
        client = await member(world)
        await client.send(frame(2, seq=1) + b"\0\0\0")
        assert await client.read() == frame(3, int32(0), seq=1)
        assert (await client.told()).code == 1002


async def test_an_empty_message() -> None:
    async with serve() as world:
        client = await member(world)
        await client.send(b"")
        assert await client.told() == (1002, "message: empty")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (opened(frame(2), masked=False), 1002),
        (opened(frame(2), first=0xC2), 1002),
        (opened(frame(2), first=0x83), 1002),
        (opened(frame(2), first=0x80), 1002),
        (b"\x82\xff" + (1 << 62).to_bytes(8, "big") + bytes(4), 1009),
        (b"\x82\xff" + b"\xff" * 12, 1009),
        (opened(b"", first=0x08), 1002),
        (opened(b"\x03\xed", first=0x88), 1002),
    ],
    ids=[
        "unmasked",
        "reserved bit",
        "unknown opcode",
        "lonely continuation",
        "huge",
        "negative",
        "close in fragments",
        "1005",
    ],
)
async def test_illegal_frames(data: bytes, code: int) -> None:
    async with serve() as world:
        client = await member(world)
        await client.send_raw(data)
        assert (await client.told()).code == code


async def test_path_is_an_option() -> None:
    async with serve(options=Options(ws_path="/chat")) as world:
        client = WebSocket(await world.dial("ws"))
        await (await client.handshake("/chat?from=here")).login()
        refused = WebSocket(await world.dial("ws"))
        await refused.send_raw(b"GET /sub HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await refused.rest()).startswith(b"HTTP/1.1 404 Not Found\r\n")


async def test_handshake_byte_by_byte_and_frames_right_behind() -> None:
    async with serve() as world:
        other = await member(world)
        client = WebSocket(await world.dial("ws"))
        head = (
            b"GET /sub HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        for at in range(len(head) - 1):
            await client.send_raw(head[at : at + 1])
            await other.beat()
        await client.send_raw(head[-1:] + opened(frame(7, b'{"mid":1}', seq=1)))
        response = (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
        )
        assert await client.receive_exactly(len(response)) == response
        assert await client.receive_exactly(18) == client.on_wire(frame(8, seq=1))


async def test_nothing_is_answered_after_a_close() -> None:
    async with serve() as world:
        client = await member(world)
        await client.send_raw(client.ws.send(CloseConnection(code=1000)) + opened(frame(2)))
        assert await client.rest() == b"\x88\x02\x03\xe8"
