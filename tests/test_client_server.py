"""The client that stays connected, against the real server: restarts, lost connections, rooms, tokens."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
import trustme
from anyio.abc import TaskGroup, TaskStatus

from goim_core import (
    AuthHook,
    AuthRequest,
    CloseCode,
    Disconnect,
    LoginPolicy,
    Op,
    OpenAuth,
    Options,
    Refused,
    RoomHook,
    Server,
    Session,
    SessionHook,
)
from goim_core.client import EXTENSIONS, Backoff, Client, ClientState, Presence, connect
from goim_core.memory_storage import MemoryStorage
from goim_core.testing.clock import ManualClock
from tests.scripted import States

pytestmark = pytest.mark.anyio

both = pytest.mark.parametrize("door", ["tcp", "ws"])
QUICK = Backoff(first=0.01, base=0.01, factor=1)
TEXT = 1000


@asynccontextmanager
async def running(doors: Any = ("tcp", "ws"), **hooks: Any) -> AsyncIterator[Server]:
    """A server; ``doors`` the names of its doors, or their addresses too."""
    if not isinstance(doors, dict):
        doors = dict.fromkeys(doors, "127.0.0.1:0")
    hooks = {"auth": OpenAuth(), "options": Options(farewell_timeout=0.01), **hooks}
    with anyio.fail_after(30):
        async with Server(**doors, **hooks) as server:
            yield server


class Restarting:
    """A server that is started again where it was. It runs in a task, so that a client's block outlasts it."""

    def __init__(self, tasks: TaskGroup, door: str) -> None:
        self._tasks = tasks
        self._door = door
        self._address = "127.0.0.1:0"

    async def start(self, storage: MemoryStorage) -> Server:
        self._stop, self._stopped = anyio.Event(), anyio.Event()
        server: Server = await self._tasks.start(self._run, storage)
        self._address = url(server, self._door).partition("//")[2]
        return server

    async def _run(self, storage: MemoryStorage, *, task_status: TaskStatus[Server]) -> None:
        async with running({self._door: self._address}, storage=storage) as server:
            task_status.started(server)
            await self._stop.wait()
        self._stopped.set()

    async def stop(self) -> None:
        self._stop.set()
        await self._stopped.wait()


def url(server: Server, door: str) -> str:
    [address] = server.addresses[door]
    assert isinstance(address, tuple)
    host, port = address
    return f"{door}://{host}:{port}"


def guest(address: str, **options: Any) -> Client:
    return connect(address, **{"mid": 1, "accepts": [TEXT], "backoff": QUICK, **options})


async def numbers(client: Client, count: int) -> list[int]:
    found = []
    for _ in range(count):
        message = await client.receive()
        assert int(message.body) == message.seq
        found.append(message.seq)
    return found


@both
async def test_a_server_that_restarts(door: str) -> None:
    storage, states = MemoryStorage(), States()
    async with anyio.create_task_group() as tasks:
        place = Restarting(tasks, door)
        server = await place.start(storage)
        async with guest(url(server, door), rooms=["club://1"], on_state=states) as client:
            await push(server, range(1, 11))
            assert await numbers(client, 5) == [1, 2, 3, 4, 5]
            await place.stop()
            change = await states.until(ClientState.WAITING)
            assert change.why is not None
            assert change.why.code == CloseCode.GOING_AWAY
            server = await place.start(storage)
            await push(server, range(11, 21))
            assert await numbers(client, 15) == list(range(6, 21))
            assert (await client.request(TEXT)).body == b""
            await server.push_room("club://1", TEXT, b"the room again")
            assert (await client.receive()).body == b"the room again"
        assert cursor(storage) == 20
        await place.stop()


@both
async def test_a_server_that_restarts_with_an_empty_storage(door: str) -> None:
    states, storage = States(), MemoryStorage()
    async with anyio.create_task_group() as tasks:
        place = Restarting(tasks, door)
        server = await place.start(MemoryStorage())
        async with guest(url(server, door), ack_every=1, ack="manual", on_state=states) as client:
            await push(server, range(1, 6))
            for _ in range(5):
                await (await client.receive()).ack()
            while client._keeper.dialogue.inbox.confirmed < 5:
                await client.request(TEXT)
            await place.stop()
            server = await place.start(storage)
            await push(server, range(1, 4))
            assert await numbers(client, 3) == [1, 2, 3]
            await place.stop()


async def push(server: Server, numbers: Iterable[int]) -> None:
    for number in numbers:
        await server.push_mids([1], TEXT, str(number).encode())


def cursor(storage: MemoryStorage) -> Any:
    return storage.cursor(1, "python")


@both
async def test_a_connection_that_is_lost_again_and_again(door: str) -> None:
    storage, count = MemoryStorage(), 400
    async with running(storage=storage) as server, guest(url(server, door), buffer=7, ack_every=3) as client:

        async def push_all() -> None:
            for number in range(1, count + 1):
                await server.push_mids([1], TEXT, str(number).encode())
                if not number % 23:
                    await server.disconnect_mids([1], Disconnect("again", 4100))
                    await anyio.sleep(0.01)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(push_all)
            assert await numbers(client, count) == list(range(1, count + 1))
        await client.aclose()
        assert cursor(storage) == count - 1  # nobody said that the last one is done


@both
async def test_what_is_not_acknowledged_comes_to_the_next_client(door: str) -> None:
    async with running(storage=MemoryStorage()) as server:
        await push(server, range(1, 4))
        async with guest(url(server, door), ack="manual") as client:
            first = await client.receive()
            await client.receive()
            await first.ack()
        async with guest(url(server, door)) as client:
            assert await numbers(client, 2) == [2, 3]
        async with guest(url(server, door), device="another", after=2) as client:
            assert await numbers(client, 1) == [3]
            assert [message.seq for message in await client.sync(0, 2)] == [1, 2]
            assert await client.sync(3) == []


@both
async def test_rooms(door: str) -> None:
    class Bouncer(RoomHook):
        def may_enter(self, session: Session, room_id: str) -> bool:
            return not room_id.startswith("secret://")

    async with running(rooms=Bouncer(), storage=MemoryStorage()) as server:
        address = url(server, door)
        async with guest(address, rooms=["club://1"]) as client:
            for enter in (client.join, client.change_room):
                with pytest.raises(Refused) as told:
                    await enter("secret://1")
                assert told.value.code == 403
            await client.watch("club://1")
            async with guest(address, mid=2, rooms=["club://1"]) as other:
                members = await client.members("club://1")
                assert (members.online, sorted(members.mids), members.next) == (2, [1, 2], None)
                message = await client.receive()
                assert message.op == Op.PRESENCE
                assert Presence.read(message.body).joined == (2,)
                await other.leave("club://1")
            with pytest.raises(Refused):
                await client.members("club://2")
        with pytest.raises(Refused):
            async with guest(address, rooms=["secret://1"]):
                pytest.fail("let in")
        with pytest.raises(Disconnect):
            async with guest(address, room_id="secret://1"):
                pytest.fail("let in")


@both
async def test_a_goim_client_is_not_troubled(door: str) -> None:
    token = json.dumps({"mid": 1, "accepts": [TEXT]})
    async with running(storage=MemoryStorage()) as server, guest(url(server, door), token=token) as client:
        await push(server, range(1, 6))
        assert await numbers(client, 5) == [1, 2, 3, 4, 5]
        for ask in (
            lambda: client.join("a://1"),
            lambda: client.members("a://1"),
            lambda: client.change_room("bad"),
        ):
            with pytest.raises(Refused):
                await ask()
        assert client.state is ClientState.OPEN


@both
async def test_a_token_that_runs_out_is_refreshed(door: str) -> None:
    clock = ManualClock()
    refreshed = anyio.Event()

    class Tickets(AuthHook):
        def authenticate(self, request: AuthRequest) -> Session:
            if request.token == b"2":
                refreshed.set()
            expires = self.server.clock.time() + 100
            return Session(mid=1, expires=expires, accepts={TEXT, *EXTENSIONS})

    tokens: list[str] = []

    def token() -> str:
        tokens.append(str(len(tokens) + 1))
        return tokens[-1]

    async with (
        running(auth=Tickets(), clock=clock) as server,
        guest(url(server, door), token=token) as client,
    ):
        for _ in range(8):
            clock.advance(10)
            await anyio.wait_all_tasks_blocked()
        await refreshed.wait()
        for _ in range(8):
            clock.advance(10)
            await anyio.wait_all_tasks_blocked()
        assert (await client.request(TEXT)).body == b""
        assert client.state is ClientState.OPEN
        assert tokens[:2] == ["1", "2"]
        clock.release()


@both
async def test_who_is_replaced_stays_away(door: str) -> None:
    class One(SessionHook):
        logins = LoginPolicy(at_most=1)

    async with running(sessions=One()) as server:
        address = url(server, door)
        async with guest(address) as first, guest(address) as second:
            with pytest.raises(Disconnect) as told:
                await first.receive()
            assert told.value.code == CloseCode.TOO_MANY_LOGINS
            assert (await second.request(TEXT)).op == TEXT


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    return server, client


@pytest.mark.parametrize("door", ["tls", "wss"])
async def test_tls(door: str, contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    doors = {door: "127.0.0.1:0"}
    async with running(doors=doors, ssl_context=contexts[0], storage=MemoryStorage()) as server:
        address = url(server, door)
        async with guest(address, ssl_context=contexts[1]) as client:
            await server.push_mids([1], TEXT, b"1")
            assert await numbers(client, 1) == [1]
        with pytest.raises(OSError, match=f"^cannot connect to {address}.*certificate verify failed"):
            async with guest(address):
                pytest.fail("trusted")
