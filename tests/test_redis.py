"""The registry in Redis, on a real one that the tests start."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, cast

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis
from redis.exceptions import ResponseError

from examples.cluster.processes import free_ports
from goim_core.adapters.redis import RedisRegistry
from goim_core.adapters.redis import registry as registry_module
from goim_core.adapters.redis.counts import goim_slots, sum_up
from goim_core.adapters.redis.registry import PAGE
from goim_core.adapters.redis.scripts import ADD, sha
from goim_core.errors import BackboneError, ConfigurationError
from goim_core.registry import Online, Registry
from goim_core.session import Session
from goim_core.testing.registry_contract import RegistryServer, SharedRegistryContract, at_work
from tests.redis import RedisServer, started_redis

pytestmark = pytest.mark.anyio

ALIVE = 0.6


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return ("asyncio", {"use_uvloop": request.param})


class Place(RegistryServer):
    alive = ALIVE

    def __init__(self, server: RedisServer) -> None:
        self.server = server

    def new_registry(self, **options: Any) -> Registry:
        return RedisRegistry(self.server.url, alive=self.alive, **options)

    async def lose_everything(self) -> None:
        self.server.ask("FLUSHALL")


class TestRedisRegistry(SharedRegistryContract):
    """What every registry does that nodes share."""

    @pytest.fixture(autouse=True)
    def _server(self, redis_server: RedisServer) -> None:
        self.redis = redis_server

    @asynccontextmanager
    async def server(self) -> AsyncIterator[RegistryServer]:
        self.redis.ask("FLUSHALL")
        yield Place(self.redis)


# goim's keys.


def session(key: str, mid: int = 7, server: str = "node-1", platform: str = "") -> Session:
    return Session(mid=mid, key=key, server=server, platform=platform)


@pytest.fixture
def url(redis_server: RedisServer) -> str:
    redis_server.ask("FLUSHALL")
    return redis_server.url


@pytest.fixture
def raw(redis_server: RedisServer, url: str) -> Iterator[Redis]:
    """What is in the server, in bytes."""
    with Redis(port=redis_server.port, socket_timeout=10) as client:
        yield client


async def until(is_so: Callable[[], Any], seconds: float = 10) -> None:
    with anyio.fail_after(seconds):
        while not (await anyio.to_thread.run_sync(is_so)):
            await anyio.lowlevel.checkpoint()


async def renewed(raw: Redis, *names: str) -> None:
    """All of these keys have got a new time to live."""
    ends = {name: raw.pexpiretime(name) for name in names}
    await until(lambda: all(raw.pexpiretime(name) > end for name, end in ends.items()))


async def found(registry: RedisRegistry, mid: int = 7) -> list[tuple[str, str]]:
    return [(each.key, each.server) for each in await registry.mids([mid])]


async def asked_until(registry: RedisRegistry, expected: list[tuple[str, str]], mid: int = 7) -> None:
    """Ask for the user's connections, whatever happens meanwhile, until they are these."""
    with anyio.fail_after(20):
        while True:
            try:
                if await found(registry, mid) == expected:
                    return
            except BackboneError:
                pass
            await anyio.lowlevel.checkpoint()


async def test_routes_are_written_as_goim_writes_them(url: str, raw: Redis) -> None:
    async with at_work(RedisRegistry(url)) as registry:
        await registry.add(session("a-1", 7, "comet-1"))
        await registry.add(session("\N{SNOWMAN}", -5, "comet-1", "web"))
        assert raw.hgetall("mid_7") == {b"a-1": b"comet-1"}
        assert raw.get("key_a-1") == b"comet-1"
        assert raw.hgetall("mid_-5") == {"\N{SNOWMAN}".encode(): b"comet-1"}
        assert raw.get("key_\N{SNOWMAN}") == b"comet-1"
        for key in ("mid_7", "key_a-1", "goim_registry:key:a-1"):
            assert 1790 < raw.ttl(key) <= 1800
    names = {str(key, "utf-8") for key in cast("list[bytes]", raw.keys("*"))}
    assert {name for name in names if not name.startswith("goim_registry:")} == set()


async def test_counts_are_written_as_goim_writes_them(url: str, raw: Redis) -> None:
    before = int(time.time())
    async with at_work(RedisRegistry(url), "comet-1") as registry:
        # The slots are those of CityHash32: 43, 19 and 32 of 64.
        await registry.report(Online({"live://1000": 3, "live://1": 1, "a://<&>": 2}, 4, 2))
        fields = raw.hgetall("ol_comet-1")
        (updated,) = {json.loads(value)["updated"] for value in fields.values()}
        assert before <= updated <= time.time()
        assert fields == {
            b"43": b'{"server":"comet-1","room_count":{"live://1000":3},"updated":%d}' % updated,
            b"19": b'{"server":"comet-1","room_count":{"live://1":1},"updated":%d}' % updated,
            b"32": b'{"server":"comet-1","room_count":{"a://\\u003c\\u0026\\u003e":2},"updated":%d}'
            % updated,
        }
        assert 1790 < raw.ttl("ol_comet-1") <= 1800
        await registry.report(Online({"live://1": 1}, 1, 1))
        assert set(raw.hgetall("ol_comet-1")) == {b"19"}


def test_rooms_of_one_slot_are_together_in_the_order_of_their_names() -> None:
    slots = goim_slots("n", {"live://91": 1, "live://1000": 2}, 5.9)
    assert slots == {"43": b'{"server":"n","room_count":{"live://1000":2,"live://91":1},"updated":5}'}


@given(st.dictionaries(st.text(min_size=1), st.integers(0, 2**31 - 1)), st.text())
def test_what_is_counted_is_what_was_told(rooms: dict[str, int], server: str) -> None:
    rooms = {room.encode(errors="replace").decode(): count for room, count in rooms.items()}
    slots = goim_slots(server, rooms, 1000.0)
    assert sum_up([[b"4", b"3", *slots.values()]], 1300.0) == Online(rooms, 4, 3)
    assert sum_up([[b"4", b"3", *slots.values()]], 1302.0) == Online({}, 4, 3)


@pytest.mark.parametrize(
    "slot", [b"", b"{", b"[]", b"7", b'{"updated":1}', b'{"updated":"x","room_count":{}}']
)
def test_counts_that_are_none_are_left_out(slot: bytes) -> None:
    assert sum_up([[b"x", b"2", slot]], 0.0) == Online({}, 0, 2)


async def test_what_a_go_process_registered_is_found_and_left_alone(url: str, raw: Redis) -> None:
    raw.hset("mid_7", "theirs", "go-1")
    raw.set("key_theirs", "go-1")
    raw.hset("mid_7", "stale", "go-1")
    async with at_work(RedisRegistry(url)) as registry:
        await registry.add(session("ours"))
        assert await found(registry) == [("theirs", "go-1"), ("ours", "node-1")]
        assert await registry.keys(["theirs", "ours"]) == {"go-1": ["theirs"], "node-1": ["ours"]}
        raw.hdel("mid_7", "theirs")
        raw.delete("key_theirs")
        assert await found(registry) == [("ours", "node-1")]
    assert raw.exists("mid_7")


async def test_a_key_that_a_go_process_took_over_is_its_own(url: str, raw: Redis) -> None:
    async with at_work(RedisRegistry(url, expire=1, alive=0.3)) as registry:
        replaced: set[Session] = set()
        registry.on_replaced = replaced.add
        ours = session("a")
        await registry.add(ours)
        raw.hset("mid_7", "a", "go-1")
        raw.set("key_a", "go-1")
        assert await found(registry) == [("a", "go-1")]
        await until(lambda: replaced == {ours})
        assert not await registry.remove(ours)
        assert not registry._replaced
        assert raw.get("key_a") == b"go-1"
        assert raw.hget("mid_7", "a") == b"go-1"


# Time.


async def test_routes_are_renewed_for_as_long_as_the_connection_is_here(url: str, raw: Redis) -> None:
    async with at_work(RedisRegistry(url, expire=1, alive=0.3)) as registry:
        await registry.add(session("a"))
        names = ("mid_7", "key_a", "goim_registry:key:a", f"goim_registry:held:{registry._boot}")
        for _ in range(3):
            await renewed(raw, *names)
        assert await found(registry) == [("a", "node-1")]


async def test_routes_of_a_node_that_died_are_removed_by_the_others(url: str, raw: Redis) -> None:
    many = 2 * PAGE + 10
    async with at_work(RedisRegistry(url, alive=0.3), "node-1"):
        dead = RedisRegistry(url, alive=0.3)
        await dead.start("node-2")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(dead.run)
            for number in range(many):
                await dead.add(session(f"a-{number}", number % 9, "node-2"))
            await dead.report(Online({"live://1": 1}, 1, 1))
            assert raw.exists("ol_node-2")
            tasks.cancel_scope.cancel()
        await dead._connection.aclose()
        await until(lambda: not raw.keys("key_*") and not raw.exists("ol_node-2"))
        assert [key for key in raw.keys("*") if not key.startswith(b"goim_registry:")] == []
        assert raw.hvals("goim_registry:nodes") == [b"node-1"]


async def test_a_node_that_was_silent_for_too_long_comes_back(url: str, raw: Redis) -> None:
    async with at_work(RedisRegistry(url, alive=0.3), "node-1") as one:
        silent = RedisRegistry(url, alive=0.3)
        await silent.start("node-2")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(silent._pipeline.run)
            await silent.add(session("a", server="node-2"))
            await until(lambda: not raw.exists("key_a"))
            assert await found(one) == []
            tasks.start_soon(silent._keep)
            await asked_until(one, [("a", "node-2")])
            tasks.cancel_scope.cancel()
        await silent.aclose()


# Two nodes with one key, or one name.


async def test_the_older_of_two_with_one_key_is_told(url: str) -> None:
    async with (
        at_work(RedisRegistry(url, alive=0.3), "node-1") as one,
        at_work(RedisRegistry(url, alive=0.3), "node-2") as two,
    ):
        told: set[Session] = set()
        one.on_replaced = told.add
        two.on_replaced = told.add
        first, second, third = (session("a", 7, f"node-{number}") for number in (1, 2, 1))
        await one.add(first)
        await two.add(second)
        await one.add(third)  # back before it was told: the newest is not to be closed
        await until(lambda: told)
        assert told == {second}  # the first was replaced on its own node, which knows
        assert await found(two) == [("a", "node-1")]
        assert not await one.remove(first)
        assert await one.remove(third)


async def test_after_all_was_lost_the_newer_of_two_with_one_key_has_it(
    url: str, redis_server: RedisServer
) -> None:
    async with (
        at_work(RedisRegistry(url, alive=0.3), "node-1") as one,
        at_work(RedisRegistry(url, alive=0.3), "node-2") as two,
    ):
        told: set[Session] = set()
        one.on_replaced = told.add
        two.on_replaced = told.add
        first, second = session("a", 7, "node-1"), session("a", 7, "node-2")
        await one.add(first)
        redis_server.ask("FLUSHALL")
        await two.add(second)
        await until(lambda: told == {first})
        await asked_until(one, [("a", "node-2")])


async def test_a_node_that_nobody_told_finds_out_when_it_renews(url: str, raw: Redis) -> None:
    async with (
        at_work(RedisRegistry(url, expire=1, alive=0.3), "node-1") as one,
        at_work(RedisRegistry(url, expire=1, alive=0.3), "node-2") as two,
    ):
        told: set[Session] = set()
        one.on_replaced = told.add
        two.on_replaced = told.add
        first, second = session("a", 7, "node-1"), session("a", 7, "node-2")
        await one.add(first)
        boot, one._boot = one._boot, "0"  # so that it hears of nothing
        await two.add(second)
        raw.delete(f"goim_registry:replaced:{boot}")
        one._boot = boot
        await until(lambda: told)
        assert told == {first}
        assert await found(one) == [("a", "node-2")]


async def test_a_name_that_two_nodes_have_is_trouble_for_the_older(
    url: str, raw: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async with at_work(RedisRegistry(url, alive=0.3), "node-1") as one:
        await one.add(session("a"))
        async with at_work(RedisRegistry(url, alive=0.3), "node-1") as two:
            await two.add(session("b"))
            assert await found(two) == [("b", "node-1")]
            await until(lambda: one.trouble)
            assert "another process has started as node 'node-1'" in one.trouble
            for _ in range(3):
                await renewed(raw, "goim_registry:node:node-1")
                assert raw.hget("goim_registry:node:node-1", "boot") == two._boot.encode()
                assert not two.trouble
        await until(lambda: not one.trouble)
        await asked_until(one, [("a", "node-1")])
    assert [record.levelname for record in caplog.records].count("ERROR") == 1


# Faults.


@contextmanager
def pretender(answer: bytes) -> Iterator[int]:
    """The port of something that is no Redis: says ``answer`` to whoever connects, or nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)
        import threading

        held = []

        def serve() -> None:
            try:
                while True:
                    peer, _ = listening.accept()
                    held.append(peer)
                    peer.sendall(answer)
            except OSError:
                return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
            for peer in held:
                peer.close()


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1", "http://127.0.0.1", "redis://:secret@h:port", "redis://h?protocol=3", None, 7]
)
def test_a_url_that_is_none_is_refused_and_not_shown(url: Any) -> None:
    with pytest.raises(ConfigurationError, match="^url: expected") as caught:
        RedisRegistry(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [{"expire": 0}, {"expire": 1.5}, {"alive": 0}, {"alive": "30"}, {"timeout": -1}, {"timeout": True}],
)
def test_an_option_that_cannot_be_is_named(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigurationError, match=f"^{name}: expected"):
        RedisRegistry(**options)


async def start(url: str, **options: Any) -> str:
    registry = RedisRegistry(url, timeout=0.5, **options)
    with pytest.raises(BackboneError) as caught:
        await registry.start("node-1")
    await registry.aclose()
    assert "secret" not in str(caught.value)
    return str(caught.value)


async def test_a_server_that_is_not_there() -> None:
    [port] = free_ports(1)
    said = await start(f"redis://:secret@127.0.0.1:{port}")
    assert said.startswith(f"Redis at 127.0.0.1:{port}: cannot connect, check url: ")
    assert said.endswith(": nothing was sent")


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n", b"INFO {}\r\n"])
async def test_a_server_that_is_no_redis(answer: bytes) -> None:
    with pretender(answer) as port:
        assert f"Redis at 127.0.0.1:{port}: what answers there is not Redis: check url" in await start(
            f"redis://:secret@127.0.0.1:{port}"
        )


async def test_a_server_that_says_nothing() -> None:
    with pretender(b"") as port:
        assert "no answer within 0.5 s" in await start(f"redis://127.0.0.1:{port}")


async def test_a_password_that_is_wrong_or_missing() -> None:
    async with started_redis("--requirepass", "right") as server:
        for password in ("", ":secret@", "user:secret@"):
            said = await start(f"redis://{password}127.0.0.1:{server.port}")
            assert "it refused the credentials of url" in said
        async with at_work(RedisRegistry(f"redis://:right@127.0.0.1:{server.port}")) as registry:
            await registry.add(session("a"))
            assert await found(registry) == [("a", "node-1")]


async def test_a_key_of_another_type_in_the_way(
    url: str, raw: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    raw.set("mid_8", "text")
    async with at_work(RedisRegistry(url, expire=1, alive=0.3)) as registry:
        await registry.add(session("a"))
        in_the_way = session("b", 8)
        with pytest.raises(BackboneError, match="^Redis refused: mid_8: WRONGTYPE"):
            await registry.add(in_the_way)
        with pytest.raises(BackboneError, match="mid_8: WRONGTYPE"):
            await registry.mids([7, 8])
        assert not await registry.remove(in_the_way)
        assert await found(registry) == [("a", "node-1")]
        assert not registry.trouble  # the others go on
        raw.delete("mid_7")
        raw.set("mid_7", "text")
        await until(lambda: any("the route of key 'a' is not renewed" in text for text in caplog.messages))
        raw.delete("mid_7")
        await asked_until(registry, [("a", "node-1")])


async def test_scripts_that_somebody_flushed_are_loaded_again(url: str, raw: Redis) -> None:
    async with at_work(RedisRegistry(url)) as registry:
        raw.script_flush()
        await registry.add(session("a"))
        raw.script_flush()
        assert await found(registry) == [("a", "node-1")]


async def test_text_that_is_no_unicode_disturbs_nobody(url: str) -> None:
    async with at_work(RedisRegistry(url)) as registry:
        await registry.add(session("a", platform="\ud800"))
        await registry.add(session("b"))
        assert [each.platform for each in await registry.mids([7])] == ["?", ""]


async def test_many_users_are_asked_for_in_pages(url: str) -> None:
    async with at_work(RedisRegistry(url)) as registry:
        sessions = [session(f"a-{number}", number) for number in range(3 * PAGE)]
        async with anyio.create_task_group() as tasks:
            for each in sessions:
                tasks.start_soon(registry.add, each)
        assert [each.mid for each in await registry.mids(range(3 * PAGE))] == list(range(3 * PAGE))
        routes = await registry.keys(each.key for each in sessions)
        assert sorted(routes["node-1"]) == sorted(each.key for each in sessions)


async def test_a_user_with_many_connections_has_them_in_order(url: str) -> None:
    """So many that Redis does not keep them in the order of their coming."""
    keys = [f"key-{number}" for number in range(300)]
    async with at_work(RedisRegistry(url)) as registry:
        for key in keys:
            await registry.add(session(key))
        assert [key for key, _ in await found(registry)] == keys


async def test_routes_that_were_lost_are_back_with_the_connection(url: str, raw: Redis) -> None:
    """As after a restart with what Redis had on its disk a second before."""
    async with at_work(RedisRegistry(url, alive=0.6)) as registry:
        await registry.add(session("a"))
        await registry.add(session("b"))
        raw.delete("key_a", "mid_7", "goim_registry:key:a")
        raw.client_kill_filter(_type="normal", skipme=True)
        await asked_until(registry, [("a", "node-1"), ("b", "node-1")])


async def test_a_server_without_memory_refuses_new_routes_and_keeps_the_others(
    url: str, raw: Redis, redis_server: RedisServer
) -> None:
    async with at_work(RedisRegistry(url, expire=1, alive=0.3)) as registry:
        await registry.add(session("a"))
        raw.config_set("maxmemory", 1)
        try:
            with pytest.raises(BackboneError, match="OOM"):
                await registry.add(session("b"))
            for _ in range(3):
                await renewed(raw, "key_a")
            assert await found(registry) == [("a", "node-1")]
        finally:
            raw.config_set("maxmemory", 0)
        await registry.add(session("b"))
        assert await found(registry) == [("a", "node-1"), ("b", "node-1")]


@pytest.mark.parametrize("disk", [False, True], ids=["empty", "with its data"])
async def test_a_server_that_was_killed_and_started_again(
    disk: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    options = ("--appendonly", "yes", "--appendfsync", "always") if disk else ()
    async with started_redis(*options) as server:
        async with at_work(RedisRegistry(server.url, alive=0.6)) as registry:
            stays, leaves = session("a"), session("b")
            await registry.add(stays)
            await registry.add(leaves)
            server.kill()
            with anyio.fail_after(5), pytest.raises(BackboneError):
                await registry.mids([7])
            with anyio.fail_after(5), pytest.raises(BackboneError):
                await registry.add(session("in vain"))
            assert await registry.remove(leaves)  # when it is back
            assert f"Redis at 127.0.0.1:{server.port}" in registry.trouble
            server.start()
            await asked_until(registry, [("a", "node-1")])
            await until(lambda: not registry.trouble)
            await until(lambda: server.ask("EXISTS", "key_b", "goim_registry:key:b") == 0)
            assert await registry.remove(stays)
    ours = [text for name, _, text in caplog.record_tuples if name == "goim_core.adapters.redis.registry"]
    assert len([text for text in ours if "works again" in text]) == 1
    assert len(ours) == 2


async def test_a_server_that_is_paused(caplog: pytest.LogCaptureFixture) -> None:
    async with started_redis() as server:
        async with at_work(RedisRegistry(server.url, alive=0.6, timeout=0.3)) as registry:
            stays, late, leaves = session("a"), session("b"), session("c")
            await registry.add(stays)
            await registry.add(leaves)
            with server.paused():
                began = time.monotonic()
                for _ in range(3):
                    with pytest.raises(BackboneError, match="no answer within 0.3 s"):
                        await registry.mids([7])
                with pytest.raises(BackboneError):
                    await registry.add(late)
                assert await registry.remove(leaves)
                assert time.monotonic() - began < 5 * 0.3 + 2
                assert registry.trouble
            # What Redis got and did not answer comes to nothing.
            await asked_until(registry, [("a", "node-1")])
            await until(lambda: not registry.trouble and not registry._forgotten)
            assert await found(registry) == [("a", "node-1")]
            assert await registry.remove(stays)


async def test_what_is_to_be_removed_later_is_bounded(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "FORGOTTEN", 10)
    async with started_redis() as server:
        async with at_work(RedisRegistry(server.url, timeout=0.2)) as registry:
            held = [session(f"key-{number}", number) for number in range(20)]
            for each in held:
                await registry.add(each)
            server.kill()
            with pytest.raises(BackboneError):
                await registry.mids([7])
            for number in range(5):  # nothing was sent: there is nothing to remove
                with pytest.raises(BackboneError, match="nothing was sent"):
                    await registry.add(session(f"new-{number}"))
            assert not registry._forgotten
            for each in held:
                assert await registry.remove(each)
            assert [route.session for route in registry._forgotten] == held[10:]
            server.start()
            await until(lambda: not registry._forgotten)


async def test_a_node_that_ends_while_its_server_is_away_ends_at_once(url: str) -> None:
    async with started_redis() as server:
        registry = RedisRegistry(server.url, timeout=0.3)
        with anyio.fail_after(5):
            async with at_work(registry):
                await registry.add(session("a"))
                server.kill()
            with pytest.raises(BackboneError, match="closed"):
                await registry.mids([7])
        server.start()


async def test_a_question_that_is_cancelled_disturbs_no_other(url: str) -> None:
    async with at_work(RedisRegistry(url)) as registry:
        for number in range(50):
            with anyio.move_on_after(0.0002 * number):
                await registry.add(session(f"a-{number}", number))
                assert await found(registry, number) == [(f"a-{number}", "node-1")]
        await until(lambda: not registry._forgotten)
        held = {route.session.key for route in registry._routes.values()}
        assert {each.key for each in await registry.mids(range(50))} == held


async def test_what_an_old_connection_still_had_in_its_pipe_is_void(url: str, raw: Redis) -> None:
    async with at_work(RedisRegistry(url)) as registry:
        late = (sha(ADD), 0, registry._boot, "node-1", registry._connection.opened, 1800)
        raw.client_kill_filter(_type="normal", skipme=True)
        await until(lambda: raw.hget("goim_registry:node:node-1", "epoch") == b"2")
        with pytest.raises(ResponseError, match="^STALE"):
            raw.evalsha(*late, "a", f"{registry._boot}.99", "7", "", "node-1", "")
        assert not raw.exists("key_a")


def test_on_trio_it_says_what_it_needs() -> None:
    with pytest.raises(ConfigurationError, match="^RedisRegistry needs asyncio: run on asyncio or uvloop$"):
        anyio.run(RedisRegistry().start, "node-1", backend="trio")
