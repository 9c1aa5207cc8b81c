"""All that was pushed, and all that was seen: what is lost at this moment."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict

from benchmarks.soak.client import UNIT_NS
from benchmarks.soak.crowd import Seen
from benchmarks.soak.ledger import Pushes, Visit, lost_of_inbox
from benchmarks.soak.pushers import Pushed
from benchmarks.soak.report import percentile

__all__ = ["Books"]

SETTLED = 15.0
"""Seconds after which it is known whether what a connection missed was accepted."""


class Books:
    """What the parent process knows."""

    def __init__(self) -> None:
        self.pushes: dict[tuple[int, int], Pushes] = defaultdict(Pushes)
        self.of_room: dict[int, set[int]] = defaultdict(set)
        self.users: dict[int, array[float]] = defaultdict(lambda: array("d"))
        self.highs: dict[int, int] = {}
        self.refused: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.accepted = self.accepted_stored = 0
        self.lost_by_ended = 0
        self.passed_over = 0
        """Stored messages before which a later one came."""
        self.latency: Counter[int] = Counter()
        self.user_latency: Counter[int] = Counter()
        self._ended: list[Visit] = []

    def pushed(self, pushed: Pushed) -> None:
        """Note what the pushers did."""
        for room, who, sent, answered, accepted in pushed.rooms:
            self.pushes[room, who].add(sent, answered, accepted)
            self.of_room[room].add(who)
            self.accepted += accepted
        for mid, answered in pushed.users:
            self.users[mid].append(answered)
        self.accepted_stored += len(pushed.users)
        self.refused += pushed.refused

    def seen(self, all_seen: list[Seen], now: float) -> tuple[int, int]:
        """Note what the clients saw; how many pushes to rooms and to users are lost until now."""
        lost = overdue = 0
        self.passed_over = 0
        self.latency, self.user_latency = Counter(), Counter()
        for seen in all_seen:
            self.counts += seen.tally.counts
            self.latency += seen.tally.room_latency
            self.user_latency += seen.tally.user_latency
            self._ended += seen.tally.visits
            lost += sum(map(self._lost, seen.visits))
            for mid, high, passed_over, since in seen.inboxes:
                self.highs[mid] = high
                self.passed_over += passed_over
                overdue += lost_of_inbox(self.users[mid], high, since, now) if since else 0
        known = [visit for visit in self._ended if visit.until < now - SETTLED]
        self._ended = [visit for visit in self._ended if visit.until >= now - SETTLED]
        self.lost_by_ended += sum(map(self._lost, known))
        return lost + self.lost_by_ended, overdue + self.passed_over

    def _lost(self, visit: Visit) -> int:
        return sum(
            self.pushes[visit.room, who].lost(visit, visit.spans.get(who, (0, 0, ())))
            for who in self.of_room.get(visit.room, ())
        )

    def percentiles(self) -> tuple[float, float, float]:
        """Median and 99th percentile of pushes to rooms, 99th of stored ones, in milliseconds."""
        unit = UNIT_NS / 1e6
        return (
            percentile(self.latency, 0.5, unit),
            percentile(self.latency, 0.99, unit),
            percentile(self.user_latency, 0.99, unit),
        )

    @property
    def behind(self) -> int:
        """How many stored messages have not come yet."""
        return sum(len(answered) - self.highs.get(mid, 0) for mid, answered in self.users.items())
