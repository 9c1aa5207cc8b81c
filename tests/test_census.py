"""A registry, queue or discovery of the application's own that fails does not end the server."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from goim_core import Options
from goim_core.discovery import StaticDiscovery
from goim_core.errors import BackboneError
from goim_core.parts import kept_running
from goim_core.queue import MemoryQueue, PushMsg
from goim_core.registry import MemoryRegistry, Online
from goim_core.testing.app import App, running
from goim_core.testing.clock import ManualClock

pytestmark = pytest.mark.anyio

OP = 1000


class Reporting(MemoryRegistry):
    """What other nodes tell is what a test says, in turn; an error is raised."""

    def __init__(self, *said: Any, wait: bool = False) -> None:
        super().__init__()
        self.said = list(said)
        self.wait = wait

    def report(self, online: Online) -> Any:
        return self.later() if self.wait else self.now()

    async def later(self) -> Any:
        await anyio.lowlevel.checkpoint()
        return self.now()

    def now(self) -> Any:
        said = self.said.pop(0) if len(self.said) > 1 else self.said[0]
        if isinstance(said, BaseException):
            raise said
        return said


@pytest.mark.parametrize("wait", [False, True], ids=["plain", "async"])
async def test_a_census_that_fails_is_said_once_and_goes_on(
    wait: bool, caplog: pytest.LogCaptureFixture
) -> None:
    some, more = Online({"live://1": 3}, 3, 3), Online({"live://1": 4}, 4, 4)
    broken = [BackboneError("away"), ValueError("ill"), None, {"live://1": 9}]
    registry = Reporting(some, *broken, more, *broken[1:], some, *broken[2:], more, wait=wait)
    async with running(registry=registry, options=Options(census=10)) as app:
        await app.idle()
        for expected in (3, 3, 3, 3, 3, 4, 4, 4, 4, 3, 3, 3, 4):
            assert await count(app) == expected
            await app.advance(10)
            await app.idle()
    told = [(each.levelname, each.getMessage(), bool(each.exc_info)) for each in caplog.records]
    assert told == [
        ("WARNING", "counts of other nodes are not fresh: away", False),
        ("ERROR", "counts of other nodes are not fresh: report raised", True),
        ("ERROR", "counts of other nodes are not fresh: report returned None, expected Online", False),
    ]
    assert {each.name for each in caplog.records} == {"goim_core.census"}


async def count(app: App) -> int:
    return app.server._comet.elsewhere.connections


# What runs beside the server.


class IllQueue(MemoryQueue):
    """One whose ``run`` and ``receive`` fail some times."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = {"run": failures, "receive": failures}

    def fail(self, what: str) -> None:
        if self.failures[what]:
            self.failures[what] -= 1
            raise RuntimeError(f"ill in {what}")

    async def run(self) -> None:
        self.fail("run")

    async def receive(self) -> PushMsg:
        self.fail("receive")
        return await super().receive()


class IllRegistry(MemoryRegistry):
    async def run(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            raise RuntimeError("ill in a group")


class IllDiscovery(StaticDiscovery):
    async def run(self) -> None:
        raise BackboneError("ill")


async def test_what_fails_beside_the_server_is_called_again(caplog: pytest.LogCaptureFixture) -> None:
    queue = IllQueue(3)
    async with running(
        queue=queue,
        registry=IllRegistry(),
        discovery=IllDiscovery(()),
        host="h",
        options=Options(farewell_timeout=1),
    ) as app:
        client = await app.connect({"mid": 7, "accepts": [OP]})
        for pause in (1, 2, 4):
            await app.server.push_keys([client.key], OP, b"%d" % pause)
            await app.advance(pause)
        await app.idle()
        assert [frame.body for frame in await client.take_pushes()] == [b"1", b"2", b"4"]
        assert not any(queue.failures.values())
    logged = [each.getMessage() for each in caplog.records if each.name == "goim_core.hooks"]
    assert [line for line in logged if "IllQueue.receive" in line] == [
        f"IllQueue.receive failed, and is called again in {pause} s" for pause in (1, 2, 4)
    ]
    assert "IllRegistry.run failed, and is called again in 4 s" in logged
    assert "IllDiscovery.run failed, and is called again in 4 s" in logged
    assert sum("IllQueue.run" in line for line in logged) == 3
    assert all(each.exc_info for each in caplog.records)


async def test_the_pause_grows_to_a_minute_and_is_short_again_after_a_good_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = ManualClock()
    lasts = [0.0] * 8 + [100.0, 0.0]

    async def work() -> None:
        if not lasts:
            return
        if lasting := lasts.pop(0):
            await clock.sleep(lasting)
        raise ValueError("ill")

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kept_running, "X.work", work, clock)
            for seconds in (1, 2, 4, 8, 16, 32, 60, 60, 100, 1, 2):
                await clock.asleep(seconds)
                clock.advance(seconds)
    assert len(caplog.records) == 10


async def test_a_cancellation_that_a_part_lets_out_is_its_own_fault(
    anyio_backend_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """On asyncio whoever awaits a task that somebody else cancels gets its cancellation."""
    if anyio_backend_name != "asyncio":
        pytest.skip("only asyncio has it")
    clock = ManualClock()

    async def work() -> None:
        task = asyncio.ensure_future(asyncio.sleep(100))
        asyncio.get_running_loop().call_soon(task.cancel)
        await task

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(kept_running, "X.work", work, clock)
        await clock.asleep(1)
        tasks.cancel_scope.cancel()
    assert [each.getMessage() for each in caplog.records] == ["X.work failed, and is called again in 1 s"]
