"""How far a node has read a numbered stream: compared with a model that keeps everything."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from goim_core.adapters.nats.reading import Reading
from goim_core.adapters.nats.stream import Place

steps = st.lists(
    st.tuples(st.sampled_from(["come", "pass", "done", "publish"]), st.integers(0, 30)), max_size=80
)


@given(st.integers(0, 5), steps)
def test_the_floor_is_below_whatever_is_not_done_with(start: int, taken: list[tuple[str, int]]) -> None:
    reading = Reading()
    assert reading.place is None
    reading.begin(Place("made", start), start)
    last, unfinished, tags = start, set(), {}
    published: set[int] = set()
    for step, amount in taken:
        if step in ("come", "pass"):
            number = last + amount - 2  # some come again, and some numbers are of other nodes
            assert reading.came(number) == (number > last)
            if number > last:
                last = number
                if step == "come":
                    tags[number] = reading.open(number)
                    unfinished.add(number)
        elif step == "done" and tags:
            number = sorted(tags)[amount % len(tags)]
            reading.done(tags[number])  # twice is no harm
            unfinished.discard(number)
        elif step == "publish":
            number = max(published | {last}) + amount % 3
            if number not in published:
                published.add(number)
                reading.published(number)
        assert reading.floor == min(unfinished, default=last + 1) - 1
        to_come = {number for number in published if number > last}
        assert reading.pending == len(unfinished) + len(to_come)
        assert reading.settled == (not to_come and reading.floor >= max(published, default=0))
        assert reading.place == Place("made", reading.floor)


def test_another_stream_is_begun_with_anew() -> None:
    reading = Reading()
    reading.begin(Place("old", 5), 5)
    assert reading.came(6)
    tag = reading.open(6)
    reading.published(7)
    reading.begin(Place("new", 0), 1)
    assert (reading.pending, reading.settled, reading.floor) == (0, True, 0)
    assert reading.came(1)
    reading.open(1)
    reading.done(tag)
    assert reading.floor == 0


def test_what_a_server_lost_at_the_end_is_numbered_again() -> None:
    reading = Reading()
    reading.begin(Place("made", 0), 0)
    for number in (1, 2, 3):
        assert reading.came(number)
        reading.open(number)
    reading.published(3)
    reading.begin(Place("made", 0), 2)
    assert (reading.pending, reading.floor) == (2, 0)
    assert reading.came(3)
