"""How many are in each room, as goim writes it in Redis: ``ol_<server>``, a hash of 64 slots."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from goim_core.adapters.redis.cityhash import cityhash32
from goim_core.registry import Online

__all__ = ["goim_slots", "sum_up"]

SLOTS = 64
OLDEST = 300
"""goim takes no notice of a report that is older, in seconds."""

# As Go's encoding/json writes text: it might be put into HTML.
_HTML = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)


def goim_slots(server: str, rooms: Mapping[str, int], now: float) -> dict[str, bytes]:
    """The fields of ``ol_<server>`` for the counts in ``rooms``, at the Unix time ``now``."""
    slots: dict[int, dict[str, int]] = {}
    for room in sorted(rooms):
        slots.setdefault(_slot(room), {})[room] = rooms[room]
    return {
        str(slot): _json({"server": server, "room_count": counts, "updated": int(now)})
        for slot, counts in slots.items()
    }


def sum_up(nodes: Sequence[Sequence[bytes]], now: float) -> Online:
    """All that is online on ``nodes``: of each the connections, the addresses, and the slots."""
    rooms: Counter[str] = Counter()
    connections = addresses = 0
    for node_connections, node_addresses, *slots in nodes:
        connections += _number(node_connections)
        addresses += _number(node_addresses)
        for slot in slots:
            rooms.update(_counts(slot, now))
    return Online(rooms, connections, addresses)


@lru_cache(maxsize=1 << 16)
def _slot(room: str) -> int:
    return cityhash32(room.encode(errors="replace")) % SLOTS


def _json(value: dict[str, Any]) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_HTML)
    return text.encode(errors="replace")


def _counts(slot: bytes, now: float) -> dict[str, int]:
    """What one slot says; nothing where it is old, or is none."""
    try:
        report = json.loads(slot)
        if now - report["updated"] > OLDEST:
            return {}
        return {room: count for room, count in report["room_count"].items() if type(count) is int}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def _number(value: bytes) -> int:
    return int(value) if value.isdigit() else 0
