"""A client in a test: it sends, and it says what has to arrive and what must not."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from itertools import count

import anyio.lowlevel
from attrs import define, field

from goim_core.client.wire import ClientWire
from goim_core.connection import Connection
from goim_core.errors import CloseCode, Disconnect, ProtocolError
from goim_core.protocol import EXTENSION_OPS, Frame, Op, encode
from goim_core.session import Session
from goim_core.testing.link import Link
from goim_core.testing.report import Body, Expected, as_bytes, describe, matches, wanted

__all__ = ["Client"]

FIRST_SEQ = 10_001
"""Of the frames that are sent without one: what is stored in a test's inbox has lower numbers."""

_UNASKED = frozenset((Op.SEND_MSG, Op.SEND_MSG_REPLY, Op.PRESENCE, Op.EXPIRING, Op.MOVE))
"""The protocol's operations that come without being asked for."""


@define(eq=False, repr=False)
class Client:
    """One client. Made by :meth:`App.connect <goim_core.testing.App.connect>`.

    What arrives stays until an assertion takes it, whatever came before it. Assertions do not wait for
    a time: they wait until nothing can happen any more. They raise :class:`AssertionError`, which says what
    arrived instead.

    A *reply* echoes the sequence of a frame that this client sent; a *push* is the rest. So a message
    hook that answers with a :class:`~goim_core.protocol.Frame` of another sequence pushes.
    """

    link: Link
    connection: Connection
    _wire: ClientWire
    _idle: Callable[[], Awaitable[object]]
    _note: Callable[[], str]
    told: Disconnect | None = field(init=False, default=None)
    """Why the server closed the connection, once that has arrived."""
    _arrived: list[Frame] = field(init=False, factory=list)
    _seqs: count[int] = field(init=False, factory=lambda: count(FIRST_SEQ))
    _asked: set[tuple[int, int]] = field(init=False, factory=set)

    @property
    def session(self) -> Session:
        """The server's session of this client."""
        return self.connection.channel.session

    @property
    def key(self) -> str:
        """The key of this connection."""
        return self.session.key

    # What it does.

    async def send(self, op: int, body: Body = b"", *, seq: int | None = None, ver: int = 1) -> int:
        """Send a frame; its sequence, which is a new one unless given.

        Returns before the server has seen it, so that several can be on their way. Raises
        ConnectionError when the connection has ended.
        """
        if seq is None:
            seq = next(self._seqs)
        # Pushes have sequence 0 too: there the operation has to tell.
        self._asked.add((seq, op if seq == 0 else -1))
        await self.send_bytes(self._wire.encode(encode(op, as_bytes(body), seq, ver)))
        return seq

    async def send_bytes(self, data: bytes) -> None:
        """Send bytes as they are, which need be no frame."""
        self.link.write(data)
        await anyio.lowlevel.checkpoint()

    async def request(self, op: int, body: Body = b"") -> Frame:
        """Send a frame and return its reply, which may be an ERROR (op 18)."""
        __tracebackhide__ = True
        seq = await self.send(op, body)
        return await self._take("reply", None, None, seq)

    async def heartbeat(self) -> int:
        """Send a heartbeat; how many are in this client's room."""
        __tracebackhide__ = True
        reply = await self.request(Op.HEARTBEAT)
        return int.from_bytes(reply.body)

    async def ack(self, seq: int) -> int:
        """Acknowledge the inbox up to ``seq``; where this device's cursor is now."""
        __tracebackhide__ = True
        reply = await self.request(Op.ACK, str(seq))
        if reply.op != Op.ACK_REPLY or not reply.body:
            raise AssertionError(f"ACK {seq} was refused:\n{describe([('reply', reply)])}")
        return int(reply.body)

    def close(self) -> None:
        """Close the connection as a client does; over WebSocket the server answers first."""
        if self.link.gone:
            return
        farewell = self._wire.answers() + self._wire.farewell() if self.link.fileno() >= 0 else b""
        if farewell:
            self.link.write(farewell)
        if self.link.ended or not farewell:
            self.link.leave()

    def break_link(self) -> None:
        """Break the connection: the server sees a reset."""
        self.link.reset()

    def pause_reading(self) -> None:
        """Read no more: what the link does not hold, the server has to."""
        self.link.pause()

    def resume_reading(self) -> None:
        """Read what waits, and what comes."""
        self.link.resume()

    # What has to have happened.

    async def assert_reply(
        self, op: int | None = None, body: Expected = None, *, seq: int | None = None
    ) -> Frame:
        """A reply like this has arrived: it is taken and returned. None stands for any."""
        __tracebackhide__ = True
        return await self._take("reply", op, body, seq)

    async def assert_refused(self, code: int, *, seq: int | None = None) -> str:
        """A frame was refused with this code in an ERROR (op 18), which the client accepts; the message."""
        __tracebackhide__ = True
        await self._idle()
        reply = self._find("reply", Op.ERROR, lambda body: json.loads(body)["code"] == code, seq)
        if reply is None:
            wish = wanted("reply", Op.ERROR, None, seq)
            raise AssertionError(f"expected {wish} with code {int(code)}; {self._state()}")
        self._remove(reply)
        return str(json.loads(reply.body)["message"])

    async def assert_push(
        self, op: int | None = None, body: Expected = None, *, seq: int | None = None
    ) -> Frame:
        """A push like this has arrived: it is taken and returned. None stands for any."""
        __tracebackhide__ = True
        return await self._take("push", op, body, seq)

    async def refute_push(self, op: int | None = None, body: Expected = None) -> None:
        """No push like this has arrived, but for those that were taken, and none is on its way."""
        __tracebackhide__ = True
        await self._idle()
        found = self._find("push", op, body, None)
        if found is not None:
            raise AssertionError(f"expected no {wanted('push', op, body, None)[2:]}; {self._state()}")

    async def take_pushes(self) -> list[Frame]:
        """Every push that has arrived and was not taken, in order."""
        await self._idle()
        pushes = [frame for frame in self._arrived if self._kind(frame) == "push"]
        self._arrived = [frame for frame in self._arrived if self._kind(frame) != "push"]
        return pushes

    async def assert_closed(self, code: int | None = None) -> Disconnect:
        """The server has closed the connection, and has told this code; why.

        A server that did not say why, because it could not, counts as :attr:`CloseCode.LOST
        <goim_core.errors.CloseCode>`.
        """
        __tracebackhide__ = True
        await self._idle()
        told = self.told or Disconnect("the server closed without a word", CloseCode.LOST)
        if not self.link.over or code not in (None, told.code):
            wish = "a closed connection" if code is None else f"a connection closed with code {int(code)}"
            raise AssertionError(f"expected {wish}; {self._state()}")
        return told

    async def assert_open(self) -> None:
        """The server has not closed the connection."""
        __tracebackhide__ = True
        await self._idle()
        if self.link.ended:
            raise AssertionError(f"expected an open connection; {self._state()}")

    # What arrives.

    def pump(self) -> bool:
        """Look at what has arrived; whether the client had to answer something. For the kit."""
        data = self.link.read()
        if data:
            self._receive(data)
        if self.link.over and not self.link.gone:
            self.close()
            return True
        return False

    def _receive(self, data: bytes) -> None:
        self._wire.receive(data)
        more = True
        while more:
            try:
                frame = self._wire.next_frame()
            except Disconnect as told:
                self.told = self.told or told  # the close frame of a WebSocket says it once more
            except ProtocolError as error:
                if self._wire.opened:
                    self.link.reset()  # the server has a fault, which is told once
                    raise
                self.told = self.told or Disconnect(error.reason, error.code)  # it refused the handshake
            else:
                more = frame is not None
                self._arrived += [frame] if frame is not None else []

    def _kind(self, frame: Frame) -> str:
        if (frame.seq, frame.op if frame.seq == 0 else -1) in self._asked:
            return "reply"
        protocols_own = frame.op < EXTENSION_OPS.stop and frame.op not in _UNASKED
        return "reply" if protocols_own else "push"

    def _find(self, kind: str, op: int | None, body: Expected, seq: int | None) -> Frame | None:
        for frame in self._arrived:
            fits = (op is None or frame.op == op) and (seq is None or frame.seq == seq)
            if fits and self._kind(frame) == kind and matches(frame.body, body):
                return frame
        return None

    async def _take(self, kind: str, op: int | None, body: Expected, seq: int | None) -> Frame:
        __tracebackhide__ = True
        await self._idle()
        found = self._find(kind, op, body, seq)
        if found is None:
            raise AssertionError(f"expected {wanted(kind, op, body, seq)}; {self._state()}")
        self._remove(found)
        return found

    def _remove(self, taken: Frame) -> None:
        self._arrived = [frame for frame in self._arrived if frame is not taken]

    def _state(self) -> str:
        lines = [f"beside what was taken, {self} has got:"]
        lines.append(describe((self._kind(frame), frame) for frame in self._arrived))
        if self.link.ended:
            told = self.told
            lines.append("  the server closed" + (f": {told.reason} (code {told.code})" if told else ""))
        if not self.link.reading:
            lines.append("  the client does not read: resume_reading()")
        note = self._note()
        return "\n".join([*lines, *([note] if note else [])])

    def __repr__(self) -> str:
        session = self.session
        kind = ("tcp", "ws")[self.connection.channel.form]
        return f"<{kind} client {f'of user {session.mid}' if session.key else '(not let in)'}>"
