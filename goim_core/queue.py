"""The push queue's contract, and its form in memory.

goim's job reads pushes from Kafka; here a queue is whatever keeps this contract. One push is one
:class:`PushMsg`, the fields of goim's protobuf message of that name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from enum import IntEnum
from time import monotonic
from typing import Any

import anyio
import anyio.lowlevel
from attrs import field, frozen

from goim_core.errors import ConfigurationError, QueueFull, ServerStopped

__all__ = ["MemoryQueue", "PushMsg", "PushType", "Queue"]


class PushType(IntEnum):
    """Whom a push is for; the numbers are goim's."""

    PUSH = 0
    ROOM = 1
    BROADCAST = 2


@frozen
class PushMsg:
    """One push on its way from logic to job.

    ``operation`` the op that clients see; ``msg`` the body; ``server`` and ``keys`` of a PUSH: the node
    that holds these connections; ``seqs`` of a PUSH to users: the number of the message in the inbox
    behind each of ``keys``, 0 where it is not stored; ``room`` of a ROOM: ``type://id``; ``speed`` of a
    BROADCAST: connections a second, 0 at once.
    """

    type: PushType
    operation: int
    msg: bytes
    server: str = ""
    room: str = ""
    keys: tuple[str, ...] = ()
    seqs: tuple[int, ...] = ()
    speed: int = 0
    tag: Any = field(default=None, eq=False, repr=False)
    """The queue's own: which delivery this is, for :meth:`Queue.acknowledge`."""


class Queue(ABC):
    """Carries pushes from logic to job.

    Guarantees of every form: :meth:`publish` returns when the queue has the push, or raises; pushes of
    one publisher to one room, key or to all come out in the order they went in; a push that was
    received and not acknowledged is not forgotten where the queue outlives the process.
    """

    @abstractmethod
    async def publish(self, msg: PushMsg, *, nowait: bool = False) -> None:
        """Put ``msg`` on the queue; wait while it is full.

        With ``nowait`` raises :class:`~goim_core.errors.QueueFull` instead of waiting. On a queue that is
        closed both raise :class:`~goim_core.errors.ServerStopped`, and so does :meth:`receive`.
        """

    @abstractmethod
    async def receive(self) -> PushMsg:
        """The next push; waits for one.

        What is here already is returned without a turn of the event loop: of pushes that come one a turn
        the job would find no two to merge.
        """

    @abstractmethod
    def acknowledge(self, msg: PushMsg) -> None:
        """Say that ``msg``, as :meth:`receive` returned it, has been given to comet."""

    @property
    def empty(self) -> bool:
        """Whether :meth:`receive` would have to wait; False where the queue cannot tell.

        Then the job sends what it has at once. It waits a turn of the event loop where more may be here.
        """
        return False

    @property
    def pending(self) -> int:
        """How many pushes of this process are not acknowledged yet, as far as the queue can tell."""
        return 0

    async def drain(self) -> None:
        """Return when all that this process published is acknowledged, as far as the queue can tell."""

    @property
    def full(self) -> bool:
        """Whether a publish would have to wait, as far as the queue can tell."""
        return False

    lag: float = 0.0
    """How many seconds the push that was received last had waited in the queue, by the time that the queue's
    server put on it against this machine's clock; never below 0."""

    @property
    def trouble(self) -> str:
        """What is wrong at the moment, in a sentence for logs and statistics; empty when nothing is."""
        return ""

    async def start(self, node: str) -> None:
        """Connect, when the server named ``node`` starts. By default there is nothing to connect to.

        Raises :class:`~goim_core.errors.BackboneError` that says what is wrong.
        """

    async def run(self) -> None:
        """Work beside the server until cancelled. By default there is nothing to do."""

    async def aclose(self) -> None:
        """Let go of connections and files, when the server has stopped. By default there are none."""


class MemoryQueue(Queue):
    """A bounded queue in this process: first in, first out, for any number of publishers.

    ``size`` is how many pushes may wait (at least 1).
    """

    def __init__(self, size: int = 1024) -> None:
        if size < 1:
            raise ConfigurationError(f"size: expected at least 1, got {size}")
        self.size = size
        self._waiting: deque[tuple[PushMsg, float]] = deque()
        """Each with the time at which it came."""
        self._places = anyio.Semaphore(size)
        self._arrived = anyio.Event()
        self._unacknowledged = 0
        self._drained: anyio.Event | None = None
        self._closed = False

    @property
    def empty(self) -> bool:
        """See :attr:`Queue.empty`."""
        return not self._waiting

    @property
    def pending(self) -> int:
        """See :attr:`Queue.pending`."""
        return self._unacknowledged

    @property
    def full(self) -> bool:
        """See :attr:`Queue.full`."""
        return not self._places.value

    async def publish(self, msg: PushMsg, *, nowait: bool = False) -> None:
        """See :meth:`Queue.publish`."""
        self._check_open()
        try:
            self._places.acquire_nowait()
        except anyio.WouldBlock:
            if nowait:
                raise QueueFull(f"the push queue is full: {self.size} pushes wait") from None
            await self._places.acquire()
            if self._closed:
                self._places.release()  # the next that waits is to be told too
                self._check_open()
        self._waiting.append((msg, monotonic()))
        self._unacknowledged += 1
        self._arrived.set()

    async def receive(self) -> PushMsg:
        """See :meth:`Queue.receive`."""
        # No checkpoint: see Queue.receive. It ends with what waits, because publishers have no turn either.
        while not self._waiting:
            self._check_open()
            if self._arrived.is_set():
                self._arrived = anyio.Event()
            await self._arrived.wait()
        self._places.release()
        msg, came = self._waiting.popleft()
        self.lag = monotonic() - came
        return msg

    def _check_open(self) -> None:
        if self._closed:
            raise ServerStopped("the push queue is closed")

    def acknowledge(self, msg: PushMsg) -> None:
        """See :meth:`Queue.acknowledge`."""
        self._unacknowledged -= 1
        if not self._unacknowledged and self._drained is not None:
            self._drained.set()
            self._drained = None

    async def drain(self) -> None:
        """See :meth:`Queue.drain`."""
        while self._unacknowledged:
            if self._drained is None:  # made only where somebody waits: it would cost each push
                self._drained = anyio.Event()
            await self._drained.wait()

    async def aclose(self) -> None:
        """Close the queue; those who wait at it, and all who come later, get ServerStopped."""
        self._closed = True
        self._arrived.set()
        self._places.release()
