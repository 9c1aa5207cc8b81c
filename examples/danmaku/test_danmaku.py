"""Live comments: their rules alone, and the hooks on the real pipeline without a socket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from examples.danmaku.app import BANNED, OPTIONS, Message, parts
from examples.danmaku.rules import MAX_TEXT, ROOM_BURST, ROOM_RATE, Rules
from goim_core import ErrorCode, Op, Refused, Request
from goim_core.testing import App, Client, running

SECRET = "a secret for tests only"
VIDEO = "video://1"
ADA, GRACE, MO = 1, 2, 3


# The rules alone.


def refused(rules: Rules, code: int, mid: int, text: str, now: float) -> str:
    with pytest.raises(Refused) as why:
        rules.check(mid, text, now)
    assert why.value.code == code
    return why.value.reason


def test_a_comment_is_one_line_of_bounded_length() -> None:
    rules = Rules()
    assert rules.check(ADA, "  a \n b ", 0) == "a b"
    assert rules.check(ADA, "x" * MAX_TEXT, 0) == "x" * MAX_TEXT
    for text in ("", " \n", "x" * (MAX_TEXT + 1)):
        refused(rules, ErrorCode.BAD_REQUEST, ADA, text, 0)


def test_blocked_words() -> None:
    rules = Rules()
    rules.block(" Spoiler")
    assert refused(rules, 403, ADA, "a SPOILER!", 0) == "this is not said here"
    with pytest.raises(Refused):
        rules.block(" ")


def test_slow_mode_is_for_each_viewer() -> None:
    rules = Rules(slow=5)
    rules.check(ADA, "one", 10)
    rules.check(GRACE, "two", 10)
    assert refused(rules, 429, ADA, "three", 12) == "slow mode: wait 3 s"
    rules.check(ADA, "three", 15)
    rules.forget(ADA)
    assert rules.check(ADA, "four", 15)


def test_a_mute_ends() -> None:
    rules = Rules()
    rules.mute(ADA, 10, 60)
    assert refused(rules, 403, ADA, "hello", 20) == "you are muted for 50 s"
    assert rules.check(ADA, "hello", 70)
    rules.mute(GRACE, 70, 60)
    assert list(rules.muted) == [GRACE]


def test_a_video_shows_so_many_comments_and_no_more() -> None:
    rules = Rules()
    for mid in range(ROOM_BURST):
        rules.check(mid, "wow", 0)
    refused(rules, 429, ADA, "wow", 0)
    rules.check(ADA, "wow", 1 / ROOM_RATE)
    refused(rules, 429, ADA, "wow", 1 / ROOM_RATE)


# The hooks.


@asynccontextmanager
async def danmaku() -> AsyncIterator[tuple[App, dict[str, Any]]]:
    made = parts(SECRET)
    async with running(**made) as app, anyio.create_task_group() as tasks:
        tasks.start_soon(made["rooms"].tell)
        yield app, made
        tasks.cancel_scope.cancel()


async def viewer(app: App, made: dict[str, Any], mid: int, name: str, **data: Any) -> Client:
    token = made["auth"].sign(
        mid=mid,
        expires=app.clock.time() + 3600,
        room_id=VIDEO,
        accepts=[Op.ERROR, *Message],
        data={"name": name, **data},
    )
    return await app.connect(token, "ws")


async def order(client: Client, op: int, **body: Any) -> None:
    """Send something that is done."""
    assert (await client.request(op, body)).op == op


@pytest.mark.anyio
async def test_everyone_sees_a_comment_and_who_made_it() -> None:
    async with danmaku() as (app, made):
        ada, grace = await viewer(app, made, ADA, "Ada"), await viewer(app, made, GRACE, "Grace")
        await order(ada, Message.COMMENT, text="wow", at=12.5)
        await app.advance(OPTIONS.linger)
        for client in (ada, grace):
            await client.assert_push(Message.COMMENT, {"mid": ADA, "name": "Ada", "text": "wow", "at": 12.5})


@pytest.mark.anyio
async def test_comments_of_one_moment_are_one_packet_in_order() -> None:
    async with danmaku() as (app, made):
        ada, grace = await viewer(app, made, ADA, "Ada"), await viewer(app, made, GRACE, "Grace")
        before = app.server.stats().deliveries
        for number in range(5):
            await order(ada, Message.COMMENT, text=str(number), at=0)
        await grace.refute_push(Message.COMMENT)  # they wait for each other
        await app.advance(OPTIONS.linger)
        texts = [json.loads((await grace.assert_push(Message.COMMENT)).body)["text"] for _ in range(5)]
        assert texts == ["0", "1", "2", "3", "4"]
        assert app.server.stats().deliveries == before + 10


@pytest.mark.anyio
async def test_moderation() -> None:
    async with danmaku() as (app, made):
        ada, grace = await viewer(app, made, ADA, "Ada"), await viewer(app, made, GRACE, "Grace")
        mo = await viewer(app, made, MO, "Mo", moderator=True)
        await order(mo, Message.BLOCK, word="spoiler")
        await order(mo, Message.MUTE, mid=GRACE, seconds=60)
        await order(mo, Message.SLOW, seconds=5)
        for client, text in ((ada, "a spoiler"), (grace, "hello")):
            await client.assert_refused(403, seq=await client.send(Message.COMMENT, {"text": text, "at": 0}))
        await order(ada, Message.COMMENT, text="one", at=0)
        await ada.assert_refused(429, seq=await ada.send(Message.COMMENT, {"text": "two", "at": 0}))
        await app.advance(60)
        await order(ada, Message.COMMENT, text="two", at=0)
        await order(grace, Message.COMMENT, text="back", at=0)


@pytest.mark.anyio
async def test_a_ban_is_at_once_and_for_this_video() -> None:
    async with danmaku() as (app, made):
        ada, mo = await viewer(app, made, ADA, "Ada"), await viewer(app, made, MO, "Mo", moderator=True)
        await order(mo, Message.BAN, mid=ADA)
        assert (await ada.assert_closed(BANNED)).reason == "you are banned from this video"
        with pytest.raises(Exception, match="video://1 is not open to this user"):
            await viewer(app, made, ADA, "Ada")
        token = made["auth"].sign(
            mid=ADA, expires=app.clock.time() + 60, room_id="video://2", data={"name": "Ada"}
        )
        await app.connect(token)


@pytest.mark.anyio
@pytest.mark.parametrize("op", [Message.SLOW, Message.BLOCK, Message.MUTE, Message.BAN])
async def test_viewers_do_not_moderate(op: int) -> None:
    async with danmaku() as (app, made):
        ada = await viewer(app, made, ADA, "Ada")
        assert await ada.assert_refused(403, seq=await ada.send(op, {})) == "only a moderator may"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("op", "body"),
    [
        (Message.COMMENT, b"wow"),
        (Message.COMMENT, b"[]"),
        (Message.COMMENT, {"text": "wow"}),
        (Message.COMMENT, {"text": "wow", "at": True}),
        (Message.COMMENT, b'{"text":"wow","at":NaN}'),
        (Message.SLOW, {"seconds": -1}),
        (Message.MUTE, {"mid": "1", "seconds": 1}),
        (Message.BAN, {}),
        (Message.COUNT, {}),
    ],
)
async def test_what_makes_no_sense_is_refused(op: int, body: Any) -> None:
    async with danmaku() as (app, made):
        mo = await viewer(app, made, MO, "Mo", moderator=True)
        await mo.assert_refused(400, seq=await mo.send(op, body))


@pytest.mark.anyio
async def test_who_floods_is_told_so_and_the_others_are_served() -> None:
    async with danmaku() as (app, made):
        ada, grace = await viewer(app, made, ADA, "Ada"), await viewer(app, made, GRACE, "Grace")
        for _ in range(OPTIONS.rate_burst):
            await ada.request(Message.COMMENT, {"text": "flood", "at": 0})
        await ada.assert_refused(429, seq=await ada.send(Message.COMMENT, {"text": "flood", "at": 0}))
        await order(grace, Message.COMMENT, text="calm", at=0)
        await app.advance(1)
        await order(ada, Message.COMMENT, text="calm, too", at=0)


@pytest.mark.anyio
async def test_counts_are_told_once_a_second() -> None:
    async with danmaku() as (app, made):
        ada = await viewer(app, made, ADA, "Ada")
        grace = await viewer(app, made, GRACE, "Grace")
        await ada.refute_push(Message.COUNT)
        await app.advance(1 + OPTIONS.linger)
        await ada.assert_push(Message.COUNT, {"online": 2})
        grace.close()
        await app.advance(1 + OPTIONS.linger)
        await ada.assert_push(Message.COUNT, {"online": 1})
        await app.advance(10)
        await ada.refute_push(Message.COUNT)  # nothing has changed


@pytest.mark.anyio
async def test_a_viewer_joins_with_a_name() -> None:
    async with danmaku() as (app, made):
        join = made["routes"]["/join"]["POST"]
        assert join(Request("POST", "/join", {}, {}, b" ")).status == 400
        token = join(Request("POST", "/join", {}, {}, "Zo\u00eb".encode())).body
        client = await app.connect({"token": token.decode(), "room_id": VIDEO})
        assert (client.session.data.name, client.session.data.moderator) == ("Zo\u00eb", False)
        assert client.session.room_id == VIDEO


@pytest.mark.anyio
async def test_only_videos_are_rooms() -> None:
    async with danmaku() as (app, made):
        ada = await viewer(app, made, ADA, "Ada")
        await ada.assert_refused(403, seq=await ada.send(Op.CHANGE_ROOM, "chat://1"))
        await order(ada, Message.COMMENT, text="still here", at=0)


@pytest.mark.anyio
async def test_what_is_kept_of_videos_is_bounded_by_who_watches() -> None:
    async with danmaku() as (app, made):
        ada, mo = await viewer(app, made, ADA, "Ada"), await viewer(app, made, MO, "Mo", moderator=True)
        for number in range(2, 5):
            await ada.request(Op.CHANGE_ROOM, f"video://{number}")
            await order(ada, Message.COMMENT, text="wow", at=0)
        await order(mo, Message.BLOCK, word="spoiler")
        mo.close()
        await ada.request(Op.CHANGE_ROOM, VIDEO)
        await ada.assert_refused(403, seq=await ada.send(Message.COMMENT, {"text": "spoiler", "at": 0}))
        assert list(made["messages"]._videos) == [VIDEO]  # noqa: SLF001
