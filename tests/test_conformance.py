"""A WebSocket client that is not of this library, over real sockets, and the cases of RFC 6455.

The client is the library ``websockets``; conformance.py has the cases. What is not strict is listed in
docs/protocol.md.
"""

from __future__ import annotations

import json
import re

import anyio
import pytest
from websockets.client import ClientProtocol
from websockets.frames import Close, Frame
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from goim_core import MessageHook, Options, Session
from goim_core.protocol import Frame as GoimFrame
from tests.conformance import BINARY, CASES, CLOSE, HELLO, OPEN, PING, PONG, Case, Seen, raw
from tests.e2e.clients import Client, World, frame, serve, split

pytestmark = pytest.mark.anyio

URI = parse_uri("ws://127.0.0.1:3102/sub")
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="


class Echo(MessageHook):
    def receive(self, session: Session, frame: GoimFrame) -> bytes:
        return frame.body


class Peer:
    """The other implementation's end of a connection."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.protocol = ClientProtocol(URI)

    async def open(self) -> None:
        """The handshake, and goim's authentication."""
        self.protocol.send_request(self.protocol.connect())
        await self.client.send_raw(b"".join(self.protocol.data_to_send()))
        [response] = await self.events()
        assert isinstance(response, Response)
        assert self.protocol.state is State.OPEN, self.protocol.handshake_exc
        assert not self.protocol.extensions
        assert self.protocol.subprotocol is None
        self.protocol.send_binary(frame(7, b'{"mid":1}', seq=1))
        await self.client.send_raw(b"".join(self.protocol.data_to_send()))
        [reply] = await self.events()
        assert isinstance(reply, Frame)
        assert (reply.opcode, reply.data) == (BINARY, frame(8, seq=1))

    async def events(self) -> list[object]:
        """What comes next; nothing at the end of the stream."""
        while True:
            data = await self.client.receive_raw()
            if data:
                self.protocol.receive_data(data)
            else:
                self.protocol.receive_eof()
            events = self.protocol.events_received()
            assert self.protocol.parser_exc is None
            if events or not data:
                return list(events)

    async def answers(self, last: bytes) -> list[Seen]:
        """Everything that the server says, up to the pong with ``last`` or the end of the stream."""
        seen: list[Seen] = []
        said: list[Frame] = []
        while not said or (said[-1].opcode, said[-1].data) != (PONG, last):
            events = await self.events()
            said += [event for event in events if isinstance(event, Frame)]
            if not events:
                break
        else:
            said.pop()
            seen = [OPEN]
        return [*self.seen(said), *seen]

    def seen(self, frames: list[Frame]) -> list[Seen]:
        found: list[Seen] = []
        for each in frames:
            assert each.fin
            data = bytes(each.data)
            if each.opcode is CLOSE:
                close = Close.parse(data)
                code = close.code if data else None
                told = found[-1][1][16:] if found and found[-1][1][8:12] == b"\0\0\0\6" else b""
                if told:  # the reason comes twice: as goim's operation 6, and in the close frame
                    assert json.loads(told) == {"code": code, "message": close.reason}
                    found.pop()
                found.append(("fails" if told else "closes", code))
            else:
                found.append(("pong" if each.opcode is PONG else "message", data))
        return found


def together(seen: list[Seen]) -> list[Seen]:
    """A message's frames are answered one by one: those that follow each other count as one message."""
    found: list[Seen] = []
    for what, value in seen:
        if what == "message" and found and found[-1][0] == what:
            found[-1] = (what, found[-1][1] + value)
        else:
            found.append((what, value))
    return found


@pytest.mark.parametrize(
    "case", [pytest.param(each, id=f"{each.id} (RFC 6455 section {each.section})") for each in CASES]
)
async def test_case(case: Case) -> None:
    async with serve(messages=Echo(), options=Options(max_body=(1 << 16) - 16)) as world:
        peer = Peer(await plain(world))
        await peer.open()
        assert together(await exchange(peer, case)) == together(case.seen)


async def exchange(peer: Peer, case: Case) -> list[Seen]:
    """Send it, then a ping; read meanwhile."""
    seen: list[Seen] = []

    async def send() -> None:
        try:
            for piece in [*case.sent, raw(PING, b"the end")]:
                await peer.client.send_raw(piece)
        except (BrokenPipeError, ConnectionResetError):
            assert case.seen[-1] != OPEN

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send)
        seen += await peer.answers(b"the end")
    return seen


async def plain(world: World) -> Client:
    return Client(await world.dial("ws"))


# Section 4: the opening handshake.

FIELDS = {
    "Host": b"127.0.0.1",
    "Upgrade": b"websocket",
    "Connection": b"Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": b"13",
}


def request(line: bytes = b"GET /sub HTTP/1.1", more: bytes = b"", **changed: bytes | None) -> bytes:
    fields: dict[str, bytes | None] = {
        **FIELDS,
        **{name.replace("_", "-"): value for name, value in changed.items()},
    }
    said = b"".join(
        b"%b: %b\r\n" % (name.encode(), value) for name, value in fields.items() if value is not None
    )
    return line + b"\r\n" + said + more + b"\r\n"


GOOD = {
    "4.1 as it is": request(),
    "4.1 a query": request(b"GET /sub?token=1 HTTP/1.1"),
    "4.2.1 Upgrade in another case": request(Upgrade=b"WebSocket"),
    "4.2.1 Connection with other tokens": request(Connection=b"keep-alive, upgrade"),
    "4.1 names in another case": request().replace(b"Sec-WebSocket-Key", b"sec-websocket-KEY"),
    "4.1 Origin of a browser": request(Origin=b"http://127.0.0.1"),
    "4.2.2 a subprotocol is not chosen": request(Sec_WebSocket_Protocol=b"chat, superchat"),
    "9.1 an extension is not agreed to": request(Sec_WebSocket_Extensions=b"permessage-deflate; x=1, other"),
    "4.1 unknown fields": request(X_Other=b"1"),
}


@pytest.mark.parametrize("name", GOOD)
async def test_a_handshake_is_agreed_to(name: str) -> None:
    async with serve() as world:
        client = await plain(world)
        # What follows the request may come with it.
        await client.send_raw(GOOD[name] + raw(PING, b"early") + raw(CLOSE))
        said = await client.rest()
        head, _, rest = said.partition(b"\r\n\r\n")
        line, *fields = head.split(b"\r\n")
        assert line.startswith(b"HTTP/1.1 101 ")
        assert sorted(field.lower() for field in fields) == [
            b"connection: upgrade",
            # Section 1.3 has this key and its answer.
            b"sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=",
            b"upgrade: websocket",
        ]
        assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
        assert rest == b"\x8a\x05early\x88\x00"


BAD = {
    "4.2.1 another method": (request(b"POST /sub HTTP/1.1"), 405),
    "4.2.1 HTTP/1.0": (request(b"GET /sub HTTP/1.0"), 400),
    "4.2.1 HTTP/2.0": (request(b"GET /sub HTTP/2.0"), 400),
    "4.2.2 another path": (request(b"GET /other HTTP/1.1"), 404),
    "4.2.1 no Host": (request(Host=None), 400),
    "4.2.1 two Hosts": (request(more=b"Host: other\r\n"), 400),
    "4.2.1 no Upgrade": (request(Upgrade=None), 426),
    "4.2.1 another Upgrade": (request(Upgrade=b"h2c"), 400),
    "4.2.1 no Connection": (request(Connection=None), 400),
    "4.2.1 another Connection": (request(Connection=b"close"), 400),
    "4.2.1 a blank within Connection": (request(Connection=b"Up grade"), 400),
    "4.2.1 no key": (request(Sec_WebSocket_Key=None), 400),
    "4.2.1 a key of 15 bytes": (request(Sec_WebSocket_Key=b"dGhlIHNhbXBsZSBub25j"), 400),
    "4.2.1 a key of 17 bytes": (request(Sec_WebSocket_Key=b"dGhlIHNhbXBsZSBub25jZSE="), 400),
    "4.2.1 a key that is no base64": (request(Sec_WebSocket_Key=b"!Ghl*HNhbXBsZSBub25jZQ=="), 400),
    "11.3.1 two keys": (request(more=b"Sec-WebSocket-Key: " + KEY + b"\r\n"), 400),
    "4.2.1 no version": (request(Sec_WebSocket_Version=None), 400),
    "4.4 version 8": (request(Sec_WebSocket_Version=b"8"), 426),
    "4.4 version 14": (request(Sec_WebSocket_Version=b"14"), 426),
    "4.1 a body": (request(Content_Length=b"5"), 400),
    "4.1 a length of 5000 digits": (request(Content_Length=b"1" * 5000), 400),
    "4.1 chunks": (request(Transfer_Encoding=b"chunked"), 400),
    "4.1 line ends of another kind": (request().replace(b"\r\n", b"\n", 2), 400),
    "4.1 a name with a blank": (request(more=b"X y: 1\r\n"), 400),
    "4.1 no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "10.4 a head without an end": (b"GET /sub HTTP/1.1\r\nX: " + b"*" * 9000, 431),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_handshake_is_refused(name: str) -> None:
    sent, status = BAD[name]
    async with serve() as world:
        client = await plain(world)
        await client.send_raw(sent)
        said = await client.rest()
        head = said.partition(b"\r\n\r\n")[0].decode("ascii")
        assert re.match(rf"HTTP/1\.1 {status} ", head), head
        if status == 426:
            # Section 4.4, and RFC 9110 section 15.5.22.
            assert "\r\nSec-WebSocket-Version: 13" in head
            assert "\r\nUpgrade: websocket" in head


async def test_frames_of_one_message_are_answered_one_by_one() -> None:
    async with serve(messages=Echo()) as world:
        peer = Peer(await plain(world))
        await peer.open()
        case = Case("", "", [raw(BINARY, HELLO * 3)], [])
        (_, first), *others = await exchange(peer, case)
        assert split(first) == [HELLO]
        assert others == [("message", HELLO), ("message", HELLO), OPEN]
