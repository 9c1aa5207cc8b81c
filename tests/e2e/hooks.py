"""Hooks for tests: some log, some wait, and some go wrong for one user only."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel

from goim_core import AuthRequest, Disconnect, MessageHook, OpenAuth, Session, SessionHook
from tests.e2e.clients import Client, World, frame, serve

BASES = {
    "authenticate": ("auth", OpenAuth),
    "make_key": ("sessions", SessionHook),
    "connected": ("sessions", SessionHook),
    "disconnected": ("sessions", SessionHook),
    "heartbeat": ("sessions", SessionHook),
    "receive": ("messages", MessageHook),
}


class Log:
    """What hooks were called with, for tests that wait for it."""

    def __init__(self) -> None:
        self.entries: list[Any] = []
        self._changed = anyio.Event()

    def add(self, entry: Any) -> None:
        self.entries.append(entry)
        self._changed.set()
        self._changed = anyio.Event()

    async def reach(self, count: int) -> list[Any]:
        """Wait until there are ``count`` entries; all of them."""
        while len(self.entries) < count:
            await self._changed.wait()
        return self.entries


class Gate:
    """Lets hooks wait for the test."""

    def __init__(self) -> None:
        self.log = Log()
        self.opened = anyio.Event()

    async def wait(self, name: str) -> None:
        self.log.add(name)
        await self.opened.wait()


class SessionLog(SessionHook):
    """Logs who came and who went, and why."""

    def __init__(self) -> None:
        self.log = Log()

    def connected(self, session: Session) -> None:
        self.log.add(("connected", session.key))

    def disconnected(self, session: Session, reason: Disconnect) -> None:
        self.log.add(("disconnected", session.key, reason.code))


def hooks(kind: str, name: str, act: Callable[[], Any]) -> dict[str, Any]:
    """The server's argument for a hook whose method ``name`` acts so for user 1, and well for others."""
    argument, base = BASES[name]

    def whose(given: Any) -> int:
        return int(json.loads(given.token)["mid"]) if isinstance(given, AuthRequest) else given.mid

    def plain(self: Any, given: Any, *rest: Any) -> Any:
        return act() if whose(given) == 1 else getattr(base, name)(self, given, *rest)

    async def asynchronous(self: Any, given: Any, *rest: Any) -> Any:
        await anyio.lowlevel.checkpoint()
        return plain(self, given, *rest)

    method = plain if kind == "plain" else asynchronous
    method.__qualname__ = f"Broken.{name}"
    return {argument: type("Broken", (base,), {name: method})()}


@asynccontextmanager
async def witnessed(**settings: Any) -> AsyncIterator[tuple[World, Client]]:
    """A server, and a client of another user, which has to be served to the end."""
    async with serve(**settings) as world:
        other = await world.login("tcp", mid=2)
        yield world, await world.connect("tcp")
        await other.send(frame(1000, seq=1))
        assert await other.read() == frame(1000, seq=1)
        await other.beat()
