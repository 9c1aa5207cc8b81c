"""Which pushes become one packet: this library's job, counting its packets, and goim's rule in its place."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

from anyio.abc import TaskGroup

from goim_core.comet import Pushing
from goim_core.job import Job
from goim_core.queue import PushMsg, PushType

__all__ = ["RULES", "CountingJob", "GoimJob"]

GOIM_BATCH, GOIM_SECONDS = 20, 1.0
"""goim's job sends a room's messages when there are so many, or so long after the first."""
GOIM_BUFFER = 2 * GOIM_BATCH
"""So many wait for a room at most: goim refuses the next one (its ErrRoomFull), and it is lost."""


class CountingJob(Job):
    """The library's job."""

    packets: ClassVar[int] = 0
    messages: ClassVar[int] = 0

    def _push(self, msgs: list[PushMsg]) -> Pushing:
        CountingJob.packets += 1
        CountingJob.messages += len(msgs)
        return super()._push(msgs)


class _Buffer(deque[PushMsg]):
    """goim's channel of one room."""

    def __init__(self, refuse: Callable[[PushMsg], None]) -> None:
        super().__init__()
        self._refuse = refuse

    def append(self, msg: PushMsg) -> None:
        """Take ``msg``, or refuse it."""
        if len(self) < GOIM_BUFFER:
            super().append(msg)
        else:
            self._refuse(msg)


class GoimJob(CountingJob):
    """The same with goim's rule for rooms; ``batch`` and ``linger`` have to be :data:`GOIM_BATCH` and so on.

    What is left after a packet waits for 20 again, or for a second. The rest, how a packet is sent, is
    this library's: what is compared is the rule.
    """

    _tasks: TaskGroup

    def _line(self, msg: PushMsg, tasks: TaskGroup) -> Any:
        self._tasks = tasks
        line = super()._line(msg, tasks)
        if msg.type is PushType.ROOM and not isinstance(line.waiting, _Buffer):
            line.waiting = _Buffer(self._refuse)
        return line

    def _refuse(self, msg: PushMsg) -> None:
        self._comet.counters.drops["room full"] += self._comet.online(msg.room)
        self._over(msg)

    def _send_line(self, line: Any) -> Pushing:
        while True:
            taken = self._take(line)
            yield from self._push(taken)
            for msg in taken:
                self._over(msg)
            if len(line.waiting) < self.options.batch:
                break
            yield 0.0
        del self._lines[line.name]
        if line.waiting:
            self._line(line.waiting[0], self._tasks).waiting.extend(line.waiting)


RULES: dict[str, type[CountingJob]] = {"goim_core": CountingJob, "goim": GoimJob}
