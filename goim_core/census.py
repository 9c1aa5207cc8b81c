"""The census: how many are online on the other nodes, told by the registry every few seconds."""

from __future__ import annotations

import logging

from goim_core.clock import Clock
from goim_core.comet import Comet
from goim_core.errors import GoimError
from goim_core.flow import settled
from goim_core.registry import Registry

__all__ = ["Census"]

_log = logging.getLogger("goim_core.census")


class Census:
    """Tells ``registry`` who is online here, and ``comet`` who is elsewhere, every ``interval`` seconds."""

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
            try:
                self._comet.elsewhere = await settled(self._registry.report(self._comet.census()))
                fresh = True
            except GoimError as error:
                if fresh:  # said once, until they are again
                    _log.warning("counts of other nodes are not fresh: %s", error)
                fresh = False
            await self._clock.sleep(self.interval)
