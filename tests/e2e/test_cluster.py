"""Three nodes in three processes with real servers between them, and what becomes of them in each fault."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from examples.cluster.cluster import Cluster, Node
from goim_core import CloseCode, Disconnect
from goim_core.client import Backoff, Client, connect
from tests.e2e.node import ALIVE, CENSUS, TIMEOUT
from tests.e2e.processes import started

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform == "win32", reason="it has no SIGSTOP"),
    pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": False})], indirect=True),
]

PATIENCE = 30.0
"""Seconds after which a test that waits has failed. Nothing in a test that passes waits for it."""
ROOM = "live://1"
OP = 1000
ROOM_PUSH = "push/room?operation=1000&type=live&room=1"
FORGOTTEN = ALIVE + 2 * CENSUS + 2 * TIMEOUT
"""Seconds within which no node knows of the users of one that has died."""
SOON = Backoff(first=0.05, base=0.1, factor=1, jitter=0)


@asynccontextmanager
async def cluster_of(queue: str = "nats", backend: str = "asyncio") -> AsyncIterator[Cluster]:
    cluster = Cluster(queue, ("tests.e2e.node", backend))
    await anyio.to_thread.run_sync(cluster.__enter__)
    try:
        with anyio.fail_after(PATIENCE):
            yield cluster
    except BaseException:
        for node in cluster.nodes:
            print(f"--- {node.name}\n{node.log.read_text()}")  # noqa: T201
        raise
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(cluster.close)


async def call(node: Node, method: str, path: str, body: bytes | None = None, **headers: str) -> Any:
    """The JSON that a node's HTTP door answers."""

    def exchange() -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=PATIENCE)
        try:
            connection.request(
                method, path, body, {name.replace("_", "-"): text for name, text in headers.items()}
            )
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    return await anyio.to_thread.run_sync(exchange)


async def push(node: Node, path: str, body: str, **headers: str) -> tuple[int, str]:
    """What the pusher is told: code and message."""
    answer = await call(node, "POST", f"/goim/{path}", body.encode(), **headers)
    return answer["code"], answer["message"]


async def push_surely(node: Node, path: str, body: str, **headers: str) -> int:
    """Push until it is accepted; how often it was not."""
    failed = 0
    while (answer := await push(node, path, body, **headers)) != (0, ""):
        assert answer[0] == -500, answer
        failed += 1
    return failed


async def troubles(node: Node) -> dict[str, str]:
    found: dict[str, str] = (await call(node, "GET", "/stats"))["troubles"]
    return found


async def until(holds: Callable[..., Awaitable[bool]], *arguments: Any) -> None:
    """Another process has no event for us: it is asked until it says so."""
    while not await holds(*arguments):  # noqa: ASYNC110
        await anyio.sleep(0.05)


async def in_trouble(cluster: Cluster, part: str) -> None:
    """Each node says in its figures what is wrong."""
    for node in cluster.nodes:
        await until(_has_trouble, node, part)


async def _has_trouble(node: Node, part: str) -> bool:
    return part in await troubles(node)


async def well_again(cluster: Cluster) -> None:
    """Each node says that nothing is wrong, in its figures and in its log."""
    for node in cluster.nodes:
        await until(_is_well, node)
        assert "works again" in node.said(), node.name


async def _is_well(node: Node) -> bool:
    return not await troubles(node)


async def total(node: Node) -> int:
    """How many connections a node says that all nodes have."""
    found: int = (await call(node, "GET", "/goim/online/total"))["data"]["conn_count"]
    return found


async def counted(node: Node, count: int) -> None:
    await until(_counts, node, count)


async def _counts(node: Node, count: int) -> bool:
    return await total(node) == count


@asynccontextmanager
async def one_on_each(cluster: Cluster, **settings: Any) -> AsyncIterator[list[Client]]:
    """A client of each node, all in one room; users 1, 2, 3."""
    async with AsyncExitStack() as clients:
        yield [
            await clients.enter_async_context(
                connect(node.tcp, mid=mid, room_id=ROOM, accepts=[OP], backoff=SOON, **settings)
            )
            for mid, node in enumerate(cluster.nodes, 1)
        ]


async def heard(client: Client, last: str) -> list[str]:
    """What a client gets up to the message ``last``."""
    found = [(await client.receive()).text]
    while found[-1] != last:
        found.append((await client.receive()).text)
    return found


def in_order(found: list[str], accepted: list[str]) -> None:
    """All of ``accepted`` came, in order; again only what came before (at least once), or was in doubt."""
    first = list(dict.fromkeys(found))
    assert [text for text in first if text in set(accepted)] == accepted


# All is well.


@pytest.mark.parametrize(
    ("queue", "backend"),
    [("nats", "asyncio"), ("redis", "asyncio"), ("kafka", "asyncio"), ("nats", "uvloop")],
)
async def test_a_room_is_one_on_all_nodes(queue: str, backend: str) -> None:
    async with cluster_of(queue, backend) as cluster, one_on_each(cluster) as clients:
        sent = [str(number) for number in range(20)]
        for text in sent:
            assert await push(cluster.nodes[1], ROOM_PUSH, text) == (0, "")
        for client in clients:
            assert await heard(client, sent[-1]) == sent
        assert await push(cluster.nodes[2], "push/all?operation=1000", "to all") == (0, "")
        for client in clients:
            assert (await client.receive()).text == "to all"
        with anyio.fail_after(2 * CENSUS + TIMEOUT):
            for node in cluster.nodes:
                await counted(node, 3)
        # Counts are of all nodes, names of this one.
        page = await clients[0].members(ROOM, limit=1)
        assert (page.mids, page.online, page.next) == ((1,), 3, None)


@pytest.mark.parametrize("queue", ["nats", "redis", "kafka"])
async def test_keys_and_users_reach_only_the_nodes_that_hold_them(queue: str) -> None:
    async with cluster_of(queue) as cluster, one_on_each(cluster) as (one, two, three):
        nodes = cluster.nodes
        async with connect(nodes[1].tcp, mid=1, key="phone", accepts=[OP]) as phone:
            assert await push(nodes[2], "push/mids?operation=1000&mids=1", "to one") == (0, "")
            for client in (one, phone):
                message = await client.receive()
                assert (message.text, message.seq) == ("to one", 1)
            before = [(await call(node, "GET", "/stats"))["deliveries"] for node in nodes]
            assert await push(nodes[0], "push/keys?operation=1000&keys=phone", "to the phone") == (0, "")
            assert (await phone.receive()).text == "to the phone"
            after = [(await call(node, "GET", "/stats"))["deliveries"] for node in nodes]
            assert [new - old for new, old in zip(after, before, strict=True)] == [0, 1, 0]
        await push(nodes[0], ROOM_PUSH, "end")
        for client in (one, two, three):
            assert await heard(client, "end") == ["end"]


# Nodes.


async def test_clients_of_a_killed_node_move_and_miss_nothing_stored() -> None:
    async with cluster_of() as cluster:
        await anyio.to_thread.run_sync(cluster.meet)
        accepted: list[str] = []

        async def keep_pushing(node: Node) -> None:
            for number in range(100_000):
                text = f"message {number}"
                await push_surely(node, "push/mids?operation=1000&mids=7", text, Idempotency_Key=text)
                accepted.append(text)

        # It is given its node by the list of nodes, which it asks at one of them.
        options: Any = {"doors": ["tcp"], "backoff": SOON, "connect_timeout": 2.0}
        async with connect(cluster.nodes[0].page, mid=7, device="phone", accepts=[OP], **options) as client:
            used = [(await call(node, "GET", "/stats"))["users"] for node in cluster.nodes]
            victim = cluster.nodes[used.index(1)]
            pusher = cluster.nodes[used.index(0)]
            async with anyio.create_task_group() as tasks, connect(victim.tcp, mid=9, backoff=None):
                await counted(pusher, 2)
                tasks.start_soon(keep_pushing, pusher)
                found = [await client.receive() for _ in range(10)]
                victim.kill()
                with anyio.fail_after(FORGOTTEN):
                    await counted(pusher, 1)  # the one that has moved
                tasks.cancel_scope.cancel()
            while found[-1].text != accepted[-1]:
                found.append(await client.receive())
            assert [message.seq for message in found] == list(range(1, len(found) + 1))
            assert [message.text for message in found] == accepted[: len(found)]
        assert victim.ended == -signal.SIGKILL
        # It keeps its name, its place in the queue and its clients' inboxes.
        victim.start()
        await anyio.to_thread.run_sync(victim.wait)
        async with connect(victim.tcp, mid=7, device="phone", accepts=[OP]) as client:
            assert await push(pusher, "push/mids?operation=1000&mids=7", "hello again") == (0, "")
            assert (await heard(client, "hello again"))[-1] == "hello again"


async def test_a_node_that_was_cut_off_comes_back() -> None:
    async with cluster_of() as cluster, one_on_each(cluster) as clients:
        asleep, other = cluster.nodes[0], cluster.nodes[1]
        await counted(other, 3)
        asleep.freeze()
        with anyio.fail_after(FORGOTTEN):
            await counted(other, 2)  # its user is forgotten
        sent = [f"while away {number}" for number in range(5)]
        for text in sent:
            assert await push(other, ROOM_PUSH, text) == (0, "")
        assert await push(other, "push/mids?operation=1000&mids=1", "stored") == (0, "")
        asleep.thaw()
        await counted(other, 3)
        assert await push(other, "push/mids?operation=1000&mids=1", "again") == (0, "")
        got = await heard(clients[0], "again")
        assert [text for text in got if text in sent] == sent
        assert "stored" in got
        await until(_is_well, asleep)


async def test_two_nodes_claim_one_key() -> None:
    async with cluster_of() as cluster:
        nodes = cluster.nodes
        options: Any = {"mid": 1, "key": "one", "accepts": [OP]}
        async with connect(nodes[0].tcp, **options) as older, connect(nodes[1].tcp, **options) as newer:
            assert await push(nodes[2], "push/keys?operation=1000&keys=one", "hello") == (0, "")
            assert (await newer.receive()).text == "hello"
            with pytest.raises(Disconnect) as told:
                await older.receive()
            assert told.value.code == CloseCode.REPLACED
            assert await push(nodes[2], "push/keys?operation=1000&keys=one", "still") == (0, "")
            assert (await newer.receive()).text == "still"


# The queue's server.


async def outage(
    cluster: Cluster, clients: list[Client], down: Callable[[], Any], up: Callable[[], Any]
) -> None:
    """The queue's server goes and comes back, while a program pushes to the room all the time."""
    node = cluster.nodes[0]
    await push_surely(node, ROOM_PUSH, "before")
    for client in clients:
        await heard(client, "before")
    down()
    with anyio.fail_after(2 * TIMEOUT + 1):
        code, why = await push(node, ROOM_PUSH, "in doubt")
    assert code == -500
    assert re.search("may|not", why), why
    await in_trouble(cluster, "queue")
    with anyio.fail_after(2 * TIMEOUT + 1):
        assert (await push(node, ROOM_PUSH, "in doubt"))[0] == -500
    await anyio.to_thread.run_sync(up)
    accepted = []
    for number in range(20):
        accepted.append(f"after {number}")
        await push_surely(cluster.nodes[number % 2], ROOM_PUSH, accepted[-1])
    for client in clients:
        in_order(await heard(client, accepted[-1]), accepted)
        assert client.state == "open"
    await well_again(cluster)


@pytest.mark.parametrize("queue", ["nats", "kafka"])
async def test_the_queues_server_is_killed_and_started(queue: str) -> None:
    async with cluster_of(queue) as cluster, one_on_each(cluster) as clients:

        def up() -> None:
            cluster.queue.start()
            cluster.queue.wait()

        await outage(cluster, clients, cluster.queue.kill, up)
        assert (await clients[0].last_seen([1]))[1].online


async def test_what_was_accepted_outlives_the_queues_server() -> None:
    async with cluster_of() as cluster, one_on_each(cluster) as clients:
        away = cluster.nodes[2]
        away.freeze()
        sent = [f"accepted {number}" for number in range(5)]
        for text in sent:
            assert await push(cluster.nodes[0], ROOM_PUSH, text) == (0, "")
        cluster.queue.kill()
        cluster.queue.start()
        await anyio.to_thread.run_sync(cluster.queue.wait)
        away.thaw()
        for client in clients:
            in_order(await heard(client, sent[-1]), sent)


@pytest.mark.parametrize("queue", ["nats", "kafka"])
async def test_the_queues_server_is_paused(queue: str) -> None:
    async with cluster_of(queue) as cluster, one_on_each(cluster) as clients:
        await outage(cluster, clients, cluster.queue.freeze, cluster.queue.thaw)


# The registry's server.


@pytest.mark.parametrize("forgets", [False, True])
async def test_the_registrys_server_is_killed_and_started(forgets: bool) -> None:
    async with cluster_of() as cluster, one_on_each(cluster) as clients:
        node = cluster.nodes[0]
        cluster.registry.kill()
        if forgets:
            shutil.rmtree(cluster.folder / "redis" / "appendonlydir")
        await in_trouble(cluster, "registry")
        # Rooms need no registry; who it is for cannot be found, but it is stored.
        assert await push(node, ROOM_PUSH, "to the room") == (0, "")
        for client in clients:
            assert (await client.receive()).text == "to the room"
        with anyio.fail_after(2 * TIMEOUT + 1):
            code, why = await push(node, "push/mids?operation=1000&mids=3", "stored", Idempotency_Key="one")
        assert code == -500
        assert "Redis" in why
        with pytest.raises(Disconnect) as told:
            async with connect(node.tcp, mid=4, accepts=[OP], backoff=None):
                pass
        assert told.value.code == CloseCode.INTERNAL_ERROR
        cluster.registry.start()
        await anyio.to_thread.run_sync(cluster.registry.wait)
        await well_again(cluster)
        await push_surely(node, "push/mids?operation=1000&mids=3", "stored", Idempotency_Key="one")
        message = await clients[2].receive()
        assert (message.text, message.seq) == ("stored", 1)
        assert [client.state for client in clients] == ["open"] * 3
        for each in cluster.nodes:
            await counted(each, 3)
            assert each.said().count("counts of other nodes are not fresh") <= 1  # said once


async def test_the_registrys_server_is_paused() -> None:
    async with cluster_of() as cluster, one_on_each(cluster) as clients:
        node = cluster.nodes[0]
        cluster.registry.freeze()
        with anyio.fail_after(2 * TIMEOUT + 1):
            assert (await push(node, "push/keys?operation=1000&keys=any", "lost"))[0] == -500
        await in_trouble(cluster, "registry")
        assert await push(node, ROOM_PUSH, "to the room") == (0, "")
        for client in clients:
            assert (await client.receive()).text == "to the room"
        cluster.registry.thaw()
        await well_again(cluster)
        assert await push(node, "push/mids?operation=1000&mids=2", "again") == (0, "")
        assert (await clients[1].receive()).text == "again"


# The example.


@pytest.mark.parametrize("options", [(), ("--kafka",)], ids=["nats", "kafka"])
async def test_the_example_says_what_happens_and_leaves_nothing(options: tuple[str, ...]) -> None:
    with started("examples.cluster", *options) as program:
        lines = [await anyio.to_thread.run_sync(program.line)]
        while not lines[-1].startswith("ready: open "):
            assert lines[-1], await anyio.to_thread.run_sync(program.ended)
            lines.append(await anyio.to_thread.run_sync(program.line))
        pages = re.findall(r"http://127\.0\.0\.1:\d+/", lines[-1])
        assert len(pages) == 3
        processes = {
            name: int(pid)
            for name, pid in re.findall(r"^(\S+): process (\d+)", "\n".join(lines), re.MULTILINE)
        }
        folder = Path(lines[0].rpartition("log ")[2]).parent
        token = {"accepts": [1000], "room_id": "chat://lobby"}
        async with AsyncExitStack() as clients:
            guests = [
                await clients.enter_async_context(
                    connect(page, token={**token, "mid": mid, "name": f"guest {mid}"}, doors=["ws"])
                )
                for mid, page in enumerate(pages)
            ]
            with anyio.fail_after(PATIENCE):
                await guests[0].send(1000, json.dumps({"text": "hello"}))
                for guest in guests:
                    while (await guest.receive()).op != 1000:
                        pass
        os.kill(processes["node-2"], signal.SIGKILL)
        assert (await anyio.to_thread.run_sync(program.line)).startswith("node-2 is gone (signal 9)")
        assert await anyio.to_thread.run_sync(program.stop, signal.SIGINT) == (0, "", "")
        assert not folder.exists()
        for pid in processes.values():
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
