"""Exchanges: flows that are under way, with a task for each that has to wait, and a bound on those."""

from __future__ import annotations

import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextvars import copy_context
from typing import Any, TypeAlias, TypeVar

import anyio
from anyio.abc import TaskGroup
from attrs import define

from goim_core.clock import Deadlines, Timer
from goim_core.errors import CloseCode, Disconnect, ErrorCode, Refused
from goim_core.flow import Flow, Outcome, finish, step
from goim_core.metrics import HookTimes

__all__ = ["Exchanges"]

T = TypeVar("T")

_log = logging.getLogger("goim_core.hooks")

Later: TypeAlias = Callable[[Callable[[Any], None], Any], None]
"""Calls the first with the second, which has come out of a task."""


def _at_once(report: Callable[[Any], None], outcome: Any) -> None:
    report(outcome)


@define(eq=False)
class _Exchange:
    """A flow that has to wait, and who is told what became of it."""

    flow: Flow[Any]
    began: float
    awaitable: Awaitable[Any]
    """What it waits for first."""
    done: Callable[[Any], None]
    failed: Callable[[Refused | Disconnect], None]
    later: Later = _at_once
    scope: anyio.CancelScope | None = None
    """That of its task, once that has begun."""
    cut: bool = False
    """It was cut short, and was not merely too slow."""


class Exchanges:
    """Runs flows: what a frame of a client has to do with the application's hooks.

    At most ``limit`` are with async hooks at a time, each in a task of its own and for at most ``timeout``
    seconds. The others wait in a line: in a storm they may be thousands, and a task is some kilobytes.
    Whatever a hook does wrong ends its own exchange, with an error for that client and a log line. ``times``
    is told how long each took, the wait for its turn included, under the name of its flow.
    """

    def __init__(
        self,
        tasks: TaskGroup,
        deadlines: Deadlines,
        limit: int,
        timeout: float,
        times: dict[str, HookTimes] | None = None,
    ) -> None:
        self._tasks = tasks
        self._deadlines = deadlines
        self._now = deadlines.clock.now
        self._times = {} if times is None else times
        self._of: dict[str, HookTimes] = {}  # the same by the name of the flow's function
        self._limit = limit
        self._timeout = timeout
        self._waiting: deque[_Exchange] = deque()
        self._running: dict[_Exchange, None] = {}
        self._idle: anyio.Event | None = None
        self._context = copy_context()

    def bound(self, limit: int, timeout: float) -> None:
        """Change both, ``timeout`` for those that have not begun."""
        self._limit = limit
        self._timeout = timeout
        self._next()

    def begin(
        self,
        flow: Flow[T],
        done: Callable[[T], None],
        failed: Callable[[Refused | Disconnect], None],
        later: Later = _at_once,
    ) -> bool:
        """Run ``flow``, then call one of ``done`` and ``failed``.

        True when that has happened already; False when it will, out of a task, which calls ``later`` with
        the one and what it is told.
        """
        began = self._now()
        now = step(flow.__next__)
        if not isinstance(now, Outcome):
            self._start(_Exchange(flow, began, now, done, failed, later))
            return False
        self._ended(flow, began, now)
        if now.error is None:
            done(now.value)
        else:
            failed(now.error)
        return True

    def each(self, flows: Iterable[Flow[object]]) -> None:
        """Run ``flows`` one after the other, each to its end whatever becomes of those before it."""
        rest = iter(flows)
        for flow in rest:
            began = self._now()
            now = step(flow.__next__)
            if not isinstance(now, Outcome):

                def go_on(_: object) -> None:
                    self.each(rest)

                self._start(_Exchange(flow, began, now, go_on, go_on))
                return
            self._ended(flow, began, now)

    def abort(self) -> None:
        """Cancel every exchange that is with its hook; each is told so."""
        for exchange in self._running:
            if exchange.scope is not None:
                exchange.cut = True
                exchange.scope.cancel()

    def _start(self, exchange: _Exchange) -> None:
        self._waiting.append(exchange)
        self._next()

    def _next(self) -> None:
        while self._waiting and len(self._running) < self._limit:
            exchange = self._waiting.popleft()
            self._running[exchange] = None
            # Not in the context of whoever has ended: its hooks were those of another client.
            self._context.run(self._tasks.start_soon, self._go_on, exchange)

    def _ended(self, flow: Flow[Any], began: float, outcome: Outcome) -> None:
        name = getattr(flow, "__name__", "")
        times = self._of.get(name)
        if times is None:
            times = self._of[name] = self._times.setdefault(name.strip("_"), HookTimes())
        times.seconds.observe(self._now() - began)
        if outcome.error is not None:
            times.faults[_fault(outcome.error)] += 1

    @property
    def active(self) -> bool:
        """Whether an exchange is under way."""
        return bool(self._running or self._waiting)

    async def idle(self) -> None:
        """Return when no exchange is under way."""
        while self.active:
            if self._idle is None:
                self._idle = anyio.Event()
            await self._idle.wait()

    async def _go_on(self, exchange: _Exchange) -> None:
        try:
            outcome = await self._outcome(exchange)
            # Whoever is told may begin the next: for them this one is over.
            del self._running[exchange]
            self._next()
            self._ended(exchange.flow, exchange.began, outcome)
            if outcome.error is None:
                exchange.later(exchange.done, outcome.value)
            else:
                exchange.later(exchange.failed, outcome.error)
        except BaseException:  # cancelled with the server, and so is who waits
            self._running.pop(exchange, None)
            while self._waiting:
                _close(self._waiting.popleft().awaitable)
            raise
        finally:
            _close(exchange.awaitable)
            if self._idle is not None and not self.active:
                self._idle.set()
                self._idle = None

    async def _outcome(self, exchange: _Exchange) -> Outcome:
        flow, timeout = exchange.flow, self._timeout
        with anyio.CancelScope() as exchange.scope:
            timer = Timer(self._now() + timeout, exchange.scope.cancel)
            self._deadlines.watch(timer)
            try:
                return await finish(flow, exchange.awaitable)
            finally:
                self._deadlines.forget(timer)
        if exchange.cut:
            return _cut(flow, exchange.awaitable, Disconnect("the server is stopping", CloseCode.GOING_AWAY))
        _log.error("hook timed out after %s s: %s", timeout, getattr(flow, "__qualname__", flow))
        return Outcome(error=Refused("the server took too long", ErrorCode.TIMEOUT))


def _close(awaitable: Awaitable[Any]) -> None:
    """Cancelled before its turn came, a coroutine would warn that nobody awaited it."""
    if inspect.iscoroutine(awaitable):
        awaitable.close()


def _cut(flow: Flow[Any], now: Awaitable[Any] | Outcome, why: Disconnect) -> Outcome:
    """End ``flow``, which may never have had its turn: what it cleans up is done before anyone is told."""
    while not isinstance(now, Outcome):
        _close(now)
        now = step(flow.throw, why)
    return Outcome(error=why)


def _fault(error: Refused | Disconnect) -> str:
    if isinstance(error, Disconnect):
        return "disconnect"
    return _FAULTS.get(error.code, "refused")


_FAULTS: dict[int, str] = {ErrorCode.INTERNAL: "error", ErrorCode.TIMEOUT: "timeout"}
