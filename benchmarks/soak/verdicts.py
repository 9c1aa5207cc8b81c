"""Each bound with its figure, and whether it held. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from benchmarks.soak.books import Books
from benchmarks.soak.node import DRAIN
from benchmarks.soak.report import Held, Level, Minute, slope

__all__ = ["WARM_UP", "Verdict", "of_ends", "of_memory", "of_nodes", "of_pushes"]

Verdict: TypeAlias = tuple[str, bool]

WARM_UP = 2
"""Turns of all faults that growth leaves out: harder than those that count, so memory was at its most."""
ENOUGH = 10
"""Of how many levels growth says something."""
LONG = 600.0
"""And over how many seconds: a megabyte in a minute is no megabyte in each."""
GROWTH = 10.0
"""By how many per cent an hour memory may grow, and what is in use without clients from start to end."""
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


def of_memory(levels: Sequence[Level], name: str) -> Iterator[Verdict]:
    """The memory of the first node, which is never started again, does not grow: resident, and in use.

    Each level is that before a fault, and is compared with those before the same fault in other turns.
    """
    kinds = len({level.fault for level in levels})
    counted = [(level, level.held) for level in levels[WARM_UP * kinds :] if level.held]
    if len(counted) < ENOUGH or counted[-1][0].at - counted[0][0].at < LONG:
        yield f"memory of {name}: too short a run to tell", True
        return
    for what, unit in (("rss_mb", "MB resident"), ("blocks", "of Python's blocks in use")):
        found = [(level.fault, level.at / 3600, getattr(held, what)) for level, held in counted]
        by_fault = [[(x, y) for of, x, y in found if of == fault] for fault in {of for of, _, _ in found}]
        share = 100 * slope(*by_fault) * len(found) / max(1, sum(y for _, _, y in found))
        first, last = found[0][2], found[-1][2]
        yield f"{name}: {first:,} to {last:,} {unit}, by fault {share:+.1f} % an hour", share <= GROWTH


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
        share = 100 * (after.blocks - before.blocks) / max(1, before.blocks)
        blocks = f"{before.blocks:,} of Python's blocks in use at the start, {after.blocks:,} at the end"
        beside = f"MB of the C library {before.malloc_mb} and {after.malloc_mb}"
        resident = f"resident {before.rss_mb} and {after.rss_mb}"
        yield f"{name}: {blocks}, {share:+.1f} % ({beside}, {resident})", share <= GROWTH


def of_ends(ends: Sequence[str]) -> Verdict:
    """SIGTERM ended every node with status 0, within the time that it has to drain."""
    in_time = all(end.startswith("0,") and float(end[2:].split()[0]) <= DRAIN for end in ends)
    return f"nodes ended by SIGTERM, within {DRAIN:g} s: {'; '.join(ends)}", in_time
