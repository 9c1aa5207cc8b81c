"""No secret in a log, a text or an error: each real way in is walked with marked secrets, at level DEBUG."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from goim_core import (
    AuthHook,
    AuthRequest,
    ConfigurationError,
    Disconnect,
    OpenAuth,
    Request,
    Server,
    Session,
    SignedTokenAuth,
    server_context,
    sign_token,
)
from goim_core.client import connect
from goim_core.client.address import parse
from goim_core.client.nodes import where
from goim_core.client.settings import Settings
from goim_core.logs import JSONFormatter
from goim_core.settings import server_of
from tests.e2e.clients import World, frame, serve
from tests.test_https import PUSH, dialed
from tests.tls import Authority

pytestmark = pytest.mark.anyio

MARK = "Marked-Secret-0123456789"
ANYWHERE = "127.0.0.1:0"


class Everything(logging.Handler):
    """Each record as every formatter shows it, exceptions and all."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self.fields: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))
        self.fields.append(JSONFormatter().format(record))


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[str]]:
    """What is logged in the test; after it, that no line has a marked secret."""
    handler, logger = Everything(), logging.getLogger()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler.lines
    logger.removeHandler(handler)
    logger.setLevel(before)
    assert not [line for line in (*handler.lines, *handler.fields) if MARK in line]


async def told(world: World, token: bytes, wire: str = "tcp") -> str:
    """What a client is told whose token is not taken."""
    client = await world.connect(wire)
    await client.send(frame(7, token))
    return (await client.told()).message


async def test_a_token_that_is_taken_and_ones_that_are_not(logged: list[str]) -> None:
    async with serve(auth=SignedTokenAuth(MARK)) as world:
        world.server.trace(7)
        good = sign_token(MARK, mid=7, expires=4e9, data={"note": MARK})
        client = await world.connect("ws")
        await client.send(frame(7, good.encode()))
        assert (await client.frame())[8:12] == b"\0\0\0\x08"
        await client.send(frame(38, good.encode()), frame(1000, b"hello"))
        assert (await client.frame())[8:12] == b"\0\0\0\x26"
        lines, _ = world.server.trace_lines()
        assert len(lines) > 3
        assert not [line for line in lines if MARK in line.text or good in line.text]
        other = sign_token("another secret, long enough", mid=7, expires=4e9)
        for bad in (
            other,
            f"goim1.{MARK}.x",
            MARK,
            f'{{"token":"{MARK}"}}',
            f'{{"token":["{MARK}"]}}',
            f"{{{MARK}",
        ):
            assert MARK not in await told(world, bad.encode())
    assert any("ended" in line for line in logged), "the log was looked at"


class Careless(AuthHook):
    """Repeats the token in what it raises, as ``int(token)`` does."""

    def authenticate(self, request: AuthRequest) -> Session:
        return Session(mid=int(request.token))


class CarelessLater(Careless):
    async def authenticate(self, request: AuthRequest) -> Session:  # type: ignore[override]
        await anyio.lowlevel.checkpoint()
        raise KeyError(request.token)


@pytest.mark.parametrize(("hook", "kind"), [(Careless, "ValueError"), (CarelessLater, "KeyError")])
async def test_an_auth_hook_that_raises_with_the_token(
    hook: type[AuthHook], kind: str, logged: list[str]
) -> None:
    async with serve(auth=hook()) as world:
        assert await told(world, MARK.encode()) == "internal error"
    [line] = [line for line in logged if "a hook raised" in line]
    assert line.startswith(f"a hook raised {kind}; its text may repeat the token:")
    assert "in authenticate" in line, "where it was raised is said"


async def test_pushes_with_a_key_and_with_a_wrong_one(tmp_path: Path, logged: list[str]) -> None:
    authority = Authority(tmp_path)
    context = server_context(authority.issue())
    async with serve(https=ANYWHERE, ssl_context=context, api_keys=[MARK]) as world:
        for headers, status in (
            (f"Authorization: Bearer {MARK}\r\n", 200),
            (f"Authorization: Bearer {MARK}x\r\n", 401),
            (f"X-API-Key: {MARK} {MARK}\r\n", 401),
            (f"Authorization: Basic {MARK}\r\nCookie: a={MARK}\r\n", 401),
        ):
            async with dialed(world, authority) as peer:
                assert (await peer.post(f"{PUSH}&token={MARK}", MARK.encode(), headers)).status == status
    assert sum("refused to 127.0.0.1" in line for line in logged) >= 1, "a line a second, see test_guard.py"


async def test_tls_that_fails(tmp_path: Path, logged: list[str]) -> None:
    context = server_context(Authority(tmp_path).issue())
    async with serve(https=ANYWHERE, wss=ANYWHERE, ssl_context=context) as world:
        for door in ("https", "wss"):

            def plain(port: int = world.server.port(door)) -> None:
                with socket.create_connection(("127.0.0.1", port), 10) as sock:
                    sock.sendall(f"GET /?token={MARK} HTTP/1.1\r\nX-API-Key: {MARK}\r\n\r\n".encode())
                    while sock.recv(1000):
                        pass

            await anyio.to_thread.run_sync(plain)
    assert any("ended" in line for line in logged)


async def test_a_client_that_cannot_connect() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        at = f"me:{MARK}@127.0.0.1:{nobody.getsockname()[1]}/sub?token={MARK}"
        for url in (f"ws://{at}", f"http://{at}"):
            with pytest.raises(OSError) as failed:  # noqa: PT011
                async with connect(url, token=MARK, backoff=None):
                    pass
            assert MARK not in str(failed.value)


# Texts


@pytest.mark.parametrize(
    "shown",
    [
        AuthRequest(MARK.encode(), path=f"/sub?token={MARK}", headers={"cookie": MARK}),
        Session(mid=7, data=MARK),
        Request("POST", "/login", {}, {"authorization": MARK}, MARK.encode()),
        parse(f"wss://host/sub?token={MARK}"),
        SignedTokenAuth(MARK),
    ],
)
def test_a_secret_is_not_shown(shown: object) -> None:
    assert MARK not in repr(shown)
    assert MARK not in str(shown)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Server(auth=OpenAuth(), storage=f"postgres://me:{MARK}@db/x"),  # type: ignore[arg-type]
        lambda: Server(auth=MARK),  # type: ignore[arg-type]
        lambda: Server(auth=OpenAuth(), api_keys=[f"{MARK} with blanks"]),
        lambda: Server(auth=OpenAuth(), api_keys=MARK),
        lambda: SignedTokenAuth([MARK, MARK[:5]]),
        lambda: SignedTokenAuth({MARK: 1}[MARK]),  # type: ignore[arg-type]
        lambda: server_of({"auth": "signed", "signed": {"secret_file": [MARK]}}),
        lambda: server_of({"auth": "open", "storage": f"postgre://me:{MARK}@db/x"}),
        lambda: parse(f"wsx://me:{MARK}@host"),
        lambda: parse(f"ws://me:{MARK}@host:port"),
        lambda: where(f"http://me:{MARK}@h\xf6st", None, Settings(token=MARK)),
    ],
)
def test_a_mistake_is_told_without_the_secret(wrong: Any) -> None:
    with pytest.raises((ConfigurationError, ValueError)) as caught:
        wrong()
    assert MARK not in str(caught.value)
    assert MARK[:5] not in str(caught.value)


def test_a_refusal_may_say_what_it_likes() -> None:
    assert Disconnect(MARK).reason == MARK  # what a hook says to a client is the application's own
