"""What becomes of a server for which too much waits: those with the most waiting are closed. Sync.

Looked at in the reactor's next turn, not where it was noticed, which is in the middle of a push.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from goim_core.channel import Counters
from goim_core.errors import CloseCode, Disconnect
from goim_core.options import Options
from goim_core.reactor import Reactor

__all__ = ["Pressure"]


class Slow(Protocol):
    """A connection for which something may wait."""

    @property
    def waiting(self) -> int:
        """How many bytes wait for it."""

    def cut(self, why: Disconnect) -> None:
        """Tell the peer why, if it takes that at once, and end the connection."""


class Pressure:
    """Keeps what waits for all ``connections`` within ``outbox_total``. A source of the reactor.

    Beyond it, those with the most waiting are closed until 7/8 of it are left: so the next time comes only
    after another eighth, and looking at every connection is paid for by what has come.
    """

    def __init__(
        self,
        counters: Counters,
        reactor: Reactor,
        connections: Callable[[], Iterable[Slow]],
        options: Options,
    ) -> None:
        self._counters = counters
        self._reactor = reactor
        self._connections = connections
        self._asked = False
        counters.outboxes.on_excess = self._ask
        self.reload(options)

    def reload(self, options: Options) -> None:
        """From now on, these are the options."""
        self._counters.outboxes.at_most = options.outbox_total
        self._counters.outboxes.add(0)

    def _ask(self) -> None:
        if not self._asked:
            self._asked = True
            self._reactor.again(self)

    def on_turn(self) -> None:
        """The reactor's next turn."""
        self._asked = False
        account = self._counters.outboxes
        if account.waiting <= account.at_most:
            return
        slow = [connection for connection in self._connections() if connection.waiting]
        slow.sort(key=lambda connection: connection.waiting, reverse=True)
        for connection in slow:
            if account.waiting <= account.at_most * 7 / 8:
                break
            self._counters.refusals["outbox_total"] += 1
            connection.cut(Disconnect("too slow: too much waits for all connections", CloseCode.SLOW))

    def on_readable(self) -> None:
        """Never: it has no socket."""

    def on_writable(self) -> None:
        """Never: it has no socket."""
