"""An application's queue, registry and discovery at work beside the server, whatever they raise."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from goim_core.clock import Clock
from goim_core.flow import tried

__all__ = ["kept_running"]

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds until a part's ``run`` that raised is called again, doubled each time."""

_log = logging.getLogger("goim_core.hooks")


async def kept_running(what: str, work: Callable[[], Awaitable[None]], clock: Clock) -> None:
    """Do the ``work`` of an application's part beside the server; again, after a pause, when it raised.

    What it raises is logged as the fault of ``what``. The server goes on: to its clients one that has a part
    that is ill is more than none.
    """
    pause = FIRST_PAUSE
    while True:
        began = clock.now()
        fault: object = await tried(work)
        if not isinstance(fault, Exception):
            return
        if clock.now() - began > LONGEST_PAUSE:
            pause = FIRST_PAUSE
        _log.error("%s failed, and is called again in %g s", what, pause, exc_info=fault)
        await clock.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
