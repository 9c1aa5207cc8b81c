"""The kernel's readiness objects behind one interface: epoll on Linux, kqueue on macOS and BSD."""

from __future__ import annotations

import select
import sys
from typing import Protocol

__all__ = ["EVENTS_A_TURN", "READ", "WRITE", "Poller", "new_poller"]

READ, WRITE = 1, 4
"""epoll's own numbers for the two, so that its events need no translation."""

EVENTS_A_TURN = 256
"""How many ready sockets are served before the rest of the program runs again."""


class Poller(Protocol):
    """A kernel's readiness object, level-triggered."""

    def fileno(self) -> int:
        """The object's own descriptor, readable while any that it watches is ready."""

    def add(self, fd: int) -> None:
        """Watch ``fd`` for reading. Raises OSError where the system has no room."""

    def watch(self, fd: int, read: bool, write: bool) -> None:
        """From now on watch ``fd`` for these."""

    def remove(self, fd: int) -> None:
        """Forget ``fd``, which is still open."""

    def poll(self) -> list[tuple[int, int]]:
        """What is ready now, at most EVENTS_A_TURN: descriptor, and what for.

        WRITE alone is for the writer only; whatever else there is besides it, an error or an end too, is
        for the reader, who finds out by receiving.
        """

    def close(self) -> None:
        """Give the descriptor back."""


if sys.platform == "linux":

    class _Epoll:
        """``select.epoll``."""

        def __init__(self) -> None:
            self._epoll = select.epoll()
            self.fileno = self._epoll.fileno
            self.close = self._epoll.close

        def add(self, fd: int) -> None:
            self._epoll.register(fd, select.EPOLLIN)

        def watch(self, fd: int, read: bool, write: bool) -> None:
            self._epoll.modify(fd, (select.EPOLLIN if read else 0) | (select.EPOLLOUT if write else 0))

        def remove(self, fd: int) -> None:
            self._epoll.unregister(fd)

        def poll(self) -> list[tuple[int, int]]:
            return self._epoll.poll(0, EVENTS_A_TURN)

    def new_poller() -> Poller | None:
        """This system's, or None where it has neither."""
        return _Epoll()

elif sys.platform != "win32":  # pragma: no cover

    class _Kqueue:
        """``select.kqueue``: two filters for each socket, added once and then enabled or disabled."""

        def __init__(self) -> None:
            self._kqueue = select.kqueue()
            self.fileno = self._kqueue.fileno
            self.close = self._kqueue.close

        def _set(self, fd: int, read: int, write: int) -> None:
            changes = [
                select.kevent(fd, select.KQ_FILTER_READ, read),
                select.kevent(fd, select.KQ_FILTER_WRITE, write),
            ]
            self._kqueue.control(changes, 0, 0)

        def add(self, fd: int) -> None:
            self._set(fd, select.KQ_EV_ADD, select.KQ_EV_ADD | select.KQ_EV_DISABLE)

        def watch(self, fd: int, read: bool, write: bool) -> None:
            on, off = select.KQ_EV_ENABLE, select.KQ_EV_DISABLE
            self._set(fd, on if read else off, on if write else off)

        def remove(self, fd: int) -> None:
            self._set(fd, select.KQ_EV_DELETE, select.KQ_EV_DELETE)

        def poll(self) -> list[tuple[int, int]]:
            events = self._kqueue.control(None, EVENTS_A_TURN, 0)
            return [(e.ident, WRITE if e.filter == select.KQ_FILTER_WRITE else READ) for e in events]

    def new_poller() -> Poller | None:
        """This system's."""
        return _Kqueue()

else:  # pragma: no cover

    def new_poller() -> Poller | None:
        """None: this system has neither."""
        return None
