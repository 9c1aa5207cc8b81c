"""docs/protocol.md, held to the server: its bytes and answers are the server's, its tables are whole.

``wire tcp`` and ``wire ws`` blocks are replayed on a connection (``live``: after authentication;
``linger=1``: an option of the server); the curls of ``console`` blocks are made, and the answers compared.
"""

from __future__ import annotations

import argparse
import http.client
import re
import shlex
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.to_thread
import attrs
import pytest

from goim_core import (
    AuthHook,
    AuthRequest,
    CloseCode,
    ErrorCode,
    Op,
    OpenAuth,
    Options,
    RoomHook,
    Server,
    Session,
)
from goim_core.memory_storage import MemoryStorage
from goim_core.testing import ManualClock
from tests.e2e.clients import Client, World, frame, until
from tests.e2e.processes import PATIENCE
from tests.pages import TEXTS, Block, blocks, of


def octets(line: str) -> bytes:
    """The bytes that a line of a ``wire`` block stands for."""
    plain, caret, masked = line.partition(" ^ ")
    if caret:
        key = octets(plain)[-4:]
        return octets(plain) + bytes(byte ^ key[at % 4] for at, byte in enumerate(octets(masked)))
    match = re.fullmatch(r"([0-9a-f ]*)(?:'(.*)')?([0-9a-f ]*)", line)
    assert match is not None, f"not understood: {line!r}"
    return bytes.fromhex(match[1]) + (match[2] or "").encode() + bytes.fromhex(match[3])


def steps(block: Block) -> Iterator[tuple[str, str | bytes]]:
    """What happens: ``>`` and ``<`` with bytes, or ``end``, and ``*`` with words."""
    text = re.sub(r"\n {2}(?! )", "\n| ", block.text)
    for step in re.findall(r"^[<>*] .*\n(?:\| .*\n)*", text, re.MULTILINE):
        first, *more = step[2:].splitlines()
        if step[0] == "*" or first == "end":
            yield step[0], first
        else:
            # A mask runs on over the lines that follow.
            plain, caret, masked = first.partition(" ^ ")
            lines = [masked if caret else first, *(line[2:] for line in more)]
            data = b"".join(octets(line) for line in lines)
            yield step[0], octets(f"{plain} ^ {data.hex()}") if caret else data


TOKEN = b'{"mid":1,"key":"c1","room_id":"live://1000","platform":"web","accepts":[1000,18]}'
UPGRADE = (
    b"GET /sub HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


EXTENDED = b'{"mid":1,"room_id":"live://1000","device":"phone","accepts":[1000,18,20,22,24,26,28,30,32,34,36,38,40,42]}'


class ByTheSecond(AuthHook):
    """The token is a user and for how many seconds it holds."""

    def authenticate(self, request: AuthRequest) -> Session:
        mid, seconds = map(int, request.token.split())
        return Session(mid, expires=self.server.clock.time() + seconds, accepts=(38, 40))


class NoVip(RoomHook):
    def may_enter(self, session: Session, room_id: str) -> bool:
        return not room_id.startswith("vip://")


@attrs.frozen
class Replay:
    """A ``wire`` block, played against a server. ``over`` is when the server may stop."""

    block: Block
    server: Server
    clock: ManualClock
    over: anyio.Event

    async def run(self) -> None:
        world = World(self.server)
        try:
            client = Client(await world.dial(self.block.words[0]))
            if "live" in self.block.words:
                await self.login(client)
            elif len(self.block.words) > 1 and self.block.words[1] in ("stored", "expiring"):
                if "quiet" not in self.block.words and "stored" in self.block.words:
                    await self.server.push_mids([1], 1000, b"one")
                    await self.server.push_mids([1], 1000, b"two")
                await client.send(frame(7, b"1 60" if "expiring" in self.block.words else EXTENDED, 1))
                assert await client.read() == frame(8, b"", 1)
            for kind, what in steps(self.block):
                if isinstance(what, bytes):
                    assert kind in "<>"
                    if kind == ">":
                        await client.send_raw(what)
                    else:
                        assert await client.receive_exactly(len(what)) == what
                elif kind == "*":
                    await self.happens(world, what)
                else:
                    await client.ended()
        finally:
            world.close()
            self.clock.release()
            self.over.set()

    async def login(self, client: Client) -> None:
        auth, reply = frame(7, TOKEN, 1), frame(8, b"", 1)
        if self.block.words[0] == "ws":
            await client.send_raw(UPGRADE)
            while not client.buffer.endswith(b"\r\n\r\n"):
                client.buffer += await client.receive_raw()
            client.buffer = b""
            auth = octets(f"82{0x80 + len(auth):02x} 37fa213d ^ {auth.hex()}")
            reply = bytes((0x82, len(reply))) + reply
        await client.send_raw(auth)
        assert await client.receive_exactly(len(reply)) == reply

    async def happens(self, world: World, what: str) -> None:
        server = self.server
        if match := re.fullmatch(r"a push to (the room|the key|the user|all) ?(\S*), op (\d+): '(.*)'", what):
            await self.push(match[1], match[2], int(match[3]), match[4].encode())
        elif match := re.fullmatch(r"(\d+) seconds? pass(?:es)?", what):
            if server.options.linger:
                await self.clock.asleep(server.options.linger)
            # Past the tick of the wheel in which a deadline falls.
            self.clock.advance(float(match[1]) + 0.5)
        elif what == "another client authenticates with the key c1":
            await world.login("tcp", mid=2, key="c1")
        elif match := re.fullmatch(r"user (\d+) enters the room (\S+)", what):
            await world.login("tcp", mid=int(match[1]), room=match[2])
        elif what == "the server is stopped":
            self.over.set()
        else:
            assert what.startswith(("it is skipped", "the same with the mask")), f"not understood: {what}"

    async def push(self, whom: str, name: str, op: int, body: bytes) -> None:
        server = self.server
        if whom == "all":
            await server.push_all(op, body)
        elif whom == "the key":
            await server.push_keys([name], op, body)
        elif whom == "the user":
            await server.push_mids([int(name)], op, body)
        else:
            await server.push_room(name, op, body)
        queue: Any = server._queue
        await until(lambda: not queue._waiting if server.options.linger else not server.stats().pending)


@pytest.mark.anyio
@of(*blocks("wire"))
async def test_bytes(block: Block) -> None:
    given = (word.partition("=") for word in block.words)
    options = Options(**{name: float(value) for name, _, value in given if value})  # type: ignore[arg-type]
    clock, over = ManualClock(), anyio.Event()
    server = Server(
        auth=ByTheSecond() if "expiring" in block.words else OpenAuth(),
        rooms=NoVip(),
        storage=MemoryStorage() if "stored" in block.words else None,
        clock=clock,
        options=options,
        tcp="127.0.0.1:0",
        ws="127.0.0.1:0",
    )
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            async with server:
                tasks.start_soon(Replay(block, server, clock, over).run)
                await over.wait()


def curl(command: str, ports: dict[str, str]) -> str:
    """What ``curl`` prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-d", dest="body")
    parser.add_argument("-w", dest="write", default="")
    parser.add_argument("url")
    call = parser.parse_args(shlex.split(command)[1:])
    target = call.url.removeprefix("http://127.0.0.1:3111")
    connection = http.client.HTTPConnection("127.0.0.1", int(ports["3111"]), timeout=PATIENCE)
    try:
        body = None if call.body is None else call.body.encode()
        connection.request("GET" if body is None else "POST", target, body)
        answer = connection.getresponse()
        text = answer.read().decode()
    finally:
        connection.close()
    for shown, real in ports.items():
        text = text.replace(real, shown)
    return str(text + call.write.replace("%{http_code}", str(answer.status)))


@pytest.mark.anyio
@of(*(block for block in blocks("console") if block.page == "protocol.md"))
async def test_answers(block: Block) -> None:
    doors = {"3101": "tcp", "3102": "ws", "3111": "http"}
    addresses: dict[str, Any] = dict.fromkeys(doors.values(), "127.0.0.1:0")
    with anyio.fail_after(PATIENCE):
        async with Server(auth=OpenAuth(), name="n1", **addresses) as server:
            world = World(server)
            client = await world.tcp()
            await client.send(frame(7, TOKEN, 1))
            await client.read()
            ports = {port: str(server.addresses[door][0][1]) for port, door in doors.items()}
            for command, answer in re.findall(r"^\$ (.*)\n(.*)$", block.text, re.MULTILINE):
                assert await anyio.to_thread.run_sync(curl, command, ports) == answer
            world.close()


@pytest.mark.parametrize("codes", [CloseCode, ErrorCode])
def test_every_code_has_its_row(codes: type[CloseCode | ErrorCode]) -> None:
    rows = re.findall(r"^\| (\d{3,4}) \| (\w+) \|", TEXTS["protocol.md"], re.MULTILINE)
    assert {(int(code), name) for code, name in rows} >= {(code.value, code.name) for code in codes}


def test_every_operation_has_its_row() -> None:
    found = {}
    for numbers, names in re.findall(
        r"^\| (\d{1,2}(?:, \d+)?) \| ([A-Z_, ]+) \|", TEXTS["protocol.md"], re.MULTILINE
    ):
        found.update(zip(map(int, numbers.split(",")), names.split(", "), strict=True))
    assert found == {op.value: op.name for op in Op}
