"""Time: a clock that tests can own, and one wheel of deadlines for everything that may be late."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import anyio
import anyio.lowlevel
from sortedcontainers import SortedDict

__all__ = ["LOOKS", "Clock", "Deadlines", "SystemClock", "Timed", "Timer"]

SLOT = 10_000
"""How many deadlines are in one dict: a large one would hold the event loop for 50 ms when it grows."""
LOOKS = 50
"""How many deadlines are looked at in a step: each may be a connection to be closed."""


class Clock(Protocol):
    """Where time comes from. Seconds, from any starting point, never backwards."""

    def now(self) -> float:
        """The time."""

    def time(self) -> float:
        """The wall clock's time in seconds since 1970, which may be set back."""

    async def sleep(self, seconds: float) -> None:
        """Return when ``seconds`` have passed; below 0 they have already."""


class SystemClock:
    """The machine's monotonic clock."""

    now = staticmethod(time.monotonic)
    """Seconds of :func:`time.monotonic`, which each frame asks for: without a call around it."""

    def time(self) -> float:
        """Seconds of :func:`time.time`."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Sleep in the running event loop."""
        await anyio.sleep(max(0.0, seconds))  # time goes on between asking for a moment and waiting for it


class Timed(Protocol):
    """Something with a deadline. ``slot`` belongs to the wheel, and is None while it is not in it."""

    slot: dict[Timed, None] | None

    def due(self) -> float:
        """When it has to be called, on the wheel's clock. May move later without telling the wheel."""

    def on_deadline(self) -> None:
        """The time of :meth:`due` has come. It is out of the wheel."""


class Timer:
    """A deadline that calls ``action`` once."""

    __slots__ = ("_action", "_due", "slot")

    def __init__(self, due: float, action: Callable[[], object]) -> None:
        self._due = due
        self._action = action
        self.slot: dict[Timed, None] | None = None

    def due(self) -> float:
        """When the action is called."""
        return self._due

    def on_deadline(self) -> None:
        """Call the action."""
        self._action()


class Deadlines:
    """A coarse wheel: dicts of :class:`Timed` for each ``tick`` seconds in which some fall due.

    A deadline that moves later costs nothing: its entry is looked at when the old time comes, and put
    back. That is what a heartbeat does, so it must be free. One that moves earlier is watched again.
    A deadline is never early, and late by less than a tick of :meth:`expire` being called; :meth:`run`
    calls it once a tick.
    """

    def __init__(self, clock: Clock, tick: float = 0.25) -> None:
        self.clock = clock
        self.on_tick: Callable[[float], object] = abs
        """Told at each tick how many seconds late it is."""
        self._tick = tick
        # Dicts and not sets, which take twice as much for each entry.
        self._slots: SortedDict[int, list[dict[Timed, None]]] = SortedDict()

    def watch(self, timed: Timed) -> None:
        """Put ``timed`` in the slot of its :meth:`~Timed.due`, out of the one it is in."""
        if timed.slot is not None:
            timed.slot.pop(timed, None)
        tick = int(timed.due() // self._tick) + 1
        slots = self._slots.get(tick)
        if slots is None:
            slots = self._slots[tick] = [{}]
        elif len(slots[-1]) >= SLOT:
            slots.append({})
        slots[-1][timed] = None
        timed.slot = slots[-1]

    def forget(self, timed: Timed) -> None:
        """Take ``timed`` out, if it is in."""
        slot = timed.slot
        if slot is not None:
            slot.pop(timed, None)
            timed.slot = None
            if not slot:  # a dict that is only emptied keeps its table, here until its time comes
                slot.clear()

    def expire(self, limit: int = LOOKS) -> bool:
        """Call what is due, looking at up to ``limit`` entries; True when some are left to look at."""
        now = self.clock.now()
        while self._slots:
            tick, slots = self._slots.peekitem(0)
            if tick * self._tick > now:
                return False
            while slots:
                if not slots[-1]:
                    slots.pop()
                    continue
                if not limit:
                    return True
                limit -= 1
                timed = slots[-1].popitem()[0]
                timed.slot = None
                if timed.due() > now:
                    self.watch(timed)
                else:
                    timed.on_deadline()
            del self._slots[tick]
        return False

    @contextmanager
    def move_on_after(self, seconds: float) -> Iterator[anyio.CancelScope]:
        """Cancel the block after ``seconds`` of the wheel's clock; ``cancelled_caught`` says whether."""
        with anyio.CancelScope() as scope:
            timer = Timer(self.clock.now() + seconds, scope.cancel)
            self.watch(timer)
            try:
                yield scope
            finally:
                self.forget(timer)

    async def run(self) -> None:
        """Keep the deadlines until cancelled."""
        while True:
            due = self.clock.now() + self._tick
            await self.clock.sleep(self._tick)
            self.on_tick(self.clock.now() - due)
            while self.expire():
                await anyio.lowlevel.checkpoint()
