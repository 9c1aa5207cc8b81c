"""A clock that stands still until a test moves it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf

import anyio
import anyio.lowlevel
from attrs import define, field

from goim_core.clock import LOOKS, Clock, Deadlines, Timed

__all__ = ["ManualClock", "ManualDeadlines"]

ROUNDING = 1e-6
"""Who stops this short of a time is taken to it: ten steps of 0.1 are a second here."""


@define(eq=False)
class _Alarm:
    due: float
    seconds: float
    ring: Callable[[], object]


@define(eq=False)
class ManualClock:
    """Time for :class:`goim_core.Server`'s ``clock``: it passes only in :meth:`advance`.

    ``now`` and ``time`` are what the two clocks show at first, in seconds; ``time`` since 1970.
    """

    _now: float = 100.0
    _time: float = 1_700_000_000.0
    _offset: float = field(init=False)
    _alarms: list[_Alarm] = field(init=False, factory=list)
    _others: list[Callable[[], float]] = field(init=False, factory=list)
    _slept: anyio.Event = field(init=False, factory=anyio.Event)
    _moved: anyio.Event = field(init=False, factory=anyio.Event)
    _released: float | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self._offset = self._time - self._now

    def now(self) -> float:
        """Seconds of the monotonic clock."""
        return self._now if self._released is None else self._now + anyio.current_time() - self._released

    def time(self) -> float:
        """Seconds since 1970."""
        return self._offset + self.now()

    async def sleep(self, seconds: float) -> None:
        """Return when a test has let ``seconds`` pass."""
        if self._released is not None or seconds <= 0:
            await anyio.sleep(max(seconds, 0))
            return
        woken = anyio.Event()
        alarm = self._set(seconds, woken.set)
        self._slept.set()
        self._slept = anyio.Event()
        try:
            await woken.wait()
        finally:
            if alarm in self._alarms:
                self._alarms.remove(alarm)

    def call_later(self, seconds: float, action: Callable[[], object]) -> None:
        """Call ``action`` when ``seconds`` have passed."""
        self._set(seconds, action)

    def _set(self, seconds: float, ring: Callable[[], object]) -> _Alarm:
        alarm = _Alarm(self._now + seconds, seconds, ring)
        self._alarms.append(alarm)
        return alarm

    @contextmanager
    def following(self, next_due: Callable[[], float]) -> Iterator[None]:
        """Within the block, what ``next_due`` says is one of the times at which something happens."""
        self._others.append(next_due)
        try:
            yield
        finally:
            self._others.remove(next_due)

    @property
    def sleepers(self) -> int:
        """How many sleep."""
        return len(self._alarms)

    def next_waking(self) -> float:
        """When the next of those who sleep wakes, on :meth:`now`'s clock; infinity when nobody sleeps."""
        return min((alarm.due for alarm in self._alarms), default=inf)

    def next_due(self) -> float:
        """When anything happens next: a sleeper wakes, or a deadline of the server is due."""
        return min(self._dues(), default=inf)

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass at once: whoever sleeps for less wakes when the test waits the next time.

        :meth:`App.advance <goim_core.testing.App.advance>` goes from one of them to the next instead.
        """
        if seconds < 0:
            raise ValueError(f"seconds: time does not go back, got {seconds}")
        self.advance_to(self._now + seconds)

    def advance_to(self, now: float) -> None:
        """Let time pass until :meth:`now` shows ``now``, which is not earlier."""
        close = [due for due in self._dues() if now < due <= now + ROUNDING]
        self._now = max(now, *close) if close else now
        self._ring(self._now)
        self._moved.set()
        self._moved = anyio.Event()

    def _dues(self) -> list[float]:
        return [*(alarm.due for alarm in self._alarms), *(next_due() for next_due in self._others)]

    def _ring(self, until: float) -> None:
        for alarm in sorted(self._alarms, key=lambda alarm: alarm.due):
            if alarm.due <= until:
                self._alarms.remove(alarm)
                alarm.ring()

    def release(self) -> None:
        """Let time pass by itself from now on: a test is over, and what it failed to do shall not hang it."""
        self._released = anyio.current_time()
        self._ring(inf)

    async def asleep(self, seconds: float) -> None:
        """Return when somebody sleeps for that long, and has not been woken."""
        while not any(alarm.seconds == seconds for alarm in self._alarms):
            await self._slept.wait()

    async def moved(self) -> None:
        """Return when time has passed."""
        await self._moved.wait()


class ManualDeadlines(Deadlines):
    """The deadlines of a server whose clock a test owns: exact, and looked at only when time has passed.

    A wheel that looked for itself four times a second would make a test that lets an hour pass slow.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        assert isinstance(clock, ManualClock)
        self._manual = clock
        self._watched: dict[Timed, None] = {}

    def watch(self, timed: Timed) -> None:
        """See :meth:`~goim_core.clock.Deadlines.watch`."""
        timed.slot = self._watched
        self._watched[timed] = None

    def next_due(self) -> float:
        """When the first is due, on the clock's ``now``; infinity when there is none."""
        return min((timed.due() for timed in self._watched), default=inf)

    def expire(self, limit: int = LOOKS) -> bool:
        """Call what is due. False: nothing is left, whatever ``limit`` says."""
        now = self.clock.now()
        late = [(timed.due(), timed) for timed in self._watched]
        for due, timed in sorted(late, key=lambda each: each[0]):
            if due <= now and timed.slot is self._watched:
                self.forget(timed)
                timed.on_deadline()
        return False

    async def run(self) -> None:
        """Keep the deadlines until cancelled."""
        with self._manual.following(self.next_due):
            while True:
                await self._manual.moved()
                self.expire()
