"""A channel: order, the outbox's bound and its three policies, and streams that never break."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from goim_core.channel import deliver
from goim_core.errors import CloseCode
from goim_core.options import Options, OutboxPolicy
from goim_core.outbox import FLUSH_BYTES
from goim_core.protocol import HEADER_SIZE, Op, encode
from goim_core.wire import TCP, WEBSOCKET, Packet
from tests.links import Link

POLICIES = list(OutboxPolicy)
SETTINGS = settings(max_examples=60, stateful_step_count=30, deadline=None)


def packet(*bodies: bytes) -> Packet:
    return Packet([encode(1000, body) for body in bodies])


def blocked(**options: Any) -> Link:
    """A link that takes nothing, whose channel has one push of one message, ``first``, waiting."""
    link = Link(options=Options(**options), room=0)
    link.channel.push(packet(b"first"))
    return link


def flushed(link: Link) -> list[bytes]:
    link.room = None
    assert link.channel.flush()
    return link.bodies()


def test_a_push_is_sent_at_once_where_nothing_waits() -> None:
    link = Link()
    push = packet(b"one")
    link.channel.push(push)
    assert link.sends == [push.forms[TCP]]
    assert link.channel.outbox is None
    assert not link.writes_wanted


@pytest.mark.parametrize("form", [TCP, WEBSOCKET])
def test_each_kind_of_wire_gets_its_own_bytes(form: int) -> None:
    link = Link(form=form)
    push = packet(b"one", b"two")
    link.channel.push(push)
    assert link.taken == push.forms[form]


def test_what_the_kernel_does_not_take_waits_in_order() -> None:
    link = Link(room=HEADER_SIZE + 1)
    for body in (b"one", b"two", b"three"):
        link.channel.push(packet(body))
    link.channel.reply(encode(3, b"four"))
    assert link.writes_wanted == 1, "one wait serves all that follows"
    assert flushed(link) == [b"one", b"two", b"three", b"four"]
    assert link.channel.outbox is None


def test_a_reply_waits_too_where_the_kernel_takes_nothing() -> None:
    link = Link(room=0)
    link.channel.reply(encode(3, b"one"))
    link.channel.push(packet(b"two"))
    assert link.writes_wanted == 1
    assert flushed(link) == [b"one", b"two"]


def test_a_flush_goes_on_only_as_long_as_the_kernel_takes_all() -> None:
    link = blocked()
    link.room = 1
    assert not link.channel.flush()
    assert len(link.sends) == 1, "a short send means that the next would be refused"
    assert not link.channel.flush()
    assert flushed(link) == [b"first"]


def test_a_flush_that_takes_something_puts_off_the_deadline() -> None:
    link = blocked()
    outbox = link.channel.outbox
    assert outbox is not None
    outbox.deadline = 5.0
    assert not link.channel.flush()
    assert outbox.deadline == 5.0
    link.room = 1
    assert not link.channel.flush()
    assert outbox.deadline == float("inf")


def test_drop_newest() -> None:
    link = blocked(outbox_packets=2, outbox_policy="drop_newest")
    link.channel.push(packet(b"second"))
    link.channel.push(packet(b"third", b"fourth"))
    link.channel.push(packet(b"fifth"))
    assert link.channel.drops == 3
    assert link.counters.drops == {"drop_newest": 3}
    assert not link.closed
    assert flushed(link) == [b"first", b"second"]


def test_drop_oldest() -> None:
    link = blocked(outbox_packets=2, outbox_policy="drop_oldest")
    link.channel.push(packet(b"second", b"third"))
    link.channel.push(packet(b"fourth"))
    assert link.counters.drops == {"drop_oldest": 1}
    link.channel.push(packet(b"fifth"))
    assert link.channel.drops == 3
    assert link.counters.drops == {"drop_oldest": 3}
    assert flushed(link) == [b"fourth", b"fifth"]


def test_disconnect() -> None:
    link = blocked(outbox_packets=2, outbox_policy="disconnect")
    link.channel.push(packet(b"second"))
    assert not link.closed
    link.channel.push(packet(b"third", b"fourth"))
    assert link.channel.drops == 2
    assert link.counters.drops == {"disconnect": 2}
    assert [why.code for why in link.closed] == [CloseCode.SLOW]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_bound_in_bytes_counts_headers_and_is_itself_allowed(policy: OutboxPolicy) -> None:
    link = blocked(outbox_bytes=1024, outbox_policy=policy)
    fits = 1024 - (HEADER_SIZE + len(b"first")) - HEADER_SIZE
    link.channel.push(packet(bytes(fits)))
    assert not link.counters.drops
    link.channel.push(packet(b""))
    assert link.counters.drops == {policy.value: 1}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_packet_larger_than_the_bound_waits_where_nothing_else_does(policy: OutboxPolicy) -> None:
    link = Link(options=Options(outbox_bytes=1024, outbox_policy=policy), room=0)
    link.channel.push(packet(bytes(5000)))
    assert flushed(link) == [bytes(5000)]
    assert not link.counters.drops


def test_drop_oldest_frees_as_many_as_the_new_one_needs() -> None:
    link = Link(options=Options(outbox_bytes=1024, outbox_policy="drop_oldest"), room=0)
    for number in range(4):
        link.channel.push(packet(bytes([number]) * 240))
    link.channel.push(packet(b"\4" * 490))
    assert link.counters.drops == {"drop_oldest": 2}
    assert [body[0] for body in flushed(link)] == [2, 3, 4]


def test_drop_oldest_keeps_what_is_sent_in_part_and_what_is_no_push() -> None:
    link = Link(options=Options(outbox_packets=3, outbox_policy="drop_oldest"), room=5)
    link.channel.push(packet(b"begun"))
    link.channel.reply(encode(3, b"reply"))
    link.channel.push(packet(b"dropped"))
    link.channel.push(packet(b"newest"))
    assert link.counters.drops == {"drop_oldest": 1}
    assert flushed(link) == [b"begun", b"reply", b"newest"]


def test_drop_oldest_drops_the_new_one_where_nothing_else_may_go() -> None:
    link = Link(options=Options(outbox_packets=2, outbox_policy="drop_oldest"), room=5)
    link.channel.push(packet(b"begun"))
    link.channel.reply(encode(3, b"reply"))
    link.channel.push(packet(b"new", b"too"))
    assert link.counters.drops == {"drop_oldest": 2}
    assert flushed(link) == [b"begun", b"reply"]


def test_a_packet_that_was_begun_and_finished_protects_no_other() -> None:
    link = Link(options=Options(outbox_packets=2, outbox_policy="drop_oldest"), room=5)
    link.channel.push(packet(b"begun"))
    link.channel.push(packet(b"second"))
    link.room = HEADER_SIZE + len(b"begun") - 5
    assert not link.channel.flush()
    link.channel.push(packet(b"third"))
    link.channel.push(packet(b"fourth"))
    assert flushed(link) == [b"begun", b"third", b"fourth"]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_client_that_does_not_read_its_replies_is_disconnected(policy: OutboxPolicy) -> None:
    link = blocked(outbox_packets=1, outbox_policy=policy)
    link.channel.reply(encode(3))
    assert [why.code for why in link.closed] == [CloseCode.SLOW]
    assert not link.channel.drops
    assert not link.counters.drops, "a reply is no message: nothing is counted, not even as 0"


@pytest.mark.parametrize("policy", POLICIES)
def test_the_farewell_waits_even_where_the_outbox_is_full(policy: OutboxPolicy) -> None:
    link = blocked(outbox_packets=1, outbox_bytes=1024, outbox_policy=policy)
    link.channel.append(encode(Op.DISCONNECT_REPLY, bytes(2000)))
    assert not link.closed
    assert flushed(link) == [b"first", bytes(2000)]


def test_a_farewell_is_sent_at_once_where_nothing_waits() -> None:
    link = Link()
    link.channel.append(encode(Op.DISCONNECT_REPLY))
    assert link.taken == encode(Op.DISCONNECT_REPLY)


def test_a_big_packet_is_never_copied_while_it_is_sent_bit_by_bit() -> None:
    link = Link(room=1000)
    push = packet(bytes(1 << 20))
    link.channel.push(push)
    while link.channel.outbox is not None:
        link.room = 1 << 16
        link.channel.flush()
    assert link.taken == push.forms[TCP]
    views = link.sends[1:]
    assert len(views) > 10
    assert all(isinstance(view, memoryview) and view.obj is push.forms[TCP] for view in views)


def test_small_packets_that_wait_are_joined_for_one_send() -> None:
    link = blocked(outbox_packets=10_000)
    for number in range(1000):
        link.channel.push(packet(b"%d" % number))
    bodies = flushed(link)
    assert bodies == [b"first", *(b"%d" % number for number in range(1000))]
    assert len(link.sends) == 1


def test_a_joined_send_has_a_bound() -> None:
    link = blocked()
    for size in (FLUSH_BYTES - 100, 10, FLUSH_BYTES + 1, 10, 10):
        link.channel.push(packet(bytes(size)))
    flushed(link)
    assert [len(data) > FLUSH_BYTES for data in link.sends] == [False, True, False]


def test_a_cork_gathers_replies_for_one_send() -> None:
    link = Link()
    assert link.channel.cork()
    assert not link.channel.cork(), "what is corked is not corked again"
    link.channel.reply(encode(3, b"one"))
    link.channel.push(packet(b"two"))
    link.channel.reply(encode(3, b"three"))
    assert not link.sends
    assert link.channel.flush()
    assert len(link.sends) == 1
    assert link.bodies() == [b"one", b"two", b"three"]


def test_a_cork_on_a_channel_that_waits_already_does_nothing() -> None:
    link = blocked()
    assert not link.channel.cork()
    assert flushed(link) == [b"first"]


def test_an_empty_cork_sends_nothing() -> None:
    link = Link()
    assert link.channel.cork()
    assert link.channel.flush()
    assert link.channel.outbox is None
    assert not link.sends


def test_replies_to_a_client_that_reads_pass_a_full_cork() -> None:
    """A client may pipeline: the bound is for what the kernel does not take."""
    link = Link(options=Options(outbox_packets=2))
    assert link.channel.cork()
    for number in range(10):
        link.channel.reply(encode(3, b"%d" % number))
    assert link.channel.flush()
    assert not link.closed
    assert link.bodies() == [b"%d" % number for number in range(10)]


@pytest.mark.parametrize("send", ["push", "reply", "flush"])
def test_a_broken_socket_is_reported_once(send: str) -> None:
    link = blocked() if send == "flush" else Link()
    link.broken = ConnectionResetError("gone")
    if send == "push":
        link.channel.push(packet(b"one"))
    elif send == "reply":
        link.channel.reply(encode(3))
    else:
        assert not link.channel.flush()
    assert link.errors == [link.broken]


def test_a_lost_member_harms_no_other() -> None:
    links = [Link(), Link(), Link()]
    links[1].broken = BrokenPipeError("gone")
    deliver([link.channel for link in links], packet(b"one", b"two"))
    assert [link.bodies() for link in links] == [[b"one", b"two"], [], [b"one", b"two"]]
    assert [link.errors for link in links] == [[], [links[1].broken], []]
    assert links[1].counters.drops == {"lost": 2}
    assert links[1].channel.drops == 2


class Streams(RuleBasedStateMachine):
    """Against a model: the list of all that was let in. The peer gets exactly that, in order.

    What waits is told from how many bytes the peer has: an entry that begins below is begun.
    """

    policy: OutboxPolicy
    BYTES, PACKETS = 1024, 5

    def __init__(self) -> None:
        super().__init__()
        self.numbers = itertools.count()

    @initialize(room=st.none() | st.integers(0, 3000))
    def connect(self, room: int | None) -> None:
        options = Options(outbox_bytes=self.BYTES, outbox_packets=self.PACKETS, outbox_policy=self.policy)
        self.link = Link(options=options, room=room)
        self.channel = self.link.channel
        self.entries: list[tuple[bytes, int]] = []
        self.drops = 0

    def waiting(self) -> list[tuple[int, bytes, int, bool]]:
        """What the peer has not got whole: index, rest of the bytes, count of messages, whether begun."""
        found, start, taken = [], 0, len(self.link.taken)
        for index, (data, count) in enumerate(self.entries):
            end = start + len(data)
            if end > taken:
                found.append((index, data[max(taken - start, 0) :], count, start < taken))
            start = end
        return found

    def full(self, size: int) -> bool:
        waiting = self.waiting()
        return len(waiting) >= self.PACKETS or sum(len(rest) for _, rest, _, _ in waiting) + size > self.BYTES

    def bodies(self, count: int, size: int) -> list[bytes]:
        return [b"%d:" % next(self.numbers) + bytes(size) for _ in range(count)]

    def open(self) -> bool:
        return not self.link.closed

    @precondition(open)
    @rule(count=st.integers(1, 3), size=st.integers(0, 500))
    def push(self, count: int, size: int) -> None:
        push = packet(*self.bodies(count, size))
        data = push.forms[TCP]
        if self.channel.outbox is None or not self.full(len(data)):
            self.entries.append((data, count))
        elif self.policy is OutboxPolicy.DROP_OLDEST:
            dropped = self.oldest(len(data))
            self.drops += dropped or count
            if dropped:
                self.entries.append((data, count))
        else:
            self.drops += count
        self.channel.push(push)
        assert bool(self.link.closed) == (self.policy is OutboxPolicy.DISCONNECT and self.drops > 0)

    def oldest(self, size: int) -> int:
        waiting = self.waiting()
        need = sum(len(rest) for _, rest, _, _ in waiting) + size - self.BYTES
        gone: list[int] = []
        dropped = 0
        for index, rest, count, begun in waiting:
            if count and not begun:
                gone.append(index)
                dropped += count
                need -= len(rest)
                if need <= 0:
                    break
        for index in reversed(gone):
            del self.entries[index]
        return dropped

    @precondition(open)
    @rule(size=st.integers(0, 200))
    def reply(self, size: int) -> None:
        data = encode(3, b"%d:" % next(self.numbers) + bytes(size))
        # What is only corked is sent before it is said to be too much.
        if self.channel.outbox is None or not self.full(len(data)) or self.link.room is None:
            self.entries.append((data, 0))
            self.channel.reply(data)
            assert not self.link.closed
        else:
            taken = len(self.link.taken)
            self.channel.reply(data)
            if not self.link.closed:
                assert len(self.link.taken) > taken
                self.entries.append((data, 0))

    @rule(room=st.none() | st.integers(0, 3000))
    def flush(self, room: int | None) -> None:
        self.link.room = room
        done = self.channel.flush()
        assert done == (not self.waiting())
        assert done == (self.channel.outbox is None)

    @rule()
    def cork(self) -> None:
        assert self.channel.cork() != bool(self.waiting() or self.corked)
        self.corked = self.channel.outbox is not None

    corked = False

    @invariant()
    def counts(self) -> None:
        outbox = self.channel.outbox
        if outbox is None or outbox.packets:
            self.corked = False
        assert self.channel.drops == self.drops == self.link.counters.drops.total()
        size = sum(len(rest) for _, rest, _, _ in self.waiting())
        assert (0 if outbox is None else outbox.size) == size

    @invariant()
    def stream(self) -> None:
        assert b"".join(data for data, _ in self.entries).startswith(self.link.taken)

    def teardown(self) -> None:
        self.link.room = None
        assert self.channel.flush()
        assert self.link.taken == b"".join(data for data, _ in self.entries)
        self.link.frames()


class DropNewest(Streams):
    policy = OutboxPolicy.DROP_NEWEST


class DropOldest(Streams):
    policy = OutboxPolicy.DROP_OLDEST


class Disconnecting(Streams):
    policy = OutboxPolicy.DISCONNECT


TestDropNewest = DropNewest.TestCase
TestDropOldest = DropOldest.TestCase
TestDisconnecting = Disconnecting.TestCase
TestDropNewest.settings = SETTINGS
TestDropOldest.settings = SETTINGS
TestDisconnecting.settings = SETTINGS
