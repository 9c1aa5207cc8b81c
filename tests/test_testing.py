"""The testing kit: what it shows, that its assertions fail when they should, and that it leaves nothing."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from wsproto.utilities import RemoteProtocolError

from goim_core import (
    AuthHook,
    AuthRequest,
    CloseCode,
    ConfigurationError,
    Disconnect,
    Frame,
    MessageHook,
    Op,
    Options,
    OutboxPolicy,
    ProtocolError,
    PushMsg,
    Queue,
    Refused,
    RoomHook,
    Session,
    SessionHook,
)
from goim_core.adapters.sqlite import SQLiteStorage
from goim_core.memory_storage import MemoryStorage
from goim_core.testing import App, Client, FaultyQueue, ManualClock, app, running
from goim_core.testing.queue_contract import QueueContract
from goim_core.testing.quiet import all_blocked

pytestmark = pytest.mark.anyio
both = pytest.mark.parametrize("wire", ["tcp", "ws"])

SAY, SAID = 1000, 1001


class Chat(MessageHook):
    """What one says in a room is pushed to all in it."""

    async def receive(self, session: Session, frame: Frame) -> bytes:
        if frame.body == b"out":
            raise Disconnect("thrown out", 4100)
        if frame.body == b"rude":
            raise Refused("not here")
        await self.server.push_room(session.room_id, SAID, frame.body)
        return b"sent"


def failure(error: pytest.ExceptionInfo[AssertionError]) -> str:
    return str(error.value)


# Requests, replies and pushes.


@both
async def test_a_message_is_answered_and_pushed_to_the_room(wire: str) -> None:
    async with running(messages=Chat()) as app:
        ann = await app.connect({"mid": 1, "room_id": "live://1"}, wire)
        bob = await app.connect({"mid": 2, "room_id": "live://1"}, wire)
        eve = await app.connect({"mid": 3, "room_id": "live://2"}, wire)
        seq = await ann.send(SAY, {"text": "hi"})
        assert (await ann.assert_reply(SAY, b"sent")).seq == seq
        for client in (ann, bob):
            assert await client.assert_push(SAID, {"text": "hi"}) == Frame(SAID, b'{"text":"hi"}')
            await client.refute_push()
        await eve.refute_push()
        assert await bob.heartbeat() == 2
        assert (ann.session.mid, ann.session.room_id) == (1, "live://1")


@both
async def test_every_push_of_the_server_is_there_for_the_test(wire: str) -> None:
    async with running() as app:
        client = await app.connect({"mid": 1, "key": "k", "room_id": "live://1", "accepts": [SAID]}, wire)
        assert client.key == "k"
        await app.push_keys(["k"], SAID, b"\xff")
        await app.push_mids([1], SAID, "text")
        await app.push_room("live://1", SAID, [1, 2])
        await app.push_all(SAID, {"a": None})
        await app.server.push_all(SAID, b"server's")
        bodies = {frame.body for frame in await client.take_pushes()}
        assert bodies == {b"\xff", b"text", b"[1,2]", b'{"a":null}', b"server's"}
        assert await client.take_pushes() == []


async def test_a_batch_comes_as_its_frames() -> None:
    async with running(options=Options(linger=1.0)) as app:
        clients = [await app.connect({"mid": 1, "room_id": "live://1"}, wire) for wire in ("tcp", "ws")]
        for number in range(3):
            await app.push_room("live://1", SAID, str(number))
        await clients[0].refute_push()
        await app.advance(1)
        for client in clients:
            assert [frame.body for frame in await client.take_pushes()] == [b"0", b"1", b"2"]


async def test_what_arrived_waits_for_its_assertion() -> None:
    async with running() as app:
        client = await app.connect({"mid": 1, "room_id": "live://1"})
        for op in (SAID, 1002, SAID):
            await app.push_room("live://1", op, str(op))
        await client.assert_push(1002, "1002")
        await client.assert_push(SAID, lambda body: body.startswith(b"10"))
        await client.refute_push(1002)
        await client.assert_push()
        await client.refute_push()


async def test_frames_can_be_on_their_way_together_and_be_asked_for_by_their_sequence() -> None:
    async with running(messages=Chat()) as app:
        client = await app.connect({"mid": 1, "room_id": "live://1", "accepts": [int(Op.ERROR)]})
        first = await client.send(SAY, b"a")
        second = await client.send(SAY, b"rude")
        await client.send(SAY, b"c", seq=7)
        await client.send(SAY, b"d", seq=0)
        await client.assert_reply(SAY, b"sent", seq=7)
        await client.assert_reply(SAY, b"sent", seq=0)
        assert await client.assert_refused(403, seq=second) == "not here"
        await client.assert_reply(SAY, b"sent", seq=first)
        assert [frame.body for frame in await client.take_pushes()] == [b"a", b"c", b"d"]


async def test_a_request_returns_its_own_reply() -> None:
    async with running(messages=Chat()) as app:
        client = await app.connect({"mid": 1, "room_id": "live://1", "accepts": [int(Op.ERROR)]})
        await client.send(SAY, b"before")
        assert (await client.request(SAY, b"x")).body == b"sent"
        assert json.loads((await client.request(SAY, b"rude")).body)["code"] == 403
        assert (await client.request(Op.CHANGE_ROOM, "live://2")).op == Op.CHANGE_ROOM_REPLY


async def test_bytes_that_are_no_frame_can_be_sent() -> None:
    async with running() as app:
        client = await app.connect({"mid": 1})
        await client.send_bytes(b"\xff" * 16)
        await client.assert_closed(CloseCode.PROTOCOL_ERROR)


# Letting in.


class Guard(AuthHook):
    """Lets in who knows the word, and notes what they brought."""

    def __init__(self) -> None:
        self.requests: list[AuthRequest] = []

    async def authenticate(self, request: AuthRequest) -> Session:
        self.requests.append(request)
        if request.token == b"wait":
            await anyio.sleep_forever()
        if request.token != b"sesame":
            raise Disconnect("who are you?", CloseCode.AUTH_REFUSED)
        return Session(mid=1)


@both
async def test_who_is_turned_away_is_told_why(wire: str) -> None:
    async with running(auth=Guard()) as app:
        for token in (b"x", "x", {"mid": 1}):
            with pytest.raises(Disconnect, match="^who are you") as told:
                await app.connect(token, wire)
            assert told.value.code == CloseCode.AUTH_REFUSED
        await app.connect("sesame", wire)


async def test_authentication_sees_the_address_the_path_and_the_headers() -> None:
    guard = Guard()
    async with running(auth=guard) as app:
        await app.connect(b"sesame", address="10.0.0.1")
        await app.connect(b"sesame", "ws", path="/sub?a=1", headers={"Cookie": "c=d", "X-Own": "e"})
    tcp, ws = guard.requests
    assert (tcp.transport, tcp.address, tcp.path) == ("tcp", "10.0.0.1", "")
    assert (ws.transport, ws.address, ws.path) == ("websocket", "127.0.0.1", "/sub?a=1")
    assert (ws.cookie, ws.headers["x-own"]) == ("c=d", "e")


async def test_a_handshake_that_is_refused_says_so() -> None:
    async with running() as app:
        with pytest.raises(Disconnect, match="HTTP 404: .*no such path"):
            await app.connect({"mid": 1}, "ws", path="/other")


async def test_authentication_that_does_not_come_to_an_end_fails_the_test() -> None:
    async with running(auth=Guard(), patience=0.01) as app:
        with pytest.raises(AssertionError, match="AUTH_REPLY") as error:
            await app.connect("wait")
        assert "a hook is still at work" in failure(error)
        client = await app.open()
        await client.send(Op.AUTH, "wait")
        await client.assert_open()
        await app.advance(app.server.options.hook_timeout)
        assert (await client.assert_closed(CloseCode.AUTH_TIMEOUT)).reason


async def test_arguments_that_make_no_sense_are_told() -> None:
    async with running() as app:
        with pytest.raises(ValueError, match="^wire: expected 'tcp' or 'ws', got 'udp'"):
            await app.connect({"mid": 1}, "udp")
        with pytest.raises(ValueError, match="^path, headers: expected none"):
            await app.connect({"mid": 1}, headers={"a": "b"})
        with pytest.raises(ValueError, match="^seconds: time does not go back"):
            app.clock.advance(-1)


# Assertions that fail.


async def test_a_push_that_did_not_come_is_a_failure_that_says_what_did() -> None:
    async with running(messages=Chat()) as app:
        client = await app.connect({"mid": 7, "room_id": "live://1"})
        await client.send(SAY, {"text": "hi"})
        with pytest.raises(AssertionError) as error:
            await client.assert_push(SAID, {"text": "ho"})
        first, *rest = failure(error).splitlines()
        assert first == (
            'expected a push op 1001 with body {"text":"ho"}; '
            "beside what was taken, <tcp client of user 7> has got:"
        )
        assert sorted(rest) == [
            '  push op 1001 seq 0 body {"text":"hi"}',
            "  reply op 1000 seq 10002 body sent",
        ]
        await client.assert_push(SAID, {"text": "hi"})  # the failure has taken nothing
        with pytest.raises(AssertionError, match="a push op 1001"):
            await client.assert_push(SAID)


async def test_a_long_body_is_shown_in_part_and_bytes_as_bytes() -> None:
    async with running() as app:
        client = await app.connect({"mid": 7, "room_id": "live://1"})
        await app.push_room("live://1", SAID, "x" * 5000)
        await app.push_room("live://1", SAID, b"\0\xff")
        with pytest.raises(AssertionError) as error:
            await client.assert_push(SAID, lambda body: False)
        text = failure(error)
        assert "<lambda> is true" in text
        assert "xxx... (5000 bytes)" in text
        assert r"b'\x00\xff'" in text
        assert len(text) < 500


async def test_a_push_that_must_not_come_is_a_failure() -> None:
    async with running() as app:
        client = await app.connect({"mid": 7, "room_id": "live://1"})
        await app.push_room("live://1", SAID, b"a")
        await client.refute_push(SAID, b"b")
        await client.refute_push(1002)
        for expected in ((), (SAID,), (SAID, b"a"), (None, b"a")):
            with pytest.raises(AssertionError, match="^expected no push"):
                await client.refute_push(*expected)


async def test_a_reply_is_no_push_and_a_push_no_reply() -> None:
    async with running() as app:
        client = await app.connect({"mid": 7, "room_id": "live://1"})
        await client.send(SAY)
        await client.refute_push()
        with pytest.raises(AssertionError, match="expected a push op 1000"):
            await client.assert_push(SAY)
        await app.push_room("live://1", SAID)
        with pytest.raises(AssertionError, match="expected a reply op 1001"):
            await client.assert_reply(SAID)
        with pytest.raises(AssertionError, match=r"expected a reply ERROR \(op 18\) with code 403; "):
            await client.assert_refused(403)
        await client.assert_reply(SAY, b"")


async def test_a_reply_of_another_sequence_or_body_is_a_failure() -> None:
    async with running(messages=Chat()) as app:
        client = await app.connect({"mid": 7, "room_id": "live://1"})
        seq = await client.send(SAY, b"a")
        with pytest.raises(AssertionError, match=f"a reply op 1000 seq {seq + 1};"):
            await client.assert_reply(SAY, seq=seq + 1)
        with pytest.raises(AssertionError, match="with body other"):
            await client.assert_reply(SAY, b"other")
        with pytest.raises(AssertionError, match="with body {}"):
            await client.assert_reply(SAY, {})


async def test_open_and_closed_are_told_apart() -> None:
    async with running(messages=Chat()) as app:
        client = await app.connect({"mid": 7})
        await client.assert_open()
        with pytest.raises(AssertionError, match="^expected a closed connection"):
            await client.assert_closed()
        await client.send(SAY, b"out")
        with pytest.raises(AssertionError, match="closed with code 4004") as error:
            await client.assert_closed(CloseCode.REPLACED)
        assert "the server closed: thrown out (code 4100)" in failure(error)
        with pytest.raises(AssertionError, match="^expected an open connection"):
            await client.assert_open()
        assert (await client.assert_closed(4100)).reason == "thrown out"
        with pytest.raises(ConnectionError, match="closed"):
            await client.send(SAY)
        with pytest.raises(AssertionError, match="thrown out"):
            await client.assert_push()


async def test_a_failure_says_what_the_test_may_have_forgotten() -> None:
    async with running(options=Options(linger=0.5)) as app:
        client = await app.connect({"mid": 7, "room_id": "live://1"})
        await app.push_room("live://1", SAID)
        with pytest.raises(AssertionError, match=r"await app.advance\(0.5\)"):
            await client.assert_push(SAID)
        app.faults.delay()
        await app.push_all(SAID)
        client.pause_reading()
        with pytest.raises(AssertionError, match="the queue keeps 1 pushes back") as error:
            await client.assert_push(SAID)
        assert "resume_reading()" in failure(error)


# Endings.


class Diary(SessionHook):
    """Notes who comes and who goes."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int, int]] = []

    def connected(self, session: Session) -> None:
        self.log.append(("connected", session.mid, 0))

    async def disconnected(self, session: Session, reason: Disconnect) -> None:
        await anyio.lowlevel.checkpoint()
        self.log.append(("disconnected", session.mid, reason.code))


@both
async def test_the_hooks_hear_how_a_connection_ended(wire: str) -> None:
    diary = Diary()
    async with running(sessions=diary) as app:
        for mid, end in enumerate((Client.close, Client.break_link), 1):
            client = await app.connect({"mid": mid}, wire)
            end(client)
            await app.idle()
        await app.connect({"mid": 3}, wire)
    # A TCP client has no way to say that it goes.
    code = CloseCode.LOST if wire == "tcp" else CloseCode.NORMAL
    assert diary.log == [
        ("connected", 1, 0), ("disconnected", 1, code),
        ("connected", 2, 0), ("disconnected", 2, CloseCode.LOST),
        ("connected", 3, 0), ("disconnected", 3, CloseCode.GOING_AWAY),
    ]  # fmt: skip


@both
async def test_a_connection_that_is_replaced_is_told(wire: str) -> None:
    async with running() as app:
        old = await app.connect({"mid": 1, "key": "k"}, wire)
        new = await app.connect({"mid": 1, "key": "k"}, wire)
        await old.assert_closed(CloseCode.REPLACED)
        await new.assert_open()
        assert app.server.stats().connections == 1


# Time.


class Patient(MessageHook):
    """Answers after as many seconds of the server's clock as it is told."""

    async def receive(self, session: Session, frame: Frame) -> bytes:
        await self.server.clock.sleep(float(frame.body))
        return b"%.1f" % self.server.clock.time()


@both
async def test_a_client_that_sends_no_heartbeat_is_closed_in_time_and_not_before(wire: str) -> None:
    async with running(options=Options(heartbeat=10.0, heartbeat_max=2)) as app:
        client = await app.connect({"mid": 1}, wire)
        await app.advance(19.9)
        assert await client.heartbeat() == 0
        await app.advance(19.9)
        await client.assert_open()
        await app.advance(0.1)
        await client.assert_closed(CloseCode.HEARTBEAT_TIMEOUT)


async def test_time_passes_for_both_clocks_and_for_hooks_step_by_step() -> None:
    async with running(messages=Patient(), clock=ManualClock(time=1_000.0), patience=0.0) as app:
        clients = [await app.connect({"mid": mid}) for mid in range(3)]
        for client, seconds in zip(clients, ("3", "1", "2.5"), strict=True):
            await client.send(SAY, seconds)
        now = app.clock.now()
        await app.advance(5)
        for client, reply in zip(clients, (b"1003.0", b"1001.0", b"1002.5"), strict=True):
            await client.assert_reply(SAY, reply)
        assert (app.clock.now() - now, app.clock.time()) == (5.0, 1_005.0)


async def test_a_jump_wakes_everyone_at_once() -> None:
    async with running(messages=Patient(), clock=ManualClock(time=1_000.0), patience=0.0) as app:
        client = await app.connect({"mid": 1})
        await client.send(SAY, b"3")
        await app.idle()
        app.clock.advance(5)
        await client.assert_reply(SAY, b"1005.0")


async def test_tenths_of_a_second_add_up() -> None:
    async with running(messages=Patient(), patience=0.0) as app:
        client = await app.connect({"mid": 1})
        await client.send(SAY, b"0.3")
        for _ in range(3):
            await client.refute_push()
            await app.advance(0.1)
        await client.assert_reply(SAY)


async def test_a_hook_that_hangs_is_cut_short_at_its_timeout() -> None:
    class Hanging(RoomHook):
        async def may_enter(self, session: Session, room_id: str) -> bool:
            await anyio.sleep_forever()
            raise AssertionError

    async with running(rooms=Hanging(), options=Options(hook_timeout=3.0), patience=0.0) as app:
        client = await app.connect({"mid": 1, "accepts": [int(Op.ERROR)]})
        await client.send(Op.CHANGE_ROOM, "live://1")
        await app.advance(2.9)
        with pytest.raises(AssertionError, match="a hook is still at work"):
            await client.assert_refused(504)
        await app.advance(0.1)
        await client.assert_refused(504)


async def test_a_broadcast_with_a_speed_takes_its_time() -> None:
    async with running() as app:
        clients = [await app.connect({"mid": mid, "accepts": [SAID]}) for mid in range(20)]
        await app.push_all(SAID, b"x", speed=20)

        async def reached() -> int:
            return sum([len(await client.take_pushes()) for client in clients])

        before = await reached()
        assert before < 5
        await app.advance(0.5)
        assert 5 <= await reached() < 15
        await app.advance(1)
        assert app.server.stats().deliveries == 20


async def test_letting_an_hour_pass_takes_no_hour() -> None:
    async with running() as app:
        client = await app.connect({"mid": 1})
        began = time.perf_counter()
        for _ in range(30):
            await app.advance(120)
            await client.heartbeat()
        assert time.perf_counter() - began < 5


# Slow and broken links.


async def test_a_client_that_does_not_read_has_the_server_keep_what_the_link_does_not_hold() -> None:
    options = Options(outbox_bytes=2000, outbox_policy=OutboxPolicy.DROP_NEWEST)
    async with running(options=options) as app:
        slow = await app.connect({"mid": 1, "room_id": "live://1"}, capacity=1000)
        quick = await app.connect({"mid": 2, "room_id": "live://1"}, capacity=1000)
        slow.pause_reading()
        for number in range(10):
            await app.push_room("live://1", SAID, b"%d" % number * 484)  # 500 bytes with its header
            await app.idle()
        assert len(await quick.take_pushes()) == 10
        await slow.refute_push()
        assert app.server.stats().drops == {"drop_newest": 4}
        slow.resume_reading()
        assert [frame.body[:1] for frame in await slow.take_pushes()] == [b"%d" % n for n in range(6)]
        await slow.assert_open()


async def test_a_client_that_never_reads_is_given_up() -> None:
    async with running(options=Options(write_timeout=5.0)) as app:
        client = await app.connect({"mid": 1, "room_id": "live://1"}, capacity=100)
        client.pause_reading()
        await app.push_room("live://1", SAID, b"x" * 1000)
        await app.advance(4.9)
        await client.assert_open()
        await app.advance(0.1 + app.server.options.farewell_timeout)
        assert app.server.stats().connections == 0
        assert app.server.stats().closes == {CloseCode.SLOW: 1}
        client.resume_reading()
        with pytest.raises(AssertionError, match="the server closed"):
            await client.assert_push(SAID)


@both
async def test_a_message_larger_than_the_link_comes_in_parts(wire: str) -> None:
    async with running(options=Options(outbox_bytes=1 << 20)) as app:
        client = await app.connect({"mid": 1, "room_id": "live://1"}, wire, capacity=1000)
        await app.push_room("live://1", SAID, b"x" * 50_000)
        await client.assert_push(SAID, b"x" * 50_000)


# Idleness.


async def test_what_a_hook_does_in_a_worker_thread_is_waited_for() -> None:
    class Threaded(MessageHook):
        async def receive(self, session: Session, frame: Frame) -> None:
            await anyio.to_thread.run_sync(time.sleep, 0.02)
            await self.server.push_mids([session.mid], SAID, b"done")

    async with running(messages=Threaded(), patience=10.0) as app:
        client = await app.connect({"mid": 1, "accepts": [SAID]})
        await client.send(SAY)
        await client.assert_push(SAID, b"done")


async def test_what_a_hook_waits_for_outside_is_waited_for() -> None:
    class Distant(MessageHook):
        async def receive(self, session: Session, frame: Frame) -> bytes:
            await anyio.sleep(0.02)
            return b"done"

    async with running(messages=Distant(), patience=10.0) as app:
        client = await app.connect({"mid": 1})
        await client.send(SAY)
        await client.assert_reply(SAY, b"done")


async def test_what_a_hook_asks_of_a_socket_is_waited_for() -> None:
    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.send(await stream.receive())

    class Distant(MessageHook):
        async def receive(self, session: Session, frame: Frame) -> bytes:
            async with await anyio.connect_tcp(*address) as stream:
                await stream.send(b"done")
                return await stream.receive()

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        address = listener.extra(anyio.abc.SocketAttribute.local_address)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, serve)
            async with running(messages=Distant(), patience=10.0) as app:
                client = await app.connect({"mid": 1})
                await client.send(SAY)
                await client.assert_reply(SAY, b"done")
            tasks.cancel_scope.cancel()


async def test_a_hook_that_waits_for_the_test_is_not_waited_for(anyio_backend: Any) -> None:
    gate = anyio.Event()

    class Gated(MessageHook):
        async def receive(self, session: Session, frame: Frame) -> bytes:
            await gate.wait()
            return b"done"

    # uvloop does not tell what may wake it, so there it takes the whole patience.
    patience = 0.01 if anyio_backend[1].get("use_uvloop") else 10.0
    began = time.perf_counter()
    async with running(messages=Gated(), patience=patience) as app:
        client = await app.connect({"mid": 1})
        await client.send(SAY)
        with pytest.raises(AssertionError, match="a hook is still at work"):
            await client.assert_reply(SAY)
        assert time.perf_counter() - began < 5
        gate.set()
        await client.assert_reply(SAY, b"done")


async def test_callbacks_and_tasks_of_hooks_are_waited_for() -> None:
    class Branching(MessageHook):
        async def receive(self, session: Session, frame: Frame) -> bytes:
            async with anyio.create_task_group() as tasks:
                for number in range(5):
                    tasks.start_soon(self.step, number)
            return b"done"

        async def step(self, number: int) -> None:
            for _ in range(number * 3):
                await anyio.lowlevel.checkpoint()

    async with running(messages=Branching(), patience=0.0) as app:
        client = await app.connect({"mid": 1})
        await client.send(SAY)
        await client.assert_reply(SAY, b"done")


async def test_two_tasks_of_a_test_may_assert_at_once() -> None:
    async with running(messages=Chat()) as app:
        clients = [await app.connect({"mid": mid, "room_id": "live://1"}) for mid in range(5)]

        async def talk(client: Client) -> None:
            for _ in range(5):
                await client.request(SAY, b"x")

        async with anyio.create_task_group() as tasks:
            for client in clients:
                tasks.start_soon(talk, client)
        assert [len(await client.take_pushes()) for client in clients] == [25] * 5


async def test_something_that_goes_on_for_ever_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def spin() -> None:
        while True:
            await anyio.lowlevel.checkpoint()

    async with running() as running_app:
        client = await running_app.connect({"mid": 1})
        monkeypatch.setattr(app, "STUCK", 0.05)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(spin, name="the spinner")
            with pytest.raises(AssertionError, match="goes on for ever.*the spinner"):
                await client.refute_push()
            tasks.cancel_scope.cancel()
        monkeypatch.undo()


# The queue's faults.


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[App, Client]]:
    async with running() as app:
        yield app, await app.connect({"mid": 1, "room_id": "live://1", "accepts": [SAID]})


async def say(app: App, *bodies: str) -> None:
    for body in bodies:
        await app.push_room("live://1", SAID, body)


async def heard(client: Client) -> str:
    return "".join(frame.body.decode() for frame in await client.take_pushes())


def one(body: str) -> Any:
    return lambda msg: msg.msg == body.encode()


async def test_pushes_can_be_lost() -> None:
    async with listening() as (app, client):
        lost = app.faults.drop(count=2)
        await say(app, "a", "b", "c")
        assert await heard(client) == "c"
        assert [msg.msg for msg in lost.msgs] == [b"a", b"b"]
        app.faults.drop(one("d"))
        ended = app.faults.drop(one("e"))
        ended.end()
        await say(app, "d", "e", "f")
        assert await heard(client) == "ef"
        assert app.server.stats().pending == 0


async def test_pushes_can_be_late_until_they_are_released() -> None:
    async with listening() as (app, client):
        app.faults.delay(one("a"))
        await say(app, "a", "b")
        assert await heard(client) == "b"
        assert [msg.msg for msg in app.faults.delayed] == [b"a"]
        assert app.server.stats().pending == 1
        app.faults.release()
        assert await heard(client) == "a"
        await say(app, "a")
        app.faults.heal()
        await say(app, "a", "c")
        assert await heard(client) == "aac"


async def test_pushes_can_be_late_for_a_time() -> None:
    async with listening() as (app, client):
        app.faults.delay(count=1, seconds=2.0)
        await say(app, "a", "b")
        await app.advance(1.9)
        assert await heard(client) == "b"
        await app.advance(0.1)
        assert await heard(client) == "a"
        app.faults.delay(count=1, seconds=2.0)
        await say(app, "c")
        await client.refute_push()
        app.faults.release()
        await app.advance(5)
        assert await heard(client) == "c"


async def test_pushes_can_come_twice() -> None:
    async with listening() as (app, client):
        app.faults.duplicate(one("b"))
        await say(app, "a", "b", "c", "b")
        assert await heard(client) == "abbcbb"
        assert app.server.stats().pending == 0


async def test_the_first_fault_that_applies_is_the_one_that_happens() -> None:
    async with listening() as (app, client):
        app.faults.drop(count=1)
        app.faults.duplicate(count=1)
        await say(app, "a", "b", "c")
        assert await heard(client) == "bbc"


async def test_a_queue_of_ones_own_has_no_faults_to_offer() -> None:
    class Own(FaultyQueue):
        pass

    async with running(queue=Own()) as app:
        assert isinstance(app.faults, Own)
        with pytest.raises(ValueError, match="^seconds: expected None"):
            app.faults.delay(seconds=1)
        app.queue = None  # type: ignore[assignment]
        with pytest.raises(ConfigurationError, match="^queue: expected a FaultyQueue"):
            _ = app.faults
        app.queue = Own()


class TestFaultyQueueWithoutFaults(QueueContract):
    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Queue]:
        queue = FaultyQueue(16)
        yield queue
        await queue.aclose()


async def test_what_is_late_or_twice_leaves_the_bound_as_it_is() -> None:
    queue = FaultyQueue(2)
    queue.duplicate(count=3)
    queue.delay(count=3)
    received: list[PushMsg] = []

    async def receive() -> None:
        while True:
            received.append(await queue.receive())
            queue.acknowledge(received[-1])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(receive)
        for number in range(10):
            await queue.publish(PushMsg(0, SAID, b"%d" % number))
        await all_blocked()
        queue.heal()
        await all_blocked()
        tasks.cancel_scope.cancel()
    assert sorted(msg.msg for msg in received) == sorted([b"%d" % n for n in (*range(10), 0, 1, 2)])
    assert queue.pending == 0
    published = 0
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:

            async def publish() -> None:
                nonlocal published
                for _ in range(5):
                    await queue.publish(PushMsg(0, SAID, b""))
                    published += 1

            tasks.start_soon(publish)
            await all_blocked()
            scope.cancel()
    assert published == 2


# Stored messages.


@pytest.mark.parametrize("storage", ["memory", "sqlite"])
async def test_offline_messages_come_at_connect_until_they_are_acknowledged(
    storage: str, tmp_path: Any
) -> None:
    kept = MemoryStorage() if storage == "memory" else SQLiteStorage(tmp_path / "inbox.db")
    async with running(storage=kept, patience=10.0) as app:
        token = {"mid": 7, "platform": "web", "accepts": [SAID, int(Op.ACK)]}
        for text in ("a", "b"):
            await app.push_mids([7], SAID, text)
        client = await app.connect(token)
        await client.assert_push(SAID, "a", seq=1)
        await client.assert_push(SAID, "b", seq=2)
        assert await client.ack(1) == 1
        client.close()
        again = await app.connect(token)
        assert [(frame.seq, frame.body) for frame in await again.take_pushes()] == [(2, b"b")]
        other = await app.connect({"mid": 7, "platform": "web", "accepts": []})
        with pytest.raises(AssertionError, match="ACK 2 was refused"):
            await other.ack(2)


async def test_a_server_can_be_started_again_with_the_same_storage_and_clock() -> None:
    storage, clock = MemoryStorage(), ManualClock()
    watcher = {"mid": 1, "room_id": "live://1", "accepts": [SAID, int(Op.WATCH), int(Op.PRESENCE)]}
    for _ in range(2):
        async with running(storage=storage, clock=clock) as app:
            client = await app.connect(watcher)
            assert (await client.request(Op.WATCH, "live://1")).op == Op.WATCH_REPLY
            await app.push_mids([1], SAID, "x")
            await client.assert_push(SAID, "x")
            other = await app.connect({"mid": 2, "room_id": "live://1"})
            await app.advance(1)
            await client.assert_push(Op.PRESENCE, lambda body: json.loads(body)["joined"] == [2])
            other.close()  # what it causes falls due after the server's end
            await app.idle()
        assert clock.next_due() == float("inf")


# What is left.


async def test_a_server_that_breaks_the_protocol_is_told_once_and_stops_all_the_same() -> None:
    before = set(anyio.get_running_tasks())
    async with running() as app:
        for wire in ("tcp", "ws"):
            client = await app.connect({"mid": 1}, wire)
            client.connection.channel.reply(b"\xff" * 100)
            with pytest.raises((ProtocolError, RemoteProtocolError)):
                await client.refute_push()
            await client.refute_push()
    assert set(anyio.get_running_tasks()) == before


async def test_nothing_is_left_behind() -> None:
    before = set(anyio.get_running_tasks())
    async with running(messages=Patient(), patience=0.0) as app:
        for wire in ("tcp", "ws"):
            client = await app.connect({"mid": 1, "room_id": "live://1"}, wire)
            await client.send(SAY, b"1000")
            client.pause_reading()
        await app.open()
        app.faults.delay()
        await app.push_all(SAID)
    assert set(anyio.get_running_tasks()) == before
    assert app.server.stats().connections == 0


async def test_what_the_block_raises_comes_out_as_it_went_in() -> None:
    with pytest.raises(ZeroDivisionError):
        async with running() as app:
            await app.connect({"mid": 1})
            raise ZeroDivisionError


async def test_a_test_that_is_cancelled_ends_at_once() -> None:
    with anyio.move_on_after(0.05) as scope:
        async with running(messages=Patient(), patience=0.0) as app:
            client = await app.connect({"mid": 1})
            await client.send(SAY, b"1000")
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert app.server.stats().connections == 0


async def test_a_hook_that_hangs_does_not_hold_up_the_end(anyio_backend: Any) -> None:
    class Hanging(MessageHook, SessionHook):
        async def receive(self, session: Session, frame: Frame) -> None:
            await anyio.sleep_forever()

        async def disconnected(self, session: Session, reason: Disconnect) -> None:
            await anyio.sleep_forever()

    hooks = Hanging()
    began = time.perf_counter()
    async with running(messages=hooks, sessions=hooks, patience=0.0) as app:
        client = await app.connect({"mid": 1})
        await client.send(SAY)
        await app.idle()
    assert time.perf_counter() - began < app.server.options.drain / 2


def test_its_objects_are_short_in_a_traceback() -> None:
    async def main() -> list[str]:
        async with running() as app:
            client = await app.connect({"mid": 1}, "ws")
            return [repr(app), repr(client), repr(await app.open())]

    assert anyio.run(main) == ["<App with 1 clients>", "<ws client of user 1>", "<tcp client (not let in)>"]
