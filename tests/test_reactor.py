"""Both reactors through the same tests: readiness, turns, and sockets that end in the midst of one."""

from __future__ import annotations

import functools
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest

from goim_core import poller
from goim_core.reactor import KernelReactor, Reactor
from goim_core.task_reactor import TaskReactor, new_reactor

pytestmark = pytest.mark.anyio


class Source:
    """One end of a socket pair, as a connection has it: reads all there is when told to, tells the test."""

    def __init__(self, reactor: Reactor, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.reactor = reactor
        self.sock = sock
        self.data = b""
        self.calls: list[str] = []
        self.readable: Callable[[], object] = lambda: None
        self.writable: Callable[[], object] = lambda: None
        self.turn: Callable[[], object] = lambda: None
        self.replied: Callable[[], object] = lambda: None
        self._changed = anyio.Event()
        reactor.add(sock, self)

    def on_readable(self) -> None:
        self.called("readable")
        try:
            self.data += self.sock.recv(4096)
        except BlockingIOError:
            self.calls.append("nothing")
        self.readable()

    def on_writable(self) -> None:
        self.called("writable")
        self.writable()

    def on_turn(self) -> None:
        self.called("turn")
        self.turn()

    def reply(self, data: bytes) -> None:
        self.called(f"reply {data.decode()}")
        self.replied()

    def lost(self, error: OSError) -> None:
        self.calls.append(f"lost: {error}")
        self.close()

    def called(self, what: str) -> None:
        assert self.sock.fileno() >= 0, "what is removed is not called"
        self.calls.append(what)
        self._changed.set()

    def close(self) -> None:
        self.reactor.remove(self.sock)
        self.sock.close()

    async def until(self, condition: Callable[[], bool]) -> None:
        with anyio.fail_after(5):
            while not condition():
                self._changed = anyio.Event()
                await self._changed.wait()


class Sockets:
    """Makes sources with their peers, and closes whatever is left."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.made: list[socket.socket] = []
        self.sources: list[Source] = []

    def pair(self) -> tuple[Source, socket.socket]:
        ours, theirs = socket.socketpair()
        source = Source(self.reactor, ours)
        theirs.setblocking(False)
        self.made += [ours, theirs]
        self.sources.append(source)
        return source, theirs

    def close(self) -> None:
        for source in self.sources:
            if source.sock.fileno() >= 0:
                source.close()
        for sock in self.made:
            sock.close()
        self.reactor.close()


@pytest.fixture(params=[new_reactor, TaskReactor], ids=["kernel", "task"])
async def sockets(request: pytest.FixtureRequest) -> AsyncIterator[Sockets]:
    made = Sockets(request.param())
    yield made
    made.close()


@asynccontextmanager
async def running(reactor: Reactor) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reactor.run)
        yield
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def turns() -> AsyncIterator[None]:
    """Time enough for whatever is ready to be served."""
    yield
    await quiet()


async def quiet() -> None:
    for _ in range(30):
        await anyio.lowlevel.checkpoint()


def test_this_systems_reactor() -> None:
    reactor = new_reactor()
    assert isinstance(reactor, TaskReactor if sys.platform == "win32" else KernelReactor)
    reactor.close()


async def test_what_is_readable_is_called_and_nothing_else(sockets: Sockets) -> None:
    source, peer = sockets.pair()
    other, _ = sockets.pair()
    async with running(sockets.reactor):
        peer.send(b"one")
        await source.until(lambda: source.data == b"one")
        peer.send(b"two")
        await source.until(lambda: source.data == b"onetwo")
    assert "writable" not in source.calls
    assert other.calls == []


async def test_what_was_ready_before_the_run_is_served(sockets: Sockets) -> None:
    source, peer = sockets.pair()
    peer.send(b"one")
    async with running(sockets.reactor):
        await source.until(lambda: source.data == b"one")


async def test_the_end_of_a_stream_is_readable(sockets: Sockets) -> None:
    source, peer = sockets.pair()
    source.readable = source.close
    async with running(sockets.reactor):
        peer.close()
        await source.until(lambda: bool(source.calls))
    assert (source.calls, source.data) == (["readable"], b"")


async def test_a_source_that_is_not_read_is_not_called_until_it_is_again(sockets: Sockets) -> None:
    source, peer = sockets.pair()
    async with running(sockets.reactor):
        sockets.reactor.watch(source.sock, read=False, write=False)
        async with turns():
            peer.send(b"one")
        assert source.calls == []
        sockets.reactor.watch(source.sock, read=True, write=False)
        await source.until(lambda: source.data == b"one")


async def test_a_source_may_stop_being_read_while_it_is_called(sockets: Sockets) -> None:
    source, peer = sockets.pair()
    source.readable = lambda: sockets.reactor.watch(source.sock, read=False, write=False)
    async with running(sockets.reactor):
        peer.send(b"one")
        await source.until(lambda: source.data == b"one")
        async with turns():
            peer.send(b"two")
        assert source.data == b"one"
        sockets.reactor.watch(source.sock, read=True, write=False)
        await source.until(lambda: source.data == b"onetwo")


async def test_pausing_and_going_on_in_one_turn(sockets: Sockets) -> None:
    source, peer = sockets.pair()

    def pause_and_go_on() -> None:
        sockets.reactor.watch(source.sock, read=False, write=False)
        sockets.reactor.watch(source.sock, read=True, write=False)

    source.readable = pause_and_go_on
    async with running(sockets.reactor):
        for count, body in enumerate((b"a", b"b", b"c"), 1):
            peer.send(body)
            await source.until(lambda count=count: len(source.data) == count)  # type: ignore[misc]
    assert source.calls.count("readable") == 3


async def test_writability_is_told_only_while_it_is_wanted(sockets: Sockets) -> None:
    source, _ = sockets.pair()
    source.writable = lambda: sockets.reactor.watch(source.sock, read=True, write=False)
    async with running(sockets.reactor):
        sockets.reactor.watch(source.sock, read=True, write=True)
        await source.until(lambda: "writable" in source.calls)
        await quiet()
    assert source.calls == ["writable"]


async def test_a_full_socket_is_writable_when_its_peer_has_read(sockets: Sockets) -> None:
    source, peer = sockets.pair()
    sent = 0
    with pytest.raises(BlockingIOError):
        while True:
            sent += source.sock.send(bytes(65536))
    source.writable = lambda: sockets.reactor.watch(source.sock, read=True, write=False)
    async with running(sockets.reactor):
        async with turns():
            sockets.reactor.watch(source.sock, read=True, write=True)
        assert source.calls == []
        received = 0
        while received < sent:
            received += len(peer.recv(sent))
        await source.until(lambda: source.calls == ["writable"])


async def test_readable_and_writable_at_once(sockets: Sockets) -> None:
    source, peer = sockets.pair()
    source.writable = lambda: sockets.reactor.watch(source.sock, read=True, write=False)
    async with running(sockets.reactor):
        sockets.reactor.watch(source.sock, read=True, write=True)
        peer.send(b"one")
        await source.until(lambda: source.data == b"one" and "writable" in source.calls)


async def test_a_source_that_closes_itself_is_not_called_for_writing(sockets: Sockets) -> None:
    source, peer = sockets.pair()
    source.readable = source.close
    sockets.reactor.watch(source.sock, read=True, write=True)
    source.writable = lambda: None
    peer.send(b"one")
    async with running(sockets.reactor):
        await source.until(lambda: source.data == b"one")
        await quiet()
    assert source.calls[-1] == "readable"


async def test_a_source_may_close_another_in_the_same_turn(sockets: Sockets) -> None:
    pairs = [sockets.pair() for _ in range(4)]
    sources = [source for source, _ in pairs]

    def close_the_others(me: Source) -> Callable[[], None]:
        def close() -> None:
            for other in sources:
                if other is not me and other.sock.fileno() >= 0:
                    other.close()

        return close

    for source, peer in pairs:
        source.readable = close_the_others(source)
        peer.send(b"one")
    async with running(sockets.reactor):
        await quiet()
    assert sum(len(source.calls) for source in sources) == 1
    assert sum(source.sock.fileno() >= 0 for source in sources) == 1


async def test_a_new_socket_with_the_number_of_a_closed_one(sockets: Sockets) -> None:
    """Its predecessor's readiness is not its own, and its own is not lost."""
    first, first_peer = sockets.pair()
    old, old_peer = sockets.pair()
    taken_over: list[tuple[Source, socket.socket]] = []

    def replace() -> None:
        fd = old.sock.fileno()
        old.close()
        # On the number of the old one exactly, whatever the lowest free number is.
        ours, theirs = socket.socketpair()
        if ours.fileno() != fd:
            os.dup2(ours.fileno(), fd)
            ours.close()
            ours = socket.socket(fileno=fd)
        theirs.setblocking(False)
        sockets.made += [ours, theirs]
        taken_over.append((Source(sockets.reactor, ours), theirs))
        sockets.sources.append(taken_over[0][0])
        first.readable = lambda: None

    first.readable = replace
    async with running(sockets.reactor):
        old.readable = lambda: None
        await quiet()
        sockets.reactor.watch(old.sock, read=False, write=False)
        old_peer.send(b"for the old one")
        first_peer.send(b"go")
        await first.until(lambda: bool(taken_over))
        new, new_peer = taken_over[0]
        await quiet()
        assert new.data == b""
        new_peer.send(b"for the new one")
        await new.until(lambda: new.data == b"for the new one")
        new_peer.send(b", again")
        await new.until(lambda: new.data == b"for the new one, again")
    assert old.calls == []


async def test_a_removed_source_is_never_called_and_not_among_the_sources(sockets: Sockets) -> None:
    source, peer = sockets.pair()
    other, other_peer = sockets.pair()
    reactor = sockets.reactor
    assert {source, other} <= set(reactor.sources())
    async with running(reactor):
        await quiet()
        peer.send(b"one")
        reactor.remove(source.sock)
        other_peer.send(b"two")
        await other.until(lambda: other.data == b"two")
        await quiet()
        assert source.calls == []
        assert source not in reactor.sources()
        assert other in reactor.sources()
        reactor.add(source.sock, source)
        await source.until(lambda: source.data == b"one")


async def test_sources_come_while_it_runs(sockets: Sockets) -> None:
    async with running(sockets.reactor):
        await quiet()
        for _ in range(5):
            source, peer = sockets.pair()
            peer.send(b"one")
            await source.until(lambda source=source: source.data == b"one")  # type: ignore[misc]


async def test_a_turn_asked_for_from_another_task_wakes_it(sockets: Sockets) -> None:
    source, _ = sockets.pair()
    async with running(sockets.reactor):
        await quiet()
        for count in range(1, 4):
            sockets.reactor.again(source)
            await source.until(lambda count=count: source.calls == ["turn"] * count)  # type: ignore[misc]


async def test_a_turn_asked_for_before_the_run_is_not_lost(sockets: Sockets) -> None:
    source, _ = sockets.pair()
    sockets.reactor.again(source)
    async with running(sockets.reactor):
        await source.until(lambda: source.calls == ["turn"])


async def test_a_turn_asked_for_in_a_turn_comes_in_the_next(sockets: Sockets) -> None:
    source, peer = sockets.pair()
    other, other_peer = sockets.pair()
    source.turn = lambda: sockets.reactor.again(source) if source.calls.count("turn") < 20 else None
    source.readable = lambda: sockets.reactor.again(source)
    other.readable = lambda: source.calls.append("other")
    async with running(sockets.reactor):
        peer.send(b"one")
        await source.until(lambda: "turn" in source.calls)
        other_peer.send(b"two")
        await source.until(lambda: source.calls.count("turn") == 20)
        await quiet()
    assert source.calls.count("turn") == 20
    assert source.calls.index("other") < len(source.calls) - 1, "the others are served between its turns"


async def test_replies_come_when_all_that_are_ready_were_read(sockets: Sockets) -> None:
    order: list[str] = []
    made = [sockets.pair() for _ in range(3)]
    for number, (source, peer) in enumerate(made):

        def read(number: int = number, source: Source = source) -> None:
            order.append(f"read {number}")
            sockets.reactor.reply(source, b"%d" % number)

        source.readable = read
        source.replied = functools.partial(order.append, f"reply {number}")
        peer.send(b"x")
    async with running(sockets.reactor):
        for source, _ in made:
            await source.until(lambda source=source: len(source.calls) == 2)  # type: ignore[misc]
    if isinstance(sockets.reactor, KernelReactor):
        assert [each.split()[0] for each in order] == ["read"] * 3 + ["reply"] * 3
    for number in range(3):
        assert order.index(f"read {number}") < order.index(f"reply {number}")


async def test_a_reply_outside_a_turn_is_sent_at_once(sockets: Sockets) -> None:
    source, _ = sockets.pair()
    sockets.reactor.reply(source, b"before it runs")
    source.turn = lambda: sockets.reactor.reply(source, b"in line")
    async with running(sockets.reactor):
        sockets.reactor.reply(source, b"in a task")
        sockets.reactor.again(source)
        await source.until(lambda: len(source.calls) == 4)
    assert source.calls == ["reply before it runs", "reply in a task", "turn", "reply in line"]


async def test_many_ready_sockets_leave_room_for_the_rest_of_the_program(
    sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "EVENTS_A_TURN", 4)
    monkeypatch.setattr("goim_core.reactor.EVENTS_A_TURN", 4)
    pairs = [sockets.pair() for _ in range(20)]
    for _, peer in pairs:
        peer.send(b"one")
    served = []
    async with running(sockets.reactor):
        with anyio.fail_after(5):
            while not all(source.data for source, _ in pairs):
                served.append(sum(bool(source.data) for source, _ in pairs))
                await anyio.lowlevel.checkpoint()
    if isinstance(sockets.reactor, KernelReactor):
        assert len(set(served)) > 1


async def test_what_a_turn_calls_is_in_a_task_and_may_start_another(sockets: Sockets) -> None:
    """A plain hook may use whatever anyio has that does not wait."""
    source, peer = sockets.pair()
    started: list[str] = []

    async def start(name: str) -> None:
        await anyio.lowlevel.checkpoint()
        started.append(name)

    async with anyio.create_task_group() as tasks:

        def begin() -> None:
            with anyio.CancelScope() as scope:  # noqa: ASYNC100  # a plain function has nothing to wait for
                assert not scope.cancel_called
            name = anyio.get_current_task().name
            assert name is not None
            tasks.start_soon(start, name)

        source.readable = source.turn = begin
        tasks.start_soon(sockets.reactor.run, name="the reactor's")
        peer.send(b"one")
        await source.until(lambda: source.data == b"one")
        sockets.reactor.again(source)
        with anyio.fail_after(5):
            while len(started) < 2:
                await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    if isinstance(sockets.reactor, KernelReactor):
        assert started == ["the reactor's"] * 2


async def test_what_a_turn_calls_may_end_the_program_around_it(sockets: Sockets) -> None:
    source, peer = sockets.pair()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            source.readable = tasks.cancel_scope.cancel
            tasks.start_soon(sockets.reactor.run)
            peer.send(b"one")
    assert source.data == b"one"


async def test_without_the_kernels_object_nobody_can_be_served(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Sockets(new_reactor())
    if not isinstance(made.reactor, KernelReactor):
        pytest.skip("there is none")
    _, peer = made.pair()

    def broken() -> None:
        raise OSError("broken")

    monkeypatch.setattr(made.reactor._poller, "poll", broken)
    try:
        with anyio.fail_after(5), pytest.raises(OSError, match="broken"):
            peer.send(b"one")
            await made.reactor.run()
    finally:
        made.close()


async def test_it_stops_when_it_is_cancelled_and_leaves_the_sockets_open(sockets: Sockets) -> None:
    source, peer = sockets.pair()
    async with running(sockets.reactor):
        await quiet()
    assert source.sock.fileno() >= 0
    assert peer.send(b"one") == 3
    assert source.calls == []


async def test_who_never_rests_leaves_every_task_its_step() -> None:
    """A flood that is read and asks for more turns: a task that needs rounds of the loop once waited long for it."""
    sockets = Sockets(new_reactor())
    source, peer = sockets.pair()
    peer.setblocking(False)

    def flood() -> None:
        peer.send(b".")
        sockets.reactor.again(source)

    source.readable = source.turn = flood
    steps = 100
    async with running(sockets.reactor):
        peer.send(b"one")
        await source.until(lambda: len(source.calls) > 10)
        before = source.calls.count("readable")
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        assert source.calls.count("readable") - before < 3 * steps
    sockets.close()


async def test_it_stops_even_while_a_source_never_rests(sockets: Sockets) -> None:
    source, _ = sockets.pair()
    source.turn = lambda: sockets.reactor.again(source)
    async with running(sockets.reactor):
        sockets.reactor.again(source)
        await source.until(lambda: len(source.calls) > 10)


@pytest.mark.parametrize("where", ["readable", "writable", "turn", "replied"])
async def test_a_fault_in_serving_one_ends_that_one_and_no_other(
    sockets: Sockets, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    faulty, its_peer = sockets.pair()
    other, peer = sockets.pair()
    setattr(faulty, where, lambda: 1 / 0)
    async with running(sockets.reactor):
        if where == "replied":
            faulty.readable = lambda: sockets.reactor.reply(faulty, b"x")
        if where in ("readable", "replied"):
            its_peer.send(b"x")
        elif where == "writable":
            sockets.reactor.watch(faulty.sock, read=False, write=True)
        else:
            sockets.reactor.again(faulty)
        await faulty.until(lambda: faulty.sock.fileno() < 0)
        peer.send(b"one")
        await other.until(lambda: other.data == b"one")
    calls = ["readable", "reply x"] if where == "replied" else [where]
    assert faulty.calls == [*calls, "lost: it could not be served"]
    [record] = [record for record in caplog.records if record.name == "goim_core.reactor"]
    assert record.exc_info is not None
    assert "Source failed in its turn" in record.getMessage()
