"""Group commit: while a worker thread is busy, work gathers, and the thread's next turn takes all of it.

A durable commit costs a disk a fixed time, however much is in it. So one transaction at a time is being
committed, and everything that is waiting when it ends goes into the next.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
from attrs import define, field

from goim_core.errors import StorageError

__all__ = ["GroupCommit"]

Work = TypeVar("Work")


@define(eq=False)
class _Group(Generic[Work]):
    works: list[Work] = field(factory=list)
    over: anyio.Event = field(factory=anyio.Event)
    turn: threading.Lock = field(factory=threading.Lock)
    closed: bool = False
    started: bool = False
    finished: bool = False


class GroupCommit(Generic[Work]):
    """Calls ``run`` in a worker thread, never twice at a time, with up to ``at_most`` of what waits for it.

    There is no task for this. Whoever comes first to a new group leads it: waits until the group before is
    over, closes the group, and runs it. The others wait for the leader. Belongs to one event loop.
    """

    def __init__(self, run: Callable[[Sequence[Work]], None], at_most: int) -> None:
        self._run = run
        self._at_most = at_most
        self._newest: _Group[Work] | None = None

    async def do(self, work: Work) -> None:
        """Return when ``run`` has taken care of ``work``, raise what it raised.

        Cancelled, ``work`` is either not done at all or done and nobody hears of it.
        """
        before = self._newest
        if before is None or before.closed or len(before.works) >= self._at_most:
            group = self._newest = _Group([work])
            await self._lead(group, None if before is None else before.over)
        else:
            group = before
            group.works.append(work)
            try:
                await group.over.wait()
            finally:
                if not group.closed:
                    group.works.remove(work)
        if not group.finished:
            raise StorageError("the storage's worker thread failed; see the error of the first in its group")

    async def idle(self) -> None:
        """Return when everything that was asked for is over."""
        if self._newest is not None:
            await self._newest.over.wait()
            # The event belongs to this event loop, and the next start may be in another.
            self._newest = None

    async def _lead(self, group: _Group[Work], before: anyio.Event | None) -> None:
        # Others depend on the leader, so it is cancelled after its duty. The shield keeps anyio's
        # cancellation away; asyncio's own (Task.cancel) goes through a shield, and is raised later.
        try:
            with anyio.CancelScope(shield=True):
                waited = await _surely(anyio.lowlevel.checkpoint if before is None else before.wait)
                group.closed = True
                ran = await _surely(lambda: anyio.to_thread.run_sync(self._take_turn, group))
        finally:
            group.closed = True
            group.works.clear()
            group.over.set()
        cancelled = ran or waited
        if cancelled is not None:
            raise cancelled

    def _take_turn(self, group: _Group[Work]) -> None:
        # A leader that was cancelled the hard way asks again: the second call waits for the first.
        with group.turn:
            if not group.started:
                group.started = True
                self._run(group.works)
                group.finished = True


async def _surely(step: Callable[[], Awaitable[object]]) -> BaseException | None:
    """Await ``step`` to its end; the cancellation that came meanwhile."""
    came: BaseException | None = None
    while True:
        try:
            await step()
        except anyio.get_cancelled_exc_class() as cancelled:
            came = cancelled
        else:
            return came
