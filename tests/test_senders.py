"""Threads that help to send: everybody gets the same as from one thread, and nothing else happens in them."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goim_core import OpenAuth, Options, Server, pipeline, senders, server_context
from goim_core.channel import deliver
from goim_core.protocol import HEADER_SIZE, Op, encode, split
from goim_core.senders import LEAST, Senders
from goim_core.wire import Packet
from tests.links import Link
from tests.tls import Authority

ROOM = "live://1"


def packet(*bodies: bytes) -> Packet:
    return Packet([encode(1000, body) for body in bodies])


def helpers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "goim_core sender"]


@pytest.fixture
def two() -> Iterator[Senders]:
    made = Senders(2)
    yield made
    made.close()
    assert not helpers()


class Told(Link):
    """A link that knows which threads have called it."""

    def __init__(self, room: int | None = None, broken: OSError | None = None) -> None:
        super().__init__(room=room, broken=broken)
        self.sent_in: list[threading.Thread] = []
        self.called_in: set[threading.Thread] = set()

    def send(self, data: bytes | memoryview, /) -> int:
        self.sent_in.append(threading.current_thread())
        return super().send(data)

    def want_write(self) -> None:
        self.called_in.add(threading.current_thread())
        super().want_write()

    def lost(self, error: OSError) -> None:
        self.called_in.add(threading.current_thread())
        super().lost(error)


def seen(link: Link) -> tuple[object, ...]:
    """All that can be seen of a link and its channel."""
    channel, outbox = link.channel, link.channel.outbox
    waits = (
        None if outbox is None else (outbox.size, outbox.started, [len(each) for each, _ in outbox.packets])
    )
    errors = [str(error) for error in link.errors]
    return bytes(link.taken), waits, channel.drops, errors, link.writes_wanted, dict(link.counters.drops)


HOW = st.sampled_from([None, None, None, 0, 1, HEADER_SIZE, HEADER_SIZE + 3, 40, "broken"])


@given(
    st.lists(HOW, min_size=LEAST, max_size=3 * LEAST), st.lists(st.binary(max_size=9), min_size=1, max_size=3)
)
def test_everybody_gets_what_one_thread_would_have_given(
    how: list[int | str | None], bodies: list[bytes]
) -> None:
    def links() -> list[Told]:
        return [
            Told(broken=OSError("gone"))
            if room == "broken"
            else Told(room=room if isinstance(room, int) else None)
            for room in how
        ]

    alone, helped = links(), links()
    made = Senders(2)
    try:
        for body in bodies:
            deliver([link.channel for link in alone], packet(body))
            made.deliver([link.channel for link in helped], packet(body))
    finally:
        made.close()
    assert [seen(link) for link in helped] == [seen(link) for link in alone]
    main = {threading.current_thread()}
    assert all(link.called_in <= main for link in helped)


def test_the_threads_do_help(two: Senders) -> None:
    met = threading.Barrier(3, timeout=20)  # each of the three has to have sent to somebody

    class Meeting(Told):
        def send(self, data: bytes | memoryview, /) -> int:
            if threading.current_thread() not in meeting:
                meeting.add(threading.current_thread())
                met.wait()
            return super().send(data)

    meeting: set[threading.Thread] = set()
    links = [Meeting() for _ in range(512)]
    two.deliver([link.channel for link in links], packet(b"one"))
    assert meeting == {threading.current_thread(), *helpers()}
    assert all(link.bodies() == [b"one"] and len(link.sent_in) == 1 for link in links)


def test_a_thread_that_gets_no_core_is_not_waited_for(two: Senders, monkeypatch: pytest.MonkeyPatch) -> None:
    links = [Told() for _ in range(512)]
    go_on = threading.Event()
    monkeypatch.setattr(senders._Helper, "_run", lambda _: go_on.wait())
    two.deliver([link.channel for link in links], packet(b"one"))
    assert all(link.sent_in == [threading.current_thread()] for link in links)
    go_on.set()


def test_few_are_sent_to_without_a_thread(two: Senders) -> None:
    links = [Told() for _ in range(LEAST - 1)]
    two.deliver([link.channel for link in links], packet(b"one"))
    assert not helpers()
    assert all(link.bodies() == [b"one"] for link in links)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_in_a_thread_is_the_callers(two: Senders) -> None:
    fail, main = threading.Event(), threading.current_thread()

    class Faulty(Told):
        def send(self, data: bytes | memoryview, /) -> int:
            if threading.current_thread() is main:
                assert fail.wait(20)
                return super().send(data)
            fail.set()
            raise LookupError("a fault of this test")

    links = [Faulty() for _ in range(512)]
    with pytest.raises(RuntimeError, match="a thread that helps to send has failed"):
        two.deliver([link.channel for link in links], packet(b"one"))


# A server's.


def members(port: int, count: int) -> list[socket.socket]:
    """Clients in the room; but for every tenth they take little before they read."""
    clients = []
    for number in range(count):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096 if number % 10 else 1 << 20)
        client.settimeout(20)
        client.connect(("127.0.0.1", port))
        token = {"mid": number + 1, "room_id": ROOM, "accepts": [1000]}
        client.sendall(encode(Op.AUTH, json.dumps(token).encode(), 1))
        assert client.recv(4096)
        clients.append(client)
    return clients


def received(client: socket.socket, size: int) -> list[bytes]:
    """The bodies in the next so many bytes, merged or not."""
    data = b""
    while len(data) < size:
        data += client.recv(size - len(data))
    return [frame.body for frame in split(data)]


@pytest.mark.anyio
async def test_all_of_a_room_get_every_push_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "other_cores", lambda: 1)
    monkeypatch.setattr("goim_core.job.EASE", 0.0)
    bodies = [b"%d:" % number + bytes(3000) for number in range(100)]
    async with Server(tcp="127.0.0.1:0", auth=OpenAuth(), options=Options(batch=1)) as server:
        # What is accepted inherits it: so the kernel does not take all that waits for a client.
        server._pipeline.listeners["tcp"][0].sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        clients = await anyio.to_thread.run_sync(members, server.port("tcp"), 300)
        for body in bodies:
            await server.push_room(ROOM, 1000, body)
            while server._queue.pending:
                await anyio.lowlevel.checkpoint()
        assert len(helpers()) == 1
        assert server.stats().outbox_bytes > 0
        size = sum(HEADER_SIZE + len(body) for body in bodies)
        for client in clients:
            assert await anyio.to_thread.run_sync(received, client, size) == bodies
            client.close()
    assert not helpers()


@pytest.mark.anyio
@pytest.mark.parametrize(("cores", "count"), [(0, 0), (1, 1), (8, 3)])
async def test_there_are_as_many_as_there_are_cores_for(
    monkeypatch: pytest.MonkeyPatch, cores: int, count: int
) -> None:
    monkeypatch.setattr(pipeline, "other_cores", lambda: cores)
    async with Server(tcp="127.0.0.1:0", auth=OpenAuth(), options=Options(send_threads=3)) as server:
        assert server._comet.senders.count == count


@pytest.mark.anyio
async def test_there_are_none_where_there_is_tls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pipeline, "other_cores", lambda: 8)
    context = server_context(Authority(tmp_path).issue())
    async with Server(
        tcp="127.0.0.1:0", tls=("127.0.0.1", 0), ssl_context=context, auth=OpenAuth()
    ) as server:
        assert server._comet.senders.count == 0
