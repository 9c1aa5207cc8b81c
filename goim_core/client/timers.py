"""Deadlines of one client: a sleep to the next of them, and no wake-up in between."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio
from attrs import define, field

from goim_core.clock import Clock

__all__ = ["Timer", "Timers"]


@define
class Timer:
    """Something to do at a time. ``due`` on the clock; ``stop`` forgets it."""

    due: float
    order: int
    action: Callable[[], object] | None = field(eq=False)

    def __lt__(self, other: Timer) -> bool:
        return (self.due, self.order) < (other.due, other.order)

    def stop(self) -> None:
        """Do not do it any more."""
        self.action = None


class Timers:
    """Calls plain functions when their time has come, while :meth:`run` runs."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._heap: list[Timer] = []
        self._order = itertools.count()
        self._nap: anyio.CancelScope | None = None

    def after(self, seconds: float, action: Callable[[], object]) -> Timer:
        """Call ``action`` when ``seconds`` have passed."""
        timer = Timer(self.clock.now() + seconds, next(self._order), action)
        heapq.heappush(self._heap, timer)
        if self._nap is not None and self._heap[0] is timer:
            self._nap.cancel()
        return timer

    @contextmanager
    def move_on_after(self, seconds: float) -> Iterator[anyio.CancelScope]:
        """Cancel the block when ``seconds`` have passed."""
        with anyio.CancelScope() as scope:
            timer = self.after(seconds, scope.cancel)
            try:
                yield scope
            finally:
                timer.stop()

    async def run(self) -> None:
        """Keep the deadlines until cancelled."""
        while True:
            self._call_due()
            with anyio.CancelScope() as self._nap:
                if self._heap:
                    await self.clock.sleep(self._heap[0].due - self.clock.now())
                else:
                    await anyio.sleep_forever()
            self._nap = None

    def _call_due(self) -> None:
        now = self.clock.now()
        while self._heap and (self._heap[0].action is None or self._heap[0].due <= now):
            action = heapq.heappop(self._heap).action
            if action is not None:
                action()
