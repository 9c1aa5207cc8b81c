"""A server's figures."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from goim_core.channel import Counters
from goim_core.comet import Comet
from goim_core.discovery import Discovery
from goim_core.queue import Queue
from goim_core.registry import Registry

__all__ = ["Stats", "read_stats"]


@frozen
class Stats:
    """A server's figures at one moment.

    ``connections`` are all open sockets of clients, ``users`` those that are authenticated; ``opened`` and
    ``deliveries`` count since the start, as do ``drops`` (messages by reason) and ``closes`` (connections
    by close code); ``pending`` is how many pushes are accepted and not yet sent;
    ``troubles`` what is wrong at the moment with the queue, the registry or the discovery that nodes share.
    """

    connections: int
    users: int
    addresses: int
    rooms: int
    opened: int
    deliveries: int
    pending: int
    drops: Mapping[str, int]
    closes: Mapping[int, int]
    troubles: Mapping[str, str]


def read_stats(
    counters: Counters, comet: Comet, queue: Queue, registry: Registry, discovery: Discovery
) -> Stats:
    """The figures now."""
    shared: dict[str, Queue | Registry | Discovery] = {
        "queue": queue,
        "registry": registry,
        "discovery": discovery,
    }
    return Stats(
        connections=counters.opened - counters.closed,
        users=len(comet.buckets),
        addresses=len(comet.addresses),
        rooms=len(comet.rooms),
        opened=counters.opened,
        deliveries=counters.deliveries,
        pending=queue.pending,
        drops=dict(counters.drops),
        closes=dict(counters.closes),
        troubles={name: part.trouble for name, part in shared.items() if part.trouble},
    )
