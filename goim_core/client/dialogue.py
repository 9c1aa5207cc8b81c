"""What a client and a server say to each other on one connection after another. No I/O."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial

from goim_core.client.inbox import Inbox
from goim_core.client.messages import Message
from goim_core.client.places import Places
from goim_core.client.requests import Pending, Requests, read_error
from goim_core.errors import Disconnect, ErrorCode, Refused
from goim_core.protocol import Frame, Op, encode, pushable

__all__ = ["Dialogue"]

RETRY = 1.0
"""Seconds before a place is asked for again that the server could not give; twice as long each time that it
gives none, up to a minute."""

_log = logging.getLogger("goim_core.client")


class Dialogue:
    """Frames in, messages out, and what is to be sent; it outlives connections.

    ``acknowledge`` is called with the number of a message and its inbox's epoch where the application has
    called :meth:`Message.ack`. ``online`` is how many connections the client's room had, as the last
    heartbeat told, None before. ``queued`` bytes wait to be sent.
    """

    def __init__(self, inbox: Inbox, max_body: int, acknowledge: Callable[[int, int], object]) -> None:
        self.inbox = inbox
        self.requests = Requests()
        self.places = Places()
        self.online: int | None = None
        self.queued = 0
        self._max_body = max_body
        self._acknowledge = acknowledge
        self._frames: list[bytes] = []
        self._late: set[tuple[int, bytes]] = set()
        self._late_at = math.inf
        self._retry = RETRY

    # Out.

    def put(self, op: int, body: bytes = b"", seq: int | None = None) -> None:
        """Send a frame. Raises :class:`ValueError` for a body that the server would close over."""
        if len(body) > self._max_body:
            raise ValueError(f"body: expected at most {self._max_body} bytes, got {len(body)}")
        frame = encode(op, body, self.requests.number() if seq is None else seq)
        self._frames.append(frame)
        self.queued += len(frame)

    def heartbeat(self) -> None:
        """Send a heartbeat."""
        self.put(Op.HEARTBEAT, seq=0)

    def request(self, op: int, body: bytes, wake: Callable[[], object]) -> Pending:
        """Send a request; ``wake`` is called when its outcome is there. Raises as :meth:`put` does."""
        pending = self.requests.begin(op, body, wake)
        try:
            self.put(op, body, pending.seq)
        except ValueError:
            self.requests.forget(pending)
            raise
        return pending

    def connected(self) -> None:
        """A new connection is authenticated: bring it to where the last one was, before anything else."""
        self._retry = RETRY
        self.inbox.connected()
        for op, body in self.places.again():
            self._bring(op, body)

    def _bring(self, op: int, body: bytes) -> None:
        pending = self.request(op, body, _nothing)
        pending.wake = partial(self._brought, pending)

    def _brought(self, pending: Pending) -> None:
        if isinstance(pending.outcome, Frame):
            self._retry = RETRY
        elif isinstance(pending.outcome, Refused):
            # A rate limit, when there are many; and no room is watched before the client is in it.
            outside = pending.op == Op.WATCH and any(body == pending.body for _, body in self._late)
            if outside or _passing(pending.outcome):
                self._late.add((pending.op, pending.body))
                return
            _log.warning("operation %d %r is refused now: %s", pending.op, pending.body, pending.outcome)
            self.places.refused(pending.op, pending.body)

    def due_at(self) -> float:
        """When something has to be sent by itself: a time that may have passed, infinite for never."""
        return min(self.inbox.due_at(), self._late_at)

    def lost(self, why: Disconnect) -> None:
        """The connection is gone, with what was not sent and the replies that were to come."""
        self._frames.clear()
        self.queued = 0
        self._late.clear()
        self._late_at = math.inf
        self.requests.fail(why)

    def to_send(self, now: float) -> list[bytes]:
        """The frames that are to be sent now, in order."""
        number = self.inbox.next_ack(now)
        if number is not None:
            self.request(Op.ACK, str(number).encode(), _nothing)
        if now >= self._late_at:
            late, self._late, self._late_at = self._late, set(), math.inf
            self._retry = min(60.0, 2 * self._retry)
            for op, body in self.places.again():  # what was left meanwhile is not there any more
                if (op, body) in late:
                    self._bring(op, body)
        frames, self._frames = self._frames, []
        self.queued = 0
        return frames

    # In.

    def on_frame(self, frame: Frame, now: float) -> Message | None:
        """Take a frame; the message it is, if it is one and a new one."""
        if frame.op == Op.HEARTBEAT_REPLY:
            self.online = int.from_bytes(frame.body[:4], signed=True)
        elif frame.seq < 0:
            self._on_reply(frame, now)
        elif frame.op == Op.ERROR:
            _log.warning("the server refuses: %s", read_error(frame.body))
        elif not pushable(frame.op) and frame.op != Op.PRESENCE:
            pass  # of another version of the protocol
        elif not frame.seq:
            return Message(frame.op, frame.body)
        elif self.inbox.take(frame.seq, now):
            done = partial(self._acknowledge, frame.seq, self.inbox.epoch)
            return Message(frame.op, frame.body, frame.seq, done)
        return None

    def _on_reply(self, frame: Frame, now: float) -> None:
        pending = self.requests.on_reply(frame)
        if pending is None:
            if frame.op == Op.ERROR:
                _log.warning("what was sent is refused: %s", read_error(frame.body))
        elif pending.op == Op.ACK:
            self._on_acknowledged(pending.outcome, now)
        elif isinstance(pending.outcome, Frame):
            self.places.agreed(pending.op, pending.body)
        elif self._late:
            self._late_at = min(self._late_at, now + self._retry)

    def _on_acknowledged(self, outcome: object, now: float) -> None:
        if isinstance(outcome, Frame) and outcome.body.isdigit():
            self.inbox.confirm(int(outcome.body))
        elif isinstance(outcome, Refused) and _passing(outcome):
            self.inbox.failed(now)
        else:
            self.inbox.refused()


def _passing(refused: Refused) -> bool:
    """Whether it is the server's trouble of the moment, and no answer to the request itself."""
    return refused.code == ErrorCode.TOO_MANY or 500 <= refused.code < 600


def _nothing() -> None:
    pass
