"""The bytes of goim's protocol on real sockets: every operation, every limit, every cut."""

from __future__ import annotations

import json

import anyio
import pytest

from goim_core import Frame, MessageHook, Options, Session
from goim_core.testing import ManualClock
from tests.e2e.clients import both, frame, int32, serve

pytestmark = pytest.mark.anyio

TOKEN = b'{"mid":123,"key":"","room_id":"live://1000","platform":"web","accepts":[1000,1001]}'

# What a client in live://1000 sends and what it gets, byte for byte.
EXCHANGES = {
    "heartbeat": (
        "00000010 0010 0001 00000002 00000007",
        "00000014 0010 0001 00000003 00000007 00000001",
    ),
    "heartbeat of another version": (
        "00000010 0010 0002 00000002 fffffffe",
        "00000014 0010 0002 00000003 fffffffe 00000001",
    ),
    "send message": (
        "00000012 0010 0001 00000004 00000008 6869",
        "00000010 0010 0001 00000004 00000008",
    ),
    "send message reply": (
        "00000012 0010 0001 00000005 00000008 6869",
        "00000010 0010 0001 00000005 00000008",
    ),
    "change room": (
        "00000018 0010 0001 0000000c 00000009 6c6976653a2f2f32",
        "00000018 0010 0001 0000000d 00000009 6c6976653a2f2f32",
    ),
    "leave room": (
        "00000010 0010 0001 0000000c 0000000a",
        "00000010 0010 0001 0000000d 0000000a",
    ),
    "subscribe": (
        "00000019 0010 0001 0000000e 0000000b 313030302c31303031",
        "00000019 0010 0001 0000000f 0000000b 313030302c31303031",
    ),
    "unsubscribe": (
        "00000014 0010 0001 00000010 0000000c 31303030",
        "00000014 0010 0001 00000011 0000000c 31303030",
    ),
    "an application's operation": (
        "00000011 0010 0003 000003e8 7fffffff 78",
        "00000010 0010 0003 000003e8 7fffffff",
    ),
}


@both
async def test_auth(wire: str) -> None:
    async with serve() as world:
        client = await world.connect(wire)
        await client.send(bytes.fromhex("00000063 0010 0001 00000007 00000001") + TOKEN)
        reply = client.on_wire(bytes.fromhex("00000010 0010 0001 00000008 00000001"))
        assert await client.receive_exactly(len(reply)) == reply


@both
@pytest.mark.parametrize("exchange", EXCHANGES)
async def test_exchange(wire: str, exchange: str) -> None:
    sent, reply = (bytes.fromhex(text) for text in EXCHANGES[exchange])
    async with serve() as world:
        client = await world.login(wire, room="live://1000")
        await client.send(sent)
        assert await client.receive_exactly(len(client.on_wire(reply))) == client.on_wire(reply)


@both
async def test_push(wire: str) -> None:
    async with serve() as world:
        client = await world.login(wire, room="live://1000")
        await world.server.push_room("live://1000", 1000, b"hi")
        push = client.on_wire(bytes.fromhex("00000012 0010 0001 000003e8 00000000 6869"))
        assert await client.receive_exactly(len(push)) == push


@both
async def test_farewell(wire: str) -> None:
    async with serve() as world:
        client = await world.connect(wire)
        await client.send(frame(7, b"[]"))
        body = b'{"code":4001,"message":"token: expected a JSON object, got list"}'
        close = b"" if wire == "tcp" else b"\x88\x29\x0f\xa1token: expected a JSON object, got list"
        assert await client.rest() == client.on_wire(frame(6, body)) + close


@both
async def test_batch(wire: str) -> None:
    clock = ManualClock()
    async with serve(clock=clock, options=Options(linger=1.0)) as world:
        client = await world.login(wire, room="live://1")
        for body in (b"a", b"bc", b""):
            await world.server.push_room("live://1", 1000, body)
        await anyio.wait_all_tasks_blocked()
        await client.beat()  # nothing came before its answer
        clock.advance(1.0)
        batch = frame(1000, b"a") + frame(1000, b"bc") + frame(1000)
        if wire == "ws":
            batch = client.on_wire(frame(9, batch))
        assert await client.receive_exactly(len(batch)) == batch


@both
async def test_a_batch_that_is_full_does_not_linger(wire: str) -> None:
    async with serve(clock=ManualClock(), options=Options(linger=1.0, batch=2)) as world:
        client = await world.login(wire, room="live://1")
        for body in (b"1", b"2"):
            await world.server.push_room("live://1", 1000, body)
        assert [await client.frame(), await client.frame()] == [frame(1000, b"1"), frame(1000, b"2")]


@both
async def test_the_largest_body_is_accepted(wire: str) -> None:
    async with serve() as world:
        client = await world.login(wire)
        await client.send(frame(1000, bytes(4096), seq=1))
        assert await client.read() == frame(1000, seq=1)


@both
@pytest.mark.parametrize("live", [True, False])
async def test_a_larger_body_closes(wire: str, live: bool) -> None:
    async with serve() as world:
        client = await (world.login(wire) if live else world.connect(wire))
        await client.send(frame(1000, bytes(4097)))
        told = await client.told()
        assert told == (1009, "package length: expected at most 4112, got 4113")


@both
async def test_max_body_is_an_option(wire: str) -> None:
    async with serve(options=Options(max_body=60)) as world:
        client = await world.login(wire)
        await client.send(frame(1000, bytes(60)))
        assert await client.read() == frame(1000)
        await client.send(frame(1000, bytes(61)))
        assert (await client.told()).code == 1009


@both
async def test_a_push_may_be_as_large_as_it_likes(wire: str) -> None:
    body = bytes(range(256)) * 4096
    async with serve(options=Options(outbox_bytes=1 << 21)) as world:
        client = await world.login(wire, key="k", accepts=[1000])
        await world.server.push_keys(["k"], 1000, body)
        assert await client.read() == frame(1000, body)


@both
async def test_cut_at_every_byte(wire: str) -> None:
    async with serve() as world:
        other = await world.login(wire)
        client = await world.login(wire)
        for cut in range(1, len(client.as_sent(frame(1000, b"body")))):
            data = client.as_sent(frame(1000, b"body", seq=cut))
            await client.send_raw(data[:cut])
            # One loop runs all of this: when the other has its answer, the first part has been read.
            await other.beat()
            await client.send_raw(data[cut:])
            assert await client.read() == frame(1000, seq=cut)


@both
async def test_byte_by_byte_from_the_start(wire: str) -> None:
    async with serve() as world:
        other = await world.login(wire)
        client = await world.connect(wire)
        data = client.as_sent(frame(7, TOKEN, seq=1)) + client.as_sent(frame(2, seq=2))
        for at in range(len(data)):
            await client.send_raw(data[at : at + 1])
            await other.beat()
        assert await client.read() == frame(8, seq=1)
        assert await client.read() == frame(3, int32(1), seq=2)


@both
async def test_before_auth_everything_else_is_skipped(wire: str) -> None:
    async with serve() as world:
        client = await world.connect(wire)
        await client.send(frame(2), frame(1000, b"x"), frame(12, b"live://1"), frame(14, b"1000"))
        await client.login()
        assert await client.beat() == 0


@both
async def test_auth_and_what_follows_in_one_packet(wire: str) -> None:
    async with serve() as world:
        client = await world.connect(wire)
        await client.send(frame(7, TOKEN, seq=1), frame(2, seq=2), frame(12, b"live://2", seq=3))
        assert await client.read() == frame(8, seq=1)
        assert await client.read() == frame(3, int32(1), seq=2)
        assert await client.read() == frame(13, b"live://2", seq=3)


@both
async def test_heartbeat_counts_the_room(wire: str) -> None:
    async with serve() as world:
        first = await world.login(wire, room="live://1")
        second = await world.login("tcp", room="live://1")
        outside = await world.login("ws")
        assert [await first.beat(), await second.beat(), await outside.beat()] == [2, 2, 0]
        await second.send(frame(12))
        assert await second.read() == frame(13)
        assert [await first.beat(), await second.beat()] == [1, 0]


@both
async def test_change_room(wire: str) -> None:
    async with serve() as world:
        client = await world.login(wire, room="live://1")
        await client.send(frame(12, b"live://2", seq=5))
        assert await client.read() == frame(13, b"live://2", seq=5)
        await world.server.push_room("live://1", 1000, b"old")
        await world.server.push_room("live://2", 1000, b"new")
        assert await client.frame() == frame(1000, b"new")
        assert world.server.online_rooms(["live://1", "live://2"]) == {"live://1": 0, "live://2": 1}


@both
@pytest.mark.parametrize(
    ("op", "body"),
    [
        (12, b"lobby"),
        (12, b"live://"),
        (12, b"\xff://1"),
        (14, b"1,x"),
        (14, b""),
        (16, b"-1"),
        (14, b"2147483648"),
    ],
)
async def test_a_body_that_does_not_fit_changes_nothing(wire: str, op: int, body: bytes) -> None:
    async with serve() as world:
        client = await world.login(wire, room="live://1", key="k", accepts=[1000])
        await client.send(frame(op, body, seq=4))
        # Nothing is claimed: the room it is still in, no operations.
        assert await client.read() == frame(op + 1, b"live://1" if op == 12 else b"", seq=4)
        await world.server.push_keys(["k"], 1000, b"still")
        assert await client.frame() == frame(1000, b"still")


@both
@pytest.mark.parametrize("op", [0, 1, 7, 9, 10, 11, 18, 63])
async def test_operations_that_are_not_a_clients_are_refused(wire: str, op: int) -> None:
    async with serve() as world:
        client = await world.login(wire, accepts=[18])
        await client.send(frame(op, b"x", seq=6))
        error = await client.read()
        assert error[:16] == frame(18, error[16:], seq=6)[:16]
        answer = json.loads(error[16:])
        assert (answer["op"], answer["code"]) == (op, 409 if op == 7 else 400)
        assert await client.beat() == 0


class Echo(MessageHook):
    """Answers with bytes, or with a frame of its own for op 2000."""

    def receive(self, session: Session, frame: Frame) -> Frame | bytes:
        if frame.op == 2000:
            return Frame(2001, frame.body, seq=frame.seq, ver=9)
        return frame.body.upper()


@both
async def test_answers_of_a_message_hook(wire: str) -> None:
    async with serve(messages=Echo()) as world:
        client = await world.login(wire)
        await client.send(frame(4, b"abc", seq=1, ver=2), frame(2000, b"abc", seq=2))
        assert await client.read() == frame(4, b"ABC", seq=1, ver=2)
        assert await client.read() == frame(2001, b"abc", seq=2, ver=9)


@both
async def test_heartbeat_allowance(wire: str) -> None:
    clock = ManualClock()
    async with serve(clock=clock, options=Options(heartbeat=60.0, heartbeat_max=2)) as world:
        silent = await world.login(wire)
        client = await world.login(wire)
        clock.advance(119.0)
        await client.beat()
        clock.advance(1.5)
        assert await silent.told() == (4003, "no heartbeat in time")
        clock.advance(117.0)
        await client.beat()
        clock.advance(119.5)
        await client.beat()
        clock.advance(120.5)
        assert (await client.told()).code == 4003


@both
async def test_only_heartbeats_keep_a_connection(wire: str) -> None:
    clock = ManualClock()
    async with serve(clock=clock, options=Options(heartbeat=60.0, heartbeat_max=2)) as world:
        client = await world.login(wire)
        clock.advance(119.0)
        await client.send(frame(1000))
        assert await client.read() == frame(1000)
        clock.advance(1.5)
        assert (await client.told()).code == 4003
