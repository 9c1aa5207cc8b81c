"""Target: the frames of an open WebSocket, cut anywhere, compared with wsproto alone."""

from __future__ import annotations

from collections.abc import Iterator

from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from fuzz.cuts import joined, pieces
from fuzz.oracle import Seen, observe, reference
from goim_core.errors import CloseCode
from goim_core.protocol import encode
from goim_core.websocket import WebSocketWire

__all__ = ["REQUEST", "check", "seeds"]

REQUEST = (
    b"GET /sub HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
REST = bytes(1 << 17)
"""More than can be missing of a frame."""
TOO_BIG: Seen = ("error", CloseCode.TOO_BIG)


def check(data: bytes) -> None:
    """In pieces, byte by byte and at once it says the same, and what wsproto says."""
    parts = pieces(data)
    stream = b"".join(parts)
    seen = observe(opened(), parts)
    assert seen == observe(opened(), [stream])
    assert seen == observe(
        opened(), [stream[at : at + 1] for at in range(min(len(stream), 600))] + [stream[600:]]
    )
    expected = reference(stream)
    if not agree(seen, expected):
        # wsproto may refuse a frame before all of it is there: here a header and a text are looked at whole.
        assert agree(observe(opened(), [stream + REST]), expected)


def agree(seen: list[Seen], expected: list[Seen]) -> bool:
    """Whether the wire saw what wsproto saw."""
    if seen[-1:] == [TOO_BIG]:
        # wsproto has no limit: it may go on, or find what is wrong further back.
        return seen[:-1] == expected[: len(seen) - 1]
    return seen == expected


def opened() -> WebSocketWire:
    """A wire after its handshake."""
    wire = WebSocketWire()
    wire.receive(REQUEST)
    assert wire.next_event() is not None
    return wire


def seeds() -> Iterator[bytes]:
    """Valid streams, as a wsproto client makes them, each kind of frame and each form of a length."""
    beat = encode(2, b"", 1)
    say = encode(4, "ü€😀".encode() + bytes(130), 3)
    sessions: tuple[list[Event], ...] = (
        [BytesMessage(encode(7, b'{"mid":1}', 1)), BytesMessage(beat + beat)],
        [TextMessage(beat.decode()), BytesMessage(say)],
        [BytesMessage(say[:9], message_finished=False), Ping(b"between"), BytesMessage(say[9:])],
        [TextMessage(beat[:5].decode(), message_finished=False), Pong(b""), TextMessage(beat[5:].decode())],
        [Ping(b""), CloseConnection(code=1000, reason="bye")],
        [CloseConnection(code=4999)],
    )
    for events in sessions:
        yield joined(_sent(events), (1, 1, 4, 20))
    yield joined(bytes.fromhex("82ff00000000000000ff00000000") + bytes(300), (2, 8))
    yield joined(bytes.fromhex("880000000000"))


def _sent(events: list[Event]) -> bytes:
    client = Connection(ConnectionType.CLIENT)
    return b"".join(client.send(event) for event in events)
