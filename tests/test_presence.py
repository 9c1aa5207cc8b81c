"""Presence: who came and who left, once a second, to those who watch, and nothing where nobody does."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from goim_core import presence as presence_module
from goim_core.clock import Deadlines
from goim_core.comet import Comet
from goim_core.errors import ErrorCode, Refused
from goim_core.options import Options, OutboxPolicy
from goim_core.presence import Presence
from goim_core.protocol import Op, encode
from goim_core.session import Session
from goim_core.testing.clock import ManualClock
from goim_core.wire import Packet
from tests.links import Link

ROOM = "live://1"
OTHER = "live://2"
TICK = 0.25
"""A deadline is late by less than that."""


class Hall:
    """A comet with presence, and its clock."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.deadlines = Deadlines(self.clock, TICK)
        self.presence = Presence(self.deadlines)
        self.comet = Comet(presence=self.presence)
        self.count = 0

    def put(self, mid: int, room_id: str = ROOM, accepts: frozenset[int] = frozenset((Op.PRESENCE,))) -> Link:
        self.count += 1
        session = Session(mid=mid, key=f"k{self.count}", room_id=room_id, accepts=accepts)
        link = Link(session=session, counters=self.comet.counters)
        self.comet.put(link.channel)
        return link

    def watch(self, link: Link, room_id: str = ROOM) -> None:
        self.presence.watch(self.comet.rooms[room_id], link.channel)

    def unwatch(self, link: Link, room_id: str = ROOM) -> None:
        self.presence.unwatch(self.comet.rooms[room_id], link.channel)

    def watching(self, mid: int) -> Link:
        link = self.put(mid)
        self.watch(link)
        return link

    def pass_time(self, seconds: float = 1.0 + TICK) -> None:
        self.clock.advance(seconds)
        self.deadlines.expire()


def events(link: Link) -> list[tuple[list[int], list[int], int]]:
    """Who joined, who left and how many were online, of each event, whose form is looked at here."""
    found = []
    for frame in link.frames():
        event = json.loads(frame.body)
        assert (frame.op, frame.seq, frame.ver) == (Op.PRESENCE, 0, 1)
        assert list(event) == ["room_id", "joined", "left", "online"]
        found.append((event["joined"], event["left"], event["online"]))
    return found


def test_who_watches_hears_of_those_who_come_and_go() -> None:
    hall = Hall()
    before, watcher = hall.put(1), hall.watching(2)
    hall.put(3)
    hall.comet.remove(before.channel)
    hall.put(4, OTHER)
    hall.pass_time()
    assert events(watcher) == [([3], [1], 2)]
    hall.pass_time()
    assert events(watcher) == [([3], [1], 2)], "nothing has changed"
    assert before.frames() == []


def test_what_changes_within_a_second_is_one_event_and_no_sooner() -> None:
    hall = Hall()
    watcher = hall.watching(1)
    hall.put(2)
    hall.pass_time(0.5)
    hall.put(3)
    hall.pass_time(0.49)
    assert events(watcher) == []
    hall.pass_time(0.01 + TICK)
    assert events(watcher) == [([2, 3], [], 3)]
    hall.put(4)
    hall.pass_time(0.99)
    assert len(events(watcher)) == 1
    hall.pass_time(0.01 + TICK)
    assert events(watcher)[1:] == [([4], [], 4)]


def test_who_comes_and_goes_within_a_second_is_no_event() -> None:
    hall = Hall()
    stays, watcher = hall.put(2), hall.watching(1)
    hall.comet.remove(hall.put(3).channel)
    hall.comet.change_room(stays.channel, OTHER)
    hall.comet.change_room(stays.channel, ROOM)
    hall.pass_time()
    assert events(watcher) == []


def test_a_user_with_several_connections_comes_once_and_leaves_with_the_last() -> None:
    hall = Hall()
    first = hall.put(2)
    watcher = hall.watching(1)
    second, third = hall.put(2), hall.put(3)
    hall.put(3)
    hall.pass_time()
    assert events(watcher) == [([3], [], 5)]
    hall.comet.remove(first.channel)
    hall.comet.remove(third.channel)
    hall.pass_time()
    assert len(events(watcher)) == 1
    hall.comet.remove(second.channel)
    hall.pass_time()
    assert events(watcher)[1:] == [([], [2], 2)]


def test_joined_and_changed_to_it_is_one_room() -> None:
    hall = Hall()
    watcher, link = hall.watching(1), hall.put(2, OTHER)
    hall.comet.join(link.channel, ROOM)
    hall.comet.change_room(link.channel, ROOM)
    hall.pass_time()
    hall.comet.leave(link.channel, ROOM)
    hall.pass_time()
    hall.comet.change_room(link.channel, OTHER)
    hall.pass_time()
    assert events(watcher) == [([2], [], 2), ([], [2], 1)]


def test_a_watcher_that_leaves_the_room_hears_no_more_of_it() -> None:
    hall = Hall()
    links = stays, leaves, stops, goes = [hall.put(mid) for mid in (1, 2, 3, 4)]
    for link in links:
        hall.watch(link)
    hall.put(5)
    hall.comet.change_room(leaves.channel, OTHER)
    hall.unwatch(stops)
    hall.comet.remove(goes.channel)
    hall.pass_time()
    assert events(stays) == [([5], [2, 4], 3)]
    assert [link.frames() for link in (leaves, stops, goes)] == [[], [], []]
    hall.comet.change_room(leaves.channel, ROOM)
    hall.pass_time()
    assert events(stays)[1:] == [([2], [], 4)]
    assert leaves.frames() == [], "it has to ask again"


def test_when_the_last_watcher_leaves_nothing_is_kept() -> None:
    hall = Hall()
    watcher, other = hall.watching(1), hall.watching(2)
    hall.put(3)
    hall.unwatch(other)
    hall.comet.change_room(watcher.channel, "")
    hall.pass_time()
    assert hall.presence._watches == {}
    assert watcher.frames() == other.frames() == []
    # Whoever asks next begins anew: what changed before is no news, and counts are right.
    hall.put(4)
    hall.watch(other)
    hall.pass_time()
    assert other.frames() == []
    hall.put(5)
    hall.pass_time()
    assert events(other) == [([5], [], 4)]


def test_who_asks_again_and_again_has_the_room_counted_once_a_second() -> None:
    hall = Hall()
    watcher = hall.watching(1)
    counted = hall.presence._watches[ROOM]
    for mid in range(2, 9):
        hall.unwatch(watcher)
        hall.put(mid)
        hall.watch(watcher)
    hall.put(9)
    assert hall.presence._watches[ROOM] is counted
    assert sum(map(len, hall.deadlines._slots.values())) == 1
    hall.pass_time()
    assert events(watcher) == [([9], [], 9)], "what came while it did not watch is no news"


def test_an_empty_room_is_forgotten_at_once() -> None:
    hall = Hall()
    hall.comet.remove(hall.watching(1).channel)
    assert hall.presence._watches == {}
    watcher = hall.watching(1)
    hall.put(2)
    hall.pass_time()
    assert events(watcher) == [([2], [], 2)]


def test_a_room_that_nobody_watches_costs_nothing() -> None:
    hall = Hall()
    for mid in range(5):
        hall.comet.remove(hall.put(mid).channel)
    assert hall.presence._watches == {}
    assert not hall.deadlines._slots


def test_an_event_goes_only_to_those_that_accept_it() -> None:
    hall = Hall()
    deaf = hall.put(1, accepts=frozenset())
    hall.watch(deaf)
    hall.put(2)
    hall.pass_time()
    assert deaf.frames() == []


def test_watching_twice_is_watching_once() -> None:
    hall = Hall()
    watcher = hall.watching(1)
    hall.watch(watcher)
    hall.put(2)
    hall.pass_time()
    assert len(events(watcher)) == 1
    hall.unwatch(watcher)
    hall.unwatch(watcher)
    hall.pass_time()
    assert hall.presence._watches == {}


# Bounds.


def test_how_many_may_watch_a_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence_module, "MAX_WATCHERS", 2)
    hall = Hall()
    first, second, third = hall.watching(1), hall.watching(2), hall.put(3)
    with pytest.raises(Refused) as refused:
        hall.watch(third)
    assert refused.value.code == ErrorCode.TOO_MANY
    hall.watch(first)  # it does already
    hall.unwatch(second)
    hall.watch(third)


@pytest.mark.parametrize(("came", "went"), [(5, 0), (0, 5), (5, 2), (2, 5), (2, 2), (4, 3)])
def test_an_event_names_only_so_many(came: int, went: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence_module, "MAX_NAMES", 2)
    hall = Hall()
    leaving = [hall.put(mid) for mid in range(100, 100 + went)]
    watcher = hall.watching(1)
    for mid in range(200, 200 + came):
        hall.put(mid)
    for link in leaving:
        hall.comet.remove(link.channel)
    hall.pass_time()
    heard = events(watcher)
    assert len(heard) == -(-max(came, went) // 2)
    assert all(max(len(joined), len(left)) <= 2 and online == came + 1 for joined, left, online in heard)
    assert [mid for joined, _, _ in heard for mid in joined] == list(range(200, 200 + came))
    assert [mid for _, left, _ in heard for mid in left] == list(range(100, 100 + went))


def test_a_watcher_that_breaks_during_an_event_does_not_stop_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence_module, "MAX_NAMES", 1)
    hall = Hall()

    class Breaking(Link):
        def lost(self, error: OSError) -> None:
            super().lost(error)
            hall.comet.remove(self.channel)  # as its connection does

    hall.count += 1
    session = Session(mid=9, key="breaks", room_id=ROOM, accepts=frozenset((Op.PRESENCE,)))
    breaking = Breaking(session=session, counters=hall.comet.counters, broken=BrokenPipeError("gone"))
    hall.comet.put(breaking.channel)
    hall.watch(breaking)
    watcher = hall.watching(1)
    hall.put(2)
    hall.put(3)
    hall.pass_time()
    assert [(joined, left) for joined, left, _ in events(watcher)] == [([1], []), ([2], []), ([3], [])]
    assert len(breaking.errors) == 1
    hall.pass_time()
    assert events(watcher)[-1] == ([], [9], 3)


@pytest.mark.parametrize("policy", OutboxPolicy)
def test_an_event_counts_as_any_message_does(policy: OutboxPolicy) -> None:
    hall = Hall()
    links = [hall.watching(mid) for mid in range(3)]
    blocked = links[1]
    blocked.options = Options(outbox_packets=1, outbox_policy=policy)
    blocked.room = 0
    counters = hall.comet.counters
    for mid in (10, 11, 12):
        hall.put(mid)
        hall.pass_time()
    assert counters.deliveries + counters.drops.total() == 9
    assert counters.drops.total() == 2
    for link in links:
        link.channel.discard()
    assert counters.deliveries == 6
    assert counters.deliveries + counters.drops.total() == 9


def test_an_event_waits_behind_what_waits() -> None:
    hall = Hall()
    watcher = hall.watching(1)
    watcher.room = 0
    watcher.channel.push(Packet([encode(1000, b"first")]))
    hall.put(2)
    hall.pass_time()
    watcher.room = None
    watcher.channel.flush()
    assert [frame.op for frame in watcher.frames()] == [1000, Op.PRESENCE]


# All of it at once.


class Watched(RuleBasedStateMachine):
    """What a watcher was told, added up, is who is in the room."""

    def __init__(self) -> None:
        super().__init__()
        self.hall = Hall()
        self.here: list[Link] = []
        self.known: dict[Link, set[int]] = {}
        """What each watcher knows: who was there when it began, and what it heard since."""
        self.heard: dict[Link, int] = {}

    @rule(mid=st.integers(1, 4), room_id=st.sampled_from(["", ROOM, OTHER]))
    def connect(self, mid: int, room_id: str) -> None:
        self.here.append(self.hall.put(mid, room_id))

    @rule(data=st.data(), room_id=st.sampled_from(["", ROOM, OTHER]))
    def change_room(self, data: st.DataObject, room_id: str) -> None:
        if self.here:
            self.hall.comet.change_room(data.draw(st.sampled_from(self.here)).channel, room_id)

    @rule(data=st.data())
    def join_or_leave(self, data: st.DataObject) -> None:
        if self.here:
            link = data.draw(st.sampled_from(self.here))
            if ROOM in link.session.joined:
                self.hall.comet.leave(link.channel, ROOM)
            else:
                self.hall.comet.join(link.channel, ROOM)

    @rule(data=st.data())
    def disconnect(self, data: st.DataObject) -> None:
        if self.here:
            link = data.draw(st.sampled_from(self.here))
            self.here.remove(link)
            self.hall.comet.remove(link.channel)

    @rule(data=st.data())
    def watch_or_stop(self, data: st.DataObject) -> None:
        inside = [link for link in self.here if ROOM in link.session.rooms]
        if inside:
            link = data.draw(st.sampled_from(inside))
            if link in self.known:
                self.hall.unwatch(link)
                del self.known[link]
            elif not self.pending():
                self.hall.watch(link)
                self.known[link] = set(self.users())
                self.heard[link] = len(link.frames())

    def pending(self) -> Any:
        watch = self.hall.presence._watches.get(ROOM)
        return watch is not None and watch.before

    def users(self) -> Counter[int]:
        return Counter(link.session.mid for link in self.here if ROOM in link.session.rooms)

    @rule()
    def pass_time(self) -> None:
        self.hall.pass_time()
        for link, known in self.known.items():
            new = events(link)[self.heard[link] :]
            assert len(new) <= 1
            for joined, left, online in new:
                assert joined or left
                assert not known & set(joined)
                assert known >= set(left)
                known |= set(joined)
                known -= set(left)
                assert online == self.users().total()
            self.heard[link] += len(new)
            assert known == set(self.users())

    @invariant()
    def who_is_out_is_told_no_more(self) -> None:
        for link in [link for link in self.known if ROOM not in link.session.rooms or link not in self.here]:
            del self.known[link]
        watch = self.hall.presence._watches.get(ROOM)
        assert set(watch.watchers if watch else ()) == {link.channel for link in self.known}
        if watch is not None:
            assert watch.connections == self.users()


def test_what_a_watcher_hears_adds_up_to_who_is_there() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Watched, settings=settings(max_examples=60, stateful_step_count=40, deadline=None)
    )
