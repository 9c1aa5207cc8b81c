"""What a server can tell while it runs: who is online, its figures, and the nodes there are. Sync.

The base of :class:`goim_core.Server`, which has the parts.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from attrs import evolve

from goim_core import nodes
from goim_core.channel import Counters
from goim_core.clock import Clock, Deadlines
from goim_core.comet import Comet
from goim_core.connection import Connection
from goim_core.discovery import Discovery, Node
from goim_core.listener import Listener
from goim_core.metrics import Instruments
from goim_core.options import Options
from goim_core.queue import Queue
from goim_core.registry import Registry
from goim_core.session import Session
from goim_core.stats import Stats, read_stats
from goim_core.steps import Steps, at_once
from goim_core.trace import Line, Tracer
from goim_core.weigher import Weigher

__all__ = ["Overview"]

MANY_ROOMS = 10_000
"""With more rooms than this they are not compared while everyone waits."""


class Overview:
    """The questions that a :class:`goim_core.Server` answers at once."""

    options: Options
    instruments: Instruments
    """What is counted and timed beside :meth:`stats`."""
    _running: bool
    _started: float
    _tracer: Tracer
    _node: Node
    _comet: Comet
    _counters: Counters
    _deadlines: Deadlines
    _queue: Queue
    _listeners: Mapping[str, Sequence[Listener]]
    _registry: Registry
    _discovery: Discovery
    _weigher: Weigher

    @property
    def clock(self) -> Clock:
        """The server's clock."""
        return self._deadlines.clock

    @property
    def addresses(self) -> dict[str, list[tuple[str, int] | str]]:
        """Where each door listens: ``(host, port)``, or the path of a Unix socket. Empty before the start.

        When the server stops, a door that has closed listens nowhere.
        """
        doors = self._listeners.items()
        return {door: [each.address for each in listeners if each.open] for door, listeners in doors}

    def port(self, door: str) -> int:
        """The TCP port at which ``door`` listens, the first of several; 0 where there is none."""
        return next((at[1] for at in self.addresses.get(door, ()) if not isinstance(at, str)), 0)

    def online_top(self, kind: str, limit: int) -> list[tuple[str, int]]:
        """The rooms ``kind://id`` with the most connections: id and count, largest first."""
        return at_once(self.ranking(kind, limit))

    def ranking(self, kind: str, limit: int) -> Steps[list[tuple[str, int]]]:
        """What :meth:`online_top` answers, in steps."""
        return self._comet.ranking(kind, limit)

    def online_rooms(self, room_ids: Iterable[str]) -> dict[str, int]:
        """How many connections are in each of these rooms."""
        return {room_id: self._comet.online(room_id) for room_id in room_ids}

    def online_total(self) -> tuple[int, int]:
        """How many addresses, and how many connections."""
        elsewhere = self._comet.elsewhere
        return len(self._comet.addresses) + elsewhere.addresses, len(
            self._comet.buckets
        ) + elsewhere.connections

    def members(self, room_id: str, *, offset: int = 0, limit: int = 100) -> list[Session]:
        """Who is in the room on this node, in the order they came: at most ``limit`` after ``offset``."""
        return self._comet.members(room_id, offset, limit)

    def stats(self) -> Stats:
        """The server's figures now."""
        return read_stats(self._counters, self._comet, self._queue, self._registry, self._discovery)

    def top(self, limit: int) -> list[tuple[str, int]]:
        """The rooms with the most connections, whatever their type; none where there are too many to ask."""
        rooms, elsewhere = self._comet.rooms, self._comet.elsewhere.rooms
        if max(len(rooms), len(elsewhere)) > MANY_ROOMS:
            return []
        counts = {room.id: room.online for shard in rooms.all for room in shard.values()}
        for room_id, online in elsewhere.items():
            counts[room_id] = counts.get(room_id, 0) + online
        return heapq.nsmallest(limit, counts.items(), key=lambda room: (-room[1], room[0]))

    # Is it well?

    @property
    def uptime(self) -> float:
        """For how many seconds it has been running; 0 before."""
        return self.clock.now() - self._started if self._running else 0.0

    @property
    def draining(self) -> bool:
        """Whether node lists shall not name this node."""
        return self._node.draining

    @property
    def unready(self) -> str:
        """Why no new clients should be sent here; empty when they may come."""
        if not self._running:
            return "the server is not running"
        return "the server is draining" if self.draining else ""

    @property
    def queue_lag(self) -> float:
        """For how many seconds the push that came off the queue last had waited."""
        return self._queue.lag

    # The trace.

    def trace(self, mid: int, on: bool = True) -> None:
        """Trace the connections of the user ``mid``, those that are here and those that come; or no more.

        Raises :class:`ValueError` for the 101st user at a time, and for user 0, who is nobody in particular.
        """
        for _ in self.switch_trace(mid, on):
            pass

    def switch_trace(self, mid: int, on: bool) -> Iterator[None]:
        """The same in steps, between which others may have their turn: it looks at every connection."""
        tracer = self._tracer
        if on:
            tracer.add(mid)
        else:
            tracer.mids.discard(mid)
        self._counters.on_drop = tracer.dropped if tracer.mids else None
        for bucket in self._comet.buckets.all:
            for channel in [c for c in bucket.channels.values() if c.session.mid == mid]:
                if isinstance(channel.port, Connection):
                    # As it is now: it may have been switched again meanwhile.
                    (tracer.follow if mid in tracer.mids else tracer.unfollow)(channel.port)
            yield

    @property
    def traced(self) -> list[int]:
        """The users that are traced."""
        return sorted(self._tracer.mids)

    def trace_lines(self, after: int = 0, limit: int = 1000) -> tuple[list[Line], int]:
        """The oldest ``limit`` kept lines from number ``after`` on, and the number to ask for next."""
        return self._tracer.since(after, limit)

    # Nodes.

    def node(self) -> Node:
        """This node as it is now, which is what the others are told."""
        return evolve(self._node, connections=len(self._comet.buckets), addresses=len(self._comet.addresses))

    def region_of(self, address: str) -> str:
        """The region of a client at the IP ``address``: this node's, unless a subclass knows better."""
        return self._node.region

    def nodes_weighted(self, platform: str, address: str) -> dict[str, Any]:
        """Where a client shall connect: see :func:`goim_core.nodes.weighted`."""
        own = self.node()
        known = self._discovery.nodes() or (own,)
        if own.draining:  # which the discovery may not have been told yet
            known = [evolve(node, draining=True) if node.name == own.name else node for node in known]
        self._weigher.update(known, self.clock.now())
        ranked = self._weigher.choose(self.region_of(address)) or [own]
        return nodes.weighted(ranked, own, self.options, platform)

    def nodes_instances(self) -> list[dict[str, Any]]:
        """The nodes there are, drained ones too: see :func:`goim_core.nodes.instances`."""
        return nodes.instances(self._discovery.nodes() or (self.node(),))
