"""Target: what a server may send to the library's own client, cut anywhere."""

from __future__ import annotations

from collections.abc import Iterator

from wsproto.connection import Connection, ConnectionType

from fuzz.cuts import joined, pieces
from goim_core.client.wire import ClientWire, PlainWire, WebSocketWire
from goim_core.errors import Disconnect, ProtocolError
from goim_core.protocol import Op, encode
from goim_core.wire import disconnect_frame, websocket_binary

__all__ = ["check", "seeds"]

FRAMES = 100_000


def check(data: bytes) -> None:
    """It is frames, or the server's reason, or a ProtocolError; in pieces as in one."""
    kind, parts = (data[0] if data else 0), pieces(data[1:])
    stream = b"".join(parts)
    assert heard(_new(kind), parts) == heard(_new(kind), [stream] if stream else [])


def _new(kind: int) -> ClientWire:
    if kind & 1 == 0:
        return PlainWire()
    wire = WebSocketWire("127.0.0.1", "/sub")
    if kind & 2 == 0:  # past the handshake, whose answer depends on a key made by chance
        wire._ws.connection = Connection(ConnectionType.CLIENT)
        wire.opened = True
    return wire


def heard(wire: ClientWire, parts: list[bytes]) -> list[object]:
    """What a client makes of it, to the first error."""
    found: list[object] = []
    for part in parts:
        wire.receive(part)
        try:
            for _ in range(FRAMES):
                frame = wire.next_frame()
                if frame is None:
                    break
                found.append(frame)
            else:
                raise AssertionError("frames without an end")
        except (Disconnect, ProtocolError) as error:
            wire.answers()
            wire.farewell()
            return [*found, type(error).__name__, error.code]
        wire.answers()
    return found


def seeds() -> Iterator[bytes]:
    """What servers say."""
    frames = (
        encode(8, b"", 1),
        encode(Op.RAW, encode(1000, b"a") + encode(1000, b"b")),
        encode(3, bytes(4), 2),
    )
    last = disconnect_frame(Disconnect("bye", 1001))
    yield b"\x00" + joined(b"".join(frames) + last, (3, 20))
    messages = b"".join(map(websocket_binary, frames))
    yield b"\x01" + joined(messages + b"\x89\x02hi" + websocket_binary(last) + b"\x88\x02\x03\xe8", (3, 20))
    yield b"\x03" + joined(b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nhello", (30,))
    yield b"\x03" + joined(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    )
