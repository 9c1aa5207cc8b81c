"""Instruments: what is counted and timed while a server works. Sync, and cheap enough for every push.

An instrument is touched by the code that it measures, and read when somebody asks: nothing is computed
in between, and no instrument grows with what clients do.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable

from attrs import Factory, define

from goim_core.errors import QueueFull

__all__ = ["KINDS", "Histogram", "HookTimes", "Instruments", "LoopLag", "PushCount"]

SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Bounds for how many messages a packet carries."""
SECONDS = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Bounds for times: a plain hook is in the first ones, one that waits for a database in the middle."""

KINDS = ("room", "users", "keys", "all", "disconnect")
"""Whom a push is for; to disconnect somebody is one too."""


class Histogram:
    """How often a value was in which range: ``counts[i]`` of those up to ``bounds[i]``, the rest last."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum: float = 0

    def observe(self, value: float) -> None:
        """Count ``value``."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)


@define(eq=False)
class HookTimes:
    """The exchanges of one kind with hooks: how long they took, and what came of them."""

    seconds: Histogram = Factory(lambda: Histogram(SECONDS))
    faults: Counter[str] = Factory(Counter)
    """How many did not come to a good end: refused, disconnect, error, timeout."""

    @property
    def outcomes(self) -> dict[str, int]:
        """All of them, by what came of them."""
        return {"ok": self.seconds.count - self.faults.total(), **self.faults}


@define(eq=False)
class PushCount:
    """The pushes of one kind, each in ``with count:``, by what came of them.

    ``refused`` are those of which an argument does not fit, or that found the queue full.
    """

    ok: int = 0
    refused: int = 0
    failed: int = 0

    def __enter__(self) -> None:
        """A push begins."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.ok += 1
        elif issubclass(kind, (ValueError, QueueFull)):
            self.refused += 1
        else:
            self.failed += 1


class LoopLag:
    """How late a timer fires, which is how long anybody waits for this event loop."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.seconds = Histogram(SECONDS)
        self._now = now
        self._recent = _Peak(1.0)
        self._worst = _Peak(30.0)

    def observe(self, late: float) -> None:
        """A timer fired ``late`` seconds after its time."""
        late = max(0.0, late)
        self.seconds.observe(late)
        now = self._now()
        self._recent.observe(late, now)
        self._worst.observe(late, now)

    @property
    def recent(self) -> float:
        """The longest of the last one to two seconds."""
        return self._recent.value(self._now())

    @property
    def worst(self) -> float:
        """The longest of the last half minute, at least, and of a minute at most."""
        return self._worst.value(self._now())


class _Peak:
    """The largest of the last ``span`` to twice ``span`` seconds, whoever asks, and however often."""

    __slots__ = ("_before", "_current", "_since", "_span")

    def __init__(self, span: float) -> None:
        self._span = span
        self._since = float("-inf")
        self._current = self._before = 0.0

    def observe(self, value: float, now: float) -> None:
        self._turn(now)
        self._current = max(self._current, value)

    def value(self, now: float) -> float:
        self._turn(now)
        return max(self._current, self._before)

    def _turn(self, now: float) -> None:
        passed = now - self._since
        if passed >= self._span:
            self._before = self._current if passed < 2 * self._span else 0.0
            self._current = 0.0
            self._since = now


class Instruments:
    """The instruments of one server. ``now`` is its clock.

    ``pushes`` counts by kind (:data:`KINDS`); ``batches`` has the messages of each packet, ``hooks`` the
    exchanges by what they were about.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.pushes = {kind: PushCount() for kind in KINDS}
        self.batches = Histogram(SIZES)
        self.hooks: dict[str, HookTimes] = {}
        self.loop = LoopLag(now)
