"""Threads that help to send a push to many. Sync: who calls goes on when all have been sent to.

Four fifths of a delivery are spent in the kernel, where CPython holds no lock. So two threads send to a room
in less time than one, for some more CPU: in half of it where nobody else wants the cores. They share nothing
but a heap of batches. What is left to do for some of the members is done by the caller: nothing of the server
is ever called in another thread. Not for TLS, which is no plain send.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Sequence

from goim_core.channel import Channel, Unsettled, deliver, send_all, settle
from goim_core.wire import Packet

__all__ = ["SHARED", "Senders", "other_cores"]

LEAST = 128
"""To fewer members the caller sends alone: to wake a thread costs as much as sending to some."""
SHARED = 512
"""How many members are given at a time, between two looks at the clock."""
BATCH = 64
"""How many members are sent to at a time: what is waited for, should a helper lose its core."""


class Senders:
    """The caller and up to ``count`` threads, which are started by the first push that is large enough."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._helpers: list[_Helper] = []

    def deliver(self, channels: Sequence[Channel], packet: Packet) -> None:
        """See :func:`goim_core.channel.deliver`."""
        if len(channels) < LEAST or not self.count:
            deliver(channels, packet)
            return
        while len(self._helpers) < self.count:
            self._helpers.append(_Helper())
        batches = deque(channels[at : at + BATCH] for at in range(0, len(channels), BATCH))
        for helper in self._helpers:
            helper.begin(batches, packet)
        try:
            unsettled = _send(batches, packet)
        finally:
            found = [helper.end() for helper in self._helpers]
        settle(sum(found, unsettled), packet)

    def close(self) -> None:
        """End the threads."""
        for helper in self._helpers:
            helper.close()
        self._helpers.clear()


class _Helper:
    """One thread, which waits to be given work."""

    def __init__(self) -> None:
        # Locks in place of semaphores of one, which are Python and cost more than a few sends.
        self._given, self._done = threading.Lock(), threading.Lock()
        self._given.acquire()
        self._done.acquire()
        self._work: tuple[deque[Sequence[Channel]], Packet] | None = None
        self._found: Unsettled | None = None
        self._thread = threading.Thread(target=self._run, name="goim_core sender", daemon=True)
        self._thread.start()

    def begin(self, batches: deque[Sequence[Channel]], packet: Packet) -> None:
        """Send of ``batches`` until there are no more."""
        self._work = batches, packet
        self._given.release()

    def end(self) -> Unsettled:
        """What :meth:`begin` has left to do, when it is over. Not to be waited for if it has not begun."""
        if self._given.acquire(blocking=False):
            return []
        self._done.acquire()
        found, self._found = self._found, None
        if found is None:
            raise RuntimeError("a thread that helps to send has failed: it has told why")
        return found

    def _run(self) -> None:
        while True:
            self._given.acquire()
            if self._work is None:
                return
            try:
                self._found = _send(*self._work)
            finally:
                self._done.release()

    def close(self) -> None:
        """End the thread."""
        self._work = None
        self._given.release()
        self._thread.join()


def _send(batches: deque[Sequence[Channel]], packet: Packet) -> Unsettled:
    unsettled: Unsettled = []
    while True:
        try:
            batch = batches.popleft()  # several threads may do this at a time
        except IndexError:
            return unsettled
        unsettled += send_all(batch, packet)


def other_cores() -> int:
    """How many cores this process may use beside one."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) - 1
    return (os.cpu_count() or 1) - 1
