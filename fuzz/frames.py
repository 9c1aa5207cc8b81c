"""Target: goim frames on a plain wire, cut anywhere."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from fuzz.cuts import joined, pieces
from goim_core.errors import CloseCode, ProtocolError
from goim_core.protocol import INT32_MAX, MAX_BODY, Frame, encode
from goim_core.wire import TCPWire

__all__ = ["check", "seeds"]


def check(data: bytes) -> None:
    """Whatever comes in whatever pieces is what the description of the frame says it is."""
    parts = pieces(data)
    stream = b"".join(parts)
    expected = by_the_book(stream)
    assert taken(parts) == expected
    assert taken([stream[at : at + 1] for at in range(min(len(stream), 600))] + [stream[600:]]) == expected


def taken(parts: list[bytes]) -> list[Frame | int]:
    """What a wire makes of it: frames, and the code of the error that ended it."""
    wire = TCPWire()
    found: list[Frame | int] = []
    for part in parts:
        lone = wire.lone(part)
        if lone is not None:
            found.append(lone)
            continue
        wire.receive(part)
        try:
            while (event := wire.next_event()) is not None:
                assert event.encode() == encode(event.op, event.body, event.seq, event.ver)
                found.append(event)
        except ProtocolError as error:
            stays(wire, error)
            return [*found, error.code]
        assert wire.pending < MAX_BODY + 16
    return found


def stays(wire: TCPWire, error: ProtocolError) -> None:
    """A stream that broke stays broken, whatever comes."""
    wire.receive(encode(2))
    try:
        wire.next_event()
    except ProtocolError as again:
        assert (again.reason, again.code) == (error.reason, error.code)
    else:
        raise AssertionError("a frame after an error")


def by_the_book(stream: bytes) -> list[Frame | int]:
    """The same, from the whole stream and a table of the header."""
    found: list[Frame | int] = []
    while len(stream) >= 16:
        length, header, ver, op, seq = struct.unpack(">ihhii", stream[:16])
        if header != 16 or length < 16:
            return [*found, int(CloseCode.PROTOCOL_ERROR)]
        if length > 16 + MAX_BODY:
            return [*found, int(CloseCode.TOO_BIG)]
        if len(stream) < length:
            break
        found.append(Frame(op, stream[16:length], seq, ver))
        stream = stream[length:]
    return found


def seeds() -> Iterator[bytes]:
    """Valid streams."""
    yield joined(encode(7, b'{"mid":1}', 1) + encode(2, b"", 2) + encode(2, b"", 3), (3, 16, 40))
    yield joined(encode(4, bytes(300), INT32_MAX, -1), (15, 1, 255, 44))
    yield joined(encode(1000, b"x" * 4096)[:40], (16,))
