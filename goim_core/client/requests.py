"""Requests and their replies. No I/O.

A reply echoes the number of its request. Pushes have number 0, or their number in the inbox, from 1 on.
So requests are numbered below 0, and a reply is never taken for a message, nor a message for a reply.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from attrs import define

from goim_core.errors import Disconnect, ErrorCode, Refused
from goim_core.protocol import Frame, Op

__all__ = ["ECHOED", "Pending", "Requests"]

INT32_MIN = -(2**31)

ECHOED = frozenset(
    (Op.CHANGE_ROOM, Op.SUB, Op.UNSUB, Op.JOIN, Op.LEAVE, Op.WATCH, Op.UNWATCH)
)  # fmt: skip
"""Requests whose reply has the same body. Any other body means no (a client without ERROR is told so)."""

_SAYING = frozenset((Op.ACK, Op.MEMBERS, Op.LAST_SEEN))
"""Requests whose reply is never empty. An empty one means no (to a client without ERROR, again)."""

_NEXT = ECHOED | {Op.ACK, Op.SYNC, Op.MEMBERS, Op.LAST_SEEN, Op.REFRESH}
"""Requests whose reply has the next number. Any other operation means no."""


@define(eq=False)
class Pending:
    """A request that waits. ``wake`` is called once ``outcome`` is there: the reply, or why there is none."""

    op: int
    body: bytes
    seq: int
    wake: Callable[[], object]
    outcome: Frame | Refused | Disconnect | None = None


class Requests:
    """Numbers requests, and finds the one that a reply belongs to."""

    def __init__(self) -> None:
        self._waiting: dict[int, Pending] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def number(self) -> int:
        """A number that no request waits with: -1, -2 and so on."""
        self._last -= 1
        while self._last < INT32_MIN or self._last in self._waiting:
            self._last = -1 if self._last < INT32_MIN else self._last - 1
        return self._last

    def begin(self, op: int, body: bytes, wake: Callable[[], object]) -> Pending:
        """A new request, which has to be sent with its number."""
        pending = Pending(op, body, self.number(), wake)
        self._waiting[pending.seq] = pending
        return pending

    def forget(self, pending: Pending) -> None:
        """Nobody waits any more: the reply is dropped when it comes."""
        if self._waiting.get(pending.seq) is pending:
            del self._waiting[pending.seq]

    def on_reply(self, frame: Frame) -> Pending | None:
        """The request that ``frame`` answers, with its outcome; None when nobody waits for it."""
        pending = self._waiting.pop(frame.seq, None)
        if pending is not None:
            pending.outcome = _outcome(pending, frame)
            pending.wake()
        return pending

    def fail(self, why: Disconnect) -> None:
        """Every request that waits gets no reply, because of ``why``."""
        waiting, self._waiting = self._waiting, {}
        for pending in waiting.values():
            pending.outcome = Disconnect(why.reason, why.code)
            pending.wake()


def _outcome(pending: Pending, frame: Frame) -> Frame | Refused:
    if frame.op == Op.ERROR:
        return read_error(frame.body)
    if pending.op in _NEXT and frame.op != pending.op + 1:
        return Refused(
            f"operation {pending.op}: the server does not do it for this connection", ErrorCode.BAD_REQUEST
        )
    refused = frame.body != pending.body if pending.op in ECHOED else pending.op in _SAYING and not frame.body
    if refused:
        return Refused(f"operation {pending.op}: the server refused, and gave no reason")
    return frame


def read_error(body: bytes) -> Refused:
    """What the body of an ERROR says."""
    try:
        said: Any = json.loads(body)
        return Refused(str(said["message"]), int(said["code"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return Refused(body.decode(errors="replace"), ErrorCode.INTERNAL)
