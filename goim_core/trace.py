"""A trace of chosen users while the server runs: goim's whitelist log, which goim sets in its configuration.

Every frame, room, drop and end of their connections becomes a line: on the logger ``goim_core.trace``, and
among the last lines that the operator API shows. Sizes are told, bodies never.

Nobody else pays for it: a traced connection has its wire and its socket wrapped, the others have not.
"""

from __future__ import annotations

import logging
from collections import deque
from itertools import islice

from attrs import frozen

from goim_core.clock import Clock

__all__ = ["Line", "Tracer"]

MAX_USERS = 100
"""How many users may be traced at a time."""
KEPT = 1000
"""How many lines are kept."""

_log = logging.getLogger("goim_core.trace")


@frozen
class Line:
    """One event: ``n`` counts them, ``time`` is in seconds since 1970."""

    n: int
    time: float
    mid: int
    key: str
    text: str


class Tracer:
    """Who is traced, and what was seen last."""

    def __init__(self, clock: Clock) -> None:
        self.mids: set[int] = set()
        self.lines: deque[Line] = deque(maxlen=KEPT)
        self._clock = clock
        self._next = 0

    def add(self, mid: int) -> None:
        """Trace this user; raises :class:`ValueError` for one too many, and for user 0, who is nobody."""
        if mid == 0:
            raise ValueError("mid: expected a user, 0 is nobody in particular")
        if mid not in self.mids and len(self.mids) >= MAX_USERS:
            raise ValueError(f"mid: expected at most {MAX_USERS} users to trace")
        self.mids.add(mid)

    def tell(self, mid: int, key: str, text: str) -> None:
        """Something has happened to the connection ``key`` of a traced user."""
        self.lines.append(Line(self._next, self._clock.time(), mid, key, text))
        self._next += 1
        _log.info("%s %s: %s", mid, key, text, extra={"mid": mid, "key": key})

    def since(self, after: int, limit: int) -> tuple[list[Line], int]:
        """The oldest ``limit`` kept lines from number ``after`` on, and the number to ask for next."""
        first = self._next - len(self.lines)
        start = min(max(after - first, 0), len(self.lines))
        lines = list(islice(self.lines, start, start + limit))
        return lines, lines[-1].n + 1 if lines else self._next
