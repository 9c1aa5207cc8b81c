"""What a connection's frames do: authentication, and then an answer to each. Sync.

A frame that asks the application goes through a flow (see flow.py). Plain hooks have answered when it
returns; while an async one has not, the connection is busy: it is not read, what follows waits in the
kernel, in order, and costs no memory here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

from attrs import define

from goim_core.channel import NOBODY
from goim_core.connection import CLOSING, LIVE, Connection
from goim_core.errors import CloseCode, Disconnect, ErrorCode, Refused
from goim_core.flow import Flow
from goim_core.hooks import AuthRequest, Session
from goim_core.protocol import Frame, Op, encode

__all__ = ["Conversation"]

T = TypeVar("T")

HEARTBEAT = int(Op.HEARTBEAT)


@define(eq=False, weakref_slot=False)
class Conversation(Connection):
    """A connection that speaks goim's protocol."""

    def on_frame(self, frame: Frame) -> None:
        """Answer, or authenticate; anything else before authentication is skipped, as goim does."""
        if self.stage is LIVE:
            self._answer(frame)
        elif frame.op == Op.AUTH:
            self._authenticate(frame)

    def _begin(
        self, flow: Flow[T], done: Callable[[T], None], failed: Callable[[Refused | Disconnect], None]
    ) -> None:
        if not self.edge.exchanges.begin(
            flow, lambda value: self._over(done, value), lambda error: self._over(failed, error)
        ):
            self.busy = True

    def _over(self, report: Callable[[T], None], outcome: T) -> None:
        if not self.busy:  # no task was needed, and the turn that began this goes on by itself
            report(outcome)
            return
        ended = self.why is not None
        self.busy = False
        report(outcome)
        # What was reported may have begun another exchange, or have closed the connection.
        if ended or (self.why is None and not self.busy):
            self.on_turn()

    # Authentication.

    def _authenticate(self, frame: Frame) -> None:
        request = AuthRequest(
            token=frame.body,
            transport=("tcp", "websocket")[self.wire.form],
            address=self.channel.address,
            path=self.wire.path,
            headers=self.wire.headers,
        )
        self._begin(self.edge.logic.connect(request), functools.partial(self._admit, frame), self._turn_away)

    def _turn_away(self, error: Refused | Disconnect) -> None:
        if isinstance(error, Refused):
            error = Disconnect(error.reason, _REFUSED_AS.get(error.code, CloseCode.AUTH_REFUSED))
        self.close(error)

    def _admit(self, frame: Frame, session: Session) -> None:
        edge, channel = self.edge, self.channel
        if self.stage >= CLOSING:
            edge.exchanges.begin(edge.logic.withdraw(session), _ignore, _ignore)
            return
        channel.session = session
        replaced = edge.comet.put(channel)
        self.stage = LIVE
        self.deadline = edge.deadlines.clock.now() + edge.silence
        self.edge.deadlines.watch(self)
        self.wire.forget_handshake()
        channel.reply(self.wire.encode(encode(Op.AUTH_REPLY, b"", frame.seq, frame.ver)))
        if replaced is not None:
            replaced.port.close(
                Disconnect("replaced by a newer connection with the same key", CloseCode.REPLACED)
            )
        self._begin(edge.logic.connected(session), _ignore, self._turn_away)

    # A live connection's frames.

    def _answer(self, frame: Frame) -> None:
        edge, channel = self.edge, self.channel
        if frame.op == HEARTBEAT:
            self.deadline = edge.deadlines.clock.now() + edge.silence
        try:
            reply = edge.comet.answer(channel, frame)
        except Refused as refused:
            self._refuse(frame, refused)
            return
        if reply is not None:
            channel.reply(self.wire.encode(reply))
            if frame.op == HEARTBEAT and edge.logic.beats:
                self._begin(edge.logic.heartbeat(channel.session), _ignore, self._end)
        else:
            self._begin(
                edge.logic.receive(channel.session, frame),
                self._reply,
                functools.partial(self._refuse, frame),
            )

    def _reply(self, reply: bytes) -> None:
        if self.stage is LIVE:
            self.channel.reply(self.wire.encode(reply))

    def _refuse(self, frame: Frame, error: Refused | Disconnect) -> None:
        if isinstance(error, Disconnect):
            self.close(error)
        else:
            self._reply(self.edge.comet.refusal(self.channel, frame, error))

    def _end(self, error: Refused | Disconnect) -> None:
        # A heartbeat has its answer already: only a hook that wants the connection closed is heard.
        if isinstance(error, Disconnect):
            self.close(error)

    def on_end(self, why: Disconnect) -> None:
        """Tell logic, when the client had been let in."""
        session = self.channel.session
        if session is not NOBODY:
            self.edge.exchanges.begin(self.edge.logic.disconnected(session, why), _ignore, _ignore)


_REFUSED_AS: dict[int, CloseCode] = {
    ErrorCode.INTERNAL: CloseCode.INTERNAL_ERROR,
    ErrorCode.TIMEOUT: CloseCode.AUTH_TIMEOUT,
}


def _ignore(_: object) -> None:
    pass
