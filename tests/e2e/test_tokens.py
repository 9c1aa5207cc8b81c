"""Signed tokens and JWTs at a real server: in a frame, in a WebSocket handshake, and until they run out."""

from __future__ import annotations

import time
from typing import Any

import jwt
import pytest
from wsproto.events import AcceptConnection, Request

from goim_core import AuthHook, CloseCode
from goim_core.adapters.jwt import JWTAuth
from goim_core.auth import SignedTokenAuth
from goim_core.testing import ManualClock
from tests.e2e.clients import WebSocket, World, both, frame, serve, until

pytestmark = pytest.mark.anyio

SECRET = "an example of a secret, long enough"


class Signer:
    """Makes what one of the ready-made hooks lets in."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        given: Any = {"cookie": "session", "origins": "https://example.org"}
        self.auth: AuthHook = (
            SignedTokenAuth(SECRET, **given)
            if kind == "signed"
            else JWTAuth(SECRET, algorithms="HS256", **given)
        )

    def token(self, expires: float, mid: int = 7, **claims: Any) -> str:
        if isinstance(self.auth, SignedTokenAuth):
            return self.auth.sign(mid=mid, expires=expires, **claims)
        return jwt.encode({"sub": str(mid), "exp": expires, **claims}, SECRET)


@pytest.fixture(params=["signed", "jwt"])
def signer(request: pytest.FixtureRequest) -> Signer:
    return Signer(request.param)


async def handshake(world: World, **headers: str) -> WebSocket:
    client = WebSocket(await world.dial("ws"))
    extra = [(name.encode(), value.encode()) for name, value in headers.items()]
    await client.send_raw(client.ws.send(Request(host="localhost", target="/sub", extra_headers=extra)))
    assert isinstance(await client.event(), AcceptConnection)
    return client


def later() -> float:
    return time.time() + 600


@both
@pytest.mark.parametrize("form", ["{}", '{{"token":"{}","mid":8}}'])
async def test_a_token_in_the_auth_frame(wire: str, form: str, signer: Signer) -> None:
    async with serve(auth=signer.auth) as world:
        client = await world.connect(wire)
        await client.send(frame(7, form.format(signer.token(later(), accepts=[1000])).encode(), seq=1))
        assert await client.read() == frame(8, seq=1)
        await world.server.push_mids([7, 8], 1000, b"to the signed one")
        assert await client.frame() == frame(1000, b"to the signed one")


async def test_a_token_in_the_handshake(signer: Signer) -> None:
    made = signer.token(later())
    async with serve(auth=signer.auth) as world:
        for headers in (
            {"Authorization": f"Bearer {made}"},
            {"Cookie": f"a=b; session={made}"},
            {"Cookie": f"session={made}", "Origin": "http://localhost"},
            {"Cookie": f"session={made}", "Origin": "https://example.org"},
        ):
            client = await handshake(world, **headers)
            await client.send(frame(7, b'{"room_id":"live://1"}', seq=1))
            assert await client.read() == frame(8, seq=1)
            assert await client.beat() == 1
            client.close()
            await until(lambda: not world.server.stats().users)


async def test_a_page_of_another_site_may_not_use_the_cookie(signer: Signer) -> None:
    async with serve(auth=signer.auth) as world:
        made = signer.token(later())
        client = await handshake(world, Cookie=f"session={made}", Origin="https://evil.example")
        await client.send(frame(7))
        assert await client.told() == (4001, "origin: pages of this origin may not use the cookie")


@both
@pytest.mark.parametrize("body", [b"", b"{}", b"\xff", b"a" * 4096, b'{"mid":1}', b"a.b.c"])
async def test_what_is_no_token(wire: str, body: bytes, signer: Signer) -> None:
    async with serve(auth=signer.auth) as world:
        client = await world.connect(wire)
        await client.send(frame(7, body))
        told = await client.told()
        assert told.code == CloseCode.AUTH_REFUSED
        assert told.message.startswith("token: ")
        assert world.server.stats().users == 0


@both
async def test_a_token_that_has_run_out(wire: str, signer: Signer) -> None:
    clock = ManualClock()
    async with serve(auth=signer.auth, clock=clock) as world:
        made = signer.token(clock.time() + 5)
        client = await world.connect(wire)
        clock.advance(5)
        await client.send(frame(7, made.encode()))
        assert await client.told() == (CloseCode.EXPIRED, "token: expired")


@both
async def test_a_token_is_refreshed(wire: str, signer: Signer) -> None:
    clock = ManualClock()
    async with serve(auth=signer.auth, clock=clock) as world:
        client = await world.connect(wire)
        await client.send(frame(7, signer.token(clock.time() + 60, accepts=[18, 38]).encode(), seq=1))
        assert await client.read() == frame(8, seq=1)
        await client.send(frame(38, signer.token(clock.time() + 600, mid=8).encode(), seq=2))
        refused = await client.read()
        assert refused[:16] == frame(18, refused[16:], seq=2)[:16], "the user has to be the same"
        await client.send(frame(38, signer.token(clock.time() + 600).encode(), seq=3))
        assert await client.read() == frame(39, seq=3)
        # One that does not refresh its token is told when it runs out, and that is after this moment.
        other = await world.connect(wire)
        await other.send(frame(7, signer.token(clock.time() + 60, mid=9).encode(), seq=1))
        assert await other.read() == frame(8, seq=1)
        clock.advance(61)
        assert (await other.told()).code == CloseCode.EXPIRED
        await client.beat()
