"""A clock that stands still until a test moves it, or lets it go."""

from __future__ import annotations

import anyio
from attrs import define, field

__all__ = ["ManualClock"]


@define
class ManualClock:
    """Time for :class:`goim_core.Server`'s ``clock``: it passes only in :meth:`advance`."""

    _now: float = 100.0
    _sleepers: list[tuple[float, float, anyio.Event]] = field(factory=list)
    _changed: anyio.Event = field(factory=anyio.Event)
    _released: float | None = None

    def now(self) -> float:
        return self._now if self._released is None else self._now + anyio.current_time() - self._released

    async def sleep(self, seconds: float) -> None:
        if self._released is not None:
            await anyio.sleep(seconds)
            return
        woken = anyio.Event()
        sleeper = (self._now + seconds, seconds, woken)
        self._sleepers.append(sleeper)
        self._changed.set()
        self._changed = anyio.Event()
        try:
            await woken.wait()
        finally:
            self._sleepers.remove(sleeper)

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass at once."""
        self._now += seconds
        for due, _, woken in self._sleepers:
            if due <= self._now:
                woken.set()

    def release(self) -> None:
        """Let time pass by itself from now on: a test is over, and what it failed to do shall not hang it."""
        self._released = anyio.current_time()
        for _, _, woken in self._sleepers:
            woken.set()

    async def asleep(self, seconds: float) -> None:
        """Return when somebody sleeps for that long, and has not been woken."""
        while not any(slept == seconds and not woken.is_set() for _, slept, woken in self._sleepers):
            await self._changed.wait()
