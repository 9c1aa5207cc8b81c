"""The messenger's business, tested on the real pipeline without a socket; and once with sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import define

from examples.messenger.app import opened
from examples.messenger.directory import Directory
from examples.messenger.hooks import REMOVED, Message
from examples.messenger.login import ACCEPTS, Login
from examples.messenger.talk import Login as LogIn
from examples.messenger.talk import Talk
from goim_core import CloseCode, Op, Request, Server
from goim_core.auth import SignedTokenAuth
from goim_core.client import connect
from goim_core.testing import App, Client, running

pytestmark = pytest.mark.anyio

VIOLET, ORANGE, GREEN = 1, 2, 3
NAMES = {VIOLET: "Violet", ORANGE: "Orange", GREEN: "Green"}


@define
class Messenger:
    """The messenger under test, with three people in its directory."""

    app: App
    auth: SignedTokenAuth
    directory: Directory

    async def connect(self, mid: int, device: str = "phone") -> Client:
        token = self.auth.sign(
            mid=mid,
            expires=self.app.clock.time() + 3600,
            key=f"{mid}/{device}",
            device=device,
            accepts=ACCEPTS,
            data=NAMES[mid],
        )
        return await self.app.connect(token)

    async def room(self, owner: int, *members: int) -> str:
        room = await self.directory.create("garden", owner)
        for mid in members:
            assert await self.directory.invite(room, mid)
        return room


@asynccontextmanager
async def messenger(folder: Path) -> AsyncIterator[Messenger]:
    with opened(folder) as parts:
        directory = parts["rooms"]._directory  # noqa: SLF001
        for mid, name in NAMES.items():
            assert await directory.find(name) in (None, mid)
            await directory.add(name)
        async with running(**parts) as app:
            yield Messenger(app, parts["auth"], directory)


async def ask(client: Client, op: int, **body: Any) -> Any:
    """Send a request; its answer."""
    reply = await client.request(op, body)
    assert reply.op == op, reply
    return json.loads(reply.body)


async def refused(client: Client, code: int, op: int, **body: Any) -> str:
    """Send a request that has to be refused; why it was."""
    return await client.assert_refused(code, seq=await client.send(op, body))


def texts(frames: list[Any]) -> list[tuple[int, str]]:
    return [(frame.seq, json.loads(frame.body)["text"]) for frame in frames]


# Direct messages.


async def test_a_message_reaches_both_and_all_their_devices(tmp_path: Path) -> None:
    async with messenger(tmp_path) as world:
        violet, laptop = await world.connect(VIOLET), await world.connect(VIOLET, "laptop")
        orange, green = await world.connect(ORANGE), await world.connect(GREEN)
        await ask(violet, Message.DIRECT, to=ORANGE, text=" hi ", id="1")
        at = world.app.clock.time()
        expected = {"from": VIOLET, "name": "Violet", "to": ORANGE, "text": "hi", "at": at}
        for client in (violet, laptop, orange):
            await client.assert_push(Message.DIRECT, expected, seq=1)
        await green.refute_push()


async def test_messages_wait_for_who_is_away_until_they_are_acknowledged(tmp_path: Path) -> None:
    async with messenger(tmp_path) as world:
        violet = await world.connect(VIOLET)
        for number, text in enumerate(("one", "two", "three")):
            await ask(violet, Message.DIRECT, to=ORANGE, text=text, id=str(number))
        orange = await world.connect(ORANGE)
        assert texts(await orange.take_pushes()) == [(1, "one"), (2, "two"), (3, "three")]
        await orange.ack(2)
        orange.close()
        again = await world.connect(ORANGE)
        assert texts(await again.take_pushes()) == [(3, "three")]
        laptop = await world.connect(ORANGE, "laptop")
        assert len(await laptop.take_pushes()) == 3


async def test_messages_survive_the_server(tmp_path: Path) -> None:
    async with messenger(tmp_path) as world:
        violet = await world.connect(VIOLET)
        await ask(violet, Message.DIRECT, to=ORANGE, text="remember", id="1")
    async with messenger(tmp_path) as world:
        orange = await world.connect(ORANGE)
        assert texts(await orange.take_pushes()) == [(1, "remember")]


async def test_what_is_sent_again_is_there_once(tmp_path: Path) -> None:
    async with messenger(tmp_path) as world:
        violet, green = await world.connect(VIOLET), await world.connect(GREEN)
        for _ in range(2):
            await ask(violet, Message.DIRECT, to=ORANGE, text="hi", id="1")
        await ask(green, Message.DIRECT, to=ORANGE, text="hi", id="1")  # somebody else's 1
        orange = await world.connect(ORANGE)
        assert texts(await orange.take_pushes()) == [(1, "hi"), (2, "hi")]


@pytest.mark.parametrize(
    ("code", "body"),
    [
        (404, {"to": 99, "text": "hi", "id": "1"}),
        (400, {"to": 2**63, "text": "hi", "id": "1"}),
        (400, {"to": True, "text": "hi", "id": "1"}),
        (400, {"to": ORANGE, "text": " ", "id": "1"}),
        (400, {"to": ORANGE, "text": "x" * 2001, "id": "1"}),
        (400, {"to": ORANGE, "text": "hi"}),
        (400, {"to": ORANGE, "text": "hi", "id": "x" * 65}),
    ],
)
async def test_a_message_that_is_refused(code: int, body: dict[str, Any], tmp_path: Path) -> None:
    async with messenger(tmp_path) as world:
        violet, orange = await world.connect(VIOLET), await world.connect(ORANGE)
        await refused(violet, code, Message.DIRECT, **body)
        await orange.refute_push()


# Rooms.


async def test_a_room_is_for_its_members(tmp_path: Path) -> None:
    async with messenger(tmp_path) as world:
        violet, orange, green = [await world.connect(mid) for mid in (VIOLET, ORANGE, GREEN)]
        room = (await ask(violet, Message.CREATE, name="garden"))["room"]
        await ask(violet, Message.INVITE, room=room, mid=ORANGE)
        notice = {"room": room, "mid": ORANGE, "what": "invited"}
        for client in (violet, orange):
            await client.assert_push(Message.NOTICE, notice)
        assert await ask(orange, Message.ROOMS) == {room: "garden"}

        await ask(orange, Message.ROOM, room=room, text="hello", id="1")
        for client in (violet, orange):
            assert texts([await client.assert_push(Message.ROOM)]) == [(2, "hello")]
        await refused(green, 403, Message.ROOM, room=room, text="let me in", id="1")
        await green.assert_refused(403, seq=await green.send(Op.JOIN, room))
        await green.refute_push()


async def test_only_the_owner_invites_and_removes(tmp_path: Path) -> None:
    async with messenger(tmp_path) as world:
        room = await world.room(VIOLET, ORANGE)
        violet, orange = await world.connect(VIOLET), await world.connect(ORANGE)
        assert await refused(orange, 403, Message.INVITE, room=room, mid=GREEN) == "only the owner may"
        assert await refused(orange, 403, Message.KICK, room=room, mid=VIOLET) == "only the owner may"
        await refused(violet, 409, Message.INVITE, room=room, mid=ORANGE)
        await refused(violet, 409, Message.INVITE, room=room, mid=99)
        await refused(violet, 409, Message.KICK, room=room, mid=VIOLET)
        await refused(violet, 403, Message.KICK, room="room://none", mid=ORANGE)


async def test_who_is_removed_leaves_at_once_and_cannot_come_back(tmp_path: Path) -> None:
    async with messenger(tmp_path) as world:
        room = await world.room(VIOLET, ORANGE)
        violet, orange = await world.connect(VIOLET), await world.connect(ORANGE)
        laptop = await world.connect(ORANGE, "laptop")
        assert (await orange.request(Op.JOIN, room)).op == Op.JOIN_REPLY
        await ask(violet, Message.KICK, room=room, mid=ORANGE)
        assert (await orange.assert_closed(REMOVED)).reason == f"you are no member of {room} any more"
        await laptop.assert_push(Message.NOTICE, {"room": room, "mid": ORANGE, "what": "removed"})
        await laptop.assert_open()  # it was not in the room

        back = await world.connect(ORANGE)
        await back.assert_refused(403, seq=await back.send(Op.JOIN, room))
        await ask(violet, Message.ROOM, room=room, text="without them", id="1")
        await back.refute_push(Message.ROOM)


async def test_who_is_removed_while_entering_is_not_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with messenger(tmp_path) as world:
        room = await world.room(VIOLET, ORANGE)
        orange = await world.connect(ORANGE)
        allowed, once = world.directory.members, [[VIOLET, ORANGE]]

        async def members(asked: str) -> list[int]:
            return once.pop() if once else [mid for mid in await allowed(asked) if mid != ORANGE]

        monkeypatch.setattr(world.directory, "members", members)
        await orange.send(Op.JOIN, room)
        await orange.assert_closed(REMOVED)


async def test_a_member_may_leave(tmp_path: Path) -> None:
    async with messenger(tmp_path) as world:
        room = await world.room(VIOLET, ORANGE)
        orange = await world.connect(ORANGE)
        await ask(orange, Message.KICK, room=room, mid=ORANGE)
        assert await ask(orange, Message.ROOMS) == {}


async def test_who_types_is_told_to_those_who_look_and_is_not_kept(tmp_path: Path) -> None:
    async with messenger(tmp_path) as world:
        room = await world.room(VIOLET, ORANGE, GREEN)
        violet, orange, green = [await world.connect(mid) for mid in (VIOLET, ORANGE, GREEN)]
        await refused(violet, 409, Message.TYPING, room=room)
        for client in (violet, orange):
            await client.request(Op.JOIN, room)
        await ask(violet, Message.TYPING, room=room)
        await orange.assert_push(Message.TYPING, {"room": room, "from": VIOLET}, seq=0)
        await green.refute_push()


# What is unread, and who is there.


async def test_unread_counts_follow_what_a_device_acknowledged(tmp_path: Path) -> None:
    async with messenger(tmp_path) as world:
        room = await world.room(VIOLET, ORANGE, GREEN)
        violet, green = await world.connect(VIOLET), await world.connect(GREEN)
        await ask(violet, Message.DIRECT, to=ORANGE, text="one", id="1")
        await ask(green, Message.ROOM, room=room, text="two", id="1")
        await ask(violet, Message.ROOM, room=room, text="three", id="2")
        orange, laptop = await world.connect(ORANGE), await world.connect(ORANGE, "laptop")
        assert await ask(orange, Message.UNREAD) == {"people": {"1": 1}, "rooms": {room: 2}}
        await orange.ack(2)
        assert await ask(orange, Message.UNREAD) == {"people": {}, "rooms": {room: 1}}
        assert await ask(laptop, Message.UNREAD) == {"people": {"1": 1}, "rooms": {room: 2}}
        assert await ask(violet, Message.UNREAD) == {"people": {}, "rooms": {room: 1}}  # nothing of her own


async def test_last_seen_is_for_those_who_share_a_room(tmp_path: Path) -> None:
    async with messenger(tmp_path) as world:
        await world.room(VIOLET, ORANGE)
        violet, orange = await world.connect(VIOLET), await world.connect(ORANGE)
        seen = world.app.clock.time()
        orange.close()
        await world.app.advance(60)
        reply = await violet.request(Op.LAST_SEEN, [ORANGE])
        assert json.loads(reply.body) == {"2": {"online": False, "seen": seen}}
        await violet.assert_refused(403, seq=await violet.send(Op.LAST_SEEN, [GREEN]))


async def test_a_fourth_device_takes_the_place_of_the_first(tmp_path: Path) -> None:
    async with messenger(tmp_path) as world:
        first, *others = [await world.connect(VIOLET, device) for device in ("a", "b", "c", "d")]
        await first.assert_closed(CloseCode.TOO_MANY_LOGINS)
        for client in others:
            await client.assert_open()
        again = await world.connect(VIOLET, "b")  # the same device: the others stay
        await others[0].assert_closed(CloseCode.REPLACED)
        for client in (*others[1:], again):
            await client.assert_open()


async def test_an_operation_that_means_nothing(tmp_path: Path) -> None:
    async with messenger(tmp_path) as world:
        violet = await world.connect(VIOLET)
        await violet.assert_refused(400, seq=await violet.send(5000))
        await violet.assert_refused(400, seq=await violet.send(Message.DIRECT, b"[]"))
        await violet.assert_refused(400, seq=await violet.send(Message.DIRECT, b"\xff"))


# Logging in.


async def log_in(login: Login, body: object) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = await login(Request("POST", "/login", {}, {}, data))
    return response.status, json.loads(response.body)


async def test_a_token_for_a_name_and_a_password(tmp_path: Path) -> None:
    with opened(tmp_path) as parts:
        login = parts["routes"]["/login"]["POST"]
        violet = {"name": "Violet", "password": "secret", "device": "phone"}
        status, told = await log_in(login, violet)
        assert (status, told["mid"]) == (200, 1)
        status, again = await log_in(login, {**violet, "device": "laptop"})
        assert (status, again["mid"]) == (200, 1)
        assert await log_in(login, {**violet, "password": "guess"}) == (403, {"error": "wrong password"})
        for wrong in (b"", b"\xff", b"[]", b"{}", {**violet, "name": 7}, {**violet, "device": ""}):
            assert (await log_in(login, wrong))[0] == 400
        async with running(**parts) as app:
            client = await app.connect(told["token"])
            assert (client.session.mid, client.session.device, client.session.data) == (1, "phone", "Violet")


# With sockets: the server, the login over HTTP, and the terminal client.


async def test_over_sockets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(tmp_path) as parts:
        async with Server(**parts, tcp="127.0.0.1:0", http="127.0.0.1:0") as server:
            tcp, http = (f"127.0.0.1:{server.addresses[door][0][1]}" for door in ("tcp", "http"))

            def talking(name: str) -> Any:
                return connect(f"tcp://{tcp}", token=LogIn(http, name, "secret", "terminal"))

            with anyio.fail_after(20):
                async with talking("Violet") as violet, talking("Orange") as orange:
                    talk = Talk(violet)
                    for line in (
                        "hello",
                        "/to Nobody",
                        "/to Orange",
                        "hello",
                        "/new garden",
                        "/invite Orange",
                    ):
                        await talk.type(line)
                    assert [(await orange.receive()).op for _ in range(2)] == [Message.DIRECT, Message.NOTICE]
                async with talking("Violet") as violet:
                    talk = Talk(violet)
                    for line in ("/to Orange", "still here?", "/rooms"):
                        await talk.type(line)
                async with talking("Orange") as orange:
                    message = await orange.receive()  # the two before were acknowledged
                    assert (message.seq, json.loads(message.body)["text"]) == (3, "still here?")
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["! choose first: /to NAME or /room ROOM", "! nobody has this name"]
    assert said[-1].endswith(" garden")
