"""What is read of a connection: a share of it in each turn, and the frames in that. Sync."""

from __future__ import annotations

from attrs import define

from goim_core.connection import Connection
from goim_core.errors import CloseCode, Disconnect, ProtocolError
from goim_core.protocol import Frame
from goim_core.stage import AUTH, CLOSED, CLOSING, HANDSHAKE
from goim_core.tls import TLSSocket
from goim_core.wire import Answer

__all__ = ["Reading"]

READ_BYTES = 1 << 14
"""How much of one connection is read in a turn."""
FRAMES_A_TURN = 16
"""How many frames of one connection are handled in a turn."""


@define(eq=False, weakref_slot=False)
class Reading(Connection):
    """A connection that is read, within its budget (see budget.py)."""

    def on_readable(self) -> None:
        """Read a share of what has come, and handle it."""
        if self.busy and self.stage < CLOSING:
            if self.unwatched:  # then only an error or a hang-up is reported
                self.lost(ConnectionResetError("connection reset"))
            else:
                self.unwatched = True
                self._watch()
            return
        try:
            data = self.sock.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            self._read_nothing()
            return
        except OSError as error:
            self.lost(error)
            return
        if not data:
            self.lost(ConnectionResetError("connection closed by the peer"))
        elif self.stage < CLOSING:
            frame, budget = self.wire.lone(data), self.edge.budget
            if frame is None:
                self.wire.receive(data)
                self._on_events(len(data))
                return
            count = self.mark - budget.moment
            if count < budget.free and len(data) <= budget.light:
                self.mark = budget.marks[count if count > 0 else 0]  # noqa: FURB136  # max() is a call
                self.on_lone(frame)
            else:
                self.on_lone(frame)
                self._spent(1, len(data))

    def on_turn(self) -> None:
        """Go on where the last turn, or a hook, left off."""
        self.busy = False
        if self.why is not None:
            self.on_end(self.why)
            return
        try:
            if isinstance(self.sock, TLSSocket) and self.sock.due:
                self.wire.receive(self.sock.go_on())
        except OSError as error:
            self.lost(error)
        self._on_events()
        if self.unwatched and not self.busy and self.stage < CLOSING:
            self.unwatched = False
            self._watch()

    # What the peer sends.

    def on_frame(self, frame: Frame) -> None:
        """Handle one frame of the peer, whatever the stage."""
        raise NotImplementedError

    def on_lone(self, frame: Frame) -> None:
        """The same for a frame with nothing before or behind it."""
        self.on_frame(frame)

    def _on_events(self, size: int = 0) -> None:
        corked = more = False
        try:
            for turn in range(FRAMES_A_TURN + 1):
                if self.busy or self.stage >= CLOSING:
                    break
                if turn == FRAMES_A_TURN:
                    more = True
                    break
                event = self.wire.next_event()
                if event is None:
                    break
                if turn == 1:
                    corked = self.channel.cork()
                if isinstance(event, Frame):
                    self.on_frame(event)
                else:
                    self._on_answer(event)
        except ProtocolError as error:
            self._broken(error)
        if corked:
            self._uncork()
        self._spent(turn, size, more)
        if self.stage < CLOSING:
            self.edge.unfinished.note(self, self.wire.pending)

    def _broken(self, error: ProtocolError) -> None:
        if error.code == CloseCode.TOO_BIG:
            self.counters.refusals["max_body"] += 1
        self.close(Disconnect(error.reason, error.code))

    def _read_nothing(self) -> None:
        if isinstance(self.sock, TLSSocket):  # something may have come that is no plain text
            self._spent(1, 0, self.sock.due)

    def _spent(self, frames: int, size: int, more: bool = False) -> None:
        """So much was read in this turn, and ``more`` is to be handled when it may be."""
        if self.stage >= CLOSING:
            return
        budget = self.edge.budget
        over = budget.spent(self, frames, size)
        if self.busy:
            return  # with a hook, for as long as that takes: the turn after it is too much again
        if over:
            budget.rest(self, frames, size)
            self.busy = self.unwatched = True
            self._watch()
        elif more:
            self.busy = True
            self.edge.reactor.again(self)

    def _uncork(self) -> None:
        if not self.channel.flush():
            if self.stage is not CLOSED:
                self.want_write()
        else:
            self._flushed()

    def _on_answer(self, answer: Answer) -> None:
        if answer.data:
            self.channel.reply(answer.data)
        if answer.close is not None:
            # From 3000 on a client says what it likes: no figure of ours, and no 2000 of them.
            self.close(answer.close, CloseCode.NORMAL if answer.close.code >= 3000 else 0)
        elif self.stage is HANDSHAKE:
            self.stage = AUTH
            self.edge.admission.went_on(self)
            # The wheel looks again at the handshake's deadline, which may be the earlier one.
            self.deadline = self.edge.deadlines.clock.now() + self.edge.options.auth_timeout
            self.edge.deadlines.watch(self)
