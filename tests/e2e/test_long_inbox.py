"""An inbox of 100,000 messages, read at connect: the server's memory stays flat, and others do not notice."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from time import perf_counter

import anyio
import pytest

from goim_core.adapters.sqlite import SQLiteStorage
from tests.e2e.clients import Client, frame
from tests.e2e.inboxes import ACK, ACKS, OP, ask, seq_of
from tests.e2e.lives import Lives

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="another process's memory is read from /proc"),
]

MESSAGES = 100_000
BODY = 200
ACK_EVERY = 10_000
PATIENCE = 120.0
MEMORY = 8 << 20
"""How much the server may grow, in bytes: much less than the 21 MB that the inbox has on the wire."""
LATENCY = 1.0
"""How long any heartbeat of others may take, in seconds: generous, for machines that do other things."""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The server is a process on asyncio; the clients' loop is no part of what is measured."""
    return "asyncio"


@pytest.fixture(scope="module")
async def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("long") / "inbox.db"
    storage = SQLiteStorage(path, keep=MESSAGES)

    async def fill(part: int) -> None:
        for _ in range(part):
            await storage.append([1], OP, bytes(BODY))

    await storage.start()
    async with anyio.create_task_group() as tasks:
        for _ in range(1000):
            tasks.start_soon(fill, MESSAGES // 1000)
    await storage.aclose()
    return str(path)


class Figures:
    """What the server's memory was, and how long heartbeats took."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self.before = self.most = self._memory()
        self.beats: list[float] = []

    def look(self) -> None:
        self.most = max(self.most, self._memory())

    async def beat(self, client: Client) -> None:
        begin = perf_counter()
        await client.beat()
        self.beats.append(perf_counter() - begin)

    def _memory(self) -> int:
        lines = self._status.read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS:"))

    def __str__(self) -> str:
        beats = sorted(self.beats)
        return (
            f"memory {self.before >> 10} KB + {(self.most - self.before) >> 10} KB, {len(beats)} heartbeats: "
            f"median {median(beats) * 1e3:.2f} ms, 99 % {beats[len(beats) * 99 // 100] * 1e3:.2f} ms, "
            f"most {beats[-1] * 1e3:.1f} ms"
        )


@asynccontextmanager
async def watched(file: str) -> AsyncIterator[tuple[Lives, Client, Figures]]:
    """A server of its own, a client of another user, and what is measured."""
    lives = Lives(file, MESSAGES)
    try:
        with anyio.fail_after(PATIENCE):
            await lives.begin()
            async with lives.dialed("tcp") as other, lives.dialed("tcp") as warm:
                await warm.login(mid=3, accepts=ACKS)
                await ask(warm, ACK, b"0")
                await other.login(mid=2, accepts=ACKS)
                figures = Figures(lives.pid)
                yield lives, other, figures
                print(figures)  # noqa: T201
                assert len(figures.beats) > 100
                assert figures.most - figures.before < MEMORY
                assert max(figures.beats) < LATENCY
    finally:
        lives.close()


async def read_all(client: Client) -> AsyncIterator[int]:
    """Every message of the inbox, in order."""
    body = bytes(BODY)
    for seq in range(1, MESSAGES + 1):
        data = await client.receive_exactly(16 + BODY)
        assert data == frame(OP, body, seq=seq), seq_of(data)
        yield seq


async def test_over_a_slow_client(file: str) -> None:
    """It reads a little, then others' heartbeats are answered, then it reads a little more."""
    async with watched(file) as (lives, other, figures), lives.dialed("tcp", 4096) as client:
        await client.login(mid=1, device="slow", accepts=ACKS)
        async for seq in read_all(client):
            if seq % 100 == 0:
                for _ in range(4):
                    await figures.beat(other)
                figures.look()
        assert await ask(client, ACK, b"%d" % MESSAGES) == b"%d" % MESSAGES


async def test_over_a_client_that_is_as_fast_as_it_can(file: str) -> None:
    async with watched(file) as (lives, other, figures), lives.dialed("tcp") as client:

        async def beats() -> None:
            while True:
                await figures.beat(other)

        async with anyio.create_task_group() as beating:
            await client.login(mid=1, device="fast", accepts=ACKS)
            beating.start_soon(beats)
            async for seq in read_all(client):
                if seq % 1000 == 0:
                    figures.look()
            beating.cancel_scope.cancel()


async def test_over_a_client_that_does_not_read(file: str) -> None:
    """Each costs the server a page, however long the inbox is."""
    async with watched(file) as (lives, other, figures), anyio.create_task_group() as clients:
        told = anyio.Event()

        async def stuck(device: str) -> None:
            async with lives.dialed("tcp", 4096) as client:
                await client.login(mid=1, device=device, accepts=ACKS)
                await told.wait()

        for n in range(4):
            clients.start_soon(stuck, f"stuck {n}")
        for _ in range(2000):
            await figures.beat(other)
            figures.look()
        told.set()
