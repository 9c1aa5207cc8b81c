"""What has come of messages and frames whose rest has not: how much of it there may be. Sync.

A client may leave off in the middle of what it sends, and stay for as long as a handshake or a heartbeat
may take. A little of that is a connection's own; what is more is added up here, for all together.
"""

from __future__ import annotations

from goim_core.admission import Entrant
from goim_core.channel import Counters
from goim_core.errors import CloseCode, Disconnect
from goim_core.options import Options

__all__ = ["OWN", "Unfinished"]

OWN = 1 << 13
"""How many bytes of one connection are not added up: a frame of goim's size is less."""


class Unfinished:
    """Keeps what is unfinished of all connections within ``unfinished_total``.

    Beyond it, those are cut that have been unfinished for the longest: who sends something large goes on to
    its end meanwhile.
    """

    def __init__(self, counters: Counters, options: Options) -> None:
        self._counters = counters
        self._sizes: dict[Entrant, int] = {}
        self.total = 0
        self.reload(options)

    def reload(self, options: Options) -> None:
        """From now on, these are the options."""
        self._most = options.unfinished_total

    def note(self, connection: Entrant, size: int) -> None:
        """So many bytes of ``connection`` wait for more to come, after it was read."""
        if size <= OWN:
            self.forget(connection)
            return
        self.total += size - self._sizes.get(connection, 0)
        self._sizes[connection] = size
        while self.total > self._most:
            self._counters.refusals["unfinished_total"] += 1
            longest = next(iter(self._sizes))
            longest.cut(Disconnect("too much is unfinished: try again later", CloseCode.TRY_AGAIN_LATER))

    def forget(self, connection: Entrant) -> None:
        """It has ended."""
        self.total -= self._sizes.pop(connection, 0)
