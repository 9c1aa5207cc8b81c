"""The queue, the registry and the discovery over TLS: a real Redis behind a door that ends it, as many put one."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from goim_core import OpenAuth, Server
from goim_core.adapters.redis import RedisDiscovery, RedisQueue, RedisRegistry
from goim_core.client import connect_once
from goim_core.errors import BackboneError
from tests.conftest import BACKENDS
from tests.redis import RedisServer
from tests.tls import Authority

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[each for each in BACKENDS if each.id != "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """redis-py knows asyncio alone."""
    return request.param


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@asynccontextmanager
async def tls_door(server: RedisServer, authority: Authority) -> AsyncIterator[int]:
    """A port of localhost that speaks TLS, and leads to ``server``."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority.issue())

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", server.port)
        with suppress(asyncio.CancelledError):
            await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))

    door = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield door.sockets[0].getsockname()[1]
    finally:
        door.close()


async def test_a_server_has_all_three_over_tls(redis_server: RedisServer, authority: Authority) -> None:
    async with tls_door(redis_server, authority) as port:
        url = f"rediss://localhost:{port}?ssl_ca_certs={authority.file}"
        parts: Any = {
            "queue": RedisQueue(url),
            "registry": RedisRegistry(url),
            "discovery": RedisDiscovery(url),
        }
        async with (
            Server(auth=OpenAuth(), tcp="127.0.0.1:0", host="127.0.0.1", name="over-tls", **parts) as server,
            connect_once(
                f"tcp://127.0.0.1:{server.port('tcp')}", mid=7, room_id="live://1", accepts=[1000]
            ) as link,
        ):
            await server.push_room("live://1", 1000, b"to the room")
            await server.push_mids([7], 1000, b"to the user")
            assert [(await link.receive()).body for _ in range(2)] == [b"to the room", b"to the user"]
            assert redis_server.ask("HKEYS", "mid_7")
            assert not server.stats().troubles
            assert [node.name for node in parts["discovery"].nodes()] == ["over-tls"]


async def test_a_certificate_of_another_authority_is_said(redis_server: RedisServer, tmp_path: Path) -> None:
    ours, others = Authority(tmp_path, "ours"), Authority(tmp_path, "others")
    async with tls_door(redis_server, ours) as port:
        queue = RedisQueue(f"rediss://localhost:{port}?ssl_ca_certs={others.file}")
        with anyio.fail_after(10), pytest.raises(BackboneError, match="certificate verify failed"):
            await queue.start("node")
        await queue.aclose()


async def test_a_url_without_tls_for_a_door_with_it_is_said(
    redis_server: RedisServer, authority: Authority
) -> None:
    async with tls_door(redis_server, authority) as port:
        queue = RedisQueue(f"redis://localhost:{port}", timeout=1)
        with anyio.fail_after(10), pytest.raises(BackboneError, match="url"):
            await queue.start("node")
        await queue.aclose()
