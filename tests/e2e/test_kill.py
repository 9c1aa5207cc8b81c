"""Kill -9 of the server between any two steps of a push, 200 times at random.

Afterwards every message that the API accepted is in the inbox, once, in order, each with its number; and a
client that reconnected through all of it has seen each of them.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlencode

import anyio
import anyio.lowlevel
import pytest
from attrs import Factory, define

from tests.e2e.clients import Client, frame, op_of
from tests.e2e.doomed import STEPS
from tests.e2e.inboxes import ACK, ACKS, OP, seq_of
from tests.e2e.lives import GONE, Lives
from tests.postgres import HOW_TO_GET_ONE, PostgresServer, programs

pytestmark = pytest.mark.anyio

KILLS = 200
MIDS = {0: [1], 1: [1, 2], 2: [2, 1]}
"""To whom each pusher pushes."""
PATIENCE = 120.0
"""Seconds after which a test that waits has failed. Nothing in a test that passes waits for it."""


@pytest.fixture
def anyio_backend() -> str:
    """The clients' loop. The server that is killed is on asyncio; what a kill does is not the loop's affair."""
    return "asyncio"


@define
class Ledger:
    """What was pushed, by key, and what is known of it."""

    choose: random.Random
    accepted: dict[int, list[str]] = Factory(lambda: {pusher: [] for pusher in MIDS})
    """Of each pusher the keys to which the API said yes, in order."""
    given_up: set[str] = Factory(set)
    """No answer came, and it was not tried again: it may be there, or not."""
    open: dict[int, str] = Factory(dict)
    """Of each pusher the key to try again."""
    made: int = 0

    def next(self, pusher: int) -> str:
        """What to push next: mostly again what was not answered."""
        key = self.open.pop(pusher, "")
        if key and self.choose.random() < 0.2:
            self.given_up.add(key)
            key = ""
        if not key:
            self.made += 1
            key = f"{pusher}:{self.made}"
        self.open[pusher] = key
        return key

    def accept(self, pusher: int) -> None:
        self.accepted[pusher].append(self.open.pop(pusher))


@define
class Reader:
    """A client that acknowledges, on a device of its own, through all the lives of the server."""

    choose: random.Random
    seen: list[bytes] = Factory(list)
    """The bodies, by number."""
    acknowledged: int = 0
    """What the server said that it keeps."""

    async def read(self, lives: Lives) -> None:
        """Read until the server dies."""
        with suppress(*GONE):
            async with lives.dialed("tcp") as client:
                await self._read(client)

    async def _read(self, client: Client) -> None:
        await client.login(mid=1, device="phone", accepts=ACKS)
        before = None
        while True:
            data = await client.frame()
            if op_of(data) == ACK + 1:
                self.acknowledged = int(data[16:])
                continue
            seq, body = seq_of(data), data[16:]
            assert data == frame(OP, body, seq=seq)
            if before is None:
                assert self.acknowledged < seq <= len(self.seen) + 1
            else:
                assert seq == before + 1
            before = seq
            if seq <= len(self.seen):
                assert body == self.seen[seq - 1]  # a number is one message, for ever
            else:
                self.seen.append(body)
            if self.choose.random() < 0.3:
                await client.send(frame(ACK, b"%d" % seq))


async def post(client: Client, mids: list[int], key: str) -> None:
    """Push ``key`` under itself. Raises one of GONE when there is no answer."""
    query = urlencode({"operation": OP, "mids": mids}, doseq=True)
    head = f"POST /goim/push/mids?{query} HTTP/1.1\r\nHost: localhost\r\nIdempotency-Key: {key}\r\n"
    await client.send_raw(f"{head}Content-Length: {len(key)}\r\n\r\n{key}".encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += await client.receive_exactly(1)
    assert answer.startswith(b"HTTP/1.1 200 ")
    length = next(line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    assert json.loads(await client.receive_exactly(int(length[15:]))) == {"code": 0, "message": ""}


async def push(lives: Lives, ledger: Ledger, pusher: int) -> None:
    """Push until the server dies."""
    with suppress(*GONE):
        async with lives.dialed("http") as client:
            while True:
                await post(client, MIDS[pusher], ledger.next(pusher))
                ledger.accept(pusher)


async def life(lives: Lives, ledger: Ledger, reader: Reader, choose: random.Random) -> None:
    step, count = choose.choice([*STEPS, "", ""]), choose.randrange(1, 6)
    await lives.begin(step, count)
    async with anyio.create_task_group() as clients:
        clients.start_soon(reader.read, lives)
        for pusher in MIDS:
            clients.start_soon(push, lives, ledger, pusher)
        if not step:
            for _ in range(choose.randrange(200)):
                await anyio.lowlevel.checkpoint()
            lives.kill()
        await lives.ended()


async def inbox(lives: Lives, mid: int) -> list[str]:
    """Everything that a new device of the user gets, up to the message ``end``."""
    found: list[str] = []
    async with lives.dialed("tcp") as client:
        await client.login(mid=mid, device="new", accepts=ACKS)
        while found[-1:] != ["end"]:
            data = await client.frame()
            assert seq_of(data) == len(found) + 1  # each with its number, without a gap
            found.append(data[16:].decode())
    return found[:-1]


def check(found: list[str], ledger: Ledger, pushers: list[int]) -> None:
    known = set(found)
    assert len(known) == len(found)  # none twice
    for pusher in pushers:
        accepted = ledger.accepted[pusher]
        assert [key for key in accepted if key not in known] == []  # none lost
        asked = set(accepted)
        assert [key for key in found if key in asked] == accepted  # in order
        known -= asked
    assert known <= ledger.given_up  # and nothing else


async def survive(storage: str, seed: int) -> None:
    choose = random.Random(seed)
    ledger, reader, lives = Ledger(choose), Reader(choose), Lives(storage)
    try:
        with anyio.fail_after(PATIENCE):
            for _ in range(KILLS):
                await life(lives, ledger, reader, choose)
            await lives.begin()
            async with lives.dialed("http") as client:
                for pusher, key in list(ledger.open.items()):
                    await post(client, MIDS[pusher], key)
                    ledger.accept(pusher)
                await post(client, [1, 2], "end")
            found = await inbox(lives, 1)
            check(found, ledger, [0, 1, 2])
            check(await inbox(lives, 2), ledger, [1, 2])
            # Who reconnected all the time has seen the same.
            async with anyio.create_task_group() as clients:
                clients.start_soon(reader.read, lives)
                while reader.seen[-1:] != [b"end"]:
                    await anyio.lowlevel.checkpoint()
                lives.kill()
            assert [body.decode() for body in reader.seen[:-1]] == found
            assert sum(map(len, ledger.accepted.values())) > KILLS
    except BaseException:
        print(f"seed: {seed}")  # noqa: T201
        raise
    finally:
        lives.close()


@pytest.fixture
def seed() -> int:
    """Another one each time, printed with what fails; GOIM_SEED runs that one again."""
    return int(os.environ.get("GOIM_SEED") or random.SystemRandom().randrange(1 << 32))


async def test_sqlite_loses_nothing(tmp_path: Path, seed: int) -> None:
    await survive(str(tmp_path / "inbox.db"), seed)


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    found = programs()
    if found is None:
        pytest.skip(HOW_TO_GET_ONE)
    server = PostgresServer(found)
    yield server
    server.close()


async def test_postgres_loses_nothing(postgres: PostgresServer, seed: int) -> None:
    await survive(postgres.empty(), seed)
