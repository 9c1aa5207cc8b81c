"""What of the user's inbox has been seen, and what of that is to be acknowledged. No I/O.

The server gives everything behind this device's cursor again to a connection that is new. Numbers rise, so
a number that is not above the last one seen is a second copy.
"""

from __future__ import annotations

import math
from collections import deque

__all__ = ["Inbox"]

RETRY = 1.0
"""Seconds before an acknowledgement that the server could not take is sent again."""


class Inbox:
    """Drops second copies, and gathers acknowledgements into few.

    ``after`` is the last number that was seen before. An acknowledgement is due when ``every`` messages
    wait for it or the first of them has waited ``delay`` seconds, and never while another is under way.

    ``seen`` is the last number given on; ``acknowledged`` the number up to which the application is done
    with everything that was given on; ``confirmed`` what the server last said about its cursor, 0 before.
    ``epoch`` counts the inboxes: see :meth:`take`.
    """

    def __init__(self, after: int = 0, *, every: int = 64, delay: float = 0.1) -> None:
        self.epoch = 0
        self._every = every
        self._delay = delay
        self._refused = False
        self._floor = 0  # the cursor when this connection began; 0 once a message has come on it
        self._begin(after, confirmed=0)

    def _begin(self, after: int, confirmed: int) -> None:
        self.seen = self.acknowledged = self._sent = after
        self.confirmed = confirmed
        self._open: deque[int] = deque()  # given on, in order, from the first that is not acknowledged
        self._done: set[int] = set()  # of these, acknowledged out of turn
        self._waiting = 0  # how many are acknowledged and not sent
        self._since = math.inf  # when the first of them was
        self._under_way = False

    def connected(self) -> None:
        """A new connection: the acknowledgement that was under way may have been lost, or is taken now."""
        self._floor = self.confirmed
        if self._under_way or self._refused:
            self._under_way = self._refused = False
            self._sent = min(self._sent, self.confirmed)
            self._since = -math.inf

    def take(self, number: int, now: float) -> bool:
        """Whether the message ``number`` is new, and to be given on.

        A server whose first message on a connection is one that it has confirmed lost its inbox, a storage in
        memory that restarted for one: this is another inbox, numbered anew.
        """
        if number <= self._floor:
            self.epoch += 1
            self._begin(0, confirmed=0)
        self._floor = 0
        if number > self.seen:
            self.seen = number
            self._open.append(number)
            return True
        if number <= self.acknowledged and self._sent >= number:
            # The server does not know what it was told: tell it again.
            self._sent = number - 1
            self._since = min(self._since, now)
        return False

    def acknowledge(self, number: int, epoch: int, now: float) -> bool:
        """The application is done with ``number`` of the inbox ``epoch``; whether something is to be sent."""
        if epoch != self.epoch or not self.acknowledged < number <= self.seen:
            return False
        self._done.add(number)
        while self._open and self._open[0] in self._done:
            self.acknowledged = self._open.popleft()
            self._done.remove(self.acknowledged)
            self._waiting += 1
            self._since = min(self._since, now)
        return self.due_at() < math.inf

    def due_at(self) -> float:
        """When an acknowledgement has to be sent: a time that may have passed, infinite for never."""
        if self._refused or self._under_way or self.acknowledged <= self._sent:
            return math.inf
        return -math.inf if self._waiting >= self._every else self._since + self._delay

    def next_ack(self, now: float) -> int | None:
        """The number to acknowledge now, if one is due; :meth:`confirm` or :meth:`refused` has to follow."""
        if self.due_at() > now:
            return None
        self._under_way = True
        self._sent = self.acknowledged
        self._waiting = 0
        self._since = math.inf
        return self._sent

    def confirm(self, cursor: int) -> None:
        """The server's reply: its cursor now."""
        self._under_way = False
        if cursor < self._sent:  # it has not so many: another inbox, of which this much is done
            self.epoch += 1
            self._begin(cursor, cursor)
        self.confirmed = cursor

    def failed(self, now: float) -> None:
        """The server could not acknowledge: try again, but not at once."""
        self._under_way = False
        self._sent = min(self._sent, self.confirmed)
        self._waiting = 0
        self._since = now + RETRY

    def hurry(self) -> None:
        """Acknowledge at once what there is: the end is near."""
        self._since = -math.inf

    @property
    def settled(self) -> bool:
        """Whether the server knows of every acknowledgement."""
        return self._refused or (not self._under_way and self.acknowledged <= self._sent)

    def refused(self) -> None:
        """The server takes no acknowledgements of this connection: it counts what it has written."""
        if self._under_way:  # else it was of an inbox that has begun anew meanwhile
            self._under_way = False
            self._refused = True
