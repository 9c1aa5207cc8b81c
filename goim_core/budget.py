"""How much of one connection is read: who sends more is not read until it is within its budget again. Sync.

What a connection has used is kept in seconds of its budget: a turn of reading costs its frames by
``read_frames`` or its bytes by ``read_bytes``, whichever is more, and as time passes it is forgiven. Only
who was read in the last moments is in the table, so a connection that is idle costs nothing.

Nearly all connections send a small frame now and then. So many of them as would be forgiven in a moment
are only counted, by the connection itself, in one number, its *mark*: which moment it was, and how many. When
there are more, they are added up here. A moment ends only where something was added up in it, so a few frames
more than were sent in it may be counted: as many as are free, at most.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Protocol

from goim_core.channel import Counters
from goim_core.clock import Deadlines, Timer
from goim_core.options import Options

__all__ = ["Budget", "Reader"]

TICK = 0.25
"""How often what was used is forgiven, in seconds: a moment."""
FREE = 256
"""How many small frames of a connection in a moment are only counted, at most."""
STEP = 1 << 10


class Reader(Protocol):
    """A connection that is read, and its mark."""

    mark: int

    def on_turn(self) -> None:
        """It may be read again."""


class Budget:
    """The read budgets of all connections. ``again`` has one called soon: see :meth:`Reactor.again`."""

    def __init__(
        self,
        counters: Counters,
        deadlines: Deadlines,
        options: Options,
        again: Callable[[Reader], None],
    ) -> None:
        self._counters = counters
        self._deadlines = deadlines
        self._again = again
        self._used: dict[Reader, float] = {}
        self._resting: dict[Reader, None] = {}
        self._since = 0.0
        self._expecting = False
        self.moment = 0
        self.reload(options)

    def reload(self, options: Options) -> None:
        """From now on, these are the options."""
        self._burst = options.read_burst + 1e-6  # the sum of many 1 / rate is not the quotient
        self._frame = 1.0 / options.read_frames if options.read_frames else 0.0
        self._byte = 1.0 / options.read_bytes if options.read_bytes else 0.0
        self.free = min(FREE, int(TICK * options.read_frames) if options.read_frames else FREE)
        """How many frames of a moment are only counted."""
        self.light = TICK * options.read_bytes / self.free if options.read_bytes and self.free else inf
        """How many bytes a frame may have that is only counted."""
        if not self.free:
            self.light = -1.0
        self._next_moment()

    def _next_moment(self) -> None:
        self.moment += STEP
        # Connections share these numbers: one of its own would be 32 bytes for each.
        self.marks = tuple(range(self.moment + 1, self.moment + self.free + 2))
        """The marks of this moment, by the number of frames before; the last is of who was added up."""

    def spent(self, reader: Reader, frames: int, size: int) -> bool:
        """``reader`` was read, so much of both; whether that was more than its budget."""
        before = max(0, reader.mark - self.moment)
        count = before + max(1, frames)
        if count <= self.free and size <= self.light:
            reader.mark = self.marks[count - 1]
            return False
        reader.mark = self.marks[-1]
        return self._exceeds(reader, frames + (before if before <= self.free else 0), size)

    def _exceeds(self, reader: Reader, frames: int, size: int) -> bool:
        cost = frames * self._frame
        by_size = size * self._byte
        if by_size > cost:  # noqa: PLR1730  # max() is a call
            cost = by_size
        self._used[reader] = cost = cost + self._used.get(reader, 0.0)
        if not self._expecting:
            self._expect()
        return cost > self._burst

    def rest(self, reader: Reader, frames: int, size: int) -> None:
        """``reader`` is not read until it is called; what it was read last says which limit is counted."""
        self._resting[reader] = None
        by_size = size * self._byte > frames * self._frame
        self._counters.refusals["read_bytes" if by_size else "read_frames"] += 1

    def rests(self, reader: Reader) -> bool:
        """Whether ``reader`` is to be called."""
        return reader in self._resting

    def wakes(self, reader: Reader) -> bool:
        """Do not call ``reader``; whether it would have been."""
        return self._resting.pop(reader, self) is None

    def forget(self, reader: Reader) -> None:
        """``reader`` has ended."""
        self._used.pop(reader, None)

    def _expect(self) -> None:
        self._expecting = True
        self._since = self._deadlines.clock.now()
        self._deadlines.watch(Timer(self._since + TICK, self._forgive))

    def _forgive(self) -> None:
        now = self._deadlines.clock.now()
        passed = now - self._since
        self._used = {reader: used - passed for reader, used in self._used.items() if used > passed}
        self._expecting = False
        self._next_moment()
        if self._used:
            self._expect()
        for reader in [reader for reader in self._resting if self._used.get(reader, 0.0) <= self._burst]:
            del self._resting[reader]
            self._again(reader)
