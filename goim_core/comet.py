"""Comet: who is connected to this process, who is in which room, and who gets a push. Sync.

A push that reaches many is a generator: it sends for a few milliseconds, yields, and goes on when it
is called again, so that whoever drives it lets the rest of the program run in between. It yields
the seconds to wait first, mostly 0.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from time import perf_counter
from typing import TypeVar

from goim_core.bucket import Buckets
from goim_core.channel import Channel, Counters, deliver
from goim_core.clock import Deadlines, SystemClock
from goim_core.errors import Disconnect
from goim_core.presence import Presence
from goim_core.protocol import encode
from goim_core.registry import Online
from goim_core.room import Room
from goim_core.senders import SHARED, Senders
from goim_core.session import Session
from goim_core.shards import Shards, Tally
from goim_core.steps import Steps
from goim_core.wire import Packet

__all__ = ["Comet", "Pushing"]

T = TypeVar("T")

Pushing = Iterator[float]
"""A push under way: yields the seconds to wait before it is called again."""

SLICE = 0.003
"""How many seconds a push sends before it yields: a tenth of the 30 ms in which others are answered."""
CHUNK = 128
"""How many channels are sent to between two looks at the clock."""
PART = 1000
"""How many keys, or rooms, are looked up in a step."""
PACE = 0.05
"""A broadcast with a speed sends its share this often, in seconds."""
MAX_SHARE = 8 * CHUNK
"""The largest share: where the speed asks for more, it is sent more often."""


class Comet:
    """The connections of this process. ``buckets`` is how many buckets they are spread over."""

    def __init__(
        self, buckets: int = 32, counters: Counters | None = None, presence: Presence | None = None
    ) -> None:
        self.buckets = Buckets(buckets)
        self.rooms: Shards[str, Room[Channel]] = Shards()
        self.addresses: Tally[str] = Tally()
        """How many connections each address has."""
        self.users: Tally[int] | None = None
        """Connections by user, where the registry does not know them at once."""
        self.counters = Counters() if counters is None else counters
        self.presence = Presence(Deadlines(SystemClock())) if presence is None else presence
        self.elsewhere = Online()
        """How many are online on the other nodes, as they last told."""
        self.senders = Senders(0)
        self.at_ease = False
        """Whether there is little to send: then threads help, with CPU that nobody else wants."""
        self._departures = 0
        """How often a channel has left, a room or an operation too: a push that paused looks here whether
        its list is still true."""

    def put(self, channel: Channel) -> Channel | None:
        """Take in an authenticated channel; returns the one that it replaces, taken out already."""
        session = channel.session
        replaced = self.buckets.of(session.key).put(channel)
        if replaced is not None:
            self._leave(replaced)
        self.addresses.add(channel.address)
        if self.users is not None:
            self.users.add(session.mid)
        channel.accepts = session.accepts
        self.change_room(channel, session.room_id)
        return replaced

    def remove(self, channel: Channel) -> None:
        """Let ``channel`` go; nothing happens when it was replaced already."""
        if self.buckets.of(channel.session.key).remove(channel):
            self._leave(channel)

    def holds(self, channel: Channel) -> bool:
        """Whether ``channel`` is here: put, and neither removed nor replaced."""
        return self.buckets.get(channel.session.key) is channel

    def _leave(self, channel: Channel) -> None:
        # The session keeps its rooms: who hears of the disconnect may want to tell those who stay.
        rooms = channel.rooms()
        channel.room, channel.joined = None, None
        for room in rooms:
            self._out(channel, room)
        self._departures += 1
        # A push under way passes it by: it may have been told goodbye.
        channel.accepts = frozenset()
        self.addresses.add(channel.address, -1)
        if self.users is not None:
            self.users.add(channel.session.mid, -1)

    def others(self, session: Session) -> int:
        """How many connections of its user are in :attr:`users`, but for one with its own key."""
        same = self.buckets.get(session.key)
        own = same is not None and same.session.mid == session.mid
        return (self.users.get(session.mid, 0) if self.users is not None else 0) - own

    def accept(self, channel: Channel, ops: frozenset[int]) -> None:
        """From now on ``channel`` wants these operations."""
        channel.accepts = channel.session.accepts = ops
        self._departures += 1

    def change_room(self, channel: Channel, room_id: str) -> None:
        """Move ``channel`` to the room ``room_id``, or out of its room where that is empty."""
        left = channel.room
        channel.room = self._in(channel, room_id) if room_id else None
        if channel.session.room_id != room_id:
            channel.session.room_id = room_id
        if left is not None:
            self._out(channel, left)

    def join(self, channel: Channel, room_id: str) -> None:
        """Let ``channel`` into ``room_id`` beside the rooms it is in."""
        channel.joined = {**(channel.joined or {}), room_id: self._in(channel, room_id)}
        channel.session.joined = frozenset(channel.joined)

    def leave(self, channel: Channel, room_id: str) -> None:
        """Let ``channel`` out of a room that it joined."""
        joined = dict(channel.joined or {})
        left = joined.pop(room_id)
        channel.joined = joined or None
        channel.session.joined = frozenset(joined)
        self._out(channel, left)

    def _in(self, channel: Channel, room_id: str) -> Room[Channel]:
        rooms = self.rooms.of(room_id)
        room = rooms.get(room_id)
        if room is None:
            room = rooms[room_id] = Room(room_id)
        if not _is_in(channel, room):
            room.put(channel)
            self.presence.entered(room, channel)
        return room

    def _out(self, channel: Channel, room: Room[Channel]) -> None:
        if _is_in(channel, room):
            return  # by another way it is in still
        self._departures += 1
        room.remove(channel)
        self.presence.left(room, channel)
        if not room:
            del self.rooms.of(room.id)[room.id]

    def push_keys(self, keys: Iterable[str], op: int, packet: Packet) -> Pushing:
        """Send to the channels with these keys that accept ``op``; who leaves meanwhile gets no more."""
        get = self.buckets.get
        parts = ([c for c in map(get, dict.fromkeys(part)) if c is not None] for part in _parts(keys))
        yield from self._spread(parts, packet, lambda part: [c for c in part if op in c.accepts])

    def push_inbox(self, keys: Sequence[str], seqs: Sequence[int], op: int, body: bytes) -> Pushing:
        """Send a message to users: to each key with its number in that user's inbox, or 0 for none."""
        until = perf_counter() + SLICE
        for key, seq in zip(keys, seqs, strict=True):
            if perf_counter() >= until:
                yield 0.0
                until = perf_counter() + SLICE
            channel = self.buckets.get(key)
            if channel is None:
                continue
            packet = Packet([encode(op, body, seq)])
            if channel.inbox is not None:
                channel.inbox.push(seq, op, packet)
            elif op in channel.accepts:
                self._deliver((channel,), packet)

    def disconnect(self, keys: Iterable[str], why: Disconnect) -> None:
        """Tell the connections with these keys why, and close them."""
        for key in keys:
            channel = self.buckets.get(key)
            if channel is not None:
                channel.port.close(why)

    def push_room(self, room_id: str, packet: Packet) -> Pushing:
        """Send to all in the room; who leaves while it is under way gets no more of it."""
        room = self.rooms.of(room_id).get(room_id)
        if room is not None:
            departures = self._departures

            def still_in(part: Sequence[Channel]) -> Sequence[Channel]:
                return part if self._departures == departures else [c for c in part if _is_in(c, room)]

            yield from self._spread(room.segments(), packet, still_in)

    def push_all(self, op: int, packet: Packet, speed: int = 0) -> Pushing:
        """Send to all that accept ``op``, ``speed`` connections a second, or at once where that is 0."""
        buckets = (list(bucket.channels.values()) for bucket in self.buckets.all)
        wanting: Callable[[Sequence[Channel]], Sequence[Channel]] = lambda part: [  # noqa: E731
            c for c in part if op in c.accepts
        ]
        if speed:
            for channels in buckets:
                yield from self._paced(wanting(channels), packet, op, speed)
        else:
            yield from self._spread(buckets, packet, wanting)

    def _paced(self, channels: Sequence[Channel], packet: Packet, op: int, speed: int) -> Pushing:
        share = max(1, min(int(speed * PACE), MAX_SHARE))
        for start in range(0, len(channels), share):
            part = [c for c in channels[start : start + share] if op in c.accepts]
            self._deliver(part, packet)
            yield len(part) / speed

    def _spread(
        self,
        parts: Iterable[Sequence[Channel]],
        packet: Packet,
        wanted: Callable[[Sequence[Channel]], Sequence[Channel]],
    ) -> Pushing:
        """Send to those of each of ``parts`` that are ``wanted`` when it is their turn."""
        until = 0.0
        chunk = SHARED if self.at_ease and self.senders.count else CHUNK
        for part in parts:
            for start in range(0, len(part), chunk):
                if until and perf_counter() >= until:
                    yield 0.0
                    until = 0.0
                until = until or perf_counter() + SLICE
                self._deliver(wanted(part[start : start + chunk]), packet)

    def _deliver(self, channels: Sequence[Channel], packet: Packet) -> None:
        dropped = self.counters.drops.total()
        (self.senders.deliver if self.at_ease else deliver)(channels, packet)
        lost = self.counters.drops.total() - dropped
        self.counters.deliveries += len(channels) * packet.count - lost

    def online(self, room_id: str) -> int:
        """How many connections are in the room, on all nodes."""
        room = self.rooms.of(room_id).get(room_id)
        return (room.online if room is not None else 0) + self.elsewhere.rooms.get(room_id, 0)

    def census(self) -> Steps[Online]:
        """How many are online on this node."""
        counts: Shards[str, int] = Shards()
        for part in _parts(self._room_ids()):
            for room_id in part:
                if (room := self.rooms.of(room_id).get(room_id)) is not None:
                    counts.of(room_id)[room_id] = room.online
            yield
        return Online(counts, len(self.buckets), len(self.addresses))

    def members(self, room_id: str, offset: int, limit: int) -> list[Session]:
        """Who is in the room, in the order they came: at most ``limit`` after the first ``offset``."""
        room = self.rooms.of(room_id).get(room_id)
        return [channel.session for channel in (() if room is None else room.page(offset, limit))]

    def ranking(self, kind: str, limit: int) -> Steps[list[tuple[str, int]]]:
        """The rooms ``kind://id`` with the most connections: id and count, largest first."""
        prefix = f"{kind}://"
        best = []
        here = _parts(self._room_ids())
        elsewhere = ([r for r in part if r not in self.rooms] for part in _parts(self.elsewhere.rooms))
        for part in chain(here, elsewhere):
            found = [(room_id, self.online(room_id)) for room_id in part if room_id.startswith(prefix)]
            named = [(room_id.removeprefix(prefix), count) for room_id, count in found if count]
            best.append(heapq.nsmallest(limit, named, key=_by_count))
            yield
        return list(islice(heapq.merge(*best, key=_by_count), limit))

    def _room_ids(self) -> Iterator[str]:
        """The rooms here, while they come and go."""
        return chain.from_iterable(list(shard) for shard in self.rooms.all)


def _is_in(channel: Channel, room: Room[Channel]) -> bool:
    # The room would have to look through its segments.
    joined = channel.joined
    return channel.room is room or (joined is not None and joined.get(room.id) is room)


def _parts(all_: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(all_)
    while part := list(islice(rest, PART)):
        yield part


def _by_count(room: tuple[str, int]) -> tuple[int, str]:
    return -room[1], room[0]
