"""Bytes to frames and back: what the kinds of wire have in common, and the plain one. No I/O.

websocket.py is the other kind. A :class:`Wire` holds what one connection has sent and not yet finished
sending; a :class:`Packet` is one push in the form of each.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, Final

from attrs import frozen

from goim_core.errors import Disconnect
from goim_core.protocol import Decoder, Frame, Op, encode

__all__ = [
    "NO_HEADERS",
    "TCP",
    "WEBSOCKET",
    "Answer",
    "Packet",
    "TCPWire",
    "Wire",
    "disconnect_body",
    "disconnect_frame",
    "encodable",
    "read_disconnect",
    "websocket_binary",
]

TCP, WEBSOCKET = 0, 1
"""The kinds of wire: an index into :attr:`Packet.forms`, and :attr:`Wire.form`."""


def websocket_binary(payload: bytes) -> bytes:
    """One final, unmasked binary frame (RFC 6455 section 5.2) with the shortest length that fits."""
    size = len(payload)
    if size < 126:
        return bytes((0x82, size)) + payload
    if size < 1 << 16:
        return b"\x82\x7e" + size.to_bytes(2) + payload
    return b"\x82\x7f" + size.to_bytes(8) + payload


class Packet:
    """One push, encoded once for each kind of wire; every receiver is sent the same bytes.

    ``frames`` are encoded frames, at least one. A single frame goes bare. Several go bare one after
    the other over TCP, and inside one op-9 frame in one binary message over WebSocket (goim does so).

    ``forms`` are the bytes by kind of wire, ``sizes`` their lengths, ``count`` is how many frames they carry.
    """

    __slots__ = ("count", "forms", "sizes")

    forms: tuple[bytes, bytes]
    sizes: tuple[int, int]
    count: int

    def __init__(self, frames: Sequence[bytes]) -> None:
        if not frames:
            raise ValueError("frames: expected at least one")
        bare = frames[0] if len(frames) == 1 else b"".join(frames)
        message = bare if len(frames) == 1 else encode(Op.RAW, bare)
        wrapped = websocket_binary(message)
        self.forms = (bare, wrapped)
        self.sizes = (len(bare), len(wrapped))
        self.count = len(frames)


@frozen
class Answer:
    """What the wire itself has to say: a handshake response, a pong, a close reply.

    Write ``data``; then, unless ``close`` is None, end the connection for that reason.
    """

    data: bytes
    close: Disconnect | None = None


NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


class Wire(ABC):
    """The incoming bytes of one connection, and the form of its outgoing ones.

    ``path`` and ``headers`` are those of the WebSocket handshake, until :meth:`forget_handshake`:
    the request target with its query, and lower-case names, the first of a repeated header.
    """

    __slots__ = ()

    form: ClassVar[int]
    path: str
    headers: Mapping[str, str]

    @abstractmethod
    def lone(self, data: bytes) -> Frame | None:
        """The frame that ``data`` is, where it is one usual frame, whole, and nothing waits before it.

        None takes nothing: give ``data`` to :meth:`receive`. Nearly all that clients send comes like that,
        and to put it into a buffer and to take it out again would cost more than to read it.
        """

    @property
    @abstractmethod
    def pending(self) -> int:
        """How many bytes wait for the rest of what they begin, or for their turn."""

    @abstractmethod
    def receive(self, data: bytes) -> None:
        """Take bytes as they came from the socket, cut anywhere."""

    @abstractmethod
    def next_event(self) -> Frame | Answer | None:
        """The next frame or answer, or None until more bytes arrive.

        Raises :class:`ProtocolError` where the peer broke the protocol, and from then on always.
        """

    @abstractmethod
    def encode(self, frame_bytes: bytes) -> bytes:
        """What goes on this wire for one encoded frame."""

    @abstractmethod
    def farewell(self, why: Disconnect) -> bytes:
        """The bytes to send last; empty when the peer has been told already."""

    @abstractmethod
    def bound(self, max_body: int) -> None:
        """From now on this is the largest body of a frame, in bytes."""

    def forget_handshake(self) -> None:
        """Drop ``path`` and ``headers``, which nobody reads after authentication."""


class TCPWire(Decoder, Wire):
    """Frames one after the other, nothing around them. ``max_body`` in bytes."""

    __slots__ = ()

    form = TCP
    path = ""
    headers = NO_HEADERS

    lone = Decoder.lone_frame
    next_event = Decoder.next_frame
    pending = Decoder.pending

    def encode(self, frame_bytes: bytes) -> bytes:
        """The frame itself."""
        return frame_bytes

    def bound(self, max_body: int) -> None:
        """See :meth:`Wire.bound`."""
        self.max_body = max_body

    def farewell(self, why: Disconnect) -> bytes:
        """An op-6 frame whose body is JSON, ``{"code":1001,"message":"..."}``."""
        return disconnect_frame(why)


def disconnect_body(why: Disconnect) -> bytes:
    """The body of an op-6 frame: JSON, ``{"code":1001,"message":"..."}``."""
    said = {"code": why.code, "message": encodable(why.reason)}
    return json.dumps(said, separators=(",", ":"), ensure_ascii=False).encode()


def disconnect_frame(why: Disconnect) -> bytes:
    """The op-6 frame that tells a client why its connection is closed."""
    return encode(Op.DISCONNECT_REPLY, disconnect_body(why))


def read_disconnect(body: bytes) -> Disconnect:
    """What an op-6 body says; goim leaves it to the application, so any bytes are a reason."""
    try:
        said = json.loads(body)
        return Disconnect(str(said["message"]), int(said["code"]))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return Disconnect(body.decode(errors="replace"))


def encodable(text: str) -> str:
    """``text`` without what UTF-8 cannot say: a reason may hold half a surrogate pair, out of JSON."""
    return text.encode(errors="replace").decode()
