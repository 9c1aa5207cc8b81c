"""Logins, disconnections, tokens that run out and rate limits, over sockets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from goim_core import Disconnect, LoginPolicy, Options, Server, Session, SessionHook
from goim_core.auth import SignedTokenAuth, sign_token
from goim_core.errors import Refused
from goim_core.testing import ManualClock
from tests.e2e.clients import Client, World, both, frame, int32, op_of, serve
from tests.e2e.hooks import SessionLog
from tests.e2e.inboxes import ERROR, EXPIRING, OP, REFRESH, ask, refused

pytestmark = pytest.mark.anyio

SECRET = "0123456789abcdef"


def sessions_with(policy: LoginPolicy) -> SessionLog:
    log = SessionLog()
    log.logins = policy
    return log


async def refused_login(world: World, wire: str, **token: Any) -> tuple[int, str]:
    """A login that the server has to turn away; what it says."""
    client = await world.connect(wire)
    await client.send(frame(7, json.dumps({"mid": 1, **token}).encode()))
    return await client.told()


async def answered(*clients: Client) -> None:
    for client in clients:
        await client.beat()


# The policy for logins.


@both
async def test_the_old_is_replaced(wire: str) -> None:
    sessions = sessions_with(LoginPolicy(at_most=1))
    async with serve(sessions=sessions) as world:
        other = await world.login("tcp", mid=2)
        clients = [await world.login(wire, key=str(n), accepts=[OP]) for n in range(4)]
        for old in clients[:-1]:
            assert await old.told() == (4009, "this user has connected elsewhere")
        await answered(clients[-1], other)
        await world.server.push_mids([1], OP, b"x")
        assert await clients[-1].frame() == frame(OP, b"x")
        ended = [key for what, key, *code in sessions.log.entries if (what, *code) == ("disconnected", 4009)]
        assert ended == ["0", "1", "2"]


@both
async def test_the_new_is_refused(wire: str) -> None:
    sessions = sessions_with(LoginPolicy(at_most=1, replace=False))
    async with serve(sessions=sessions) as world:
        first = await world.login(wire, key="a")
        for _ in range(3):
            assert await refused_login(world, wire) == (4009, "this user is connected elsewhere")
        await answered(first, await world.login(wire, mid=2))
        first.close()
        await sessions.log.reach(3)
        await answered(await world.login(wire))


@both
@pytest.mark.parametrize("replace", [True, False])
async def test_at_most_three(wire: str, replace: bool) -> None:
    async with serve(sessions=sessions_with(LoginPolicy(at_most=3, replace=replace))) as world:
        clients = [await world.login(wire) for _ in range(3)]
        await answered(*clients)
        if replace:
            clients.append(await world.login(wire))
            assert (await clients.pop(0).told()).code == 4009
        else:
            assert (await refused_login(world, wire))[0] == 4009
        await answered(*clients)


@both
async def test_each_platform_counts_for_itself(wire: str) -> None:
    policy = LoginPolicy(at_most=1, each_platform=True)
    async with serve(sessions=sessions_with(policy)) as world:
        web = await world.login(wire, platform="web")
        phone = await world.login(wire, platform="phone")
        newer = await world.login(wire, platform="web")
        assert (await web.told()).code == 4009
        await answered(phone, newer)


@both
@pytest.mark.parametrize("replace", [True, False])
async def test_taking_over_a_key_is_not_one_more(wire: str, replace: bool) -> None:
    async with serve(sessions=sessions_with(LoginPolicy(at_most=1, replace=replace))) as world:
        old = await world.login(wire, key="a")
        new = await world.login(wire, key="a")
        assert (await old.told()).code == 4004
        await answered(new)


async def test_a_hook_may_keep_keys_for_their_owners() -> None:
    class Owners(SessionHook):
        def check_key(self, session: Session) -> None:
            if not session.key.startswith(f"{session.mid}/"):
                raise Refused("not your key")

    async with serve(sessions=Owners()) as world:
        owner = await world.login("tcp", mid=1, key="1/phone")
        assert await refused_login(world, "tcp", mid=2, key="1/phone") == (4001, "not your key")
        await answered(owner)


@both
async def test_logins_at_the_same_time(wire: str) -> None:
    """However many come at once, as many as are allowed stay."""
    sessions = sessions_with(LoginPolicy(at_most=2))
    async with serve(sessions=sessions) as world:
        clients = [await world.connect(wire) for _ in range(20)]
        for client in clients:
            await client.send(frame(7, b'{"mid":1}'))
        await sessions.log.reach(38)
        assert world.server.online_total()[1] == 2
    # Once for each, whatever the end.
    ends = [key for what, key, *_ in sessions.log.entries if what == "disconnected"]
    assert len(ends) == len(set(ends)) == 20


# Disconnections.


@both
async def test_disconnect_mids(wire: str) -> None:
    sessions = SessionLog()
    async with serve(sessions=sessions) as world:
        leave = [await world.login(wire, mid=mid, key=key) for mid, key in ((1, "a"), (1, "b"), (2, "c"))]
        stays = await world.login(wire, mid=3)
        await world.server.disconnect_mids([1, 2, 99], Disconnect("maintenance \N{WRENCH}", 4321))
        for client in leave:
            assert await client.told() == (4321, "maintenance \N{WRENCH}")
        await answered(stays)
        await sessions.log.reach(7)
        assert {("disconnected", key, 4321) for key in "abc"} <= set(sessions.log.entries)


@both
async def test_disconnect_keys_comes_behind_what_was_pushed(wire: str) -> None:
    async with serve() as world:
        client = await world.login(wire, key="a", accepts=[OP])
        stays = await world.login(wire, key="b", accepts=[OP])
        for n in range(20):
            await world.server.push_keys(["a"], OP, b"%d" % n)
        await world.server.disconnect_keys(["a", "nobody"], Disconnect("bye", 4000))
        for n in range(20):
            assert await client.frame() == frame(OP, b"%d" % n)
        assert await client.told() == (4000, "bye")
        await answered(stays)


async def test_a_hook_may_disconnect() -> None:
    class Once(SessionHook):
        server: Server

        async def heartbeat(self, session: Session) -> None:
            await self.server.disconnect_keys([session.key], Disconnect("once is enough", 4000))

    async with serve(sessions=Once()) as world:
        client = await world.login("ws")
        await client.beat()
        assert await client.told() == (4000, "once is enough")


# Tokens that run out.


def signed(clock: ManualClock, seconds: float, mid: int = 1, secret: str = SECRET, **claims: Any) -> bytes:
    return sign_token(secret, mid=mid, expires=clock.time() + seconds, **claims).encode()


async def come_in(world: World, wire: str, token: bytes) -> Client:
    client = await world.connect(wire)
    await client.send(frame(7, token, seq=1))
    assert await client.read() == frame(8, seq=1)
    return client


EXPIRES = [OP, ERROR, REFRESH, EXPIRING]


@both
async def test_a_token_that_runs_out_closes_the_connection(wire: str) -> None:
    clock, sessions = ManualClock(), SessionLog()
    async with serve(clock=clock, auth=SignedTokenAuth(SECRET), sessions=sessions) as world:
        client = await come_in(world, wire, signed(clock, 100))
        later = await come_in(world, wire, signed(clock, 1000, mid=2))
        clock.advance(99)
        await clock.asleep(0.25)
        await answered(client)
        clock.advance(1.5)
        assert await client.told() == (4008, "the token has expired")
        await answered(later)
        assert world.server.stats().closes == {4008: 1}


@both
async def test_asked_and_refreshed(wire: str) -> None:
    clock = ManualClock()
    options = Options(refresh_notice=30.0)
    async with serve(clock=clock, auth=SignedTokenAuth(SECRET), options=options) as world:
        client = await come_in(world, wire, signed(clock, 100, accepts=EXPIRES))
        for _ in range(3):
            clock.advance(70.5)
            asked = await client.frame()
            assert op_of(asked) == EXPIRING
            seconds = json.loads(asked[16:])
            assert seconds.keys() == {"seconds"}
            assert 28 <= seconds["seconds"] <= 30
            assert await ask(client, REFRESH, signed(clock, 100, accepts=EXPIRES)) == b""
            clock.advance(35)  # the old one has run out
            await clock.asleep(0.25)
            await client.beat()
            await ask(client, REFRESH, signed(clock, 100, accepts=EXPIRES))
        clock.advance(70.5)
        assert op_of(await client.frame()) == EXPIRING
        clock.advance(30)
        assert await client.told() == (4008, "the token has expired")


@both
async def test_a_refresh_that_is_refused_leaves_all_as_it_was(wire: str) -> None:
    clock = ManualClock()
    async with serve(clock=clock, auth=SignedTokenAuth(SECRET)) as world:
        client = await come_in(world, wire, signed(clock, 100, accepts=EXPIRES))
        good = signed(clock, 1000)
        for token, reason in [
            (signed(clock, 1000, mid=2), "token: it is another user's"),
            (signed(clock, -1), "token: expired"),
            (signed(clock, 1000, secret="another secret..."), "token: the signature does not fit"),
            (good[:-1], "token: expected 'goim1.', claims, '.' and a signature"),
            (b"", "token: missing"),
            (b"\xff", "token: expected a token as text, or a JSON object with a field 'token'"),
        ]:
            code, message = await refused(client, REFRESH, token)
            assert (code // 100, message) == (4, reason)
        clock.advance(70.5)
        assert op_of(await client.frame()) == EXPIRING
        clock.advance(30)
        assert (await client.told()).code == 4008


@both
async def test_who_cannot_be_asked_may_refresh_all_the_same(wire: str) -> None:
    clock = ManualClock()
    async with serve(clock=clock, auth=SignedTokenAuth(SECRET)) as world:
        client = await come_in(world, wire, signed(clock, 100, accepts=[OP, REFRESH]))
        clock.advance(90)
        await clock.asleep(0.25)
        assert await ask(client, REFRESH, signed(clock, 100)) == b""
        clock.advance(90)
        await clock.asleep(0.25)
        await answered(client)
        clock.advance(10.5)
        assert (await client.told()).code == 4008


@both
async def test_a_token_shorter_than_the_notice_is_asked_about_after_half_its_time(wire: str) -> None:
    clock = ManualClock()
    async with serve(clock=clock, auth=SignedTokenAuth(SECRET)) as world:
        client = await come_in(world, wire, signed(clock, 10, accepts=EXPIRES))
        clock.advance(4.5)
        await clock.asleep(0.25)
        await answered(client)
        clock.advance(1)
        assert json.loads((await client.frame())[16:]) == {"seconds": 5}
        clock.advance(5)
        assert (await client.told()).code == 4008


@both
async def test_bad_tokens_are_turned_away(wire: str) -> None:
    clock = ManualClock()
    async with serve(clock=clock, auth=SignedTokenAuth(SECRET)) as world:
        witness = await come_in(world, "tcp", signed(clock, 1000, mid=9))
        good = signed(clock, 100)
        claims, signature = good.rsplit(b".", 1)
        other = signed(clock, 100, mid=2).rsplit(b".", 1)[0]
        for token, code in [
            (signed(clock, 0), 4008),
            (signed(clock, -1000), 4008),
            (signed(clock, 100, secret="another secret..."), 4001),
            (other + b"." + signature, 4001),  # another user's claims
            (claims, 4001),
            (claims + b".", 4001),
            (good[:-1], 4001),
            (good + b"A", 4001),
            (b'{"mid":1}', 4001),
            (b"", 4001),
            (b"\xff\xfe", 4001),
            (b"goim1." * 600, 4001),
        ]:
            client = await world.connect(wire)
            await client.send(frame(7, token))
            assert (await client.told()).code == code, token
        await answered(witness, await come_in(world, wire, good))


# A rate limit.


@both
async def test_a_rate_limit_is_answered(wire: str) -> None:
    clock = ManualClock()
    async with serve(clock=clock, options=Options(rate=2.0, rate_burst=5)) as world:
        other = await world.login("tcp", mid=2, accepts=[ERROR])
        client = await world.login(wire, accepts=[ERROR])
        await client.send(*(frame(4, seq=n) for n in range(8)))
        for n in range(5):
            assert await client.frame() == frame(4, seq=n)
        message = b'{"op":4,"code":429,"message":"at most 2 frames a second"}'
        for n in range(5, 8):
            assert await client.frame() == frame(ERROR, message, seq=n)
        # Heartbeats are not counted, and others have their own bucket.
        for _ in range(10):
            await client.beat()
        assert await ask_echo(other) == frame(4, seq=1)
        clock.advance(0.5)
        await client.send(frame(4, seq=1), frame(4, seq=2))
        assert await client.frame() == frame(4, seq=1)
        assert await client.frame() == frame(ERROR, message, seq=2)
        clock.advance(100)
        await client.send(*(frame(4, seq=n) for n in range(6)))
        assert [op_of(await client.frame()) for _ in range(6)] == [4, 4, 4, 4, 4, ERROR]


async def ask_echo(client: Client) -> bytes:
    await client.send(frame(4, seq=1))
    return await client.frame()


@both
async def test_a_goim_client_beyond_the_rate_gets_an_empty_reply(wire: str) -> None:
    async with serve(clock=ManualClock(), options=Options(rate=1.0, rate_burst=1)) as world:
        client = await world.login(wire, room="live://1", accepts=[OP])
        await client.send(frame(4, b"x", seq=1), frame(12, b"live://2", seq=2), frame(2, seq=3))
        assert await client.frame() == frame(4, seq=1)
        assert await client.frame() == frame(13, b"live://1", seq=2)  # where it is still
        assert await client.frame() == frame(3, int32(1), seq=3)


async def test_nobody_is_left_behind() -> None:
    """Sessions come and go in every way at once; each that came has gone once."""
    clock, sessions = ManualClock(), sessions_with(LoginPolicy(at_most=2, each_platform=True))
    async with serve(clock=clock, auth=SignedTokenAuth(SECRET), sessions=sessions) as world:
        clients = []
        for n in range(60):
            token = signed(clock, 50 + n, mid=n % 7, platform="web" if n % 2 else "phone")
            clients.append(await world.connect("ws" if n % 3 else "tcp"))
            await clients[-1].send(frame(7, token))
            assert await clients[-1].frame() == frame(8)
        for client in clients[::3]:
            client.reset()
        await world.server.disconnect_mids([1, 2], Disconnect("bye", 4000))
        clock.advance(80)
        await world.sent()
    came = [key for what, key, *_ in sessions.log.entries if what == "connected"]
    went = [key for what, key, *_ in sessions.log.entries if what == "disconnected"]
    assert sorted(came) == sorted(went)
    assert len(set(went)) == len(went) == 60
