"""Job: takes pushes off the queue and gives them to comet, merging what can be merged.

goim's job waits for 20 messages or a second. Here the clock is the work itself: what arrives for a
room while that room is being sent becomes its next packet, and an idle room is sent at once.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from time import perf_counter

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup
from attrs import Factory, define

from goim_core.clock import Clock
from goim_core.comet import SLICE, Comet, Pushing
from goim_core.metrics import SIZES, Histogram
from goim_core.options import Options
from goim_core.parts import kept_running
from goim_core.protocol import Op, encode, pushable
from goim_core.queue import PushMsg, PushType, Queue
from goim_core.wire import Packet, read_disconnect

__all__ = ["Job"]

PENDING_BYTES = 1 << 24
"""How much may wait to be sent before no more is taken off the queue, so that publishers wait."""
MSG_BYTES = 256
"""What a push that waits costs beside its body, about."""
EASE = 0.005
"""After so many seconds in which nothing was sent, what is sent may cost more CPU to take less time."""
PACKET_BYTES = 1 << 16
"""A packet is not merged beyond this, so that one receiver's buffer takes it whole."""


@define(eq=False)
class _Line:
    """Pushes for the same receivers, which so keep their order."""

    name: str
    lingers: bool
    waiting: deque[PushMsg] = Factory(deque)
    sending: bool = False


class Job:
    """Carries pushes from ``queue`` to ``comet``, with ``batch`` and ``linger`` of ``options``.

    ``batches`` is told how many each packet has.
    """

    def __init__(
        self, queue: Queue, comet: Comet, clock: Clock, options: Options, batches: Histogram | None = None
    ) -> None:
        self._queue = queue
        self._batches = Histogram(SIZES) if batches is None else batches
        self._comet = comet
        self._clock = clock
        self.options = options
        self._lines: dict[str, _Line] = {}
        self._sending: deque[Pushing] = deque()
        self._pending = 0
        self._sent = 0.0
        """When the last packet had been sent."""
        self._work: anyio.Event | None = None
        """What the task that sends waits for."""
        self._space: anyio.Event | None = None

    async def run(self) -> None:
        """Work until cancelled."""
        async with anyio.create_task_group() as tasks:
            receive = f"{type(self._queue).__name__}.receive"
            tasks.start_soon(kept_running, receive, partial(self._receive, tasks), self._clock)
            tasks.start_soon(self._send)

    async def _receive(self, tasks: TaskGroup) -> None:
        while True:
            msg = await self._queue.receive()
            if not _may_go_out(msg):
                self._comet.counters.drops["operation"] += 1
                self._queue.acknowledge(msg)
                continue
            while self._pending >= PENDING_BYTES:
                self._space = anyio.Event()
                await self._space.wait()
            self._pending += MSG_BYTES + len(msg.msg)
            if msg.type is PushType.BROADCAST and msg.speed:
                # It may take minutes, and nothing else shall wait for it.
                tasks.start_soon(self._send_paced, msg)
                continue
            line = self._line(msg, tasks)
            line.waiting.append(msg)
            if not line.sending and (not line.lingers or len(line.waiting) >= self.options.batch):
                self._start(line)
            if self._sending:
                # The last that is here need not wait for the other task's turn: none will be merged with it.
                self._go_on(at_once=self._queue.empty)

    def _line(self, msg: PushMsg, tasks: TaskGroup) -> _Line:
        # Pushes to all and to keys have a line each, under names that are no room ids.
        name = msg.room if msg.type is PushType.ROOM else msg.type.name
        line = self._lines.get(name)
        if line is None:
            lingers = self.options.linger > 0 and msg.type is PushType.ROOM
            line = self._lines[name] = _Line(name, lingers)
            if lingers:
                tasks.start_soon(self._start_later, line)
        return line

    async def _start_later(self, line: _Line) -> None:
        await self._clock.sleep(self.options.linger)
        if not line.sending:
            self._start(line)
            self._go_on(at_once=True)

    def _start(self, line: _Line) -> None:
        line.sending = True
        self._sending.append(self._send_line(line))

    def _go_on(self, *, at_once: bool) -> None:
        """Have what is to be sent sent, where the task that does so is not at it."""
        if self._work is not None:
            if at_once:
                self._send_some()
            if self._sending:
                self._work.set()

    async def _send(self) -> None:
        while True:
            if not self._sending:
                self._work = anyio.Event()
                await self._work.wait()
                self._work = None
            self._send_some()
            if self._sending:  # else it waits at once, which lets others run too
                await anyio.lowlevel.checkpoint()

    def _send_some(self) -> None:
        until = perf_counter() + SLICE
        while self._sending and perf_counter() < until:
            pushing = self._sending.popleft()
            if next(pushing, None) is not None:
                self._sending.append(pushing)

    def _send_line(self, line: _Line) -> Pushing:
        try:
            while line.waiting:
                taken = self._take(line)
                rested = perf_counter() - self._sent >= EASE
                self._comet.at_ease = rested and not (line.waiting or self._sending or line.lingers)
                yield from self._push(taken)
                self._sent = perf_counter()
                for msg in taken:
                    self._over(msg)
                if line.waiting:
                    yield 0.0
        finally:
            del self._lines[line.name]

    def _take(self, line: _Line) -> list[PushMsg]:
        """The next pushes that go as one packet. Those to keys, and to all with another op, do not mix."""
        waiting, batch = line.waiting, self.options.batch
        first = waiting.popleft()
        taken = [first]
        size = len(first.msg)
        while waiting and len(taken) < batch and first.type is not PushType.PUSH:
            size += len(waiting[0].msg)
            mixed = first.type is PushType.BROADCAST and waiting[0].operation != first.operation
            if mixed or size > PACKET_BYTES:
                break
            taken.append(waiting.popleft())
        return taken

    def _push(self, msgs: list[PushMsg]) -> Pushing:
        first = msgs[0]
        if first.operation == Op.DISCONNECT_REPLY:
            return self._disconnect(first)
        self._batches.observe(len(msgs))
        if first.seqs:
            return self._comet.push_inbox(first.keys, first.seqs, first.operation, first.msg)
        packet = Packet([encode(msg.operation, msg.msg) for msg in msgs])
        if first.type is PushType.ROOM:
            return self._comet.push_room(first.room, packet)
        if first.type is PushType.BROADCAST:
            return self._comet.push_all(first.operation, packet, first.speed)
        return self._comet.push_keys(first.keys, first.operation, packet)

    def _disconnect(self, msg: PushMsg) -> Pushing:
        self._comet.disconnect(msg.keys, read_disconnect(msg.msg))
        yield from ()

    async def _send_paced(self, msg: PushMsg) -> None:
        for delay in self._push([msg]):
            await self._clock.sleep(delay)
        self._over(msg)

    def _over(self, msg: PushMsg) -> None:
        self._pending -= MSG_BYTES + len(msg.msg)
        self._queue.acknowledge(msg)
        if self._space is not None:
            self._space.set()
            self._space = None


def _may_go_out(msg: PushMsg) -> bool:
    """Whether its operation is one that a push may have: others that share the queue do not check that."""
    return pushable(msg.operation) or (msg.operation == Op.DISCONNECT_REPLY and msg.type is PushType.PUSH)
