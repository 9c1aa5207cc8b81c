"""What a WebSocket wire has to say of a stream, by wsproto's own account of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import CloseConnection, Message, Ping

from goim_core.errors import ProtocolError
from goim_core.protocol import HEADER_SIZE, Frame, frame_at
from goim_core.websocket import WebSocketWire
from goim_core.wire import Answer

__all__ = ["Seen", "observe", "reference"]

Seen: TypeAlias = Frame | bytes | tuple[str, int]


def observe(wire: WebSocketWire, parts: Iterable[bytes]) -> list[Seen]:
    """Everything that ``wire`` says: frames, answers' bytes, and how it ended with which code."""
    seen: list[Seen] = []
    for part in parts:
        lone = wire.lone(part)
        if lone is not None:
            seen.append(lone)
            continue
        wire.receive(part)
        try:
            while (event := wire.next_event()) is not None:
                if not isinstance(event, Answer):
                    seen.append(event)
                    continue
                if event.data:  # a pong is an event without anything to say
                    seen.append(event.data)
                if event.close:
                    seen.append(("closed", event.close.code))
        except ProtocolError as error:
            return [*seen, ("error", error.code)]
    return seen


def reference(stream: bytes) -> list[Seen]:
    """What :func:`observe` has to see, by wsproto's own account of the stream."""
    server = Connection(ConnectionType.SERVER)
    server.receive_data(stream)
    seen: list[Seen] = []
    message = b""
    for event in server.events():
        if isinstance(event, Ping):
            seen.append(server.send(event.response()))
        elif isinstance(event, CloseConnection):
            if server.state is not ConnectionState.REMOTE_CLOSING:
                return [*seen, ("error", event.code)]
            reply = server.send(CloseConnection(code=event.code))
            return [*seen, reply, ("closed", 1000 if event.code == 1005 else event.code)]
        elif isinstance(event, Message):
            message += event.data.encode() if isinstance(event.data, str) else event.data
            if event.message_finished:
                frames, broken = _taken_apart(message)
                seen += frames
                if broken:
                    return [*seen, ("error", broken)]
                message = b""
    return seen


def _taken_apart(message: bytes) -> tuple[list[Frame], int]:
    """The frames in ``message``, and the code of what is wrong after them, 0 for nothing."""
    frames: list[Frame] = []
    at = 0
    while True:
        try:
            frame = frame_at(message, at)
        except ProtocolError as error:
            return frames, error.code
        if frame is None:
            return frames, 0 if at == len(message) > 0 else 1002
        frames.append(frame)
        at += HEADER_SIZE + len(frame.body)
