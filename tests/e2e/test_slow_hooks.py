"""Hooks that take their time: deadlines, clients that leave meanwhile, and all others, which go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from goim_core import (
    AuthHook,
    AuthRequest,
    Disconnect,
    Frame,
    MessageHook,
    OpenAuth,
    Options,
    Session,
    SessionHook,
)
from goim_core.testing import ManualClock
from tests.e2e.clients import Client, both, frame, int32, serve, until
from tests.e2e.hooks import Gate, Log, SessionLog, hooks, witnessed

pytestmark = pytest.mark.anyio


def hanging(name: str, gate: Gate, **options: float) -> dict[str, Any]:
    """The server's arguments for a hook that does not return unless ``gate`` is opened."""
    return {"options": Options(**options), **hooks("plain", name, lambda: gate.wait(name))}  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["authenticate", "make_key", "connected"])
async def test_hangs_before_the_client_is_in(name: str, caplog: pytest.LogCaptureFixture) -> None:
    clock, gate = ManualClock(), Gate()
    async with witnessed(clock=clock, **hanging(name, gate, hook_timeout=3.0)) as (_, client):
        await client.send(frame(7, b'{"mid":1}'), frame(2))
        await gate.log.reach(1)
        clock.advance(3.5)
        if name == "connected":
            assert await client.read() == frame(8)
        assert await client.told() == (4002, "the server took too long")
        assert "hook timed out after 3.0 s" in caplog.text


async def test_the_auth_deadline_counts_what_the_hook_takes() -> None:
    clock, gate = ManualClock(), Gate()
    settings = hanging("authenticate", gate, hook_timeout=60.0, auth_timeout=3.0)
    async with witnessed(clock=clock, **settings) as (world, client):
        await client.send(frame(7, b'{"mid":1}'))
        await gate.log.reach(1)
        clock.advance(3.5)
        assert (await client.told()).code == 4002
        gate.opened.set()
        await until(lambda: world.server.stats().connections == 1)


async def test_receive_hangs() -> None:
    clock, gate = ManualClock(), Gate()
    async with witnessed(clock=clock, **hanging("receive", gate, hook_timeout=3.0)) as (_, client):
        await client.login(accepts=[18])
        await client.send(frame(4, seq=1), frame(2, seq=2))
        await gate.log.reach(1)
        clock.advance(3.5)
        message = b'{"op":4,"code":504,"message":"the server took too long"}'
        assert await client.read() == frame(18, message, seq=1)
        assert await client.read() == frame(3, int32(0), seq=2)


async def test_heartbeat_hangs() -> None:
    clock, gate = ManualClock(), Gate()
    async with witnessed(clock=clock, **hanging("heartbeat", gate, hook_timeout=3.0)) as (_, client):
        await client.login()
        for count in (1, 2):
            await client.beat()
            await gate.log.reach(count)
            clock.advance(3.5)


async def test_disconnected_hangs() -> None:
    clock, gate = ManualClock(), Gate()
    async with witnessed(clock=clock, **hanging("disconnected", gate, hook_timeout=3.0)) as (world, client):
        await client.login()
        client.close()
        await gate.log.reach(1)
        assert world.server.stats().connections == 1
        clock.advance(3.5)


async def test_a_limit_on_hooks_lets_others_wait_their_turn() -> None:
    gate = Gate()

    class First(MessageHook):
        async def receive(self, session: Session, frame: Frame) -> bytes:
            if session.mid == 1:
                await gate.wait("first")
            gate.log.add(session.mid)
            return b"done"

    async with serve(options=Options(max_hooks=1), messages=First()) as world:
        stuck = await world.login("tcp", mid=1)
        waits = await world.login("tcp", mid=2)
        await stuck.send(frame(4, seq=1))
        await gate.log.reach(1)
        await waits.send(frame(4, seq=2))
        # A heartbeat needs no hook, and goes on.
        await (await world.login("tcp", mid=3)).beat()
        gate.opened.set()
        assert await stuck.read() == frame(4, b"done", seq=1)
        assert await waits.read() == frame(4, b"done", seq=2)
        assert gate.log.entries == ["first", 1, 2]


# Clients that leave while a hook has something of theirs.


@both
@pytest.mark.parametrize("leave", [Client.close, Client.reset])
async def test_leaves_during_receive(wire: str, leave: Callable[[Client], None]) -> None:
    gate, sessions = Gate(), SessionLog()

    class Slow(MessageHook):
        async def receive(self, session: Session, frame: Frame) -> None:
            await gate.wait("receive")
            sessions.log.add("received")

    async with serve(messages=Slow(), sessions=sessions) as world:
        client = await world.login(wire, key="k")
        await client.send(frame(4), frame(4))
        await gate.log.reach(1)
        leave(client)
        await (await world.login(wire, key="other")).beat()
        gate.opened.set()
        await until(lambda: world.server.stats().connections == 1)
        # ``disconnected`` comes when the message is done with, and is the last that is heard of it.
        entries = [entry for entry in await sessions.log.reach(4) if entry != ("connected", "other")]
        assert entries[:2] == [("connected", "k"), "received"]
        assert entries[-1] == ("disconnected", "k", 4007)
        assert entries.count(("disconnected", "k", 4007)) == 1


@both
@pytest.mark.parametrize("leave", [Client.close, Client.reset])
async def test_leaves_during_authenticate(wire: str, leave: Callable[[Client], None]) -> None:
    gate, sessions = Gate(), SessionLog()

    class Slow(AuthHook):
        async def authenticate(self, request: AuthRequest) -> Session:
            await gate.wait("authenticate")
            return Session(mid=1, key="k", accepts=[1000])

    async with serve(auth=Slow(), sessions=sessions) as world:
        client = await world.connect(wire)
        await client.send(frame(7))
        await gate.log.reach(1)
        leave(client)
        await anyio.wait_all_tasks_blocked()
        gate.opened.set()
        await until(lambda: world.server.stats().connections == 0)
        # Who comes with its key gets its pushes.
        again = await world.login(wire)
        await world.server.push_keys(["k"], 1000, b"x")
        assert await again.frame() == frame(1000, b"x")
        connected = [entry for entry in sessions.log.entries if entry[0] == "connected"]
        assert len(sessions.log.entries) == 2 * len(connected) - 1


async def test_leaves_during_connected() -> None:
    gate = Gate()
    log = Log()

    class Slow(SessionHook):
        async def connected(self, session: Session) -> None:
            await gate.wait("connected")
            log.add("connected")

        async def disconnected(self, session: Session, reason: Disconnect) -> None:
            log.add("disconnected")

    async with serve(sessions=Slow()) as world:
        client = await world.login("tcp")
        await gate.log.reach(1)
        client.reset()
        await anyio.wait_all_tasks_blocked()
        gate.opened.set()
        assert await log.reach(2) == ["connected", "disconnected"]


async def test_replaced_during_receive() -> None:
    gate, sessions = Gate(), SessionLog()

    class Slow(MessageHook):
        async def receive(self, session: Session, frame: Frame) -> None:
            await gate.wait("receive")

    async with serve(messages=Slow(), sessions=sessions) as world:
        old = await world.login("tcp", key="k")
        await old.send(frame(4))
        await gate.log.reach(1)
        new = await world.login("tcp", key="k", accepts=[1000])
        assert (await old.told()).code == 4004
        gate.opened.set()
        assert (await sessions.log.reach(3))[2] == ("disconnected", "k", 4004)
        await world.server.push_keys(["k"], 1000, b"x")
        assert await new.frame() == frame(1000, b"x")


async def test_authenticate_may_be_slow_for_one_only() -> None:
    gate = Gate()

    class Slow(OpenAuth):
        async def authenticate(self, request: AuthRequest) -> Session:  # type: ignore[override]
            session = super().authenticate(request)
            if session.mid == 1:
                await gate.wait("one")
            return session

    async with serve(auth=Slow()) as world:
        one = await world.connect("tcp")
        await one.send(frame(7, b'{"mid":1}'))
        await gate.log.reach(1)
        assert await (await world.login("tcp", mid=2)).beat() == 0
        gate.opened.set()
        assert await one.read() == frame(8)
