"""A stop leads clients away: evenly, in bounded time, and whatever they do. Here without sockets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from goim_core import (
    CloseCode,
    Disconnect,
    Frame,
    MessageHook,
    Op,
    Options,
    ServerStopped,
    Session,
    SessionHook,
)
from goim_core import stopping as module
from goim_core.conversation import Conversation
from goim_core.discovery import Discovery, Node, StaticDiscovery
from goim_core.queue import MemoryQueue
from goim_core.testing import App, Client, running

pytestmark = pytest.mark.anyio

MOVES = [1000, Op.ERROR, Op.MOVE]
DRAIN = 16.0  # its eighths are whole


class Ends(SessionHook):
    """When who has ended, in seconds since the stop began, and why."""

    def __init__(self) -> None:
        self.begun = 0.0
        self.at: dict[str, float] = {}
        self.codes: set[int] = set()

    def disconnected(self, session: Session, reason: Disconnect) -> None:
        self.at[session.key] = round(self.server.clock.now() - self.begun, 2)
        self.codes.add(reason.code)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """One client a second."""
    monkeypatch.setattr(module, "PACE", 1)


def run(ends: Ends, **settings: Any) -> Any:
    options = settings.pop("options", Options(drain=DRAIN))
    return running(sessions=ends, options=options, patience=0, **settings)


@contextmanager
def stopping(app: App, ends: Ends) -> Iterator[None]:
    yield
    ends.begun = app.clock.now()


def asked_to_move(client: Client) -> float | None:
    """In how many seconds the client was asked to move; None where it was not."""
    bodies = [frame.body for frame in client._arrived if frame.op == Op.MOVE]
    assert len(bodies) <= 1
    return json.loads(bodies[0])["seconds"] if bodies else None


async def test_clients_are_led_away_evenly(slow: None) -> None:
    ends = Ends()
    async with run(ends) as app:
        with stopping(app, ends):
            accepts = [[1000], MOVES, [1000], MOVES]
            clients = [
                await app.connect({"mid": n, "key": str(n), "accepts": accepts[n % 4]}) for n in range(8)
            ]
    # One a second, and who was asked to move and did not within half a second more.
    assert ends.at == {str(n): n + 0.5 * (n % 2) for n in range(8)}
    assert [asked_to_move(client) for client in clients] == [n if n % 2 else None for n in range(8)]
    assert [client.told and client.told.code for client in clients] == [1001] * 8
    assert ends.codes == {1001}


async def test_more_than_the_pace_allows_go_faster(slow: None) -> None:
    ends = Ends()
    async with run(ends) as app:
        with stopping(app, ends):
            for n in range(95):
                await app.connect({"mid": n, "key": str(n), "accepts": MOVES})
    times = sorted(ends.at.values())
    assert times[0] == 0.5
    assert times[-1] <= DRAIN * 5 / 8
    gaps = {round(later - earlier, 2) for earlier, later in pairwise(times)}
    assert gaps == {0.1}


async def test_few_go_at_once() -> None:
    ends = Ends()
    async with run(ends) as app:
        with stopping(app, ends):
            clients = [
                await app.connect({"mid": n, "key": str(n), "accepts": [1000]}, "ws") for n in range(50)
            ]
    assert set(ends.at.values()) == {0.0}
    assert {client.told.code for client in clients if client.told} == {1001}
    assert app.clock.now() == ends.begun


async def test_who_goes_when_asked_is_not_waited_for(slow: None) -> None:
    class Obeys(Ends):
        def disconnected(self, session: Session, reason: Disconnect) -> None:
            super().disconnected(session, reason)
            if session.key == "0":
                clients[1].close()

    ends = Obeys()
    clients: list[Client] = []
    async with run(ends) as app:
        with stopping(app, ends):
            clients += [await app.connect({"mid": n, "key": str(n), "accepts": MOVES}) for n in range(2)]
    assert ends.at == {"0": 0.5, "1": 0.5}
    assert app.clock.now() == ends.begun + 0.5


async def test_without_clients_nothing_is_waited_for() -> None:
    ends = Ends()
    async with run(ends) as app:
        ends.begun = app.clock.now()
    assert app.clock.now() == ends.begun


class Slow(MessageHook):
    """Answers in as many seconds as the message says."""

    async def receive(self, session: Session, frame: Frame) -> Frame:
        await self.server.clock.sleep(float(frame.body))
        return Frame(1001, b"done", frame.seq)


@pytest.mark.parametrize("accepts", [[1000], MOVES])
async def test_who_waits_for_an_answer_gets_it_first(accepts: list[int]) -> None:
    ends = Ends()
    async with run(ends, messages=Slow()) as app:
        with stopping(app, ends):
            clients = [await app.connect({"mid": n, "key": str(n), "accepts": accepts}) for n in range(2)]
            seq = await clients[1].send(1000, "3")
            await clients[1].send(1000, "3")  # what is behind it is not begun any more
            await app.idle()
    at = 0.5 if Op.MOVE in accepts else 0.0
    assert ends.at == {"0": at, "1": 3.0}
    replies = [frame for frame in clients[1]._arrived if frame.op == 1001]
    assert [(frame.body, frame.seq) for frame in replies] == [(b"done", seq)]
    assert clients[1].told is not None
    assert clients[1].told.code == 1001


async def test_an_answer_that_takes_too_long_is_not_waited_for() -> None:
    ends = Ends()
    async with run(ends, messages=Slow()) as app:
        with stopping(app, ends):
            client = await app.connect({"mid": 1, "key": "k", "accepts": [1000]})
            await client.send(1000, "25")
            await app.idle()
    assert client.told is not None
    assert client.told.code == 1001
    assert ends.at["k"] <= DRAIN
    assert app.clock.now() <= ends.begun + DRAIN


async def test_a_process_that_is_short_of_time_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def others_take_long(turn: int) -> None:
        await app.clock.sleep(1)

    class Watched(MemoryQueue):
        drained = 0

        async def drain(self) -> None:
            self.drained += 1
            await super().drain()

    ends, queue = Ends(), Watched()
    async with run(ends, messages=Slow(), queue=queue) as app:
        with stopping(app, ends):
            clients = [await app.connect({"mid": n, "key": str(n), "accepts": [1000]}) for n in range(20)]
            for client in clients:
                await client.send(1000, "25")
            await app.idle()
        monkeypatch.setattr(module, "_share", others_take_long)
    assert queue.drained == 1, "it was late, and waited for the queue once more"
    assert len(ends.at) == 20
    assert app.clock.now() <= ends.begun + DRAIN
    assert ends.codes == {1001}


async def test_a_full_outbox_is_no_reason_to_close_it_before_its_time() -> None:
    options = Options(outbox_packets=1, write_timeout=1000)
    async with running(options=options) as app:
        full = await app.connect({"mid": 1, "accepts": MOVES}, capacity=64)
        full.pause_reading()
        await app.push_mids([1], 1000, bytes(64))
        await app.idle()
        connection = full.connection
        assert isinstance(connection, Conversation)
        connection.ask_to_move(1.2345)
        await full.assert_open()
        full.resume_reading()
        assert [frame.op for frame in await full.take_pushes()] == [1000, Op.MOVE]
        connection.ask_to_move(0)
        await full.assert_push(Op.MOVE, b'{"seconds":0}')
        await full.send(Op.UNSUB, str(int(Op.MOVE)))
        await app.idle()
        connection.ask_to_move(0)
        await full.refute_push(Op.MOVE)


async def test_pushes_go_on_while_clients_are_led_away(slow: None) -> None:
    class Tells(SessionHook):
        async def disconnected(self, session: Session, reason: Disconnect) -> None:
            await self.server.push_room("live://1", 1000, session.key.encode())

    async with running(sessions=Tells(), options=Options(drain=DRAIN)) as app:
        clients = [
            await app.connect({"mid": n, "key": str(n), "room_id": "live://1", "accepts": [1000]})
            for n in range(3)
        ]
    assert [[frame.body for frame in client._arrived] for client in clients] == [[], [b"0"], [b"0", b"1"]]


class Noting(StaticDiscovery):
    """Notes what this node was like when it was taken out."""

    def __init__(self, *nodes: Node) -> None:
        super().__init__(nodes)
        self.then: list[Any] = []

    async def cancel(self) -> None:
        assert self._own is not None
        self.then.append(self._own().draining)


async def test_it_drains_and_says_so_and_names_itself_to_nobody(slow: None) -> None:
    class Looks(Ends):
        def disconnected(self, session: Session, reason: Disconnect) -> None:
            server = app.server
            seen.append((server.draining, server.nodes_weighted("web", "")["nodes"]))
            with pytest.raises(ServerStopped, match="the server is stopping"):
                server.accept(Any, "tcp")

    seen: list[Any] = []
    discovery: Discovery = Noting(Node("a", host="a.example"), Node("b", host="b.example"))
    async with run(Looks(), discovery=discovery, name="a", host="a.example") as app:
        await app.connect({"mid": 1})
        assert not app.server.draining
        assert len(app.server.nodes_weighted("web", "")["nodes"]) == 2
    assert seen == [(True, ["b.example"])]
    assert isinstance(discovery, Noting)
    assert discovery.then == [True]


async def test_a_discovery_that_hangs_leaves_the_clients_their_time() -> None:
    class Hanging(Noting):
        async def cancel(self) -> None:
            await anyio.sleep_forever()

    ends = Ends()
    async with run(ends, discovery=Hanging(), host="a.example") as app:
        with stopping(app, ends):
            await app.connect({"mid": 1, "key": "k"})
    assert ends.at == {"k": DRAIN / 8}


async def test_who_is_in_a_hurry_waits_for_nobody(slow: None) -> None:
    class Hurries(Ends):
        def disconnected(self, session: Session, reason: Disconnect) -> None:
            super().disconnected(session, reason)
            app.server.hurry()

    ends = Hurries()
    async with run(ends, messages=Slow()) as app:
        app.server.hurry()  # means nothing while it runs
        with stopping(app, ends):
            clients = [await app.connect({"mid": n, "key": str(n)}) for n in range(5)]
            await clients[4].send(1000, "3")
            await app.idle()
    assert set(ends.at) == {"0", "1", "2", "3", "4"}
    assert max(ends.at.values()) <= DRAIN / 32
    for client in clients:
        client.pump()
        assert client.told is not None
        assert client.told.code == CloseCode.GOING_AWAY
