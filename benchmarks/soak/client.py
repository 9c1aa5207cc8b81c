"""One client of the crowd: a connection by TCP or WebSocket, made again as often as it ends."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

from benchmarks.soak.ledger import Inbox, Track, Visit

__all__ = ["AUTH", "AUTH_REPLY", "HEAD", "LOUD", "ROOM_OP", "USER_OP", "Client", "Tally", "frame"]

ROOM_OP, USER_OP = 1000, 1001
HEAD = 16
BEAT_REPLY, DISCONNECT, AUTH, AUTH_REPLY, RAW, ERROR, ACK, MOVE = 3, 6, 7, 8, 9, 18, 20, 42
LOUD = 0
"""The number of the room that large pushes go to, which slow clients cannot take."""
UNIT_NS = 200_000
"""Latencies are counted in so many nanoseconds."""
SIP = 1.0
"""Seconds between the reads of a client that reads slowly."""
UPGRADE = (
    b"GET /sub HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends a reset."""


def room_name(room: int) -> str:
    """The id of the room with this number."""
    return f"soak://{room}"


def frame(op: int, body: bytes = b"") -> bytes:
    """A frame of a client."""
    return struct.pack(">IHHII", HEAD + len(body), HEAD, 1, op, 1) + body


@dataclass
class Tally:
    """What all clients of one process saw since it was last taken."""

    counts: Counter[str] = field(default_factory=Counter)
    room_latency: Counter[int] = field(default_factory=Counter)
    user_latency: Counter[int] = field(default_factory=Counter)
    visits: list[Visit] = field(default_factory=list)


class Client(asyncio.Protocol):
    """One user on one device. ``pace``: "" reads at once, "slow" sips, "never" does not read."""

    def __init__(self, tally: Tally, mid: int, room: int, ws: bool, pace: str = "") -> None:
        self.tally = tally
        self.mid, self.room, self.ws, self.pace = mid, room, ws, pace
        self.inbox = Inbox()
        self.tracks: dict[int, Track] = {}
        self.since = 0.0
        """When this connection was let in; 0 where there is none."""
        self.beating = False
        self.next_delay: float | None = None
        """How long to stay away after this connection, where it ended on purpose."""
        self.avoid = False
        """Whether it was told to move: the node that it was on is the last to be tried."""
        self.came: asyncio.Future[None] | None = None
        self.ended: Any = None
        self._transport: asyncio.Transport | None = None
        self._upgraded = False
        self._rest = b""

    # Life.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say who this is."""
        self._transport = cast("asyncio.Transport", transport)
        self._rest, self._upgraded = b"", not self.ws
        self.beating, self.next_delay = False, None
        self._transport.write(UPGRADE) if self.ws else self._authenticate()

    def _authenticate(self) -> None:
        token = {"mid": self.mid, "key": f"k{self.mid}", "device": "d", "room_id": room_name(self.room)}
        accepts = [ROOM_OP, USER_OP, ERROR, ACK, *([MOVE] if self.mid % 3 else [])]
        self._send(frame(AUTH, json.dumps({**token, "platform": "soak", "accepts": accepts}).encode()))

    def connection_lost(self, exc: Exception | None) -> None:
        """Note what it saw, and tell who makes the next one."""
        was_in, came = self.since, self.came
        if was_in:
            self.tally.visits.append(self.visit(time.monotonic()))
            self.tally.counts["ended by the server"] += self.next_delay is None
        self.since, self.tracks, self._transport = 0.0, {}, None
        self.inbox.on_connection = 0
        if was_in:
            self.ended(self)
        elif came is not None and not came.done():
            came.set_exception(ConnectionError("not let in"))

    @property
    def connected(self) -> bool:
        """Whether there is a connection, let in or not."""
        return self._transport is not None

    @property
    def connection(self) -> object:
        """The one that there is now, for :meth:`end`."""
        return self._transport

    def _live(self) -> None:
        self.since = time.monotonic()
        if self.came is not None and not self.came.done():
            self.came.set_result(None)
        if self.pace and self._transport:
            self._transport.pause_reading()
            if self.pace == "slow":
                asyncio.get_running_loop().call_later(SIP, self._sip, self._transport)

    def _sip(self, transport: asyncio.Transport) -> None:
        if self._transport is transport and not transport.is_closing():
            transport.resume_reading()

    def visit(self, now: float) -> Visit:
        """This connection as the ledger wants it; without spans where the client may lose pushes."""
        spans = {} if self.pace else {who: track.span() for who, track in self.tracks.items()}
        return Visit(-1 if self.pace else self.room, self.since, now, spans)

    def close(self, delay: float, reset: bool = False) -> None:
        """End the connection, cleanly or by a reset, and stay away for so long."""
        transport = self._transport
        if transport is None:
            return
        self.next_delay = delay
        if reset:
            sock: socket.socket = transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            transport.abort()
            return
        if self.ws and self._upgraded:
            transport.write(b"\x88\x82\0\0\0\0\x03\xe8")  # 1000
        transport.close()

    def end(self, connection: object, delay: float) -> None:
        """Reset ``connection``, if it is still the one."""
        if connection is self._transport:
            self.close(delay, reset=True)

    # Out.

    def beat(self) -> None:
        """Send a heartbeat; a server that did not answer the one before is left."""
        if not self.since or self._transport is None or self.pace:
            return
        if self.beating:
            self.tally.counts["heartbeat unanswered"] += 1
            self.close(0, reset=True)
            return
        self.beating = True
        self._send(frame(2))

    def _send(self, data: bytes) -> None:
        if self._transport is None:
            return
        if self.ws:  # a mask of zeros is one
            size = len(data)
            head = bytes((0x82, 0x80 | size)) if size < 126 else struct.pack(">BBH", 0x82, 0xFE, size)
            data = head + b"\0\0\0\0" + data
        self._transport.write(data)

    # In.

    def data_received(self, data: bytes) -> None:
        """Take apart what came."""
        before = self.inbox.on_connection
        data = self._rest + data if self._rest else data
        if not self._upgraded:
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                self._rest = head
                return
            self._upgraded = True
            self._authenticate()
        self._rest = self._messages(data) if self.ws else self._frames(data)
        if self.inbox.on_connection != before:
            self._send(frame(ACK, b"%d" % self.inbox.high))
        if self.pace == "slow" and self.since and self._transport and not self._transport.is_closing():
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(SIP, self._sip, self._transport)

    def _messages(self, data: bytes) -> bytes:
        at = 0
        while len(data) - at >= 2:
            size, head = data[at + 1], 2
            if size == 126:
                size, head = int.from_bytes(data[at + 2 : at + 4]), 4
            elif size == 127:
                size, head = int.from_bytes(data[at + 2 : at + 10]), 10
            end = at + head + size
            if len(data) < end:
                break
            if data[at] == 0x82:
                self._frames(data[at + head : end])
            at = end
        return data[at:]

    def _frames(self, data: bytes) -> bytes:
        at = 0
        while len(data) - at >= HEAD:
            end = at + int.from_bytes(data[at : at + 4])
            if len(data) < end:
                break
            op = int.from_bytes(data[at + 8 : at + 12])
            if op == ROOM_OP:
                self._room_push(data[at + HEAD : end])
            elif op == USER_OP:
                self._user_push(int.from_bytes(data[at + 12 : at + HEAD]), data[at + HEAD : end])
            elif op == RAW:
                self._frames(data[at + HEAD : end])
            else:
                self._reply(op, data[at + HEAD : end])
            at = end
        return data[at:]

    def _room_push(self, body: bytes) -> None:
        who, number, sent = map(int, body.split(b" ", 3)[:3])
        track = self.tracks.get(who)
        if track is None:
            track = self.tracks[who] = Track()
        tally = self.tally
        tally.counts["deliveries"] += 1
        odd = track.take(number)
        if odd and not self.pace:
            tally.counts[odd] += 1
        elif not self.pace and sent / 1e9 >= self.since:
            tally.room_latency[(time.monotonic_ns() - sent) // UNIT_NS] += 1

    def _user_push(self, number: int, body: bytes) -> None:
        count, sent = map(int, body.split())
        tally = self.tally
        tally.counts["stored deliveries"] += 1
        odd = self.inbox.take(number, count)
        if odd:
            tally.counts[f"inbox: {odd}"] += 1
        elif not self.pace and sent / 1e9 >= self.since:
            tally.user_latency[(time.monotonic_ns() - sent) // UNIT_NS] += 1

    def _reply(self, op: int, body: bytes) -> None:
        if op == BEAT_REPLY:
            self.beating = False
        elif op == AUTH_REPLY:
            self._live()
        elif op == DISCONNECT:
            self.tally.counts[f"told {json.loads(body)['code']}"] += 1
        elif op == ERROR:
            self.tally.counts[f"refused {body.decode()[:80]}"] += 1
        elif op == MOVE:
            self.avoid = True
            self.tally.counts["told to move"] += 1
            seconds = json.loads(body)["seconds"]
            asyncio.get_running_loop().call_later(seconds, self._move, self._transport)

    def _move(self, transport: asyncio.Transport | None) -> None:
        if transport is self._transport:
            self.close(0)
