"""Messages that have come and are not taken yet."""

from __future__ import annotations

from collections import deque

import anyio.lowlevel

from goim_core.client.messages import Message
from goim_core.client.signal import Signal

__all__ = ["Buffer"]

WHILE_ASKING = 16
"""How many times as many messages may wait while a request does: its reply comes behind them."""


class Buffer:
    """At most ``limit`` messages; the reader waits in :meth:`until_space`, and so does the server then.

    ``asking`` counts the requests that wait for a reply. ``paused`` is whether the reader waits, and
    ``was_paused`` whether it has since somebody set that to False.
    """

    def __init__(self, limit: int) -> None:
        self.asking = 0
        self.paused = self.was_paused = False
        self.ended = False
        self._limit = limit
        self._messages: deque[Message] = deque()
        self._arrived, self._space = Signal(), Signal()

    def put(self, message: Message) -> None:
        """Give a message to whoever waits for one."""
        self._messages.append(message)
        self._arrived.fire()

    def end(self) -> None:
        """No more messages come."""
        self.ended = True
        self._arrived.fire()

    async def take(self) -> Message | None:
        """The next message; None when there is none and none comes any more."""
        await anyio.lowlevel.checkpoint()
        while not self._messages:
            if self.ended:
                return None
            await self._arrived.wait()
        self._space.fire()
        return self._messages.popleft()

    def ask(self) -> None:
        """Somebody waits for a reply: read on for it. ``asking`` has to be reduced afterwards."""
        self.asking += 1
        self._space.fire()

    async def until_space(self) -> None:
        """Return when there is space for another message."""
        try:
            while len(self._messages) >= self._limit * (WHILE_ASKING if self.asking else 1):
                self.paused = self.was_paused = True
                await self._space.wait()
        finally:
            self.paused = False
