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
    by close code), and ``refusals`` (how often a limit was met, by its option); ``handshakes`` are
    the connections on their way in, ``http_connections`` those of the HTTP doors, ``outbox_bytes`` what waits
    for all clients to take it; ``pending`` is how many pushes are accepted and not yet sent;
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
    refusals: Mapping[str, int]
    handshakes: int
    http_connections: int
    outbox_bytes: int
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
        refusals=dict(counters.refusals),
        handshakes=counters.handshakes,
        http_connections=counters.http,
        outbox_bytes=counters.outboxes.waiting,
        troubles={name: part.trouble for name, part in shared.items() if part.trouble},
    )
