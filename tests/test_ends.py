"""However a connection ends: its hooks hear of it once, its route goes, and the client is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from goim_core.errors import CloseCode, Disconnect, Refused, ServerStopped, StorageError
from goim_core.hooks import AuthHook, LoginPolicy, MessageHook, RoomHook, SessionHook
from goim_core.memory_storage import MemoryStorage
from goim_core.options import Options
from goim_core.protocol import Frame, Op
from goim_core.registry import MemoryRegistry
from goim_core.session import AuthRequest, Session
from goim_core.storage import StorePolicy
from goim_core.testing import App, Client, running
from tests.logics import LaterRegistry, after_a_while

pytestmark = pytest.mark.anyio

ACCEPTS = [Op.ERROR, Op.JOIN, Op.LEAVE]
ROOMS = [f"live://{number}" for number in range(6)]


class Application(SessionHook, RoomHook, MessageHook):
    """An application whose hooks note what they hear, and then do as they are told."""

    def __init__(self, **does: Callable[[], Any]) -> None:
        self.does = does
        self.heard: list[str] = []
        self.reasons: list[int] = []

    def hear(self, what: str) -> Any:
        self.heard.append(what)
        return self.does.get(what, lambda: None)()

    def connected(self, session: Session) -> Any:
        return self.hear("connected")

    def disconnected(self, session: Session, reason: Disconnect) -> Any:
        self.reasons.append(reason.code)
        return self.hear("disconnected")

    def heartbeat(self, session: Session) -> Any:
        return self.hear("heartbeat")

    def entered(self, session: Session, room_id: str) -> Any:
        return self.hear("entered")

    def left(self, session: Session, room_id: str) -> Any:
        return self.hear("left")

    def receive(self, session: Session, frame: Frame) -> Any:
        return self.hear("receive")

    @property
    def count(self) -> tuple[int, int, int, int]:
        return (
            self.heard.count("connected"),
            self.heard.count("disconnected"),
            self.heard.count("entered"),
            self.heard.count("left"),
        )


def run(hooks: Application, **settings: Any) -> Any:
    options = settings.pop("options", Options(hook_timeout=5))
    return running(sessions=hooks, rooms=hooks, messages=hooks, options=options, patience=0, **settings)


async def connect(app: App, key: str = "k", room_id: str = ROOMS[0], mid: int = 1) -> Client:
    return await app.connect({"mid": mid, "key": key, "room_id": room_id, "accepts": [*ACCEPTS, 1000]})


def fault(error: Exception) -> Callable[[], Any]:
    def raises() -> None:
        raise error

    return raises


FAULTS = [
    fault(RuntimeError("no")),
    fault(Refused("no")),
    fault(Disconnect("no")),
    lambda: after_a_while(None),
]
ENDS: list[Callable[[Client], object]] = [Client.close, Client.break_link]


@pytest.mark.parametrize("does", FAULTS)
@pytest.mark.parametrize("what", ["left", "disconnected", "heartbeat", "receive", "entered"])
@pytest.mark.parametrize("end", ENDS)
async def test_the_end_is_heard_once_whatever_hooks_do(
    end: Callable[[Client], object], what: str, does: Callable[[], Any]
) -> None:
    hooks = Application(**{what: does})
    async with run(hooks) as app:
        client = await app.open()
        await client.send(Op.AUTH, {"mid": 1, "key": "k", "room_id": ROOMS[0], "accepts": ACCEPTS})
        await app.idle()
        for op in (Op.HEARTBEAT, 1000, Op.JOIN):
            if not client.link.ended:
                await client.send(op, ROOMS[1])
                await app.idle()
        end(client)
        await app.idle()
        ended = hooks.count
        assert app.server._registry.keys(["k"]) == {}
        assert (app.server.stats().users, app.server.stats().rooms) == (0, 0)
    assert hooks.count == ended == (1, 1, ended[2], ended[2])


@pytest.mark.parametrize("error", [ConnectionError("gone"), Refused("no"), Disconnect("no")], ids=repr)
async def test_a_registry_that_cannot_remove_keeps_no_hook_from_hearing(error: Exception) -> None:
    class Registry(MemoryRegistry):
        def remove(self, session: Session) -> bool:
            raise error

    hooks = Application()
    async with run(hooks, registry=Registry()) as app:
        client = await connect(app)
        client.close()
        await app.idle()
        assert hooks.count == (1, 1, 1, 1)
    assert hooks.count == (1, 1, 1, 1)


@pytest.mark.parametrize("logins", [LoginPolicy(), LoginPolicy(at_most=1)])
async def test_a_registry_that_fails_after_the_add_makes_no_end_without_a_beginning(
    logins: LoginPolicy,
) -> None:
    class Registry(MemoryRegistry):
        def mids(self, mids: Any) -> list[Session]:
            raise ConnectionError("gone")

    hooks = Application()
    hooks.logins = logins
    async with run(hooks, registry=Registry()) as app:
        client = await app.open()
        await client.send(Op.AUTH, {"mid": 1, "room_id": ROOMS[0]})
        await app.idle()
        assert client.link.ended == (logins.at_most is not None)
    assert hooks.count == (1, 1, 1, 1)


async def test_a_storage_that_fails_at_the_end_keeps_no_hook_from_hearing() -> None:
    class Storage(MemoryStorage):
        def acknowledge(self, mid: int, device: str, seq: int) -> int:
            raise StorageError("gone")

        def saw(self, mid: int, at: float) -> None:
            raise OSError("gone")

    hooks = Application()
    async with run(hooks, storage=Storage()) as app:
        client = await connect(app)
        await app.push_mids([1], 1000, b"x")
        await client.assert_push(1000, b"x")
        client.close()
    assert hooks.count == (1, 1, 1, 1)


async def test_a_link_that_breaks_at_the_auth_reply_has_its_beginning_before_its_end() -> None:
    """The peer resets while the hook decides, and the server hears of it when it sends the reply."""
    decide = anyio.Event()

    class Auth(AuthHook):
        async def authenticate(self, request: AuthRequest) -> Session:
            await decide.wait()
            return Session(mid=1, key="k", room_id=ROOMS[0])

    hooks = Application()
    async with run(hooks, auth=Auth()) as app:
        client = await app.open()
        await client.send(Op.AUTH, "{}")
        await app.idle()
        client.link._broken = True  # not told to the reactor: the kernel says it first when it is sent to
        decide.set()
        await app.idle()
    assert hooks.heard == ["connected", "entered", "left", "disconnected"]


async def test_a_link_that_breaks_at_the_auth_reply_with_hooks_that_wait() -> None:
    decide = anyio.Event()

    class Auth(AuthHook):
        async def authenticate(self, request: AuthRequest) -> Session:
            await decide.wait()
            return Session(mid=1, key="k", room_id=ROOMS[0])

    later = lambda: after_a_while(None)  # noqa: E731
    hooks = Application(connected=later, entered=later, left=later)
    async with run(hooks, auth=Auth()) as app:
        client = await app.open()
        await client.send(Op.AUTH, "{}")
        await app.idle()
        client.link._broken = True
        decide.set()
        await app.idle()
    assert hooks.heard == ["connected", "entered", "left", "disconnected"]


# When the server stops.


@pytest.mark.parametrize("what", ["connected", "entered", "receive", "left", "disconnected", "heartbeat"])
async def test_a_server_that_stops_while_a_hook_hangs_has_told_of_the_end(what: str) -> None:
    hooks = Application(**{what: anyio.sleep_forever})
    async with run(hooks, options=Options(hook_timeout=1000)) as app:
        clients = [await connect(app, f"k{number}") for number in range(3)]
        for client in clients:
            for op in (Op.HEARTBEAT, 1000):
                await client.send(op)
        await app.idle()
    connected, disconnected, entered, left = hooks.count
    assert (connected, disconnected) == (3, 3)
    assert entered == left


async def test_a_server_that_stops_while_many_hooks_hang_one_after_the_other() -> None:
    """However long the line before it is, the one that hears of the end has its turn."""
    hooks = Application(left=anyio.sleep_forever)
    async with run(hooks, options=Options(hook_timeout=1000)) as app:
        client = await connect(app)
        for room_id in ROOMS[1:]:
            await client.request(Op.JOIN, room_id)
    assert hooks.count == (1, 1, len(ROOMS), len(ROOMS))


async def test_a_server_that_stops_while_registry_and_storage_hang() -> None:
    class Registry(LaterRegistry):
        async def remove(self, session: Session) -> bool:
            await anyio.sleep_forever()
            return True

    class Storage(MemoryStorage):
        async def acknowledge(self, mid: int, device: str, seq: int) -> int:  # type: ignore[override]
            await anyio.sleep_forever()
            return 0

        async def saw(self, mid: int, at: float) -> None:  # type: ignore[override]
            await anyio.sleep_forever()

    hooks = Application(left=anyio.sleep_forever, disconnected=anyio.sleep_forever)
    async with run(hooks, registry=Registry(), storage=Storage(), options=Options(hook_timeout=1000)) as app:
        client = await connect(app)
        await app.push_mids([1], 1000, b"x")
        await client.assert_push(1000, b"x")
    assert hooks.count == (1, 1, 1, 1)


async def test_with_more_hanging_hooks_than_places_all_hear_of_the_end() -> None:
    hooks = Application(receive=anyio.sleep_forever)
    async with run(hooks, options=Options(hook_timeout=1000, max_hooks=2)) as app:
        for number in range(5):
            await (await connect(app, f"k{number}")).send(1000)
        await app.idle()
    assert hooks.count == (5, 5, 5, 5)


async def test_with_more_joining_than_places_none_leaves_that_did_not_enter() -> None:
    """Cut short while it waited for a place: `connected` never ran, so nobody entered and nobody leaves."""
    hooks = Application(connected=anyio.sleep_forever)
    async with run(hooks, options=Options(hook_timeout=1000, max_hooks=1)) as app:
        for number in range(3):
            await connect(app, f"k{number}")
        await app.idle()
    assert hooks.count == (3, 3, 0, 0)


# Sent away by the application.


@pytest.mark.parametrize("wire", ["tcp", "ws"])
async def test_disconnecting_comes_behind_what_was_pushed(wire: str) -> None:
    hooks = Application()
    async with run(hooks) as app:
        clients = [
            await app.connect({"mid": mid, "key": f"k{mid}{n}", "accepts": [1000]}, wire)
            for mid in (1, 2) for n in (0, 1)
        ]  # fmt: skip
        await app.push_mids([1], 1000, b"last")
        await app.server.disconnect_mids([1, 9], Disconnect("banned", 4321))
        await app.push_mids([1, 2], 1000, b"after")
        await app.server.disconnect_keys(["k20", "unknown"], Disconnect("out", CloseCode.NORMAL))
        for client in clients[:2]:
            assert (await client.assert_closed(4321)).reason == "banned"
            assert [frame.body for frame in await client.take_pushes()] == [b"last"]
        await clients[2].assert_closed(CloseCode.NORMAL)
        await clients[3].assert_push(1000, b"after")
        await clients[3].assert_open()
        await app.server.disconnect_keys(["k10"], Disconnect("again"))
    assert sorted(hooks.reasons) == [CloseCode.NORMAL, CloseCode.GOING_AWAY, 4321, 4321]


async def test_outside_of_its_block_a_server_sends_nobody_away() -> None:
    async with running() as app:
        server = app.server
    with pytest.raises(ServerStopped):
        await server.disconnect_keys(["k"], Disconnect("no"))
    with pytest.raises(ServerStopped):
        await server.disconnect_mids([1], Disconnect("no"))


async def test_figures_of_who_is_there() -> None:
    async with running() as app:
        for mid, room_id, address in (
            (1, "live://1", "::1"),
            (2, "live://1", "::1"),
            (3, "live://2", "127.0.0.1"),
        ):
            await app.connect({"mid": mid, "room_id": room_id}, address=address)
        server = app.server
        assert server.online_top("live", 1) == [("1", 2)]
        assert server.online_rooms(["live://2", "live://3"]) == {"live://2": 1, "live://3": 0}
        assert server.online_total() == (2, 3)
        assert [session.mid for session in server.members("live://1")] == [1, 2]
        assert [session.mid for session in server.members("live://1", offset=1, limit=5)] == [2]
        assert server.members("live://none") == []


# With a storage that fails.


@pytest.mark.parametrize("policy", StorePolicy)
async def test_a_push_that_cannot_be_stored_reaches_nobody(policy: StorePolicy) -> None:
    class Full(MemoryStorage):
        def append(self, *args: Any, **settings: Any) -> dict[int, int]:
            raise StorageError("the disk is full")

    async with running(storage=Full(policy=policy)) as app:
        client = await app.connect({"mid": 1, "accepts": [1000]})
        with pytest.raises(StorageError, match="the disk is full"):
            await app.push_mids([1, 2], 1000, b"x")
        await client.refute_push()
        assert app.queue.pending == 0


@pytest.mark.parametrize("answer", [None, 5, [None], ["x"]])
async def test_a_storage_that_reads_nonsense_ends_only_those_that_read_it(answer: Any) -> None:
    class Nonsense(MemoryStorage):
        broken = False

        def after(self, *args: Any) -> Any:
            return answer if self.broken else []

    storage = Nonsense()
    async with running(storage=storage) as app:
        before = await app.connect({"mid": 1, "accepts": [1000]})
        storage.broken = True
        client = await app.open()
        await client.send(Op.AUTH, {"mid": 2})
        await client.assert_closed(CloseCode.INTERNAL_ERROR)
        await app.push_mids([1], 1000, b"x")
        await before.assert_push(1000, b"x")


@pytest.mark.parametrize("sending", ["fails", "blocks"])
async def test_a_heartbeat_whose_reply_ends_the_connection_concerns_no_hook(sending: str) -> None:
    """An exchange that began after the end would come to an end of its own, and renew a route that is gone."""
    hooks, registry = Application(heartbeat=lambda: after_a_while(None)), LaterRegistry()
    async with run(hooks, registry=registry, options=Options(outbox_packets=1)) as app:
        client = await app.connect({"mid": 1, "room_id": ROOMS[0], "accepts": ACCEPTS}, capacity=30)
        if sending == "fails":
            client.link.ended = True  # a peer that has reset: what it sent before is still read
        client.pause_reading()
        for _ in range(2 if sending == "blocks" else 0):
            await client.send(Op.HEARTBEAT)
            await app.idle()
        renewed = len(registry.renewed)
        await client.send(Op.HEARTBEAT)
        await app.idle()
        assert hooks.reasons == [CloseCode.LOST if sending == "fails" else CloseCode.SLOW]
        assert len(registry.renewed) == renewed
        assert hooks.count == (1, 1, 1, 1)
    assert hooks.count == (1, 1, 1, 1)


async def test_a_link_that_is_found_broken_where_the_outbox_is_full_ends_only_its_own_connection() -> None:
    hooks = Application()
    async with run(hooks, options=Options(outbox_packets=3)) as app:
        client, other = await app.connect({"mid": 1}, capacity=30), await app.connect({"mid": 2})
        client.pause_reading()
        for _ in range(4):
            await client.send(Op.HEARTBEAT)
        await app.idle()
        outbox = client.connection.channel.outbox
        assert outbox is not None
        assert len(outbox.packets) == 3
        client.link.ended = True  # a peer that has reset: what it sent before is still read
        await client.send(Op.HEARTBEAT)
        await app.idle()
        assert hooks.reasons == [CloseCode.LOST]
        assert await other.heartbeat() == 0
