"""Where pushes go in a Kafka topic, and how far a node has come in it.

A node reads the partitions of a topic side by side. What it has taken care of may have holes, because
pushes to different rooms end in any order; what it commits has none.
"""

from __future__ import annotations

from collections import deque

from attrs import Factory, define

from goim_core.queue import PushMsg, PushType

__all__ = ["Delivery", "Partition", "partition_of", "record_key"]

LOOKS_BACK = 3
"""How often records that are missing between two others are asked for again."""


def record_key(msg: PushMsg) -> bytes:
    """goim's key of the Kafka message: the first connection's, the room, or the operation in decimal."""
    if msg.type is PushType.ROOM:
        key = msg.room
    elif msg.type is PushType.BROADCAST:
        key = str(msg.operation)
    else:
        key = msg.keys[0] if msg.keys else msg.server
    return key.encode()


def partition_of(msg: PushMsg, partitions: int) -> int:
    """The partition for ``msg``, so that whatever has to keep its order is in one.

    A push to keys goes by its node, not by goim's key: the second of its keys may be the first of the next
    push. Pushes to all are in one partition. A room's is where goim's logic puts it: sarama, its Kafka
    library, takes FNV-1a of the key as a signed number, and of the remainder the absolute value.
    """
    name = {PushType.ROOM: msg.room, PushType.PUSH: msg.server, PushType.BROADCAST: ""}[msg.type]
    hashed = _fnv1a(name.encode())
    return (hashed if hashed < 2**31 else 2**32 - hashed) % partitions


def _fnv1a(data: bytes) -> int:
    # http://www.isthe.com/chongo/tech/comp/fnv/: 32 bits
    hashed = 0x811C9DC5
    for byte in data:
        hashed = (hashed ^ byte) * 0x01000193 & 0xFFFFFFFF
    return hashed


@define(eq=False)
class Delivery:
    """A record that was taken out of its partition: the tag of a push."""

    partition: Partition
    epoch: int
    offset: int
    timestamp: int = 0
    """Milliseconds since 1970, as the record says."""
    settled: bool = False


@define(eq=False)
class Partition:
    """How far one partition is read.

    ``position`` is the next offset to read; ``committed`` the one that the broker would begin with after a
    restart; ``published`` the one after the last that this process put there.
    """

    position: int
    committed: int
    published: int = 0
    unsettled: int = 0
    _epoch: int = 0
    _doubted: tuple[int, int] = (-1, 0)
    _last: tuple[int, int] | None = None
    _taken: deque[Delivery] = Factory(deque)

    @property
    def settled(self) -> int:
        """The offset to commit: everything before it is taken care of."""
        return self._taken[0].offset if self._taken else self.position

    @property
    def pending(self) -> int:
        """How many records are between what is settled and what this process published last."""
        return self.unsettled + max(0, self.published - self.position)

    def confirm(self, offset: int) -> bool:
        """This process has published the record at ``offset``. False where the topic was made anew."""
        again = offset < self.published
        if again:
            self.begin_anew()
        self.published = offset + 1
        return not again

    def is_last(self, offset: int, timestamp: int) -> bool:
        """Whether this record is the last that was taken."""
        return self._last == (offset, timestamp)

    @property
    def place(self) -> int:
        """Where to begin to read again: with the last that was taken, to see that it is still the same."""
        return self.position if self._last is None else self._last[0]

    def doubts(self, offset: int) -> bool:
        """Whether to read once more from :attr:`place`, because records before this one are missing.

        What a transaction or a retention has left out stays out. But a broker may show a batch before one
        that has lower offsets (tansu does, when two producers write at once): whoever reads on loses that.
        """
        where, times = self._doubted
        times = times + 1 if where == self.position else 1
        if offset <= self.position or times > LOOKS_BACK:
            return False
        self._doubted = self.position, times
        return True

    def take(self, offset: int, timestamp: int = 0) -> Delivery:
        """The record at ``offset``, which is not before ``position``, has been read."""
        delivery = Delivery(self, self._epoch, offset, timestamp)
        self._taken.append(delivery)
        self.unsettled += 1
        self.position = offset + 1
        self._last = offset, timestamp
        return delivery

    def begin_anew(self) -> None:
        """The topic was made anew, or the broker lost its end: what is out belongs to the old one."""
        self._taken.clear()
        self._epoch += 1
        self._last = None
        self._doubted = (-1, 0)
        self.unsettled = self.published = self.position = 0

    def settle(self, delivery: Delivery) -> None:
        """``delivery`` is taken care of. A second time does nothing, nor does one of an older topic."""
        if delivery.settled or delivery.epoch != self._epoch:
            return
        taken = self._taken
        delivery.settled = True
        self.unsettled -= 1
        while taken and taken[0].settled:
            taken.popleft()
