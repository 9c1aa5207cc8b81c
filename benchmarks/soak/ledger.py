"""What was accepted against what has arrived: lost, reordered, repeated. No I/O.

A publisher numbers what it pushes to a room, whether it is accepted or not, and a connection keeps of each
publisher which numbers came. Lost is what was accepted, and did not come to a connection that was there
all the time: from before it was pushed until after a later one of the same publisher came, or, where none
came, until :data:`GRACE` seconds after it was accepted.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["GRACE", "Inbox", "Pushes", "Span", "Track", "Visit", "lost_of_inbox"]

GRACE = 30.0
"""Seconds that an accepted push may take; a broker that is started again needs about ten."""

Span: TypeAlias = tuple[int, int, tuple[int, ...]]
"""The first and the last number that came, and those between them that did not."""


class Track:
    """The numbers of one publisher that came to one connection."""

    __slots__ = ("first", "last", "missing")

    def __init__(self) -> None:
        self.first = self.last = 0
        self.missing: set[int] | None = None

    def take(self, number: int) -> str:
        """Note that ``number`` came: "" for a new one in order, else "reordered" or "repeated"."""
        last = self.last
        if number == last + 1 or not last:
            self.first = self.first or number
            self.last = number
            return ""
        if number > last:
            self.missing = (self.missing or set()) | set(range(last + 1, number))
            self.last = number
            return ""
        if self.missing and number in self.missing:
            self.missing.remove(number)
            return "reordered"
        if number < self.first:
            self.missing = (self.missing or set()) | set(range(number + 1, self.first))
            self.first = number
            return "reordered"
        return "repeated"

    def span(self) -> Span:
        """The same as plain values."""
        return self.first, self.last, tuple(self.missing or ())


@dataclass(frozen=True)
class Visit:
    """One connection in a room: from when until when it was there, and what came of each publisher."""

    room: int
    since: float
    until: float
    """When it ended; for one that is still there, now."""
    spans: dict[int, Span]


class Pushes:
    """What one publisher pushed to one room: number n is at place n - 1."""

    def __init__(self) -> None:
        self.sent = array("d")
        self.answered = array("d")
        self.accepted = array("b")
        self._before = array("q", [0])
        """How many of the first n were accepted."""

    def add(self, sent: float, answered: float, accepted: bool) -> None:
        """The next one: when it was pushed, when that was answered, and whether with yes."""
        self.sent.append(sent)
        self.answered.append(answered)
        self.accepted.append(accepted)
        self._before.append(self._before[-1] + accepted)

    def lost(self, visit: Visit, span: Span) -> int:
        """How many of those that were accepted are missing from ``visit``."""
        first, last, missing = span
        known = len(self.sent)
        begin = bisect_left(self.sent, visit.since) + 1  # the first one that it has to have
        due = bisect_right(self.answered, visit.until - GRACE)
        end = min(known, max(last, due))
        if end < begin:
            return 0
        if not last:
            return self._between(begin, end)
        gaps = sum(self.accepted[n - 1] for n in missing if begin <= n <= known)
        return gaps + self._between(begin, first - 1) + self._between(max(begin, last + 1), end)

    def _between(self, first: int, last: int) -> int:
        last = min(last, len(self.sent))
        return self._before[last] - self._before[first - 1] if last >= first else 0


@dataclass
class Inbox:
    """The stored messages of one user, over all connections: numbered 1, 2, 3 by the server.

    The publisher has a count of its own in each, which has to be the same number.
    """

    high: int = 0
    """All up to this one have come."""
    lost: int = 0
    """Those below it that were passed over."""
    on_connection: int = 0
    """The last one that came on this connection; 0 for none yet."""

    def take(self, number: int, count: int) -> str:
        """Note what came: "" for the next one, else "repeated", "gap", "reordered" or "mixed up"."""
        before, self.on_connection = self.on_connection, number
        if count != number:
            return "mixed up"
        if before and number <= before:
            return "reordered"
        if number > self.high + 1:
            self.lost += number - self.high - 1
            self.high = number
            return "gap"
        if number <= self.high:
            return "repeated"
        self.high = number
        return ""


def lost_of_inbox(answered: Iterable[float], high: int, since: float, now: float) -> int:
    """How many of a user's stored messages, accepted at these times in order, are overdue at ``now``.

    ``since`` is when the connection began that is there now.
    """
    due = now - GRACE
    return 0 if since > due else max(0, sum(at <= due for at in answered) - high)
