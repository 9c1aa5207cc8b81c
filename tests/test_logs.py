"""Logs: formats that cannot be forged, and one line for each connection that ends."""

from __future__ import annotations

import json
import logging
import socket
import ssl
import sys
from collections.abc import Iterator

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goim_core import Server, SignedTokenAuth
from goim_core.errors import Disconnect
from goim_core.logs import JSONFormatter, TextFormatter, shown
from goim_core.options import Options
from goim_core.protocol import Op
from goim_core.testing import running

END = "goim_core.connection"
anything = st.text(st.characters(), max_size=20)


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    return logging.getLogger("test").makeRecord(
        "test", logging.INFO, "x.py", 1, message, args, None, extra=extra
    )


@given(anything)
def test_a_value_stays_on_its_line(text: str) -> None:
    line = shown(text)
    assert line.isprintable()
    assert len(line.splitlines()) <= 1
    if text.isprintable():
        assert line == text
    assert TextFormatter().format(record("got %s", text)) == f"INFO test: got {line}"


def test_what_is_escaped() -> None:
    assert shown("caf\u00e9 a\\b") == "caf\u00e9 a\\b"
    assert shown("a\nINFO forged\r\x1b[31m\u2028\ud800") == r"a\nINFO forged\r\x1b[31m\u2028\ud800"


@given(anything, anything)
def test_json_is_one_line_that_gives_everything_back(text: str, value: str) -> None:
    line = JSONFormatter().format(record("%s", text, key=value))
    assert line.isascii()
    assert line.isprintable()
    found = json.loads(line)
    assert (found["message"], found["key"]) == (text, value)


def test_json() -> None:
    one = record("%d of %d", 1, 2, mid=7, rooms={"a"}, message_="x")
    one.created = 1_700_000_000.1239
    assert list(json.loads(JSONFormatter().format(one)).items()) == [
        ("time", "2023-11-14T22:13:20.123Z"),
        ("level", "INFO"),
        ("logger", "test"),
        ("message", "1 of 2"),
        ("mid", 7),
        ("rooms", "{'a'}"),
        ("message_", "x"),
    ]
    one.level = "forged"  # a name of our own
    try:
        int("two\nlines")
    except ValueError:
        one.exc_info = sys.exc_info()
    one.stack_info = "the stack"
    found = json.loads(JSONFormatter().format(one))
    assert (found["level"], found["stack"]) == ("INFO", "the stack")
    assert found["exception"].startswith("Traceback")
    assert "\nValueError: " in found["exception"]


@pytest.fixture
def endings(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, END):
        yield caplog


def fields(record: logging.LogRecord) -> dict[str, object]:
    names = ("key", "mid", "address", "transport", "room", "code", "reason", "drops")
    return {name: getattr(record, name) for name in names}


@pytest.mark.anyio
async def test_each_end_is_one_line(endings: pytest.LogCaptureFixture) -> None:
    async with running(options=Options(outbox_packets=1)) as app:
        client = await app.connect(
            {"mid": 7, "key": "7/a", "room_id": "live://1"}, "ws", address="192.0.2.7", capacity=300
        )
        client.pause_reading()
        for _ in range(4):
            await app.push_room("live://1", 1000, "x" * 200)
            await app.idle()
        client.break_link()
        await app.idle()
        [line] = [line for line in endings.records if line.name == END]
        reason = line.reason  # type: ignore[attr-defined]
        assert fields(line) == {
            "key": "7/a", "mid": 7, "address": "192.0.2.7", "transport": "ws", "room": "live://1",
            "code": 4007, "reason": reason, "drops": 3,
        }  # fmt: skip
        assert line.levelno == logging.INFO
        assert line.getMessage() == f"7/a (user 7, ws from 192.0.2.7) ended: {reason} (4007), 3 dropped"
        assert sum(app.server.stats().drops.values()) == 3


@pytest.mark.anyio
async def test_ends_before_authentication_are_lines_too(endings: pytest.LogCaptureFixture) -> None:
    async with running() as app:
        await app.open("tcp", address="192.0.2.1")
        half = await app.open("ws", address="192.0.2.2")
        await half.send_bytes(b"\x00\x00")  # no WebSocket frame that a client may send
        await app.idle()
        gone = await app.open("tcp")
        gone.close()
        await app.idle()
        await app.advance(13)
        lines = [line.getMessage() for line in endings.records if line.name == END]
    assert len(lines) == 3
    assert max(lines).startswith("192.0.2.2 (ws, nobody yet) ended: ")
    assert max(lines).endswith(" (1002), 0 dropped")
    assert "192.0.2.1 (tcp, nobody yet) ended: no authentication in time (4002), 0 dropped" in lines
    assert (
        "127.0.0.1 (tcp, nobody yet) ended: connection lost: connection closed by the peer (4007), 0 dropped"
        in lines
    )


@pytest.mark.anyio
@pytest.mark.parametrize("door", ["tls", "wss"])
async def test_a_handshake_that_fails_is_a_line(door: str, endings: pytest.LogCaptureFixture) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    theirs, ours = socket.socketpair()
    theirs.setblocking(False)
    auth = SignedTokenAuth([b"a secret that is long enough"])
    with ours, anyio.fail_after(20):
        async with Server(auth=auth, ssl_context=context) as server:
            server.accept(theirs, door, "192.0.2.3")
            ours.send(b"this is no TLS")
            while server.stats().connections:
                await anyio.lowlevel.checkpoint()
    [line] = [line for line in endings.records if line.name == END]
    assert line.getMessage().startswith(f"192.0.2.3 ({door}, nobody yet) ended: connection lost: ")


@pytest.mark.anyio
async def test_a_reason_cannot_look_like_a_line(endings: pytest.LogCaptureFixture) -> None:
    async with running() as app:
        client = await app.connect({"mid": 1, "key": "k"})
        await app.server.disconnect_keys(["k"], Disconnect("off\nINFO goim_core.connection: forged"))
        await app.idle()
        client.close()
        await app.advance(3)
    [line] = [line for line in endings.records if line.name == END]
    assert line.getMessage().count("\n") == 0
    assert line.reason == "off\nINFO goim_core.connection: forged"  # type: ignore[attr-defined]


@pytest.mark.anyio
async def test_no_line_where_nobody_wants_one(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goim_core.conversation.tell_ending", None)  # not even called
    with caplog.at_level(logging.WARNING, END):
        async with running() as app:
            client = await app.connect({"mid": 1})
            await client.send(Op.HEARTBEAT)
            client.break_link()
            await app.idle()
            assert app.server.stats().closes == {4007: 1}
