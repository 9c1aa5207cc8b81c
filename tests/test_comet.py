"""Comet with its rooms and buckets: who gets a push, and who is counted."""

from __future__ import annotations

import itertools
from collections import Counter
from zlib import crc32

import pytest
from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from goim_core import comet as comet_module
from goim_core import room as room_module
from goim_core.bucket import Bucket, Buckets
from goim_core.comet import PACE, Comet, Pushing
from goim_core.errors import Disconnect
from goim_core.protocol import encode, split
from goim_core.room import Room
from goim_core.session import Session
from goim_core.steps import at_once
from goim_core.wire import TCP, Packet
from tests.links import Link

ROOM = "live://1000"
OTHER = "live://2000"


def packet(body: bytes = b"push", op: int = 1000) -> Packet:
    return Packet([encode(op, body)])


def joined(
    comet: Comet, key: str, room_id: str = "", accepts: tuple[int, ...] = (), address: str = ""
) -> Link:
    session = Session(mid=1, key=key, room_id=room_id, accepts=frozenset(accepts))
    link = Link(session=session, counters=comet.counters, address=address)
    comet.put(link.channel)
    return link


def run(pushing: Pushing) -> list[float]:
    return list(pushing)


@pytest.fixture
def tiny_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A push yields after every channel."""
    monkeypatch.setattr(comet_module, "SLICE", 0.0)
    monkeypatch.setattr(comet_module, "CHUNK", 1)


# Rooms and buckets.


def test_a_room_keeps_the_order_in_which_its_members_came() -> None:
    room = Room(ROOM)
    links = [Link() for _ in range(5)]
    for link in links:
        room.put(link.channel)
    room.remove(links[2].channel)
    room.remove(links[2].channel)
    assert list(room.members) == [links[i].channel for i in (0, 1, 3, 4)]
    assert room.online == 4


def test_a_key_has_the_same_bucket_everywhere() -> None:
    buckets = Buckets(32)
    for key in ("a", "key", "\N{SNOWMAN}", ""):
        assert buckets.of(key) is buckets.all[crc32(key.encode()) % 32]


def test_keys_spread_over_the_buckets() -> None:
    buckets = Buckets(32)
    counts = Counter(id(buckets.of(f"key-{number}")) for number in range(3200))
    assert len(counts) == 32
    assert max(counts.values()) < 200


def test_a_bucket_lets_go_of_a_key_only_for_its_owner() -> None:
    bucket = Bucket()
    old, new = (Link(session=Session(mid=1, key="k")).channel for _ in range(2))
    assert bucket.put(old) is None
    assert bucket.put(new) is old
    assert not bucket.remove(old)
    assert bucket.channels == {"k": new}
    assert bucket.remove(new)
    assert not bucket.remove(new)


# Coming and going.


def test_a_channel_that_is_replaced_is_out_of_everything() -> None:
    comet = Comet()
    old = joined(comet, "k", ROOM, accepts=(1000,), address="127.0.0.1")
    session = Session(mid=1, key="k", accepts=frozenset((1000,)))
    new = Link(session=session, counters=comet.counters, address="127.0.0.2")
    assert comet.put(new.channel) is old.channel
    assert comet.online(ROOM) == 0
    assert comet.rooms == {}
    assert comet.addresses == {"127.0.0.2": 1}
    run(comet.push_keys(["k"], 1000, packet()))
    run(comet.push_all(1000, packet()))
    assert (old.bodies(), new.bodies()) == ([], [b"push"] * 2)
    comet.remove(old.channel)  # as its connection does when it ends
    assert comet.buckets.get("k") is new.channel
    comet.remove(new.channel)
    assert len(comet.buckets) == 0
    assert comet.addresses == {}


def test_addresses_count_connections() -> None:
    comet = Comet()
    links = [joined(comet, f"k{i}", address="127.0.0.1") for i in range(2)]
    assert comet.addresses == {"127.0.0.1": 2}
    for link in links:
        comet.remove(link.channel)
        comet.remove(link.channel)
    assert comet.addresses == {}


# Rooms.


def test_changing_rooms_moves_the_channel() -> None:
    comet = Comet()
    link = joined(comet, "a", ROOM)
    comet.change_room(link.channel, OTHER)
    assert (comet.online(ROOM), comet.online(OTHER)) == (0, 1)
    assert (link.session.room_id, link.session.rooms) == (OTHER, {OTHER})
    comet.change_room(link.channel, "")
    assert comet.rooms == {}
    assert (link.session.room_id, link.session.rooms) == ("", frozenset())


def test_one_connection_is_in_several_rooms() -> None:
    comet = Comet()
    link = joined(comet, "a", ROOM)
    for room_id in (OTHER, "live://3"):
        comet.join(link.channel, room_id)
    assert link.session.rooms == {ROOM, OTHER, "live://3"}
    assert link.session.joined == {OTHER, "live://3"}
    for room_id in (ROOM, OTHER, "live://3"):
        run(comet.push_room(room_id, packet(room_id.encode())))
    assert link.bodies() == [ROOM.encode(), OTHER.encode(), b"live://3"]
    comet.leave(link.channel, OTHER)
    assert OTHER not in comet.rooms
    comet.remove(link.channel)
    assert comet.rooms == {}
    assert link.session.rooms == {ROOM, "live://3"}, "who hears of the end may want to tell those who stay"


def test_a_room_that_one_is_in_both_ways_is_one() -> None:
    comet = Comet()
    link = joined(comet, "a", ROOM)
    comet.join(link.channel, ROOM)
    run(comet.push_room(ROOM, packet()))
    assert (comet.online(ROOM), link.bodies()) == (1, [b"push"])
    comet.change_room(link.channel, OTHER)
    assert (comet.online(ROOM), link.session.rooms) == (1, {ROOM, OTHER})
    comet.change_room(link.channel, ROOM)  # onto the joined one, and out of it by the other way
    comet.leave(link.channel, ROOM)
    assert (comet.online(ROOM), link.session.rooms) == (1, {ROOM})
    comet.join(link.channel, ROOM)
    comet.remove(link.channel)
    assert comet.rooms == {}


def test_members_come_in_their_order_and_in_pages() -> None:
    comet = Comet()
    links = [joined(comet, f"a{i}", ROOM) for i in range(5)]
    joined(comet, "b", OTHER)
    sessions = [link.session for link in links]
    assert comet.members(ROOM, 0, 10) == sessions
    assert comet.members(ROOM, 1, 2) == sessions[1:3]
    assert comet.members(ROOM, 5, 2) == comet.members("live://none", 0, 10) == []


def test_disconnecting_tells_those_who_are_here() -> None:
    comet = Comet()
    links = [joined(comet, f"a{i}") for i in range(3)]
    why = Disconnect("out", 4321)
    comet.disconnect(["a0", "unknown", "a2"], why)
    assert [link.closed for link in links] == [[why], [], [why]]


# Pushes.


def test_a_key_push_goes_to_those_that_accept_the_op() -> None:
    comet = Comet()
    yes, no, other = (
        joined(comet, "a", accepts=(1000,)),
        joined(comet, "b"),
        joined(comet, "c", accepts=(1000,)),
    )
    assert run(comet.push_keys(["a", "b", "unknown"], 1000, packet())) == []
    assert [link.bodies() for link in (yes, no, other)] == [[b"push"], [], []]


def test_a_key_that_is_named_twice_gets_it_once() -> None:
    comet = Comet()
    links = [joined(comet, key, accepts=(1000,)) for key in ("a", "b")]
    run(comet.push_keys(["a", "b", "a"], 1000, packet()))
    assert [link.bodies() for link in links] == [[b"push"], [b"push"]]


def test_a_room_push_goes_to_all_in_the_room_whatever_they_accept() -> None:
    comet = Comet()
    yes, no, other = (
        joined(comet, "a", ROOM, accepts=(1,)),
        joined(comet, "b", ROOM),
        joined(comet, "c", OTHER),
    )
    assert run(comet.push_room(ROOM, packet())) == []
    assert run(comet.push_room("live://nobody", packet())) == []
    assert [link.bodies() for link in (yes, no, other)] == [[b"push"], [b"push"], []]


def test_a_broadcast_goes_to_all_that_accept_the_op() -> None:
    comet = Comet()
    yes = [joined(comet, f"a{i}", accepts=(1000,)) for i in range(50)]
    no = [joined(comet, f"b{i}", accepts=(1001,)) for i in range(50)]
    assert run(comet.push_all(1000, packet())) == []
    assert all(link.bodies() == [b"push"] for link in yes)
    assert all(link.bodies() == [] for link in no)


def test_deliveries_count_messages_without_those_that_were_dropped() -> None:
    comet = Comet()
    links = [joined(comet, f"a{i}", ROOM) for i in range(3)]
    links[1].broken = BrokenPipeError("gone")
    run(comet.push_room(ROOM, Packet([encode(1000), encode(1000)])))
    assert comet.counters.deliveries == 4
    assert comet.counters.drops == {"lost": 2}


def test_a_push_yields_between_slices_and_not_at_its_end(tiny_slices: None) -> None:
    comet = Comet()
    links = [joined(comet, f"a{i}", ROOM) for i in range(4)]
    assert run(comet.push_room(ROOM, packet())) == [0.0] * 3
    assert all(link.bodies() == [b"push"] for link in links)


@pytest.mark.parametrize(("count", "speed"), [(1, 1), (100, 50), (100, 1000), (37, 7), (1000, 100_000)])
def test_a_paced_broadcast_takes_as_long_as_its_speed_says(count: int, speed: int) -> None:
    comet = Comet(buckets=4)
    links = [joined(comet, f"a{i}", accepts=(1000,)) for i in range(count)]
    passed, sent = 0.0, 0
    for delay in comet.push_all(1000, packet(), speed):
        now_sent = sum(bool(link.taken) for link in links)
        # No burst is more than a share, so nobody gets it before its time by more than that.
        assert now_sent - sent <= max(1, speed * PACE)
        assert delay == pytest.approx((now_sent - sent) / speed)
        passed, sent = passed + delay, now_sent
    assert passed == pytest.approx(count / speed)
    assert all(link.bodies() == [b"push"] for link in links)


@pytest.mark.parametrize("speed", [0, 1])
def test_who_leaves_during_a_broadcast_gets_no_more_of_it(tiny_slices: None, speed: int) -> None:
    """After its farewell nothing more may be sent to a client (a WebSocket's close frame is the last)."""
    comet = Comet(buckets=1)
    links = [joined(comet, f"a{i}", accepts=(1000,)) for i in range(4)]
    pushing = comet.push_all(1000, packet(), speed)
    next(pushing)
    comet.remove(links[1].channel)
    replacing = joined(comet, "a2")
    comet.accept(links[3].channel, frozenset())
    run(pushing)
    assert [link.bodies() for link in links] == [[b"push"], [], [], []]
    assert replacing.bodies() == []
    assert comet.counters.drops == {}


def test_who_leaves_during_a_room_push_gets_no_more_of_it(tiny_slices: None) -> None:
    comet = Comet()
    links = [joined(comet, f"a{i}", ROOM if i != 3 else "") for i in range(6)]
    comet.join(links[3].channel, ROOM)
    comet.join(links[5].channel, ROOM)  # in it both ways
    pushing = comet.push_room(ROOM, packet())
    next(pushing)
    comet.remove(links[1].channel)
    comet.change_room(links[2].channel, OTHER)
    comet.leave(links[3].channel, ROOM)
    comet.change_room(links[5].channel, OTHER)
    late = joined(comet, "late", ROOM)
    run(pushing)
    assert [len(link.bodies()) for link in (*links, late)] == [1, 0, 0, 0, 1, 1, 0]


def test_who_leaves_during_a_key_push_gets_no_more_of_it(tiny_slices: None) -> None:
    comet = Comet()
    links = [joined(comet, f"a{i}", accepts=(1000,)) for i in range(3)]
    pushing = comet.push_keys(["a0", "a1", "a2"], 1000, packet())
    next(pushing)
    comet.remove(links[1].channel)
    run(pushing)
    assert [link.bodies() for link in links] == [[b"push"], [], [b"push"]]


@define
class Feed:
    """Writes down what it is fed."""

    fed: list[tuple[int, int, bytes]] = field(factory=list)
    saved: int = 0

    def push(self, seq: int, op: int, packet: Packet) -> None:
        frame = split(packet.forms[TCP])[0]
        assert (frame.op, frame.seq) == (op, seq)
        self.fed.append((seq, op, frame.body))

    def go_on(self) -> None: ...

    def beat(self) -> int:
        return 0

    def close(self) -> int:
        return 0


def test_a_stored_message_goes_to_the_inboxes_with_its_number() -> None:
    comet = Comet()
    links = [joined(comet, key, accepts=(1000,) if key != "c" else ()) for key in "abc"]
    feed = links[0].channel.inbox = Feed()
    assert run(comet.push_inbox(["a", "b", "c", "gone"], [5, 6, 7, 8], 1000, b"m")) == []
    assert feed.fed == [(5, 1000, b"m")]
    assert links[0].bodies() == links[2].bodies() == []
    assert [(frame.seq, frame.body) for frame in links[1].frames()] == [(6, b"m")]
    assert comet.counters.deliveries == 1


def test_a_stored_message_yields_between_slices(tiny_slices: None) -> None:
    comet = Comet()
    links = [joined(comet, f"a{i}", accepts=(1000,)) for i in range(3)]
    pushing = comet.push_inbox(["a0", "a1", "a2"], [1, 1, 1], 1000, b"m")
    next(pushing)
    comet.remove(links[1].channel)
    run(pushing)
    assert [len(link.bodies()) for link in links] == [1, 0, 1]


# Counts.


def test_the_rooms_with_the_most() -> None:
    comet = Comet()
    for room, members in (
        ("live://b", 2),
        ("live://a", 2),
        ("live://c", 3),
        ("chat://d", 9),
        ("liver://e", 9),
    ):
        for i in range(members):
            joined(comet, f"{room}-{i}", room)
    assert at_once(comet.ranking("live", 2)) == [("c", 3), ("a", 2)]
    assert at_once(comet.ranking("live", 10)) == [("c", 3), ("a", 2), ("b", 2)]
    assert at_once(comet.ranking("none", 10)) == []
    assert at_once(comet.ranking("live", 0)) == []


KEYS = st.sampled_from([f"key-{i}" for i in range(6)])
ROOMS = st.sampled_from(["", "live://1", "live://2", "chat://1"])
OPS = st.frozensets(st.sampled_from([1000, 1001]))
INDEX = st.integers(0, 100)


class Pushed:
    """A push under way, and what the model knows of it."""

    def __init__(self, body: bytes, pushing: Pushing, to: set[Link]) -> None:
        self.body = body
        self.pushing = pushing
        self.to = to
        """Who was there when it began, and has been ever since: they get it, once."""
        self.left: dict[Link, int] = {}
        """Who has left since, and how often they had it then: they get it no more unless they come back."""
        self.over = False


class Crowd(RuleBasedStateMachine):
    """Connections come, move and go between the slices of pushes. The model is who is where, in plain dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.comet = Comet(buckets=3)
        self.here: dict[str, Link] = {}
        self.gone: list[Link] = []
        self.rooms: dict[Link, str] = {}
        """The room that each changed to."""
        self.joined: dict[Link, set[str]] = {}
        self.accepts: dict[Link, frozenset[int]] = {}
        self.room_pushes: list[tuple[str, Pushed]] = []
        self.op_pushes: list[tuple[int, Pushed]] = []
        self.numbers = itertools.count()

    def all_rooms(self, link: Link) -> set[str]:
        return {self.rooms.get(link, ""), *self.joined.get(link, ())} - {""}

    def moved(self, link: Link, before: set[str]) -> None:
        left = before - self.all_rooms(link)
        for room_id, push in self.room_pushes:
            if room_id in left:
                self.out_of(push, link)

    def left_op(self, link: Link, ops: frozenset[int]) -> None:
        for op, push in self.op_pushes:
            if op in ops:
                self.out_of(push, link)

    def out_of(self, push: Pushed, link: Link) -> None:
        if not push.over and (link in push.to or link in push.left):
            push.to.discard(link)
            push.left[link] = link.bodies().count(push.body)

    def gone_away(self, link: Link) -> None:
        before = self.all_rooms(link)
        self.left_op(link, self.accepts[link])
        del self.rooms[link], self.joined[link], self.accepts[link]
        self.moved(link, before)
        self.gone.append(link)

    @rule(key=KEYS, room_id=ROOMS, accepts=OPS, address=st.sampled_from(["127.0.0.1", "::1"]))
    def connect(self, key: str, room_id: str, accepts: frozenset[int], address: str) -> None:
        session = Session(mid=1, key=key, room_id=room_id, accepts=accepts)
        link = Link(session=session, counters=self.comet.counters, address=address)
        old = self.here.get(key)
        if old is not None:
            self.gone_away(old)
        assert self.comet.put(link.channel) is (old.channel if old is not None else None)
        self.here[key], self.rooms[link], self.joined[link], self.accepts[link] = (
            link,
            room_id,
            set(),
            accepts,
        )

    @rule(index=INDEX)
    def disconnect(self, index: int) -> None:
        if self.here:
            link = self.here.pop(sorted(self.here)[index % len(self.here)])
            self.gone_away(link)
            self.comet.remove(link.channel)

    @rule(index=INDEX)
    def disconnect_again(self, index: int) -> None:
        if self.gone:
            self.comet.remove(self.gone[index % len(self.gone)].channel)

    @rule(key=KEYS, room_id=ROOMS)
    def change_room(self, key: str, room_id: str) -> None:
        if key in self.here:
            link = self.here[key]
            before = self.all_rooms(link)
            self.rooms[link] = room_id
            self.comet.change_room(link.channel, room_id)
            self.moved(link, before)

    @rule(key=KEYS, room_id=ROOMS, joins=st.booleans())
    def join_or_leave(self, key: str, room_id: str, joins: bool) -> None:
        if key in self.here and room_id:
            link = self.here[key]
            before = self.all_rooms(link)
            if joins:
                self.joined[link].add(room_id)
                self.comet.join(link.channel, room_id)
            elif room_id in self.joined[link]:
                self.joined[link].remove(room_id)
                self.comet.leave(link.channel, room_id)
            self.moved(link, before)

    @rule(key=KEYS, op=st.sampled_from([1000, 1001]), on=st.booleans())
    def subscribe(self, key: str, op: int, on: bool) -> None:
        if key in self.here:
            link = self.here[key]
            accepts = self.accepts[link] | {op} if on else self.accepts[link] - {op}
            self.comet.accept(link.channel, accepts)
            if not on:
                self.left_op(link, frozenset((op,)))
            self.accepts[link] = accepts

    @rule(room_id=ROOMS)
    def push_room(self, room_id: str) -> None:
        body = b"%d" % next(self.numbers)
        to = {link for link in self.rooms if room_id in self.all_rooms(link)}
        push = Pushed(body, self.comet.push_room(room_id, packet(body)), to)
        self.room_pushes.append((room_id, push))
        self.advance(push)

    @rule(keys=st.lists(KEYS, unique=True), op=st.sampled_from([1000, 1001]))
    def push_keys(self, keys: list[str], op: int) -> None:
        body = b"%d" % next(self.numbers)
        to = {self.here[key] for key in keys if key in self.here and op in self.accepts[self.here[key]]}
        push = Pushed(body, self.comet.push_keys(keys, op, packet(body)), to)
        self.op_pushes.append((op, push))
        self.advance(push)

    @rule(op=st.sampled_from([1000, 1001]))
    def push_all(self, op: int) -> None:
        body = b"%d" % next(self.numbers)
        to = {link for link, accepts in self.accepts.items() if op in accepts}
        push = Pushed(body, self.comet.push_all(op, packet(body)), to)
        self.op_pushes.append((op, push))
        self.advance(push)

    @rule(index=INDEX)
    def go_on(self, index: int) -> None:
        if pushes := [push for _, push in (*self.room_pushes, *self.op_pushes) if not push.over]:
            self.advance(pushes[index % len(pushes)])

    def advance(self, push: Pushed) -> None:
        if next(push.pushing, None) is None:
            push.over = True
            for link in push.to:
                assert link.bodies().count(push.body) == 1, "who stays gets it"

    @invariant()
    def nobody_gets_what_is_not_for_them(self) -> None:
        for _, push in (*self.room_pushes, *self.op_pushes):
            for link in (*self.here.values(), *self.gone):
                count = link.bodies().count(push.body)
                assert count <= 1, "nobody gets it twice"
                if link in push.left and link in self.gone:
                    assert count == push.left[link], "who is gone gets no more"
        for room_id, push in self.room_pushes:
            for link, count in push.left.items():
                if room_id not in self.all_rooms(link):
                    assert link.bodies().count(push.body) == count, "who is not in the room gets no more"

    @invariant()
    def counts(self) -> None:
        comet = self.comet
        assert {key: link.channel for key, link in self.here.items()} == {
            key: channel for bucket in comet.buckets.all for key, channel in bucket.channels.items()
        }
        assert len(comet.buckets) == len(self.here)
        assert comet.addresses == Counter(link.address for link in self.here.values())
        online = Counter(room_id for link in self.rooms for room_id in self.all_rooms(link))
        assert {room_id: comet.online(room_id) for room_id in comet.rooms} == online
        top = sorted(
            ((room_id[7:], count) for room_id, count in online.items() if room_id.startswith("live://")),
            key=lambda room: (-room[1], room[0]),
        )
        assert at_once(comet.ranking("live", 1)) == top[:1]
        for link, room_id in self.rooms.items():
            assert (link.session.room_id, link.session.joined) == (room_id, self.joined[link])
            assert link.session.rooms == self.all_rooms(link)
            assert {room.id for room in link.channel.rooms()} == self.all_rooms(link)


@pytest.mark.parametrize("segment", [2, 10_000])
def test_a_crowd_that_comes_and_goes_between_slices(
    tiny_slices: None, segment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room_module, "SEGMENT", segment)
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Crowd, settings=settings(max_examples=50, stateful_step_count=40, deadline=None)
    )
