"""A trace of chosen users while the server runs: goim's whitelist log, which goim sets in its configuration.

Every frame, room, drop and end of their connections becomes a line: on the logger ``goim_core.trace``, and
among the last lines that the operator API shows. Sizes are told, bodies never. Sync.

Nobody else pays for it: a traced connection has its wire and its channel's socket wrapped, others have not.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from itertools import groupby, islice
from typing import Protocol

from attrs import frozen

from goim_core.channel import Channel, Sink
from goim_core.clock import Clock
from goim_core.errors import Disconnect
from goim_core.logs import shown
from goim_core.outgoing import OutgoingFrames
from goim_core.protocol import Frame
from goim_core.session import Session
from goim_core.wire import Answer, Wire

__all__ = ["Line", "Traceable", "Tracer"]

MAX_USERS = 100
"""How many users may be traced at a time."""
KEPT = 1000
"""How many lines are kept."""

_log = logging.getLogger("goim_core.trace")


@frozen
class Line:
    """One event: ``n`` counts them, ``time`` is in seconds since 1970."""

    n: int
    time: float
    mid: int
    key: str
    text: str


class Traceable(Protocol):
    """A connection, as far as tracing it goes."""

    channel: Channel
    wire: Wire


class Tracer:
    """Who is traced, and what was seen last."""

    def __init__(self, clock: Clock) -> None:
        self.mids: set[int] = set()
        self.lines: deque[Line] = deque(maxlen=KEPT)
        self._clock = clock
        self._next = 0

    def add(self, mid: int) -> None:
        """Trace this user; raises :class:`ValueError` for one too many, and for user 0, who is nobody."""
        if mid == 0:
            raise ValueError("mid: expected a user, 0 is nobody in particular")
        if mid not in self.mids and len(self.mids) >= MAX_USERS:
            raise ValueError(f"mid: expected at most {MAX_USERS} users to trace")
        self.mids.add(mid)

    def follow(self, connection: Traceable) -> None:
        """Tell what goes through an authenticated connection from now on."""
        channel, session = connection.channel, connection.channel.session
        if isinstance(connection.wire, _TracedWire):
            return

        def tell(text: str) -> None:
            self.tell(session, text)

        kind = ("tcp", "websocket")[channel.form]
        tell(f"traced: {kind} from {channel.address}, rooms: {', '.join(sorted(session.rooms)) or 'none'}")
        connection.wire = _TracedWire(connection.wire, session, tell)
        channel.sock = _TracedSink(channel, tell)

    def unfollow(self, connection: Traceable) -> None:
        """Leave the connection as it was."""
        if isinstance(connection.wire, _TracedWire):
            connection.wire = connection.wire.inner
        if isinstance(connection.channel.sock, _TracedSink):
            connection.channel.sock = connection.channel.sock.inner

    def dropped(self, channel: Channel, count: int, reason: str) -> None:
        """``count`` messages were dropped, for whomever: see :attr:`Counters.on_drop`."""
        if channel.session.mid in self.mids:
            self.tell(channel.session, f"dropped {count}: {reason}")

    def ended(self, session: Session, why: Disconnect) -> None:
        """A traced connection has ended."""
        self.tell(session, f"end: {shown(why.reason)} ({why.code})")

    def tell(self, session: Session, text: str) -> None:
        """Something has happened to a connection of a traced user."""
        mid, key = session.mid, session.key
        self.lines.append(Line(self._next, self._clock.time(), mid, key, text))
        self._next += 1
        _log.info("%s %s: %s", mid, key, text, extra={"mid": mid, "key": key})

    def since(self, after: int, limit: int) -> tuple[list[Line], int]:
        """The oldest ``limit`` kept lines from number ``after`` on, and the number to ask for next."""
        first = self._next - len(self.lines)
        start = min(max(after - first, 0), len(self.lines))
        lines = list(islice(self.lines, start, start + limit))
        return lines, lines[-1].n + 1 if lines else self._next


class _TracedWire(Wire):
    """Tells each frame that comes, and, when the next is asked for, which rooms the last has led to."""

    __slots__ = ("_rooms", "_session", "_tell", "inner")

    def __init__(self, inner: Wire, session: Session, tell: Callable[[str], None]) -> None:
        self.inner = inner
        self._session = session
        self._rooms = session.rooms
        self._tell = tell

    @property
    def form(self) -> int:  # type: ignore[override]
        return self.inner.form

    @property
    def path(self) -> str:  # type: ignore[override]
        return self.inner.path

    @property
    def headers(self) -> Mapping[str, str]:  # type: ignore[override]
        return self.inner.headers

    def lone(self, data: bytes) -> Frame | None:
        return None  # so that all come by way of next_event

    def bound(self, max_body: int) -> None:
        self.inner.bound(max_body)

    def receive(self, data: bytes) -> None:
        self.inner.receive(data)

    @property
    def pending(self) -> int:
        return self.inner.pending

    def next_event(self) -> Frame | Answer | None:
        rooms = self._session.rooms
        for room_id in sorted(rooms - self._rooms):
            self._tell(f"entered {room_id}")
        for room_id in sorted(self._rooms - rooms):
            self._tell(f"left {room_id}")
        self._rooms = rooms
        event = self.inner.next_event()
        if isinstance(event, Frame):
            self._tell(f"<- op {event.op} seq {event.seq}, {len(event.body)} bytes")
        elif event is not None:
            self._tell("<- a control frame")
        return event

    def encode(self, frame_bytes: bytes) -> bytes:
        return self.inner.encode(frame_bytes)

    def farewell(self, why: Disconnect) -> bytes:
        return self.inner.farewell(why)

    def forget_handshake(self) -> None:
        self.inner.forget_handshake()


class _TracedSink:
    """Tells each frame of which the kernel has taken the last byte."""

    __slots__ = ("_frames", "_tell", "inner")

    def __init__(self, channel: Channel, tell: Callable[[str], None]) -> None:
        self.inner: Sink = channel.sock
        self._tell = tell
        outbox = channel.outbox
        # What is sent in part belongs to a frame that began before.
        rest = len(outbox.packets[0][0]) if outbox is not None and outbox.started else 0
        self._frames = OutgoingFrames(websocket=bool(channel.form), skip=rest)

    def send(self, data: bytes, /) -> int:
        sent = self.inner.send(data)
        for name, found in groupby(self._frames.feed(data[:sent]), lambda frame: frame.name):
            frames = list(found)
            count = f", {len(frames)} frames" if len(frames) > 1 else ""
            seq = f" seq {frames[0].seq}" if not count and frames[0].seq is not None else ""
            self._tell(f"-> {name}{seq}{count}, {sum(frame.size for frame in frames)} bytes")
        return sent
