"""What a connection's frames do: authentication, and then an answer to each. Sync.

A frame that asks the application goes through a flow (see flow.py). Plain hooks have answered when it
returns; while an async one has not, the connection is busy: it is not read, what follows waits in the
kernel, in order, and costs no memory here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from math import inf
from typing import TypeVar

from attrs import define

from goim_core.channel import NOBODY
from goim_core.errors import CloseCode, Disconnect, ErrorCode, Refused
from goim_core.flow import Flow
from goim_core.inbox import Inbox
from goim_core.logs import ending_told, tell_ending
from goim_core.protocol import Frame, Op, encode
from goim_core.reading import Reading
from goim_core.session import AuthRequest, Session
from goim_core.stage import CLOSING, LIVE
from goim_core.tls import TLSSocket

__all__ = ["Conversation", "taken_over"]

T = TypeVar("T")

HEARTBEAT = int(Op.HEARTBEAT)


@define(eq=False, weakref_slot=False)
class Conversation(Reading):
    """A connection that speaks goim's protocol."""

    paced: float = 0.0
    """When the rate limit would be used up by what has come, had it come evenly."""
    written: int = 0
    """What the client was written of its inbox when it ended; -1: logic has been told that it is gone."""

    def on_frame(self, frame: Frame) -> None:
        """Answer, or authenticate; anything else before authentication is skipped, as goim does."""
        if self.stage is LIVE:
            self._answer(frame)
        elif frame.op == Op.AUTH:
            self._authenticate(frame)

    def on_lone(self, frame: Frame) -> None:
        """The same; a heartbeat that is nobody else's business is answered at the end of the turn.

        In one piece, and not by :meth:`_answer`: of all that clients send it is what comes most.
        """
        edge = self.edge
        if self.stage is LIVE and frame.op == HEARTBEAT and not edge.logic.beats:
            self.deadline = edge.deadlines.clock.now() + edge.silence
            edge.reactor.reply(self, self.wire.encode(edge.operations.heartbeat(self.channel, frame)))
        else:
            self.on_frame(frame)

    def reply(self, data: bytes) -> None:
        """Send what was left for the end of the turn, unless it has ended meanwhile."""
        if self.stage is LIVE:
            self.channel.reply(data)

    def on_deadline(self) -> None:
        """The peer took too long, or its token has run out or will soon."""
        if self.stage is LIVE and self.expiry <= self.edge.deadlines.clock.now():
            self._expire()
        else:
            super().on_deadline()

    def _begin(
        self, flow: Flow[T], done: Callable[[T], None], failed: Callable[[Refused | Disconnect], None]
    ) -> None:
        if not self.edge.exchanges.begin(flow, done, failed, self._over):
            self.busy = True

    def _over(self, report: Callable[[T], None], outcome: T) -> None:
        ended = self.why is not None
        self.busy = False
        report(outcome)
        # What was reported may have begun another exchange, or have closed the connection.
        if ended or (self.why is None and not self.busy):
            self.on_turn()

    # Authentication.

    def _authenticate(self, frame: Frame) -> None:
        at_most = self.edge.options.max_token
        if len(frame.body) > at_most:
            self.counters.refusals["max_token"] += 1
            self.close(Disconnect(f"token: expected at most {at_most} bytes", CloseCode.TOO_BIG))
            return
        request = AuthRequest(
            token=frame.body,
            transport=("tcp", "websocket")[self.wire.form],
            address=self.channel.address,
            path=self.wire.path,
            headers=self.wire.headers,
        )
        self.edge.admission.asks(self)
        self._begin(self.edge.logic.connect(request), functools.partial(self._admit, frame), self._keep_out)

    def _keep_out(self, error: Refused | Disconnect) -> None:
        self.edge.admission.answered()
        self._turn_away(error)

    def _turn_away(self, error: Refused | Disconnect) -> None:
        if isinstance(error, Refused):
            error = Disconnect(error.reason, _REFUSED_AS.get(error.code, CloseCode.AUTH_REFUSED))
        self.close(error)

    def _admit(self, frame: Frame, session: Session) -> None:
        edge, channel = self.edge, self.channel
        edge.admission.answered()
        unfit = edge.admission.unfit(session, self._others_of) if self.stage < CLOSING else self.why
        if unfit is not None:
            edge.exchanges.begin(
                edge.logic.withdraw(session), functools.partial(self._withdrew, session.key), _ignore
            )
            self.close(unfit)
            return
        channel.session = session
        replaced = edge.comet.put(channel)
        self.stage = LIVE
        self.deadline = edge.deadlines.clock.now() + edge.silence
        self._expect_expiry()
        self.wire.forget_handshake()
        if session.mid in edge.tracer.mids:
            edge.tracer.follow(self)
        self.busy = True  # the link may break here, and its end comes after its beginning
        channel.reply(self.wire.encode(encode(Op.AUTH_REPLY, b"", frame.seq, frame.ver)))
        if replaced is not None:
            replaced.port.close(taken_over())
        if edge.logic.stores and self.stage is LIVE:
            channel.inbox = inbox = Inbox(channel, edge.logic, edge.exchanges, edge.reactor)
            inbox.go_on()
        self.busy, ended = False, self.why
        self._begin(edge.logic.connected(session), _ignore, self._turn_away)
        if ended is not None and not self.busy:
            self.on_end(ended)

    def _others_of(self, session: Session) -> int:
        held = self.edge.logic.held(session)
        return self.edge.comet.others(session) if held is None else held - 1

    def _withdrew(self, key: str, had_the_key: bool) -> None:
        # From whom it was taken over has no route any more, and would be pushed nothing.
        older = self.edge.comet.buckets.get(key)
        if had_the_key and older is not None:
            older.port.close(taken_over())

    # The token's end.

    def _expect_expiry(self) -> None:
        """Watch for the time to ask for a new token, or, where the client cannot be asked, for its end."""
        edge, session = self.edge, self.channel.session
        if session.expires < inf:
            left = session.expires - edge.deadlines.clock.time()
            if Op.EXPIRING in self.channel.accepts:
                left -= min(edge.options.refresh_notice, left / 2)
            self.expiry = edge.deadlines.clock.now() + max(0.0, left)
        else:
            self.expiry = inf
        edge.deadlines.watch(self)

    def _expire(self) -> None:
        edge, channel = self.edge, self.channel
        left = channel.session.expires - edge.deadlines.clock.time()
        if left <= 0:
            self.close(Disconnect("the token has expired", CloseCode.EXPIRED))
            return
        if Op.EXPIRING in channel.accepts:  # it may have been unsubscribed since
            body = f'{{"seconds":{math.ceil(left)}}}'.encode()
            channel.reply(self.wire.encode(encode(Op.EXPIRING, body)))
        if self.stage is LIVE:
            self.expiry = edge.deadlines.clock.now() + left
            edge.deadlines.watch(self)

    # The server's end.

    def on_turn(self) -> None:
        """Go on, or leave where that has waited for this turn."""
        why = self.edge.leaving.pop(self, None)
        if why is None or self.why is not None:
            super().on_turn()
        else:
            self.busy = False
            self.close(why)

    def ask_to_move(self, seconds: float) -> None:
        """Ask the client to connect to another node in ``seconds``, where it understands that."""
        if Op.MOVE in self.channel.accepts:
            body = f'{{"seconds":{round(seconds, 3):g}}}'.encode()
            # A full outbox is no reason to close it now: it will be at its time.
            self.channel.append(self.wire.encode(encode(Op.MOVE, body)))

    def leave(self, why: Disconnect) -> None:
        """Close, but not before a hook that is at work for this client has answered it."""
        if self.busy and self.stage < CLOSING and not self.edge.budget.rests(self):
            self.edge.leaving[self] = why
        else:
            self.close(why)

    # A live connection's frames.

    def _answer(self, frame: Frame) -> None:
        edge, channel = self.edge, self.channel
        if frame.op == HEARTBEAT:
            self.deadline = edge.deadlines.clock.now() + edge.silence
            channel.reply(self.wire.encode(edge.operations.heartbeat(channel, frame)))
            if edge.logic.beats and self.stage is LIVE:  # the reply may have ended it
                written = channel.inbox.beat() if channel.inbox is not None else 0
                self._begin(
                    edge.logic.heartbeat(channel.session, written),
                    functools.partial(self._beaten, written),
                    self._end,
                )
        elif edge.options.rate and not self._within_rate():
            self.counters.refusals["rate"] += 1
            self._refuse(frame, Refused(f"at most {edge.options.rate:g} frames a second", ErrorCode.TOO_MANY))
        else:
            self._begin(
                edge.operations.answer(channel, frame),
                functools.partial(self._answered, frame.op),
                functools.partial(self._refuse, frame),
            )

    def _beaten(self, written: int, _: None) -> None:
        if written and self.channel.inbox is not None:
            self.channel.inbox.saved = written

    def _within_rate(self) -> bool:
        """Take one from the token bucket, which is kept as the time at which it would be full again."""
        options, now = self.edge.options, self.edge.deadlines.clock.now()
        paced = max(self.paced, now) + 1 / options.rate
        # A thousandth of a frame for rounding: the sum of many 1 / rate is not the quotient.
        if (paced - now) * options.rate > options.rate_burst + 0.001:
            return False
        self.paced = paced
        return True

    def _answered(self, op: int, reply: bytes) -> None:
        if op == Op.REFRESH and self.stage is LIVE:
            self._expect_expiry()
        self.reply(self.wire.encode(reply))

    def _refuse(self, frame: Frame, error: Refused | Disconnect) -> None:
        if isinstance(error, Disconnect):
            self.close(error)
        else:
            self.reply(self.wire.encode(self.edge.operations.refusal(self.channel, frame, error)))

    def _end(self, error: Refused | Disconnect) -> None:
        # A heartbeat has its answer already: only a hook that wants the connection closed is heard.
        if isinstance(error, Disconnect):
            self.close(error)

    def on_leave(self) -> None:
        """See :meth:`Connection.on_leave`."""
        self.expiry = inf  # the farewell has a time of its own
        if self.channel.inbox is not None:
            self.written = self.channel.inbox.close()
            self.channel.inbox = None  # it refers to the channel
        session = self.channel.session
        if self.busy and session is not NOBODY:
            # Who is gone is not online for as long as a hook works on its last frame.
            written, self.written = self.written, -1
            self.edge.exchanges.each(self.edge.logic.withdrawn(session, written))

    def _finish(self) -> None:
        if self.sock.fileno() >= 0:
            super()._finish()
            # Now that it is counted what became of every message.
            if self.why is not None:
                self._tell_end(self.why)

    def _tell_end(self, why: Disconnect) -> None:
        session = self.channel.session
        if session.mid in self.edge.tracer.mids:
            self.edge.tracer.ended(session, why)
        if ending_told():
            doors = ("tls", "wss") if isinstance(self.sock, TLSSocket) else ("tcp", "ws")
            tell_ending(
                key=session.key,
                mid=session.mid,
                address=self.channel.address,
                transport=doors[self.channel.form],
                room=session.room_id,
                code=why.code,
                reason=why.reason,
                drops=self.channel.drops,
            )

    def on_end(self, why: Disconnect) -> None:
        """Tell logic, when the client had been let in."""
        logic, session = self.edge.logic, self.channel.session
        if session is not NOBODY:
            withdrawn = () if self.written < 0 else logic.withdrawn(session, self.written)
            self.edge.exchanges.each((*withdrawn, *logic.disconnected(session, why)))


_REFUSED_AS: dict[int, CloseCode] = {
    ErrorCode.INTERNAL: CloseCode.INTERNAL_ERROR,
    ErrorCode.TIMEOUT: CloseCode.AUTH_TIMEOUT,
}


def taken_over() -> Disconnect:
    """What a connection is told whose key a newer one has."""
    return Disconnect("replaced by a newer connection with the same key", CloseCode.REPLACED)


def _ignore(_: object) -> None:
    pass
