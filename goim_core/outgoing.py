"""Which frames a server's bytes to a client were, read as they leave. Bytes only, no I/O.

For the trace. The bytes are the server's own, so nothing is checked, and no body is kept.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from attrs import frozen

from goim_core.protocol import HEADER_SIZE, Op

__all__ = ["OutgoingFrames", "Sent"]

_HEADER = struct.Struct(">ihhii")
_BINARY = 2
_CONTROL = {8: "close", 9: "ping", 10: "pong"}
"""The operation codes of RFC 6455 section 11.8."""


@frozen
class Sent:
    """One frame that has left: ``name`` is ``op 3``, or a WebSocket control frame's, which has no ``seq``."""

    name: str
    seq: int | None
    size: int
    """Of its body."""


class OutgoingFrames:
    """Takes a stream apart, cut anywhere: goim frames, on a WebSocket those in its messages.

    ``skip`` bytes at first are the rest of something. A batch (op 9) is told as the frames in it.
    """

    def __init__(self, *, websocket: bool, skip: int = 0) -> None:
        self._websocket = websocket
        self._skip = skip
        self._ends: Sent | None = None  # with the last byte that is skipped
        self._head = b""
        self._message = 0  # bytes of the WebSocket message that are still to come

    def feed(self, data: bytes) -> Iterator[Sent]:
        """The frames whose last byte is in ``data``."""
        at = 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
                at += step
            else:
                size = self._head_size()
                step = min(size - len(self._head), len(data) - at)
                self._head += bytes(data[at : at + step])
                at += step
                if len(self._head) == self._head_size():
                    self._read_head()
            if not self._skip and self._ends is not None:
                yield self._ends
                self._ends = None

    def _head_size(self) -> int:
        if not self._in_wire_head():
            return HEADER_SIZE
        # Two bytes say how many more there are: RFC 6455 section 5.2.
        length = self._head[1] & 127 if len(self._head) > 1 else 0
        return 2 + {126: 2, 127: 8}.get(length, 0)

    def _in_wire_head(self) -> bool:
        return self._websocket and not self._message

    def _read_head(self) -> None:
        head, self._head = self._head, b""
        if self._in_wire_head():
            length = int.from_bytes(head[2:]) if len(head) > 2 else head[1] & 127
            if head[0] & 15 == _BINARY:
                self._message = length
            else:
                self._skip = length
                self._ends = Sent(_CONTROL.get(head[0] & 15, "message"), None, length)
            return
        length, _, _, op, seq = _HEADER.unpack(head)
        size = 0 if op == Op.RAW else max(length - HEADER_SIZE, 0)
        if self._websocket:
            self._message = max(self._message - HEADER_SIZE - size, 0)
        if op != Op.RAW:
            self._skip = size
            self._ends = Sent(f"op {op}", seq, size)
