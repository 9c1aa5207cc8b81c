"""RedisDiscovery against a real server, which the tests start, kill and pause."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from attrs import evolve

from goim_core.adapters.redis import RedisDiscovery
from goim_core.discovery import Node
from goim_core.errors import BackboneError, ConfigurationError
from goim_core.testing.discovery_contract import DiscoveryContract, New, joined, until
from tests.redis import RedisServer, started_redis

pytestmark = pytest.mark.anyio

NODE = Node("n1", host="n1.example.org", addrs={"ws": "10.0.0.1:3102"})
ASYNCIO: list[Any] = [
    pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
    pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
]
TRIO = pytest.param(("trio", {}), id="trio")


@pytest.fixture(params=ASYNCIO)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


class TestRedisDiscovery(DiscoveryContract):
    @pytest.fixture(autouse=True)
    def _shared(self, redis: RedisServer) -> None:
        redis.ask("FLUSHALL")
        self.redis = redis

    @asynccontextmanager
    async def cluster(self) -> AsyncIterator[New]:
        yield lambda: RedisDiscovery(self.redis.url, refresh=0.02)


def hurried(server: RedisServer, **options: Any) -> RedisDiscovery:
    return RedisDiscovery(server.url, **{"refresh": 0.02, "timeout": 0.3, **options})


async def test_a_node_that_dies_is_forgotten_with_its_name(redis: RedisServer) -> None:
    redis.ask("FLUSHALL")
    async with joined(hurried(redis), NODE) as first:
        async with joined(hurried(redis, alive=0.2), Node("n2")) as second:
            await until(lambda: first.names == ["n1", "n2"])
            second.run.cancel()
            await until(lambda: first.names == ["n1"])
        assert redis.ask("SMEMBERS", "goim_core:nodes") in ({"n1"}, ["n1"])
        assert 29_000 < redis.ask("PTTL", "goim_core:node:n1") <= 30_000


async def test_a_server_that_lost_its_memory_learns_all_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "goim_core.adapters.redis.discovery")
    async with started_redis() as server:
        async with joined(hurried(server), NODE) as first, joined(hurried(server), Node("n2")) as second:
            await until(lambda: len(first.names) == 2)
            server.kill()
            await until(lambda: first.discovery.trouble and second.discovery.trouble)
            assert "Redis at 127.0.0.1" in first.discovery.trouble
            with pytest.raises(BackboneError, match="url"):
                await first.discovery.update()
            assert first.names == ["n1", "n2"], "what was known stays"
            first.node = evolve(NODE, connections=5)
            server.start()
            await until(lambda: second.names == ["n1", "n2"] and second.knows("n1").connections == 5)
            await until(lambda: not first.discovery.trouble and not second.discovery.trouble)
    said = [record.message for record in caplog.records if "Redis at" in record.message]
    assert len(said) == 4, said  # each when it began, and when it was over


async def test_a_server_that_is_paused() -> None:
    async with started_redis() as server, joined(hurried(server), NODE) as member:
        with server.paused():
            await until(lambda: member.discovery.trouble)
            with anyio.fail_after(5):
                await member.discovery.cancel()
        await until(lambda: not member.discovery.trouble)


async def test_a_node_that_makes_no_sense_is_left_out(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    redis.ask("FLUSHALL")
    for name, value in (
        ("a", "{"),
        ("b", "[]"),
        ("c", '{"hostname":"c","metadata":{"weight":"x"}}'),
        ("d", "[" * 9999),
    ):
        redis.ask("SADD", "goim_core:nodes", name)
        redis.ask("SET", f"goim_core:node:{name}", value)
    async with joined(hurried(redis), NODE) as member:
        await until(lambda: len([r for r in caplog.records if "left out" in r.message]) == 4)
        before = member.knows("n1").updated
        await until(lambda: member.knows("n1").updated != before)
        assert member.names == ["n1"]
    assert len([record for record in caplog.records if "left out" in record.message]) == 4


async def test_keys_that_are_something_else(redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    redis.ask("FLUSHALL")
    async with joined(hurried(redis), NODE) as member:
        redis.ask("DEL", "goim_core:nodes")
        redis.ask("SET", "goim_core:nodes", "mine")
        await until(lambda: "not fresh: Redis refused: WRONGTYPE" in member.discovery.trouble)
        assert member.names == ["n1"]
        other = RedisDiscovery(redis.url)
        with pytest.raises(BackboneError, match="url: Redis refused: WRONGTYPE"):
            await other.start(lambda: NODE)
        await other.aclose()
        redis.ask("DEL", "goim_core:nodes")
        await until(lambda: not member.discovery.trouble)
    assert len([record for record in caplog.records if "WRONGTYPE" in record.message]) == 2, (
        "each says it once"
    )


async def test_nobody_there() -> None:
    discovery = RedisDiscovery("redis://127.0.0.1:1")
    with pytest.raises(BackboneError, match=r"Redis at 127\.0\.0\.1:1: .*url"):
        await discovery.start(lambda: NODE)
    await discovery.aclose()


@pytest.mark.parametrize("anyio_backend", [TRIO], indirect=True)
async def test_on_trio_it_says_what_it_needs(anyio_backend: Any) -> None:
    with pytest.raises(ConfigurationError, match="^RedisDiscovery needs asyncio: run on asyncio or uvloop$"):
        await RedisDiscovery().start(lambda: NODE)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"url": "http://127.0.0.1"}, "url"),
        ({"alive": 0}, "alive"),
        ({"refresh": 0}, "refresh"),
        ({"refresh": 16}, "refresh"),
        ({"timeout": -1}, "timeout"),
    ],
)
def test_arguments_that_cannot_be_used(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{named}: "):
        RedisDiscovery(**wrong)
