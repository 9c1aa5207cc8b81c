"""One connection of a client while it lasts: what comes in, what goes out, and heartbeats."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial

import anyio
from anyio.abc import TaskGroup

from goim_core.client.buffer import Buffer
from goim_core.client.dialogue import Dialogue
from goim_core.client.link import Link
from goim_core.client.settings import Settings
from goim_core.client.signal import Signal
from goim_core.client.timers import Timer, Timers
from goim_core.errors import CloseCode, Disconnect, ProtocolError
from goim_core.protocol import Op

__all__ = ["Connection"]


class Connection:
    """Reads, writes and beats until it is lost.

    ``changed`` is fired when something was written or a reply came; ``writing`` whether bytes are under way;
    ``moving`` whether the server has asked to connect elsewhere.
    """

    def __init__(
        self,
        link: Link,
        *,
        dialogue: Dialogue,
        buffer: Buffer,
        settings: Settings,
        timers: Timers,
        changed: Signal,
    ) -> None:
        self.writing = False
        self.moving = False
        self._link = link
        self._dialogue = dialogue
        self._buffer = buffer
        self._settings = settings
        self._timers = timers
        self._changed = changed
        self._wake = Signal()
        self._alarms: dict[str, Timer] = {}
        self._why = Disconnect("the client is closing", CloseCode.LOST)

    async def run(self, opened: Callable[[], object], expiring: Callable[[TaskGroup], object]) -> Disconnect:
        """Call ``opened``, and go on until the connection is lost; why it was.

        ``expiring`` is called when the token runs out, with a task group that lasts as long as this does.
        """
        try:
            async with anyio.create_task_group() as tasks:
                self._scope = tasks.cancel_scope
                self._tasks = tasks
                self._buffer.was_paused = False
                self._alarm("beat", self._settings.heartbeat, self._beat)
                self._dialogue.connected()
                tasks.start_soon(self._read, partial(expiring, tasks))
                tasks.start_soon(self._write)
                opened()
                self.plan()
        finally:
            for timer in self._alarms.values():
                timer.stop()
            self._dialogue.lost(self._why)
            await self._link.aclose()
        return self._why

    def _lose(self, why: Disconnect) -> None:
        self._why = why
        self._scope.cancel()

    # In.

    async def _read(self, expiring: Callable[[], object]) -> None:
        try:
            while True:
                await self._buffer.until_space()
                frame = await self._link.receive()
                if frame.op == Op.EXPIRING:
                    expiring()
                    continue
                if frame.op == Op.MOVE:
                    self._asked_to_move(frame.body)
                    continue
                message = self._dialogue.on_frame(frame, self._timers.clock.now())
                if message is not None:
                    self._buffer.put(message)
                elif frame.seq:
                    self._changed.fire()
                    self.plan()
        except anyio.EndOfStream:
            self._lose(Disconnect("closed without a reason", CloseCode.LOST))
        except Disconnect as why:
            self._lose(why)
        except ProtocolError as error:
            self._lose(Disconnect(error.reason, error.code))

    # To another node.

    def _asked_to_move(self, body: bytes) -> None:
        if not self.moving:
            self.moving = True
            self._alarm("move", _read_seconds(body), lambda: self._tasks.start_soon(self._move))

    async def _move(self) -> None:
        # The server waits for what is under way, too, and closes when it has waited long enough.
        while self._dialogue.requests or self._dialogue.queued or self.writing:
            await self._changed.wait()
        self._lose(Disconnect("the server asked to connect elsewhere", CloseCode.GOING_AWAY))

    # Out.

    def plan(self) -> None:
        """Something is to be sent, or an acknowledgement to be sent at some time."""
        wait = self._dialogue.due_at() - self._timers.clock.now()
        if wait <= 0 or self._dialogue.queued:
            self._wake.fire()
        elif wait < math.inf and "ack" not in self._alarms:
            self._alarm("ack", wait, self._ack_due)

    def _ack_due(self) -> None:
        del self._alarms["ack"]
        self.plan()

    async def _write(self) -> None:
        try:
            while True:
                frames = self._dialogue.to_send(self._timers.clock.now())
                if frames:
                    self.writing = True
                    await self._link.write(frames)
                    self.writing = False
                    self._changed.fire()
                else:
                    await self._wake.wait()
        except Disconnect:
            pass  # the reader finds out why
        finally:
            self.writing = False

    # Heartbeats.

    def _alarm(self, name: str, seconds: float, action: Callable[[], object]) -> None:
        self._alarms[name] = self._timers.after(seconds, action)

    def _beat(self) -> None:
        self._dialogue.heartbeat()
        self.plan()
        self._alarm("beat", self._settings.heartbeat, self._beat)
        if "check" not in self._alarms:
            self._watch()

    def _watch(self) -> None:
        check = partial(self._check, self._link.received)
        self._alarm("check", self._settings.heartbeat_timeout, check)

    def _check(self, received: int) -> None:
        del self._alarms["check"]
        if self._buffer.was_paused:  # the answer may be among what is not read
            self._buffer.was_paused = self._buffer.paused
            self._watch()
        elif self._link.received == received:
            self._lose(Disconnect("no answer to a heartbeat", CloseCode.LOST))


def _read_seconds(body: bytes) -> float:
    """What a MOVE says; a body that says nothing asks to go at once."""
    try:
        return max(0.0, float(json.loads(body)["seconds"]))
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
        return 0.0
