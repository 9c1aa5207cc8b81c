"""Hooks that may be plain or async, called without a task where none is needed.

A flow is a generator that yields what has to be awaited, and only that. One that yields nothing ran
to its end by being called: no task, no event loop. One that yields goes on in a task: see exchanges.py.
"""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import Awaitable, Callable, Generator
from math import inf
from typing import Any, TypeAlias, TypeGuard, TypeVar, cast

import anyio
from attrs import define

from goim_core.errors import (
    BackboneError,
    Disconnect,
    ErrorCode,
    HookError,
    Refused,
    ServerStopped,
    StorageError,
)
from goim_core.session import MaybeAwaitable, Session

__all__ = [
    "Flow",
    "Outcome",
    "attempt",
    "finish",
    "settle",
    "settle_unquoted",
    "settled",
    "step",
    "tried",
    "waits",
]

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
    except Exception as error:  # noqa: BLE001  # the border to the application, as in step
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
    outcome = yield from _caught(flow)
    if isinstance(outcome.error, Disconnect):
        return outcome.error
    if outcome.error is not None:
        _log.warning("a hook was told, and cannot refuse it any more: %s", outcome.error.reason)
    return None


def _caught(flow: Flow[None]) -> Flow[Outcome]:
    now = step(flow.__next__)
    while not isinstance(now, Outcome):
        try:
            value = yield now
        except BaseException as error:  # noqa: BLE001  # goes to the flow, and, if it is a cancellation, out again
            now = step(flow.throw, error)
        else:
            now = step(flow.send, value)
    return now


@define
class Outcome:
    """What became of a flow."""

    value: Any = None
    error: Refused | Disconnect | None = None


async def finish(flow: Flow[Any], now: Awaitable[Any] | Outcome) -> Outcome:
    """Wait for what ``flow`` waits for ``now``, and for all that follows."""
    while not isinstance(now, Outcome):
        try:
            value = await now
        except BaseException as error:  # noqa: BLE001  # goes to the flow, which may clean up, and out again
            now = step(flow.throw, _own_fault(error))
        else:
            now = step(flow.send, value)
    return now


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


def step(advance: Callable[..., Awaitable[Any]], *args: object) -> Awaitable[Any] | Outcome:
    """Have a flow go on: what it waits for next, or what became of it. What a hook did wrong is logged."""
    try:
        return advance(*args)
    except StopIteration as stop:
        return Outcome(stop.value)
    except (Refused, Disconnect) as error:
        return Outcome(error=error)
    except (HookError, BackboneError, StorageError) as error:
        _log.error("%s", error)
    except ServerStopped:
        _log.info("a hook was cut short: the server has stopped")
    except Exception:  # noqa: BLE001  # the border to the application: whatever a hook raises ends here
        _log.exception("a hook raised")
    return Outcome(error=Refused("internal error", ErrorCode.INTERNAL))
