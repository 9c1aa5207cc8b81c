"""What waits for one socket, and the account of what waits for all of them. Sync."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf

from attrs import Factory, define

__all__ = ["Account", "Outbox"]

FLUSH_BYTES = 1 << 16
"""How much of an outbox is joined for one send: about what a socket's buffer takes at once."""


def _nothing() -> None: ...


@define(eq=False)
class Account:
    """How many bytes wait for all sockets of a server. Beyond ``at_most`` each change calls ``on_excess``."""

    waiting: int = 0
    at_most: float = inf
    on_excess: Callable[[], None] = _nothing

    def add(self, size: int) -> None:
        """``size`` bytes more wait; below 0, so many less."""
        self.waiting += size
        if self.waiting > self.at_most:
            self.on_excess()


@define(eq=False, weakref_slot=False)
class Outbox:
    """Packets that wait for one socket, the first perhaps sent in part. Lives only while some wait."""

    account: Account
    packets: deque[tuple[bytes | memoryview, int]] = Factory(deque)
    size: int = 0
    started: bool = False
    """The first packet is sent in part: the peer is owed the rest of it."""
    deadline: float = float("inf")
    """When the connection is given up unless the socket has taken something."""

    def add(self, data: bytes | memoryview, count: int) -> None:
        """Queue ``data``, which carries ``count`` messages that may be dropped (0: not to be)."""
        self.packets.append((data, count))
        self.size += len(data)
        self.account.add(len(data))

    def gather(self) -> bytes | memoryview:
        """What to send next: the first packet, or as many as fit one send, joined."""
        first = self.packets[0][0]
        if len(self.packets) == 1 or len(first) >= FLUSH_BYTES:
            return first
        parts: list[bytes | memoryview] = []
        size = 0
        for data, _ in self.packets:
            size += len(data)
            if parts and size > FLUSH_BYTES:
                break
            parts.append(data)
        return b"".join(parts)

    def sent(self, size: int) -> None:
        """Take off ``size`` bytes from the front."""
        self.size -= size
        self.account.add(-size)
        while size:
            data, count = self.packets.popleft()
            if size < len(data):
                # A view: the rest of a big packet is not copied at each step.
                self.packets.appendleft((memoryview(data)[size:], count))
                self.started = True
                return
            size -= len(data)
        self.started = False

    def drop_oldest(self, room: int) -> int:
        """Drop pushes from the front until ``room`` bytes and a packet are freed; how many messages went.

        What is sent in part and what is not a push stays: without it the peer could not go on.
        """
        dropped = freed = 0
        kept: list[tuple[bytes | memoryview, int]] = []
        while self.packets and not (freed >= room and dropped):
            data, count = self.packets.popleft()
            if not count or (self.started and not kept and not dropped):
                kept.append((data, count))
                continue
            dropped += count
            freed += len(data)
        self.packets.extendleft(reversed(kept))
        self.size -= freed
        self.account.add(-freed)
        return dropped

    def clear(self) -> int:
        """The socket is gone, and takes nothing more; how many messages went."""
        self.account.add(-self.size)
        self.size = 0
        return sum(count for _, count in self.packets)
