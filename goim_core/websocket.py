"""Goim frames inside WebSocket messages (RFC 6455): the server's end, no I/O.

Most connections are idle, so an idle wire keeps no parser: the usual frame (whole, binary, masked) is
read here, and wsproto is borrowed for whatever is not usual, then dropped. wsproto alone says what RFC
6455 allows; what is read here is a subset of it.
"""

from __future__ import annotations

from http import HTTPStatus

from wsproto import ConnectionType
from wsproto.connection import Connection, ConnectionState
from wsproto.events import CloseConnection, Message, Ping, Pong
from wsproto.frame_protocol import CloseReason

from goim_core.errors import CloseCode, Disconnect, ProtocolError
from goim_core.handshake import HandshakeError, Terms, head_size, upgrade
from goim_core.protocol import HEADER_SIZE, Frame, frame_at, lone_frame
from goim_core.wire import NO_HEADERS, WEBSOCKET, Answer, Wire, disconnect_frame, encodable, websocket_binary

__all__ = ["WebSocketWire"]


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

    ``terms`` are its limits, shared by all connections. No subprotocol and no extension is ever agreed
    on. A handshake that fails is an :class:`Answer` with an HTTP error; only what comes after it raises.

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
        "_stage",
        "_start",
        "headers",
        "path",
        "terms",
    )

    form = WEBSOCKET

    def __init__(self, terms: Terms | None = None) -> None:
        self.terms = Terms() if terms is None else terms
        self.path = ""
        self.headers = NO_HEADERS
        self._stage = _HANDSHAKE
        self._buffer: bytes | bytearray = b""
        self._start = 0  # of what is not consumed of the buffer
        self._message = b""  # a complete message, of which frames are still to be taken
        self._message_at = 0
        self._borrowed: _Borrowed | None = None
        self._failure: tuple[str, int] | None = None

    def lone(self, data: bytes) -> Frame | None:
        """See :meth:`Wire.lone`."""
        size = len(data) - 6
        # A whole binary frame with a mask and a length of 7 bits (RFC 6455 section 5.2).
        if (
            not 0 < size < 126
            or data[0] != 0x82
            or data[1] != 0x80 + size
            or self._buffer
            or self._message
            or self._borrowed is not None
            or self._stage != _OPEN
        ):
            return None
        return lone_frame(_unmasked(data, 6, size), self.terms.max_body)

    @property
    def pending(self) -> int:
        """See :meth:`Wire.pending`."""
        fragments = 0 if self._borrowed is None else len(self._borrowed.message)
        return len(self._buffer) - self._start + len(self._message) - self._message_at + fragments

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
            elif length > self.terms.max_message:
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
            frame = frame_at(message, at, self.terms.max_body)
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
        if not control and len(borrowed.message) + end - start - header > self.terms.max_message:
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
            if isinstance(event, Pong):
                # An event of its own: a flood of them has to end its turn like a flood of anything else.
                return Answer(b"")
            if isinstance(event, Message):
                borrowed.message += event.data.encode() if isinstance(event.data, str) else event.data
                borrowed.within_message = not event.message_finished
                if borrowed.within_message:
                    return Answer(b"")  # an event of its own, as a pong
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
            size = head_size(self._buffer, self.terms.max_header)
            if not size:
                return None
            response, self.path, self.headers = upgrade(bytes(self._buffer[:size]), self.terms)
        except HandshakeError as error:
            self._end(_ENDED)
            code = (
                CloseCode.TOO_BIG
                if error.status == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
                else CloseCode.PROTOCOL_ERROR
            )
            return Answer(error.response(), Disconnect(f"WebSocket handshake: {error}", code))
        self._stage = _OPEN
        self._consume(size)
        return Answer(response)

    def _too_big(self) -> ProtocolError:
        return self._fail(f"message: expected at most {self.terms.max_message} bytes", CloseCode.TOO_BIG)

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
            return HandshakeError(status, why.reason).response()
        close = CloseConnection(code=why.code, reason=encodable(why.reason))
        return websocket_binary(disconnect_frame(why)) + Connection(ConnectionType.SERVER).send(close)

    def bound(self, max_body: int) -> None:
        """See :meth:`Wire.bound`."""
        self.terms.bound(max_body)

    def forget_handshake(self) -> None:
        """See :meth:`Wire.forget_handshake`."""
        self.path = ""
        self.headers = NO_HEADERS


def _usual(first: int, second: int, length: int) -> bool:
    """Whether a frame is final, binary, masked, not empty, and its length 7 or 16 bits and minimal."""
    return first == 0x82 and (0x80 < second < 0xFE or (second == 0xFE and length > 125))


def _unmasked(buffer: bytes | bytearray, start: int, length: int) -> bytes:
    # RFC 6455 section 5.3. As integers: for up to some hundred bytes the fastest that Python has.
    key = buffer[start - 4 : start] * (-(-length // 4))
    masked = int.from_bytes(buffer[start : start + length])
    return (masked ^ int.from_bytes(key[:length])).to_bytes(length)


_FAREWELL_STATUS: dict[int, HTTPStatus] = {
    CloseCode.HANDSHAKE_TIMEOUT: HTTPStatus.REQUEST_TIMEOUT,
    CloseCode.GOING_AWAY: HTTPStatus.SERVICE_UNAVAILABLE,
    CloseCode.TRY_AGAIN_LATER: HTTPStatus.SERVICE_UNAVAILABLE,
}
