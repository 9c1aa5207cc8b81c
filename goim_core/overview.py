"""What a server can tell while it runs: who is online, its figures, and the nodes there are. Sync.

The base of :class:`goim_core.Server`, which has the parts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attrs import evolve

from goim_core import nodes
from goim_core.channel import Counters
from goim_core.clock import Clock, Deadlines
from goim_core.comet import Comet
from goim_core.discovery import Discovery, Node
from goim_core.options import Options
from goim_core.queue import Queue
from goim_core.registry import Registry
from goim_core.session import Session
from goim_core.stats import Stats, read_stats
from goim_core.weigher import Weigher

__all__ = ["Overview"]


class Overview:
    """The questions that a :class:`goim_core.Server` answers at once."""

    options: Options
    _node: Node
    _comet: Comet
    _counters: Counters
    _deadlines: Deadlines
    _queue: Queue
    _registry: Registry
    _discovery: Discovery
    _weigher: Weigher

    @property
    def clock(self) -> Clock:
        """The server's clock."""
        return self._deadlines.clock

    def online_top(self, kind: str, limit: int) -> list[tuple[str, int]]:
        """The rooms ``kind://id`` with the most connections: id and count, largest first."""
        return self._comet.online_top(kind, limit)

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
        self._weigher.update(self._discovery.nodes() or (own,), self.clock.now())
        ranked = self._weigher.choose(self.region_of(address)) or [own]
        return nodes.weighted(ranked, own, self.options, platform)

    def nodes_instances(self) -> list[dict[str, Any]]:
        """The nodes there are, drained ones too: see :func:`goim_core.nodes.instances`."""
        return nodes.instances(self._discovery.nodes() or (self.node(),))
