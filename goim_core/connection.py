"""One socket's life, from its acceptance to its end. Sync; called by the reactor and by deadlines.

========= =================================== ======================== =================================
stage     what arrives                        what it does             its deadline ends it with
========= =================================== ======================== =================================
HANDSHAKE the WebSocket or TLS handshake      answered, then AUTH      HANDSHAKE_TIMEOUT
AUTH      an auth frame                       admitted: LIVE, or told  AUTH_TIMEOUT
          any other frame                     skipped, as goim does
LIVE      a frame                             answered                 HEARTBEAT_TIMEOUT
CLOSING   anything                            thrown away              (at once)
========= =================================== ======================== =================================

A connection in CLOSING has been told why and has shut down its side. It waits for the peer's end a
moment: closing a socket with unread bytes in it would reset the connection, and the reason would be
lost on the way. CLOSED is for good. How it is read is reading.py's, what its frames do conversation.py's.
"""

from __future__ import annotations

import socket
from math import inf

from attrs import define, field

from goim_core.channel import NOBODY, Channel, Counters, Gone
from goim_core.clock import Timed
from goim_core.edge import Edge
from goim_core.errors import CloseCode, Disconnect
from goim_core.options import Options
from goim_core.stage import AUTH, CLOSED, CLOSING, LATE, LIVE, Stage
from goim_core.tls import TLSSocket
from goim_core.wire import Wire

__all__ = ["Connection"]


@define(eq=False, weakref_slot=False)
class Connection:
    """One client socket: a :class:`~goim_core.channel.Port` and a source of the reactor."""

    sock: socket.socket | TLSSocket
    wire: Wire
    edge: Edge
    stage: Stage
    deadline: float
    expiry: float = field(init=False, default=inf)
    """When to look at the token's end again, on the wheel's clock."""
    channel: Channel = field(init=False)
    slot: dict[Timed, None] | None = None
    busy: bool = False
    """Not to be read now: an async hook has a frame of it, or its share of the turn or of time is used up."""
    unwatched: bool = False
    """The reactor was told not to look for bytes to read."""
    mark: int = 0
    """The moment of its last frame and how many it had: see budget.py."""
    why: Disconnect | None = None

    @classmethod
    def open(
        cls, sock: socket.socket | TLSSocket, wire: Wire, edge: Edge, stage: Stage, address: str
    ) -> None:
        """Begin the life of an accepted socket. Raises OSError where the reactor has no room for it."""
        options = edge.options
        timeout = options.auth_timeout if stage is AUTH else options.handshake_timeout
        connection = cls(sock, wire, edge, stage, edge.deadlines.clock.now() + timeout)
        connection.channel = Channel(sock, wire.form, connection, address)
        if isinstance(sock, TLSSocket):
            sock.on_blocked, sock.account = connection.want_write, edge.counters.outboxes
            sock.in_turns = True
        edge.reactor.add(sock, connection)
        edge.admission.came(connection, address)
        edge.deadlines.watch(connection)
        edge.counters.opened += 1

    @property
    def options(self) -> Options:
        """See :class:`~goim_core.channel.Port`."""
        return self.edge.options

    @property
    def counters(self) -> Counters:
        """See :class:`~goim_core.channel.Port`."""
        return self.edge.counters

    # What the reactor calls.

    def on_readable(self) -> None:
        """Read a share of what has come, and handle it."""
        raise NotImplementedError

    def on_turn(self) -> None:
        """Go on where the last turn, or a hook, left off."""
        raise NotImplementedError

    def on_writable(self) -> None:
        """Send what waits."""
        try:
            if isinstance(self.sock, TLSSocket) and not self.sock.flush():
                return
        except OSError as error:
            self.lost(error)
            return
        if self.channel.flush():
            self._watch()
            self._flushed()
        elif self.stage is not CLOSED:
            self._expect_write()

    # What the wheel of deadlines calls.

    def due(self) -> float:
        """The nearest of the stage's deadline, the token's end and that of what waits."""
        outbox, sock, due = self.channel.outbox, self.sock, self.deadline
        if self.expiry < due:  # noqa: PLR1730  # min() is a call
            due = self.expiry
        if outbox is not None and outbox.deadline < due:
            due = outbox.deadline
        return min(due, sock.deadline) if isinstance(sock, TLSSocket) else due

    def on_deadline(self) -> None:
        """The peer took too long for whatever its stage is waiting for."""
        if self.stage is CLOSING:
            self._finish()
        elif self.deadline > self.edge.deadlines.clock.now():
            self.close(Disconnect("too slow: it takes nothing of what it is sent", CloseCode.SLOW))
        else:
            self.close(Disconnect(*LATE[self.stage]))

    # What the channel calls: see Port.

    def want_write(self) -> None:
        """Have the reactor say when the socket takes bytes again."""
        self._expect_write()
        self._watch()

    def close(self, why: Disconnect, counted: int = 0) -> None:
        """Tell the client why and close, without waiting for it; ``counted`` under another code than that."""
        if self.stage >= CLOSING:
            return
        self._leave(why, CLOSING, counted)
        self.deadline = self.edge.deadlines.clock.now() + self.edge.options.farewell_timeout
        self.edge.deadlines.watch(self)
        farewell = self.wire.farewell(why)
        if farewell:
            self.channel.append(farewell)
        if self.unwatched and self.stage is CLOSING:
            self.unwatched = False
            self._watch()
        if self.channel.outbox is None:
            self._shut()

    def cut(self, why: Disconnect) -> None:
        """Tell the client why, if it takes that at once, and end the connection."""
        self.close(why)
        self._finish()

    @property
    def waiting(self) -> int:
        """How many bytes wait for the client to take them."""
        sealed = self.sock.waiting if isinstance(self.sock, TLSSocket) else 0
        return sealed + (self.channel.outbox.size if self.channel.outbox is not None else 0)

    def lost(self, error: OSError) -> None:
        """The peer is gone."""
        if self.stage < CLOSING:
            self._leave(Disconnect(f"connection lost: {error.strerror or error}", CloseCode.LOST), CLOSED)
        self._finish()

    def _leave(self, why: Disconnect, stage: Stage, counted: int = 0) -> None:
        if self.stage < LIVE:
            self.edge.admission.gave_up(self)
        if self.busy and self.edge.budget.wakes(self):
            self.busy = False
        self.edge.unfinished.forget(self)
        self.stage = stage
        self.why = why
        self.on_leave()
        self.edge.counters.closes[counted or why.code] += 1
        if self.channel.session is not NOBODY:
            self.edge.comet.remove(self.channel)
        if not self.busy:
            self.on_end(why)

    def _shut(self) -> None:
        if self.stage is not CLOSING:
            return
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._finish()

    def _finish(self) -> None:
        if self.sock.fileno() < 0:
            return
        self.stage = CLOSED
        self.edge.deadlines.forget(self)
        self.edge.reactor.remove(self.sock)
        self.sock.close()
        self.channel.discard()
        # Nothing refers back to the connection now, so its memory does not wait for the collector.
        self.channel.port = Gone(self.edge.options, self.edge.counters)
        if isinstance(self.sock, TLSSocket):
            self.sock.on_blocked = None
        self.edge.budget.forget(self)
        self.edge.admission.left(self.channel.address)
        self.edge.counters.closed += 1
        if self.edge.counters.closed == self.edge.counters.opened:
            self.edge.empty.set()

    def _watch(self) -> None:
        if self.stage is not CLOSED:
            blocked = isinstance(self.sock, TLSSocket) and self.sock.blocked
            write = self.channel.outbox is not None or blocked
            self.edge.reactor.watch(self.sock, read=not self.unwatched, write=write)

    def _expect_write(self) -> None:
        until = self.edge.deadlines.clock.now() + self.edge.options.write_timeout
        if self.channel.outbox is not None:
            self.channel.outbox.deadline = until
        if isinstance(self.sock, TLSSocket) and self.sock.blocked:
            self.sock.deadline = min(self.sock.deadline, until)
        self.edge.deadlines.watch(self)

    # What its end causes.

    def on_leave(self) -> None:
        """The connection is about to end: nothing that comes from now on is answered."""

    def on_end(self, why: Disconnect) -> None:
        """The connection has ended: called once, when nothing of it is under way any more."""
        raise NotImplementedError

    def _flushed(self) -> None:
        if self.stage is CLOSING:
            self._shut()
        elif self.channel.inbox is not None:
            self.channel.inbox.go_on()
