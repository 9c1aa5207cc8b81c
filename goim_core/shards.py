"""A table in shards: it grows and is walked in small steps, however much is in it. Sync.

A dict that grows moves all it has at once: at a million entries that holds the event loop for 50 ms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

__all__ = ["SHARDS", "Shards", "Tally"]

K = TypeVar("K")
V = TypeVar("V")

SHARDS = 127
"""How many dicts there are: of a million entries each has 8,000, and moves them in half a millisecond.

A prime, because numbers that an application gives its users may all be multiples of a power of two.
"""


class Shards(Mapping[K, V]):
    """Entries spread over :data:`SHARDS` dicts by their hashes, in no order. To be changed by :meth:`of`."""

    __slots__ = ("all",)

    def __init__(self) -> None:
        self.all: tuple[dict[K, V], ...] = tuple({} for _ in range(SHARDS))

    def of(self, key: K) -> dict[K, V]:
        """The dict that ``key`` belongs to."""
        return self.all[hash(key) % SHARDS]

    def __getitem__(self, key: K) -> V:
        return self.of(key)[key]

    def get(self, key: K, default: Any = None) -> Any:
        """What is under ``key``, or ``default``: without an exception for what is not there."""
        return self.all[hash(key) % SHARDS].get(key, default)

    def __iter__(self) -> Iterator[K]:
        for shard in self.all:
            yield from shard

    def __len__(self) -> int:
        return sum(map(len, self.all))

    def __bool__(self) -> bool:
        return any(self.all)


class Tally(Shards[K, int]):
    """How many there are of each; what there are none of is not in it."""

    __slots__ = ()

    def add(self, key: K, change: int = 1) -> None:
        """So many more, or fewer, of ``key``."""
        shard = self.of(key)
        count = shard.get(key, 0) + change
        if count:
            shard[key] = count
        else:
            shard.pop(key, None)
