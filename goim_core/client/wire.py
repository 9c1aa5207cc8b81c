"""Bytes to frames and back at a client's end: TCP and WebSocket. No I/O.

The only module of the client that knows wsproto.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping

from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.utilities import RemoteProtocolError

from goim_core.errors import CloseCode, Disconnect, ProtocolError
from goim_core.protocol import Decoder, Frame, Op, split
from goim_core.wire import read_disconnect

__all__ = ["MAX_MESSAGE", "ClientWire", "PlainWire", "WebSocketWire"]

MAX_MESSAGE = 64 << 20
"""The largest frame or WebSocket message that is taken from a server, in bytes."""
REASON = 200
"""How much is shown of what a server says to a handshake that it refuses, in bytes."""


class ClientWire(ABC):
    """What is sent to and comes from one server."""

    opening: bytes = b""
    """What to send first."""
    opened: bool = True
    """Whether frames may be sent."""

    @abstractmethod
    def receive(self, data: bytes) -> None:
        """Take bytes as they came from the stream, cut anywhere."""

    @abstractmethod
    def next_frame(self) -> Frame | None:
        """The next frame, never a batch; None until more bytes arrive.

        Raises :class:`~goim_core.errors.Disconnect` where the server says why it closes, and
        :class:`~goim_core.errors.ProtocolError` where what it sends is no goim.
        """

    @abstractmethod
    def encode(self, frame: bytes) -> bytes:
        """What carries one encoded frame to the server."""

    def open(self) -> None:
        """Look for the handshake's answer; ``opened`` says whether it is there. Raises as for a frame."""

    def answers(self) -> bytes:
        """What the wire itself has to say by now: a pong, a close reply."""
        return b""

    def farewell(self) -> bytes:
        """What to send last."""
        return b""


class PlainWire(ClientWire):
    """Frames one after the other."""

    def __init__(self) -> None:
        self._decoder = Decoder(max_body=MAX_MESSAGE)
        self._batch: deque[Frame] = deque()

    def receive(self, data: bytes) -> None:
        """See :meth:`ClientWire.receive`."""
        self._decoder.receive(data)

    def next_frame(self) -> Frame | None:
        """See :meth:`ClientWire.next_frame`."""
        while not self._batch:
            frame = self._decoder.next_frame()
            if frame is None:
                return None
            self._batch.extend(_opened(frame))
        return _checked(self._batch.popleft())

    def encode(self, frame: bytes) -> bytes:
        """The frame itself."""
        return frame


class WebSocketWire(ClientWire):
    """Frames in WebSocket messages (RFC 6455). ``headers`` are added to the handshake: a Cookie, say."""

    def __init__(self, host: str, path: str, headers: Mapping[str, str] | None = None) -> None:
        self._ws = WSConnection(ConnectionType.CLIENT)
        extra = [(name.encode("ascii"), value.encode("latin-1")) for name, value in (headers or {}).items()]
        self.opening = self._ws.send(Request(host=host, target=path, extra_headers=extra))
        self.opened = False
        self._frames: deque[Frame] = deque()
        self._message = bytearray()
        self._answers = b""
        self._refused = ""
        self._failure: tuple[str, int] | None = None

    def receive(self, data: bytes) -> None:
        """See :meth:`ClientWire.receive`. A fault is kept for :meth:`next_frame`, behind what came before."""
        try:
            self._ws.receive_data(data)
        except RemoteProtocolError as error:
            self._failure = (f"WebSocket: {error}", CloseCode.PROTOCOL_ERROR)
        except UnicodeError:  # wsproto's own, for what a header of the handshake may not hold
            self._failure = ("WebSocket: a header is not readable", CloseCode.PROTOCOL_ERROR)

    def next_frame(self) -> Frame | None:
        """See :meth:`ClientWire.next_frame`."""
        while not self._frames:
            if self._failure is not None:
                raise ProtocolError(*self._failure)
            try:
                event = next(self._ws.events(), None)
            except RemoteProtocolError as error:
                self._failure = (f"WebSocket: {error}", CloseCode.PROTOCOL_ERROR)
                continue
            if event is None:
                return None
            self._on_event(event)
        return _checked(self._frames.popleft())

    def _on_event(self, event: Event) -> None:
        if isinstance(event, BytesMessage | TextMessage):
            self._on_data(event)
        elif isinstance(event, AcceptConnection):
            self.opened = True
        elif isinstance(event, Ping):
            self._answers += self._ws.send(event.response())
        elif isinstance(event, CloseConnection):
            if self._ws.state is ConnectionState.OPEN:  # wsproto's way to say that it cannot read it
                self._failure = (f"WebSocket: {event.reason}", event.code)
                return
            if self._ws.state is ConnectionState.REMOTE_CLOSING:
                self._answers += self._ws.send(event.response())
            raise _disconnect(event.reason or "", event.code)
        elif isinstance(event, RejectConnection):
            self._refused = f"the WebSocket handshake was answered with HTTP {event.status_code}"
            if not event.has_body:
                raise ProtocolError(self._refused)
        elif isinstance(event, RejectData):
            said = event.data[:REASON].decode(errors="replace").strip()
            raise ProtocolError(f"{self._refused}: {said}" if said else self._refused)

    def _on_data(self, event: BytesMessage | TextMessage) -> None:
        data = event.data.encode() if isinstance(event, TextMessage) else event.data
        self._message += data
        if len(self._message) > MAX_MESSAGE:
            self._failure = (f"message: expected at most {MAX_MESSAGE} bytes", CloseCode.TOO_BIG)
        elif event.message_finished:
            frames = split(bytes(self._message))
            self._message.clear()
            for frame in frames:
                self._frames.extend(_opened(frame))

    def open(self) -> None:
        """See :meth:`ClientWire.open`."""
        frame = self.next_frame()
        if frame is not None:
            raise ProtocolError(f"operation {frame.op} before authentication")

    def encode(self, frame: bytes) -> bytes:
        """The frame in a binary message of its own."""
        return self._ws.send(BytesMessage(data=frame))

    def answers(self) -> bytes:
        """See :meth:`ClientWire.answers`."""
        answers, self._answers = self._answers, b""
        return answers

    def farewell(self) -> bytes:
        """A close frame, unless there has been one."""
        if self._ws.state is ConnectionState.OPEN:
            return self._ws.send(CloseConnection(code=CloseCode.NORMAL))
        return b""


def _opened(frame: Frame) -> list[Frame]:
    return split(frame.body) if frame.op == Op.RAW else [frame]


def _checked(frame: Frame) -> Frame:
    if frame.op == Op.DISCONNECT_REPLY:
        raise read_disconnect(frame.body)
    return frame


def _disconnect(reason: str, code: int) -> Disconnect:
    try:
        return Disconnect(reason, code)
    except ValueError:  # 1005 and 1006 stand for no code at all
        return Disconnect(reason or "closed without a reason", CloseCode.LOST)
