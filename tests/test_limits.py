"""Every limit from both sides: at the bound it works; beyond, it is refused or paced, told, and counted."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, cast

import anyio
import attrs
import pytest

from goim_core.client.wire import WebSocketWire
from goim_core.errors import CloseCode, Disconnect, ErrorCode
from goim_core.hooks import AuthHook, MessageHook, SessionHook
from goim_core.options import Options, OutboxPolicy
from goim_core.protocol import HEADER_SIZE, Frame, Op, encode
from goim_core.reading import FRAMES_A_TURN
from goim_core.session import AuthRequest, Session
from goim_core.testing import App, Client
from goim_core.testing import running as running_app
from goim_core.testing.link import Link
from tests.logics import LaterRegistry

pytestmark = pytest.mark.anyio

FAR, NEAR, OTHER = "192.0.2.1", "127.0.0.1", "192.0.2.2"
ACCEPTS = frozenset((Op.ERROR, Op.JOIN, Op.REFRESH, 1000))


class Anybody(AuthHook):
    """Whoever the token says, or user 1."""

    def authenticate(self, request: AuthRequest) -> Session:
        fields = json.loads(request.token) if request.token.startswith(b"{") else {}
        return Session(**{"mid": 1, "accepts": ACCEPTS, **fields})


def running(**settings: Any) -> AbstractAsyncContextManager[App]:
    return running_app(**{"auth": Anybody(), **settings})


def refusals(app: App) -> dict[str, int]:
    return dict(app.server.stats().refusals)


async def turned_away(app: App, code: int, **settings: Any) -> Disconnect:
    with pytest.raises(Disconnect) as told:
        await app.open(**settings)
    assert told.value.code == code
    return told.value


# Connections.


@pytest.mark.parametrize("wire", ["tcp", "ws"])
async def test_connections_in_total(wire: str, caplog: pytest.LogCaptureFixture) -> None:
    async with running(options=Options(max_connections=2)) as app:
        clients = [await app.connect(wire=wire) for _ in range(2)]
        assert refusals(app) == {}
        with pytest.raises(Disconnect, match="full|503"):
            await app.open(wire)
        assert refusals(app) == {"max_connections": 1}
        assert app.server.stats().connections == 2
        clients[0].close()
        await app.idle()
        await app.connect(wire=wire)
    [line] = [record.getMessage() for record in caplog.records if record.name == "goim_core.admission"]
    assert line == "connections refused: 1 by max_connections"


async def test_over_tcp_it_is_told_to_try_again_later() -> None:
    async with running(options=Options(max_connections=1)) as app:
        await app.connect()
        told = await turned_away(app, CloseCode.TRY_AGAIN_LATER)
        assert told.reason == "the server is full: try again later"


async def test_refusals_are_one_line_a_second(caplog: pytest.LogCaptureFixture) -> None:
    async with running(options=Options(max_connections=1)) as app:
        await app.connect()
        for _ in range(5):
            await turned_away(app, CloseCode.TRY_AGAIN_LATER)
        await app.advance(1)
        await turned_away(app, CloseCode.TRY_AGAIN_LATER)
        assert refusals(app) == {"max_connections": 6}
    lines = [record.getMessage() for record in caplog.records if record.name == "goim_core.admission"]
    assert [line.rpartition(": ")[2] for line in lines] == ["1 by max_connections", "5 by max_connections"]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


async def test_without_a_bound_the_descriptors_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goim_core.admission._descriptors", lambda: 66)
    async with running() as app:
        for _ in range(2):
            await app.connect()
        await turned_away(app, CloseCode.TRY_AGAIN_LATER)


@pytest.mark.parametrize(
    ("same", "other"),
    [
        ((FAR, FAR, FAR), OTHER),
        (("2001:db8::1", "2001:db8::2", "2001:db8::ffff:0:0:1"), "2001:db8:0:1::1"),
        (("fe80::1%eth0", "fe80::2%eth0", "fe80::3%eth1"), FAR),
    ],
)
async def test_connections_of_one_address(same: tuple[str, str, str], other: str) -> None:
    async with running(options=Options(max_address_connections=2)) as app:
        first = await app.connect(address=same[0])
        await app.connect(address=same[1])
        await turned_away(app, CloseCode.TRY_AGAIN_LATER, address=same[2])
        assert refusals(app) == {"max_address_connections": 1}
        await app.connect(address=other)
        first.close()
        await app.idle()
        await app.connect(address=same[2])


async def test_proxies_and_unix_sockets_are_not_counted() -> None:
    options = Options(max_address_connections=1, trusted=["192.0.2.0/30", "2001:db8::/32"])
    async with running(options=options) as app:
        for address in (FAR, "2001:db8:5::1", ""):
            for _ in range(3):
                await app.connect(address=address)
        for address in ("192.0.2.4", NEAR):
            await app.connect(address=address)
            await turned_away(app, CloseCode.TRY_AGAIN_LATER, address=address)
        app.server.reload(options=attrs.evolve(options, trusted=[NEAR]))
        await app.connect(address=NEAR)
        await turned_away(app, CloseCode.TRY_AGAIN_LATER, address=FAR)
        app.server.reload(options=attrs.evolve(options, max_address_connections=0))
        await app.connect(address=FAR)


@pytest.mark.parametrize(("said", "counted"), [(1001, 1001), (3000, 1000), (4003, 1000), (4999, 1000)])
async def test_what_clients_say_when_they_leave_makes_no_figures_of_their_own(
    said: int, counted: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "goim_core.connection")
    async with running() as app:
        client = await app.connect(wire="ws")
        await client.send_bytes(b"\x88\x82\0\0\0\0" + said.to_bytes(2))
        await app.idle()
        assert dict(app.server.stats().closes) == {counted: 1}
    [line] = [record for record in caplog.records if record.name == "goim_core.connection"]
    assert line.__dict__["code"] == said


# On their way in.


async def test_handshakes_the_one_that_got_no_further_for_the_longest_gives_way() -> None:
    async with running(options=Options(max_handshakes=2)) as app:
        oldest, second = await app.open(), await app.open()
        assert app.server.stats().handshakes == 2
        assert refusals(app) == {}
        honest = await app.connect()
        await oldest.assert_closed(CloseCode.TRY_AGAIN_LATER)
        assert oldest.link.fileno() < 0, "nobody waits for one that says nothing"
        await second.assert_open()
        await honest.assert_open()
        assert app.server.stats().handshakes == 1
        assert refusals(app) == {"max_handshakes": 1}
        second.close()
        await app.idle()
        assert app.server.stats().handshakes == 0


async def test_a_websocket_that_has_shaken_hands_has_got_further() -> None:
    async with running(options=Options(max_handshakes=2)) as app:
        first = Link()
        app.server.accept(cast("Any", first), "ws", NEAR)
        silent = await app.open()
        first.write(WebSocketWire("localhost", "/sub", {}).opening)
        await silent.send_bytes(encode(Op.HEARTBEAT)[:5])  # no further for that
        await app.idle()
        await app.open()
        await silent.assert_closed(CloseCode.TRY_AGAIN_LATER)
        assert not first.ended


class Door(AuthHook):
    """Decides when it is told to."""

    def __init__(self) -> None:
        self.open = anyio.Event()

    async def authenticate(self, request: AuthRequest) -> Session:
        await self.open.wait()
        return Session(mid=1, accepts=frozenset((1000,)))


async def test_nobody_gives_way_while_a_hook_decides() -> None:
    door = Door()
    async with running(auth=door, options=Options(max_handshakes=2), patience=0) as app:
        asking = [await app.open() for _ in range(2)]
        for client in asking:
            await client.send(Op.AUTH)
        await app.idle()
        assert app.server.stats().handshakes == 2
        await turned_away(app, CloseCode.TRY_AGAIN_LATER)
        asking[0].break_link()
        await app.idle()
        assert app.server.stats().handshakes == 2, "its hook still works"
        door.open.set()
        await asking[1].assert_reply(Op.AUTH_REPLY)
        assert app.server.stats().handshakes == 0
        assert refusals(app) == {"max_handshakes": 1}
        await app.connect()


async def test_ten_thousand_silent_connections_keep_nobody_out() -> None:
    async with running(options=Options(max_handshakes=100)) as app:
        for _ in range(10_000):
            app.server.accept(cast("Any", Link()), "tcp", NEAR)
        assert app.server.stats().connections == len(app.server.links.sources()) == 100
        await app.connect()
        assert refusals(app) == {"max_handshakes": 9_901}


# A user.


@pytest.mark.parametrize("registry", [None, LaterRegistry])
async def test_connections_of_one_user(registry: Any) -> None:
    settings = {} if registry is None else {"registry": registry()}
    async with running(options=Options(max_user_connections=2), **settings) as app:
        first = await app.connect({"mid": 5, "key": "a"})
        await app.connect({"mid": 5, "key": "b"})
        for _ in range(2):
            with pytest.raises(Disconnect, match="at most 2 connections of a user") as told:
                await app.connect({"mid": 5})
            assert told.value.code == CloseCode.TOO_MANY_LOGINS
        assert refusals(app) == {"max_user_connections": 2}
        again = await app.connect({"mid": 5, "key": "a"})
        await first.assert_closed(CloseCode.REPLACED)
        for _ in range(3):
            await app.connect({"mid": 0})
            await app.connect({"mid": 6 + _})
        again.close()
        await app.idle()
        await app.connect({"mid": 5})
        assert app.server.stats().users == 8


async def test_of_a_user_that_is_refused_nothing_is_left() -> None:
    heard: list[str] = []

    class Ears(SessionHook):
        def connected(self, session: Session) -> None:
            heard.append(session.key)

    async with running(sessions=Ears(), options=Options(max_user_connections=1)) as app:
        await app.connect({"mid": 5, "key": "a"})
        with pytest.raises(Disconnect):
            await app.connect({"mid": 5, "key": "b"})
        assert heard == ["a"]
        assert app.server._registry.keys(["b"]) == {}


# What is read.


class Echo(MessageHook):
    heard = 0

    def receive(self, session: Session, frame: Frame) -> bytes:
        self.heard += 1
        return frame.body


async def sends(client: Client, frames: Iterable[bytes]) -> None:
    for frame in frames:
        await client.send_bytes(frame)
        await client._idle()


async def replies(client: Client) -> int:
    await client._idle()
    count = len(client._arrived)
    client._arrived.clear()
    return count


SLACK = FRAMES_A_TURN + 25
"""A turn, and what is only counted of a moment at 100 frames a second."""


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("op", [Op.HEARTBEAT, 1000])
async def test_frames_a_second(at_once: bool, op: int) -> None:
    """100 a second, 2 seconds' worth at once, of which one is the token's. What is more is seen after a turn."""
    options = Options(read_frames=100, read_burst=2)
    async with running(messages=Echo(), options=options) as app:
        client = await app.connect()
        frames = [encode(op, b"", 1)] * 199
        await sends(client, [b"".join(frames)] if at_once else frames)
        assert await replies(client) == 199
        assert refusals(app) == {}
        await sends(client, [b"".join(frames)] if at_once else frames)
        assert (done := await replies(client)) == (FRAMES_A_TURN if at_once else 1)
        assert refusals(app) == {"read_frames": 1}
        await app.advance(1)
        assert done + (more := await replies(client)) <= 100 + SLACK
        assert more >= 100 - SLACK
        await app.advance(5)
        assert done + more + await replies(client) == 199
        await client.assert_open()
        before = refusals(app)
        await sends(client, frames)
        assert await replies(client) == 199
        assert refusals(app) == before


async def test_less_than_a_frame_in_a_moment() -> None:
    async with running(options=Options(read_frames=0.5, read_burst=10)) as app:
        client = await app.connect()
        await app.advance(10)
        for _ in range(6):  # 2 s each, of which 0.3 have passed before the next
            await client.send(Op.HEARTBEAT)
            await app.advance(0.3)
        assert refusals(app) == {"read_frames": 1}
        assert await replies(client) == 6
        await client.send(Op.HEARTBEAT)
        assert await replies(client) == 0


async def test_bytes_a_second_of_a_frame_that_never_ends() -> None:
    options = Options(read_bytes=1000, read_burst=1, read_frames=0, max_body=1 << 20)
    async with running(options=options) as app:
        client = await app.connect()
        await app.advance(1)
        head = encode(1000, bytes(1 << 16))[:HEADER_SIZE]
        await sends(client, [head, bytes(1000 - HEADER_SIZE)])
        assert refusals(app) == {}
        await client.send_bytes(b"x")
        await app.idle()
        assert refusals(app) == {"read_bytes": 1}
        await client.send_bytes(b"x")
        await app.idle()
        assert client.link.readable, "it waits where it costs no memory here"
        await app.advance(0.5)
        assert not client.link.readable


async def test_pings_and_fragments_count() -> None:
    options = Options(read_frames=10, read_burst=2)
    for piece in (b"\x89\x80abcd", b"\x8a\x80abcd", b"\x00\x80abcd"):
        async with running(options=options) as app:
            client = await app.connect(wire="ws")
            await app.advance(10)
            if piece[0] == 0:
                await sends(client, [b"\x02\x81abcd\x00"])
            await sends(client, [piece] * 17)  # two on the way in are counted still: no moment has ended
            assert refusals(app) == {}
            await sends(client, [piece] * 5)
            assert refusals(app) == {"read_frames": 1}


async def test_before_a_client_is_let_in_too() -> None:
    async with running(options=Options(read_frames=10, read_burst=1, auth_timeout=3)) as app:
        client = await app.open()
        for _ in range(5):
            await sends(client, [encode(1000)] * 10)
        assert refusals(app) == {"read_frames": 1}
        await app.advance(4)
        await client.assert_closed(CloseCode.AUTH_TIMEOUT)


async def test_a_connection_that_rests_is_closed_like_any_other() -> None:
    ended: list[int] = []

    class Ears(SessionHook):
        def disconnected(self, session: Session, reason: Disconnect) -> None:
            ended.append(reason.code)

    options = Options(read_frames=1, read_burst=1)
    async with running(sessions=Ears(), options=options) as app:
        for end in ("close", "reset", "stop"):
            client = await app.connect({"mid": 7, "key": end})
            await sends(client, [encode(Op.HEARTBEAT)] * 5)
            if end == "close":
                await app.server.disconnect_keys([end], Disconnect("out", 4100))
                await client.assert_closed(4100)
            elif end == "reset":
                client.break_link()
                await app.idle()
            assert len(ended) == ("close", "reset", "stop").index(end) + (end != "stop"), "at once"
        assert refusals(app) == {"read_frames": 3}
    assert ended == [4100, CloseCode.LOST, CloseCode.GOING_AWAY]


async def test_a_heartbeat_is_due_while_it_rests() -> None:
    options = Options(read_frames=0.1, read_burst=100, heartbeat=10, heartbeat_max=1)
    async with running(options=options) as app:
        client = await app.connect()
        await sends(client, [b"".join([encode(1000)] * 30)])
        await app.advance(11)
        await client.assert_closed(CloseCode.HEARTBEAT_TIMEOUT)


async def test_a_hook_has_its_time_and_the_budget_is_looked_at_afterwards() -> None:
    class Slow(MessageHook):
        go = anyio.Event()

        async def receive(self, session: Session, frame: Frame) -> None:
            await self.go.wait()

    hook = Slow()
    hook.go = anyio.Event()
    async with running(messages=hook, options=Options(read_frames=2, read_burst=1), patience=0) as app:
        client = await app.connect()
        await app.advance(1)
        await client.send_bytes(encode(1000) + encode(Op.HEARTBEAT) * 100)
        await app.idle()
        assert refusals(app) == {}
        hook.go.set()
        await app.advance(0.1)
        assert refusals(app) == {"read_frames": 1}
        assert await replies(client) == 1 + FRAMES_A_TURN
        await app.advance(60)
        assert await replies(client) == 100 - FRAMES_A_TURN


async def test_nothing_is_kept_of_who_is_idle() -> None:
    async with running() as app:
        client = await app.connect()
        budget = app.server._pipeline.edge.budget
        for _ in range(budget.free - 1):
            await client.heartbeat()
        assert not budget._used, "as many as would be forgiven are not even noted"
        await client.heartbeat()
        assert client.connection in budget._used
        await app.advance(1)
        assert not budget._used
        for _ in range(budget.free + 1):
            await client.heartbeat()
        assert client.connection in budget._used
        client.close()
        await app.idle()
        assert not budget._used
        await app.advance(1)
        assert not budget._expecting


# Frames, rooms, names.


@pytest.mark.parametrize("wire", ["tcp", "ws"])
async def test_the_size_of_a_frame(wire: str) -> None:
    for most in (100, 100_000):
        async with running(messages=Echo(), options=Options(max_body=most)) as app:
            client = await app.connect(wire=wire)
            await client.assert_reply(1000, bytes(most), seq=await client.send(1000, bytes(most)))
            assert refusals(app) == {}
            await client.send(1000, bytes(most + 1))
            await client.assert_closed(CloseCode.TOO_BIG)
            assert refusals(app) == {"max_body": 1}


async def test_rooms_of_a_connection() -> None:
    async with running(options=Options(max_rooms=2)) as app:
        client = await app.connect()
        for room in ("live://1", "live://2", "live://2"):
            assert (await client.request(Op.JOIN, room)).op == Op.JOIN_REPLY
        assert refusals(app) == {}
        await client.assert_refused(ErrorCode.TOO_MANY, seq=await client.send(Op.JOIN, "live://3"))
        assert refusals(app) == {"max_rooms": 1}


async def test_the_length_of_a_room_id() -> None:
    async with running(options=Options(max_room_id=8)) as app:
        client = await app.connect({"room_id": "a://1234"})
        for op in (Op.JOIN, Op.CHANGE_ROOM):
            assert (await client.request(op, "a://\u00e9\u00e9\u00e9\u00e9")).op == op + 1
            why = await client.assert_refused(ErrorCode.BAD_REQUEST, seq=await client.send(op, "a://12345"))
            assert why == "room_id: expected at most 8 characters"
        with pytest.raises(Disconnect, match="^room_id: expected at most 8 characters$") as told:
            await app.connect({"room_id": "a://12345"})
        assert told.value.code == CloseCode.AUTH_REFUSED
        assert refusals(app) == {"max_room_id": 3}


async def test_the_length_of_a_key() -> None:
    async with running(options=Options(max_key=8)) as app:
        await app.connect({"key": "k" * 8})
        with pytest.raises(Disconnect, match="^key: expected at most 8 characters$") as told:
            await app.connect({"key": "k" * 9})
        assert told.value.code == CloseCode.AUTH_REFUSED
        assert refusals(app) == {"max_key": 1}


async def test_the_size_of_a_token() -> None:
    async with running(options=Options(max_token=8)) as app:
        client = await app.connect(b"t" * 8)
        assert (await client.request(Op.REFRESH, b"t" * 8)).op == Op.REFRESH_REPLY
        why = await client.assert_refused(ErrorCode.BAD_REQUEST, seq=await client.send(Op.REFRESH, b"t" * 9))
        assert why == "token: expected at most 8 bytes"
        with pytest.raises(Disconnect, match="^token: expected at most 8 bytes$") as told:
            await app.connect(b"t" * 9)
        assert told.value.code == CloseCode.TOO_BIG
        assert refusals(app) == {"max_token": 2}
        assert app.server.stats().handshakes == 0


async def test_what_the_rate_refuses_is_counted() -> None:
    async with running(options=Options(rate=1, rate_burst=1)) as app:
        client = await app.connect()
        await client.request(1000)
        assert refusals(app) == {}
        await client.request(1000)
        assert refusals(app) == {"rate": 1}


# What waits.

PIECE = 1000
"""How many bytes a push of the tests here has, with its header."""


async def push(app: App, client: Client, pieces: int) -> None:
    for _ in range(pieces):
        await app.push_keys([client.key], 1000, bytes(PIECE - HEADER_SIZE))
    await app.idle()


async def stuck(app: App, **settings: Any) -> Client:
    """A client that reads nothing, and of which the link is full."""
    client = await app.connect(capacity=PIECE, **settings)
    client.pause_reading()
    await push(app, client, 1)
    return client


async def test_what_waits_in_total_the_most_goes_first() -> None:
    options = Options(outbox_total=16 * PIECE, outbox_policy=OutboxPolicy.DISCONNECT)
    async with running(options=options) as app:
        little, much, some = [await stuck(app) for _ in range(3)]
        assert app.server.stats().outbox_bytes == 0
        await push(app, little, 2)
        await push(app, much, 9)
        await push(app, some, 5)
        assert app.server.stats().outbox_bytes == 16 * PIECE
        for client in (little, much, some):
            await client.assert_open()
        assert refusals(app) == {}
        await push(app, little, 1)
        assert much.link.fileno() < 0, "it has the most"
        for client in (little, some):
            await client.assert_open()
        stats = app.server.stats()
        assert (stats.outbox_bytes, dict(stats.refusals)) == (8 * PIECE, {"outbox_total": 1})
        assert dict(stats.drops) == {"lost": 9}
        assert dict(stats.closes) == {CloseCode.SLOW: 1}


async def test_they_go_until_seven_eighths_are_left() -> None:
    async with running(options=Options(outbox_total=16 * PIECE)) as app:
        clients = [await stuck(app) for _ in range(16)]
        for client in clients:
            await push(app, client, 1)
        assert refusals(app) == {}
        await push(app, clients[0], 1)
        assert refusals(app) == {"outbox_total": 2}, "17 waited: one has 2, another 1"
        assert app.server.stats().outbox_bytes == 14 * PIECE
        app.server.reload(options=attrs.evolve(app.server.options, outbox_total=8 * PIECE))
        await app.idle()
        assert app.server.stats().outbox_bytes == 7 * PIECE


@pytest.mark.parametrize("policy", OutboxPolicy)
async def test_the_account_is_even_in_the_end(policy: OutboxPolicy) -> None:
    options = Options(outbox_bytes=3 * PIECE, outbox_policy=policy)
    async with running(options=options) as app:
        clients = [await stuck(app) for _ in range(3)]
        for client in clients:
            await push(app, client, 5)
        reading, leaving, breaking = clients
        stats = app.server.stats()
        assert stats.outbox_bytes == sum(each.connection.waiting for each in clients) > 0
        reading.resume_reading()
        leaving.close()
        breaking.break_link()
        await app.advance(20)
        assert app.server.stats().outbox_bytes == 0
        client = await app.connect()
        await client.send_bytes(encode(1000, bytes(PIECE)) * 10)  # answered in one send
        await app.idle()
        assert app.server.stats().outbox_bytes == 0
