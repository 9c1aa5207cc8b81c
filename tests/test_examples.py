"""The small examples: each runs as its reader would start it, and is talked to as a client would."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.abc import TaskStatus

from examples import custom_auth, hello, inside_asyncio
from goim_core import CloseCode, Disconnect, Frame, Op
from goim_core.client import Link as Client
from goim_core.client import connect_once as connect
from tests.e2e.processes import started

pytestmark = pytest.mark.anyio

PATIENCE = 20.0
ANY_PORT = "127.0.0.1:0"
ASYNCIO_ONLY = [("asyncio", {"use_uvloop": False})]


@asynccontextmanager
async def running(example: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    """An example in this program; the port that it says it is ready at."""

    async def run(*, task_status: TaskStatus[int]) -> None:
        def ready(word: str, address: tuple[str, int], *, flush: bool) -> None:
            assert (word, flush) == ("ready", True)
            task_status.started(address[1])

        monkeypatch.setattr(example, "print", ready, raising=False)
        main: Callable[[str], Awaitable[None]] = example.main
        await main(ANY_PORT)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            yield await tasks.start(run)
            tasks.cancel_scope.cancel()


async def take(client: Client, count: int) -> list[Frame]:
    return [await client.receive() for _ in range(count)]


async def to_the_end(client: Client) -> None:
    async for _ in client:
        pass


async def test_hello(monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        running(hello, monkeypatch) as port,
        connect("127.0.0.1", port, token=b"ann") as ann,
        connect("127.0.0.1", port, token=b"") as bob,
    ):
        assert await ann.receive() == await bob.receive() == Frame(1000, b"hello")


async def test_custom_auth(monkeypatch: pytest.MonkeyPatch) -> None:
    news = custom_auth.NEWS
    async with (
        running(custom_auth, monkeypatch) as port,
        connect("127.0.0.1", port, token=b"ann:violet") as ann,
    ):
        assert await ann.receive() == Frame(news, b"ann is here")
        async with connect("127.0.0.1", port, token=b"bob:orange") as bob:
            assert await bob.receive() == await ann.receive() == Frame(news, b"bob is here")
            await bob.send(Op.SEND_MSG, b"hello", 7)
            await bob.send(Op.SEND_MSG, b"", 8)
            echo, refusal = await take(bob, 2)
        assert echo == Frame(Op.SEND_MSG, b"bob: hello", 7)
        assert refusal == Frame(Op.ERROR, b'{"op":4,"code":400,"message":"say something"}', 8)
        assert await ann.receive() == Frame(news, b"bob has left")


@pytest.mark.parametrize(
    "token", [b"ann:orange", b"ann", b"carl:violet", b":", b"", b"\xff:\xff", b"ann:\xff"]
)
async def test_custom_auth_refuses(token: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(custom_auth, monkeypatch) as port:
        with pytest.raises(Disconnect, match="wrong name or password") as told:
            async with connect("127.0.0.1", port, token=token):
                pass
        assert told.value.code == CloseCode.AUTH_REFUSED


@pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY, indirect=True)
async def test_inside_asyncio(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(inside_asyncio, monkeypatch) as port, connect("127.0.0.1", port, token=b"") as client:
        first, second = await take(client, 2)
        assert (first.op, second.op) == (inside_asyncio.PRICE, inside_asyncio.PRICE)
        assert int(second.body) == int(first.body) + 1


@pytest.mark.skipif(sys.platform == "win32", reason="it has no SIGINT for another process")
@pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY, indirect=True)
@pytest.mark.parametrize(
    ("name", "token"), [("hello", b"ann"), ("custom_auth", b"ann:violet"), ("inside_asyncio", b"")]
)
async def test_each_is_a_program_that_ctrl_c_ends(name: str, token: bytes) -> None:
    with started(f"examples.{name}", ANY_PORT) as program:
        line = await anyio.to_thread.run_sync(program.line)
        assert line.startswith("ready ('127.0.0.1', ")
        port = int(line.removesuffix(")").rpartition(" ")[2])
        with anyio.fail_after(PATIENCE):
            async with connect("127.0.0.1", port, token=token) as client:
                assert (await client.receive()).op == 1000
                program.process.send_signal(signal.SIGINT)
                with pytest.raises(Disconnect, match="the server is stopping") as told:
                    await to_the_end(client)
        assert told.value.code == CloseCode.GOING_AWAY
        assert await anyio.to_thread.run_sync(program.ended) == (0, "", "")
