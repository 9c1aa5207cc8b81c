"""The example chat's hooks, over TCP: who may come in, what may be said, and who hears of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from examples.chat.app import COUNT, MAX_TEXT, TEXT, chat_server
from goim_core import CloseCode, Disconnect, Frame, Op, Server
from goim_core.client import Link as Client
from goim_core.client import connect_once as connect

pytestmark = pytest.mark.anyio

HALL, ATTIC = "chat://hall", "chat://attic"
PATIENCE = 20.0
"""Seconds after which a test that waits has failed. Nothing in a test that passes waits for it."""


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    with anyio.fail_after(PATIENCE):
        async with chat_server(tcp="127.0.0.1:0") as running:
            yield running


class Guest:
    """A client of the chat."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.seq = 0

    async def send(self, op: int, body: bytes) -> int:
        self.seq += 1
        await self.client.send(op, body, self.seq)
        return self.seq

    async def say(self, text: object, **more: object) -> int:
        return await self.send(TEXT, json.dumps({"text": text, **more}).encode())

    async def move(self, room_id: str) -> None:
        await self.send(Op.CHANGE_ROOM, room_id.encode())

    async def take(self, op: int) -> Frame:
        """The next frame with ``op``, whatever comes before it."""
        async for frame in self.client:
            if frame.op == op:
                return frame
        raise AssertionError("the connection ended")

    async def push(self, op: int) -> Any:
        """The next push of ``op``, read as JSON."""
        while (frame := await self.take(op)).seq:
            pass  # the reply to what this guest said has the same op
        return json.loads(frame.body)

    async def online(self) -> int:
        return int((await self.push(COUNT))["online"])

    async def heard(self) -> tuple[str, str]:
        message = await self.push(TEXT)
        return message["name"], message["text"]

    async def refused(self, seq: int) -> tuple[int, str]:
        """Why the frame ``seq`` was refused: the code and the reason."""
        frame = await self.take(Op.ERROR)
        assert frame.seq == seq
        body = json.loads(frame.body)
        return body["code"], body["message"]


@asynccontextmanager
async def guest(server: Server, name: object, mid: int = 1, room_id: str = HALL) -> AsyncIterator[Guest]:
    token = {"mid": mid, "name": name, "room_id": room_id, "accepts": [TEXT, COUNT, Op.ERROR]}
    [address] = server.addresses["tcp"]
    async with connect(*address, token=json.dumps(token).encode()) as client:
        yield Guest(client)


@pytest.mark.parametrize("name", ["", "  \t", "x" * 41, 7, None, ["Ada"]])
async def test_a_name_that_is_refused(name: object, server: Server) -> None:
    with pytest.raises(Disconnect) as told:
        async with guest(server, name):
            pytest.fail("let in")
    assert told.value.reason == "name: expected 1 to 40 characters"
    assert told.value.code == CloseCode.AUTH_REFUSED


async def test_a_name_that_is_taken_as_it_is_meant(server: Server) -> None:
    async with guest(server, "  Zo\u00eb \n") as zoe:
        await zoe.say("hi")
        assert await zoe.heard() == ("Zo\u00eb", "hi")


async def test_everyone_in_the_room_hears_what_is_said(server: Server) -> None:
    async with guest(server, "Ada", 1) as ada, guest(server, "Grace", 2) as grace:
        seq = await ada.say("  <b>hello</b> \n", room_id=HALL)
        assert (await ada.take(TEXT)).seq in (0, seq)
        message = await grace.push(TEXT)
        assert sorted(message) == ["at", "id", "mid", "name", "text"]
        assert (message["mid"], message["name"], message["text"]) == (1, "Ada", "<b>hello</b>")
        assert isinstance(message["id"], str)
        assert isinstance(message["at"], int)


async def test_no_one_in_another_room_hears_it(server: Server) -> None:
    async with guest(server, "Ada", 1) as ada, guest(server, "Grace", 2, ATTIC) as grace:
        await ada.say("to the hall")
        assert await ada.heard() == ("Ada", "to the hall")
        await grace.say("to the attic")
        assert await grace.heard() == ("Grace", "to the attic")


async def test_messages_have_one_order_for_everyone(server: Server) -> None:
    async with guest(server, "Ada", 1) as ada, guest(server, "Grace", 2) as grace:
        for number in range(50):
            await ada.say(f"a{number}")
            await grace.say(f"g{number}")
        heard = [await ada.push(TEXT) for _ in range(100)]
        assert [await grace.push(TEXT) for _ in range(100)] == heard
    for mid, letter in ((1, "a"), (2, "g")):
        said = [message["text"] for message in heard if message["mid"] == mid]
        assert said == [f"{letter}{number}" for number in range(50)]
    assert len({message["id"] for message in heard}) == 100


SHAPE = 'expected {"room_id": "...", "text": "..."}'
LENGTH = f"text: expected 1 to {MAX_TEXT} characters"


@pytest.mark.parametrize(
    ("op", "body", "reason"),
    [
        (TEXT, b"hello", (400, SHAPE)),
        (TEXT, b"\xff", (400, SHAPE)),
        (TEXT, b"", (400, SHAPE)),
        (TEXT, b"[]", (400, SHAPE)),
        (TEXT, b"{}", (400, SHAPE)),
        (TEXT, b'{"text":7}', (400, SHAPE)),
        (TEXT, b'{"text":["a"]}', (400, SHAPE)),
        (TEXT, b'{"text":""}', (400, LENGTH)),
        (TEXT, b'{"text":" \\n "}', (400, LENGTH)),
        (TEXT, b'{"text":"%s"}' % (b"x" * (MAX_TEXT + 1)), (400, LENGTH)),
        (TEXT, b'{"text":"a","room_id":"chat://attic"}', (409, "you have left the room that this was for")),
        (TEXT + 5, b'{"text":"a"}', (400, "only text, and only in a room")),
    ],
)  # fmt: skip
async def test_a_text_that_is_refused(op: int, body: bytes, reason: tuple[int, str], server: Server) -> None:
    async with guest(server, "Ada", 1) as ada, guest(server, "Grace", 2) as grace:
        assert await ada.refused(await ada.send(op, body)) == reason
        await ada.say("x" * MAX_TEXT)
        assert await grace.heard() == ("Ada", "x" * MAX_TEXT)


async def test_nothing_can_be_said_outside_of_a_room(server: Server) -> None:
    async with guest(server, "Ada", room_id="") as ada:
        assert await ada.refused(await ada.say("hello")) == (400, "only text, and only in a room")
        await ada.move(HALL)
        await ada.say("hello")
        assert await ada.heard() == ("Ada", "hello")


async def test_a_room_hears_who_comes_and_goes(server: Server) -> None:
    async with guest(server, "Ada", 1) as ada:
        assert await ada.online() == 1
        async with guest(server, "Grace", 2) as grace:
            assert [await ada.online(), await grace.online()] == [2, 2]
        assert await ada.online() == 1


async def test_both_rooms_hear_of_a_move(server: Server) -> None:
    async with guest(server, "Ada", 1) as ada, guest(server, "Linus", 3, ATTIC) as linus:
        assert [await ada.online(), await linus.online()] == [1, 1]
        async with guest(server, "Grace", 2) as grace:
            assert [await ada.online(), await grace.online()] == [2, 2]
            await grace.move(ATTIC)
            assert [await ada.online(), await linus.online(), await grace.online()] == [1, 2, 2]
            await grace.move("")
            assert await linus.online() == 1
            await grace.move(HALL)
            assert [await ada.online(), await grace.online()] == [2, 2]
        assert await ada.online() == 1
        await linus.say("still one of us here")
        assert await linus.heard() == ("Linus", "still one of us here")


async def test_counts_are_right_when_a_client_moves_and_leaves_at_once(server: Server) -> None:
    async with guest(server, "Ada", 1) as ada, guest(server, "Linus", 3, ATTIC) as linus:
        assert [await ada.online(), await linus.online()] == [1, 1]
        async with guest(server, "Grace", 2) as grace:
            assert await ada.online() == 2
            await grace.move(ATTIC)
        assert await ada.online() == 1
        entered, left = await linus.online(), await linus.online()
        # She may be gone before the room hears that she has come; what it hears last is right.
        assert (entered in (1, 2), left) == (True, 1)
        async with guest(server, "Grace", 2) as grace:
            assert [await ada.online(), await grace.online()] == [2, 2]


async def test_a_heartbeat_tells_no_one(server: Server) -> None:
    async with guest(server, "Ada", 1) as ada:
        assert await ada.online() == 1
        await ada.send(Op.HEARTBEAT, b"")
        assert (await ada.take(Op.HEARTBEAT_REPLY)).body == bytes((0, 0, 0, 1))
        await ada.say("x")
        async for frame in ada.client:
            assert frame.op == TEXT
            if not frame.seq:
                break
