"""What a client knows, without I/O: the inbox, requests, rooms, delays, addresses."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from goim_core import Disconnect, Frame, Op, ProtocolError, Refused
from goim_core.client import Backoff, LastSeen, Members, Message, Presence
from goim_core.client.address import Target, parse
from goim_core.client.dialogue import Dialogue
from goim_core.client.inbox import Inbox
from goim_core.client.messages import read_last_seen
from goim_core.client.places import Places
from goim_core.client.requests import INT32_MIN, Requests
from goim_core.client.settings import Settings
from goim_core.protocol import encode, split

NO_TIME = 0.0


class InboxMachine(RuleBasedStateMachine):
    """A server that gives everything behind its cursor on each connection, and a client's inbox."""

    def __init__(self) -> None:
        super().__init__()
        self.inbox = Inbox(every=3, delay=1.0)
        self.stored = 0  # the server's inbox is 1 to this
        self.cursor = 0
        self.next = 1  # what the server writes next on this connection
        self.given: list[int] = []
        self.acknowledged: set[int] = set()
        self.under_way: int | None = None
        self.now = 0.0
        self.inbox.connected()

    @rule(count=st.integers(1, 5))
    def push(self, count: int) -> None:
        self.stored += count

    @precondition(lambda self: self.next <= self.stored)
    @rule()
    def arrive(self) -> None:
        if self.inbox.take(self.next, self.now):
            self.given.append(self.next)
        self.next += 1

    @precondition(lambda self: self.given)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.given))
        self.acknowledged.add(number)
        self.inbox.acknowledge(number, self.inbox.epoch, self.now)

    @rule(seconds=st.sampled_from([0.5, 1.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def send(self) -> None:
        due = self.inbox.due_at() <= self.now
        number = self.inbox.next_ack(self.now)
        assert (number is not None) is due
        if number is not None:
            assert self.under_way is None
            assert set(range(1, number + 1)) <= self.acknowledged
            self.under_way = number

    @precondition(lambda self: self.under_way is not None)
    @rule(lost=st.booleans())
    def told(self, lost: bool) -> None:
        assert self.under_way is not None
        self.cursor = max(self.cursor, self.under_way)
        if lost:
            self.reconnect()
        else:
            self.under_way = None
            self.inbox.confirm(self.cursor)

    @rule()
    def reconnect(self) -> None:
        self.under_way = None
        self.next = self.cursor + 1
        self.inbox.connected()

    @invariant()
    def each_is_given_once_and_in_order(self) -> None:
        assert self.given == list(range(1, len(self.given) + 1))

    @invariant()
    def all_up_to_the_first_that_is_open(self) -> None:
        expected = 0
        while expected + 1 in self.acknowledged:
            expected += 1
        assert self.inbox.acknowledged == expected

    def teardown(self) -> None:
        while self.next <= self.stored:
            self.arrive()
        self.each_is_given_once_and_in_order()
        for number in self.given:
            self.inbox.acknowledge(number, self.inbox.epoch, self.now)
            self.acknowledged.add(number)
        for _ in range(3):
            self.inbox.hurry()
            self.send()
            if self.under_way is not None:
                self.told(lost=False)
        assert self.inbox.settled
        assert self.cursor == len(self.given)


TestInbox = InboxMachine.TestCase


def test_acknowledgements_are_gathered() -> None:
    inbox = Inbox(every=3, delay=1.0)
    inbox.connected()
    assert [inbox.take(number, 0) for number in range(1, 8)] == [True] * 7
    inbox.acknowledge(1, 0, now=10)
    assert (inbox.due_at(), inbox.next_ack(10.9)) == (11, None)
    assert inbox.next_ack(11) == 1
    for number in (2, 3, 4):
        inbox.acknowledge(number, 0, now=12)
    assert inbox.due_at() == math.inf  # while the first is under way
    inbox.confirm(1)
    assert inbox.next_ack(12) == 4  # three wait
    inbox.confirm(4)
    assert (inbox.due_at(), inbox.settled) == (math.inf, True)


def test_an_inbox_that_begins_anew() -> None:
    inbox = Inbox()
    inbox.connected()
    assert all(inbox.take(number, 0) for number in (1, 2, 3))
    for number in (1, 2):
        inbox.acknowledge(number, 0, 0)
    assert inbox.next_ack(1) == 2
    inbox.confirm(2)
    inbox.connected()
    assert not inbox.take(3, 1)  # behind the cursor, and seen
    inbox.connected()
    assert inbox.take(1, 1)  # confirmed, and nevertheless given again: it is another message
    inbox.acknowledge(3, 0, 1)  # of the old one
    assert (inbox.seen, inbox.acknowledged) == (1, 0)
    inbox.acknowledge(1, inbox.epoch, 1)
    assert inbox.next_ack(9) == 1


def test_a_cursor_that_went_back() -> None:
    inbox = Inbox(after=5)
    inbox.connected()
    assert inbox.due_at() == math.inf  # what an earlier run has seen is not acknowledged once more
    assert not inbox.take(5, 0)
    assert inbox.next_ack(1) == 5  # unless the server shows that it does not know
    inbox.confirm(2)
    assert (inbox.seen, inbox.settled) == (2, True)
    assert inbox.take(3, 0)


def test_acknowledgements_that_are_refused() -> None:
    inbox = Inbox(delay=1)
    inbox.connected()
    inbox.take(1, 0)
    inbox.acknowledge(1, 0, 0)
    assert inbox.next_ack(1) == 1
    inbox.failed(1)
    assert (inbox.next_ack(2.9), inbox.next_ack(3)) == (None, 1)
    inbox.refused()
    inbox.take(2, 0)
    inbox.acknowledge(2, 0, 0)
    assert (inbox.due_at(), inbox.settled) == (math.inf, True)
    inbox.connected()  # which may be let do what the last one was not
    assert inbox.next_ack(3) == 2
    inbox.confirm(2)
    assert inbox.settled


def test_a_refusal_to_an_inbox_that_is_no_more() -> None:
    """A server without its old messages refuses a number that it has not; its new ones are acknowledged."""
    inbox = Inbox()
    inbox.connected()
    assert all(inbox.take(number, 0) for number in (1, 2, 3))
    for number, now in ((1, 1), (2, 2)):
        inbox.acknowledge(number, 0, now)
        assert inbox.next_ack(now + 1) == number
        inbox.confirm(number)
    inbox.acknowledge(3, 0, 3)
    assert inbox.next_ack(4) == 3
    inbox.connected()
    assert inbox.next_ack(4) == 3
    assert inbox.take(1, 4)
    inbox.refused()
    inbox.acknowledge(1, inbox.epoch, 4)
    assert inbox.next_ack(5) == 1


@given(st.lists(st.sampled_from(["begin", "forget", "reply", "refuse"]), max_size=60), st.randoms())
def test_each_reply_finds_its_request(steps: list[str], random: object) -> None:
    requests, waiting, woken = Requests(), [], []
    for step in steps:
        if step == "begin":
            pending = requests.begin(1000, b"", lambda: woken.append(1))
            assert pending.seq < 0
            assert pending.seq not in [other.seq for other in waiting]
            waiting.append(pending)
        elif waiting:
            pending = waiting.pop(random.randrange(len(waiting)))  # type: ignore[attr-defined]
            before = len(woken)
            if step == "forget":
                requests.forget(pending)
                assert requests.on_reply(Frame(1000, b"", pending.seq)) is None
                assert (pending.outcome, len(woken)) == (None, before)
            elif step == "reply":
                reply = Frame(1000, b"x", pending.seq)
                assert requests.on_reply(reply) is pending
                assert (pending.outcome, len(woken)) == (reply, before + 1)
                assert requests.on_reply(reply) is None
            else:
                requests.on_reply(Frame(Op.ERROR, b'{"op":1000,"code":403,"message":"no"}', pending.seq))
                assert isinstance(pending.outcome, Refused)
                assert (pending.outcome.code, pending.outcome.reason) == (403, "no")
    requests.fail(Disconnect("gone", 4007))
    assert len(requests) == 0
    assert all(isinstance(pending.outcome, Disconnect) for pending in waiting)


def test_numbers_begin_anew_and_pass_by_those_that_wait() -> None:
    requests = Requests()
    first = requests.begin(1000, b"", lambda: None)
    requests._last = INT32_MIN + 1
    assert [requests.number() for _ in range(3)] == [INT32_MIN, -2, -3]
    assert first.seq == -1


@pytest.mark.parametrize(
    ("op", "reply", "code"),
    [
        (Op.CHANGE_ROOM, Frame(13, b"live://1", -1), 403),  # the room that it is in
        (Op.SUB, Frame(15, b"", -1), 403),
        (Op.JOIN, Frame(24, b"", -1), 400),  # a server that does not know it
        (Op.ACK, Frame(20, b"", -1), 400),
        (Op.MEMBERS, Frame(29, b"", -1), 403),
        (Op.JOIN, Frame(Op.ERROR, b"who knows", -1), 500),
        (Op.JOIN, Frame(Op.ERROR, b'{"code":404,"message":"gone"}', -1), 404),
    ],
)  # fmt: skip
def test_replies_that_mean_no(op: Op, reply: Frame, code: int) -> None:
    requests = Requests()
    pending = requests.begin(op, b"live://2", lambda: None)
    requests.on_reply(reply)
    assert isinstance(pending.outcome, Refused)
    assert pending.outcome.code == code


def test_places() -> None:
    places = Places()
    for op, body in (
        (Op.CHANGE_ROOM, b"a://1"), (Op.WATCH, b"a://1"), (Op.JOIN, b"b://1"), (Op.JOIN, b"b://2"),
        (Op.WATCH, b"b://1"), (Op.WATCH, b"b://2"), (Op.SUB, b"1000,1001"), (Op.UNSUB, b"1001,1002"),
        (Op.LEAVE, b"b://2"), (1000, b"x"),
    ):  # fmt: skip
        places.agreed(op, body)
    assert places.again() == [
        (Op.CHANGE_ROOM, b"a://1"), (Op.SUB, b"1000"), (Op.UNSUB, b"1001,1002"),
        (Op.JOIN, b"b://1"), (Op.WATCH, b"a://1"), (Op.WATCH, b"b://1"),
    ]  # fmt: skip
    places.agreed(Op.CHANGE_ROOM, b"")
    places.agreed(Op.UNWATCH, b"b://1")
    assert places.again()[0] == (Op.CHANGE_ROOM, b"")
    assert list(places.watched) == []
    places.agreed(Op.WATCH, b"b://1")
    places.refused(Op.WATCH, b"b://1")
    places.refused(Op.CHANGE_ROOM, b"")
    places.refused(Op.JOIN, b"b://1")
    assert places.again() == [(Op.SUB, b"1000"), (Op.UNSUB, b"1001,1002")]


def new_dialogue() -> Dialogue:
    return Dialogue(Inbox(), 4096, lambda number, epoch: None)


@given(st.lists(st.tuples(st.sampled_from([1000, 4, 5, 34, 3, 17, 40, 63]), st.integers(0, 6)), max_size=30))
def test_messages_of_a_dialogue(frames: list[tuple[int, int]]) -> None:
    dialogue, seen, expected = new_dialogue(), 0, []
    dialogue.connected()
    for op, seq in frames:
        message = dialogue.on_frame(Frame(op, b"\0\0\0\1", seq), NO_TIME)
        if op in (1000, 4, 5, 34) and (not seq or seq > seen):
            seen = max(seen, seq)
            expected.append((op, seq))
            assert message == Message(op, b"\0\0\0\1", seq)
        else:
            assert message is None


def test_a_dialogue_takes_up_where_it_was() -> None:
    dialogue = new_dialogue()
    for op, body in ((Op.CHANGE_ROOM, b"a://1"), (Op.JOIN, b"b://1")):
        dialogue.on_frame(Frame(op + 1, body, dialogue.request(op, body, lambda: None).seq), NO_TIME)
    dialogue.put(1000, b"never sent")
    dialogue.lost(Disconnect("gone", 4007))
    dialogue.connected()
    first, second = split(b"".join(dialogue.to_send(NO_TIME)))
    assert [(frame.op, frame.body) for frame in (first, second)] == [(12, b"a://1"), (24, b"b://1")]
    dialogue.on_frame(Frame(13, b"a://1", first.seq), NO_TIME)
    dialogue.on_frame(Frame(Op.ERROR, b'{"code":403,"message":"no more"}', second.seq), NO_TIME)
    assert dialogue.places.again() == [(Op.CHANGE_ROOM, b"a://1")]
    dialogue.lost(Disconnect("gone", 4007))
    dialogue.connected()
    [again] = split(b"".join(dialogue.to_send(NO_TIME)))
    dialogue.on_frame(Frame(Op.ERROR, b'{"code":429,"message":"too many"}', again.seq), NO_TIME)
    assert dialogue.places.again() == [(Op.CHANGE_ROOM, b"a://1")]
    assert dialogue.to_send(NO_TIME) == []
    assert dialogue.to_send(dialogue.due_at() - 0.1) == []
    [again] = split(b"".join(dialogue.to_send(dialogue.due_at())))  # it is waited for, not given up
    assert (again.op, again.body, dialogue.due_at()) == (12, b"a://1", math.inf)
    dialogue.on_frame(Frame(Op.ERROR, b'{"code":429,"message":"too many"}', again.seq), NO_TIME)
    moved = dialogue.request(Op.CHANGE_ROOM, b"a://2", lambda: None)
    dialogue.on_frame(Frame(13, b"a://2", moved.seq), NO_TIME)
    dialogue.to_send(NO_TIME)
    assert dialogue.to_send(dialogue.due_at()) == []  # it went elsewhere meanwhile
    with pytest.raises(ValueError, match="body: expected at most 4096 bytes, got 4097"):
        dialogue.request(1000, bytes(4097), lambda: None)
    assert (len(dialogue.requests), dialogue.queued) == (0, 0)


def test_places_are_brought_through_a_rate_limit() -> None:
    dialogue, now = new_dialogue(), 0.0
    for op, body in ((Op.JOIN, b"a://1"), (Op.JOIN, b"a://2"), (Op.WATCH, b"a://2")):
        dialogue.on_frame(Frame(op + 1, body, dialogue.request(op, body, lambda: None).seq), now)
    dialogue.lost(Disconnect("gone", 4007))
    dialogue.connected()
    rooms: list[bytes] = []
    watched: list[bytes] = []
    waits: list[float] = []
    for turn in range(5):
        for number, frame in enumerate(split(b"".join(dialogue.to_send(now)))):
            code = 429 if number or turn in (1, 2) else 0
            if frame.op == Op.WATCH and frame.body not in rooms:
                code = 403
            reply = Frame(frame.op + 1, frame.body, frame.seq)
            error = Frame(Op.ERROR, b'{"code":%d,"message":"no"}' % code, frame.seq)
            dialogue.on_frame(error if code else reply, now)
            if not code:
                (rooms if frame.op == Op.JOIN else watched).append(frame.body)
        waits.append(dialogue.due_at() - now)
        now = dialogue.due_at()
    assert (rooms, watched) == ([b"a://1", b"a://2"], [b"a://2"])
    assert waits == [1, 2, 4, 1, math.inf]


def test_goims_delays() -> None:
    delays = [Backoff().delay(tries, lambda: 0.5) for tries in range(12)]
    assert delays == pytest.approx(
        [0.25, 3, 5.4, 9.72, 17.496, 31.4928, 56.687, 102.037, 183.666, 300, 300, 300], 1e-4
    )


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_delays_have_bounds(tries: int, number: float) -> None:
    delay = Backoff().delay(tries, lambda: number)
    assert 0 <= delay <= 300 * 1.3
    assert delay >= 3 * 0.7 or not tries


@pytest.mark.parametrize(
    ("name", "value"), [("base", -1), ("factor", 0.5), ("jitter", "x"), ("first", math.nan)]
)
def test_backoff_names_what_is_wrong(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected a number"):
        Backoff(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rooms", "live://1"), ("ack", "sometimes"), ("after", -1), ("buffer", 0), ("heartbeat", 0),
        ("request_timeout", True),
    ],
)  # fmt: skip
def test_settings_name_what_is_wrong(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected "):
        Settings(token=b"", **{name: value})


@pytest.mark.parametrize(
    ("address", "target", "shown"),
    [
        ("tcp://h", Target("tcp", "h", 3101), "h:3101"),
        ("tls://h:1", Target("tls", "h", 1), "tls://h:1"),
        ("ws://h", Target("ws", "h", 3102, "/sub"), "ws://h:3102/sub"),
        ("wss://h/", Target("wss", "h", 3103, "/sub"), "wss://h:3103/sub"),
        ("ws://[::1]:5/a?b=c", Target("ws", "::1", 5, "/a?b=c"), "ws://[::1]:5/a"),
    ],
)  # fmt: skip
def test_addresses(address: str, target: Target, shown: str) -> None:
    assert (parse(address), str(parse(address))) == (target, shown)


@pytest.mark.parametrize("address", ["", "h:1", "http://h", "ws://", "ws://h:x", "ws://h:70000"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ValueError, match=r"^address: .*, got "):
        parse(address)


def test_bodies_of_replies() -> None:
    members = {"room_id": "a://1", "online": 3, "mids": [1, 2], "next": 2}
    assert Members.read(json.dumps(members).encode()) == Members("a://1", 3, (1, 2), 2)
    presence = {"room_id": "a://1", "joined": [1], "left": [], "online": 3}
    assert Presence.read(json.dumps(presence).encode()) == Presence("a://1", (1,), (), 3)
    seen = {"7": {"online": True, "seen": 1.5}, "8": {"online": False, "seen": None}}
    assert read_last_seen(json.dumps(seen).encode()) == {7: LastSeen(True, 1.5), 8: LastSeen(False, None)}


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"room_id":1}', b"\xff", b'{"7":{}}', b'{"x":{"online":1}}']
)
@pytest.mark.parametrize("read", [Members.read, Presence.read, read_last_seen])
def test_bodies_that_are_none(read: object, body: bytes) -> None:
    if read is read_last_seen and body == b"{}":
        return
    with pytest.raises(ProtocolError, match="not what was expected"):
        read(body)  # type: ignore[operator]


def test_a_message_speaks() -> None:
    assert (Message(1000, b'{"a":1}').json(), Message(1000, b"\xff").text) == ({"a": 1}, "\ufffd")
    assert encode(1000)
