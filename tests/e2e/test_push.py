"""Who gets a push: by key, user, room and to all, through Python and through goim's HTTP API."""

from __future__ import annotations

from urllib.parse import urlencode

import anyio
import pytest

from goim_core import Options, ServerStopped
from goim_core.testing import ManualClock
from tests.e2e.clients import Client, World, both, frame, serve

pytestmark = pytest.mark.anyio

door = pytest.mark.parametrize("through", ["python", "http"])


async def push(world: World, through: str, kind: str, body: bytes, op: int = 1000, **to: object) -> None:
    if through == "python":
        first = () if kind == "all" else (next(iter(to.values())),)
        await getattr(world.server, f"push_{kind}")(*first, op, body)
        return
    if kind == "room":
        to["type"], _, to["room"] = str(to.pop("room_id")).partition("://")
    target = f"/goim/push/{kind}?" + urlencode({"operation": op, **to}, doseq=True)
    assert await world.http("POST", target, body) == (200, {"code": 0, "message": ""})


async def got_nothing(world: World, *clients: Client) -> None:
    """Whatever was pushed to these would be read before the answer."""
    await world.sent()
    for client in clients:
        await client.beat()


@both
@door
async def test_keys(wire: str, through: str) -> None:
    async with serve() as world:
        a = await world.login(wire, mid=1, key="a", accepts=[1000])
        b = await world.login(wire, mid=1, key="b", accepts=[1000])
        c = await world.login(wire, mid=1, key="c", accepts=[1000])
        await push(world, through, "keys", b"x", keys=["a", "c", "nobody"])
        assert await a.frame() == await c.frame() == frame(1000, b"x")
        await got_nothing(world, a, b, c)


@both
@door
async def test_mids_reach_all_connections_of_a_user(wire: str, through: str) -> None:
    async with serve() as world:
        a = await world.login(wire, mid=1, accepts=[1000])
        b = await world.login(wire, mid=1, accepts=[1000])
        c = await world.login(wire, mid=2, accepts=[1000])
        await push(world, through, "mids", b"x", mids=[1, 99])
        assert await a.frame() == await b.frame() == frame(1000, b"x")
        await got_nothing(world, a, b, c)


@both
@door
async def test_room_ignores_accepts(wire: str, through: str) -> None:
    async with serve() as world:
        a = await world.login(wire, room="live://1", accepts=[1001])
        b = await world.login(wire, room="live://1")
        c = await world.login(wire, room="live://2", accepts=[1000])
        await push(world, through, "room", b"x", room_id="live://1")
        assert await a.frame() == await b.frame() == frame(1000, b"x")
        await got_nothing(world, a, b, c)


@both
@door
async def test_all_that_accept(wire: str, through: str) -> None:
    async with serve() as world:
        a = await world.login(wire, room="live://1", accepts=[1000, 1001])
        b = await world.login("tcp", mid=2, accepts=[1000])
        c = await world.login("ws", mid=3, accepts=[1001])
        await push(world, through, "all", b"x")
        assert await a.frame() == await b.frame() == frame(1000, b"x")
        await got_nothing(world, a, b, c)


@both
async def test_subscribe_and_unsubscribe(wire: str) -> None:
    async with serve() as world:
        client = await world.login(wire, key="k")
        await world.server.push_keys(["k"], 1000, b"0")
        await world.sent()
        await client.send(frame(14, b"1000,1001"))
        assert await client.read() == frame(15, b"1000,1001")
        await world.server.push_keys(["k"], 1000, b"1")
        await world.sent()
        await world.server.push_all(1001, b"2")
        assert await client.frame() == frame(1000, b"1")
        assert await client.frame() == frame(1001, b"2")
        await client.send(frame(16, b"1000"))
        assert await client.read() == frame(17, b"1000")
        await world.server.push_keys(["k"], 1000, b"3")
        await world.server.push_keys(["k"], 1001, b"4")
        assert await client.frame() == frame(1001, b"4")


@door
async def test_speed(through: str) -> None:
    clock = ManualClock()
    async with serve(clock=clock, options=Options(buckets=1)) as world:
        clients = [await world.login("tcp", mid=n, accepts=[1000]) for n in range(4)]
        if through == "python":
            await world.server.push_all(1000, b"x", speed=40)
        else:
            await world.http("POST", "/goim/push/all?operation=1000&speed=40", b"x")
        # 40 a second: two every 50 ms.
        assert await clients[0].frame() == await clients[1].frame() == frame(1000, b"x")
        await clock.asleep(0.05)
        for client in clients[2:]:
            await client.beat()  # it would be read before the answer
        await world.server.push_all(1000, b"at once")
        for client in clients:
            assert await client.frame() == frame(1000, b"at once")
        clock.advance(0.05)
        assert await clients[2].frame() == await clients[3].frame() == frame(1000, b"x")
        await clock.asleep(0.05)
        clock.advance(0.05)


@both
async def test_empty_bodies_are_pushed(wire: str) -> None:
    async with serve() as world:
        client = await world.login(wire, room="live://1")
        await push(world, "http", "room", b"", room_id="live://1")
        assert await client.frame() == frame(1000)


async def test_online() -> None:
    async with serve() as world:
        for room, wire in (("live://1", "tcp"), ("live://1", "ws"), ("live://2", "ws"), ("game://1", "tcp")):
            await world.login(wire, room=room)
        answers = [
            await world.http("GET", "/goim/online/total"),
            await world.http("GET", "/goim/online/room?type=live&rooms=1&rooms=2&rooms=3"),
            await world.http("GET", "/goim/online/top?type=live&limit=1"),
        ]
        assert [answer["data"] for _, answer in answers] == [
            {"ip_count": 1, "conn_count": 4},
            {"1": 2, "2": 1, "3": 0},
            [{"room_id": "1", "count": 2}],
        ]


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("keys?keys=a", "operation"),
        ("keys?operation=1000", "keys"),
        ("mids?operation=1000&mids=x", "mids"),
        ("room?operation=1000&type=live", "room"),
        ("room?operation=9&type=live&room=1", "operation"),
        ("all?operation=1000&speed=-1", "speed"),
    ],
)
async def test_a_bad_push_is_told_which_parameter(target: str, named: str) -> None:
    async with serve() as world:
        client = await world.login("tcp", key="a", room="live://1", accepts=[1000])
        status, answer = await world.http("POST", f"/goim/push/{target}", b"x")
        assert (status, answer["code"]) == (200, -400)
        assert answer["message"].startswith(named)
        await got_nothing(world, client)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda server: server.push_keys("abc", 1000, b""), "keys"),
        (lambda server: server.push_mids(["1"], 1000, b""), "mids"),
        (lambda server: server.push_room("lobby", 1000, b""), "room_id"),
        (lambda server: server.push_room("live://1", 9, b""), "op"),
        (lambda server: server.push_all(1000, "text"), "body"),
        (lambda server: server.push_all(1000, b"", speed=-1), "speed"),
    ],
)
async def test_a_bad_push_raises_with_the_arguments_name(call, named: str) -> None:
    async with serve() as world:
        with pytest.raises(ValueError, match=f"^{named}:"):
            await call(world.server)


@pytest.mark.parametrize(
    "push_to_nobody",
    [
        lambda server: server.push_keys(["nobody"], 1000, b"x"),
        lambda server: server.push_mids([404], 1000, b"x"),
    ],
    ids=["keys", "mids"],
)
async def test_pushes_to_nobody_let_others_run(push_to_nobody) -> None:
    """Who loops over users that are mostly offline may not hold up everyone else."""
    async with serve() as world, anyio.create_task_group() as others:
        ran = anyio.Event()

        async def other() -> None:
            ran.set()

        others.start_soon(other)
        for _ in range(3):  # trio takes those who are ready in any order, but each once in a round
            await push_to_nobody(world.server)
        assert ran.is_set()


async def test_pushing_outside_the_block() -> None:
    async with serve() as world:
        pass
    with pytest.raises(ServerStopped):
        await world.server.push_all(1000, b"x")
