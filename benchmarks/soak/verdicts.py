"""Each bound with its figure, and whether it held. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from benchmarks.soak.books import Books
from benchmarks.soak.node import DRAIN
from benchmarks.soak.report import Held, Minute, slope

__all__ = ["Verdict", "of_ends", "of_memory", "of_nodes", "of_pushes"]

Verdict: TypeAlias = tuple[str, bool]

WARM_UP = 300.0
"""Seconds at the begin that the slope of memory leaves out: in them each fault comes for the first time."""
ENOUGH = 10
"""Of how many minutes a slope says something."""
GROWTH = 10.0
"""By how many per cent an hour memory may grow."""
SPARE = 1
"""How many more descriptors or tasks there may be at the end, for a question that is under way."""


def of_pushes(books: Books, last: Minute, conns: int) -> Iterator[Verdict]:
    """Nothing accepted is lost or in another order, and everybody is here to tell, at the end of pushing."""
    rooms, stored, missing = books.accepted, books.accepted_stored, books.behind + books.passed_over
    yield f"{last.live:,} of {conns:,} clients are there at the end of pushing", last.live == conns
    yield (
        f"{last.lost} of {rooms:,} accepted pushes to rooms lost, for anybody",
        bool(rooms) and not last.lost,
    )
    yield f"{missing} of {stored:,} accepted stored pushes lost", bool(stored) and not missing
    text = f"{last.reordered} deliveries to rooms and {last.stored_odd} stored ones out of order"
    yield text, last.reordered == last.stored_odd == 0


def of_memory(minutes: Sequence[Minute], name: str) -> Verdict:
    """The memory of the first node, which is never started again, does not grow."""
    points = [(m.at / 3600, held.rss_mb) for m in minutes if m.at > WARM_UP and (held := m.nodes[0])]
    if len(points) < ENOUGH:
        return f"memory of {name}: too short a run to tell", True
    growth = slope(points)
    share = 100 * growth * len(points) / sum(y for _, y in points)
    return f"memory of {name}: {growth:+.1f} MB an hour, {share:+.1f} %", share <= GROWTH


def of_nodes(names: Sequence[str], start: Sequence[Held], end: Sequence[Held | None]) -> Iterator[Verdict]:
    """Without clients each node holds what it held before."""
    for name, before, after in zip(names, start, end, strict=True):
        if after is None:
            yield f"{name}: is away at the end", False
            continue
        yield f"{name}: {after.connections} connections at the end", after.connections == 0
        for what in ("descriptors", "tasks"):
            had, has = getattr(before, what), getattr(after, what)
            yield f"{name}: {had} {what} at the start, {has} at the end", has <= had + SPARE


def of_ends(ends: Sequence[str]) -> Verdict:
    """SIGTERM ended every node with status 0, within the time that it has to drain."""
    in_time = all(end.startswith("0,") and float(end[2:].split()[0]) <= DRAIN for end in ends)
    return f"nodes ended by SIGTERM, within {DRAIN:g} s: {'; '.join(ends)}", in_time
