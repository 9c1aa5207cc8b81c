"""Leaving a block that has a task group of its own, without the group's wrapping."""

from __future__ import annotations

from types import TracebackType

from anyio.abc import TaskGroup

__all__ = ["leave"]


async def leave(
    tasks: TaskGroup,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
) -> bool | None:
    """Leave ``tasks`` from an ``__aexit__``, which returns what this does.

    What the block raised comes out as it went in: a task group would wrap it, trio's even a copy. What a
    task raised comes out bare when it is the only one.
    """
    try:
        if isinstance(error, Exception):
            await tasks.__aexit__(None, None, None)
            return False
        return await tasks.__aexit__(kind, error, trace)
    except BaseExceptionGroup as group:
        found: BaseException = group
        while found is not error and isinstance(found, BaseExceptionGroup) and len(found.exceptions) == 1:
            found = found.exceptions[0]
        if found is error:
            return False
        raise found from None
