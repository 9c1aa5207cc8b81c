"""The soak's accounting: it finds what is lost, reordered and repeated, and blames nobody for the rest."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.soak.books import Books
from benchmarks.soak.client import Tally
from benchmarks.soak.crowd import Seen
from benchmarks.soak.ledger import GRACE, Inbox, Pushes, Track, Visit, lost_of_inbox
from benchmarks.soak.pushers import Pushed
from benchmarks.soak.report import Held, Level, Minute, percentile, picture, slope
from benchmarks.soak.verdicts import of_ends, of_memory, of_nodes, of_pushes


def pushes(accepted: str = "yyyyyyyyyy") -> Pushes:
    """Number n is pushed at second n and answered half a second later."""
    made = Pushes()
    for at, letter in enumerate(accepted, 1):
        made.add(at, at + 0.5, letter == "y")
    return made


def visit(numbers: list[int], since: float = 0.0, until: float = 11.0) -> tuple[Visit, list[str]]:
    track = Track()
    said = [track.take(number) for number in numbers]
    return Visit(1, since, until, {0: track.span()}), said


def lost(numbers: list[int], accepted: str = "yyyyyyyyyy", **when: float) -> int:
    made, _ = visit(numbers, **when)
    return pushes(accepted).lost(made, made.spans[0])


ALL = list(range(1, 11))


def test_all_that_came_is_not_lost() -> None:
    assert lost(ALL) == 0


def test_what_is_missing_in_between_is_lost() -> None:
    assert lost([1, 2, 4, 5, 8]) == 3


def test_what_was_not_accepted_is_not_lost() -> None:
    assert lost([1, 2, 4, 5], "yynyyyyyyy") == 0
    assert lost([3, 4, 5], "nnyyyyyyyy") == 0


def test_what_was_pushed_before_the_connection_is_not_lost() -> None:
    assert lost([5, 6, 8], since=4.5) == 1
    assert lost([7, 8], since=4.5) == 2  # 5 and 6 were pushed to it


def test_the_end_may_be_under_way_and_is_lost_after_a_while() -> None:
    assert lost([1, 2, 3], until=10 + GRACE) == 6  # 10 was accepted half a second too late
    assert lost([1, 2, 3], until=10.5 + GRACE) == 7
    assert lost([1, 2, 3], until=20) == 0
    assert lost([1, 2, 3], "yyynnnnnnn", until=100) == 0


def test_a_deaf_connection_loses_everything() -> None:
    assert lost([], until=5) == 0
    assert lost([], until=100) == 10
    assert lost([], since=8.5, until=100) == 2
    assert lost([], since=50, until=100) == 0


def test_old_ones_that_a_node_catches_up_with_are_neither_here_nor_there() -> None:
    assert lost([2, 3, 5, 6, 7, 8, 9, 10], since=5) == 0


def test_what_comes_late_is_reordered_and_not_lost() -> None:
    made, said = visit([1, 2, 4, 3, 5])
    assert said == ["", "", "", "reordered", ""]
    assert pushes().lost(made, made.spans[0]) == 0
    assert visit([3, 1, 2])[1] == ["", "reordered", "reordered"]


def test_what_comes_again_is_repeated() -> None:
    assert visit([1, 2, 3, 2, 3, 4])[1] == ["", "", "", "repeated", "repeated", ""]


@given(
    st.lists(st.booleans(), min_size=1, max_size=30),
    st.sets(st.integers(1, 30)),
    st.randoms(use_true_random=False),
    st.integers(0, 30),
    st.integers(0, 80),
)
def test_it_counts_as_one_would_by_hand(
    accepted: list[bool], came: set[int], random: object, since: int, stays: int
) -> None:
    numbers = [number for number in came if number <= len(accepted)]
    random.shuffle(numbers)  # type: ignore[attr-defined]
    made, _ = visit(numbers, since=since, until=since + stays)
    book = pushes("".join("y" if yes else "n" for yes in accepted))
    last = max(numbers, default=0)
    expected = [
        number
        for number, yes in enumerate(accepted, 1)
        if yes and number >= since and (number <= last or number + 0.5 <= since + stays - GRACE)
    ]
    assert book.lost(made, made.spans[0]) == len(set(expected) - set(numbers))


def test_an_inbox_has_no_gap_no_other_order_and_no_second_copy_on_a_connection() -> None:
    inbox = Inbox()
    assert [inbox.take(number, number) for number in (1, 2, 3)] == ["", "", ""]
    assert inbox.take(2, 2) == "reordered"
    inbox.on_connection = 0  # the next connection
    assert [inbox.take(number, number) for number in (3, 4)] == ["repeated", ""]
    assert inbox.take(7, 7) == "gap"
    assert (inbox.high, inbox.lost) == (7, 2)
    assert inbox.take(8, 7) == "mixed up"  # stored twice


def test_stored_messages_are_overdue_only_for_who_is_there() -> None:
    answered = [1.0, 2.0, 3.0]
    assert lost_of_inbox(answered, 1, since=1.0, now=2 + GRACE) == 1
    assert lost_of_inbox(answered, 1, since=1.0, now=3 + GRACE) == 2
    assert lost_of_inbox(answered, 1, since=40.0, now=41.0) == 0
    assert lost_of_inbox(answered, 3, since=1.0, now=100.0) == 0


def test_the_books_put_it_together() -> None:
    books = Books()
    books.pushed(Pushed(rooms=[(1, 0, n, n + 0.5, n != 4) for n in range(1, 6)], users=[(7, 1.0), (7, 2.0)]))
    ended, _ = visit([1, 3, 5])  # 2 is lost, 4 was not accepted
    here, _ = visit([1, 2, 3, 5])
    seen = Seen(1, Tally(Counter(deliveries=7), visits=[ended]), [here], [(7, 1, 0, 0.5)])
    assert books.seen([seen], now=12.0) == (0, 0)  # it is too early to tell
    quiet = Seen(1, Tally(), [here], [(7, 1, 0, 0.5)])
    assert books.seen([quiet], now=50.0) == (1, 1)
    assert books.seen([quiet], now=60.0) == (1, 1)  # nobody is counted twice
    assert (books.accepted, books.accepted_stored, books.behind) == (4, 2, 1)
    assert books.counts["deliveries"] == 7


def held(**counts: int) -> Held:
    zeros = dict.fromkeys(("pid", "threads", "objects", "users", "deliveries", "connections", "malloc_mb"), 0)
    return Held(rss_mb=80.0, **{**zeros, "descriptors": 19, "tasks": 24, "blocks": 200_000, **counts})


def minute(at: float, rss_mb: float = 80.0, **figures: int) -> Minute:
    zeros = dict.fromkeys(field.name for field in fields(Minute))
    node = held()
    node.rss_mb = rss_mb
    of_all = {"live": 9, "lost": 0, "reordered": 0, "stored_odd": 0, **figures}
    return Minute(**{**zeros, **of_all, "at": at, "nodes": [node, None]})


def all_held(books: Books, **figures: int) -> bool:
    return all(good for _, good in of_pushes(books, minute(60, **figures), 9))


def test_each_bound_can_be_broken() -> None:
    books = Books()
    assert not all_held(books)  # nothing was pushed
    books.accepted = books.accepted_stored = 1
    assert all_held(books)
    for figures in ({"lost": 1}, {"reordered": 1}, {"stored_odd": 1}, {"live": 8}):
        assert not all_held(books, **figures)
    books.passed_over = 1
    assert not all_held(books)
    books.passed_over, books.users[7] = 0, array("d", [1.0])  # which did not come
    assert not all_held(books)

    assert all(good for _, good in of_nodes(["a"], [held()], [held(tasks=25)]))
    for end in (None, held(connections=1), held(descriptors=22), held(tasks=27), held(blocks=230_000)):
        assert not all(good for _, good in of_nodes(["a"], [held()], [end]))
    assert of_ends(["0, 1.2 s with 0.7 s of CPU", "0, 0.1 s with 0.1 s of CPU"])[1]
    for how in ("-9, 1.0 s with 0.9 s of CPU", "0, 10.1 s with 2.1 s of CPU"):
        assert not of_ends(["0, 1.2 s with 0.7 s of CPU", how])[1]


FAULTS = ("node", "storm", "queue", "registry")


def memory_held(
    of: Callable[[float, str], float], what: str = "rss_mb", turns: int = 6, gap: float = 75.0
) -> bool:
    """Whether memory is flat that is ``of`` so many minutes and the fault that follows."""
    levels = []
    for number in range(turns * len(FAULTS)):
        level = Level(gap * (number + 1), FAULTS[number % len(FAULTS)], held())
        assert level.held is not None
        setattr(level.held, what, of(level.at / 60, level.fault))
        levels.append(level)
    return all(good for _, good in of_memory(levels, "a"))


@pytest.mark.parametrize("what", ["rss_mb", "blocks"])
def test_memory_may_not_grow(what: str) -> None:
    assert memory_held(lambda _, __: 80, what)
    assert memory_held(lambda at, _: 80 - at, what)
    assert memory_held(lambda at, _: 80 + 0.1 * at, what)  # 6 of 80 in an hour
    assert not memory_held(lambda at, _: 80 + 0.2 * at, what)
    assert not memory_held(lambda at, _: 80 + 5 * (at > 20), what)  # a step that stays
    assert memory_held(lambda at, _: 80 + 40 * (at < 9), what)  # it was the warm-up
    assert memory_held(lambda at, _: 80 + at, what, turns=4)  # nobody can tell
    assert memory_held(lambda at, _: 80 + at, what, gap=30)


def test_memory_is_compared_with_that_before_the_same_fault() -> None:
    of_fault = {"node": 70, "storm": 120, "queue": 90, "registry": 90}
    assert memory_held(lambda _, fault: of_fault[fault])
    assert not memory_held(lambda at, fault: of_fault[fault] + 0.2 * at)


def test_a_node_that_is_away_has_no_level() -> None:
    levels = [Level(75.0 * n, "storm", None if n % 2 else held()) for n in range(40)]
    assert all(good for _, good in of_memory(levels, "a"))


def test_the_picture_is_one() -> None:
    minutes = [minute(60 * n, p50_ms=1, p99_ms=n) for n in range(1, 4)]
    for each in minutes:
        each.events = ["storm", "node (0, 1.2 s)"]
    lines = [line for line in ET.fromstring(picture(minutes, ["a", "b"])).iter() if "points" in line.attrib]
    assert [len(line.attrib["points"].split()) for line in lines] == [3, 0, 3, 3, 3]


def test_slope_and_percentile() -> None:
    assert slope([(0, 5.0), (1, 7.0), (2, 9.0)]) == pytest.approx(2)
    assert slope([(0, 5.0)]) == 0
    assert slope() == 0
    assert slope([(0, 5.0), (2, 9.0)], [(1, 50.0), (3, 54.0)], [(7, 1.0)]) == pytest.approx(2)
    assert percentile(Counter({0: 98, 10: 1, 50: 1}), 0.99, 0.2) == pytest.approx(2.2)
    assert percentile(Counter(), 0.99, 0.2) == 0
