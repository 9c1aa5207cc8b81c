"""A queue in memory that loses, delays and doubles pushes when a test wants it to."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from math import inf
from time import monotonic
from typing import TypeAlias

import anyio
from attrs import define, evolve, field

from goim_core.queue import MemoryQueue, PushMsg
from goim_core.testing.clock import ManualClock

__all__ = ["Fault", "FaultyQueue"]

When: TypeAlias = Callable[[PushMsg], object]


class FaultKind(StrEnum):
    """What happens to a push."""

    DROP = "drop"
    DELAY = "delay"
    DUPLICATE = "duplicate"


@define(eq=False)
class Fault:
    """What a :class:`FaultyQueue` does to some pushes.

    ``left`` is for how many more, infinity for any number; ``msgs`` are those that it has been done to.
    """

    kind: FaultKind
    when: When | None
    left: float
    seconds: float | None
    msgs: list[PushMsg] = field(init=False, factory=list)

    def end(self) -> None:
        """Let the pushes from now on pass."""
        self.left = 0

    def strikes(self, msg: PushMsg) -> bool:
        """Whether ``msg`` is one of those that it is for."""
        return self.left > 0 and (self.when is None or bool(self.when(msg)))


class FaultyQueue(MemoryQueue):
    """A :class:`~goim_core.queue.MemoryQueue` with faults, each for the pushes that ``when`` picks.

    ``when`` is given the :class:`~goim_core.queue.PushMsg`, None picks all; ``count`` is how many at most.
    The first fault that applies is the one that happens. The publisher notices nothing.
    """

    def __init__(self, size: int = 1024, clock: ManualClock | None = None) -> None:
        super().__init__(size)
        self._clock = clock
        self._faults: list[Fault] = []
        self._delayed: list[PushMsg] = []
        # Pushes that go on their way a second time: they pass, and have no place of their own.
        self._again: list[PushMsg] = []
        self._beside = 0

    def drop(self, when: When | None = None, *, count: int | None = None) -> Fault:
        """Lose pushes."""
        return self._add(FaultKind.DROP, when, count)

    def delay(
        self, when: When | None = None, *, count: int | None = None, seconds: float | None = None
    ) -> Fault:
        """Keep pushes back, ``seconds`` of the test's clock or until :meth:`release`: others pass them."""
        if seconds is not None and self._clock is None:
            raise ValueError("seconds: expected None, this queue has no clock")
        return self._add(FaultKind.DELAY, when, count, seconds)

    def duplicate(self, when: When | None = None, *, count: int | None = None) -> Fault:
        """Deliver pushes twice, one right after the other."""
        return self._add(FaultKind.DUPLICATE, when, count)

    def _add(
        self, kind: FaultKind, when: When | None, count: int | None, seconds: float | None = None
    ) -> Fault:
        fault = Fault(kind, when, inf if count is None else count, seconds)
        self._faults.append(fault)
        return fault

    @property
    def delayed(self) -> list[PushMsg]:
        """The pushes that are kept back now."""
        return list(self._delayed)

    def release(self) -> None:
        """Let go all that is kept back, in order."""
        for msg in self.delayed:
            self._release(msg)

    def heal(self) -> None:
        """End all faults, and let go what they keep back."""
        self._faults.clear()
        self.release()

    def _release(self, msg: PushMsg) -> None:
        if any(msg is delayed for delayed in self._delayed):
            self._delayed = [delayed for delayed in self._delayed if delayed is not msg]
            self._waiting.append((msg, monotonic()))
            self._pass(msg)

    def _pass(self, msg: PushMsg) -> None:
        self._again.append(msg)
        self._beside += 1
        self._arrived.set()

    async def receive(self) -> PushMsg:
        """See :meth:`~goim_core.queue.Queue.receive`."""
        while True:
            msg = await super().receive()
            self._take_back_place()
            if any(msg is passes for passes in self._again):
                self._again = [passes for passes in self._again if passes is not msg]
                return msg
            fault = next((fault for fault in self._faults if fault.strikes(msg)), None)
            if fault is None or self._happens(fault, msg):
                return msg

    def _take_back_place(self) -> None:
        # Receiving gives a place back; what came in beside the bound had none.
        if self._beside:
            try:
                self._places.acquire_nowait()
                self._beside -= 1
            except anyio.WouldBlock:
                pass  # a publisher was quicker; the next time, then

    def _happens(self, fault: Fault, msg: PushMsg) -> bool:
        """Do what ``fault`` does; whether ``msg`` goes on now."""
        fault.msgs.append(msg)
        fault.left -= 1
        if fault.kind is FaultKind.DROP:
            self.acknowledge(msg)
            return False
        if fault.kind is FaultKind.DELAY:
            self._delayed.append(msg)
            if fault.seconds is not None and self._clock is not None:
                self._clock.call_later(fault.seconds, lambda: self._release(msg))
            return False
        double = evolve(msg)
        self._unacknowledged += 1
        self._waiting.appendleft((double, monotonic()))
        self._pass(double)
        return True
