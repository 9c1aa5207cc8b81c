"""The way of stored messages to one connection: what was stored first, then the live. Sync.

The storage is the truth, and a push only says that there is something new: it is sent at once when it
is the next number and the client keeps up. Otherwise the inbox is read again, page by page, each when the
one before has left; so there is no gap, no second order, and never more than a page in memory, however
long the inbox and however slow the client.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from attrs import define

from goim_core.channel import Channel
from goim_core.errors import CloseCode, Disconnect, Refused
from goim_core.exchanges import Exchanges
from goim_core.flow import Flow
from goim_core.logic import Logic
from goim_core.protocol import Op, encode
from goim_core.reactor import Reactor
from goim_core.storage import Stored
from goim_core.wire import Packet

__all__ = ["Inbox"]

T = TypeVar("T")


@define(eq=False, weakref_slot=False)
class Inbox:
    """How far ``channel`` has got in its user's inbox. A source of the reactor, for its turns."""

    channel: Channel
    logic: Logic
    exchanges: Exchanges
    reactor: Reactor
    sent: int = -1
    """The last number that was sent, or passed over because its operation is not accepted; -1: not known."""
    before: int = 0
    """What ``sent`` was when nothing waited in the outbox the last time."""
    saved: int = 0
    """What ``sent`` the storage knows, of a client that does not acknowledge."""
    announced: int = 0
    """The highest number that a push has told of."""
    reading: bool = False
    behind: bool = True
    """The storage has, or may have, more: live messages wait there."""
    held: list[tuple[int, Packet]] | None = None
    """Live messages that are not stored, for the time when this connection has caught up."""
    held_bytes: int = 0
    closed: bool = False

    def push(self, seq: int, op: int, packet: Packet) -> None:
        """See :class:`~goim_core.channel.Feed`."""
        channel = self.channel
        if not seq:
            if not self.behind:
                self._live(op, packet)
            elif op in channel.accepts and not self._hold(op, packet):
                channel.dropped(packet.count, "inbox")
            return
        self.announced = max(self.announced, seq)
        if self.behind or seq <= self.sent:
            return
        outbox = channel.outbox
        if seq != self.sent + 1 or not (outbox is None or channel.fits(packet.forms[channel.form])):
            self.behind = True
            self.go_on()
        else:
            self._send(seq, packet if op in channel.accepts else None)

    def _hold(self, op: int, packet: Packet) -> bool:
        """Let ``packet`` wait; False where as much waits as may wait in an outbox."""
        options, size = self.channel.port.options, len(packet.forms[self.channel.form])
        if self.held is None:  # an idle connection needs no list
            self.held = []
        if len(self.held) >= options.outbox_packets or self.held_bytes + size > options.outbox_bytes:
            return False
        self.held.append((op, packet))
        self.held_bytes += size
        return True

    def _release(self) -> list[tuple[int, Packet]]:
        held, self.held, self.held_bytes = self.held or [], None, 0
        return held

    def go_on(self) -> None:
        """Read what comes next, unless that is under way or the last page has not left yet."""
        if self.channel.outbox is not None or self.closed:
            return
        self.before = self.sent
        if self.behind and not self.reading:
            self.reading = True
            seq = self.announced
            if self.sent < 0:
                self._begin(self.logic.cursor(self.channel.session), self._from)
            else:
                self._begin(
                    self.logic.after(self.channel.session, self.sent), lambda page: self._page(page, seq)
                )

    def beat(self) -> int:
        """A heartbeat: look whether a message was stored whose push got lost. Returns :meth:`written`."""
        written = self.written()
        if self.sent >= 0:
            self.behind = True
            self.go_on()
        return written

    def close(self) -> int:
        """The connection ends: send no more. Returns what :meth:`written` does."""
        self.closed = True
        lost = sum(packet.count for _, packet in self._release())
        if lost:
            self.channel.dropped(lost, "lost")
        return self.written()

    def on_turn(self) -> None:
        """The reactor's next turn."""
        self.go_on()

    def on_readable(self) -> None:
        """Never: it has no socket."""

    def on_writable(self) -> None:
        """Never: it has no socket."""

    def written(self) -> int:
        """The last number that a client which does not acknowledge was written, if that is new; else 0."""
        if Op.ACK in self.channel.session.accepts or self.sent < 0:
            return 0
        seq = self.sent if self.channel.outbox is None else self.before
        return seq if seq > self.saved else 0

    def _begin(self, flow: Flow[T], done: Callable[[T], None]) -> None:
        self.exchanges.begin(flow, done, self._failed)

    def _from(self, cursor: int) -> None:
        self.reading = False
        self.sent = self.before = self.saved = cursor
        self.go_on()

    def _page(self, page: Sequence[Stored], announced: int) -> None:
        self.reading = False
        if self.closed:
            return
        if page:
            accepts = self.channel.accepts
            frames = [encode(m.op, m.body, m.seq) for m in page if m.op in accepts]
            self._send(page[-1].seq, Packet(frames) if frames else None)
            # When all of it has left: at the next turn, so that a long inbox lets others have theirs.
            self.reactor.again(self)
        elif self.announced > announced:
            self.go_on()  # it came while the page was read
        else:
            # What was announced and is not there has been removed meanwhile.
            self.sent = max(self.sent, announced)
            self.behind = False
            for op, packet in self._release():
                self._live(op, packet)

    def _send(self, seq: int, packet: Packet | None) -> None:
        channel = self.channel
        if packet is not None:
            channel.port.counters.deliveries += packet.count
            # Never dropped by a policy: the numbers would have a gap.
            channel.append(packet.forms[channel.form])
        # Only now: a socket that is found broken ends the connection, and this was not written.
        self.sent = seq
        if channel.outbox is None:
            self.before = seq

    def _live(self, op: int, packet: Packet) -> None:
        if op in self.channel.accepts:
            self.channel.push(packet)

    def _failed(self, error: Refused | Disconnect) -> None:
        self.reading = False
        if not self.closed:
            reason = f"the inbox cannot be read: {error.reason}"
            self.channel.port.close(Disconnect(reason, CloseCode.INTERNAL_ERROR))
