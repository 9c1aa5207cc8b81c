"""Pushes to users' inboxes, and what clients of them read: numbered messages, each with its number as body."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlencode

import anyio

from tests.e2e.clients import PATIENCE, Client, World, frame, op_of, split

OP = 1000
ERROR, ACK, SYNC, JOIN, LEAVE, MEMBERS, WATCH, UNWATCH, PRESENCE, LAST_SEEN, REFRESH, EXPIRING = (
    18, *range(20, 36, 2), 36, 38, 40,
)  # fmt: skip
ACKS = [OP, ERROR, ACK, SYNC]
"""What a client of goim_core accepts. One of goim's accepts only ``[OP]``."""


def seq_of(data: bytes) -> int:
    return int.from_bytes(data[12:16], "big", signed=True)


def number(seq: int) -> bytes:
    """The frame of message ``seq``, which says its number."""
    return frame(OP, b"%d" % seq, seq=seq)


async def push(world: World, numbers: Iterable[int], *mids: int) -> None:
    """Push messages, which say their number, to user 1 or to ``mids``."""
    for seq in numbers:
        await world.server.push_mids(mids or [1], OP, b"%d" % seq)


async def reads(client: Client, numbers: Iterable[int]) -> None:
    """These messages have to come next."""
    for seq in numbers:
        assert await client.frame() == number(seq)


async def reads_on(world: World, client: Client, seq: int, mid: int = 1) -> None:
    """Nothing comes before message ``seq``, which is pushed now."""
    await push(world, [seq], mid)
    await reads(client, [seq])


async def ask(client: Client, op: int, body: bytes | str = b"", seq: int = 5) -> bytes:
    """Send a request, whose answer has to be next; the answer's body."""
    await client.send(frame(op, body.encode() if isinstance(body, str) else body, seq=seq, ver=3))
    answer = await client.frame()
    assert answer[:16] == frame(op + 1, answer[16:], seq=seq, ver=3)[:16], answer
    return answer[16:]


async def refused(client: Client, op: int, body: bytes | str = b"", seq: int = 5) -> tuple[int, str]:
    """Send a request, whose refusal has to be next; its code and message."""
    await client.send(frame(op, body.encode() if isinstance(body, str) else body, seq=seq, ver=3))
    return read_error(await client.frame(), op, seq)


async def turned_down(client: Client, op: int, body: bytes = b"") -> None:
    """Send a request whose refusal has to be next, to a client that does not accept errors: goim's empty reply."""
    await client.send(frame(op, body, seq=5, ver=3))
    assert await client.frame() == frame(op, seq=5, ver=3)


def read_error(answer: bytes, op: int, seq: int = 5) -> tuple[int, str]:
    assert answer[:16] == frame(ERROR, answer[16:], seq=seq, ver=3)[:16], answer
    error = json.loads(answer[16:])
    assert error.pop("op") == op
    return error.pop("code"), error.pop("message")


async def sync(client: Client, body: str) -> list[int]:
    """The numbers of the messages that SYNC gives, which have to say them."""
    frames = split(await ask(client, SYNC, body))
    for data in frames:
        assert data[:16] == frame(op_of(data), data[16:], seq_of(data))[:16]
        assert int(data[16:].split(b" ")[0]) == seq_of(data)
    return [seq_of(data) for data in frames]


async def post(world: World, mids: Iterable[int], body: bytes, key: str | None = None) -> dict[str, Any]:
    """``/goim/push/mids``, with an idempotency key; the answer, which has to have status 200."""
    address = world.server.addresses["http"][0]
    target = "/goim/push/mids?" + urlencode({"operation": OP, "mids": list(mids)}, doseq=True)
    headers = {} if key is None else {"Idempotency-Key": key}

    def request() -> dict[str, Any]:
        connection = http.client.HTTPConnection(str(address[0]), int(address[1]), timeout=PATIENCE)
        try:
            connection.request("POST", target, body, headers)
            response = connection.getresponse()
            assert response.status == 200
            answer = json.loads(response.read())
            assert isinstance(answer, dict)
            return answer
        finally:
            connection.close()

    return await anyio.to_thread.run_sync(request)
