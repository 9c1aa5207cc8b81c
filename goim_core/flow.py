"""Hooks that may be plain or async, called without a task where none is needed.

A flow is a generator that yields what has to be awaited, and only that. One that yields nothing ran
to its end by being called: no task, no event loop. One that yields goes on in a task.
"""

from __future__ import annotations

import functools
import inspect
import logging
import traceback
from collections.abc import Awaitable, Callable, Generator, Iterable
from math import inf
from typing import Any, TypeAlias, TypeGuard, TypeVar, cast

import anyio
from anyio.abc import TaskGroup
from attrs import define

from goim_core.clock import Deadlines
from goim_core.errors import (
    BackboneError,
    CloseCode,
    Disconnect,
    ErrorCode,
    HookError,
    Refused,
    ServerStopped,
    StorageError,
)
from goim_core.metrics import HookTimes
from goim_core.session import MaybeAwaitable, Session

__all__ = ["Exchanges", "Flow", "attempt", "settle", "settle_unquoted", "settled", "tried"]

A = TypeVar("A")
T = TypeVar("T")
Flow: TypeAlias = Generator[Awaitable[Any], Any, T]

_PLAIN = frozenset((type(None), bool, str, int, list, dict, Session))

_log = logging.getLogger("goim_core.hooks")


def waits(value: object) -> TypeGuard[Awaitable[Any]]:
    """Whether what a hook returned has to be awaited."""
    # Nearly all that plain hooks return is of these; isawaitable() takes its time to deny it.
    return type(value) not in _PLAIN and inspect.isawaitable(value)


def settle(value: MaybeAwaitable[T]) -> Flow[T]:
    """``value``, or what awaiting it gives: ``yield from settle(hook.method(...))``."""
    found: Any = value
    if waits(value):
        found = yield value
    return found  # type: ignore[no-any-return]


def settle_unquoted(hook: Callable[[A], MaybeAwaitable[T]], secret: A) -> Flow[T]:
    """``settle(hook(secret))``; what it raises is logged without its text, which may repeat the secret."""
    try:
        found: Any = hook(secret)
        if waits(found):
            found = yield found
    except (Refused, Disconnect, HookError, BackboneError, StorageError, ServerStopped):
        raise
    except Exception as error:  # noqa: BLE001  # the border to the application, as in _step
        trace = "".join(traceback.format_tb(error.__traceback__)).rstrip()
        _log.error("a hook raised %s; its text may repeat the token:\n%s", type(error).__qualname__, trace)
    else:
        return found  # type: ignore[no-any-return]
    raise Refused("internal error", ErrorCode.INTERNAL)


async def settled(value: MaybeAwaitable[T]) -> T:
    """The same for a coroutine: ``await settled(hook.method(...))``."""
    return cast("T", await value if inspect.isawaitable(value) else value)


async def tried(call: Callable[[], T | Awaitable[T]]) -> T | Exception:
    """What a method of an application's part gives, plain or async; or the error that it raised."""
    try:
        return await settled(call())
    except BaseException as error:
        fault = _own_fault(error)
        if not isinstance(fault, Exception):
            raise
        return fault


def attempt(flow: Flow[None]) -> Flow[Disconnect | None]:
    """Run a hook that hears of what has happened: what it raises is logged, but for a wish to disconnect."""
    step = yield from _caught(flow)
    if isinstance(step.error, Disconnect):
        return step.error
    if step.error is not None:
        _log.warning("a hook was told, and cannot refuse it any more: %s", step.error.reason)
    return None


def _caught(flow: Flow[None]) -> Flow[_Outcome]:
    step = _step(flow.__next__)
    while not isinstance(step, _Outcome):
        try:
            value = yield step
        except BaseException as error:  # noqa: BLE001  # goes to the flow, and, if it is a cancellation, out again
            step = _step(flow.throw, error)
        else:
            step = _step(flow.send, value)
    return step


@define
class _Outcome:
    value: Any = None
    error: Refused | Disconnect | None = None


Later: TypeAlias = Callable[[Callable[[Any], None], Any], None]
"""Calls the first with the second, which has come out of a task."""


def _at_once(report: Callable[[Any], None], outcome: Any) -> None:
    report(outcome)


class Exchanges:
    """Runs flows: what a frame of a client has to do with the application's hooks.

    At most ``limit`` are with async hooks at a time, each for at most ``timeout`` seconds. Whatever a
    hook does wrong ends its own exchange, with an error for that client and a log line. ``times`` is told
    how long each took, the wait for its turn included, under the name of its flow.
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
        self._limiter = anyio.CapacityLimiter(limit)
        self._timeout = timeout
        self._active: dict[anyio.CancelScope, float] = {}  # and when each began
        self._running: set[anyio.CancelScope] = set()
        self._idle = anyio.Event()

    def bound(self, limit: int, timeout: float) -> None:
        """Change both, ``timeout`` for those that have not begun."""
        self._limiter.total_tokens = limit
        self._timeout = timeout

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
        step = _step(flow.__next__)
        if not isinstance(step, _Outcome):
            self._start(flow, began, step, functools.partial(later, done), functools.partial(later, failed))
            return False
        self._ended(flow, began, step)
        if step.error is None:
            done(step.value)
        else:
            failed(step.error)
        return True

    def each(self, flows: Iterable[Flow[object]]) -> None:
        """Run ``flows`` one after the other, each to its end whatever becomes of those before it."""
        rest = iter(flows)
        for flow in rest:
            began = self._now()
            step = _step(flow.__next__)
            if not isinstance(step, _Outcome):
                self._start(flow, began, step, lambda _: self.each(rest), lambda _: self.each(rest))
                return
            self._ended(flow, began, step)

    def abort(self) -> None:
        """Cancel every exchange that is with its hook; each is told so."""
        for scope in tuple(self._running):
            scope.cancel()

    def _start(
        self,
        flow: Flow[T],
        began: float,
        step: Awaitable[Any],
        done: Callable[[T], None],
        failed: Callable[[Refused | Disconnect], None],
    ) -> None:
        scope = anyio.CancelScope()
        self._active[scope] = began
        self._tasks.start_soon(self._go_on, scope, flow, step, done, failed)

    def _ended(self, flow: Flow[Any], began: float, outcome: _Outcome) -> None:
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
        return bool(self._active)

    async def idle(self) -> None:
        """Return when no exchange is under way."""
        while self._active:
            await self._idle.wait()

    async def _go_on(
        self,
        scope: anyio.CancelScope,
        flow: Flow[T],
        awaitable: Awaitable[Any],
        done: Callable[[T], None],
        failed: Callable[[Refused | Disconnect], None],
    ) -> None:
        outcome = _Outcome(error=Refused("the server took too long", ErrorCode.TIMEOUT))
        try:
            with scope:
                async with self._limiter:
                    self._running.add(scope)
                    with self._deadlines.move_on_after(self._timeout) as timer:
                        outcome = await _run(flow, awaitable)
                if timer.cancelled_caught:
                    _log.error(
                        "hook timed out after %s s: %s", self._timeout, getattr(flow, "__qualname__", flow)
                    )
            if scope.cancelled_caught:
                outcome = _cut(flow, awaitable, Disconnect("the server is stopping", CloseCode.GOING_AWAY))
            # Whoever is told may begin the next: for them this one is over.
            self._running.discard(scope)
            self._ended(flow, self._active.pop(scope), outcome)
            _report(outcome, done, failed)
        finally:
            if inspect.iscoroutine(awaitable):
                awaitable.close()  # cancelled before its turn came, it would warn that nobody awaited it
            self._running.discard(scope)
            self._active.pop(scope, None)
            if not self._active:
                self._idle.set()
                self._idle = anyio.Event()


async def _run(flow: Flow[Any], step: Awaitable[Any] | _Outcome) -> _Outcome:
    while not isinstance(step, _Outcome):
        try:
            value = await step
        except BaseException as error:  # noqa: BLE001  # goes to the flow, which may clean up, and out again
            step = _step(flow.throw, _own_fault(error))
        else:
            step = _step(flow.send, value)
    return step


def _cut(flow: Flow[Any], step: Awaitable[Any] | _Outcome, why: Disconnect) -> _Outcome:
    """End ``flow``, which may never have had its turn: what it cleans up is done before anyone is told."""
    while not isinstance(step, _Outcome):
        if inspect.iscoroutine(step):
            step.close()
        step = _step(flow.throw, why)
    return _Outcome(error=why)


def _own_fault(error: BaseException) -> BaseException:
    """``error``, unless a hook on asyncio let out the cancellation of some other task that it waited for.

    Let through, that would end the task group, and with it the server.
    """
    foreign = isinstance(error, anyio.get_cancelled_exc_class()) and anyio.current_effective_deadline() > -inf
    if not foreign:
        return error
    fault = RuntimeError("what the hook waited for was cancelled")
    fault.__cause__ = error
    return fault


def _step(advance: Callable[..., Awaitable[Any]], *args: object) -> Awaitable[Any] | _Outcome:
    try:
        return advance(*args)
    except StopIteration as stop:
        return _Outcome(stop.value)
    except (Refused, Disconnect) as error:
        return _Outcome(error=error)
    except (HookError, BackboneError, StorageError) as error:
        _log.error("%s", error)
    except ServerStopped:
        _log.info("a hook was cut short: the server has stopped")
    except Exception:  # noqa: BLE001  # the border to the application: whatever a hook raises ends here
        _log.exception("a hook raised")
    return _Outcome(error=Refused("internal error", ErrorCode.INTERNAL))


def _report(
    outcome: _Outcome, done: Callable[[Any], None], failed: Callable[[Refused | Disconnect], None]
) -> None:
    if outcome.error is None:
        done(outcome.value)
    else:
        failed(outcome.error)


def _fault(error: Refused | Disconnect) -> str:
    if isinstance(error, Disconnect):
        return "disconnect"
    return _FAULTS.get(error.code, "refused")


_FAULTS: dict[int, str] = {ErrorCode.INTERNAL: "error", ErrorCode.TIMEOUT: "timeout"}
