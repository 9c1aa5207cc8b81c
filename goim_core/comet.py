"""Comet: who is connected to this process, what a frame does, and who gets a push. Sync.

A push that reaches many is a generator: it sends for a few milliseconds, yields, and goes on when it
is called again, so that whoever drives it lets the rest of the program run in between. It yields
the seconds to wait first, mostly 0.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from time import perf_counter

from goim_core.bucket import Buckets
from goim_core.channel import Channel, Counters, deliver
from goim_core.errors import ErrorCode, Refused
from goim_core.hooks import check_room_id
from goim_core.protocol import INT32_MAX, Frame, Op, encode, encode_heartbeat_reply
from goim_core.room import Room
from goim_core.wire import Packet

__all__ = ["Comet", "Pushing"]

Pushing = Iterator[float]
"""A push under way: yields the seconds to wait before it is called again."""

SLICE = 0.003
"""How many seconds a push sends before it yields: a tenth of the 30 ms in which others are answered."""
CHUNK = 128
"""How many channels are sent to between two looks at the clock."""
PACE = 0.05
"""A broadcast with a speed sends its share this often, in seconds."""
MAX_ACCEPTS = 1000
"""How many operations a connection may subscribe to."""


class Comet:
    """The connections of this process. ``buckets`` is how many buckets they are spread over."""

    def __init__(self, buckets: int = 32, counters: Counters | None = None) -> None:
        self.buckets = Buckets(buckets)
        self.rooms: dict[str, Room[Channel]] = {}
        self.addresses: Counter[str] = Counter()
        self.counters = Counters() if counters is None else counters
        self._departures = 0
        """How often a channel has left, a room or an operation too: a push that paused looks here whether
        its list is still true."""

    def put(self, channel: Channel) -> Channel | None:
        """Take in an authenticated channel; returns the one that it replaces, taken out already."""
        session = channel.session
        replaced = self.buckets.of(session.key).put(channel)
        if replaced is not None:
            self._leave(replaced)
        self.addresses[channel.address] += 1
        channel.accepts = session.accepts
        self.change_room(channel, session.room_id)
        return replaced

    def remove(self, channel: Channel) -> None:
        """Let ``channel`` go; nothing happens when it was replaced already."""
        if self.buckets.of(channel.session.key).remove(channel):
            self._leave(channel)

    def _leave(self, channel: Channel) -> None:
        # The session keeps its room: who hears of the disconnect may want to tell those who stay.
        self._leave_room(channel)
        # A push under way passes it by: it may have been told goodbye.
        channel.accepts = frozenset()
        self.addresses[channel.address] -= 1
        if not self.addresses[channel.address]:
            del self.addresses[channel.address]

    def change_room(self, channel: Channel, room_id: str) -> None:
        """Move ``channel`` to the room ``room_id``, or out of any where that is empty."""
        self._leave_room(channel)
        channel.session.room_id = room_id
        if room_id:
            room = self.rooms.get(room_id)
            if room is None:
                room = self.rooms[room_id] = Room(room_id)
            room.put(channel)
            channel.room = room

    def _leave_room(self, channel: Channel) -> None:
        self._departures += 1
        room = channel.room
        if room is not None:
            room.remove(channel)
            if not room.members:
                del self.rooms[room.id]
        channel.room = None

    def answer(self, channel: Channel, frame: Frame) -> bytes | None:
        """The reply to a frame of the protocol's own; None for one that the message hook answers.

        Raises :class:`~goim_core.errors.Refused` for a body that does not fit the operation.
        """
        op = frame.op
        if op == _HEARTBEAT:
            room = channel.room
            return encode_heartbeat_reply(room.online if room is not None else 0, frame.seq, frame.ver)
        if op == Op.CHANGE_ROOM:
            self.change_room(channel, _room_id(frame.body))
        elif op == Op.SUB:
            accepts = channel.accepts | _ops(frame.body)
            if len(accepts) > MAX_ACCEPTS:
                raise Refused(f"at most {MAX_ACCEPTS} operations for a connection", ErrorCode.TOO_MANY)
            channel.accepts = accepts
        elif op == Op.UNSUB:
            channel.accepts -= _ops(frame.body)
            self._departures += 1
        elif op == Op.AUTH:
            raise Refused("this connection is authenticated already", ErrorCode.CONFLICT)
        elif op in _NOT_FROM_CLIENTS:
            raise Refused(f"operation {op} is not one for a client to send", ErrorCode.BAD_REQUEST)
        else:
            return None
        # goim's reply to each of these is the next number, with the same body.
        return encode(op + 1, frame.body, frame.seq, frame.ver)

    def refusal(self, channel: Channel, frame: Frame, refused: Refused) -> bytes:
        """The reply to a frame that was refused.

        A client that accepts ERROR gets it. One that does not gets goim's reply, without the claim that
        anything was done: the room it is in, no operations, an empty body.
        """
        if Op.ERROR in channel.accepts:
            body = {"op": frame.op, "code": refused.code, "message": refused.reason}
            text = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
            return encode(Op.ERROR, text, frame.seq, frame.ver)
        if frame.op == Op.CHANGE_ROOM:
            room_id = channel.room.id if channel.room is not None else ""
            return encode(Op.CHANGE_ROOM_REPLY, room_id.encode(), frame.seq, frame.ver)
        op = frame.op + 1 if frame.op in (Op.SUB, Op.UNSUB) else frame.op
        return encode(op, b"", frame.seq, frame.ver)

    def push_keys(self, keys: Iterable[str], op: int, packet: Packet) -> Pushing:
        """Send to the channels with these keys that accept ``op``; who leaves meanwhile gets no more."""
        found = (self.buckets.get(key) for key in keys)
        channels = [c for c in found if c is not None and op in c.accepts]
        yield from self._spread(channels, packet, lambda c: op in c.accepts)

    def push_room(self, room_id: str, packet: Packet) -> Pushing:
        """Send to all in the room; who leaves while it is under way gets no more of it."""
        room = self.rooms.get(room_id)
        if room is not None:
            yield from self._spread(list(room.members), packet, lambda c: c.room is room)

    def push_all(self, op: int, packet: Packet, speed: int = 0) -> Pushing:
        """Send to all that accept ``op``, ``speed`` connections a second, or at once where that is 0."""
        for bucket in self.buckets.all:
            channels = [c for c in bucket.channels.values() if op in c.accepts]
            if speed:
                yield from self._paced(channels, packet, op, speed)
            else:
                yield from self._spread(channels, packet, lambda c: op in c.accepts)

    def _paced(self, channels: Sequence[Channel], packet: Packet, op: int, speed: int) -> Pushing:
        share = max(1, int(speed * PACE))
        for start in range(0, len(channels), share):
            part = [c for c in channels[start : start + share] if op in c.accepts]
            self._deliver(part, packet)
            yield len(part) / speed

    def _spread(
        self, channels: Sequence[Channel], packet: Packet, stays: Callable[[Channel], bool]
    ) -> Pushing:
        departures = self._departures
        until = perf_counter() + SLICE
        for start in range(0, len(channels), CHUNK):
            if start and perf_counter() >= until:
                yield 0.0
                until = perf_counter() + SLICE
            part = channels[start : start + CHUNK]
            if self._departures != departures:
                part = [c for c in part if stays(c)]
            self._deliver(part, packet)

    def _deliver(self, channels: Sequence[Channel], packet: Packet) -> None:
        dropped = self.counters.drops.total()
        deliver(channels, packet)
        lost = self.counters.drops.total() - dropped
        self.counters.deliveries += len(channels) * packet.count - lost

    def online(self, room_id: str) -> int:
        """How many connections are in the room."""
        room = self.rooms.get(room_id)
        return room.online if room is not None else 0

    def online_top(self, kind: str, limit: int) -> list[tuple[str, int]]:
        """The rooms ``kind://id`` with the most connections: id and count, largest first."""
        prefix = f"{kind}://"
        counts = (
            (r.id.removeprefix(prefix), r.online) for r in self.rooms.values() if r.id.startswith(prefix)
        )
        by_count: Callable[[tuple[str, int]], tuple[int, str]] = lambda room: (-room[1], room[0])  # noqa: E731
        return heapq.nsmallest(limit, counts, key=by_count)


_HEARTBEAT = int(Op.HEARTBEAT)
_NOT_FROM_CLIENTS = frozenset(
    (Op.HANDSHAKE, Op.HANDSHAKE_REPLY, Op.RAW, Op.PROTO_READY, Op.PROTO_FINISH, *range(18, 64))
)


def _room_id(body: bytes) -> str:
    try:
        room_id = body.decode()
        return check_room_id(room_id) if room_id else ""
    except ValueError as error:
        reason = "room_id: expected UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise Refused(reason, ErrorCode.BAD_REQUEST) from None


def _ops(body: bytes) -> frozenset[int]:
    ops = set()
    for part in body.split(b","):
        # int() would take signs, blanks and underscores too.
        if not part.isdigit() or len(part) > 10 or int(part) > INT32_MAX:
            raise Refused(
                f"operations: expected decimal int32 separated by commas, got {part[:20]!r}",
                ErrorCode.BAD_REQUEST,
            )
        ops.add(int(part))
    return frozenset(ops)
