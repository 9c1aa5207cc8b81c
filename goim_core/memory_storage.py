"""Inboxes in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from attrs import define, field

from goim_core.storage import DEVICES, Retention, StorageHook, Stored, StorePolicy, check_append

__all__ = ["MemoryStorage"]


class MemoryStorage(StorageHook):
    """Inboxes in memory: for tests, and where messages need not outlive the process.

    ``keep`` messages a user are kept, each for ``keep_for`` seconds, and cursors of ``devices`` devices. A
    message costs about 100 bytes and its body, however many users it is for, and 8 bytes for each of them.

    Raises :class:`~goim_core.errors.ConfigurationError` that names the argument.
    """

    def __init__(
        self,
        keep: int = 10_000,
        keep_for: float = 30 * 86_400,
        policy: StorePolicy = StorePolicy.ALL,
        devices: int = DEVICES,
    ) -> None:
        self._retention = Retention(keep, keep_for, policy, devices)
        self.policy = self._retention.policy
        self._inboxes: dict[int, _Inbox] = {}
        self._round: list[_Inbox] = []
        self._swept = 0
        self._seen: dict[int, float] = {}

    def append(
        self, mids: Sequence[int], op: int, body: bytes, *, idempotency_key: str = ""
    ) -> dict[int, int]:
        """See :meth:`StorageHook.append`."""
        users = check_append(mids, op, body, idempotency_key)
        now = self.now()
        oldest = now - self._retention.keep_for
        message = (now, op, body)
        numbers = {
            mid: self._inbox(mid).append(message, idempotency_key, oldest, self._retention) for mid in users
        }
        self._sweep(2 * len(users), oldest)
        return numbers

    def after(self, mid: int, seq: int, limit: int, size: int) -> Sequence[Stored]:
        """See :meth:`StorageHook.after`."""
        inbox = self._inboxes.get(mid)
        if inbox is None:
            return []
        return inbox.after(seq, limit, size, self.now() - self._retention.keep_for, self._retention.keep)

    def acknowledge(self, mid: int, device: str, seq: int) -> int:
        """See :meth:`StorageHook.acknowledge`."""
        inbox = self._inboxes.get(mid)
        return 0 if inbox is None else inbox.acknowledge(device, seq, self._retention.devices)

    def cursor(self, mid: int, device: str) -> int:
        """See :meth:`StorageHook.cursor`."""
        inbox = self._inboxes.get(mid)
        return 0 if inbox is None else inbox.cursors.get(device, 0)

    def saw(self, mid: int, at: float) -> None:
        """See :meth:`StorageHook.saw`."""
        self._seen[mid] = at

    def last_seen(self, mids: Iterable[int]) -> dict[int, float]:
        """See :meth:`StorageHook.last_seen`."""
        return {mid: self._seen[mid] for mid in mids if mid in self._seen}

    def _inbox(self, mid: int) -> _Inbox:
        inbox = self._inboxes.get(mid)
        if inbox is None:
            inbox = self._inboxes[mid] = _Inbox()
            self._round.append(inbox)
        return inbox

    def _sweep(self, count: int, oldest: float) -> None:
        """Remove what is too old from the next ``count`` inboxes: nobody else looks at an idle user's."""
        for _ in range(min(count, len(self._round))):
            self._swept = (self._swept + 1) % len(self._round)
            self._round[self._swept].expire(oldest)


_NONE: dict[Any, int] = {}
"""In place of a dictionary of its own for each of many users that need none; never written to."""


@define(eq=False)
class _Inbox:
    """One user's messages: (stored at, op, body), the newest of them number ``last``."""

    last: int = 0
    messages: list[tuple[float, int, bytes]] = field(factory=list)
    keys: dict[str, int] = _NONE
    cursors: dict[str, int] = _NONE

    def append(self, message: tuple[float, int, bytes], key: str, oldest: float, retention: Retention) -> int:
        if key:
            first = self.keys.get(key)
            if first is not None and self._has(first, oldest, retention.keep):
                return first
        self.last += 1
        self.messages.append(message)
        if key:
            if self.keys is _NONE:
                self.keys = {}
            self.keys[key] = self.last
        surplus = len(self.messages) - retention.keep
        if surplus > retention.slack:
            self._remove(surplus)
        return self.last

    def after(self, seq: int, limit: int, size: int, oldest: float, keep: int) -> list[Stored]:
        self.expire(oldest)
        removed = self.last - len(self.messages)
        found: list[Stored] = []
        for index in range(max(seq, self.last - keep, removed) - removed, len(self.messages)):
            at, op, body = self.messages[index]
            if at < oldest:
                continue
            size -= len(body)
            if len(found) >= limit or (found and size < 0):
                break
            found.append(Stored(removed + index + 1, op, body, at))
        return found

    def acknowledge(self, device: str, seq: int, devices: int) -> int:
        now = self.cursors.get(device, 0)
        if not now < seq <= self.last:
            return now
        if self.cursors is _NONE:
            self.cursors = {}
        self.cursors[device] = seq
        if len(self.cursors) > devices:
            del self.cursors[min(self.cursors, key=self.cursors.__getitem__)]
        return seq

    def expire(self, oldest: float) -> None:
        count = 0
        for at, _, _ in self.messages:
            if at >= oldest:
                break
            count += 1
        if count:
            self._remove(count)

    def _has(self, seq: int, oldest: float, keep: int) -> bool:
        index = seq - 1 - (self.last - len(self.messages))
        return index >= 0 and seq > self.last - keep and self.messages[index][0] >= oldest

    def _remove(self, count: int) -> None:
        del self.messages[:count]
        removed = self.last - len(self.messages)
        for key in [key for key, seq in self.keys.items() if seq <= removed]:
            del self.keys[key]
