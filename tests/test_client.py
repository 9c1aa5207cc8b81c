"""The client that stays connected, against a server whose answers the test writes."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from goim_core import Disconnect, Op, ProtocolError, Refused
from goim_core.client import (
    EXTENSIONS,
    Backoff,
    Client,
    ClientState,
    LastSeen,
    Members,
    Message,
    Presence,
    connect,
)
from goim_core.protocol import encode
from goim_core.testing.clock import ManualClock
from goim_core.wire import disconnect_frame
from tests.scripted import Peer, Scripted, States, scripted

pytestmark = pytest.mark.anyio

AT_ONCE = Backoff(first=0, base=0)
OPEN, WAITING, CLOSED = ClientState.OPEN, ClientState.WAITING, ClientState.CLOSED


@asynccontextmanager
async def talking(**options: Any) -> AsyncIterator[tuple[Client, Peer, Scripted]]:
    async with scripted() as server:
        async with connect(
            server.url, **{"token": b"t", "backoff": AT_ONCE, "close_timeout": 0.05, **options}
        ) as client:
            peer = await server.peer()
            yield client, peer, server


async def take(client: Client, count: int) -> list[tuple[int, bytes]]:
    return [(message.seq, message.body) for message in [await client.receive() for _ in range(count)]]


async def idle() -> None:
    await anyio.wait_all_tasks_blocked()


# Requests.


async def test_requests_are_answered_in_any_order() -> None:
    async with talking() as (client, peer, _):
        replies: dict[str, bytes] = {}

        async def ask(body: str) -> None:
            replies[body] = (await client.request(1000, body)).body

        async with anyio.create_task_group() as tasks:
            for body in "abc":
                tasks.start_soon(ask, body)
            for frame in reversed([await peer.request(1000) for _ in "abc"]):
                await peer.send(1000, frame.body.upper(), frame.seq)
        assert replies == {"a": b"A", "b": b"B", "c": b"C"}


async def test_a_reply_is_no_message_and_a_message_no_reply() -> None:
    async with talking() as (client, peer, _):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.request, 1000, b"?")
            frame = await peer.request(1000)
            await peer.send(1000, b"pushed", 1)  # goim_core's number in the inbox
            await peer.send(1000, b"!", frame.seq)
        await client.send(1000, b"nobody waits")
        await peer.reply(await peer.request(1000))
        await peer.send(1001, b"pushed too")
        assert await take(client, 2) == [(1, b"pushed"), (0, b"pushed too")]


async def test_a_refusal_is_raised_where_it_was_caused(caplog: pytest.LogCaptureFixture) -> None:
    async with talking() as (client, peer, _):
        refusal = json.dumps({"op": 24, "code": 404, "message": "no such room"}).encode()

        async def refuse() -> None:
            await peer.send(Op.ERROR, refusal, (await peer.request(Op.JOIN)).seq)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(refuse)
            with pytest.raises(Refused, match="no such room") as told:
                await client.join("live://1")
        assert told.value.code == 404
        assert client.rooms == frozenset()
        with caplog.at_level(logging.WARNING, "goim_core.client"):
            await client.send(1000, b"x")
            await peer.send(Op.ERROR, refusal, (await peer.request(1000)).seq)
            await peer.send(1000, b"next")
            await client.receive()
        assert "no such room" in caplog.text


async def test_a_request_without_a_reply_in_time() -> None:
    clock = ManualClock()
    async with talking(clock=clock) as (client, peer, _):

        async def later() -> None:
            frame = await peer.request(1000)
            await advance(clock, 10)
            await idle()
            await peer.send(1000, b"late", frame.seq)
            await peer.send(1001, b"x")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(later)
            with pytest.raises(TimeoutError, match="operation 1000: no reply within 10 s"):
                await client.request(1000)
        assert (await client.receive()).op == 1001


async def test_a_request_whose_connection_breaks_is_not_repeated() -> None:
    async with talking() as (client, peer, server):

        async def leave() -> None:
            await peer.request(1000)
            await peer.close()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leave)
            with pytest.raises(Disconnect) as told:
                await client.request(1000)
        assert told.value.code == 4007
        second = await server.peer()
        await client.send(1001)
        assert (await second.frame()).op == 1001


async def test_who_sends_while_it_is_not_connected_waits() -> None:
    states, clock = States(), ManualClock()
    async with talking(on_state=states, clock=clock, backoff=Backoff(first=4), random=lambda: 1.0) as (
        client,
        peer,
        server,
    ):
        await peer.close()
        assert (await states.until(WAITING)).delay == 4
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.send, 1000, b"x")
            await idle()
            clock.advance(4)
            assert (await (await server.peer()).request(1000)).body == b"x"


async def test_who_sends_while_it_is_not_connected_does_not_wait_for_ever() -> None:
    states, clock = States(), ManualClock()
    backoff = Backoff(first=50)
    async with talking(on_state=states, clock=clock, backoff=backoff, random=lambda: 1.0) as (
        client,
        peer,
        _,
    ):
        await peer.close()
        await states.until(WAITING)
        for send in (client.send, client.request):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(advance, clock, 10)
                with pytest.raises(TimeoutError):
                    await send(1000)


async def advance(clock: ManualClock, seconds: float) -> None:
    await idle()
    clock.advance(seconds)


async def test_typed_calls() -> None:
    answers = {
        Op.MEMBERS: b'{"room_id":"a://1","online":2,"mids":[7,8],"next":null}',
        Op.LAST_SEEN: b'{"7":{"online":true,"seen":null}}',
        Op.SYNC: encode(1000, b"a", 3) + encode(1001, b"b", 4),
        Op.REFRESH: b"",
    }
    seen: list[tuple[int, bytes]] = []
    async with talking() as (client, peer, _):

        async def answer() -> None:
            while True:
                frame = await peer.frame()
                seen.append((frame.op, frame.body))
                await peer.reply(frame, answers.get(Op(frame.op)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer)
            await client.change_room("a://1")
            await client.join("b://1")
            await client.watch("a://1")
            await client.subscribe(1000, 1001)
            assert client.rooms == {"a://1", "b://1"}
            assert await client.members("a://1", limit=2) == Members("a://1", 2, (7, 8), None)
            assert await client.last_seen([7]) == {7: LastSeen(True, None)}
            assert await client.sync(2, 50) == [Message(1000, b"a", 3), Message(1001, b"b", 4)]
            await client.unwatch("a://1")
            await client.unsubscribe(1001)
            await client.leave("b://1")
            await client.refresh({"mid": 7})
            tasks.cancel_scope.cancel()
    assert seen == [
        (12, b"a://1"), (24, b"b://1"), (30, b"a://1"), (14, b"1000,1001"),
        (28, b'{"room_id": "a://1", "offset": 0, "limit": 2}'), (36, b"[7]"), (22, b"2,50"),
        (32, b"a://1"), (16, b"1001"), (26, b"b://1"), (38, b'{"mid": 7}'),
    ]  # fmt: skip


async def test_presence_is_a_message() -> None:
    async with talking() as (client, peer, _):
        await peer.send(Op.PRESENCE, b'{"room_id":"a://1","joined":[7],"left":[],"online":1}')
        message = await client.receive()
        assert message.op == Op.PRESENCE
        assert Presence.read(message.body) == Presence("a://1", (7,), (), 1)


# Messages.


async def test_a_message_is_acknowledged_when_the_next_is_taken() -> None:
    async with talking(ack_every=1) as (client, peer, _):
        for number in (1, 2, 3):
            await peer.send(1000, b"x", number)
        acks = []
        async for message in client:
            if message.seq > 1:
                frame = await peer.request(Op.ACK)
                acks.append(frame.body)
                await peer.reply(frame)
            if message.seq == 3:
                break
        assert acks == [b"1", b"2"]
        assert (client.seen, client.acknowledged) == (3, 2)


@pytest.mark.parametrize("good", [True, False])
async def test_the_last_message_is_acknowledged_if_the_block_ends_well(good: bool) -> None:
    acks = []
    async with scripted() as server:

        async def answer() -> None:
            peer = await server.peer()
            await peer.send(1000, b"x", 1)
            await peer.send(1000, b"x", 2)
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                while True:
                    frame = await peer.request(Op.ACK)
                    acks.append(frame.body)
                    await peer.reply(frame)
            await peer.close()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer)
            try:
                async with connect(server.url, token=b"", ack_delay=100) as client:
                    await client.receive()
                    await client.receive()
                    assert good
            except AssertionError:
                assert not good
    assert acks == [b"2" if good else b"1"]


async def test_messages_acknowledged_by_hand_in_any_order() -> None:
    async with talking(ack="manual", ack_every=1) as (client, peer, _):
        for number in (1, 2, 3, 4):
            await peer.send(1000, b"x", number)
        first, second, third, _ = [await client.receive() for _ in range(4)]
        await third.ack()
        await second.ack()
        await idle()
        await first.ack()
        frame = await peer.request(Op.ACK)
        assert frame.body == b"3"
        await first.ack()
        await peer.reply(frame)


@pytest.mark.parametrize("ack", ["manual", "none"])
async def test_nothing_is_acknowledged_unasked(ack: str) -> None:
    async with talking(ack=ack, ack_every=1) as (client, peer, _):
        await peer.send(1000, b"x", 1)
        await peer.send(1000, b"x", 2)
        message = await client.receive()
        await client.receive()
        if ack == "none":
            await message.ack()
        await client.aclose()
        await peer.ended()


async def test_acknowledgements_wait_for_their_time() -> None:
    clock = ManualClock()
    async with talking(clock=clock) as (client, peer, _):
        for number in range(1, 12):
            await peer.send(1000, b"x", number)
        await take(client, 11)
        await client.send(1001)
        assert (await peer.frame()).op == 1001
        clock.advance(0.1)
        frame = await peer.request(Op.ACK)
        assert frame.body == b"10"
        await peer.reply(frame)


async def test_a_server_without_acknowledgements() -> None:
    async with talking(ack_every=1) as (client, peer, _):
        for number in (1, 2, 3):
            await peer.send(1000, b"x", number)
        await take(client, 2)
        frame = await peer.request(Op.ACK)
        await peer.send(Op.ACK, b"", frame.seq)  # goim's reply to an operation it does not know
        await client.receive()
        await client.aclose()
        await peer.ended()


async def test_who_does_not_take_messages_is_not_sent_more() -> None:
    async with talking(buffer=10) as (client, peer, _):
        sent = 0
        body = bytes(60_000)
        blocked = False
        while not blocked and sent < 2000:
            with anyio.move_on_after(0.2) as scope:
                await peer.stream.send(encode(1000, body))
                sent += 1
            blocked = scope.cancelled_caught
        assert blocked
        assert len(client._keeper.buffer._messages) == 10
        assert len(await take(client, sent)) == sent


async def test_a_request_is_answered_though_nobody_takes_messages() -> None:
    async with talking(buffer=2) as (client, peer, _):
        for number in range(1, 9):
            await peer.send(1000, b"x", number)
        await idle()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.request, 1001)
            await peer.send(1001, b"", (await peer.request(1001)).seq)
        assert [seq for seq, _ in await take(client, 8)] == list(range(1, 9))


# Heartbeats.


async def test_heartbeats_go_out_though_nobody_iterates() -> None:
    clock = ManualClock()
    async with talking(clock=clock, heartbeat=5, heartbeat_timeout=60) as (client, peer, _):
        assert client.online is None
        for online in (3, 4):
            clock.advance(5)
            await peer.request(Op.HEARTBEAT)
            await peer.send(Op.HEARTBEAT_REPLY, online.to_bytes(4))
            await peer.send(1000)
            await client.receive()
            assert client.online == online


async def test_a_connection_without_an_answer_is_dead() -> None:
    clock, states = ManualClock(), States()
    async with talking(clock=clock, on_state=states) as (client, peer, server):
        clock.advance(30)
        await peer.request(Op.HEARTBEAT)
        clock.advance(9.9)
        await idle()
        assert client.state is OPEN
        clock.advance(0.1)
        change = await states.until(WAITING)
        assert change.why is not None
        assert change.why.reason == "no answer to a heartbeat"
        second = await server.peer()
        await states.until(OPEN, 2)
        clock.advance(30)
        await second.request(Op.HEARTBEAT)
        await second.send(1000)
        await client.receive()  # anything that comes is an answer
        clock.advance(10)
        await idle()
        assert client.state is OPEN


async def test_a_connection_that_is_not_read_is_not_dead() -> None:
    clock, states = ManualClock(), States()
    async with talking(clock=clock, on_state=states, buffer=1) as (client, peer, _):
        await peer.send(1000)
        await peer.send(1000)
        await idle()
        for _ in range(3):
            clock.advance(30)
            await peer.request(Op.HEARTBEAT)
            await idle()
        assert client.state is OPEN
        await take(client, 2)
        await idle()
        clock.advance(10)
        await idle()
        assert client.state is OPEN
        clock.advance(30)
        await states.until(WAITING)


# Reconnecting.


async def test_what_was_seen_is_not_seen_twice() -> None:
    async with talking(ack="manual") as (client, peer, server):
        await peer.send(1000, b"a", 1)
        await peer.send(1000, b"b", 2)
        first, _ = [await client.receive() for _ in range(2)]
        await peer.close()
        second = await server.peer()
        for number, body in enumerate((b"a", b"b", b"c"), 1):
            await second.send(1000, body, number)
        assert await take(client, 1) == [(3, b"c")]
        await first.ack()
        assert (await second.request(Op.ACK)).body == b"1"


async def test_an_acknowledgement_that_was_lost_is_made_again() -> None:
    async with talking(ack_every=1) as (client, peer, server):
        await peer.send(1000, b"a", 1)
        await peer.send(1000, b"b", 2)
        await take(client, 2)
        await peer.request(Op.ACK)
        await peer.close()
        second = await server.peer()
        frame = await second.request(Op.ACK)
        assert frame.body == b"1"
        await second.reply(frame)


async def test_a_new_connection_is_brought_to_where_the_old_one_was(caplog: pytest.LogCaptureFixture) -> None:
    async with talking(rooms=()) as (client, peer, server):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.change_room, "a://1")
            await peer.reply(await peer.request(Op.CHANGE_ROOM))
            for room in ("b://1", "b://2"):
                tasks.start_soon(client.join, room)
                await peer.reply(await peer.request(Op.JOIN))
            tasks.start_soon(client.subscribe, 1000)
            await peer.reply(await peer.request(Op.SUB))
        await peer.close()
        second = await server.peer()
        frames = [await second.frame() for _ in range(4)]
        assert [(frame.op, frame.body) for frame in frames] == [
            (12, b"a://1"), (14, b"1000"), (24, b"b://1"), (24, b"b://2"),
        ]  # fmt: skip
        for frame in frames[:3]:
            await second.reply(frame)
        await second.send(Op.ERROR, b'{"op":24,"code":403,"message":"banned"}', frames[3].seq)
        await second.send(1000)
        await client.receive()
        assert client.rooms == {"a://1", "b://1"}
        assert "banned" in caplog.text


async def test_each_connection_gets_a_fresh_token() -> None:
    made: list[int] = []

    async def token() -> dict[str, int]:
        await anyio.lowlevel.checkpoint()
        made.append(len(made))
        return {"n": made[-1]}

    async with talking(token=token) as (_, peer, server):
        await peer.close()
        second = await server.peer()
        assert [peer.token, second.token] == [b'{"n": 0}', b'{"n": 1}']


async def test_delays_grow_until_a_connection_has_lasted() -> None:
    clock, states = ManualClock(), States()
    options = {"clock": clock, "on_state": states, "backoff": Backoff(jitter=0), "random": lambda: 1.0}
    async with talking(**options) as (_, peer, server):
        server.answers.extend([b"", b""])
        await peer.close()
        delays = []
        for times in (1, 2, 3, 4):
            delays.append((await states.until(WAITING, times)).delay)
            clock.advance(delays[-1])
            again = await server.peer()
            if times == 3:
                await states.until(OPEN, 2)
                clock.advance(10)
            await again.close()
        assert delays == [0.5, 3, pytest.approx(5.4), 0.5]


@pytest.mark.parametrize("code", [4001, 4004, 4009])
async def test_codes_after_which_it_stays_away(code: int) -> None:
    states = States()
    async with talking(on_state=states) as (client, peer, _):
        await peer.send(1000, b"before")
        await peer.stream.send(disconnect_frame(Disconnect("go away", code)))
        await states.until(CLOSED)
        assert (await client.receive()).body == b"before"
        for call in (client.receive, client.__anext__, lambda: client.request(1000), lambda: client.send(1)):
            with pytest.raises(Disconnect, match="go away") as told:
                await call()
            assert told.value.code == code
        assert states.names == ["connecting", "open", "closed"]
        assert client.why is not None


async def test_it_stays_away_when_a_later_token_is_refused() -> None:
    async with talking() as (client, peer, server):
        server.answers.append(disconnect_frame(Disconnect("expired", 4001)))
        await peer.close()
        with pytest.raises(Disconnect, match="expired"):
            await client.receive()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 No\r\n\r\n", encode(1000), "nobody"])
async def test_it_goes_on_trying(answer: Any) -> None:
    states = States()
    async with talking(on_state=states) as (client, peer, server):
        if answer == "nobody":
            await server.listener.aclose()
        else:
            server.answers.append(answer)
        await peer.close()
        if answer != "nobody":
            await (await server.peer()).close()
        await states.until(WAITING, 2)
        await states.until(ClientState.CONNECTING, 3)
        if answer != "nobody":
            await server.peer()
            await states.until(OPEN, 2)
        assert client.why is None


async def test_without_a_backoff_the_first_loss_ends_it() -> None:
    async with talking(backoff=None) as (client, peer, _):
        await peer.close()
        with pytest.raises(Disconnect, match="closed without a reason"):
            async for _ in client:
                pass


async def test_a_token_that_runs_out_is_refreshed() -> None:
    tokens = iter((b"first", b"second"))
    async with talking(token=lambda: next(tokens)) as (client, peer, _):
        await peer.send(Op.EXPIRING, b'{"seconds":30}')
        frame = await peer.request(Op.REFRESH)
        assert frame.body == b"second"
        await peer.reply(frame, b"")
        await peer.send(1000)
        await client.receive()


async def test_a_refresh_that_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    async with talking(token=lambda: b"t") as (client, peer, _):
        await peer.send(Op.EXPIRING, b'{"seconds":30}')
        frame = await peer.request(Op.REFRESH)
        await peer.send(Op.ERROR, b'{"op":38,"code":403,"message":"another user"}', frame.seq)
        await peer.send(1000)
        await client.receive()
        await idle()
        assert "another user" in caplog.text
        assert client.state is OPEN


async def test_a_token_that_is_no_function_runs_out(caplog: pytest.LogCaptureFixture) -> None:
    async with talking() as (client, peer, _):
        await peer.send(Op.EXPIRING, b'{"seconds":30}')
        await peer.send(1000)
        await client.receive()
        assert "no function that makes another" in caplog.text


async def test_a_token_function_that_fails_ends_it() -> None:
    tokens = [b"t"]
    async with scripted() as server:
        with pytest.raises(IndexError, match="pop from empty list"):
            async with connect(server.url, token=tokens.pop, backoff=AT_ONCE) as client:
                await (await server.peer()).close()
                async for _ in client:
                    pytest.fail("a message")
        with pytest.raises(IndexError):
            async with connect(server.url, token=tokens.pop):
                pytest.fail("let in")


# Beginning and ending.


async def test_rooms_are_joined_at_once() -> None:
    async with scripted() as server:

        async def answer() -> None:
            peer = await server.peer()
            for _ in range(2):
                await peer.reply(await peer.request(Op.JOIN))
            await peer.send(
                Op.ERROR, b'{"op":24,"code":403,"message":"members only"}', (await peer.frame()).seq
            )

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer)
            with pytest.raises(Refused, match="members only"):
                async with connect(server.url, token=b"", rooms=["a://1", "a://2", "a://3"]):
                    pytest.fail("entered")


async def test_the_stock_token_accepts_the_extensions() -> None:
    async with scripted() as server:
        async with connect(*server.address, mid=7, key="k", room_id="a://1", accepts=[1000]) as client:
            token = json.loads((await server.peer()).token)
            assert client.state is OPEN
        accepts = token.pop("accepts")
        assert token == {"mid": 7, "key": "k", "room_id": "a://1", "platform": "python", "device": ""}
        assert set(accepts) == {1000, *EXTENSIONS}


async def test_an_address_where_no_one_listens() -> None:
    with socket.socket() as nobody:  # bound and not listening: who tries is refused
        nobody.bind(("127.0.0.1", 0))
        host, port = nobody.getsockname()
        for address in (f"ws://{host}:{port}", f"wss://{host}:{port}/x", f"tls://{host}:{port}"):
            with pytest.raises(OSError, match=f"^cannot connect to {address}"):
                async with connect(address, token=b""):
                    pytest.fail("let in")


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (disconnect_frame(Disconnect("members only", 4444)), Disconnect, "members only"),
        (encode(4, b""), Disconnect, "expected an auth reply, got op 4"),
        (b"HTTP/1.1 400 No\r\n\r\n", ProtocolError, "no goim server: header length: expected 16, got 12081"),
    ],
)  # fmt: skip
async def test_who_does_not_let_the_client_in(answer: bytes, error: type[Exception], message: str) -> None:
    async with scripted() as server:
        server.answers.append(answer)
        with pytest.raises(error) as told:
            async with connect(server.url, token=b""):
                pytest.fail("let in")
        assert str(told.value) == message


async def test_a_server_that_does_not_answer() -> None:
    clock = ManualClock()
    async with scripted() as server:
        server.answers.append(encode(Op.AUTH_REPLY)[:5])

        async def wait() -> None:
            await server.peer()
            clock.advance(10)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            with pytest.raises(TimeoutError, match=f"^cannot connect to {server.url[6:]}: not within 10 s"):
                async with connect(server.url, token=b"", clock=clock):
                    pytest.fail("let in")


async def test_what_the_block_raises_comes_out_as_it_is() -> None:
    error = LookupError("mine")
    async with scripted() as server:
        with pytest.raises(LookupError) as found:
            async with connect(server.url, token=b""):
                raise error
        assert found.value is error


async def test_a_cancelled_block() -> None:
    async with scripted() as server:
        with anyio.CancelScope() as scope:
            async with connect(server.url, token=b"") as client:
                scope.cancel()
                await client.receive()
        assert scope.cancelled_caught
        assert client.state is CLOSED
        await (await server.peer()).ended()


async def test_aclose_ends_the_iteration() -> None:
    async with talking() as (client, peer, _):
        async with anyio.create_task_group() as tasks:

            async def close() -> None:
                await idle()
                await client.aclose()

            tasks.start_soon(close)
            assert [message async for message in client] == []
        with pytest.raises(anyio.ClosedResourceError):
            await client.receive()
        with pytest.raises(anyio.ClosedResourceError):
            await client.send(1000)
        await client.aclose()
        await peer.ended()


async def test_what_was_sent_arrives_though_the_block_ends() -> None:
    async with scripted() as server:
        async with connect(server.url, token=b"") as client:
            peer = await server.peer()
            for number in range(200):
                await client.send(1000, str(number))
        assert [int((await peer.frame()).body) for _ in range(200)] == list(range(200))
        await peer.ended()


async def test_a_server_that_does_not_confirm_does_not_keep_it() -> None:
    async with scripted() as server:
        async with connect(server.url, token=b"", close_timeout=0.01) as client:
            peer = await server.peer()
            await peer.send(1000, b"x", 1)
            await client.receive()
        assert (await peer.request(Op.ACK)).body == b"1"
        await peer.ended()


async def test_a_client_runs_once() -> None:
    async with talking() as (client, _, _):
        with pytest.raises(RuntimeError, match="runs once"):
            async with client:
                pass


async def test_a_body_that_the_server_would_not_take() -> None:
    async with talking() as (client, _, _):
        for send in (client.send, client.request):
            with pytest.raises(ValueError, match="body: expected at most 4096 bytes, got 4097"):
                await send(1000, bytes(4097))
