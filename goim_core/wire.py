"""Bytes to frames and back, for the two kinds of wire. Server side, no I/O.

A :class:`Wire` holds what one connection has sent and not yet finished sending. Most connections are
idle, so an idle wire keeps no parser: the usual WebSocket frame (whole, binary, masked) is read here,
and wsproto is borrowed for the handshake and for whatever is not usual, then dropped. wsproto alone
says what RFC 6455 allows; what is read here is a subset of it.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from types import MappingProxyType
from typing import ClassVar, Final, cast

from attrs import frozen
from wsproto import ConnectionType, WSConnection
from wsproto.connection import Connection, ConnectionState
from wsproto.events import CloseConnection, Message, Ping, RejectConnection, Request
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import RemoteProtocolError, generate_accept_token

from goim_core.errors import CloseCode, Disconnect, ProtocolError
from goim_core.protocol import HEADER_SIZE, MAX_BODY, Decoder, Frame, Op, encode, frame_at

__all__ = ["TCP", "WEBSOCKET", "Answer", "Packet", "TCPWire", "WebSocketWire", "Wire", "websocket_binary"]

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

    ``forms`` are the bytes by kind of wire, ``count`` is how many frames they carry.
    """

    __slots__ = ("count", "forms")

    forms: tuple[bytes, bytes]
    count: int

    def __init__(self, frames: Sequence[bytes]) -> None:
        if not frames:
            raise ValueError("frames: expected at least one")
        bare = frames[0] if len(frames) == 1 else b"".join(frames)
        message = bare if len(frames) == 1 else encode(Op.RAW, bare)
        self.forms = (bare, websocket_binary(message))
        self.count = len(frames)


@frozen
class Answer:
    """What the wire itself has to say: a handshake response, a pong, a close reply.

    Write ``data``; then, unless ``close`` is None, end the connection for that reason.
    """

    data: bytes
    close: Disconnect | None = None


_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


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

    def forget_handshake(self) -> None:
        """Drop ``path`` and ``headers``, which nobody reads after authentication."""


class TCPWire(Decoder, Wire):
    """Frames one after the other, nothing around them. ``max_body`` in bytes."""

    __slots__ = ()

    form = TCP
    path = ""
    headers = _NO_HEADERS

    next_event = Decoder.next_frame

    def encode(self, frame_bytes: bytes) -> bytes:
        """The frame itself."""
        return frame_bytes

    def farewell(self, why: Disconnect) -> bytes:
        """An op-6 frame whose body is JSON, ``{"code":1001,"message":"..."}``."""
        return _disconnect_frame(why)


def _disconnect_frame(why: Disconnect) -> bytes:
    said = {"code": why.code, "message": _encodable(why.reason)}
    body = json.dumps(said, separators=(",", ":"), ensure_ascii=False)
    return encode(Op.DISCONNECT_REPLY, body.encode())


def _encodable(text: str) -> str:
    # A reason may hold what UTF-8 cannot: half a surrogate pair, out of JSON.
    return text.encode(errors="replace").decode()


class _Borrowed:
    """wsproto's parser, while one frame or one fragmented message needs it."""

    __slots__ = ("connection", "header_fed", "message", "within_message")

    def __init__(self) -> None:
        self.connection = Connection(ConnectionType.SERVER)
        self.header_fed = False  # of the frame at the start of the wire's buffer
        self.within_message = False
        self.message = bytearray()  # the fragments so far


_HANDSHAKE, _OPEN, _FAILED, _ENDED = range(4)


class WebSocketWire(Wire):
    """Frames inside WebSocket messages, after the opening handshake (RFC 6455).

    ``max_body``, ``max_message`` (all fragments together) and ``max_header`` (request line and
    headers of the handshake) in bytes; ``path`` is the only one answered, a query string may follow.
    No subprotocol and no extension is ever agreed on. A handshake that fails is an :class:`Answer`
    with an HTTP error; only what comes after it raises.

    A message, binary or text, holds one or more complete frames and nothing else. An empty message,
    a frame that is longer than its message and bytes left over are protocol errors (goim does not
    look, and answers such a frame with other clients' bytes).
    """

    __slots__ = (
        "_borrowed",
        "_buffer",
        "_failure",
        "_message",
        "_message_at",
        "_served",
        "_stage",
        "_start",
        "headers",
        "max_body",
        "max_header",
        "max_message",
        "path",
    )

    form = WEBSOCKET

    def __init__(
        self, max_body: int = MAX_BODY, path: str = "/sub", max_message: int = 65536, max_header: int = 8192
    ) -> None:
        self.max_body = max_body
        self.max_message = max_message
        self.max_header = max_header
        self._served = path
        self.path = ""
        self.headers = _NO_HEADERS
        self._stage = _HANDSHAKE
        self._buffer: bytes | bytearray = b""
        self._start = 0  # of what is not consumed of the buffer
        self._message = b""  # a complete message, of which frames are still to be taken
        self._message_at = 0
        self._borrowed: _Borrowed | None = None
        self._failure: tuple[str, int] | None = None

    def receive(self, data: bytes) -> None:
        """See :meth:`Wire.receive`. What comes after the end or a failure is dropped."""
        if self._stage > _OPEN:
            return
        buffer = self._buffer
        if not buffer:
            self._buffer = data
            return
        # A bytearray, so that a message that comes byte by byte is not copied for each of them.
        if isinstance(buffer, bytes):
            self._buffer = buffer = bytearray(buffer[self._start :])
        else:
            del buffer[: self._start]
        self._start = 0
        buffer += data

    def next_event(self) -> Frame | Answer | None:
        """See :meth:`Wire.next_event`."""
        while not self._message:
            if self._stage != _OPEN:
                return self._not_open()
            buffer, start = self._buffer, self._start
            available = len(buffer) - start
            if available < 2:
                return None
            # RFC 6455 section 5.2: two bytes, then 0, 2 or 8 of length, then 0 or 4 of masking key.
            second = buffer[start + 1]
            length = second & 0x7F
            header = 6 if second & 0x80 else 2
            if length >= 126:
                wide = 2 if length == 126 else 8
                length = int.from_bytes(buffer[start + 2 : start + 2 + wide])
                header += wide
            if available < header:
                return None
            end = start + header + length
            if self._borrowed or not _usual(buffer[start], second, length):
                answer = self._unusual(start, header, end)
                if answer or end > len(buffer):
                    return answer
            elif length > self.max_message:
                raise self._too_big()
            elif end > len(buffer):
                return None
            else:
                self._consume(end)
                self._message = _unmasked(buffer, end - length, length)
        return self._next_of_message()

    def _consume(self, end: int) -> None:
        if end == len(self._buffer):
            self._buffer = b""
            self._start = 0
        else:
            self._start = end

    def _next_of_message(self) -> Frame:
        message, at = self._message, self._message_at
        try:
            frame = frame_at(message, at, self.max_body)
        except ProtocolError as error:
            raise self._fail(error.reason, error.code) from None
        if frame is None:
            raise self._fail(f"message: its last {len(message) - at} bytes are no complete frame")
        at += HEADER_SIZE + len(frame.body)
        if at == len(message):
            self._message = b""
            self._message_at = 0
        else:
            self._message_at = at
        return frame

    def _unusual(self, start: int, header: int, end: int) -> Answer | None:
        """Let wsproto take a frame that is control, fragment, text, or illegal.

        Consumes it if all of it is there; else nothing, and there is no answer.
        """
        buffer = self._buffer
        borrowed = self._borrowed
        if borrowed is None:
            borrowed = self._borrowed = _Borrowed()
        control = buffer[start] & 0x08
        if not control and len(borrowed.message) + end - start - header > self.max_message:
            raise self._too_big()
        if end > len(buffer):
            if not borrowed.header_fed:
                # An illegal header is refused before its payload is waited for.
                self._lend(borrowed, buffer[start : start + header])
                borrowed.header_fed = True
            return None
        self._consume(end)
        if borrowed.header_fed:
            start += header
            borrowed.header_fed = False
        answer = self._lend(borrowed, buffer[start:end])
        if not borrowed.within_message:
            self._borrowed = None
        return answer

    def _lend(self, borrowed: _Borrowed, data: bytes | bytearray) -> Answer | None:
        """Feed wsproto, and act on what it makes of it."""
        connection = borrowed.connection
        connection.receive_data(bytes(data))
        for event in connection.events():
            if isinstance(event, Ping):
                return Answer(connection.send(event.response()))
            if isinstance(event, CloseConnection):
                return self._close(connection, event)
            if isinstance(event, Message):
                borrowed.message += event.data.encode() if isinstance(event.data, str) else event.data
                borrowed.within_message = not event.message_finished
                if event.message_finished:
                    self._message = bytes(borrowed.message)
                    if not self._message:
                        raise self._fail("message: empty")
        return None

    def _close(self, connection: Connection, event: CloseConnection) -> Answer:
        if connection.state is not ConnectionState.REMOTE_CLOSING:
            # wsproto's way to say that the frame was illegal.
            raise self._fail(f"WebSocket: {event.reason}", event.code)
        # Section 5.5.1: echo the code. 1005 stands for a close without one, answered in kind.
        reply = connection.send(CloseConnection(code=event.code))
        code = CloseCode.NORMAL if event.code == CloseReason.NO_STATUS_RCVD else event.code
        self._end(_ENDED)
        return Answer(reply, Disconnect(event.reason or "closed by the client", code))

    def _not_open(self) -> Answer | None:
        if self._failure is not None:
            raise ProtocolError(*self._failure)
        return self._handshake() if self._stage == _HANDSHAKE else None

    def _handshake(self) -> Answer | None:
        try:
            size = _head_size(self._buffer, self.max_header)
            if not size:
                return None
            response, self.path, self.headers = _upgrade(bytes(self._buffer[:size]), self._served)
        except _HandshakeError as error:
            self._end(_ENDED)
            code = CloseCode.TOO_BIG if error.status == _HEAD_TOO_BIG else CloseCode.PROTOCOL_ERROR
            return Answer(error.response(), Disconnect(f"WebSocket handshake: {error}", code))
        self._stage = _OPEN
        self._consume(size)
        return Answer(response)

    def _too_big(self) -> ProtocolError:
        return self._fail(f"message: expected at most {self.max_message} bytes", CloseCode.TOO_BIG)

    def _fail(self, reason: str, code: int = CloseCode.PROTOCOL_ERROR) -> ProtocolError:
        # The error itself is not kept: with its traceback it would be a reference cycle.
        self._failure = (reason, code)
        self._end(_FAILED)
        return ProtocolError(reason, code)

    def _end(self, stage: int) -> None:
        self._stage = stage
        self._buffer = self._message = b""
        self._start = self._message_at = 0
        self._borrowed = None

    def encode(self, frame_bytes: bytes) -> bytes:
        """The frame in a binary message of its own."""
        return websocket_binary(frame_bytes)

    def farewell(self, why: Disconnect) -> bytes:
        """The op-6 frame of :meth:`TCPWire.farewell`, then a close frame with the code and the reason.

        The reason is cut to the 123 bytes that fit (RFC 6455 section 5.5). Before the handshake is
        done an HTTP response says it: 408 for a handshake timeout, 503 on going away, else 400.
        Nothing once a close frame or an error response has been made.
        """
        stage = self._stage
        self._end(_ENDED)
        if stage == _ENDED:
            return b""
        if stage == _HANDSHAKE:
            status = _FAREWELL_STATUS.get(why.code, HTTPStatus.BAD_REQUEST)
            return _HandshakeError(status, why.reason).response()
        close = CloseConnection(code=why.code, reason=_encodable(why.reason))
        return websocket_binary(_disconnect_frame(why)) + Connection(ConnectionType.SERVER).send(close)

    def forget_handshake(self) -> None:
        """See :meth:`Wire.forget_handshake`."""
        self.path = ""
        self.headers = _NO_HEADERS


def _usual(first: int, second: int, length: int) -> bool:
    """Whether a frame is final, binary, masked, not empty, and its length 7 or 16 bits and minimal."""
    return first == 0x82 and (0x80 < second < 0xFE or (second == 0xFE and length > 125))


def _unmasked(buffer: bytes | bytearray, start: int, length: int) -> bytes:
    # RFC 6455 section 5.3. As integers: for up to some hundred bytes the fastest that Python has.
    key = buffer[start - 4 : start] * (-(-length // 4))
    masked = int.from_bytes(buffer[start : start + length])
    return (masked ^ int.from_bytes(key[:length])).to_bytes(length)


_HEAD_TOO_BIG = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
_FAREWELL_STATUS: dict[int, HTTPStatus] = {
    CloseCode.HANDSHAKE_TIMEOUT: HTTPStatus.REQUEST_TIMEOUT,
    CloseCode.GOING_AWAY: HTTPStatus.SERVICE_UNAVAILABLE,
}


class _HandshakeError(Exception):
    """The handshake is refused with an HTTP response; its text is the body."""

    def __init__(self, status: HTTPStatus, reason: str, *headers: tuple[str, str]) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = headers

    def response(self) -> bytes:
        body = f"{self}\n".encode(errors="replace")
        fields = (
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
            *self.headers,
        )
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
        return f"HTTP/1.1 {self.status.value} {self.status.phrase}\r\n{lines}\r\n".encode() + body


# What a request can look like before its first line is complete, or with it.
_REQUEST_BEGUN = re.compile(rb"\Z|[A-Z]{1,16}(?:\Z| [ -~]*(?:\Z|\r\Z|\r\n))")
_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) ([!-~]+) HTTP/1\.1\r\n")
_KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")


def _head_size(buffer: bytes | bytearray, limit: int) -> int:
    """The length of a request's head with its blank line; 0 while that is not there."""
    size = buffer.find(b"\r\n\r\n") + 4
    if size < 4:
        # What is no HTTP, like a goim frame or TLS, may never have a blank line to wait for.
        if not _REQUEST_BEGUN.match(buffer):
            raise _HandshakeError(HTTPStatus.BAD_REQUEST, "not an HTTP request")
        size = 0
    if (size or len(buffer)) > limit:
        raise _HandshakeError(_HEAD_TOO_BIG, f"request head: expected at most {limit} bytes")
    return size


def _upgrade(head: bytes, served: str) -> tuple[bytes, str, dict[str, str]]:
    """The response to the opening handshake in ``head``, its target, and its headers."""
    line = _REQUEST_LINE.match(head)
    if line is None or b"\n" in head.replace(b"\r\n", b""):
        raise _HandshakeError(HTTPStatus.BAD_REQUEST, "not an HTTP/1.1 request")
    if line[1] != b"GET":
        raise _HandshakeError(HTTPStatus.METHOD_NOT_ALLOWED, "expected GET", ("Allow", "GET"))
    target = line[2].decode("ascii")
    if target.partition("?")[0] != served:
        raise _HandshakeError(HTTPStatus.NOT_FOUND, f"no such path; this server answers {served}")
    request = _read_request(head)
    headers = _headers(request)
    keys = [value for name, value in request.extra_headers if name == b"sec-websocket-key"]
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]):
        raise _HandshakeError(HTTPStatus.BAD_REQUEST, "Sec-WebSocket-Key: expected 16 bytes in base64")
    if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        raise _HandshakeError(HTTPStatus.BAD_REQUEST, "a handshake has no body")
    response = _SWITCHING + generate_accept_token(keys[0]) + b"\r\n\r\n"
    return response, target, headers


# Always the same but for the token, so h11 need not make it (20 of 70 us for a handshake).
_SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
)


def _read_request(head: bytes) -> Request:
    connection = WSConnection(ConnectionType.SERVER)
    try:
        connection.receive_data(head)
        (request,) = connection.events()
    except RemoteProtocolError as error:
        raise _refusal(head, error) from None
    except UnicodeError:
        raise _HandshakeError(HTTPStatus.BAD_REQUEST, "a header is not readable") from None
    return cast("Request", request)


def _refusal(head: bytes, error: RemoteProtocolError) -> _HandshakeError:
    hint = error.event_hint
    status = hint.status_code if isinstance(hint, RejectConnection) else HTTPStatus.BAD_REQUEST
    if b"\r\nupgrade:" not in head.lower() or status == HTTPStatus.UPGRADE_REQUIRED:
        # RFC 9110 section 15.5.22 and RFC 6455 section 4.4.
        headers = (("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"))
        return _HandshakeError(HTTPStatus.UPGRADE_REQUIRED, str(error), *headers)
    return _HandshakeError(HTTPStatus.BAD_REQUEST, str(error))


def _headers(request: Request) -> dict[str, str]:
    # wsproto keeps these two apart from the others.
    headers = {"host": request.host}
    if request.subprotocols:
        headers["sec-websocket-protocol"] = ", ".join(request.subprotocols)
    for name, value in request.extra_headers:
        headers.setdefault(name.decode("ascii"), value.decode("latin-1"))
    return headers
