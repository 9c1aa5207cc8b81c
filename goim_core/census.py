"""The census: how many are online on the other nodes, told by the registry every few seconds."""

from __future__ import annotations

import logging
from functools import partial

from goim_core.clock import Clock
from goim_core.comet import Comet
from goim_core.errors import GoimError
from goim_core.flow import tried
from goim_core.registry import Online, Registry
from goim_core.steps import stepped

__all__ = ["Census"]

_log = logging.getLogger("goim_core.census")


class Census:
    """Tells ``registry`` who is online here, and ``comet`` who is elsewhere, every ``interval`` seconds.

    Where the registry raises, or says what are no counts, the last ones stay, and it is asked again.
    """

    def __init__(self, comet: Comet, registry: Registry, clock: Clock, interval: float) -> None:
        self._comet = comet
        self._registry = registry
        self._clock = clock
        self.interval = interval

    async def run(self) -> None:
        """Work until cancelled; return at once for a registry that knows of no other node."""
        if type(self._registry).report is Registry.report:
            return
        fresh = True
        while True:
            counted = await stepped(self._comet.census())
            found: object = await tried(partial(self._registry.report, counted))
            if isinstance(found, Online):
                self._comet.elsewhere = found
            elif fresh:  # said once, until they are again
                _say(found)
            fresh = isinstance(found, Online)
            await self._clock.sleep(self.interval)


def _say(found: object) -> None:
    if isinstance(found, GoimError):
        _log.warning("counts of other nodes are not fresh: %s", found)
    elif isinstance(found, Exception):
        _log.error("counts of other nodes are not fresh: report raised", exc_info=found)
    else:
        _log.error("counts of other nodes are not fresh: report returned %.80r, expected Online", found)
