"""How far a node has read a stream whose messages are numbered, when they are done with in any order."""

from __future__ import annotations

from collections import OrderedDict, deque

from goim_core.adapters.nats.stream import Place

__all__ = ["Reading"]

Tag = tuple[str, int]
"""A message: when its stream was made, and its number there."""


class Reading:
    """Which messages have come, and which of them are done with; and which published ones are to come."""

    def __init__(self) -> None:
        self._made = ""
        self._last = 0
        self._open: OrderedDict[int, None] = OrderedDict()
        self._published: deque[int] = deque()
        self._own = 0

    @property
    def place(self) -> Place | None:
        """Where to go on, or None before the first :meth:`begin`."""
        return Place(self._made, self.floor) if self._made else None

    @property
    def floor(self) -> int:
        """The last message that is done with, as all before it are."""
        return next(iter(self._open)) - 1 if self._open else self._last

    @property
    def pending(self) -> int:
        """How many messages are not done with, those that are to come among them."""
        return len(self._open) + len(self._published)

    @property
    def settled(self) -> bool:
        """Whether all that was :meth:`published` is done with."""
        return not self._published and self.floor >= self._own

    def begin(self, place: Place, end: int) -> None:
        """Messages behind ``place`` will come, of a stream that ends with the message ``end`` now."""
        if place.made != self._made:
            self._made, self._last, self._own = place.made, place.floor, 0
            self._open.clear()
            self._published.clear()
        elif end < self._last:
            # The server lost the end, and gives these numbers again.
            self._last = end
            self._own = min(self._own, end)
            while self._open and next(reversed(self._open)) > end:
                self._open.popitem()

    def came(self, number: int) -> bool:
        """Note that the message has come, and say whether for the first time. It counts as done with."""
        if number <= self._last:
            return False
        self._last = number
        while self._published and self._published[0] <= number:
            self._published.popleft()
        return True

    def open(self, number: int) -> Tag:
        """Note that the message that has come last is not done with; what to say when it is."""
        self._open[number] = None
        return self._made, number

    def done(self, tag: Tag) -> None:
        """Note that the message is done with."""
        made, number = tag
        if made == self._made:
            self._open.pop(number, None)

    def published(self, number: int) -> None:
        """Note that the message was published here, and has come or is to come."""
        self._own = max(self._own, number)
        if number > self._last:
            self._published.append(number)
