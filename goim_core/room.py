"""A room: those whom a room push reaches. Sync."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import Generic, TypeVar

from attrs import Factory, define

__all__ = ["SEGMENT", "Room"]

M = TypeVar("M")

SEGMENT = 10_000
"""How many members are kept in one dict: a large one would hold the event loop for 50 ms when it grows."""


@define(eq=False, weakref_slot=False)
class Room(Generic[M]):
    """The members of ``id`` (``type://id``), in the order they came: the comet's are channels.

    goim keeps a part of each room in each bucket, which costs it the room's order and makes its count
    a sum that is 10 s old; one room object gives both exactly, at once.
    """

    id: str
    _last: dict[M, None] = Factory(dict)
    """Those who came last, or all of them. Who comes is put here."""
    _full: tuple[dict[M, None], ...] = ()
    """Those who came before. Nobody is put into one of these: what :meth:`segments` promises rests on it."""

    def put(self, member: M) -> None:
        """Let ``member`` in, which is not in."""
        if len(self._last) >= SEGMENT:
            self._full = (*self._full, self._last)
            self._last = {}
        self._last[member] = None

    def remove(self, member: M) -> None:
        """Let ``member`` out, if it is in."""
        if member in self._last:
            del self._last[member]
            return
        for number, segment in enumerate(self._full):
            if member in segment:
                del segment[member]
                self._tidy(number)
                return

    def _tidy(self, number: int) -> None:
        # Of those who stay long every segment may keep a few: two neighbours with little in them become one,
        # which is a new one. A push that is under way has the two, and shall find nobody twice.
        if not self._full[number]:
            self._full = self._full[:number] + self._full[number + 1 :]
            return
        for first in (max(0, number - 1), number):
            pair = self._full[first : first + 2]
            if len(pair) == 2 and len(pair[0]) + len(pair[1]) <= SEGMENT // 2:
                self._full = (*self._full[:first], pair[0] | pair[1], *self._full[first + 2 :])
                return

    def segments(self) -> Iterator[list[M]]:
        """All who are in when the first one is asked for, some thousands at a time, in the order they came.

        Others may work between two of them. Who comes meanwhile is in none that follows, and nobody is in
        two; who leaves meanwhile may be in one still.
        """
        full, last = self._full, list(self._last)
        for segment in full:
            yield list(segment)
        yield last

    def page(self, offset: int, limit: int) -> list[M]:
        """At most ``limit`` members after the first ``offset``, in the order they came."""
        found: list[M] = []
        for segment in (*self._full, self._last):
            if offset < len(segment):
                found.extend(islice(segment, offset, offset + limit - len(found)))
            offset = max(0, offset - len(segment))
        return found

    @property
    def members(self) -> Iterator[M]:
        """All who are in, in the order they came."""
        return chain(*self._full, self._last)

    @property
    def online(self) -> int:
        """How many are in."""
        return len(self._last) + (sum(map(len, self._full)) if self._full else 0)

    def __bool__(self) -> bool:
        return bool(self._last or self._full)
