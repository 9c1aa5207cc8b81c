"""The wheel of deadlines: never early, late by less than a tick, and free for what only moves later."""

from __future__ import annotations

import sys
import time

import anyio
import anyio.lowlevel
import pytest
from attrs import define
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from goim_core.clock import Deadlines, SystemClock, Timed, Timer
from goim_core.testing import ManualClock

TICK = 0.25


@define(eq=False)
class Entry:
    """A deadline that tells when it was called."""

    wheel: Deadlines
    at: float
    slot: set[Timed] | None = None
    called: float | None = None
    looked_at: int = 0

    def due(self) -> float:
        self.looked_at += 1
        return self.at

    def on_deadline(self) -> None:
        assert self.called is None
        assert self.slot is None, "it is out of the wheel when it is called"
        self.called = self.wheel.clock.now()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def wheel(clock: ManualClock) -> Deadlines:
    return Deadlines(clock, TICK)


def watched(wheel: Deadlines, seconds: float) -> Entry:
    entry = Entry(wheel, wheel.clock.now() + seconds)
    wheel.watch(entry)
    return entry


def test_the_system_clock_is_monotonic_time() -> None:
    before = time.monotonic()
    now = SystemClock().now()
    assert before <= now <= time.monotonic()


@pytest.mark.anyio
async def test_the_system_clock_sleeps() -> None:
    clock = SystemClock()
    before = clock.now()
    await clock.sleep(0.001)
    # An event loop may be early by its clock's resolution.
    assert clock.now() - before > 0.0005


@pytest.mark.anyio
async def test_a_moment_that_has_passed_is_not_waited_for() -> None:
    for clock in (SystemClock(), ManualClock()):
        await clock.sleep(-0.001)


@pytest.mark.parametrize("seconds", [0.01, 0.25, 0.26, 1.0, 1000.1])
def test_a_deadline_is_kept_within_a_tick_and_never_early(
    wheel: Deadlines, clock: ManualClock, seconds: float
) -> None:
    entry = watched(wheel, seconds)
    clock.advance(seconds - 0.001)
    assert not wheel.expire()
    assert entry.called is None
    clock.advance(TICK + 0.001)
    wheel.expire()
    assert entry.called == clock.now()


def test_a_deadline_that_has_passed_is_kept_within_a_tick(wheel: Deadlines, clock: ManualClock) -> None:
    entry = watched(wheel, -50)
    wheel.expire()
    assert entry.called == clock.now()


@pytest.mark.parametrize("start", [-1000.0, -0.1, 0.0, 1e9])
def test_the_clock_may_start_anywhere(start: float) -> None:
    clock = ManualClock(start)
    wheel = Deadlines(clock, TICK)
    entry = watched(wheel, 0.1)
    wheel.expire()
    assert entry.called is None
    clock.advance(0.101 + TICK)
    wheel.expire()
    assert entry.called is not None


def test_moving_later_costs_nothing_until_the_old_time(wheel: Deadlines, clock: ManualClock) -> None:
    entry = watched(wheel, 1)
    slot, looks = entry.slot, entry.looked_at
    for _ in range(100):
        entry.at += 0.1
        wheel.expire()
    assert (entry.slot, entry.looked_at) == (slot, looks)
    clock.advance(1 + TICK)
    wheel.expire()
    assert entry.called is None
    assert entry.slot is not slot
    clock.advance(10)
    wheel.expire()
    assert entry.called is not None


@pytest.mark.parametrize("seconds", [0.01, TICK, 0.9])
def test_moving_a_little_later_is_not_early_either(
    wheel: Deadlines, clock: ManualClock, seconds: float
) -> None:
    entry = watched(wheel, 1 + TICK)  # looked at when its own tick ends
    entry.at += seconds + TICK
    clock.advance(1 + 2 * TICK)
    wheel.expire()
    assert entry.called is None
    clock.advance(seconds + TICK)
    wheel.expire()
    assert entry.called == clock.now()


def test_moving_earlier_is_watched_again(wheel: Deadlines, clock: ManualClock) -> None:
    entry = watched(wheel, 100)
    entry.at = clock.now() + 1
    wheel.watch(entry)
    clock.advance(1 + TICK)
    wheel.expire()
    assert entry.called == clock.now()
    clock.advance(100)
    wheel.expire()  # and not again at the old time


def test_forgetting(wheel: Deadlines, clock: ManualClock) -> None:
    entry, other = watched(wheel, 1), watched(wheel, 1)
    wheel.forget(entry)
    wheel.forget(entry)
    assert entry.slot is None
    clock.advance(2)
    wheel.expire()
    assert entry.called is None
    assert other.called is not None


def test_what_was_forgotten_leaves_no_table(wheel: Deadlines) -> None:
    """Of a storm whose connections are gone long before their time."""
    entries = [watched(wheel, 480.0) for _ in range(1000)]
    slot = entries[0].slot
    assert slot is not None
    assert sys.getsizeof(slot) > 10_000
    for entry in entries:
        wheel.forget(entry)
    assert sys.getsizeof(slot) == sys.getsizeof({})
    again = watched(wheel, 480.0)
    assert again.slot is slot


def test_one_call_looks_at_a_limited_number(wheel: Deadlines, clock: ManualClock) -> None:
    entries = [watched(wheel, 1) for _ in range(5)] + [watched(wheel, 2) for _ in range(5)]
    clock.advance(3)
    done = []
    for _ in range(4):
        left = wheel.expire(limit=3)
        done.append((left, sum(entry.called is not None for entry in entries)))
    assert done == [(True, 3), (True, 6), (True, 9), (False, 10)]
    assert not wheel.expire(limit=3)


def test_a_deadline_may_watch_and_forget_others(wheel: Deadlines, clock: ManualClock) -> None:
    early, later = watched(wheel, 1), watched(wheel, 1)
    entries = [early, later]

    def act() -> None:
        for entry in entries:
            wheel.forget(entry)
        wheel.watch(later)

    wheel.watch(Timer(clock.now() + 0.5, act))
    clock.advance(0.5 + TICK)
    wheel.expire()
    clock.advance(1)
    wheel.expire()
    assert early.called is None
    assert later.called is not None


def test_a_deadline_that_comes_due_again_at_once_does_not_hold_the_turn(
    wheel: Deadlines, clock: ManualClock
) -> None:
    calls = []

    def again() -> None:
        calls.append(1)
        wheel.watch(Timer(clock.now() - 1, again))

    again()
    assert wheel.expire(limit=10)
    assert len(calls) == 11


def test_a_timer_calls_its_action_once(wheel: Deadlines, clock: ManualClock) -> None:
    calls: list[int] = []
    wheel.watch(Timer(clock.now() + 1, lambda: calls.append(1)))
    for _ in range(3):
        clock.advance(2)
        wheel.expire()
    assert calls == [1]


class Wheel(RuleBasedStateMachine):
    """Against a model: every entry and the time that it is due."""

    @initialize(tick=st.sampled_from([0.25, 0.1, 1.0, 0.3]), start=st.floats(-100, 1e6))
    def begin(self, tick: float, start: float) -> None:
        self.tick = tick
        self.clock = ManualClock(start)
        self.wheel = Deadlines(self.clock, tick)
        self.inside: list[Entry] = []
        self.done: list[Entry] = []

    @rule(seconds=st.floats(-1, 20))
    def watch(self, seconds: float) -> None:
        self.inside.append(watched(self.wheel, seconds))

    @precondition(lambda self: self.inside)
    @rule(index=st.integers(0, 50), seconds=st.floats(0, 20))
    def later(self, index: int, seconds: float) -> None:
        self.inside[index % len(self.inside)].at += seconds

    @precondition(lambda self: self.inside)
    @rule(index=st.integers(0, 50), seconds=st.floats(0, 20))
    def earlier(self, index: int, seconds: float) -> None:
        entry = self.inside[index % len(self.inside)]
        entry.at -= seconds
        self.wheel.watch(entry)

    @precondition(lambda self: self.inside)
    @rule(index=st.integers(0, 50))
    def forget(self, index: int) -> None:
        entry = self.inside.pop(index % len(self.inside))
        self.wheel.forget(entry)
        self.done.append(entry)

    @rule(seconds=st.floats(0, 10), limit=st.sampled_from([1, 3, 1000]))
    def advance(self, seconds: float, limit: int) -> None:
        forgotten = {entry for entry in self.done if entry.called is None}
        self.clock.advance(seconds)
        while self.wheel.expire(limit):
            pass
        now = self.clock.now()
        for entry in list(self.inside):
            if entry.called is not None:
                assert entry.at <= now, "never early"
                self.inside.remove(entry)
                self.done.append(entry)
            else:
                # A float's grain is the only slack.
                assert entry.at + self.tick > now - 1e-6, "late by less than a tick"
        assert all(entry.called is None for entry in forgotten)

    @invariant()
    def slots(self) -> None:
        assert all(entry.slot is not None and entry in entry.slot for entry in self.inside)
        assert all(entry.slot is None for entry in self.done)


TestWheel = Wheel.TestCase
TestWheel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@pytest.mark.anyio
async def test_running_keeps_the_deadlines_within_two_ticks(clock: ManualClock) -> None:
    clock.advance(0.1)  # not at the beginning of a tick
    wheel = Deadlines(clock, TICK)
    entries = [watched(wheel, seconds) for seconds in (0.16, 0.3, 1.0)]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wheel.run)
        for _ in range(6):
            await clock.asleep(TICK)
            clock.advance(TICK)
        await clock.asleep(TICK)
        tasks.cancel_scope.cancel()
    assert all(entry.called is not None and 0 <= entry.called - entry.at <= 2 * TICK for entry in entries)


@pytest.mark.anyio
async def test_running_lets_others_in_between_many_deadlines(clock: ManualClock, wheel: Deadlines) -> None:
    entries = [watched(wheel, 0.1) for _ in range(2500)]
    counts = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wheel.run)
        await clock.asleep(TICK)
        clock.advance(2 * TICK)
        while not all(entry.called for entry in entries):
            counts.append(sum(entry.called is not None for entry in entries))
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert any(0 < count < 2500 for count in counts)


@pytest.mark.anyio
async def test_move_on_after_cancels_when_the_time_has_come(clock: ManualClock, wheel: Deadlines) -> None:
    with wheel.move_on_after(1) as scope:
        clock.advance(1 + TICK)
        wheel.expire()
        await anyio.sleep_forever()
    assert scope.cancelled_caught


@pytest.mark.anyio
async def test_move_on_after_leaves_no_timer_behind(clock: ManualClock, wheel: Deadlines) -> None:
    with wheel.move_on_after(1) as scope:
        await anyio.lowlevel.checkpoint()
    clock.advance(2)
    assert not wheel.expire()
    assert not scope.cancel_called
