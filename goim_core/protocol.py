"""The goim frame: 16 bytes and a body, big-endian. Bytes only, no I/O.

::

    0       4      6      8          12         16
    | int32 | int16| int16| int32    | int32    |
    | length| 16   | ver  | op       | seq      | body ...

``length`` counts header and body. A reply echoes the request's ``ver`` and ``seq``; a push has
version 1 and sequence 0.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from goim_core.errors import CloseCode, ProtocolError

__all__ = [
    "HEADER_SIZE",
    "INT32_MAX",
    "MAX_BODY",
    "MAX_ID",
    "Decoder",
    "Frame",
    "Op",
    "encode",
    "encode_heartbeat_reply",
    "frame_at",
    "lone_frame",
    "pushable",
    "split",
]

HEADER_SIZE = 16
MAX_BODY = 4096
"""The largest body that goim takes from a client, in bytes (goim: ``MaxBodySize``)."""
MAX_ID = 256
"""The longest key, room id or platform, in characters."""
INT32_MAX = 2**31 - 1

_HEADER = struct.Struct(">ihhii")
_HEARTBEAT_REPLY = struct.Struct(">ihhiii")


class Op(IntEnum):
    """The operations of goim's protocol, and goim_core's extensions from 18 on.

    Extensions reach only a connection whose token lists them in ``accepts``.
    """

    HANDSHAKE = 0
    HANDSHAKE_REPLY = 1
    HEARTBEAT = 2
    HEARTBEAT_REPLY = 3
    SEND_MSG = 4
    SEND_MSG_REPLY = 5
    DISCONNECT_REPLY = 6
    AUTH = 7
    AUTH_REPLY = 8
    RAW = 9
    PROTO_READY = 10
    PROTO_FINISH = 11
    CHANGE_ROOM = 12
    CHANGE_ROOM_REPLY = 13
    SUB = 14
    SUB_REPLY = 15
    UNSUB = 16
    UNSUB_REPLY = 17
    ERROR = 18
    ACK = 20
    ACK_REPLY = 21
    SYNC = 22
    SYNC_REPLY = 23
    JOIN = 24
    JOIN_REPLY = 25
    LEAVE = 26
    LEAVE_REPLY = 27
    MEMBERS = 28
    MEMBERS_REPLY = 29
    WATCH = 30
    WATCH_REPLY = 31
    UNWATCH = 32
    UNWATCH_REPLY = 33
    PRESENCE = 34
    LAST_SEEN = 36
    LAST_SEEN_REPLY = 37
    REFRESH = 38
    REFRESH_REPLY = 39
    EXPIRING = 40
    MOVE = 42


EXTENSION_OPS = range(18, 64)
"""Operations that this package keeps for its own extensions."""


def pushable(op: int) -> bool:
    """Whether a push may carry ``op``: an int32 that does not steer a connection.

    4 and 5 carry opaque messages in goim; the others below 64 mean something to the client's own
    state (an op-9 push with a foreign body would break it) and are refused.
    """
    return 64 <= op <= INT32_MAX or op in (Op.SEND_MSG, Op.SEND_MSG_REPLY)


class Frame(NamedTuple):
    """One protocol frame. ``body`` is opaque bytes; the integers are signed, as on the wire.

    A tuple, because one is made of all that clients send, and that takes a third of what attrs needs for it.
    """

    op: int
    body: bytes = b""
    seq: int = 0
    ver: int = 1

    def encode(self) -> bytes:
        """The frame's bytes, header and body; see :func:`encode`."""
        return encode(self.op, self.body, self.seq, self.ver)


def encode(op: int, body: bytes = b"", seq: int = 0, ver: int = 1) -> bytes:
    """The bytes of one frame.

    Raises :class:`ValueError` that names the field where an integer does not fit the header.
    """
    try:
        return _HEADER.pack(HEADER_SIZE + len(body), HEADER_SIZE, ver, op, seq) + body
    except struct.error:
        raise _misfit(op, seq, ver) from None


def _misfit(op: int, seq: int, ver: int) -> ValueError:
    for name, value, bits in (("op", op, 31), ("seq", seq, 31), ("ver", ver, 15)):
        if not (isinstance(value, int) and -(2**bits) <= value < 2**bits):
            return ValueError(f"{name}: expected an int{bits + 1}, got {value!r}")
    return ValueError("body: longer than an int32 package length can say")


def encode_heartbeat_reply(online: int, seq: int, ver: int) -> bytes:
    """The reply to a heartbeat: the online count of the client's room as an int32 body.

    One call, because it answers every client every few minutes.
    """
    return _HEARTBEAT_REPLY.pack(20, HEADER_SIZE, ver, 3, seq, online)


def frame_at(buffer: bytes, start: int, max_body: int = MAX_BODY) -> Frame | None:
    """The frame that starts at ``start`` of ``buffer``, or None where the buffer ends before it does.

    Raises :class:`ProtocolError` for a header length other than 16, a package length below 16, or a
    body above ``max_body`` bytes (as soon as the header is there: a huge length is never waited for).
    """
    if len(buffer) - start < HEADER_SIZE:
        return None
    length, header_length, ver, op, seq = _HEADER.unpack_from(buffer, start)
    if header_length != HEADER_SIZE or length < HEADER_SIZE or length > max_body + HEADER_SIZE:
        raise _bad_header(length, header_length, max_body)
    end = start + length
    if end > len(buffer):
        return None
    return Frame(op, buffer[start + HEADER_SIZE : end], seq, ver)


def lone_frame(data: bytes, max_body: int = MAX_BODY) -> Frame | None:
    """The frame that ``data`` is, or None where it is not one whole frame and nothing else."""
    size = len(data)
    if not HEADER_SIZE <= size <= max_body + HEADER_SIZE:
        return None
    length, header_length, ver, op, seq = _HEADER.unpack_from(data)
    if length != size or header_length != HEADER_SIZE:
        return None
    return Frame(op, data[HEADER_SIZE:], seq, ver)


class Decoder:
    """Incremental decoder of a stream of frames.

    Feed it with :meth:`receive`, take frames with :meth:`next_frame` until that returns None.
    Once it has raised, it raises the same for ever: a stream that broke has no next frame.
    """

    __slots__ = ("_buffer", "_start", "max_body")

    def __init__(self, max_body: int = MAX_BODY) -> None:
        self.max_body = max_body
        self._buffer = b""
        self._start = 0

    def receive(self, data: bytes) -> None:
        """Take bytes as they came from the stream, cut anywhere."""
        self._buffer = self._buffer[self._start :] + data if self._buffer else data
        self._start = 0

    def lone_frame(self, data: bytes) -> Frame | None:
        """The frame that ``data`` is, past the buffer; None where it is not just one, or something waits."""
        return None if self._buffer else lone_frame(data, self.max_body)

    @property
    def pending(self) -> int:
        """How many bytes wait for the rest of their frame."""
        return len(self._buffer) - self._start

    def next_frame(self) -> Frame | None:
        """The next complete frame, or None until more bytes arrive.

        Raises :class:`ProtocolError` as :func:`frame_at` does.
        """
        # A malformed header stays where it is, so the next call raises again. An error kept here
        # would be a reference cycle (its traceback knows this object).
        frame = frame_at(self._buffer, self._start, self.max_body)
        if frame is None:
            return None
        end = self._start + HEADER_SIZE + len(frame.body)
        if end == len(self._buffer):
            self._buffer = b""
            self._start = 0
        else:
            self._start = end
        return frame


def _bad_header(length: int, header_length: int, max_body: int) -> ProtocolError:
    if header_length != HEADER_SIZE:
        return ProtocolError(f"header length: expected {HEADER_SIZE}, got {header_length}")
    if length < HEADER_SIZE:
        return ProtocolError(f"package length: expected at least {HEADER_SIZE}, got {length}")
    return ProtocolError(
        f"package length: expected at most {max_body + HEADER_SIZE}, got {length}", CloseCode.TOO_BIG
    )


def split(batch: bytes) -> list[Frame]:
    """The frames inside an op-9 body. Raises :class:`ProtocolError` where one is cut or malformed."""
    decoder = Decoder(max_body=INT32_MAX - HEADER_SIZE)
    decoder.receive(batch)
    frames = []
    while (frame := decoder.next_frame()) is not None:
        frames.append(frame)
    if decoder.pending:
        raise ProtocolError(f"batch: {decoder.pending} bytes left after its last complete frame")
    return frames
