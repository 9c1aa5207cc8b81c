"""Logic with parts that a test chooses, and flows driven by hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import anyio.lowlevel
import pytest

from goim_core.auth import OpenAuth
from goim_core.clock import Clock, Deadlines
from goim_core.flow import Flow
from goim_core.hooks import MessageHook, RoomHook, SessionHook
from goim_core.logic import Hooks, Logic
from goim_core.publisher import Publisher
from goim_core.queue import MemoryQueue, Queue
from goim_core.registry import MemoryRegistry, Registry, Routes
from goim_core.session import Session
from goim_core.storage import StorageHook
from goim_core.testing.clock import ManualClock

__all__ = ["LaterRegistry", "after_a_while", "new_logic", "new_publisher", "plain", "run"]

TIMEOUT = 5.0


class LaterRegistry(Registry):
    """The memory registry behind ``async def``, as a real one is."""

    def __init__(self) -> None:
        self.inner = MemoryRegistry()
        self.renewed: list[Session] = []

    async def add(self, session: Session) -> None:
        await anyio.lowlevel.checkpoint()
        self.inner.add(session)
        await anyio.lowlevel.checkpoint()

    async def remove(self, session: Session) -> bool:
        return self.inner.remove(session)

    async def renew(self, session: Session) -> None:
        self.renewed.append(session)

    async def keys(self, keys: Iterable[str]) -> Routes:
        return self.inner.keys(keys)

    async def mids(self, mids: Iterable[int]) -> list[Session]:
        await anyio.lowlevel.checkpoint()
        return self.inner.mids(mids)


async def after_a_while(value: Any) -> Any:
    await anyio.lowlevel.checkpoint()
    return value


async def run(flow: Flow[Any]) -> Any:
    """Drive a flow as Exchanges does."""
    try:
        step = next(flow)
        while True:
            try:
                value = await step
            except BaseException as error:  # noqa: BLE001  # the flow may clean up
                step = flow.throw(error)
            else:
                step = flow.send(value)
    except StopIteration as stop:
        return stop.value


def plain(flow: Flow[Any]) -> Any:
    """The outcome of a flow that has nothing to await."""
    with pytest.raises(StopIteration) as stop:
        next(flow)
    return stop.value.value


def new_publisher(
    queue: Queue | None = None,
    registry: Registry | None = None,
    storage: StorageHook | None = None,
    clock: Clock | None = None,
) -> Publisher:
    return Publisher(
        MemoryQueue(8) if queue is None else queue,
        MemoryRegistry() if registry is None else registry,
        storage,
        Deadlines(ManualClock() if clock is None else clock),
        TIMEOUT,
    )


def new_logic(
    *,
    registry: Registry | None = None,
    queue: Queue | None = None,
    clock: Clock | None = None,
    storage: StorageHook | None = None,
    **hooks: Any,
) -> Logic:
    registry = MemoryRegistry() if registry is None else registry
    clock = ManualClock() if clock is None else clock
    if "auth" not in hooks:
        hooks["auth"] = OpenAuth()
    defaults = {
        "rooms": RoomHook(),
        "sessions": SessionHook(),
        "messages": MessageHook(),
        "storage": storage,
    }
    return Logic(
        "node-1",
        hooks=Hooks(**{**defaults, **hooks}),
        registry=registry,
        publisher=new_publisher(queue, registry, storage, clock),
        clock=clock,
    )
