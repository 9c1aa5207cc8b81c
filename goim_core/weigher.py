"""Which node a client should connect to: goim's weights. No I/O."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from goim_core.discovery import MAX_WEIGHT, Node

__all__ = ["MOST", "REGION_GAIN", "Weigher"]

REGION_GAIN = 1.6
"""How many times its weight a node of the caller's region counts."""
MOST = 5
"""How many nodes a client is told of."""
PATIENCE = 300.0
"""For how many seconds a list with under half of the known nodes is not believed."""

_log = logging.getLogger("goim_core.weigher")


class Weigher:
    """Puts nodes in the order in which a client should try them.

    The order is goim's, by a node's share of all weights against half of its share of all connections, where
    the first node of an answer counts one connection more until it reports again. What goim leaves to chance
    is decided here: among nodes of equal weight the one that is the emptiest for its size comes first.

    A list that leaves under half of the known nodes is taken for the discovery's loss of memory, and ignored;
    if it stays so for :data:`PATIENCE` seconds it is the truth (goim ignores it for ever).
    """

    def __init__(self) -> None:
        self._known: dict[str, Node] = {}
        self._chosen: dict[str, int] = {}
        self._doubted_since: float | None = None

    def update(self, nodes: Sequence[Node], now: float) -> None:
        """Take ``nodes`` as those that there are, at the time ``now`` in seconds."""
        if self._doubts(len(nodes), now):
            return
        known, self._known = self._known, {node.name: node for node in nodes}
        self._chosen = {
            name: count
            for name, count in self._chosen.items()
            if name in self._known and self._known[name].updated == known[name].updated
        }

    def _doubts(self, count: int, now: float) -> bool:
        if count * 2 >= len(self._known):
            self._doubted_since = None
            return False
        if self._doubted_since is None:
            self._doubted_since = now
            _log.warning("%d of %d known nodes are left: not believed yet", count, len(self._known))
        if now - self._doubted_since < PATIENCE:
            return True
        self._doubted_since = None
        return False

    def choose(self, region: str = "") -> list[Node]:
        """The nodes for a client in ``region``, best first, at most :data:`MOST`; the first counts as chosen.

        None that is draining. Empty when there is no other.
        """
        nodes = [node for node in self._known.values() if not node.draining]
        weight = sum(node.weight for node in nodes)
        connections = sum(map(self._connections, nodes))

        def place(node: Node) -> tuple[float, float, float, str]:
            own, gained = self._connections(node), node.weight * _gain(node, region)
            weighed = _weigh(node.weight, gained, weight, own, connections)
            return -weighed, own / gained if gained else math.inf, -gained, node.name

        nodes.sort(key=place)
        for first in nodes[:1]:
            self._chosen[first.name] = self._chosen.get(first.name, 0) + 1
        return nodes[:MOST]

    def _connections(self, node: Node) -> int:
        return node.connections + self._chosen.get(node.name, 0)


def _gain(node: Node, region: str) -> float:
    return REGION_GAIN if region and node.region == region else 1.0


def _weigh(weight: int, gained: float, all_weight: int, connections: int, all_connections: int) -> int:
    """goim's current weight of a node; ``gained`` is its weight with that of the caller's region."""
    if not all_connections:
        return 0
    all_weight += int(gained) - weight
    share = gained / all_weight if all_weight else 0.0
    lack = share - connections / all_connections * 0.5
    # Halves are rounded down.
    weighed = int(gained + math.ceil(lack * all_connections - 0.5))
    return max(1, weighed) if lack < 0 else min(MAX_WEIGHT, weighed)
