"""A signal: wakes whoever waits."""

from __future__ import annotations

import anyio

__all__ = ["Signal"]


class Signal:
    """Wakes everyone who waits at that moment; look again at what you wait for."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def fire(self) -> None:
        """Wake them."""
        self._event.set()
        self._event = anyio.Event()

    async def wait(self) -> None:
        """Return at the next :meth:`fire`."""
        await self._event.wait()
