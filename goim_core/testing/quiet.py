"""When nothing can happen any more, unless the test does something."""

from __future__ import annotations

import asyncio
from typing import Any
from weakref import WeakSet

import anyio

__all__ = ["all_blocked", "others_may_wake"]

ROUNDS = 3
"""Where a loop does not show its callbacks (uvloop), nothing has to happen in so many turns: those that
lead from one task to the next, as in ``gather`` and task groups, belong to no task."""

_asking: WeakSet[asyncio.Task[Any]] = WeakSet()


async def all_blocked() -> None:
    """Return when every task of the loop waits for something that has not come yet.

    anyio's function of this kind sleeps for a tenth of a second on asyncio; this one only takes turns.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        await anyio.wait_all_tasks_blocked()
        return
    task = asyncio.current_task()
    assert task is not None
    # Two tasks of a test may both ask: they do not wait for each other.
    _asking.add(task)
    try:
        rounds = 0
        while rounds < ROUNDS:
            await asyncio.sleep(0)
            rounds = rounds + 1 if _quiet(task.get_loop()) else 0
            if rounds and hasattr(task.get_loop(), "_ready"):
                return
    finally:
        _asking.discard(task)


def _quiet(loop: asyncio.AbstractEventLoop) -> bool:
    # Each of those who ask is among the callbacks that are ready, but for this one, which runs.
    asking = sum(task.get_loop() is loop for task in _asking)
    return len(getattr(loop, "_ready", ())) < asking and all(map(_blocked, asyncio.all_tasks(loop)))


def _blocked(task: asyncio.Task[Any]) -> bool:
    waits_for = task._fut_waiter  # type: ignore[attr-defined]  # noqa: SLF001  # as anyio looks at it
    return (waits_for is not None and not waits_for.done()) or task in _asking


def others_may_wake(seconds: float) -> bool:
    """Whether something outside of the program may wake a task: a socket, or a timer within ``seconds``.

    True where the loop does not tell (uvloop, and asyncio on Windows).
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return _others_may_wake_trio(seconds)
    selector: Any = getattr(loop, "_selector", None)
    if selector is None or getattr(loop, "_default_executor", None) is not None:
        return True
    until = loop.time() + seconds
    timers: Any = loop._scheduled  # type: ignore[attr-defined]  # noqa: SLF001  # no public way
    # The loop itself watches one, by which threads wake it.
    return len(selector.get_map()) > 1 or any(not t.cancelled() and t.when() <= until for t in timers)


def _others_may_wake_trio(seconds: float) -> bool:
    import trio  # noqa: PLC0415  # an extra of the package; here it is running

    statistics = trio.lowlevel.current_statistics()
    names = ("tasks_waiting_read", "tasks_waiting_write", "tasks_waiting")
    waiting = sum(getattr(statistics.io_statistics, name, 0) for name in names)
    return waiting > 1 or statistics.seconds_to_next_deadline <= seconds
