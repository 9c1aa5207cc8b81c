"""The trace of a user: what it tells, when it begins and ends, and that others are left alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goim_core.clock import SystemClock
from goim_core.errors import Disconnect
from goim_core.hooks import MessageHook
from goim_core.options import Options
from goim_core.outgoing import OutgoingFrames, Sent
from goim_core.protocol import Frame, Op, encode
from goim_core.session import Session
from goim_core.testing import App, running
from goim_core.trace import Tracer
from goim_core.wire import Packet, websocket_binary
from tests.test_operator_api import ask

# The frames that leave.

packets = st.lists(
    st.lists(
        st.tuples(st.integers(64, 2**31 - 1), st.integers(0, 9), st.binary(max_size=300)),
        min_size=1,
        max_size=4,
    ),
    max_size=5,
)


@given(packets, st.booleans(), st.lists(st.integers(1, 40), min_size=1, max_size=8), st.booleans())
def test_frames_are_read_back_however_they_are_cut(
    batches: list[list[tuple[int, int, bytes]]], websocket: bool, steps: list[int], control: bool
) -> None:
    stream, expected = b"", []
    for batch in batches:
        stream += Packet([encode(op, body, seq) for op, seq, body in batch]).forms[websocket]
        expected += [Sent(f"op {op}", seq, len(body)) for op, seq, body in batch]
        if websocket and control:
            stream += b"\x8a\x03abc\x89\x00"
            expected += [Sent("pong", None, 3), Sent("ping", None, 0)]
    frames = OutgoingFrames(websocket=websocket)
    found, at = [], 0
    while at < len(stream):
        step = steps[at % len(steps)]
        found += list(frames.feed(stream[at : at + step]))
        at += step
    assert found == expected


@pytest.mark.parametrize("size", [125, 126, 70_000])
def test_the_rest_of_a_frame_is_passed_over(size: int) -> None:
    one = websocket_binary(encode(1000, bytes(size)))
    frames = OutgoingFrames(websocket=True, skip=len(one) - 9)
    assert list(frames.feed(memoryview(one)[9:])) == []
    assert list(frames.feed(one + b"\x88\x02\x03\xe8")) == [Sent("op 1000", 0, size), Sent("close", None, 2)]


# The lines.


def texts(app: App, mid: int = 7) -> list[str]:
    return [line.text for line in app.server.trace_lines()[0] if line.mid == mid]


class Echo(MessageHook):
    def receive(self, session: Session, frame: Frame) -> bytes:
        return b"secret answer"


@pytest.mark.anyio
@pytest.mark.parametrize(("wire", "kind"), [("tcp", "tcp"), ("ws", "websocket")])
async def test_a_life(wire: str, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "goim_core.trace"):
        async with running(messages=Echo(), options=Options(linger=1)) as app:
            app.server.trace(7)
            client = await app.connect(
                {"mid": 7, "key": "k", "room_id": "live://1", "accepts": [24, 26, 1002]}, wire
            )
            await client.heartbeat()
            await client.request(Op.JOIN, "live://2")
            await client.request(Op.LEAVE, "live://2")
            await client.request(1000, "my secret")
            for _ in range(3):
                await app.push_room("live://1", 1001, "secret")
            await app.advance(1)
            await app.push_mids([7], 1002, "")
            await app.server.disconnect_keys(["k"], Disconnect("go\naway", 4100))
            await app.idle()
            client.close()
            await app.advance(3)
            lines = texts(app)
    seqs = [10_001 + number for number in range(5)]
    said = [line for line in lines if "control frame" not in line]
    assert (
        said[:18]
        == [
            f"traced: {kind} from 127.0.0.1, rooms: live://1",
            f"-> op 8 seq {seqs[0]}, 0 bytes",
            f"<- op 2 seq {seqs[1]}, 0 bytes",
            f"-> op 3 seq {seqs[1]}, 4 bytes",
            f"<- op 24 seq {seqs[2]}, 8 bytes",
            f"-> op 25 seq {seqs[2]}, 8 bytes",
            "entered live://2",
            f"<- op 26 seq {seqs[3]}, 8 bytes",
            f"-> op 27 seq {seqs[3]}, 8 bytes",
            "left live://2",
            f"<- op 1000 seq {seqs[4]}, 9 bytes",
            f"-> op 1000 seq {seqs[4]}, 13 bytes",
            "-> op 1001, 3 frames, 18 bytes",
            "-> op 1002 seq 0, 0 bytes",
            said[14],
            *(["-> close, 9 bytes"] if wire == "ws" else []),
            r"end: go\naway (4100)",
        ][:18]
    )
    assert said[14].startswith("-> op 6 seq 0, ")
    records = [record for record in caplog.records if record.name == "goim_core.trace"]
    assert [record.getMessage() for record in records] == [f"7 k: {line}" for line in lines]
    assert {(record.mid, record.key) for record in records} == {(7, "k")}  # type: ignore[attr-defined]
    assert not any("secret" in line for line in lines)


@pytest.mark.anyio
async def test_it_is_switched_on_and_off_while_the_server_runs() -> None:
    async with running(messages=Echo()) as app:
        client = await app.connect({"mid": 7, "room_id": "live://1"})
        other = await app.connect({"mid": 8, "room_id": "live://1"})
        plain = [(c.connection.wire, c.connection.channel.sock) for c in (client, other)]
        for _ in range(2):  # twice is once
            app.server.trace(7)
        await client.request(1000, "x")
        await other.request(1000, "x")
        app.server.trace(7, False)
        await client.request(1000, "x")
        await app.push_room("live://1", 1000, "x")
        await app.idle()
        assert texts(app) == [
            "traced: tcp from 127.0.0.1, rooms: live://1",
            "<- op 1000 seq 10002, 1 bytes",
            "-> op 1000 seq 10002, 13 bytes",
        ]
        assert texts(app, 8) == []
        assert [(c.connection.wire, c.connection.channel.sock) for c in (client, other)] == plain
        assert app.server._counters.on_drop is None


@pytest.mark.anyio
async def test_switched_off_while_it_is_being_switched_on() -> None:
    async with running() as app:
        client = await app.connect({"mid": 7})
        plain = client.connection.wire
        steps = app.server.switch_trace(7, on=True)
        next(steps)
        app.server.trace(7, False)
        assert list(steps)
        assert client.connection.wire is plain


@pytest.mark.anyio
async def test_drops_are_told_with_their_reason() -> None:
    async with running(options=Options(outbox_packets=1)) as app:
        app.server.trace(7)
        clients = [await app.connect({"mid": mid, "room_id": "live://1"}, capacity=100) for mid in (7, 8)]
        for client in clients:
            client.pause_reading()
        for _ in range(3):
            await app.push_room("live://1", 1000, "x" * 200)
            await app.idle()
        clients[0].break_link()
        await app.idle()
        lines = texts(app)
        assert lines[1:4] == [
            "-> op 8 seq 10001, 0 bytes",
            "dropped 1: drop_newest",
            "dropped 1: drop_newest",
        ]
        assert lines[4] == "dropped 1: lost"
        assert lines[5].startswith("end: connection lost")
        assert len(lines) == 6
        assert texts(app, 8) == []


@pytest.mark.anyio
@pytest.mark.parametrize("wire", ["tcp", "ws"])
async def test_a_trace_that_begins_within_a_frame(wire: str) -> None:
    async with running() as app:
        client = await app.connect({"mid": 7, "room_id": "live://1"}, wire, capacity=100)
        client.pause_reading()
        for number in range(3):
            await app.push_room("live://1", 1000 + number, "x" * 200)
            await app.idle()
        app.server.trace(7)
        client.resume_reading()
        await app.idle()
        for number in range(3):
            await client.assert_push(1000 + number, "x" * 200)
        assert texts(app)[1:] == ["-> op 1001 seq 0, 200 bytes", "-> op 1002 seq 0, 200 bytes"]


@pytest.mark.anyio
async def test_lines_by_number() -> None:
    async with running(messages=Echo()) as app:
        app.server.trace(7)
        client = await app.connect({"mid": 7, "key": "k"})
        for _ in range(600):
            await client.request(1000)
        trace = "/goim/operator/trace"
        _, first = await ask(app.server, f"{trace}?after=0")
        data = first["data"]
        # 2 of the beginning and 2 for each request: the oldest are gone.
        assert data["traced"] == [7]
        assert data["next"] == 202 + 500
        assert [line["n"] for line in data["lines"]] == list(range(202, 702))
        assert data["lines"][0] == {
            "n": 202, "time": app.clock.time(), "mid": 7, "key": "k", "text": "<- op 1000 seq 10102, 0 bytes",
        }  # fmt: skip
        _, second = await ask(app.server, f"{trace}?after=702")
        assert [line["n"] for line in second["data"]["lines"]] == list(range(702, 1202))
        _, third = await ask(app.server, f"{trace}?after={second['data']['next']}")
        assert (third["data"]["next"], third["data"]["lines"]) == (1202, [])
        _, later = await ask(app.server, f"{trace}?after=5000")
        assert (later["data"]["next"], later["data"]["lines"]) == (1202, [])


@given(st.lists(st.integers(0, 1200), max_size=6), st.integers(0, 1100))
def test_whoever_asks_for_the_next_misses_nothing_that_is_kept(afters: Sequence[int], told: int) -> None:
    tracer = Tracer(SystemClock())
    for number in range(told):
        tracer.tell(Session(mid=7, key="k"), str(number))
    kept = range(max(0, told - 1000), told)
    for after in afters:
        lines, following = tracer.since(after, 500)
        expected = [number for number in kept if number >= after][:500]
        assert [line.n for line in lines] == [int(line.text) for line in lines] == expected
        assert following == (expected[-1] + 1 if expected else told)
