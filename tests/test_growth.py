"""What stays small however many there are: steps are counted here, not timed (benchmarks/growth.py times)."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count, pairwise

import anyio
import pytest
from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from goim_core import __main__ as command_line
from goim_core import collector
from goim_core import comet as comet_module
from goim_core import room as room_module
from goim_core.channel import Channel, Counters
from goim_core.clock import LOOKS, SLOT, Deadlines, Timed
from goim_core.comet import CHUNK, MAX_SHARE, PART, Comet, Pushing
from goim_core.errors import Refused
from goim_core.options import Options
from goim_core.presence import MAX_WATCHED
from goim_core.protocol import encode
from goim_core.registry import MemoryRegistry, Online
from goim_core.room import SEGMENT, Room
from goim_core.session import Session
from goim_core.shards import SHARDS, Shards
from goim_core.steps import at_once
from goim_core.testing.clock import ManualClock
from goim_core.wire import TCP, Packet
from tests.links import Link

ROOM = "live://1"
MANY = 200_000
PACKET = Packet([encode(1000, b"push")])
OPTIONS = Options()


@define(eq=False)
class Well:
    """The socket and the port of many channels: takes everything and counts it."""

    options: Options = OPTIONS
    counters: Counters = field(factory=Counters)
    sent: int = 0

    def send(self, data: bytes, /) -> int:
        self.sent += 1
        return len(data)

    def want_write(self) -> None: ...

    def close(self, why: object) -> None: ...

    def lost(self, error: OSError) -> None: ...


def crowd(comet: Comet, well: Well, number: int, *rooms: str) -> list[Channel]:
    """``number`` connections, spread over ``rooms`` in turn."""
    accepts = frozenset((1000,))
    channels = []
    for n in range(number):
        session = Session(mid=n, key=f"key-{n}", room_id=rooms[n % len(rooms)], accepts=accepts)
        channels.append(Channel(well, TCP, well, f"10.0.{n >> 8 & 255}.{n & 255}", session))
        comet.put(channels[-1])
    return channels


@pytest.fixture(scope="module")
def full_room() -> tuple[Comet, Well]:
    """Very many in one room."""
    well = Well()
    comet = Comet(counters=well.counters)
    crowd(comet, well, MANY, ROOM)
    return comet, well


def steps(pushing: Pushing, well: Well) -> Iterator[int]:
    """How many were sent to in each step of a push."""
    before = well.sent
    for _ in pushing:
        yield well.sent - before
        before = well.sent
    yield well.sent - before


@pytest.mark.parametrize(
    ("push", "most"),
    [
        (lambda comet: comet.push_room(ROOM, PACKET), CHUNK),
        (lambda comet: comet.push_all(1000, PACKET), CHUNK),
        (lambda comet: comet.push_keys((f"key-{n}" for n in range(MANY)), 1000, PACKET), CHUNK),
        (lambda comet: comet.push_all(1000, PACKET, 10**9), MAX_SHARE),
    ],
    ids=["room", "all", "keys", "all, with a speed"],
)
def test_a_push_to_200_000_stops_to_look_at_the_time(
    push: Callable[[Comet], Pushing],
    most: int,
    full_room: tuple[Comet, Well],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    comet, well = full_room
    looks = count()
    # Each look at the clock finds a slice passed: a push yields wherever it may.
    monkeypatch.setattr(comet_module, "perf_counter", lambda: next(looks) * 2 * comet_module.SLICE)
    found = list(steps(push(comet), well))
    assert sum(found) == MANY
    assert max(found) <= most
    assert max(CHUNK, MAX_SHARE) <= 1024, "a send is up to 10 us, and nobody shall wait for more than 10 ms"


def test_nothing_that_a_push_copies_at_once_is_large() -> None:
    room: Room[int] = Room(ROOM)
    for n in range(MANY):
        room.put(n)
    segments = list(room.segments())
    assert max(map(len, segments)) <= SEGMENT <= 10_922, "that is when a dict of 16,384 places is full"
    assert [n for segment in segments for n in segment] == list(range(MANY))
    assert (room.page(MANY - 3, 10), room.page(SEGMENT - 1, 2)) == (
        [MANY - 3, MANY - 2, MANY - 1],
        [SEGMENT - 1, SEGMENT],
    )


def test_no_dict_of_the_tables_is_large() -> None:
    comet, registry = Comet(), MemoryRegistry()
    channels = crowd(comet, Well(), MANY // 10, *(f"live://{n}" for n in range(MANY // 10)))
    for channel in channels:
        registry.add(channel.session)
    for table in (comet.rooms, comet.addresses, registry._by_key, registry._by_mid):
        assert len(table) == MANY // 10
        assert max(map(len, table.all)) < 2 * MANY // 10 / SHARDS
    for channel in channels:
        registry.remove(channel.session)
        comet.remove(channel)
    for table in (comet.rooms, comet.addresses, registry._by_key, registry._by_mid):
        assert not table
        assert len(table) == 0


@pytest.mark.parametrize("stride", [1, 2, 64, 1 << 22, -(1 << 12)])
def test_numbers_spread_whatever_they_are_multiples_of(stride: int) -> None:
    shards: Shards[int, int] = Shards()
    for n in range(SHARDS * 20):
        shards.of(n * stride)[n * stride] = n
    assert max(map(len, shards.all)) <= 2 * 20
    assert shards == {n * stride: n for n in range(SHARDS * 20)}


def test_rooms_are_counted_in_steps() -> None:
    comet = Comet()
    channels = crowd(comet, Well(), 3000, *(f"live://{n}" for n in range(1500)))
    comet.elsewhere = Online({"live://1": 5, **{f"live://far-{n}": 1 for n in range(2500)}})
    assert len(list(comet.census())) == -(-1500 // PART)
    found = at_once(comet.census())
    assert (len(found.rooms), found.rooms["live://7"], found.connections) == (1500, 2, 3000)
    assert len(list(comet.ranking("live", 1))) == -(-1500 // PART) + -(-2501 // PART)
    emptied = comet.ranking("live", 9000)
    next(emptied)
    for channel in channels:
        comet.remove(channel)
    assert "live://1" not in comet.rooms
    assert not [room for room, online in at_once(emptied) if not online]
    channels = crowd(comet, Well(), 3000, *(f"live://{n}" for n in range(1500)))
    assert at_once(comet.ranking("live", 2)) == [("1", 7), ("0", 2)]
    everything = at_once(comet.ranking("live", 2**63 - 1))
    assert (len(everything), everything[-1]) == (4000, ("far-999", 1))


def test_a_room_of_very_many_is_not_counted_for_who_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goim_core.presence.MAX_WATCHED", 3)
    comet, well = Comet(), Well()
    first, *_ = crowd(comet, well, 3, ROOM)
    assert first.room is not None
    comet.presence.watch(first.room, first)
    fourth = Link(session=Session(mid=4, key="4", room_id=ROOM)).channel
    comet.put(fourth)
    comet.presence.watch(first.room, fourth)  # counted already
    comet.presence.unwatch(first.room, first)
    comet.remove(fourth)
    other = Comet()
    second, *_ = crowd(other, well, 4, ROOM)
    assert second.room is not None
    with pytest.raises(Refused, match="more than 3 connections"):
        other.presence.watch(second.room, second)
    assert MAX_WATCHED <= 50_000


# The wheel.


@define(eq=False)
class Entry:
    """A deadline that counts how often it was kept."""

    at: float
    kept: int = 0
    slot: set[Timed] | None = None

    def due(self) -> float:
        return self.at

    def on_deadline(self) -> None:
        self.kept += 1


def test_very_many_deadlines_in_one_tick_are_kept_in_small_sets_and_small_steps() -> None:
    assert LOOKS <= 50, "each may close a connection, which takes up to 100 us"
    wheel = Deadlines(ManualClock())
    entries = [Entry(1.0) for _ in range(5 * SLOT // 2)]
    for entry in entries:
        wheel.watch(entry)
    slots = {id(entry.slot): entry.slot for entry in entries}
    assert sorted(len(slot or ()) for slot in slots.values()) == [SLOT // 2, SLOT, SLOT]
    for entry in entries[:SLOT]:  # a whole set
        wheel.forget(entry)
    assert isinstance(wheel.clock, ManualClock)
    wheel.clock.advance(2.0)
    before = 0
    while wheel.expire():
        now = sum(entry.kept for entry in entries[SLOT : SLOT + 2 * LOOKS])
        assert now - before <= LOOKS
        before = now
        if before == 2 * LOOKS:
            break
    while wheel.expire():
        pass
    assert [entry.kept for entry in entries] == [0] * SLOT + [1] * (3 * SLOT // 2)


def test_a_deadline_that_fills_its_own_tick_again_is_kept() -> None:
    """More than a set's worth is watched for a tick that is being looked at."""
    wheel = Deadlines(ManualClock())
    late = [Entry(-5.0) for _ in range(SLOT + 1)]

    class First(Entry):
        def on_deadline(self) -> None:
            for entry in late:
                wheel.watch(entry)

    wheel.watch(First(-5.0))
    while wheel.expire():
        pass
    assert [entry.kept for entry in late] == [1] * len(late)


# Rooms in segments.


class Members(RuleBasedStateMachine):
    """Members come and go while pushes walk the segments. The model is one dict."""

    def __init__(self) -> None:
        super().__init__()
        self.room: Room[int] = Room(ROOM)
        self.model: dict[int, None] = {}
        self.numbers = count()
        self.walks: list[tuple[Iterator[list[int]], set[int], set[int], list[int]]] = []
        """Those under way: who was in when it began, who has been in ever since, who was found."""

    @rule(several=st.integers(1, 5))
    def come(self, several: int) -> None:
        for _ in range(several):
            number = next(self.numbers)
            self.room.put(number)
            self.model[number] = None

    @rule(index=st.integers(0, 50), several=st.integers(1, 4), back=st.booleans())
    def go(self, index: int, several: int, back: bool) -> None:
        for number in list(self.model)[index : index + several]:
            self.room.remove(number)
            self.room.remove(number)
            del self.model[number]
            for _, _, stayed, _ in self.walks:
                stayed.discard(number)
            if back:
                self.room.put(number)
                self.model[number] = None

    @rule()
    def walk(self) -> None:
        segments = self.room.segments()
        self.walks.append((segments, set(self.model), set(self.model), list(next(segments))))

    @rule(index=st.integers(0, 20))
    def go_on(self, index: int) -> None:
        if self.walks:
            index %= len(self.walks)
            segments, begun, stayed, found = self.walks[index]
            segment = next(segments, None)
            found.extend(segment or ())
            assert len(found) == len(set(found)), "nobody is found twice"
            assert begun >= set(found), "who comes later is not found"
            if segment is None:
                assert set(found) >= stayed, "who stays is found"
                del self.walks[index]

    @invariant()
    def the_same(self) -> None:
        assert list(self.room.members) == list(self.model)
        assert (self.room.online, bool(self.room)) == (len(self.model), bool(self.model))
        assert self.room.page(2, 5) == list(self.model)[2:7]
        # However they come and go, the segments stay few: any two neighbours hold more than half of one.
        full = self.room._full
        assert all(full)
        for left, right in pairwise(full):
            assert len(left) + len(right) > room_module.SEGMENT // 2


@pytest.mark.parametrize("segment", [1, 4, 7])
def test_a_room_in_segments_is_a_room(segment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room_module, "SEGMENT", segment)
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Members, settings=settings(max_examples=60, stateful_step_count=50, deadline=None)
    )


def test_segments_that_become_one_are_walked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room_module, "SEGMENT", 4)
    room: Room[int] = Room(ROOM)
    for number in range(13):
        room.put(number)
    walk = room.segments()
    found = [next(walk)]
    for number in (4, 5, 6, 8, 9, 10):
        room.remove(number)
    assert [list(segment) for segment in room._full] == [[0, 1, 2, 3], [7, 11]]
    found += walk
    assert sorted(number for segment in found for number in segment if number in {*room.members}) == [
        *(0, 1, 2, 3, 7, 11, 12)
    ]


# The garbage collector.


def test_the_collector_looks_only_at_what_is_new() -> None:
    code = """
import gc
from goim_core import collector

kept = [[] for _ in range(100_000)]
young, middle, _ = gc.get_threshold()
collector.spare()
assert gc.get_freeze_count() > len(kept), gc.get_freeze_count()
assert gc.get_threshold()[:2] == (young, middle)
before = gc.get_stats()
more = [[] for _ in range(300_000)]
after = gc.get_stats()
assert after[1]["collections"] > before[1]["collections"] + 20
assert after[2]["collections"] == before[2]["collections"]
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_the_command_line_spares_the_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(collector, "spare", lambda: done.append("spared"))
    monkeypatch.setattr(anyio, "run", lambda *_, **__: done.append("served"))
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    monkeypatch.setattr(command_line, "_raise_descriptor_limit", lambda: None)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert command_line.main(["serve", "--auth", "open"]) == 0
    assert done == ["spared", "served"]
