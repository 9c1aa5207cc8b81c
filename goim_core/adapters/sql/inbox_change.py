"""What a group of work changes in the inboxes: the arithmetic that every database adapter shares.

An adapter locks and reads what :class:`Change` asks for, calls :meth:`Change.decide`, and writes
what it says; the statements are the adapter's, the rules are here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from attrs import define, field

from goim_core.errors import StorageError
from goim_core.storage import Retention, Stored

__all__ = ["Acknowledge", "After", "Append", "Change", "Cursor", "LastSeen", "Read", "Saw", "Work", "fitting"]


@define(eq=False)
class Append:
    """A message for the inboxes of ``mids``; ``numbers`` is the answer. ``key`` may be empty."""

    mids: tuple[int, ...]
    op: int
    body: bytes
    key: bytes
    at: float
    numbers: dict[int, int] = field(factory=dict)
    error: StorageError | None = None

    @property
    def repeatable(self) -> bool:
        """Whether doing it once more, after it may have been done, does no harm."""
        return bool(self.key)


@define(eq=False)
class Acknowledge:
    """Move the cursor of a device; ``cursor`` is the answer."""

    mid: int
    device: bytes
    seq: int
    at: float
    cursor: int = 0
    error: StorageError | None = None
    repeatable = True


@define(eq=False)
class Saw:
    """The user's last connection ended at ``seen``."""

    mid: int
    seen: float
    at: float
    error: StorageError | None = None
    repeatable = True


Work = Append | Acknowledge | Saw
"""What changes an inbox. ``at`` is the time on the storage's clock, ``error`` why it was not done."""


@define(eq=False)
class After:
    """Messages behind ``seq`` that are not older than ``oldest``."""

    mid: int
    seq: int
    limit: int
    size: int
    oldest: float
    found: Sequence[Stored] = ()
    error: StorageError | None = None


@define(eq=False)
class Cursor:
    """The cursor of a device."""

    mid: int
    device: bytes
    found: int = 0
    error: StorageError | None = None


@define(eq=False)
class LastSeen:
    """When users were last seen."""

    mids: tuple[int, ...]
    found: dict[int, float] = field(factory=dict)
    error: StorageError | None = None


Read = After | Cursor | LastSeen
"""A question; ``found`` is the answer."""


class Change:
    """What ``works`` come to, as one transaction."""

    def __init__(self, works: Sequence[Work], retention: Retention) -> None:
        self._retention = retention
        self.appends = [work for work in works if isinstance(work, Append)]
        self.acks = [work for work in works if isinstance(work, Acknowledge)]
        self.seen = {work.mid: work.seen for work in works if isinstance(work, Saw)}
        self.oldest = max(work.at for work in works) - retention.keep_for
        """What was stored before this time is not kept any longer."""
        self.receivers = sorted({mid for append in self.appends for mid in append.mids})
        self.mids = sorted({*self.receivers, *self.seen, *(ack.mid for ack in self.acks)})
        """Every user concerned: the order to lock them in."""
        self.keys = [(mid, append.key) for append in self.appends if append.key for mid in append.mids]
        """Idempotency keys to look up, among messages that are not older than :attr:`oldest`."""
        self.devices = [(ack.mid, ack.device) for ack in self.acks]
        """Cursors to look up."""
        self.messages: list[tuple[int, int, float, int, bytes | None, bytes]] = []
        """To be inserted: mid, seq, at, op, key, body."""
        self.lasts: dict[int, int] = {}
        """The number of the last message, for each user who gets one."""
        self.cursors: dict[tuple[int, bytes], int] = {}
        """The cursors that move."""
        self.crowded: list[int] = []
        """Users with a new cursor, who may have too many of them now."""
        self.surplus: list[tuple[int, int]] = []
        """mid and seq: everything up to there is too much and has to be removed."""

    def decide(
        self,
        lasts: Mapping[int, int],
        firsts: Mapping[tuple[int, bytes], int],
        cursors: Mapping[tuple[int, bytes], int],
    ) -> None:
        """Number the messages and move the cursors.

        ``lasts`` the number of the last message by user, ``firsts`` that of the message with a key,
        ``cursors`` those asked for; what does not exist is left out.
        """
        last = {mid: lasts.get(mid, 0) for mid in self.mids}
        known = dict(firsts)
        for append in self.appends:
            append.numbers = {mid: self._number(append, mid, last, known) for mid in append.mids}
        self.lasts = {mid: last[mid] for mid in self.receivers if last[mid] > lasts.get(mid, 0)}
        self.surplus = [
            pair for mid in self.lasts for pair in self._surplus(mid, lasts.get(mid, 0), last[mid])
        ]
        now = dict(cursors)
        for ack in self.acks:
            where = (ack.mid, ack.device)
            if now.get(where, 0) < ack.seq <= last[ack.mid]:
                now[where] = self.cursors[where] = ack.seq
            ack.cursor = now.get(where, 0)
        self.crowded = sorted({mid for mid, device in self.cursors if (mid, device) not in cursors})

    def _number(
        self, append: Append, mid: int, last: dict[int, int], known: dict[tuple[int, bytes], int]
    ) -> int:
        if append.key:
            first = known.get((mid, append.key), 0)
            if first > max(0, last[mid] - self._retention.keep):
                return first
        last[mid] += 1
        seq = last[mid]
        if append.key:
            known[mid, append.key] = seq
        self.messages.append((mid, seq, append.at, append.op, append.key or None, append.body))
        return seq

    def _surplus(self, mid: int, before: int, after: int) -> list[tuple[int, int]]:
        step = self._retention.slack + 1
        too_many = after > self._retention.keep and after // step > before // step
        return [(mid, after - self._retention.keep)] if too_many else []


def fitting(rows: Iterable[tuple[int, int, bytes, float]], size: int) -> Iterator[Stored]:
    """The messages of ``rows`` (seq, op, body, at) as long as their bodies fit ``size``; always the first."""
    first = True
    for seq, op, body, at in rows:
        size -= len(body)
        if size < 0 and not first:
            return
        first = False
        yield Stored(seq, op, body, at)
