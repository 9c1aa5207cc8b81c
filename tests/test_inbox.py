"""The way of stored messages to one connection: after the cursor, in order, no gap, no second copy."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Sequence
from typing import Any

import pytest
from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from goim_core import logic as logic_module
from goim_core.errors import CloseCode, Disconnect, ErrorCode, Refused
from goim_core.hooks import AuthHook
from goim_core.inbox import Inbox
from goim_core.logic import Logic
from goim_core.memory_storage import MemoryStorage
from goim_core.options import Options, OutboxPolicy
from goim_core.protocol import Decoder, Frame, Op, encode
from goim_core.session import Session
from goim_core.storage import Stored
from goim_core.wire import Packet
from tests.links import Link
from tests.logics import new_logic

YES, NO, ROOM_OP = 1000, 1001, 1002
"""Operations that the client accepts and does not, and one of another push."""
PAGE = 3
PAGE_BYTES = 100
LARGEST = 60


class Answer:
    """What a storage that takes its time has been asked; the question is put to ``ask`` when it is settled."""

    def __init__(self, ask: Callable[[], Any], early: bool) -> None:
        value = ask() if early else None
        self.ask: Callable[[], Any] = (lambda: value) if early else ask

    def __await__(self) -> Generator[Any, Any, Any]:
        raise AssertionError("the rig answers by itself")
        yield


@define
class Storage(MemoryStorage):
    """One user's inbox, at once or later; messages may be removed from its front."""

    messages: list[Stored] = field(factory=list)
    first: int = 0
    """How many of them are removed."""
    acknowledged: int = 0
    slow: bool = False
    early: bool = True
    """Whether a slow answer is what was there at the question, or at the answer."""

    def answer(self, ask: Callable[[], Any]) -> Any:
        return Answer(ask, self.early) if self.slow else ask()

    def cursor(self, mid: int, device: str) -> Any:
        return self.answer(lambda: self.acknowledged)

    def after(self, mid: int, seq: int, limit: int, size: int) -> Any:
        return self.answer(lambda: self.page(seq, limit, size))

    def page(self, seq: int, limit: int, size: int) -> Sequence[Stored]:
        found: list[Stored] = []
        for message in self.messages[max(self.first, seq) :]:
            size -= len(message.body)
            if len(found) == limit or (found and size < 0):
                break
            found.append(message)
        return found


def after_page(logic: Logic, session: Session, seq: int) -> Any:
    """A few messages at a time."""
    return Logic.after(logic, session, seq, PAGE)


class Rig:
    """An inbox on a link in memory; it stands for the reactor and for the exchanges, too."""

    def __init__(
        self,
        options: Options | None = None,
        accepts: tuple[int, ...] = (YES, ROOM_OP),
        kind: type[Link] = Link,
    ) -> None:
        self.storage = Storage()
        session = Session(mid=1, key="k", device="d", accepts=frozenset(accepts))
        self.link = kind(session=session, options=Options() if options is None else options)
        self.channel = self.link.channel
        logic = new_logic(storage=self.storage, auth=AuthHook())
        setattr(logic, "after", functools.partial(after_page, logic))  # noqa: B010
        self.inbox = Inbox(self.channel, logic, self, self)  # type: ignore[arg-type]
        self.channel.inbox = self.inbox
        self.turns: list[Inbox] = []
        self.asked: list[tuple[Any, Answer, Callable[[Any], None], Callable[[Any], None]]] = []

    # The exchanges and the reactor.

    def begin(self, flow: Any, done: Callable[[Any], None], failed: Callable[[Any], None]) -> bool:
        try:
            self.asked.append((flow, next(flow), done, failed))
        except StopIteration as stop:
            done(stop.value)
        except Refused as refused:
            failed(refused)
        return False

    def again(self, source: Inbox) -> None:
        self.turns.append(source)

    # What happens.

    def settle(self, index: int = 0, error: Refused | None = None) -> None:
        """The storage answers one of those that asked."""
        if self.asked:
            flow, answer, done, failed = self.asked.pop(index % len(self.asked))
            if error is not None:
                failed(error)
                return
            try:
                flow.send(answer.ask())
            except StopIteration as stop:
                done(stop.value)

    def turn(self) -> None:
        turns, self.turns = self.turns, []
        for source in turns:
            source.on_turn()

    def take(self, room: int | None) -> None:
        """The link takes so many bytes, or all; its connection flushes."""
        self.link.room = room
        if self.channel.outbox is not None and self.channel.flush():
            self.inbox.go_on()

    def store(self, op: int = YES, size: int = 4) -> int:
        seq = len(self.storage.messages) + 1
        self.storage.messages.append(Stored(seq, op, b"%d" % seq + b"." * size, 0.0))
        return seq

    def publish(self, seq: int) -> None:
        message = self.storage.messages[seq - 1]
        self.inbox.push(seq, message.op, Packet([encode(message.op, message.body, seq)]))

    def live(self, body: bytes, op: int = YES) -> None:
        self.inbox.push(0, op, Packet([encode(op, body)]))

    def run(self) -> None:
        """Until nothing happens any more."""
        for _ in range(10_000):
            if not (self.asked or self.turns):
                return
            self.settle()
            self.turn()
        pytest.fail("it reads for ever")

    def frames(self) -> list[Frame]:
        """What has arrived whole."""
        decoder = Decoder(1 << 20)
        decoder.receive(bytes(self.link.taken))
        found = []
        while (frame := decoder.next_frame()) is not None:
            found.append(frame)
        return found

    def seqs(self) -> list[int]:
        return [frame.seq for frame in self.frames() if frame.op != ROOM_OP]


def started(count: int = 0, **options: Any) -> Rig:
    rig = Rig(Options(**options))
    for _ in range(count):
        rig.store()
    rig.inbox.go_on()
    rig.run()
    return rig


# One after the other.


def test_what_is_stored_comes_first_and_in_order() -> None:
    rig = Rig()
    rig.storage.acknowledged = 2
    for _ in range(10):
        rig.store()
    rig.live(b"live")
    rig.inbox.go_on()
    assert rig.seqs() == [3, 4, 5], "a page a turn"
    rig.run()
    assert rig.seqs() == [*range(3, 11), 0]
    assert rig.frames()[0] == Frame(YES, b"3....", seq=3)


def test_the_next_number_is_sent_at_once_and_without_a_read() -> None:
    rig = started(1)
    rig.storage.slow = True
    rig.publish(rig.store())
    assert rig.seqs() == [1, 2]
    assert rig.asked == []


def test_published_out_of_order_it_arrives_in_order() -> None:
    rig = started()
    seqs = [rig.store() for _ in range(4)]
    for seq in reversed(seqs):
        rig.publish(seq)
    rig.run()
    assert rig.seqs() == seqs


def test_a_second_copy_is_dropped() -> None:
    rig = started()
    seqs = [rig.store() for _ in range(3)]
    rig.storage.slow = True
    for seq in (*seqs, *seqs):
        rig.publish(seq)
    assert (rig.seqs(), rig.asked) == (seqs, []), "and costs no read"


def test_a_push_that_was_lost_comes_with_the_next() -> None:
    rig = started()
    rig.store()
    rig.run()
    assert rig.seqs() == []
    rig.publish(rig.store())
    rig.run()
    assert rig.seqs() == [1, 2]


def test_what_comes_while_a_page_is_read_is_not_missed() -> None:
    rig = Rig()
    rig.storage.slow = True
    rig.inbox.go_on()
    rig.settle()  # the cursor
    rig.publish(rig.store())
    rig.settle()  # an empty page, from before
    rig.run()
    assert rig.seqs() == [1]


def test_operations_that_are_not_accepted_are_passed_over() -> None:
    rig = started()
    for op in (YES, NO, NO, YES):
        rig.publish(rig.store(op))
    rig.store(NO)
    rig.publish(rig.store(NO))
    rig.publish(rig.store(YES))
    rig.run()
    assert rig.seqs() == [1, 4, 7]


def test_what_retention_removed_is_passed_over() -> None:
    rig = started()
    for _ in range(3):
        rig.store()
    rig.storage.first = 3
    rig.publish(3)
    rig.run()
    rig.storage.slow = True
    rig.publish(rig.store())
    assert (rig.seqs(), rig.asked) == ([4], [])


def test_a_full_outbox_is_left_to_the_storage() -> None:
    rig = started(outbox_packets=2)
    rig.take(0)
    for _ in range(10):
        rig.publish(rig.store())
    outbox = rig.channel.outbox
    assert outbox is not None
    assert len(outbox.packets) == 2
    rig.take(None)
    rig.run()
    assert rig.seqs() == list(range(1, 11))


def test_a_slow_link_has_one_page_in_memory() -> None:
    rig = Rig(Options(outbox_bytes=1024))
    for _ in range(1000):
        rig.store()
    rig.take(0)
    rig.inbox.go_on()
    rig.run()
    for seq in range(900, 1001):
        rig.publish(seq)
    for _ in range(1000):
        assert rig.channel.outbox is not None
        assert rig.channel.outbox.size <= PAGE * (16 + 8)
        rig.take(50)
        rig.run()
        if rig.channel.outbox is None:
            break
    rig.take(None)
    rig.run()
    assert rig.seqs() == list(range(1, 1001))


# Live messages that are not stored.


def test_live_messages_wait_for_what_is_stored_within_bounds() -> None:
    rig = Rig(Options(outbox_packets=3))
    rig.storage.slow = True
    rig.store()
    rig.inbox.go_on()
    for number in range(5):
        rig.live(b"%d" % number)
    assert rig.channel.drops == 2
    rig.run()
    assert [frame.body for frame in rig.frames()] == [b"1....", b"0", b"1", b"2"]
    counters = rig.link.counters
    assert (counters.deliveries, counters.drops) == (4, {"inbox": 2})


def test_live_messages_that_wait_are_bounded_in_bytes() -> None:
    rig = Rig(Options(outbox_bytes=1024))
    rig.storage.slow = True
    rig.inbox.go_on()
    for _ in range(5):
        rig.live(bytes(400))
    assert rig.channel.drops == 3
    rig.run()
    assert len(rig.frames()) == 2
    rig.live(bytes(400))
    assert len(rig.frames()) == 3


def test_live_messages_that_still_wait_at_the_end_are_counted() -> None:
    rig = Rig()
    rig.storage.slow = True
    rig.inbox.go_on()
    rig.live(b"waits")
    rig.inbox.close()
    rig.run()
    assert rig.frames() == []
    assert rig.link.counters.drops == {"lost": 1}


# The end.


def test_nothing_is_sent_after_the_end() -> None:
    rig = Rig()
    rig.storage.slow = True
    rig.store()
    rig.inbox.go_on()
    rig.settle()
    rig.inbox.close()
    rig.run()
    rig.take(None)
    assert rig.frames() == []


@pytest.mark.parametrize("answers", [0, 1])
def test_a_storage_that_fails_closes_the_connection(answers: int) -> None:
    rig = Rig()
    rig.storage.slow = True
    rig.store()
    rig.inbox.go_on()
    for _ in range(answers):
        rig.settle()
    rig.settle(error=Refused("internal error", ErrorCode.INTERNAL))
    (why,) = rig.link.closed
    assert (why.code, why.reason) == (CloseCode.INTERNAL_ERROR, "the inbox cannot be read: internal error")
    rig.inbox.close()
    assert rig.asked == []


def test_a_read_that_fails_after_the_end_closes_nothing() -> None:
    rig = Rig()
    rig.storage.slow = True
    rig.inbox.go_on()
    rig.inbox.close()
    rig.settle(error=Refused("the server is stopping"))
    assert rig.link.closed == []


def test_a_socket_that_breaks_was_not_written_to() -> None:
    class Breaking(Link):
        written = -1

        def lost(self, error: OSError) -> None:
            self.written = rig.inbox.close()

    rig = Rig(kind=Breaking)
    rig.store()
    rig.inbox.go_on()
    rig.run()
    assert rig.inbox.written() == 1
    rig.inbox.saved = 1
    rig.link.broken = BrokenPipeError("gone")
    rig.publish(rig.store())
    assert isinstance(rig.link, Breaking)
    assert rig.link.written == 0


# What was written.


def test_what_was_written_is_said_until_it_is_saved() -> None:
    rig = started(3)
    assert [rig.inbox.written(), rig.inbox.written()] == [3, 3]
    rig.inbox.saved = 3
    assert rig.inbox.written() == 0
    rig.take(0)
    rig.publish(rig.store())
    assert rig.inbox.written() == 0
    rig.take(None)
    assert rig.inbox.written() == 4


def test_what_another_push_holds_up_does_not_unwrite_it() -> None:
    rig = started(3)
    rig.take(0)
    rig.channel.push(Packet([encode(ROOM_OP, b"waits")]))
    assert rig.inbox.close() == 3


def test_a_client_that_acknowledges_does_so_itself() -> None:
    rig = Rig(accepts=(YES, Op.ACK))
    rig.store()
    rig.inbox.go_on()
    rig.run()
    assert rig.seqs() == [1]
    assert rig.inbox.written() == rig.inbox.close() == 0


def test_before_the_cursor_is_known_nothing_was_written() -> None:
    rig = Rig()
    rig.storage.slow = True
    rig.inbox.go_on()
    assert rig.inbox.written() == 0


# All of it at once.


class Way(RuleBasedStateMachine):
    """Stores, pushes in any order or never, a storage that takes its time, a link that blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig(Options(outbox_bytes=1024, outbox_packets=4, outbox_policy=OutboxPolicy.DROP_NEWEST))
        self.unpublished: list[int] = []
        self.saved = 0
        self.lives: list[bytes] = []
        for _ in range(4):
            self.rig.store()
        self.rig.storage.acknowledged = 1
        self.rig.inbox.go_on()

    # What happens.

    @rule(op=st.sampled_from([YES, YES, NO]), size=st.integers(0, LARGEST), publish=st.booleans())
    def store(self, op: int, size: int, publish: bool) -> None:
        seq = self.rig.store(op, size)
        if publish:
            self.rig.publish(seq)
        else:
            self.unpublished.append(seq)

    @rule(index=st.integers(0, 20), again=st.booleans())
    def publish(self, index: int, again: bool) -> None:
        if self.unpublished:
            seq = self.unpublished[index % len(self.unpublished)]
            self.rig.publish(seq)
            if not again:
                self.unpublished.remove(seq)

    @rule(index=st.integers(0, 20))
    def lose(self, index: int) -> None:
        if self.unpublished:
            self.unpublished.pop(index % len(self.unpublished))

    @rule(op=st.sampled_from([YES, NO]))
    def live(self, op: int) -> None:
        body = b"live %d" % len(self.lives)
        if op == YES:
            self.lives.append(body)
        self.rig.live(body, op)

    @rule(size=st.integers(0, 300))
    def push_another(self, size: int) -> None:
        self.rig.channel.push(Packet([encode(ROOM_OP, bytes(size))]))

    @rule(slow=st.booleans(), early=st.booleans())
    def change_pace(self, slow: bool, early: bool) -> None:
        self.rig.storage.slow, self.rig.storage.early = slow, early

    @rule(index=st.integers(0, 3))
    def settle(self, index: int) -> None:
        self.rig.settle(index)

    @rule()
    def turn(self) -> None:
        self.rig.turn()

    @rule(room=st.integers(0, 200) | st.none())
    def take(self, room: int | None) -> None:
        self.rig.take(room)

    @rule(count=st.integers(1, 3))
    def remove(self, count: int) -> None:
        self.rig.storage.first = min(self.rig.storage.first + count, len(self.rig.storage.messages))

    @rule()
    def heartbeat(self) -> None:
        self.check_written(self.rig.inbox.written())

    @rule(one_more=st.booleans())
    def catch_up(self, one_more: bool) -> None:
        if one_more:
            self.rig.publish(self.rig.store())
        self.rig.take(None)
        self.rig.run()
        told = self.rig.inbox.announced
        missing = self.wanted(told) - set(self.rig.seqs())
        assert not missing, "it catches up with all that was told of"
        if one_more:
            assert told == len(self.rig.storage.messages)
        assert not self.rig.inbox.behind
        self.check_written(self.rig.inbox.written())
        assert self.saved >= max(self.rig.seqs(), default=0)

    def teardown(self) -> None:
        self.catch_up(one_more=True)
        counters = self.rig.link.counters
        arrived = [frame.body for frame in self.rig.frames() if frame.body.startswith(b"live")]
        assert len(self.lives) - len(arrived) <= counters.drops.total()
        before = len(self.rig.link.taken)
        self.rig.storage.slow = True
        self.rig.store()
        self.rig.publish(self.rig.store())
        self.rig.inbox.close()
        self.rig.run()
        assert len(self.rig.link.taken) == before

    # What holds.

    def wanted(self, until: int) -> set[int]:
        """Numbers up to ``until`` that the client is to have, as far as they are still there."""
        storage = self.rig.storage
        kept = storage.messages[max(storage.first, storage.acknowledged) : until]
        return {message.seq for message in kept if message.op == YES}

    def check_written(self, seq: int) -> None:
        if seq:
            assert seq > self.saved, "only what is new"
            assert not self.wanted(seq) - set(self.rig.seqs()), "what has not arrived was not written"
            self.saved = self.rig.inbox.saved = seq

    @invariant()
    def what_arrives_is_the_inbox_in_order(self) -> None:
        storage = self.rig.storage
        frames = [frame for frame in self.rig.frames() if frame.op != ROOM_OP]
        stored = [frame for frame in frames if frame.seq]
        seqs = [frame.seq for frame in stored]
        assert seqs == sorted(set(seqs)), "in order, no second copy"
        assert seqs == [] or seqs[0] > storage.acknowledged
        assert not self.wanted(max(seqs, default=0)) - set(seqs), "no gap"
        for frame in stored:
            message = storage.messages[frame.seq - 1]
            assert (frame.op, frame.body) == (message.op, message.body) == (YES, message.body)
        lives = [frame.body for frame in frames if not frame.seq]
        assert lives == [body for body in self.lives if body in lives], "live ones in order, too, and once"

    @invariant()
    def memory_is_bounded(self) -> None:
        channel, options = self.rig.channel, self.rig.link.options
        size = channel.outbox.size if channel.outbox is not None else 0
        page = PAGE_BYTES + LARGEST + PAGE * (16 + 8)
        assert size <= options.outbox_bytes + page
        held = self.rig.inbox.held or []
        assert len(held) <= options.outbox_packets
        assert len(self.rig.asked) <= 1, "one read at a time"


def test_any_order_of_stores_pushes_reads_and_a_slow_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logic_module, "PAGE_BYTES", PAGE_BYTES)
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Way, settings=settings(max_examples=150, stateful_step_count=50, deadline=None)
    )


def test_a_disconnect_policy_closes_in_the_middle_of_what_waited() -> None:
    class Closing(Link):
        def close(self, why: Disconnect) -> None:
            super().close(why)
            rig.channel.accepts = frozenset()  # as comet does with one that leaves
            rig.inbox.close()

    rig = Rig(Options(outbox_packets=1, outbox_policy=OutboxPolicy.DISCONNECT), kind=Closing)
    rig.storage.slow = True
    rig.inbox.go_on()
    rig.live(b"one")
    rig.take(0)
    rig.run()
    rig.live(b"two")
    rig.live(b"three")
    assert [why.code for why in rig.link.closed] == [CloseCode.SLOW]
