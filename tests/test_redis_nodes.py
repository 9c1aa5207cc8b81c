"""Servers that share one Redis, registry and queue: what one accepts reaches the clients of the other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from goim_core import CloseCode, Disconnect, OpenAuth, Options, Server
from goim_core.adapters.redis import RedisQueue, RedisRegistry
from goim_core.client import Backoff, Client, connect
from goim_core.memory_storage import MemoryStorage
from tests.e2e.processes import ROOT, environment
from tests.redis import RedisServer, started_redis

pytestmark = pytest.mark.anyio

TEXT = 1000
ALIVE = 0.6
QUICK = Backoff(first=0.01, base=0.01, factor=1)


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return ("asyncio", {"use_uvloop": request.param})


@pytest.fixture
def url(redis_server: RedisServer) -> str:
    redis_server.ask("FLUSHALL")
    return redis_server.url


def node(url: str, name: str, **options: Any) -> Server:
    return Server(
        auth=OpenAuth(),
        tcp="127.0.0.1:0",
        name=name,
        registry=RedisRegistry(url, alive=ALIVE, timeout=0.5),
        queue=RedisQueue(url, timeout=0.5),
        options=Options(farewell_timeout=0.01, census=0.1, drain=1.0),
        **options,
    )


@asynccontextmanager
async def two_nodes(url: str) -> AsyncIterator[tuple[Server, Server]]:
    with anyio.fail_after(30):
        async with node(url, "one") as one, node(url, "two") as two:
            yield one, two


def guest(server: Server, mid: int, **options: Any) -> Client:
    [address] = server.addresses["tcp"]
    assert isinstance(address, tuple)
    host, port = address
    return connect(f"tcp://{host}:{port}", **{"mid": mid, "accepts": [TEXT], "backoff": QUICK, **options})


async def bodies(client: Client, count: int) -> list[bytes]:
    return [(await client.receive()).body for _ in range(count)]


async def until(is_so: Callable[[], Awaitable[bool]], seconds: float = 20) -> None:
    with anyio.fail_after(seconds):
        while not await is_so():
            await anyio.lowlevel.checkpoint()


async def test_what_one_node_accepts_reaches_the_clients_of_the_other(url: str) -> None:
    async with two_nodes(url) as (one, two), guest(one, 1) as near, guest(two, 2, key="far") as far:
        await near.join("live://1")
        await far.join("live://1")
        await one.push_mids([1, 2], TEXT, b"users")
        await one.push_keys(["far"], TEXT, b"key")
        await one.push_room("live://1", TEXT, b"room")
        await one.push_all(TEXT, b"all")
        # To keys, to a room and to all are lines of their own in comet: each in order, not among themselves.
        assert sorted(await bodies(far, 4)) == [b"all", b"key", b"room", b"users"]
        assert sorted(await bodies(near, 3)) == [b"all", b"room", b"users"]


async def test_pushes_to_a_room_come_in_order_on_every_node(url: str) -> None:
    sent = [b"%d" % number for number in range(200)]
    async with two_nodes(url) as (one, two), guest(one, 1) as near, guest(two, 2) as far:
        for client in (near, far):
            await client.join("live://1")
        for body in sent:
            await one.push_room("live://1", TEXT, body)
        assert await bodies(far, 200) == sent
        assert await bodies(near, 200) == sent


async def test_a_client_is_disconnected_by_the_other_node(url: str) -> None:
    async with two_nodes(url) as (one, two), guest(two, 2, backoff=None) as far:
        await one.disconnect_mids([2], Disconnect("moderated", 4100))
        with pytest.raises(Disconnect, match="moderated"):
            await far.receive()


async def test_nodes_know_how_many_are_online_on_all(url: str) -> None:
    async with two_nodes(url) as (one, two), guest(one, 1) as near, guest(two, 2) as far:
        for client in (near, far):
            await client.join("live://1")

        async def counted() -> bool:
            return all(
                server.online_rooms(["live://1"]) == {"live://1": 2} and server.online_total()[1] == 2
                for server in (one, two)
            )

        await until(counted)


async def test_a_client_that_comes_to_another_node_with_its_key_is_there_only(url: str) -> None:
    async with two_nodes(url) as (one, two), guest(one, 7, key="k", backoff=None) as old:
        async with guest(two, 7, key="k") as new:
            with pytest.raises(Disconnect) as caught:
                await old.receive()
            assert caught.value.code == CloseCode.REPLACED
            await one.push_keys(["k"], TEXT, b"to the new one")
            assert await bodies(new, 1) == [b"to the new one"]


async def test_a_redis_that_is_away_for_a_while(redis_server: RedisServer) -> None:
    """Pushers are told, clients stay, and all goes on when it is back, though it has forgotten everything."""
    async with started_redis() as server, two_nodes(server.url) as (one, two):
        async with guest(one, 1, rooms=["live://1"]) as near, guest(two, 2, rooms=["live://1"]) as far:
            server.kill()

            async def in_trouble() -> bool:
                await anyio.lowlevel.checkpoint()
                return all(set(each.stats().troubles) == {"queue", "registry"} for each in (one, two))

            await until(in_trouble)
            server.start()

            async def well() -> bool:
                await anyio.lowlevel.checkpoint()
                return not one.stats().troubles and not two.stats().troubles

            await until(well)
            registry = RedisRegistry(server.url)
            await one.push_room("live://1", TEXT, b"room")
            for client in (near, far):
                assert await bodies(client, 1) == [b"room"]

            async def known() -> bool:
                found = await two._publisher._sessions([1, 2])
                return [session.server for session in found] == ["one", "two"]

            await until(known)
            await registry.aclose()
            await two.push_mids([1, 2], TEXT, b"users")
            for client in (near, far):
                assert await bodies(client, 1) == [b"users"]
            assert near.state == far.state == "open"


PROGRAM = """
import anyio
from tests.test_redis_nodes import node

async def main(url):
    async with node(url, "doomed") as server:
        print(server.addresses["tcp"][0][1], flush=True)
        await anyio.sleep_forever()

anyio.run(main, __import__("sys").argv[1])
"""


@contextmanager
def doomed(url: str) -> Iterator[tuple[Any, int]]:
    """A node in a process of its own, and the port of its TCP door."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, url],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


async def test_a_node_that_is_killed_is_forgotten_with_its_users(url: str) -> None:
    with doomed(url) as (process, port):
        async with node(url, "one", storage=MemoryStorage()) as one:
            there = connect(
                f"tcp://127.0.0.1:{port}", mid=7, accepts=[TEXT], rooms=["live://1"], backoff=QUICK
            )
            async with there:
                await until(lambda: known(one, ["doomed"], 1))
                process.kill()
                began = anyio.current_time()
                await until(lambda: known(one, []))
                assert anyio.current_time() - began < ALIVE + 1
                await until(lambda: known(one, [], 0))
            # What is pushed meanwhile is stored, and the client gets it where it comes next.
            await one.push_mids([7], TEXT, b"stored")
            async with guest(one, 7) as client:
                assert await bodies(client, 1) == [b"stored"]


async def known(server: Server, servers: list[str], online: int | None = None) -> bool:
    """Whether ``server`` knows user 7 at these, and so many in the room and in all."""
    sessions = await server._publisher._sessions([7])
    counts = (server.online_rooms(["live://1"])["live://1"], server.online_total()[1])
    return [session.server for session in sessions] == servers and online in (None, sum(counts) / 2)
