"""Target: what other nodes say in Redis and in bilibili/discovery."""

from __future__ import annotations

import json
from collections.abc import Iterator

from attrs import evolve

from goim_core.adapters.redis.counts import goim_slots, sum_up
from goim_core.discovery import Node, instance, read_instance

__all__ = ["check", "seeds"]

NOW = 1_700_000_000.0


def check(data: bytes) -> None:
    """An instance is a node that can be told on, or a ValueError; counts are counts, whatever is written."""
    online = sum_up(
        [data.split(b"\n"), [b"1", b"1", data]] if data.count(b"\n") else [[data, b"", data]], NOW
    )
    assert online.connections >= 0
    assert online.addresses >= 0
    assert all(type(count) is int for count in online.rooms.values())
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(fields, dict):
        try:
            node = read_instance(fields)
        except ValueError:
            return
        again = read_instance(json.loads(json.dumps({**instance(node), "latest_timestamp": node.updated})))
        # A host may have commas in it, which stand between hosts when they are told on.
        assert evolve(again, host="", hosts=()) == evolve(node, host="", hosts=())


def seeds() -> Iterator[bytes]:
    """Instances and counts as nodes write them."""
    node = Node(
        "n1", host="n1.example.org", hosts=("192.0.2.1", "2001:db8::1"), addrs={"ws": "192.0.2.1:3102"}
    )
    yield json.dumps({**instance(node), "latest_timestamp": 5}).encode()
    yield b"12\n3\n" + b"\n".join(goim_slots("n1", {"live://1000": 3, "live://2": 1}, NOW).values())
