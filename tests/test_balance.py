"""Connections come, act and end in any order: every figure fits what is there, and in the end nothing is left."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import anyio
import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from goim_core import (
    AuthHook,
    AuthRequest,
    Disconnect,
    Frame,
    MessageHook,
    Op,
    Options,
    OutboxPolicy,
    Refused,
    Session,
    SessionHook,
)
from goim_core.conversation import Conversation
from goim_core.registry import MemoryRegistry
from goim_core.testing import App, Client, running
from tests.logics import LaterRegistry

ACCEPTS = [Op.ERROR, Op.JOIN, Op.LEAVE, Op.WATCH, Op.PRESENCE, 1000]
OPTIONS = Options(
    max_connections=12,
    max_address_connections=4,
    max_user_connections=3,
    max_handshakes=3,
    max_hooks=3,
    hook_timeout=7,
    read_frames=40,
    read_bytes=4000,
    read_burst=1,
    rate=20,
    rate_burst=10,
    outbox_bytes=1024,
    outbox_packets=8,
    outbox_total=3000,
    unfinished_total=20_000,
)
CHANGES: list[dict[str, Any]] = [
    {},
    {"max_connections": 3},
    {"max_handshakes": 1},
    {"max_address_connections": 0, "max_user_connections": 1},
    {"trusted": ["192.0.2.0/24"]},
    {"outbox_total": 1024},
    {"read_frames": 0, "read_bytes": 0},
    {"read_frames": 1, "read_burst": 0.5},
    {"outbox_policy": OutboxPolicy.DISCONNECT, "max_body": 64},
    {"outbox_policy": OutboxPolicy.DROP_OLDEST, "max_hooks": 1},
]
CLOSE_4001 = b"\x88\x82\0\0\0\0\x0f\xa1"
FRAGMENT = b"\x02\xfe\x27\x10" + bytes(4 + 10_000)
PINGS = b"\x89\x80\0\0\0\0" * 90


class Application(AuthHook, SessionHook, MessageHook):
    """Decides as clients say: at once, or when the test lets it."""

    def __init__(self) -> None:
        self.turn = anyio.Event()
        self.obeys = True
        self.came: Counter[Session] = Counter()
        self.went: Counter[Session] = Counter()

    def decide(self, how: str) -> Any:
        if not self.obeys:
            return None
        return self._later(how) if how.endswith("later") else self._outcome(how)

    async def _later(self, how: str) -> None:
        await self.turn.wait()
        self._outcome(how)

    def _outcome(self, how: str) -> None:
        if how.startswith("refuse"):
            raise Refused("as it was told")
        if how.startswith("close"):
            raise Disconnect("as it was told")

    def authenticate(self, request: AuthRequest) -> Any:
        told = json.loads(request.token)
        session = Session(told["mid"], told["key"], "live://1", accepts=ACCEPTS, data=told["then"])
        waits = self.decide(told["how"])
        return session if waits is None else self._after(waits, session)

    async def _after(self, waits: Any, session: Session) -> Session:
        await waits
        return session

    def connected(self, session: Session) -> Any:
        self.came[session] += 1
        return self.decide(session.data)

    def disconnected(self, session: Session, reason: Disconnect) -> Any:
        self.went[session] += 1
        return self.decide(session.data)

    def heartbeat(self, session: Session) -> Any:
        return self.decide(session.data)

    def receive(self, session: Session, frame: Frame) -> Any:
        return self.decide(frame.body.decode())


class Play:
    """What clients, the application and an operator do; ``who`` is one of those who came, if there are any."""

    def __init__(self, app: App, application: Application) -> None:
        self.app = app
        self.application = application
        self.clients: list[Client] = []

    async def open(self, wire: str, address: str, capacity: int) -> None:
        with contextlib.suppress(Disconnect):
            self.clients.append(await self.app.open(wire, address=address, capacity=capacity))

    def _client(self, who: int) -> list[Client]:
        here = [c for c in self.clients if not c.link.gone and c.link.fileno() >= 0]
        return [here[who % len(here)]] if here else []

    async def authenticate(self, who: int, **token: Any) -> None:
        await self.ask(who, Op.AUTH, json.dumps(token), 1)

    async def connect(self, wire: str, address: str, mid: int) -> None:
        before = len(self.clients)
        await self.open(wire, address, 100)
        if len(self.clients) > before:
            data = json.dumps({"mid": mid, "key": "", "how": "yes", "then": "yes"}).encode()
            with contextlib.suppress(ConnectionError):
                await self.clients[-1].send(Op.AUTH, data)

    async def ask(self, who: int, op: int, body: str, times: int) -> None:
        for client in self._client(who):
            data = Frame(op, body.encode()).encode()
            with contextlib.suppress(ConnectionError):
                await client.send_bytes(client._wire.encode(data) * times)

    async def send_bytes(self, who: int, data: bytes) -> None:
        for client in self._client(who):
            await client.send_bytes(data)

    async def read(self, who: int, reads: bool) -> None:
        for client in self._client(who):
            (client.resume_reading if reads else client.pause_reading)()

    async def leave(self, who: int, politely: bool) -> None:
        for client in self._client(who):
            (client.link.leave if politely else client.link.reset)()

    async def fail(self, who: int) -> None:
        """What is sent from now on fails, though there may be something to read."""
        for client in self._client(who):
            client.link.ended = True

    async def push(self, size: int, times: int) -> None:
        for _ in range(times):
            await self.app.push_all(1000, bytes(size))
            await self.app.push_room("live://1", 1001, bytes(size))

    async def disconnect(self, mid: int) -> None:
        await self.app.server.disconnect_mids([mid], Disconnect("go"))

    async def decide(self) -> None:
        self.application.turn.set()
        self.application.turn = anyio.Event()

    async def reload(self, change: int) -> None:
        self.app.server.reload(options=evolve(OPTIONS, **CHANGES[change]))

    async def trace(self, mid: int, on: bool) -> None:
        self.app.server.trace(mid, on)

    async def advance(self, seconds: float) -> None:
        await self.app.advance(seconds)


def step(what: Callable[..., Any], **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.tuples(st.just(what), st.fixed_dictionaries(arguments))


who, mid = st.integers(0, 11), st.integers(0, 2)
wire = st.sampled_from(["tcp", "ws"])
address = st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "127.0.0.1", ""])
how = st.sampled_from(["yes", "yes later", "refuse", "refuse later", "close", "close later"])
STEPS = st.one_of(
    step(Play.open, wire=wire, address=address, capacity=st.sampled_from([100, 9999])),
    step(Play.authenticate, who=who, mid=mid, key=st.sampled_from(["", "a", "b"]), how=how, then=how),
    step(Play.connect, wire=wire, address=address, mid=mid),
    step(Play.ask, who=who, op=st.just(1000), body=how, times=st.sampled_from([1, 3, 70])),
    step(
        Play.ask,
        who=who,
        op=st.sampled_from([Op.JOIN, Op.LEAVE, Op.WATCH, Op.HEARTBEAT]),
        body=st.just("live://2"),
        times=st.sampled_from([1, 3, 200]),
    ),
    step(
        Play.send_bytes,
        who=who,
        data=st.sampled_from([bytes(40), b"\xff" * 5000, CLOSE_4001, FRAGMENT, PINGS]),
    ),
    step(Play.read, who=who, reads=st.booleans()),
    step(Play.leave, who=who, politely=st.booleans()),
    step(Play.fail, who=who),
    step(Play.push, size=st.sampled_from([0, 200, 900]), times=st.integers(1, 12)),
    step(Play.disconnect, mid=mid),
    step(Play.decide),
    step(Play.reload, change=st.integers(0, len(CHANGES) - 1)),
    step(Play.trace, mid=st.integers(1, 2), on=st.booleans()),
    step(Play.advance, seconds=st.sampled_from([0.0, 0.25, 1.0, 3.0, 30.0])),
)


def the_figures_fit(app: App) -> None:
    pipeline = app.server._pipeline
    counters, edge = pipeline.counters, pipeline.edge
    here = [source for source in app.server.links.sources() if isinstance(source, Conversation)]
    assert counters.opened - counters.closed == len(here)
    assert counters.outboxes.waiting == sum(connection.waiting for connection in here)
    assert sum(edge.admission._addresses.values()) == sum(bool(c.channel.address) for c in here)
    assert set(edge.admission._entering) <= set(here)
    assert counters.handshakes >= len(edge.admission._entering)
    assert set(edge.budget._resting) <= {c for c in here if c.busy and c.unwatched}
    assert set(edge.budget._used) <= set(here)
    assert set(edge.unfinished._sizes) <= set(here)
    assert edge.unfinished.total == sum(edge.unfinished._sizes.values()) <= OPTIONS.unfinished_total


def nothing_is_left(app: App, application: Application) -> None:
    server, pipeline = app.server, app.server._pipeline
    edge, counters = pipeline.edge, pipeline.counters
    assert not edge.exchanges.active
    assert application.went == application.came, "who came has gone, once"
    assert counters.opened == counters.closed == counters.closes.total()
    assert (counters.handshakes, counters.outboxes.waiting) == (0, 0)
    left = {
        "entering": edge.admission._entering,
        "addresses": edge.admission._addresses,
        "read": edge.budget._used,
        "resting": edge.budget._resting,
        "unfinished": edge.unfinished._sizes,
        "leaving": edge.leaving,
        "connections": server.links._sources,
        "turns": server.links._again,
        "rooms": pipeline.comet.rooms,
        "online": pipeline.comet.addresses,
        "users": pipeline.comet.users or (),
        "routes": getattr(pipeline.registry, "inner", pipeline.registry),
        "watched": pipeline.comet.presence._watches,
        "deadlines": cast("Any", pipeline.deadlines)._watched,
    }
    assert {name: found for name, found in left.items() if len(found)} == {}


async def play(steps: list[tuple[Callable[..., Any], dict[str, Any]]], *, shared: bool) -> None:
    application = Application()
    registry = LaterRegistry() if shared else MemoryRegistry()
    app_life = running(
        auth=application,
        sessions=application,
        messages=application,
        registry=registry,
        options=OPTIONS,
        patience=0,
    )
    async with app_life as app:
        plays = Play(app, application)
        for what, arguments in steps:
            await what(plays, **arguments)
            the_figures_fit(app)
        for client in plays.clients:
            client.link.reset()
        application.obeys = False
        await plays.decide()
        await app.advance(60)
        the_figures_fit(app)
        nothing_is_left(app, application)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("shared", [False, True])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEPS, min_size=5, max_size=50))
def test_whatever_happens_the_books_balance(backend: str, shared: bool, steps: list[Any]) -> None:
    async def run() -> None:
        await play(steps, shared=shared)

    anyio.run(run, backend=backend)
