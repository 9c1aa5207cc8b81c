"""Target: what an authenticated client may ask, against the whole server without sockets.

An input is a list of requests: which operation, how long the body is, the body. See :func:`requests`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from fuzz.loop import nothing_logged, run
from goim_core.errors import CloseCode
from goim_core.hooks import MessageHook
from goim_core.memory_storage import MemoryStorage
from goim_core.protocol import EXTENSION_OPS, Frame, Op
from goim_core.session import Session
from goim_core.testing import App, Client, running

__all__ = ["check", "seeds"]

OPS = (*(op for op in range(18) if op != Op.DISCONNECT_REPLY), *EXTENSION_OPS, 64, 1000, 2**31 - 1, -1)
"""All but the one whose echo tells the client that it is closed."""
MOST = 12
"""Requests of one input."""
STORED = 3
"""Messages that wait in the inbox."""
TOKEN = {"mid": 1, "key": "c1", "room_id": "live://1", "accepts": [1000, *EXTENSION_OPS]}


class _Echo(MessageHook):
    def receive(self, session: Session, frame: Frame) -> bytes:
        return frame.body


def requests(data: bytes) -> list[tuple[int, bytes]]:
    """Operation and body of each request."""
    found: list[tuple[int, bytes]] = []
    while data and len(found) < MOST:
        at = 2 + (data[1] if len(data) > 1 else 0)
        found.append((OPS[data[0] % len(OPS)], data[2:at]))
        data = data[at:]
    return found


def check(data: bytes) -> None:
    """Each request has one reply, of its own operation or an ERROR, and nothing is left of the client."""
    with nothing_logged():
        run(_check(data))


async def _check(data: bytes) -> None:
    wire = "ws" if data[:1] > b"\x7f" else "tcp"
    async with running(messages=_Echo(), storage=MemoryStorage()) as app:
        for number in range(STORED):
            await app.push_mids([1], 1000, str(number))
        client = await app.connect(TOKEN, wire)
        watcher = await app.connect({**TOKEN, "mid": 2, "key": "c2"})
        asked = requests(data)
        for seq, (op, body) in enumerate(asked, 1):
            await client.send(op, body, seq=-seq)
        await app.idle()
        if client.told is None:
            deaf = any(op == Op.UNSUB for op, _ in asked)
            for seq, (op, _) in enumerate(asked, 1):
                await _answered(client, op, -seq, deaf=deaf)
        else:
            # A token that does not fit the session is the one thing that ends it.
            assert client.told.code == CloseCode.AUTH_REFUSED, client.told
            assert any(op == Op.REFRESH for op, _ in asked)
        assert await watcher.heartbeat() >= 1
        await _gone(app, client, watcher)


async def _answered(client: Client, op: int, seq: int, *, deaf: bool) -> None:
    try:
        reply = await client.assert_reply(seq=seq)
    except AssertionError:
        # The refusal of a RAW, for a client that wants no ERROR, is a RAW in which there is nothing.
        if op == Op.RAW and deaf:
            return
        raise
    if reply.op == Op.ERROR and not (op == Op.ERROR and deaf):  # which is answered like any other then
        refusal = json.loads(reply.body)
        assert refusal["op"] == op
        assert 400 <= refusal["code"] < 500
        assert refusal["message"]
    else:
        # Unless it has taken ERROR out of what it accepts, a refusal is an ERROR.
        assert reply.op in (op, op + 1)


async def _gone(app: App, *clients: Client) -> None:
    for client in clients:
        client.close()
    await app.idle()
    stats = app.server.stats()
    assert (stats.connections, stats.users, stats.rooms) == (0, 0, 0)


def seeds() -> Iterator[bytes]:
    """Requests as clients make them."""
    for asked in (
        [(Op.HEARTBEAT, b""), (Op.SEND_MSG, b"hi"), (1000, b"hi"), (Op.HEARTBEAT, b"")],
        [(Op.CHANGE_ROOM, b"live://2"), (Op.CHANGE_ROOM, b""), (Op.HEARTBEAT, b"")],
        [(Op.SUB, b"1,2,2147483647"), (Op.UNSUB, b"1"), (Op.UNSUB, b"18"), (Op.ACK, b"x")],
        [(Op.ACK, b"2"), (Op.SYNC, b"0,10"), (Op.SYNC, b"1"), (Op.ACK, b"3")],
        [(Op.JOIN, b"live://2"), (Op.WATCH, b"live://2"), (Op.UNWATCH, b"live://2"), (Op.LEAVE, b"live://2")],
        [(Op.JOIN, b"live://2"), (Op.WATCH, b"live://1"), (Op.CHANGE_ROOM, b"live://2")],
        [(Op.MEMBERS, b'{"room_id":"live://1","offset":0,"limit":1}'), (Op.LAST_SEEN, b"[1]")],
        [(Op.LAST_SEEN, b"[1,2,-9223372036854775808]"), (Op.AUTH, b"{}"), (Op.RAW, b"")],
        [(Op.REFRESH, b'{"mid":1,"key":"c1"}'), (Op.REFRESH, b'{"mid":2}'), (Op.HEARTBEAT, b"")],
    ):
        yield b"".join(bytes((OPS.index(op), len(body))) + body for op, body in asked)
