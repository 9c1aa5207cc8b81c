"""Hooks that are plain or async: no task for the plain, and every way an async one can end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import partial
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup
from attrs import define, field

from goim_core.clock import Deadlines
from goim_core.errors import (
    CloseCode,
    Disconnect,
    ErrorCode,
    HookError,
    ProtocolError,
    QueueFull,
    Refused,
)
from goim_core.exchanges import Exchanges
from goim_core.flow import Flow, settle
from goim_core.testing import ManualClock
from goim_core.testing.quiet import all_blocked

pytestmark = pytest.mark.anyio

TIMEOUT = 5.0


class NoTasks:
    """A task group for flows that must not start a task."""

    def start_soon(self, *_: object) -> None:
        pytest.fail("a task was started")


@define
class Ends:
    """How exchanges ended, in order."""

    seen: list[Any] = field(factory=list)
    changed: anyio.Event = field(factory=anyio.Event)

    def add(self, end: Any) -> None:
        self.seen.append(end)
        self.changed.set()
        self.changed = anyio.Event()

    async def count(self, count: int) -> list[Any]:
        while len(self.seen) < count:
            await self.changed.wait()
        return self.seen


def plain_exchanges() -> Exchanges:
    return Exchanges(cast("TaskGroup", NoTasks()), Deadlines(ManualClock()), 1, TIMEOUT)


def calling(hook: Callable[[], Any]) -> Flow[Any]:
    """A flow of one hook."""
    return (yield from settle(hook()))


def ended(hook: Callable[[], Any]) -> Any:
    """How an exchange with a plain hook ends; it has to end at once."""
    ends = Ends()
    assert plain_exchanges().begin(calling(hook), ends.add, ends.add)
    (end,) = ends.seen
    return end


def raising(error: BaseException) -> Callable[[], Any]:
    def hook() -> None:
        raise error

    return hook


def raising_later(error: BaseException) -> Callable[[], Any]:
    async def hook() -> None:
        await anyio.lowlevel.checkpoint()
        raise error

    return hook


# Plain hooks.


async def test_a_plain_hook_needs_no_task() -> None:
    assert ended(lambda: "value") == "value"


async def test_a_flow_of_plain_hooks_needs_no_task() -> None:
    def flow() -> Flow[int]:
        first = yield from settle(1)
        second = yield from settle(2)
        return first + second

    ends = Ends()
    assert plain_exchanges().begin(flow(), ends.add, ends.add)
    assert ends.seen == [3]


# Async hooks.


async def test_an_async_hook_runs_in_a_task() -> None:
    ends, release = Ends(), anyio.Event()

    async def hook() -> str:
        await release.wait()
        return "value"

    async with anyio.create_task_group() as tasks:
        exchanges = Exchanges(tasks, Deadlines(ManualClock()), 1, TIMEOUT)
        assert not exchanges.begin(calling(hook), ends.add, ends.add)
        assert ends.seen == []
        release.set()
        assert await ends.count(1) == ["value"]


async def test_plain_and_async_hooks_in_one_flow() -> None:
    async def double(value: int) -> int:
        await anyio.lowlevel.checkpoint()
        return 2 * value

    class Awaits:
        def __await__(self) -> Any:
            yield from double(5).__await__()
            return "awaited"

    def flow() -> Flow[list[object]]:
        found: list[object] = [(yield from settle(1)), (yield from settle(double(1)))]
        found += [(yield from settle(3)), (yield from settle(cast("Awaitable[str]", Awaits())))]
        return found

    ends = Ends()
    async with anyio.create_task_group() as tasks:
        exchanges = Exchanges(tasks, Deadlines(ManualClock()), 1, TIMEOUT)
        assert not exchanges.begin(flow(), ends.add, ends.add)
        assert await ends.count(1) == [[1, 2, 3, "awaited"]]


async def test_a_flow_may_catch_what_its_async_hook_raises() -> None:
    def flow() -> Flow[str]:
        try:
            yield from settle(raising_later(KeyError("k"))())
        except KeyError:
            return "caught"
        return "not raised"

    ends = Ends()
    async with anyio.create_task_group() as tasks:
        exchanges = Exchanges(tasks, Deadlines(ManualClock()), 1, TIMEOUT)
        exchanges.begin(flow(), ends.add, ends.add)
        assert await ends.count(1) == ["caught"]


# What they raise.

TOLD = [Refused("no", 404), Disconnect("out", CloseCode.NORMAL)]
HIDDEN = [
    ValueError("secret"),
    HookError("Mine.receive may return None; it returned int"),
    QueueFull("secret"),
    ProtocolError("secret"),
    RecursionError("secret"),
    StopIteration("secret"),
    ExceptionGroup("secret", [ValueError("secret")]),
]


def is_internal(end: object) -> bool:
    return isinstance(end, Refused) and (end.reason, end.code) == ("internal error", ErrorCode.INTERNAL)


@pytest.mark.parametrize("error", TOLD, ids=repr)
async def test_what_a_hook_tells_the_client_arrives_as_it_is(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    assert ended(raising(error)) is error
    ends = Ends()
    async with anyio.create_task_group() as tasks:
        exchanges = Exchanges(tasks, Deadlines(ManualClock()), 1, TIMEOUT)
        exchanges.begin(calling(raising_later(error)), ends.add, ends.add)
        assert await ends.count(1) == [error]
    assert not caplog.records, "it is the application's decision, not a fault"


@pytest.mark.parametrize("error", [e for e in HIDDEN if not isinstance(e, StopIteration)], ids=repr)
async def test_any_other_error_is_logged_and_hidden_from_the_client(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    assert is_internal(ended(raising(error)))
    ends = Ends()
    async with anyio.create_task_group() as tasks:
        exchanges = Exchanges(tasks, Deadlines(ManualClock()), 1, TIMEOUT)
        exchanges.begin(calling(raising_later(error)), ends.add, ends.add)
        assert is_internal((await ends.count(1))[0])
    assert len(caplog.records) == 2
    assert all(str(error) in caplog.text for _ in caplog.records)


async def test_a_plain_hook_that_raises_stop_iteration_does_not_end_its_flow_well(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert is_internal(ended(raising(StopIteration("value"))))
    assert "StopIteration" in caplog.text


async def test_an_interrupt_is_no_fault_of_a_hook() -> None:
    with pytest.raises(KeyboardInterrupt):
        ended(raising(KeyboardInterrupt()))


# Only asyncio lets a cancellation out of the task that it was meant for.
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_cancelled_task_of_the_hooks_own_ends_only_its_exchange(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def hook() -> None:
        task = asyncio.get_running_loop().create_task(asyncio.sleep(60))
        task.cancel()
        await task

    async def after() -> str:
        await anyio.lowlevel.checkpoint()
        return "the others go on"

    ends = Ends()
    async with anyio.create_task_group() as tasks:
        exchanges = Exchanges(tasks, Deadlines(ManualClock()), 1, TIMEOUT)
        exchanges.begin(calling(hook), ends.add, ends.add)
        assert is_internal((await ends.count(1))[0])
        exchanges.begin(calling(after), ends.add, ends.add)
        assert (await ends.count(2))[1] == "the others go on"
        await exchanges.idle()
    assert "CancelledError" in caplog.text


# Time, number, end.


async def test_a_hook_that_hangs_is_ended_and_answered(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    deadlines = Deadlines(clock)
    ends, cleaned, hanging = Ends(), anyio.Event(), anyio.Event()

    async def hook() -> None:
        try:
            hanging.set()
            await anyio.sleep_forever()
        finally:
            cleaned.set()

    async with anyio.create_task_group() as tasks:
        exchanges = Exchanges(tasks, deadlines, 1, TIMEOUT)
        exchanges.begin(calling(hook), ends.add, ends.add)
        await hanging.wait()
        clock.advance(TIMEOUT - 0.5)
        deadlines.expire()
        assert ends.seen == []
        clock.advance(1)
        deadlines.expire()
        (end,) = await ends.count(1)
        assert isinstance(end, Refused)
        assert end.code == ErrorCode.TIMEOUT
        await exchanges.idle()
    assert cleaned.is_set()
    assert "calling" in caplog.text, "the log says which"


async def test_a_hook_that_is_in_time_leaves_no_timer_behind() -> None:
    clock = ManualClock()
    deadlines = Deadlines(clock)
    ends = Ends()
    async with anyio.create_task_group() as tasks:
        exchanges = Exchanges(tasks, deadlines, 1, TIMEOUT)
        exchanges.begin(calling(anyio.lowlevel.checkpoint), ends.add, ends.add)
        await exchanges.idle()
        clock.advance(2 * TIMEOUT)
        assert not deadlines.expire()
    assert ends.seen == [None]


async def test_the_time_of_an_exchange_begins_when_it_is_its_turn() -> None:
    clock = ManualClock()
    deadlines = Deadlines(clock)
    ends, release, started = Ends(), anyio.Event(), anyio.Event()

    async def slow() -> str:
        started.set()
        await release.wait()
        return "slow"

    async with anyio.create_task_group() as tasks:
        exchanges = Exchanges(tasks, deadlines, 1, TIMEOUT)
        exchanges.begin(calling(slow), ends.add, ends.add)
        exchanges.begin(calling(slow), ends.add, ends.add)
        await started.wait()
        clock.advance(TIMEOUT - 0.5)
        release.set()
        await ends.count(1)
        clock.advance(1)
        deadlines.expire()
        assert await ends.count(2) == ["slow", "slow"]


async def test_only_so_many_are_with_hooks_at_a_time() -> None:
    ends, release = Ends(), anyio.Event()
    inside, most = 0, 0

    async def hook() -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await release.wait()
        inside -= 1

    async with anyio.create_task_group() as tasks:
        exchanges = Exchanges(tasks, Deadlines(ManualClock()), 3, TIMEOUT)
        for _ in range(10):
            exchanges.begin(calling(hook), ends.add, ends.add)
        await anyio.wait_all_tasks_blocked()
        assert inside == 3
        release.set()
        await ends.count(10)
    assert most == 3


@define
class Counting:
    """A task group that counts."""

    tasks: TaskGroup
    started: int = 0

    def start_soon(self, *call: Any) -> None:
        self.started += 1
        self.tasks.start_soon(*call)


async def test_those_that_wait_for_a_place_have_no_task() -> None:
    ends, release = Ends(), anyio.Event()
    async with anyio.create_task_group() as tasks:
        counting = Counting(tasks)
        exchanges = Exchanges(cast("TaskGroup", counting), Deadlines(ManualClock()), 3, TIMEOUT)
        for _ in range(100):
            exchanges.begin(calling(release.wait), ends.add, ends.add)
        assert counting.started == 3
        exchanges.bound(5, TIMEOUT)
        assert counting.started == 5
        release.set()
        await exchanges.idle()
    assert counting.started == len(ends.seen) == 100


async def test_they_have_their_turns_in_the_order_in_which_they_began() -> None:
    log: list[int] = []

    def flow(number: int) -> Flow[int]:
        yield from settle(anyio.lowlevel.checkpoint())
        log.append(number)
        return number

    async with anyio.create_task_group() as tasks:
        exchanges = Exchanges(tasks, Deadlines(ManualClock()), 1, TIMEOUT)

        def told(number: int) -> None:
            if number < 10:  # what is begun by who is told comes behind those that wait
                exchanges.begin(flow(number + 10), told, lambda _: None)

        for number in range(4):
            exchanges.begin(flow(number), told, lambda _: None)
        await exchanges.idle()
    assert log == [0, 1, 2, 3, 10, 11, 12, 13]


WHOSE: ContextVar[str] = ContextVar("WHOSE", default="nobody's")


async def test_a_hook_does_not_see_what_that_of_the_client_before_has_set() -> None:
    ends = Ends()

    async def hook(name: str) -> str:
        found = WHOSE.get()
        WHOSE.set(name)
        await anyio.lowlevel.checkpoint()
        return found

    async with anyio.create_task_group() as tasks:
        WHOSE.set("the server's")
        exchanges = Exchanges(tasks, Deadlines(ManualClock()), 1, TIMEOUT)
        for name in "abc":
            exchanges.begin(calling(partial(hook, name)), ends.add, ends.add)
        await exchanges.idle()
    assert ends.seen == ["the server's"] * 3


async def test_a_plain_hook_does_not_wait_for_a_place() -> None:
    ends, release = Ends(), anyio.Event()
    async with anyio.create_task_group() as tasks:
        exchanges = Exchanges(tasks, Deadlines(ManualClock()), 1, TIMEOUT)
        exchanges.begin(calling(release.wait), ends.add, ends.add)
        assert exchanges.begin(calling(lambda: "plain"), ends.add, ends.add)
        assert ends.seen == ["plain"]
        release.set()


async def test_idle_waits_for_all() -> None:
    ends, release = Ends(), [anyio.Event() for _ in range(3)]
    async with anyio.create_task_group() as tasks:
        exchanges = Exchanges(tasks, Deadlines(ManualClock()), 10, TIMEOUT)
        await exchanges.idle()
        for event in release:
            exchanges.begin(calling(event.wait), ends.add, ends.add)

        async def let_go() -> None:
            for count, event in enumerate(release, 1):
                event.set()
                await ends.count(count)

        tasks.start_soon(let_go)
        await exchanges.idle()
        assert len(ends.seen) == 3


async def test_an_exchange_that_begins_another_is_not_idle_between() -> None:
    ends = Ends()
    async with anyio.create_task_group() as tasks:
        exchanges = Exchanges(tasks, Deadlines(ManualClock()), 1, TIMEOUT)

        def then(_: object) -> None:
            exchanges.begin(calling(anyio.lowlevel.checkpoint), ends.add, ends.add)

        exchanges.begin(calling(anyio.lowlevel.checkpoint), then, ends.add)
        await exchanges.idle()
        assert ends.seen == [None]


@pytest.mark.parametrize("limit", [1, 10])
async def test_cancelling_ends_all_without_a_word(limit: int) -> None:
    """Those with a hook, those that wait for a place, and those whose task has not begun."""
    ends, cleaned, hanging = Ends(), [], anyio.Event()

    async def hook() -> None:
        try:
            hanging.set()
            await anyio.sleep_forever()
        finally:
            cleaned.append(1)

    async with anyio.create_task_group() as tasks:
        exchanges = Exchanges(tasks, Deadlines(ManualClock()), limit, TIMEOUT)
        exchanges.begin(calling(hook), ends.add, ends.add)
        exchanges.begin(calling(hook), ends.add, ends.add)
        await hanging.wait()
        exchanges.begin(calling(hook), ends.add, ends.add)
        tasks.cancel_scope.cancel()
    assert ends.seen == []
    assert cleaned
    await exchanges.idle()


# One after the other, each surely.


def noting(log: list[str], name: str, hook: Callable[[], Any] = lambda: None) -> Flow[None]:
    log.append(name)
    yield from settle(hook())
    log.append(f"{name} is over")


FAULTS = [
    raising(Refused("no")),
    raising(RuntimeError("no")),
    raising_later(Disconnect("no")),
    raising_later(RuntimeError("no")),
]


async def test_plain_flows_one_after_the_other_need_no_task() -> None:
    log: list[str] = []
    plain_exchanges().each(noting(log, name) for name in "abc")
    assert log == ["a", "a is over", "b", "b is over", "c", "c is over"]


@pytest.mark.parametrize("fault", FAULTS)
async def test_each_flow_runs_whatever_becomes_of_those_before_it(fault: Callable[[], Any]) -> None:
    log: list[str] = []
    hooks: list[Callable[[], Any]] = [fault, anyio.lowlevel.checkpoint, fault, fault, lambda: None, fault]
    async with anyio.create_task_group() as tasks:
        exchanges = Exchanges(tasks, Deadlines(ManualClock()), 1, TIMEOUT)
        exchanges.each(noting(log, str(number), hook) for number, hook in enumerate(hooks))
        await exchanges.idle()
    assert log == ["0", "1", "1 is over", "2", "3", "4", "4 is over", "5"]


async def test_many_plain_flows_that_fail_are_no_recursion() -> None:
    log: list[str] = []
    plain_exchanges().each(noting(log, "x", raising(Refused("no"))) for _ in range(5000))
    assert len(log) == 5000


async def test_a_flow_that_hangs_holds_up_the_next_only_so_long() -> None:
    clock = ManualClock()
    deadlines = Deadlines(clock)
    log: list[str] = []
    async with anyio.create_task_group() as tasks:
        exchanges = Exchanges(tasks, deadlines, 1, TIMEOUT)
        exchanges.each(
            noting(log, name, hook) for name, hook in (("a", anyio.sleep_forever), ("b", lambda: None))
        )
        await all_blocked()
        assert log == ["a"]
        clock.advance(TIMEOUT + 0.5)
        deadlines.expire()
        await exchanges.idle()
    assert log == ["a", "b", "b is over"]


# Cut short.


async def abort_until_idle(exchanges: Exchanges, at_most: int = 10) -> int:
    """Abort as often as it takes; how often that was."""
    for turn in range(at_most):
        await all_blocked()
        if not exchanges.active:
            return turn
        exchanges.abort()
    pytest.fail("it goes on for ever")


async def test_aborting_ends_those_with_a_hook_and_the_next_have_their_turn() -> None:
    ends, log = Ends(), list[str]()

    async def hook() -> None:
        log.append("begun")
        try:
            await anyio.sleep_forever()
        finally:
            log.append("cleaned")

    async with anyio.create_task_group() as tasks:
        exchanges = Exchanges(tasks, Deadlines(ManualClock()), 1, TIMEOUT)
        for _ in range(3):
            exchanges.begin(calling(hook), ends.add, ends.add)
        assert await abort_until_idle(exchanges) == 3
        assert log == ["begun", "cleaned"] * 3
        assert [(end.code, end.reason) for end in ends.seen] == [
            (CloseCode.GOING_AWAY, "the server is stopping")
        ] * 3
        exchanges.abort()  # nothing is under way
        exchanges.begin(calling(anyio.lowlevel.checkpoint), ends.add, ends.add)
        await all_blocked()
        assert ends.seen[3:] == [None], "what begins later goes on"


async def test_aborting_what_has_just_begun() -> None:
    ends = Ends()
    async with anyio.create_task_group() as tasks:
        exchanges = Exchanges(tasks, Deadlines(ManualClock()), 5, TIMEOUT)
        for _ in range(2):
            exchanges.begin(calling(anyio.sleep_forever), ends.add, ends.add)
        exchanges.abort()
        assert exchanges.active
        await abort_until_idle(exchanges)
    assert len(ends.seen) == 2


@pytest.mark.parametrize("in_line", [False, True])
async def test_a_flow_that_is_cut_short_cleans_up_before_anyone_is_told(in_line: bool) -> None:
    log: list[str] = []

    def flow() -> Flow[None]:
        try:
            yield from settle(anyio.sleep_forever())
        finally:
            log.append("cleaned")

    async with anyio.create_task_group() as tasks:
        exchanges = Exchanges(tasks, Deadlines(ManualClock()), 1, TIMEOUT)
        if in_line:
            exchanges.begin(calling(anyio.sleep_forever), lambda _: None, lambda _: None)
        exchanges.begin(flow(), lambda _: None, lambda _: log.append("told"))
        await abort_until_idle(exchanges)
    assert log == ["cleaned", "told"]


async def test_a_flow_may_call_another_hook_while_it_is_cut_short() -> None:
    """The room hook hears of the room that was entered, also where the one that was left hangs."""
    log: list[str] = []

    async def hook(name: str) -> None:
        log.append(name)
        await anyio.sleep_forever()

    def flow() -> Flow[None]:
        try:
            yield from settle(hook("left"))
        finally:
            yield from settle(hook("entered"))

    ends = Ends()
    async with anyio.create_task_group() as tasks:
        exchanges = Exchanges(tasks, Deadlines(ManualClock()), 1, TIMEOUT)
        exchanges.begin(flow(), ends.add, ends.add)
        assert await abort_until_idle(exchanges) == 1
    assert log == ["left", "entered"]
    assert len(ends.seen) == 1


async def test_of_those_that_hang_the_next_has_its_turn() -> None:
    log: list[str] = []
    async with anyio.create_task_group() as tasks:
        exchanges = Exchanges(tasks, Deadlines(ManualClock()), 1, TIMEOUT)
        exchanges.each(noting(log, name, anyio.sleep_forever) for name in "abc")
        for count in (1, 2, 3):
            await all_blocked()
            assert log == list("abc"[:count])
            exchanges.abort()
        await exchanges.idle()
    assert log == ["a", "b", "c"]
