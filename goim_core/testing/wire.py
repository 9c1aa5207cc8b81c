"""The client's end of both kinds of wire: frames to bytes and back. No I/O."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, CloseConnection, RejectConnection, RejectData, Request

from goim_core.errors import CloseCode, Disconnect, ProtocolError
from goim_core.protocol import HEADER_SIZE, INT32_MAX, Decoder, Frame, Op, split

__all__ = ["ClientWire", "TCPClientWire", "WebSocketClientWire"]


class ClientWire(ABC):
    """What a client has received and not yet taken."""

    kind: str
    closed: Disconnect | None = None
    """What the WebSocket close frame of the server said, or the response that refused the handshake."""

    @abstractmethod
    def opening(self) -> bytes:
        """What a client sends first."""

    @abstractmethod
    def encode(self, frame: bytes) -> bytes:
        """What goes on the wire for one encoded frame."""

    @abstractmethod
    def receive(self, data: bytes) -> list[Frame]:
        """The frames that ``data`` completes, those of an op-9 batch one by one."""

    def farewell(self) -> bytes:
        """What a client answers to the server's end, or sends at its own."""
        return b""


class TCPClientWire(ClientWire):
    """Frames one after the other."""

    kind = "tcp"

    def __init__(self) -> None:
        self._decoder = Decoder(INT32_MAX - HEADER_SIZE)

    def opening(self) -> bytes:
        """See :meth:`ClientWire.opening`."""
        return b""

    def encode(self, frame: bytes) -> bytes:
        """See :meth:`ClientWire.encode`."""
        return frame

    def receive(self, data: bytes) -> list[Frame]:
        """See :meth:`ClientWire.receive`."""
        self._decoder.receive(data)
        frames: list[Frame] = []
        while (frame := self._decoder.next_frame()) is not None:
            frames += _unpacked(frame)
        return frames


class WebSocketClientWire(ClientWire):
    """Frames in binary messages, after a handshake at ``path`` with ``headers`` beside its own."""

    kind = "ws"

    def __init__(self, path: str, headers: Mapping[str, str]) -> None:
        self._ws = WSConnection(ConnectionType.CLIENT)
        extra = [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()]
        self._request = Request(host="localhost", target=path, extra_headers=extra)
        self._message = bytearray()
        self._refusal = bytearray()

    def opening(self) -> bytes:
        """See :meth:`ClientWire.opening`."""
        return self._ws.send(self._request)

    def encode(self, frame: bytes) -> bytes:
        """See :meth:`ClientWire.encode`."""
        return self._ws.send(BytesMessage(data=frame))

    def receive(self, data: bytes) -> list[Frame]:
        """See :meth:`ClientWire.receive`."""
        self._ws.receive_data(data)
        frames: list[Frame] = []
        for event in self._ws.events():
            if isinstance(event, BytesMessage):
                self._message += event.data
                if event.message_finished:
                    frames += [inner for frame in split(bytes(self._message)) for inner in _unpacked(frame)]
                    self._message.clear()
            elif isinstance(event, CloseConnection):
                if self._ws.state not in (ConnectionState.REMOTE_CLOSING, ConnectionState.CLOSED):
                    # wsproto's way to say that the frame was illegal.
                    raise ProtocolError(f"WebSocket: {event.reason}", event.code)
                self.closed = Disconnect(event.reason or "", event.code)
            elif isinstance(event, RejectConnection):
                self._refusal += f"HTTP {event.status_code}: ".encode()
            elif isinstance(event, RejectData):
                self._refusal += event.data
                if event.body_finished:
                    self.closed = Disconnect(self._refusal.decode().strip(), CloseCode.PROTOCOL_ERROR)
        return frames

    def farewell(self) -> bytes:
        """See :meth:`ClientWire.farewell`."""
        if self._ws.state not in (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING):
            return b""
        return self._ws.send(CloseConnection(code=1000 if self.closed is None else self.closed.code))


def _unpacked(frame: Frame) -> list[Frame]:
    return split(frame.body) if frame.op == Op.RAW else [frame]
