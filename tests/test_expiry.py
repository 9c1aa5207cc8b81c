"""The end of a token: a client is asked for a new one, or closed; and what becomes of the new one."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest

from goim_core.errors import CloseCode, Disconnect, Refused
from goim_core.hooks import AuthHook, SessionHook
from goim_core.options import Options
from goim_core.protocol import Op
from goim_core.session import AuthRequest, Session
from goim_core.testing import App, Client, ManualClock, running

pytestmark = pytest.mark.anyio

LIFE = 100.0
NOTICE = 30.0
OPTIONS = Options(refresh_notice=NOTICE, heartbeat=1e6, hook_timeout=5)
ASKED = [Op.ERROR, Op.REFRESH, Op.EXPIRING]
LATE = 0.3
"""A deadline is late by up to a tick of the wheel."""


class Auth(AuthHook):
    """Tokens are JSON: seconds to live, and the user."""

    def __init__(self) -> None:
        self.hangs = False
        self.requests: list[AuthRequest] = []

    async def authenticate(self, request: AuthRequest) -> Session:
        self.requests.append(request)
        if self.hangs:
            await anyio.sleep_forever()
        token = json.loads(request.token)
        if "fault" in token:
            raise {"refused": Refused("revoked"), "disconnect": Disconnect("forged"), "fault": KeyError("x")}[
                token["fault"]
            ]
        life = token.pop("life", None)
        expires = float("inf") if life is None else self.server.clock.time() + life
        return Session(**token, expires=expires)


class Ends(SessionHook):
    def __init__(self) -> None:
        self.reasons: list[int] = []

    def disconnected(self, session: Session, reason: Disconnect) -> None:
        self.reasons.append(reason.code)


async def connect(app: App, wire: str = "tcp", accepts: list[Op] | None = None, **token: Any) -> Client:
    accepts = ASKED if accepts is None else accepts
    return await app.connect({"mid": 1, "life": LIFE, "accepts": accepts, **token}, wire)


@pytest.mark.parametrize("wire", ["tcp", "ws"])
async def test_who_accepts_to_be_asked_is_asked_in_time_and_closed_at_the_end(wire: str) -> None:
    sessions = Ends()
    async with running(auth=Auth(), sessions=sessions, options=OPTIONS) as app:
        client = await connect(app, wire)
        await app.advance(LIFE - NOTICE - 0.5)
        await client.refute_push(Op.EXPIRING)
        await app.advance(0.5 + LATE)
        frame = await client.assert_push(Op.EXPIRING)
        assert json.loads(frame.body) == {"seconds": 30}
        await app.advance(NOTICE - 1)
        await client.assert_open()
        await client.refute_push(Op.EXPIRING)
        await app.advance(1 + LATE)
        assert (await client.assert_closed(CloseCode.EXPIRED)).reason == "the token has expired"
    assert sessions.reasons == [CloseCode.EXPIRED]


@pytest.mark.parametrize("accepts", [ASKED, []])
async def test_who_is_closed_has_time_to_read_why(accepts: list[Op]) -> None:
    """A socket that is closed at once, with bytes of the client unread in it, takes the reason along."""
    async with running(auth=Auth(), options=OPTIONS) as app:
        client = await connect(app, accepts=accepts)
        client.pause_reading()
        await app.advance(LIFE + LATE)
        assert client.link.ended
        await app.advance(OPTIONS.farewell_timeout - 1)
        assert client.link.fileno() >= 0
        await app.advance(1 + LATE)
        assert client.link.fileno() < 0


async def test_who_cannot_be_asked_is_closed_at_the_end_and_not_before() -> None:
    async with running(auth=Auth(), options=OPTIONS) as app:
        client = await connect(app, accepts=[Op.REFRESH])
        await app.advance(LIFE - 0.5)
        await client.assert_open()
        await app.advance(0.5 + LATE)
        await client.assert_closed(CloseCode.EXPIRED)
        assert await client.take_pushes() == []


async def test_who_does_not_want_to_be_asked_any_more_has_all_of_its_time() -> None:
    async with running(auth=Auth(), options=OPTIONS) as app:
        client = await connect(app)
        await client.request(Op.UNSUB, str(int(Op.EXPIRING)))
        await app.advance(LIFE - 1)
        await client.assert_open()
        await app.advance(1 + LATE)
        await client.assert_closed(CloseCode.EXPIRED)


async def test_a_session_without_an_end_has_none() -> None:
    async with running(auth=Auth(), options=OPTIONS) as app:
        client = await connect(app, life=None)
        await app.advance(1e5)
        await client.assert_open()
        assert await client.take_pushes() == []


@pytest.mark.parametrize("life", [0, -1e9])
async def test_a_token_that_is_over_when_it_comes_is_closed_at_once(life: float) -> None:
    async with running(auth=Auth(), options=OPTIONS) as app:
        client = await app.open()
        await client.send(Op.AUTH, {"mid": 1, "life": life, "accepts": ASKED})
        await app.advance(LATE)
        await client.assert_closed(CloseCode.EXPIRED)


async def test_who_has_less_than_the_notice_is_asked_with_time_to_answer() -> None:
    async with running(auth=Auth(), options=OPTIONS) as app:
        client = await connect(app, life=12)
        await app.advance(6 + LATE)
        frame = await client.assert_push(Op.EXPIRING)
        assert 5 <= json.loads(frame.body)["seconds"] <= 12
        await app.advance(6)
        await client.assert_closed(CloseCode.EXPIRED)


@pytest.mark.parametrize("when", [10.0, LIFE - 1])
async def test_a_new_token_gives_its_own_time(when: float) -> None:
    async with running(auth=Auth(), options=OPTIONS) as app:
        client = await connect(app, room_id="live://1", data="old")
        await app.advance(when)
        await client.take_pushes()
        reply = await client.request(
            Op.REFRESH, json.dumps({"mid": 1, "life": LIFE, "data": "new", "key": "x"})
        )
        assert (reply.op, reply.body) == (Op.REFRESH_REPLY, b"")
        assert (client.session.data, client.session.room_id) == ("new", "live://1")
        await app.advance(LIFE - NOTICE - 1)
        await client.refute_push(Op.EXPIRING)
        await app.advance(1 + LATE)
        await client.assert_push(Op.EXPIRING)
        await app.advance(NOTICE - 1)
        await client.assert_open()
        await app.advance(1 + LATE)
        await client.assert_closed(CloseCode.EXPIRED)


async def test_a_new_token_may_take_the_end_away_or_bring_it_nearer() -> None:
    async with running(auth=Auth(), options=OPTIONS) as app:
        forever, sooner = await connect(app), await connect(app)
        await forever.request(Op.REFRESH, '{"mid": 1}')
        await sooner.request(Op.REFRESH, '{"mid": 1, "life": 5}')
        await app.advance(5 + LATE)
        await sooner.assert_closed(CloseCode.EXPIRED)
        await app.advance(2 * LIFE)
        await forever.assert_open()


@pytest.mark.parametrize(
    ("token", "code", "message"),
    [
        ({"mid": 2, "life": 1e6}, 403, "token: it is another user's"),
        ({"fault": "refused"}, 403, "revoked"),
        ({"fault": "disconnect"}, 403, "forged"),
        ({"fault": "fault"}, 500, "internal error"),
        ({}, 500, "internal error"),
    ],
)
async def test_a_token_that_is_refused_leaves_all_as_it_was(token: Any, code: int, message: str) -> None:
    async with running(auth=Auth(), options=OPTIONS) as app:
        client = await connect(app, data="old")
        before = client.session.expires
        await client.send(Op.REFRESH, json.dumps(token))
        assert await client.assert_refused(code) == message
        await client.assert_open()
        assert (client.session.expires, client.session.data, client.session.mid) == (before, "old", 1)
        await app.advance(LIFE - NOTICE + LATE)
        await client.assert_push(Op.EXPIRING)
        await app.advance(NOTICE)
        await client.assert_closed(CloseCode.EXPIRED)


async def test_a_refresh_that_is_not_decided_in_time_does_not_hold_the_end_up() -> None:
    auth = Auth()
    async with running(auth=auth, options=Options(refresh_notice=NOTICE, hook_timeout=60), patience=0) as app:
        client = await connect(app)
        await app.advance(LIFE - 10)
        auth.hangs = True
        await client.send(Op.REFRESH, "{}")
        await app.advance(10 + LATE)
        await client.assert_closed(CloseCode.EXPIRED)


async def test_a_refresh_has_to_be_accepted() -> None:
    async with running(auth=Auth(), options=OPTIONS) as app:
        client = await connect(app, accepts=[Op.ERROR])
        await client.send(Op.REFRESH, '{"mid": 1}')
        await client.assert_refused(400)


# The wall clock, which somebody may set.


def set_back(clock: ManualClock, seconds: float) -> None:
    clock._time -= seconds


@pytest.mark.parametrize("accepts", [ASKED, [Op.REFRESH]])
async def test_a_wall_clock_that_is_set_back_ends_in_the_end(accepts: list[Op]) -> None:
    """And nobody is asked again and again."""
    async with running(auth=Auth(), options=OPTIONS) as app:
        client = await connect(app, accepts=accepts)
        await app.advance(10)
        set_back(app.clock, 50)
        await app.advance(LIFE + 50 + LATE)
        await client.assert_closed(CloseCode.EXPIRED)
        assert len(await client.take_pushes()) <= 2


async def test_a_wall_clock_that_is_set_forward_ends_no_sooner_than_asked() -> None:
    async with running(auth=Auth(), options=OPTIONS) as app:
        client = await connect(app)
        set_back(app.clock, -1e6)
        await app.advance(LIFE + LATE)
        await client.assert_closed(CloseCode.EXPIRED)


async def test_a_short_token_that_is_refreshed_when_asked_is_not_asked_for_ever() -> None:
    """A client that does as it is asked must not be asked again at once: that would be a storm."""
    async with running(auth=Auth(), options=OPTIONS) as app:
        client = await connect(app, life=20)
        asked = 0
        for _ in range(100):
            await app.advance(0.25)
            for _ in await client.take_pushes():
                asked += 1
                await client.request(Op.REFRESH, '{"mid": 1, "life": 20}')
        await client.assert_open()
        assert asked <= 5, f"asked {asked} times in 25 seconds"
